"""What is done to pictures before they are encoded: sizes, crops, mirrors. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from calotype.cache.buckets import Size, nearest, table
from calotype.errors import UsageError

Crop = Literal["centre", "top", "random"]

VERSION = 1  # of what is computed by these rules
FILTER = "bicubic"  # Pillow's, which is wider where it makes smaller (antialiased), as in trainings here


@dataclass(frozen=True, kw_only=True)
class Placed:
    """What becomes of one picture; all in pixels.

    Attributes:
        resized: (width, height) that it is resized to, at least as large as the bucket.
        corner: (x, y) in the resized picture, where the crop begins.
        bucket: (width, height) of the crop.
        enlarged: whether resizing makes it larger.
    """

    resized: Size
    corner: Size
    bucket: Size
    enlarged: bool


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How pictures become what is encoded.

    A picture is read upright in sRGB, over `background` where it is transparent, as 8 bits; resized so that it covers
    its bucket and is no larger than it must be; and cropped to the bucket.

    Attributes:
        size: (width, height), the same for all; None where there are buckets.
        buckets: name of a table of sizes (see `buckets`), of which each picture gets that of the nearest shape; empty
            where there is a size.
        crop: what of the resized picture is kept: its "centre", its "top" (and the centre across), or a place that is
            "random" for each picture, and depends on `seed` and the picture's bytes alone.
        flip: mirrored pictures (left to right) are encoded too.
        background: R, G, B in 0..255.
        enlarge: smaller pictures are enlarged; otherwise they count as bad.
        seed: of random crops and of samples from the posterior.

    Raises:
        UsageError: they make no sense.
    """

    size: Size | None = None
    buckets: str = ""
    crop: Crop = "centre"
    flip: bool = False
    background: tuple[int, int, int] = (255, 255, 255)
    enlarge: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.size is None) == (not self.buckets):
            raise UsageError("Give either one size for all pictures (--size 512) or a table of them (--buckets sdxl).")
        if self.crop not in get_args(Crop):
            raise UsageError(f"--crop {self.crop}: give one of {', '.join(get_args(Crop))}.")
        if self.size is not None and min(self.size) < 1:
            raise UsageError(f"--size {self.size[0]}x{self.size[1]}: sides have at least one pixel.")

    @property
    def sizes(self) -> tuple[Size, ...]:
        """All sizes that there can be."""
        return (self.size,) if self.size else _table(self.buckets)

    def require_multiples(self, factor: int) -> None:
        """Checks that latents of all sizes are whole.

        Args:
            factor: pixels along a side that one latent stands for.

        Raises:
            UsageError: a side is no multiple of it.
        """
        for width, height in self.sizes:
            if width % factor or height % factor:
                given = f"--size {width}x{height}" if self.size else f"--buckets {self.buckets}: {width}x{height}"
                raise UsageError(f"{given}: sides must be multiples of {factor} for this VAE; give others.")

    def place(self, width: int, height: int, key: bytes) -> Placed:
        """What becomes of an upright picture of this size.

        Args:
            key: sha256 of its encoded bytes.
        """
        bucket = self.size or nearest(self.sizes, width, height)
        # in whole numbers, so that it is the same wherever it is computed
        if bucket[0] * height >= bucket[1] * width:
            resized = bucket[0], max(bucket[1], (2 * height * bucket[0] + width) // (2 * width))
            enlarged = bucket[0] > width
        else:
            resized = max(bucket[0], (2 * width * bucket[1] + height) // (2 * height)), bucket[1]
            enlarged = bucket[1] > height
        spare = resized[0] - bucket[0], resized[1] - bucket[1]
        corner = spare[0] // 2, (0 if self.crop == "top" else spare[1] // 2)
        if self.crop == "random":
            drawn = hashlib.sha256(f"crop {self.seed} {key.hex()}".encode()).digest()
            across, down = int.from_bytes(drawn[:8], "little"), int.from_bytes(drawn[8:16], "little")
            corner = across % (spare[0] + 1), down % (spare[1] + 1)
        return Placed(resized=resized, corner=corner, bucket=bucket, enlarged=enlarged)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the sizes that a table's name stands for."""
        told = {**asdict(self), "filter": FILTER, "version": VERSION}
        return {**told, "background": list(self.background), "size": list(self.size) if self.size else None,
                "sizes": [list(size) for size in self.sizes]}  # fmt: skip


def rules_from_dict(values: Mapping[str, Any]) -> Rules:
    """The inverse of `Rules.to_dict`, also after a trip through JSON.

    Raises:
        UsageError: they make no sense.
        KeyError, TypeError: something is missing, or of another type.
    """
    return Rules(
        size=tuple(values["size"]) if values["size"] else None,
        buckets=values["buckets"],
        crop=values["crop"],
        flip=values["flip"],
        background=tuple(values["background"]),
        enlarge=values["enlarge"],
        seed=values["seed"],
    )


@lru_cache(maxsize=8)
def _table(name: str) -> tuple[Size, ...]:
    return table(name)
