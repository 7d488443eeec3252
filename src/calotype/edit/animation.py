"""Animations written frame by frame: GIF, APNG, WebP, and MP4 by way of PyAV.

Pillow encodes the frames. It holds all of them when it writes an animation, and joins frames that are equal, so the
files around the frames are written here: GIF89a (CompuServe 1990) with Netscape's loop extension, PNG with the chunks
of W3C "PNG Specification (Third Edition)" 11.3.6, and RIFF/WebP as in Google's "WebP Container Specification".
"""

from __future__ import annotations

import importlib
import io
import struct
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from calotype.errors import PictureError, UsageError
from calotype.files import writing

SUFFIXES = (".gif", ".png", ".apng", ".webp", ".mp4")
WITH_ALPHA = (".png", ".apng", ".webp")

_SIDE = {".gif": 65535, ".webp": 16383, ".mp4": 16384}
_PNG_START = b"\x89PNG\r\n\x1a\n"


def rate(fps: float) -> Fraction:
    """Frames a second, as a ratio.

    Raises:
        UsageError: if it is not from 0.1 to 120.
    """
    if not 0.1 <= fps <= 120:
        raise UsageError(f"An animation has from 0.1 to 120 frames a second, not {fps:g}.")
    return Fraction(fps).limit_denominator(500)  # PNG has 16 bits for either number


