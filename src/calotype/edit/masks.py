"""Mask pictures: what they select, whichever way they say it.

A mask is data: profiles and gamma do not change it, EXIF orientation does turn it. It is told in this order:

1. Alpha, if it varies. What is opaque was painted, and is selected; so colours do not count, unless they are black and
   white (then black takes away again). Where a picture shows in what is opaque, its transparent holes are selected.
2. Colours: a mask is black and white, or black and one other colour, which is taken for white.
3. Levels: two are black and white, whatever numbers they are; of more, each says how much is selected.

What has none of these meanings is refused.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from calotype.errors import UsageError
from calotype.pixels import read_picture_rows, require_whole, to_uint8
from calotype.pixels.opening import strict_pillow

MaskSource = str | os.PathLike[str] | bytes | Image.Image  # bytes are those of a file
Selected = Literal["auto", "opaque", "transparent"]  # what of a mask with alpha is selected

NEAR = 8
"""Levels nearer than this to black or white are black or white."""
LOSSY_NEAR = 64
"""The same of formats that do not keep levels; what is between is stretched."""

# those with profiles, alpha or deep levels; others are read as any picture
_FORMATS = ("PNG", "TIFF", "JPEG", "WEBP", "AVIF", "JPEG2000", "GIF", "PPM", "BMP")
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")
_LIGHT = ("icc_profile", "gamma", "srgb", "chromaticity")  # what Pillow keeps of how levels are to be seen

_MOST_LABELS = 64  # a picture with more levels is no map of labels
_COLOURED = 48  # levels between the channels of what is no grey
_NAMED = 6

_Array = npt.NDArray[Any]
_Levels = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask as read.

    Attributes:
        levels: uint8 [H, W], 255 for what is selected, 0 for what is not.
        notices: how it was understood, where it is not just black and white; a sentence each.
    """

    levels: Tensor
    notices: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.levels.shape[0], self.levels.shape[1]


def read_mask(
    source: MaskSource,
    *,
    alpha: Selected = "auto",
    invert: bool = False,
    size: tuple[int, int] | None = None,
    of: str = "the picture",
) -> Mask:
    """Read a mask, by the order that this module's docstring has.

    Levels up to 7 are black and those from 248 white. JPEG, WebP, AVIF and JPEG 2000 do not keep levels: there a
    quarter at either end is, and the half between is stretched, so that half stays half. Numbers of more than 8 bits,
    and floats, are of 255 where none is larger, unless all are in [0, 1].

    Args:
        source: a path, a file's bytes, or a PIL image.
        alpha: which part is selected where alpha varies; "auto" tells it by what is opaque.
        invert: select the rest instead.
        size: (height, width) that it must have, where it is known already.
        of: what has this size.

    Raises:
        PictureError: as `pixels.read_picture`.
        UsageError: if it is no mask (labels, colours, latents, or nothing that tells what is selected), or not of the
            size.
    """
    name = "The mask" if isinstance(source, bytes | Image.Image) else os.fspath(source)
    if name.lower().endswith(".safetensors"):
        raise UsageError(f"{name}: a mask is a picture, black and white, and no latents; draw one.")
    stored = _read(source)
    if size is not None and stored.values.shape[:2] != size:
        (h, w), (height, width) = stored.values.shape[:2], size
        raise UsageError(f"{name} is {w}x{h} and {of} {width}x{height}; draw the mask in that size.")
    notices = list(stored.notices)
    opacity = None if stored.opacity is None else _opacity(stored)
    if opacity is not None and opacity.max() == 0:
        raise UsageError(f"{name} is transparent all over, so it selects nothing; paint what is to be selected.")
    if opacity is not None and opacity.min() < opacity.max():
        levels = _by_alpha(stored, opacity, alpha, notices)
    else:
        if opacity is not None and opacity.min() < 255:
            notices.append("Its alpha is the same all over and was left out.")
        levels = _by_colours(stored, name, notices)
    made = torch.from_numpy(np.rint(levels).astype(np.uint8))
    return Mask(255 - made if invert else made, tuple(notices))


# --- files ---


