"""What the commands that measure share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from calotype.cli.bars import shown
from calotype.cli.common import complain

MOST_SAID = 20  # failures, one by one


@contextmanager
def bar(doing: str) -> Iterator[Callable[[float, float], None]]:
    """A progress bar, where there is a terminal to show it; it takes how much is done, and of how much."""
    with shown(doing) as move:
        yield lambda done, total: move(done / total if total else 0.0, None)


def complain_of(failures: Mapping[str, Sequence[str]], whole: str) -> None:
    """Says failures of each VAE, or ("") of none, and where there are many how many more, and what lists them."""
    each = max(1, MOST_SAID // len(failures))
    for label, messages in failures.items():
        for message in messages[:each]:
            complain(message)
        if (more := len(messages) - each) > 0:
            of = f"{label}: " if label else ""
            complain(f"{of}{more:,} more picture{'' if more == 1 else 's'} failed; {whole}")
