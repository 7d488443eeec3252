"""How far a command is: a bar on a terminal, and whoever listens beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Told = Callable[[float, str], None]

listener: ContextVar[Told | None] = ContextVar("listener", default=None)
"""Takes the part that is done, from 0 to 1, and what is being done; of what runs in a page (see `cli.standing`)."""


@contextmanager
def shown(doing: str, *, quiet: bool = False, percent: bool = True) -> Iterator[Callable[[float, str | None], None]]:
    """A progress bar, where there is a terminal to show it; moved by the part that is done, and other words for it.

    Args:
        quiet: only who listens is told.
        percent: of what is done stands beside the bar.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    listens = listener.get()
    columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]
    if not percent:
        del columns[2]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(doing, total=1.0)

        def move(part: float, words: str | None = None) -> None:
            bar.update(task, completed=part, description=words or doing)
            if listens is not None:
                listens(part, words or doing)

        yield move
