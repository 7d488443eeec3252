"""Values of forms, as pages send them: the right kind and range, or one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from calotype.errors import UsageError
from calotype.studio.visits import MOST_PIXELS
from calotype.texts import shown

_SIZE = re.compile(r"([1-9][0-9]{0,4})[x\u00d7]([1-9][0-9]{0,4})")
LARGEST = 16384  # pixels a side


def whole(form: dict[str, Any], key: str, default: int, least: int, most: int) -> int:
    """A whole number.

    Raises:
        UsageError: it is none, or out of range.
    """
    value = form.get(key)
    if value is None or value == "":
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not least <= value <= most:
        raise UsageError(f"{title(key)} is a whole number from {least:,} to {most:,}, not {shown(value)}.")
    return value


def number(form: dict[str, Any], key: str, default: float, least: float, most: float) -> float:
    """A number.

    Raises:
        UsageError: it is none, or out of range.
    """
    value = form.get(key)
    if value is None or value == "":
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UsageError(f"{title(key)} is a number from {least:g} to {most:g}, not {shown(value)}.")
    return float(value)


def choice(form: dict[str, Any], key: str, among: Sequence[str]) -> str:
    """One of several words, the first where none is given.

    Raises:
        UsageError: it is another.
    """
    value = form.get(key) or among[0]
    if value not in among:
        raise UsageError(f"{title(key)} is one of {', '.join(among)}, not {shown(value)}.")
    return str(value)


def flag(form: dict[str, Any], key: str) -> bool:
    """Yes or no; no where it is not given."""
    return form.get(key) is True


def text(form: dict[str, Any], key: str, what: str, most: int = 2000) -> str:
    """Words, at most so many letters.

    Raises:
        UsageError: there are none, or too many.
    """
    value = form.get(key)
    found = " ".join(value.split()) if isinstance(value, str) else ""
    if not found:
        raise UsageError(f"There is no {what}; write what is meant.")
    if len(found) > most:
        raise UsageError(f"The {what} has {len(found):,} letters, and {most:,} are read; shorten it.")
    return found


def size(form: dict[str, Any], most: int = MOST_PIXELS) -> list[str]:
    """The option --size, or none.

    Args:
        most: pixels.

    Raises:
        UsageError: it is no WIDTHxHEIGHT, or too large.
    """
    value = form.get("size")
    if value is None or value == "":
        return []
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or max(map(int, found.groups())) > LARGEST:
        raise UsageError(f"A size is WIDTHxHEIGHT in pixels, as in 512x512, up to {LARGEST} each, not {shown(value)}.")
    if int(found[1]) * int(found[2]) > most:
        raise UsageError(f"{found[1]}x{found[2]} are more than the {most:,} pixels that the studio shows; give fewer.")
    return ["--size", f"{found[1]}x{found[2]}"]


def title(key: str) -> str:
    """A field's name at the beginning of a sentence."""
    return key.replace("_", " ").capitalize()


def written(value: float) -> str:
    """A number as an option: the shortest text that means it."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
