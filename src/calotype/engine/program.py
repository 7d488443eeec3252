"""What a decode or an encode computes, as a list of steps over feature maps. No torch.

A step reads one map and makes another: a convolution with everything that belongs to it (GroupNorm, activation and
resampling before, bias and residual after), attention, or a rearrangement of pixels. Attributes are in the network's
own words, and `weights` is the prefix of its keys. The executors run such a program; `autoencoder.py` is what it must
equal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from calotype.config import AutoencoderConfig, FoldedConfig, NetworkConfig, TinyConfig

Direction = Literal["encode", "decode"]
Activation = Literal["none", "silu", "relu", "gelu", "mish", "clamp"]


@dataclass(frozen=True)
class Map:
    """A feature map.

    Attributes:
        name: of the step that makes it, or "latents" or "pixels".
        channels: of every position.
        factor: pixels that a position stands for, along each side.
    """

    name: str
    channels: int
    factor: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) for a picture of height x width pixels."""
        return height // self.factor, width // self.factor

    def values(self, height: int, width: int) -> int:
        """Numbers in it."""
        rows, columns = self.size(height, width)
        return rows * columns * self.channels


@dataclass(frozen=True, kw_only=True)
class Norm:
    """GroupNorm: `weights` is its prefix."""

    weights: str
    groups: int
    eps: float


@dataclass(frozen=True, kw_only=True)
class Conv:
    """target = relu?(conv(resample(activation(norm(scale * source + shift)))) + residual).

    Attributes:
        kernel: 3, or 1.
        resample: "up" repeats every position twice along each side before; "down" is a stride of 2.
        pad: rows and columns of zeros before the first; those after the last are what the target's size needs.
        affine: scale and shift of the source, where it is not the identity.
        gain: scale and shift of the result, where it is not the identity.
    """

    source: Map
    target: Map
    weights: str
    kernel: Literal[1, 3]
    bias: bool = True
    resample: Literal["none", "up", "down"] = "none"
    pad: int = 1
    norm: Norm | None = None
    activation: Activation = "none"
    residual: Map | None = None
    relu: bool = False
    affine: tuple[float, float] | None = None
    gain: tuple[float, float] | None = None

    @property
    def changes_source(self) -> bool:
        """Whether its source's numbers are not convolved as they are."""
        return self.norm is not None or self.affine is not None or self.activation not in ("none", "clamp")

    def flops(self, height: int, width: int) -> int:
        """Of the products, computed directly; a multiplication and an addition are two."""
        rows, columns = self.target.size(height, width)
        return 2 * rows * columns * self.kernel**2 * self.source.channels * self.target.channels

    def __str__(self) -> str:
        parts = [f"GroupNorm({self.norm.groups})"] if self.norm else []
        parts += [self.activation] if self.activation != "none" else []
        parts += ["nearest x2"] if self.resample == "up" else []
        parts += [f"conv {self.kernel}x{self.kernel}" + (" /2" if self.resample == "down" else "")]
        parts += [f"+ {self.residual.name}"] if self.residual else []
        parts += ["relu"] if self.relu else []
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Attention:
    """target = source + proj_out(attention over all positions of norm(source)), with a single head."""

    source: Map
    target: Map
    weights: str
    norm: Norm

    def flops(self, height: int, width: int) -> int:
        """Of the products: four 1x1 convolutions, and the scores and sums of every pair of positions."""
        rows, columns = self.source.size(height, width)
        n, c = rows * columns, self.source.channels
        return 8 * n * c * c + 4 * n * n * c

    def __str__(self) -> str:
        return f"GroupNorm({self.norm.groups}), attention over all positions, + {self.source.name}"


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Pixels of blocks into channels (pixel unshuffle), or back where the target's factor is the smaller."""

    source: Map
    target: Map

    def flops(self, height: int, width: int) -> int:
        """None."""
        return 0

    @property
    def block(self) -> int:
        """Side of the blocks."""
        a, b = self.source.factor, self.target.factor
        return max(a, b) // min(a, b)

    def __str__(self) -> str:
        word = "unshuffle" if self.target.factor > self.source.factor else "shuffle"
        return f"pixel {word} {self.block}x{self.block}"


Step = Conv | Attention | Fold


