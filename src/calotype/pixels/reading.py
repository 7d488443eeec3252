"""Picture files, bytes and PIL images -> pixels."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageFile

from calotype.errors import PictureError, UsageError
from calotype.pixels import deep, opening, values as values_
from calotype.pixels.colour import deep_srgb, in_mode, srgb
from calotype.pixels.light import ADOBE
from calotype.pixels.picture import Levels, Opacity, Picture, PictureRows
from calotype.pixels.source import Source, of_file, of_image
from calotype.pixels.upright import AS_STORED, empty
from calotype.pixels.values import Values, assemble


def read_picture(
    source: str | os.PathLike[str] | bytes | IO[bytes] | Image.Image,
    *,
    alpha: Literal["over", "keep"] = "over",
    background: tuple[int, int, int] = (255, 255, 255),
) -> Picture:
    """Read a picture as upright sRGB pixels.

    EXIF orientation is applied. Colours are converted to sRGB by what the file says of them: PNG's cICP, an ICC profile
    (perceptual intent), PNG's gAMA and cHRM, nclx of AVIF and HEIF, or EXIF's Adobe RGB; what is sRGB within one level
    of 255 is left as it is, and HDR (PQ, HLG) too, with a notice.

    16-bit grey keeps its precision, and with the packages of calotype[deep] 16-bit colour does too; without them it is
    reduced to 8 bits, with a notice. Floats must lie in [0, 1] and are taken as sRGB-encoded unless a profile says
    otherwise. Of several frames the first is used, of a PIL image the current one.

    Args:
        source: a path, a file's bytes, a file that is open for reading them (from its beginning, back and forth), or a
            PIL image (which is left as it is).
        alpha: "over" composites over the background, in sRGB-encoded values; "keep" returns colours and alpha
            separately, where fully transparent pixels get the background's colour.
        background: R, G, B in 0..255.

    Raises:
        PictureError: it is missing, unreadable, no picture, damaged, cut off, larger than `MAX_PIXELS`, or of a kind
            that needs calotype[deep] and those packages are not installed.
        UsageError: an unknown `alpha` or `background`.
    """
    rows = read_picture_rows(source, alpha=alpha, background=background)
    height = rows.size[0]
    opacity = rows.weight(0, height) if rows.keep and rows.opacity is not None else None
    return Picture(rows.rows(0, height), opacity, rows.notices)


def read_picture_rows(
    source: str | os.PathLike[str] | bytes | IO[bytes] | Image.Image,
    *,
    alpha: Literal["over", "keep"] = "over",
    background: tuple[int, int, int] = (255, 255, 255),
) -> PictureRows:
    """Read a picture as `read_picture` does, with the same pixels, but hold it in a quarter of the memory.

    While it is read it takes 7 bytes a pixel (Pillow's own 4 are given back), and 1 more where there is alpha. Colour
    of more than 8 bits takes 12, of which 6 are kept, and 4 more where there is alpha; floats of 32 bits twice that.

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
    name = "The picture"
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
    elif not isinstance(source, bytes | Image.Image) and not hasattr(source, "read"):
        raise TypeError(f"a picture is read from a path, bytes, an open file or a PIL image, not from {source!r}")
    with opening.refusing(name), opening.strict_pillow():
        if isinstance(source, Image.Image):
            return _decoded(of_image(source, name), name, keep, background)
        if isinstance(source, str | os.PathLike):
            with opening.open_file(name) as file:
                return _decoded(of_file(file, name), name, keep, background)
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        file.seek(0)
        return _decoded(of_file(file, name), name, keep, background)


def require_whole(source: str | os.PathLike[str] | bytes) -> None:
    """Checks what reading a picture checks before it is decoded, for who decodes it by other means.

    Raises:
        PictureError: as for `read_picture`, as far as the header and checksums tell.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "The picture"
    with (
        opening.refusing(name),
        opening.strict_pillow(),
        io.BytesIO(source) if isinstance(source, bytes) else opening.open_file(name) as file,
    ):
        found = of_file(file, name)
        if found.check is not None:
            found.check()
        if found.load is not None:
            found.load()


def picture_size(file: IO[bytes]) -> tuple[int, int]:
    """(height, width) of a picture file, from its header; before it is turned upright.

    Raises:
        PictureError: as for `read_picture`, as far as the header tells.
    """
    with opening.refusing("The picture"), opening.strict_pillow():
        source = of_file(file, "The picture")
    return source.height, source.width


def upright_size(file: IO[bytes]) -> tuple[tuple[int, int], bool]:
    """(height, width) of a picture file once it is upright, from its header; and whether the sides were exchanged.

    Raises:
        PictureError: as for `read_picture`, as far as the header tells.
    """
    with opening.refusing("The picture"), opening.strict_pillow():
        source = of_file(file, "The picture")
        turned = _orientation(source, loads=False) >= 5
    height, width = source.height, source.width
    if not height * width:
        raise PictureError(f"The picture has no pixels: its size is {width} x {height}.")
    if height * width > opening.MAX_PIXELS:
        raise opening.too_large("The picture", f"{width} x {height} pixels")
    return ((width, height) if turned else (height, width)), turned


def _decoded(source: Source, name: str, keep: bool, background: tuple[int, int, int]) -> PictureRows:
    if source.width * source.height > opening.MAX_PIXELS:
        raise opening.too_large(name, f"{source.width} x {source.height} pixels")
    if not source.width * source.height:
        raise PictureError(f"{name} has no pixels: its size is {source.width} x {source.height}.")
    stored = _stored(source)
    if source.check is not None:
        source.check()
    if source.image is not None and source.decode is None:
        image = source.image
        source.frames, source.frame = getattr(image, "n_frames", 1), image.tell() + 1
        if source.load is not None:
            source.load()
        else:
            image.load()
        values = _grey_values(image, source, stored) if image.mode.startswith("I") or image.mode == "F" else None
    else:
        assert source.decode is not None
        if source.image is not None:
            source.frames = getattr(source.image, "n_frames", source.frames)
        values = source.decode()
    notices = source.notices
    if source.frames > 1:
        notices.append(f"Only frame {source.frame} of {source.frames} was used.")
    orientation = _orientation(source)
    if source.image is not None and not source.profile and source.light is None and _says_adobe_rgb(source.image):
        source.light = ADOBE

    if values is not None:
        convert = deep_srgb(values.model, values.floats, source.profile, source.light, notices)
        levels, opacity = assemble(values, name, convert, orientation)
    else:
        assert source.image is not None
        levels, opacity = _colour(source.image, source, stored, orientation)
    opacity = None if opacity is None or opacity.min() == np.iinfo(opacity.dtype).max else opacity
    if opacity is not None:
        if values is not None and values.alpha is None and values.nodata is not None:
            notices.append("Pixels without data are transparent.")
        if not keep:
            notices.append(f"Alpha was composited over the background {tuple(background)}.")
        elif not opacity.min():
            notices.append(f"Fully transparent pixels were given the background's colour {tuple(background)}.")
    return PictureRows(levels, opacity, keep, background, tuple(notices))


def _orientation(source: Source, loads: bool = True) -> int:
    """As in EXIF.

    Args:
        loads: the image may be decoded for it, as Pillow does with a PNG, whose EXIF data may stand at its end.
    """
    if source.orientation is not None:
        return source.orientation if source.orientation in AS_STORED else 1
    assert source.image is not None
    try:
        # a plugin's own would load the image, to find EXIF data after the pixels
        exif = source.image.getexif() if source.decode is None and loads else Image.Image.getexif(source.image)
        orientation = exif.get(ExifTags.Base.Orientation)
        return orientation if orientation in AS_STORED else 1
    except Exception:  # the plugins raise almost anything over damaged EXIF, but then the pixels are whole
        source.notices.append("The EXIF data can't be read, so the picture was left the way it is stored.")
        return 1


def _says_adobe_rgb(image: Image.Image) -> bool:
    """By EXIF's ColorSpace of 2, or by the interoperability index R03 of DCF."""
    try:
        exif = Image.Image.getexif(image)
        space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
        index = exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
    except Exception:  # as above, of which a notice tells
        return False
    return space == 2 or (space == 0xFFFF and str(index).startswith("R03"))


@dataclass(frozen=True)
class _Stored:
    """How the file holds its values, as far as Pillow's image does not tell after loading.

    Attributes:
        raw_mode: Pillow's name of the layout; empty for an image made in memory.
        deep_colour: colour channels have more than 8 bits.
    """

    raw_mode: str = ""
    deep_colour: bool = False


def _stored(source: Source) -> _Stored:
    image = source.image
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    if not tiles or image is None:
        return _Stored()
    first, *others = tiles[0].args if isinstance(tiles[0].args, tuple) else (tiles[0].args,)
    raw_mode = first if isinstance(first, str) else ""
    # Portable pixmaps tell their depth by the largest value instead.
    deep_colour = ";16" in raw_mode or (image.format == "PPM" and bool(others) and others[0] > 255)
    return _Stored(raw_mode, deep_colour and not image.mode.startswith("I"))


def _stripes(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """All rows, a few at a time: which, and an image of them."""
    width, height = image.size
    step = max(1, values_.STRIPE // width)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        yield slice(top, bottom), image.crop((0, top, width, bottom))


def _grey_values(image: Image.Image, source: Source, stored: _Stored) -> Values:
    """Of Pillow's modes for grey of more than 8 bits."""
    full = 1.0 if image.mode == "F" else 4095.0 if stored.raw_mode == "I;12" else 65535.0
    if image.format == "JPEG2000" and 8 < source.depth < 16:
        full = float((2**source.depth - 1) << (16 - source.depth))  # Pillow shifts, which makes white less
    if image.mode == "I" and image.format != "PPM":
        source.notices.append("Whole numbers were taken for 16-bit grey: 0 is black and 65535 is white.")
    width, height = image.size

    def rows(top: int, bottom: int) -> Any:
        return np.asarray(image.crop((0, top, width, bottom)))[..., None]

    return Values(
        width,
        height,
        rows,
        "L",
        full,
        floats=image.mode == "F",
        inverted=source.white_is_zero,  # Pillow inverts such TIFFs only up to 8 bits
        checked=image.mode in ("I", "F"),
        nodata=source.nodata if image.mode == "F" else None,
        key=image.info.get("transparency"),
    )


def _colour(image: Image.Image, source: Source, stored: _Stored, orientation: int) -> tuple[Levels, Opacity | None]:
    """Any image of 8 bits or fewer -> levels [H, W, 3] and alpha [H, W] or None."""
    info, notices = dict(image.info), source.notices
    if stored.deep_colour:
        hint = f"; {deep.INSTALL} keeps all" if image.format in ("PNG", "TIFF") and not deep.imagecodecs() else ""
        notices.append(f"16-bit colour was reduced to 8 bits, because Pillow keeps no more{hint}.")
    if "transparency" in info:
        if stored.deep_colour:
            del info["transparency"]
            notices.append("The transparent colour was ignored, because Pillow can't find it in 16-bit colour.")
        elif stored.raw_mode in ("L;2", "L;4"):
            # Pillow scales the grey levels of these to 0..255, but not the one that is transparent.
            info["transparency"] *= 255 // (2 ** int(stored.raw_mode[-1]) - 1)

    # L is exactly the grey, also of R = G = B.
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "CMYK" if image.mode == "CMYK" else "RGB"
    says_itself = image.mode == "LAB"
    to_srgb = srgb(mode, None if says_itself else source.profile, None if says_itself else source.light, notices)
    levels, stored_levels = empty(image.size, orientation, 3, dtype=np.uint8)
    opacity: Opacity | None = None
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
        stored_levels[rows] = np.asarray(to_srgb(in_mode(part, mode)))
    return levels, opacity
