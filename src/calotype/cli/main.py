"""The command `calotype`: its subcommands, and how errors reach people."""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from calotype import __version__, stopping
from calotype.cli import (
    blend,
    cache,
    cache_trade,
    channels,
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
    spaces,
    studio,
    train,
    transfer,
    vary,
)
from calotype.cli.common import complain, stop
from calotype.errors import CalotypeError, CalotypeWarning, UsageError


@contextmanager
def _told_when_stopped() -> Iterator[None]:
    try:
        yield
    except typer.Exit:
        raise
    except (KeyboardInterrupt, Exception) as error:
        # an interrupt that went through a library's code may come out as another error
        if not isinstance(error, KeyboardInterrupt) and not stopping.interrupted():
            raise
        traceback.clear_frames(error.__traceback__)  # progress bars in generators end before the last line, not after
        stop()


class Commands(TyperGroup):
    """Says that it was stopped; typer alone exits without a word, and with another number."""

    def make_context(self, *words: Any, **more: Any) -> Any:
        with _told_when_stopped():
            return super().make_context(*words, **more)

    def invoke(self, ctx: Any) -> Any:
        with _told_when_stopped():
            return super().invoke(ctx)


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
    reconstruct, encode, decode, draw, redraw, evaluate, probe, inspect, spaces, plan, convert, train, morph, vary,
    blend, transfer, channels, studio, doctor,
):  # fmt: skip
    _add(app, module.NAME, module.command, module.EXAMPLE)

directions = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
_add(directions, "learn", direction.learn, direction.LEARN_EXAMPLE)
_add(directions, "apply", direction.apply, direction.APPLY_EXAMPLE)
app.add_typer(directions, name=direction.NAME, help=direction.HELP, epilog=direction.APPLY_EXAMPLE)

caching = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
for named, of_cache, shown in (
    ("make", cache.make, cache.MAKE_EXAMPLE),
    ("status", cache.status, cache.STATUS_EXAMPLE),
    ("verify", cache.verify, cache.VERIFY_EXAMPLE),
    ("stats", cache.stats, cache.STATS_EXAMPLE),
    ("report", cache.report, cache.REPORT_EXAMPLE),
    ("repair", cache.repair, cache.REPAIR_EXAMPLE),
    ("gc", cache.gc, cache.GC_EXAMPLE),
    ("export", cache_trade.export, cache_trade.EXPORT_EXAMPLE),
    ("import", cache_trade.take, cache_trade.IMPORT_EXAMPLE),
):
    _add(caching, named, of_cache, shown)
app.add_typer(caching, name=cache.NAME, help=cache.HELP, epilog=cache.MAKE_EXAMPLE)


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


def _open_streams() -> None:
    """What an encoding lacks is printed as an escape sequence, and a stream that the shell closed takes everything.

    A closed stream's number would else be given to the next file that is opened, and what libraries print would be
    written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115, it stays
        elif isinstance(stream, io.TextIOWrapper):
            with stopping.held():  # interrupted, it leaves a stream that takes nothing any more
                stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Nothing more is printed: nobody reads it, and Python would say so once more while it shuts down."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # none of the system's
            os.dup2(nowhere, stream.fileno())


def main() -> None:
    """Runs the command line: errors raised on purpose become one line; exit codes are 2 for usage, 1 for failure.

    A pipe whose reader is gone (``calotype inspect | head -1``) ends it with 1 and without a word.
    """
    _open_streams()
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
        try:
            with stopping.stoppable():
                app(prog_name="calotype")
        finally:
            sys.stdout.flush()  # while it can still be told that it was refused
    except CalotypeError as error:
        complain(str(error))
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be read: the system's words are clear enough
        with suppress(OSError):  # standard error may be what is full
            where = f"{error.filename}: " if error.filename else ""
            complain(f"{where}{error.strerror or error}.")
        _drop_output()
        sys.exit(1)
    except KeyboardInterrupt:  # before a command began
        complain("Stopped.")
        sys.exit(stopping.exit_code())


if __name__ == "__main__":
    main()
