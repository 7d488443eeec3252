"""What a PNG's chunks say besides its pixels, whether they are whole, and the file as Pillow shall read it.

Pillow looks at the CRC of no IDAT, and at the checksum of what is packed in them only where both are read together.

As in W3C "Portable Network Graphics (PNG) Specification (Third Edition)".
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from PIL import Image, PngImagePlugin

from calotype.pixels.light import STATED_SRGB, Light, of_code_points, of_gamma
from calotype.pixels.spliced import Spliced

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_MAX_PROFILE = 2**24  # bytes; JPEG can hold no larger ones
_COLOUR = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")
_TEXT = (b"tEXt", b"zTXt", b"iTXt")
# of which none changes a pixel
_SPARE = {*_TEXT, *(b"bKGD", b"cLLI", b"hIST", b"mDCV", b"oFFs", b"pCAL", b"pHYs", b"sBIT", b"sCAL", b"sPLT", b"tIME")}
_PASSES = (  # x, y, and steps between pixels, across and down
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
# of no meaning, by Pillow's modes
_MARKS: dict[str, Any] = {
    "1": 255,
    "L": 171,
    "P": 171,
    "I;16": 43777,
    "LA": (171, 84),
    "RGB": (171, 84, 9),
    "RGBA": (171, 84, 9, 77),
}
_STEP = 2**20  # bytes that are read at a time
_LONGEST = 2**31 - 1  # of a chunk


class DamagedError(ValueError):
    """The file is not whole; the message says how."""


@dataclass
class Png:
    """What the chunks say.

    Attributes:
        width, height: of all.
        depth: bits of a value.
        colour_type: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha.
        interlaced: in seven passes.
        left_out: (start, end) of the chunks that Pillow shall not read.
        needed: (start, end) of those that the pixels are made of, the header too.
        data: (start, end) of those of them that hold the pixels.
        profile: the ICC profile, if it is what counts.
        light: what counts where there is no profile that can be used.
        has_cicp: it comes from cICP, which counts before a profile.
        exif: the data of eXIf.
        notices: what was skipped or ignored.
    """

    width: int
    height: int
    depth: int
    colour_type: int
    interlaced: bool
    left_out: list[tuple[int, int]] = field(default_factory=list)
    needed: list[tuple[int, int]] = field(default_factory=list)
    data: list[tuple[int, int]] = field(default_factory=list)
    profile: bytes | None = None
    light: Light | None = None
    has_cicp: bool = False
    exif: bytes | None = None
    notices: list[str] = field(default_factory=list)


def examine(file: IO[bytes], begin: int = 0) -> Png | None:
    """Look through the chunks of a PNG; None if its header is damaged, of which Pillow tells.

    The checksums of its data take longer, and are left to `require_data`.

    Args:
        begin: where in the file it begins.

    Raises:
        DamagedError: a chunk that the pixels need is not as it was written, or the end of the file is missing.
    """
    file.seek(begin)
    head = file.read(33)
    if len(head) < 33 or not head.startswith(SIGNATURE) or head[12:16] != b"IHDR":
        return None
    width, height, depth, colour_type, _, _, interlaced = struct.unpack_from(">IIBBBBB", head, 16)
    png = Png(width, height, depth, colour_type, bool(interlaced), needed=[(begin, begin + 33)])
    room = PngImagePlugin.MAX_TEXT_MEMORY
    skipped = 0
    spoilt: list[str] = []
    said: dict[bytes, bytes] = {}
    begun = False  # what says how to take the pixels stands before them
    _require_sum(file, b"IHDR", begin + 8, begin + 33)
    for kind, start, length in _chunks(file, begin + 33):
        end = start + 12 + length
        if kind == b"fdAT":  # of later frames, which are not read
            continue
        if kind == b"IDAT":
            begun = True
            png.needed.append((start, end))
            png.data.append((start, end))
            continue
        if kind not in _SPARE:
            _require_sum(file, kind, start, end)
        elif not _is_whole(file, start, end):
            png.left_out.append((start, end))
            spoilt.append(kind.decode())
            continue
        file.seek(start + 8)
        if kind in _TEXT:
            size = _text_size(file, kind, length) if length <= room else None
            if size is None or size > room:
                png.left_out.append((start, end))
                skipped += 1
            else:
                room -= size
        elif kind in _COLOUR:
            if kind == b"iCCP":  # Pillow inflates less of it, and refuses the picture if that is not all
                png.left_out.append((start, end))
            if not begun and kind not in said:
                said[kind] = file.read(length)
        elif kind == b"eXIf":
            png.exif = file.read(length)
        elif kind in (b"tRNS", b"IEND"):
            png.needed.append((start, end))
    if skipped:
        one = skipped == 1
        some, they = ("A text chunk of the file was", "it is") if one else (f"{skipped} text chunks were", "they are")
        png.notices.append(f"{some} skipped, because {they} too large or can't be inflated.")
    if spoilt:
        names, one = ", ".join(sorted(set(spoilt))), len(spoilt) == 1
        some, they = (
            (f"A chunk ({names}) was", "it is") if one else (f"{len(spoilt)} chunks ({names}) were", "they are")
        )
        png.notices.append(f"{some} skipped, because {they} damaged; the pixels don't need {'it' if one else 'them'}.")
    _say(png, said)
    return png


def require_data(file: IO[bytes], png: Png) -> None:
    """Checks the data by their CRCs.

    Raises:
        DamagedError: some are not as they were written.
    """
    for start, end in png.data:
        _require_sum(file, b"IDAT", start, end)


def require_stream(file: IO[bytes], png: Png) -> None:
    """Checks what is packed in the data, by its length and its own checksum, which takes as long as unpacking it.

    Raises:
        DamagedError: it is not as it was written, or less than the pixels.
    """
    stream, found = zlib.decompressobj(), 0
    for start, end in png.data:
        file.seek(start + 8)
        left = end - start - 12
        while left > 0 and (data := file.read(min(left, _STEP))):
            left -= len(data)
            while data and not stream.eof:
                try:
                    found += len(stream.decompress(data, _STEP))
                except zlib.error:
                    raise DamagedError("its data can't be unpacked") from None
                data = stream.unconsumed_tail
    needed = _length(png)
    if found < needed or not stream.eof:
        raise DamagedError(f"its pixels take {needed:,} bytes, but there are {found:,}")


def _length(png: Png) -> int:
    """Bytes of the rows, unpacked, each with its filter."""
    bits = png.depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(png.colour_type, 1)
    passes = _PASSES if png.interlaced else ((0, 0, 1, 1),)
    total = 0
    for x, y, across, down in passes:
        width, height = -(-max(png.width - x, 0) // across), -(-max(png.height - y, 0) // down)
        total += height * (1 + (width * bits + 7) // 8) if width else 0
    return total


def load(image: Image.Image, file: IO[bytes], png: Png) -> None:
    """Loads what Pillow has opened; where the data end early, it says nothing, and leaves the last rows as they were.

    Raises:
        DamagedError: they do.
        Exception: whatever Pillow raises.
    """
    if png.interlaced or image.mode not in _MARKS:
        require_stream(file, png)
        image.load()
        return
    # a mark in the last row tells whether it was read, but for a picture that ends like the mark
    mark, blank = Image.new(image.mode, (png.width, 1), _MARKS[image.mode]), Image.new(image.mode, image.size)
    blank.paste(mark, (0, png.height - 1))
    image.im = blank.im
    image.load()
    if image.crop((0, png.height - 1, png.width, png.height)).tobytes() == mark.tobytes():
        require_stream(file, png)


def _chunks(file: IO[bytes], at: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start, and length of the data of each chunk, up to the last; the file is at the data.

    Raises:
        DamagedError: it is not there, or something else is.
    """
    size = file.seek(0, io.SEEK_END)
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            raise DamagedError("its end is missing")
        length, kind = struct.unpack(">I4s", head)
        if not kind.isalpha():
            raise DamagedError(f"there is no chunk at byte {at}")
        if at + 12 + length > size:
            raise DamagedError(f"it ends within a chunk {kind.decode()} of {length:,} bytes")
        yield kind, at, length
        if kind == b"IEND":
            return
        at += 12 + length