def require_animation(path: Path, fps: float, plays: int = 0, size: tuple[int, int] | None = None) -> None:
    """Check that an animation can be written in the format that the path's suffix names.

    Args:
        size: (width, height), where it is known.

    Raises:
        UsageError: an unknown suffix, a rate, number of plays or size that the format does not have, or MP4
            without PyAV.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise UsageError(f"{path} can't be written: {suffix or 'no suffix'!r} is no animation; use one of {known}.")
    if rate(fps) > 50 and suffix == ".gif":
        raise UsageError(
            f"{path} can't be written: GIF has at most 50 frames a second, not {fps:g}; use .png or .webp."
        )
    if not 0 <= plays <= 65535:
        raise UsageError(f"An animation is played from 1 to 65535 times, or 0 for without end, not {plays}.")
    if suffix == ".mp4":
        if plays:
            raise UsageError(
                f"{path} can't be written: MP4 does not say how often it is played; use .gif, .png or .webp."
            )
        _av(path)
    limit = _SIDE.get(suffix)
    if limit and size and max(size) > limit:
        raise UsageError(
            f"{path} can't be written: {suffix} holds at most {limit} pixels a side, and this is {size[0]}x{size[1]}; "
            f"use .png."
        )


@contextmanager
def animation(
    path: Path, *, size: tuple[int, int], frames: int, fps: float, plays: int = 0, alpha: bool = False
) -> Iterator[Callable[[Image.Image], None]]:
    """A function that adds a frame; the file takes its place when the block ends well, and only then.

    .png and .apng (APNG) and .webp lose nothing; .gif has 256 colours a frame, dithered; .mp4 is H.264 at CRF 18 in
    4:2:0, where an odd side gets one more row or column. One frame is in memory at a time (MP4: those that the encoder
    looks ahead to).

    Args:
        path: ends in one of `SUFFIXES`.
        size: (width, height) of every frame.
        frames: how many will come.
        fps: frames a second; GIF rounds to 1/100 s and WebP to 1/1000 s, without an error that adds up.
        plays: how often it is played; 0 is without end.
        alpha: frames are RGBA, for which the suffix is of `WITH_ALPHA`; else RGB.

    Raises:
        UsageError: what `require_animation` refuses, alpha where there is none, or another number or size of frames.
        PictureError: the disk or the encoder refuses it.
    """
    require_animation(path, fps, plays, size)
    if alpha and path.suffix.lower() not in WITH_ALPHA:
        raise UsageError(f"{path} can't be written: {path.suffix} has no alpha; use one of {', '.join(WITH_ALPHA)}.")
    mode = "RGBA" if alpha else "RGB"
    count = 0
    with writing(path, PictureError) as file:
        with _refusals(path):
            writer = _WRITERS[path.suffix.lower()](file, size, frames, rate(fps), plays)

        def add(frame: Image.Image) -> None:
            nonlocal count
            if frame.size != size or count == frames:
                raise UsageError(f"{path} was to have {frames} frames of {size[0]}x{size[1]}, and others came.")
            with _refusals(path):
                writer.add(frame.convert(mode))
            count += 1

        try:
            yield add
            if count != frames:
                raise UsageError(f"{path} was to have {frames} frames, and {count} came.")
            with _refusals(path):
                writer.finish()
        except BaseException:
            with suppress(Exception):  # which ends half a file, would hide why there is only half of one
                writer.close()
            raise
        with _refusals(path):
            writer.close()


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    refused: tuple[type[Exception], ...] = OSError, ValueError, struct.error
    if av := sys.modules.get("av"):
        refused += (av.FFmpegError,)
    try:
        yield
    except refused as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise PictureError(f"{path} can't be written: {reason}.") from error


class _Writer(ABC):
    """A file that frames are added to, of one size and mode: RGB, or RGBA where the format has alpha."""

    def __init__(self, file: IO[bytes], size: tuple[int, int], frames: int, fps: Fraction, plays: int) -> None:
        self.file, self.size, self.frames, self.fps, self.plays = file, size, frames, fps, plays
        self.count = 0

    def add(self, frame: Image.Image) -> None:
        self.write(frame)
        self.count += 1

    @abstractmethod
    def write(self, frame: Image.Image) -> None: ...

    @abstractmethod
    def finish(self) -> None: ...

    def close(self) -> None:  # noqa: B027  most hold nothing
        """Gives back what the encoder holds."""

    def lasts(self, per_second: int) -> int:
        """How long the next frame is shown, in parts of a second, so that sums are right to half a part."""
        start, end = (round(i * per_second / self.fps) for i in (self.count, self.count + 1))
        return end - start


class _Gif(_Writer):
    def write(self, frame: Image.Image) -> None:
        if not self.count:
            self.file.write(b"GIF89a" + struct.pack("<HHBBB", *self.size, 0x70, 0, 0))  # 8 bits, no common colours
            if self.plays != 1:  # it counts how often to begin again
                self.file.write(b"\x21\xff\x0bNETSCAPE2.0" + struct.pack("<BBHB", 3, 1, max(self.plays - 1, 0), 0))
        colours = frame.quantize(256, Image.Quantize.MEDIANCUT)
        encoded = _encoded(frame.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG), "GIF", interlace=0)
        depth = encoded[10] & 7  # of the palette, which follows the header
        palette = encoded[13 : 13 + 3 * 2 ** (depth + 1)]
        at = 13 + len(palette)
        while encoded[at] == 0x21:  # extensions
            at = _after_blocks(encoded, at + 2)
        data = encoded[at + 10 : _after_blocks(encoded, at + 11)]
        self.file.write(b"\x21\xf9" + struct.pack("<BBHBB", 4, 1 << 2, self.lasts(100), 0, 0))  # is left in place
        self.file.write(b"\x2c" + struct.pack("<HHHHB", 0, 0, *self.size, 0x80 | depth) + palette + data)

    def finish(self) -> None:
        self.file.write(b"\x3b")


def _after_blocks(data: bytes, at: int) -> int:
    """Where GIF's sub-blocks that begin there end."""
    while data[at]:
        at += data[at] + 1
    return at + 1


