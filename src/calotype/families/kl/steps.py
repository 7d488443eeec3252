"""What an AutoencoderKL computes. No torch."""

from __future__ import annotations

from calotype.families.kl.config import AutoencoderConfig
from calotype.steps import Builder, Direction, Map, Norm, Program


def program(config: AutoencoderConfig, direction: Direction) -> Program:
    """The steps of one direction."""
    build = Builder(direction)
    _encoder(build, config) if direction == "encode" else _decoder(build, config)
    return build.program()


def _resnet(build: Builder, x: Map, channels: int, prefix: str, config: AutoencoderConfig) -> Map:
    """ResnetBlock: the shortcut before the second convolution, so that x is needed no longer."""
    norms = [Norm(weights=f"{prefix}.norm{i}", groups=config.norm_groups, eps=1e-6) for i in (1, 2)]
    activation = config.activation
    h = build.conv(x, channels, f"{prefix}.conv1", norm=norms[0], activation=activation)
    shortcut = x if x.channels == channels else build.conv(x, channels, f"{prefix}.nin_shortcut", 1)
    return build.conv(h, channels, f"{prefix}.conv2", norm=norms[1], activation=activation, residual=shortcut)


def _attention(build: Builder, x: Map, prefix: str, groups: int) -> Map:
    return build.attention(x, prefix, Norm(weights=f"{prefix}.norm", groups=groups, eps=1e-6))


def _mid(build: Builder, x: Map, prefix: str, config: AutoencoderConfig) -> Map:
    x = _resnet(build, x, x.channels, f"{prefix}.block_1", config)
    if config.mid_attention:
        x = _attention(build, x, f"{prefix}.attn_1", config.norm_groups)
    return _resnet(build, x, x.channels, f"{prefix}.block_2", config)


def _out(build: Builder, x: Map, channels: int, prefix: str, groups: int) -> Map:
    norm = Norm(weights=f"{prefix}.norm_out", groups=groups, eps=1e-6)
    return build.conv(x, channels, f"{prefix}.conv_out", norm=norm, activation="silu")


def _encoder(build: Builder, config: AutoencoderConfig) -> None:
    channels, groups = config.channels, config.norm_groups
    x = build.conv(Map("pixels", config.picture_channels, 1), channels[0], "encoder.conv_in")
    for i, after in enumerate(channels):
        for j in range(config.num_res_blocks):
            x = _resnet(build, x, after, f"encoder.down.{i}.block.{j}", config)
            if i in config.attn_levels:
                x = _attention(build, x, f"encoder.down.{i}.attn.{j}", groups)
        if i < len(channels) - 1:
            x = build.conv(x, after, f"encoder.down.{i}.downsample.conv", resample="down", pad=0)
    x = _mid(build, x, "encoder.mid", config)
    x = _out(build, x, 2 * config.z_channels, "encoder", groups)
    if config.quant_conv:
        build.conv(x, 2 * config.z_channels, "quant_conv", 1)


def _decoder(build: Builder, config: AutoencoderConfig) -> None:
    channels, groups = config.decoder_channels, config.norm_groups
    x = Map("latents", config.z_channels, config.factor)
    if config.decoder_quant_conv:
        x = build.conv(x, config.z_channels, "post_quant_conv", 1)
    x = build.conv(x, channels[-1], "decoder.conv_in")
    x = _mid(build, x, "decoder.mid", config)
    for i, after in reversed(list(enumerate(channels))):
        for j in range(config.decoder_blocks + 1):
            x = _resnet(build, x, after, f"decoder.up.{i}.block.{j}", config)
            if i in config.attn_levels:
                x = _attention(build, x, f"decoder.up.{i}.attn.{j}", groups)
        if i > 0:
            x = build.conv(x, after, f"decoder.up.{i}.upsample.conv", resample="up")
    _out(build, x, config.picture_channels, "decoder", groups)
