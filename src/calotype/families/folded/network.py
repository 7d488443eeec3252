"""The built-in network: a small norm-free autoencoder that works on folded pixels.

4x4 pixels are folded into channels first (pixel unshuffle), so every convolution runs at a quarter or an eighth of the
resolution. There are no norms and no attention: what is computed depends on a bounded neighbourhood only, whatever the
size of the picture. In the built-in configuration a latent sees 9 latents' worth of pixels to each side, and a decoded
pixel 16 latents. f8, with a diagonal Gaussian posterior.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.families.folded import steps
from calotype.families.folded.config import FoldedConfig
from calotype.families.network import Network
from calotype.posterior import DiagonalGaussian
from calotype.steps import Direction, Program

FOLD = 4  # pixels folded into channels, along each side


class Block(nn.Module):
    """x + conv(silu(conv(silu(x)))), both 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():  # begin near the identity: without norms, depth would blow up otherwise
            self.conv2.weight.mul_(0.1)
            self.conv2.get_parameter("bias").zero_()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def blocks(channels: int, n: int) -> nn.Sequential:
    """n residual blocks."""
    return nn.Sequential(*(Block(channels) for _ in range(n)))


class Encoder(nn.Module):
    """Pixels [N, 3, H, W] -> moments [N, 2 * z_channels, H / 8, W / 8]."""

    def __init__(self, config: FoldedConfig) -> None:
        super().__init__()
        wide, deep = config.ch
        self.conv_in = nn.Conv2d(config.picture_channels * FOLD**2, wide, 3, padding=1)
        self.quarter = blocks(wide, config.encoder_blocks[0])
        self.down = nn.Conv2d(wide, deep, 2, stride=2)
        self.eighth = blocks(deep, config.encoder_blocks[1])
        self.conv_out = nn.Conv2d(deep, 2 * config.z_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.quarter(self.conv_in(F.pixel_unshuffle(x, FOLD)))
        return self.conv_out(self.eighth(self.down(h)))


class Decoder(nn.Module):
    """Latents [N, z_channels, h, w] -> pixels [N, 3, 8h, 8w]."""

    def __init__(self, config: FoldedConfig) -> None:
        super().__init__()
        wide, deep = config.ch
        self.conv_in = nn.Conv2d(config.z_channels, deep, 3, padding=1)
        self.eighth = blocks(deep, config.decoder_blocks[1])
        self.up = nn.Conv2d(deep, 4 * wide, 1)
        self.quarter = blocks(wide, config.decoder_blocks[0])
        self.conv_out = nn.Conv2d(wide, config.picture_channels * FOLD**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = F.pixel_shuffle(self.up(self.eighth(self.conv_in(z))), 2)
        return F.pixel_shuffle(self.conv_out(self.quarter(h)), FOLD)


class FoldedAutoencoder(Network):
    """Encoder and decoder of the built-in VAE."""

    config: FoldedConfig
    blocks = (Block,)

    def __init__(self, config: FoldedConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, pixels: Tensor) -> DiagonalGaussian:
        """Pixels [N, 3, H, W] in [-1, 1], H and W multiples of 8 -> the posterior over raw latents."""
        return DiagonalGaussian(self.encoder(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents [N, z_channels, h, w] -> pixels [N, 3, 8h, 8w], about [-1, 1], not clamped."""
        return self.decoder(latents)

    def program(self, direction: Direction) -> Program:
        """What it computes, as steps."""
        return steps.program(self.config, direction)
