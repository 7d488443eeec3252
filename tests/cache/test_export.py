"""Latents handed over: each format by the reader it is for, and in the value, space and type that it wants."""

from __future__ import annotations

import gc
import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cachekit import picture
from safetensors import safe_open
from torch import Tensor
from tradekit import cached, format_of, sample_of, vae_of

from calotype.cache import Cache, Rules, open_cache
from calotype.cache.export import FORMATS, export
from calotype.cli.cache_trade import To
from calotype.errors import CalotypeError, UsageError
from calotype.latent_files import load_latents, open_latents
from calotype.latents import KNOWN
from calotype.vae import VAE

STEMS = ("cat/0", "cat/1", "dog/2", "dog/3.v2", "dog/4")


@pytest.fixture(scope="module")
def several(root: Path, sd1: VAE) -> Cache:
    """Five pictures of three sizes, moments with flips in float16."""
    return open_cache(cached(root / "several", sd1))


@pytest.fixture(scope="module")
def square(root: Path, sd1: VAE) -> Cache:
    """The same ones, all of one size."""
    return open_cache(cached(root / "square", sd1, size=True))


def given(cache: Cache, dest: Path, to: str, **more: Any) -> Any:
    return export(cache.store.root, dest, to, **more)


def by_webdataset(paths: list[Path]) -> list[dict[str, Any]]:
    """What the package `webdataset` reads; it leaves its files to the garbage collector, which warns of each."""
    webdataset = pytest.importorskip("webdataset")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        read = list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False).decode())
        gc.collect()
    return read


def test_the_command_line_has_all_formats() -> None:
    assert [one.value for one in To] == list(FORMATS)


def test_samples_are_those_that_make_would_draw(root: Path, sd1: VAE, several: Cache) -> None:
    made = open_cache(cached(root / "drawn", sd1, value="sample", store="float32"))
    for i in range(len(made)):
        own, row = made.row(i), several.row(i)
        for end in ("", "_flip"):  # moments are stored in float16
            assert torch.allclose(own[f"latents{end}"], sample_of(row, end=end), rtol=2e-3, atol=2e-3)
            assert not torch.equal(sample_of(row, end=end), sample_of(row, 1, end))


@pytest.mark.slow
def test_webdataset_by_both_readers(several: Cache, tmp_path: Path) -> None:
    done = given(several, tmp_path / "tars", "webdataset")
    assert (done.samples, done.value, done.space, done.dtype, done.flips) == (5, "mode", "raw", "float16", True)
    read = by_webdataset(list((tmp_path / "tars").glob("*.tar")))
    assert len(read) == 5
    for i, one in enumerate(read):
        row = several.row(i)
        assert one["npy"].dtype == np.float16
        assert np.array_equal(one["npy"], row["mean"].numpy())
        assert np.array_equal(one["flip.npy"], row["mean_flip"].numpy())
        assert one["txt"] == (row["caption"] or "")
        told = one["json"]
        assert (told["name"], told["label"], told["sha256"]) == (row["name"], row["label"], row["key"].hex())
        assert (told["space"], told["latent_format"], told["value"]) == ("raw", "sd1", "mode")
        assert told["vae_sha256"] == several.job.vae.sha256
        assert told["bucket"] == [row["bucket_width"], row["bucket_height"]]
    about = json.loads((tmp_path / "tars/config.json").read_text())
    assert about["latent_format"]["scaling_factor"] == 0.18215
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(
        "webdataset", data_dir=str(tmp_path / "tars"), split="train", cache_dir=str(tmp_path / "hf")
    )
    assert len(rows) == 5
    for i, one in enumerate(rows):
        assert "." not in one["__key__"]
        assert np.array_equal(np.array(one["npy"], dtype=np.float16), several.row(i)["mean"].numpy())


