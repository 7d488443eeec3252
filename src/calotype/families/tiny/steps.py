"""What a TAESD computes. No torch."""

from __future__ import annotations

from calotype.families.tiny.config import STEM, TinyConfig
from calotype.steps import Builder, Direction, Map, Norm, Program


def program(config: TinyConfig, direction: Direction) -> Program:
    """The steps of one direction."""
    build = Builder(direction)
    _encoder(build, config) if direction == "encode" else _decoder(build, config)
    return build.program()


def _block(build: Builder, x: Map, prefix: str, pool: bool) -> Map:
    channels = x.channels
    if pool:
        norm = Norm(weights=f"{prefix}.pool.1", groups=4, eps=1e-5)
        wide = build.conv(x, 4 * channels, f"{prefix}.pool.0", 1, bias=False)
        x = build.conv(wide, channels, f"{prefix}.pool.3", 1, bias=False, norm=norm, activation="relu", residual=x)
    h = build.conv(x, channels, f"{prefix}.conv.0")
    h = build.conv(h, channels, f"{prefix}.conv.2", activation="relu")
    return build.conv(h, channels, f"{prefix}.conv.4", activation="relu", residual=x, relu=True)


def _stem(build: Builder, config: TinyConfig) -> tuple[Map, int]:
    """What comes before the encoder's first block, and the number of layers."""
    x, c = Map("pixels", config.picture_channels, 1), config.channels[0]
    if config.variant == "f16":
        x = build.fold(x, "encoder.0", config.patch)
        return build.conv(x, c, "encoder.1", affine=(0.5, 0.5), relu=True), 3
    if config.variant == "f32":
        x = build.conv(x, STEM, "encoder.0", affine=(0.5, 0.5), resample="down", relu=True)
        return build.conv(x, c, "encoder.2", resample="down", relu=True), 4
    return build.conv(x, c, "encoder.0", affine=(0.5, 0.5)), 1


def _encoder(build: Builder, config: TinyConfig) -> None:
    x, at = _stem(build, config)
    x = _block(build, x, f"encoder.{at}", False)
    at += 1
    widths = config.channels
    for level, after in enumerate(widths[1:], 1):
        x = build.conv(x, after, f"encoder.{at}", bias=False, resample="down")
        for i in range(at + 1, at + 4):
            x = _block(build, x, f"encoder.{i}", config.pool and level == len(widths) - 1)
        at += 4
    build.conv(x, config.z_channels, f"encoder.{at}")


def _decoder(build: Builder, config: TinyConfig) -> None:
    widths = config.decoder_channels
    x = Map("latents", config.z_channels, config.factor)
    x = build.conv(x, widths[0], "decoder.1", activation="clamp", relu=True)
    at = 3
    for level, after in enumerate(widths[1:]):
        for i in range(at, at + 3):
            x = _block(build, x, f"decoder.{i}", config.pool and level == 0)
        x = build.conv(x, after, f"decoder.{at + 4}", bias=False, resample="up")
        at += 5
    x = _block(build, x, f"decoder.{at}", False)
    x = build.conv(x, config.picture_channels * config.patch**2, f"decoder.{at + 1}", gain=(2.0, -1.0))
    if config.patch > 1:
        build.fold(x, f"decoder.{at + 2}", -config.patch)
