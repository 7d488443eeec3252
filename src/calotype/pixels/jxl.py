"""What the head of a JPEG XL file says: size, orientation and depth, which its plugin tells only after decoding.

As in ISO/IEC 18181-1 (SizeHeader, ImageMetadata) and 18181-2 (the boxes around a codestream).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

_CODESTREAM = b"\xff\x0a"
_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_ENOUGH = 64  # bytes of a codestream
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width : height


@dataclass(frozen=True)
class Header:
    """What it says.

    Attributes:
        width, height: as the pixels are stored.
        orientation: as in EXIF; decoders turn the picture upright by it.
        depth: bits of a value; 0 where that was not looked for.
        floats: values are floats.
    """

    width: int
    height: int
    orientation: int = 1
    depth: int = 8
    floats: bool = False


class _Bits:
    """Numbers in a run of bits, the lowest first."""

    def __init__(self, data: bytes) -> None:
        self._bits, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise ValueError("the header ends early")
        value = self._bits & ((1 << count) - 1)
        self._bits >>= count
        self._left -= count
        return value


def header(file: IO[bytes]) -> Header | None:
    """Of a file from its beginning; None where it is none, or damaged, of which the decoder tells."""
    file.seek(0)
    data = _codestream(file)
    if not data.startswith(_CODESTREAM):
        return None
    bits = _Bits(data[2:])
    try:
        return _header(bits)
    except ValueError:
        return None


def _codestream(file: IO[bytes]) -> bytes:
    head = file.read(len(_CONTAINER))
    if head != _CONTAINER:
        return head + file.read(_ENOUGH)
    while len(box := file.read(8)) == 8:
        length, kind = int.from_bytes(box[:4]), box[4:]
        rest = length - 8
        if length == 1:
            rest = int.from_bytes(file.read(8)) - 16
        if kind in (b"jxlc", b"jxlp"):
            return file.read(_ENOUGH) if kind == b"jxlc" else file.read(4 + _ENOUGH)[4:]
        if rest < 0:  # up to the end, or damaged
            break
        file.seek(rest, 1)
    return b""


def _header(bits: _Bits) -> Header:
    small = bits.take(1)

    def side() -> int:
        return 8 * (bits.take(5) + 1) if small else 1 + bits.take((9, 13, 18, 30)[bits.take(2)])

    height = side()
    ratio = bits.take(3)
    width = height * _RATIOS[ratio - 1][0] // _RATIOS[ratio - 1][1] if ratio else side()
    if bits.take(1):  # everything else is as usual
        return Header(width, height)
    orientation = 1
    if bits.take(1):
        orientation = 1 + bits.take(3)
        if bits.take(3):  # other sizes, a preview or an animation, before the depth
            return Header(width, height, orientation, depth=0)
    if bits.take(1):
        return Header(width, height, orientation, (32, 16, 24)[which] if (which := bits.take(2)) < 3 else 0, True)
    depth = (8, 10, 12)[which] if (which := bits.take(2)) < 3 else 1 + bits.take(6)
    return Header(width, height, orientation, depth)
