"""The local engine: one process takes units one after another, beside any number of others that do the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Protocol

from calotype.cache.attempt import Attempt
from calotype.cache.guard import claim
from calotype.cache.receipts import Receipt, receipt_of
from calotype.cache.store import Store, receipt_name
from calotype.cache.units import Cut, Unit
from calotype.cache.worker import Step, Worker
from calotype.texts import TextError

PAUSE = 0.5  # seconds between looks at units that other processes have claimed


class Watch(Protocol):
    """What engines tell of their work."""

    def step(self, step: Step) -> None:
        """Of each picture of a unit that is made here."""

    def lost(self, steps: Sequence[Step]) -> None:
        """Of such steps that don't count, since the unit was not finished."""

    def finished(self, receipt: Receipt, own: bool) -> None:
        """Of each unit that is there then, and whether it was made here; may raise."""

    def pausing(self, units: int) -> None:
        """While only units of other runs are left, of which there are so many; may raise."""

    def crew(self, workers: int) -> None:
        """How many processes there are that make units, where these are several."""

    def stop(self) -> bool:
        """Whether to stop."""


def work(
    worker: Worker,
    cuts: Sequence[Cut],
    unit_of: Callable[[Cut], Unit],
    *,
    tell: Callable[[Step], None],
    finished: Callable[[Receipt, bool], None],
    pausing: Callable[[int], None],
) -> None:
    """Makes all units that are not there, each by one process at a time, and waits for those that others make.

    A unit whose process has died is taken over.

    Args:
        unit_of: gives a unit's samples.
        tell: called after each picture; what it raises ends the work, and the unit in hand is not begun.
        finished: called with each unit's receipt, and whether it is this process that made it.
        pausing: called while only units of other processes are left, with how many; may raise too.

    Raises:
        StorageError, MemoryLimitError: as `Worker.run`.
    """
    left = list(cuts)
    with _Committing(worker, finished) as committing:
        while left:
            others = []
            for cut in left:
                held = claim(worker.store, cut.id)
                if held is None:
                    others.append(cut)
                elif (found := there(worker.store, worker.job.fingerprint, cut.id)) is not None:
                    held.__exit__(None, None, None)
                    finished(found, False)
                else:
                    committing.add(lambda cut=cut: worker.make(unit_of(cut), tell), held)  # type: ignore[misc]
            if others and len(others) == len(left):
                committing.wait()
                pausing(len(others))
                time.sleep(PAUSE)
            left = others


class _Committing:
    """Commits a unit while the next one is made: one at a time."""

    def __init__(self, worker: Worker, finished: Callable[[Receipt, bool], None]) -> None:
        self._worker, self._finished = worker, finished
        self._pool = ThreadPoolExecutor(1)
        self._before: Future[Receipt] | None = None

    def __enter__(self) -> _Committing:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def add(self, make: Callable[[], Attempt], held: AbstractContextManager[None]) -> None:
        """Makes a unit that was claimed, and has it committed once that before it is."""
        try:
            attempt = make()
        except BaseException:
            held.__exit__(None, None, None)
            raise
        try:
            self.wait()
        except BaseException:
            attempt.drop()
            held.__exit__(None, None, None)
            raise
        self._before = self._pool.submit(self._commit, attempt, held)

    def wait(self) -> None:
        """Until all is committed."""
        before, self._before = self._before, None
        if before is not None:
            self._finished(before.result(), True)

    def _commit(self, attempt: Attempt, held: AbstractContextManager[None]) -> Receipt:
        try:
            return self._worker.commit(attempt)
        finally:
            held.__exit__(None, None, None)


def there(store: Store, fingerprint: str, unit: str) -> Receipt | None:
    """The receipt of a unit that is there."""
    try:
        receipt = receipt_of(store.read(receipt_name(unit)))
    except (OSError, TextError):
        return None
    return receipt if receipt.fingerprint == fingerprint and receipt.is_there(store) else None
