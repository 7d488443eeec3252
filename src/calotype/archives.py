"""Pictures in zips and tars: listed by their headers, and opened by number from any thread."""

from __future__ import annotations

import io
import itertools
import os
import re
import struct
import tarfile
import threading
import zipfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from calotype.addresses import RemoteFile, at_once
from calotype.errors import CalotypeError, PictureError, UsageError
from calotype.names import Names, Readers, in_parts
from calotype.pixels.kinds import HEAD
from calotype.pixels.spliced import Spliced

Place = Path | RemoteFile
"""Where an archive lies."""

Takes = Callable[[PurePath, Callable[[], AbstractContextManager[IO[bytes]]]], bool]
"""Whether a file is a picture, by its name and what gives the file."""

MOST = 2**29
"""Bytes of a zip's member that are unpacked, since they lie in memory; those of folders and tars lie in their files."""

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")

_STEP = 2**20  # bytes that are unpacked at a time
_DEFLATE = 1032  # bytes that one can become
_SMALL = 2**16  # bytes of a text that is kept


# Zips


def of_zip(path: Place, takes: Takes) -> tuple[list[str], Callable[[int], IO[bytes]]]:
    """Names of a zip's pictures, in their order, and what opens one.

    Raises:
        UsageError: the zip is damaged.
    """
    archive = _Zip(path)
    members = [
        info
        for info in archive.members()
        if info.filename
        and not info.filename.endswith("/")
        and takes(PurePosixPath(info.filename), partial(archive.open, info))
    ]
    members.sort(key=lambda info: info.filename)
    return [info.filename for info in members], partial(_unpacked, archive, members)


def texts_of_zip(path: Place, suffixes: Sequence[str], most: int) -> dict[str, Callable[[], bytes]]:
    """A zip's members with such a suffix, by name, and what reads at most so many bytes of one.

    Raises:
        UsageError: the zip is damaged.
    """
    archive = _Zip(path)

    def read(info: zipfile.ZipInfo) -> bytes:
        with archive.open(info) as member:
            return member.read(most)

    infos = {info.filename: info for info in archive.members()}
    return {name: partial(read, info) for name, info in infos.items() if PurePosixPath(name).suffix.lower() in suffixes}


class _Zip:
    """A zip that is read by threads and, each by a handle of its own, by processes.

    Raises:
        UsageError: the zip is damaged.
    """

    def __init__(self, path: Place) -> None:
        self._path = path
        self._archive = self._opened()

    def __getstate__(self) -> Place:
        return self._path

    def __setstate__(self, path: Place) -> None:
        self._path = path
        self._archive = self._opened()

    def _opened(self) -> zipfile.ZipFile:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._file = None if isinstance(self._path, Path) else self._path.ranges()
        try:
            archive = zipfile.ZipFile(cast("Path | IO[bytes]", self._file or self._path))
        except PictureError as error:
            raise UsageError(f"{self._path}: {error}") from error
        except CalotypeError:
            raise
        except Exception as error:  # almost any over a damaged one
            raise _damaged(self._path, "zip", error) from error
        if self._file is not None:
            self._starts = np.sort(np.array([info.header_offset for info in archive.infolist()], dtype=np.int64))
        return archive

    def members(self) -> list[zipfile.ZipInfo]:
        return self._archive.infolist()

    @contextmanager
    def open(self, info: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
        """A member."""
        if os.getpid() != self._pid:  # a fork has the place in the file in common with others
            self._archive = self._opened()
        with self._ahead(info):
            # an archive counts its open members without a lock; reading from them has one
            with self._lock:
                member = self._archive.open(info)
            try:
                yield member
            finally:
                with self._lock:
                    member.close()

    def _ahead(self, info: zipfile.ZipInfo) -> AbstractContextManager[None]:
        """Where parts are fetched: all of the member at once, whose end is the next one's beginning."""
        if self._file is None:
            return nullcontext()
        start = info.header_offset
        after = int(np.searchsorted(self._starts, start, side="right"))
        end = int(self._starts[after]) if after < len(self._starts) else self._archive.start_dir
        most = start + 3 * 2**16 + info.compress_size  # before and after its bytes
        return self._file.ahead(start, max(start, min(end, most)))


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


def _unpacked(archive: _Zip, members: Sequence[zipfile.ZipInfo], i: int) -> IO[bytes]:
    """
    Raises:
        PictureError: there is less than its size.
    """
    _require_possible(info := members[i])
    content = io.BytesIO()
    with archive.open(info) as member:
        while part := member.read(_STEP):  # to the end, where its checksum is looked at
            content.write(part)
    if content.tell() != info.file_size:
        raise PictureError(
            f"it claims {info.file_size:,} bytes, but there are {content.tell():,}; make or download the zip again."
        )
    content.seek(0)
    return content


def _damaged(path: Place, kind: str, error: Exception) -> UsageError:
    if isinstance(error, OSError) and error.strerror:
        return UsageError(f"{path}: this {kind} can't be read ({error.strerror}); check its permissions and its disk.")
    reason = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split()) or type(error).__name__
    return UsageError(f"{path}: this {kind} is damaged ({reason}); make or download it again.")


