"""Errors of RGBA pictures, told apart: of colours, as far as they can be seen, and of alpha.

How pictures look over white and over black (`pixels.seen`), of which the other metrics are, shows both in one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from calotype.errors import UsageError

SAID = (
    "Of RGBA, PSNR, SSIM and LPIPS are of how pictures look, in which errors of colours and of alpha are mixed. Apart: "
    "PSNR of colours counts each pixel as much as it is opaque in the original, and those of alpha are of alpha alone."
)

_PEAK = 255.0
_ROWS = 64  # that are compared at a time, for each value of them takes sixteen bytes


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How far two RGBA pictures are from one another.

    Attributes:
        colour_psnr: in dB, of R, G and B, which are not multiplied by alpha; the mean of squares is weighted by the
            original's alpha. Of an opaque original it is the usual PSNR. None where nothing of it can be seen.
        alpha_psnr: in dB, of alpha.
        alpha_mae: mean absolute error of alpha, in levels of 255.
        alpha_max: the largest one.
    """

    colour_psnr: float | None
    alpha_psnr: float
    alpha_mae: float
    alpha_max: float


APART = tuple(field.name for field in fields(Apart))
"""Keys of these figures, where they stand among metrics."""


class ApartMetrics:
    """`apart` of pictures that come in rows; sums are exact."""

    def __init__(self) -> None:
        self._weights = self._colours = self._squares = self._errors = self._largest = self._pixels = 0

    def add(self, a: Tensor, b: Tensor) -> None:
        """The next rows, from the top: uint8 [4, n, W] of the original and of the other.

        Raises:
            UsageError: another dtype or shape, or the shapes differ.
        """
        if a.shape != b.shape or a.ndim != 3 or len(a) != 4 or not a.numel() or {a.dtype, b.dtype} != {torch.uint8}:
            raise UsageError(
                f"RGBA pictures to compare must be uint8 [4, H, W] of one shape, not {a.dtype} {list(a.shape)} and "
                f"{b.dtype} {list(b.shape)}."
            )
        for top in range(0, a.shape[1], _ROWS):
            self._add(a[:, top : top + _ROWS], b[:, top : top + _ROWS])

    def _add(self, a: Tensor, b: Tensor) -> None:
        weight = a[3].to(torch.int64)
        errors = (a.to(torch.int64) - b.to(torch.int64)).abs_()
        squares = errors.square()
        self._pixels += weight.numel()
        self._weights += int(weight.sum())
        self._colours += int((squares[:3].sum(0) * weight).sum())
        self._squares += int(squares[3].sum())
        self._errors += int(errors[3].sum())
        self._largest = max(self._largest, int(errors[3].max()))

    def figures(self) -> Apart:
        """Of all rows so far; of one at least.

        Raises:
            UsageError: there was none.
        """
        if not self._pixels:
            raise UsageError("no rows to compare were added; add all of them first.")
        return Apart(
            colour_psnr=_decibels(self._colours / (3 * self._weights)) if self._weights else None,
            alpha_psnr=_decibels(self._squares / self._pixels),
            alpha_mae=self._errors / self._pixels,
            alpha_max=float(self._largest),
        )


def apart(a: Tensor, b: Tensor) -> Apart:
    """How far an RGBA picture is from its original, in colours and in alpha.

    Args:
        a: the original, uint8 [4, H, W].
        b: the other, likewise.

    Raises:
        UsageError: another dtype or shape, or the shapes differ.
    """
    metrics = ApartMetrics()
    metrics.add(a, b)
    return metrics.figures()


def _decibels(mse: float) -> float:
    """PSNR of a mean squared error in levels; infinity where it is 0."""
    return 10.0 * math.log10(_PEAK**2 / mse) if mse else math.inf
