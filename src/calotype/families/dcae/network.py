"""The deep-compression autoencoder (DC-AE) of SANA and others: f32, f64 or f128, without a posterior.

The network is that of mit-han-lab/efficientvit (`efficientvit/models/efficientvit/dc_ae.py`; Chen et al. 2024,
arXiv:2410.10733), in the names of its files. Norms are the root mean square over a position's channels, attention is
linear (it sees the whole picture by sums alone), and every change of resolution has a shortcut that only moves pixels
into channels or back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.families.dcae import steps
from calotype.families.dcae.config import ActivationName, DcaeConfig, NormName, Side
from calotype.families.network import Network
from calotype.posterior import Point
from calotype.steps import Direction, Program

ACTIVATIONS: dict[ActivationName, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU}


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-5) * weight + bias, over the channels of every position, in float32 at least."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        wide = wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + steps.EPS)
        weight, bias = (one[:, None, None] for one in (self.weight, self.bias))
        return wide.to(x.dtype) * weight + bias


NORMS: dict[NormName, Callable[[int], nn.Module]] = {"rms": RMSNorm, "batch": nn.BatchNorm2d}


class ConvLayer(nn.Module):
    """A convolution padded by zeros, and a norm."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        norm: NormName | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=bias)
        if norm is not None:
            self.norm = NORMS[norm](n_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.norm(x) if hasattr(self, "norm") else x


class Ops(nn.Module):
    """One after another."""

    def __init__(self, ops: Sequence[nn.Module]) -> None:
        super().__init__()
        self.op_list = nn.ModuleList(ops)

    def forward(self, x: Tensor) -> Tensor:
        for op in self.op_list:
            x = op(x)
        return x


class Residual(nn.Module):
    """main(x) + shortcut(x); main(x) alone where there is no shortcut."""

    def __init__(self, main: nn.Module, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        main = self.main(x)
        return main if self.shortcut is None else main + self.shortcut(x)


# --- blocks ---


class ResBlock(nn.Module):
    """norm(conv(activation(conv(x)))), the main part of a residual block."""

    def __init__(self, channels: int, norm: NormName, activation: ActivationName) -> None:
        super().__init__()
        self.conv1 = ConvLayer(channels, channels)
        self.activation = ACTIVATIONS[activation]()
        self.conv2 = ConvLayer(channels, channels, bias=False, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.activation(self.conv1(x)))


def exactly(device: torch.device) -> AbstractContextManager[None]:
    """Without autocast."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class LinearAttention(nn.Module):
    """Attention with relu(k) . relu(q) as weights: the whole picture enters by two sums of each head.

    Heads are groups of 3 * head_dim channels of what `qkv` makes, and of what each scale of `aggreg` gathers from it.
    """

    def __init__(self, channels: int, head_dim: int, scales: Sequence[int]) -> None:
        super().__init__()
        self.head_dim = head_dim
        wide = 3 * channels
        self.qkv = ConvLayer(channels, wide, 1, bias=False)
        self.aggreg = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(wide, wide, kernel, padding=kernel // 2, groups=wide, bias=False),
                nn.Conv2d(wide, wide, 1, groups=wide // head_dim, bias=False),
            )
            for kernel in scales
        )
        self.proj = ConvLayer(channels * (1 + len(scales)), channels, 1, bias=False, norm="rms")

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        qkv = torch.cat([qkv, *(scale(qkv) for scale in self.aggreg)], 1)
        n, _, height, width = qkv.shape
        heads = qkv if qkv.dtype == torch.float64 else qkv.float()
        q, k, v = heads.reshape(n, -1, 3, self.head_dim, height * width).unbind(2)
        q, k = q.relu(), k.relu()
        with exactly(x.device):  # sums over the whole picture
            values, total = v @ k.mT, k.sum(-1, keepdim=True).mT
            mixed = (values @ q) / (total @ q + steps.LEAST_SUM)
        return self.proj(mixed.reshape(n, -1, height, width).to(x.dtype))


class GLUConv(nn.Module):
    """A gated 3x3 depthwise convolution between two 1x1 ones that widen eightfold and narrow again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 8 * channels
        self.inverted_conv = ConvLayer(channels, wide, 1)
        self.depth_conv = ConvLayer(wide, wide, groups=wide)
        self.point_conv = ConvLayer(wide // 2, channels, 1, bias=False, norm="rms")

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.depth_conv(F.silu(self.inverted_conv(x))).chunk(2, 1)
        return self.point_conv(value * F.silu(gate))


class AttnBlock(nn.Module):
    """Linear attention for what is far, a gated convolution for what is near (EfficientViT's block)."""

    def __init__(self, channels: int, head_dim: int, scales: Sequence[int]) -> None:
        super().__init__()
        self.context_module = Residual(LinearAttention(channels, head_dim, scales), nn.Identity())
        self.local_module = Residual(GLUConv(channels), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.local_module(self.context_module(x))


def blocks(config: DcaeConfig, side: Side, level: int) -> list[nn.Module]:
    """The blocks of a level."""
    channels = side.channels[level]
    if level in side.attn_levels:
        return [AttnBlock(channels, config.head_dim, side.scales[level]) for _ in range(side.blocks[level])]
    norm, activation = side.norms[level], side.activations[level]
    return [Residual(ResBlock(channels, norm, activation), nn.Identity()) for _ in range(side.blocks[level])]


# --- resolutions ---


class Averaged(nn.Module):
    """Blocks of pixels into channels, of which those that follow one another are averaged to so many."""

    def __init__(self, channels: int, block: int = 1) -> None:
        super().__init__()
        self.channels, self.block = channels, block

    def forward(self, x: Tensor) -> Tensor:
        return torch.unflatten(F.pixel_unshuffle(x, self.block), 1, (self.channels, -1)).mean(2)


class Repeated(nn.Module):
    """Channels, each repeated until there are enough, into blocks of pixels of so many."""

    def __init__(self, channels: int, block: int = 1) -> None:
        super().__init__()
        self.channels, self.block = channels, block

    def forward(self, x: Tensor) -> Tensor:
        times = self.channels * self.block**2 // x.shape[1]
        return F.pixel_shuffle(x.repeat_interleave(times, 1), self.block)


class Unshuffling(nn.Module):
    """Half the sides: a convolution, and blocks of 2x2 pixels into channels."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = ConvLayer(n_in, n_out // 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.conv(x), 2)


class Shuffling(nn.Module):
    """Twice the sides: a convolution, and channels into blocks of 2x2 pixels."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = ConvLayer(n_in, 4 * n_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class Repeating(nn.Module):
    """Twice the sides: every position repeated, and a convolution."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = ConvLayer(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def down(config: DcaeConfig, n_in: int, n_out: int) -> nn.Module:
    """Half the sides."""
    return Unshuffling(n_in, n_out) if config.down == "unshuffle" else ConvLayer(n_in, n_out, stride=2)


def up(config: DcaeConfig, n_in: int, n_out: int) -> nn.Module:
    """Twice the sides."""
    return Shuffling(n_in, n_out) if config.up == "shuffle" else Repeating(n_in, n_out)


# --- the whole ---


class Encoder(nn.Module):
    """Pixels [N, P, H, W] -> latents [N, z_channels, H / f, W / f]."""

    def __init__(self, config: DcaeConfig) -> None:
        super().__init__()
        side, pixels = config.of("encoder"), config.picture_channels
        first, last = side.channels[side.outer], side.channels[-1]
        self.project_in = ConvLayer(pixels, first) if side.outer == 0 else down(config, pixels, first)
        stages = [blocks(config, side, level) for level in range(config.levels)]
        for level in range(side.outer, config.levels - 1):
            here, next_ = side.channels[level : level + 2]
            stages[level].append(Residual(down(config, here, next_), Averaged(next_, 2)))
        self.stages = nn.ModuleList(map(Ops, stages))
        shortcut = Averaged(config.z_channels) if config.encoder_shortcut else None
        self.project_out = Residual(Ops([ConvLayer(last, config.z_channels)]), shortcut)

    def forward(self, x: Tensor) -> Tensor:
        h = self.project_in(x)
        for stage in self.stages:
            h = stage(h)
        return self.project_out(h)


class Decoder(nn.Module):
    """Latents [N, z_channels, h, w] -> pixels [N, P, h * f, w * f]."""

    def __init__(self, config: DcaeConfig) -> None:
        super().__init__()
        side, pixels = config.of("decoder"), config.picture_channels
        first, last = side.channels[-1], side.channels[side.outer]
        shortcut = Repeated(first) if config.decoder_shortcut else None
        self.project_in = Residual(ConvLayer(config.z_channels, first), shortcut)
        stages = [blocks(config, side, level) for level in range(config.levels)]
        for level in range(side.outer, config.levels - 1):
            here, before = side.channels[level : level + 2]
            stages[level].insert(0, Residual(up(config, before, here), Repeated(here, 2)))
        self.stages = nn.ModuleList(map(Ops, stages))
        out = ConvLayer(last, pixels) if side.outer == 0 else up(config, last, pixels)
        self.project_out = Ops([RMSNorm(last), ACTIVATIONS[config.out_activation](), out])

    def forward(self, z: Tensor) -> Tensor:
        h = self.project_in(z)
        for stage in reversed(self.stages):
            h = stage(h)
        return self.project_out(h)


class DcAutoencoder(Network):
    """Encoder and decoder of one DC-AE."""

    config: DcaeConfig
    blocks = (Residual,)

    def __init__(self, config: DcaeConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, pixels: Tensor) -> Point:
        """Pixels [N, P, H, W] in [-1, 1], H and W multiples of f -> raw latents, as a posterior without variance."""
        return Point(self.encoder(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents [N, z_channels, h, w] -> pixels [N, P, h * f, w * f], about [-1, 1], not clamped."""
        return self.decoder(latents)

    def program(self, direction: Direction) -> Program:
        """What it computes, as steps."""
        return steps.program(self.config, direction)
