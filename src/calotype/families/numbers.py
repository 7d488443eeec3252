"""Checks of the numbers from which networks follow. No torch."""

from __future__ import annotations

from collections.abc import Callable

from calotype.errors import UsageError
from calotype.texts import TextError, flag, whole

MOST_CHANNELS = 2**16  # of anything: no network has more, by far
MOST_LEVELS = 16
MOST_BLOCKS = 1024


def require_counts(config: object, *names: str, most: int = MOST_CHANNELS) -> None:
    """Checks that fields of a configuration are whole numbers from 1 on.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        require(whole, getattr(config, name), f"{type(config).__name__}.{name}", 1, most)


def require_flags(config: object, *names: str) -> None:
    """Checks that fields of a configuration are true or false.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        require(flag, getattr(config, name), f"{type(config).__name__}.{name}")


def require(check: Callable[..., object], *of: object) -> None:
    """Runs a check of `calotype.texts`, whose reason becomes a UsageError."""
    try:
        check(*of)
    except TextError as error:
        raise UsageError(f"{error}.") from None
