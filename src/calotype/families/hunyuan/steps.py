"""What the VAE of HunyuanImage 2.1 computes. No torch."""

from __future__ import annotations

from itertools import zip_longest

from calotype.families.hunyuan.config import GROUPS, HunyuanImageConfig
from calotype.steps import Builder, Direction, Map, Norm, Program


def program(config: HunyuanImageConfig, direction: Direction) -> Program:
    """The steps of one direction."""
    build = Builder(direction)
    _encoder(build, config) if direction == "encode" else _decoder(build, config)
    return build.program()


def _norm(weights: str) -> Norm:
    return Norm(weights=weights, groups=GROUPS, eps=1e-6)


def _resnet(build: Builder, x: Map, prefix: str) -> Map:
    h = build.conv(x, x.channels, f"{prefix}.conv1", norm=_norm(f"{prefix}.norm1"), activation="silu")
    return build.conv(h, x.channels, f"{prefix}.conv2", norm=_norm(f"{prefix}.norm2"), activation="silu", residual=x)


def _mid(build: Builder, x: Map, prefix: str) -> Map:
    x = _resnet(build, x, f"{prefix}.block_1")
    x = build.attention(x, f"{prefix}.attn_1", _norm(f"{prefix}.attn_1.norm"))
    return _resnet(build, x, f"{prefix}.block_2")


def _same(build: Builder, x: Map, name: str, channels: int) -> Map:
    """Channels averaged or repeated."""
    return x if x.channels == channels else build.fold(x, name, 1, channels)


def _resample(build: Builder, x: Map, channels: int, prefix: str, block: int) -> Map:
    """A folded convolution, to which the folded input is added."""
    h = build.conv(x, channels // 4 if block > 0 else channels * 4, f"{prefix}.conv")
    h = build.fold(h, f"{prefix}.folded", block, channels, outer="pixels")
    return build.fold(x, prefix, block, channels, outer="pixels", residual=h)


def _encoder(build: Builder, config: HunyuanImageConfig) -> None:
    channels = config.channels
    x = build.conv(Map("pixels", config.picture_channels, 1), channels[0], "encoder.conv_in")
    for i, (_, after) in enumerate(zip_longest(channels, channels[1:])):
        for j in range(config.num_res_blocks):
            x = _resnet(build, x, f"encoder.down.{i}.block.{j}")
        if after:
            x = _resample(build, x, after, f"encoder.down.{i}.downsample", 2)
    x = _mid(build, x, "encoder.mid")
    moments = 2 * config.z_channels
    shortcut = _same(build, x, "encoder.averaged", moments)
    norm = _norm("encoder.norm_out")
    build.conv(x, moments, "encoder.conv_out", norm=norm, activation="silu", residual=shortcut)


def _decoder(build: Builder, config: HunyuanImageConfig) -> None:
    channels = config.channels[::-1]
    z = Map("latents", config.z_channels, config.factor)
    shortcut = _same(build, z, "decoder.repeated", channels[0])
    x = build.conv(z, channels[0], "decoder.conv_in", residual=shortcut)
    x = _mid(build, x, "decoder.mid")
    for i, (_, after) in enumerate(zip_longest(channels, channels[1:])):
        for j in range(config.num_res_blocks + 1):
            x = _resnet(build, x, f"decoder.up.{i}.block.{j}")
        if after:
            x = _resample(build, x, after, f"decoder.up.{i}.upsample", -2)
    build.conv(x, config.picture_channels, "decoder.conv_out", norm=_norm("decoder.norm_out"), activation="silu")
