"""Variations: latents drawn around a picture's own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from calotype.engine.executor import Progress
from calotype.errors import LatentsError, UsageError
from calotype.latents import Latents
from calotype.pixels import PictureRows, for_channels, pad_rows, planes
from calotype.posterior import DiagonalGaussian, Point
from calotype.vae import VAE, picture_generator

Noise = Literal["posterior", "latents"]  # whose std is the unit: the posterior's, or that of a channel over the picture


@dataclass(frozen=True, kw_only=True, eq=False)
class Variations:
    """A picture's latents and what is drawn around them.

    Attributes:
        mode: the latents that temperature 0 gives.
        std: what noise is multiplied by at temperature 1, raw, [C, h, w] or [C, 1, 1].
        seeds: one for each variation.
        temperature: from 0 up.
        relative_std: root mean square of `std` as part of that of the latents' own std by channel; None where they are
            constant.
    """

    mode: Latents
    std: Tensor
    seeds: tuple[int, ...]
    temperature: float
    relative_std: float | None
    _generators: tuple[torch.Generator, ...]

    def __len__(self) -> int:
        return len(self.seeds)

    def __iter__(self) -> Iterator[Latents]:
        """Raw latents mean + temperature * std * eps, eps ~ N(0, I), one seed after another."""
        for generator in self._generators:
            # eps as a posterior draws it, from one with mean 0 and std 1; the generator is copied, to begin anew
            unit = DiagonalGaussian(torch.zeros(1, 2 * len(self.mode.tensor), *self.mode.tensor.shape[1:]))
            eps = unit.sample([generator.clone_state()])[0]
            yield replace(self.mode, tensor=self.mode.tensor + self.temperature * self.std * eps)


def vary(
    vae: VAE,
    source: PictureRows | Latents,
    seeds: Sequence[int],
    *,
    temperature: float = 1.0,
    noise: Noise = "posterior",
    memory: int | str | None = None,
    progress: Progress | None = None,
) -> Variations:
    """Variations of a picture.

    At temperature 1 with the posterior's noise, a variation is what `VAE.encode_image` gives with its seed, bit by bit.
    A variation depends on the picture and its own seed only.

    Args:
        source: a picture; or latents, around which only the noise "latents" can be drawn.
        seeds: one for each variation.
        temperature: of the noise; 0 gives the mode.
        noise: "posterior" multiplies it by the posterior's std (of each latent). "latents" multiplies it by the std
            that each channel has over the picture's own latents: the same for every VAE, also one without a posterior.
        memory, progress: as for `VAE.encode`.

    Raises:
        UsageError: if there is no posterior to draw from, the temperature is no number from 0 up, or the VAE's pictures
            are neither grey, RGB nor RGBA.
        LatentsError: if the latents are of another space; see `VAE.adopt`.
        LatentFormatError, MemoryLimitError: as `VAE.encode_image`.
    """
    if not 0.0 <= temperature < math.inf:
        raise UsageError(f"A temperature is a number from 0 up, not {temperature:g}.")
    if noise not in ("posterior", "latents"):
        raise UsageError(f'Noise is in units of the "posterior" or of the "latents", not {noise!r}.')
    instead = 'give --noise latents (noise="latents"), whose unit is the std of each channel of the latents.'
    if isinstance(source, Latents):
        if noise == "posterior":
            raise LatentsError(f"Latents on disk are one draw and hold no posterior; give the picture, or {instead}")
        mode = vae.adopt(source)
        return _around(mode, _own(mode.tensor), seeds, temperature, [picture_generator(s, mode.tensor) for s in seeds])
    format_ = vae.latent_format
    whole = for_channels(source, vae.picture_channels)
    rows, padding = pad_rows(whole, *source.size, vae.factor * format_.patch)
    size = padding.height + padding.bottom, padding.width + padding.right
    posterior = vae.encode_rows(rows, *size, memory=memory, progress=progress)
    if noise == "posterior" and isinstance(posterior, Point):
        raise UsageError(f"{vae.name or 'This VAE'} gives latents without a variance, so nothing can vary; {instead}")
    alpha = source.alpha if vae.picture_channels < 4 else None
    mode = Latents(
        tensor=posterior.mode()[0].cpu(), space="raw", format=format_, vae=vae.sha256, vae_name=vae.name,
        padding=padding, alpha=None if alpha is None else alpha.float() / 255.0,
    )  # fmt: skip
    std = posterior.std[0].cpu() if noise == "posterior" else _own(mode.tensor)
    generators = [picture_generator(seed, planes(rows, *size)) for seed in seeds]
    return _around(mode, std, seeds, temperature, generators)


def _own(latents: Tensor) -> Tensor:
    """Std of each channel over positions, [C, 1, 1]."""
    return latents.std((1, 2), correction=0, keepdim=True)


def _around(
    mode: Latents, std: Tensor, seeds: Sequence[int], temperature: float, generators: Sequence[torch.Generator]
) -> Variations:
    whole = _own(mode.tensor).double().square().mean().sqrt().item()
    return Variations(
        mode=mode,
        std=std,
        seeds=tuple(seeds),
        temperature=temperature,
        relative_std=std.double().square().mean().sqrt().item() / whole if whole else None,
        _generators=tuple(generators),
    )
