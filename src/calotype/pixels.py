"""Picture files, PIL images and uint8 arrays <-> pixels: float32 in [-1, 1], [3, H, W] or [N, 3, H, W], sRGB.

The only place that knows 127.5. Whatever reading or writing does to a picture besides decoding it is either an error or
one of the picture's notices.
"""

from __future__ import annotations

import io
import os
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageCms, ImageFile, PngImagePlugin, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from calotype.errors import NonFiniteError, PictureError, UsageError
from calotype.files import atomic_path

MAX_PIXELS = 2**30
"""Pictures with more pixels than this (32768 x 32768) are refused before they are decoded."""

# EPS is a program for Ghostscript and WMF one for Windows; opening a picture shall run neither.
_REFUSED_FORMATS = {"EPS", "WMF"}

_STRIPE = 2**18  # pixels that are converted at a time

Rows = Callable[[int, int], Tensor]
"""(top, bottom) -> those rows of a picture, [C, bottom - top, W]."""

_Bytes = npt.NDArray[np.uint8]
_Levels = _Bytes | npt.NDArray[np.float32]

# EXIF orientation -> an upright array seen the way the file stores it
_AS_STORED: dict[int, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}

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


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as read.

    Attributes:
        pixels: [3, H, W], float32 in [-1, 1], sRGB-encoded.
        alpha: [H, W], float32 in [0, 1]; only when it was asked for and some of it is below 1.
        notices: what was done to the picture besides decoding it, a sentence each.
    """

    pixels: Tensor
    alpha: Tensor | None
    notices: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows from `top` to before `bottom`: [3, bottom - top, W]."""
        return self.pixels[:, top:bottom]


