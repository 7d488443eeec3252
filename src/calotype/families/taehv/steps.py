"""What a TAEHV computes for one picture. No torch."""

from __future__ import annotations

from calotype.families.taehv.config import (
    CHANNELS,
    DECODER_CHANNELS,
    DECODER_FRAMES,
    ENCODER_FRAMES,
    GROWN,
    POOLS,
    TaehvConfig,
)
from calotype.steps import Builder, Direction, Map, Program


def program(config: TaehvConfig, direction: Direction) -> Program:
    """The steps of one direction."""
    build = Builder(direction)
    _encoder(build, config) if direction == "encode" else _decoder(build, config)
    return build.program()


def _block(build: Builder, frames: list[Map], prefix: str, count: int, needed: int) -> list[Map]:
    """A block of `count` frames, of which the last `needed` go on; one that comes alone stands for all."""
    if still := len(frames) < count:
        frames = frames * count
    channels = frames[0].channels
    made: list[Map] = []
    first: Map | None = None
    for i in range(count - needed, count):
        name = f" {i}" if count > 1 else ""  # the same weights for every frame
        x = frames[i]
        if first is None or not still:
            first = build.conv(x, channels, f"{prefix}.conv.0", name=f"{prefix}.conv.0{name}")
        h = first
        if i:
            h = build.conv(
                frames[i - 1], channels, f"{prefix}.past", name=f"{prefix}.past{name}", bias=False, residual=h
            )
        h = build.conv(h, channels, f"{prefix}.conv.2", name=f"{prefix}.conv.2{name}", activation="relu")
        made.append(
            build.conv(
                h, channels, f"{prefix}.conv.4", name=f"{prefix}.conv.4{name}", activation="relu", residual=x, relu=True
            )
        )
    return made


def _pool(build: Builder, frames: list[Map], prefix: str, stride: int) -> Map:
    if len(frames) < stride:
        frames = frames * stride
    made: Map | None = None
    for i, x in enumerate(frames):
        made = build.conv(x, x.channels, f"{prefix}.conv.{i}", 1, bias=False, residual=made)
    assert made is not None
    return made


def _encoder(build: Builder, config: TaehvConfig) -> None:
    x = Map("pixels", config.picture_channels, 1)
    if config.patch > 1:
        x = build.fold(x, "encoder.patches", config.patch)
    frames = [build.conv(x, CHANNELS, "encoder.0", affine=(0.5, 0.5), relu=True)]
    at = 2
    for stride, count in zip(POOLS, ENCODER_FRAMES, strict=True):
        x = _pool(build, frames, f"encoder.{at}", stride)
        frames = [build.conv(x, CHANNELS, f"encoder.{at + 1}", bias=False, resample="down")]
        for i in range(at + 2, at + 5):
            frames = _block(build, frames, f"encoder.{i}", count, count)
        at += 5
    build.conv(frames[-1], config.z_channels, f"encoder.{at}")


def _decoder(build: Builder, config: TaehvConfig) -> None:
    x = Map("latents", config.z_channels, config.factor)
    frames = [build.conv(x, DECODER_CHANNELS[0], "decoder.1", activation="clamp", relu=True)]
    at = 3
    for after, count, grown in zip(DECODER_CHANNELS[1:], DECODER_FRAMES, GROWN, strict=True):
        for i, needed in enumerate((count, count, 1)):
            frames = _block(build, frames, f"decoder.{at + i}", count, needed)
        x = frames[-1]
        small = [build.conv(x, x.channels, f"decoder.{at + 4}.conv.{i}", 1, bias=False) for i in range(grown)]
        last = f"decoder.{at + 5}"
        frames = [
            build.conv(
                one, after, last, name=f"{last} {i}" if grown > 1 else last, bias=False, resample="up", relu=at > 14
            )
            for i, one in enumerate(small)
        ]
        at += 6
    x = build.conv(frames[-1], 3 * config.patch**2, "decoder.22", gain=(2.0, -1.0))
    if config.patch > 1:
        build.fold(x, "decoder.picture", -config.patch)
