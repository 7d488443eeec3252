"""The loss of an AutoencoderKL. Each function gives one number a picture, [N]: reductions are stated, never implied."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from calotype.posterior import DiagonalGaussian


def l1(x: Tensor, y: Tensor) -> Tensor:
    """sum over C, H, W of |x - y|: [N]."""
    return (x - y).abs().flatten(1).sum(1)


def l2(x: Tensor, y: Tensor) -> Tensor:
    """sum over C, H, W of (x - y)^2: [N]."""
    return (x - y).square().flatten(1).sum(1)


RECONSTRUCTION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1, "l2": l2}


def autoencoder_loss(
    x: Tensor, reconstruction: Tensor, posterior: DiagonalGaussian, *, kind: str, kl_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """(rec + kl_weight * KL) / (C*H*W), mean over the batch, and its parts for the log.

    Both terms are sums over a picture, as in latent-diffusion (ldm/modules/losses/contperceptual.py), so `kl_weight`
    means what it means there (1e-6 for kl-f8). The division makes the loss's size independent of the crop's; it is
    the same as a mean reconstruction loss with kl_weight / (C*H*W) on the summed KL.
    """
    values = x[0].numel()
    rec = RECONSTRUCTION[kind](reconstruction.float(), x).mean() / values
    kl = posterior.kl().mean() / values
    return rec + kl_weight * kl, {"rec": rec.detach(), "kl": kl.detach()}
