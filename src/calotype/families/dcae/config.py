"""What a DC-AE looks like. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

from calotype.errors import UsageError
from calotype.families.numbers import (
    MOST_BLOCKS,
    MOST_CHANNELS,
    MOST_LEVELS,
    require,
    require_counts,
    require_flags,
)
from calotype.texts import is_whole, shown, whole

Down = Literal["conv", "unshuffle"]
Up = Literal["nearest", "shuffle"]
NormName = Literal["rms", "batch"]
ActivationName = Literal["silu", "relu"]
MOST_KERNEL = 31  # of a depthwise convolution


@dataclass(frozen=True, kw_only=True)
class DcaeConfig:
    """Architecture of a deep-compression autoencoder (DC-AE, Chen et al. 2024, arXiv:2410.10733).

    Levels are counted from full resolution down, and each halves the sides of the one before. The first may have no
    blocks: then its numbers count for nothing, and pixels come to the second level by one convolution. The defaults
    are dc-ae-f32c32-sana, the autoencoder of SANA.

    Raises:
        UsageError: if the numbers contradict each other.
    """

    kind: ClassVar[str] = "autoencoder_dc"
    has_posterior: ClassVar[bool] = False
    in_model_space: ClassVar[bool] = False

    z_channels: int = 32  # channels of the latents
    encoder_ch: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)  # channels of each level
    decoder_ch: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    encoder_blocks: tuple[int, ...] = (2, 2, 2, 3, 3, 3)  # blocks of each level
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    encoder_attn_levels: tuple[int, ...] = (3, 4, 5)  # levels whose blocks are of linear attention, and not residual
    decoder_attn_levels: tuple[int, ...] = (3, 4, 5)
    encoder_scales: tuple[tuple[int, ...], ...] = ((), (), (), (5,), (5,), (5,))  # kernels that q, k, v are gathered by
    decoder_scales: tuple[tuple[int, ...], ...] = ((), (), (), (5,), (5,), (5,))
    head_dim: int = 32  # channels of a head of attention
    down: Down = "conv"  # how sides are halved: by a stride, or by pixel unshuffle
    up: Up = "nearest"  # how they are doubled: by repeating every position, or by pixel shuffle
    decoder_norms: tuple[NormName, ...] = ("rms",) * 6  # of the decoder's residual blocks, by level
    decoder_activations: tuple[ActivationName, ...] = ("silu",) * 6
    out_activation: ActivationName = "relu"  # before the last convolution
    encoder_shortcut: bool = True  # whether means of channels are added to what the encoder's last convolution makes
    decoder_shortcut: bool = True  # whether repeated channels are added to what the decoder's first one makes
    in_channels: int = 3  # channels of the picture, in and out

    def __post_init__(self) -> None:
        require_counts(self, "z_channels", "head_dim", "in_channels")
        require_flags(self, "encoder_shortcut", "decoder_shortcut")
        self._require_choice(Down, "down", self.down)
        self._require_choice(Up, "up", self.up)
        self._require_choice(ActivationName, "out_activation", self.out_activation)
        for side in ("encoder", "decoder"):
            self._require_levels(side)
        if len(self.encoder_ch) != len(self.decoder_ch):
            raise UsageError(
                f"DcaeConfig: an encoder of {len(self.encoder_ch)} levels and a decoder of {len(self.decoder_ch)} do "
                f"not fit together."
            )
        for name, kinds in (("decoder_norms", NormName), ("decoder_activations", ActivationName)):
            for value in self._tuple(name):
                self._require_choice(kinds, name, value)
        self._require_shapes()

    def _require_choice(self, kinds: Any, name: str, value: object) -> None:
        if value not in get_args(kinds):
            raise UsageError(f"DcaeConfig.{name} must be one of {', '.join(get_args(kinds))}, not {shown(value)}.")

    def _tuple(self, name: str) -> tuple[Any, ...]:
        """A field with one value a level."""
        value = getattr(self, name)
        levels = len(self.decoder_ch if name.startswith("decoder") else self.encoder_ch)
        if not isinstance(value, tuple) or len(value) != levels:
            raise UsageError(f"DcaeConfig.{name} must name {levels} levels, not {shown(value)}.")
        return value

    def _require_levels(self, side: str) -> None:
        channels = getattr(self, f"{side}_ch")
        if not isinstance(channels, tuple) or not 2 <= len(channels) <= MOST_LEVELS:
            raise UsageError(
                f"DcaeConfig.{side}_ch must be the channels of 2 to {MOST_LEVELS} levels, not {shown(channels)}."
            )
        for n in channels:
            require(whole, n, f"DcaeConfig.{side}_ch", 1, MOST_CHANNELS)
        for level, n in enumerate(self._tuple(f"{side}_blocks")):
            require(whole, n, f"DcaeConfig.{side}_blocks", 0 if level == 0 else 1, MOST_BLOCKS)
        levels = getattr(self, f"{side}_attn_levels")
        if not isinstance(levels, tuple) or not all(is_whole(n) and 0 <= n < len(channels) for n in levels):
            raise UsageError(
                f"DcaeConfig.{side}_attn_levels must be levels, of 0 to {len(channels) - 1}, not {shown(levels)}."
            )
        scales = tuple(tuple(one) if isinstance(one, list) else one for one in self._tuple(f"{side}_scales"))
        object.__setattr__(self, f"{side}_scales", scales)  # after a trip through JSON
        for one in scales:
            if not isinstance(one, tuple) or not all(is_whole(k) and 1 <= k <= MOST_KERNEL and k % 2 for k in one):
                raise UsageError(
                    f"DcaeConfig.{side}_scales must be odd kernels of 1 to {MOST_KERNEL} for every level, not "
                    f"{shown(one)}."
                )

    def _require_shapes(self) -> None:
        """Checks that channels can be shared out as shuffles, shortcuts and heads do."""
        for side in ("encoder", "decoder"):
            channels, blocks = getattr(self, f"{side}_ch"), getattr(self, f"{side}_blocks")
            shuffled = side == "encoder" and self.down == "unshuffle"
            for level in range(1, len(channels)):
                fine, coarse = channels[level - 1], channels[level]
                if shuffled and coarse % 4:
                    raise UsageError(f"DcaeConfig: a level of {coarse} channels can't come of a pixel unshuffle.")
                if blocks[level - 1] and (4 * fine) % coarse:
                    raise UsageError(
                        f"DcaeConfig: blocks of 2x2 positions of {fine} channels can't be shared out to {coarse}."
                    )
            for level in getattr(self, f"{side}_attn_levels"):
                if blocks[level] and channels[level] % self.head_dim:
                    raise UsageError(
                        f"DcaeConfig: {channels[level]} channels can't be split into heads of {self.head_dim}."
                    )
            if getattr(self, f"{side}_shortcut") and channels[-1] % self.z_channels:
                raise UsageError(
                    f"DcaeConfig: {channels[-1]} channels can't be shared out to latents of {self.z_channels}."
                )

    @property
    def levels(self) -> int:
        """How many there are."""
        return len(self.encoder_ch)

    @property
    def factor(self) -> int:
        """Spatial compression f."""
        return int(2 ** (self.levels - 1))

    @property
    def imitated(self) -> None:
        """Its raw latents are its own."""
        return None

    @property
    def picture_channels(self) -> int:
        """As `AutoencoderConfig.picture_channels`."""
        return self.in_channels

    def of(self, side: str) -> Side:
        """The numbers of one side: "encoder" or "decoder"."""
        channels, blocks = getattr(self, f"{side}_ch"), getattr(self, f"{side}_blocks")
        norms: list[NormName] = ["rms"] * len(channels)
        activations: list[ActivationName] = ["silu"] * len(channels)
        if side == "decoder":
            norms, activations = list(self.decoder_norms), list(self.decoder_activations)
        return Side(
            channels=channels,
            blocks=blocks,
            attn_levels=getattr(self, f"{side}_attn_levels"),
            scales=getattr(self, f"{side}_scales"),
            norms=norms,
            activations=activations,
            outer=0 if blocks[0] else 1,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into metadata."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Side:
    """The numbers of encoder or decoder, by level.

    Attributes:
        outer: the outermost level that has blocks: 0, or 1.
    """

    channels: Sequence[int]
    blocks: Sequence[int]
    attn_levels: Sequence[int]
    scales: Sequence[Sequence[int]]
    norms: Sequence[NormName]
    activations: Sequence[ActivationName]
    outer: int


def attends(config: DcaeConfig) -> bool:
    """Whether any of its blocks is of attention."""
    return any(
        getattr(config, f"{side}_blocks")[level]
        for side in ("encoder", "decoder")
        for level in getattr(config, f"{side}_attn_levels")
    )


def tells_heads(config: DcaeConfig) -> bool:
    """Whether shapes of its tensors tell the channels of a head: those of convolutions that gather q, k and v do."""
    return any((*config.encoder_scales, *config.decoder_scales))
