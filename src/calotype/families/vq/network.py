"""VQModel and MoVQ: autoencoders whose latents are entries of a codebook. One file, to be read from top to bottom.

The network is that of CompVis/latent-diffusion (ldm/models/autoencoder.py, VQModelInterface), and of MoVQ (Zheng et
al. 2022, arXiv:2209.09002; ai-forever/Kandinsky-2), whose decoder's norms follow the latents. Attribute names are the
keys of their checkpoints. Tensors are NCHW; pixels have P = `config.picture_channels` channels in [-1, 1]; latents are
raw: as the encoder gives them, and quantised when they are decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.families.network import Network
from calotype.families.vq import steps
from calotype.families.vq.config import ActivationName, VqConfig
from calotype.posterior import Point
from calotype.steps import Direction, Program

ACTIVATIONS: dict[ActivationName, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "mish": F.mish,
}
POSITIONS = 1024  # that are held against the codebook at once


class Norm(nn.GroupNorm):
    """GroupNorm as everywhere in this network; the latents do not matter to it."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:
        return super().forward(x)


class SpatialNorm(nn.Module):
    """A GroupNorm, scaled and shifted at every position by what two 1x1 convolutions make of the latent there."""

    def __init__(self, channels: int, groups: int, latent_channels: int) -> None:
        super().__init__()
        self.norm_layer = Norm(channels, groups)
        self.conv_y = nn.Conv2d(latent_channels, channels, 1)
        self.conv_b = nn.Conv2d(latent_channels, channels, 1)

    def forward(self, x: Tensor, zq: Tensor) -> Tensor:
        # a 1x1 convolution of repeated positions is a convolution repeated
        y, b = (F.interpolate(conv(zq), size=x.shape[2:], mode="nearest") for conv in (self.conv_y, self.conv_b))
        return self.norm_layer(x) * y + b


def encoder_norm(channels: int, config: VqConfig) -> nn.Module:
    """A norm of the encoder, which has no latents yet."""
    return Norm(channels, config.norm_groups)


def decoder_norm(channels: int, config: VqConfig) -> nn.Module:
    """A norm of the decoder."""
    if config.spatial_norm:
        return SpatialNorm(channels, config.decoder_groups, config.embed_dim)
    return Norm(channels, config.norm_groups)


