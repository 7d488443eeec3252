"""What an AutoencoderKL looks like: the few numbers from which the whole network follows. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

from calotype.errors import UsageError
from calotype.families.numbers import MOST_BLOCKS, MOST_CHANNELS, MOST_LEVELS, require_counts, require_flags
from calotype.texts import is_number, is_whole, shown

ActivationName = Literal["silu", "relu", "gelu", "mish"]  # as diffusers' `act_fn`


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Architecture of an AutoencoderKL, in the vocabulary of latent-diffusion's ``ddconfig``.

    The defaults are kl-f8, the autoencoder of Stable Diffusion 1 and 2.

    Raises:
        UsageError: if the numbers contradict each other.
    """

    kind: ClassVar[str] = "autoencoder_kl"  # its name in files
    has_posterior: ClassVar[bool] = True  # whether the encoder gives moments
    in_model_space: ClassVar[bool] = False  # whether raw latents are model latents already

    ch: int = 128  # channels at full resolution
    ch_mult: tuple[float, ...] = (1, 2, 4, 4)  # channels of each level, as multiples of ch
    num_res_blocks: int = 2  # residual blocks a level (the decoder has one more)
    z_channels: int = 4  # channels of the latents; the encoder gives twice as many (moments)
    attn_levels: tuple[int, ...] = ()  # levels with attention after every block (kl-f16, kl-f32)
    mid_attention: bool = True  # attention between the two middle blocks
    quant_conv: bool = True  # 1x1 convolutions around the latents (absent in SD3 and FLUX)
    post_quant_conv: bool | None = None  # that of the decoder; None: as quant_conv
    decoder_ch: int | None = None  # narrower decoder (FLUX.2 small decoder); None: as ch
    decoder_num_res_blocks: int | None = None  # blocks a level of the decoder, but one; None: as num_res_blocks
    norm_groups: int = 32  # groups of every GroupNorm
    in_channels: int = 3  # channels of the picture, in and out
    activation: ActivationName = "silu"  # between the convolutions of every block; the ends have silu always
    condition: bool = False  # the decoder can take a picture where a mask says so (AsymmetricAutoencoderKL)

    def __post_init__(self) -> None:
        require_counts(self, "ch", "z_channels", "norm_groups", "in_channels")
        require_counts(self, "num_res_blocks", most=MOST_BLOCKS)
        if self.decoder_ch is not None:
            require_counts(self, "decoder_ch")
        if self.decoder_num_res_blocks is not None:
            require_counts(self, "decoder_num_res_blocks", most=MOST_BLOCKS)
        require_flags(self, "mid_attention", "quant_conv", "condition")
        if self.post_quant_conv is not None:
            require_flags(self, "post_quant_conv")
        if self.activation not in get_args(ActivationName):
            raise UsageError(
                f"AutoencoderConfig.activation must be one of {', '.join(get_args(ActivationName))}, "
                f"not {shown(self.activation)}."
            )
        levels = self.ch_mult
        if not isinstance(levels, tuple) or not all(is_number(m) and 0 < m <= MOST_CHANNELS for m in levels):
            raise UsageError(f"AutoencoderConfig.ch_mult must be numbers above 0, not {shown(levels)}.")
        if not 1 <= len(levels) <= MOST_LEVELS:
            raise UsageError(
                f"AutoencoderConfig.ch_mult must name at least one level, and at most {MOST_LEVELS}, not {len(levels)}."
            )
        if not isinstance(self.attn_levels, tuple) or not all(map(is_whole, self.attn_levels)):
            raise UsageError(f"AutoencoderConfig.attn_levels must be levels, from 0 on, not {shown(self.attn_levels)}.")
        if bad := [level for level in self.attn_levels if not 0 <= level < len(levels)]:
            raise UsageError(f"AutoencoderConfig.attn_levels {bad} do not exist: there are {len(levels)} levels.")
        for channels in (*self.channels, *self.decoder_channels):
            if not 1 <= channels <= MOST_CHANNELS:
                raise UsageError(
                    f"AutoencoderConfig: ch and ch_mult make {channels} channels, and a level has from 1 to "
                    f"{MOST_CHANNELS}."
                )
            if channels % self.norm_groups:
                raise UsageError(
                    f"AutoencoderConfig: {channels} channels can't be split into {self.norm_groups} groups; "
                    f"choose ch, ch_mult or norm_groups so that they can."
                )
        if self.condition:
            self._require_conditions()

    def _require_conditions(self) -> None:
        """Checks that the maps of the condition's encoder fit the decoder's."""
        channels = self.decoder_channels
        c, top = channels[0], channels[-1]
        if channels != (c, min(2 * c, top), min(4 * c, top), top) or not c <= top <= 8 * c:
            raise UsageError(
                f"AutoencoderConfig: a decoder that takes a picture too has four levels, of c, 2c and 4c channels or "
                f"what the last has, which is at most 8c, and not {', '.join(map(str, channels))}."
            )

    @property
    def condition_channels(self) -> tuple[int, ...]:
        """Channels of the layers that bring a picture to the decoder's sizes: two of its own, then halves."""
        first, top = self.decoder_channels[0], self.decoder_channels[-1]
        return (*(min(first * 2**i, top) for i in range(4)), top)

    @property
    def decoder_blocks(self) -> int:
        """Residual blocks of each decoder level, but one."""
        return self.num_res_blocks if self.decoder_num_res_blocks is None else self.decoder_num_res_blocks

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each encoder level, from full resolution down."""
        return tuple(round(self.ch * m) for m in self.ch_mult)

    @property
    def decoder_channels(self) -> tuple[int, ...]:
        """Channels of each decoder level, from full resolution down."""
        return tuple(round((self.decoder_ch or self.ch) * m) for m in self.ch_mult)

    @property
    def decoder_quant_conv(self) -> bool:
        """Whether there is a 1x1 convolution before the decoder."""
        return self.quant_conv if self.post_quant_conv is None else self.post_quant_conv

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
