"""Pixels and PIL images -> picture files."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from torch import Tensor

from calotype.errors import PictureError, UsageError
from calotype.files import write_bytes
from calotype.pixels.levels import to_pil

# suffix -> Pillow's format, the modes it keeps without loss of channels or depth, options
_JPEG = ("JPEG", ("L", "RGB", "CMYK"), {"quality": 95, "subsampling": "4:4:4"})
_TIFF = ("TIFF", ("1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16", "F"), {"compression": "tiff_adobe_deflate"})
_WRITERS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    ".png": ("PNG", ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), {}),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    # exact: colours under alpha 0 are kept too
    ".webp": ("WEBP", ("L", "RGB", "RGBA"), {"lossless": True, "exact": True}),
    ".avif": ("AVIF", ("L", "RGB", "RGBA"), {"quality": 90, "subsampling": "4:4:4"}),
    ".tif": _TIFF,
    ".tiff": _TIFF,
}


def require_writable(path: Path) -> None:
    """Check that pictures can be written in the format that the path's suffix names.

    Raises:
        UsageError: an unknown suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        known = ", ".join(_WRITERS)
        raise UsageError(f"{path} can't be written: {suffix or 'no suffix'!r} is no known format; use one of {known}.")


def write_picture(
    path: str | os.PathLike[str],
    image: Image.Image | Tensor,
    *,
    alpha: Tensor | None = None,
    text: Mapping[str, str] | None = None,
) -> Path:
    """Write a picture in the format its suffix names; a file that is there already is replaced only by a whole one.

    .png, .webp and .tif/.tiff (deflate) lose nothing; .jpg/.jpeg have quality 95, .avif quality 90, both 4:4:4.

    Args:
        path: ends in one of those suffixes, in either case.
        image: a PIL image, or pixels [C, H, W] as `to_pil` takes them. Grey with alpha becomes RGBA in .webp and .avif,
            which have no other.
        alpha: [H, W] in [0, 1]; only together with pixels, and not with RGBA ones.
        text: by keyword, kept in PNG (iTXt); other formats are written without it.

    Returns:
        The path.

    Raises:
        PictureError: the disk or the encoder refuses it.
        UsageError: an unknown suffix, a missing folder, or an image that the format can't hold.
        NonFiniteError: NaN or infinity among pixels or alpha.
    """
    path = Path(path)
    require_writable(path)
    if isinstance(image, Tensor):
        image = to_pil(image, alpha)
    elif alpha is not None:
        raise UsageError("alpha goes with pixels only; a PIL image has its own.")
    format_, modes, options = _WRITERS[path.suffix.lower()]
    if image.has_transparency_data and "RGBA" not in modes:
        able = ", ".join(key for key, writer in _WRITERS.items() if "RGBA" in writer[1])
        raise UsageError(f"{path} can't be written: {format_} has no alpha; use {able}, or drop the alpha first.")
    if image.mode == "LA" and "LA" not in modes:
        image = image.convert("RGBA")
    if image.mode not in modes:
        known = ", ".join(modes)
        raise UsageError(f"{path} can't be written: {format_} can't hold mode {image.mode}; convert to one of {known}.")
    if text and format_ == "PNG":
        chunks = PngImagePlugin.PngInfo()
        for keyword, value in text.items():
            chunks.add_itxt(keyword, value)
        options = {**options, "pnginfo": chunks}
    encoded = io.BytesIO()  # a library that writes to a full disk itself says so on standard error too
    try:
        image.save(encoded, format=format_, **options)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise PictureError(f"{path} can't be written: {reason}.") from error
    return write_bytes(path, encoded.getbuffer(), PictureError)
