"""The command `calotype`: its subcommands, and how errors reach people."""

from __future__ import annotations

import os
import sys
import warnings
from inspect import cleandoc
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from calotype import __version__
from calotype.cli import (
    blend,
    convert,
    decode,
    direction,
    doctor,
    draw,
    encode,
    evaluate,
    inspect,
    morph,
    plan,
    probe,
    reconstruct,
    redraw,
    train,
    transfer,
    vary,
)
from calotype.cli.common import complain
from calotype.errors import CalotypeError, CalotypeWarning, UsageError


class Commands(TyperGroup):
    """Says that it was stopped; typer alone exits without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            complain("Stopped.")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    help="The latent images of Stable Diffusion-style models: encode, decode, measure and train their autoencoders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(to: typer.Typer, name: str, command: Any, example: str) -> None:
    paragraphs = cleandoc(command.__doc__ or "").split("\n\n")
    text = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
    to.command(name, help=text, epilog=example)(command)


for module in (
    reconstruct, encode, decode, draw, redraw, evaluate, probe, inspect, plan, convert, train, morph, vary, blend,
    transfer, doctor,
):  # fmt: skip
    _add(app, module.NAME, module.command, module.EXAMPLE)

directions = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
_add(directions, "learn", direction.learn, direction.LEARN_EXAMPLE)
_add(directions, "apply", direction.apply, direction.APPLY_EXAMPLE)
app.add_typer(directions, name=direction.NAME, help=direction.HELP, epilog=direction.APPLY_EXAMPLE)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"calotype {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line: errors raised on purpose become one line; exit codes are 2 for usage, 1 for failure."""
    # torch reads it when it first allocates: LPIPS of VGG is a third faster in large pages (Linux)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    show = warnings.showwarning

    def showwarning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, CalotypeWarning):
            complain(str(message))
        else:
            show(message, category, *rest, **more)

    warnings.showwarning = showwarning
    try:
        app(prog_name="calotype")
    except CalotypeError as error:
        complain(str(error))
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except OSError as error:  # a full disk, a folder that may not be read: the system's words are clear enough
        complain(f"{error.filename}: {error.strerror}." if error.filename and error.strerror else f"{error}.")
        sys.exit(1)
    except KeyboardInterrupt:  # before a command began
        sys.exit(130)


if __name__ == "__main__":
    main()
