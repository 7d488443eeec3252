"""What a TAESD looks like. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from calotype.families.numbers import require_counts, require_flags


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Architecture of a TAESD-style autoencoder (madebyollin/taesd): 64 channels, f8, no norms but the pooled ones."""

    kind: ClassVar[str] = "taesd"
    has_posterior: ClassVar[bool] = False
    in_model_space: ClassVar[bool] = True

    z_channels: int = 4  # channels of the latents
    pool: bool = False  # pooled group-norm branches at the lowest resolution (TAEF2)
    in_channels: int = 3  # channels of the picture, in and out

    def __post_init__(self) -> None:
        require_counts(self, "z_channels", "in_channels")
        require_flags(self, "pool")

    @property
    def factor(self) -> int:
        """Spatial compression f."""
        return 8

    @property
    def imitated(self) -> str | None:
        """The latent format of the VAE whose model latents are its raw ones, if its architecture tells."""
        return "flux2" if self.pool else None

    @property
    def picture_channels(self) -> int:
        """As `AutoencoderConfig.picture_channels`."""
        return self.in_channels

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into metadata."""
        return {"kind": self.kind, **asdict(self)}