def _require_sum(file: IO[bytes], kind: bytes, start: int, end: int) -> None:
    if not _is_whole(file, start, end):
        raise DamagedError(f"the checksum of its chunk {kind.decode()} is wrong")


def _is_whole(file: IO[bytes], start: int, end: int) -> bool:
    """Whether a chunk has the CRC that it says."""
    file.seek(start + 4)
    left, found = end - start - 8, 0
    while left:
        data = file.read(min(left, _STEP))
        if not data:
            return False
        found = zlib.crc32(data, found)
        left -= len(data)
    return file.read(4) == found.to_bytes(4)


def _text_size(file: IO[bytes], kind: bytes, length: int) -> int | None:
    """The bytes of a text, inflated no further than Pillow does; None if Pillow refuses it."""
    limit = PngImagePlugin.MAX_TEXT_CHUNK
    if kind == b"tEXt":
        return length
    data = file.read(length)
    keyword, _, rest = data.partition(b"\0")
    if kind == b"iTXt":
        if len(rest) < 2 or not rest[0] or rest[1]:  # not compressed, or in a way that Pillow passes over
            return length
        packed = rest[2:].split(b"\0", 2)[-1]
    else:
        if rest[:1] not in (b"", b"\0"):
            return None  # of an unknown compression
        packed = rest[1:]
    try:
        return len(_inflated(packed, limit))
    except zlib.error:
        return len(keyword)  # Pillow takes it for empty
    except ValueError:
        return None


