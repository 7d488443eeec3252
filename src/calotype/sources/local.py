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
from calotype.names import Names, Readers
from calotype.sources.datasets import dataset, is_saved
from calotype.sources.stored import MOST_TEXT, TEXTS, Beside, Sorting, Stored

_TICK = 2_000_000_000  # nanoseconds, of the coarsest clock that file systems have (FAT's)


def folder(path: Path) -> Stored:
    """Pictures in a folder, or in the tars in it."""
    if is_saved(path):
        return dataset(str(path), path, "", "")
    sorting, names, texts = Sorting(), Names(), Names()
    shards: list[Path] = []
    for file in files_in(path):
        suffix = file.suffix.lower()
        if sorting.takes(file, partial(_opened_in, path, file)):
            names.append(file.as_posix())
        if suffix in TEXTS:
            texts.append(file.as_posix())
        elif suffix == ".tar" and len(file.parts) == 1:
            shards.append(path / file)
    if shards and names:
        raise UsageError(f"{path}: both pictures and .tar are in it; give a folder with one of them.")
    if shards:
        return tars(str(path), shards, sorting)
    return Stored(
        str(path), names, partial(_nth, path, names), sorting.left_out,
        beside=partial(_beside_folder, path, names, texts),
    )  # fmt: skip


def _nth(folder: Path, names: Sequence[str], i: int) -> IO[bytes]:
    return (folder / names[i]).open("rb")


def _beside_folder(folder: Path, names: Sequence[str], texts: Names) -> Beside:
    return Beside(lambda i: _stamp(folder / names[i]), Readers(texts, partial(_content, folder, texts)))


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:  # of one that has vanished, as is told when it is read
        return ""
    # what is written to within the clock's ticks after it was read may keep its time
    return f"{found.st_size} {found.st_mtime_ns}" if time.time_ns() - found.st_mtime_ns > _TICK else ""


def _content(folder: Path, names: Sequence[str], i: int) -> bytes:
    with opened(folder / names[i]) as file:
        return file.read(MOST_TEXT)


def _opened_in(folder: Path, file: Path) -> IO[bytes]:
    return opened(folder / file)


def opened(path: Path) -> IO[bytes]:
    """
    Raises:
        OSError: it is none.
    """
    if not path.is_file():  # a pipe would never answer
        raise OSError("this is no ordinary file")
    return path.open("rb")


def files_in(folder: Path, inner: Path = Path(), above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files below a folder that are not hidden, relative to it and sorted; links to folders are followed, but not
    upwards.

    Args:
        inner: where in the folder to look.
        above: the real folders that lie between, `inner` not among them.
    """
    here = folder / inner
    way = (*above, here.resolve())
    names, folders = [], set()
    try:
        with os.scandir(here) as entries:
            for entry in entries:  # which are larger than their names
                if not entry.name.startswith("."):
                    names.append(entry.name)
                    if _is_folder(entry):
                        folders.add(entry.name)
    except OSError as error:
        raise UsageError(f"{here}: this folder can't be listed ({error.strerror}); check its permissions.") from None
    names.sort()
    for name in names:
        if name not in folders:
            yield inner / name
        elif (here / name).resolve() not in way:  # a link to where it lies itself would never end
            yield from files_in(folder, inner / name, way)


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