@dataclass(frozen=True)
class Program:
    """Steps in order; the last one makes the result.

    Attributes:
        direction: "encode" (pixels -> moments, or latents where the network has no posterior) or "decode".
        source, target: the first map and the last.
    """

    direction: Direction
    steps: tuple[Step, ...]

    @property
    def source(self) -> Map:
        """What goes in."""
        return self.steps[0].source

    @property
    def target(self) -> Map:
        """What comes out."""
        return self.steps[-1].target

    def flops(self, height: int, width: int) -> int:
        """Of all products, computed directly, for one picture of height x width pixels."""
        return sum(step.flops(height, width) for step in self.steps)


def program(config: NetworkConfig, direction: Direction) -> Program:
    """The steps of one direction of any network."""
    build = _Builder(direction)
    if isinstance(config, AutoencoderConfig):
        _encoder(build, config) if direction == "encode" else _decoder(build, config)
    elif isinstance(config, FoldedConfig):
        _folded_encoder(build, config) if direction == "encode" else _folded_decoder(build, config)
    else:
        _tiny_encoder(build, config) if direction == "encode" else _tiny_decoder(build, config)
    return Program(direction, tuple(build.steps))


@dataclass
class _Builder:
    """Steps so far, each reading what the one before made."""

    direction: Direction
    steps: list[Step] = field(default_factory=list)

    def conv(self, source: Map, channels: int, weights: str, kernel: Literal[1, 3] = 3, **more: object) -> Map:
        resample = more.get("resample", "none")
        factor = source.factor * 2 if resample == "down" else source.factor // 2 if resample == "up" else source.factor
        more.setdefault("pad", kernel // 2)
        target = Map(weights, channels, factor)
        self.steps.append(Conv(source=source, target=target, weights=weights, kernel=kernel, **more))  # type: ignore[arg-type]
        return target

    def fold(self, source: Map, name: str, block: int) -> Map:
        """Blocks into channels, or back where `block` is negative."""
        inwards = block > 0
        n = abs(block)
        target = Map(name, source.channels * n * n if inwards else source.channels // (n * n),
                     source.factor * n if inwards else source.factor // n)  # fmt: skip
        self.steps.append(Fold(source=source, target=target))
        return target

    def resnet(self, x: Map, channels: int, prefix: str, config: AutoencoderConfig) -> Map:
        """ResnetBlock: the shortcut before the second convolution, so that x is needed no longer."""
        norms = [Norm(weights=f"{prefix}.norm{i}", groups=config.norm_groups, eps=1e-6) for i in (1, 2)]
        activation = config.activation
        h = self.conv(x, channels, f"{prefix}.conv1", norm=norms[0], activation=activation)
        shortcut = x if x.channels == channels else self.conv(x, channels, f"{prefix}.nin_shortcut", 1)
        return self.conv(h, channels, f"{prefix}.conv2", norm=norms[1], activation=activation, residual=shortcut)

    def attention(self, x: Map, prefix: str, groups: int) -> Map:
        target = Map(prefix, x.channels, x.factor)
        norm = Norm(weights=f"{prefix}.norm", groups=groups, eps=1e-6)
        self.steps.append(Attention(source=x, target=target, weights=prefix, norm=norm))
        return target

    def mid(self, x: Map, prefix: str, config: AutoencoderConfig) -> Map:
        x = self.resnet(x, x.channels, f"{prefix}.block_1", config)
        if config.mid_attention:
            x = self.attention(x, f"{prefix}.attn_1", config.norm_groups)
        return self.resnet(x, x.channels, f"{prefix}.block_2", config)

    def out(self, x: Map, channels: int, prefix: str, groups: int) -> Map:
        norm = Norm(weights=f"{prefix}.norm_out", groups=groups, eps=1e-6)
        return self.conv(x, channels, f"{prefix}.conv_out", norm=norm, activation="silu")


def _encoder(build: _Builder, config: AutoencoderConfig) -> None:
    channels, groups = config.channels, config.norm_groups
    x = build.conv(Map("pixels", config.picture_channels, 1), channels[0], "encoder.conv_in")
    for i, after in enumerate(channels):
        for j in range(config.num_res_blocks):
            x = build.resnet(x, after, f"encoder.down.{i}.block.{j}", config)
            if i in config.attn_levels:
                x = build.attention(x, f"encoder.down.{i}.attn.{j}", groups)
        if i < len(channels) - 1:
            x = build.conv(x, after, f"encoder.down.{i}.downsample.conv", resample="down", pad=0)
    x = build.mid(x, "encoder.mid", config)
    x = build.out(x, 2 * config.z_channels, "encoder", groups)
    if config.quant_conv:
        build.conv(x, 2 * config.z_channels, "quant_conv", 1)


def _decoder(build: _Builder, config: AutoencoderConfig) -> None:
    channels, groups = config.decoder_channels, config.norm_groups
    x = Map("latents", config.z_channels, config.factor)
    if config.decoder_quant_conv:
        x = build.conv(x, config.z_channels, "post_quant_conv", 1)
    x = build.conv(x, channels[-1], "decoder.conv_in")
    x = build.mid(x, "decoder.mid", config)
    for i, after in reversed(list(enumerate(channels))):
        for j in range(config.num_res_blocks + 1):
            x = build.resnet(x, after, f"decoder.up.{i}.block.{j}", config)
            if i in config.attn_levels:
                x = build.attention(x, f"decoder.up.{i}.attn.{j}", groups)
        if i > 0:
            x = build.conv(x, after, f"decoder.up.{i}.upsample.conv", resample="up")
    build.out(x, config.picture_channels, "decoder", groups)


def _folded_blocks(build: _Builder, x: Map, prefix: str, n: int) -> Map:
    for i in range(n):
        h = build.conv(x, x.channels, f"{prefix}.{i}.conv1", activation="silu")
        x = build.conv(h, x.channels, f"{prefix}.{i}.conv2", activation="silu", residual=x)
    return x


def _folded_encoder(build: _Builder, config: FoldedConfig) -> None:
    wide, deep = config.ch
    x = build.conv(build.fold(Map("pixels", config.picture_channels, 1), "folded", 4), wide, "encoder.conv_in")
    x = _folded_blocks(build, x, "encoder.quarter", config.encoder_blocks[0])
    x = build.conv(build.fold(x, "encoder.quarter", 2), deep, "encoder.down", 1)  # a 2x2 convolution of stride 2
    x = _folded_blocks(build, x, "encoder.eighth", config.encoder_blocks[1])
    build.conv(x, 2 * config.z_channels, "encoder.conv_out", 1)


def _folded_decoder(build: _Builder, config: FoldedConfig) -> None:
    wide, deep = config.ch
    x = build.conv(Map("latents", config.z_channels, 8), deep, "decoder.conv_in")
    x = _folded_blocks(build, x, "decoder.eighth", config.decoder_blocks[1])
    x = build.fold(build.conv(x, 4 * wide, "decoder.up", 1), "decoder.eighth", -2)
    x = _folded_blocks(build, x, "decoder.quarter", config.decoder_blocks[0])
    build.fold(build.conv(x, 16 * config.picture_channels, "decoder.conv_out"), "pixels", -4)


_TINY = 64  # channels of every map of a TAESD


def _tiny_block(build: _Builder, x: Map, prefix: str, pool: bool) -> Map:
    if pool:
        norm = Norm(weights=f"{prefix}.pool.1", groups=4, eps=1e-5)
        wide = build.conv(x, 4 * _TINY, f"{prefix}.pool.0", 1, bias=False)
        x = build.conv(wide, _TINY, f"{prefix}.pool.3", 1, bias=False, norm=norm, activation="relu", residual=x)
    h = build.conv(x, _TINY, f"{prefix}.conv.0")
    h = build.conv(h, _TINY, f"{prefix}.conv.2", activation="relu")
    return build.conv(h, _TINY, f"{prefix}.conv.4", activation="relu", residual=x, relu=True)


def _tiny_encoder(build: _Builder, config: TinyConfig) -> None:
    x = build.conv(Map("pixels", config.picture_channels, 1), _TINY, "encoder.0", affine=(0.5, 0.5))
    x = _tiny_block(build, x, "encoder.1", False)
    at = 2
    for level in range(3):
        x = build.conv(x, _TINY, f"encoder.{at}", bias=False, resample="down")
        for i in range(at + 1, at + 4):
            x = _tiny_block(build, x, f"encoder.{i}", config.pool and level == 2)
        at += 4
    build.conv(x, config.z_channels, f"encoder.{at}")


def _tiny_decoder(build: _Builder, config: TinyConfig) -> None:
    x = build.conv(Map("latents", config.z_channels, 8), _TINY, "decoder.1", activation="clamp", relu=True)
    at = 3
    for level in range(3):
        for i in range(at, at + 3):
            x = _tiny_block(build, x, f"decoder.{i}", config.pool and level == 0)
        x = build.conv(x, _TINY, f"decoder.{at + 4}", bias=False, resample="up")
        at += 5
    x = _tiny_block(build, x, f"decoder.{at}", False)
    build.conv(x, config.picture_channels, f"decoder.{at + 1}", gain=(2.0, -1.0))
