"""What an AutoencoderKL looks like: the few numbers from which the whole network follows. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from calotype.errors import UsageError
from calotype.texts import TextError, flag, is_number, is_whole, made, shown, whole

MOST_CHANNELS = 2**16  # of anything: no network has more, by far
MOST_LEVELS = 16
MOST_BLOCKS = 1024

ActivationName = Literal["silu", "relu", "gelu", "mish"]


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Architecture of an AutoencoderKL, in the vocabulary of latent-diffusion's ``ddconfig``.

    The defaults are kl-f8, the autoencoder of Stable Diffusion 1 and 2.

    Raises:
        UsageError: if the numbers contradict each other.
    """

    ch: int = 128  # channels at full resolution
    ch_mult: tuple[float, ...] = (1, 2, 4, 4)  # channels of each level, as multiples of ch
    num_res_blocks: int = 2  # residual blocks a level (the decoder has one more)
    z_channels: int = 4  # channels of the latents; the encoder gives twice as many (moments)
    attn_levels: tuple[int, ...] = ()  # levels with attention after every block (kl-f16, kl-f32)
    mid_attention: bool = True  # attention between the two middle blocks
    quant_conv: bool = True  # 1x1 convolutions around the latents (absent in SD3 and FLUX)
    post_quant_conv: bool | None = None  # that of the decoder; None: as quant_conv
    decoder_ch: int | None = None  # narrower decoder (FLUX.2 small decoder); None: as ch
    norm_groups: int = 32  # groups of every GroupNorm
    in_channels: int = 3  # channels of the picture, in and out
    activation: ActivationName = "silu"  # between the convolutions of every block; the ends have silu always

    def __post_init__(self) -> None:
        _require_counts(self, "ch", "z_channels", "norm_groups", "in_channels")
        _require_counts(self, "num_res_blocks", most=MOST_BLOCKS)
        if self.decoder_ch is not None:
            _require_counts(self, "decoder_ch")
        _require_flags(self, "mid_attention", "quant_conv")
        if self.post_quant_conv is not None:
            _require_flags(self, "post_quant_conv")
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
    def picture_channels(self) -> int:
        """Channels of the pictures that go in and come out: 1 is grey, 3 RGB, 4 RGBA."""
        return self.in_channels

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into metadata; `config_from_dict` gives the config back."""
        return {"kind": "autoencoder_kl", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Architecture of a TAESD-style autoencoder (madebyollin/taesd): 64 channels, f8, no norms but the pooled ones."""

    z_channels: int = 4  # channels of the latents
    pool: bool = False  # pooled group-norm branches at the lowest resolution (TAEF2)
    in_channels: int = 3  # channels of the picture, in and out

    def __post_init__(self) -> None:
        _require_counts(self, "z_channels", "in_channels")
        _require_flags(self, "pool")

    @property
    def factor(self) -> int:
        """Spatial compression f."""
        return 8

    @property
    def picture_channels(self) -> int:
        """As `AutoencoderConfig.picture_channels`."""
        return self.in_channels

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into metadata."""
        return {"kind": "taesd", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class FoldedConfig:
    """Architecture of the built-in autoencoder: norm-free, f8, on folded pixels."""

    z_channels: int = 16  # channels of the latents
    ch: tuple[int, int] = (96, 160)  # channels at a quarter and at an eighth of the resolution
    encoder_blocks: tuple[int, int] = (2, 3)  # residual blocks at these two, in the encoder
    decoder_blocks: tuple[int, int] = (4, 5)  # and in the decoder

    def __post_init__(self) -> None:
        _require_counts(self, "z_channels")
        for name, most in (("ch", MOST_CHANNELS), ("encoder_blocks", MOST_BLOCKS), ("decoder_blocks", MOST_BLOCKS)):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != 2:
                raise UsageError(f"FoldedConfig.{name} must be two whole numbers, not {shown(value)}.")
            for number in value:
                _require(whole, number, f"FoldedConfig.{name}", 1, most)

    @property
    def factor(self) -> int:
        """Spatial compression f."""
        return 8

    @property
    def picture_channels(self) -> int:
        """As `AutoencoderConfig.picture_channels`."""
        return 3

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into metadata."""
        return {"kind": "folded", **asdict(self)}


NetworkConfig = AutoencoderConfig | FoldedConfig | TinyConfig

NETWORK_KINDS: dict[str, type[NetworkConfig]] = {
    "autoencoder_kl": AutoencoderConfig,
    "folded": FoldedConfig,
    "taesd": TinyConfig,
}


def config_from_dict(values: Mapping[str, Any]) -> NetworkConfig:
    """The inverse of `to_dict`, also after a trip through JSON (lists become tuples).

    Raises:
        UsageError: it is no table of these, or what is in it can't be.
    """
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if not isinstance(kind, str) or kind not in NETWORK_KINDS:
        raise UsageError(f"A network's configuration has a kind of {', '.join(NETWORK_KINDS)}, not {shown(kind)}.")
    try:
        return made(NETWORK_KINDS[kind], {key: value for key, value in values.items() if key != "kind"}, kind)
    except TextError as error:
        raise UsageError(f"{error}.") from None


def _require_counts(config: object, *names: str, most: int = MOST_CHANNELS) -> None:
    for name in names:
        _require(whole, getattr(config, name), f"{type(config).__name__}.{name}", 1, most)


def _require_flags(config: object, *names: str) -> None:
    for name in names:
        _require(flag, getattr(config, name), f"{type(config).__name__}.{name}")


def _require(check: Callable[..., object], *of: object) -> None:
    try:
        check(*of)
    except TextError as error:
        raise UsageError(f"{error}.") from None
