"""Networks of `configs.py`: what came before the KL autoencoder, for seeing what each of its ideas adds."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from calotype.families import make_network
from calotype.families.network import Network
from calotype.posterior import DiagonalGaussian, Point, Posterior
from calotype.train.configs import ConvConfig, DenseConfig, Trainable


class DenseAutoencoder(nn.Module):
    """Every pixel to every number of the latents, and back: [N, 3, side, side] <-> [N, z_channels, 1, 1]."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        self.config = config
        pixels = 3 * config.side**2
        moments = config.z_channels * (2 if config.variational else 1)
        self.encoder = _layers((pixels, *config.hidden, moments))
        self.decoder = _layers((config.z_channels, *reversed(config.hidden), pixels))

    def encode(self, pixels: Tensor) -> Posterior:
        """Pixels in [-1, 1] -> the posterior over latents."""
        moments = self.encoder(pixels.flatten(1))[:, :, None, None]
        return DiagonalGaussian(moments) if self.config.variational else Point(moments)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pixels, not clamped."""
        side = self.config.side
        pixels: Tensor = self.decoder(latents.flatten(1))
        return pixels.view(-1, 3, side, side)


def _layers(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear maps with SiLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.SiLU(), nn.Linear(before, after)]
    return nn.Sequential(*layers[1:])


class Pair(nn.Module):
    """Two convolutions, conv(silu(conv(silu(x)))), added to x if `residual`."""

    def __init__(self, channels: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv2(F.silu(self.conv1(F.silu(x))))
        return x + h if self.residual else h


class ConvAutoencoder(nn.Module):
    """Convolutions only: pixels [N, 3, H, W] <-> latents [N, z_channels, H / f, W / f]."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        self.config = config
        channels, levels = config.channels, len(config.channels)
        moments = config.z_channels * (2 if config.variational else 1)

        def pairs(n: int) -> list[nn.Module]:
            return [Pair(n, config.residual) for _ in range(config.num_blocks)]

        encoder: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, padding=1)]
        for i, n in enumerate(channels):
            encoder += pairs(n)
            if i < levels - 1:
                encoder.append(nn.Conv2d(n, channels[i + 1], 3, stride=2, padding=1))
        self.encoder = nn.Sequential(*encoder, nn.SiLU(), nn.Conv2d(channels[-1], moments, 3, padding=1))
        decoder: list[nn.Module] = [nn.Conv2d(config.z_channels, channels[-1], 3, padding=1)]
        for i in reversed(range(levels)):
            decoder += pairs(channels[i])
            if i > 0:
                decoder += [nn.Upsample(scale_factor=2.0), nn.Conv2d(channels[i], channels[i - 1], 3, padding=1)]
        self.decoder = nn.Sequential(*decoder, nn.SiLU(), nn.Conv2d(channels[0], 3, 3, padding=1))

    def encode(self, pixels: Tensor) -> Posterior:
        """Pixels in [-1, 1], sides multiples of f -> the posterior over latents."""
        moments = self.encoder(pixels)
        return DiagonalGaussian(moments) if self.config.variational else Point(moments)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pixels, not clamped."""
        pixels: Tensor = self.decoder(latents)
        return pixels


Autoencoder = Network | DenseAutoencoder | ConvAutoencoder


def make_autoencoder(config: Trainable) -> Autoencoder:
    """A network of this configuration, freshly initialised."""
    if isinstance(config, DenseConfig):
        return DenseAutoencoder(config)
    return ConvAutoencoder(config) if isinstance(config, ConvConfig) else make_network(config)