@dataclass(frozen=True, eq=False)
class PictureRows:
    """A picture as read, held as levels (mostly 3 bytes a pixel), of which rows become floats when they are wanted.

    Attributes:
        levels: [H, W, 3], uint8; of grey with more than 8 bits its pixels, [H, W], float32 in [-1, 1].
        opacity: [H, W], uint8; only if some of it is below 255.
        keep: the opacity is kept aside; otherwise pixels are composited over the background.
        background: R, G, B in 0..255.
        notices: what was done to the picture besides decoding it, a sentence each.
    """

    levels: _Levels
    opacity: _Bytes | None
    keep: bool
    background: tuple[int, int, int]
    notices: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.levels.shape[0], self.levels.shape[1]

    @property
    def alpha(self) -> Tensor | None:
        """[H, W], uint8; only when it was asked for and some of it is below 255."""
        return torch.from_numpy(self.opacity) if self.keep and self.opacity is not None else None

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows from `top` to before `bottom`: [3, bottom - top, W], float32 in [-1, 1], sRGB-encoded."""
        levels = self.levels[top:bottom]
        deep = levels.ndim == 2
        pixels = torch.from_numpy(levels).expand(3, -1, -1).contiguous() if deep else from_array(levels)
        if self.opacity is None:
            return pixels
        opacity = torch.from_numpy(self.opacity[top:bottom]).float().div_(255.0)
        behind = from_array(np.array([[self.background]], dtype=np.uint8))
        if self.keep:
            return torch.where(opacity == 0.0, behind, pixels)
        return torch.lerp(behind.expand_as(pixels), pixels, opacity).clamp_(-1.0, 1.0)


@dataclass(frozen=True)
class Padding:
    """What `pad` did, so that `crop` can undo it.

    Attributes:
        height, width: the size before padding.
        bottom, right: rows and columns added.
        mode: how they were filled.
    """

    height: int
    width: int
    bottom: int
    right: int
    mode: Literal["reflect", "replicate"]


def read_picture(
    source: str | os.PathLike[str] | bytes | Image.Image,
    *,
    alpha: Literal["over", "keep"] = "over",
    background: tuple[int, int, int] = (255, 255, 255),
) -> Picture:
    """Read a picture as upright sRGB pixels.

    EXIF orientation is applied; an ICC profile is converted to sRGB (perceptual intent), except one that is sRGB
    within one level of 255, which changes nothing. 16-bit grey keeps its precision; float grey must lie in [0, 1] and
    is taken as sRGB-encoded. Of several frames the first is used, of a PIL image the current one.

    Args:
        source: a path, a file's bytes, or a PIL image (which is left as it is).
        alpha: "over" composites over the background, in sRGB-encoded values; "keep" returns colours and alpha
            separately, where fully transparent pixels get the background's colour.
        background: R, G, B in 0..255.

    Raises:
        PictureError: it is missing, unreadable, no picture, damaged, cut off, or larger than `MAX_PIXELS`.
        UsageError: an unknown `alpha` or `background`.
    """
    rows = read_picture_rows(source, alpha=alpha, background=background)
    opacity = None if rows.alpha is None else rows.alpha.float().div_(255.0)
    return Picture(rows.rows(0, rows.size[0]), opacity, rows.notices)


def read_picture_rows(
    source: str | os.PathLike[str] | bytes | Image.Image,
    *,
    alpha: Literal["over", "keep"] = "over",
    background: tuple[int, int, int] = (255, 255, 255),
) -> PictureRows:
    """Read a picture as `read_picture` does, with the same pixels, but hold it in a quarter of the memory.

    While it is read it takes 7 bytes a pixel (Pillow's own 4 are given back), and 1 more where there is alpha.

    Args:
        source, alpha, background: as there.

    Raises:
        PictureError, UsageError: as there.
    """
    if alpha not in ("over", "keep"):
        raise UsageError(f'alpha must be "over" or "keep", not {alpha!r}.')
    if len(background) != 3 or not all(isinstance(level, int) and 0 <= level <= 255 for level in background):
        raise UsageError(f"background must be three whole numbers from 0 to 255, not {background!r}.")
    keep = alpha == "keep"
    if isinstance(source, Image.Image):
        with _strict_pillow():
            return _picture(source, "The picture", keep, background)
    name = "The picture" if isinstance(source, bytes) else os.fspath(source)
    with io.BytesIO(source) if isinstance(source, bytes) else _open_file(name) as file, _strict_pillow():
        return _picture(_identify(file, name), name, keep, background)


def from_array(array: npt.NDArray[Any]) -> Tensor:
    """uint8 [H, W, 3] or [N, H, W, 3] -> pixels [3, H, W] or [N, 3, H, W].

    Raises:
        UsageError: another dtype or shape.
    """
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3:
        found = f"{array.dtype} {list(array.shape)}"
        raise UsageError(f"an array of pixels must be uint8 [H, W, 3] or [N, H, W, 3], not {found}.")
    planes = np.ascontiguousarray(np.moveaxis(array, -1, -3), dtype=np.float32)
    return torch.from_numpy(planes).div_(127.5).sub_(1.0)


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels [..., 3, H, W] of any float dtype -> uint8 of the same shape: clamped to [-1, 1], rounded half up.

    Raises:
        NonFiniteError: NaN or infinity among the pixels.
        UsageError: another dtype or shape.
    """
    if not pixels.is_floating_point() or pixels.ndim < 3 or pixels.shape[-3] != 3:
        raise UsageError(f"pixels must be floats [..., 3, H, W], not {pixels.dtype} {list(pixels.shape)}.")
    _require_finite(pixels, "pixels")
    # 127.5 x + 127.5 is the level, and another half makes floor() round half up.
    return pixels.detach().float().clamp(-1.0, 1.0).mul_(127.5).add_(128.0).floor_().to(torch.uint8)


def pad(pixels: Tensor, factor: int) -> tuple[Tensor, Padding]:
    """Pad at the bottom and the right to the next multiple of `factor`: [..., C, H, W] -> [..., C, H', W'].

    By reflection, or by repeating the last row and column where a side is too short to be reflected.
    What needs no padding is returned as it is.

    Raises:
        UsageError: `factor` is below 1, or there are no pixels.
    """
    if pixels.ndim < 3 or not pixels.numel():
        raise UsageError(f"pixels to pad must be [..., C, H, W] and not empty, not {list(pixels.shape)}.")
    height, width = pixels.shape[-2:]
    padding = _padding(height, width, factor)
    bottom, right = padding.bottom, padding.right
    if not (bottom or right):
        return pixels, padding
    # torch pads both sides of [C, H, W]; the leading axes are all channels to it.
    padded = functional.pad(pixels.reshape(-1, height, width), (0, right, 0, bottom), mode=padding.mode)
    return padded.reshape(*pixels.shape[:-2], height + bottom, width + right), padding


def planes(rows: Rows, height: int, width: int) -> Iterator[Tensor]:
    """The values of a picture given by rows, in the order of [3, H, W]."""
    step = max(1, 2**20 // width)
    for channel in range(3):
        for top in range(0, height, step):
            yield rows(top, min(top + step, height))[channel]


def pad_rows(pixels: Rows, height: int, width: int, factor: int) -> tuple[Rows, Padding]:
    """Pad as `pad` does, by rows.

    Args:
        pixels: rows of the picture.
        height, width: of the picture.

    Returns:
        Rows of the padded picture, equal to `pad`'s, and what was done.

    Raises:
        UsageError: `factor` is below 1, or there are no pixels.
    """
    if height < 1 or width < 1:
        raise UsageError(f"a picture to pad must have at least 1 x 1 pixels, not {height} x {width}.")
    padding = _padding(height, width, factor)

    def padded(top: int, bottom: int) -> Tensor:
        parts = [pixels(top, min(bottom, height))] if top < height else []
        if bottom > height:
            start = max(top, height)
            if padding.mode == "reflect":
                last = 2 * (height - 1)  # rows that mirror each other sum up to this
                parts.append(pixels(last - bottom + 1, last - start + 1).flip(-2))
            else:
                parts.append(pixels(height - 1, height).expand(-1, bottom - start, -1))
        rows = torch.cat(parts, dim=-2) if len(parts) > 1 else parts[0]
        return functional.pad(rows, (0, padding.right, 0, 0), mode=padding.mode) if padding.right else rows

    return padded, padding


def _padding(height: int, width: int, factor: int) -> Padding:
    if factor < 1:
        raise UsageError(f"the factor to pad to must be at least 1, not {factor}.")
    bottom, right = -height % factor, -width % factor
    mode: Literal["reflect", "replicate"] = "reflect" if bottom < height and right < width else "replicate"
    return Padding(height=height, width=width, bottom=bottom, right=right, mode=mode)


def crop(pixels: Tensor, padding: Padding) -> Tensor:
    """Undo `pad`: [..., C, H', W'] -> [..., C, H, W].

    Raises:
        UsageError: the pixels are not of the padded size.
    """
    expected = (padding.height + padding.bottom, padding.width + padding.right)
    if tuple(pixels.shape[-2:]) != expected:
        raise UsageError(f"pixels to crop must be [..., {expected[0]}, {expected[1]}], not {list(pixels.shape)}.")
    return pixels[..., : padding.height, : padding.width]


def to_pil(pixels: Tensor, alpha: Tensor | None = None) -> Image.Image:
    """Pixels [3, H, W], and alpha [H, W] in [0, 1] if given, -> an RGB or RGBA image, rounded half up.

    Raises:
        NonFiniteError: NaN or infinity among pixels or alpha.
        UsageError: another shape or dtype.
    """
    if pixels.ndim != 3:
        raise UsageError(f"pixels of one picture must be [3, H, W], not {list(pixels.shape)}.")
    image = Image.fromarray(to_uint8(pixels).permute(1, 2, 0).contiguous().cpu().numpy())
    if alpha is not None:
        if alpha.shape != pixels.shape[-2:] or not alpha.is_floating_point():
            found = f"{alpha.dtype} {list(alpha.shape)}"
            raise UsageError(f"alpha must be floats {list(pixels.shape[-2:])}, like the pixels, not {found}.")
        _require_finite(alpha, "alpha")
        levels = alpha.detach().float().clamp(0.0, 1.0).mul_(255.0).add_(0.5).floor_().to(torch.uint8)
        image.putalpha(Image.fromarray(levels.contiguous().cpu().numpy()))
    return image


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
        image: a PIL image, or pixels [3, H, W].
        alpha: [H, W] in [0, 1]; only together with pixels.
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
    if image.mode not in modes:
        known = ", ".join(modes)
        raise UsageError(f"{path} can't be written: {format_} can't hold mode {image.mode}; convert to one of {known}.")
    if text and format_ == "PNG":
        chunks = PngImagePlugin.PngInfo()
        for keyword, value in text.items():
            chunks.add_itxt(keyword, value)
        options = {**options, "pnginfo": chunks}
    try:
        with atomic_path(path) as temporary:
            image.save(temporary, format=format_, **options)
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise PictureError(f"{path} can't be written: {reason}.") from error
    return path


_strict_lock = threading.Lock()
_strict_readers = 0
_strict_settings = ExitStack()


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Pillow with this module's limit, no partial data and no warnings, whatever the process has set.

    The settings are the process's own, so with several threads the first one in sets them and the last one out puts
    them back.
    """
    global _strict_readers
    with _strict_lock:
        if not _strict_readers:
            _strict_settings.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            _strict_settings.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
            _strict_settings.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
            # Pillow raises above twice its limit; what it says between once and twice is filtered with the rest.
            Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _strict_readers += 1
    try:
        yield
    finally:
        with _strict_lock:
            _strict_readers -= 1
            if not _strict_readers:
                _strict_settings.close()


def _open_file(name: str) -> IO[bytes]:
    try:
        return Path(name).open("rb")
    except FileNotFoundError:
        raise PictureError(f"{name} does not exist; check the path.") from None
    except IsADirectoryError:
        raise PictureError(f"{name} is a folder; give a picture file.") from None
    except PermissionError:
        folder = Path(name).is_dir()  # on Windows a folder ends up here
        found = "is a folder; give a picture file" if folder else "may not be read; check its permissions"
        raise PictureError(f"{name} {found}.") from None
    except (OSError, ValueError) as error:
        raise PictureError(f"{name!r} can't be opened: {error}.") from error


def _identify(file: IO[bytes], name: str) -> Image.Image:
    """Read the header."""
    Image.init()
    formats = [known for known in Image.ID if known not in _REFUSED_FORMATS]
    try:
        head = file.read(64)
        if not head:
            raise PictureError(f"{name} is empty; make or download it again.")
        return Image.open(file, formats=formats)
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        raise _too_large(name, f"{int(count[0]):,} pixels" if count else "more pixels") from None
    except UnidentifiedImageError:
        raise PictureError(
            f"{name} is no picture that can be read: it {_describe(head, formats)}; "
            "give a whole JPEG, PNG, WebP, AVIF, TIFF or another format that Pillow opens."
        ) from None
    except Exception as error:  # the plugins raise almost anything over a damaged header
        raise _damaged(name, error) from error


def _describe(head: bytes, formats: list[str]) -> str:
    """What a file that Pillow can't identify seems to be, from its first bytes."""
    text = head.decode("utf-8", errors="ignore")
    # A character cut through at the end is no reason to call it binary.
    if len(text.encode()) > len(head) - 4 and all(c.isprintable() or c.isspace() for c in text):
        return "holds text"
    for known in formats:
        accept = Image.OPEN[known][1]
        with suppress(IndexError, struct.error):  # from too few bytes
            answer = accept(head[:16]) if accept else False
            if answer:
                problem = answer if isinstance(answer, str) else "its header is cut off, damaged or of an unknown kind"
                return f"starts like {known}, but {problem}"
    return f"starts with the bytes {head[:8]!r}"


def _too_large(name: str, found: str) -> PictureError:
    side = int(MAX_PIXELS**0.5)
    return PictureError(
        f"{name} claims to have {found}, but at most {MAX_PIXELS:,} ({side} x {side}) are read; "
        "if it really is that large, cut it into parts."
    )


def _damaged(name: str, error: Exception) -> PictureError:
    reason = str(error).rstrip(".") or type(error).__name__
    return PictureError(f"{name} is damaged or cut off ({reason}); make or download it again.")


def _require_finite(values: Tensor, what: str) -> None:
    if not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values)).sum())
        raise NonFiniteError(f"{bad} of {values.numel()} values of {what} are NaN or infinite.")


