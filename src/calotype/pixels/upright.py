"""Turning what a file stores upright, as its EXIF orientation says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

# EXIF orientation -> an upright array seen the way the file stores it
AS_STORED: dict[int, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


def empty(
    size: tuple[int, int], orientation: int, *channels: int, dtype: npt.DTypeLike
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """An empty array for an upright picture, [H, W, *channels], and a view of it as the file stores it."""
    width, height = size
    shape = (height, width) if orientation < 5 else (width, height)
    upright: npt.NDArray[Any] = np.empty((*shape, *channels), dtype=dtype)
    return upright, AS_STORED[orientation](upright)
