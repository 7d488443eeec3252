"""What a TAESD computes. No torch."""

from __future__ import annotations

from calotype.families.tiny.config import TinyConfig
from calotype.steps import Builder, Direction, Map, Norm, Program

CHANNELS = 64  # of every map


def program(config: TinyConfig, direction: Direction) -> Program:
    """The steps of one direction."""
    build = Builder(direction)
    _encoder(build, config) if direction == "encode" else _decoder(build, config)
    return build.program()


def _block(build: Builder, x: Map, prefix: str, pool: bool) -> Map:
    if pool:
        norm = Norm(weights=f"{prefix}.pool.1", groups=4, eps=1e-5)
        wide = build.conv(x, 4 * CHANNELS, f"{prefix}.pool.0", 1, bias=False)
        x = build.conv(wide, CHANNELS, f"{prefix}.pool.3", 1, bias=False, norm=norm, activation="relu", residual=x)
    h = build.conv(x, CHANNELS, f"{prefix}.conv.0")
    h = build.conv(h, CHANNELS, f"{prefix}.conv.2", activation="relu")
    return build.conv(h, CHANNELS, f"{prefix}.conv.4", activation="relu", residual=x, relu=True)


def _encoder(build: Builder, config: TinyConfig) -> None:
    x = build.conv(Map("pixels", config.picture_channels, 1), CHANNELS, "encoder.0", affine=(0.5, 0.5))
    x = _block(build, x, "encoder.1", False)
    at = 2
    for level in range(3):
        x = build.conv(x, CHANNELS, f"encoder.{at}", bias=False, resample="down")
        for i in range(at + 1, at + 4):
            x = _block(build, x, f"encoder.{i}", config.pool and level == 2)
        at += 4
    build.conv(x, config.z_channels, f"encoder.{at}")


def _decoder(build: Builder, config: TinyConfig) -> None:
    x = build.conv(Map("latents", config.z_channels, 8), CHANNELS, "decoder.1", activation="clamp", relu=True)
    at = 3
    for level in range(3):
        for i in range(at, at + 3):
            x = _block(build, x, f"decoder.{i}", config.pool and level == 0)
        x = build.conv(x, CHANNELS, f"decoder.{at + 4}", bias=False, resample="up")
        at += 5
    x = _block(build, x, f"decoder.{at}", False)
    build.conv(x, config.picture_channels, f"decoder.{at + 1}", gain=(2.0, -1.0))
