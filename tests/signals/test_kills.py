"""Every command that writes, stopped and killed at any moment: nothing is half-written, lost or left behind."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import torch
from killkit import COMMANDS, SPILLED, STOPS, Bench, Whole
from support import kl

from calotype.engine.run import Engine, winograd_available

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are forked and killed")

MOMENTS = 10
STOPPING = (signal.SIGINT, signal.SIGTERM)
# after which no more is tried than every command twice, once by SIGKILL; give more to look for longer
SECONDS = float(os.environ.get("CALOTYPE_TEST_SECONDS") or 30)
OF_A_CACHE = 100 if SECONDS >= 60 else 40


@pytest.mark.slow
@pytest.mark.skipif(bool(winograd_available()), reason="no CPU kernels here")
def test_the_spilled_decode_is_one() -> None:
    engine = Engine(kl(), torch.device("cpu"), torch.float32, "winograd")
    assert engine.plan("decode", 128, 128, SPILLED.split()[1]).spill > 2**20


@pytest.mark.parametrize("number", [signal.SIGKILL, *STOPS], ids=lambda number: number.name)
@pytest.mark.parametrize("name", ["vary", "morph-webp", "train", "cache", "export-beside"])
def test_killed_in_the_middle(name: str, number: signal.Signals, bench: Bench) -> None:
    command = next(one for one in COMMANDS if one.name == name)
    seed = f"{name} {number.name}"
    bench.kill(command, number, random.Random(seed).uniform(0.2, 0.9))


@pytest.mark.slow
def test_a_cache_killed_at_many_moments(bench: Bench) -> None:
    command, rng = next(one for one in COMMANDS if one.name == "cache"), random.Random(20)
    codes = Counter(bench.kill(command, signal.SIGKILL, rng.random()).code for _ in range(OF_A_CACHE))
    assert codes[-signal.SIGKILL] > OF_A_CACHE / 2, "most were killed too late, so this shows little"


@pytest.mark.slow
def test_every_command_at_ten_moments(tmp_path: Path) -> None:
    """Two processes do what they can in the time given.

    Every command by SIGKILL, and by SIGINT or SIGTERM, whose handler is the same; then by the other one; then all once
    more, and so on.
    """
    rng = random.Random(16)
    first = [(one, number) for i, one in enumerate(COMMANDS) for number in (signal.SIGKILL, STOPPING[i % 2])]
    others = [(one, STOPPING[1 - i % 2]) for i, one in enumerate(COMMANDS)]
    moments = {way: rng.sample(range(MOMENTS), MOMENTS) for way in first + others}
    waiting = []
    for turn in range(MOMENTS):
        for ways in (first, others):
            rng.shuffle(ways)
            waiting += [(*way, (moments[way][turn] + rng.random()) / MOMENTS) for way in ways]
    least = len(waiting) - len(first)
    lock, done, stopped = threading.Lock(), Counter[str](), Counter[str]()
    whole = dict[str, Whole]()
    benches = [Bench(tmp_path / str(i), whole) for i in range(2)]
    end = time.monotonic() + SECONDS

    def work(bench: Bench) -> None:
        while True:
            with lock:
                if not waiting or (time.monotonic() > end and len(waiting) <= least):
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
    assert len(done) >= len(first)
    assert sum(stopped.values()) >= sum(done.values()) / 2, "most were killed too late, so this shows little"
