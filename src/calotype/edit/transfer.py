"""One picture's statistics given to another, in latents."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from calotype.errors import LatentsError, UsageError
from calotype.latents import Latents, carried, same_space

LARGEST = 1e30  # strength


def adain(content: Tensor, style: Tensor) -> Tensor:
    """Content with the mean and standard deviation that each channel has in the style, over positions.

    y = std(s) * (x - mean(x)) / std(x) + mean(s) (Huang & Belongie 2017, arXiv:1703.06868, equation 8, there on
    features of VGG). A channel that is constant in the content has no contrast to scale: its mean is moved.

    Args:
        content, style: [C, h, w] and [C, h', w'].
    """
    means, stds = zip(*(_statistics(x) for x in (content, style)), strict=True)
    constant = stds[0] == 0
    scale = (stds[1] / stds[0].masked_fill(constant, 1.0)).masked_fill(constant, 1.0)
    moved: Tensor = (content.double() - means[0]) * scale + means[1]
    return moved.to(content.dtype)


def _statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    x = latents.double()
    return x.mean((1, 2), keepdim=True), x.std((1, 2), correction=0, keepdim=True)


def transfer(content: Latents, style: Latents, strength: float = 1.0) -> Latents:
    """The content's latents on the way to the style's statistics; everything else is the content's.

    Args:
        content, style: of one VAE, or of several of one space (see `latents.same_space`); sizes may differ.
        strength: 0 is the content itself, 1 has the style's statistics; more goes beyond.

    Raises:
        LatentsError: if they are of two spaces or have other channels, or the result holds NaN or infinity.
        UsageError: if the strength is no finite number.
    """
    same = content.vae == style.vae if content.vae else content.format == style.format
    if not same and not same_space(content.format, style.format):
        raise LatentsError(
            f"The content's latents are by {content.vae_name or 'an unnamed VAE'} ({content.vae[:12]}) and the style's "
            f"by {style.vae_name or 'an unnamed VAE'} ({style.vae[:12]}), and nothing tells that they are of one "
            f"space; encode both with one."
        )
    require_strength(strength)
    raw, styled = content.to_raw(), style.to_raw().tensor
    if not same:
        styled = carried(styled[None], style.format, content.format)[0]
    if len(raw.tensor) != len(styled):
        raise LatentsError(
            f"The content's latents have {len(raw.tensor)} channels and the style's {len(styled)}, so one of the two "
            f"is not of the VAE that it names; make both again."
        )
    moved = raw.tensor.lerp(adain(raw.tensor, styled), strength) if strength else raw.tensor
    if not torch.isfinite(moved).all():
        raise LatentsError(f"At a strength of {strength:g} the style leads to NaN or infinity; give a smaller one.")
    return replace(raw, tensor=moved)


def require_strength(strength: float) -> None:
    """Checks a strength.

    Raises:
        UsageError: if it is no finite number, or one that float32 has no room to multiply with.
    """
    if not abs(strength) <= LARGEST:
        raise UsageError(f"A strength must be a finite number, not {strength:g}; the largest is {LARGEST:g}.")
