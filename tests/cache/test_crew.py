"""What hands units to a cluster's actors, with as much of Ray as that takes; and what actors look at first."""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cachekit import contents, fill
from support import one_sentence

from calotype.cache import Rules, crew, guard, hunt, make, units
from calotype.cache.actor import Actor, Setup, setup_of
from calotype.cache.make import job_of
from calotype.cache.receipts import Bad
from calotype.cache.store import Store
from calotype.cluster import room, wanted_gpus
from calotype.errors import CalotypeError, StorageError, UsageError
from calotype.vae import VAE
from calotype.vae.sending import packed, unpacked


class Died(Exception):
    """What this Ray says of an actor that has ended."""


class Killed(BaseException):
    """Ends an actor here, wherever it is."""


@dataclass(eq=False)
class Ref:
    """What became of a call, or what is to be called once there is room for the actor."""

    value: Any
    waits: bool = False


class Ray:
    """As much of Ray as a crew needs: one node; an actor's methods run when they are called, but the first, which waits
    for room.
    """

    def __init__(self, cpus: int = 2) -> None:
        self.cpus, self.began, self.gpus = cpus, 0, 0
        self.options: dict[str, int] = {}
        self.live: list[Any] = []
        self.exceptions = SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=Died)

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"Alive": True, "Resources": {"CPU": self.cpus, "GPU": self.gpus}, "NodeManagerHostname": platform.node()},
            {"Alive": False, "Resources": {"CPU": 99}, "NodeManagerHostname": "gone"},
        ]

    def remote(self, **options: int) -> Callable[[type[Actor]], Any]:
        self.options = options
        return lambda kind: SimpleNamespace(remote=lambda: self.actor(kind()))

    def actor(self, one: Actor) -> Any:
        def begin(*given: Any) -> Any:
            self.live.append(one)
            self.began += 1
            return one.begin(*given)

        def remote(name: str, *given: Any) -> Ref:
            try:
                return Ref(getattr(one, name)(*given))
            except Killed:
                self.live.remove(one)
                one.end()  # the system ends its locks
                return Ref(Died("The actor died.\nThe worker was killed."))

        made = {name: SimpleNamespace(remote=partial(remote, name)) for name in ("make", "look", "end")}
        made["begin"] = SimpleNamespace(remote=lambda *given: Ref(lambda: begin(*given), waits=True))
        return SimpleNamespace(one=one, **made)

    def put(self, value: Any) -> Any:
        return value

    def wait(self, refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        for ref in refs:
            if ref.waits and len(self.live) < self.cpus:
                ref.value, ref.waits = ref.value(), False
        return [ref for ref in refs if not ref.waits], [ref for ref in refs if ref.waits]

    def get(self, ref: Any) -> Any:
        if isinstance(ref.value, Died):
            raise ref.value
        return ref.value

    def kill(self, actor: Any) -> None:
        self.live = [one for one in self.live if one is not actor.one]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    one = Ray()
    monkeypatch.setattr(make, "the_ray", lambda: one)
    monkeypatch.setattr(crew, "_TICK", 0.0)
    monkeypatch.setattr(crew, "_HIRE", 0.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    # these actors are of this process, which has a run's lock already
    monkeypatch.setattr("calotype.cache.actor.running", lambda store: nullcontext(""))
    return one


def meeting(patch: pytest.MonkeyPatch, meets: Callable[[str], None]) -> None:
    """Has something happen when an actor is about to read a picture of a name."""

    class Meeting(Actor):
        def _attempt(self, unit: units.Unit, hand: Any) -> Any:
            bad = {one.name for one in unit.bad}
            for sample in unit.samples:
                if sample.name not in bad:
                    meets(sample.name)
            return super()._attempt(unit, hand)

    patch.setattr(crew, "Actor", Meeting)


def test_units_of_actors_are_those_of_one_process(data: Path, out: Path, tmp_path: Path, vae: VAE, ray: Ray) -> None:
    fill(data, tmp_path / "whole", vae)
    told: list[tuple[int, int | None]] = []
    outcome = fill(data, out, vae, engine="ray", tell=lambda now: told.append((now.done, now.workers)))
    assert (outcome.made, outcome.units, outcome.held) == (7, 3, 7)
    assert contents(out) == contents(tmp_path / "whole")
    assert told[-1][0] == 7 and max(workers or 0 for _, workers in told) == ray.began == 2


def test_a_dead_actors_unit_is_made_by_another(
    data: Path, out: Path, tmp_path: Path, vae: VAE, ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(data, tmp_path / "whole", vae)
    died: list[str] = []

    def dies(name: str) -> None:
        if name == "4.png" and len(died) < 2:
            died.append(name)
            raise Killed

    meeting(monkeypatch, dies)
    outcome = fill(data, out, vae, engine="ray")
    assert (outcome.made, outcome.bad, len(died)) == (7, [], 2)
    assert contents(out) == contents(tmp_path / "whole")
    assert ray.began == 3  # of the last units one is left


@pytest.mark.parametrize("poison", [{"0.png"}, {"3.png", "5.png"}])
def test_pictures_that_end_their_workers_are_bad(
    poison: set[str], data: Path, out: Path, tmp_path: Path, vae: VAE, ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(name: str) -> None:
        if name in poison:
            raise Killed

    fill(data, tmp_path / "whole", vae)
    meeting(monkeypatch, dies)
    told: list[tuple[int, int]] = []
    outcome = fill(data, out, vae, engine="ray", tell=lambda now: told.append((now.done, now.bad)))
    assert {one.name for one in outcome.bad} == poison
    assert {one.reason for one in outcome.bad} == {hunt.REASON}
    assert outcome.held == 7 - len(poison)
    assert told[-1] == (7, len(poison))
    names = [{path.stem for path in (place / "receipts").iterdir()} for place in (out, tmp_path / "whole")]
    assert names[0] == names[1]  # units are called as they were
    assert fill(data, out, vae).made == 0


def test_a_unit_that_ends_its_workers_for_no_pictures_sake(
    data: Path, out: Path, vae: VAE, ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(self: Actor, unit: units.Unit, hand: Any) -> Any:
        if len(unit.samples) == 3:
            raise Killed
        return ordinary(self, unit, hand)

    ordinary = Actor._attempt
    monkeypatch.setattr(Actor, "_attempt", dies)
    with pytest.raises(CalotypeError, match=r"^Unit [0-9a-f]{32} of 3 pictures, from ..png to ..png, ends each") as no:
        fill(data, out, vae, engine="ray")
    assert "and none of them does alone (The worker was killed); look at the memory" in str(no.value)
    assert not [name for name in contents(out) if ".lock" in name or ".calotype-" in name]


def test_errors_of_actors_come_as_they_are(
    data: Path, out: Path, tmp_path: Path, vae: VAE, ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: Store, name: str, content: bytes) -> None:
        if name.startswith("receipts"):
            raise StorageError("a can't be written: No space left on device; make room.")
        write(store, name, content)

    write = Store.write

    fill(data, tmp_path / "whole", vae)
    with monkeypatch.context() as patch, pytest.raises(StorageError, match=r"^a can't be written: No space left"):
        patch.setattr(Store, "write", refuse)
        fill(data, out, vae, engine="ray")
    assert not [name for name in contents(out) if ".lock" in name or ".calotype-" in name]
    fill(data, out, vae, engine="ray")
    assert contents(out) == contents(tmp_path / "whole")


def test_units_of_other_runs_are_waited_for(
    data: Path, out: Path, tmp_path: Path, vae: VAE, ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(data, tmp_path / "whole", vae)
    unit = min(path.stem for path in (tmp_path / "whole/receipts").iterdir())
    (out / "claims").mkdir(parents=True)
    monkeypatch.setattr(crew, "PAUSE", 0.05)
    held = guard.claim(Store(out), unit)
    assert held is not None
    waited: list[int] = []

    def tell(progress: Any) -> None:
        if progress.waiting:
            waited.append(progress.waiting)
            if len(waited) == 3:
                held.__exit__(None, None, None)

    assert fill(data, out, vae, engine="ray", tell=tell).made == 7
    assert set(waited) == {1}
    assert contents(out) == contents(tmp_path / "whole")


def test_a_run_that_is_stopped_leaves_whole_units(
    data: Path, out: Path, tmp_path: Path, vae: VAE, ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(data, tmp_path / "whole", vae)

    def tell(now: Any) -> None:
        if now.done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    ray.cpus = 1
    before = signal.signal(signal.SIGTERM, lambda *given: None)
    try:
        outcome = fill(data, out, vae, engine="ray", tell=tell)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert outcome.stopped and 3 <= outcome.made < 7
    assert not [name for name in contents(out) if ".lock" in name or ".calotype-" in name]
    fill(data, out, vae, engine="ray")
    assert contents(out) == contents(tmp_path / "whole")


def test_a_cluster_without_room(data: Path, out: Path, vae: VAE, ray: Ray) -> None:
    ray.cpus = 0
    with pytest.raises(UsageError, match="the cluster has no nodes; give another --device, or add some"):
        fill(data, out, vae, engine="ray")
    with pytest.raises(UsageError, match="the cluster has no nodes with a GPU"):
        fill(data, out, vae, engine="ray", device="cuda:1")


@pytest.fixture
def setup(data: Path, out: Path, vae: VAE) -> Iterator[Setup]:
    """Of a run that is under way."""
    store, job = Store(out), job_of(vae, Rules(size=(16, 16)))
    with guard.running(store) as mark:
        make._begun(store, job)
        yield setup_of(job, str(data), store, mark, [f"{i}.png" for i in range(7)], device="cpu", memory=None)


@pytest.mark.parametrize(
    ("device", "gpus", "cpus", "taken", "used"),
    [(None, 0, 2, 0, "cpu"), (None, 4, 1, 1, None), ("cuda:1", 4, 1, 1, "cuda"), ("cpu", 4, 2, 0, "cpu")],
)
def test_what_workers_take(
    device: str | None, gpus: int, cpus: int, taken: int, used: str | None, setup: Setup, ray: Ray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A GPU of their own is the first that they see, whatever its number is."""
    ray.gpus = gpus
    told: list[str | None] = []

    class Refusing(Actor):
        def begin(self, setup: Setup, sent: Any) -> CalotypeError | str:
            told.append(setup.device)
            return UsageError("enough")

    monkeypatch.setattr(crew, "Actor", Refusing)
    monkeypatch.setattr(crew, "packed", lambda vae: None)
    one = crew.Crew(ray, replace(setup, device=device, threads=2))
    with pytest.raises(UsageError, match="enough"):
        run: Any = SimpleNamespace(stop=lambda: False, crew=lambda workers: None)
        work: Any = one.work
        work(None, [None], lambda cut: None, run)
    assert (ray.options["num_cpus"], ray.options["num_gpus"]) == (cpus, taken)
    assert told == [used]


HERE = platform.node()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mark": "runs/.other.lock"}, r"out is another folder there, and on \S+ the cache that is made; OUT must be"),
        ({"out": "/nowhere/out"}, r"/nowhere/out is nothing there, and on \S+ the cache that is made; OUT must be one"),
        ({"count": 8, "names": "?"}, r"data has 7 pictures there, and 8 on \S+; DATA must be the same on all nodes"),
        ({"names": "?"}, r"data has pictures of other names there than on \S+; DATA must be the same on all nodes"),
        ({"data": "/nowhere/data"}, "/nowhere/data: there is no such folder, zip, tar or dataset"),
        ({"version": "0.1"}, r"it has calotype \S+, and \S+ has 0.1; install the same on all nodes"),
        ({"device": "nothing"}, "There is no device 'nothing' here"),
    ],
)
def test_actors_look_before_they_begin(
    change: dict[str, Any], message: str, setup: Setup, vae: VAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calotype.cache.actor._VISIBLE", 0.3)
    refused = Actor().begin(replace(setup, **change), packed(vae))
    assert isinstance(refused, UsageError)
    with pytest.raises(UsageError, match=rf"^node {HERE}: .*{message}"):
        raise refused
    one_sentence(str(refused))


def test_an_actor_takes_no_other_vae(setup: Setup, vae: VAE, other: VAE) -> None:
    refused = Actor().begin(setup, packed(other))
    assert isinstance(refused, UsageError)
    assert f"the VAE that it got is small.safetensors ({other.sha256[:12]}...), and the cache is made by" in str(
        refused
    )
    sent = packed(vae)
    (name, (kind, shape, values)), *_ = sent.values.items()
    spoilt = replace(sent, values={**sent.values, name: (kind, shape, values ^ 1)})
    refused = Actor().begin(setup, spoilt)
    assert isinstance(refused, CalotypeError)
    assert f"and {sent.check[:12]}... were sent; look at the machine's memory and network" in str(refused)


def test_a_vae_that_was_sent_computes_the_same(vae: VAE) -> None:
    pixels = torch.rand(1, 3, 32, 24) * 2 - 1
    there = unpacked(packed(vae), torch.device("cpu"))
    assert torch.equal(there.encode(pixels).mode(), vae.encode(pixels).mode())
    assert (there.sha256, there.name, there.dtype) == (vae.sha256, vae.name, vae.dtype)


def test_workers_that_nodes_have_room_for() -> None:
    assert room([{"CPU": 8.0}, {"CPU": 3.0, "GPU": 2.0}, {}], 2, 0) == 5
    assert room([{"CPU": 8.0}, {"CPU": 3.0, "GPU": 2.0}, {}], 1, 1) == 2
    assert room([{"CPU": 1.0}], 2, 0) == 0
    assert wanted_gpus("mps", [{"GPU": 1.0}]) == 0


def test_known_bad_pictures_are_not_read(data: Path, out: Path, vae: VAE) -> None:
    from calotype.cache.worker import Worker
    from calotype.sources import open_source

    job, store = job_of(vae, Rules(size=(16, 16))), Store(out)
    samples = tuple(units.Sample(i, bytes([i]) * 32, f"{i}.png", (40, 32), (40, 32)) for i in range(2))
    known = Bad("1.png", samples[1].key.hex(), hunt.REASON)
    receipt = Worker(job, vae, open_source(data), store).run(units.Unit("0" * 32, (16, 16), samples, (known,)))
    assert receipt.bad[1] == known
    assert "it changed while the cache was made" in receipt.bad[0].reason