@pytest.mark.slow
def test_webdataset_in_several_shards(several: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calotype.cache.export import webdataset as module

    monkeypatch.setattr(module, "SHARD_BYTES", 12_000)
    given(several, tmp_path / "tars", "webdataset", value="sample", space="model", dtype="float32", seed=3)
    tars = sorted(path.name for path in (tmp_path / "tars").glob("*.tar"))
    assert tars == ["000000.tar", "000001.tar", "000002.tar"]
    read = by_webdataset([tmp_path / "tars" / name for name in tars])
    for i, one in enumerate(read):
        row = several.row(i)
        assert torch.equal(torch.from_numpy(one["npy"]), 0.18215 * sample_of(row, 3))
        assert torch.equal(torch.from_numpy(one["flip.npy"]), 0.18215 * sample_of(row, 3, "_flip"))
    assert len(read) == 5


@pytest.mark.parametrize(("name", "suffix", "scaled", "drawn_", "sized"), [
    ("sd1", "sd", False, "sample", False),
    ("flux", "flux", True, "sample", True),
    ("wan2.1", "anima", True, "mode", True),
])  # fmt: skip
def test_sd_scripts(name: str, suffix: str, scaled: bool, drawn_: str, sized: bool, root: Path, tmp_path: Path) -> None:
    cache = open_cache(cached(tmp_path, vae_of(root, name)))
    done = given(cache, tmp_path / "npz", "sd-scripts", seed=7)
    assert (done.value, done.space, done.dtype) == (drawn_, "model" if scaled else "raw", "float32")
    made = sorted(path.relative_to(tmp_path / "npz").as_posix() for path in (tmp_path / "npz").rglob("*.npz"))
    rows = [cache.row(i) for i in range(5)]
    names = [
        f"{stem}_{row['stored_width']:04d}x{row['stored_height']:04d}_{suffix}.npz"
        for stem, row in zip(STEMS, rows, strict=True)
    ]
    assert made == sorted(names)
    assert names[1] == f"cat/1_0064x0032_{suffix}.npz"
    for path, row in zip(names, rows, strict=True):
        h, w = row["mean"].shape[1:]
        end = f"_{h}x{w}" if sized else ""
        with np.load(tmp_path / "npz" / path) as arrays:
            assert set(arrays.files) == {
                f"{key}{end}" for key in ("latents", "latents_flipped", "original_size", "crop_ltrb")
            }
            for key, flip in (("latents", ""), ("latents_flipped", "_flip")):
                raw = sample_of(row, 7, flip) if drawn_ == "sample" else row[f"mean{flip}"].float()
                wanted = KNOWN[name].to_model(raw[None])[0] if scaled else raw
                assert arrays[key + end].dtype == np.float32
                assert torch.equal(torch.from_numpy(arrays[key + end]), wanted)
            assert arrays["original_size" + end].tolist() == [row["stored_width"], row["stored_height"]]
        one = open_latents(tmp_path / "npz" / path)
        assert (one.program, one.model, one.space, one.drawn) == ("sd-scripts", suffix, done.space, drawn_)
        assert torch.allclose(one[0].to_raw().tensor, sample_of(row, 7) if drawn_ == "sample" else row["mean"].float(),
                              atol=1e-5)  # fmt: skip


def test_sd_scripts_keeps_the_crop_as_a_letterbox(several: Cache, tmp_path: Path) -> None:
    given(several, tmp_path / "npz", "sd-scripts")
    with np.load(tmp_path / "npz/cat/1_0064x0032_sd.npz") as arrays:  # 2:1 in a bucket of 48x16
        assert arrays["crop_ltrb"].tolist() == [8.0, 0.0, 40.0, 16.0]
    with np.load(tmp_path / "npz/cat/0_0040x0040_sd.npz") as arrays:
        assert arrays["crop_ltrb"].tolist() == [0.0, 0.0, 32.0, 32.0]


def test_sd_scripts_beside_the_pictures_goes_on(several: Cache, tmp_path: Path) -> None:
    dest = tmp_path / "photos"
    dest.mkdir()
    (dest / "own.txt").write_text("mine")
    calls = []

    def stop(done: int, total: int) -> None:
        calls.append((done, total))
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        given(several, dest, "sd-scripts", tell=stop)
    first = {path: path.stat().st_mtime_ns for path in dest.rglob("*.npz")}
    assert len(first) == 2
    assert not list(dest.rglob(".calotype*"))
    assert given(several, dest, "sd-scripts").samples == 5
    assert len(list(dest.rglob("*.npz"))) == 5
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in first.items())
    other = next(iter(first))
    other.write_bytes(b"other")
    with pytest.raises(UsageError, match="this file is there already, and is another one"):
        given(several, dest, "sd-scripts")
    assert other.read_bytes() == b"other"


