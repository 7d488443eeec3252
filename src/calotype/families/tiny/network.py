"""The TAESD family: small autoencoders for the latents of large ones.

They are taesd, taesdxl, taesd3, taef1, taef2, taeqi2_1 (Qwen-Image 2.1: f16, RGBA) and taesana (SANA: f32).

The network is that of madebyollin/taesd (taesd.py). Its own pixels are [0, 1]; here they are [-1, 1] as everywhere,
with P = `config.picture_channels` channels.
Its latents are the *model* latents of the VAE it was distilled from. Keys are those of the published files behind
``encoder.`` and ``decoder.``.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from calotype.families.network import Network
from calotype.families.tiny import steps
from calotype.families.tiny.config import STEM, TinyConfig
from calotype.posterior import Point
from calotype.steps import Direction, Program


def conv(n_in: int, n_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution, padded by one on every side (also where it halves)."""
    return nn.Conv2d(n_in, n_out, 3, padding=1, stride=stride, bias=bias)


class Clamp(nn.Module):
    """Softly limits latents to [-3, 3]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """relu(x + three convolutions); with `pool`, a group-normalised 1x1 branch is added to x first (TAEF2)."""

    def __init__(self, channels: int, pool: bool = False) -> None:
        super().__init__()
        c, wide = channels, 4 * channels
        self.conv = nn.Sequential(conv(c, c), nn.ReLU(), conv(c, c), nn.ReLU(), conv(c, c))
        if pool:
            self.pool = nn.Sequential(
                nn.Conv2d(c, wide, 1, bias=False), nn.GroupNorm(4, wide), nn.ReLU(), nn.Conv2d(wide, c, 1, bias=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


def stem(config: TinyConfig) -> list[nn.Module]:
    """What comes before the encoder's first block."""
    p, c = config.in_channels, config.channels[0]
    if config.variant == "f16":
        return [nn.PixelUnshuffle(2), conv(4 * p, c), nn.ReLU()]
    if config.variant == "f32":
        return [conv(p, STEM, stride=2), nn.ReLU(), conv(STEM, c, stride=2), nn.ReLU()]
    return [conv(p, c)]


def encoder(config: TinyConfig) -> nn.Sequential:
    """Pixels in [0, 1] -> latents."""
    widths = config.channels
    layers = [*stem(config), Block(widths[0])]
    for i, (before, after) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        layers.append(conv(before, after, stride=2, bias=False))
        layers += [Block(after, config.pool and last) for _ in range(3)]
    return nn.Sequential(*layers, conv(widths[-1], config.z_channels))


def decoder(config: TinyConfig) -> nn.Sequential:
    """Latents -> pixels in [0, 1]."""
    widths = config.decoder_channels
    layers = [Clamp(), conv(config.z_channels, widths[0]), nn.ReLU()]
    for i, (before, after) in enumerate(pairwise(widths)):
        layers += [Block(before, config.pool and i == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), conv(before, after, bias=False)]
    layers += [Block(widths[-1]), conv(widths[-1], config.in_channels * config.patch**2)]
    if config.patch > 1:
        layers.append(nn.PixelShuffle(config.patch))
    return nn.Sequential(*layers)


class TinyAutoencoder(Network):
    """Encoder and decoder of one TAESD."""

    config: TinyConfig
    blocks = (Block,)

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.encoder = encoder(config)
        self.decoder = decoder(config)

    def encode(self, pixels: Tensor) -> Point:
        """Pixels [N, P, H, W] in [-1, 1], H and W multiples of f -> latents, as a posterior without variance."""
        return Point(self.encoder((pixels + 1) / 2))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [N, z_channels, h, w] -> pixels [N, P, h * f, w * f], about [-1, 1], not clamped."""
        return self.decoder(latents) * 2 - 1

    def program(self, direction: Direction) -> Program:
        """What it computes, as steps."""
        return steps.program(self.config, direction)
