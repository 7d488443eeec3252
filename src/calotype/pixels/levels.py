"""Levels 0..255 <-> pixels in [-1, 1]. The only place that knows 127.5."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from calotype.errors import NonFiniteError, UsageError


def from_array(array: npt.NDArray[Any]) -> Tensor:
    """uint8 [H, W, C] or [N, H, W, C] -> pixels [C, H, W] or [N, C, H, W]; C is 1 (grey), 3 (RGB) or 4 (RGBA).

    Raises:
        UsageError: another dtype or shape.
    """
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] not in (1, 3, 4):
        found = f"{array.dtype} {list(array.shape)}"
        raise UsageError(f"an array of pixels must be uint8 [H, W, 1, 3 or 4] or [N, H, W, 1, 3 or 4], not {found}.")
    return _scaled(array, 127.5)


def from_uint16(array: npt.NDArray[np.uint16]) -> Tensor:
    """uint16 [H, W, 3], where 65535 is white, -> pixels [3, H, W]."""
    return _scaled(array, 257 * 127.5)


def _scaled(array: npt.NDArray[Any], half: float) -> Tensor:
    """By NumPy, which starts no threads: many threads read pictures, and others compute beside them."""
    planes = np.ascontiguousarray(np.moveaxis(array, -1, -3), dtype=np.float32)
    planes /= np.float32(half)
    planes -= np.float32(1)
    return torch.from_numpy(planes)


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels [..., C, H, W] of any float dtype -> uint8 of the same shape: clamped to [-1, 1], rounded half up.

    C is 1 (grey), 3 (RGB) or 4 (RGBA, whose alpha is in [-1, 1] like colours).

    Raises:
        NonFiniteError: NaN or infinity among the pixels.
        UsageError: another dtype or shape.
    """
    if not pixels.is_floating_point() or pixels.ndim < 3 or pixels.shape[-3] not in (1, 3, 4):
        raise UsageError(f"pixels must be floats [..., 1, 3 or 4, H, W], not {pixels.dtype} {list(pixels.shape)}.")
    _require_finite(pixels, "pixels")
    # 127.5 x + 127.5 is the level, and another half makes floor() round half up.
    return pixels.detach().float().clamp(-1.0, 1.0).mul_(127.5).add_(128.0).floor_().to(torch.uint8)


def to_pil(pixels: Tensor, alpha: Tensor | None = None) -> Image.Image:
    """Pixels [C, H, W], and alpha [H, W] in [0, 1] if given, -> an image, rounded half up.

    Grey (C = 1) becomes L, or LA with alpha; RGB becomes RGB or RGBA; RGBA has its alpha itself.

    Raises:
        NonFiniteError: NaN or infinity among pixels or alpha.
        UsageError: another shape or dtype.
    """
    if pixels.ndim != 3:
        raise UsageError(f"pixels of one picture must be [1, 3 or 4, H, W], not {list(pixels.shape)}.")
    levels = to_uint8(pixels).permute(1, 2, 0).contiguous().cpu().numpy()
    image = Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
    if alpha is not None:
        if len(pixels) == 4:
            raise UsageError("RGBA pixels have their alpha; give it in them or beside three channels, not both.")
        if alpha.shape != pixels.shape[-2:] or not alpha.is_floating_point():
            found = f"{alpha.dtype} {list(alpha.shape)}"
            raise UsageError(f"alpha must be floats {list(pixels.shape[-2:])}, like the pixels, not {found}.")
        _require_finite(alpha, "alpha")
        opacity = alpha.detach().float().clamp(0.0, 1.0).mul_(255.0).add_(0.5).floor_().to(torch.uint8)
        image.putalpha(Image.fromarray(opacity.contiguous().cpu().numpy()))
    return image


def _require_finite(values: Tensor, what: str) -> None:
    if not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values)).sum())
        raise NonFiniteError(f"{bad} of {values.numel()} values of {what} are NaN or infinite.")
