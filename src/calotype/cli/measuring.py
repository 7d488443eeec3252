"""What the commands that measure share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from calotype.cli.common import complain

MOST_SAID = 20  # failures, one by one


@contextmanager
def bar(doing: str) -> Iterator[Callable[[float, float], None]]:
    """A progress bar, where there is a terminal to show it; it takes how much is done, and of how much."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(doing, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def complain_of(failures: Mapping[str, Sequence[str]], whole: str) -> None:
    """Says failures of each VAE, or ("") of none, and where there are many how many more, and what lists them."""
    each = max(1, MOST_SAID // len(failures))
    for label, messages in failures.items():
        for message in messages[:each]:
            complain(message)
        if (more := len(messages) - each) > 0:
            of = f"{label}: " if label else ""
            complain(f"{of}{more:,} more picture{'' if more == 1 else 's'} failed; {whole}")
