"""What a cluster's node runs: one process with the VAE, that makes units and says how far it is.

It is a class of its own, which knows nothing of Ray: `make` and `look` may be called from several threads.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Literal

import torch

from calotype import __version__
from calotype.cache.attempt import Attempt
from calotype.cache.guard import claim, running
from calotype.cache.job import Job
from calotype.cache.local import there
from calotype.cache.reader import job_in
from calotype.cache.receipts import Receipt
from calotype.cache.scan import pictures
from calotype.cache.store import SHARDS, Store
from calotype.cache.units import Unit
from calotype.cache.worker import FINISH, Step, Worker, versions
from calotype.engine.memory import PLENTY, keep_freed
from calotype.errors import CalotypeError, StorageError, UsageError
from calotype.temporaries import sweep
from calotype.vae import pick_device
from calotype.vae.sending import Packed, unpacked
from calotype.vae.trials import require_right

_VISIBLE = 3.0  # seconds in which a file system shows on one machine what another one wrote
_PAUSE = 0.2


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all actors of a run must know, and what they must see.

    Attributes:
        job: of the cache.
        data, out: as they are called here; absolute where they are paths.
        folder: that other names are relative to.
        mark: a file of the cache that is there as long as the run is.
        count, names: pictures of the source, and sha256 of their names.
        host: the machine that hands out the units.
        device: of the VAE; None: what there is.
        memory: see `Worker`.
        threads: of torch.
        version: of calotype.
    """

    job: Job
    data: str
    out: str
    folder: str
    mark: str
    count: int
    names: str
    host: str
    device: str | None
    memory: int | str | None
    threads: int
    version: str = __version__


@dataclass(frozen=True)
class Told:
    """How far an actor is.

    Attributes:
        steps: of the units that it has in hand, by id: what became of each picture so far.
        free: whether it could make one more: all that it has in hand is being written to its place.
    """

    steps: dict[str, list[Step]]
    free: bool


@dataclass(frozen=True)
class Done:
    """What became of a unit that an actor was given.

    Attributes:
        how: it was "made"; it was "there" already; another process has "claimed" it; the actor was "stopped" before it
            was done; or it was only "tried".
        receipt: of the first two.
    """

    how: Literal["made", "there", "claimed", "stopped", "tried"]
    receipt: Receipt | None = None


@dataclass
class _Hand:
    """A unit in hand."""

    steps: list[Step] = field(default_factory=list)
    encoded: bool = False


class _Stopped(Exception):
    pass


