"""Padding pixels to what a network takes, cropping them again, and pictures that are given by rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from calotype.errors import UsageError

Rows = Callable[[int, int], Tensor]
"""(top, bottom) -> those rows of a picture, [C, bottom - top, W]."""


@dataclass(frozen=True)
class Padding:
    """What `pad` did, so that `crop` can undo it.

    Attributes:
        height: of the picture before padding, in pixels.
        width: of it, likewise.
        bottom: rows added below.
        right: columns added at the right.
        mode: how they were filled.
    """

    height: int
    width: int
    bottom: int
    right: int
    mode: Literal["reflect", "replicate"]


def pad(pixels: Tensor, factor: int) -> tuple[Tensor, Padding]:
    """Pad at the bottom and the right to the next multiple of `factor`: [..., C, H, W] -> [..., C, H', W'].

    By reflection, or by repeating the last row and column where a side is too short to be reflected.
    What needs no padding is returned as it is.

    Raises:
        UsageError: `factor` is below 1, or there are no pixels.
    """
    if pixels.ndim < 3 or not pixels.numel():
        raise UsageError(f"pixels to pad must be [..., C, H, W] and not empty, not {list(pixels.shape)}.")
    height, width = pixels.shape[-2:]
    padding = _padding(height, width, factor)
    bottom, right = padding.bottom, padding.right
    if not (bottom or right):
        return pixels, padding
    # torch pads both sides of [C, H, W]; the leading axes are all channels to it.
    padded = functional.pad(pixels.reshape(-1, height, width), (0, right, 0, bottom), mode=padding.mode)
    return padded.reshape(*pixels.shape[:-2], height + bottom, width + right), padding


def planes(rows: Rows, height: int, width: int) -> Iterator[Tensor]:
    """The values of a picture of `height` x `width` that is given by rows, in the order of [C, H, W]."""
    step = max(1, 2**20 // width)
    for channel in range(len(rows(0, 1))):
        for top in range(0, height, step):
            yield rows(top, min(top + step, height))[channel]


def pad_rows(pixels: Rows, height: int, width: int, factor: int) -> tuple[Rows, Padding]:
    """Pad as `pad` does, by rows.

    Args:
        pixels: rows of the picture.
        height, width: of the picture.

    Returns:
        Rows of the padded picture, equal to `pad`'s, and what was done.

    Raises:
        UsageError: `factor` is below 1, or there are no pixels.
    """
    if height < 1 or width < 1:
        raise UsageError(f"a picture to pad must have at least 1 x 1 pixels, not {height} x {width}.")
    padding = _padding(height, width, factor)

    def padded(top: int, bottom: int) -> Tensor:
        parts = [pixels(top, min(bottom, height))] if top < height else []
        if bottom > height:
            start = max(top, height)
            if padding.mode == "reflect":
                last = 2 * (height - 1)  # rows that mirror each other sum up to this
                parts.append(pixels(last - bottom + 1, last - start + 1).flip(-2))
            else:
                parts.append(pixels(height - 1, height).expand(-1, bottom - start, -1))
        rows = torch.cat(parts, dim=-2) if len(parts) > 1 else parts[0]
        return functional.pad(rows, (0, padding.right, 0, 0), mode=padding.mode) if padding.right else rows

    return padded, padding


def _padding(height: int, width: int, factor: int) -> Padding:
    if factor < 1:
        raise UsageError(f"the factor to pad to must be at least 1, not {factor}.")
    bottom, right = -height % factor, -width % factor
    mode: Literal["reflect", "replicate"] = "reflect" if bottom < height and right < width else "replicate"
    return Padding(height=height, width=width, bottom=bottom, right=right, mode=mode)


def crop(pixels: Tensor, padding: Padding) -> Tensor:
    """Undo `pad`: [..., C, H', W'] -> [..., C, H, W].

    Raises:
        UsageError: the pixels are not of the padded size.
    """
    expected = (padding.height + padding.bottom, padding.width + padding.right)
    if tuple(pixels.shape[-2:]) != expected:
        raise UsageError(f"pixels to crop must be [..., {expected[0]}, {expected[1]}], not {list(pixels.shape)}.")
    return pixels[..., : padding.height, : padding.width]
