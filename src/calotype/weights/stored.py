"""Tensors in a file, known by where their numbers lie, and read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from calotype.errors import WeightsError
from calotype.weights.mapped import own, part, span, view


class Source:
    """Where the storages of one file lie."""

    def __init__(self) -> None:
        self.places: dict[str, tuple[int, int]] = {}  # key -> offset and size in `whole`, in bytes
        self.widths: dict[str, int] = {}  # key -> bytes of an element
        self.unpack: Callable[[str], bytes] | None = None  # reads what lies packed
        self.whole: torch.UntypedStorage | None = None
        self._given: set[tuple[str, int]] = set()

    def read(self, storage: Storage, start: int, end: int) -> torch.UntypedStorage:
        """Bytes of a storage, from `start` to `end`.

        Raises:
            WeightsError: if they are not there.
        """
        if storage.key in self.places and self.whole is not None:
            at, size = self.places[storage.key]
            data = part(self.whole, at, at + size)
        elif self.unpack is not None:
            content = self.unpack(storage.key) or bytes(1)
            data = torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage()
        else:
            raise WeightsError(f"the numbers of its storage {storage.key} are missing; fetch it again")
        if not 0 <= start <= end <= data.nbytes():
            raise WeightsError(
                f"its storage {storage.key} holds {data.nbytes():,} of {end:,} bytes: the file is truncated or "
                f"damaged; fetch it again"
            )
        data = part(data, start, end)
        # two tensors on the same numbers would be changed together, and could not be written to one safetensors file
        if (storage.key, start) in self._given:
            data = own(data)
        self._given.add((storage.key, start))
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

    def read(self) -> Tensor:
        """The tensor.

        Raises:
            WeightsError: if it is of a kind that can't be read, or its numbers are not all there.
        """
        if self.kind or self.storage is None or self.dtype is None:
            raise WeightsError(f"this is {self.kind or 'a tensor without numbers'}")
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
