"""Pictures as read: `Picture` is pixels, and `PictureRows` levels of which rows become pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calotype.pixels.levels import from_array, from_uint16

Levels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]
Opacity = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as read.

    Attributes:
        pixels: [3, H, W], float32 in [-1, 1], sRGB-encoded.
        alpha: [H, W], float32 in [0, 1]; only when it was asked for and some of it is below 1.
        notices: what was done to the picture besides decoding it, a sentence each.
    """

    pixels: Tensor
    alpha: Tensor | None
    notices: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows from `top` to before `bottom`: [3, bottom - top, W]."""
        return self.pixels[:, top:bottom]


@dataclass(frozen=True, eq=False)
class PictureRows:
    """A picture as read, held as levels (mostly 3 bytes a pixel), of which rows become floats when they are wanted.

    Attributes:
        levels: [H, W, 3], uint8, or uint16 where the file has more; of floats, and of grey with more than 8 bits, the
            pixels themselves: float32 in [-1, 1], [H, W, 3] or of grey [H, W].
        opacity: [H, W], uint8 or uint16; only if some of it is below the largest value.
        keep: the opacity is kept aside; otherwise pixels are composited over the background.
        background: R, G, B in 0..255.
        notices: what was done to the picture besides decoding it, a sentence each.
    """

    levels: Levels
    opacity: Opacity | None
    keep: bool
    background: tuple[int, int, int]
    notices: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.levels.shape[0], self.levels.shape[1]

    @property
    def opaque(self) -> int:
        """The opacity of what is opaque: 255 or 65535."""
        return 255 if self.opacity is None else int(np.iinfo(self.opacity.dtype).max)

    @property
    def alpha(self) -> Tensor | None:
        """[H, W], uint8, rounded where the file has more; only when it was asked for and some of it is not opaque."""
        if not self.keep or self.opacity is None:
            return None
        if self.opacity.dtype == np.uint8:
            return torch.from_numpy(self.opacity)
        rounded = np.empty(self.opacity.shape, dtype=np.uint8)
        for top in range(0, len(rounded), 256):  # in parts, as what lies between takes more
            part = self.opacity[top : top + 256].astype(np.uint32)
            rounded[top : top + 256] = (part + 128) // 257
        return torch.from_numpy(rounded)

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows from `top` to before `bottom`: [3, bottom - top, W], float32 in [-1, 1], sRGB-encoded."""
        pixels = _pixels(self.levels[top:bottom])
        if self.opacity is None:
            return pixels
        opacity = self.weight(top, bottom)
        behind = from_array(np.array([[self.background]], dtype=np.uint8))
        if self.keep:
            return torch.where(opacity == 0.0, behind, pixels)
        return torch.lerp(behind.expand_as(pixels), pixels, opacity).clamp_(-1.0, 1.0)

    def weight(self, top: int, bottom: int) -> Tensor:
        """The opacity of those rows: [bottom - top, W], float32 in [0, 1]."""
        if self.opacity is None:
            return torch.ones(bottom - top, self.size[1])
        return torch.from_numpy(self.opacity[top:bottom].astype(np.float32)).div_(float(self.opaque))


def _pixels(levels: Levels) -> Tensor:
    """[3, H, W] of what `PictureRows.levels` holds."""
    if levels.dtype == np.uint8:
        return from_array(levels)
    if levels.dtype == np.uint16:
        return from_uint16(levels.astype(np.uint16, copy=False))
    pixels = torch.from_numpy(levels)
    return (pixels.expand(3, -1, -1) if pixels.ndim == 2 else pixels.permute(2, 0, 1)).contiguous()
