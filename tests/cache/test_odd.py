"""What exports and imports meet: odd names, manifests that disagree, full disks, places that can't be written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cachekit import contents, fill, picture, units_of
from support import one_sentence, room
from tradekit import cached

from calotype.cache import Rules, open_cache
from calotype.cache.check import repair
from calotype.cache.export import FORMATS, export
from calotype.cache.store import Store
from calotype.cache.taking import take
from calotype.errors import CalotypeError, StorageError, UsageError
from calotype.vae import VAE

HOLDS = [name for name in FORMATS if name != "musubi"]  # what holds latents of SD1
NAMES = (
    "a b.png", "a.b.c.png", "dir.with.dots/p.q.png", "ü-日本.png", "new\nline.png", "tab\t.png", "*?[x].png", " .png",
    "-dash.png", "a\\b.png", "\x1b[2J.png",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _large_units() -> Iterator[None]:
    with units_of(100):
        yield


@pytest.fixture(scope="module")
def square(root: Path, sd1: VAE) -> Path:
    with units_of(100):
        return cached(root / "odd", sd1, size=True)


def rewritten(cache: Path, out: Path, **changed: Any) -> Path:
    """A copy whose manifest has other values in its first row."""
    shutil.copytree(cache, out)
    table = pq.read_table(out / "manifest.parquet")
    for name, value in changed.items():
        at = table.schema.get_field_index(name)
        values = [value, *table[name].to_pylist()[1:]]
        table = table.set_column(at, table.schema.field(name), pa.array(values, type=table.schema.field(name).type))
    pq.write_table(table, out / "manifest.parquet")
    return out


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
def test_odd_names_go_there_and_back(tmp_path: Path, out: Path, sd1: VAE) -> None:
    for i, name in enumerate(NAMES):
        picture(tmp_path / "data" / name, 40, 40, seed=i)
    (tmp_path / "data/a b.txt").write_text("two\nlines\0")
    picture(tmp_path / "data" / os.fsdecode(b"raw\xff.png"), 40, 40, seed=99)
    fill(tmp_path / "data", out, sd1, rules=Rules(size=(32, 32), flip=True))
    for to in ("webdataset", "diffusers-parquet", "mds", "numpy"):
        assert export(out, tmp_path / to, to).samples == len(NAMES) + 1
    done = export(out, tmp_path / "data", "sd-scripts")
    assert any(note.startswith("1 pictures have names that are no text") for note in done.notes)
    for npz in (tmp_path / "data").glob("raw*.npz"):  # as sd-scripts itself calls it
        npz.rename(npz.with_name(os.fsdecode(b"raw\xff_0040x0040_sd.npz")))
    taken = take(tmp_path / "data", tmp_path / "taken", sd1, check=0)
    assert taken.pictures == taken.samples == len(NAMES) + 1
    before, after = (open_cache(one).samples.sort_by("name") for one in (out, tmp_path / "taken"))
    for column in ("name", "key", "caption"):
        assert before[column].to_pylist() == after[column].to_pylist()


def test_a_name_stands_in_a_message_as_one_line(tmp_path: Path, out: Path, sd1: VAE) -> None:
    for suffix in ("png", "webp"):
        picture(tmp_path / f"data/new\n\x1b[2J.{suffix}", 40, 40)
    fill(tmp_path / "data", out, sd1, rules=Rules(size=(32, 32)))
    for to, said in (("sd-scripts", "would have one file"), ("lightningdit", "latents of mirrored pictures")):
        with pytest.raises(UsageError, match=said) as refused:
            export(out, tmp_path / "to", to)
        one_sentence(str(refused.value))
        assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../up.png", "leads out of its folder"), ("/root.png", "leads out of its folder"), ("", "no file can be"),
        (".", "no file can be"), ("nul\0.png", "no file can be"), ("x" * 300 + ".png", "no file can be"),
        ("x" * 240 + ".png", "no file can be"),
    ],
)  # fmt: skip
def test_names_that_no_file_can_have(name: str, said: str, square: Path, tmp_path: Path) -> None:
    with pytest.raises(CalotypeError, match=said) as refused:
        export(rewritten(square, tmp_path / "cache", name=name), tmp_path / "to", "sd-scripts")
    one_sentence(str(refused.value))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize("to", HOLDS)
@pytest.mark.parametrize("changed", [{"row": 99}, {"row": -1}, {"bucket_width": 64}], ids=str)
def test_a_manifest_that_disagrees_with_its_shards_is_no_export(
    to: str, changed: dict[str, int], square: Path, tmp_path: Path
) -> None:
    with pytest.raises(CalotypeError) as refused:
        export(rewritten(square, tmp_path / "cache", **changed), tmp_path / "to", to)
    one_sentence(str(refused.value))
    assert isinstance(refused.value, StorageError) or "latents of one size" in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize("to", HOLDS)
def test_a_full_disk_leaves_no_export(to: str, square: Path, tmp_path: Path) -> None:
    with room(300), pytest.raises(StorageError) as refused:
        export(square, tmp_path / "to", to)
    one_sentence(str(refused.value))
    assert not list(tmp_path.iterdir())
    export(square, tmp_path / "to", to)
    export(square, tmp_path / "again", to)
    first, second = (contents_of(tmp_path / name) for name in ("to", "again"))
    assert first == second


def test_a_full_disk_leaves_no_import_and_repair_loses_nothing(
    square: Path, sd1: VAE, tmp_path: Path, out: Path, data: Path
) -> None:
    export(square, tmp_path / "npz", "sd-scripts")
    with room(1500), pytest.raises(StorageError) as refused:
        take(tmp_path / "npz", tmp_path / "taken", sd1, check=0)
    one_sentence(str(refused.value))
    assert not (tmp_path / "taken").exists()
    fill(data, out, sd1)
    before = contents(out)
    with room(300), pytest.raises(StorageError) as refused:
        repair(Store(out))
    one_sentence(str(refused.value))
    assert contents(out) == before
    repair(Store(out))
    assert contents(out) == before


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("to", HOLDS)
def test_places_that_are_none(to: str, square: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(square)
    for dest in (square, square / "in", square / "shards/in", tmp_path / "link", tmp_path / "link/in",
                 tmp_path / "file", tmp_path / "file/in", Path("/proc/in")):  # fmt: skip
        with pytest.raises((UsageError, StorageError)) as refused:
            export(square, dest, to)
        one_sentence(str(refused.value))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.slow
def test_an_import_leaves_a_cache_alone(square: Path, sd1: VAE, tmp_path: Path) -> None:
    export(square, tmp_path / "npz", "sd-scripts")
    before = contents(square)
    with pytest.raises(UsageError, match="there is something already"):
        take(tmp_path / "npz", square, sd1)
    assert contents(square) == before


def test_an_export_sees_the_manifest_while_a_run_fills_the_cache(
    data: Path, out: Path, sd1: VAE, tmp_path: Path
) -> None:
    fill(data, out, sd1, value="mode")
    picture(data / "more.png", seed=50)
    counts = []

    def meanwhile(progress: Any) -> None:
        if progress.doing == "make":
            counts.append(export(out, tmp_path / str(len(counts)), "numpy").samples)

    fill(data, out, sd1, value="mode", tell=meanwhile)
    assert counts
    assert set(counts) == {7}
    assert export(out, tmp_path / "all", "numpy").samples == 8
