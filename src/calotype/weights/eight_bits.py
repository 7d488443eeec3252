"""Weights in types that no network computes in: float8 without scales, and what a file has in a type of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from calotype.weights.container import Container
from calotype.weights.mapped import dtype_name

# Every number of these is one of float16, infinities and NaN included
PLAIN = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


def widened(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors with those of float8 as float16, exactly, and notices of it."""
    narrow = [key for key, tensor in tensors.items() if tensor.dtype in PLAIN]
    wide = {key: tensor.half() if tensor.dtype in PLAIN else tensor for key, tensor in tensors.items()}
    if not narrow:
        return wide, ()
    kinds = ", ".join(sorted({dtype_name(tensors[key].dtype) for key in narrow}))
    return wide, (
        f"{len(narrow)} of {len(tensors)} tensors are stored in {kinds} and were widened to float16, exactly; what "
        f"was lost when they were made is not in the file.",
    )


def unpacked(container: Container, keys: Collection[str]) -> tuple[str, ...]:
    """Notices of tensors whose numbers a file has quantised, in a type that torch does not have."""
    kinds = {key: kind for key in keys if not isinstance(getattr(torch, kind := container.stored(key), 0), torch.dtype)}
    if not kinds:
        return ()
    return (
        f"{len(kinds)} of {len(keys)} tensors are stored as {', '.join(sorted(set(kinds.values())))} and were turned "
        f"into float32; what was lost when they were quantised is not in the file.",
    )
