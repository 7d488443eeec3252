"""`calotype train`: a recipe to weights."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calotype import stopping
from calotype.cli.common import DeviceOption, complain, require_folder, stop

if TYPE_CHECKING:
    from calotype.families.face import NetworkConfig

NAME = "train"
EXAMPLE = "Example: [bold]calotype train builtin --data data/ --out runs/builtin --set batch=4[/]"


class Strategy(str, Enum):
    """How several processes share the work."""

    auto = "auto"
    ddp = "ddp"
    fsdp = "fsdp"


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a TOML file.")],
    data: Annotated[
        str,
        typer.Option(
            help="Folder (or archive) that the recipe's sources or captions are in, here or at an address "
            "(s3://bucket/folder); of a drawing model also a cache of latents."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: checkpoints, logs, panels, weights.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one value of the recipe, as in batch=4, network.z_channels=8, sources.0.repeat=2; repeatable. "
            "start=PATH begins from any VAE's weights and trains their decoder.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check data and memory, train a few steps, say what the run will take.")
    ] = False,
    device: DeviceOption = None,
    strategy: Annotated[Strategy, typer.Option(help="Of several processes (torchrun): ddp or fsdp.")] = Strategy.auto,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode pictures.")] = 2,
    tensorboard: Annotated[bool, typer.Option(help="Also write OUT/tensorboard.")] = True,
    wandb: Annotated[str | None, typer.Option(metavar="PROJECT", help="Also log to Weights & Biases.")] = None,
) -> None:
    """Train an autoencoder, or a model that draws, as a recipe says.

    Ctrl-C, SIGTERM or SIGHUP writes a checkpoint and stops; --resume goes on as if nothing had happened. At the end,
    OUT/weights.safetensors holds the averaged weights with recipe, seed, quality and latent statistics, OUT/diffusers
    the same as diffusers loads it, and OUT/README.md a card. Runs unchanged under torchrun.

    A recipe with a table denoiser trains a model for `calotype draw`, on one device: `draw` goes on from the one that
    ships with pictures of one's own, `emoji` made that one. DATA has a text beside each picture or a captions.jsonl, or
    is a cache of latents (`calotype cache make`). OUT has the weights at every checkpoint.
    """
    from calotype.draw.recipe import is_drawing_recipe
    from calotype.errors import UsageError
    from calotype.train.recipe import load_recipe

    require_folder(out)
    if is_drawing_recipe(recipe):
        if strategy is not Strategy.auto or wandb is not None:
            raise UsageError("A drawing model is trained on one device; leave out --strategy and --wandb.")
        if dry_run:
            _look_ahead(recipe, settings or [], data, device)
        else:
            _train_drawing(recipe, settings or [], data, out, resume, device)
        return
    loaded = load_recipe(recipe, settings or (), _network_of)
    try:
        from calotype.train.run import Options, train
    except ImportError as error:
        raise UsageError(f"Training needs the package {error.name}; pip install 'calotype[train]'.") from None
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)

    def report(line: dict[str, float]) -> None:
        parts = [f"step {int(line['step'])}", *(f"{k} {v:.4g}" for k, v in line.items() if k != "step")]
        console.print("  ".join(parts), highlight=False, soft_wrap=True)

    options = Options(
        resume=resume, dry_run=dry_run, device=device, strategy=strategy.value, workers=workers,
        tensorboard=tensorboard, wandb=wandb,
    )  # fmt: skip
    weights = train(
        loaded,
        data,
        out,
        options,
        report=report,
        notice=complain,
        track=lambda items, doing, total: track(
            items, doing, total, console=console, transient=True, disable=not console.is_terminal
        ),
    )
    first = os.environ.get("RANK", "0") == "0"  # of several processes one speaks
    if weights is not None:
        if first:
            print(weights)
    elif not dry_run:
        if first:
            stop(f"Stopped; the same command with --resume goes on from the newest checkpoint in {out}.")
        raise typer.Exit(stopping.exit_code())


def _network_of(weights: str) -> NetworkConfig:
    from calotype.train.start import network_of

    return network_of(weights)


def _look_ahead(name: str, settings: list[str], data: str, device: str | None) -> None:
    from calotype.draw.ahead import look_ahead
    from calotype.draw.recipe import load_drawing_recipe
    from calotype.train.outlook import duration
    from calotype.vae import load

    recipe = load_drawing_recipe(name, settings)
    found = look_ahead(recipe, data, load(recipe.vae, device=device))
    complain(
        f"Nothing was written. {found.pictures:,} pictures, and {found.held_out:,} held out; encoding them takes about "
        f"{duration(found.encoding)}, a step of words {found.word_step:.2f} s and one of pictures {found.step:.2f} s, "
        f"and all {recipe.word_steps:,} and {recipe.steps:,} of them about {duration(found.seconds)}."
    )


def _train_drawing(name: str, settings: list[str], data: str, out: Path, resume: bool, device: str | None) -> None:
    from rich.console import Console
    from rich.progress import track

    from calotype.draw.recipe import load_drawing_recipe
    from calotype.draw.training import train_drawing
    from calotype.vae import load

    recipe = load_drawing_recipe(name, settings)
    console = Console(stderr=True)
    weights = train_drawing(
        recipe, data, out, load(recipe.vae, device=device), resume=resume,
        report=lambda line: console.print(
            f"{'words' if line['part'] == 1 else 'pictures'}  step {int(line['step'])} of "
            f"{recipe.word_steps if line['part'] == 1 else recipe.steps}  loss {line['loss']:.4f}"
            f"  {line['pictures_per_second']:.1f} pictures/s",
            highlight=False,
        ),
        track=lambda items: track(
            items, "Encoding pictures", console=console, transient=True, disable=not console.is_terminal
        ),
    )  # fmt: skip
    if weights is None:
        stop(f"Stopped; the same command with --resume goes on from the checkpoint in {out}.")
    print(weights)
