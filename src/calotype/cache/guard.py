"""Who writes a cache: any number of runs at once, each unit by one of them; and alone who repairs or clears up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from calotype.cache.store import CLAIMS, RUNS, Store, receipt_name
from calotype.errors import UsageError
from calotype.files import make_folder
from calotype.locks import lock
from calotype.processes import this

_PAUSE = 0.2  # seconds
_PATIENCE = 5.0  # seconds, in which those who only look at a lock have let it go


@contextmanager
def running(store: Store) -> Iterator[str]:
    """For the time of a run, of which there may be several; gives the name of a file that is there as long.

    Raises:
        UsageError: someone repairs or clears up the cache.
        StorageError: the folder can't be written to.
    """
    for folder in (RUNS, CLAIMS):
        make_folder(store.path(folder))
    me = this()
    name = f"{RUNS}/.{me.host}-{me.pid}-{me.start}.lock"
    with lock(store.path(name), "a run", "stop it"):
        with waiting(_alone(store), _PATIENCE):
            pass
        sweep(store)
        yield name


@contextmanager
def alone(store: Store, doing: str) -> Iterator[None]:
    """For the time in which nobody else may write.

    Args:
        doing: what is done, as in "clearing up".

    Raises:
        UsageError: a run is under way, or someone else does such a thing.
        StorageError: the folder can't be written to.
    """
    with lock(_alone(store), doing, "try again later"):
        for run in locks(store, RUNS):
            with lock(run, "a run of calotype cache make", "stop it"):
                pass
        yield


@contextmanager
def waiting(path: Path, patience: float = float("inf"), tell: Callable[[], None] = lambda: None) -> Iterator[None]:
    """A lock that others hold for a short time only.

    Args:
        patience: seconds to wait at most.
        tell: called while it waits; what it raises ends that.

    Raises:
        UsageError: it is still held then.
    """
    until = time.monotonic() + patience
    while True:
        held = lock(path, "this", "try again later")
        try:
            held.__enter__()
        except UsageError:
            if time.monotonic() > until:
                raise
            tell()
            time.sleep(_PAUSE)
            continue
        break
    try:
        yield
    finally:
        held.__exit__(None, None, None)


def claim(store: Store, unit: str) -> AbstractContextManager[None] | None:
    """A unit, for one who will work on it; None where another does. It has been entered, and is to be left.

    Raises:
        StorageError: the folder can't be written to.
    """
    held = lock(store.path(f"{CLAIMS}/.{unit}.lock"), "a unit", "leave it to that process")
    try:
        held.__enter__()
    except UsageError:
        return None
    return held


def _alone(store: Store) -> Path:
    return store.path(".alone.lock")


def sweep(store: Store) -> None:
    """Removes locks that killed runs have left: they hold nobody up, but lie about."""
    for run in locks(store, RUNS):
        if run.exists():
            with suppress(UsageError), lock(run, "a run", "wait"):
                pass
    for one in locks(store, CLAIMS):
        unit = one.name.removeprefix(".").removesuffix(".lock")
        if store.size(receipt_name(unit)) is not None and (held := claim(store, unit)):
            held.__exit__(None, None, None)


def locks(store: Store, folder: str) -> list[Path]:
    """Files of locks in a folder, whether someone holds them or not."""
    return sorted(store.path(folder).glob(".*.lock"))
