"""Bytes of a file as tensors, mapped into memory: nothing is read before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from calotype.files import text_path

# torch's types that are more than bytes in a row, or that have no arithmetic and no use in a weight file
ODD = (torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4)


def dtype_name(dtype: torch.dtype) -> str:
    """torch's name of a type, without torch's own: "float16"."""
    return str(dtype).removeprefix("torch.")


def map_file(path: Path) -> torch.UntypedStorage:
    """A file that is not empty, as a storage; what is written to it stays in memory."""
    with text_path(path) as named:
        storage = torch.UntypedStorage.from_file(str(named), False, path.stat().st_size)
    return cast(torch.UntypedStorage, storage)


def part(storage: torch.UntypedStorage, start: int, end: int) -> torch.UntypedStorage:
    """Its bytes from `start` to `end`, not copied."""
    return cast(torch.UntypedStorage, storage[start:end])


def bytes_of(data: torch.UntypedStorage) -> memoryview:
    """Its bytes, not copied."""
    return view(data, torch.uint8, (data.nbytes(),), (1,)).numpy().data


def own(data: torch.UntypedStorage) -> torch.UntypedStorage:
    """A copy."""
    return cast(torch.UntypedStorage, data.clone())  # type: ignore[no-untyped-call]


def view(data: torch.UntypedStorage, dtype: torch.dtype, shape: Sequence[int], stride: Sequence[int]) -> Tensor:
    """A tensor that begins where `data` does, which is copied where its address does not suit the type.

    Args:
        stride: in elements.
    """
    if data.data_ptr() % dtype.itemsize:
        data = own(data)
    return torch.empty(0, dtype=dtype).set_(data, 0, tuple(shape), tuple(stride))


def span(shape: Sequence[int], stride: Sequence[int]) -> int:
    """How many elements lie from a tensor's first to its last, both counted."""
    return 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


def strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides, in elements, of a contiguous tensor."""
    result: list[int] = []
    step = 1
    for n in reversed(shape):
        result.append(step)
        step *= max(n, 1)
    return tuple(reversed(result))
