"""`calotype evaluate`: how well VAEs keep pictures, by one protocol, as a page."""

from __future__ import annotations

import json as json_module
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.apart import require_apart
from calotype.cli.common import DataArgument, DeviceOption, JsonOption, MemoryOption, require_folder, show, stop
from calotype.cli.measuring import bar, complain_of
from calotype.errors import UsageError

if TYPE_CHECKING:
    from rich.text import Text

NAME = "evaluate"
EXAMPLE = "Example: [bold]calotype evaluate photos/ --vae builtin --vae sdxl-vae --report report/[/]"


class Engine(str, Enum):
    """Where pictures are measured."""

    local = "local"
    ray = "ray"


def command(
    context: typer.Context,
    data: DataArgument,
    report: Annotated[Path, typer.Option("--report", "-o", help="Folder for results.json, results.csv, index.html.")],
    vae: Annotated[
        list[str] | None,
        typer.Option("--vae", help="Weights: a preset, a file or a folder; repeatable.", show_default="built-in"),
    ] = None,
    decoder: Annotated[
        list[str] | None,
        typer.Option(
            "--decoder",
            help="Decode the latents of the one --vae with this too, beside its own decoder: likewise; repeatable.",
            show_default="none",
        ),
    ] = None,
    any_vae: Annotated[
        bool, typer.Option("--any-vae", help="With --decoder: also of another latent space, or where none is known.")
    ] = False,
    protocol: Annotated[str, typer.Option(help="whole, crop256, or that of a known table; see --protocols.")] = "whole",
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, of psnr, ssim, ms_ssim, lpips_vgg, lpips_alex; of VAEs of RGBA, colour_psnr, "
            "alpha_psnr, alpha_mae, alpha_max; and bias_red, bias_green, bias_blue, contrast, gradient.",
            show_default="all; the last five with --decoder only",
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="Also rFID and KID over inception, dinov2, efficientnet-lite0 (comma-separated); dinov2=FOLDER and "
            "inception=FILE name their weights."
        ),
    ] = None,
    distances: Annotated[
        str,
        typer.Option(help="Of those over features: frechet (rFID) and kernel (KID), which needs few pictures."),
    ] = "frechet,kernel",
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

    With --decoder, the latents of one VAE go through several decoders of their space (`calotype spaces` lists them).
    """
    from dataclasses import replace

    from calotype.engine.memory import PLENTY, keep_freed
    from calotype.evaluate.protocol import preset
    from calotype.evaluate.session import REPORT, evaluate, plain, shard as part_of
    from calotype.evaluate.setup import Setup, read_boxes

    require_folder(report, "--report")
    if shard is not None:
        part_of(shard)
    if any_vae and not decoder:
        raise UsageError("--any-vae is of decoders; give --decoder too, or leave it out.")
    chosen = preset(protocol)
    source = context.get_parameter_source("seed")
    if chosen.latent == "mode" and source is not None and source.name != "DEFAULT":
        raise UsageError(
            f"--seed {seed}: the protocol {protocol} decodes the mode and draws nothing; leave --seed out, or give a "
            f"protocol that draws a sample."
        )
    setup = Setup(
        vaes=tuple(vae or ["builtin"]), decoders=tuple(decoder or ()), any_vae=any_vae,
        protocol=replace(chosen, seed=seed),
        metrics=None if metrics is None else _listed("--metrics", metrics),
        features=() if features is None else _listed("--features", features),
        distances=_listed("--distances", distances),
        boxes=read_boxes(boxes) if boxes else {}, device=device, memory=memory,
    )  # fmt: skip
    require_apart([report / name for name in REPORT], filter(None, (boxes,)), "--report")
    if memory is None:
        keep_freed(PLENTY)
    try:
        with bar("Measuring") as told:
            found = evaluate(
                data, setup, report, every=every, limit=limit, part=shard or "", engine=engine.value, progress=told
            )
    except KeyboardInterrupt:
        stop("Stopped; the same command goes on where it was.")
    if json:
        print(json_module.dumps(plain(found), allow_nan=False))
    elif shard:
        counts = ", ".join(f"{one['label']} {one['rows']:,}" for one in found["vaes"])
        print(f"Part {shard} is measured: {_pictures(found['pictures'])} ({counts}) in {found['file']}.")
        print(found["next"])
    else:
        _table(found)
        print(report / "index.html")
    if failures := _failures(found):
        complain_of(failures, "--json lists all." if shard else f"{report / 'results.csv'} lists all.")
        raise typer.Exit(1)


def _failures(found: dict[str, Any]) -> dict[str, list[str]]:
    """What failed: by VAE, and under "" pictures that can't be read, once each."""
    if "shard" in found:
        told = [(one["vae"] or "", one["picture"], one["error"]) for one in found["failures"]]
    else:
        told = []
        for one in found["vaes"]:
            for row in one["rows"]:
                if "error" in row:
                    picture = found["pictures"][row["picture"]]
                    told.append((one["label"] if picture["sha256"] else "", picture["name"], row["error"]))
    failures: dict[str, dict[str, None]] = {}
    for label, name, error in told:
        failures.setdefault(label, {})[f"{label}: {name}: {error}" if label else error] = None
    return {label: list(said) for label, said in failures.items()}


