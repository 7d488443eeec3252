"""A picture before it is decoded: which reader gets it right, and what its file says of its values."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageFile, Jpeg2KImagePlugin

from calotype.errors import PictureError
from calotype.pixels import boxes, deep, held, icons, jxl, kinds, opening, png, tiff
from calotype.pixels.light import STATED_SRGB, Light, of_gamma
from calotype.pixels.values import Values

_LEVELS = 3  # halvings after which a picture is small
_MANY = 2**25  # pixels
_THIN = 64  # pixels of a byte: what is packed so closely may as well be a header that claims too much


@dataclass
class Source:
    """A picture of which all is known but its values.

    Attributes:
        width, height: as stored.
        image: Pillow's, not loaded yet; None for what Pillow does not open.
        check: looks at what takes long, before anything is decoded, and raises almost anything over damage.
        load: loads the image, where Pillow's own way does not find all damage.
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
    check: Callable[[], None] | None = None
    load: Callable[[], None] | None = None
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


def of_file(file: IO[bytes], name: str) -> Source:
    """Look at a file's header.

    Raises:
        PictureError: it is no picture, or none that can be read.
        Exception: almost any, if the header is damaged; `opening.refusing` is around all this.
    """
    head = file.read(kinds.HEAD)
    opening.require_readable(head, name)
    if head.startswith(png.SIGNATURE):
        return _of_png(file, name)
    if head.startswith(tiff.SIGNATURES):
        return _of_tiff(file, name)
    what = kinds.begins(head)
    if what == "JXL":
        return _of_jxl(file, name)
    if head.startswith(icons.SIGNATURES):
        icons.require_pngs(file)
    size = _size(file)
    if what == "WebP":
        held.require_webp(file, size)
    elif what == "JPEG":
        held.require_jpeg(file, size)
    said = boxes.examine(file)
    image = _identified(file, name)
    held.require_pixels(image, size)
    source = _of_pillow(image)
    if said is not None:
        source.profile = source.profile or said.profile
        source.light = source.light or said.light
        source.depth = said.depth
        _decode_boxes(source, said, file, name)
        if image.format == "JPEG2000":
            held.require_jpeg_2000(*image.size, said.levels, size)
            if source.width * source.height > max(_MANY, _THIN * size) and said.levels >= _LEVELS:
                source.check = lambda: _try_small(file, name, said.levels)
    elif image.format == "PPM":
        _decode_ppm(source, file)
    return source


def _try_small(file: IO[bytes], name: str, levels: int) -> None:
    """Decodes a JPEG 2000 in its smallest size, since a damaged one else takes the memory of the whole first.

    Raises:
        Exception: it is damaged.
    """
    image = _identified(file, name)
    if isinstance(image, Jpeg2KImagePlugin.Jpeg2KImageFile):
        image.reduce = levels
        image.load()


def _size(file: IO[bytes]) -> int:
    return file.seek(0, io.SEEK_END)


def _identified(file: IO[bytes], name: str) -> Image.Image:
    file.seek(0)
    return opening.identify(file, name)


def _of_pillow(image: Image.Image) -> Source:
    width, height = image.size
    return Source(width, height, image, profile=image.info.get("icc_profile"))


def of_image(image: Image.Image, name: str) -> Source:
    """Of a PIL image, which may have lost what its file said."""
    source = _of_pillow(image)
    file = getattr(image, "fp", None)
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", None)
        said = tags and tiff.of_tags(dict(tags), ">" if tags.prefix == b"MM" else "<")
        if said:
            if said.reader == "tifffile":
                raise PictureError(
                    f"{name} holds {said.words}, which Pillow reads wrong; give the path of its file instead."
                )
            _tell_tiff(source, said)
    elif image.format == "PNG" and file is not None and not file.closed and file.seekable():
        at = file.tell()
        png_said = png.examine(file)
        if png_said is not None and getattr(image, "tile", None):  # else it was loaded before
            png.require_data(file, png_said)
            png.require_stream(file, png_said)
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


def _of_png(file: IO[bytes], name: str) -> Source:
    said = png.examine(file)
    if said is None:
        return _of_pillow(_identified(file, name))
    whole, step = png.for_pillow(file, said)
    image = _identified(whole, name)
    held.require_pixels(image, _size(file))
    if isinstance(image, ImageFile.ImageFile):
        image.decodermaxblock = max(image.decodermaxblock, step)
    source = _of_pillow(image)
    source.check = lambda: png.require_data(file, said)
    source.load = lambda: png.load(image, file, said)
    source.profile, source.light, source.notices = said.profile, said.light, said.notices
    if said.exif is not None:  # Pillow finds it when the image is loaded
        image.info["exif"] = b"Exif\0\0" + said.exif
    # grey is kept by Pillow
    if said.depth == 16 and said.colour_type != 0 and (library := deep.imagecodecs()) is not None:
        source.decode = lambda: deep.of_png(library, png.bare(file, said))
    return source


