"""What the built-in network computes. No torch."""

from __future__ import annotations

from calotype.families.folded.config import FoldedConfig
from calotype.steps import Builder, Direction, Map, Program


def program(config: FoldedConfig, direction: Direction) -> Program:
    """The steps of one direction."""
    build = Builder(direction)
    _encoder(build, config) if direction == "encode" else _decoder(build, config)
    return build.program()


def _blocks(build: Builder, x: Map, prefix: str, n: int) -> Map:
    for i in range(n):
        h = build.conv(x, x.channels, f"{prefix}.{i}.conv1", activation="silu")
        x = build.conv(h, x.channels, f"{prefix}.{i}.conv2", activation="silu", residual=x)
    return x


def _encoder(build: Builder, config: FoldedConfig) -> None:
    wide, deep = config.ch
    x = build.conv(build.fold(Map("pixels", config.picture_channels, 1), "folded", 4), wide, "encoder.conv_in")
    x = _blocks(build, x, "encoder.quarter", config.encoder_blocks[0])
    x = build.conv(build.fold(x, "encoder.quarter", 2), deep, "encoder.down", 1)  # a 2x2 convolution of stride 2
    x = _blocks(build, x, "encoder.eighth", config.encoder_blocks[1])
    build.conv(x, 2 * config.z_channels, "encoder.conv_out", 1)


def _decoder(build: Builder, config: FoldedConfig) -> None:
    wide, deep = config.ch
    x = build.conv(Map("latents", config.z_channels, 8), deep, "decoder.conv_in")
    x = _blocks(build, x, "decoder.eighth", config.decoder_blocks[1])
    x = build.fold(build.conv(x, 4 * wide, "decoder.up", 1), "decoder.eighth", -2)
    x = _blocks(build, x, "decoder.quarter", config.decoder_blocks[0])
    build.fold(build.conv(x, 16 * config.picture_channels, "decoder.conv_out"), "pixels", -4)
