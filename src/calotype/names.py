"""Names of files by the million, in little memory: neighbours are alike, and are kept packed together."""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, overload

import numpy as np

_BLOCK = 128  # names that are packed together
_OPEN = 16  # blocks that stay unpacked: threads ask for neighbours


class Names(Sequence[str]):
    """Names in the order they are given, of which only the last ones may be added to.

    A million of file names take a few megabytes. Any thread may read them, also after a fork.

    Args:
        names: the first ones.
    """

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._blocks: list[bytes] = []
        self._last: list[str] = []  # those that fill no block yet
        self._open: list[tuple[int, list[str]] | None] = [None] * _OPEN
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        """Adds one; not while others read."""
        self._last.append(name)
        if len(self._last) == _BLOCK:
            self._blocks.append(_packed(self._last))
            self._last = []

    def __len__(self) -> int:
        return _BLOCK * len(self._blocks) + len(self._last)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[n] for n in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"there are {len(self)} names, and no number {i}")
        number, inner = divmod(int(i) % len(self), _BLOCK)
        return self.block(number)[inner]

    def __iter__(self) -> Iterator[str]:
        for number in range(self.blocks):
            yield from self.block(number)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"Names({list(self)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": [None] * _OPEN}

    @property
    def nbytes(self) -> int:
        """Bytes that they take, nearly."""
        return sum(len(block) + 48 for block in self._blocks)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self._blocks) + bool(self._last)

    def block(self, number: int) -> list[str]:
        """The names of a block, which are read together; not to be changed."""
        if number == len(self._blocks):
            return self._last
        # a slot is read and written at once, so that threads need no lock, which a fork might copy locked
        kept = self._open[number % _OPEN]
        if kept is None or kept[0] != number:
            kept = self._open[number % _OPEN] = number, _unpacked(self._blocks[number])
        return kept[1]


def _packed(names: Sequence[str]) -> bytes:
    texts = [name.encode("utf-8", "surrogatepass") for name in names]
    lengths = np.array([len(text) for text in texts], dtype=np.int32)
    return zlib.compress(lengths.tobytes() + b"".join(texts), 1)


def _unpacked(block: bytes) -> list[str]:
    content = zlib.decompress(block)
    lengths = np.frombuffer(content, dtype=np.int32, count=_BLOCK).tolist()
    found, start = [], 4 * _BLOCK
    for length in lengths:
        found.append(content[start : start + length].decode("utf-8", "surrogatepass"))
        start += length
    return found


def in_parts(name: str) -> str:
    """What paths are sorted by, part after part: all of a folder comes together."""
    return name.replace("/", "\0")


class Readers(Mapping[str, Callable[[], bytes]]):
    """What reads files, by their names.

    Args:
        names: each once, sorted as paths are (`in_parts`).
        read: reads file i.
    """

    def __init__(self, names: Names, read: Callable[[int], bytes]) -> None:
        self._names, self._read = names, read
        self._firsts = [in_parts(names.block(number)[0]) for number in range(names.blocks)]

    def __getitem__(self, name: str) -> Callable[[], bytes]:
        if (i := self._place(name)) is None:
            raise KeyError(name)
        return partial(self._read, i)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._place(name) is not None

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def _place(self, name: str) -> int | None:
        key = in_parts(name)
        number = bisect_right(self._firsts, key) - 1  # the last block that begins with no larger one
        if number < 0:
            return None
        block = self._names.block(number)
        inner = bisect_right(block, key, key=in_parts) - 1
        return number * _BLOCK + inner if block[inner] == name else None
