"""`calotype train`: a recipe to weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calotype.cli.common import DeviceOption, complain, require_folder

NAME = "train"
EXAMPLE = "Example: [bold]calotype train recipes/builtin.toml --data data/ --out runs/builtin --set batch=4[/]"


def command(
    recipe: Annotated[Path, typer.Argument(help="A recipe in TOML.")],
    data: Annotated[Path, typer.Option(help="Folder that holds the recipe's sources.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoint, log and weights.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one value of the recipe, as in batch=4, network.z_channels=8, sources.0.repeat=2; repeatable.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    device: DeviceOption = None,
) -> None:
    """Train an autoencoder as a recipe says.

    Ctrl-C or SIGTERM writes a checkpoint and stops; --resume goes on as if nothing had happened. At the end,
    OUT/weights.safetensors holds the averaged weights with recipe, seed, quality and latent statistics.
    """
    from rich.console import Console
    from rich.progress import track

    from calotype.train.recipe import load_recipe
    from calotype.train.run import train
    from calotype.vae import pick_device

    require_folder(out)
    console = Console(stderr=True)

    def report(line: dict[str, float]) -> None:
        parts = [f"step {int(line['step'])}", *(f"{k} {v:.4g}" for k, v in line.items() if k != "step")]
        console.print("  ".join(parts), highlight=False)

    weights = train(
        load_recipe(recipe, settings or ()),
        data,
        out,
        resume=resume,
        device=pick_device(device),
        report=report,
        notice=complain,
        track=lambda items, doing: track(items, doing, console=console, transient=True),
    )
    if weights is None:
        complain(f"Stopped; the same command with --resume goes on from {out / 'checkpoint.pt'}.")
        raise typer.Exit(130)
    print(weights)
