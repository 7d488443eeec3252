"""The arithmetic of ComfyUI's quantised formats, as comfy-kitchen publishes it (Comfy-Org/comfy-kitchen, Apache-2.0).

All of it is done in float32, in which every product of an eight-bit number and a scale is exact but for one rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

GROUP = 256  # columns that ConvRot rotates together, where a format does not say
LARGEST_GROUP = 4096
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # numbers of four bits, by the three after the sign
TILE = (128, 4)  # rows and columns of scales that lie together (NVIDIA, cuBLAS: block scaling factors layout)
MX, NV = 32, 16  # numbers to a scale


class QuantError(ValueError):
    """A weight is in no format that is known here, or does not fit it; the text goes on from "is quantised"."""


def dequantised(
    told: Any, weight: Tensor, scale: Tensor | None, beside: Mapping[str, Tensor], shape: tuple[int, ...]
) -> Tensor:
    """A weight in float32.

    Args:
        told: `format`, and what belongs to it; None of floats, with or without a scale.
        weight: as stored.
        scale: of it, as stored.
        beside: `weight_scale_2` and `pre_quant_scale`, where there are such.
        shape: of the result; without the rows that were added to make tiles whole.

    Raises:
        QuantError: if it can't be told what the numbers are.
    """
    name = "float" if told is None else told.get("format") if isinstance(told, dict) else None
    if name == "int8_tensorwise":
        wide = _int8(told, _of_type(weight, torch.int8), _given(scale, name))
    elif name == "mxfp8":
        wide = _blocks(_of_eight_bits(_two(weight, name), "float8_e4m3fn").float(), _exponents(_given(scale, name)), MX)
    elif name == "nvfp4":
        whole = _given(beside.get("weight_scale_2"), name).float()
        scales = _given(scale, name)
        scales = scales.view(torch.float8_e4m3fn) if scales.dtype == torch.uint8 else scales
        wide = _blocks(_nibbles(_of_type(_two(weight, name), torch.uint8)), scales.float(), NV, whole)
    elif name in ("float", "float8_e4m3fn", "float8_e5m2"):
        wide = (weight if name == "float" else _of_eight_bits(weight, name)).float()
        if scale is not None:
            wide = wide * spread(scale.float(), tuple(weight.shape))
    else:
        raise QuantError(f"in a format, {str(name)[:40]!r}, that is not read")
    if (smooth := beside.get("pre_quant_scale")) is not None:  # by which inputs are multiplied
        if wide.ndim != 2 or smooth.numel() != wide.shape[1]:
            raise QuantError(f"with a pre_quant_scale of {list(smooth.shape)}, which does not fit {list(wide.shape)}")
        wide = wide * smooth.float().reshape(1, -1)
    return wide[: shape[0]]


def rows_of(rows: int, bias: tuple[int, ...]) -> int:
    """Rows of a matrix: those beyond its bias were added to make tiles whole."""
    return bias[0] if len(bias) == 1 and rows - MX < bias[0] < rows else rows


def spread(scale: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Scales, as what a weight of a shape can be multiplied by.

    Raises:
        QuantError: if they are neither one, nor one for each row, nor one for each block of a power of two.
    """
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.shape[0] == shape[0] == scale.numel():
        return scale.reshape(-1, *(1,) * (len(shape) - 1))
    if scale.ndim == len(shape):
        for dimension, (count, size) in enumerate(zip(scale.shape, shape, strict=True)):
            blocks = [size] if count == 1 else [2**i for i in range(size.bit_length()) if -(-size // 2**i) == count]
            if not blocks:
                break
            if count not in (1, size):
                scale = scale.repeat_interleave(blocks[0], dimension).narrow(dimension, 0, size)
        else:
            return scale
    raise QuantError(f"with scales of {list(scale.shape)}, which do not fit {list(shape)}")


def _int8(told: Mapping[str, Any], weight: Tensor, scale: Tensor) -> Tensor:
    wide = weight.float() * spread(scale.float(), tuple(weight.shape))
    params = told.get("params")
    said = {**(params if isinstance(params, dict) else {}), **told}
    if not said.get("convrot"):
        return wide
    group = said.get("convrot_groupsize", GROUP)
    if wide.ndim != 2:
        raise QuantError(f"and rotated (ConvRot), and of {wide.ndim} dimensions, of which nobody says how")
    if type(group) is not int or not 4 <= group <= LARGEST_GROUP or 4 ** round(math.log(group, 4)) != group:
        raise QuantError(f"and rotated (ConvRot) in groups of {str(group)[:20]}, which is no power of four")
    if wide.shape[1] % group:
        raise QuantError(f"and rotated (ConvRot) in groups of {group}, which do not divide {wide.shape[1]} columns")
    return (wide.reshape(wide.shape[0], -1, group) @ hadamard(group)).flatten(1)


def hadamard(size: int) -> Tensor:
    """The rotation of ConvRot, which is its own inverse: a Kronecker power of one of four rows, of length one.

    Args:
        size: a power of four.
    """
    four = 1.0 - 2.0 * torch.eye(4).flip(1)
    made = torch.ones(1, 1)
    while made.shape[0] < size:
        made = torch.kron(made, four)
    return made / math.sqrt(size)


def _blocks(wide: Tensor, scales: Tensor, block: int, whole: Tensor | float = 1.0) -> Tensor:
    """Numbers multiplied by scales that lie in tiles, one for so many columns of a row."""
    rows, columns = wide.shape
    count = columns // block
    down, across = -(-rows // TILE[0]), -(-count // TILE[1])
    if columns % block or scales.numel() != down * across * TILE[0] * TILE[1]:
        raise QuantError(f"with {scales.numel():,} scales, which do not fit {list(wide.shape)}")
    row, column = torch.arange(rows)[:, None], torch.arange(count)
    tile = row // TILE[0] * across + column // TILE[1]
    inside = row % 32 * 16 + row % TILE[0] // 32 * 4 + column % TILE[1]
    found = scales.reshape(-1)[tile * TILE[0] * TILE[1] + inside] * whole
    return (wide.reshape(rows, count, block) * found[:, :, None]).flatten(1)


def _exponents(scales: Tensor) -> Tensor:
    """Powers of two by their exponents (E8M0), of which the least stands for nothing."""
    exponents = scales.view(torch.uint8) if scales.dtype == torch.float8_e8m0fnu else _of_type(scales, torch.uint8)
    return (exponents.int() << 23).view(torch.float32)


def _nibbles(packed: Tensor) -> Tensor:
    """Numbers of four bits (E2M1), the first of two in the upper half of a byte."""
    table = torch.tensor([*E2M1, *(-number for number in E2M1)])
    return torch.stack([table[(packed >> 4).long()], table[(packed & 15).long()]], -1).flatten(1)


def _two(weight: Tensor, name: str) -> Tensor:
    if weight.ndim != 2:
        raise QuantError(f"in {name}, which is of matrices, and has {weight.ndim} dimensions")
    return weight


def _given(scale: Tensor | None, name: str) -> Tensor:
    if scale is None:
        raise QuantError(f"in {name}, and its scale is missing")
    return scale


def _of_eight_bits(tensor: Tensor, name: str) -> Tensor:
    """float8 of this name, which may be stored as bytes; wider floats stay as they are."""
    if tensor.dtype == torch.uint8:
        return tensor.view(getattr(torch, name))
    if not tensor.is_floating_point():
        raise QuantError(f"and holds {tensor.dtype} where its format has {name}")
    return tensor


def _of_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype != dtype:
        raise QuantError(f"and holds {tensor.dtype} where its format has {dtype}")
    return tensor
