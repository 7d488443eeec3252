"""`calotype probe`: what a VAE's latent space does, as a page."""

from __future__ import annotations

import json as json_module
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calotype.cli.common import PICTURES, DeviceOption, JsonOption, complain, require_folder, show
from calotype.cli.measuring import bar, complain_of
from calotype.errors import UsageError

if TYPE_CHECKING:
    from calotype.evaluate.probe import Probe

NAME = "probe"
EXAMPLE = "Example: [bold]calotype probe sdxl-vae photos/ --report probe/[/]"


class Lpips(str, Enum):
    """Networks of LPIPS."""

    vgg = "vgg"
    alex = "alex"
    none = "none"


def command(
    vae: Annotated[str, typer.Argument(help="Weights: builtin, a preset's name, or a file or folder in any layout.")],
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help=PICTURES, show_default="drawn cards"),
    ] = None,
    report: Annotated[
        Path, typer.Option("--report", "-o", help="Folder for index.html, probe.json and factors.json.")
    ] = Path("probe"),
    labels: Annotated[
        Path | None,
        typer.Option(
            help='Labels: a .json like {"a.png": "cat"}, or a .jsonl with a line {"file": "a.png", "label": "cat"} '
            "each; it may lie in DATA.",
            show_default="labels.jsonl or labels.json in DATA, or a folder for each label",
        ),
    ] = None,
    lpips: Annotated[Lpips, typer.Option(help="LPIPS's network, or none.")] = Lpips.vgg,
    every: Annotated[int, typer.Option(min=1, help="Only every n-th picture, from the first on.")] = 1,
    limit: Annotated[int, typer.Option(min=0, help="At most so many pictures.", show_default="all")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of draws, noise and splits.")] = 0,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Measure what a VAE's latent space does.

    Scale and shift, KL and active units, uncertainty, noise, interpolation, equivariance, grids, colour, previews, the
    prior, round trips, and with labels what can be read from latents: each with a number, a sentence on how to read it
    and a figure in REPORT/index.html, which works from disk. REPORT/factors.json makes previews of latents, for
    --factors of `calotype decode --preview` and --preview-by of `calotype draw`.
    """
    from calotype.engine.memory import PLENTY, keep_freed
    from calotype.evaluate.examine import examine

    require_folder(report, "--report")
    if not vae.strip():
        raise UsageError(f"VAE {vae!r} names nothing; give builtin, a preset, a file or a folder.")
    keep_freed(PLENTY)
    with bar("Probing") as told:
        found = examine(
            vae, data, report, labels=labels, perceptual=None if lpips is Lpips.none else lpips.value, every=every,
            limit=limit, seed=seed, device=device, progress=lambda part: told(part, 1.0),
        )  # fmt: skip
    if json:
        print(json_module.dumps(found.to_dict()))
    else:
        _say(found)
        print(report / "factors.json")
        print(report / "index.html")
    if found.unread:
        complain_of({"": found.unread}, f"{report / 'probe.json'} lists all.")
        complain(f"{len(found.unread)} of {len(found.unread) + len(found.pictures)} pictures can't be read.")
        raise typer.Exit(1)


def _say(found: Probe) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("finding", "what it says", show_lines=True)
    for finding in found.findings:
        table.add_row(Text(finding.title), Text(finding.sentence))
    show(table)
    for note in found.notes:
        print(note)
    for key, reason in found.left_out.items():
        print(f"{key} was left out: {reason}.")