MakeNorm = Callable[[int, VqConfig], nn.Module]


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); the shortcut is a 1x1 convolution where channels differ."""

    def __init__(self, in_channels: int, out_channels: int, config: VqConfig, norm: MakeNorm) -> None:
        super().__init__()
        self.activation = config.activation
        self.norm1 = norm(in_channels, config)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels, config)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:
        activation = ACTIVATIONS[self.activation]
        h = self.conv1(activation(self.norm1(x, zq)))
        h = self.conv2(activation(self.norm2(h, zq)))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(x)
        return x + h


class AttnBlock(nn.Module):
    """Self-attention over all positions with a single head, as a residual."""

    def __init__(self, channels: int, config: VqConfig, norm: MakeNorm) -> None:
        super().__init__()
        self.norm = norm(channels, config)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:
        h = self.norm(x, zq)
        # [N, C, H, W] -> [N, one head, positions, C]
        q, k, v = (conv(h).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(x.shape))


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

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x, zq)
            if len(self.attn) > 0:
                x = self.attn[i](x, zq)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class Mid(nn.Module):
    """The middle, at the lowest resolution: block, attention, block."""

    def __init__(self, channels: int, config: VqConfig, norm: MakeNorm) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, config, norm)
        if config.mid_attention:
            self.attn_1 = AttnBlock(channels, config, norm)
        self.block_2 = ResnetBlock(channels, channels, config, norm)

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:
        x = self.block_1(x, zq)
        if hasattr(self, "attn_1"):
            x = self.attn_1(x, zq)
        return self.block_2(x, zq)


class Encoder(nn.Module):
    """Pixels [N, P, H, W] -> [N, inner, H / f, W / f]."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        channels, norm = config.channels, encoder_norm
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)

        # downsampling; there is none after the last level
        self.down = nn.ModuleList()
        for i, (before, after) in enumerate(pairwise((channels[0], *channels))):
            widths = [before] + [after] * config.num_res_blocks
            self.down.append(
                Level(
                    [ResnetBlock(a, b, config, norm) for a, b in pairwise(widths)],
                    [AttnBlock(after, config, norm) for _ in widths[1:] if i in config.attn_levels],
                    Downsample(after) if i < len(channels) - 1 else None,
                )
            )

        # middle
        self.mid = Mid(channels[-1], config, norm)

        # end
        self.norm_out = norm(channels[-1], config)
        self.conv_out = nn.Conv2d(channels[-1], config.inner, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """[N, inner, h, w] and the latents [N, embed_dim, h, w] -> pixels [N, P, h * f, w * f]."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        channels, norm = config.channels, decoder_norm
        self.conv_in = nn.Conv2d(config.inner, channels[-1], 3, padding=1)

        # middle
        self.mid = Mid(channels[-1], config, norm)

        # upsampling; stored so that up[0] is full resolution, as in the checkpoints
        self.up = nn.ModuleList()
        for i, (after, before) in enumerate(pairwise((*channels, channels[-1]))):
            widths = [before] + [after] * (config.num_res_blocks + 1)
            self.up.append(
                Level(
                    [ResnetBlock(a, b, config, norm) for a, b in pairwise(widths)],
                    [AttnBlock(after, config, norm) for _ in widths[1:] if i in config.attn_levels],
                    Upsample(after) if i > 0 else None,
                )
            )

        # end
        self.norm_out = norm(channels[0], config)
        self.conv_out = nn.Conv2d(channels[0], config.in_channels, 3, padding=1)

    def forward(self, h: Tensor, zq: Tensor) -> Tensor:
        h = self.mid(self.conv_in(h), zq)
        for level in reversed(self.up):
            h = level(h, zq)
        return self.conv_out(F.silu(self.norm_out(h, zq)))


class Codebook(nn.Module):
    """Latents [N, embed_dim, h, w] -> at every position the entry that is nearest, by Euclidean distance."""

    def __init__(self, entries: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(entries, channels)

    def forward(self, z: Tensor) -> Tensor:
        # in float64, so that what stands beside a position does not decide between entries equally near
        positions, entries = z.detach().permute(0, 2, 3, 1).flatten(0, 2), self.embedding.weight.detach()
        kind = torch.float32 if z.device.type == "mps" else torch.float64  # which has no other
        entries = entries.to(kind)
        parts = [positions[i : i + POSITIONS].to(kind) for i in range(0, len(positions), POSITIONS)]
        nearest = torch.cat([_distances(part, entries).argmin(1) for part in parts])
        zq = self.embedding(nearest).view(z.shape[0], *z.shape[2:], z.shape[1]).permute(0, 3, 1, 2)
        return z + (zq - z).detach()  # the gradient goes past the choice (van den Oord et al. 2017, arXiv:1711.00937)


def _distances(positions: Tensor, entries: Tensor) -> Tensor:
    return torch.cdist(positions, entries, compute_mode="donot_use_mm_for_euclid_dist")


class VQModel(Network):
    """Encoder, codebook, decoder, and the 1x1 convolutions between them and the latents."""

    config: VqConfig
    encoder: Encoder
    decoder: Decoder
    blocks = (ResnetBlock, AttnBlock)
    sides = {"quant_conv": "encoder", "quantize": "decoder", "post_quant_conv": "decoder"}  # noqa: RUF012
    unused = ("quantize",)

    def __init__(self, config: VqConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.inner, config.embed_dim, 1)
        self.quantize = Codebook(config.n_embed, config.embed_dim)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.inner, 1)
        self.decoder = Decoder(config)

    def encode(self, pixels: Tensor) -> Point:
        """Pixels [N, P, H, W] in [-1, 1], H and W multiples of f -> raw latents, not quantised."""
        return Point(self.quant_conv(self.encoder(pixels)))

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents [N, embed_dim, h, w] -> pixels [N, P, h * f, w * f], about [-1, 1], not clamped.

        They are quantised first, unless `config.quantize` says that they are decoded as they are.
        """
        zq = self.quantize(latents) if self.config.quantize else latents
        return self.decoder(self.post_quant_conv(zq), zq)

    def program(self, direction: Direction) -> Program:
        """What it computes, as steps."""
        return steps.program(self.config, direction)