def _inflated(data: bytes, limit: int) -> bytes:
    """
    Raises:
        ValueError: there are more bytes than the limit.
        zlib.error: the data are damaged.
    """
    stream = zlib.decompressobj()
    result = stream.decompress(data, limit)
    if stream.unconsumed_tail:
        raise ValueError(f"it has more than {limit:,} bytes")
    return result


def _say(png: Png, said: dict[bytes, bytes]) -> None:
    """Profile and light, in PNG's order of precedence."""
    cicp = said.get(b"cICP", b"")
    if len(cicp) >= 4:
        depth = 8 if png.colour_type == 3 else png.depth
        try:
            if cicp[2]:
                raise ValueError(f"matrix {cicp[2]}, which PNG does not have")
            png.light = of_code_points(cicp[0], cicp[1], full_range=bool(cicp[3]), depth=depth)
        except ValueError as error:
            png.notices.append(f"The cICP of the picture was ignored, because it has {error}.")
        if png.light is not None:
            png.has_cicp = True
            return
    if b"iCCP" in said:
        _, _, rest = said[b"iCCP"].partition(b"\0")
        try:
            if rest[:1] != b"\0":
                raise ValueError("its compression is unknown")
            png.profile = _inflated(rest[1:], _MAX_PROFILE)
        except (ValueError, zlib.error) as error:
            reason = "it is damaged" if isinstance(error, zlib.error) else str(error)
            png.notices.append(f"The ICC profile was ignored, because it can't be used: {reason}.")
    if b"sRGB" in said:
        png.light = STATED_SRGB
        return
    gamma = said.get(b"gAMA", b"")[:4]
    chromaticities = said.get(b"cHRM", b"")[:32]
    fractions = [n / 100_000 for n in struct.unpack(">8I", chromaticities)] if len(chromaticities) == 32 else None
    png.light = of_gamma(
        struct.unpack(">I", gamma)[0] / 100_000 if len(gamma) == 4 else None,
        None if fractions is None else tuple(fractions),
    )


def for_pillow(file: IO[bytes], png: Png) -> tuple[IO[bytes], int]:
    """The file without the parts that are left out, and with all its data in one chunk, read as it is wanted.

    Returns:
        The file, and the bytes that Pillow must read at a time to come upon the checksum at the end of the data.
    """
    size = file.seek(0, io.SEEK_END)
    cuts: list[tuple[int, int, bytes]] = [(start, end, b"") for start, end in png.left_out]
    length = sum(end - start - 12 for start, end in png.data)
    following = all(one[1] == other[0] for one, other in itertools.pairwise(png.data))
    if len(png.data) > 1 and following and length <= _LONGEST:
        first = png.data[0][0]
        cuts.append((first, first + 8, struct.pack(">I4s", length, b"IDAT")))
        cuts += [(one[1] - 4, one[1] + 8, b"") for one in png.data[:-1]]
    if not cuts:
        return file, length
    parts: list[tuple[int, int] | bytes] = []
    at = 0
    for start, end, instead in sorted(cuts):
        parts += [(at, start), instead]
        at = end
    parts.append((at, size))
    return io.BufferedReader(Spliced(file, parts)), length


def bare(file: IO[bytes], png: Png) -> bytes:
    """A PNG of the chunks alone that the pixels are made of, with all its data in one."""
    parts, begun = [], False
    for start, end in png.needed:
        if (start, end) not in png.data or len(png.data) == 1:
            file.seek(start)
            parts.append(file.read(end - start))
        elif not begun:
            begun = True
            pieces = []
            for first, last in png.data:
                file.seek(first + 8)
                pieces.append(file.read(last - first - 12))
            parts.append(_chunk(b"IDAT", b"".join(pieces)))
    return b"".join(parts)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