@dataclass(frozen=True, eq=False)
class _Stored:
    """What a file holds.

    Attributes:
        values: grey [H, W] of any number type, or colours [H, W, 3], uint8.
        white: what is white in the file's own terms; None where numbers have to tell.
        opacity: uint8 [H, W].
        lossy: the format does not keep levels.
    """

    values: _Array
    white: float | None
    opacity: npt.NDArray[np.uint8] | None
    lossy: bool
    notices: tuple[str, ...]


def _read(source: MaskSource) -> _Stored:
    if not isinstance(source, Image.Image):
        require_whole(source)
    try:
        with strict_pillow():
            found = _as_data(source)
    except Exception:  # Pillow raises almost anything; what is wrong with a file, says the reader of pictures
        found = None
    return _seen(source, False) if found is None else found


def _as_data(source: MaskSource) -> _Stored | None:
    """The numbers as stored, not as seen; None where Pillow can't tell them."""
    if isinstance(source, Image.Image):
        lossy = _lossy(source)  # before it is loaded, which may close its file
        return _of_image(source.copy(), lossy)
    Image.init()
    formats = [known for known in _FORMATS if known in Image.OPEN]
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
        return _of_image(image, _lossy(image))


def _of_image(image: Image.Image, lossy: bool) -> _Stored | None:
    raw_mode = _raw_mode(image)
    if image.mode != "F" and not image.mode.startswith("I"):
        if ";16" in raw_mode:
            return None
        for key in _LIGHT:
            image.info.pop(key, None)
        return _seen(image, lossy)
    notices = [f"Only frame 1 of {count} was used."] if (count := getattr(image, "n_frames", 1)) > 1 else []
    inverted = getattr(image, "tag_v2", {}).get(262) == 0  # PhotometricInterpretation: 0 is white
    clear = image.info.get("transparency")
    values: _Array = np.asarray(ImageOps.exif_transpose(image))
    values = values.astype(np.float64 if image.mode == "F" else np.int64)
    opacity = None if clear is None else np.where(values != clear, np.uint8(255), np.uint8(0))
    white = 4095.0 if raw_mode == "I;12" else None
    if inverted:
        values = (white or (1 if image.mode == "F" else 65535)) - values
    return _Stored(values, white, opacity, lossy, tuple(notices))


def _lossy(image: Image.Image) -> bool:
    """Whether levels may be others than they were; some formats can be either, and say which."""
    if image.format not in _LOSSY:
        return bool(image.info.get("compression") == "jpeg")
    file: IO[bytes] | None = getattr(image, "fp", None)
    if image.format not in ("WEBP", "JPEG2000") or file is None:
        return True
    at = file.tell()
    file.seek(0)
    head = file.read(2**16)
    file.seek(at)
    if image.format == "WEBP":  # chunks of a RIFF file (RFC 9649)
        return b"VP8L" not in head or b"VP8 " in head
    begin = head.find(b"\xff\x52")  # COD, whose tenth parameter is the wavelet: 1 is the reversible one (T.800, A.6.1)
    return begin < 0 or bytes(head[begin + 13 : begin + 14]) != b"\1"


def _raw_mode(image: Image.Image) -> str:
    """Pillow's name of how the file holds its values."""
    tiles = getattr(image, "tile", [])
    args: Any = tiles[0].args if tiles else ""
    first: Any = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _seen(source: MaskSource, lossy: bool) -> _Stored:
    """As pictures are read."""
    rows = read_picture_rows(source, alpha="keep", background=(0, 0, 0))
    opacity = None if rows.alpha is None else rows.alpha.numpy()
    notices = tuple(one for one in rows.notices if one.startswith(("Only frame", "The EXIF")))
    levels: _Array = rows.levels
    if levels.ndim == 2:
        return _Stored((levels.astype(np.float64) + 1) / 2, 1.0, opacity, lossy, notices)
    if levels.dtype != np.uint8:
        pixels = rows.rows(0, rows.size[0])
        if (pixels == pixels[0]).all():
            return _Stored((pixels[0].double().numpy() + 1) / 2, 1.0, opacity, lossy, notices)
        levels = to_uint8(pixels).permute(1, 2, 0).numpy()
    grey = levels[..., 0]
    values = grey if (levels == grey[..., None]).all() else levels
    return _Stored(values, 255.0, opacity, lossy, notices)


# --- alpha ---