def _picture(image: Image.Image, name: str, keep: bool, background: tuple[int, int, int]) -> PictureRows:
    """Decode an image whose header has been read."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width} x {height} pixels")
    if not width * height:
        raise PictureError(f"{name} has no pixels: its size is {width} x {height}.")
    notices: list[str] = []
    stored = _stored(image)
    try:
        frames = getattr(image, "n_frames", 1)
        image.load()
    except Exception as error:  # the plugins raise almost anything over damaged data
        raise _damaged(name, error) from error
    if frames > 1:
        notices.append(f"Only frame {image.tell() + 1} of {frames} was used.")
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        orientation = orientation if orientation in _AS_STORED else 1
    except Exception:  # the same over damaged EXIF, but then the pixels are whole
        notices.append("The EXIF data can't be read, so the picture was left the way it is stored.")
        orientation = 1

    read = _deep_grey if image.mode.startswith("I") or image.mode == "F" else _colour
    levels, opacity = read(image, name, stored, orientation, notices)
    if opacity is not None and opacity.min() == 255:
        opacity = None
    if opacity is not None:
        if not keep:
            notices.append(f"Alpha was composited over the background {tuple(background)}.")
        elif not opacity.min():
            notices.append(f"Fully transparent pixels were given the background's colour {tuple(background)}.")
    return PictureRows(levels, opacity, keep, background, tuple(notices))


@dataclass(frozen=True)
class _Stored:
    """How the file holds its values, as far as Pillow's image does not tell after loading.

    Attributes:
        raw_mode: Pillow's name of the layout; empty for an image made in memory.
        deep_colour: colour channels have more than 8 bits.
        white_is_zero: a TIFF with 0 for white.
    """

    raw_mode: str
    deep_colour: bool
    white_is_zero: bool


def _stored(image: Image.Image) -> _Stored:
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    args = tiles[0].args if tiles else ""
    first, *others = args if isinstance(args, tuple) else (args,)
    raw_mode = first if isinstance(first, str) else ""
    # Portable pixmaps tell their depth by the largest value instead.
    deep = ";16" in raw_mode or (image.format == "PPM" and bool(others) and others[0] > 255)
    tags = getattr(image, "tag_v2", {})
    return _Stored(
        raw_mode=raw_mode,
        deep_colour=deep and not image.mode.startswith("I"),
        white_is_zero=tags.get(262) == 0,  # 262: PhotometricInterpretation
    )


def _upright(
    size: tuple[int, int], orientation: int, *channels: int, dtype: npt.DTypeLike
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """An empty array for an upright picture, [H, W, *channels], and a view of it as the file stores it."""
    width, height = size
    shape = (height, width) if orientation < 5 else (width, height)
    upright: npt.NDArray[Any] = np.empty((*shape, *channels), dtype=dtype)
    return upright, _AS_STORED[orientation](upright)


def _stripes(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """All rows, a few at a time: which, and an image of them."""
    width, height = image.size
    step = max(1, _STRIPE // width)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        yield slice(top, bottom), image.crop((0, top, width, bottom))


def _deep_grey(
    image: Image.Image, name: str, stored: _Stored, orientation: int, notices: list[str]
) -> tuple[_Levels, _Bytes | None]:
    """Grey of more than 8 bits -> pixels [H, W] in [-1, 1] and alpha [H, W] or None."""
    grey, as_stored = _upright(image.size, orientation, dtype=np.float32)
    for rows, part in _stripes(image):
        as_stored[rows] = np.asarray(part)
    full = 1.0 if image.mode == "F" else 4095.0 if stored.raw_mode == "I;12" else 65535.0
    low, high = float(grey.min()), float(grey.max())
    if not (low >= 0.0 and high <= full):  # so that NaN is caught as well
        raise PictureError(
            f"{name} holds grey values from {low:g} to {high:g} where 0 to {full:g} are expected; rescale them first."
        )
    if image.mode == "I":
        notices.append("Whole numbers were taken for 16-bit grey: 0 is black and 65535 is white.")
    if "icc_profile" in image.info:
        notices.append("The ICC profile was ignored, because Pillow applies none to grey of more than 8 bits.")
    key = image.info.get("transparency")
    opacity = None if key is None else np.where(grey != key, np.uint8(255), np.uint8(0))
    grey /= np.float32(full)
    if stored.white_is_zero:  # Pillow inverts such TIFFs only up to 8 bits
        np.subtract(1.0, grey, out=grey)
    grey *= 2.0
    grey -= 1.0
    return grey, opacity


def _colour(
    image: Image.Image, name: str, stored: _Stored, orientation: int, notices: list[str]
) -> tuple[_Levels, _Bytes | None]:
    """Any image of 8 bits or fewer -> levels [H, W, 3] and alpha [H, W] or None."""
    info = dict(image.info)
    if stored.deep_colour:
        notices.append("16-bit colour was reduced to 8 bits, because Pillow keeps no more.")
    if "transparency" in info:
        if stored.deep_colour:
            del info["transparency"]
            notices.append("The transparent colour was ignored, because Pillow can't find it in 16-bit colour.")
        elif stored.raw_mode in ("L;2", "L;4"):
            # Pillow scales the grey levels of these to 0..255, but not the one that is transparent.
            info["transparency"] *= 255 // (2 ** int(stored.raw_mode[-1]) - 1)

    # L is exactly the grey, also of R = G = B.
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "CMYK" if image.mode == "CMYK" else "RGB"
    to_srgb = _srgb(mode, None if image.mode == "LAB" else info.get("icc_profile"), notices)
    levels, stored_levels = _upright(image.size, orientation, 3, dtype=np.uint8)
    opacity: _Bytes | None = None
    stored_opacity: Any = None
    for rows, part in _stripes(image):
        part.info = info
        if part.mode == "La":
            part = part.convert("LA")
        if part.has_transparency_data:
            part = part.convert("RGBA")
            if opacity is None:
                opacity, stored_opacity = _upright(image.size, orientation, dtype=np.uint8)
            stored_opacity[rows] = np.asarray(part.getchannel("A"))
        stored_levels[rows] = np.asarray(to_srgb(part.convert(mode)))
    return levels, opacity


def _srgb(mode: str, profile: bytes | None, notices: list[str]) -> Callable[[Image.Image], Image.Image]:
    """What takes an image of this mode (L, RGB or CMYK), with its ICC profile if it has one, to RGB in sRGB."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            coded = "RGB" if space == "RGB" and mode == "L" else mode
            if space != {"L": "GRAY"}.get(coded, coded):
                raise ImageCms.PyCMSError(f"it is for {space}, the picture is {coded}")
            transform = ImageCms.buildTransform(
                source,
                ImageCms.createProfile("sRGB"),
                coded,
                "RGB",
                renderingIntent=ImageCms.Intent.PERCEPTUAL,
                # Without this lcms works in tables and short integers; it is slower, but rounds once.
                flags=ImageCms.Flags.NOOPTIMIZE,
            )
            if not _changes_nothing(transform, coded):
                description = ImageCms.getProfileDescription(source).strip()
                notices.append(f"The ICC profile {description!r} was converted to sRGB.")
                return lambda image: _transformed(transform, image.convert(coded))
        except (ImageCms.PyCMSError, OSError) as error:
            notices.append(f"The ICC profile was ignored, because it can't be used: {str(error).rstrip('.')}.")
    if mode == "CMYK":
        notices.append("CMYK was converted without a profile, so its colours are approximate.")
    return lambda image: image.convert("RGB")


def _transformed(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it is None in place only
    return converted


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether the transform to sRGB moves no level by more than one: most embedded profiles are sRGB in other words."""
    if mode == "CMYK":
        return False
    if mode == "L":
        probe = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    else:
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
        probe = Image.fromarray(cube.reshape(len(levels), -1, 3))
    before = np.asarray(probe.convert("RGB"), dtype=np.int16)
    after = np.asarray(ImageCms.applyTransform(probe, transform), dtype=np.int16)
    return bool(np.abs(after - before).max() <= 1)
