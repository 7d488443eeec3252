"""The TAESD family: small autoencoders for the latents of large ones (taesd, taesdxl, taesd3, taef1, taef2).

The network is that of madebyollin/taesd (taesd.py). Its own pixels are [0, 1]; here they are [-1, 1] as everywhere,
with P = `config.picture_channels` channels.
Its latents are the *model* latents of the VAE it was distilled from. Keys are those of the published files behind
``encoder.`` and ``decoder.``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calotype.families.network import Network
from calotype.families.tiny import steps
from calotype.families.tiny.config import TinyConfig
from calotype.posterior import Point
from calotype.steps import Direction, Program

CHANNELS = 64


def conv(n_in: int, n_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution, padded by one on every side (also where it halves)."""
    return nn.Conv2d(n_in, n_out, 3, padding=1, stride=stride, bias=bias)


class Clamp(nn.Module):
    """Softly limits latents to [-3, 3]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """relu(x + three convolutions); with `pool`, a group-normalised 1x1 branch is added to x first (TAEF2)."""

    def __init__(self, pool: bool = False) -> None:
        super().__init__()
        c = CHANNELS
        self.conv = nn.Sequential(conv(c, c), nn.ReLU(), conv(c, c), nn.ReLU(), conv(c, c))
        if pool:
            wide = 4 * c
            self.pool = nn.Sequential(
                nn.Conv2d(c, wide, 1, bias=False), nn.GroupNorm(4, wide), nn.ReLU(), nn.Conv2d(wide, c, 1, bias=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


def encoder(config: TinyConfig) -> nn.Sequential:
    """Pixels in [0, 1] -> latents."""
    c = CHANNELS
    return nn.Sequential(
        *(conv(config.in_channels, c), Block()),
        *(conv(c, c, stride=2, bias=False), Block(), Block(), Block()),
        *(conv(c, c, stride=2, bias=False), Block(), Block(), Block()),
        *(conv(c, c, stride=2, bias=False), *(Block(config.pool) for _ in range(3))),
        conv(c, config.z_channels),
    )


def decoder(config: TinyConfig) -> nn.Sequential:
    """Latents -> pixels in [0, 1]."""
    c = CHANNELS
    return nn.Sequential(
        *(Clamp(), conv(config.z_channels, c), nn.ReLU()),
        *(*(Block(config.pool) for _ in range(3)), nn.Upsample(scale_factor=2), conv(c, c, bias=False)),
        *(Block(), Block(), Block(), nn.Upsample(scale_factor=2), conv(c, c, bias=False)),
        *(Block(), Block(), Block(), nn.Upsample(scale_factor=2), conv(c, c, bias=False)),
        *(Block(), conv(c, config.in_channels)),
    )


class TinyAutoencoder(Network):
    """Encoder and decoder of one TAESD."""

    config: TinyConfig
    blocks = (Block,)

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.encoder = encoder(config)
        self.decoder = decoder(config)

    def encode(self, pixels: Tensor) -> Point:
        """Pixels [N, P, H, W] in [-1, 1], H and W multiples of 8 -> latents, as a posterior without variance."""
        return Point(self.encoder((pixels + 1) / 2))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [N, z_channels, h, w] -> pixels [N, P, 8h, 8w], about [-1, 1], not clamped."""
        return self.decoder(latents) * 2 - 1

    def program(self, direction: Direction) -> Program:
        """What it computes, as steps."""
        return steps.program(self.config, direction)