def _of_tiff(file: IO[bytes], name: str) -> Source:
    said = tiff.examine(file)
    if said is None:
        known = _identified(file, name)
        held.require_parts(file, tiff.listed(dict(getattr(known, "tag_v2", {}))))
        return _of_pillow(known)
    if said.width * said.height > opening.MAX_PIXELS:
        raise opening.too_large(name, f"{said.width} x {said.height} pixels")
    if held.require_parts(file, said.tags):  # Pillow takes what stands in their place
        said = dataclasses.replace(said, reader="tifffile")
    image = None
    if said.reader != "tifffile":
        with contextlib.suppress(Exception):  # what it does not know is for tifffile
            image = _identified(file, name)
    library = None if image is not None and said.reader == "pillow" else deep.tifffile()
    if image is not None and library is None:
        source = _of_pillow(image)
        if said.model == "P" and said.reader != "pillow":
            source.notices.append(f"The palette was reduced to 8 bits, because Pillow keeps no more; {deep.INSTALL}.")
        _tell_tiff(source, said)
        return source
    source = Source(said.width, said.height, image, profile=said.profile, orientation=said.orientation)
    source.frames = said.frames
    _tell_tiff(source, said)
    if library is None:
        raise PictureError(f"{name} holds {said.words}, which needs more packages; {deep.INSTALL}.")
    source.decode = lambda: deep.of_tiff(library, file, said, source.notices)
    return source


def _of_jxl(file: IO[bytes], name: str) -> Source:
    said = jxl.header(file)
    if said is not None and said.width * said.height > opening.MAX_PIXELS:  # its plugin decodes where others only open
        raise opening.too_large(name, f"{said.width} x {said.height} pixels")
    try:
        image = _identified(file, name)
    except Exception:  # of which the plugin says no more than that
        raise PictureError(f"{name} is JPEG XL, but damaged or cut off; make or download it again.") from None
    source = _of_pillow(image)
    if said is None or getattr(image, "jpeg", False):  # a JPEG inside comes as it was, EXIF and all
        return source
    if said.orientation != 1:
        source.orientation = 1  # the decoder has turned it; EXIF may say so once more
    else:
        with contextlib.suppress(Exception):  # plugins raise almost anything over damaged EXIF, of which is told later
            if Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) != 1:
                source.notices.append(
                    "The picture was turned by its EXIF data, of which JPEG XL's own header is silent."
                )
    if said.depth > 8 and image.mode in ("RGB", "RGBA", "LA"):
        library = deep.imagecodecs()
        if library is not None and library.JPEGXL.available:
            source.decode = lambda: deep.of_jpeg_xl(library, _content(file), said.depth, said.floats)
        else:
            what = f"{said.depth}-bit {'floats were' if said.floats else 'colour was'}"
            source.notices.append(
                f"{what} reduced to 8 bits, because its plugin keeps no more; {deep.INSTALL} keeps all."
            )
    return source


def _tell_tiff(source: Source, said: tiff.Tiff) -> None:
    source.white_is_zero, source.nodata = said.inverted, said.nodata
    if said.unnamed:
        what = "A further channel" if said.unnamed == 1 else f"{said.unnamed} further channels"
        source.notices.append(f"{what} without a meaning {'was' if said.unnamed == 1 else 'were'} left out.")
    if said.nodata is not None and 0.0 <= said.nodata <= (1.0 if said.kind == "f" else 2.0**said.bits - 1.0):
        source.notices.append(
            f"Pixels that the file marks as without data, by the value {said.nodata:g}, were read like others."
        )


def _decode_boxes(source: Source, said: boxes.Boxes, file: IO[bytes], name: str) -> None:
    """Of AVIF, HEIF and JPEG 2000 with more than 8 bits."""
    image = source.image
    if image is None or said.depth <= 8:
        return
    if image.format == "HEIF" and (heif := deep.pillow_heif()) is not None:
        source.decode = lambda: deep.of_heif(heif, file, said.depth)
        return
    library = deep.imagecodecs()
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


def _decode_ppm(source: Source, file: IO[bytes]) -> None:
    """Of a portable pixmap with more than 8 bits, whose values lie one after the other."""
    assert isinstance(source.image, ImageFile.ImageFile)
    tile = source.image.tile[0]
    if tile.codec_name == "ppm" and isinstance(tile.args, tuple) and tile.args[0] == "RGB" and tile.args[1] > 255:
        shape, full = (source.height, source.width, 3), float(tile.args[1])

        def decode() -> Values:
            file.seek(tile.offset)
            array = np.frombuffer(file.read(2 * math.prod(shape)), dtype=">u2").reshape(shape)
            return Values(source.width, source.height, lambda a, b: array[a:b].astype(np.uint16), "RGB", full)

        source.decode = decode


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()
