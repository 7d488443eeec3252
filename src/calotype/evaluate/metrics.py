"""Metrics between a picture and its reconstruction, on uint8 pixels rounded half up (`calotype.pixels.to_uint8`).

Channels are all alike: C is 1 for grey, 3 for RGB, and 6 for RGBA as `calotype.pixels.seen` has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.errors import UsageError

_PEAK = 255.0
_WINDOW = 11
_SIGMA = 1.5
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_BAND = 2**15  # pixels that are compared at a time, so that what is made of them stays near the processor


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(255^2 / MSE), one MSE over all values of all channels.

    The usual definition, e.g. Salomon, "Data Compression: The Complete Reference" (4th ed. 2007), section 4.2.2.
    Computed in float64.

    Args:
        a, b: uint8 [C, H, W].

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
    where the window lies inside the picture, full resolution. The mean over positions is taken for each channel,
    then over the channels. Computed in float64.

    Args:
        a, b: uint8 [C, H, W], H and W at least 11.

    Returns:
        At most 1, which only identical pictures reach.

    Raises:
        UsageError: another dtype or shape, the shapes differ, or a side is shorter than the window.
    """
    _check(a, b)
    _require_window(*a.shape[-2:])
    return _mean(a, b, _similarity).mean().item()


def ms_ssim(a: Tensor, b: Tensor) -> float:
    """Multi-scale structural similarity: Wang, Simoncelli & Bovik, Asilomar 2003, equation 7, with its five exponents.

    Each scale is the mean of 2 x 2 pixels of the one before; an odd side is continued by its last pixels, as in
    TensorFlow and in the loss `ms_ssim` (pytorch_msssim averages zeros in: equal where sides divide by 16). The
    similarity at each scale is that of `ssim`, of which the first four scales give contrast and structure alone; below
    0 it counts as 0, because it is raised to a power. The product is taken for each of R, G and B, then their mean
    (torchmetrics averages channels first, and counts a border made by reflection). Computed in float64.

    Args:
        a, b: uint8 [C, H, W], H and W at least 161: there the window of 11 just fits the fifth scale.

    Returns:
        At most 1, which only identical pictures reach.

    Raises:
        UsageError: another dtype or shape, the shapes differ, or a side is below 161.
    """
    _check(a, b)
    least = (_WINDOW - 1) * 2 ** (len(_SCALES) - 1) + 1
    if min(a.shape[-2:]) < least:
        raise UsageError(
            f"MS-SSIM needs pictures of at least {least} x {least} pixels, not {a.shape[-2]} x {a.shape[-1]}; use SSIM."
        )
    x, y = a, b
    product = torch.ones(len(a), dtype=torch.float64, device=a.device)
    for i, exponent in enumerate(_SCALES):
        if i:
            x, y = _halved(x.double()), _halved(y.double())
        last = i == len(_SCALES) - 1
        similarity = _mean(x, y, _similarity if last else lambda x, y: _luminance_and_structure(x, y)[1])
        product *= similarity.clamp(min=0.0) ** exponent
    return product.mean().item()


