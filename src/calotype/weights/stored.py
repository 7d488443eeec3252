"""Tensors in a file, known by where their numbers lie, and read when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from calotype.damage import quoted
from calotype.errors import WeightsError
from calotype.weights.mapped import bytes_of, own, part, span, view


class Source:
    """Where the storages of one file lie."""

    def __init__(self) -> None:
        self.places: dict[str, tuple[int, int]] = {}  # key -> offset and size in `whole`, in bytes
        self.checks: dict[str, Callable[[memoryview], None]] = {}  # key -> holds all its bytes against their sum
        self.widths: dict[str, int] = {}  # key -> bytes of an element
        self.packed: dict[str, Callable[[], bytes]] = {}  # key -> reads what does not lie there as it is
        self.whole: torch.UntypedStorage | None = None
        self._given: set[tuple[str, int]] = set()
        self._unpacked: tuple[str, torch.UntypedStorage] | None = None  # the last one; tensors may share it

    def read(self, storage: Storage, start: int, end: int) -> torch.UntypedStorage:
        """Bytes of a storage, from `start` to `end`.

        Raises:
            WeightsError: if they are not there, or the storage does not fit its sum.
        """
        data = self._storage(storage.key)
        if not 0 <= start <= end <= data.nbytes():
            raise WeightsError(
                f"its storage {quoted(storage.key, 40)} holds {data.nbytes():,} of {end:,} bytes: the file is "
                f"truncated or damaged; fetch it again"
            )
        data = part(data, start, end)
        # two tensors on the same numbers would be changed together, and could not be written to one safetensors file
        if (storage.key, start) in self._given:
            data = own(data)
        self._given.add((storage.key, start))
        return data

    def _storage(self, key: str) -> torch.UntypedStorage:
        if key in self.places and self.whole is not None:
            at, size = self.places[key]
            data = part(self.whole, at, at + size)
            if check := self.checks.get(key):
                check(bytes_of(data))
                del self.checks[key]  # once is enough
            return data
        if self._unpacked is not None and self._unpacked[0] == key:
            return self._unpacked[1]
        if key not in self.packed:
            raise WeightsError(f"the numbers of its storage {quoted(key, 40)} are missing; fetch it again")
        content = self.packed[key]() or bytes(1)
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage()
        self._unpacked = key, data
        return data


class Storage(NamedTuple):
    """A run of numbers in a file."""

    source: Source
    key: str
    dtype: torch.dtype | None  # None: bytes
    first: int  # in elements of its type
    size: int

    @property
    def bytes_(self) -> int:
        """Its size in bytes."""
        return self.size * (self.dtype.itemsize if self.dtype else 1)


class Stored(NamedTuple):
    """A tensor in a file, not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    storage: Storage | None
    offset: int = 0  # in elements
    stride: tuple[int, ...] = ()
    kind: str = ""  # what it is, where it is nothing that can be read
    turned: str = ""  # "conj" or "neg": the numbers are to be taken so

    @property
    def claimed(self) -> int:
        """How many bytes its numbers would be."""
        return math.prod(self.shape) * self.dtype.itemsize if self.storage and self.dtype else 0

    def read(self) -> Tensor:
        """The tensor.

        Raises:
            WeightsError: if it is of a kind that can't be read, or its numbers are not all there.
        """
        if self.kind or self.storage is None or self.dtype is None:
            raise WeightsError(f"this is {quoted(self.kind, 200) or 'a tensor without numbers'}")
        width, storage = self.dtype.itemsize, self.storage
        end = self.offset + span(self.shape, self.stride)
        if min((self.offset, *self.shape, *self.stride)) < 0 or end * width > storage.bytes_:
            raise WeightsError(
                f"a tensor of {list(self.shape)} in it reaches beyond its storage: the file is damaged; fetch it again"
            )
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        first = storage.first * (storage.dtype.itemsize if storage.dtype else 1) + self.offset * width
        data = storage.source.read(storage, first, first + span(self.shape, self.stride) * width)
        tensor = view(data, self.dtype, self.shape, self.stride)
        return {"conj": torch.conj_physical, "neg": torch.neg}.get(self.turned, lambda t: t)(tensor)
