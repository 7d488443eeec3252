"""Charts: marks stand where their values say, measured against the axes' own numbers."""

from __future__ import annotations

import base64
import io
import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from calotype.evaluate.figures import Bars, Figure, Heatmap, Lines, Scatter
from calotype.evaluate.report import svg

NAN = math.nan


def drawn(figure: Figure) -> ET.Element:
    assert not isinstance(figure, type(None))
    return ET.fromstring(svg.draw(figure))  # type: ignore[arg-type]


def texts(chart: ET.Element, kind: str) -> list[ET.Element]:
    return [one for one in chart.iter("text") if one.get("class") == kind]


def said(one: ET.Element) -> float:
    """What a tick says, as a number."""
    text = "".join(one.itertext()).replace("\u2212", "-").replace(",", "")
    return float(text)


def scale(chart: ET.Element, upright: bool) -> tuple[float, float]:
    """(a, b) of value = a * pixel + b, from the first and the last tick of an axis."""
    ticks = [one for one in texts(chart, "tick") if (one.get("text-anchor") == "end") == upright]
    ticks = [one for one in ticks if one.get("text-anchor") in ("end", "middle")]
    at = [float(one.get("y" if upright else "x") or 0) - (4 if upright else 0) for one in ticks]
    values = [said(one) for one in ticks]
    a = (values[-1] - values[0]) / (at[-1] - at[0])
    for pixel, value in zip(at, values, strict=True):
        assert a * (pixel - at[0]) + values[0] == pytest.approx(value, abs=1e-3 * abs(values[-1] - values[0]))
    return a, values[0] - a * at[0]


def points(chart: ET.Element) -> list[tuple[float, float]]:
    """Values of the marks, by the axes' numbers."""
    (ax, bx), (ay, by) = scale(chart, False), scale(chart, True)
    found = []
    for one in chart.iter("path"):
        if (one.get("class") or "").startswith("mark") and one.get("transform") != "translate(7.0 7.0)":
            x, y = map(float, re.findall(r"[-\d.]+", one.get("transform") or ""))
            found.append((ax * x + bx, ay * y + by))
    return found


@pytest.mark.parametrize(
    ("low", "high", "wanted", "expected"),
    [
        (0.0, 1.0, 5, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-3.0, 7.0, 4, [0.0, 5.0]),
        (28.4, 31.2, 4, [29.0, 30.0, 31.0]),
        (0.0012, 0.0019, 7, [0.0012, 0.0013, 0.0014, 0.0015, 0.0016, 0.0017, 0.0018, 0.0019]),
    ],
)
def test_ticks_are_round(low: float, high: float, wanted: int, expected: list[float]) -> None:
    assert svg.linear_ticks(low, high, wanted) == pytest.approx(expected)


def test_ticks_of_logarithmic_axes() -> None:
    assert svg.log_ticks(0.01, 1000) == pytest.approx([0.01, 0.1, 1, 10, 100, 1000])
    assert svg.log_ticks(3, 60) == pytest.approx([5, 10, 20, 50])
    assert len(svg.log_ticks(1e-12, 1e12)) <= 12


def test_what_ticks_say() -> None:
    assert svg.tick_texts([0.0, 0.05, 0.1]) == ["0.00", "0.05", "0.10"]
    assert svg.tick_texts([-1.0, 0.0, 1.0]) == ["\u22121", "0", "1"]
    assert svg.tick_texts([0.0, 5000.0, 10000.0]) == ["0", "5,000", "10,000"]
    assert svg.tick_texts([2e6, 4e6]) == ["2·10⁶", "4·10⁶"]
    assert [svg.power(v) for v in (1e-4, 0.02, 1.0, -2e-7, -1e5)] == ["10⁻⁴", "0.02", "1", "\u22122·10⁻⁷", "\u221210⁵"]


