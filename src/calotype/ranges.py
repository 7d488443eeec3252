"""A file that is fetched part by part, from a place where every fetch takes long."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

TAIL = 2**16 + 22
"""Last bytes that are fetched at once: a zip's directory ends in them, however long its comment is."""


class Ranges(io.RawIOBase):
    """A file of which parts are fetched as they are wanted.

    Several threads may read what they have announced by `ahead` under a common lock, and wait for nothing in it.

    Args:
        fetch: gives the bytes from one place to another; all of them, or it raises.
        size: of the file, in bytes.
        block: bytes that are fetched at least, from where something is wanted.
        first: the same of what is fetched first.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, block: int, first: int | None = None) -> None:
        self._fetch, self.size, self._block, self._next = fetch, size, block, first or block
        self._at = 0
        self._mine = threading.local()  # each thread's part: where it begins, and its bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if at < 0:
            raise ValueError(f"there is no byte {at}")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done, count = 0, max(0, min(len(view), self.size - self._at))
        while done < count:
            start, part = self._part(count - done)
            piece = part[self._at - start : self._at - start + count - done]
            view[done : done + len(piece)] = piece
            done += len(piece)
            self._at += len(piece)
        return done

    @contextmanager
    def ahead(self, start: int, end: int) -> Iterator[None]:
        """Fetches a part, which this thread reads within the block."""
        before = getattr(self._mine, "part", None)
        self._mine.part = start, self._fetch(start, end)
        try:
            yield
        finally:
            self._mine.part = before

    def _part(self, count: int) -> tuple[int, bytes]:
        """This thread's part, in which the place is."""
        start, part = getattr(self._mine, "part", None) or (0, b"")
        if not start <= self._at < start + len(part):
            start = self._at
            if start >= self.size - TAIL:
                start = max(0, self.size - TAIL)
            part = self._fetch(start, min(self.size, max(self._at + count, start + self._next)))
            self._next = self._block
            self._mine.part = start, part
        return start, part
