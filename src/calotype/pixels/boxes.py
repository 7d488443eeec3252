"""What the boxes of AVIF, HEIF and JPEG 2000 say besides the pixels: depth, and what the values stand for.

As in ISO/IEC 14496-12 (boxes), 23008-12 (HEIF) and 15444-1 (JPEG 2000).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from calotype.pixels.light import ROMM, Light, of_code_points

_MOST = 2**24  # bytes of a header that are read
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
_CODESTREAM = b"\xff\x4f\xff\x51"
_COD, _SOT = 0xFF52, 0xFF90  # marker segments: how all is coded, and the beginning of a tile

# JPEG 2000's enumerated colour spaces: those that decoders bring to grey, RGB or CMYK, and others by name
_DECODED = {0, 12, 15, 16, 17, 18}
_SPACES = {1: "YCbCr", 3: "YCbCr", 4: "YCbCr", 9: "PhotoYCC", 11: "CMY", 13: "YCCK", 14: "CIELab", 20: "e-sRGB"}
_SPACES |= {19: "CIEJab", 22: "YPbPr", 23: "YPbPr", 24: "e-sYCC"}


@dataclass
class Boxes:
    """What they say.

    Attributes:
        depth: bits of a value, the most of any channel; 0 if nothing says it.
        profile: ICC; None where Pillow finds it itself.
        light: what the values stand for.
        levels: how often JPEG 2000 halves the picture.
        plain: unsigned RGB or grey of one depth, by JPEG 2000's header.
    """

    depth: int = 0
    profile: bytes | None = None
    light: Light | None = None
    levels: int = 0
    plain: bool = True


def examine(file: IO[bytes]) -> Boxes | None:
    """Read the header's boxes; None for another format, or where they are damaged, of which the decoder tells."""
    file.seek(0)
    head = file.read(12)
    try:
        if head == _JP2 or head.startswith(_CODESTREAM):
            return _jpeg_2000(file, head)
        if head[4:8] == b"ftyp":
            file.seek(0)
            for kind, length in _file_boxes(file):
                if kind == b"meta":
                    return _heif(file.read(min(length, _MOST))[4:])
    except (struct.error, LookupError, ValueError):
        pass
    return None


def _file_boxes(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Kind and length of the content of each box, with the file at its content."""
    at = file.tell()
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        start = at + 8
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
            start += 8
        if length == 0:  # up to the end
            length = _MOST + start - at
        if length < start - at:
            raise ValueError("a box shorter than its head")
        yield kind, length - (start - at)
        at += length
        file.seek(at)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each box."""
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        length = length or len(data) - at
        if length < head:
            raise ValueError("a box shorter than its head")
        yield kind, data[at + head : at + length]
        at += length


def _heif(meta: bytes) -> Boxes:
    """The properties of the primary item."""
    parts = dict(_boxes(meta))
    primary = parts[b"pitm"]
    item: int = struct.unpack_from(">I" if primary[0] else ">H", primary, 4)[0]
    inner = list(_boxes(parts.get(b"iprp", b"")))
    properties = [box for kind, body in inner if kind == b"ipco" for box in _boxes(body)]
    found = Boxes()
    for index in _associated([body for kind, body in inner if kind == b"ipma"], item):
        kind, body = properties[index - 1] if 0 < index <= len(properties) else (b"", b"")
        if kind == b"pixi":
            found.depth = max(found.depth, *body[5 : 5 + body[4]])
        elif kind == b"av1C":
            found.depth = max(found.depth, 8 + 2 * (body[2] >> 6 & 1) * (1 + (body[2] >> 5 & 1)))
        elif kind == b"hvcC":
            found.depth = max(found.depth, 8 + (body[17] & 7))
        elif kind == b"colr" and body[:4] == b"nclx":
            primaries, transfer = struct.unpack_from(">HH", body, 4)
            try:
                # range and matrix are undone by the decoder
                found.light = of_code_points(primaries, transfer)
            except ValueError as error:
                found.light = Light(notice=f"The picture's {error} (of H.273) can't be converted; sRGB was assumed.")
    return found


def _associated(tables: list[bytes], item: int) -> Iterator[int]:
    """Numbers, from 1, of an item's properties."""
    for body in tables:
        version, wide = body[0], body[3] & 1
        (entries,) = struct.unpack_from(">I", body, 4)
        at = 8
        for _ in range(entries):
            (one,) = struct.unpack_from(">I" if version else ">H", body, at)
            at += 4 if version else 2
            count = body[at]
            at += 1
            for _ in range(count):
                index = struct.unpack_from(">H", body, at)[0] & 0x7FFF if wide else body[at] & 0x7F
                at += 2 if wide else 1
                if one == item:
                    yield index


def _jpeg_2000(file: IO[bytes], head: bytes) -> Boxes | None:
    if head.startswith(_CODESTREAM):
        file.seek(4)
        return _codestream(file.read(2**16))
    file.seek(0)
    found: Boxes | None = None
    for kind, length in _file_boxes(file):
        if kind == b"jp2h":
            found = _jp2_header(file.read(min(length, _MOST)))
        elif kind == b"jp2c" and file.read(4) == _CODESTREAM:
            stream = _codestream(file.read(2**16))
            if found is not None:
                found.depth, found.levels, found.plain = stream.depth, stream.levels, found.plain and stream.plain
            return found
    return found


def _codestream(data: bytes) -> Boxes:
    """From the SIZ marker segment, after its marker."""
    (channels,) = struct.unpack_from(">H", data, 36)
    sizes = [data[38 + 3 * i : 41 + 3 * i] for i in range(channels)]
    depths = {size[0] for size in sizes}
    whole = all(size[1:] == b"\1\1" for size in sizes)  # no channel is subsampled
    found = Boxes(max((depth & 127) + 1 for depth in depths), plain=len(depths) == 1 and max(depths) < 128 and whole)
    (at,) = struct.unpack_from(">H", data)
    while at + 10 <= len(data):
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == _COD:
            found.levels = data[at + 9]
        if marker in (_COD, _SOT):
            break
        at += 2 + length
    return found


def _jp2_header(data: bytes) -> Boxes:
    found = Boxes()
    said = False
    for kind, body in _boxes(data):
        if kind == b"pclr":
            found.plain = False
        if kind != b"colr" or said:
            continue
        said = True
        if body[0] in (2, 3):
            found.profile = body[3:]
        elif body[0] == 1:
            (space,) = struct.unpack_from(">I", body, 3)
            found.plain = found.plain and space in (16, 17, 21)
            if space == 21:
                found.light = ROMM
            elif space not in _DECODED:
                name = _SPACES.get(space, f"number {space}")
                found.light = Light(notice=f"JPEG 2000's colour space {name} can't be converted; sRGB was assumed.")
    return found
