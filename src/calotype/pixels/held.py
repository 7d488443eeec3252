"""What a picture's header claims, held against the bytes that its file has, before memory is taken for it.

Every way of packing has a most that one byte can become; what claims more than that is damaged, or made to take memory.
JPEG 2000, JPEG XL, AVIF, HEIF and lossless WebP have none: a picture of one colour is a few bytes there.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
from PIL import Image

DEFLATE = 1032  # bytes that one can become
LZW = 2731  # 4096 bytes of 12 bits
_JPEG_PIXELS = 1024  # a bit for each block of 8 x 8, of which every other component has a quarter
# what is coded so may take next to nothing, and goes on for ever where the data end
_ARITHMETIC, _ARITHMETIC_PIXELS = 0xC9, 2**16
_VP8_PIXELS = 1024  # more than two bits for the modes of each 16 x 16
_DECODED = frozenset({"AVIF", "HEIF", "JXL", "WEBP"})  # which Pillow has as raw once they are decoded


class NotHeldError(ValueError):
    """The file can't hold what its header claims; the message says what it claims and what is there."""


def require(width: int, height: int, least: float, held: int) -> None:
    """
    Args:
        least: bytes that such a picture takes at the least.
        held: those that there are.

    Raises:
        NotHeldError: they are fewer.
    """
    if held < least:
        raise NotHeldError(
            f"its header claims {width} x {height} pixels, which take at least {int(np.ceil(least)):,} bytes, but "
            f"there are {max(held, 0):,}"
        )


def require_pixels(image: Image.Image, size: int) -> None:
    """Checks what an image that Pillow has opened, and not loaded, claims.

    Args:
        size: of its file, in bytes.

    Raises:
        NotHeldError: it claims more than there is.
    """
    width, height = image.size
    if image.format in _DECODED:
        return
    if image.format == "GIF":  # whose frames may be smaller than all of it
        require(width, height, width * height / LZW, size)
    for codec, extents, offset, args in getattr(image, "tile", []):
        across, down = (extents[2] - extents[0], extents[3] - extents[1]) if extents else (width, height)
        require(width, height, _least(codec, across, down, args, image.mode), size - offset)


def require_jpeg(file: IO[bytes], size: int) -> None:
    """The same of a JPEG."""
    frame = _jpeg_frame(file, 0, size)
    if frame is not None:
        most = _JPEG_PIXELS if frame[0] < _ARITHMETIC else _ARITHMETIC_PIXELS
        require(frame[1], frame[2], frame[1] * frame[2] / most, size)


def _jpeg_frame(file: IO[bytes], at: int, end: int) -> tuple[int, int, int] | None:
    """The marker, width and height of a frame header (ITU-T T.81, B.2.2); None where none is found."""
    at += 2
    while at + 9 <= end:
        file.seek(at)
        head = file.read(9)
        if len(head) < 9 or head[0] != 0xFF:
            break
        if head[1] == 0xFF:  # a fill byte
            at += 1
            continue
        if 0xC0 <= head[1] <= 0xCF and head[1] not in (0xC4, 0xC8, 0xCC):
            return head[1], int.from_bytes(head[7:9]), int.from_bytes(head[5:7])
        at += 2 + int.from_bytes(head[2:4])
    return None


def require_webp(file: IO[bytes], size: int) -> None:
    """The same of a WebP, by RFC 9649: of a lossy one, and of the canvas of an animation."""
    file.seek(0)
    head = file.read(30)
    if head[12:16] == b"VP8 " and len(head) == 30:
        width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        require(width, height, width * height / _VP8_PIXELS, size)
    elif head[12:16] == b"VP8X" and len(head) == 30 and head[20] & 2:  # animated
        width, height = _webp_side(head, 24), _webp_side(head, 27)
        require(width, height, (width * height - _first_frame(file)) / _VP8_PIXELS, size)


