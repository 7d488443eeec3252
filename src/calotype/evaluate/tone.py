"""How colours, contrast and edges come back as a whole: what pictures have too much or too little of, not how far off.

A picture that turned a little green has nearly the PSNR of one that did not, and one that is a little soft often a
better one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from calotype.errors import UsageError

SAID = (
    "Bias is how much more of a colour there is than in the original, on average, in levels of 255; contrast and "
    "gradients are those of what was decoded over the original's, so 1 is as much of them, and less is softer."
)

_ROWS = 64  # that are compared at a time, for each value of them takes sixteen bytes


@dataclass(frozen=True, kw_only=True)
class Tone:
    """What a picture has more of than its original, or less.

    Attributes:
        bias_red, bias_green, bias_blue: mean difference to the original, in levels of 255; above 0 there is more of the
            colour. None where nothing of the original can be seen.
        contrast: root of the sum of the variances of R, G and B, over the original's; None where that has one colour.
        gradient: sum of the squared differences of neighbours, over the original's; None where that has one colour.
    """

    bias_red: float | None
    bias_green: float | None
    bias_blue: float | None
    contrast: float | None
    gradient: float | None


TONE = tuple(field.name for field in fields(Tone))
"""Keys of these figures, where they stand among metrics."""

BIASES = TONE[:3]


def tone(a: Tensor, b: Tensor, rgba: tuple[Tensor, Tensor] | None = None) -> Tone:
    """What a picture has more of than its original, or less. Sums are exact.

    Args:
        a: the original as it looks, uint8 [3, H, W]; grey is repeated, and RGBA is over white.
        b: the other, likewise.
        rgba: both as they are, uint8 [4, H, W], where they have alpha; the bias is of their colours then.

    Raises:
        UsageError: another dtype or shape, or the shapes differ.
    """
    _check(a, b, 3)
    red, green, blue = colour_bias(*(rgba or (a, b))) or (None, None, None)
    (variance_a, energy_a), (variance_b, energy_b) = (_spread(one) for one in (a, b))
    return Tone(
        bias_red=red, bias_green=green, bias_blue=blue,
        contrast=math.sqrt(variance_b / variance_a) if variance_a else None,
        gradient=energy_b / energy_a if energy_a else None,
    )  # fmt: skip


def colour_bias(a: Tensor, b: Tensor) -> tuple[float, float, float] | None:
    """Mean difference of R, G and B to those of the original, in levels of 255.

    Args:
        a: the original, uint8 [3, H, W]; or RGBA [4, H, W], whose colours are not multiplied by alpha: a pixel counts
            as much as it is opaque in the original. None where nothing of it can be seen.
        b: the other, likewise.

    Raises:
        UsageError: another dtype or shape, or the shapes differ.
    """
    _check(a, b, len(a) if len(a) == 4 else 3)
    sums, weights = [0, 0, 0], 0
    for top in range(0, a.shape[1], _ROWS):
        x, y = (one[:, top : top + _ROWS].to(torch.int64) for one in (a, b))
        weight = x[3] if len(x) == 4 else torch.ones_like(x[0])
        weights += int(weight.sum())
        sums = [had + int(((y[c] - x[c]) * weight).sum()) for c, had in enumerate(sums)]
    return (sums[0] / weights, sums[1] / weights, sums[2] / weights) if weights else None


def _spread(levels: Tensor) -> tuple[int, int]:
    """Variance of the channels together, times the square of the pixels' number; and squared differences, summed."""
    pixels = levels[0].numel()
    sums, squares, energy = [0, 0, 0], 0, 0
    for top in range(0, levels.shape[1], _ROWS):
        x = levels[:, top : top + _ROWS + 1].to(torch.int64)  # and the first row of the next ones
        own = x[:, :_ROWS]
        sums = [had + int(own[c].sum()) for c, had in enumerate(sums)]
        squares += int(own.square().sum())
        energy += int(own.diff(dim=2).square().sum()) + int(x.diff(dim=1).square().sum())
    return pixels * squares - sum(one * one for one in sums), energy


def _check(a: Tensor, b: Tensor, channels: int) -> None:
    wrong = a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.ndim != 3 or len(a) != channels or not a.numel()
    if wrong or a.shape != b.shape:
        raise UsageError(
            f"pictures to compare must be uint8 [{channels}, H, W] of one shape, not {a.dtype} {list(a.shape)} and "
            f"{b.dtype} {list(b.shape)}."
        )
