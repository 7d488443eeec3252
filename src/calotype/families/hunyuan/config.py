"""What the VAE of HunyuanImage 2.1 looks like. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

from calotype.errors import UsageError
from calotype.families.numbers import MOST_BLOCKS, MOST_CHANNELS, MOST_LEVELS, require_counts
from calotype.texts import is_whole, shown

GROUPS = 32  # of every GroupNorm


@dataclass(frozen=True, kw_only=True)
class HunyuanImageConfig:
    """Architecture of HunyuanImage 2.1's VAE (Tencent-Hunyuan/HunyuanImage-2.1); the defaults are the published one.

    Raises:
        UsageError: if the numbers contradict each other.
    """

    kind: ClassVar[str] = "hunyuan_image"
    has_posterior: ClassVar[bool] = True
    in_model_space: ClassVar[bool] = False

    channels: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)  # of each level, from full resolution down
    num_res_blocks: int = 2  # residual blocks a level (the decoder has one more)
    z_channels: int = 64  # channels of the latents; the encoder gives twice as many (moments)
    in_channels: int = 3  # channels of the picture, in and out

    def __post_init__(self) -> None:
        require_counts(self, "z_channels", "in_channels")
        require_counts(self, "num_res_blocks", most=MOST_BLOCKS)
        levels = self.channels
        if not isinstance(levels, tuple) or not all(is_whole(c) and 1 <= c <= MOST_CHANNELS for c in levels):
            raise UsageError(f"HunyuanImageConfig.channels must be whole numbers above 0, not {shown(levels)}.")
        if not 2 <= len(levels) <= MOST_LEVELS:
            raise UsageError(
                f"HunyuanImageConfig.channels must name from 2 to {MOST_LEVELS} levels, not {len(levels)}."
            )
        if bad := [c for c in levels if c % GROUPS]:
            raise UsageError(f"HunyuanImageConfig: {bad[0]} channels can't be split into {GROUPS} groups.")
        for upper, lower in pairwise(levels):
            if 4 * upper % lower:
                raise UsageError(
                    f"HunyuanImageConfig: blocks of 2x2 positions of {upper} channels can't be averaged to {lower}."
                )
        if levels[-1] % (2 * self.z_channels):
            raise UsageError(
                f"HunyuanImageConfig: {levels[-1]} channels can't be averaged to {2 * self.z_channels}, twice "
                f"z_channels."
            )

    @property
    def factor(self) -> int:
        """Spatial compression f: a latent stands for f x f pixels."""
        return int(2 ** (len(self.channels) - 1))

    @property
    def imitated(self) -> None:
        """Its raw latents are its own."""
        return None

    @property
    def picture_channels(self) -> int:
        """Channels of the pictures that go in and come out."""
        return self.in_channels

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into metadata; `families.config_from_dict` gives the config back."""
        return {"kind": self.kind, **asdict(self)}
