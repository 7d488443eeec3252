"""Opening picture files with Pillow, under this package's limits, and what is said of those that can't be read."""

from __future__ import annotations

import ctypes
import importlib
import logging
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageFile, UnidentifiedImageError

from calotype.errors import CalotypeError, PictureError
from calotype.pixels import kinds, tiff
from calotype.pixels.plugins import PLUGINS

MAX_PIXELS = 2**30
"""Pictures with more pixels than this (32768 x 32768) are refused before they are decoded."""

_LONGEST = 300  # characters of another's reason; some repeat what they read

_READERS = r"(PIL|imagecodecs|pillow_heif|pillow_jxl|tifffile)(\.|$)"  # modules

_strict_lock = threading.Lock()
_strict_readers = 0
_strict_settings = ExitStack()


@contextmanager
def strict_pillow() -> Iterator[None]:
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
            # without logging set up, they would write to standard error what the exception says too
            for logger in map(logging.getLogger, ("tifffile", "PIL.TiffImagePlugin")):
                _strict_settings.callback(setattr, logger, "disabled", logger.disabled)
                logger.disabled = True
            for set_handler in _handlers_of_libtiff():
                _strict_settings.callback(set_handler, set_handler(None))
            # Pillow raises above twice its limit; what it says between once and twice is filtered with the rest.
            Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _strict_readers += 1
        # again, as another thread that puts its own filters back takes it away
        warnings.filterwarnings("ignore", module=_READERS)
    try:
        yield
    finally:
        with _strict_lock:
            _strict_readers -= 1
            if not _strict_readers:
                _strict_settings.close()


@cache
def _handlers_of_libtiff() -> tuple[Any, ...]:
    """What sets the functions by which the libtiff that Pillow uses writes to standard error; it takes and gives a
    pointer. None where libtiff is a part of Pillow's own module, and keeps its names to itself (on Windows).
    """
    found = []
    with suppress(OSError, AttributeError, ImportError):
        # a name is looked for in what a module is linked to as well
        library = ctypes.CDLL(importlib.import_module("PIL._imaging").__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            function = getattr(library, name)
            function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            found.append(function)
    return tuple(found)


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Whatever a reader raises over a file becomes a PictureError, here and nowhere else."""
    try:
        yield
    except CalotypeError:
        raise
    except tiff.NotReadableError as error:
        raise PictureError(f"{name} {error}.") from None
    except MemoryError as error:
        raise PictureError(f"{name} needs more memory than there is; cut it into parts, or free some.") from error
    except BaseException as error:  # readers raise almost anything over damaged data, and those in Rust no Exception
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        raise damaged(name, error) from error


def open_file(name: str) -> IO[bytes]:
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


def identify(file: IO[bytes], name: str) -> Image.Image:
    """Read the header."""
    Image.init()
    formats = [known for known in Image.ID if known not in kinds.REFUSED_FORMATS]
    try:
        head = file.read(64)
        if not head:
            raise PictureError(f"{name} is empty; make or download it again.")
        return Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        raise too_large(name, f"{int(count[0]):,} pixels" if count else "more pixels") from None
    except UnidentifiedImageError:
        raise PictureError(
            f"{name} is no picture that can be read: it {_describe(head, formats)}; "
            "give a whole JPEG, PNG, WebP, AVIF, TIFF or another format that Pillow opens."
        ) from None


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
                return f"starts like {PLUGINS[known].title if known in PLUGINS else known}, but {problem}"
    return f"starts with the bytes {head[:8]!r}"


def require_readable(head: bytes, name: str) -> None:
    """Checks by its first bytes that a file is of no kind that can't be read; loads the plugin that reads it.

    Raises:
        PictureError: it is of one; the message says which, and what to do.
    """
    if why := kinds.unreadable(head, name):
        raise PictureError(f"{name} {why}.")


def too_large(name: str, found: str) -> PictureError:
    side = int(MAX_PIXELS**0.5)
    return PictureError(
        f"{name} claims to have {found}, but at most {MAX_PIXELS:,} ({side} x {side}) are read; "
        "if it really is that large, cut it into parts."
    )


def damaged(name: str, error: BaseException) -> PictureError:
    text = "".join(c if c.isprintable() else " " for c in str(error))
    reason = " ".join(text.split())[:_LONGEST].rstrip(".") or type(error).__name__
    return PictureError(f"{name} is damaged or cut off ({reason}); make or download it again.")
