"""What a VQModel looks like: the few numbers from which the whole network follows. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

from calotype.errors import UsageError
from calotype.families.numbers import MOST_BLOCKS, MOST_CHANNELS, MOST_LEVELS, require_counts, require_flags
from calotype.texts import is_number, is_whole, shown

ActivationName = Literal["silu", "relu", "gelu", "mish"]
SPATIAL_GROUPS = 32  # of every norm that follows the latents
MOST_ENTRIES = 2**24  # of a codebook


@dataclass(frozen=True, kw_only=True)
class VqConfig:
    """Architecture of a VQModel, in the vocabulary of latent-diffusion's ``ddconfig``.

    The defaults are vq-f4 of latent-diffusion.

    Raises:
        UsageError: if the numbers contradict each other.
    """

    kind: ClassVar[str] = "vq"
    has_posterior: ClassVar[bool] = False
    in_model_space: ClassVar[bool] = False

    ch: int = 128  # channels at full resolution
    ch_mult: tuple[float, ...] = (1, 2, 4)  # channels of each level, as multiples of ch
    num_res_blocks: int = 2  # residual blocks a level (the decoder has one more)
    embed_dim: int = 3  # channels of the latents, and of the codebook's entries
    n_embed: int = 8192  # entries of the codebook
    inner_channels: int | None = None  # what the encoder makes and the decoder takes (ddconfig's z_channels); None:
    # as embed_dim
    attn_levels: tuple[int, ...] = ()  # levels with attention after every block (vq-f8, vq-f16, MoVQ)
    mid_attention: bool = True  # attention between the two middle blocks (not in vq-f4-noattn)
    norm_groups: int = 32  # groups of every GroupNorm
    spatial_norm: bool = False  # the decoder's norms follow the latents (MoVQ), and have 32 groups
    in_channels: int = 3  # channels of the picture, in and out
    activation: ActivationName = "silu"  # between the convolutions of every block; the ends have silu always
    quantize: bool = True  # whether decoding puts the nearest entry in the place of each latent
    lookup_from_codebook: bool = False  # what diffusers calls so, of pipelines that decode entries by their numbers

    def __post_init__(self) -> None:
        require_counts(self, "ch", "embed_dim", "norm_groups", "in_channels")
        require_counts(self, "num_res_blocks", most=MOST_BLOCKS)
        require_counts(self, "n_embed", most=MOST_ENTRIES)
        if self.inner_channels is not None:
            require_counts(self, "inner_channels")
        require_flags(self, "mid_attention", "spatial_norm", "quantize", "lookup_from_codebook")
        if self.activation not in get_args(ActivationName):
            raise UsageError(
                f"VqConfig.activation must be one of {', '.join(get_args(ActivationName))}, "
                f"not {shown(self.activation)}."
            )
        levels = self.ch_mult
        if not isinstance(levels, tuple) or not all(is_number(m) and 0 < m <= MOST_CHANNELS for m in levels):
            raise UsageError(f"VqConfig.ch_mult must be numbers above 0, not {shown(levels)}.")
        if not 1 <= len(levels) <= MOST_LEVELS:
            raise UsageError(
                f"VqConfig.ch_mult must name at least one level, and at most {MOST_LEVELS}, not {len(levels)}."
            )
        if not isinstance(self.attn_levels, tuple) or not all(map(is_whole, self.attn_levels)):
            raise UsageError(f"VqConfig.attn_levels must be levels, from 0 on, not {shown(self.attn_levels)}.")
        if bad := [level for level in self.attn_levels if not 0 <= level < len(levels)]:
            raise UsageError(f"VqConfig.attn_levels {bad} do not exist: there are {len(levels)} levels.")
        for channels in self.channels:
            if not 1 <= channels <= MOST_CHANNELS:
                raise UsageError(
                    f"VqConfig: ch and ch_mult make {channels} channels, and a level has from 1 to {MOST_CHANNELS}."
                )
            for groups in {self.norm_groups, self.decoder_groups}:
                if channels % groups:
                    raise UsageError(
                        f"VqConfig: {channels} channels can't be split into {groups} groups; "
                        f"choose ch, ch_mult or norm_groups so that they can."
                    )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, from full resolution down."""
        return tuple(round(self.ch * m) for m in self.ch_mult)

    @property
    def inner(self) -> int:
        """Channels of what the encoder makes and the decoder takes."""
        return self.embed_dim if self.inner_channels is None else self.inner_channels

    @property
    def decoder_groups(self) -> int:
        """Groups of the decoder's norms."""
        return SPATIAL_GROUPS if self.spatial_norm else self.norm_groups

    @property
    def z_channels(self) -> int:
        """Channels of raw latents: what the encoder gives, not yet quantised."""
        return self.embed_dim

    @property
    def factor(self) -> int:
        """Spatial compression f: a latent stands for f x f pixels."""
        return int(2 ** (len(self.ch_mult) - 1))

    @property
    def imitated(self) -> None:
        """Its raw latents are its own."""
        return None

    @property
    def picture_channels(self) -> int:
        """Channels of the pictures that go in and come out: 1 is grey, 3 RGB, 4 RGBA."""
        return self.in_channels

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into metadata; `families.config_from_dict` gives the config back."""
        return {"kind": self.kind, **asdict(self)}