def _opacity(stored: _Stored) -> _Levels:
    """In [0, 255]; of 0 and 1 alone, 1 is opaque."""
    assert stored.opacity is not None
    if not stored.lossy and set(np.unique(stored.opacity)) == {0, 1}:
        return stored.opacity.astype(np.float64) * 255.0
    return _clean(stored.opacity.astype(np.float64), stored.lossy)


def _by_alpha(stored: _Stored, opacity: _Levels, selected: Selected, notices: list[str]) -> _Levels:
    colours = stored.values[opacity >= min(128.0, opacity.max())]
    if selected == "transparent" or (selected == "auto" and _is_picture(colours)):
        notices.append("It shows a picture, so what is transparent in it is selected; inverted, the rest would be.")
        return np.where(opacity < 255, 255.0, 0.0)
    if selected == "auto" and _black_and_white(colours, stored.white):
        notices.append("It is painted in black and white on transparent: what is white is selected.")
        grey = stored.values if stored.values.ndim == 2 else stored.values.mean(axis=2)
        return _clean(grey.astype(np.float64) / (stored.white or 255.0) * opacity, stored.lossy)
    notices.append("What is opaque in it is selected; inverted, what is transparent would be.")
    return _stretched(opacity, 255.0, notices) if len(np.unique(opacity)) == 2 else opacity


def _is_picture(colours: _Array) -> bool:
    """Whether colours [N] or [N, 3] are more than strokes have: most of these are of a few colours."""
    if colours.ndim == 1:
        counts = np.unique((colours * (16 / max(1, int(colours.max()) + 1))).astype(np.int64), return_counts=True)[1]
    else:
        packed = (colours >> 4).astype(np.int64) @ np.array([256, 16, 1])
        counts = np.unique(packed, return_counts=True)[1]
    return bool(np.sort(counts)[-8:].sum() < 0.9 * len(colours))


def _black_and_white(colours: _Array, white: float | None) -> bool:
    """Whether a good part of them is black, and another one white."""
    if colours.ndim == 2:
        if _spread(colours).max() > _COLOURED:
            return False
        colours = colours.mean(axis=1)
    top = white or float(colours.max())
    return top > 0 and bool(min((colours <= top / 4).mean(), (colours >= top * 3 / 4).mean()) > 0.01)


# --- colours ---


def _spread(colours: _Array) -> _Array:
    """How far the channels of colours [..., 3] are apart."""
    spread: _Array = colours.max(axis=-1).astype(np.int64) - colours.min(axis=-1)
    return spread


def _by_colours(stored: _Stored, name: str, notices: list[str]) -> _Levels:
    values = stored.values
    if values.ndim == 2:
        return _by_levels(values, stored.white, stored.lossy, name, notices)
    if _spread(values).max() <= _COLOURED:
        return _by_levels(_luminance(values), 255.0, stored.lossy, name, notices)
    ends = _two_colours(values, stored.lossy)
    if ends is not None:
        black, white = sorted(ends, key=lambda one: float(one.max()))
        if black.max() > _COLOURED:
            raise UsageError(
                f"{name} holds the colours {_colour(black)} and {_colour(white)}, which do not tell what is selected; "
                "paint it white on black."
            )
        notices.append(f"The colour {_colour(white)} was taken for white.")
        along = (values - black) @ (white - black) / ((white - black) @ (white - black))
        return _clean(along.clip(0, 1) * 255.0, stored.lossy)
    found = np.unique(values.reshape(-1, 3), axis=0)
    if len(found) <= _MOST_LABELS:
        listed = _listed([_colour(one) for one in found])
        raise UsageError(
            f"{name} holds the colours {listed}; as a mask, paint what is selected white and all else black."
        )
    notices.append("It is in colours; their luminance was taken.")
    return _by_levels(_luminance(values), 255.0, stored.lossy, name, notices)


def _luminance(colours: _Array) -> _Array:
    return np.asarray(Image.fromarray(colours).convert("L"))


def _two_colours(values: _Array, lossy: bool) -> tuple[_Levels, _Levels] | None:
    """The two colours that all others are mixtures of, if there are such."""
    packed = (values >> 4).astype(np.int64) @ np.array([256, 16, 1])
    most = np.bincount(packed.ravel()).argmax()
    first: _Levels = values[packed == most].mean(axis=0)
    apart = np.abs(values - first).max(axis=-1)
    second: _Levels = np.median(values[apart >= (0.8 if lossy else 1.0) * apart.max()], axis=0)
    way = second - first
    along = ((values - first) @ way / (way @ way)).clip(0, 1)
    off = np.abs(values - first - along[..., None] * way).max(axis=-1)
    return (first, second) if (off > (64 if lossy else 16)).mean() < 0.001 else None


