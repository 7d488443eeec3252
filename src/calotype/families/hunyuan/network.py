"""The VAE of HunyuanImage 2.1: one file, to be read from top to bottom.

The network is that of Tencent-Hunyuan/HunyuanImage-2.1, and attribute names are the keys of its checkpoints. Tensors
are NCHW; pixels have P = `config.picture_channels` channels in [-1, 1]; latents are raw.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from calotype.families.hunyuan import steps
from calotype.families.hunyuan.config import GROUPS, HunyuanImageConfig
from calotype.families.network import Network
from calotype.posterior import DiagonalGaussian
from calotype.steps import Direction, Program


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm as everywhere in this network."""
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


def fold(x: Tensor) -> Tensor:
    """Blocks of 2x2 pixels into channels: [N, C, 2h, 2w] -> [N, 4C, h, w], the place in the block counting slowest."""
    n, c, height, width = x.shape
    x = x.reshape(n, c, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, 4 * c, height // 2, width // 2)


def unfold(x: Tensor) -> Tensor:
    """The inverse of `fold`."""
    n, c, height, width = x.shape
    x = x.reshape(n, 2, 2, c // 4, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // 4, 2 * height, 2 * width)


def averaged(x: Tensor, channels: int) -> Tensor:
    """Channels that follow one another, averaged to so many."""
    n, _, height, width = x.shape
    return x.reshape(n, channels, -1, height, width).mean(dim=2)


def repeated(x: Tensor, channels: int) -> Tensor:
    """Each channel repeated, to so many."""
    return x.repeat_interleave(channels // x.shape[1], dim=1)


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class AttnBlock(nn.Module):
    """Self-attention over all positions with a single head, as a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # [N, C, H, W] -> [N, one head, positions, C]
        q, k, v = (conv(h).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halves height and width: a folded convolution, and as its shortcut the folded input, averaged."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv = nn.Conv2d(in_channels, out_channels // 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return fold(self.conv(x)) + averaged(fold(x), self.out_channels)


class Upsample(nn.Module):
    """Doubles height and width: an unfolded convolution, and as its shortcut the input, repeated and unfolded."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return unfold(self.conv(x)) + unfold(repeated(x, self.conv.out_channels))


class Level(nn.Module):
    """One resolution: residual blocks, then a change of size."""

    def __init__(self, channels: int, blocks: int, resample: Downsample | Upsample | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(channels) for _ in range(blocks))
        if isinstance(resample, Downsample):
            self.downsample = resample
        elif isinstance(resample, Upsample):
            self.upsample = resample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class Mid(nn.Module):
    """The middle, at the lowest resolution: block, attention, block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pixels [N, P, H, W] -> [N, 2 * z_channels, H / f, W / f]."""

    def __init__(self, config: HunyuanImageConfig) -> None:
        super().__init__()
        channels, blocks = config.channels, config.num_res_blocks
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList(Level(a, blocks, Downsample(a, b)) for a, b in pairwise(channels))
        self.down.append(Level(channels[-1], blocks, None))
        self.mid = Mid(channels[-1])
        self.norm_out = group_norm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        h = self.mid(h)
        return self.conv_out(F.silu(self.norm_out(h))) + averaged(h, self.conv_out.out_channels)


class Decoder(nn.Module):
    """Latents [N, z_channels, h, w] -> pixels [N, P, h * f, w * f]."""

    def __init__(self, config: HunyuanImageConfig) -> None:
        super().__init__()
        channels, blocks = config.channels[::-1], config.num_res_blocks + 1
        self.conv_in = nn.Conv2d(config.z_channels, channels[0], 3, padding=1)
        self.mid = Mid(channels[0])
        # in the order in which they run: up[0] is the lowest resolution, unlike latent-diffusion's
        self.up = nn.ModuleList(Level(a, blocks, Upsample(a, b)) for a, b in pairwise(channels))
        self.up.append(Level(channels[-1], blocks, None))
        self.norm_out = group_norm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], config.in_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z) + repeated(z, self.conv_in.out_channels))
        for level in self.up:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class HunyuanImageVAE(Network):
    """Encoder and decoder."""

    config: HunyuanImageConfig
    encoder: Encoder
    decoder: Decoder
    blocks = (ResnetBlock, AttnBlock)

    def __init__(self, config: HunyuanImageConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, pixels: Tensor) -> DiagonalGaussian:
        """Pixels [N, P, H, W] in [-1, 1], H and W multiples of f -> the posterior over raw latents."""
        return DiagonalGaussian(self.encoder(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents [N, z_channels, h, w] -> pixels [N, P, h * f, w * f], about [-1, 1], not clamped."""
        return self.decoder(latents)

    def program(self, direction: Direction) -> Program:
        """What it computes, as steps."""
        return steps.program(self.config, direction)