class RowMetrics:
    """`psnr` and `ssim` of pictures that come in rows, without holding more than a few of them.

    Args:
        height, width: of the whole pictures.
    """

    def __init__(self, height: int, width: int) -> None:
        self._height, self._width = height, width
        self._rows = 0
        self._squares = 0  # exact: an int has no end
        self._similarity = 0.0
        self._carried: Tensor | None = None  # the last rows of both, from the first `add` on

    def add(self, a: Tensor, b: Tensor) -> None:
        """The next rows, from the top: uint8 [C, n, width] of either picture.

        Raises:
            UsageError: another dtype or shape, the shapes differ, or rows come after the last.
        """
        _check(a, b)
        if self._carried is None:
            self._carried = torch.empty(2, len(a), 0, self._width, dtype=torch.uint8)
        channels = self._carried.shape[1]
        if len(a) != channels or a.shape[-1] != self._width or self._rows + a.shape[-2] > self._height:
            raise UsageError(
                f"rows to compare must be [{channels}, n, {self._width}], {self._height} in all: after {self._rows} of "
                f"them {list(a.shape)} is wrong."
            )
        self._rows += a.shape[-2]
        step = max(1, _BAND // self._width)
        for top in range(0, a.shape[-2], step):
            band = torch.stack([x[:, top : top + step].cpu() for x in (a, b)])
            self._squares += int((band[0].int() - band[1].int()).square().sum(dtype=torch.int64).item())
            band = torch.cat([self._carried, band], dim=-2)
            if min(band.shape[-2:]) >= _WINDOW:
                self._similarity += _similarity(band[0].double(), band[1].double()).sum().item()
            # A window that ends in the next row starts ten rows before it.
            self._carried = band[..., 1 - _WINDOW :, :].clone()

    def psnr(self) -> float:
        """As `psnr`, once all rows are there.

        Raises:
            UsageError: some are not.
        """
        self._require_all()
        mse = self._squares / (self._channels() * self._height * self._width)
        return 10.0 * math.log10(_PEAK**2 / mse) if mse else math.inf

    def ssim(self) -> float:
        """As `ssim`, once all rows are there.

        Raises:
            UsageError: some are not, or a side is shorter than the window.
        """
        self._require_all()
        _require_window(self._height, self._width)
        return self._similarity / (self._channels() * (self._height - _WINDOW + 1) * (self._width - _WINDOW + 1))

    def _channels(self) -> int:
        assert self._carried is not None
        return self._carried.shape[1]

    def _require_all(self) -> None:
        if self._rows < self._height or not self._rows:
            raise UsageError(f"only {self._rows} of {self._height} rows to compare were added; add all of them first.")


def _mean(a: Tensor, b: Tensor, part: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What `part` makes of pictures [C, H, W] at all positions of the window, its mean by channel: float64 [C]."""
    height, width = a.shape[1:]
    total = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    step = max(1, _BAND // width)
    for top in range(0, height - _WINDOW + 1, step):
        band = slice(top, top + step + _WINDOW - 1)
        total += part(a[:, band].double(), b[:, band].double()).sum((1, 2))
    return total / ((height - _WINDOW + 1) * (width - _WINDOW + 1))


def _similarity(x: Tensor, y: Tensor) -> Tensor:
    """SSIM at all positions of the window: float64 [C, H, W] -> [C, H - 10, W - 10]."""
    luminance, structure = _luminance_and_structure(x, y)
    return luminance.mul_(structure)


def _luminance_and_structure(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM's two factors; the second is that of contrast and structure.

    They take sums and differences of products only, which are squares of x + y and x - y: four means instead of five.
    """
    plus, minus = x + y, x - y
    mean_plus, mean_minus, square_plus, square_minus = _blur(torch.stack([plus, minus, plus * plus, minus * minus]))
    mean_plus.square_()  # (mean x + mean y)^2
    mean_minus.square_()
    square_plus -= mean_plus  # variance of x + y
    square_minus -= mean_minus
    c1, c2 = (2.0 * (k * _PEAK) ** 2 for k in (0.01, 0.03))
    luminance = (mean_plus - mean_minus).add_(c1).div_((mean_plus + mean_minus).add_(c1))
    structure = (square_plus - square_minus).add_(c2).div_((square_plus + square_minus).add_(c2))
    return luminance, structure


def _blur(x: Tensor) -> Tensor:
    """The window's weighted mean at all positions inside: [..., H, W] -> [..., H - 10, W - 10]."""
    weights = [math.exp(-((i - _WINDOW // 2) ** 2) / (2.0 * _SIGMA**2)) for i in range(_WINDOW)]
    # Sums of shifted pictures: torch's convolution would first copy each pixel eleven times.
    for axis in (-2, -1):
        inside = x.shape[axis] - _WINDOW + 1
        total = torch.zeros_like(x.narrow(axis, 0, inside))
        for i, weight in enumerate(weights):
            total.add_(x.narrow(axis, i, inside), alpha=weight / sum(weights))
        x = total
    return x


def _halved(x: Tensor) -> Tensor:
    """Means of 2 x 2 pixels: [C, H, W] -> [C, ceil(H / 2), ceil(W / 2)]."""
    return F.avg_pool2d(F.pad(x, (0, x.shape[2] % 2, 0, x.shape[1] % 2), mode="replicate"), 2)


def _require_window(height: int, width: int) -> None:
    if min(height, width) < _WINDOW:
        raise UsageError(f"SSIM needs pictures of at least {_WINDOW} x {_WINDOW} pixels, not {height} x {width}.")


def _check(a: Tensor, b: Tensor) -> None:
    for x in (a, b):
        if x.dtype != torch.uint8 or x.ndim != 3 or x.shape[0] not in (1, 3, 6) or not x.numel():
            raise UsageError(f"a picture to compare must be uint8 [1, 3 or 6, H, W], not {x.dtype} {list(x.shape)}.")
    if a.shape != b.shape:
        raise UsageError(f"pictures to compare must have one shape, not {list(a.shape)} and {list(b.shape)}.")