def test_lines() -> None:
    x = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    series = {"a": np.array([1.0, 3.0, NAN, 2.0, 5.0]), "b": np.array([0.0, 0.5, 1.0, math.inf, 2.0])}
    chart = drawn(Lines(title="T", x=x, series=series, x_label="step", y_label="loss (dB)"))
    expected = [(a, b) for values in series.values() for a, b in zip(x, values, strict=True) if np.isfinite(b)]
    assert points(chart) == [pytest.approx(point, abs=0.03) for point in expected]
    lines = [one.get("d") or "" for one in chart.iter("path") if (one.get("class") or "").startswith("line")]
    assert [line.count("L") for line in lines] == [1, 1, 2]  # broken where there is no value
    assert ["".join(one.itertext()) for one in texts(chart, "label")] == ["step", "loss (dB)"]
    assert [one.text for one in chart.iter("figcaption")] == ["T"]
    assert ["".join(one.itertext()) for one in chart.iter("li")] == ["a", "b"]


def test_logarithmic_lines() -> None:
    x = np.array([0.01, 1.0, 100.0, -1.0])
    figure = Lines(title="", x=x, series={"a": x**2}, x_label="", y_label="", log_x=True, log_y=True)
    marks = [one.get("transform") or "" for one in drawn(figure).iter("path") if "mark" in (one.get("class") or "")]
    at = [tuple(map(float, re.findall(r"[-\d.]+", mark))) for mark in marks]
    assert len(at) == 3  # what is not positive has no place
    assert at[1] == pytest.approx(((at[0][0] + at[2][0]) / 2, (at[0][1] + at[2][1]) / 2), abs=0.11)


def test_scatter_with_names() -> None:
    x, y = np.array([1.0, 2.0, 4.0]), np.array([30.0, 10.0, 20.0])
    chart = drawn(Scatter(title="", x=x, y=y, x_label="", y_label="", labels=["<a>", "b", "c"]))
    named = [one for one in chart.iter("path") if one.find("title") is not None]
    assert [one.findtext("title") for one in named] == ["<a>", "b", "c"]


def test_scatter_of_many() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((2, 500))
    x[3] = NAN
    chart = drawn(Scatter(title="", x=x, y=y, x_label="", y_label=""))
    (dots,) = [one for one in chart.iter("path") if (one.get("class") or "").startswith("dots")]
    found = np.array([list(map(float, part.split())) for part in re.findall(r"M([-\d. ]+)h0", dots.get("d") or "")])
    (ax, bx), (ay, by) = scale(chart, False), scale(chart, True)
    known = np.isfinite(x)
    assert np.allclose(ax * found[:, 0] + bx, x[known], atol=0.01)
    assert np.allclose(ay * found[:, 1] + by, y[known], atol=0.02)


@pytest.mark.parametrize("lying", [False, True])
def test_bars(lying: bool) -> None:
    labels = [f"a name that is long {i}" if lying else str(i) for i in range(6)]
    series = {"a": np.array([1.0, -2.0, 3.0, 0.0, 5.0, NAN]), "b": np.arange(6.0)}
    chart = drawn(Bars(title="", labels=labels, series=series, x_label="channel", y_label="value"))
    bars = list(chart.iter("rect"))
    values = [v for one in series.values() for v in one if np.isfinite(v)]
    assert len(bars) == len(values)
    lengths = [float(one.get("width" if lying else "height") or 0) for one in bars]
    for length, value in zip(lengths, values, strict=True):
        assert length == pytest.approx(abs(value) * lengths[4] / 5, abs=0.01)
    begin, extent = ("x", "width") if lying else ("y", "height")
    positive, negative = bars[0], bars[1]
    if lying:  # they meet at 0, positive ones to its right
        ends = float(positive.get(begin) or 0), float(negative.get(begin) or 0) + float(negative.get(extent) or 0)
    else:
        ends = float(positive.get(begin) or 0) + float(positive.get(extent) or 0), float(negative.get(begin) or 0)
    assert ends[0] == pytest.approx(ends[1], abs=0.01)
    across, wide = ("y", "height") if lying else ("x", "width")
    edges = sorted((float(one.get(across) or 0), float(one.get(wide) or 0)) for one in bars)
    assert all(a + w <= b + 0.01 for (a, w), (b, _) in pairwise(edges))  # side by side
    assert "a name that is long 0, a: 1" in [one.findtext("title") for one in bars] or not lying


