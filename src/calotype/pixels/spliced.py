"""A file made of parts of another one, read as it is wanted."""

from __future__ import annotations

import bisect
import io
import itertools
from collections.abc import Sequence
from typing import IO, Any


class Spliced(io.RawIOBase):
    """Parts of a file, and bytes between them, one after the other.

    Args:
        parts: (start, end) in the file, or bytes.
        owner: closing it closes the file.
    """

    def __init__(self, file: IO[bytes], parts: Sequence[tuple[int, int] | bytes], *, owner: bool = False) -> None:
        self._file, self._at, self._owner = file, 0, owner
        sizes = [len(part) if isinstance(part, bytes) else part[1] - part[0] for part in parts]
        self._parts = [part for part, size in zip(parts, sizes, strict=True) if size]
        self._before = [0, *itertools.accumulate(size for size in sizes if size)]  # in the parts, before each

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._before[-1]}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        number = bisect.bisect_right(self._before, self._at) - 1
        if number == len(self._parts):
            return 0
        view = memoryview(buffer).cast("B")
        part, place = self._parts[number], self._at - self._before[number]
        count = min(len(view), self._before[number + 1] - self._at)
        if isinstance(part, bytes):
            data = part[place : place + count]
        else:
            self._file.seek(part[0] + place)
            data = self._file.read(count)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        super().close()
        if self._owner:
            self._file.close()
