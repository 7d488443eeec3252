"""Pictures in zips and tars: listed by their headers, and opened by number from any thread."""

from __future__ import annotations

import io
import itertools
import re
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import IO

import numpy as np

from calotype.errors import PictureError, UsageError
from calotype.pixels.kinds import HEAD
from calotype.pixels.spliced import Spliced

Takes = Callable[[PurePath, Callable[[], IO[bytes]]], bool]
"""Whether a file is a picture, by its name and what gives the file."""

MOST = 2**29
"""Bytes of a zip's member that are unpacked, since they lie in memory; those of folders and tars lie in their files."""

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")

_STEP = 2**20  # bytes that are unpacked at a time
_DEFLATE = 1032  # bytes that one can become


# Zips


def of_zip(path: Path, takes: Takes) -> tuple[list[str], Callable[[int], IO[bytes]]]:
    """Names of a zip's pictures, in their order, and what opens one.

    Raises:
        UsageError: the zip is damaged.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # almost any over a damaged one
        raise _damaged(path, "zip", error) from error
    members = [
        info
        for info in archive.infolist()
        if info.filename
        and not info.filename.endswith("/")
        and takes(PurePosixPath(info.filename), partial(archive.open, info))
    ]
    members.sort(key=lambda info: info.filename)
    lock = threading.Lock()

    def open_(i: int) -> IO[bytes]:
        _require_possible(members[i])
        # an archive counts its open members without a lock; reading from them has one
        with lock:
            member = archive.open(members[i])
        try:
            return _unpacked(member, members[i].file_size)
        finally:
            with lock:
                member.close()

    return [info.filename for info in members], open_


def texts_of_zip(path: Path, suffixes: Sequence[str], most: int) -> dict[str, Callable[[], bytes]]:
    """A zip's members with such a suffix, by name, and what reads at most so many bytes of one.

    Raises:
        UsageError: the zip is damaged.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # as above
        raise _damaged(path, "zip", error) from error

    def read(info: zipfile.ZipInfo) -> bytes:
        with archive.open(info) as member:
            return member.read(most)

    infos = {info.filename: info for info in archive.infolist()}
    return {name: partial(read, info) for name, info in infos.items() if PurePosixPath(name).suffix.lower() in suffixes}


def _require_possible(info: zipfile.ZipInfo) -> None:
    """Checks what a zip's directory says of a member before memory is taken for it.

    Raises:
        PictureError: it can't be, or is too much.
    """
    if info.file_size > MOST:
        raise PictureError(
            f"it claims {info.file_size:,} bytes, and of a zip at most {MOST:,} are unpacked into memory; unpack the "
            "zip, and give the folder."
        )
    most = {zipfile.ZIP_STORED: info.compress_size, zipfile.ZIP_DEFLATED: _DEFLATE * info.compress_size}
    if info.file_size > most.get(info.compress_type, MOST):
        raise PictureError(
            f"it claims {info.file_size:,} bytes, but there are only {info.compress_size:,} to unpack; make or "
            "download the zip again."
        )


def _unpacked(member: IO[bytes], size: int) -> IO[bytes]:
    """
    Raises:
        PictureError: there is less than its size.
    """
    content = io.BytesIO()
    while part := member.read(_STEP):  # to the end, where its checksum is looked at
        content.write(part)
    if content.tell() != size:
        raise PictureError(
            f"it claims {size:,} bytes, but there are {content.tell():,}; make or download the zip again."
        )
    content.seek(0)
    return content


def _damaged(path: Path, kind: str, error: Exception) -> UsageError:
    if isinstance(error, OSError) and error.strerror:
        return UsageError(f"{path}: this {kind} can't be read ({error.strerror}); check its permissions and its disk.")
    reason = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split()) or type(error).__name__
    return UsageError(f"{path}: this {kind} is damaged ({reason}); make or download it again.")


# Tars


def shards(pattern: str) -> list[Path]:
    """``a-{08..10}.tar`` -> a-08.tar, a-09.tar, a-10.tar, with as many digits as the first number has.

    Raises:
        UsageError: one of them is not there.
    """
    texts = iter(RANGE.split(pattern))  # text, first, last, text, ...
    choices = [[next(texts)]]
    for first, last, text in zip(texts, texts, texts, strict=True):
        if int(first) > int(last):
            raise UsageError(f"{pattern}: there is nothing between {first} and {last}; give the lower end first.")
        choices += [[f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)], [text]]
    found = [Path("".join(parts)) for parts in itertools.product(*choices)]
    if missing := [shard for shard in found if not shard.is_file()]:
        raise UsageError(
            f"{pattern}: {len(missing)} of these {len(found)} files are missing, the first of them {missing[0].name}; "
            "get them, or give a smaller range."
        )
    return found


def of_tars(paths: Sequence[Path], takes: Takes) -> tuple[list[str], Callable[[int], IO[bytes]]]:
    """Names of the pictures in tars, in their order, and what opens one.

    Raises:
        UsageError: a tar is damaged, or compressed.
    """
    names: list[str] = []
    found: list[tuple[int, int, int]] = []
    for number, path in enumerate(paths):
        for name, offset, size in _members(path, takes):
            names.append(name if len(paths) == 1 else f"{path.name}/{name}")
            found.append((number, offset, size))
    places = np.array(found, dtype=np.int64)  # the same in a tenth of the memory

    def open_(i: int) -> IO[bytes]:
        number, offset, size = (int(n) for n in places[i])
        return io.BufferedReader(Spliced(paths[number].open("rb"), [(offset, offset + size)], owner=True))

    return names, open_


def texts_of_tars(paths: Sequence[Path], suffixes: Sequence[str], most: int) -> dict[str, Callable[[], bytes]]:
    """Members of tars with such a suffix, by the names `of_tars` would give them, and what reads one.

    Raises:
        UsageError: a tar is damaged, or compressed.
    """

    def takes(member: PurePath, look: Callable[[], IO[bytes]]) -> bool:
        return member.suffix.lower() in suffixes

    def read(path: Path, offset: int, size: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(min(size, most))

    return {
        name if len(paths) == 1 else f"{path.name}/{name}": partial(read, path, offset, size)
        for path in paths
        for name, offset, size in _members(path, takes)
    }


def _members(path: Path, takes: Takes) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size in bytes of every picture of a tar, from the headers."""
    try:
        with path.open("rb") as beside, tarfile.open(path, "r:") as archive:
            size, before = path.stat().st_size, -1
            for member in archive:
                if archive.offset <= before:  # a damaged size leads back, and would do so for ever
                    raise tarfile.ReadError(f"a header leads back to byte {archive.offset}")
                before = archive.offset
                look = partial(_part, beside, member.offset_data, member.size)
                if member.isreg() and takes(PurePosixPath(member.name), look):
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError(f"it ends within a member of {member.size:,} bytes")
                    yield member.name, member.offset_data, member.size
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            end = archive.offset
        with path.open("rb") as file:
            file.seek(end)
            if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"there is no header at byte {end}")
    except (tarfile.TarError, OSError, ValueError, LookupError, ArithmeticError, EOFError, struct.error) as error:
        if isinstance(error, tarfile.TarError) and _is_compressed(path):
            raise UsageError(
                f"{path}: this tar is compressed, and no picture in it can be found without reading all before it; "
                "decompress it."
            ) from None
        raise _damaged(path, "tar", error) from error


def _part(file: IO[bytes], offset: int, size: int) -> IO[bytes]:
    """The beginning of a member."""
    file.seek(offset)
    return io.BytesIO(file.read(min(size, HEAD)))


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"))
