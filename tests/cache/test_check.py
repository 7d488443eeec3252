"""Looking at caches, mending them and clearing them up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cachekit import contents, fill, picture, spoilt
from support import one_sentence

from calotype.cache import LatentDataset, Rules, clear, open_cache
from calotype.cache.check import drop, repair, verify
from calotype.cache.clear import empty, gc
from calotype.cache.decoded import changed, compare, evenly
from calotype.cache.guard import running
from calotype.cache.status import stats, status
from calotype.cache.store import Store
from calotype.cache.tables import metadata, parquet
from calotype.errors import CalotypeError, StorageError, UsageError
from calotype.vae import VAE, load


@pytest.fixture
def store(data: Path, out: Path, vae: VAE) -> Store:
    """A cache of seven pictures in three units."""
    fill(data, out, vae)
    return Store(out)


def flip_bit(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def first(out: Path, folder: str) -> Path:
    return min(path for path in (out / folder).rglob("*") if path.is_file())


def test_a_sound_cache_has_no_faults(store: Store) -> None:
    faults = verify(store)
    assert not faults
    assert (faults.units_seen, faults.rows) == (3, 7)


@pytest.mark.parametrize("at", [-1, -40, 0, 30])
def test_a_flipped_bit_is_found_and_made_again(at: int, store: Store, data: Path, out: Path, vae: VAE) -> None:
    before = contents(out)
    shard = first(out, "shards")
    flip_bit(shard, at)
    faults = verify(store)
    assert faults.units.keys() == {shard.stem}
    assert not faults.others
    dropped, told = repair(store)
    assert dropped.keys() == {shard.stem}
    assert (told["done"], told["missing"]) == (len(open_cache(out)), 7 - len(open_cache(out)))
    assert not verify(store)
    assert fill(data, out, vae).made == told["missing"] > 0
    assert contents(out) == before


@pytest.mark.parametrize("folder", ["samples", "receipts", "shards"])
@pytest.mark.parametrize("how", ["gone", "cut", "other", "empty"])
def test_any_damaged_file_is_found_and_made_again(
    folder: str, how: str, store: Store, data: Path, out: Path, vae: VAE
) -> None:
    before = contents(out)
    path = first(out, folder)
    if how == "gone":
        path.unlink()
    elif how == "other":
        others = [one for one in (out / folder).rglob("*") if one.is_file() and one != path]
        shutil.copy(others[0], path)
    else:
        path.write_bytes(b"" if how == "empty" else path.read_bytes()[:-9])
    assert verify(store)
    repair(store)
    assert not verify(store)
    fill(data, out, vae)
    gc(store)  # what a lost receipt left
    assert contents(out) == before


def test_a_run_mends_what_its_receipts_show_without_repair(store: Store, data: Path, out: Path, vae: VAE) -> None:
    before = contents(out)
    first(out, "shards").unlink()
    first(out, "receipts").write_text("{")
    assert fill(data, out, vae).held == 7
    assert contents(out) == before


def test_nan_in_a_shard_is_found_even_where_its_receipt_agrees(store: Store, out: Path) -> None:
    path = first(out, "shards")
    content = bytearray(path.read_bytes())
    content[-2:] = b"\x00\x7e"
    path.write_bytes(content)
    receipt = out / "receipts" / f"{path.stem}.json"
    told = json.loads(receipt.read_text())
    told["shard_sha256"] = store.sha256(f"shards/16x16/{path.name}")
    del told["checksum"]  # of what someone has written anew
    receipt.write_text(json.dumps(told))
    assert "NaN or infinity" in verify(store).units[path.stem]


def test_a_receipt_that_was_changed_is_found_and_made_again(store: Store, data: Path, out: Path, vae: VAE) -> None:
    before, right = contents(out), stats(store)
    path = first(out, "receipts")
    told = json.loads(path.read_text())
    told["sums"]["sum"][0] += 4096.0
    path.write_text(json.dumps(told))
    assert "it was changed" in verify(store).units[path.stem]
    assert repair(store)[0].keys() == {path.stem}
    assert fill(data, out, vae).made == told["count"]
    assert (contents(out), stats(store)) == (before, right)


def test_a_receipt_without_a_checksum_is_one(store: Store, out: Path) -> None:
    for path in out.glob("receipts/*.json"):
        told = json.loads(path.read_text())
        del told["checksum"]
        path.write_text(json.dumps(told))
    assert not verify(store)
    assert status(store)["done"] == 7


def test_files_of_others_among_receipts_are_left_alone(store: Store, out: Path) -> None:
    """One called *.json, as a shell makes it by mistake, would have every shard dropped."""
    for name in ("*.json", "notes.json"):
        (out / "receipts" / name).write_text("{}")
    assert not verify(store)
    assert not repair(store)[0]
    assert not verify(store)
    assert len(list(out.glob("receipts/*"))) == 5


@pytest.mark.parametrize("how", ["no JSON", "no table", "other counts"])
def test_a_manifest_whose_summary_is_damaged(how: str, store: Store, out: Path) -> None:
    """It stands in the file's end, which has no checksum."""
    path = out / "manifest.parquet"
    good = path.read_bytes()
    rows, said = pq.read_table(path), metadata(path)
    summary = {"no JSON": said["summary"][1:], "no table": "[]"}.get(how) or said["summary"].replace(
        '"done":7', '"done":6'
    )
    path.write_bytes(parquet(rows, {**said, "summary": summary}))
    (fault,) = verify(store).others
    assert "manifest.parquet" in fault
    if how != "other counts":
        assert (status(store)["manifest"], status(store)["done"]) == ("old", 7)
        assert len(LatentDataset(out, scaled=False)) == 7
    repair(store)
    assert path.read_bytes() == good