@pytest.mark.parametrize(("model", "name", "short", "key", "shape", "scaled"), [
    ("qwen_image", "wan2.1", "qi", "latents_1x4x4_float16", (16, 1, 4, 4), True),
    ("wan", "wan2.1", "wan", "latents_1x4x4_float16", (16, 1, 4, 4), True),
    ("krea2", "wan2.1", "kr2", "latents_1x4x4_float16", (16, 1, 4, 4), True),
    (None, "flux", "zi", "latents_1x4x4_float16", (16, 4, 4), False),
    ("flux_2_dev", "flux2", "f2d", "latents_2x2_float16", (128, 2, 2), True),
    ("ideogram4", "flux2", "i4", "latents_1x2x2_float16", (128, 2, 2), False),
])  # fmt: skip
def test_musubi(
    model: str | None, name: str, short: str, key: str, shape: tuple[int, ...], scaled: bool, root: Path, tmp_path: Path
) -> None:
    vae = vae_of(root, name)
    cache = open_cache(cached(tmp_path, vae, size=True))
    done = given(cache, tmp_path / "made", "musubi", model=model)
    assert (done.value, done.space) == ("mode", "model" if scaled else "raw")
    assert done.notes == ("musubi-tuner has no place for latents of mirrored pictures; they were left out.",)
    path = tmp_path / f"made/cat/1_0064x0032_{short}.safetensors"
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == [key]
        assert tuple(file.get_tensor(key).shape) == shape
        told = file.metadata()
    assert told == {
        "architecture": model or "z_image", "width": "64", "height": "32", "format_version": "1.0.1"
    }  # fmt: skip
    mean = cache.row(1)["mean"].float()
    one = open_latents(path)
    assert (one.program, one.space, one.drawn) == ("musubi-tuner", done.space, "mode")
    read = one[0]
    wanted = format_of(name).to_model(mean[None])[0] if scaled else mean
    assert torch.equal(read.tensor, wanted.half().float())


@pytest.mark.parametrize(("to", "more", "said"), [
    ("musubi", {}, "musubi-tuner has no pictures' latents of format 'sd1'"),
    ("sd-scripts", {"model": "sdxl"}, "--model sdxl: sd-scripts keeps latents of format 'sd1' for sd."),
    ("sd-scripts", {"space": "model"}, "sd-scripts reads raw latents; leave out --space"),
    ("sd-scripts", {"dtype": "float16"}, "sd-scripts reads float32; leave out --dtype"),
    ("lightningdit", {}, r"one size, and this cache has 3 \(16x48, 32x32, 48x16\); give --bucket 16x48"),
    ("mds", {}, "An MDS data set reads latents of one size"),
    ("webdataset", {"dtype": "bfloat16"}, "WebDataset's .npy holds no bfloat16, which is asked for; give --dtype"),
    ("numpy", {"bucket": (64, 64)}, "no such samples in this cache; it has sizes 16x48, 32x32, 48x16"),
    ("numpy", {"value": "moments"}, "--value moments: give one of mode, sample"),
    ("zarr", {}, "--to zarr: give one of webdataset, sd-scripts"),
])  # fmt: skip
def test_what_a_format_cannot_hold_is_refused(
    to: str, more: dict[str, Any], said: str, several: Cache, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        given(several, tmp_path / "dest", to, **more)
    assert not list(tmp_path.iterdir())


def test_what_a_cache_lacks_is_refused_or_told(root: Path, sd1: VAE, tmp_path: Path) -> None:
    plain = open_cache(cached(tmp_path, sd1, size=True, flip=False, value="mode", store="bfloat16"))
    with pytest.raises(
        UsageError, match="LightningDiT reads latents of mirrored pictures too, and this cache has none"
    ):
        given(plain, tmp_path / "dest", "lightningdit")
    with pytest.raises(UsageError, match="--value sample: this cache keeps the mode alone"):
        given(plain, tmp_path / "dest", "webdataset", value="sample")
    with pytest.raises(UsageError, match="holds no bfloat16, which this cache is stored in; give --dtype float32"):
        given(plain, tmp_path / "dest", "numpy")
    done = given(plain, tmp_path / "dest", "sd-scripts")
    assert done.notes == ("sd-scripts keeps the sample itself, and this cache has the mode alone.",)
    assert torch.equal(load_latents(tmp_path / "dest/cat/0_0040x0040_sd.npz").tensor, plain.row(0)["latents"].float())


def test_a_picture_on_its_side_is_told_of(sd1: VAE, tmp_path: Path) -> None:
    from cachekit import fill
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "data/a.jpg", 64, 32, exif=exif)
    fill(tmp_path / "data", tmp_path / "latents", sd1, rules=Rules(size=(16, 16)))
    done = given(open_cache(tmp_path / "latents"), tmp_path / "npz", "sd-scripts")
    assert "for those that lie on their side in their files, 1 here;" in done.notes[0]
    assert [path.name for path in (tmp_path / "npz").iterdir()] == ["a_0064x0032_sd.npz"]


