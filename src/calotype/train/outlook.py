"""How long a run will take, in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """As in "12 seconds", "3.5 hours"."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return "1 second" if round(seconds) == 1 else f"{seconds:.0f} seconds"
