"""SSIM as tables made with other libraries have it; calotype's own is `metrics.ssim`. For comparing with those only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.errors import UsageError

_SIGMA, _WINDOW = 1.5, 11  # of torchmetrics
_UNIFORM = 7  # of scikit-image


def ssim_reflect(a: Tensor, b: Tensor, data_range: float) -> float:
    """SSIM as torchmetrics' StructuralSimilarityIndexMeasure: the window of `metrics.ssim`, at every position.

    Pictures are continued by reflection, so borders count, and variances below 0 count as 0. Where pixels lie in
    [-1, 1] the luminance term is of these numbers, not of brightness. Computed in float64.

    Args:
        a, b: [3, H, W] in any unit, sides of at least 6.
        data_range: largest minus smallest possible value.

    Raises:
        UsageError: the shapes differ, or a side is too short.
    """
    _check(a, b, _WINDOW // 2 + 1)
    x, y = (F.pad(z.double()[None], (_WINDOW // 2,) * 4, mode="reflect")[0] for z in (a, b))
    position = torch.arange(_WINDOW, dtype=torch.float64, device=a.device) - _WINDOW // 2
    weights = torch.exp(-position.square() / (2 * _SIGMA**2))
    return _ssim(x, y, weights / weights.sum(), data_range, sample=1.0, clamped=True)


def ssim_uniform(a: Tensor, b: Tensor, data_range: float) -> float:
    """SSIM as scikit-image's structural_similarity by default: means over 7 x 7, covariances divided by 48.

    Only positions where the window lies inside. Computed in float64.

    Args:
        a, b: [3, H, W] in any unit, sides of at least 7.
        data_range: largest minus smallest possible value, or what a table's authors took for it.

    Raises:
        UsageError: the shapes differ, or a side is too short.
    """
    _check(a, b, _UNIFORM)
    weights = torch.full((_UNIFORM,), 1 / _UNIFORM, dtype=torch.float64, device=a.device)
    n = _UNIFORM**2
    return _ssim(a.double(), b.double(), weights, data_range, sample=n / (n - 1), clamped=False)


def _ssim(x: Tensor, y: Tensor, weights: Tensor, data_range: float, *, sample: float, clamped: bool) -> float:
    """Wang et al. 2004, equation 13: its mean over positions and channels."""
    mean_x, mean_y, square_x, square_y, product = _means(torch.stack([x, y, x * x, y * y, x * y]), weights)
    variance_x, variance_y = (
        (square - mean * mean) * sample for square, mean in ((square_x, mean_x), (square_y, mean_y))
    )
    if clamped:
        variance_x, variance_y = variance_x.clamp(min=0), variance_y.clamp(min=0)
    covariance = (product - mean_x * mean_y) * sample
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return float((luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)).mean())


def _means(maps: Tensor, weights: Tensor) -> Tensor:
    """Weighted means over the window at all positions inside: [5, 3, H, W] -> [5, 3, H - n + 1, W - n + 1]."""
    for axis in (-2, -1):
        maps = (maps.unfold(axis, len(weights), 1) * weights).sum(-1)
    return maps


def _check(a: Tensor, b: Tensor, least: int) -> None:
    if a.shape != b.shape or a.ndim != 3:
        raise UsageError(f"pictures to compare must have one shape [3, H, W], not {list(a.shape)} and {list(b.shape)}.")
    if min(a.shape[1:]) < least:
        raise UsageError(f"this SSIM needs sides of at least {least} pixels, not {a.shape[1]} x {a.shape[2]}.")
