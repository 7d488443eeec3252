"""What an autoencoder of Wan's kind looks like. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from calotype.errors import UsageError
from calotype.families.numbers import MOST_BLOCKS, MOST_CHANNELS, MOST_LEVELS, require_counts, require_flags
from calotype.texts import is_whole, shown

MOST_PATCH = 16


@dataclass(frozen=True, kw_only=True)
class WanConfig:
    """Architecture of a causal video autoencoder of Wan's kind, as it is for one picture.

    The defaults are Wan 2.1's, which is Qwen-Image's too. Names are those of diffusers' classes where they have one.

    Raises:
        UsageError: if the numbers contradict each other.
    """

    kind: ClassVar[str] = "wan"
    has_posterior: ClassVar[bool] = True
    in_model_space: ClassVar[bool] = False

    base_dim: int = 96  # channels at full resolution
    decoder_base_dim: int | None = None  # those of the decoder; None: as base_dim
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)  # channels of each level, as multiples of these
    num_res_blocks: int = 2  # residual blocks a level (the decoder has one more)
    z_channels: int = 16  # channels of the latents; the encoder gives twice as many (moments)
    attn_levels: tuple[int, ...] = ()  # levels of the encoder with attention after every block
    in_channels: int = 3  # channels of the picture, in and out
    patch: int = 1  # blocks of so many pixels a side are channels of the first map and the last (2 in Wan 2.2)
    residual: bool = False  # shuffles around the levels as shortcuts (Wan 2.2, Qwen-Image 2.1)
    frames: tuple[int, ...] = ()  # with them: frames that are one after each change of size, from full resolution down
    enlarges: int = 1  # pictures come out so many times as large along each side (Wan2.1-VAE-upscale2x: 2)

    def __post_init__(self) -> None:
        require_counts(self, "base_dim", "z_channels", "in_channels")
        require_counts(self, "num_res_blocks", most=MOST_BLOCKS)
        require_counts(self, "patch", "enlarges", most=MOST_PATCH)
        if self.decoder_base_dim is not None:
            require_counts(self, "decoder_base_dim")
        require_flags(self, "residual")
        for name, least in (("dim_mult", 1), ("attn_levels", 0), ("frames", 1)):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not all(is_whole(n) and least <= n <= MOST_CHANNELS for n in values):
                raise UsageError(f"WanConfig.{name} must be whole numbers from {least} on, not {shown(values)}.")
        if not 1 <= len(self.dim_mult) <= MOST_LEVELS:
            raise UsageError(
                f"WanConfig.dim_mult must name at least one level, and at most {MOST_LEVELS}, not {len(self.dim_mult)}."
            )
        if bad := [level for level in self.attn_levels if level >= len(self.dim_mult)]:
            raise UsageError(f"WanConfig.attn_levels {bad} do not exist: there are {len(self.dim_mult)} levels.")
        if self.attn_levels and self.residual:
            raise UsageError("WanConfig: a network with shortcuts around its levels has no attention in them.")
        if any(n > 2 for n in self.frames) or len(self.frames) != (len(self.dim_mult) - 1) * self.residual:
            changes = (len(self.dim_mult) - 1) * self.residual
            raise UsageError(
                f"WanConfig.frames must be 1 or 2 for each of {changes} changes of size, not {self.frames}."
            )
        for channels in (*self.channels, *self.decoder_channels):
            if channels > MOST_CHANNELS:
                raise UsageError(
                    f"WanConfig: base_dim and dim_mult make {channels} channels, and {MOST_CHANNELS} is most."
                )
        if self.enlarges > 1 and (self.patch > 1 or self.residual):
            raise UsageError("WanConfig: only a decoder without blocks of pixels and shortcuts enlarges pictures.")
        self._require_levels()

    def _require_levels(self) -> None:
        """Checks that channels can be halved, averaged and repeated where they are."""
        down, up = self.channels, self.decoder_channels[::-1]
        if not self.residual:
            if odd := [channels for channels in up[:-1] if channels % 2]:
                raise UsageError(f"WanConfig: {odd[0]} channels of the decoder can't be halved; choose an even number.")
            return
        parts = [4 * frames for frames in self.frames]
        for before, after, part in zip((self.base_dim, *down[:-1]), down, (*parts, 1), strict=True):
            if before * part % after:
                raise UsageError(f"WanConfig: {before * part} channels can't be averaged to {after}.")
        for before, after, part in zip((up[0], *up), up[:-1], reversed(parts), strict=False):
            if after * part % before:
                raise UsageError(f"WanConfig: {before} channels can't be repeated to {after * part}.")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each encoder level, from full resolution down."""
        return tuple(self.base_dim * m for m in self.dim_mult)

    @property
    def decoder_channels(self) -> tuple[int, ...]:
        """Channels of each decoder level, from full resolution down."""
        return tuple((self.decoder_base_dim or self.base_dim) * m for m in self.dim_mult)

    @property
    def factor(self) -> int:
        """Spatial compression f: a latent stands for f x f pixels."""
        return int(self.patch * 2 ** (len(self.dim_mult) - 1))

    @property
    def of_images(self) -> bool:
        """Whether its kernels have no slices in time in files either (Qwen-Image 2.1)."""
        return self.residual and self.patch == 1

    @property
    def imitated(self) -> None:
        """Its raw latents are its own."""
        return None

    @property
    def picture_channels(self) -> int:
        """Channels of the pictures that go in and come out: 3 is RGB, 4 RGBA."""
        return self.in_channels

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into metadata."""
        return {"kind": self.kind, **asdict(self)}
