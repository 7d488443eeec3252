"""What VAEs take: their sizes, memory and time, and where that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calotype.evaluate.report import svg
from calotype.evaluate.report.markup import Markup, count, element, number
from calotype.evaluate.report.parts import Column, section, table, vae_name


def _decimals(value: float) -> int:
    """For seconds and megabytes: three digits that count."""
    return 3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0


def cost(results: Mapping[str, Any]) -> Markup:
    """The section on speed and memory."""
    vaes = results["vaes"]
    columns = [
        Column("VAE"),
        Column("Parameters"),
        Column("Weights", "MB"),
        Column("Peak memory", "MB, planned", "of the plan for the largest picture, beside the weights"),
        Column("Encoding", "s per megapixel", "median over pictures"),
        Column("Decoding", "s per megapixel", "median over pictures"),
    ]
    figures: list[list[float | None]] = []
    below = []
    places = {vae["speed"]["device"] for vae in vaes if vae.get("speed", {}).get("device")}
    for vae in vaes:
        memory, speed = vae.get("memory", {}), vae.get("speed", {})
        sizes = [memory.get(key) for key in ("weights_bytes", "planned_peak_bytes")]
        seconds = [speed.get(f"{way}_seconds_per_megapixel") for way in ("encode", "decode")]
        figures.append([vae["parameters"], *(None if size is None else size / 1e6 for size in sizes), *seconds])
        good = sum("error" not in row for row in vae["rows"])
        said = [f"speed of {speed['n']:,} of {good:,} pictures"] if speed.get("n", good) < good else []
        said += [f"on {speed['device']}"] if len(places) > 1 and "device" in speed else []
        below.append(" ".join(said))
    most = [max((v for v in column if v is not None), default=0.0) for column in zip(*figures, strict=True)]
    rows = []
    for i, vae in enumerate(vaes):
        cells = [vae_name(i, vae, below[i])]
        for k, (value, largest) in enumerate(zip(figures[i], most, strict=True)):
            text = "\u2013" if value is None else count(value) if k == 0 else number(value, _decimals(value))
            bar = "" if value is None else svg.share(value, largest)
            cells.append(element("td", text, bar, data_value="" if value is None else value))
        rows.append(cells)
    return section(
        "cost",
        "Speed and memory",
        table(columns, rows, sortable=len(vaes) > 1),
        intro=_where(places, {vae["memory"]["device"] for vae in vaes if vae.get("memory", {}).get("device")}),
    )


def _where(speeds: set[str], plans: set[str]) -> str:
    """Where the speeds were measured, and where the memory was planned if that is another place."""
    if not speeds:
        return ""
    if len(speeds) > 1:
        said = "The VAEs were measured on several devices, so their speeds can't be compared."
    else:
        said = f"Speed was measured on {', '.join(speeds)}."
    return said if plans <= speeds else f"{said} Memory is planned for {', '.join(sorted(plans - speeds))}."
