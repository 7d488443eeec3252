"""Where training pictures lie: folders, zips, tar shards and Hugging Face datasets, all read in the same way.

Opening a source lists its pictures and decodes none of them; then any thread may read any picture at any time.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import IO, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from calotype import archives
from calotype.errors import PictureError, UsageError
from calotype.pixels import PictureRows, picture_size, read_picture_rows, to_uint8
from calotype.pixels.kinds import HEAD, Listing

Array = NDArray[np.uint8]

HUB = "hf:"

MOST_TEXT = 2**28
"""Bytes that are read of a text beside pictures."""

_TICK = 2_000_000_000  # nanoseconds, of the coarsest clock that file systems have (FAT's)
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


TEXTS = (".txt", ".caption", ".json", ".jsonl", ".cls")
"""Suffixes of what may stand beside pictures and say something of them."""


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
    ) -> None:
        self.title, self.names, self._open, self.left_out, self._alpha = title, names, open_, left_out, alpha
        self._beside = beside

    def with_alpha(self) -> Stored:
        """The same pictures, read with their alpha."""
        return Stored(self.title, self.names, self._open, self.left_out, alpha=True, beside=self._beside)

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
        with self.opened(i) as file:
            return min(picture_size(file))

    @contextmanager
    def opened(self, i: int) -> Iterator[IO[bytes]]:
        """The encoded file of a picture; what is wrong with either is told by its name.

        Raises:
            PictureError: it can't be opened, or the block raised.
        """
        try:
            with self._open(i) as file:
                yield file
        except Exception as error:  # a damaged member of an archive may raise almost any
            reason = str(error) if isinstance(error, PictureError) else f"{_reason(error)}."
            raise PictureError(f"{self.title}: {_printable(self.names[i])}: {reason}") from error


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)[1:-1]


def _reason(error: Exception) -> str:
    return _printable(" ".join(str(error).split())).rstrip(".") or type(error).__name__


def open_source(spec: str | Path, root: Path = Path()) -> Stored:
    """Lists the pictures of a source.

    Files are pictures by their suffixes, of what Pillow and its plugins decode (see `pixels.kinds`), or by their first
    bytes where they have no suffix. What else seems to be one is counted in `Stored.left_out`. Hidden files are no
    pictures: macOS puts a ``._photo.jpg`` beside every ``photo.jpg``.

    Args:
        spec: one of

            - a folder, searched in depth; its pictures in the order of their paths;
            - a .zip; in the order of its members' names;
            - a .tar, a folder of .tar, or a range of them such as ``train-{000..010}.tar``, as WebDataset has them; in
              the order of their members;
            - a folder that Hugging Face's `datasets` saved;
            - ``hf:NAME[:SPLIT][:COLUMN]``, a dataset of its hub, or such a folder; without more, the split "train" and
              the first column of pictures.
        root: the folder that paths are relative to.

    Raises:
        UsageError: there is no such source, it is damaged, or no picture is in it.
    """
    text, path = str(spec), root / spec
    if text.startswith(HUB):
        pictures = _named_dataset(text, root)
    elif path.is_dir():
        pictures = _folder(path)
    elif path.is_file() and path.suffix.lower() == ".zip":
        pictures = _zip(path)
    elif path.is_file() and re.search(r"\.(tar(\.\w+)?|tgz)$", path.name, re.IGNORECASE):
        pictures = _tars(str(path), [path])
    elif zipfile.is_zipfile(path):
        pictures = _zip(path)
    elif not path.exists() and archives.RANGE.search(str(path)):
        pictures = _tars(str(path), archives.shards(str(path)))
    elif path.is_file():
        raise UsageError(f"{path}: this is a file, and no zip or tar; give the folder that the pictures are in.")
    else:
        raise UsageError(f"{path}: there is no such folder, zip, tar or dataset of pictures; give one that is there.")
    if not len(pictures):
        if pictures.left_out:
            raise UsageError(f"{pictures.title}: there is no picture in it that can be read, but {pictures.left_out}.")
        raise UsageError(
            f"{pictures.title}: there is no picture in it; those of files end in .jpg, .png, .webp, .tif and others "
            f"that `calotype doctor` lists."
        )
    return pictures


def files_of(spec: str | Path, root: Path = Path()) -> Iterator[Path]:
    """Files that `open_source` reads of a source, as far as they are there; of a dataset of the hub none."""
    text, path = str(spec), root / spec
    if text.startswith(HUB):
        path = root / text.removeprefix(HUB).partition(":")[0]
    if path.is_dir():
        saved, sorting = _is_saved(path), _Sorting()
        for file in _files(path):
            if saved or file.suffix.lower() == ".tar" or sorting.takes(file, partial(_opened, path / file)):
                yield path / file
    elif path.is_file():
        yield path
    elif archives.RANGE.search(str(path)):
        with suppress(UsageError):  # which `open_source` raises
            yield from archives.shards(str(path))


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


class _Sorting:
    """Tells a source's pictures from its other files, and counts those that are left out."""

    def __init__(self) -> None:
        self._listing = Listing()
        self._counts: Counter[tuple[str, str]] = Counter()

    def takes(self, path: PurePath, open_: Callable[[], IO[bytes]]) -> bool:
        """Whether it is a picture; `open_` gives the file, if its name does not tell."""
        if any(part.startswith(".") for part in path.parts):
            return False
        look = self._listing.of_name(path)
        if look.picture is None:
            try:
                with open_() as file:
                    look = self._listing.of_head(path, file.read(HEAD))
            except Exception:  # as above
                return False
        if look.why:
            self._counts[path.suffix.lower(), look.why] += 1
        return bool(look.picture)

    @property
    def left_out(self) -> LeftOut:
        return LeftOut(dict(self._counts))