def test_two_pictures_of_one_file_are_refused(sd1: VAE, tmp_path: Path) -> None:
    from cachekit import fill

    picture(tmp_path / "data/a.png")
    picture(tmp_path / "data/a.jpg", seed=1)
    fill(tmp_path / "data", tmp_path / "latents", sd1)
    with pytest.raises(UsageError, match=r"a\.jpg and a\.png would have one file, for sd-scripts"):
        given(open_cache(tmp_path / "latents"), tmp_path / "npz", "sd-scripts")
    assert not (tmp_path / "npz").exists()


def test_parquet_by_datasets(several: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calotype.cache.export import parquet as module

    monkeypatch.setattr(module, "FILE_BYTES", 700)
    monkeypatch.setattr(module, "GROUP_BYTES", 300)
    given(several, tmp_path / "set", "diffusers-parquet")
    files = sorted(path.name for path in (tmp_path / "set").glob("*.parquet"))
    assert files == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(
        "parquet", data_dir=str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "hf")
    ).with_format("numpy")
    assert len(rows) == 5
    for i, one in enumerate(rows):
        row = several.row(i)
        for name, own in (("latents", "mean"), ("latents_flip", "mean_flip")):
            assert np.array_equal(one[name].reshape(one["shape"]), row[own].numpy())
        assert (one["name"], one["label"], one["bucket_width"]) == (row["name"], row["label"], row["bucket_width"])


