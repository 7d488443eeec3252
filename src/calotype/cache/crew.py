"""The engine of a Ray cluster: units are handed to actors, and those whose actor dies to others.

Only units and receipts travel, and the VAE once to each node. An actor claims a unit as a process on its own does
(`guard`), so runs of any kind may fill one cache at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from calotype.cache.actor import Actor, Done, Setup, Told
from calotype.cache.guard import sweep as sweep_locks
from calotype.cache.hunt import Patient
from calotype.cache.local import PAUSE, Watch
from calotype.cache.store import RECEIPTS, SAMPLES, SHARDS, Store
from calotype.cache.units import Cut, Unit
from calotype.cache.worker import FINISH, Step
from calotype.cluster import hosts, nodes, require_room, room, scales, wanted_gpus
from calotype.errors import CalotypeError
from calotype.temporaries import sweep
from calotype.vae import VAE
from calotype.vae.sending import packed

_TICK = 0.1  # seconds between looks at what actors have done
_LOOK = 0.5  # at how far they are
_HIRE = 2.0  # at what the cluster has room for
_PATIENCE = 900.0  # seconds that a cluster which grows may take for its first node with room
_ENDING = 30.0  # seconds more than `FINISH` that actors have for ending
_STARTS = 3  # actors that end before they began, one after another


@dataclass
class _Task:
    """A unit that is not there yet.

    Attributes:
        steps: what was told of it.
        after: when it may be given, of time.monotonic: others have it now.
    """

    patient: Patient
    steps: list[Step] = field(default_factory=list)
    after: float = 0.0


@dataclass
class _Hand:
    """An actor, the node that it is on once it has begun, and its units, by references to what becomes of them."""

    actor: Any
    began: Any
    node: str | None = None
    look: Any = None
    looked: float = 0.0
    told: Told = field(default_factory=lambda: Told({}, False))
    tasks: dict[Any, _Task] = field(default_factory=dict)

    @property
    def begun(self) -> bool:
        """Whether it can be given units."""
        return self.node is not None


class Crew:
    """Actors on a cluster that was joined.

    There are as many as the nodes have room for, and never more than units; some more are asked for, which come when
    nodes do.

    Args:
        ray: the package.
        setup: what they are told. Its device is that of the run: None for GPUs where the cluster has some.

    Raises:
        UsageError: no node has room for an actor.
    """

    def __init__(self, ray: Any, setup: Setup) -> None:
        there = nodes(ray)
        self._ray, self._gpus = ray, wanted_gpus(setup.device, there)
        self._cpus = 1 if self._gpus else setup.threads  # the VAE is on the GPU, and reading takes little
        device = setup.device or (None if self._gpus else "cpu")
        self._setup = replace(setup, device="cuda" if self._gpus and device else device)
        self._store = Store(setup.out)
        self._actor = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0, max_concurrency=3)(Actor)
        self._hands: list[_Hand] = []
        self._again: deque[_Task] = deque()
        self._sent: Any = None
        self._hired, self._failed, self._until = 0.0, 0, time.monotonic() + _PATIENCE
        self._room()

    def work(self, vae: VAE, cuts: Sequence[Cut], unit_of: Callable[[Cut], Unit], run: Watch) -> bool:
        """Makes all units that are not there, and waits for those that others make.

        Gives whether it was stopped before. No actor is left, nor anything that one of this machine has left behind.

        Args:
            unit_of: gives a unit's samples.
            run: is told of all.

        Raises:
            CalotypeError: what an actor met; nodes that lack what they need; a unit that ends all its actors.
        """
        if not cuts:
            return False
        self._run = run
        gone = self._ray.exceptions.RayError
        try:
            self._sent = self._ray.put(packed(vae))
            return self._work(deque(cuts), unit_of)
        except gone as error:
            raise CalotypeError(
                f"--engine ray: the cluster is gone ({_reason(error)}); start it again, and the same command goes on."
            ) from None
        finally:
            with suppress(gone):
                self._end()
            sweep_locks(self._store)
            for folder in (*self._store.path(SHARDS).glob("*"), self._store.path(SAMPLES), self._store.path(RECEIPTS)):
                sweep(folder, again=True)

    def _work(self, left: deque[Cut], unit_of: Callable[[Cut], Unit]) -> bool:
        while left or self._again or any(hand.tasks for hand in self._hands):
            if self._run.stop():
                return True
            self._hire(len(left))
            self._give(left, unit_of)
            self._wait()
            others = [task for task in self._again if task.after > time.monotonic()]
            if not left and others and not any(hand.tasks for hand in self._hands):
                self._run.pausing(len(others))
        return False

    def _hire(self, left: int) -> None:
        """Sees that there are as many actors as can be used; those that can't are let go."""
        if (now := time.monotonic()) < self._hired + _HIRE:
            return
        self._hired = now
        at_work = [hand for hand in self._hands if hand.tasks]
        wanted = min(len(at_work) + left + len(self._again), (there := self._room()) + max(1, len(at_work)))
        for hand in [hand for hand in self._hands if not hand.tasks][max(0, wanted - len(at_work)) :]:
            self._dismiss([hand])
        if there or self._scaling:
            for _ in range(wanted - len(self._hands)):
                actor = self._actor.remote()
                self._hands.append(_Hand(actor, actor.begin.remote(self._setup, self._sent)))
        self._run.crew(sum(hand.begun for hand in self._hands))

    def _room(self) -> int:
        """How many actors the nodes have room for.

        Raises:
            UsageError: none, and nothing will change that.
        """
        now, there = time.monotonic(), nodes(self._ray)
        if count := room(there, self._cpus, self._gpus):
            self._until = now + _PATIENCE
        elif not self._scaling or now > self._until:
            require_room(there, self._cpus, self._gpus)
        return count

    @cached_property
    def _scaling(self) -> bool:
        return scales(self._ray)

    def _give(self, left: deque[Cut], unit_of: Callable[[Cut], Unit]) -> None:
        """Gives units to actors: to those with nothing first, then to those whose unit is being written."""
        now = time.monotonic()
        for hand in sorted(self._hands, key=lambda hand: len(hand.tasks)):
            if not hand.begun or (hand.tasks and not hand.told.free) or len(hand.tasks) > 1:
                continue
            alone = any(task.patient.suspicious for task in hand.tasks.values())
            task = next((task for task in self._again if task.after <= now), None)
            if alone or (task and task.patient.suspicious and hand.tasks):  # or it would not be known of which it died
                continue
            if task is not None:
                self._again.remove(task)
            elif left:
                task = _Task(Patient(unit_of(left.popleft())))
            else:
                continue
            hand.tasks[hand.actor.make.remote(task.patient.next, task.patient.tried)] = task
            hand.told = Told({}, False)

    def _wait(self, stop: bool = False) -> None:
        """Takes in what actors have done, which may take a moment."""
        now = time.monotonic()
        for hand in self._hands:
            if hand.tasks and hand.look is None and (now > hand.looked + _LOOK or stop):
                hand.look, hand.looked = hand.actor.look.remote(stop), now
        refs: dict[Any, _Hand] = {}
        for hand in self._hands:
            refs |= dict.fromkeys([*hand.tasks, *([] if hand.begun else [hand.began])], hand)
            refs |= {hand.look: hand} if hand.look is not None else {}
        if not refs:
            time.sleep(_TICK)
            return
        ready, _ = self._ray.wait(list(refs), num_returns=len(refs), timeout=_TICK)
        for ref in ready:
            if (hand := refs[ref]) in self._hands:  # not of one that was found to have ended
                self._take(hand, ref)

    def _take(self, hand: _Hand, ref: Any) -> None:
        errors = self._ray.exceptions
        try:
            result = self._ray.get(ref)
        except errors.RayTaskError as error:
            if not hand.begun:
                self._lose(hand, error)
                return
            hand.tasks.pop(ref, None)
            raise error.cause from None
        except errors.RayError as error:
            self._lose(hand, error)
            return
        if isinstance(result, CalotypeError):
            hand.tasks.pop(ref, None)
            raise result
        if ref is hand.look:
            hand.look, hand.told = None, result
            for task in hand.tasks.values():
                self._tell(task, result.steps.get(task.patient.unit.id, []))
        elif ref in hand.tasks:
            self._settle(hand.tasks.pop(ref), result)
        else:
            hand.node, self._failed = result, 0

    def _tell(self, task: _Task, steps: Sequence[Step]) -> None:
        """Passes on what became of pictures, but for those that were told of before, and trials."""
        if not task.patient.tried:
            for step in steps[len(task.steps) :]:
                task.steps.append(step)
                self._run.step(step)

    def _settle(self, task: _Task, done: Done) -> None:
        if done.receipt is None:
            self._forget(task)
            if done.how == "tried":
                task.patient.survived()
            task.after = time.monotonic() + PAUSE * (done.how == "claimed")
            self._again.append(task)
        elif done.how == "made":
            bad = sum(step.bad is not None for step in task.steps)
            more = [Step(one) for one in done.receipt.bad[bad:]]
            more += [Step(None)] * (done.receipt.count + bad - len(task.steps))
            self._tell(task, [*task.steps, *more])
            self._run.finished(done.receipt, True)
        else:
            self._forget(task)
            self._run.finished(done.receipt, False)

    def _lose(self, hand: _Hand, error: Exception) -> None:
        """An actor has ended: what it had others will do.

        Raises:
            CalotypeError: they should not.
        """
        self._hands.remove(hand)
        with suppress(Exception):  # where it is only out of reach, it must not come back
            self._ray.kill(hand.actor)
        self._hired = 0.0
        why = _reason(error)
        if not hand.begun:
            self._failed += 1
            if self._failed >= _STARTS:
                raise CalotypeError(
                    f"--engine ray: workers end before they have begun ({why}); calotype must be installed on all "
                    "nodes, in the same version, and they need memory for the VAE."
                )
        for task in hand.tasks.values():
            self._forget(task)
            self._again.appendleft(task)
        if hand.node in hosts(self._ray):  # or it ended with its node
            for task in hand.tasks.values():
                task.patient.died(why)

    def _forget(self, task: _Task) -> None:
        self._run.lost(task.steps)
        task.steps = []

    def _end(self) -> None:
        """Has actors finish what they have in hand if that takes a moment, or leave it; and lets them go."""
        until = time.monotonic() + FINISH + _ENDING
        busy = [hand for hand in self._hands if hand.tasks]
        self._dismiss([hand for hand in self._hands if not hand.tasks])
        while busy and time.monotonic() < until:
            with suppress(CalotypeError):  # there is another one to tell of, or the run was stopped
                self._wait(stop=True)
            busy = [hand for hand in self._hands if hand.tasks]
        self._dismiss(self._hands)

    def _dismiss(self, hands: Sequence[_Hand]) -> None:
        going = list(hands)
        ends = [hand.actor.end.remote() for hand in going if hand.begun]
        if ends:
            self._ray.wait(ends, num_returns=len(ends), timeout=_TICK * 100)
        for hand in going:
            self._hands.remove(hand)
            self._ray.kill(hand.actor)


def _reason(error: Exception) -> str:
    """Why an actor ended, in half a sentence: Ray tells it in many, of which the first of the last line says most."""
    if "low on memory" in str(error):
        return "its node had no memory left"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(". ")[0].rstrip(".") if lines else type(error).__name__
