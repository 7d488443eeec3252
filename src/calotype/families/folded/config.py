"""What the built-in network looks like. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from calotype.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class FoldedConfig:
    """Architecture of the built-in autoencoder: norm-free, f8, on folded pixels."""

    kind: ClassVar[str] = "folded"
    has_posterior: ClassVar[bool] = True
    in_model_space: ClassVar[bool] = False

    z_channels: int = 16  # channels of the latents
    ch: tuple[int, int] = (96, 160)  # channels at a quarter and at an eighth of the resolution
    encoder_blocks: tuple[int, int] = (2, 3)  # residual blocks at these two, in the encoder
    decoder_blocks: tuple[int, int] = (4, 5)  # and in the decoder

    def __post_init__(self) -> None:
        for name in ("z_channels", "ch", "encoder_blocks", "decoder_blocks"):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(n, int) and n >= 1 for n in numbers):
                raise UsageError(f"FoldedConfig.{name} must be positive whole numbers, not {value!r}.")

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
