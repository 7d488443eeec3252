"""Units at work: claims, commits, disks that refuse, memory, and caches of a million samples."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cachekit import contents, fill, picture, shards, units_of
from support import one_sentence, room

from calotype.cache import Rules, attempt, guard, local, open_cache, units, worker
from calotype.cache.make import Progress, job_of
from calotype.cache.manifest import write_manifest
from calotype.cache.reader import job_in
from calotype.cache.receipts import Bad, Receipt, Sums
from calotype.cache.store import Store, receipt_name, samples_name, shard_name
from calotype.cache.tables import SAMPLES, SCAN, parquet, table
from calotype.engine.executor import Executor, Source
from calotype.engine.run import Engine
from calotype.errors import RemoteError, StorageError, UsageError
from calotype.pixels import read_picture
from calotype.sources import Stored, open_source
from calotype.steps import Direction
from calotype.vae import VAE

MEMORY = """
def memory(what):  # in MB; what getrusage tells is that of who started the process, where that is larger
    line = next(line for line in open('/proc/self/status') if line.startswith(what))
    return int(line.split()[1]) / 1e3
"""


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's threads, for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_claimed_unit_is_left_to_its_process_and_taken_over_when_that_ends(
    data: Path, out: Path, tmp_path: Path, vae: VAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(data, tmp_path / "whole", vae)
    unit = min(path.stem for path in (tmp_path / "whole/receipts").iterdir())
    out.mkdir()
    (out / "claims").mkdir()
    monkeypatch.setattr(local, "PAUSE", 0.05)
    held = guard.claim(Store(out), unit)
    assert held is not None
    assert guard.claim(Store(out), unit) is None
    waited: list[int] = []

    def tell(progress: Progress) -> None:
        if progress.waiting and len(waited) < 3:
            waited.append(progress.waiting)
            if len(waited) == 3:
                held.__exit__(None, None, None)

    assert fill(data, out, vae, tell=tell).made == 7
    assert waited == [1, 1, 1]
    assert contents(out) == contents(tmp_path / "whole")


def test_units_that_others_made_meanwhile_are_not_made_again(
    data: Path, out: Path, vae: VAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary, ran = local.claim, []

    def claim(store: Store, unit: str) -> Any:
        if not ran:
            ran.append(unit)
            other = threading.Thread(target=lambda: ran.append(_alone(data, out, vae)))
            other.start()
            other.join()
        return ordinary(store, unit)

    monkeypatch.setattr(local, "claim", claim)
    outcome = fill(data, out, vae)
    assert (outcome.made, outcome.units, outcome.held) == (0, 0, 7)


def _alone(data: Path, out: Path, vae: VAE) -> int:
    """As another process would, but for the lock of a run, which is of this process."""
    store = Store(out)
    job = job_in(store)
    source = open_source(data)
    from calotype.cache.seen import scanned

    seen = scanned(store)
    planned = units.plan(job, seen, units.held(store, {}))
    made = [worker.Worker(job, vae, source, store).run(units.unit(cut, seen, range(7))) for cut in planned.units]
    return sum(receipt.count for receipt in made)


def test_a_unit_that_is_made_twice_has_the_same_bytes(data: Path, out: Path, vae: VAE) -> None:
    fill(data, out, vae)
    before = contents(out)
    assert _alone(data, out, vae) == 7
    assert contents(out) == before


@pytest.mark.parametrize("name", ["receipts", "samples", "shards"])
def test_what_a_disk_refuses_is_told_and_only_a_unit_is_lost(
    name: str, data: Path, out: Path, tmp_path: Path, vae: VAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(data, tmp_path / "whole", vae)
    whole = contents(tmp_path / "whole")
    fill(data, out, vae, part="1/3")
    refused = StorageError(f"{out}/{name} can't be written: No space left on device; make room.")

    def refuse(*given: object) -> None:
        raise refused

    with monkeypatch.context() as patch:
        if name == "shards":
            patch.setattr(attempt, "look", refuse)
        else:
            write = Store.write
            patch.setattr(Store, "write", lambda self, n, d: refuse() if n.startswith(name) else write(self, n, d))
        with pytest.raises(StorageError):
            fill(data, out, vae)
    receipts = {key for key in contents(out) if key.startswith("receipts/")}
    assert len(receipts) == 1
    assert not any(".calotype-" in key or "lock" in key for key in contents(out))
    fill(data, out, vae)
    assert contents(out) == whole


def test_a_disk_that_is_full_in_the_middle_of_a_shard(data: Path, out: Path, tmp_path: Path, vae: VAE) -> None:
    large = Rules(size=(256, 256))
    fill(data, tmp_path / "whole", vae, rules=large)
    with room(20_000), pytest.raises(StorageError) as refused:  # a shard takes more, all else less
        fill(data, out, vae, rules=large)
    one_sentence(str(refused.value))
    assert "/shards/256x256/" in str(refused.value)
    assert [key for key in contents(out) if key != "cache.json"] == []
    fill(data, out, vae, rules=large)
    assert contents(out) == contents(tmp_path / "whole")


def test_what_the_disk_did_not_keep_is_no_unit(
    data: Path, out: Path, vae: VAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calotype.cache import shards

    ordinary = shards.Writer.finish

    def finish(self: shards.Writer) -> None:
        ordinary(self)
        with self.path.open("r+b") as file:
            file.seek(-2, 2)
            file.write(b"\xff\x7f")

    monkeypatch.setattr(shards.Writer, "finish", finish)
    with pytest.raises(StorageError, match="the disk did not keep what was written: it holds NaN or infinity"):
        fill(data, out, vae)
    assert not list(out.glob("receipts/*"))


def test_a_place_that_can_not_be_written(data: Path, tmp_path: Path, vae: VAE) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file/out", Path("/proc/out")):
        with pytest.raises((StorageError, UsageError)) as refused:
            fill(data, place, vae)
        one_sentence(str(refused.value))


@pytest.mark.parametrize(("count", "side", "most"), [(1, 100, 3), (1, 5000, 1), (2, 100, 2), (2, 5000, 1)])
def test_large_pictures_are_read_one_at_a_time(
    count: int, side: int, most: int, data: Path, out: Path, vae: VAE, threads: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lock, now, seen = threading.Lock(), [0], [0]

    def read(source: object, sample: units.Sample, rules: object, placed: object, alpha: object) -> Any:
        with lock:
            now[0] += 1
            seen[0] = max(seen[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        return np.zeros((16, 16, 3), dtype=np.uint8)

    monkeypatch.setattr(worker, "picture", read)
    samples = tuple(
        units.Sample(i, hashlib.sha256(bytes([i])).digest(), f"{i}", (side, side), (side, side)) for i in range(6)
    )
    threads(count)
    one = worker.Worker(job_of(vae, Rules(size=(16, 16))), vae, open_source(data), Store(out))
    assert one.run(units.Unit("0" * 32, (16, 16), samples)).count == 6
    assert seen[0] == most


def test_progress_tells_of_all(data: Path, out: Path, vae: VAE) -> None:
    told: list[tuple[str, int, int]] = []
    fill(data, out, vae, tell=lambda now: told.append((now.doing, now.done, now.total)))
    assert told[0] == ("scan", 1, 7)
    assert ("make", 1, 7) in told
    assert [done for doing, done, _ in told if doing == "make"] == sorted(d for doing, d, _ in told if doing == "make")
    assert told[-1][0] == "manifest"
    assert max(done for doing, done, _ in told if doing == "make") == 7


@pytest.mark.slow
def test_memory_stays_bounded(tmp_path: Path, weights: Path) -> None:
    """Whatever their size and number: 30 pictures of 6 megapixels, of which each takes 60 MB while it is read."""
    for i in range(30):
        picture(tmp_path / f"data/{i}.jpg", 3000, 2000, seed=i)
    code = (
        "import sys, torch\n"
        "from calotype.cache import Rules\n"
        "from calotype.cache.make import job_of, make\n"
        "from calotype.vae import load\n"
        "torch.set_num_threads(2)\n"  # which read and encode, each a picture
        "vae = load(device='cpu')\n"
        "job = job_of(vae, Rules(size=(256, 256)))\n"
        f"{MEMORY}"
        "before = memory('VmRSS')\n"
        "make(sys.argv[1], sys.argv[2], vae, job, memory='512MB')\n"
        "print(memory('VmHWM') - before)\n"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is looked at as Linux tells it")
    words = [sys.executable, "-c", code, str(tmp_path / "data"), str(tmp_path / "out")]
    assert float(subprocess.run(words, check=True, capture_output=True, text=True).stdout) <= 600


@pytest.mark.slow
def test_a_million_samples_are_opened_at_once(data: Path, out: Path, vae: VAE, tmp_path: Path) -> None:
    count, each = 1_000_000, 1024
    fill(data, out, vae)
    for path in (*out.glob("receipts/*"), *out.glob("samples/*")):
        path.unlink()
    _made_up(Store(out), count, each)
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is looked at as Linux tells it")
    code = (
        "import sys, time\n"
        f"{MEMORY}"
        "from pathlib import Path\n"
        "from calotype.cache import open_cache\n"
        "if sys.argv[2] == 'open': assert len(open_cache(sys.argv[1]).samples) == 1_000_000\n"
        "else:\n"
        "    from calotype.cache.status import status\n"
        "    from calotype.cache.store import Store\n"
        "    assert status(Store(sys.argv[1]))['done'] == 1_000_000\n"
        "print(time.process_time(), memory('VmHWM'))\n"
    )
    for what in ("open", "status"):
        words = [sys.executable, "-c", code, str(out), what]
        seconds: list[float] = []
        # the first touch of memory costs nothing or seconds, as the host of a virtual machine has it at hand or not
        while len(seconds) < 5 and min(seconds, default=inf) > 1.5:
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            taken, megabytes = map(float, done.stdout.split())
            seconds.append(taken)
            assert megabytes <= 500
        assert min(seconds) <= 1.5, seconds


def _made_up(store: Store, count: int, each: int) -> None:
    """Receipts and samples of pictures that there never were, the scan that saw them, and their manifest."""
    job = job_in(store)
    texts = {
        "name": [f"folder-{i // 1000:04d}/picture-{i:07d}.jpg" for i in range(count)],
        "caption": [f"a picture of number {i}, of middle length and quite ordinary" for i in range(count)],
        "key": [key.tobytes() for key in np.random.default_rng(0).integers(0, 256, (count, 32), dtype=np.uint8)],
    }

    def rows(kinds: Any, start: int, end: int) -> Any:
        plain = {name: np.full(end - start, 16) for name in kinds}
        plain |= {name: texts[name][start:end] for name in texts}  # type: ignore[dict-item]
        plain |= {name: [None] * (end - start) for name in ("label", "reason")}  # type: ignore[dict-item]
        plain["stamp"] = [f"{i} 1" for i in range(start, end)]  # type: ignore[assignment]
        plain["row"] = np.arange(end - start)
        return table({name: plain[name] for name in kinds}, kinds)

    for start in range(0, count, each):
        end = min(count, start + each)
        unit = hashlib.sha256(str(start).encode()).hexdigest()[:32]
        samples = parquet(rows(SAMPLES, start, end))
        store.write(samples_name(unit), samples)
        store.write(shard_name(unit, (16, 16)), b"x")
        receipt = Receipt(
            unit=unit, fingerprint=job.fingerprint, bucket=(16, 16), count=end - start, shard_bytes=1,
            shard_sha256="0" * 64, samples_bytes=len(samples), samples_sha256="0" * 64,
            sums=Sums((end - start) * 4, (1.0,) * 4, (1.0,) * 4, (1.0,) * 4), made={"device": "cpu"},
        )  # fmt: skip
        store.write(receipt_name(unit), receipt.to_bytes())
    store.write("scan.parquet", parquet(rows(SCAN, 0, count), {"data": "data"}))
    assert write_manifest(store, job)["done"] == count


@pytest.mark.parametrize("value", ["moments", "sample"])
def test_pictures_that_are_encoded_together_are_what_each_is_alone(
    value: str, data: Path, tmp_path: Path, vae: VAE, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    call, each = Engine.__call__, Engine.each

    def watched(self: Engine, direction: Direction, x: torch.Tensor, **more: Any) -> torch.Tensor:
        sizes.append(len(x))
        return call(self, direction, x, **more)

    def together(
        self: Engine, direction: Direction, height: int, width: int, number: int, *more: Any, **n: Any
    ) -> None:
        sizes.append(number)
        each(self, direction, height, width, number, *more, **n)

    monkeypatch.setattr(Engine, "__call__", watched)
    monkeypatch.setattr(Engine, "each", together)
    for count in (1, 2):
        threads(count)
        with units_of(5):
            fill(data, tmp_path / str(count), vae, rules=Rules(size=(16, 16), flip=True), value=value)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    if vae.engine_of("encode").name == "winograd":
        assert sizes == [2] * 7 + [5, 2], "each and its mirror by one thread, a unit by two"


@pytest.mark.parametrize("count", [1, 2])
def test_one_that_overflows_is_bad_alone(
    count: int, data: Path, out: Path, vae: VAE, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    worst = read_picture(data / "3.png").pixels.mean()
    run = Executor.run

    def overflowing(self: Executor, source: Source) -> Iterator[tuple[int, int, torch.Tensor]]:
        bad = (source(0, 32).mean() - worst).abs() < 0.02
        for start, end, rows in run(self, source):
            yield start, end, rows * torch.nan if bad else rows

    monkeypatch.setattr(Executor, "run", overflowing)
    threads(count)
    outcome = fill(data, out, vae, rules=Rules(size=(32, 32)))
    assert [(one.name, one.reason) for one in outcome.bad] == [("3.png", "the VAE gives NaN or infinity for it.")]
    assert open_cache(out).samples["name"].to_pylist() == [f"{i}.png" for i in range(7) if i != 3]


def test_pictures_that_are_gone_or_bad_are_told_by_two_threads_as_by_one(
    data: Path, tmp_path: Path, vae: VAE, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, told = worker.picture, []

    def reading(source: Stored, sample: units.Sample, *more: Any) -> Any:
        if sample.name == "2.png":
            return Bad(sample.name, sample.key.hex(), "it is gone.", again=True)
        return read(source, sample, *more)

    monkeypatch.setattr(worker, "picture", reading)
    for count in (1, 2):
        threads(count)
        outcome = fill(data, tmp_path / str(count), vae, rules=Rules(size=(32, 32)))
        told.append([(one.name, one.reason) for one in outcome.bad])
        assert outcome.made == 6
    assert told[0] == told[1] != []
    assert shards(tmp_path / "1") == shards(tmp_path / "2")


def test_what_reading_raises_leaves_nothing_of_a_unit(
    data: Path, out: Path, vae: VAE, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(source: object, sample: units.Sample, *more: Any) -> Any:
        if sample.name == "5.png":
            raise RemoteError("the server is gone.")
        return read(source, sample, *more)  # type: ignore[arg-type]

    read = worker.picture
    monkeypatch.setattr(worker, "picture", reading)
    threads(2)
    with pytest.raises(RemoteError, match="the server is gone"):
        fill(data, out, vae, rules=Rules(size=(32, 32)))
    whole = {path.stem for path in out.glob("receipts/*.json")}
    assert len(whole) < 3
    assert {path.stem for path in out.glob("shards/*/*")} == whole, "nothing is left of the unit"
