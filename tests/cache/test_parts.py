"""Tables that are read and written a part at a time, and what a run holds of each picture."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cachekit import contents, fill, folder, picture, units_of
from PIL import Image

from calotype.cache import looked, manifest, open_cache, parts, scan, tables
from calotype.cache.check import verify
from calotype.cache.clear import gc
from calotype.cache.make import Progress
from calotype.cache.parts import Parted, write
from calotype.cache.receipts import receipts
from calotype.cache.seen import scanned, scanned_digest, scanned_now
from calotype.cache.store import Store
from calotype.cache.tables import SCAN, parquet, table
from calotype.cache.units import among, held, plan, unit
from calotype.errors import StorageError
from calotype.vae import VAE


@pytest.fixture
def groups_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and what is read of them are of so few rows that a few pictures fill several."""
    for module in (tables, parts, looked, manifest):
        monkeypatch.setattr(module, "GROUP", 4)
    monkeypatch.setattr(parts, "PART", 3)
    monkeypatch.setattr(looked, "_PART", 2)


def rows_of(count: int) -> Any:
    numbers = range(count)
    plain: dict[str, Any] = {name: numbers for name, kind in SCAN.items() if kind.startswith("int")}
    plain |= {name: [f"{name} {i}" for i in numbers] for name, kind in SCAN.items() if kind == "string"}
    return table({**plain, "key": [bytes([i % 256] * 32) for i in numbers]}, SCAN)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 23])
def test_parts_give_the_bytes_of_the_whole(count: int, tmp_path: Path, groups_of_four: None) -> None:
    whole, about = rows_of(count), {"data": "a", "digest": "b"}
    for step in (1, 3, 7):
        file = io.BytesIO()
        write(file, SCAN, (whole.slice(start, step) for start in range(0, count, step)), about)
        assert file.getvalue() == parquet(whole, about)
    (tmp_path / "a.parquet").write_bytes(file.getvalue())
    with Parted(tmp_path / "a.parquet", SCAN) as found:
        assert len(found) == count
        assert [row for part in found.parts() for row in part.to_pylist()] == whole.to_pylist()
        assert [n for part in found.parts("bytes") for n in part["bytes"].to_pylist()] == list(range(count))
        for wanted in (range(count), range(0, count, 5), [count - 1] if count else []):
            taken = found.taken(np.array(wanted, dtype=np.int32), "name", "bytes")
            assert (
                taken.to_pylist() == whole.take(np.array(wanted, dtype=np.int64)).select(["name", "bytes"]).to_pylist()
            )


def test_a_damaged_file_is_told_of(tmp_path: Path) -> None:
    content = bytearray(parquet(rows_of(500)))
    content[2000] ^= 255
    (tmp_path / "a.parquet").write_bytes(content)
    with (
        pytest.raises(StorageError, match=r"a\.parquet: this file can't be read"),
        Parted(tmp_path / "a.parquet", SCAN) as file,
    ):
        for _ in file.parts():
            pass
    (tmp_path / "b.parquet").write_bytes(parquet(rows_of(5).drop_columns(["reason"])))
    with pytest.raises(StorageError, match=r"b\.parquet: this file lacks reason;"):
        Parted(tmp_path / "b.parquet", SCAN)


@pytest.fixture
def tared(tmp_path: Path) -> Path:
    """Two tars of the same pictures: of one name there are several, of which some have the same bytes."""
    place = folder(tmp_path / "plain", 9)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for _ in range(2):
            for path in sorted(place.glob("*.*")):
                archive.add(path, path.name)
            picture(place / "3.png", seed=33)
            (place / "3.txt").write_text("another caption")
    return tmp_path / "a.tar"


@pytest.mark.slow
@pytest.mark.usefixtures("groups_of_four")
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_cache_of_several_groups(kind: str, tmp_path: Path, tared: Path, vae: VAE) -> None:
    """Pictures of two sizes, one that is bad, of tars some twice: units lie across groups."""
    data = tared
    if kind == "folder":
        data = folder(tmp_path / "data", 11)
        (data / "5.png").write_bytes(b"no picture")
    with units_of(3):
        fill(data, tmp_path / "out", vae, max_bad="3")
        assert not verify(Store(tmp_path / "out"))
        before = contents(tmp_path / "out")
        fill(data, tmp_path / "again", vae, max_bad="3", part="2/2")
        fill(data, tmp_path / "again", vae, max_bad="3", part="1/2")
        assert contents(tmp_path / "again") == before
    cache = open_cache(tmp_path / "out")
    expected = [f"{i}.png" for i in (*range(9), 3)]
    assert cache.samples["name"].to_pylist() == (
        expected if kind == "tar" else sorted(f"{i}.png" for i in range(11) if i != 5)
    )
    assert cache.samples["caption"].to_pylist() == [
        "another caption" if kind == "tar" and name == "3.png" else f"picture {name[:-4]}"
        for name in cache.samples["name"].to_pylist()
    ]
    gc(Store(tmp_path / "out"))
    assert contents(tmp_path / "out") == before


