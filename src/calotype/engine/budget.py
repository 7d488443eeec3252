"""Amounts of memory in words."""

from __future__ import annotations

import re
from fractions import Fraction
from math import ceil

from calotype.errors import UsageError


def parse_memory(text: str | int) -> int:
    """Bytes from a number of them, or from a text that says them: 512MB, 1.5 GB, 2GiB.

    Raises:
        UsageError: if it is no such amount.
    """
    if isinstance(text, int):
        if text > 0:
            return text
        raise UsageError(f"An amount of memory must be above 0, not {text}; give bytes, or words like 512MB or 1.5GB.")
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    size = 0
    if match:
        power = " kmgt".index(match[2].lower() or " ")
        size = int(Fraction(match[1]) * (1024 if match[3] else 1000) ** power)
    if not size:
        raise UsageError(f"{text!r} is no amount of memory; give one like 512MB, 1.5GB or 2GiB.")
    return size


def in_words(size: int, *, up: bool = False) -> str:
    """Bytes as people write them, in powers of 1000: 512MB, 1.5GB.

    Args:
        size: in bytes.
        up: rounds up, and not to the nearest hundredth of a unit.
    """
    for unit, value in (("GB", 10**9), ("MB", 10**6)):
        if size >= value:
            hundredths = -(-size * 100 // value) if up else round(size * 100 / value)
            return f"{hundredths / 100:.2f}".rstrip("0").rstrip(".") + unit
    return f"{ceil(size / 1000)}kB"
