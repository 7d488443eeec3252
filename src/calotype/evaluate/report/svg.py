"""Charts as SVG: axes with round numbers, and colours and shapes that the page's style decides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from calotype.evaluate.figures import Bars, Heatmap, Lines, Scatter
from calotype.evaluate.report.markup import Markup, element, join
from calotype.evaluate.report.pictures import png_uri

Values = NDArray[np.float64]

WIDTH, HEIGHT = 480, 300
COLOURS = 8  # classes s0 to s7 of the style

SHAPES = (  # around (0, 0), of about the same area; told apart without colours
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.5-3.5h7v7h-7z",
    "M0-4.8L4.6 3.4H-4.6z",
    "M0-5L5 0L0 5L-5 0z",
    "M0 4.8L-4.6-3.4H4.6z",
    "M-1.5-4.6h3v3.1h3.1v3h-3.1v3.1h-3v-3.1h-3.1v-3h3.1z",
)

_TOP, _RIGHT, _BOTTOM = 10.0, 14.0, 44.0
_LETTER = 6.3  # pixels of a tick's letter, about
_POWERS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_COOL = ("#f4f1e8", "#c9dbd3", "#8dbcc4", "#4f94b0", "#2b6593", "#1d3a66", "#10193a")  # small to large
_SIGNED = ("#12406e", "#3f82b3", "#a3c7da", "#f2f0ec", "#eab58f", "#c9672f", "#7c2d0e")  # negative, 0, positive


@dataclass(frozen=True)
class Axis:
    """Values to pixels.

    Attributes:
        low, high: values at both ends.
        start, end: pixels at both ends.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value is."""
        low, high, x = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (x - low) / (high - low) * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether a value has a place."""
        return math.isfinite(value) and (value > 0 or not self.log)

    def ticks(self) -> list[tuple[float, str]]:
        """Values and what is written there."""
        found = log_ticks(self.low, self.high) if self.log else []
        if len(found) >= 2:
            return [(v, power(v)) for v in found]
        wanted = max(2, int(abs(self.end - self.start) / 55))
        values = linear_ticks(self.low, self.high, wanted)
        values = [v for v in values if self.holds(v)]
        return list(zip(values, tick_texts(values), strict=True))


