"""What a TIFF's tags say of its pixels, and which reader gets them right.

As in Adobe's "TIFF Revision 6.0" and its technical notes; BigTIFF as in libtiff's "The BigTIFF File Format".
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Literal

from calotype.pixels import held

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 7: "s", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q"}
_MOST = 2**24  # bytes of a tag's values that are read; the ICC profile is the largest of those that count
_MOST_PARTS = 2**28  # bytes of where strips or tiles are
_MOST_FRAMES = 2**16

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _PLANAR = 274, 277, 284
_COLOUR_MAP, _SUB_IFDS, _INK_SET, _EXTRA, _FORMAT = 320, 330, 332, 338, 339
_SUBSAMPLING, _DEPTH, _PROFILE, _NODATA, _DNG = 530, 32997, 34675, 42113, 50706

_MODELS = {0: "L", 1: "L", 2: "RGB", 3: "P", 5: "CMYK", 6: "YCbCr", 8: "LAB", 9: "LAB"}
_COLOURS = {"L": 1, "P": 1, "RGB": 3, "CMYK": 4, "YCbCr": 3, "LAB": 3}
_WORDS = {"L": "grey", "P": "palette", "LAB": "CIELAB"}
_OTHER = {
    4: "a transparency mask",
    10: "ITU CIELAB",
    32803: "camera raw data",
    34892: "camera raw data",
    32844: "LogL luminance",
    32845: "LogLuv colours",
}

Reader = Literal["pillow", "pillow, 8 bits", "tifffile"]


@dataclass(frozen=True)
class Tiff:
    """The first frame of a TIFF.

    Attributes:
        model: what the values are: L (grey), P (palette), RGB, CMYK, YCbCr or LAB.
        bits: of a value.
        kind: u (unsigned), i (signed), f (floats).
        alpha: which channel it is; None without.
        premultiplied: the colours are multiplied by it.
        unnamed: how many channels there are besides, that the file says nothing of.
        inverted: 0 is white.
        planar: every channel lies by itself.
        nodata: the value of pixels without data, where there are any.
        offset_lab: a* and b* are unsigned, as ICC profiles have them.
        orientation: as in EXIF.
        profile: ICC.
        frames: how many there are.
        reader: who reads it right, or in 8 bits only.
        palette: 2 ** bits R, then as many G and B, in 16 bits.
        tags: all of them, tuples of numbers and bytes.
    """

    width: int
    height: int
    model: str
    bits: int
    kind: str
    alpha: int | None
    premultiplied: bool
    unnamed: int
    inverted: bool
    planar: bool
    nodata: float | None
    offset_lab: bool
    orientation: int
    profile: bytes | None
    frames: int
    reader: Reader
    palette: tuple[int, ...] | None
    tags: Mapping[int, Any]

    @property
    def colours(self) -> int:
        """Channels that are colours."""
        return _COLOURS[self.model]

    @property
    def words(self) -> str:
        """What it is, such as "planar 16-bit RGB with alpha"."""
        kind = {"u": "", "i": "signed ", "f": "float "}[self.kind]
        planar = "planar " if self.planar else ""
        alpha = " with alpha" if self.alpha is not None else ""
        return f"{planar}{self.bits}-bit {kind}{_WORDS.get(self.model, self.model)}{alpha}"


class NotReadableError(ValueError):
    """A whole TIFF that nothing here reads; the message says what it holds, and what to do."""


def examine(file: IO[bytes]) -> Tiff | None:
    """Read the tags of the first frame; None if they are damaged or miss what must be there, of which Pillow tells.

    Raises:
        NotReadableError: what it holds is no picture, or one that can't be read.
    """
    try:
        tags, frames, order, big = _directory(file)
    except (struct.error, ValueError, OverflowError, IndexError):
        return None
    return _understood(tags, frames, order, big)


def of_tags(tags: dict[int, Any], order: str) -> Tiff | None:
    """Of the tags as Pillow gives them.

    Args:
        order: of bytes, < or >.

    Raises:
        NotReadableError: as for `examine`.
    """
    return _understood(listed(tags), 1, order, False)


def listed(tags: Mapping[int, Any]) -> dict[int, Any]:
    """Tags as Pillow gives them -> tuples of numbers and bytes."""
    return {
        tag: value.encode("latin-1", "replace")
        if isinstance(value, str)
        else value
        if isinstance(value, (tuple, bytes))
        else (value,)
        for tag, value in tags.items()
    }


def _directory(file: IO[bytes]) -> tuple[dict[int, Any], int, str, bool]:
    """The tags of the first directory, the number of directories, the order of bytes, and whether it is a BigTIFF."""
    file.seek(0)
    head = file.read(16)
    order = "<" if head.startswith(b"II") else ">"
    big = head[:4] in SIGNATURES[2:]
    at: int = struct.unpack_from(f"{order}Q", head, 8)[0] if big else struct.unpack_from(f"{order}I", head, 4)[0]
    count_code, entry_code, word = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    entry_size, word_size = struct.calcsize(order + entry_code), struct.calcsize(order + word)
    tags: dict[int, Any] = {}
    seen: set[int] = set()
    while at and at not in seen and len(seen) < _MOST_FRAMES:
        file.seek(at)
        (count,) = struct.unpack(order + count_code, file.read(struct.calcsize(order + count_code)))
        if count > 2**16:
            raise ValueError("more tags than there are")
        entries, following = file.read(count * entry_size), file.read(word_size)
        if not seen:
            for tag, kind, number, value in struct.iter_unpack(order + entry_code, entries):
                most = _MOST_PARTS if tag in held.PARTS else _MOST
                tags.setdefault(tag, _values(file, order, kind, number, value, word, most))
        seen.add(at)
        if len(following) < word_size:  # the last directory of some writers
            break
        (at,) = struct.unpack(order + word, following)
    return tags, len(seen), order, big


def _values(file: IO[bytes], order: str, kind: int, number: int, value: bytes, word: str, most: int) -> Any:
    """Bytes of what is text or undefined, else a tuple of numbers; empty for a kind that does not count here."""
    code = _TYPES.get(kind)
    if code is None:
        return ()
    size = number * struct.calcsize(code)
    if size > most:
        return ()
    if size > len(value):
        file.seek(struct.unpack(order + word, value)[0])
        value = file.read(size)
    return value[:number] if code == "s" else struct.unpack(f"{order}{number}{code}", value[:size])


def _understood(tags: dict[int, Any], frames: int, order: str, big: bool) -> Tiff | None:
    def first(tag: int, default: int) -> int:
        values = tags.get(tag) or (default,)
        return int(values[0])

    width, height, photometric = first(_WIDTH, 0), first(_HEIGHT, 0), first(_PHOTOMETRIC, 0)
    compression = first(_COMPRESSION, 1)
    if not width or not height or (_PHOTOMETRIC not in tags and compression in (6, 7)):
        return None
    if tags.get(_DNG) or photometric in (32803, 34892):
        raise NotReadableError("holds camera raw data (DNG) that must be developed; export it as TIFF, PNG or JPEG")
    if first(254, 0) & 1 and (tags.get(_SUB_IFDS) or frames > 1):  # 254: NewSubfileType
        raise NotReadableError(
            "starts with a small preview of its picture, as camera raw files do; export the picture alone as TIFF, PNG "
            "or JPEG"
        )
    if photometric in _OTHER:
        raise NotReadableError(f"holds {_OTHER[photometric]}, of which no picture is made; save it as RGB")
    model = _MODELS.get(photometric)
    if model is None:
        return None
    if first(_DEPTH, 1) > 1:
        raise NotReadableError("holds a volume of several layers; save the layer that is meant")
    return _with_samples(tags, model, photometric, compression, frames, order, big)


def _with_samples(
    tags: dict[int, Any], model: str, photometric: int, compression: int, frames: int, order: str, big: bool
) -> Tiff | None:
    colours, save = _COLOURS[model], "; save it as 8-bit or 16-bit RGB"
    samples = (tags.get(_SAMPLES) or (3 if compression in (6, 7) and model in ("RGB", "YCbCr") else 1,))[0]
    bits = tuple(tags.get(_BITS) or (1,))
    if len(bits) == 1:
        bits *= min(samples, 2**16)
    bits = bits[:samples]
    if samples < colours or len(bits) != samples:
        return None
    if len(set(bits)) > 1:
        raise NotReadableError(f"has channels of {_listed(bits)} bits, which must be alike{save}")
    formats = set(tags.get(_FORMAT) or (1,))
    if len(formats) > 1:
        raise NotReadableError(f"has channels of different kinds of numbers{save}")
    kind = {1: "u", 2: "i", 3: "f", 4: "u"}.get(formats.pop())
    if kind is None:
        raise NotReadableError("holds complex numbers, which are no picture; save their magnitude as floats")
    extra = tuple(tags.get(_EXTRA) or ())[: samples - colours]
    if not extra and model == "RGB" and samples == 4:
        extra = (2,)  # as writers mean it that leave out what it is
    extra += (0,) * (samples - colours - len(extra))
    alphas = [i for i, meaning in enumerate(extra) if meaning in (1, 2, 999)]  # 999: Corel Draw's
    unnamed = len(extra) - len(alphas[:1])
    if model == "L" and unnamed > 1:
        raise NotReadableError(
            f"has {samples} grey channels, of which none is said to be the picture, as of a microscope or a satellite; "
            "save one of them, or three as RGB"
        )
    if model == "CMYK" and (tags.get(_INK_SET) or (1,))[0] != 1:
        raise NotReadableError(f"holds inks other than CMYK{save}")
    # TIFF's own default is 2 x 2, but writers that say nothing did not subsample
    subsampled = tuple(tags.get(_SUBSAMPLING) or (1, 1)) != (1, 1)
    planar = (tags.get(_PLANAR) or (1,))[0] == 2 and samples > 1
    if model == "YCbCr" and ((subsampled and compression == 1) or planar or bits[0] != 8 or extra):
        what = "subsampled " if subsampled else ""
        raise NotReadableError(f"holds {what}YCbCr in a layout that can't be read; save it as RGB")
    if kind == "i" and (model != "L" or bits[0] != 32 or extra):
        raise NotReadableError(
            f"holds signed {bits[0]}-bit numbers, of which none is said to be white; rescale them to unsigned ones"
        )
    nodata = tags.get(_NODATA)
    palette = tags.get(_COLOUR_MAP) if model == "P" else None
    if model == "P" and (not palette or len(palette) != 3 * 2 ** bits[0]):
        return None
    tiff = Tiff(
        width=tags[_WIDTH][0],
        height=tags[_HEIGHT][0],
        model=model,
        bits=bits[0],
        kind=kind,
        alpha=colours + alphas[0] if alphas else None,
        premultiplied=bool(alphas) and extra[alphas[0]] == 1,
        unnamed=unnamed,
        inverted=photometric == 0,
        planar=planar,
        nodata=_number(nodata) if isinstance(nodata, bytes) else None,
        offset_lab=photometric == 9,
        orientation=(tags.get(_ORIENTATION) or (1,))[0],
        profile=bytes(tags.get(_PROFILE) or b"") or None,
        frames=frames,
        reader="pillow",
        palette=palette,
        tags=tags,
    )
    # Pillow takes the second kind of file for the first, and swaps the bytes of numbers that libtiff has swapped
    swapped = order == ">" and (big or (kind != "u" and compression != 1))
    return dataclasses.replace(tiff, reader="tifffile" if swapped else _reader(tiff, extra, compression))


def _listed(numbers: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _number(text: bytes) -> float | None:
    try:
        return float(text.rstrip(b"\0 ").replace(b",", b"."))
    except ValueError:
        return None


def _reader(tiff: Tiff, extra: tuple[int, ...], compression: int) -> Reader:
    """Pillow, where what it gives is right if it opens it at all.

    It takes signed bytes for unsigned ones and 32 bits for signed numbers. Of planes it reads 8 bits where they are
    more and are not compressed, leaves alpha multiplied in, and mixes up those of grey with alpha and of Lab.
    """
    if tiff.kind == "u" and tiff.bits == 32:
        return "tifffile"
    if tiff.planar and (
        tiff.model not in ("RGB", "CMYK") or extra not in ((), (2,)) or (tiff.bits > 8 and compression == 1)
    ):
        return "tifffile"
    if tiff.palette and max(tiff.palette) < 256:
        return "tifffile"
    if tiff.palette:
        # levels times 257, or times 256, are what 8 bits hold
        return "pillow" if any(all(n % step == 0 for n in tiff.palette) for step in (257, 256)) else "pillow, 8 bits"
    return "pillow, 8 bits" if tiff.bits > 8 and tiff.model != "L" else "pillow"
