"""What a PNG's chunks say besides its pixels, and the file without those that Pillow refuses to read.

As in W3C "Portable Network Graphics (PNG) Specification (Third Edition)".
"""

from __future__ import annotations

import bisect
import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from PIL import PngImagePlugin

from calotype.pixels.light import STATED_SRGB, Light, of_code_points, of_gamma

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_MAX_PROFILE = 2**24  # bytes; JPEG can hold no larger ones
_COLOUR = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")


@dataclass
class Png:
    """What the chunks say.

    Attributes:
        depth: bits of a value.
        colour_type: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha.
        left_out: (start, end) of the chunks that Pillow shall not read.
        needed: (start, end) of those that the pixels are made of, the header too.
        profile: the ICC profile, if it is what counts.
        light: what counts where there is no profile that can be used.
        has_cicp: it comes from cICP, which counts before a profile.
        exif: the data of eXIf.
        notices: what was skipped or ignored.
    """

    depth: int
    colour_type: int
    left_out: list[tuple[int, int]] = field(default_factory=list)
    needed: list[tuple[int, int]] = field(default_factory=list)
    profile: bytes | None = None
    light: Light | None = None
    has_cicp: bool = False
    exif: bytes | None = None
    notices: list[str] = field(default_factory=list)


def examine(file: IO[bytes]) -> Png | None:
    """Look through the chunks of a PNG; None if its header is damaged, of which Pillow tells."""
    file.seek(0)
    head = file.read(33)
    if len(head) < 33 or not head.startswith(SIGNATURE) or head[12:16] != b"IHDR":
        return None
    png = Png(depth=head[24], colour_type=head[25], needed=[(0, 33)])
    room = PngImagePlugin.MAX_TEXT_MEMORY
    skipped = 0
    said: dict[bytes, bytes] = {}
    begun = False  # what says how to take the pixels stands before them
    for kind, start, length in _chunks(file):
        end = start + 12 + length
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
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
        elif kind in (b"tRNS", b"IDAT", b"IEND"):
            begun = begun or kind == b"IDAT"
            png.needed.append((start, end))
    if skipped:
        one = skipped == 1
        some, they = ("A text chunk of the file was", "it is") if one else (f"{skipped} text chunks were", "they are")
        png.notices.append(f"{some} skipped, because {they} too large or can't be inflated.")
    _say(png, said)
    return png


def _chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start, and length of the data of each chunk, up to where they end or break off; the file is at the data."""
    at = 33
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        yield kind, at, length
        if kind == b"IEND":
            return
        at += 12 + length


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


def without(file: IO[bytes], left_out: list[tuple[int, int]]) -> IO[bytes]:
    """The file without these parts, read as it is wanted; the file itself if there are none."""
    if not left_out:
        return file
    size = file.seek(0, io.SEEK_END)
    starts, ends = [0, *(end for _, end in left_out)], [*(start for start, _ in left_out), size]
    spans = [(start, end) for start, end in zip(starts, ends, strict=True) if start < end]
    return io.BufferedReader(_Spliced(file, spans))


def bare(file: IO[bytes], needed: list[tuple[int, int]]) -> bytes:
    """A PNG of these chunks alone."""
    parts = []
    for start, end in needed:
        file.seek(start)
        parts.append(file.read(end - start))
    return b"".join(parts)


class _Spliced(io.RawIOBase):
    """Parts of a file, one after the other."""

    def __init__(self, file: IO[bytes], spans: list[tuple[int, int]]) -> None:
        self._file, self._spans, self._at = file, spans, 0
        self._before = [0, *itertools.accumulate(end - start for start, end in spans)]  # in the parts, before each

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._before[-1]}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = bisect.bisect_right(self._before, self._at) - 1
        if part == len(self._spans):
            return 0
        start, end = self._spans[part]
        place = start + self._at - self._before[part]
        view = memoryview(buffer).cast("B")
        self._file.seek(place)
        data = self._file.read(min(len(view), end - place))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
