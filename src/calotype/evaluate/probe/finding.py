"""What a measurement gives: numbers with units, one sentence on them, and data for charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calotype.evaluate.figures import Figure


@dataclass(frozen=True, kw_only=True)
class Number:
    """One result, or one for each channel, colour or step.

    Attributes:
        name: what it is, for people and for `Finding.value`.
        value: infinite for the PSNR of equal pictures.
        unit: empty for shares, ratios and counts.
    """

    name: str
    value: float | tuple[float, ...]
    unit: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no infinity: it becomes None."""
        value = [_plain(v) for v in self.value] if isinstance(self.value, tuple) else _plain(self.value)
        return {"name": self.name, "value": value, "unit": self.unit}


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """One measurement of a VAE.

    Attributes:
        key: what code calls it.
        title: what people call it.
        numbers: the results.
        sentence: how to read them, and what these say.
        method: how they were measured.
        figures: to be drawn.
        code: lines to be copied; empty where there are none.
    """

    key: str
    title: str
    numbers: tuple[Number, ...]
    sentence: str
    method: str
    figures: tuple[Figure, ...]
    code: str = ""

    def value(self, name: str) -> float:
        """The number of this name.

        Raises:
            KeyError: if there is none, or it is not one but several.
        """
        for number in self.numbers:
            if number.name == name and not isinstance(number.value, tuple):
                return number.value
        raise KeyError(name)

    def values(self, name: str) -> tuple[float, ...]:
        """The numbers of this name: one for each channel, colour or step.

        Raises:
            KeyError: if there are none.
        """
        for number in self.numbers:
            if number.name == name and isinstance(number.value, tuple):
                return number.value
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """All but the figures, as plain values for JSON."""
        return {
            "key": self.key,
            "title": self.title,
            "numbers": [number.to_dict() for number in self.numbers],
            "sentence": self.sentence,
            "method": self.method,
        } | ({"code": self.code} if self.code else {})


class LeftOut(Exception):
    """A measurement that makes no sense for this VAE or these pictures; the message says why, as half a sentence."""


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def mean(values: Sequence[float]) -> float:
    """The mean, rounded once, so that it does not depend on the order; infinite if one of them is."""
    return math.fsum(values) / len(values)


def gap(a: float, b: float) -> float:
    """a - b; 0 where both are infinite."""
    return a - b if a != b else 0.0


def said(value: float, unit: str = "") -> str:
    """A number in a sentence: three digits that count, or hundredths of a dB."""
    if math.isinf(value):
        text = "infinitely many" if value > 0 else "minus infinitely many"
    elif unit == "dB":
        text = f"{round(value, 2) + 0.0:.2f}"  # -0.0 + 0.0 is 0.0
    elif value == 0 or 1e-3 <= abs(value) < 1000:
        text = f"{value:.3g}"
    else:
        text = f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.1e}"
    return f"{text} {unit}".rstrip()