class _Apng(_Writer):
    def write(self, frame: Image.Image) -> None:
        encoded = _encoded(frame, "PNG")
        chunks = list(_chunks(encoded, len(_PNG_START), ">I4s", tail=4))
        if not self.count:
            self.file.write(_PNG_START)
            self._chunk(b"IHDR", next(data for kind, data in chunks if kind == b"IHDR"))
            self._chunk(b"acTL", struct.pack(">II", self.frames, self.plays))
        number = max(2 * self.count - 1, 0)  # every later frame has two chunks that count
        delay = 1 / self.fps
        control = struct.pack(">IIIIIHHBB", number, *self.size, 0, 0, delay.numerator, delay.denominator, 0, 0)
        self._chunk(b"fcTL", control)
        data = b"".join(data for kind, data in chunks if kind == b"IDAT")
        if self.count:
            self._chunk(b"fdAT", struct.pack(">I", number + 1) + data)
        else:
            self._chunk(b"IDAT", data)

    def finish(self) -> None:
        self._chunk(b"IEND", b"")

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self.file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


class _Webp(_Writer):
    def write(self, frame: Image.Image) -> None:
        if not self.count:
            self.file.write(b"RIFF\0\0\0\0WEBP")
            flags = 0x02 | 0x10 * (frame.mode == "RGBA")  # animated, with alpha
            self._chunk(b"VP8X", bytes([flags, 0, 0, 0]) + self._sides())
            self._chunk(b"ANIM", struct.pack("<IH", 0xFFFFFFFF, self.plays))  # on white
        encoded = _encoded(frame, "WEBP", lossless=True, exact=True)
        kind, data = next(chunk for chunk in _chunks(encoded, 12, "<4sI") if chunk[0] == b"VP8L")
        head = bytes(6) + self._sides() + struct.pack("<I", self.lasts(1000))[:3] + b"\x02"  # replaces what was there
        self._chunk(b"ANMF", head + _riff(kind, data))

    def finish(self) -> None:
        end = self.file.tell()
        self.file.seek(4)
        self.file.write(struct.pack("<I", end - 8))

    def _sides(self) -> bytes:
        return b"".join(struct.pack("<I", side - 1)[:3] for side in self.size)

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self.file.write(_riff(kind, data))


def _riff(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def _encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def _chunks(data: bytes, at: int, head: str, tail: int | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk of a PNG or a RIFF.

    Args:
        at: where the first begins.
        head: format of kind and length, in either order.
        tail: bytes after each; None pads to an even length.
    """
    while at < len(data):
        values = struct.unpack_from(head, data, at)
        kind, length = values if isinstance(values[0], bytes) else values[::-1]
        yield kind, data[at + 8 : at + 8 + length]
        at += 8 + length + (length % 2 if tail is None else tail)


class _Mp4(_Writer):
    def __init__(self, file: IO[bytes], size: tuple[int, int], frames: int, fps: Fraction, plays: int) -> None:
        super().__init__(file, size, frames, fps, plays)
        self.av: Any = importlib.import_module("av")
        self.container = self.av.open(self.file, "w", format="mp4")
        self.stream = self.container.add_stream("libx264", rate=fps, options={"crf": "18"})
        self.stream.width, self.stream.height = (side + side % 2 for side in size)
        self.stream.pix_fmt = "yuv420p"
        context = self.stream.codec_context
        # BT.709, limited range: numbers of ITU-T H.273
        context.color_primaries = context.color_trc = context.colorspace = context.color_range = 1

    def write(self, frame: Image.Image) -> None:
        levels = np.pad(np.asarray(frame), [(0, side % 2) for side in self.size[::-1]] + [(0, 0)], mode="edge")
        picture = self.av.VideoFrame.from_ndarray(levels, format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        picture.pts = self.count
        picture.time_base = 1 / self.fps
        self.container.mux(self.stream.encode(picture))

    def finish(self) -> None:
        self.container.mux(self.stream.encode(None))

    def close(self) -> None:
        self.container.close()  # writes what stands at the end


def _av(path: Path) -> Any:
    """PyAV.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        return importlib.import_module("av")
    except ImportError:
        raise UsageError(
            f"{path}: to write MP4, the package av is needed; install it with: pip install 'calotype[video]'."
        ) from None


_WRITERS: dict[str, type[_Writer]] = {
    ".gif": _Gif, ".png": _Apng, ".apng": _Apng, ".webp": _Webp, ".mp4": _Mp4
}  # fmt: skip
