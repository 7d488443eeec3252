"""`calotype inspect`: what a file is, of weights or of latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.cli import facts, latents
from calotype.cli.common import FormatOption, JsonOption, PrefixOption, WeightsOption, finish, show, size_of, table

if TYPE_CHECKING:
    from calotype.outline import Outline
    from calotype.steps import Direction

NAME = "inspect"
EXAMPLE = "Example: [bold]calotype inspect v1-5-pruned-emaonly.safetensors[/]"


def command(
    weights: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]",
            help="A preset's name, or a file or folder of weights in any layout, or a file with latents.",
            show_default="built-in",
        ),
    ] = None,
    prefix: PrefixOption = None,
    which: WeightsOption = None,
    latent_format: FormatOption = None,
    program: Annotated[bool, typer.Option("--program", help="List the steps of encode and decode instead.")] = False,
    size: Annotated[str, typer.Option(help="With --program: of the picture, WIDTHxHEIGHT in pixels.")] = "512x512",
    json: JsonOption = False,
) -> None:
    """Say what a file is. Of weights: layout, network, latent format, size, types, and whether they compute.

    Everything is told from the tensors. The checks encode and decode a small picture in each type. With --program,
    every step of the network with what it makes: shapes, operations of direct products, and bytes in float32; of
    presets this needs no weights.

    Of latents: which program wrote them, whether they are raw or scaled, their format, and what decodes them.
    """
    from calotype.families import PRESETS
    from calotype.outline import outline_of, outline_of_preset
    from calotype.pixels.channels import NAMES
    from calotype.vae import load
    from calotype.weights.presets import is_preset

    width, height = size_of(size)
    if program and weights is not None and is_preset(weights):
        _program(outline_of_preset(weights, device="cpu"), width, height, json)
        return
    if not program and (file := latents.in_file(weights, latent_format)) is not None:
        latents.inspect(file, json)
        return
    vae = load(
        weights, latent_format=latent_format, device="cpu", prefix=prefix, weights=which.value if which else None
    )
    if program:
        _program(outline_of(vae), width, height, json)
        return
    loaded = vae.loaded
    sides = {"encoder": "encoder", **vae.module.sides}
    encoder = sum(
        p.numel() for name, p in vae.module.named_parameters() if sides.get(name.partition(".")[0]) == "encoder"
    )
    total = sum(p.numel() for p in vae.module.parameters())
    document: dict[str, Any] = {
        "files": [str(path) for path in loaded.files],
        "container": loaded.container,
        "layout": loaded.layout,
        "prefix": loaded.prefix,
        "averaged": loaded.averaged,
        "other_weights": loaded.twin,
        "beside": loaded.beside,
        "notices": list(loaded.notices),
        "parts": sorted(loaded.parts),
        "network": type(vae.module).__name__,
        "configuration": vae.config.to_dict(),
        "factor": vae.factor,
        "enlarges": vae.enlarges,
        "latent_channels": vae.latent_channels,
        "latent_format": loaded.format.to_dict() if loaded.format else None,
        "latent_format_from": loaded.format_source,
        "parameters": {"total": total, "encoder": encoder, "decoder": total - encoder},
        "dtypes": list(loaded.dtypes),
        "sha256": loaded.sha256,
        "finite_in": vae.check_dtypes(),
        "licence": PRESETS[weights].licence if weights is not None and weights in PRESETS else None,
        "notes": list(loaded.notes),
        "training": loaded.training(),
    }

    def text() -> None:
        configuration = ", ".join(f"{k}={v}" for k, v in document["configuration"].items() if k != "kind")
        known = loaded.format
        unknown = f"unknown: {loaded.question or 'give --latent-format to encode'}"
        described = f"{known.name} ({loaded.format_source})" if known else unknown
        prefix = f", under {loaded.prefix!r}" if loaded.prefix else ""
        averaged = "averaged (ema)" if loaded.averaged else "raw" if loaded.twin is not None else ""
        if loaded.twin is not None:
            other = "raw" if loaded.averaged else "averaged (ema)"
            averaged += f"; the {other} ones stand under {loaded.twin!r}"
        p = vae.picture_channels
        pictures = "" if p == 3 else f", {NAMES[p]} pictures" if p in NAMES else f", pictures of {p} channels"
        larger = f", decoded {vae.enlarges} times as large along each side" if vae.enlarges != 1 else ""
        rows = [
            ("files", ", ".join(document["files"])),
            ("container", loaded.container),
            ("layout", f"{loaded.layout}{prefix}, {' and '.join(document['parts'])}"),
            *([("weights", averaged)] if averaged else []),
            *([("left out", loaded.beside)] if loaded.beside else []),
            (
                "network",
                f"{document['network']}, f{vae.factor}, {vae.latent_channels} latent channels{pictures}{larger}",
            ),
            ("configuration", configuration),
            ("latent format", described),
            ("parameters", f"{total:,} (encoder {encoder:,}, decoder {total - encoder:,})"),
            ("stored as", ", ".join(loaded.dtypes)),
            ("sha256", loaded.sha256),
            (
                "checks",
                ", ".join(f"{k}: {'finite' if v else 'NaN or infinity'}" for k, v in document["finite_in"].items()),
            ),
            *(("note", note) for note in document["notes"]),
            *([("licence", document["licence"])] if document["licence"] else []),
            *facts.rows(document["training"], "trained: "),
        ]
        table(rows)

    finish(document, as_json=json, text=text)


def _program(vae: Outline, width: int, height: int, json: bool) -> None:
    """Prints what is computed for a picture of this size, step by step."""
    programs = [vae.engine.program(direction) for direction in ("encode", "decode")]
    factor = max(one.factor for program in programs for one in (program.source, program.target))
    width, height = (-(-n // factor) * factor for n in (width, height))
    directions: dict[Direction, str] = {"encode": "encoder", "decode": "decoder"}
    document: dict[str, Any] = {"width": width, "height": height}
    for direction, part in directions.items():
        if part in vae.parts:
            document[direction] = [
                {
                    "makes": step.target.name,
                    "from": step.source.name,
                    "does": str(step),
                    "shape": [step.target.channels, *step.target.size(height, width)],
                    "flops": step.flops(height, width),
                    "bytes": 4 * step.target.values(height, width),
                }
                for step in vae.engine.program(direction).steps
            ]

    def text() -> None:
        from rich.table import Table

        for direction in directions:
            if direction not in document:
                continue
            steps = document[direction]
            grid = Table(box=None, padding=(0, 2, 0, 0), title=f"{direction}, {width}x{height}", title_justify="left")
            for name in ("makes", "does", "shape"):
                grid.add_column(name, overflow="fold")
            for name in ("GFLOP", "MB"):
                grid.add_column(name, justify="right")
            for step in steps:
                shape = "x".join(map(str, step["shape"]))
                grid.add_row(
                    step["makes"], step["does"], shape, f"{step['flops'] / 1e9:,.2f}", f"{step['bytes'] / 1e6:,.2f}"
                )
            grid.add_section()
            grid.add_row("in all", "", "", f"{sum(step['flops'] for step in steps) / 1e9:,.2f}", "")
            show(grid)

    finish(document, as_json=json, text=text)
