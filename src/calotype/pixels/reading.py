"""Picture files, bytes and PIL images -> pixels."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageFile

from calotype.errors import PictureError, UsageError
from calotype.pixels import opening
from calotype.pixels.colour import srgb
from calotype.pixels.picture import Bytes, Levels, Picture, PictureRows
from calotype.pixels.upright import AS_STORED, empty

_STRIPE = 2**18  # pixels that are converted at a time


def read_picture(
    source: str | os.PathLike[str] | bytes | Image.Image,
    *,
    alpha: Literal["over", "keep"] = "over",
    background: tuple[int, int, int] = (255, 255, 255),
) -> Picture:
    """Read a picture as upright sRGB pixels.

    EXIF orientation is applied; an ICC profile is converted to sRGB (perceptual intent), except one that is sRGB
    within one level of 255, which changes nothing. 16-bit grey keeps its precision; float grey must lie in [0, 1] and
    is taken as sRGB-encoded. Of several frames the first is used, of a PIL image the current one.

    Args:
        source: a path, a file's bytes, or a PIL image (which is left as it is).
        alpha: "over" composites over the background, in sRGB-encoded values; "keep" returns colours and alpha
            separately, where fully transparent pixels get the background's colour.
        background: R, G, B in 0..255.

    Raises:
        PictureError: it is missing, unreadable, no picture, damaged, cut off, or larger than `MAX_PIXELS`.
        UsageError: an unknown `alpha` or `background`.
    """
    rows = read_picture_rows(source, alpha=alpha, background=background)
    opacity = None if rows.alpha is None else rows.alpha.float().div_(255.0)
    return Picture(rows.rows(0, rows.size[0]), opacity, rows.notices)


def read_picture_rows(
    source: str | os.PathLike[str] | bytes | Image.Image,
    *,
    alpha: Literal["over", "keep"] = "over",
    background: tuple[int, int, int] = (255, 255, 255),
) -> PictureRows:
    """Read a picture as `read_picture` does, with the same pixels, but hold it in a quarter of the memory.

    While it is read it takes 7 bytes a pixel (Pillow's own 4 are given back), and 1 more where there is alpha.

    Args:
        source, alpha, background: as there.

    Raises:
        PictureError, UsageError: as there.
    """
    if alpha not in ("over", "keep"):
        raise UsageError(f'alpha must be "over" or "keep", not {alpha!r}.')
    if len(background) != 3 or not all(isinstance(level, int) and 0 <= level <= 255 for level in background):
        raise UsageError(f"background must be three whole numbers from 0 to 255, not {background!r}.")
    keep = alpha == "keep"
    if isinstance(source, Image.Image):
        with opening.strict_pillow():
            return _picture(source, "The picture", keep, background)
    name = "The picture" if isinstance(source, bytes) else os.fspath(source)
    with io.BytesIO(source) if isinstance(source, bytes) else opening.open_file(name) as file, opening.strict_pillow():
        return _picture(opening.identify(file, name), name, keep, background)


def _picture(image: Image.Image, name: str, keep: bool, background: tuple[int, int, int]) -> PictureRows:
    """Decode an image whose header has been read."""
    width, height = image.size
    if width * height > opening.MAX_PIXELS:
        raise opening.too_large(name, f"{width} x {height} pixels")
    if not width * height:
        raise PictureError(f"{name} has no pixels: its size is {width} x {height}.")
    notices: list[str] = []
    stored = _stored(image)
    try:
        frames = getattr(image, "n_frames", 1)
        image.load()
    except Exception as error:  # the plugins raise almost anything over damaged data
        raise opening.damaged(name, error) from error
    if frames > 1:
        notices.append(f"Only frame {image.tell() + 1} of {frames} was used.")
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        orientation = orientation if orientation in AS_STORED else 1
    except Exception:  # the same over damaged EXIF, but then the pixels are whole
        notices.append("The EXIF data can't be read, so the picture was left the way it is stored.")
        orientation = 1

    read = _deep_grey if image.mode.startswith("I") or image.mode == "F" else _colour
    levels, opacity = read(image, name, stored, orientation, notices)
    if opacity is not None and opacity.min() == 255:
        opacity = None
    if opacity is not None:
        if not keep:
            notices.append(f"Alpha was composited over the background {tuple(background)}.")
        elif not opacity.min():
            notices.append(f"Fully transparent pixels were given the background's colour {tuple(background)}.")
    return PictureRows(levels, opacity, keep, background, tuple(notices))


@dataclass(frozen=True)
class _Stored:
    """How the file holds its values, as far as Pillow's image does not tell after loading.

    Attributes:
        raw_mode: Pillow's name of the layout; empty for an image made in memory.
        deep_colour: colour channels have more than 8 bits.
        white_is_zero: a TIFF with 0 for white.
    """

    raw_mode: str
    deep_colour: bool
    white_is_zero: bool


def _stored(image: Image.Image) -> _Stored:
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    args = tiles[0].args if tiles else ""
    first, *others = args if isinstance(args, tuple) else (args,)
    raw_mode = first if isinstance(first, str) else ""
    # Portable pixmaps tell their depth by the largest value instead.
    deep = ";16" in raw_mode or (image.format == "PPM" and bool(others) and others[0] > 255)
    tags = getattr(image, "tag_v2", {})
    return _Stored(
        raw_mode=raw_mode,
        deep_colour=deep and not image.mode.startswith("I"),
        white_is_zero=tags.get(262) == 0,  # 262: PhotometricInterpretation
    )


def _stripes(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """All rows, a few at a time: which, and an image of them."""
    width, height = image.size
    step = max(1, _STRIPE // width)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        yield slice(top, bottom), image.crop((0, top, width, bottom))


def _deep_grey(
    image: Image.Image, name: str, stored: _Stored, orientation: int, notices: list[str]
) -> tuple[Levels, Bytes | None]:
    """Grey of more than 8 bits -> pixels [H, W] in [-1, 1] and alpha [H, W] or None."""
    grey, as_stored = empty(image.size, orientation, dtype=np.float32)
    for rows, part in _stripes(image):
        as_stored[rows] = np.asarray(part)
    full = 1.0 if image.mode == "F" else 4095.0 if stored.raw_mode == "I;12" else 65535.0
    low, high = float(grey.min()), float(grey.max())
    if not (low >= 0.0 and high <= full):  # so that NaN is caught as well
        raise PictureError(
            f"{name} holds grey values from {low:g} to {high:g} where 0 to {full:g} are expected; rescale them first."
        )
    if image.mode == "I":
        notices.append("Whole numbers were taken for 16-bit grey: 0 is black and 65535 is white.")
    if "icc_profile" in image.info:
        notices.append("The ICC profile was ignored, because Pillow applies none to grey of more than 8 bits.")
    key = image.info.get("transparency")
    opacity = None if key is None else np.where(grey != key, np.uint8(255), np.uint8(0))
    grey /= np.float32(full)
    if stored.white_is_zero:  # Pillow inverts such TIFFs only up to 8 bits
        np.subtract(1.0, grey, out=grey)
    grey *= 2.0
    grey -= 1.0
    return grey, opacity


def _colour(
    image: Image.Image, name: str, stored: _Stored, orientation: int, notices: list[str]
) -> tuple[Levels, Bytes | None]:
    """Any image of 8 bits or fewer -> levels [H, W, 3] and alpha [H, W] or None."""
    info = dict(image.info)
    if stored.deep_colour:
        notices.append("16-bit colour was reduced to 8 bits, because Pillow keeps no more.")
    if "transparency" in info:
        if stored.deep_colour:
            del info["transparency"]
            notices.append("The transparent colour was ignored, because Pillow can't find it in 16-bit colour.")
        elif stored.raw_mode in ("L;2", "L;4"):
            # Pillow scales the grey levels of these to 0..255, but not the one that is transparent.
            info["transparency"] *= 255 // (2 ** int(stored.raw_mode[-1]) - 1)

    # L is exactly the grey, also of R = G = B.
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "CMYK" if image.mode == "CMYK" else "RGB"
    to_srgb = srgb(mode, None if image.mode == "LAB" else info.get("icc_profile"), notices)
    levels, stored_levels = empty(image.size, orientation, 3, dtype=np.uint8)
    opacity: Bytes | None = None
    stored_opacity: Any = None
    for rows, part in _stripes(image):
        part.info = info
        if part.mode == "La":
            part = part.convert("LA")
        if part.has_transparency_data:
            part = part.convert("RGBA")
            if opacity is None:
                opacity, stored_opacity = empty(image.size, orientation, dtype=np.uint8)
            stored_opacity[rows] = np.asarray(part.getchannel("A"))
        stored_levels[rows] = np.asarray(to_srgb(part.convert(mode)))
    return levels, opacity