def require_jpeg_2000(width: int, height: int, levels: int, size: int) -> None:
    """The same of a JPEG 2000: a bit for each block of 64 x 64 of its smallest size.

    Blocks of the middle grey alone could do with less, all together; no encoder is known to make such a picture so
    large with so few levels that it matters.
    """
    require(width, height, width * height / 4**levels / (8 * 64 * 64), size)


def _webp_side(data: bytes, at: int) -> int:
    return 1 + int.from_bytes(data[at : at + 3], "little")


def _first_frame(file: IO[bytes]) -> int:
    """Pixels of an animation's first frame; 0 without one."""
    at = 12
    while True:
        file.seek(at)
        head = file.read(20)
        if len(head) < 20:
            return 0
        if head[:4] == b"ANMF":
            return _webp_side(head, 14) * _webp_side(head + file.read(3), 17)
        length = int.from_bytes(head[4:8], "little")
        at += 8 + length + length % 2


def _least(codec: str, width: int, height: int, args: Any, mode: str) -> float:
    """Bytes that so many pixels take at the least; 0 where nothing is known."""
    first = args[0] if isinstance(args, tuple) and args else args
    row = (width * _bits(first if isinstance(first, str) else mode) + 7) // 8
    raw, pixels = row * height, width * height
    match codec:
        case "raw" | "SGI16":
            return raw
        case "ppm":
            return pixels
        case "ppm_plain":
            return pixels if mode == "1" else 2 * pixels * len(mode) - 1
        case "zip" | "fits_gzip":
            return raw / DEFLATE
        case "gif":
            return pixels / LZW
        case "packbits":
            return raw / 64  # 128 bytes of 2
        case "pcx":
            return raw / 31.5  # 63 of 2
        case "sun_rle":
            return raw / 85  # 256 of 3
        case "tga_rle":
            return pixels / 128
        case "sgi_rle":
            return 8 * height * len(mode)  # where each row begins, and how long it is; rows may be the same
        case "bmp_rle":
            return height / 64  # 4 bytes may pass over 255 rows
        case "MSP":
            return 2 * height
        case "bcn":
            return 8 * -(-width // 4) * -(-height // 4)
        case "dds_rgb":
            return pixels * first / 8 if isinstance(first, int) else pixels
        case "qoi":
            return pixels / 62
        case "xbm":
            return 3 * height * -(-width // 8)
        case "xpm":
            return pixels
    return 0


def _bits(raw_mode: str) -> int:
    """Of a pixel, by Pillow's name of the layout, or fewer."""
    channels, _, layout = raw_mode.partition(";")
    number = int(found[0]) if (found := re.match(r"\d+", layout)) else 0
    if channels == "1":
        return 1
    if channels in ("F", "I"):
        return number or 32
    if number in (1, 2, 3) or (number == 4 and "B" not in layout):
        return number
    if number in (4, 5, 15) or layout == "16":  # packed into two bytes, mostly
        return 16
    return (16 if number == 16 else 8) * max(1, sum(letter.isupper() for letter in channels))


# TIFF

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIPS, _SAMPLES, _ROWS, _STRIP_SIZES, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES = 322, 323, 324, 325
PARTS = (_STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES)
"""Tags of where the parts of a TIFF are, and how large; they may have very many values."""

_YCBCR = 6
_OLD_JPEG = 6
# bytes that one can become; LZMA's and Zstandard's longest repeats take a third of a bit, and 4 bytes
_RATIOS = {1: 1, 5: LZW, 8: DEFLATE, 32946: DEFLATE, 32773: 64, 34925: 2**14, 50000: 2**15}
_FAX = (2, 3, 4, 32771)


def require_parts(file: IO[bytes], tags: Mapping[int, Any]) -> int:
    """Checks that the strips or tiles of a TIFF are in the file, and large enough for what its tags claim.

    Args:
        tags: tuples of numbers.

    Returns:
        How many are said not to be there, at 0 with 0 bytes, as sparse files of GDAL have it.

    Raises:
        NotHeldError: they are fewer, or too small.
    """

    def first(tag: int, default: int) -> int:
        values: Sequence[int] = tags.get(tag) or (default,)
        return int(values[0])

    size = file.seek(0, io.SEEK_END)
    width, height, compression = first(_WIDTH, 0), first(_HEIGHT, 0), first(_COMPRESSION, 1)
    if compression == _OLD_JPEG:  # whose data may lie elsewhere
        return 0
    tiled = _TILES in tags
    if tiled:
        across, down = first(_TILE_WIDTH, 0), first(_TILE_HEIGHT, 0)
    else:
        across, down = width, min(first(_ROWS, height) or height, height)
    if not across or not down:
        raise NotHeldError("its tiles have no size")
    samples = first(_SAMPLES, 1)
    planes = samples if first(_PLANAR, 1) == 2 else 1
    bits = first(_BITS, 1) * samples // planes
    if first(_PHOTOMETRIC, 0) == _YCBCR:
        bits = 8  # of colours there may be less
    number = -(-width // across) * -(-height // down) * planes
    offsets = np.asarray(tags.get(_TILES if tiled else _STRIPS) or (), dtype=np.float64)[:number]
    sizes = np.asarray(tags.get(_TILE_SIZES if tiled else _STRIP_SIZES) or (), dtype=np.float64)[:number]
    kind = "tiles" if tiled else "strips"
    if len(offsets) < number:
        raise NotHeldError(
            f"its header claims {width} x {height} pixels in {number:,} {kind}, but there are {len(offsets):,}"
        )
    rows = np.full(number, down, dtype=np.float64)
    if not tiled:
        per_plane = number // planes
        rows[per_plane - 1 :: per_plane] = height - (per_plane - 1) * down
    least = _least_of_part(compression, (across * bits + 7) // 8, across, rows)
    rest = np.maximum(size - offsets, 0.0)
    missing = 0
    if len(sizes) == number:
        absent = (offsets == 0) & (sizes == 0)
        missing = int(absent.sum())
        if missing == number:
            raise NotHeldError(f"its header claims {width} x {height} pixels, but there are none")
        least = np.where(absent, 0.0, least)
        if compression != 1:  # else some writers say nothing, or less
            least = np.maximum(least, np.where(absent, 0.0, 1.0))
            rest = np.where(sizes <= rest, sizes, 0.0)
    short = np.flatnonzero(rest < least)
    if len(short):
        i = int(short[0])
        raise NotHeldError(
            f"its header claims {width} x {height} pixels, of which one of the {kind} takes at least "
            f"{int(np.ceil(least[i])):,} bytes, but there are {int(rest[i]):,}"
        )
    if compression == 7:
        columns, per_plane = -(-width // across), number // planes
        for i in np.flatnonzero(sizes > 0).tolist():
            down_at, across_at = divmod(i % per_plane, columns)
            inside = min(across, width - across_at * across), min(down, height - down_at * down)
            _require_jpeg(file, int(offsets[i]), int(sizes[i]), *inside)
    return missing


def _require_jpeg(file: IO[bytes], offset: int, size: int, width: int, height: int) -> None:
    """Checks the size that a part of its own says it has: libtiff leaves black what that is short of."""
    frame = _jpeg_frame(file, offset, offset + size)
    if frame is not None and (frame[1] < width or frame[2] < height):
        raise NotHeldError(
            f"its header claims a part of {width} x {height} pixels, but there are {frame[1]} x {frame[2]}"
        )


def _least_of_part(compression: int, row: int, across: int, rows: Any) -> Any:
    """Bytes that parts of so many rows take at the least."""
    if compression in _RATIOS:
        return np.ceil(row * rows / _RATIOS[compression])
    if compression == 7:
        return np.ceil(across * rows / _JPEG_PIXELS)
    if compression in _FAX:
        return np.ceil(rows / 8)
    return np.ones_like(rows)
