"""Sources that lie in files here: folders, zips and tars."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from calotype import archives
from calotype.errors import UsageError
from calotype.sources.datasets import dataset, is_saved
from calotype.sources.stored import MOST_TEXT, TEXTS, Beside, Sorting, Stored

_TICK = 2_000_000_000  # nanoseconds, of the coarsest clock that file systems have (FAT's)


def folder(path: Path) -> Stored:
    """Pictures in a folder, or in the tars in it."""
    if is_saved(path):
        return dataset(str(path), path, "", "")
    files, sorting = sorted(files_in(path)), Sorting()
    pictures = [file for file in files if sorting.takes(file, partial(opened, path / file))]
    shards = [path / file for file in files if file.suffix.lower() == ".tar" and len(file.parts) == 1]
    if shards and pictures:
        raise UsageError(f"{path}: both pictures and .tar are in it; give a folder with one of them.")
    if shards:
        return tars(str(path), shards, sorting)
    names = [file.as_posix() for file in pictures]
    return Stored(
        str(path), names, partial(_nth, path, pictures), sorting.left_out,
        beside=partial(_beside_folder, path, pictures, [file for file in files if file.suffix.lower() in TEXTS]),
    )  # fmt: skip


def _nth(folder: Path, files: Sequence[Path], i: int) -> IO[bytes]:
    return (folder / files[i]).open("rb")


def _beside_folder(folder: Path, pictures: Sequence[Path], texts: Sequence[Path]) -> Beside:
    return Beside(
        lambda i: _stamp(folder / pictures[i]), {file.as_posix(): partial(_content, folder / file) for file in texts}
    )


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:  # of one that has vanished, as is told when it is read
        return ""
    # what is written to within the clock's ticks after it was read may keep its time
    return f"{found.st_size} {found.st_mtime_ns}" if time.time_ns() - found.st_mtime_ns > _TICK else ""


def _content(path: Path) -> bytes:
    with opened(path) as file:
        return file.read(MOST_TEXT)


def opened(path: Path) -> IO[bytes]:
    """
    Raises:
        OSError: it is none.
    """
    if not path.is_file():  # a pipe would never answer
        raise OSError("this is no ordinary file")
    return path.open("rb")


def files_in(folder: Path, inner: Path = Path(), above: tuple[Path, ...] = ()) -> Iterator[Path]:
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
            yield from files_in(folder, inner / entry.name, way)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link that leads nowhere counts as a file, which is told of when it is read."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def zipped(path: Path) -> Stored:
    """Pictures in a zip."""
    sorting = Sorting()
    names, open_ = archives.of_zip(path, sorting.takes)
    return Stored(str(path), names, open_, sorting.left_out, beside=partial(_beside_zip, path))


def _beside_zip(path: Path) -> Beside:
    stamp, said = _stamp(path), archives.texts_of_zip(path, TEXTS, MOST_TEXT)
    return Beside(lambda i: stamp and f"{stamp} {i}", said)


def tars(title: str, shards: Sequence[Path], sorting: Sorting | None = None) -> Stored:
    """Pictures in tars."""
    sorting = sorting or Sorting()
    names, open_ = archives.of_tars(shards, sorting.takes)
    return Stored(title, names, open_, sorting.left_out, beside=partial(_beside_tars, shards, names))


def _beside_tars(shards: Sequence[Path], names: Sequence[str]) -> Beside:
    stamps = {path.name: _stamp(path) for path in shards}
    return Beside(partial(stamp_in_tars, stamps, names), archives.texts_of_tars(shards, TEXTS, MOST_TEXT))


def stamp_in_tars(stamps: Mapping[str, str], names: Sequence[str], i: int) -> str:
    """The stamp of a picture, by those of its tars."""
    shard = next(iter(stamps)) if len(stamps) == 1 else names[i].partition("/")[0]
    return stamps[shard] and f"{stamps[shard]} {i}"