@pytest.mark.slow
@pytest.mark.usefixtures("groups_of_four")
def test_a_scan_that_is_killed_again_and_again(
    data: Path, out: Path, vae: VAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, look = [], scan.look
    for i in range(7, 30):
        Image.new("RGB", (16 + i, 16)).save(data / f"{i:02}.png")
    for path in data.iterdir():
        os.utime(path, (1, 1))

    def looking(source: Any, i: int) -> Any:
        looks.append(i)
        return look(source, i)

    monkeypatch.setattr(scan, "look", looking)
    for after in (12, 25):

        def killed(progress: Progress, after: int = after) -> None:
            if progress.done == after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fill(data, out, vae, tell=killed)
    assert len(list((out / "looked").iterdir())) == 2 + 6
    found = set(looks)
    looks.clear()
    fill(data, out, vae)
    assert looks
    assert len(looks) < 12
    assert found | set(looks) == set(range(30))
    assert not (out / "looked").exists()
    digest = scanned_digest(Store(out))
    fill(data, out.with_name("whole"), vae)
    assert contents(out) == contents(out.with_name("whole"))
    assert digest == scanned_digest(Store(out.with_name("whole")))


def test_a_run_keeps_the_scan_that_it_made(data: Path, out: Path, vae: VAE) -> None:
    """Whatever others write meanwhile; and nothing of it is left."""
    fill(data, out, vae)
    store, job = Store(out), open_cache(out).job
    with scanned_now(store) as kept:
        cuts = plan(job, kept, held(store, {})).units
        store.write("scan.parquet", b"")
        names = [one.name for cut in cuts for one in unit(cut, kept, range(7)).samples]
        assert names == [f"{i}.png" for i in range(7)]
    with pytest.raises(StorageError):
        scanned(store)
    assert not [path for path in out.iterdir() if path.name.startswith(".calotype")]


def test_ids_that_end_in_zeros() -> None:
    ids = [bytes([i]) * 8 + bytes(8) for i in (1, 2, 3)] + [bytes([4]) * 16]
    there, at = among(np.array(ids[1:], dtype="S16"), np.array(ids, dtype="S16"))
    assert there.tolist() == [False, True, True, True]
    assert at[1:].tolist() == [0, 1, 2]
    assert not among(np.empty(0, dtype="S16"), np.array(ids, dtype="S16"))[0].any()


def test_of_a_sample_in_two_units_the_first_counts(data: Path, out: Path, vae: VAE) -> None:
    with units_of(3):
        fill(data, out, vae)
    store, job = Store(out), open_cache(out).job
    good, _ = receipts(store, job.fingerprint)
    has = held(store, {f"{name} {again}"[:32]: one for again in range(2) for name, one in good.items()})
    assert sorted(zip(has.numbers.tolist(), has.rows.tolist(), strict=True)) == [
        (number, row) for number, one in enumerate(good.values()) for row in range(one.count)
    ]


@pytest.mark.slow
def test_pictures_take_little_each(tmp_path: Path) -> None:
    """Beyond what a group of rows takes: a run of 30,000 more takes no more than so many bytes for each."""
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is looked at as Linux tells it")
    peaks = []
    for count in (10_000, 40_000):
        data = tmp_path / str(count)
        linked(data, count)
        words = [sys.executable, "-c", GROWTH, str(data), str(tmp_path / f"out {count}")]
        ran = subprocess.run(words, check=True, capture_output=True, text=True)
        peaks.append(float(ran.stdout))
    # ten megabytes more or less are the allocators' own; objects for each picture would take 1,500 bytes
    assert (peaks[1] - peaks[0]) * 1e6 / 30_000 <= 600


GROWTH = """
import re, sys
from pathlib import Path
import numpy, torch
from calotype.cache import Rules, looked, manifest, parts, tables, worker
from calotype.cache.make import job_of, make
from calotype.vae import load
for module in (tables, parts, looked, manifest):
    module.GROUP = 2**12  # or memory would grow until the first one is full
worker.picture = lambda *_: pixels  # neither of which grows with their number
worker.Worker.encode = lambda self, levels, key: {name: zeros for name in self.job.tensors}
worker.Worker._at_once = lambda self, unit: 1
vae = load(device="cpu")
job = job_of(vae, Rules(size=(64, 64)))
zeros = torch.zeros(job.shape((64, 64)), dtype=torch.float16)
pixels = numpy.zeros((64, 64, 3), dtype=numpy.uint8)
def memory(name): return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
before = memory("VmRSS")
make(sys.argv[1], sys.argv[2], vae, job, memory="512MB")
print(memory("VmHWM") - before)
"""


def linked(place: Path, count: int) -> None:
    """So many pictures with captions, all of them the same files."""
    first = picture(place / "first.png", 96, 64)
    first.with_suffix(".txt").write_text("a photograph of one thing before another, " * 2)
    for i in range(1, count):
        if i % 10_000 == 1:
            inner = place / f"folder-{i // 10_000:04d}"
            inner.mkdir()
        for suffix in (".png", ".txt"):
            (inner / f"picture-number-{i:07d}{suffix}").hardlink_to(first.with_suffix(suffix))