def _colour(one: _Array) -> str:
    return f"({', '.join(str(round(float(level))) for level in one)})"


# --- levels ---


def _by_levels(values: _Array, white: float | None, lossy: bool, name: str, notices: list[str]) -> _Levels:
    """Levels in [0, 255] of numbers [H, W]."""
    if not np.isfinite(values).all():
        raise UsageError(f"{name} holds NaN or infinity, which select nothing; give a mask of numbers from 0 to 1.")
    found = np.unique(values)
    low, high = float(found[0]), float(found[-1])
    top = white or _top(high, values)
    if len(found) == 2:
        full = top or high
        if not lossy or high - low >= full / 8:  # nearer ones may be what compression made of one
            return _stretched(values.astype(np.float64), full, notices)
    if top is None or low < -1e-3:
        raise UsageError(f"{name} holds numbers from {low:g} to {high:g}, which is no mask; give it black and white.")
    levels = (values * (255.0 / top)).clip(0.0, 255.0)
    clean = _clean(levels, lossy)
    if white is None and top == 255.0:
        notices.append(f"Its numbers go up to {high:g}, so 255 was taken for white.")
    if len(found) == 1:
        if high > 0 and not clean.any():
            raise UsageError(f"{name} holds {high:g} all over, which does not tell what is selected; make it white.")
        return clean
    labels = not lossy and 3 <= len(found) <= _MOST_LABELS
    if labels and (levels.max() <= 255 - NEAR or _flat(values, levels)):
        listed = _listed([f"{one:g}" for one in found])
        raise UsageError(
            f"{name} holds the values {listed}, as labels are, and not just black and white; "
            "make white what is to be selected and all else black."
        )
    if not clean.any():
        raise UsageError(
            f"{name} holds levels up to {levels.max():.0f} of 255, which is black; make white what is selected."
        )
    if clean.max() < 255:
        notices.append(f"Its brightest level is {levels.max():.0f} of 255, so nothing is selected whole.")
    greys = clean[(clean > 0) & (clean < 255)]
    if len(found) <= 8 and greys.size > 0.1 * np.count_nonzero(clean):
        notices.append(f"What is grey in it ({_listed([f'{one:g}' for one in np.unique(greys)])}) is selected in part.")
    return clean


def _top(high: float, values: _Array) -> float | None:
    """What is white among numbers up to this one."""
    tops = (1.0, 255.0, 65535.0) if np.issubdtype(values.dtype, np.floating) else (255.0, 65535.0)
    return next((top for top in tops if high <= top * 1.001), None)


def _stretched(values: _Levels, top: float, notices: list[str]) -> _Levels:
    """Two values as black and white."""
    low, high = float(values.min()), float(values.max())
    if low * 255 / top >= NEAR or high * 255 / top <= 255 - NEAR:
        notices.append(f"Its two levels, {low:g} and {high:g}, were taken for black and white.")
    return np.where(values == high, 255.0, 0.0)


def _clean(levels: _Levels, lossy: bool) -> _Levels:
    """Levels without what compression leaves at black and white."""
    if lossy:
        return ((levels - LOSSY_NEAR) * (255.0 / (255 - 2 * LOSSY_NEAR))).clip(0.0, 255.0)
    return np.where(levels < NEAR, 0.0, np.where(levels > 255 - NEAR, 255.0, levels))


def _flat(values: _Array, levels: _Levels) -> bool:
    """Whether low levels fill areas, as labels do and noise does not."""
    low = ((levels > 0) & (levels <= 16))[:-1, :-1]
    same = (values[:-1, :-1] == values[1:, :-1]) & (values[:-1, :-1] == values[:-1, 1:])
    return bool(low.any() and (same & low).sum() > 0.6 * low.sum())


def _listed(words: Sequence[str]) -> str:
    shown = list(words[:_NAMED])
    if len(words) > _NAMED:
        return f"{', '.join(shown)} and {len(words) - _NAMED} more"
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else shown[0]
