"""Pictures as read: `Picture` is pixels, and `PictureRows` levels of which rows become pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calotype.pixels.levels import from_array

Bytes = npt.NDArray[np.uint8]
Levels = Bytes | npt.NDArray[np.float32]


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
        levels: [H, W, 3], uint8; of grey with more than 8 bits its pixels, [H, W], float32 in [-1, 1].
        opacity: [H, W], uint8; only if some of it is below 255.
        keep: the opacity is kept aside; otherwise pixels are composited over the background.
        background: R, G, B in 0..255.
        notices: what was done to the picture besides decoding it, a sentence each.
    """

    levels: Levels
    opacity: Bytes | None
    keep: bool
    background: tuple[int, int, int]
    notices: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.levels.shape[0], self.levels.shape[1]

    @property
    def alpha(self) -> Tensor | None:
        """[H, W], uint8; only when it was asked for and some of it is below 255."""
        return torch.from_numpy(self.opacity) if self.keep and self.opacity is not None else None

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows from `top` to before `bottom`: [3, bottom - top, W], float32 in [-1, 1], sRGB-encoded."""
        levels = self.levels[top:bottom]
        deep = levels.ndim == 2
        pixels = torch.from_numpy(levels).expand(3, -1, -1).contiguous() if deep else from_array(levels)
        if self.opacity is None:
            return pixels
        opacity = torch.from_numpy(self.opacity[top:bottom]).float().div_(255.0)
        behind = from_array(np.array([[self.background]], dtype=np.uint8))
        if self.keep:
            return torch.where(opacity == 0.0, behind, pixels)
        return torch.lerp(behind.expand_as(pixels), pixels, opacity).clamp_(-1.0, 1.0)
