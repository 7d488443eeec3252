"""Decoders for what Pillow can't hold, or reads wrong: tifffile and imagecodecs, where they are installed.

They are imported only when they are needed.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from calotype.pixels.tiff import NotReadableError, Tiff
from calotype.pixels.values import COLOURS, Model, Values

INSTALL = "pip install 'calotype[deep]'"

# TIFF's compressions that tifffile and imagecodecs undo: none, LZW, JPEG, deflate, PackBits, LERC, LZMA, Zstandard,
# WebP, JPEG 2000, PNG and JPEG XL
_COMPRESSIONS = {
    *(1, 5, 7, 8, 32946, 32773, 34887, 34925, 50000, 50001),
    *(33003, 33004, 33005, 34712, 34933, 50002, 52546),
}


def imagecodecs() -> Any | None:
    """The library, or None where it is not installed."""
    try:
        return importlib.import_module("imagecodecs")
    except ImportError:
        return None


def tifffile() -> Any | None:
    """The library, or None where it or imagecodecs, which it decodes with, is not installed."""
    try:
        return importlib.import_module("tifffile") if imagecodecs() else None
    except ImportError:
        return None


def pillow_heif() -> Any | None:
    """The library, or None where it is not installed."""
    try:
        return importlib.import_module("pillow_heif")
    except ImportError:
        return None


def of_array(array: npt.NDArray[Any], full: float, model: Model) -> Values:
    """Of decoded values [H, W] or [H, W, C]; a channel after the colours is alpha."""
    values = array[..., None] if array.ndim == 2 else array
    height, width, channels = values.shape
    n = COLOURS[model]
    return Values(width, height, lambda top, bottom: values[top:bottom], model, full, alpha=n if channels > n else None)


def of_png(library: Any, data: bytes) -> Values:
    """Of a PNG of 16 bits; what its tRNS says is transparent is alpha."""
    array = library.png_decode(data)
    return of_array(array, 65535.0, "L" if array.ndim == 2 or array.shape[-1] == 2 else "RGB")


def of_avif(library: Any, data: bytes, depth: int) -> Values:
    """Of the first frame of an AVIF with more than 8 bits."""
    array = library.avif_decode(data, index=0, numthreads=1)
    return of_array(array, 2.0**depth - 1.0, "RGB" if array.shape[-1] in (3, 4) and array.ndim == 3 else "L")


def of_jpeg_2000(library: Any, data: bytes, depth: int) -> Values:
    """Of JPEG 2000 with more than 8 bits."""
    array = library.jpeg2k_decode(data, numthreads=1)
    return of_array(array, 2.0**depth - 1.0, "RGB" if array.shape[-1] in (3, 4) and array.ndim == 3 else "L")


def of_jpeg_xl(library: Any, data: bytes, depth: int, floats: bool) -> Values:
    """Of the first frame of a JPEG XL with more than 8 bits, turned upright by its own header."""
    array = library.jpegxl_decode(data, index=0, numthreads=1)
    full = 1.0 if floats else 2.0**depth - 1.0
    values = of_array(array, full, "RGB" if array.shape[-1] in (3, 4) and array.ndim == 3 else "L")
    return replace(values, floats=floats, checked=floats)


def of_heif(library: Any, file: IO[bytes], depth: int) -> Values:
    """Of the primary picture of a HEIF with more than 8 bits, turned upright by its own properties."""
    file.seek(0)
    opened = library.open_heif(file, convert_hdr_to_8bit=False)
    image = opened[opened.primary_index]
    full = float((2**depth - 1) << (16 - depth))  # it shifts, which makes white less
    values = of_array(np.asarray(image), full, "RGB" if image.mode.startswith("RGB") else "L")
    return replace(values, premultiplied=image.mode.startswith("RGBa"))


def of_tiff(library: Any, file: IO[bytes], tiff: Tiff, notices: list[str]) -> Values:
    """Of the first frame of a TIFF.

    Raises:
        NotReadableError: it is whole, but nothing here reads it.
        Exception: almost any, if the file is damaged.
    """
    _require_known(tiff)
    file.seek(0)
    with library.TiffFile(file) as opened:
        page = opened.pages[0]
        if page.compression not in _COMPRESSIONS or page.predictor not in (1, 2, 3):
            raise NotReadableError(
                f"is packed in a way that can't be read (compression {int(page.compression)}, "
                f"predictor {int(page.predictor)}); save it uncompressed or with deflate"
            )
        if page.compression != 7 and tiff.model == "YCbCr":
            raise NotReadableError("holds YCbCr in a layout that can't be read; save it as RGB")
        parts = math.prod(page.chunked)
        if len(page.dataoffsets) < (1 if page.is_contiguous else parts):
            raise ValueError(f"it has {len(page.dataoffsets)} of {parts} parts")
        missing = sum(1 for count in page.databytecounts if not count)
        array = page.asarray(squeeze=False, maxworkers=1)
    if missing:
        notices.append(f"{missing} of the {parts} parts of the picture are not in the file; they were filled.")
    planes = np.moveaxis(array[:, 0, ..., 0], 0, -1) if tiff.planar else array[0, 0]
    samples = tiff.colours + (tiff.alpha is not None) + tiff.unnamed
    if array.shape[1] != 1 or planes.shape != (tiff.height, tiff.width, samples):
        raise ValueError(f"its values are {list(array.shape)}")
    return _values(tiff, planes, notices)


def _require_known(tiff: Tiff) -> None:
    if tiff.model == "LAB" and (
        (tiff.kind, tiff.bits) not in (("u", 8), ("u", 16), ("f", 32)) or tiff.alpha is not None
    ):
        raise NotReadableError(f"holds {tiff.words}, which can't be read; save it as RGB")
    if tiff.model == "CMYK" and tiff.kind == "f":
        raise NotReadableError(f"holds {tiff.words}, which can't be read; save it as RGB")
    # the bytes of 24 bits have no agreed order
    if (tiff.kind == "u" and tiff.bits > 16 and tiff.bits != 32) or (
        tiff.kind == "f" and tiff.bits not in (16, 32, 64)
    ):
        raise NotReadableError(f"holds {tiff.words}, which can't be read; save it in 16 bits")


def _values(tiff: Tiff, planes: npt.NDArray[Any], notices: list[str]) -> Values:
    """Of planes [H, W, C] as tifffile gives them."""
    floats = tiff.kind == "f"
    full = 1.0 if floats else 2.0**tiff.bits - 1.0
    model: Model = "L"
    alpha = tiff.alpha

    def rows(top: int, bottom: int) -> npt.NDArray[Any]:
        return planes[top:bottom]

    if tiff.model == "P":
        assert tiff.palette is not None
        table = np.array(tiff.palette, dtype=np.uint16).reshape(3, -1).T
        if int(table.max()) < 256:  # as old writers have it
            table = table * np.uint16(257)
            notices.append("The palette was taken for levels from 0 to 255, as it holds none above.")
        inner, model, full = planes, "RGB", 65535.0

        def rows(top: int, bottom: int) -> npt.NDArray[Any]:
            part = inner[top:bottom]
            colours: npt.NDArray[Any] = table[part[..., 0]]
            if tiff.alpha is None:
                return colours
            opacity = part[..., tiff.alpha, None] / np.float32(2.0**tiff.bits - 1.0) * np.float32(65535)
            with_alpha: npt.NDArray[Any] = np.concatenate([colours, np.rint(opacity).astype(np.uint16)], axis=-1)
            return with_alpha

        alpha = None if alpha is None else 3
    elif tiff.model == "LAB":
        model, full = "LAB", 1.0

        def rows(top: int, bottom: int) -> npt.NDArray[Any]:
            return _lab(tiff, planes[top:bottom])

    else:
        model = "CMYK" if tiff.model == "CMYK" else "L" if tiff.model == "L" else "RGB"
        if tiff.kind == "i" or (full > 65535 and not floats and int(planes.max()) <= 65535):
            full = 65535.0
            notices.append("Whole numbers were taken for 16-bit grey: 0 is black and 65535 is white.")
    return Values(
        tiff.width,
        tiff.height,
        rows,
        model,
        full,
        floats=floats,
        alpha=alpha,
        premultiplied=tiff.premultiplied,
        inverted=tiff.inverted,
        checked=tiff.kind != "u" and model != "LAB",
        nodata=tiff.nodata if floats else None,
    )


def _lab(tiff: Tiff, part: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """L* in [0, 100], a* and b*, from how TIFF stores them: signed, or with an offset as ICC profiles do."""
    if tiff.kind == "f":
        return part.astype(np.float64)
    unit = 2.0 ** (tiff.bits - 8)
    white = 255.0 * unit if tiff.offset_lab or tiff.bits == 8 else 65535.0
    lightness = part[..., :1] * (100.0 / white)
    if tiff.offset_lab:
        opponents = part[..., 1:3] / unit - 128.0
    else:
        signed = np.dtype(f"i{tiff.bits // 8}")
        opponents = np.ascontiguousarray(part[..., 1:3]).view(signed) / unit
    return np.concatenate([lightness, opponents], axis=-1)
