"""The autoencoders of Wan 2.1 and 2.2, Qwen-Image and Qwen-Image 2.1, for one picture.

They are causal video autoencoders (Wan-Video/Wan2.2, wan/modules/vae2_1.py and vae2_2.py). Before the first frame
stand zeros, so that of every kernel only the last slice in time acts on it, and convolutions over time alone are left
out: for one picture the network is the one below, without a third dimension. Tensors are NCHW; pixels have
P = `config.picture_channels` channels in [-1, 1]; latents are raw.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.families.network import Network
from calotype.families.wan import steps
from calotype.families.wan.config import WanConfig
from calotype.posterior import DiagonalGaussian
from calotype.steps import Direction, Program


class PixelNorm(nn.Module):
    """Every position's channels, divided by their length and multiplied by sqrt(C) and a weight a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1, eps=1e-12) * x.shape[1] ** 0.5 * self.weight[:, None, None]


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); the shortcut is a 1x1 convolution where channels differ."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = PixelNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = PixelNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(x)
        return x + h


class AttnBlock(nn.Module):
    """Self-attention over all positions with a single head, as a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = PixelNorm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        # [N, 3 C, H, W] -> three of [N, one head, positions, C]
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(n, c, height, width))


class Downsample(nn.Module):
    """Halves height and width. Pads on the right and at the bottom only: the latents keep their place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def averaged(x: Tensor, channels: int, block: int, frames: int) -> Tensor:
    """Blocks of pixels into channels, of which those that follow one another are averaged to one (AvgDown3D).

    Of two frames that become one the picture is the last, and the one before it is zeros.
    """
    n, c, height, width = x.shape
    values = F.pixel_unshuffle(x, block).reshape(n, c, 1, block**2, height // block, width // block)
    values = F.pad(values, (0, 0, 0, 0, 0, 0, frames - 1, 0))
    return values.reshape(n, channels, -1, height // block, width // block).mean(dim=2)


def repeated(x: Tensor, channels: int, frames: int) -> Tensor:
    """Channels into blocks of 2x2 pixels, each so often as is needed (DupUp3D); of two frames the last."""
    n, c, height, width = x.shape
    values = x.repeat_interleave(channels * frames * 4 // c, dim=1)
    last = values.reshape(n, channels, frames, 4, height, width)[:, :, -1]
    return F.pixel_shuffle(last.reshape(n, channels * 4, height, width), 2)


class Down(nn.Module):
    """A level of the encoder: residual blocks, attention after each where the config says so, then half the size."""

    def __init__(self, channels: tuple[int, int], config: WanConfig, level: int) -> None:
        super().__init__()
        before, self.channels = channels
        last = level == len(config.dim_mult) - 1
        widths = [before] + [self.channels] * config.num_res_blocks
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in pairwise(widths))
        attn = config.num_res_blocks if level in config.attn_levels else 0
        self.attn = nn.ModuleList(AttnBlock(self.channels) for _ in range(attn))
        if not last:
            self.downsample = Downsample(self.channels)
        self.residual, self.frames = config.residual, 1 if last or not config.residual else config.frames[level]

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i, block in enumerate(self.block):
            h = block(h)
            if len(self.attn) > 0:
                h = self.attn[i](h)
        halves = hasattr(self, "downsample")
        if halves:
            h = self.downsample(h)
        return h + averaged(x, self.channels, 2 if halves else 1, self.frames) if self.residual else h


class Up(nn.Module):
    """A level of the decoder: residual blocks, then twice the size; `level` 0 is the smallest."""

    def __init__(self, channels: tuple[int, int], config: WanConfig, level: int) -> None:
        super().__init__()
        before, self.channels = channels
        last = level == len(config.dim_mult) - 1
        widths = [before] + [self.channels] * (config.num_res_blocks + 1)
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in pairwise(widths))
        if not last:
            self.upsample = Upsample(self.channels, self.channels if config.residual else self.channels // 2)
        self.frames = 0 if last or not config.residual else config.frames[-1 - level]

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for block in self.block:
            h = block(h)
        if hasattr(self, "upsample"):
            h = self.upsample(h)
        return h + repeated(x, self.channels, self.frames) if self.frames else h


class Mid(nn.Module):
    """The middle, at the lowest resolution: block, attention, block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pixels [N, P, H, W] -> [N, 2 * z_channels, H / f, W / f]."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        channels = config.channels
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.in_channels * config.patch**2, config.base_dim, 3, padding=1)
        pairs = pairwise((config.base_dim, *channels))
        self.down = nn.ModuleList(Down(pair, config, i) for i, pair in enumerate(pairs))
        self.mid = Mid(channels[-1])
        self.norm_out = PixelNorm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(F.pixel_unshuffle(x, self.patch))
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latents [N, z_channels, h, w] -> pixels [N, P, h * f, w * f], or `enlarges` times as large."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        channels = config.decoder_channels[::-1]
        self.block = config.patch * config.enlarges
        self.conv_in = nn.Conv2d(config.z_channels, channels[0], 3, padding=1)
        self.mid = Mid(channels[0])
        # from the smallest on, as they are computed; without shortcuts each halves the channels with its last step
        before = (channels[0], *(c if config.residual else c // 2 for c in channels[:-1]))
        self.up = nn.ModuleList(Up(pair, config, i) for i, pair in enumerate(zip(before, channels, strict=True)))
        self.norm_out = PixelNorm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], config.in_channels * self.block**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in self.up:
            h = level(h)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.block)


class WanAutoencoder(Network):
    """Encoder, decoder and the 1x1 convolutions between them and the latents."""

    config: WanConfig
    encoder: Encoder
    decoder: Decoder
    blocks = (ResnetBlock, AttnBlock)
    sides = {"quant_conv": "encoder", "post_quant_conv": "decoder"}  # noqa: RUF012

    def __init__(self, config: WanConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)

    def encode(self, pixels: Tensor) -> DiagonalGaussian:
        """Pixels [N, P, H, W] in [-1, 1], H and W multiples of f -> the posterior over raw latents."""
        return DiagonalGaussian(self.quant_conv(self.encoder(pixels)))

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents [N, z_channels, h, w] -> pixels [N, P, h * f, w * f], about [-1, 1], not clamped.

        They are `config.enlarges` times as large where that is above 1.
        """
        return self.decoder(self.post_quant_conv(latents))

    def program(self, direction: Direction) -> Program:
        """What it computes, as steps."""
        return steps.program(self.config, direction)
