"""Pictures written row by row, so that none is ever held whole.

PNG as in W3C "Portable Network Graphics (PNG) Specification (Third Edition)", TIFF as in Adobe's "TIFF Revision 6.0"
with deflate from its "Photoshop TIFF Technical Notes" (2002), BigTIFF as in libtiff's "The BigTIFF File Format".
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from calotype.errors import PictureError, UsageError
from calotype.files import writing
from calotype.pixels import require_writable, to_pil, write_picture

_Bytes = npt.NDArray[np.uint8]

_BLOCK = 2**18  # bytes of a picture that are worked on at a time
_LEVEL = 3  # of zlib: on filtered photos higher ones take longer for nothing
_CLASSIC_TIFF = 2**32  # bytes that its offsets reach


class _Format(NamedTuple):
    name: str
    alpha: bool
    side: int  # the longest, in pixels
    pixels: int | None = None  # the most, where the sides do not say it


_JPEG = _Format("JPEG", False, 65500)  # libjpeg's limit; the format's is 65535
_TIFF = _Format("TIFF", True, 2**32 - 1)
_FORMATS = {
    ".png": _Format("PNG", True, 2**31 - 1),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": _Format("WebP", True, 16383),
    ".avif": _Format("AVIF", True, 32768, 2**28),  # libavif writes more, and then won't read it
    ".tif": _TIFF,
    ".tiff": _TIFF,
}


def require_rows_writable(path: str | os.PathLike[str], width: int, height: int, *, alpha: bool = False) -> None:
    """Check that a picture of `width` x `height`, with alpha or without, fits the format that the path's suffix names.

    Raises:
        UsageError: an unknown suffix, no pixels, more than the format can hold, or alpha where it has none.
    """
    path = Path(path)
    require_writable(path)
    if width < 1 or height < 1:
        raise UsageError(f"{path} can't be written: a picture has at least 1 x 1 pixels, not {width} x {height}.")
    format_ = _FORMATS[path.suffix.lower()]
    if alpha and not format_.alpha:
        raise UsageError(f"{path} can't be written: {format_.name} has no alpha; use .png or .tif, or drop the alpha.")
    if max(width, height) > format_.side:
        limit = f"{format_.side} pixels a side"
    elif format_.pixels and width * height > format_.pixels:
        limit = f"{format_.pixels:,} pixels"
    else:
        return
    instead = {"PNG": "use .tif", "TIFF": "cut it into parts"}.get(format_.name, "use .png or .tif")
    raise UsageError(
        f"{path} can't be written: {format_.name} holds at most {limit}, and this is {width} x {height}; {instead}."
    )


def write_rows(
    path: str | os.PathLike[str],
    rows: Iterable[Tensor],
    *,
    width: int,
    height: int,
    channels: int = 3,
    alpha: Tensor | None = None,
    text: Mapping[str, str] | None = None,
) -> Path:
    """Write a picture in the format its suffix names, while its rows come; its pixels are those of `write_picture`.

    PNG and TIFF (deflate, by strips; BigTIFF where it passes 4 GiB) hold a few rows at a time. Of the other formats the
    encoders need all of it, so there the rows are gathered first, as 8 bits. A file that is there already is replaced
    only by a whole one.

    Args:
        path: ends in a suffix that `write_picture` knows, in either case.
        rows: [channels, n, width] from top to bottom, floats in [-1, 1] or uint8; n may change, and sums to `height`.
        channels: 1 writes grey, 3 RGB and 4 RGBA.
        alpha: [height, width], in [0, 1], or uint8 where the rows are; beside grey or RGB only.
        text: as for `write_picture`.

    Returns:
        The path.

    Raises:
        PictureError: the disk or the encoder refuses it.
        UsageError: what `require_rows_writable` refuses, a missing folder, or rows or alpha of another shape or number.
        NonFiniteError: NaN or infinity among pixels or alpha.
    """
    path = Path(path)
    if channels not in (1, 3, 4) or (channels == 4 and alpha is not None):
        beside = " and alpha beside them" if alpha is not None else ""
        raise UsageError(f"{path} can't be written: rows are of 1, 3 or 4 channels, not of {channels}{beside}.")
    require_rows_writable(path, width, height, alpha=alpha is not None or channels == 4)
    if alpha is not None and tuple(alpha.shape) != (height, width):
        raise UsageError(f"{path} can't be written: its alpha must be [{height}, {width}], not {list(alpha.shape)}.")
    stored = channels + (alpha is not None)
    blocks = _blocks(path, iter(rows), width, height, channels, alpha)
    if path.suffix.lower() == ".png":
        write: Callable[[IO[bytes], Iterator[_Bytes], int, int, int], None] = partial(_write_png, text=text or {})
    elif path.suffix.lower() in (".tif", ".tiff"):
        write = _write_tiff
    else:
        whole = np.empty((height, width, stored), dtype=np.uint8)
        top = 0
        for block in blocks:
            whole[top : top + len(block)] = block
            top += len(block)
        return write_picture(path, Image.fromarray(whole[..., 0] if stored == 1 else whole))
    with writing(path, PictureError) as file:
        write(file, blocks, width, height, stored)
    return path


def _rows_per_block(width: int, channels: int) -> int:
    return max(1, _BLOCK // (width * channels))


def _blocks(
    path: Path, rows: Iterator[Tensor], width: int, height: int, channels: int, alpha: Tensor | None
) -> Iterator[_Bytes]:
    """The rows as levels: [n, width, channels and alpha's], with `_rows_per_block` rows each but the last.

    A block lasts until the next one is asked for.
    """
    stored = channels + (alpha is not None)
    block = np.empty((min(_rows_per_block(width, stored), height), width, stored), dtype=np.uint8)
    filled = done = 0
    for stripe in rows:
        if stripe.ndim != 3 or stripe.shape[0] != channels or stripe.shape[2] != width:
            wanted = f"[{channels}, n, {width}]"
            raise UsageError(f"{path} can't be written: its rows must be {wanted}, not {list(stripe.shape)}.")
        if done + stripe.shape[1] > height:
            raise UsageError(f"{path} can't be written: more rows came than its height of {height}.")
        top = 0
        while top < stripe.shape[1]:
            n = min(stripe.shape[1] - top, len(block) - filled)
            part = _levels(stripe[:, top : top + n], None if alpha is None else alpha[done : done + n])
            block[filled : filled + n] = part
            top, filled, done = top + n, filled + n, done + n
            if filled == len(block):
                yield block
                filled = 0
    if done < height:
        raise UsageError(f"{path} can't be written: only {done} rows came, and its height is {height}.")
    if filled:
        yield block[:filled]


def _levels(rows: Tensor, alpha: Tensor | None) -> _Bytes:
    """[C, n, width], and alpha [n, width] if given, -> [n, width, C or C + 1]."""
    if rows.dtype != torch.uint8:
        found = np.asarray(to_pil(rows, alpha))
        return found if found.ndim == 3 else found[..., None]
    if alpha is not None:
        if alpha.dtype != torch.uint8:
            raise UsageError(f"alpha must be uint8, like the pixels, not {alpha.dtype}.")
        rows = torch.cat([rows, alpha[None]])
    levels: _Bytes = rows.permute(1, 2, 0).cpu().numpy()
    return levels


def _write_png(
    file: IO[bytes], blocks: Iterator[_Bytes], width: int, height: int, channels: int, text: Mapping[str, str]
) -> None:
    file.write(b"\x89PNG\r\n\x1a\n")
    # 8 bits; grey, grey with alpha, RGB, RGBA; the one compression, the one set of filters, not interlaced
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    for keyword, value in text.items():  # iTXt: not compressed, of no language, with no translated keyword
        _write_chunk(file, b"iTXt", keyword.encode("latin-1") + bytes(5) + value.encode())
    deflate = zlib.compressobj(_LEVEL)
    above = np.zeros(width * channels, dtype=np.uint8)
    for block in blocks:
        lines = block.reshape(len(block), -1)
        if data := deflate.compress(_filtered(lines, above, channels).tobytes()):
            _write_chunk(file, b"IDAT", data)
        above[:] = lines[-1]
    _write_chunk(file, b"IDAT", deflate.flush())
    _write_chunk(file, b"IEND", b"")


def _write_chunk(file: IO[bytes], kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind)
    file.write(data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


def _filtered(lines: _Bytes, above: _Bytes, channels: int) -> _Bytes:
    """Lines [n, bytes], and the one above them, -> [n, 1 + bytes]: the number of a filter, and what it leaves.

    For each line it is that of PNG's five filters which leaves the smallest sum of absolute differences.
    """
    up = np.vstack([above[None], lines[:-1]])
    left, corner = np.zeros_like(lines), np.zeros_like(lines)
    left[:, channels:] = lines[:, :-channels]
    corner[:, channels:] = up[:, :-channels]
    filtered = np.empty((5, len(lines), 1 + lines.shape[1]), dtype=np.uint8)
    filtered[:, :, 0] = np.arange(5)[:, None]
    differences = filtered[:, :, 1:]
    differences[0] = lines
    differences[1] = lines - left
    differences[2] = lines - up
    differences[3] = lines - ((left & up) + ((left ^ up) >> 1))  # the mean rounded down, within 8 bits
    differences[4] = lines - _paeth(left, up, corner)
    # The bytes are differences modulo 256, so 255 is as small as 1.
    best = np.minimum(differences, -differences).sum(axis=2, dtype=np.int64).argmin(axis=0)
    chosen: _Bytes = filtered[best, np.arange(len(lines))]
    return chosen


def _paeth(left: _Bytes, up: _Bytes, corner: _Bytes) -> _Bytes:
    """Whichever of the three is nearest to left + up - corner; of equals the first."""
    a, b, c = (values.astype(np.int16) for values in (left, up, corner))
    to_left, to_up, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    is_left = (to_left <= to_up) & (to_left <= to_corner)
    nearest: _Bytes = np.where(is_left, left, np.where(to_up <= to_corner, up, corner))
    return nearest


def _write_tiff(file: IO[bytes], blocks: Iterator[_Bytes], width: int, height: int, channels: int) -> None:
    file.write(bytes(16))  # room for either header; which one it is shows at the end
    offsets: list[int] = []
    sizes: list[int] = []
    for block in blocks:
        differences = block.copy()
        differences[:, 1:] -= block[:, :-1]
        offsets.append(file.tell())
        sizes.append(file.write(zlib.compress(differences.tobytes(), _LEVEL)))

    big = file.tell() + 8 * len(offsets) + 1024 > _CLASSIC_TIFF  # the tables take no more
    short, long = (3, "H"), (4, "I")
    word = (16, "Q") if big else long
    fields = [
        (256, long, [width]),
        (257, long, [height]),
        (258, short, [8] * channels),  # BitsPerSample
        (259, short, [8]),  # Compression: deflate
        (262, short, [1 if channels < 3 else 2]),  # PhotometricInterpretation: grey whose 0 is black, or RGB
        (273, word, offsets),  # StripOffsets
        (277, short, [channels]),  # SamplesPerPixel
        (278, long, [_rows_per_block(width, channels)]),  # RowsPerStrip
        (279, word, sizes),  # StripByteCounts
        (284, short, [1]),  # PlanarConfiguration: channels side by side
        (317, short, [2]),  # Predictor: horizontal differences
    ]
    if channels in (2, 4):
        fields.append((338, short, [2]))  # ExtraSamples: alpha that is not multiplied in
    code = word[1]
    room = struct.calcsize(code)
    directory = struct.pack("<Q" if big else "<H", len(fields))
    for tag, (kind, letter), values in fields:
        data = struct.pack(f"<{len(values)}{letter}", *values)
        if len(data) > room:
            data = struct.pack(f"<{code}", _append(file, data))
        directory += struct.pack(f"<HH{code}", tag, kind, len(values)) + data.ljust(room, b"\0")
    start = _append(file, directory + bytes(room))  # and no further directory
    file.seek(0)
    file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, start) if big else struct.pack("<2sHI", b"II", 42, start))


def _append(file: IO[bytes], data: bytes) -> int:
    """Write at the next multiple of 8 bytes, and tell where that is."""
    file.write(bytes(-file.tell() % 8))
    start = file.tell()
    file.write(data)
    return start
