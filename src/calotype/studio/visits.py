"""Who visits, and their pictures: each browser has a folder of its own, which nobody else's page can reach."""

from __future__ import annotations

import re
import secrets
import shutil
import threading
import time
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from calotype.errors import PictureError, UsageError
from calotype.families import PRESETS
from calotype.pixels import MAX_PIXELS, picture_size, read_picture_rows, to_pil

MOST_BYTES = 2**28  # of one file
MOST_PIXELS = min(2**27, MAX_PIXELS)  # a browser shows no more
MOST_OF_A_VISIT = 2**32  # bytes of all that a visit holds
MOST_VISITS = 64
IDLE = 2 * 3600.0  # seconds after which a visit has ended
_THUMBNAIL = 240  # pixels
_LONGEST = 80  # letters of a name


@dataclass
class Thing:
    """A picture, or another file that commands read.

    Attributes:
        name: as the page shows it, and commands have it.
        path: where it lies.
        seen: a PNG as calotype reads the picture; None for other files.
        kind: picture or direction.
    """

    id: str
    name: str
    path: Path
    kind: str
    seen: Path | None = None
    thumbnail: Path | None = None
    width: int = 0
    height: int = 0
    alpha: bool = False
    notices: tuple[str, ...] = ()
    made: bool = False  # by a command

    def facts(self) -> dict[str, Any]:
        """For pages."""
        return {
            "id": self.id, "name": self.name, "kind": self.kind, "width": self.width, "height": self.height,
            "alpha": self.alpha, "notices": list(self.notices), "made": self.made,
        }  # fmt: skip


@dataclass
class Visit:
    """One browser's."""

    folder: Path
    things: dict[str, Thing] = field(default_factory=dict)
    jobs: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)  # what tabs keep of it, by their names
    at: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def thing(self, id: object, kind: str = "picture") -> Thing:
        """By its id.

        Raises:
            UsageError: this visit has none, or it is of another kind.
        """
        found = self.things.get(id) if isinstance(id, str) else None
        if found is None or found.kind != kind:
            raise UsageError(f"There is no such {kind} here any more; choose another, or drop it again.")
        return found

    def tidy(self, message: str) -> str:
        """A sentence without the folders of this visit, which are nobody's business."""
        return re.sub(re.escape(str(self.folder)) + r"[/\\][^/\\\s]+[/\\]", "", message)

    def bytes(self) -> int:
        """Of all files."""
        return sum(one.stat().st_size for one in self.folder.rglob("*") if one.is_file())

    def name(self, wanted: str) -> str:
        """A name that is a file's and no other thing's here."""
        text = unicodedata.normalize("NFC", Path(wanted.replace("\\", "/")).name)
        text = "".join(c if unicodedata.category(c)[0] in "LMN" or c in "._-+() " else "_" for c in text).strip(" .-")
        stem, dot, suffix = text.rpartition(".")
        stem, suffix = (stem, dot + suffix) if stem and len(suffix) <= 12 else (text, "")
        stem = stem[: _LONGEST - len(suffix)].rstrip(" .") or "picture"
        hidden = {"builtin", *PRESETS}  # by a file of that name
        taken = hidden | {one.name.lower() for one in list(self.things.values())}
        name, i = f"{stem}{suffix}", 1
        while name.lower() in taken:
            i += 1
            name = f"{stem}-{i}{suffix}"
        return name

    def place(self) -> Path:
        """A new folder for one thing."""
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir(mode=0o700)
        return folder

    def add_picture(self, path: Path, name: str, *, made: bool = False) -> Thing:
        """Reads a picture as calotype does and keeps it.

        Raises:
            PictureError: it can't be read.
            UsageError: it is too large for a page.
        """
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise UsageError(f"{name} is empty; give a picture.")
            file.seek(0)
            _require_size(file, name)
        picture = read_picture_rows(path, alpha="keep")
        height, width = picture.size
        image = to_pil(picture.rows(0, height))
        if picture.alpha is not None:
            image.putalpha(Image.fromarray(picture.alpha.numpy()))
        place = self.place()
        seen, thumbnail = place / "seen.png", place / "thumbnail.png"
        try:
            image.save(seen, compress_level=1)
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            image.save(thumbnail)
        except OSError:  # the disk is full
            shutil.rmtree(place, ignore_errors=True)
            raise
        thing = Thing(
            id=place.name, name=name, path=path, kind="picture", seen=seen, thumbnail=thumbnail, width=width,
            height=height, alpha=picture.alpha is not None, notices=picture.notices, made=made,
        )  # fmt: skip
        return self._hold(thing)

    def add_direction(self, path: Path, name: str, *, made: bool = False) -> Thing:
        """Keeps what `calotype direction learn` wrote.

        Raises:
            CalotypeError: it is something else.
        """
        from calotype.edit.directions import load_direction

        load_direction(path)
        return self._hold(Thing(id=secrets.token_hex(8), name=name, path=path, kind="direction", made=made))

    def _hold(self, thing: Thing) -> Thing:
        """Keeps a thing; where one came meanwhile that has its name, it gets another."""
        with self._lock:
            thing.name = self.name(thing.name)
            self.things[thing.id] = thing
        return thing

    def forget(self, thing: Thing) -> None:
        """Removes a thing and its files; what a command made goes with the command's folder."""
        del self.things[thing.id]
        for path in (None if thing.made else thing.path, thing.seen):
            if path is not None:
                shutil.rmtree(path.parent, ignore_errors=True)


def _require_size(file: Any, name: str) -> None:
    try:
        height, width = picture_size(file)
    except PictureError as error:
        raise PictureError(f"{name} {str(error).removeprefix('The picture ')}") from None
    if height * width > MOST_PIXELS:
        side = int(MOST_PIXELS**0.5)
        raise UsageError(
            f"{name} has {width}x{height} pixels, and the studio takes {MOST_PIXELS:,} ({side}x{side}); the command "
            f"line takes more."
        )


class Visits:
    """All visits, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._visits: dict[str, Visit] = {}

    def find(self, token: str | None) -> Visit | None:
        """The visit of a cookie."""
        visit = self._visits.get(token) if token else None
        if visit is not None:
            visit.at = time.monotonic()
        return visit

    def tidy(self, idle: float = IDLE, most: int = MOST_VISITS) -> None:
        """Ends visits of which nothing was heard for so many seconds, and the oldest where there are too many."""
        now = time.monotonic()
        for token, visit in sorted(self._visits.items(), key=lambda one: one[1].at):
            busy = any(job.unfinished for job in visit.jobs.values())
            if not busy and (now - visit.at > idle or len(self._visits) > most):
                self.end(token)

    def begin(self) -> tuple[str, Visit]:
        """A new one, and its cookie."""
        self.tidy(most=MOST_VISITS - 1)
        token = secrets.token_urlsafe(32)
        folder = self.folder / f"visit-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        self._visits[token] = Visit(folder)
        return token, self._visits[token]

    def end(self, token: str) -> None:
        """Removes a visit with all that it holds."""
        if (visit := self._visits.pop(token, None)) is not None:
            shutil.rmtree(visit.folder, ignore_errors=True)
