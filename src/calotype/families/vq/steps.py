"""What a VQModel computes. No torch."""

from __future__ import annotations

from calotype.families.vq.config import ActivationName, VqConfig
from calotype.steps import Builder, Direction, Map, Norm, Program


def program(config: VqConfig, direction: Direction) -> Program:
    """The steps of one direction."""
    build = Builder(direction)
    _encoder(build, config) if direction == "encode" else _decoder(build, config)
    return build.program()


class _Side:
    """Blocks of one side, whose norms follow the latents where there is a guide."""

    def __init__(self, build: Builder, config: VqConfig, guide: Map | None = None) -> None:
        self.build, self.activation, self.guide = build, config.activation, guide
        self.groups = config.norm_groups if guide is None else config.decoder_groups

    def _norm(self, prefix: str) -> Norm:
        return Norm(weights=prefix if self.guide is None else f"{prefix}.norm_layer", groups=self.groups, eps=1e-6)

    def conv(
        self, x: Map, channels: int, weights: str, norm: str, activation: ActivationName, residual: Map | None = None
    ) -> Map:
        """A convolution of 3x3, after a norm and an activation."""
        if self.guide is None:
            return self.build.conv(
                x, channels, weights, norm=self._norm(norm), activation=activation, residual=residual
            )
        x = self.build.spatial_norm(x, self.guide, norm, self._norm(norm), activation)
        return self.build.conv(x, channels, weights, residual=residual)

    def resnet(self, x: Map, channels: int, prefix: str) -> Map:
        """ResnetBlock: the shortcut before the second convolution, so that x is needed no longer."""
        h = self.conv(x, channels, f"{prefix}.conv1", f"{prefix}.norm1", self.activation)
        shortcut = x if x.channels == channels else self.build.conv(x, channels, f"{prefix}.nin_shortcut", 1)
        return self.conv(h, channels, f"{prefix}.conv2", f"{prefix}.norm2", self.activation, residual=shortcut)

    def attention(self, x: Map, prefix: str) -> Map:
        """Attention, as a residual: of x, and not of what the norm makes of it."""
        if self.guide is None:
            return self.build.attention(x, prefix, self._norm(f"{prefix}.norm"))
        h = self.build.spatial_norm(x, self.guide, f"{prefix}.norm", self._norm(f"{prefix}.norm"))
        h = self.build.attention(h, prefix, None, adds=False)
        return self.build.fold(h, f"{prefix}.sum", 1, residual=x)

    def mid(self, x: Map, prefix: str, attention: bool) -> Map:
        """The middle, at the lowest resolution."""
        x = self.resnet(x, x.channels, f"{prefix}.block_1")
        if attention:
            x = self.attention(x, f"{prefix}.attn_1")
        return self.resnet(x, x.channels, f"{prefix}.block_2")


def _encoder(build: Builder, config: VqConfig) -> None:
    channels, side = config.channels, _Side(build, config)
    x = build.conv(Map("pixels", config.picture_channels, 1), channels[0], "encoder.conv_in")
    for i, after in enumerate(channels):
        for j in range(config.num_res_blocks):
            x = side.resnet(x, after, f"encoder.down.{i}.block.{j}")
            if i in config.attn_levels:
                x = side.attention(x, f"encoder.down.{i}.attn.{j}")
        if i < len(channels) - 1:
            x = build.conv(x, after, f"encoder.down.{i}.downsample.conv", resample="down", pad=0)
    x = side.mid(x, "encoder.mid", config.mid_attention)
    x = side.conv(x, config.inner, "encoder.conv_out", "encoder.norm_out", "silu")
    build.conv(x, config.embed_dim, "quant_conv", 1)


def _decoder(build: Builder, config: VqConfig) -> None:
    channels = config.channels
    z = Map("latents", config.embed_dim, config.factor)
    if config.quantize:
        z = build.quantized(z, "quantize", "quantize.embedding.weight", config.n_embed)
    side = _Side(build, config, z if config.spatial_norm else None)
    x = build.conv(z, config.inner, "post_quant_conv", 1)
    x = build.conv(x, channels[-1], "decoder.conv_in")
    x = side.mid(x, "decoder.mid", config.mid_attention)
    for i, after in reversed(list(enumerate(channels))):
        for j in range(config.num_res_blocks + 1):
            x = side.resnet(x, after, f"decoder.up.{i}.block.{j}")
            if i in config.attn_levels:
                x = side.attention(x, f"decoder.up.{i}.attn.{j}")
        if i > 0:
            x = build.conv(x, after, f"decoder.up.{i}.upsample.conv", resample="up")
    side.conv(x, config.picture_channels, "decoder.conv_out", "decoder.norm_out", "silu")
