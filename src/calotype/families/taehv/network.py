"""TAEHV, for one picture: small autoencoders for the latents of Wan 2.1 and 2.2, and so of Qwen-Image.

The network is that of madebyollin/taehv (taehv.py), and LightTAE's. It is of videos: its blocks see the frame before
theirs, which is zeros before the first, and frames become one and one becomes several. A picture is encoded there as a
video that stands still for as long as one latent lasts, and decoded as the last of the frames that come of one. Here
stands what that takes, and no more: at one level of each side two frames, elsewhere one.

Its own pixels are [0, 1]; here they are [-1, 1] as everywhere. Keys are those of the published files, where what acts
on the frame before (`past`) and on each frame of several (`conv.0`, `conv.1`) is a part of one tensor.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.families.network import Network
from calotype.families.taehv import steps
from calotype.families.taehv.config import (
    CHANNELS,
    DECODER_CHANNELS,
    DECODER_FRAMES,
    ENCODER_FRAMES,
    GROWN,
    POOLS,
    TaehvConfig,
)
from calotype.posterior import Point
from calotype.steps import Direction, Program


def conv(n_in: int, n_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution, padded by one on every side (also where it halves)."""
    return nn.Conv2d(n_in, n_out, 3, padding=1, stride=stride, bias=bias)


def each(n: int, channels: int) -> nn.ModuleList:
    """A 1x1 convolution for each of n frames."""
    return nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in range(n))


class Clamp(nn.Module):
    """Softly limits latents to [-3, 3]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """relu(x + three convolutions), of which the first sees the frame before as well (MemBlock).

    Args:
        frames: that come in, or one that stands for all.
        needed: of what comes out, the last so many.
    """

    def __init__(self, channels: int, frames: int, needed: int) -> None:
        super().__init__()
        self.frames, self.needed = frames, needed
        c = channels
        self.conv = nn.Sequential(conv(c, c), nn.ReLU(), conv(c, c), nn.ReLU(), conv(c, c))
        if frames > 1:
            self.past = conv(c, c, bias=False)

    def forward(self, frames: list[Tensor]) -> list[Tensor]:
        if still := len(frames) < self.frames:
            frames = frames * self.frames
        first, *others = self.conv
        made, h = [], None
        for i in range(self.frames - self.needed, self.frames):
            if h is None or not still:
                h = first(frames[i])
            y = h + self.past(frames[i - 1]) if i else h
            for layer in others:
                y = layer(y)
            made.append(torch.relu(y + frames[i]))
        return made


class Pool(nn.Module):
    """Frames into one (TPool): the sum of a 1x1 convolution of each."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = each(stride, channels)

    def forward(self, frames: list[Tensor]) -> list[Tensor]:
        if len(frames) < len(self.conv):
            frames = frames * len(self.conv)
        first, *others = (layer(x) for layer, x in zip(self.conv, frames, strict=True))
        return [sum(others, first)]


class Grow(nn.Module):
    """One frame into several of twice the size (TGrow): a 1x1 convolution for each, then nearest neighbour.

    The published ones have them the other way round, which is the same.
    """

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.conv = each(frames, channels)

    def forward(self, frames: list[Tensor]) -> list[Tensor]:
        return [F.interpolate(layer(frames[-1]), scale_factor=2.0, mode="nearest") for layer in self.conv]


def run(layers: nn.Sequential, x: Tensor) -> Tensor:
    """What layers make of one picture, some of them of several frames at once."""
    frames = [x]
    for layer in layers:
        frames = layer(frames) if isinstance(layer, Block | Pool | Grow) else [layer(one) for one in frames]
    return frames[-1]


def encoder(config: TaehvConfig) -> nn.Sequential:
    """Pixels in [0, 1], in blocks -> latents."""
    c = CHANNELS
    layers: list[nn.Module] = [conv(3 * config.patch**2, c), nn.ReLU()]
    for stride, frames in zip(POOLS, ENCODER_FRAMES, strict=True):
        layers += [Pool(c, stride), conv(c, c, stride=2, bias=False)]
        layers += [Block(c, frames, frames) for _ in range(3)]
    return nn.Sequential(*layers, conv(c, config.z_channels))


def decoder(config: TaehvConfig) -> nn.Sequential:
    """Latents -> pixels in [0, 1], in blocks."""
    layers: list[nn.Module] = [Clamp(), conv(config.z_channels, DECODER_CHANNELS[0]), nn.ReLU()]
    for (before, after), frames, grown in zip(pairwise(DECODER_CHANNELS), DECODER_FRAMES, GROWN, strict=True):
        layers += [*(Block(before, frames, needed) for needed in (frames, frames, 1))]
        layers += [nn.Identity(), Grow(before, grown), conv(before, after, bias=False)]  # where the repetition was
    return nn.Sequential(*layers, nn.ReLU(), conv(DECODER_CHANNELS[-1], 3 * config.patch**2))


class VideoTinyAutoencoder(Network):
    """Encoder and decoder of one TAEHV."""

    config: TaehvConfig
    encoder: nn.Sequential
    decoder: nn.Sequential
    blocks = (Block,)

    def __init__(self, config: TaehvConfig) -> None:
        super().__init__(config)
        self.encoder = encoder(config)
        self.decoder = decoder(config)

    def encode(self, pixels: Tensor) -> Point:
        """Pixels [N, 3, H, W] in [-1, 1], H and W multiples of f -> latents, as a posterior without variance."""
        return Point(run(self.encoder, F.pixel_unshuffle((pixels + 1) / 2, self.config.patch)))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [N, z_channels, h, w] -> pixels [N, 3, h * f, w * f], about [-1, 1], not clamped."""
        return F.pixel_shuffle(run(self.decoder, latents), self.config.patch) * 2 - 1

    def program(self, direction: Direction) -> Program:
        """What it computes, as steps."""
        return steps.program(self.config, direction)