# Tars


def expanded(pattern: str) -> list[str]:
    """The files that ranges in a name stand for, in order: a-{08..10}.tar gives a-08.tar, a-09.tar, a-10.tar, with as
    many digits as the first number has.

    Raises:
        UsageError: a range ends before it begins.
    """
    texts = iter(RANGE.split(pattern))  # text, first, last, text, ...
    choices = [[next(texts)]]
    for first, last, text in zip(texts, texts, texts, strict=True):
        if int(first) > int(last):
            raise UsageError(f"{pattern}: there is nothing between {first} and {last}; give the lower end first.")
        choices += [[f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)], [text]]
    return ["".join(parts) for parts in itertools.product(*choices)]


def shards(pattern: str) -> list[Path]:
    """The same as paths.

    Raises:
        UsageError: one of them is not there.
    """
    found = [Path(one) for one in expanded(pattern)]
    require_all(pattern, [shard.name for shard in found], [shard.is_file() for shard in found])
    return found


def require_all(pattern: str, names: Sequence[str], there: Sequence[bool]) -> None:
    """Checks that all files are there which a pattern stands for.

    Raises:
        UsageError: one of them is not.
    """
    if missing := [name for name, one in zip(names, there, strict=True) if not one]:
        raise UsageError(
            f"{pattern}: {len(missing)} of these {len(names)} files are missing, the first of them {missing[0]}; "
            "get them, or give a smaller range."
        )


def of_tars(paths: Sequence[Place], takes: Takes) -> tuple[Names, Callable[[int], IO[bytes]]]:
    """Names of the pictures in tars, in their order, and what opens one.

    Raises:
        UsageError: a tar is damaged, or compressed.
    """
    names, open_, _ = with_texts(paths, takes, (), 0)
    return names, open_


def with_texts(
    paths: Sequence[Place], takes: Takes, suffixes: Sequence[str], most: int
) -> tuple[Names, Callable[[int], IO[bytes]], Readers]:
    """The same, and what reads texts among the members, in one pass; small ones are kept, up to 32 MB of them.

    Args:
        suffixes: of texts.
        most: bytes that are read of one.

    Raises:
        UsageError: a tar is damaged, or compressed.
    """
    names, found, texts = Names(), _Places(), _Places()
    said: list[str] = []
    kept: dict[int, bytes] = {}
    room = _Room()
    for number, members in enumerate(_of_each(paths, takes, suffixes, room)):
        path = paths[number]
        for member, offset, size, text in members:
            name = member if len(paths) == 1 else f"{path.name}/{member}"
            if text is None:
                names.append(name)
                found.add(number, offset, size)
            else:
                if text:
                    kept[len(said)] = text
                said.append(name)
                texts.add(number, offset, min(size, most))
    order = sorted(
        {name: i for i, name in enumerate(said)}.items(), key=lambda one: in_parts(one[0])
    )  # the last of each
    last = np.array([i for _, i in order], dtype=np.int64)
    read = partial(_text, paths, texts.array, last, kept)
    return names, partial(_in_tar, paths, found.array), Readers(Names(name for name, _ in order), read)


class _Places:
    """Where members lie: number of the tar, offset and size in bytes."""

    def __init__(self) -> None:
        self._numbers = array("q")

    def add(self, number: int, offset: int, size: int) -> None:
        """One more."""
        self._numbers.extend((number, offset, size))

    @property
    def array(self) -> NDArray[np.int64]:
        """All of them, int64 [N, 3]."""
        return np.array(self._numbers, dtype=np.int64).reshape(-1, 3)