@pytest.mark.parametrize(("name", "values"), [
    ("row", ["a"] * 7), ("row", [0.5] * 7), ("row", [None] * 7), ("key", [b"short"] * 7), ("unit", [None] * 7),
])  # fmt: skip
def test_a_manifest_of_other_types_is_damaged(name: str, values: list[Any], store: Store, out: Path) -> None:
    path = out / "manifest.parquet"
    rows, said = pq.read_table(path), metadata(path)
    path.write_bytes(parquet(rows.set_column(rows.schema.get_field_index(name), name, pa.array(values)), said))
    assert verify(store).others
    with pytest.raises(StorageError, match=r"manifest\.parquet: this file can't be read .*calotype cache repair"):
        LatentDataset(out, scaled=False)


def test_a_manifest_that_disagrees(store: Store, data: Path, out: Path, vae: VAE, tmp_path: Path) -> None:
    good = (out / "manifest.parquet").read_bytes()
    shutil.copytree(data, tmp_path / "less")
    (tmp_path / "less/3.png").unlink()
    fill(tmp_path / "less", tmp_path / "other", vae)
    shutil.copy(tmp_path / "other/manifest.parquet", out)
    assert "manifest.parquet" in verify(store).others[0]
    repair(store)
    assert not verify(store)
    assert (out / "manifest.parquet").read_bytes() == good
    for content in (b"", b"no table", good[:-20]):
        (out / "manifest.parquet").write_bytes(content)
        assert verify(store).others
        with pytest.raises(StorageError, match="calotype cache repair"):
            open_cache(out)
    (out / "manifest.parquet").unlink()
    assert "missing" in verify(store).others[0]
    with pytest.raises(UsageError, match="never finished"):
        open_cache(out)
    repair(store)
    assert (out / "manifest.parquet").read_bytes() == good


def test_repair_without_a_scan_has_all_rows(store: Store, out: Path) -> None:
    before = open_cache(out).samples
    (out / "scan.parquet").unlink()
    repair(store)
    assert sorted(open_cache(out).samples["name"].to_pylist()) == before["name"].to_pylist()
    assert sorted(open_cache(out).samples["caption"].to_pylist()) == before["caption"].to_pylist()
    assert not verify(store)


