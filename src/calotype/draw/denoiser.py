"""The denoiser: a U-Net over latents that is told the time and the text. Attribute names are the checkpoint keys.

The network is that of latent diffusion (Rombach et al. 2022, arXiv:2112.10752; openaimodel.py and attention.py of
CompVis/latent-diffusion), at any width: `SD1` is Stable Diffusion 1's, with its 859,520,964 parameters.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.errors import UsageError
from calotype.families.numbers import MOST_BLOCKS, MOST_CHANNELS, MOST_LEVELS
from calotype.texts import TextError, made, shown, whole


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """The sizes of a `Denoiser`, under the names of latent diffusion's configurations.

    Attributes:
        in_channels: channels of the latents.
        out_channels: channels of the prediction.
        model_channels: channels at full resolution.
        channel_mult: the width of each resolution, times `model_channels`; each one halves the one before.
        num_res_blocks: residual blocks of each resolution on the way down; one more on the way up.
        attention_resolutions: the downsampling factors (1, 2, 4, ...) at which blocks attend to the text.
        num_heads: heads of every attention.
        context_dim: width of the text's states.
        adm_in_channels: width of a vector added to the time's embedding, as in SDXL; none where 0.

    Raises:
        UsageError: a number can't be, or widths can't be split into so many heads.
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (4, 2, 1)
    num_heads: int = 8
    context_dim: int = 768
    adm_in_channels: int = 0

    def __post_init__(self) -> None:
        try:
            for name in ("in_channels", "out_channels", "model_channels", "num_heads", "context_dim"):
                whole(getattr(self, name), name, 1, MOST_CHANNELS)
            whole(self.adm_in_channels, "adm_in_channels", 0, MOST_CHANNELS)
            whole(self.num_res_blocks, "num_res_blocks", 1, MOST_BLOCKS)
            for name, least in (("channel_mult", 1), ("attention_resolutions", 0)):
                values = getattr(self, name)
                if not isinstance(values, tuple) or not least <= len(values) <= MOST_LEVELS:
                    raise TextError(f"{name} must be a list of whole numbers, not {shown(values)}")
                for value in values:
                    whole(value, name, 1, MOST_CHANNELS)
        except TextError as error:
            raise UsageError(f"A denoiser's {error}.") from None
        widths = [self.model_channels * mult for mult in self.channel_mult]
        if any(width % 32 or width > MOST_CHANNELS for width in widths):
            raise UsageError(
                f"GroupNorm has 32 groups, so widths must be multiples of 32 up to {MOST_CHANNELS}, not {widths}."
            )
        if any(width % self.num_heads for width in widths):
            raise UsageError(f"Widths {widths} can't be split into {self.num_heads} heads.")

    @property
    def factor(self) -> int:
        """Latents' height and width must be multiples of this."""
        return int(2 ** (len(self.channel_mult) - 1))

    def to_dict(self) -> dict[str, Any]:
        """The values by name, for a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DenoiserConfig:
        """The inverse of `to_dict`, lists taken as tuples.

        Raises:
            TextError: a key that it has not.
            UsageError: sizes that can't be.
        """
        return made(cls, values, "denoiser")


SD1 = DenoiserConfig()  # the U-Net of Stable Diffusion 1


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Cosines and sines of times, [N] -> [N, width]: wavelengths from 2 pi to 20,000 pi, geometric."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], 1)


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class _GroupNorm(nn.GroupNorm):
    """torch's, also of groups of a single number, which it refuses: the smallest pictures of the narrowest networks."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class ResBlock(nn.Module):
    """GroupNorm, SiLU, convolution; the embedding of the time is added; the same again; and the shortcut.

    Args:
        channels, out_channels: of the map that goes in, and of that which comes out; the shortcut is a 1x1 convolution
            where they differ.
        emb_channels: width of the time's embedding.
    """

    def __init__(self, channels: int, emb_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            _GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            _GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Identity(),  # where dropout stands in the original: it counts in the keys
            _zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [N, C, H, W] and emb [N, E] -> [N, C', H, W]."""
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        made: Tensor = self.skip_connection(x) + self.out_layers(h)
        return made


class CrossAttention(nn.Module):
    """Attention of positions to the text's tokens, or to one another where no text is given.

    Args:
        query_dim: width of the positions.
        context_dim: width of the text's states.
        heads: that `query_dim` is split into.
    """

    def __init__(self, query_dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(query_dim, query_dim, bias=False)
        self.to_k = nn.Linear(context_dim, query_dim, bias=False)
        self.to_v = nn.Linear(context_dim, query_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(query_dim, query_dim))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [N, P, C], context [N, L, D] and mask [N, L] as `Denoiser.forward` has them -> [N, P, C]."""
        q, k, v = (
            one.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for one in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        seen = None if mask is None else mask[:, None, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        made: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return made


class GEGLU(nn.Module):
    """x, gated by the GELU of another projection of it (Shazeer 2020, arXiv:2002.05202).

    Args:
        width: of the positions that go in.
        inner: width of those that come out.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner * 2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, P, C] -> [N, P, inner]."""
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, width * 4), nn.Identity(), nn.Linear(width * 4, width))

    def forward(self, x: Tensor) -> Tensor:
        """[N, P, C] -> the same."""
        made: Tensor = self.net(x)
        return made


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward: each on normed values and added to them.

    Args:
        width, context_dim, heads: as for `CrossAttention`.
    """

    def __init__(self, width: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(width, width, heads)
        self.ff = FeedForward(width)
        self.attn2 = CrossAttention(width, context_dim, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """x [N, P, C] -> the same."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context, mask)
        made: Tensor = x + self.ff(self.norm3(x))
        return made


class SpatialTransformer(nn.Module):
    """A transformer block over the positions of a map.

    Args:
        channels: of the map.
        context_dim, heads: as for `CrossAttention`.
    """

    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.norm = _GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(channels, context_dim, heads)])
        self.proj_out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """x [N, C, H, W] -> the same."""
        height = x.shape[2]
        positions = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            positions = block(positions, context, mask)
        made: Tensor = x + self.proj_out(positions.transpose(1, 2).unflatten(2, (height, -1)))
        return made


class Downsample(nn.Module):
    """Half the height and width, by a convolution of stride 2 with a border of one on every side; as many channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H / 2, W / 2]."""
        made: Tensor = self.op(x)
        return made


class Upsample(nn.Module):
    """Twice the height and width: every value four times, then a convolution; as many channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, 2 H, 2 W]."""
        made: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return made


class Stage(nn.Sequential):
    """Layers one after another, each given what it asks for."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[override]
        """x [N, C, H, W] -> [N, C', H', W']."""
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context, mask)
            else:
                x = layer(x)
        return x


class Denoiser(nn.Module):
    """What noise, or which way out of it, there is in latents x at time t, given a text.

    Residual branches and the last convolution begin as zeros, so an untrained network predicts zero.

    Args:
        config: its sizes.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        width, embedded = config.model_channels, config.model_channels * 4
        self.time_embed = nn.Sequential(nn.Linear(width, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        if config.adm_in_channels:
            self.label_emb = nn.Sequential(
                nn.Sequential(nn.Linear(config.adm_in_channels, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
            )

        def stage(channels: int, out_channels: int, factor: int) -> list[nn.Module]:
            layers: list[nn.Module] = [ResBlock(channels, embedded, out_channels)]
            if factor in config.attention_resolutions:
                layers.append(SpatialTransformer(out_channels, config.context_dim, config.num_heads))
            return layers

        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(config.in_channels, width, 3, padding=1))])
        kept = [width]  # channels of the maps that the way up will see again
        channels, factor = width, 1
        for level, mult in enumerate(config.channel_mult):
            if level:
                self.input_blocks.append(Stage(Downsample(channels)))
                kept.append(channels)
                factor *= 2
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(Stage(*stage(channels, width * mult, factor)))
                channels = width * mult
                kept.append(channels)
        self.middle_block = Stage(
            ResBlock(channels, embedded, channels),
            SpatialTransformer(channels, config.context_dim, config.num_heads),
            ResBlock(channels, embedded, channels),
        )
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for last in [False] * config.num_res_blocks + [True]:
                layers = stage(channels + kept.pop(), width * mult, factor)
                channels = width * mult
                if last and level:
                    layers.append(Upsample(channels))
                    factor //= 2
                self.output_blocks.append(Stage(*layers))
        self.out = nn.Sequential(
            _GroupNorm(32, channels), nn.SiLU(), _zeroed(nn.Conv2d(channels, config.out_channels, 3, padding=1))
        )

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, mask: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """The prediction for noisy latents.

        Args:
            x: [N, in_channels, H, W], H and W multiples of `config.factor`.
            t: [N], times on the scale of 0 (clean) to 1000 (noise).
            context: [N, L, context_dim], the states of the text's tokens.
            mask: [N, L], True for tokens and False for padding, or floats that are added to attention's logits; all are
                tokens where it is not given.
            y: [N, adm_in_channels], added to the time's embedding, where the network has a place for it.

        Returns:
            [N, out_channels, H, W].

        Raises:
            UsageError: if H or W is no multiple of `config.factor`.
        """
        if x.shape[2] % self.config.factor or x.shape[3] % self.config.factor:
            raise UsageError(
                f"Latents of {x.shape[3]}x{x.shape[2]} can't be halved {len(self.config.channel_mult) - 1} times;"
                f" width and height must be multiples of {self.config.factor}."
            )
        emb = self.time_embed(timestep_embedding(t, self.config.model_channels).to(x.dtype))
        if self.config.adm_in_channels:
            emb = emb + self.label_emb(y)
        kept = []
        for stage in self.input_blocks:
            x = stage(x, emb, context, mask)
            kept.append(x)
        x = self.middle_block(x, emb, context, mask)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, kept.pop()], 1), emb, context, mask)
        made: Tensor = self.out(x)
        return made