def _in_tar(paths: Sequence[Place], places: NDArray[np.int64], i: int) -> IO[bytes]:
    number, offset, size = (int(n) for n in places[i])
    return _member(paths[number], offset, size)


def texts_of_tars(paths: Sequence[Path], suffixes: Sequence[str], most: int) -> Readers:
    """Members of tars with such a suffix, by the names `of_tars` would give them, and what reads one.

    Raises:
        UsageError: a tar is damaged, or compressed.
    """
    return with_texts(paths, lambda member, look: False, suffixes, most)[2]


def _text(
    paths: Sequence[Place], places: NDArray[np.int64], order: NDArray[np.int64], kept: Mapping[int, bytes], i: int
) -> bytes:
    if (number := int(order[i])) in kept:
        return kept[number]
    with _in_tar(paths, places, number) as file:
        return file.read()


def _member(path: Place, offset: int, size: int) -> IO[bytes]:
    """A part of a file, read where it lies; fetched at once where that is far away."""
    if isinstance(path, RemoteFile):
        return path.part(offset, offset + size)
    return io.BufferedReader(Spliced(path.open("rb"), [(offset, offset + size)], owner=True))


class _Room:
    """What small texts have, that are met when headers are fetched."""

    def __init__(self) -> None:
        self._left, self._lock = 2**25, threading.Lock()

    def takes(self, size: int) -> bool:
        with self._lock:
            if size > min(self._left, _SMALL):
                return False
            self._left -= size
            return True


_Member = tuple[str, int, int, bytes | None]  # name, offset and size in bytes; of a text what is kept of it, or nothing


def _of_each(paths: Sequence[Place], takes: Takes, suffixes: Sequence[str], room: _Room) -> Iterator[Iterable[_Member]]:
    """Members of each tar; several at the same time where servers are waited for."""
    if any(isinstance(path, RemoteFile) for path in paths):
        return at_once(lambda path: list(_members(path, takes, suffixes, room)), paths)
    return (_members(path, takes, suffixes, None) for path in paths)


def _members(path: Place, takes: Takes, suffixes: Sequence[str], room: _Room | None) -> Iterator[_Member]:
    """Every picture of a tar, and its texts, from the headers."""
    try:
        with _seekable(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size, before = file.seek(0, io.SEEK_END), -1
            for member in archive:
                if archive.offset <= before:  # a damaged size leads back, and would do so for ever
                    raise tarfile.ReadError(f"a header leads back to byte {archive.offset}")
                before = archive.offset
                name, look = PurePosixPath(member.name), partial(_part, file, member.offset_data, member.size)
                is_text = name.suffix.lower() in suffixes
                if member.isreg() and (is_text or takes(name, look)):
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError(f"it ends within a member of {member.size:,} bytes")
                    text = b"" if is_text else None
                    if is_text and room is not None and room.takes(member.size):
                        text = _part(file, member.offset_data, member.size, _SMALL).read()
                    yield member.name, member.offset_data, member.size, text
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            file.seek(archive.offset)
            if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"there is no header at byte {archive.offset}")
    except PictureError as error:
        raise UsageError(f"{path}: {error}") from error
    except UsageError:  # which is a ValueError
        raise
    except (tarfile.TarError, OSError, ValueError, LookupError, ArithmeticError, EOFError, struct.error) as error:
        if isinstance(error, tarfile.TarError) and _is_compressed(path):
            raise UsageError(
                f"{path}: this tar is compressed, and no picture in it can be found without reading all before it; "
                "decompress it."
            ) from None
        raise _damaged(path, "tar", error) from error


def _seekable(path: Place) -> IO[bytes]:
    # Of members that are smaller than a block all are fetched in passing, in few requests; of larger ones a block each,
    # which takes little longer than a request for a header alone: of 2,000 pictures of 100 KB with a text each 48
    # requests (at least 4,000 for header after header), of 100 pictures of 5 MB 101. To keep what was fetched on the
    # disk would save fetching pictures again, and take a disk for all of them: they are wanted when the last was found.
    return path.open("rb") if isinstance(path, Path) else cast("IO[bytes]", path.ranges())


def _part(file: IO[bytes], offset: int, size: int, most: int = HEAD) -> IO[bytes]:
    """The beginning of a member."""
    file.seek(offset)
    return io.BytesIO(file.read(min(size, most)))


def _is_compressed(path: Place) -> bool:
    with _seekable(path) as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"))
