"""The family of autoencoders that led to Stable Diffusion's, in a few numbers each. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from calotype.errors import UsageError
from calotype.families import CONFIGS
from calotype.families.face import NetworkConfig
from calotype.families.numbers import MOST_BLOCKS, MOST_CHANNELS, MOST_LEVELS
from calotype.texts import TextError, flag, shown, whole


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """A fully connected autoencoder of square pictures of one size. Without hidden layers it is linear."""

    kind: ClassVar[str] = "dense"
    in_model_space: ClassVar[bool] = False

    side: int = 32  # of the pictures, in pixels
    hidden: tuple[int, ...] = (512,)  # widths between picture and latents; mirrored in the decoder
    z_channels: int = 64  # numbers in the latents
    variational: bool = False  # whether the encoder gives a variance too

    def __post_init__(self) -> None:
        _positive(self, ("side", "z_channels", "hidden"), ("variational",))

    @property
    def picture_channels(self) -> int:
        """RGB."""
        return 3

    @property
    def factor(self) -> int:
        """A latent stands for the whole picture."""
        return self.side

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into metadata."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class ConvConfig:
    """A plain convolutional autoencoder: 3x3 convolutions and SiLU, a stride of 2 between levels, no norm."""

    kind: ClassVar[str] = "conv"
    in_model_space: ClassVar[bool] = False

    ch: int = 32  # channels at full resolution
    ch_mult: tuple[int, ...] = (1, 2, 4)  # channels of each level, as multiples of ch
    num_blocks: int = 1  # pairs of convolutions a level
    z_channels: int = 4  # channels of the latents
    residual: bool = False  # whether each pair adds to what it reads
    variational: bool = False  # whether the encoder gives a variance too

    def __post_init__(self) -> None:
        _positive(self, ("ch", "ch_mult", "num_blocks", "z_channels"), ("residual", "variational"))
        if (
            not 1 <= len(self.ch_mult) <= MOST_LEVELS
            or self.num_blocks > MOST_BLOCKS
            or max(self.channels) > MOST_CHANNELS
        ):
            raise UsageError(
                f"ConvConfig must have from one to {MOST_LEVELS} levels (ch_mult) of at most {MOST_CHANNELS} channels "
                f"(ch times ch_mult) and {MOST_BLOCKS} blocks (num_blocks), not {shown(self.to_dict(), 200)}."
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, from full resolution down."""
        return tuple(self.ch * m for m in self.ch_mult)

    @property
    def picture_channels(self) -> int:
        """RGB."""
        return 3

    @property
    def factor(self) -> int:
        """Spatial compression f."""
        return int(2 ** (len(self.ch_mult) - 1))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into metadata."""
        return {"kind": self.kind, **asdict(self)}


Trainable = NetworkConfig | DenseConfig | ConvConfig

# by the `kind` that recipes name
TRAINABLE: dict[str, type[Any]] = {**CONFIGS, **{config.kind: config for config in (DenseConfig, ConvConfig)}}


def _positive(config: DenseConfig | ConvConfig, numbers: tuple[str, ...], flags: tuple[str, ...]) -> None:
    try:
        for name in numbers:
            value = getattr(config, name)
            if isinstance(value, tuple) != (name in ("hidden", "ch_mult")):
                raise TextError(f"{name} can't be {shown(value)}")
            for number in value if isinstance(value, tuple) else (value,):
                whole(number, name, 1, MOST_CHANNELS)
        for name in flags:
            flag(getattr(config, name), name)
    except TextError as error:
        raise UsageError(f"{type(config).__name__}.{error}.") from None