def _pictures(count: int) -> str:
    return f"{count:,} picture{'' if count == 1 else 's'}"


def _listed(option: str, text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise UsageError(f"{option} {text!r} has an empty name in it; give names with a comma between each two.")
    return names


def _list() -> None:
    from rich.table import Table

    from calotype.evaluate.protocol import PRESETS

    table = Table("protocol", "what is particular about it")
    for one in PRESETS.values():
        table.add_row(one.name, one.note)
    show(table)
    raise typer.Exit


def _table(found: dict[str, Any]) -> None:
    """Means with 95% intervals and what they are over, which is best of each, subsets alone, and the protocol."""
    from rich.table import Table

    from calotype.evaluate.alpha import APART, SAID
    from calotype.evaluate.report.standing import STANDINGS, standings, unmarked
    from calotype.evaluate.tone import SAID as TONE_SAID, TONE

    vaes, first = found["vaes"], "decoder" if "encoder" in found else "VAE"
    marks = {m["key"]: standings(found, m["key"], m["better"] == "higher", m.get("ideal")) for m in found["metrics"]}
    distances = sorted({key for one in vaes for key in one["distances"]})
    subsets = list(dict.fromkeys(name for one in vaes for name in one["subsets"]))
    for nearest in (False, True):  # what comes back with more of or less has a table of its own
        metrics = [m for m in found["metrics"] if (m["better"] == "nearest") == nearest]
        of = [] if nearest else distances
        if not metrics and not of:
            continue
        titles = [" ".join(filter(None, (m["title"], m["unit"]))) for m in metrics]
        table = Table(first, *titles, *of, show_lines=True)
        for i, one in enumerate(vaes):
            cells = [_mean(m, one["means"].get(m["key"]), one["rows"], marks[m["key"]][i]) for m in metrics]
            table.add_row(one["label"], *cells, *(_distance(one["distances"].get(key)) for key in of))
        show(table)
        if subsets:
            table = Table("subset", first, *titles, show_lines=True)
            for name in subsets:
                for one in vaes:
                    parts = [part for row in one["rows"] for part in row.get("subsets", {}).get(name, ())]
                    means = one["subsets"].get(name, {})
                    table.add_row(name, one["label"], *(_mean(m, means.get(m["key"]), parts, "") for m in metrics))
            show(table)
    for name, meaning in STANDINGS.items():
        if any(name in of for of in marks.values()):
            print(f"{name}: {meaning}")
    if why := unmarked(found):
        print(why)
    print(
        f"{_pictures(len(found['pictures']))}; {found['protocol']['text']}; engine {found['engine']}; "
        f"95% intervals by bootstrap over pictures"
    )
    for keys, said in ((APART, SAID), (TONE, TONE_SAID)):
        if any(metric["key"] in keys for metric in found["metrics"]):
            print(said)
    for name, one in found["extractors"].items():
        print(f"{name}: {one['weights']}; {one['resize']}")


def _mean(metric: dict[str, Any], mean: dict[str, Any] | None, rows: list[dict[str, Any]], standing: str) -> Text:
    """A mean, its interval, how many pictures or parts it is of, and why others are not among them."""
    from rich.text import Text

    from calotype.evaluate.report.absent import reasons

    why = [text for text in reasons(rows, metric).split(", ") if text]
    if mean is None:
        return Text("\n".join(["-", *why]))
    digits = 2 if metric["unit"] else 4
    first, low, high = (f"{mean[key]:.{digits}f}" for key in ("mean", "low", "high"))
    text = Text(f"{first} {standing}".strip(), style="bold" if standing == "best" else "")
    interval = [f"[{low}, {high}]"] if mean["n"] > 1 else []
    return Text("\n").join([text, Text("\n".join([*interval, f"n = {mean['n']:,}", *why]))])


def _distance(found: dict[str, Any] | None) -> str:
    if not found:
        return "-"
    return f"-\n{found['why']}" if found["value"] is None else f"{found['value']:.4g}\nn = {found['n']:,}"
