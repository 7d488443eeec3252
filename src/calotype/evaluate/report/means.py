"""Tables of means: of each VAE and metric a mean, its interval, how many pictures it is of, and where it stands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from calotype.evaluate.report import svg
from calotype.evaluate.report.absent import reasons
from calotype.evaluate.report.markup import Markup, element, number
from calotype.evaluate.report.parts import Column, vae_name
from calotype.evaluate.report.standing import STANDINGS, Standing, standings

Results = dict[str, Any]


def digits(metric: Mapping[str, Any]) -> int:
    """After the point, of its figures."""
    return {"dB": 2, "bit/pixel": 3, "of 255": 2}.get(metric["unit"], 4)


def unit(metric: Mapping[str, Any]) -> str:
    """Its unit, and which figures are better."""
    better = f"{metric['ideal']:g} is best" if metric["better"] == "nearest" else f"{metric['better']} is better"
    return f"{metric['unit']}, {better}" if metric["unit"] else better


def times(text: str) -> str:
    """Sizes with their sign."""
    return text.replace(" x ", " \u00d7 ")


def badge(name: str) -> Markup:
    """What marks a VAE's figure."""
    return element("span", name, class_=f"badge {name}", title=STANDINGS[name])


def columns(results: Results, metrics: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Of VAEs and of their means."""
    first = Column("Decoder" if "encoder" in results else "VAE")
    return [first, *(Column(m["title"], unit(m), "mean over pictures, with its 95% interval") for m in metrics)]


def marks(results: Results, metrics: Sequence[Mapping[str, Any]]) -> list[list[Standing]]:
    """Where the VAEs stand by each metric."""
    return [standings(results, m["key"], m["better"] == "higher", m.get("ideal")) for m in metrics]


def rows(
    results: Results, metrics: Sequence[Mapping[str, Any]], marked: Sequence[Sequence[Standing]]
) -> list[list[Markup]]:
    """Cells of VAEs: their names, and means.

    Args:
        marked: as `marks` gives them.
    """
    vaes = results["vaes"]
    ends = [bounds(vaes, metric["key"]) for metric in metrics]
    found = []
    for i, vae in enumerate(vaes):
        larger = f", pictures {vae['enlarges']} times as large" if "enlarges" in vae else ""
        cells = [vae_name(i, vae, f"f{vae['factor']}, {vae['channels']} channels{larger}")]
        for metric, standing, bound in zip(metrics, marked, ends, strict=True):
            mean = vae["means"].get(metric["key"])
            fewer = mean is not None and mean["n"] < len(vae["rows"])
            more = f"{mean['n']:,} of {len(vae['rows']):,} pictures" if fewer else ""
            why = times(reasons(vae["rows"], metric))
            cells.append(mean_cell(mean, digits(metric), standing[i], bound, more, why))
        found.append(cells)
    return found


def bounds(vaes: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float]:
    """Between which the intervals of all VAEs lie."""
    ends = [mean[end] for vae in vaes if (mean := vae["means"].get(key)) for end in ("low", "high")]
    ends = [end for end in ends if math.isfinite(end)]
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def mean_cell(
    mean: Mapping[str, float] | None,
    places: int,
    standing: Standing,
    between: tuple[float, float],
    more: str,
    missing: str,
) -> Markup:
    """A mean with its interval; below it how many pictures or parts it is of, and why others are not among them."""
    if mean is None:
        return cell(None, places, element("small", missing) if missing else "")
    low, high = (number(mean[end], places) for end in ("low", "high"))
    drawn = svg.interval(mean["low"], mean["mean"], mean["high"], between) if math.isfinite(mean["mean"]) else ""
    return element(
        "td",
        element("b", number(mean["mean"], places)),
        badge(standing) if standing else "",
        drawn,
        element("small", f"{low} to {high}") if mean["n"] > 1 else "",
        element("small", more) if more else "",
        element("small", missing) if missing else "",
        data_value=mean["mean"],
        class_=standing or None,
    )


def cell(value: float | None, places: int, *more: str) -> Markup:
    """A figure; a dash where there is none."""
    return element("td", number(value, places), *more, data_value="" if value is None else value)
