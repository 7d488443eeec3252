"""What a DC-AE computes. No torch."""

from __future__ import annotations

from calotype.families.dcae.config import DcaeConfig, Side
from calotype.steps import BatchNorm, Builder, Direction, Map, PixelNorm, Program

EPS = 1e-5  # of every norm
LEAST_SUM = 1e-15  # added to attention's sums of weights


def program(config: DcaeConfig, direction: Direction) -> Program:
    """The steps of one direction."""
    build = Builder(direction)
    _encoder(build, config) if direction == "encode" else _decoder(build, config)
    return build.program()


def _norm(weights: str) -> PixelNorm:
    return PixelNorm(weights=weights, eps=EPS, bias=True)


def _res_block(build: Builder, x: Map, prefix: str, side: Side, level: int) -> Map:
    h = build.conv(x, x.channels, f"{prefix}.main.conv1.conv")
    conv, norm, activation = f"{prefix}.main.conv2.conv", f"{prefix}.main.conv2.norm", side.activations[level]
    if side.norms[level] == "batch":
        batch = BatchNorm(weights=norm, eps=EPS)
        return build.conv(h, x.channels, conv, bias=False, activation=activation, batch=batch, residual=x)
    return build.normed(build.conv(h, x.channels, conv, bias=False, activation=activation), _norm(norm), x)


def _attn_block(build: Builder, x: Map, prefix: str, config: DcaeConfig, kernels: tuple[int, ...]) -> Map:
    context, local = f"{prefix}.context_module.main", f"{prefix}.local_module.main"
    h = build.conv(x, 3 * x.channels, f"{context}.qkv.conv", 1, bias=False)
    h = build.linear_attention(h, f"{context}.heads", config.head_dim, LEAST_SUM, f"{context}.aggreg", kernels)
    h = build.conv(h, x.channels, f"{context}.proj.conv", 1, bias=False)
    x = build.normed(h, _norm(f"{context}.proj.norm"), x)
    h = build.conv(x, 8 * x.channels, f"{local}.inverted_conv.conv", 1)
    h = build.gated(h, f"{local}.depth_conv.conv")
    h = build.conv(h, x.channels, f"{local}.point_conv.conv", 1, bias=False)
    return build.normed(h, _norm(f"{local}.point_conv.norm"), x)


def _blocks(build: Builder, x: Map, stage: str, first: int, config: DcaeConfig, side: Side, level: int) -> Map:
    """The blocks of a level; `first` is the number of the first of them."""
    for i in range(first, first + side.blocks[level]):
        prefix = f"{stage}.op_list.{i}"
        if level in side.attn_levels:
            x = _attn_block(build, x, prefix, config, tuple(side.scales[level]))
        else:
            x = _res_block(build, x, prefix, side, level)
    return x


def _down(build: Builder, x: Map, channels: int, prefix: str, config: DcaeConfig) -> Map:
    """Half the sides."""
    if config.down == "conv":
        return build.conv(x, channels, f"{prefix}.conv", resample="down")
    return build.fold(build.conv(x, channels // 4, f"{prefix}.conv.conv"), f"{prefix}.unshuffled", 2)


def _up(build: Builder, x: Map, channels: int, prefix: str, config: DcaeConfig) -> Map:
    """Twice the sides."""
    if config.up == "nearest":
        return build.conv(x, channels, f"{prefix}.conv.conv", resample="up")
    return build.fold(build.conv(x, 4 * channels, f"{prefix}.conv.conv"), f"{prefix}.shuffled", -2)


def _encoder(build: Builder, config: DcaeConfig) -> None:
    side, pixels = config.of("encoder"), Map("pixels", config.picture_channels, 1)
    first = side.channels[side.outer]
    if side.outer == 0:
        x = build.conv(pixels, first, "encoder.project_in.conv")
    else:
        x = _down(build, pixels, first, "encoder.project_in", config)
    for level in range(side.outer, config.levels):
        stage = f"encoder.stages.{level}"
        x = _blocks(build, x, stage, 0, config, side, level)
        if level < config.levels - 1:
            prefix, channels = f"{stage}.op_list.{side.blocks[level]}", side.channels[level + 1]
            main = _down(build, x, channels, f"{prefix}.main", config)
            x = build.fold(x, prefix, 2, channels, residual=main)
    main = build.conv(x, config.z_channels, "encoder.project_out.main.op_list.0.conv")
    if config.encoder_shortcut:
        build.fold(x, "encoder.project_out", 1, config.z_channels, residual=main)


def _decoder(build: Builder, config: DcaeConfig) -> None:
    side, latents = config.of("decoder"), Map("latents", config.z_channels, config.factor)
    x = build.conv(latents, side.channels[-1], "decoder.project_in.main.conv")
    if config.decoder_shortcut:
        x = build.fold(latents, "decoder.project_in", -1, side.channels[-1], residual=x)
    for level in reversed(range(side.outer, config.levels)):
        stage = f"decoder.stages.{level}"
        first = 0
        if level < config.levels - 1:
            first, prefix, channels = 1, f"{stage}.op_list.0", side.channels[level]
            main = _up(build, x, channels, f"{prefix}.main", config)
            x = build.fold(x, prefix, -2, channels, residual=main)
        x = _blocks(build, x, stage, first, config, side, level)
    out, norm = "decoder.project_out.op_list.2", _norm("decoder.project_out.op_list.0")
    if side.outer == 0:
        build.conv(x, config.picture_channels, f"{out}.conv", norm=norm, activation=config.out_activation)
    elif config.up == "nearest":
        # activation and norm are of positions, so that they may come before these are repeated
        build.conv(
            x, config.picture_channels, f"{out}.conv.conv", norm=norm, activation=config.out_activation, resample="up"
        )
    else:
        wide = 4 * config.picture_channels
        x = build.conv(x, wide, f"{out}.conv.conv", norm=norm, activation=config.out_activation)
        build.fold(x, "pixels", -2)
