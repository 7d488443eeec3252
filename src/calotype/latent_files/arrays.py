"""numpy's files, read without pickles, and without memory that a header claims and the file does not hold."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from calotype.damage import quoted, require_held
from calotype.errors import LatentsError
from calotype.latent_files.found import Item
from calotype.weights.archives import Member, members

_LONGEST = 4096  # bytes of a header; those of arrays of numbers have about a hundred
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def item(path: Path) -> Item:
    """The array in a .npy file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        shape, dtype, fortran, start = _header(file.read(_LONGEST), size)
    return Item("the array", shape, dtype.name, lambda: _tensor(path.read_bytes(), shape, dtype, fortran, start))


class Archive(Mapping[str, Item]):
    """The arrays of a .npz file by name, without ``.npy``; headers are read when one is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._members = {
            name.removesuffix(".npy"): member for name, member in members(path).items() if name.endswith(".npy")
        }
        require_held(sum(member.size for member in self._members.values()), path.stat().st_size)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, name: str) -> Item:
        member = self._members[name]
        shape, dtype, fortran, start = _header(self._bytes(member)[:_LONGEST], member.size)
        return Item(name, shape, dtype.name, lambda: _tensor(self._bytes(member), shape, dtype, fortran, start))

    def _bytes(self, member: Member) -> bytes:
        with self._path.open("rb") as file:
            return member.read(file)


def _header(content: bytes, size: int) -> tuple[tuple[int, ...], np.dtype[np.generic], bool, int]:
    """(shape, type, whether columns come first, where the numbers begin), of an array that has so many bytes.

    Raises:
        LatentsError: it is no array of floats, or its numbers are not all there.
        ValueError: it is damaged.
    """
    file = io.BytesIO(content)
    version = npy.read_magic(file)
    if version not in _READERS:
        raise LatentsError(f"it is in version {version[0]}.{version[1]} of numpy's format, and no array of numbers.")
    shape, fortran, dtype = _READERS[version](file)
    if dtype.hasobject:
        raise LatentsError("its array holds Python objects, which could run code and are not read; save its numbers.")
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise LatentsError(f"latents must be floats of 16, 32 or 64 bits, not {quoted(dtype, 40)}.")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("a shape that is none")
    start, claimed = file.tell(), math.prod(shape) * dtype.itemsize
    if start + claimed > size:
        raise LatentsError(
            f"its header claims {claimed:,} bytes of numbers, and there are {max(size - start, 0):,}: it is truncated "
            f"or damaged; make the latents again."
        )
    return shape, dtype, fortran, start


def _tensor(content: bytes, shape: tuple[int, ...], dtype: np.dtype[np.generic], fortran: bool, start: int) -> Tensor:
    values = np.frombuffer(content, dtype, math.prod(shape), start)
    array = values.reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(np.ascontiguousarray(array, dtype.newbyteorder("=")).copy())