def linear_ticks(low: float, high: float, wanted: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], at most about `wanted` of them."""
    rough = (high - low) / wanted
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(m * base for m in (1, 2, 5, 10) if m * base >= rough * 0.999999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], every one or every few; with 2 and 5 times them where there are few."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first < 2:
        steps = (m * 10.0**k for k in range(first - 1, last + 1) for m in (1, 2, 5))
        return [v for v in steps if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
    every = max(1, (last - first) // 6)
    return [10.0**k for k in range(first, last + 1, every)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """The same number of decimals for all, as many as their distance needs."""
    if not values:
        return []
    largest = max(map(abs, values))
    step = min((b - a for a, b in pairwise(values)), default=largest or 1.0)
    if largest >= 1e6 or 0 < largest < 1e-3:
        return [power(v) for v in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{v + 0.0:,.{decimals}f}".replace("-", "\u2212") for v in values]


def power(value: float) -> str:
    """5 or 0.02 as they are, and 10⁻⁴ or 2·10⁶ where they are far from 1."""
    if value == 0 or 1e-2 <= abs(value) < 1e4:
        return f"{value:g}".replace("-", "\u2212")
    mantissa, exponent = f"{value:.3e}".split("e")
    factor = f"{float(mantissa):g}".replace("-", "\u2212")
    ten = "10" + str(int(exponent)).translate(_POWERS)
    return ten if factor == "1" else f"\u2212{ten}" if factor == "\u22121" else f"{factor}·{ten}"


def draw(figure: Lines | Bars | Scatter | Heatmap) -> Markup:
    """A figure with its title, the names of its series and the chart."""
    if isinstance(figure, Lines):
        chart, names = _lines(figure), list(figure.series)
    elif isinstance(figure, Bars):
        chart, names = _bars(figure), list(figure.series)
    elif isinstance(figure, Scatter):
        chart, names = _scatter(figure), []
    else:
        chart, names = _heatmap(figure), []
    return element(
        "figure",
        element("figcaption", figure.title),
        legend(names) if len(names) > 1 else "",
        chart,
        class_="chart",
    )


def legend(names: Sequence[str]) -> Markup:
    """Names beside their colours and shapes."""
    return element("ul", *(element("li", sample(i), name) for i, name in enumerate(names)), class_="legend")


def sample(i: int) -> Markup:
    """The mark of the i-th series, as large as a letter."""
    return element("svg", mark(i, 7, 7), viewBox="0 0 14 14", class_="sample", aria_hidden="true")


def mark(i: int, x: float, y: float, name: str = "") -> Markup:
    """The point of the i-th series."""
    return element(
        "path",
        element("title", name) if name else "",
        d=SHAPES[i % len(SHAPES)],
        transform=f"translate({x:.1f} {y:.1f})",
        class_=f"mark {colour(i)}",
    )


def colour(i: int) -> str:
    """The class of the i-th series."""
    return f"s{i % COLOURS}"


def interval(low: float, mean: float, high: float, bounds: tuple[float, float]) -> Markup:
    """A mean and its interval as a line with a dot, on the scale that a column of them shares."""
    span = bounds[1] - bounds[0] or 1.0
    at = [4 + 92 * (v - bounds[0]) / span for v in (low, mean, high)]
    return element(
        "svg",
        element("line", x1=0, x2=100, y1=4, y2=4, class_="track"),
        element("line", x1=at[0], x2=at[2], y1=4, y2=4, class_="span"),
        element("line", x1=at[1], x2=at[1], y1=4, y2=4.01, class_="dot"),
        viewBox="0 0 100 8",
        preserveAspectRatio="none",
        class_="interval",
        aria_hidden="true",
    )


def share(value: float, largest: float) -> Markup:
    """A bar as long as a value is of the largest."""
    return element(
        "svg",
        element("rect", width=100, height=8, class_="track"),
        element("rect", width=100 * value / largest if largest > 0 else 0, height=8, class_="bar"),
        viewBox="0 0 100 8",
        preserveAspectRatio="none",
        class_="share",
        aria_hidden="true",
    )


def _svg(title: str, *parts: str, height: float = HEIGHT) -> Markup:
    return element("svg", *parts, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=title)


def _range(values: Values, log: bool, margin: float = 0.05, zero: bool = False) -> tuple[float, float]:
    """Both ends of an axis that holds these values."""
    found = values[np.isfinite(values) & ((values > 0) if log else True)]
    if not len(found):
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = float(found.min()), float(found.max())
    if log:
        wider = (high / low) ** margin if high > low else 1.5
        return low / wider, high * wider
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        aside = abs(low) * 0.1 or 1.0
        return low - aside, high + aside
    wider = (high - low) * margin
    return (low if zero and low == 0 else low - wider), (high if zero and high == 0 else high + wider)


def _frame(x: Axis, y: Axis, x_label: str, y_label: str, columns: Sequence[tuple[float, str]] | None = None) -> Markup:
    """Grid, ticks and labels.

    Args:
        columns: positions in pixels, and what is written there instead of the x axis' numbers.
    """
    left, right = sorted((x.start, x.end))
    top, bottom = sorted((y.start, y.end))
    parts: list[str] = []
    for value, text in y.ticks():
        at = y.at(value)
        parts.append(element("line", x1=left, x2=right, y1=at, y2=at, class_="grid"))
        parts.append(element("text", text, x=left - 6, y=at + 4, class_="tick", text_anchor="end"))
    if columns is None:
        columns = [(x.at(value), text) for value, text in x.ticks()]
        parts += [element("line", x1=at, x2=at, y1=top, y2=bottom, class_="grid") for at, _ in columns]
    parts += [element("text", text, x=at, y=bottom + 16, class_="tick", text_anchor="middle") for at, text in columns]
    parts.append(element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(element("text", x_label, x=(left + right) / 2, y=bottom + 36, class_="label", text_anchor="middle"))
    middle = (top + bottom) / 2
    turned = f"rotate(-90 12 {middle:g})"
    parts.append(element("text", y_label, x=12, y=middle + 4, class_="label", text_anchor="middle", transform=turned))
    return join(*parts)


def _axes(x: tuple[float, float], y: tuple[float, float], log_x: bool, log_y: bool) -> tuple[Axis, Axis]:
    upright = Axis(*y, HEIGHT - _BOTTOM, _TOP, log_y)
    left = 30 + _LETTER * max((len(text) for _, text in upright.ticks()), default=1)
    return Axis(*x, left, WIDTH - _RIGHT, log_x), upright


def _lines(figure: Lines) -> Markup:
    every = np.concatenate([np.asarray(v, float) for v in figure.series.values()] or [np.zeros(0)])
    x, y = _axes(_range(figure.x, figure.log_x, 0.02), _range(every, figure.log_y), figure.log_x, figure.log_y)
    parts: list[str] = [_frame(x, y, figure.x_label, figure.y_label)]
    for i, (name, values) in enumerate(figure.series.items()):
        pieces: list[list[tuple[float, float, str]]] = [[]]
        for a, b in zip(figure.x.tolist(), values.tolist(), strict=True):
            if x.holds(a) and y.holds(b):
                pieces[-1].append((x.at(a), y.at(b), f"{name}: {a:.4g}, {b:.4g}"))
            elif pieces[-1]:
                pieces.append([])
        for piece in pieces:
            path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b, _ in piece)
            parts.append(element("path", d=path, class_=f"line {colour(i)}") if len(piece) > 1 else "")
            if len(values) <= 40 or len(piece) == 1:
                parts += [mark(i, *point) for point in piece]
    return _svg(figure.title, *parts)


def _scatter(figure: Scatter) -> Markup:
    x, y = _axes(_range(figure.x, figure.log_x), _range(figure.y, figure.log_y), figure.log_x, figure.log_y)
    names = figure.labels or [""] * len(figure.x)
    points = [
        (x.at(a), y.at(b), name)
        for a, b, name in zip(figure.x.tolist(), figure.y.tolist(), names, strict=True)
        if x.holds(a) and y.holds(b)
    ]
    parts: list[str] = [_frame(x, y, figure.x_label, figure.y_label)]
    if not figure.labels:  # one path for all, as there may be thousands
        dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b, _ in points)
        parts.append(element("path", d=dots, class_=f"dots {'few' if len(points) < 400 else 'many'} {colour(0)}"))
    for a, b, name in points if figure.labels else ():
        parts.append(mark(0, a, b, name))
        if len(points) <= 16:
            left = a > (x.start + x.end) / 2
            parts.append(
                element(
                    "text",
                    name,
                    x=a - 8 if left else a + 8,
                    y=b + 4,
                    class_="tick",
                    text_anchor="end" if left else None,
                )
            )
    return _svg(figure.title, *parts)


def _bars(figure: Bars) -> Markup:
    every = np.concatenate([np.asarray(v, float) for v in figure.series.values()] or [np.zeros(0)])
    bounds = _range(every, log=False, zero=True)
    longest = max(map(len, figure.labels), default=1) * _LETTER
    room = (WIDTH - 80) / max(1, len(figure.labels))
    numbers = all(label.lstrip("-").replace(".", "", 1).isdigit() for label in figure.labels)
    if longest > room and not numbers and len(figure.labels) <= 40:
        return _lying(figure, bounds, longest)
    x, y = _axes((0.0, float(max(1, len(figure.labels)))), bounds, False, False)
    slot = (x.end - x.start) / max(1, len(figure.labels))
    every_nth = max(1, math.ceil((longest + 6) / slot))
    columns = [(x.at(i + 0.5), label) for i, label in enumerate(figure.labels) if i % every_nth == 0]
    parts: list[str] = [_frame(x, y, figure.x_label, figure.y_label, columns)]
    base = y.at(0.0)
    for i, start, wide, value, name in _laid(figure.series, figure.labels, slot):
        top = y.at(value)
        parts.append(_bar(i, x.start + start, min(top, base), wide, abs(base - top), name))
    parts.append(element("line", x1=x.start, x2=x.end, y1=base, y2=base, class_="axis"))
    return _svg(figure.title, *parts)


def _lying(figure: Bars, bounds: tuple[float, float], longest: float) -> Markup:
    """Bars from left to right, where their names are too long to stand beneath them."""
    slot = max(20.0, 12.0 * len(figure.series) + 8)
    bottom = _TOP + slot * len(figure.labels)
    left = min(1.15 * longest, 0.45 * WIDTH) + 12  # phones show larger letters
    x = Axis(*bounds, left, WIDTH - _RIGHT)
    parts: list[str] = []
    for value, text in x.ticks():
        at = x.at(value)
        parts.append(element("line", x1=at, x2=at, y1=_TOP, y2=bottom, class_="grid"))
        parts.append(element("text", text, x=at, y=bottom + 16, class_="tick", text_anchor="middle"))
    fits = int((left - 12) / _LETTER)
    for i, label in enumerate(figure.labels):
        short = label if len(label) <= fits else label[: fits - 1] + "…"
        at = _TOP + slot * (i + 0.5) + 4
        parts.append(
            element("text", element("title", label), short, x=left - 6, y=at, class_="tick", text_anchor="end")
        )
    base = x.at(0.0)
    for i, start, wide, value, name in _laid(figure.series, figure.labels, slot):
        end = x.at(value)
        parts.append(_bar(i, min(base, end), _TOP + start, abs(end - base), wide, name))
    parts.append(element("line", x1=base, x2=base, y1=_TOP, y2=bottom, class_="axis"))
    parts.append(
        element("text", figure.y_label, x=(left + WIDTH) / 2, y=bottom + 36, class_="label", text_anchor="middle")
    )
    return _svg(figure.title, *parts, height=bottom + _BOTTOM)


def _laid(
    series: Mapping[str, Values], labels: Sequence[str], slot: float
) -> Iterator[tuple[int, float, float, float, str]]:
    """Series, begin and width in pixels, value and name of each bar."""
    wide = 0.76 * slot / max(1, len(series))
    for i, (name, values) in enumerate(series.items()):
        for j, (label, value) in enumerate(zip(labels, values.tolist(), strict=True)):
            if math.isfinite(value):
                what = f"{label}, {name}" if len(series) > 1 else label
                yield i, (j + 0.12) * slot + i * wide, wide, value, f"{what}: {value:.4g}"


def _bar(i: int, x: float, y: float, width: float, height: float, name: str) -> Markup:
    return element("rect", element("title", name), x=x, y=y, width=width, height=height, class_=f"bar {colour(i)}")


def _heatmap(figure: Heatmap) -> Markup:
    rows, columns = figure.values.shape
    wide = 330.0
    tall = min(max(wide * rows / columns, 90.0), 420.0)
    found = figure.values[np.isfinite(figure.values)]
    low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)
    signed = low < 0 < high
    if signed:
        low, high = -max(-low, high), max(-low, high)
    if low == high:
        low, high = _range(np.array([low]), log=False)
    half_x, half_y = ((b - a) / max(1, n - 1) / 2 or 0.5 for (a, b), n in ((figure.x, columns), (figure.y, rows)))
    upright = Axis(figure.y[1] + half_y, figure.y[0] - half_y, _TOP + tall, _TOP)
    left = 30 + _LETTER * max(len(text) for _, text in _read(upright).ticks())
    x = Axis(figure.x[0] - half_x, figure.x[1] + half_x, left, left + wide)
    shown = (figure.values - low) / (high - low)
    bar = Axis(low, high, _TOP + tall, _TOP)
    at = left + wide + 14
    ramp = np.linspace(1, 0, 64)[:, None]
    parts: list[str] = [
        _frame(_read(x), _read(upright), figure.x_label, figure.y_label),
        _map(_coloured(shown, signed), left, _TOP, wide, tall),
        _map(_coloured(ramp, signed), at, _TOP, 12, tall),
    ]
    for value, text in bar.ticks():
        parts.append(element("text", text, x=at + 16, y=bar.at(value) + 4, class_="tick"))
    turned = f"rotate(-90 {WIDTH - 6} {_TOP + tall / 2:g})"
    parts.append(
        element(
            "text",
            figure.value_label,
            x=WIDTH - 6,
            y=_TOP + tall / 2,
            class_="label",
            text_anchor="middle",
            transform=turned,
        )
    )
    return _svg(figure.title, *parts, height=_TOP + tall + _BOTTOM)


def _read(axis: Axis) -> Axis:
    """The same axis from its smaller to its larger end."""
    if axis.low <= axis.high:
        return axis
    return Axis(axis.high, axis.low, axis.end, axis.start)


def _map(image: NDArray[np.uint8], x: float, y: float, width: float, height: float) -> Markup:
    return element(
        "image", href=png_uri(image), x=x, y=y, width=width, height=height, preserveAspectRatio="none", class_="map"
    )


def _coloured(values: Values, signed: bool) -> NDArray[np.uint8]:
    """0 to 1 as colours, [rows, columns, 4]; NaN is transparent."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (_SIGNED if signed else _COOL)], float)
    at = np.linspace(0, 1, len(stops))
    known = np.isfinite(values)
    inside = np.where(known, values, 0.0).clip(0, 1)
    planes = [np.interp(inside, at, stops[:, i]) for i in range(3)]
    return np.stack([*planes, 255.0 * known], axis=2).round().astype(np.uint8)
