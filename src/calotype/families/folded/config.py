"""What the built-in network looks like. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from calotype.errors import UsageError
from calotype.families.numbers import MOST_BLOCKS, MOST_CHANNELS, require, require_counts
from calotype.texts import shown, whole


@dataclass(frozen=True, kw_only=True)
class FoldedConfig:
    """Architecture of the built-in autoencoder: norm-free, f8, on folded pixels.

    Raises:
        UsageError: a number can't be.
    """

    kind: ClassVar[str] = "folded"  # its name in files
    has_posterior: ClassVar[bool] = True  # whether the encoder gives moments
    in_model_space: ClassVar[bool] = False  # whether raw latents are model latents already

    z_channels: int = 16  # channels of the latents
    ch: tuple[int, int] = (96, 160)  # channels at a quarter and at an eighth of the resolution
    encoder_blocks: tuple[int, int] = (2, 3)  # residual blocks at these two, in the encoder
    decoder_blocks: tuple[int, int] = (4, 5)  # residual blocks at these two, in the decoder

    def __post_init__(self) -> None:
        require_counts(self, "z_channels")
        for name, most in (("ch", MOST_CHANNELS), ("encoder_blocks", MOST_BLOCKS), ("decoder_blocks", MOST_BLOCKS)):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != 2:
                raise UsageError(f"FoldedConfig.{name} must be two whole numbers, not {shown(value)}.")
            for number in value:
                require(whole, number, f"FoldedConfig.{name}", 1, most)

    @property
    def factor(self) -> int:
        """Spatial compression f."""
        return 8

    @property
    def imitated(self) -> None:
        """Its raw latents are its own."""
        return None

    @property
    def picture_channels(self) -> int:
        """As `AutoencoderConfig.picture_channels`."""
        return 3

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into metadata."""
        return {"kind": self.kind, **asdict(self)}
