"""What pictures there are: their bytes' sha256, sizes and captions, read once and remembered. No torch of its own."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from calotype.addresses import is_address, local_path
from calotype.cache.looked import NOTHING, Found, Known, Rows
from calotype.cache.store import Store
from calotype.cache.units import sample_id
from calotype.cache.words import Words, words
from calotype.errors import PictureError, UsageError
from calotype.files import as_text
from calotype.pixels import upright_size
from calotype.sources import Stored, open_source
from calotype.sources.looking import looked

_STEP = 2**20


def pictures(data: str | Path, out: Path | None = None) -> tuple[Stored, Sequence[int]]:
    """Opens a source, and the numbers of its pictures that do not lie in the cache itself.

    Raises:
        UsageError: as `open_source`, or all of them do.
    """
    source = open_source(data)
    numbers: Sequence[int] = range(len(source))
    folder = local_path(str(data)) if is_address(data) else Path(data)
    if out is not None and folder is not None and folder.is_dir():
        inside = out.resolve()
        if inside == folder.resolve():
            raise UsageError(
                f"{out}: the cache can't be the folder of the pictures itself; give one in it, or elsewhere."
            )
        if inside.is_relative_to(folder.resolve()):
            own = f"{inside.relative_to(folder.resolve()).as_posix()}/"
            outside = array("q", (i for i, name in enumerate(source.names) if not name.startswith(own)))
            numbers = numbers if len(outside) == len(source) else outside
    if not numbers:
        raise UsageError(f"{source.title}: there is no picture in it but the cache's own; give another place.")
    return source, numbers


def scan(
    source: Stored,
    numbers: Sequence[int],
    store: Store,
    data: str,
    *,
    folders: bool = False,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Sequence[int]:
    """Looks at all pictures, reading those of which nothing tells that they are as they were.

    A scan that was killed goes on where it was, but for its last minute.

    What it finds is written to the store, a row a picture; gives the number of each row's picture in the source. Rows
    are in the source's order; a picture that stands twice in it, with one name and the same bytes, has one row.

    Args:
        numbers: of the pictures in the source.
        data: what the source was opened by, which is remembered.
        folders: see `words`.
        tell: called with how many are done, and of how many.
    """
    beside = source.beside
    say = words(source.names, beside, folders=folders)
    rows, places = Rows(store), array("q")
    twice, seen = _twice(source.names, numbers), set()
    known = Known(store)

    def one(i: int) -> tuple[str, Found, Words]:
        stamp = beside.stamp(i)
        return stamp, known.get(as_text(source.names[i]), stamp) or look(source, i), say(i)

    for done, (i, (stamp, found, said)) in enumerate(looked(numbers, one, far=source.far), 1):
        name = as_text(source.names[i])
        tell(done, len(numbers))
        if hash(name) in twice:
            if (id_ := sample_id(name, found.key)) in seen:
                continue
            seen.add(id_)
        places.append(i)
        rows.add((found.key, name, stamp, found.size, *found.stored, *found.upright, found.reason, *said))
    rows.write(as_text(data))
    return numbers if len(places) == len(numbers) else places


def _twice(names: Sequence[str], numbers: Sequence[int]) -> set[int]:
    """Hashes of names that stand there several times."""
    hashes = np.fromiter((hash(as_text(names[i])) for i in numbers), dtype=np.int64, count=len(numbers))
    hashes.sort()
    return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


def look(source: Stored, i: int) -> Found:
    """Reads a picture's bytes and its header."""
    key, size = NOTHING, 0
    try:
        with source.opened(i) as file:
            key, size = _hashed(file)
            if not size:
                raise PictureError("it is empty: 0 bytes.")
            file.seek(0)
            (height, width), turned = upright_size(file)
    except PictureError as error:
        return Found(key, size, (0, 0), (0, 0), reason(source, i, error))
    return Found(key, size, (height, width) if turned else (width, height), (width, height), None)


def reason(source: Stored, i: int, error: Exception) -> str:
    """Why a picture is bad, without its name and where it lies."""
    return as_text(unnamed(str(error).removeprefix(f"{source.title}: ").removeprefix(f"{source.names[i]}: ")))


def unnamed(said: str) -> str:
    """What is said of a picture that has no name, as it is said after one."""
    return re.sub(r"^The picture:? ", lambda found: "" if ":" in found[0] else "it ", said)


def _hashed(file: IO[bytes]) -> tuple[bytes, int]:
    digest, size = hashlib.sha256(), 0
    while part := file.read(_STEP):
        digest.update(part)
        size += len(part)
    return digest.digest(), size