def test_what_is_no_cache(tmp_path: Path, store: Store, out: Path) -> None:
    for look in (verify, repair, gc, empty, status, stats):
        with pytest.raises(UsageError, match=r"there is no cache here \(cache\.json is missing\)"):
            look(Store(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
    text = (out / "cache.json").read_text()
    for changed_ in (
        "{",
        text.replace('"crop": "centre"', '"crop": "top"'),
        text.replace('"format": 1', '"format": 2'),
    ):
        assert changed_ != text
        (out / "cache.json").write_text(changed_)
        with pytest.raises(StorageError, match=r"cache\.json can't be used"):
            open_cache(out)


def test_a_lost_cache_json_is_written_again(data: Path, store: Store, out: Path, vae: VAE, other: VAE) -> None:
    whole = contents(out)
    for spoil in (Path.unlink, lambda path: path.write_text("{")):
        spoil(out / "cache.json")
        for look in (open_cache, lambda path: fill(data, path, other), lambda path: verify(Store(path))):
            with pytest.raises(CalotypeError) as refused:
                look(out)
            one_sentence(str(refused.value))
        (out / "cache.json").unlink(missing_ok=True)
        with pytest.raises(StorageError, match=r"this cache lost its cache\.json; calotype cache make writes it again"):
            open_cache(out)
        with pytest.raises(
            UsageError, match=r"lost its cache\.json, and was made of another VAE or with other options"
        ):
            fill(data, out, vae, rules=Rules(size=(16, 16), flip=True))
        assert not (out / "cache.json").exists()
        assert fill(data, out, vae).made == 0
        assert contents(out) == whole


def test_samples_decode_as_the_vaes_own_round_trip(tmp_path: Path) -> None:
    vae = load(device="cpu")
    for i in range(3):
        picture(tmp_path / f"data/{i}.png", 80, 64, seed=i)
    fill(tmp_path / "data", tmp_path / "out", vae, rules=Rules(size=(64, 48)))
    compared = compare(open_cache(tmp_path / "out"), tmp_path / "data", vae, 2)
    assert compared.faults == []
    assert [one.name for one in compared.samples] == ["0.png", "2.png"]
    assert all(one.psnr > 20 and abs(one.psnr - one.own) < 0.01 and one.apart < 1e-3 for one in compared.samples)


@pytest.mark.slow
def test_decoding_finds_other_latents_and_another_vae(
    store: Store, data: Path, out: Path, vae: VAE, other: VAE
) -> None:
    (said,) = compare(open_cache(out), data, other, 3).faults
    assert "is not the VAE that made this cache" in said
    assert vae.sha256[:12] in said
    assert other.sha256[:12] in said
    assert compare(open_cache(out), data, vae, 7).faults == []
    for path in out.glob("shards/*/*"):  # others, as well-formed as before
        content = bytearray(path.read_bytes())
        content[-40:] = b"\x00\x3c" * 20
        path.write_bytes(content)
    assert compare(open_cache(out), data, vae, 7).faults
    (data / "0.png").unlink()
    assert "0.png is no longer among the pictures" in compare(open_cache(out), data, vae, 7).faults[0]


def test_changes_of_the_pictures_are_told(store: Store, data: Path) -> None:
    assert changed(store, data) == []
    picture(data / "1.png", seed=30)
    picture(data / "new.png", seed=31)
    (data / "5.png").unlink()
    assert [one.partition(";")[0] for one in changed(store, data)] == [
        "1.png: changed since it was cached", "new.png: not in the cache", "5.png: no longer among the pictures",
    ]  # fmt: skip


def test_gc_keeps_what_is_needed_and_its_numbers(store: Store, data: Path, out: Path, vae: VAE, tmp_path: Path) -> None:
    before = {row["name"]: row for row in map(open_cache(out).row, range(7))}
    for name in ("1.png", "3.png", "4.png", "5.png"):  # some of the first unit, all of the second
        (data / name).unlink()
    fill(data, out, vae)
    assert status(store)["stale"] == 4
    (out / f"shards/16x16/{'0' * 32}.safetensors").write_bytes(b"x")
    (out / "samples/.calotype-000000000000-1-0-x.parquet").write_bytes(b"x")
    done = gc(store)
    assert (done.files, done.rows, done.units) == (2, 4, 2)
    assert done.bytes > 0
    assert not verify(store)
    assert status(store)["stale"] == 0
    cache = open_cache(out)
    assert cache.samples["name"].to_pylist() == ["0.png", "2.png", "6.png"]
    for row in map(cache.row, range(3)):
        old = before[row["name"]]
        assert torch.equal(row["mean"], old["mean"])
        assert all(row[key] == old[key] for key in row if key not in ("mean", "logvar", "unit", "row"))
    after = contents(out)
    assert (gc(store).rows, fill(data, out, vae).made) == (0, 0)
    assert contents(out) == after
    fill(data, tmp_path / "fresh", vae)  # sums are those of the rows that are left
    one, two = (stats(Store(folder))["channels"]["mean"] for folder in (out, tmp_path / "fresh"))
    assert one == pytest.approx(two, rel=1e-12)


def test_gc_all_leaves_an_empty_folder(store: Store, data: Path, out: Path, vae: VAE) -> None:
    empty(store)
    assert list(out.iterdir()) == []
    assert fill(data, out, vae, value="mode").made == 7


def test_nobody_clears_up_while_a_run_writes(store: Store, out: Path) -> None:
    before = contents(out)
    with running(store):
        for act in (gc, repair, empty):
            with pytest.raises(UsageError, match=r"a run of calotype cache make is under way there, by process"):
                act(store)
    assert contents(out) == before


def test_status_of_what_is_done_and_missing(store: Store, data: Path, out: Path, vae: VAE) -> None:
    told = status(store)
    assert (told["wanted"], told["done"], told["missing"], told["bad"], told["stale"]) == (7, 7, 0, 0, 0)
    assert (told["manifest"], told["units"], told["buckets"], told["data"]) == ("current", 3, {"16x16": 7}, str(data))
    assert told["vae"]["sha256"] == vae.sha256
    assert told["bytes"] == sum(path.stat().st_size for path in out.glob("s*s/**/*") if path.is_file())
    spoilt(data / "7.png", data / "0.png")
    (data / "8.png").write_bytes(b"")
    fill(data, out, vae)
    lost = next(path for path in out.glob("receipts/*") if json.loads(path.read_text())["count"] == 3)
    lost.unlink()
    told = status(store)
    assert (told["wanted"], told["done"], told["missing"], told["bad"], told["manifest"]) == (9, 4, 3, 2, "old")
    assert {name for name, _ in told["bad_ones"]} == {"7.png", "8.png"}


@pytest.mark.parametrize("value", ["moments", "mode", "sample"])
def test_statistics_are_those_of_the_latents(value: str, data: Path, out: Path, vae: VAE) -> None:
    fill(data, out, vae, value=value, store="float32", rules=Rules(size=(32, 32), flip=True))
    cache, told = open_cache(out), stats(Store(out))
    rows = [cache.row(i) for i in range(len(cache))]
    point = torch.stack([row[cache.job.point] for row in rows]).double()
    variance = point.var((0, 2, 3), correction=0)
    if value == "moments":
        variance += torch.stack([row["logvar"] for row in rows]).double().exp().mean((0, 2, 3))
    assert told["channels"]["mean"] == pytest.approx(point.mean((0, 2, 3)).tolist(), rel=1e-9)
    assert told["channels"]["std"] == pytest.approx(variance.sqrt().tolist(), rel=1e-9)
    if value != "moments":
        assert told["scaling_factor"] == pytest.approx(float(1 / point.std(correction=0)), rel=1e-9)
    assert told["of"] == {"moments": "samples"}.get(value, value)


@pytest.mark.parametrize(("length", "count"), [(10, 9), (20, 16), (7, 7), (3, 12), (5, 1)])
def test_samples_are_as_many_as_were_asked_for(length: int, count: int) -> None:
    found = evenly(length, count)
    assert len(set(found)) == min(length, count)
    assert found == sorted(found)
    assert found[0] == 0
    assert count == 1 or found[-1] == length - 1


def test_only_caches_are_emptied_and_only_of_what_is_theirs(store: Store, out: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "runs/tensorboard").mkdir(parents=True)
    (project / "cache.json").write_text('{"a": 1}')
    (project / "runs/tensorboard/events").write_text("x")
    with pytest.raises(UsageError, match=r"is not of a cache of latents"):
        empty(Store(project))
    assert (project / "runs/tensorboard/events").read_text() == "x"
    (out / "samples/mine.txt").write_text("x")
    (out / ".gitattributes").write_text("x")
    gc(store)
    (out / ".calotype-000000000000-1-0-12345678").write_text("of a run on another machine that was killed")
    empty(store)
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        ".gitattributes", "samples/mine.txt",
    ]  # fmt: skip


@pytest.mark.parametrize("moment", [0, 1])
def test_a_clearing_up_that_was_killed_loses_nothing(
    moment: int, store: Store, data: Path, out: Path, vae: VAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit was written anew, and the one that it stands for is still there."""
    for name in ("0.png", "3.png", "6.png"):
        (data / name).unlink()
    fill(data, out, vae)

    dropped = []

    def killed(store: Store, unit: str) -> None:
        if len(dropped) == moment:
            raise KeyboardInterrupt
        dropped.append(unit)
        drop(store, unit)

    with monkeypatch.context() as patch:
        patch.setattr(clear, "drop", killed)
        with pytest.raises(KeyboardInterrupt):
            gc(store)
    assert status(store)["done"] == 4
    gc(store)
    told = status(store)
    assert (told["done"], told["missing"], told["stale"]) == (4, 0, 0)
    assert not verify(store)


def test_what_cannot_be_looked_at_is_not_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = first(store.root, "shards").name
    stat = Path.stat

    def refused(self: Path, **more: bool) -> object:
        if self.name == lost:
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **more)

    monkeypatch.setattr(Path, "stat", refused)
    for act in (status, verify, repair, gc):
        with pytest.raises(StorageError, match=r"can't be read \(Permission denied\); look at the disk"):
            act(store)
    monkeypatch.undo()
    assert not verify(store)


def test_nothing_is_cleared_up_while_units_are_damaged(store: Store, out: Path) -> None:
    first(out, "samples").write_bytes(b"short")
    before = contents(out)
    with pytest.raises(UsageError, match=r"1 units are damaged, such as .*calotype cache repair"):
        gc(store)
    assert contents(out) == before


def test_a_damaged_scan_is_repaired(store: Store, data: Path, out: Path, vae: VAE) -> None:
    content = (out / "scan.parquet").read_bytes()
    (out / "scan.parquet").write_bytes(content[:300])
    with pytest.raises(StorageError, match=r"calotype cache repair"):
        status(store)
    dropped, told = repair(store)
    assert list(dropped) == ["scan.parquet"]
    assert told["done"] == 7
    assert not verify(store)
    assert fill(data, out, vae).made == 0
    assert not verify(store)


def test_a_run_that_was_not_finished_is_told_as_that(store: Store, data: Path, out: Path, vae: VAE) -> None:
    before = (out / "manifest.parquet").read_bytes()
    picture(data / "more.png", seed=40)
    fill(data, out, vae)
    (out / "manifest.parquet").write_bytes(before)
    assert verify(store).others == [
        "manifest.parquet is older than the last run, which was not finished: the same command goes on"
    ]