def test_numbers_beneath_many_bars_do_not_overlap() -> None:
    labels = [str(i) for i in range(128)]
    chart = drawn(Bars(title="", labels=labels, series={"a": np.ones(128)}, x_label="", y_label=""))
    beneath = [one for one in texts(chart, "tick") if one.get("text-anchor") == "middle"]
    at = [float(one.get("x") or 0) for one in beneath]
    assert len(at) > 5
    assert min(b - a for a, b in pairwise(at)) > 20


def image(chart: ET.Element) -> tuple[ET.Element, np.ndarray]:
    one = next(chart.iter("image"))
    return one, np.asarray(Image.open(io.BytesIO(base64.b64decode((one.get("href") or "").partition(",")[2]))))


def test_heatmap() -> None:
    values = np.arange(12.0).reshape(3, 4)
    values[1, 1] = NAN
    figure = Heatmap(title="", values=values, x=(0, 3), y=(10, 30), x_label="x", y_label="y", value_label="v")
    chart = drawn(figure)
    element, pixels = image(chart)
    assert pixels.shape == (3, 4, 4)
    assert pixels[1, 1, 3] == 0
    brightness = pixels[..., :3].astype(float).sum(2)
    known = np.isfinite(values)
    assert (np.diff(brightness[known]) < 0).all()  # the more, the darker, and the first row is on top
    a, b = scale(chart, True)
    top, height = float(element.get("y") or 0), float(element.get("height") or 0)
    assert [a * (top + height * (i + 0.5) / 3) + b for i in range(3)] == pytest.approx([10, 20, 30])
    a, b = scale(chart, False)
    left, width = float(element.get("x") or 0), float(element.get("width") or 0)
    assert [a * (left + width * (i + 0.5) / 4) + b for i in range(4)] == pytest.approx([0, 1, 2, 3], abs=1e-3)


def test_heatmap_with_signs() -> None:
    values = np.array([[-1.0, 0.0, 3.0]])
    chart = drawn(Heatmap(title="", values=values, x=(0, 2), y=(0, 0), x_label="", y_label="", value_label=""))
    _, pixels = image(chart)
    assert pixels[0, 1, :3].min() > 230  # 0 is pale, whatever the ends
    assert pixels[0, 0, 2] > pixels[0, 0, 0]  # negative is blue
    assert pixels[0, 2, 0] > pixels[0, 2, 2]  # positive is red


def test_what_has_no_extent() -> None:
    one = np.array([2.0])
    for figure in (
        Lines(title="", x=one, series={"a": one}, x_label="", y_label=""),
        Lines(title="", x=one, series={"a": np.array([NAN])}, x_label="", y_label="", log_y=True),
        Scatter(title="", x=one, y=one, x_label="", y_label="", log_x=True),
        Bars(title="", labels=["0"], series={"a": np.zeros(1)}, x_label="", y_label=""),
        Bars(title="", labels=[], series={}, x_label="", y_label=""),
        Heatmap(title="", values=np.full((1, 1), 5.0), x=(0, 0), y=(0, 0), x_label="", y_label="", value_label=""),
    ):
        chart = drawn(figure)
        assert "nan" not in ET.tostring(chart, "unicode").lower()


def test_intervals_share_a_scale() -> None:
    lines = list(ET.fromstring(svg.interval(2.0, 3.0, 4.0, (0.0, 4.0))).iter("line"))
    at = {one.get("class"): (float(one.get("x1") or 0), float(one.get("x2") or 0)) for one in lines}
    assert at["span"] == pytest.approx((4 + 92 * 0.5, 96))
    assert at["dot"] == pytest.approx((4 + 92 * 0.75, 4 + 92 * 0.75))
    bars = list(ET.fromstring(svg.share(1.0, 4.0)).iter("rect"))
    assert float(bars[1].get("width") or 0) == 25
