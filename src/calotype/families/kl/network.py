"""AutoencoderKL, the VAE of Stable Diffusion: one file, to be read from top to bottom.

The network is that of CompVis/latent-diffusion (ldm/modules/diffusionmodules/model.py), and attribute names are
the keys of its checkpoints. Tensors are NCHW; pixels have P = `config.picture_channels` channels in [-1, 1]; latents
are raw (nothing is scaled here).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from calotype.families.kl import steps
from calotype.families.kl.config import ActivationName, AutoencoderConfig
from calotype.families.network import Network
from calotype.posterior import DiagonalGaussian
from calotype.steps import Direction, Program

ACTIVATIONS: dict[ActivationName, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "mish": F.mish,
}


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm as everywhere in this network: eps 1e-6."""
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); the shortcut is a 1x1 convolution where channels differ.

    A few networks have another activation than silu here.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int, activation: ActivationName = "silu") -> None:
        super().__init__()
        self.activation = activation
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        activation = ACTIVATIONS[self.activation]
        h = self.conv1(activation(self.norm1(x)))
        h = self.conv2(activation(self.norm2(h)))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(x)
        return x + h


class AttnBlock(nn.Module):
    """Self-attention over all positions with a single head, as a residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        h = self.norm(x)
        # [N, C, H, W] -> [N, one head, positions, C]
        q, k, v = (conv(h).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(n, c, height, width))


class Downsample(nn.Module):
    """Halves height and width. Pads on the right and at the bottom only: the latents keep their place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One resolution: residual blocks, attention after each where the config says so, then a change of size."""

    def __init__(
        self, blocks: list[ResnetBlock], attn: list[AttnBlock], resample: Downsample | Upsample | None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(attn)
        if isinstance(resample, Downsample):
            self.downsample = resample
        elif isinstance(resample, Upsample):
            self.upsample = resample

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn) > 0:
                x = self.attn[i](x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class Mid(nn.Module):
    """The middle, at the lowest resolution: block, attention, block."""

    def __init__(self, channels: int, config: AutoencoderConfig) -> None:
        super().__init__()
        groups, activation = config.norm_groups, config.activation
        self.block_1 = ResnetBlock(channels, channels, groups, activation)
        if config.mid_attention:
            self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        if hasattr(self, "attn_1"):
            x = self.attn_1(x)
        return self.block_2(x)


class Encoder(nn.Module):
    """Pixels [N, P, H, W] -> [N, 2 * z_channels, H / f, W / f]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels, groups = config.channels, config.norm_groups
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)

        # downsampling; there is none after the last level
        self.down = nn.ModuleList()
        for i, (before, after) in enumerate(pairwise((channels[0], *channels))):
            widths = [before] + [after] * config.num_res_blocks
            self.down.append(
                Level(
                    [ResnetBlock(a, b, groups, config.activation) for a, b in pairwise(widths)],
                    [AttnBlock(after, groups) for _ in widths[1:] if i in config.attn_levels],
                    Downsample(after) if i < len(channels) - 1 else None,
                )
            )

        # middle
        self.mid = Mid(channels[-1], config)

        # end
        self.norm_out = group_norm(channels[-1], groups)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class ConditionEncoder(nn.Module):
    """A picture -> its maps at each of the decoder's sizes.

    That of Designing a Better Asymmetric VQGAN for StableDiffusion (arXiv 2306.04632), as diffusers'
    MaskConditionEncoder has it: two convolutions at the picture's size, then three that halve it.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        pairs = list(pairwise((config.in_channels, *config.condition_channels)))
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) if i < 2 else nn.Conv2d(a, b, 4, stride=2, padding=1)
            for i, (a, b) in enumerate(pairs)
        )

    def forward(self, x: Tensor) -> dict[tuple[int, int], Tensor]:
        """Pixels [N, P, H, W] -> maps by (channels, height)."""
        found = {}
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else F.relu(x))
            found[x.shape[1], x.shape[2]] = x  # of two with as many channels the second counts
        return found


def blended(x: Tensor, maps: Mapping[tuple[int, int], Tensor], mask: Tensor | None) -> Tensor:
    """A map where the mask, at its size, is 1, and that of the same size among `maps` where it is 0."""
    if mask is None or not maps:
        return x
    part = F.interpolate(mask, size=x.shape[2:], mode="nearest")
    return x * part + maps[x.shape[1], x.shape[2]] * (1 - part)


class Decoder(nn.Module):
    """Latents [N, z_channels, h, w] -> pixels [N, P, h * f, w * f]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels, groups = config.decoder_channels, config.norm_groups
        self.conv_in = nn.Conv2d(config.z_channels, channels[-1], 3, padding=1)

        # middle
        self.mid = Mid(channels[-1], config)

        # upsampling; stored so that up[0] is full resolution, as in the checkpoints
        self.up = nn.ModuleList()
        for i, (after, before) in enumerate(pairwise((*channels, channels[-1]))):
            widths = [before] + [after] * (config.decoder_blocks + 1)
            self.up.append(
                Level(
                    [ResnetBlock(a, b, groups, config.activation) for a, b in pairwise(widths)],
                    [AttnBlock(after, groups) for _ in widths[1:] if i in config.attn_levels],
                    Upsample(after) if i > 0 else None,
                )
            )

        if config.condition:
            self.condition_encoder = ConditionEncoder(config)

        # end
        self.norm_out = group_norm(channels[0], groups)
        self.conv_out = nn.Conv2d(channels[0], config.in_channels, 3, padding=1)

    def forward(self, z: Tensor, picture: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """With a picture [N, P, H, W] and a mask [N, 1, H, W], every map is the picture's where the mask is 0."""
        maps = {} if picture is None or mask is None else self.condition_encoder((1 - mask) * picture)
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(blended(h, maps, mask))
        return self.conv_out(F.silu(self.norm_out(blended(h, maps, mask))))


class AutoencoderKL(Network):
    """Encoder, decoder and the optional 1x1 convolutions between them and the latents."""

    config: AutoencoderConfig
    encoder: Encoder
    decoder: Decoder
    blocks = (ResnetBlock, AttnBlock)
    sides = {"quant_conv": "encoder", "post_quant_conv": "decoder"}  # noqa: RUF012
    unused = ("decoder.condition_encoder",)

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.quant_conv:
            self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        if config.decoder_quant_conv:
            self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)

    def encode(self, pixels: Tensor) -> DiagonalGaussian:
        """Pixels [N, P, H, W] in [-1, 1], H and W multiples of f -> the posterior over raw latents."""
        moments = self.encoder(pixels)
        return DiagonalGaussian(self.quant_conv(moments) if self.config.quant_conv else moments)

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents [N, z_channels, h, w] -> pixels [N, P, h * f, w * f], about [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(latents) if self.config.decoder_quant_conv else latents)

    def decode_masked(self, latents: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
        """As `Network.decode_masked`."""
        if not self.config.condition:
            return super().decode_masked(latents, pixels, mask)
        latents = self.post_quant_conv(latents) if self.config.decoder_quant_conv else latents
        return self.decoder(latents, pixels, mask)

    def program(self, direction: Direction) -> Program:
        """What it computes, as steps."""
        return steps.program(self.config, direction)
