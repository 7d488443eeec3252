"""Soft edges of masks: to both sides of an edge, or outside it only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from calotype.errors import UsageError

FEATHER = 16  # pixels
MOST_FEATHER = 1024

_ENOUGH = 0.75  # of a level, somewhere within the radius: less is left of what is thinner than the radius


def feathered(mask: Tensor, radius: int) -> Tensor:
    """A mask with soft edges.

    A tent filter of this radius along rows and columns, twice a running mean: unlike a Gaussian it ends, so what is
    further than `radius` pixels from anything white is exactly 0, and what is so far from anything black exactly 1.
    Sums are of whole numbers.

    Args:
        mask: uint8 [H, W]; beyond its edges they are repeated.
        radius: in pixels, from 0 (nothing is softened) to 1024.

    Returns:
        [H, W], float32 in [0, 1].

    Raises:
        UsageError: another radius, or no such mask.
    """
    _require(mask, radius)
    sums, total = mask.long(), 255
    for reach in (radius // 2, radius - radius // 2):
        for _ in range(2):  # rows, then columns
            sums = _sums(sums, reach).T
            total *= 2 * reach + 1
    return (sums.double() / total).float()


def _sums(values: Tensor, reach: int) -> Tensor:
    """Of each value and `reach` values to either side, along rows; beyond the ends the last is repeated."""
    index = torch.arange(-reach - 1, values.shape[1] + reach).clamp(0, values.shape[1] - 1)
    running = values[:, index].cumsum(1)
    return running[:, 2 * reach + 1 :] - running[:, : values.shape[1]]


def softened(mask: Tensor, radius: int) -> Tensor:
    """A mask with soft edges to both sides, in which thin parts stay.

    It is `feathered`, but parts so thin that less than three quarters would be left of them anywhere within the radius
    (lines thinner than the radius, dots, tips; white on black and black on white alike) keep their levels, and have the
    soft edge outside: see `shown`.

    Args, Returns, Raises: as `feathered`.
    """
    soft = feathered(mask, radius)
    parts = []
    for levels, left in ((mask, soft), (255 - mask, 1 - soft)):
        lost = _lost(levels, left, radius)
        parts.append(shown(levels.where(lost, levels.new_zeros(())), radius) if lost.any() else torch.zeros_like(soft))
    white, black = parts
    # where both are thin, as in a fine pattern, neither may take the other's place
    return torch.minimum(torch.maximum(soft, white * (1 - black)), 1 - black * (1 - white))


def washed_out(mask: Tensor, soft: Tensor, radius: int) -> str | None:
    """A sentence about parts of a mask that are lost where it is softened: those as thin as what is between them.

    None if there are none.

    Args:
        mask: uint8 [H, W].
        soft: what `softened` made of it with this radius.
    """

    pixels = _count_lost(mask, soft, radius)
    if not pixels:
        return None
    less = radius // 2
    while _count_lost(mask, softened(mask, less), less):
        less //= 2
    return (
        f"Parts of the mask are finer than a feather of {radius} pixels can show, and {pixels} pixels are a "
        f"mixture of both pictures; a feather of {less} shows them."
    )


def _count_lost(mask: Tensor, soft: Tensor, radius: int) -> int:
    """Pixels of parts that a feather takes away and `softened` did not bring back."""
    plain, count = feathered(mask, radius), 0
    for levels, before, after in ((mask, plain, soft), (255 - mask, 1 - plain, 1 - soft)):
        count += int((_lost(levels, before, radius) & _lost(levels, after, radius)).sum())
    return count


def _lost(mask: Tensor, soft: Tensor, radius: int) -> Tensor:
    """Where a mask selects half and more, and not enough of its level is left within the radius."""
    most = _largest(_largest(soft, radius).T, radius).T
    return (mask >= 128) & (most < _ENOUGH * mask / 255)


def _largest(values: Tensor, reach: int) -> Tensor:
    """Of each value and `reach` values to either side, along rows."""
    most = functional.pad(values, (reach, reach))
    span, wanted = 1, 2 * reach + 1
    while span < wanted:
        step = min(span, wanted - span)
        most = torch.maximum(most[:, :-step], most[:, step:])
        span += step
    return most


def shown(mask: Tensor, feather: int) -> Tensor:
    """How much of what was drawn is shown: the mask itself, and outside it less by every pixel.

    The mean of the mask and of all it becomes when it grows by 1, 2, ... `feather` pixels to all sides. So what is
    further than that from anything selected is exactly 0, and what is selected exactly 1; grey is shown as much as it
    is white, or more where something whiter is near.

    Args:
        mask: uint8 [H, W].
        feather: in pixels, from 0 to 1024.

    Returns:
        [H, W], float32 in [0, 1].

    Raises:
        UsageError: another feather, or no such mask.
    """
    _require(mask, feather)
    grown, sums = mask, mask.to(torch.int32)
    for _ in range(feather):
        grown = _most(_most(grown).T).T
        sums = sums + grown
    return (sums.double() / (255 * (feather + 1))).float()


def _most(levels: Tensor) -> Tensor:
    """The largest of each level and those to its left and right."""
    most = levels.clone()
    torch.maximum(most[:, 1:], levels[:, :-1], out=most[:, 1:])
    torch.maximum(most[:, :-1], levels[:, 1:], out=most[:, :-1])
    return most


def _require(mask: Tensor, radius: int) -> None:
    if mask.ndim != 2 or mask.dtype != torch.uint8:
        raise UsageError(f"A mask must be uint8 [H, W], not {mask.dtype} {list(mask.shape)}.")
    if not 0 <= radius <= MOST_FEATHER:
        raise UsageError(f"A feather has a radius from 0 to {MOST_FEATHER} pixels, not {radius}.")
