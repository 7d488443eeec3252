"""The losses of an autoencoder. Each gives one number a picture, [N]; how it is reduced is stated, never implied.

All is computed in float32, under autocast too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.errors import UsageError
from calotype.posterior import DiagonalGaussian

_WINDOW = 11
_SIGMA = 1.5
_RANGE = 2.0  # of pixels in [-1, 1]
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_LEAST = 1e-4
_CHARBONNIER = 1e-3


def reconstruction(kind: str, x: Tensor, y: Tensor) -> Tensor:
    """How far pictures are from their reconstructions, the mean over C, H and W of each: [N].

    - ``l1``: |x - y|. ``l2``: (x - y)^2.
    - ``charbonnier``: sqrt((x - y)^2 + 1e-6), smooth at 0 (Charbonnier et al. 1994; eps 1e-3).
    - ``ssim``: 1 - SSIM (Wang et al., IEEE TIP 13(4), 2004, equation 13): Gaussian window of 11 x 11 with sigma 1.5,
      K1 = 0.01, K2 = 0.03, range 2 from black at -1, only positions where the window lies inside, mean over positions
      and channels: what `evaluate.metrics.ssim` gives, of pixels that are not rounded.
    - ``ms_ssim``: 1 - MS-SSIM (Wang, Simoncelli & Bovik, Asilomar 2003): five scales, each the mean of 2 x 2 pixels of
      the one before (an odd side is continued by its last pixels), the product for each channel, then their mean.
      Where a scale's similarity is below 1e-4 it counts as 1e-4: at 0 the product would leave no gradient to the other
      scales, and right above it an endless one to this.

    Args:
        x, y: [N, C, H, W] in [-1, 1]; at least 11 x 11 for ``ssim`` and 161 x 161 for ``ms_ssim``.

    Raises:
        UsageError: for an unknown kind, shapes that differ, or pictures that are too small.
    """
    if kind not in RECONSTRUCTION:
        raise UsageError(f"a reconstruction loss must be one of {', '.join(RECONSTRUCTION)}, not {kind!r}.")
    if x.shape != y.shape:
        raise UsageError(f"pictures to compare must have one shape, not {list(x.shape)} and {list(y.shape)}.")
    with torch.autocast(x.device.type, enabled=False):
        return RECONSTRUCTION[kind](x.float(), y.float())


def kl(posterior: DiagonalGaussian) -> Tensor:
    """KL(q(z|x) || N(0, I)) in nats, summed over latents: [N]."""
    return posterior.float().kl()


def nll(
    rec: Tensor, perceptual: Tensor | None = None, *, perceptual_weight: float = 1.0, logvar: Tensor | None = None
) -> Tensor:
    """(rec + perceptual_weight * perceptual) / exp(logvar) + logvar: [N].

    The negative log-likelihood of latent-diffusion (ldm/modules/losses/contperceptual.py) divided by C*H*W: there the
    perceptual distance is added to every value of |x - y|, and everything is summed over C, H and W. So what is to be
    added to it for a KL weight of that repository (1e-6 for kl-f8) is ``kl_weight / (C*H*W) * kl(posterior)``: 5.1e-12
    times the summed KL for 3 x 256 x 256. With 1e-6 it would be 200,000 times as strong.

    Args:
        rec: [N], a mean over C, H and W, as `reconstruction` gives.
        perceptual: [N].
        logvar: log-variance of the reconstruction, a scalar that may be learned; fixed at 0 if it is left out.
    """
    distance = rec.float()
    if perceptual is not None:
        distance = distance + perceptual_weight * perceptual.float()
    return distance if logvar is None else distance / logvar.float().exp() + logvar.float()


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)


def _l1(x: Tensor, y: Tensor) -> Tensor:
    return _mean((x - y).abs())


def _l2(x: Tensor, y: Tensor) -> Tensor:
    return _mean((x - y).square())


def _charbonnier(x: Tensor, y: Tensor) -> Tensor:
    return _mean(((x - y).square() + _CHARBONNIER**2).sqrt())


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    _require("ssim", x, _WINDOW)
    similarity, _ = _similarity(x, y)
    return 1.0 - similarity.mean(1)


def _ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    _require("ms_ssim", x, (_WINDOW - 1) * 2 ** (len(_SCALES) - 1) + 1)
    product = torch.ones((), device=x.device)
    for i, weight in enumerate(_SCALES):
        if i:
            x, y = _halved(x), _halved(y)
        similarity, structure = _similarity(x, y)
        part = similarity if i == len(_SCALES) - 1 else structure
        product = product * part.clamp(min=_LEAST) ** weight
    return 1.0 - product.mean(1)


def _require(kind: str, x: Tensor, least: int) -> None:
    if min(x.shape[2:]) < least:
        raise UsageError(
            f"the loss {kind} needs crops of at least {least} x {least} pixels, not {x.shape[2]} x {x.shape[3]}."
        )


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM, and its factor of contrast and structure alone: means over positions, [N, C] each."""
    maps = _blurred(torch.stack([x, y, x.square(), y.square(), x * y]))
    mean_x, mean_y, square_x, square_y, product = maps.unbind()
    c1, c2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
    variances = square_x - mean_x.square() + square_y - mean_y.square()
    structure = (2.0 * (product - mean_x * mean_y) + c2) / (variances + c2)
    mean_x, mean_y = mean_x + 1.0, mean_y + 1.0  # luminance is a ratio, so 0 has to be black; variances have no origin
    luminance = (2.0 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return (luminance * structure).mean((2, 3)), structure.mean((2, 3))


def _blurred(x: Tensor) -> Tensor:
    """The window's weighted mean at all positions inside: [..., H, W] -> [..., H - 10, W - 10]."""
    weights = [math.exp(-((i - _WINDOW // 2) ** 2) / (2.0 * _SIGMA**2)) for i in range(_WINDOW)]
    # Sums of shifted maps, not a convolution: cuDNN's are in TF32, whose 10 bits leave nothing of small variances.
    for axis in (-2, -1):
        inside = x.shape[axis] - _WINDOW + 1
        total = torch.zeros_like(x.narrow(axis, 0, inside))
        for i, weight in enumerate(weights):
            total = total.add(x.narrow(axis, i, inside), alpha=weight / sum(weights))
        x = total
    return x


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode="replicate"), 2)


RECONSTRUCTION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": _l1,
    "l2": _l2,
    "charbonnier": _charbonnier,
    "ssim": _ssim,
    "ms_ssim": _ms_ssim,
}
"""What may be asked for as `loss.reconstruction`: of two batches [N, C, H, W] a number."""
