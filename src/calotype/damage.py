"""Over a damaged file a reader may raise anything: here it becomes the project's error, in one sentence.

And what a file claims to hold is held against what it can hold, before memory is taken for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from calotype.errors import CalotypeError

LONGEST_HEADER = 25_000_000  # bytes of JSON before a safetensors file's numbers; those of large models have a million
_ROOMY = 2**28  # bytes that any file may unpack to
_DENSEST = 8  # bytes of numbers for each byte of a file: real ones hardly pack, and are shared by a few tensors at most


@contextmanager
def damage(error: type[CalotypeError], says: str) -> Iterator[None]:
    """What a reader raises becomes `error`; the project's own errors, and that a file may not be read, stay.

    Args:
        says: the sentence, with ``{why}`` in the place of the reader's own words.
    """
    try:
        yield
    except (CalotypeError, PermissionError):
        raise
    except Exception as raised:
        raise error(says.format(why=quoted(raised) or type(raised).__name__)) from None


def quoted(text: object, most: int = 120) -> str:
    """Foreign words within a sentence: on one line, without control characters, without an end, and not too long."""
    words = " ".join(str(text)[: 4 * most].split())
    shown = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in words)
    return shown.rstrip(". ") if len(shown) <= most else f"{shown[:most].rstrip('. ')}..."


def require_held(claimed: int, size: int) -> None:
    """Checks that a file of `size` bytes may hold so many bytes of numbers, packed or several times the same.

    Raises:
        ValueError: it may not.
    """
    if claimed > max(_ROOMY, _DENSEST * size):
        raise ValueError(f"its {size:,} bytes claim to hold {quoted(claimed, 24)} bytes of numbers")
