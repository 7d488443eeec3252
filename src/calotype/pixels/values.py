"""Values as a file stores them, of more than 8 bits or of another kind than Pillow's, and levels made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from calotype.errors import PictureError
from calotype.pixels.light import lab_to_srgb
from calotype.pixels.picture import Levels, Opacity
from calotype.pixels.upright import empty

STRIPE = 2**18  # pixels that are converted at a time

Model = Literal["L", "RGB", "CMYK", "LAB"]
Convert = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]

COLOURS: dict[Model, int] = {"L": 1, "RGB": 3, "CMYK": 4, "LAB": 3}


@dataclass(frozen=True)
class Values:
    """Values as a file stores them.

    Attributes:
        width, height: as stored.
        rows: (top, bottom) -> those rows, [bottom - top, width, C]: grey, RGB, CMYK or L*a*b*, and what else there is.
        model: L (grey), RGB, CMYK or LAB.
        full: the value of white, of full ink and of full opacity.
        floats: they are floats.
        alpha: the channel of it; None without.
        premultiplied: the colours are multiplied by it.
        inverted: 0 is white.
        checked: some may lie outside 0..`full`, which is refused.
        nodata: the value of pixels without data; those that are no colours become transparent.
        key: the grey that is transparent.
    """

    width: int
    height: int
    rows: Callable[[int, int], npt.NDArray[Any]]
    model: Model
    full: float
    floats: bool = False
    alpha: int | None = None
    premultiplied: bool = False
    inverted: bool = False
    checked: bool = False
    nodata: float | None = None
    key: int | None = None

    def stripes(self) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
        """All rows, a few at a time: which, and their values."""
        step = max(1, STRIPE // self.width)
        for top in range(0, self.height, step):
            bottom = min(top + step, self.height)
            yield slice(top, bottom), self.rows(top, bottom)


def assemble(values: Values, name: str, convert: Convert | None, orientation: int) -> tuple[Levels, Opacity | None]:
    """Upright levels in sRGB as `PictureRows` has them, and opacity if any of it can be below full.

    Args:
        name: of the picture, for messages.
        convert: takes uint16, or float32 in [0, 1], to sRGB, of the same type: [n, W, 1, 3 or 4] to [n, W, 3], or grey
            to grey.

    Raises:
        PictureError: values out of range.
    """
    hidden = _check(values, name) if values.checked else False
    n = COLOURS[values.model]
    size = (values.width, values.height)
    sample = None if convert is None else convert(np.zeros((1, 1, n), np.float32 if values.floats else np.uint16))
    grey = values.model == "L" and (sample is None or sample.shape[-1] == 1)
    as_pixels = grey or values.floats
    levels, stored = empty(size, orientation, *(() if grey else (3,)), dtype=np.float32 if as_pixels else np.uint16)
    opacity: Opacity | None = None
    stored_opacity: Any = None
    if values.alpha is not None:
        opacity, stored_opacity = empty(size, orientation, dtype=np.uint16)
    elif hidden or values.key is not None:
        opacity, stored_opacity = empty(size, orientation, dtype=np.uint8)
    for rows, part in values.stripes():
        unit = as_pixels and (values.floats or convert is None)
        colours = _colours(values, part[..., :n], None if values.alpha is None else part[..., values.alpha], unit)
        if convert is not None:
            colours = convert(colours)
        if as_pixels:
            if colours.dtype == np.uint16:
                colours = colours.astype(np.float32) / np.float32(65535)
            colours = colours * np.float32(2.0) - np.float32(1.0)
        stored[rows] = colours[..., 0] if grey else colours
        if values.alpha is not None:
            stored_opacity[rows] = _of_16_bits(part[..., values.alpha] / np.float32(values.full))
        elif opacity is not None:
            clear = part[..., 0] == values.key if values.key is not None else _without_data(values, part[..., :n])
            stored_opacity[rows] = np.where(clear, np.uint8(0), np.uint8(255))
    return levels, opacity


def _colours(
    values: Values, part: npt.NDArray[Any], alpha: npt.NDArray[Any] | None, as_floats: bool
) -> npt.NDArray[Any]:
    """uint16, or float32 in [0, 1]: [n, W, C]."""
    exact = part.dtype == np.uint16 and values.full == 65535
    if exact and not as_floats and not values.inverted and not values.premultiplied:
        return part
    if values.model == "LAB":
        unit = lab_to_srgb(part.astype(np.float64)).astype(np.float32)
    else:
        unit = part.astype(np.float32) / np.float32(values.full)
    if values.nodata is not None:
        unit = np.where(np.isfinite(unit), unit, np.float32(0.0))
    if alpha is not None and values.premultiplied:
        weight = alpha.astype(np.float32)[..., None] / np.float32(values.full)
        unit = np.divide(unit, weight, out=np.zeros_like(unit), where=weight > 0.0)
    if values.inverted:
        unit = np.float32(1.0) - unit
    unit = np.clip(unit, 0.0, 1.0)
    return unit if as_floats else _of_16_bits(unit)


def _of_16_bits(unit: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    levels: npt.NDArray[np.uint16] = np.rint(np.clip(unit, 0.0, 1.0) * np.float32(65535)).astype(np.uint16)
    return levels


def _outside(values: Values, part: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = (part >= 0) & (part <= values.full)  # NaN is not
    return ~inside


def _without_data(values: Values, colours: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where all the channels hold the value of no data and that is no colour: [n, W]."""
    if values.nodata is None:
        return np.zeros(colours.shape[:2], dtype=np.bool_)
    nodata = np.asarray(values.nodata, dtype=colours.dtype if values.floats else np.float64)
    same = np.isnan(colours) if np.isnan(nodata) else colours == nodata
    result: npt.NDArray[np.bool_] = (same & _outside(values, colours)).all(axis=-1)
    return result


def _check(values: Values, name: str) -> bool:
    """Whether there are pixels without data."""
    n = COLOURS[values.model]
    hidden = False
    low, high, bad = np.inf, -np.inf, False
    for _, part in values.stripes():
        used = part[..., [*range(n), *([] if values.alpha is None else [values.alpha])]]
        empty_ = _without_data(values, part[..., :n])
        hidden = hidden or bool(empty_.any())
        used = used[~empty_]
        if used.size:
            low, high = min(low, float(used.min())), max(high, float(used.max()))
            bad = bad or bool(_outside(values, used).any())
            if np.isnan(used).any():
                low = high = np.nan
    if bad:
        what = "grey values" if values.model == "L" else "values"
        raise PictureError(
            f"{name} holds {what} from {low:g} to {high:g} where 0 to {values.full:g} are expected; rescale them first."
        )
    return hidden
