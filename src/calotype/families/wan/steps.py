"""What an autoencoder of Wan's kind computes for one picture. No torch."""

from __future__ import annotations

from calotype.families.wan.config import WanConfig
from calotype.steps import Builder, Direction, Map, PixelNorm, Program


def program(config: WanConfig, direction: Direction) -> Program:
    """The steps of one direction."""
    build = Builder(direction)
    _encoder(build, config) if direction == "encode" else _decoder(build, config)
    return build.program()


def _norm(weights: str) -> PixelNorm:
    return PixelNorm(weights=weights, least=1e-12)


def _resnet(build: Builder, x: Map, channels: int, prefix: str) -> Map:
    """ResnetBlock: the shortcut before the second convolution, so that x is needed no longer."""
    h = build.conv(x, channels, f"{prefix}.conv1", norm=_norm(f"{prefix}.norm1"), activation="silu")
    shortcut = x if x.channels == channels else build.conv(x, channels, f"{prefix}.nin_shortcut", 1)
    norm = _norm(f"{prefix}.norm2")
    return build.conv(h, channels, f"{prefix}.conv2", norm=norm, activation="silu", residual=shortcut)


def _attention(build: Builder, x: Map, prefix: str) -> Map:
    return build.attention(x, prefix, _norm(f"{prefix}.norm"), fused=True)


def _mid(build: Builder, x: Map, prefix: str) -> Map:
    x = _resnet(build, x, x.channels, f"{prefix}.block_1")
    x = _attention(build, x, f"{prefix}.attn_1")
    return _resnet(build, x, x.channels, f"{prefix}.block_2")


def _out(build: Builder, x: Map, channels: int, prefix: str) -> Map:
    return build.conv(x, channels, f"{prefix}.conv_out", norm=_norm(f"{prefix}.norm_out"), activation="silu")


def _encoder(build: Builder, config: WanConfig) -> None:
    channels = config.channels
    x = Map("pixels", config.picture_channels, 1)
    if config.patch > 1:
        x = build.fold(x, "encoder.patches", config.patch)
    x = build.conv(x, config.base_dim, "encoder.conv_in")
    for i, after in enumerate(channels):
        first, last = x, i == len(channels) - 1
        for j in range(config.num_res_blocks):
            x = _resnet(build, x, after, f"encoder.down.{i}.block.{j}")
            if i in config.attn_levels:
                x = _attention(build, x, f"encoder.down.{i}.attn.{j}")
        if not last:
            x = build.conv(x, after, f"encoder.down.{i}.downsample.conv", resample="down", pad=0)
        if config.residual:
            block, frames = (1, 1) if last else (2, config.frames[i])
            x = build.fold(first, f"encoder.down.{i}", block, after, frames=frames, residual=x)
    x = _mid(build, x, "encoder.mid")
    x = _out(build, x, 2 * config.z_channels, "encoder")
    build.conv(x, 2 * config.z_channels, "quant_conv", 1)


def _decoder(build: Builder, config: WanConfig) -> None:
    channels = config.decoder_channels[::-1]
    x = Map("latents", config.z_channels, config.factor * config.enlarges)
    x = build.conv(x, config.z_channels, "post_quant_conv", 1)
    x = _mid(build, build.conv(x, channels[0], "decoder.conv_in"), "decoder.mid")
    for i, after in enumerate(channels):
        first = x
        for j in range(config.num_res_blocks + 1):
            x = _resnet(build, x, after, f"decoder.up.{i}.block.{j}")
        if i == len(channels) - 1:
            break
        wide = after if config.residual else after // 2
        x = build.conv(x, wide, f"decoder.up.{i}.upsample.conv", resample="up")
        if config.residual:
            x = build.fold(first, f"decoder.up.{i}", -2, after, frames=config.frames[-1 - i], residual=x)
    block = config.patch * config.enlarges
    x = _out(build, x, config.picture_channels * block**2, "decoder")
    if block > 1:
        build.fold(x, "decoder.picture", -block)
