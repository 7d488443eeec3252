"""Every command that writes, stopped and killed at any moment: nothing is half-written, lost or left behind."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from killkit import COMMANDS, SPILLED, Command, Forker, Ran, content, left, material, place, require_whole, written
from support import kl

from calotype.engine.run import Engine, winograd_available

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are forked and killed")

STOPS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
MOMENTS = 10
MINUTES = 2.5  # after which no more is tried than every command once in every way


@dataclass
class Whole:
    """A run that nothing disturbed."""

    seconds: float
    files: dict[str, Any]


class Bench:
    """Runs commands in folders of their own, and knows what each leaves when nothing disturbs it."""

    def __init__(self, folder: Path, whole: dict[str, Whole] | None = None) -> None:
        self.folder = folder
        self.whole = {} if whole is None else whole
        self.forker = Forker()
        (folder / "material").mkdir(parents=True)
        self.inputs = material(folder / "material", self.forker)

    def undisturbed(self, command: Command) -> Whole:
        if command.name not in self.whole:
            here = place(self.folder / command.name / "whole", self.inputs)
            ran = self.forker.run(command.words, here)
            assert ran.code == 0, ran.said
            assert left(here) == []
            for path in written(here).values():
                require_whole(path)
            self.whole[command.name] = Whole(ran.seconds, contents(command, here))
        return self.whole[command.name]

    def kill(self, command: Command, number: signal.Signals, part: float) -> Ran:
        """Kills it when this part of its time has passed, looks at what there is, and runs it to its end."""
        whole = self.undisturbed(command)
        name = f"{number.name}-{part:.4f}-{time.monotonic_ns()}"
        here = place(self.folder / command.name / name, self.inputs)
        ran = self.forker.run(command.words, here, (part * whole.seconds, number))
        assert "Traceback" not in ran.said, ran.said
        for path in written(here).values():
            require_whole(path, cut=number == signal.SIGKILL)
        if number in STOPS:
            assert ran.code in (0, STOPS[number]), ran.said
            assert left(here) == []
            if ran.code:
                assert ran.said.splitlines()[-1].startswith("calotype: Stopped")
        going_on = command.checkpoint and any((here / "o").glob(command.checkpoint))
        if not (going_on and ran.code == 0):
            again = self.forker.run((*command.words, *(["--resume"] if going_on else [])), here)
            assert again.code == 0, again.said
        assert left(here) == []
        assert contents(command, here) == whole.files
        return ran


def contents(command: Command, here: Path) -> dict[str, Any]:
    """Of all files that must be the same; what varies is there at least."""
    names = {name: path for name, path in written(here).items() if not command.same or path.name in command.same}
    return {name: None if path.name in command.varies else content(path) for name, path in names.items()}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("kills"))
    with closing(made.forker):
        yield made


@pytest.mark.skipif(bool(winograd_available()), reason="no CPU kernels here")
def test_the_spilled_decode_is_one() -> None:
    engine = Engine(kl(), torch.device("cpu"), torch.float32, "winograd")
    assert engine.plan("decode", 128, 128, SPILLED.split()[1]).spill > 2**20


@pytest.mark.parametrize("number", [signal.SIGKILL, *STOPS], ids=lambda number: number.name)
@pytest.mark.parametrize("name", ["vary", "morph-webp", "train"])
def test_killed_in_the_middle(name: str, number: signal.Signals, bench: Bench) -> None:
    command = next(one for one in COMMANDS if one.name == name)
    seed = f"{name} {number.name}"
    bench.kill(command, number, random.Random(seed).uniform(0.2, 0.9))


@pytest.mark.slow
def test_every_command_at_ten_moments(tmp_path: Path) -> None:
    """Two processes do what they can in a few minutes: every command once in every way, then once more, and so on."""
    rng = random.Random(16)
    signals = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
    ways = [(one, number, rng.sample(range(MOMENTS), MOMENTS)) for one in COMMANDS for number in signals]
    waiting = []
    for turn in range(MOMENTS):
        rng.shuffle(ways)
        waiting += [(one, number, (moments[turn] + rng.random()) / MOMENTS) for one, number, moments in ways]
    lock, done, stopped = threading.Lock(), Counter[str](), Counter[str]()
    whole = dict[str, Whole]()
    benches = [Bench(tmp_path / str(i), whole) for i in range(2)]
    end = time.monotonic() + 60 * MINUTES

    def work(bench: Bench) -> None:
        while True:
            with lock:
                late = time.monotonic() > end and len(waiting) <= (MOMENTS - 1) * len(ways)
                if not waiting or late:
                    return
                command, number, part = waiting.pop(0)
            ran = bench.kill(command, number, part)
            with lock:
                done[f"{command.name} {number.name}"] += 1
                stopped[number.name] += ran.code != 0

    with closing(benches[0].forker), closing(benches[1].forker), ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(work, bench) for bench in benches]:
            future.result()
    print(
        f"{sum(done.values())} kills, {sum(stopped.values())} before the end: {dict(stopped)}; {len(waiting)} not tried"
    )
    assert len(done) == len(ways)
    assert sum(stopped.values()) >= sum(done.values()) / 2, "most were killed too late, so this shows little"
