"""Pictures by number, as all sources give them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calotype.errors import PictureError, RemoteError, UsageError
from calotype.pixels import PictureRows, picture_size, read_picture_rows, to_uint8
from calotype.pixels.kinds import HEAD, Listing

Array = NDArray[np.uint8]  # a picture: [H, W, 3], sRGB levels

TEXTS = (".txt", ".caption", ".json", ".jsonl", ".cls")
"""Suffixes of what may stand beside pictures and say something of them."""

MOST_TEXT = 2**28
"""Bytes that are read of a text beside pictures."""

_SERIAL = 2**15  # elements; torch splits what is larger among threads of its own


class Pictures(Protocol):
    """Pictures by number. All of it may be called from several threads at once."""

    @property
    def names(self) -> Sequence[str]:
        """A name for each, as its source has it."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> Array:
        """Picture i, upright and over white: uint8 [H, W, 3], sRGB.

        Raises:
            PictureError: it can't be read; the message names it.
        """

    def side(self, i: int) -> int:
        """The shorter side of picture i in pixels, from its header.

        Raises:
            PictureError: it can't be read; the message names it.
        """


@dataclass(frozen=True)
class LeftOut:
    """Files of a source that are pictures, or nearly, and not among those that are read.

    Attributes:
        counts: how many, by suffix ("" without one) and what is said of them.
    """

    counts: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        """As in "2 .heic (pip install pillow-heif), 1 .mov (a video)"; empty for none."""
        return ", ".join(f"{n:,} {suffix or 'without a suffix'} ({why})" for (suffix, why), n in self._sorted())

    @property
    def sentence(self) -> str:
        """What to tell; empty for none."""
        if not self.counts:
            return ""
        return f"{len(self):,} {'file was' if len(self) == 1 else 'files were'} left out: {self}."

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain values, as reports hold them."""
        return [{"suffix": suffix, "count": n, "why": why} for (suffix, why), n in self._sorted()]

    def _sorted(self) -> list[tuple[tuple[str, str], int]]:
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))


@dataclass(frozen=True)
class Beside:
    """What a source has beside its pictures.

    Attributes:
        stamp: of picture i, for who has read it before: while it stays the same so do the picture's bytes, as far as
            sizes and times of files tell; empty where nothing tells.
        texts: small files whose suffix is among `TEXTS`, by name; what each holds is read when it is called.
        column: all values of a dataset's column of this name; None where there is no such column.
    """

    stamp: Callable[[int], str] = lambda i: ""
    texts: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    column: Callable[[str], Sequence[Any] | None] = lambda name: None


class Stored:
    """Pictures as encoded files.

    Args:
        title: of the source, for messages.
        names: a name for each.
        open_: gives the encoded file of a picture; called from several threads.
        left_out: files that are not among them.
        alpha: pictures are read with their alpha, uint8 [H, W, 4], and not over white.
        beside: gives what else the source has; it is listed when it is asked for.
        head: as `open_`, for who reads no more than a picture's header.
        far: reading waits for a server, so that many pictures are best read at the same time.
    """

    def __init__(
        self,
        title: str,
        names: Sequence[str],
        open_: Callable[[int], IO[bytes]],
        left_out: LeftOut = LeftOut(),
        *,
        alpha: bool = False,
        beside: Callable[[], Beside] = Beside,
        head: Callable[[int], IO[bytes]] | None = None,
        far: bool = False,
    ) -> None:
        self.title, self.names, self._open, self.left_out, self._alpha = title, names, open_, left_out, alpha
        self._beside, self._head, self.far = beside, head or open_, far

    def with_alpha(self) -> Stored:
        """The same pictures, read with their alpha."""
        same = copy(self)
        same._alpha = True
        return same

    def __len__(self) -> int:
        return len(self.names)

    @property
    def beside(self) -> Beside:
        """What the source has beside its pictures."""
        return self._beside()

    def read(self, i: int) -> Array:
        """See `Pictures`."""
        with self.opened(i) as file:
            if self._alpha:
                return rgba_levels(read_picture_rows(file, alpha="keep"))
            return rgb_levels(read_picture_rows(file))

    def side(self, i: int) -> int:
        """See `Pictures`."""
        with self.opened(i, header=True) as file:
            return min(picture_size(file))

    @contextmanager
    def opened(self, i: int, *, header: bool = False) -> Iterator[IO[bytes]]:
        """The encoded file of a picture; what is wrong with either is told by its name.

        Args:
            i: the picture's number.
            header: no more of it will be read than its header.

        Raises:
            PictureError: it can't be opened, or the block raised.
            RemoteError: it lies on a server, which does not answer.
        """
        try:
            with (self._head if header else self._open)(i) as file:
                yield file
        except RemoteError:  # it is no fault of this picture
            raise
        except Exception as error:  # a damaged member of an archive may raise almost any
            reason = str(error) if isinstance(error, PictureError) else f"{_reason(error)}."
            raise PictureError(f"{self.title}: {_printable(self.names[i])}: {reason}") from error


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)[1:-1]


def _reason(error: Exception) -> str:
    return _printable(" ".join(str(error).split())).rstrip(".") or type(error).__name__


def rgb_levels(picture: PictureRows) -> Array:
    """uint8 [H, W, 3], by pieces so small that torch starts no threads: this runs in many threads already."""
    if picture.opacity is None and picture.levels.dtype == np.uint8:
        return np.asarray(picture.levels, dtype=np.uint8)
    height, width = picture.size
    rgb = np.empty((height, width, 3), dtype=np.uint8)
    step = max(1, _SERIAL // (3 * width))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        rgb[top:bottom] = to_uint8(picture.rows(top, bottom)).permute(1, 2, 0).numpy()
    return rgb


def rgba_levels(picture: PictureRows) -> Array:
    """uint8 [H, W, 4]."""
    alpha = picture.alpha
    levels = np.full(picture.size, 255, dtype=np.uint8) if alpha is None else alpha.numpy()
    return np.concatenate([rgb_levels(picture), levels[..., None]], axis=2)


def require_distinct(pattern: str, shards: Sequence[str]) -> None:
    """Checks that all tars of a range have names of their own, by which their pictures and captions are called.

    Raises:
        UsageError: two are called alike.
    """
    if twice := [name for name, n in Counter(shards).items() if n > 1]:
        raise UsageError(
            f"{pattern}: several of these tars are called {twice[0]}, in folders of their own; put them into one "
            "folder under names of their own."
        )


class Sorting:
    """Tells a source's pictures from its other files, and counts those that are left out."""

    def __init__(self) -> None:
        self._listing = Listing()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def knows(self, path: PurePath) -> bool:
        """Whether the name alone tells if it is a picture."""
        return any(part.startswith(".") for part in path.parts) or self._listing.of_name(path).picture is not None

    def takes(self, path: PurePath, open_: Callable[[], AbstractContextManager[IO[bytes]]]) -> bool:
        """Whether it is a picture; `open_` gives the file, if its name does not tell."""
        if any(part.startswith(".") for part in path.parts):
            return False
        look = self._listing.of_name(path)
        if look.picture is None:
            try:
                with open_() as file:
                    look = self._listing.of_head(path, file.read(HEAD))
            except RemoteError:
                raise
            except Exception:  # as above
                return False
        if look.why:
            with self._lock:  # archives are listed by several threads
                self._counts[path.suffix.lower(), look.why] += 1
        return bool(look.picture)

    @property
    def left_out(self) -> LeftOut:
        return LeftOut(dict(self._counts))
