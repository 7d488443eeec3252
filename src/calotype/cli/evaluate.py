"""`calotype evaluate`: how well VAEs keep pictures, by one protocol, as a page."""

from __future__ import annotations

import json as json_module
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from calotype.cli.common import DeviceOption, JsonOption, MemoryOption, complain, require_folder, show

NAME = "evaluate"
EXAMPLE = "Example: [bold]calotype evaluate photos/ --vae builtin --vae sdxl-vae --report report/[/]"


class Engine(str, Enum):
    """Where pictures are measured."""

    local = "local"
    ray = "ray"


def command(
    data: Annotated[Path, typer.Argument(help="Pictures: a folder, a .zip, .tar shards, or a dataset's folder.")],
    report: Annotated[Path, typer.Option("--report", "-o", help="Folder for results.json, results.csv, index.html.")],
    vae: Annotated[
        list[str] | None,
        typer.Option("--vae", help="Weights: a preset, a file or a folder; repeatable.", show_default="built-in"),
    ] = None,
    protocol: Annotated[str, typer.Option(help="whole, crop256, or that of a known table; see --protocols.")] = "whole",
    metrics: Annotated[
        str | None,
        typer.Option(help="Comma-separated, of psnr, ssim, ms_ssim, lpips_vgg, lpips_alex.", show_default="all"),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(help="Also rFID and KID over inception, dinov2, efficientnet-lite0 (comma-separated)."),
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option(help='JSON with parts to compare alone: {"faces": {"a.png": [[0, 0, 64, 64]]}}.')
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of latents, where the protocol draws a sample.")] = 0,
    every: Annotated[int, typer.Option(min=1, help="Only every n-th picture, from the first on.")] = 1,
    limit: Annotated[int, typer.Option(min=0, help="At most so many pictures.", show_default="all")] = 0,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Measure the i-th of n parts only; at the end run without it.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="This process, or a Ray cluster.")] = Engine.local,
    device: DeviceOption = None,
    memory: MemoryOption = None,
    protocols: Annotated[
        bool,
        typer.Option(
            "--protocols",
            is_eager=True,
            callback=lambda wanted: _list() if wanted else None,
            help="List the protocols, and what is particular about each.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Measure how well VAEs keep pictures.

    Every VAE gets the same pictures in the same way; the protocol stands in the table and in every file. A stopped
    evaluation goes on where it was, and VAEs or pictures may be added to one. REPORT/index.html works from disk.
    """
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import Progress

    from calotype.evaluate.measure import METRICS
    from calotype.evaluate.protocol import preset
    from calotype.evaluate.session import evaluate, plain
    from calotype.evaluate.setup import Setup, read_boxes

    require_folder(report, "--report")
    setup = Setup(
        vaes=tuple(vae or ["builtin"]), protocol=replace(preset(protocol), seed=seed),
        metrics=_listed(metrics) or tuple(METRICS), features=_listed(features),
        boxes=read_boxes(boxes) if boxes else {}, device=device, memory=memory,
    )  # fmt: skip
    try:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("Measuring", total=None)
            found = evaluate(
                data, setup, report, every=every, limit=limit, part=shard or "", engine=engine.value,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )  # fmt: skip
    except KeyboardInterrupt:
        complain("Stopped; the same command goes on where it was.")
        raise typer.Exit(130) from None
    if found is None:
        complain(f"Part {shard} is measured; when all parts are, the same command without --shard makes the report.")
        return
    if json:
        print(json_module.dumps(plain(found), allow_nan=False))
    else:
        _table(found)
        print(report / "index.html")
    if failures := _failures(found):
        for failure in failures:
            complain(failure)
        raise typer.Exit(1)


def _failures(found: dict[str, Any]) -> list[str]:
    """What failed: a picture that can't be read once, and else each VAE's own."""
    said: dict[str, None] = {}
    for one in found["vaes"]:
        for row in one["rows"]:
            if "error" in row:
                picture = found["pictures"][row["picture"]]
                said[f"{one['label']}: {picture['name']}: {row['error']}" if picture["sha256"] else row["error"]] = None
    return list(said)


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _list() -> None:
    from rich.table import Table

    from calotype.evaluate.protocol import PRESETS

    table = Table("protocol", "what is particular about it")
    for one in PRESETS.values():
        table.add_row(one.name, one.note)
    show(table)
    raise typer.Exit


def _table(found: dict[str, Any]) -> None:
    """Means with 95% intervals, the best of each in bold, and the protocol."""
    from rich.table import Table
    from rich.text import Text

    metrics = found["metrics"]
    distances = sorted({key for one in found["vaes"] for key in one["distances"]})
    table = Table("VAE", *(" ".join(filter(None, (m["title"], m["unit"]))) for m in metrics), *distances)
    best = {}
    for metric in metrics:
        means = [one["means"][metric["key"]]["mean"] for one in found["vaes"] if metric["key"] in one["means"]]
        best[metric["key"]] = (max if metric["better"] == "higher" else min)(means, default=None)
    for one in found["vaes"]:
        cells = []
        for metric in metrics:
            mean = one["means"].get(metric["key"])
            digits = 2 if metric["unit"] else 4
            cell = (
                ""
                if mean is None
                else f"{mean['mean']:.{digits}f} [{mean['low']:.{digits}f}, {mean['high']:.{digits}f}]"
            )
            bold = mean is not None and len(found["vaes"]) > 1 and mean["mean"] == best[metric["key"]]
            cells.append(Text(cell, style="bold" if bold else ""))
        cells += [Text(f"{one['distances'][key]['value']:.4g}" if key in one["distances"] else "") for key in distances]
        table.add_row(one["label"], *cells)
    show(table)
    print(f"{len(found['pictures'])} pictures; {found['protocol']['text']}; 95% intervals by bootstrap over pictures")
