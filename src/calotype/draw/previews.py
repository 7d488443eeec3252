"""What a drawing looks like on the way, without its own decoder: by factors, or by a small VAE of the same latents."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from calotype.errors import UsageError
from calotype.latents import LatentFormat, same_space
from calotype.pixels import to_channels
from calotype.previews import enlarged, find_factors, load_factors
from calotype.vae import load

FACTORS = "factors"

Previewer = Callable[[Tensor], Tensor]
"""Model latents [C, h, w] -> pixels [3, H, W], about [-1, 1], on the CPU."""


def previewer(
    by: str | os.PathLike[str],
    format_: LatentFormat,
    vae: str,
    factor: int,
    *,
    vae_name: str = "",
    device: str | torch.device | None = None,
) -> Previewer:
    """What shows model latents quickly.

    Args:
        by: "factors" for those that ship with calotype or are published for the space; a file of them, as `calotype
            probe` writes (.json); or a VAE with the same latents (a TAESD, say), as `calotype.load` takes it.
        format_, vae, vae_name: the latents' format, and sha256 and name of their VAE.
        factor: pixels along a side that a raw latent stands for; pictures by factors are enlarged to that.
        device: where a VAE runs.

    Raises:
        LatentsError: no factors are known, or those given are of other latents.
        UsageError: the VAE given decodes other latents.
        WeightsError, FetchError: as `calotype.load`.
    """
    name = os.fspath(by)
    if name == FACTORS or Path(name).suffix.lower() == ".json":
        found = find_factors(format_, vae, vae_name, None if name == FACTORS else load_factors(name))

        def by_factors(latents: Tensor) -> Tensor:
            one = latents[None].float().cpu()
            rgb = found.rgb(one[0] if found.space == "model" else format_.to_raw(one)[0])
            return enlarged(rgb, (rgb.shape[1] * factor, rgb.shape[2] * factor))

        return by_factors
    small = load(name, device=device)
    small.require("decoder")
    if small.sha256 != vae and not same_space(small.latent_format, format_):
        raise UsageError(
            f"{name} shows latents of format {small.latent_format.name!r}, and these are drawn in {format_.name!r}; "
            f"give a VAE of that, or leave it out."
        )

    def by_vae(latents: Tensor) -> Tensor:
        raw = small.latent_format.to_raw(latents[None].float())
        return to_channels(small.decode(raw)[0].cpu(), 3)

    return by_vae