class Actor:
    """Makes units of one cache. Errors of the project's own are given back as values, not raised."""

    def __init__(self) -> None:
        self._making, self._stop = Lock(), False
        self._hands: dict[str, _Hand] = {}
        self._held: AbstractContextManager[str] | None = None

    def begin(self, setup: Setup, sent: Packed) -> CalotypeError | str:
        """Looks whether all is there that units need, and loads the VAE; gives the machine's name.

        What may be wrong: another version, OUT or DATA that is not what it is where the run began, another VAE, no such
        device, a repair that is under way.
        """
        try:
            self._begin(setup, sent)
        except CalotypeError as error:
            return _named(error)
        return platform.node()

    def make(self, unit: Unit, tried: bool = False) -> CalotypeError | Done:
        """Makes a unit that nobody else makes, and that is not there.

        While it is written to its place the next one may be made.

        Args:
            tried: only to see whether it can be made; nothing is left of it.
        """
        hand = self._hands[unit.id] = _Hand()
        try:
            return self._make(unit, tried, hand)
        except CalotypeError as error:
            return error
        except _Stopped:
            return Done("stopped")
        finally:
            del self._hands[unit.id]

    def look(self, stop: bool) -> Told:
        """How far it is.

        Args:
            stop: units in hand are to be finished if that takes a few seconds only, and others left.
        """
        self._stop = self._stop or stop
        hands = dict(self._hands)
        steps = {unit: list(hand.steps) for unit, hand in hands.items()}
        return Told(steps, bool(hands) and all(hand.encoded for hand in hands.values()))

    def end(self) -> None:
        """Leaves the cache."""
        held, self._held = self._held, None
        if held is not None:
            held.__exit__(None, None, None)

    def _begin(self, setup: Setup, sent: Packed) -> None:
        if setup.version != __version__:
            raise UsageError(
                f"it has calotype {__version__}, and {setup.host} has {setup.version}; install the same on all nodes."
            )
        with suppress(OSError):
            os.chdir(setup.folder)
        torch.set_num_threads(setup.threads)
        if setup.memory is None:
            keep_freed(PLENTY)
        store = Store(setup.out)
        _require_shared(store, setup)
        source, _ = pictures(setup.data, store.path("."))
        _require_same(source.names, setup)
        device = pick_device(setup.device)
        vae = unpacked(sent, device)
        if vae.sha256 != setup.job.vae.sha256:
            raise UsageError(
                f"the VAE that it got is {vae.name} ({vae.sha256[:12]}...), and the cache is made by "
                f"{setup.job.vae.name} ({setup.job.vae.sha256[:12]}...); give that one."
            )
        require_right(device, vae.loaded, {"encode": vae.encode_dtype, "decode": vae.dtype})
        held = running(store)
        held.__enter__()
        self._held = held
        for folder in store.path(SHARDS).glob("*"):
            sweep(folder)  # of one before it that was killed, whose units may lie in other folders than its own
        job = replace(setup.job, versions=versions())
        self._threads = setup.threads
        self._worker = Worker(job, vae, source, store, memory=setup.memory)

    def _make(self, unit: Unit, tried: bool, hand: _Hand) -> Done:
        worker = self._worker
        held = claim(worker.store, unit.id)
        if held is None:
            return Done("claimed")
        try:
            if (receipt := there(worker.store, worker.job.fingerprint, unit.id)) is not None:
                return Done("there", receipt)
            with self._making:
                attempt = self._attempt(unit, hand)
            hand.encoded = True
            if tried:
                attempt.drop()
                return Done("tried")
            return Done("made", worker.commit(attempt))
        finally:
            held.__exit__(None, None, None)

    def _attempt(self, unit: Unit, hand: _Hand) -> Attempt:
        began = time.monotonic()

        def tell(step: Step) -> None:
            hand.steps.append(step)
            if self._stop:
                each = (time.monotonic() - began) / len(hand.steps)
                if each * (len(unit.samples) - len(hand.steps)) > FINISH:
                    raise _Stopped

        if self._stop:
            raise _Stopped
        torch.set_num_threads(self._threads)  # each thread of this process has a number of its own
        return self._worker.make(unit, tell)


def setup_of(
    job: Job, data: str, store: Store, mark: str, names: Sequence[str], *, device: str | None, memory: int | str | None
) -> Setup:
    """What actors must know of a run of this process; see `Setup`."""
    return Setup(
        job=job,
        data=str(Path(data).absolute()) if Path(data).exists() else data,
        out=str(store.path(".").absolute()),
        folder=str(Path.cwd()),
        mark=mark,
        count=len(names),
        names=_digest(names),
        host=platform.node(),
        device=device,
        memory=memory,
        threads=torch.get_num_threads(),
    )


def _digest(names: Sequence[str]) -> str:
    """What tells the names of one source's pictures from another's."""
    found = hashlib.sha256()
    for name in names:
        found.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return found.hexdigest()


def _require_shared(store: Store, setup: Setup) -> None:
    """Checks that OUT is the one folder that the run writes.

    Raises:
        UsageError: it is another one here, or none.
    """
    until = time.monotonic() + _VISIBLE
    while not store.path(setup.mark).exists():
        if time.monotonic() > until:
            seen = "another folder" if store.root.is_dir() else "nothing"
            raise UsageError(
                f"{store} is {seen} there, and on {setup.host} the cache that is made; OUT must be one folder that all "
                "nodes share, such as one on NFS."
            )
        time.sleep(_PAUSE)
    if job_in(store).fingerprint != setup.job.fingerprint:
        raise StorageError(f"{store} has a cache of another job there than on {setup.host}; OUT must be one folder.")


def _require_same(names: Sequence[str], setup: Setup) -> None:
    """Checks that DATA is here what it is where the run began.

    Raises:
        UsageError: it is not.
    """
    if _digest(names) != setup.names:
        more = f"{len(names):,} pictures there, and {setup.count:,}"
        seen = more if len(names) != setup.count else "pictures of other names there than"
        raise UsageError(
            f"{setup.data} has {seen} on {setup.host}; DATA must be the same on all nodes, and stay so while it is "
            "read; the same command goes on."
        )


def _named(error: CalotypeError) -> CalotypeError:
    """The error, with the node that has it."""
    return type(error)(f"node {platform.node()}: {error}")
