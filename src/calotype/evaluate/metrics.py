"""Metrics between a picture and its reconstruction, on uint8 pixels rounded half up (`calotype.pixels.to_uint8`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from calotype.errors import UsageError

_PEAK = 255.0
_WINDOW = 11
_SIGMA = 1.5


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(255^2 / MSE), one MSE over all values of all channels.

    The usual definition, e.g. Salomon, "Data Compression: The Complete Reference" (4th ed. 2007), section 4.2.2.
    Computed in float64.

    Args:
        a, b: uint8 [3, H, W].

    Returns:
        dB; infinity for identical pictures.

    Raises:
        UsageError: another dtype or shape, or the shapes differ.
    """
    _check(a, b)
    mse = (a.double() - b.double()).square().mean().item()
    return 10.0 * math.log10(_PEAK**2 / mse) if mse else math.inf


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity: Wang, Bovik, Sheikh & Simoncelli, IEEE TIP 13(4), 2004, equation 13.

    Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, L = 255, population (co)variances, only positions
    where the window lies inside the picture, full resolution. The mean over positions is taken for each of R, G and B,
    then over the three. Computed in float64.

    Args:
        a, b: uint8 [3, H, W], H and W at least 11.

    Returns:
        At most 1, which only identical pictures reach.

    Raises:
        UsageError: another dtype or shape, the shapes differ, or a side is shorter than the window.
    """
    _check(a, b)
    if min(a.shape[-2:]) < _WINDOW:
        height, width = a.shape[-2:]
        raise UsageError(f"SSIM needs pictures of at least {_WINDOW} x {_WINDOW} pixels, not {height} x {width}.")
    x, y = a.double(), b.double()
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x.square()) - mean_x.square()
    var_y = _blur(y.square()) - mean_y.square()
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    luminance = (2.0 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2.0 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean().item()


def _blur(x: Tensor) -> Tensor:
    """The window's weighted mean at all positions inside: [3, H, W] -> [3, H - 10, W - 10]."""
    offsets = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    weights = torch.exp(-offsets.square() / (2.0 * _SIGMA**2))
    weights = weights / weights.sum()
    rows = functional.conv2d(x[:, None], weights.view(1, 1, _WINDOW, 1))
    return functional.conv2d(rows, weights.view(1, 1, 1, _WINDOW))[:, 0]


def _check(a: Tensor, b: Tensor) -> None:
    for x in (a, b):
        if x.dtype != torch.uint8 or x.ndim != 3 or x.shape[0] != 3 or not x.numel():
            raise UsageError(f"a picture to compare must be uint8 [3, H, W], not {x.dtype} {list(x.shape)}.")
    if a.shape != b.shape:
        raise UsageError(f"pictures to compare must have one shape, not {list(a.shape)} and {list(b.shape)}.")