# Folders and zips


def _folder(path: Path) -> Stored:
    if _is_saved(path):
        return _dataset(str(path), path, "", "")
    files, sorting = sorted(_files(path)), _Sorting()
    pictures = [file for file in files if sorting.takes(file, partial(_opened, path / file))]
    shards = [path / file for file in files if file.suffix.lower() == ".tar" and len(file.parts) == 1]
    if shards and pictures:
        raise UsageError(f"{path}: both pictures and .tar are in it; give a folder with one of them.")
    if shards:
        return _tars(str(path), shards, sorting)
    names = [file.as_posix() for file in pictures]

    def beside() -> Beside:
        texts = {file.as_posix(): partial(_content, path / file) for file in files if file.suffix.lower() in TEXTS}
        return Beside(lambda i: _stamp(path / pictures[i]), texts)

    return Stored(str(path), names, lambda i: (path / pictures[i]).open("rb"), sorting.left_out, beside=beside)


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:  # of one that has vanished, as is told when it is read
        return ""
    # what is written to within the clock's ticks after it was read may keep its time
    return f"{found.st_size} {found.st_mtime_ns}" if time.time_ns() - found.st_mtime_ns > _TICK else ""


def _content(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read(MOST_TEXT)


def _opened(path: Path) -> IO[bytes]:
    if not path.is_file():  # a pipe would never answer
        raise OSError("this is no ordinary file")
    return path.open("rb")


def _files(folder: Path, inner: Path = Path(), above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files below a folder that are not hidden, relative to it; links to folders are followed, but not upwards.

    Args:
        inner: where in the folder to look.
        above: the real folders that lie between, `inner` not among them.
    """
    here = folder / inner
    way = (*above, here.resolve())
    try:
        entries = [entry for entry in os.scandir(here) if not entry.name.startswith(".")]
    except OSError as error:
        raise UsageError(f"{here}: this folder can't be listed ({error.strerror}); check its permissions.") from None
    for entry in entries:
        if not _is_folder(entry):
            yield inner / entry.name
        elif Path(entry.path).resolve() not in way:  # a link to where it lies itself would never end
            yield from _files(folder, inner / entry.name, way)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link that leads nowhere counts as a file, which is told of when it is read."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _zip(path: Path) -> Stored:
    sorting = _Sorting()
    names, open_ = archives.of_zip(path, sorting.takes)

    def beside() -> Beside:
        stamp, said = _stamp(path), archives.texts_of_zip(path, TEXTS, MOST_TEXT)
        return Beside(lambda i: stamp and f"{stamp} {i}", said)

    return Stored(str(path), names, open_, sorting.left_out, beside=beside)


def _tars(title: str, shards: Sequence[Path], sorting: _Sorting | None = None) -> Stored:
    sorting = sorting or _Sorting()
    names, open_ = archives.of_tars(shards, sorting.takes)

    def beside() -> Beside:
        stamps = {path.name: _stamp(path) for path in shards}

        def stamp(i: int) -> str:
            shard = shards[0].name if len(shards) == 1 else names[i].partition("/")[0]
            return stamps[shard] and f"{stamps[shard]} {i}"

        return Beside(stamp, archives.texts_of_tars(shards, TEXTS, MOST_TEXT))

    return Stored(title, names, open_, sorting.left_out, beside=beside)


# Datasets of Hugging Face


def _is_saved(folder: Path) -> bool:
    """Whether `datasets` saved it: one dataset, or several splits."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _named_dataset(spec: str, root: Path) -> Stored:
    # colons also stand in slices, as in train[:90%]
    name, split, column, *more = [*re.split(r":(?![^\[]*\])", spec.removeprefix(HUB)), "", ""]
    if not name or any(more):
        raise UsageError(f"{spec} names no dataset; give {HUB}NAME, {HUB}NAME:SPLIT or {HUB}NAME:SPLIT:COLUMN.")
    return _dataset(spec, root / name if _is_saved(root / name) else name, split, column)


def _dataset(title: str, place: Path | str, split: str, column: str) -> Stored:
    """A saved dataset (a path), or one of the hub (a name)."""
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise UsageError(
            f"{title}: to read it, the package datasets is needed; install it with: pip install 'calotype[train]'."
        ) from None
    try:
        if isinstance(place, Path):
            loaded = datasets.load_from_disk(str(place))
        else:
            loaded = datasets.load_dataset(place, split=split or "train")
    except (OSError, ValueError, LookupError, datasets.exceptions.DatasetsError) as error:
        first = str(error).strip().split("\n")[0].rstrip(".")
        raise UsageError(f"{title}: this dataset can't be loaded ({first}); check its name and split.") from error
    rows = _split(title, loaded, split) if isinstance(place, Path) else loaded
    columns = [key for key, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if not columns:
        raise UsageError(f"{title}: no column of this dataset holds pictures; give another dataset.")
    if column and column not in columns:
        raise UsageError(f"{title}: there are no pictures in a column {column}; give one of {', '.join(columns)}.")
    column = column or columns[0]
    loaded_rows = rows
    # undecoded, so that orientation, profiles and alpha are treated as they are everywhere
    rows = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))

    def open_(i: int) -> IO[bytes]:
        value = rows[i][column]
        if value is None:
            raise EOFError("there is no picture in this row")
        return io.BytesIO(value["bytes"]) if value["bytes"] is not None else Path(value["path"]).open("rb")

    def beside() -> Beside:
        told = str(getattr(loaded_rows, "_fingerprint", ""))
        return Beside(lambda i: told and f"{told} {i}", column=values)

    def values(name: str) -> Sequence[Any] | None:
        if name == column or name not in loaded_rows.features:
            return None
        return cast("Sequence[Any]", loaded_rows.with_format(None).select_columns([name])[name][:])

    return Stored(title, [f"row {i}" for i in range(len(rows))], open_, beside=beside)


def _split(title: str, saved: Any, split: str) -> Any:
    """One split of what `load_from_disk` gave."""
    if not isinstance(saved, dict):
        if split:
            raise UsageError(f"{title}: this dataset was saved without splits; leave {split} out.")
        return saved
    split = split or ("train" if len(saved) > 1 else next(iter(saved), "train"))
    if split not in saved:
        raise UsageError(f"{title}: there is no split {split} in this dataset; give one of {', '.join(saved)}.")
    return saved[split]