def test_lightningdit_as_its_reader_has_it(square: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calotype.cache.export import lightningdit as module

    monkeypatch.setattr(module, "SHARD", 3)
    done = given(square, tmp_path / "made", "lightningdit")
    assert (done.value, done.space, done.dtype) == ("sample", "raw", "float32")
    files = sorted(path.name for path in (tmp_path / "made").glob("*.safetensors"))
    assert files == ["latents_rank00_shard000.safetensors", "latents_rank00_shard001.safetensors"]
    found: dict[str, list[Tensor]] = {"latents": [], "latents_flip": [], "labels": []}
    for name in files:
        with safe_open(tmp_path / "made" / name, "pt") as file:
            assert set(file.keys()) == set(found)
            for key in found:
                found[key].append(file.get_slice(key)[:])
            assert file.metadata()["total_size"] == str(len(found["labels"][-1]))
    latents, flips, labels = (torch.cat(parts) for parts in found.values())
    assert latents.dtype == torch.float32
    assert (labels.dtype, labels.tolist()) == (torch.int64, [0, 0, 1, 1, 1])
    assert json.loads((tmp_path / "made/classes.json").read_text()) == ["cat", "dog"]
    for i in range(5):
        assert torch.equal(latents[i], sample_of(square.row(i)))
        assert torch.equal(flips[i], sample_of(square.row(i), end="_flip"))
    told = torch.load(tmp_path / "made/latents_stats.pt")
    assert torch.allclose(told["mean"], latents.mean(dim=[0, 2, 3], keepdim=True), atol=1e-5)
    assert torch.allclose(told["std"], latents.std(dim=[0, 2, 3], keepdim=True), rtol=1e-5)


def test_lightningdit_needs_labels(sd1: VAE, tmp_path: Path) -> None:
    from cachekit import fill

    picture(tmp_path / "data/a.png")
    fill(tmp_path / "data", tmp_path / "latents", sd1, rules=Rules(size=(16, 16), flip=True))
    with pytest.raises(UsageError, match=r"1 have no label, such as a\.png"):
        given(open_cache(tmp_path / "latents"), tmp_path / "made", "lightningdit")
    assert not (tmp_path / "made").exists()


def test_lightningdit_keeps_labels_apart_that_are_one_number(sd1: VAE, tmp_path: Path) -> None:
    from cachekit import fill

    for i, label in enumerate(("1", "01", "7")):
        picture(tmp_path / "data" / label / f"{i}.png", seed=i)
    fill(tmp_path / "data", tmp_path / "latents", sd1, rules=Rules(size=(16, 16), flip=True), folders=True)
    given(open_cache(tmp_path / "latents"), tmp_path / "made", "lightningdit")
    with safe_open(tmp_path / "made/latents_rank00_shard000.safetensors", "pt") as file:
        labels = file.get_slice("labels")[:].tolist()
    assert sorted(labels) == [0, 1, 2]
    assert json.loads((tmp_path / "made/classes.json").read_text()) == ["01", "1", "7"]


def read_mds(folder: Path) -> list[dict[str, bytes]]:
    """All samples of an MDS data set, as the format's description says they lie."""
    found = []
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        assert (shard["version"], shard["format"], shard["compression"]) == (2, "mds", None)
        content = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(content) == shard["raw_data"]["bytes"]
        ends = np.frombuffer(content, "<u4", shard["samples"] + 1, 4)
        assert np.frombuffer(content, "<u4", 1)[0] == shard["samples"]
        names = shard["column_names"]
        for begin, end in pairwise(ends.tolist()):
            sizes = np.frombuffer(content, "<u4", len(names), begin)
            assert begin + 4 * len(names) + sizes.sum() == end
            at, one = begin + 4 * len(names), {}
            for name, size in zip(names, sizes, strict=True):
                one[name], at = content[at : at + size], at + size
            found.append(one)
    return found


def test_mds_as_micro_diffusion_reads_it(square: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calotype.cache.export import mds as module

    monkeypatch.setattr(module, "SHARD_BYTES", 1000)
    done = given(square, tmp_path / "made", "mds")
    assert (done.value, done.space, done.dtype, done.flips) == ("sample", "model", "float16", False)
    assert len(list((tmp_path / "made").glob("shard.*.mds"))) > 1
    read = read_mds(tmp_path / "made")
    assert len(read) == 5
    for i, one in enumerate(read):
        row = square.row(i)
        values = np.frombuffer(one["latents_32"], np.float16).reshape(-1, 4, 4)
        assert torch.equal(torch.from_numpy(values.copy()), (0.18215 * sample_of(row)).half())
        assert (one["name"].decode(), one["caption"].decode()) == (row["name"], row["caption"] or "")


def test_numpy_of_each_size(several: Cache, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    given(several, tmp_path / "made", "numpy", space="model", dtype="float32")
    index = pq.read_table(tmp_path / "made/index.parquet").to_pylist()
    rows = {row["name"]: row for row in (several.row(i) for i in range(5))}
    assert {one["name"] for one in index} == set(rows)
    for one in index:
        for name, own in ((one["file"], "mean"), (one["file"].replace(".npy", "-flip.npy"), "mean_flip")):
            array = np.load(tmp_path / "made" / name, mmap_mode="r")
            assert array.dtype == np.float32
            wanted = 0.18215 * rows[one["name"]][own].float()
            assert torch.equal(torch.from_numpy(array[one["row"]].copy()), wanted)
    assert {one["file"] for one in index} == {"16x48.npy", "32x32.npy", "48x16.npy"}


@pytest.mark.parametrize("to", [name for name in FORMATS if name != "musubi"])
def test_an_export_that_is_stopped_leaves_nothing(to: str, square: Cache, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 5
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        given(square, tmp_path / "deep/dest", to, tell=stop)
    assert not list(tmp_path.rglob("*"))
    given(square, tmp_path / "deep/dest", to)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    given(square, tmp_path / "again", to)
    assert {tmp_path / "deep/dest" / path.relative_to(tmp_path / "again"): path.read_bytes()
            for path in (tmp_path / "again").rglob("*") if path.is_file()} == before  # fmt: skip


def test_where_it_may_be_written(square: Cache, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this is the cache itself, or lies in it"):
        given(square, square.store.root / "inside", "numpy")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a").touch()
    with pytest.raises(UsageError, match="there is something in this folder already"):
        given(square, tmp_path / "full", "numpy")
    (tmp_path / "empty").mkdir()
    given(square, tmp_path / "empty", "numpy")
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == [
        "32x32-flip.npy", "32x32.npy", "config.json", "index.parquet"
    ]  # fmt: skip


def test_a_damaged_shard_ends_it(sd1: VAE, tmp_path: Path) -> None:
    cache = open_cache(cached(tmp_path, sd1))
    shard = next((tmp_path / "latents/shards").rglob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CalotypeError, match="this shard can't be read"):
        given(cache, tmp_path / "made", "webdataset")
    assert not (tmp_path / "made").exists()
