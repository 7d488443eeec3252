"""The report of an evaluation: one page of HTML with everything in it, readable from disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from heapq import nsmallest
from pathlib import Path
from typing import Any

import numpy as np

from calotype.errors import UsageError
from calotype.evaluate.alpha import APART, SAID
from calotype.evaluate.figures import Bars
from calotype.evaluate.report import svg
from calotype.evaluate.report.absent import reason, reasons
from calotype.evaluate.report.articles import LATENTS, article, stored
from calotype.evaluate.report.cost import cost
from calotype.evaluate.report.markup import Markup, document, element, number
from calotype.evaluate.report.means import badge, bounds, cell, columns, digits, marks, mean_cell, rows, times, unit
from calotype.evaluate.report.parts import Column, details, facts, heading, section, shapes, table
from calotype.evaluate.report.pictures import Crop, Encoded, packed
from calotype.evaluate.report.standing import STANDINGS, unmarked, values
from calotype.evaluate.report.tone import tone
from calotype.files import write_bytes

Results = dict[str, Any]

MOST_PICTURES = 5000  # that a page names one by one
MOST_FAILURES = 500
WORST = 20  # by a metric of a VAE, which are among them

_RATE = {"key": "kl_bits_per_pixel", "title": "KL rate", "unit": "bit/pixel", "better": "lower"}


def write_evaluation(results: Results, crops: Sequence[Crop], path: Path) -> Path:
    """Writes the page.

    Args:
        results: as in results.json; docs/evaluation.md says what is in it.
        crops: parts of pictures to be looked at, the worst first, with reconstructions of any of the VAEs; those that
            would be too much for a page (11 MB) are left out.
        path: of the page.

    Raises:
        UsageError: a crop of a picture or of a VAE that is not among the results; the folder does not exist.
        StorageError: the disk refuses it.
    """
    return write_bytes(path, evaluation_page(results, crops))


def evaluation_page(results: Results, crops: Sequence[Crop]) -> bytes:
    """What `write_evaluation` writes.

    Raises:
        UsageError: a crop is of a picture or a VAE that is not among the results.
    """
    labels = [vae["label"] for vae in results["vaes"]]
    shown = _shown(results, {crop.picture for crop in crops})
    vaes, pictures = shown["vaes"], shown["pictures"]
    named = {picture["name"]: i for i, picture in reversed(list(enumerate(pictures)))}
    for crop in crops:
        if crop.picture not in named:
            raise UsageError(f"there is a crop of {crop.picture}, which is not among the results' pictures.")
        for label in (*crop.reconstructions, *crop.latents):
            if label not in labels:
                raise UsageError(f"a crop of {crop.picture} is of the VAE {label}, which is not among the results.")
    grouped: dict[int, list[Crop]] = {}
    for crop in crops:
        grouped.setdefault(named[crop.picture], []).append(crop)
    kept, encoded = packed(grouped)
    count = len(results["pictures"])
    of = f"Latents of {results['encoder']['label']} decoded by " if "encoder" in results else ""
    title = f"{of}{_listed(labels)} on {count:,} picture{'' if count == 1 else 's'}"
    fewer = ""
    if len(pictures) < count:
        fewer = (
            f"Of {count:,} pictures {len(pictures):,} are shown: those with crops, the {WORST} worst by each metric of "
            f"each VAE, and of the others every so many. Means are of all; results.csv has all figures."
        )
    protocol = results["protocol"]
    sections = [
        _summary(results),
        tone(results),
        _chart(shown, fewer),
        _pictures(shown, kept, encoded, len(grouped) - len(kept), fewer),
        _failures(results),
        _subsets(results),
        cost(results),
        _latents(results),
        _details(shown, count),
    ]
    return document(
        f"{title} \u2013 calotype",
        shapes(),
        heading(
            f"calotype {results['calotype']} · evaluation",
            title,
            protocol.get("text") or protocol["name"],
            protocol.get("note", ""),
            results,
        ),
        element("main", *sections),
        data={
            "pictures": [picture["name"] for picture in pictures],
            "metrics": [{**metric, "digits": digits(metric)} for metric in _plotted(results)],
            "metricsToOrderBy": len(results["metrics"]),
            "vaes": labels,
            "values": {
                metric["key"]: [list(map(_plain, values(vae, metric["key"], len(pictures)))) for vae in vaes]
                for metric in _plotted(results)
            },
            "why": {
                metric["key"]: [
                    {row["picture"]: text for row in vae["rows"] if (text := times(reason(row, metric)))}
                    for vae in vaes
                ]
                for metric in results["metrics"]
            },
            "crops": sorted(kept),
        },
    )


def _shown(results: Results, wanted: set[str]) -> Results:
    """Results of the pictures that the page names: all, or of too many those wanted, the worst, and some others."""
    pictures = results["pictures"]
    if len(pictures) <= MOST_PICTURES:
        return results
    sure = {i for i, picture in enumerate(pictures) if picture["name"] in wanted}
    for metric in results["metrics"]:
        for vae in results["vaes"]:
            figures = ((_goodness(metric, row), row["picture"]) for row in vae["rows"] if metric["key"] in row)
            sure |= {i for _, i in nsmallest(WORST, figures)}
    others = [i for i in range(len(pictures)) if i not in sure]
    room = max(0, MOST_PICTURES - len(sure))
    chosen = sorted(sure | {others[k * len(others) // room] for k in range(room)})
    places = {i: place for place, i in enumerate(chosen)}
    rows = [
        [{**row, "picture": places[row["picture"]]} for row in vae["rows"] if row["picture"] in places]
        for vae in results["vaes"]
    ]
    return {
        **results,
        "pictures": [pictures[i] for i in chosen],
        "vaes": [{**vae, "rows": of} for vae, of in zip(results["vaes"], rows, strict=True)],
    }


def _goodness(metric: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    """Of one figure of a row: less is worse."""
    value = float(row[metric["key"]])
    if metric["better"] == "nearest":
        return -abs(value - float(metric["ideal"]))
    return value if metric["better"] == "higher" else -value


def _plain(value: float | None) -> float | str | None:
    """JSON has no infinity, which the PSNR of an unchanged picture is."""
    return "inf" if value == math.inf else value


def _listed(labels: Sequence[str]) -> str:
    if len(labels) > 3:
        return f"{len(labels)} VAEs"
    return " and ".join([", ".join(labels[:-1]), labels[-1]] if len(labels) > 1 else labels)


def _plotted(results: Results) -> list[dict[str, Any]]:
    """The metrics, and the rate where there is one."""
    several = "encoder" not in results  # else the rate, which is of the encoder, tells nothing apart
    rated = several and any(row.get(_RATE["key"]) is not None for vae in results["vaes"] for row in vae["rows"])
    return [*results["metrics"], *([_RATE] if rated else [])]


# --- summary ---


def _summary(results: Results) -> Markup:
    vaes, metrics = results["vaes"], [m for m in results["metrics"] if m["better"] != "nearest"]
    distances = list(dict.fromkeys(key for vae in vaes for key in vae.get("distances", {})))
    titles = columns(results, metrics)
    titles += [Column(_distance(key), "lower is better", "between two sets of pictures") for key in distances]
    titles.append(
        Column("Numbers", "per pixel", f"latent numbers for each pixel, which is {results.get('channels', 3)} itself")
    )
    marked = marks(results, metrics)
    cells_of = rows(results, metrics, marked)
    for cells, vae in zip(cells_of, vaes, strict=True):
        cells += [_distance_cell(vae.get("distances", {}).get(key), key) for key in distances]
        figures = [row["numbers_per_pixel"] for row in vae["rows"] if "numbers_per_pixel" in row]
        cells.append(cell(float(np.median(figures)) if figures else None, 3))
    note = [
        "Below each mean is its 95% bootstrap interval over the pictures, on one scale for all VAEs.",
        *(f"{badge(name)}: {text}." for name, text in STANDINGS.items() if any(name in one for one in marked)),
        f"{why}." if (why := unmarked(results)) else "",
        "Distances have no such interval, and none of them is marked." if distances else "",
        SAID if any(metric["key"] in APART for metric in metrics) else "",
    ]
    return section(
        "summary",
        "Summary",
        table(titles, cells_of, sortable=len(vaes) > 1),
        element("p", Markup(" ".join(filter(None, note))), class_="note"),
        *(element("p", text, class_="note") for text in (*_extractors(results), *results.get("warnings", ()))),
    )


def _extractors(results: Results) -> list[str]:
    """What the distances of one network are over, a line each."""
    return [
        f"Distances over {name}: {one['weights']}; pictures are resized to {one['resize']}."
        for name, one in results.get("extractors", {}).items()
    ]


def _distance(key: str) -> str:
    kind, _, network = key.partition("_")
    return f"{kind.upper()} ({network.replace('_', ' ')})" if network else kind.upper()


def _distance_cell(found: Mapping[str, Any] | None, key: str) -> Markup:
    places = 5 if key.startswith("kid") else 3
    if found is None:
        return cell(None, places)
    if found["value"] is None:
        return cell(None, places, element("small", str(found["why"])))
    more = [f"± {number(found['std'], places)}"] if "std" in found else []
    more += [f"{found['n']:,} pictures"] if "n" in found else []
    return cell(found["value"], places, element("small", ", ".join(more)))


# --- chart of pictures, and pictures ---


def _chart(results: Results, fewer: str) -> Markup:
    several = len(results["vaes"]) > 1
    return section(
        "chart",
        "Picture by picture",
        element(
            "div",
            element("div", _choice("mode", "Compare", (("metrics", "metrics"), ("vaes", "VAEs"))), hidden=not several),
            element("div", _choice("x", "Across", ()), _choice("y", "Up", ()), class_="axes"),
            element("div", _choice("by", "Metric", ()), class_="axes"),
            class_="controls",
            id="chart-controls",
        ),
        svg.legend([vae["label"] for vae in results["vaes"]]),
        element("div", class_="plot", id="plot"),
        element("p", id="plot-says", class_="note", aria_live="polite"),
        element("p", fewer, class_="note") if fewer else "",
        element("noscript", element("p", "This chart needs JavaScript.", class_="note")),
        intro="Each point is a picture. A click on it, or Enter, leads to its crops; arrow keys go through all.",
    )


def _choice(key: str, label: str, options: Sequence[tuple[str, str]]) -> Markup:
    return element(
        "label",
        element("span", label),
        element("select", *(element("option", text, value=value) for value, text in options), id=f"choose-{key}"),
    )


def _pictures(
    results: Results, grouped: Mapping[int, Sequence[Crop]], encoded: Encoded, left_out: int, fewer: str
) -> Markup:
    order = sorted(grouped)
    uris = iter(encoded.uris)
    articles = [article(results, i, grouped[i], uris) for i in order]
    labels = list(enumerate(vae["label"] for vae in results["vaes"]))
    sides = [("original", "original"), *((str(i), label) for i, label in labels)]
    zooms = [("fit", "to fit"), ("1", "1 : 1"), ("2", "2 : 1"), ("4", "4 : 1")]
    ranking = [
        _choice("order", "Worst first by", [(metric["key"], metric["title"]) for metric in results["metrics"]]),
        _choice("order-vae", "of", [(str(i), label) for i, label in labels]),
    ]
    controls = [
        _choice("view", "Show", (("wipe", "reconstructions"), ("difference", "differences"))),
        _choice("side", "Left of the slider", sides),
        element(
            "label",
            element("span", "Amplified ", element("output", "\u00d74", id="factor-says", for_="factor")),
            element("input", type="range", id="factor", min=1, max=32, step=1, value=4),
            class_="when-difference",
        ),
        _choice("zoom", "Size", zooms),
    ]
    what = "Drag over a picture, or use the arrow keys: what is left of the line is the original, or another VAE's."
    return section(
        "pictures",
        "Pictures, the worst first",
        element("div", *ranking, *(controls if articles else []), class_="controls sticky", id="picture-controls"),
        element("div", *articles, id="articles"),
        element("p", LATENTS, class_="note") if any(crop.latents for i in order for crop in grouped[i]) else "",
        element("p", stored(encoded), class_="note") if articles else "",
        element("p", f"Crops of {left_out:,} more pictures would be too much for a page.", class_="note")
        if left_out
        else "",
        details(
            "Pictures by the metric chosen above",
            element("p", fewer, class_="note") if fewer else "",
            element("div", id="all-pictures"),
            id="all",
        ),
        intro=what if articles else "",
    )


# --- the rest ---


def _failures(results: Results) -> Markup | str:
    failed = {vae["label"]: [row for row in vae["rows"] if "error" in row] for vae in results["vaes"]}
    each = MOST_FAILURES // len(failed)
    rows = [
        [
            element("th", results["pictures"][row["picture"]]["name"], scope="row"),
            element("td", label, class_="text"),
            element("td", row["error"], class_="text"),
        ]
        for label, of in failed.items()
        for row in of[:each]
    ]
    if not rows:
        return ""
    columns = [Column("Picture"), Column("VAE", text=True), Column("What went wrong", text=True)]
    more = ", ".join(f"{label} {len(of) - each:,}" for label, of in failed.items() if len(of) > each)
    return section(
        "failures",
        "Failures",
        table(columns, rows),
        element("p", f"More are in results.csv: {more}.", class_="note") if more else "",
        intro="Means leave these out, each VAE's only its own.",
    )


def _subsets(results: Results) -> Markup | str:
    vaes, metrics = results["vaes"], results["metrics"]
    names = list(dict.fromkeys(name for vae in vaes for name in vae.get("subsets", {})))
    if not names:
        return ""
    columns = [Column("Subset"), Column("VAE", text=True)]
    columns += [Column(m["title"], unit(m), "mean over parts, with its 95% interval") for m in metrics]
    rows = []
    for name in names:
        means = [vae.get("subsets", {}).get(name, {}) for vae in vaes]
        all_bounds = [bounds([{"means": mean} for mean in means], metric["key"]) for metric in metrics]
        for i, (vae, mean) in enumerate(zip(vaes, means, strict=True)):
            cells = [element("th", name, scope="row"), element("td", svg.sample(i), vae["label"], class_="text")]
            for metric, between in zip(metrics, all_bounds, strict=True):
                found = mean.get(metric["key"])
                more = f"{found['n']:,} part{'' if found['n'] == 1 else 's'}" if found else ""
                parts = [part for row in vae["rows"] for part in row.get("subsets", {}).get(name, ())]
                cells.append(mean_cell(found, digits(metric), "", between, more, times(reasons(parts, metric))))
            rows.append(cells)
    return section(
        "subsets",
        "Subsets",
        table(columns, rows),
        intro="Parts of pictures, compared alone.",
    )


def _latents(results: Results) -> Markup | str:
    charts = []
    for vae in results["vaes"]:
        found = vae.get("latents") or {}
        if not found:
            continue
        bars = Bars(
            title=vae["label"],
            labels=[str(c) for c in range(len(found["mean"]))],
            series={key: np.array(found[key], dtype=np.float64) for key in ("mean", "std")},
            x_label="channel",
            y_label="raw latents",
        )
        charts.append(svg.draw(bars))
        scale, shift = found.get("scaling_factor"), found.get("shift_factor")
        if scale is not None and shift is not None:
            said = f"One shift and scale for all channels: subtract {shift:.4g}, multiply by {scale:.4g}."
            charts[-1] = element("div", charts[-1], element("p", said.replace("-", "\u2212"), class_="note"))
    if not charts:
        return ""
    return section(
        "latents",
        "Latents",
        element("div", *charts, class_="charts"),
        intro="Mean and standard deviation of each channel over all pictures, before scaling.",
    )


def _details(results: Results, count: int) -> Markup:
    protocol = {key: value for key, value in results["protocol"].items() if key != "text"}
    run = {key: results[key] for key in ("calotype", "created", "device", "engine") if key in results}
    networks = {m["title"]: f"sha256 {m['sha256']}" for m in results["metrics"] if "sha256" in m}
    networks |= {
        name: f"{one['weights']}; {one['width']:,} features; {one['resize']}; sha256 {one['sha256']}"
        for name, one in results.get("extractors", {}).items()
    }
    command = " ".join(_quoted(part) for part in results.get("command", ()))
    blocks = [
        details("Protocol", facts(protocol), id="protocol"),
        details(
            "Command and versions",
            element("pre", command) if command else "",
            facts(run | results.get("versions", {})),
            id="versions",
        ),
    ]
    if networks:
        blocks.append(details("Networks that measure, and their weights", facts(networks), id="networks"))
    for vae in results["vaes"]:
        keys = ("weights", "sha256", "parameters", "factor", "channels")
        told = {key: vae[key] for key in keys if key in vae}
        nested = {key: json.dumps(vae[key]) for key in ("network", "format") if vae.get(key)}
        blocks.append(details(f"VAE: {vae['label']}", facts(told | nested)))
    hashes = [
        [
            element("th", picture["name"], scope="row"),
            element("td", f"{picture.get('width') or '?'} \u00d7 {picture.get('height') or '?'}"),
            element("td", element("code", picture["sha256"] or "not read"), class_="text"),
        ]
        for picture in results["pictures"]
    ]
    columns = [Column("Picture"), Column("Size"), Column("SHA-256 of its pixels", text=True)]
    of = f"{len(hashes):,}" if len(hashes) == count else f"{len(hashes):,} of {count:,}"
    blocks.append(details(f"Pictures and their hashes ({of})", table(columns, hashes), id="hashes"))
    return section("details", "How this was measured", *blocks)


def _quoted(part: str) -> str:
    return part if part and not any(letter in part for letter in " \t\n'\"\\$`*?[](){}<>|&;#~!") else json.dumps(part)
