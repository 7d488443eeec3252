"""`calotype cache make --engine ray` on a cluster of two nodes that `ray start` made, as on two machines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cachekit import contents, picture

pytestmark = pytest.mark.slow
COUNT = 150
SHAPES = ((64, 64), (80, 48), (48, 80), (96, 40), (40, 96))  # each of a bucket, and so of a unit, of its own
AGAIN = "calotype: Stopped; the same command goes on, and what is in {} is kept.\n"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    pytest.importorskip("ray")
    place = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    found = Path(place, "ray_current_cluster")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = [str(Path(__file__).with_name("two_nodes.sh")), place]
    nodes = subprocess.Popen(script, env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"})
    try:
        until = time.monotonic() + 120
        joined = Path(place, "other.log")
        while not (joined.is_file() and "Ray runtime started" in joined.read_text()):
            assert nodes.poll() is None and time.monotonic() < until
            time.sleep(0.2)
        yield found.read_text()
    finally:
        nodes.terminate()
        nodes.wait()
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def words(address: str, root: Path, weights: Path) -> Callable[..., list[str]]:
    """A command that makes a cache of pictures of several shapes."""
    for i in range(COUNT):
        picture(root / f"data/{i:03d}.png", *SHAPES[i % len(SHAPES)], seed=i)

    def command(out: Path, *more: str) -> list[str]:
        given = (root / "data", out, "--vae", weights, "--buckets", "64/16", *more)
        return [sys.executable, "-m", "calotype", "cache", "make", *map(str, given)]

    return command


@pytest.fixture(scope="module")
def environment(address: str) -> dict[str, str]:
    return {**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def whole(words: Callable[..., list[str]], environment: dict[str, str], root: Path) -> Path:
    """What one process makes of them."""
    subprocess.run(words(root / "whole"), check=True, env=environment, capture_output=True)
    return root / "whole"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_and_gone_on_with(
    number: signal.Signals, words: Callable[..., list[str]], environment: dict[str, str], whole: Path, out: Path,
    interruptible: None,
) -> None:  # fmt: skip
    """By the terminal, which tells all processes that it has started, and by a batch system."""
    ray = ("--engine", "ray")
    with subprocess.Popen(
        words(out, *ray), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as run:  # fmt: skip
        while not list(out.glob("shards/*/*")):
            assert run.poll() is None
            time.sleep(0.05)
        os.killpg(run.pid, number) if number is signal.SIGINT else run.terminate()
        told = run.communicate()
    assert (run.returncode, *told) == (128 + number, "", AGAIN.format(out))
    left = contents(out)
    assert not [name for name in left if ".lock" in name or ".calotype-" in name]
    assert sum(name.startswith("receipts/") for name in left) < len(SHAPES)
    ended = subprocess.run(words(out, *ray), env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"{out}: {COUNT:,} of {COUNT:,} pictures are there" in ended.stdout
    assert contents(out) == contents(whole)


def test_a_worker_that_is_killed(
    words: Callable[..., list[str]], environment: dict[str, str], whole: Path, out: Path
) -> None:
    """From outside. Ray's own words on it would stand in the JSON."""
    with subprocess.Popen(
        words(out, "--engine", "ray", "--json"), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as run:  # fmt: skip
        while not (workers := [pid for pid in _runs(out) if pid != run.pid]):
            assert run.poll() is None
            time.sleep(0.02)
        os.kill(workers[0], signal.SIGKILL)
        told, errors = run.communicate()
    assert (run.returncode, errors) == (0, "")
    assert json.loads(told)["made"] == COUNT
    assert contents(out) == contents(whole)


def _runs(out: Path) -> list[int]:
    """Processes that fill a cache now."""
    return [int(path.name.split("-")[1]) for path in out.glob("runs/.*.lock")]


def test_runs_of_all_kinds_at_once(
    words: Callable[..., list[str]], environment: dict[str, str], whole: Path, out: Path
) -> None:
    """Two on the cluster and one without it: nothing is made twice."""
    kinds = (("--engine", "ray"), ("--engine", "ray"), ())
    runs = [
        subprocess.Popen(
            words(out, *kind, "--json"), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for kind in kinds
    ]
    told = [run.communicate() for run in runs]
    assert [(run.returncode, err) for run, (_, err) in zip(runs, told, strict=True)] == [(0, "")] * 3
    assert sum(json.loads(text)["made"] for text, _ in told) == COUNT
    assert contents(out) == contents(whole)
