"""Picture files, bytes and PIL images -> pixels."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageFile

from calotype.errors import PictureError, UsageError
from calotype.pixels import boxes, deep, opening, png, tiff, values as values_
from calotype.pixels.colour import deep_srgb, srgb
from calotype.pixels.light import ADOBE, STATED_SRGB, Light, of_gamma
from calotype.pixels.picture import Levels, Opacity, Picture, PictureRows
from calotype.pixels.upright import AS_STORED, empty
from calotype.pixels.values import Values, assemble


def read_picture(
    source: str | os.PathLike[str] | bytes | Image.Image,
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
        source: a path, a file's bytes, or a PIL image (which is left as it is).
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
    source: str | os.PathLike[str] | bytes | Image.Image,
    *,
    alpha: Literal["over", "keep"] = "over",
    background: tuple[int, int, int] = (255, 255, 255),
) -> PictureRows:
    """Read a picture as `read_picture` does, with the same pixels, but hold it in a quarter of the memory.

    While it is read it takes 7 bytes a pixel (Pillow's own 4 are given back), and 1 more where there is alpha. Colour
    of more than 8 bits takes 12, of which 6 are kept, and 4 more where there is alpha.

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
            return _decoded(_of_image(source, "The picture"), "The picture", keep, background)
    name = "The picture" if isinstance(source, bytes) else os.fspath(source)
    with io.BytesIO(source) if isinstance(source, bytes) else opening.open_file(name) as file, opening.strict_pillow():
        return _decoded(_of_file(file, name), name, keep, background)


def picture_size(file: IO[bytes]) -> tuple[int, int]:
    """(height, width) of a picture file, from its header; before it is turned upright.

    Raises:
        PictureError: as for `read_picture`, as far as the header tells.
    """
    with opening.strict_pillow():
        source = _of_file(file, "The picture")
    return source.height, source.width


@dataclass
class _Source:
    """A picture of which all is known but its values.

    Attributes:
        width, height: as stored.
        image: Pillow's, not loaded yet; None for what Pillow does not open.
        decode: gives the values where Pillow shall not.
        profile: ICC.
        light: what the values stand for where there is no profile that can be used.
        frames, frame: how many there are, and the number of this one.
        orientation: as in EXIF; None where Pillow's image tells.
        white_is_zero: a TIFF with 0 for white.
        nodata: a TIFF's value of pixels without data.
        depth: bits of a value, where boxes say it.
        notices: what was done.
    """

    width: int
    height: int
    image: Image.Image | None = None
    decode: Callable[[], Values] | None = None
    profile: bytes | None = None
    light: Light | None = None
    frames: int = 1
    frame: int = 1
    orientation: int | None = None
    white_is_zero: bool = False
    nodata: float | None = None
    depth: int = 0
    notices: list[str] = field(default_factory=list)


# Which reader


def _of_file(file: IO[bytes], name: str) -> _Source:
    head = file.read(16)
    if head.startswith(png.SIGNATURE):
        return _of_png(file, name)
    if head.startswith(tiff.SIGNATURES):
        return _of_tiff(file, name)
    said = boxes.examine(file)
    source = _of_pillow(_identified(file, name))
    if said is not None:
        source.profile = source.profile or said.profile
        source.light = source.light or said.light
        source.depth = said.depth
        _decode_boxes(source, said, file, name)
    elif source.image is not None and source.image.format == "PPM":
        _decode_ppm(source, file)
    return source


def _identified(file: IO[bytes], name: str) -> Image.Image:
    file.seek(0)
    return opening.identify(file, name)


def _of_pillow(image: Image.Image) -> _Source:
    width, height = image.size
    return _Source(width, height, image, profile=image.info.get("icc_profile"))


def _of_image(image: Image.Image, name: str) -> _Source:
    """Of a PIL image, which may have lost what its file said."""
    source = _of_pillow(image)
    file = getattr(image, "fp", None)
    if image.format == "TIFF":
        try:
            tags = getattr(image, "tag_v2", None)
            said = tags and tiff.of_tags(dict(tags), ">" if tags.prefix == b"MM" else "<")
        except tiff.NotReadableError as error:
            raise PictureError(f"{name} {error}.") from None
        if said:
            if said.reader == "tifffile":
                raise PictureError(
                    f"{name} holds {said.words}, which Pillow reads wrong; give the path of its file instead."
                )
            _tell_tiff(source, said)
    elif image.format == "PNG" and file is not None and not file.closed and file.seekable():
        at = file.tell()
        png_said = png.examine(file)
        file.seek(at)
        source.light = png_said.light if png_said else None
        if png_said is not None and png_said.has_cicp:
            source.profile = None
        return source
    if "srgb" in image.info:
        source.light = STATED_SRGB
    elif "gamma" in image.info or "chromaticity" in image.info:
        source.light = of_gamma(image.info.get("gamma"), image.info.get("chromaticity"))
    return source


def _of_png(file: IO[bytes], name: str) -> _Source:
    said = png.examine(file)
    if said is None:
        return _of_pillow(_identified(file, name))
    image = _identified(png.without(file, said.left_out), name)
    source = _of_pillow(image)
    source.profile, source.light, source.notices = said.profile, said.light, said.notices
    library = deep.imagecodecs()
    if said.depth == 16 and said.colour_type != 0 and library is not None:  # grey is kept by Pillow
        source.decode = lambda: deep.of_png(library, png.bare(file, said.needed))
        if said.exif is not None:
            image.info["exif"] = b"Exif\0\0" + said.exif
    return source


def _of_tiff(file: IO[bytes], name: str) -> _Source:
    try:
        said = tiff.examine(file)
    except tiff.NotReadableError as error:
        raise PictureError(f"{name} {error}.") from None
    if said is None:
        return _of_pillow(_identified(file, name))
    if said.width * said.height > opening.MAX_PIXELS:
        raise opening.too_large(name, f"{said.width} x {said.height} pixels")
    library = deep.tifffile()
    image = None
    if said.reader != "tifffile":
        with contextlib.suppress(PictureError):  # what it does not know is for tifffile
            image = _identified(file, name)
    if image is not None and (said.reader == "pillow" or library is None):
        source = _of_pillow(image)
        _tell_tiff(source, said)
        return source
    source = _Source(said.width, said.height, image, profile=said.profile, orientation=said.orientation)
    source.frames = said.frames
    _tell_tiff(source, said)
    if library is None:
        raise PictureError(f"{name} holds {said.words}, which needs more packages; {deep.INSTALL}.")
    source.decode = lambda: deep.of_tiff(library, file, said, source.notices)
    return source


def _tell_tiff(source: _Source, said: tiff.Tiff) -> None:
    source.white_is_zero, source.nodata = said.inverted, said.nodata
    if said.unnamed:
        what = "A further channel" if said.unnamed == 1 else f"{said.unnamed} further channels"
        source.notices.append(f"{what} without a meaning {'was' if said.unnamed == 1 else 'were'} left out.")
    if said.nodata is not None and not (said.kind == "f" and not 0.0 <= said.nodata <= 1.0):
        source.notices.append(
            f"Pixels that the file marks as without data, by the value {said.nodata:g}, were read like others."
        )


def _decode_boxes(source: _Source, said: boxes.Boxes, file: IO[bytes], name: str) -> None:
    """Of AVIF, HEIF and JPEG 2000 with more than 8 bits."""
    image, library = source.image, deep.imagecodecs()
    if image is None or said.depth <= 8:
        return
    if image.format == "AVIF" and library is not None:
        source.decode = lambda: deep.of_avif(library, _content(file), said.depth)
    elif image.format == "JPEG2000" and image.mode != "I;16":
        # Pillow makes black of the white of such colours
        if not said.plain:
            raise PictureError(
                f"{name} holds {said.depth}-bit JPEG 2000 of a kind that can't be read; save it as 16-bit RGB."
            )
        if library is None:
            raise PictureError(
                f"{name} holds {said.depth}-bit colour in JPEG 2000, which needs more packages; {deep.INSTALL}."
            )
        source.decode = lambda: deep.of_jpeg_2000(library, _content(file), said.depth)
    elif image.format != "JPEG2000":
        hint = f"; {deep.INSTALL} keeps all" if image.format == "AVIF" else ""
        source.notices.append(f"{said.depth}-bit colour was reduced to 8 bits, because Pillow keeps no more{hint}.")


def _decode_ppm(source: _Source, file: IO[bytes]) -> None:
    """Of a portable pixmap with more than 8 bits, whose values lie one after the other."""
    assert isinstance(source.image, ImageFile.ImageFile)
    tile = source.image.tile[0]
    if tile.codec_name == "ppm" and isinstance(tile.args, tuple) and tile.args[0] == "RGB" and tile.args[1] > 255:
        shape, full = (source.height, source.width, 3), float(tile.args[1])

        def decode() -> Values:
            file.seek(tile.offset)
            array = np.frombuffer(file.read(2 * math.prod(shape)), dtype=">u2")
            if array.size < math.prod(shape):
                raise ValueError("its values end early")
            return deep.of_array(array.reshape(shape).astype(np.uint16), full, "RGB")

        source.decode = decode


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


# Decoding


def _decoded(source: _Source, name: str, keep: bool, background: tuple[int, int, int]) -> PictureRows:
    if source.width * source.height > opening.MAX_PIXELS:
        raise opening.too_large(name, f"{source.width} x {source.height} pixels")
    if not source.width * source.height:
        raise PictureError(f"{name} has no pixels: its size is {source.width} x {source.height}.")
    stored = _stored(source)
    try:
        if source.image is not None and source.decode is None:
            image = source.image
            source.frames, source.frame = getattr(image, "n_frames", 1), image.tell() + 1
            image.load()
            values = _grey_values(image, source, stored) if image.mode.startswith("I") or image.mode == "F" else None
        else:
            assert source.decode is not None
            if source.image is not None:
                source.frames = getattr(source.image, "n_frames", source.frames)
            values = source.decode()
    except tiff.NotReadableError as error:
        raise PictureError(f"{name} {error}.") from error
    except Exception as error:  # decoders raise almost anything over damaged data
        raise opening.damaged(name, error) from error
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


def _orientation(source: _Source) -> int:
    if source.orientation is not None:
        return source.orientation if source.orientation in AS_STORED else 1
    assert source.image is not None
    try:
        # a plugin's own would load the image, to find EXIF data after the pixels
        exif = source.image.getexif() if source.decode is None else Image.Image.getexif(source.image)
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


def _stored(source: _Source) -> _Stored:
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


def _grey_values(image: Image.Image, source: _Source, stored: _Stored) -> Values:
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


def _colour(image: Image.Image, source: _Source, stored: _Stored, orientation: int) -> tuple[Levels, Opacity | None]:
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
        stored_levels[rows] = np.asarray(to_srgb(part.convert(mode)))
    return levels, opacity
