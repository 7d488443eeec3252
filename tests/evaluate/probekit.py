"""VAEs so simple that every answer of a probe is known, and pictures for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from support import fill, pictures as smooth
from torch import Tensor

from calotype.errors import LatentFormatError
from calotype.evaluate.probe import Probe
from calotype.families.folded.config import FoldedConfig
from calotype.families.folded.network import FoldedAutoencoder
from calotype.latents import LatentFormat, ScaleShift
from calotype.pixels import to_uint8
from calotype.posterior import DiagonalGaussian, Point, Posterior
from calotype.weights.save import save_weights

FACTOR = 4
SIDE = 64
Map = Callable[[Tensor], Tensor]


def pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, FACTOR)


def unpool(z: Tensor) -> Tensor:
    return z.repeat_interleave(FACTOR, -1).repeat_interleave(FACTOR, -2)


def unshuffle(x: Tensor) -> Tensor:
    return F.pixel_unshuffle(x, FACTOR)


def shuffle(z: Tensor) -> Tensor:
    return F.pixel_shuffle(z, FACTOR)


class Toy:
    """Encodes and decodes as a `calotype.VAE` does, by functions of one line."""

    name = "toy"
    sha256 = "0" * 64
    factor = FACTOR

    def __init__(
        self,
        encoder: Map = pool,
        decoder: Map = unpool,
        *,
        channels: int = 3,
        logvar: float | None = None,
        latent_format: LatentFormat | None = None,
    ) -> None:
        self.encoder, self.decoder, self.latent_channels = encoder, decoder, channels
        self.logvar = logvar
        self.format = latent_format
        self.encoded = self.decoded = 0

    @property
    def latent_format(self) -> LatentFormat:
        if self.format is None:
            raise LatentFormatError("not known")
        return self.format

    def encode(self, pixels: Tensor) -> Posterior:
        self.encoded += 1
        z = self.encoder(pixels)
        if self.logvar is None:
            return Point(z)
        return DiagonalGaussian(torch.cat([z, torch.full_like(z, self.logvar)], 1))

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded += 1
        return self.decoder(latents).clamp(-1, 1)


def exact(**options: Any) -> Toy:
    """Nothing is lost: latents are the pixels, in another order."""
    return Toy(unshuffle, shuffle, channels=3 * FACTOR**2, **options)


def exact_times(gain: float) -> Toy:
    """Nothing but contrast is lost."""
    return Toy(unshuffle, lambda z: gain * shuffle(z), channels=3 * FACTOR**2)


def named(count: int, side: int = SIDE, seed: int = 0) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """Pictures whose levels are away from 0 and 255, so that nothing is clamped."""
    x = to_uint8(0.6 * smooth(seed, count, side, side))
    return [(f"{i}.png", one.permute(1, 2, 0).numpy()) for i, one in enumerate(x)]


def pixels_of(found: Probe, given: list[tuple[str, Any]]) -> Tensor:
    """[N, 3, H, W] in the probe's order, float64."""
    arrays = dict(given)
    stack = np.stack([arrays[name] for name in found.pictures])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).double() / 127.5 - 1.0


def small_vae(path: Path) -> Path:
    """A small VAE's file, of the built-in kind and with random weights."""
    module: FoldedAutoencoder = fill(
        FoldedAutoencoder(FoldedConfig(z_channels=4, ch=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1))),
        0,
        gain=0.7,
    )
    save_weights(module, path, layout="ldm", format_=ScaleShift(name="small", channels=4, scaling_factor=2.0))
    return path
