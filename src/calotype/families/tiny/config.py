"""What a TAESD looks like. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

from calotype.errors import UsageError
from calotype.families.numbers import require_counts, require_flags
from calotype.texts import shown

Variant = Literal["f8", "f16", "f32"]  # pixels a side that a latent stands for

STEM = 32  # channels between the two strides with which f32 begins

WIDTHS: dict[Variant, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "f8": ((64, 64, 64, 64), (64, 64, 64, 64)),
    "f16": ((64, 64, 128, 256), (256, 128, 64, 64)),
    "f32": ((64, 64, 64, 64), (256, 128, 64, 64, 64, 64)),
}
"""Channels of each level of the encoder, from full resolution down, and of the decoder, from the smallest up."""


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Architecture of a TAESD-style autoencoder (madebyollin/taesd): residual blocks, no norms but the pooled ones.

    Raises:
        UsageError: if there is no such network.
    """

    kind: ClassVar[str] = "taesd"  # its name in files
    has_posterior: ClassVar[bool] = False  # whether the encoder gives moments
    in_model_space: ClassVar[bool] = True  # whether raw latents are model latents already, of the VAE it imitates

    z_channels: int = 4  # channels of the latents
    pool: bool = False  # pooled group-norm branches at the lowest resolution (TAEF2)
    in_channels: int = 3  # channels of the picture, in and out
    variant: Variant = "f8"  # f16 is of blocks of 2x2 pixels (TAEQI2.1), f32 begins with two strides of 2 (TAESANA)

    def __post_init__(self) -> None:
        require_counts(self, "z_channels", "in_channels")
        require_flags(self, "pool")
        if self.variant not in get_args(Variant):
            raise UsageError(
                f"TinyConfig.variant must be one of {', '.join(get_args(Variant))}, not {shown(self.variant)}."
            )
        if self.pool and self.variant != "f8":
            raise UsageError(f"TinyConfig: only the variant f8 has pooled branches, and this is {self.variant}.")

    @property
    def factor(self) -> int:
        """Spatial compression f."""
        return int(self.variant[1:])

    @property
    def patch(self) -> int:
        """Pixels of a side of the blocks that are channels of the first map and the last."""
        return 2 if self.variant == "f16" else 1

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each encoder level, from full resolution down."""
        return WIDTHS[self.variant][0]

    @property
    def decoder_channels(self) -> tuple[int, ...]:
        """Channels of each decoder level, from the smallest up."""
        return WIDTHS[self.variant][1]

    @property
    def imitated(self) -> str | None:
        """The latent format of the VAE whose model latents are its raw ones, if its architecture tells."""
        if self.pool:
            return "flux2"
        return {("f16", 64): "qwen-image-2.1", ("f32", 32): "sana"}.get((self.variant, self.z_channels))

    @property
    def picture_channels(self) -> int:
        """As `AutoencoderConfig.picture_channels`."""
        return self.in_channels

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into metadata."""
        return {"kind": self.kind, **asdict(self)}
