"""Datasets over caches: the numbers are those of the cache, fresh each epoch, and the same wherever they are read."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cachekit import fill, folder, picture
from safetensors.torch import load_file, save_file
from support import one_sentence
from torch.utils.data import DataLoader, default_collate

from calotype.cache import BucketBatchSampler, LatentDataset, Rules, open_cache
from calotype.cache.check import drop, repair
from calotype.cache.job import canonical
from calotype.cache.store import Store
from calotype.cache.tables import MANIFEST, parquet, table
from calotype.errors import CalotypeWarning, StorageError, UsageError
from calotype.latents import latent_format_from_dict
from calotype.pixels import read_picture
from calotype.posterior import DiagonalGaussian
from calotype.vae import VAE


def all_of(dataset: LatentDataset) -> dict[str, torch.Tensor]:
    return {one["name"]: one["latents"] for one in map(dataset.__getitem__, range(len(dataset)))}


def with_format(out: Path, format_: dict[str, Any]) -> None:
    """Has a cache say that its latents are of another format."""
    job = open_cache(out).job
    changed = replace(job, vae=replace(job.vae, latent_format=format_))
    Store(out).write("cache.json", canonical(changed.to_dict()))


def open_files() -> set[str]:
    """What this process has open; nothing where the system does not say."""
    with suppress(FileNotFoundError):
        return {path.name for path in Path("/proc/self/fd").iterdir()}
    return set()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of eleven pictures in two shapes."""
    for i in range(11):
        picture(tmp_path / "mixed" / f"{i:02}.png", *((32, 16) if i % 3 else (16, 32)), seed=i)
    return tmp_path / "mixed"


@pytest.fixture
def bucketed(mixed: Path, out: Path, vae: VAE) -> Path:
    """A cache of them, with what is mirrored."""
    fill(mixed, out, vae, rules=Rules(buckets="24/8", flip=True))
    return out


def test_modes_are_those_of_encode(tmp_path: Path, out: Path, vae: VAE) -> None:
    data = tmp_path / "data"
    for i in range(3):
        picture(data / f"{i}.png", 16, 16, seed=i)
    fill(data, out, vae, store="float32")
    raw, model = (LatentDataset(out, value="mode", scaled=scaled) for scaled in (False, True))
    assert raw.latent_format is None
    for i in range(3):
        posterior = vae.encode(read_picture(data / f"{i}.png").pixels[None])
        assert torch.equal(raw[i]["latents"], posterior.mean[0])
        assert torch.equal(model[i]["latents"], vae.latent_format.to_model(posterior.mean)[0])
        assert not torch.equal(raw[i]["latents"], model[i]["latents"])


def test_samples_have_the_mean_and_the_variance_that_are_kept(data: Path, out: Path, vae: VAE) -> None:
    fill(data, out, vae)
    dataset, row = LatentDataset(out, scaled=False), open_cache(out).row(4)
    drawn = []
    for epoch in range(400):
        dataset.set_epoch(epoch)
        drawn.append(dataset[4]["latents"])
    posterior = DiagonalGaussian(torch.cat([row["mean"], row["logvar"]])[None].float())
    apart = (torch.stack(drawn) - posterior.mean) / posterior.std
    assert apart.mean(0).abs().max() < 5 / 400**0.5
    assert (apart.std(0) - 1).abs().max() < 5 / (2 * 400) ** 0.5


def test_samples_are_those_of_the_posterior_to_the_bit(data: Path, out: Path, vae: VAE) -> None:
    fill(data, out, vae)
    dataset, row = LatentDataset(out, scaled=False, seed=3), open_cache(out).row(4)
    dataset.set_epoch(2)
    noise = hashlib.sha256(b"3 2 " + row["key"]).digest()[:8]
    posterior = DiagonalGaussian(torch.cat([row["mean"], row["logvar"]])[None].float())
    drawn = posterior.sample(torch.Generator().manual_seed(int.from_bytes(noise, "little") >> 1))
    assert torch.equal(dataset[4]["latents"], drawn[0])


def test_an_epoch_draws_anew_and_the_same_again(data: Path, out: Path, vae: VAE) -> None:
    fill(data, out, vae)
    dataset = LatentDataset(out)
    first = all_of(dataset)
    dataset.set_epoch(1)
    second = all_of(dataset)
    assert not any(torch.equal(first[name], second[name]) for name in first)
    dataset.set_epoch(0)
    assert equal(all_of(dataset), first)
    assert equal(all_of(LatentDataset(out)), first)
    assert not equal(all_of(LatentDataset(out, seed=1)), first)


def test_a_sample_depends_on_its_picture_and_not_on_its_place(tmp_path: Path, data: Path, out: Path, vae: VAE) -> None:
    fill(data, out, vae)
    before = all_of(LatentDataset(out))
    (data / "0.png").unlink()
    shutil.copy(data / "3.png", data / "9.png")
    fill(data, tmp_path / "again", vae)
    after = all_of(LatentDataset(tmp_path / "again"))
    assert torch.equal(after.pop("9.png"), after["3.png"])  # of the same bytes
    assert equal(after, {name: one for name, one in before.items() if name != "0.png"})


def test_a_batch_is_its_samples_whatever_their_order(bucketed: Path) -> None:
    dataset = LatentDataset(bucketed)
    order = [7, 2, 10, 0, 2]
    for one, i in zip(dataset.__getitems__(order), order, strict=True):
        assert one["index"] == i
        assert torch.equal(one["latents"], dataset[i]["latents"])


@pytest.mark.parametrize("given", [{}, {"value": "mode"}, {"scaled": False}])
def test_a_batch_is_what_torch_collates(given: dict[str, Any], bucketed: Path) -> None:
    dataset = LatentDataset(bucketed, **given)
    order = np.flatnonzero(dataset.bucket == 1)[::-1].tolist()
    batch, collated = dataset.read_batch(order), default_collate(dataset.__getitems__(order))
    assert batch.keys() == collated.keys()
    for name, value in collated.items():
        same = torch.equal(batch[name], value) if isinstance(value, torch.Tensor) else batch[name] == value
        assert same, name
    assert torch.equal(dataset[order]["latents"], batch["latents"])


@pytest.mark.parametrize("indices", [range(11), []])
def test_a_batch_is_of_one_bucket(indices: list[int], bucketed: Path) -> None:
    with pytest.raises(UsageError, match="samples of one bucket"):
        LatentDataset(bucketed).read_batch(indices)


def test_a_sample_keeps_no_more_than_itself(bucketed: Path) -> None:
    for given in ({}, {"value": "mode"}, {"value": "mode", "scaled": False}):
        for one in LatentDataset(bucketed, **given).__getitems__(range(3)):
            assert one["latents"].untyped_storage().nbytes() == one["latents"].nbytes
            assert one["latents"].dtype == torch.float32


def test_what_is_said_of_a_sample(tmp_path: Path, out: Path, vae: VAE) -> None:
    picture(tmp_path / "data" / "red" / "a.png", 64, 40)
    (tmp_path / "data" / "red" / "a.txt").write_text("an apple")
    picture(tmp_path / "data" / "blue" / "b.png", 64, 40, seed=1)
    fill(tmp_path / "data", out, vae, rules=Rules(size=(16, 16), crop="random", flip=True), folders=True)
    seen = set()
    dataset = LatentDataset(out)
    rows = [open_cache(out).row(i) for i in range(2)]
    assert dataset.labels == ["blue", "red"]
    assert dataset.captions == [None, "an apple"]
    for epoch in range(20):
        dataset.set_epoch(epoch)
        for one, row in zip(map(dataset.__getitem__, range(2)), rows, strict=True):
            left = row["crop_x"] if not one["flipped"] else row["resized_width"] - 16 - row["crop_x"]
            assert one["time_ids"].tolist() == [40, 64, row["crop_y"], left, 16, 16]
            assert (one["caption"], one["label"]) == (row["caption"] or "", row["label"])
            assert (one["name"], one["key"]) == (row["name"], row["key"].hex())
            seen.add((one["name"], one["flipped"]))
    assert len(seen) == 4


def test_mirrored_latents_are_those_that_were_cached(bucketed: Path) -> None:
    cache, flips = open_cache(bucketed), 0
    dataset = LatentDataset(bucketed, value="mode", scaled=False)
    for i in range(len(dataset)):
        one = dataset[i]
        flips += one["flipped"]
        assert torch.equal(one["latents"], cache.row(i)["mean_flip" if one["flipped"] else "mean"].float())
    assert 0 < flips < len(dataset)
    assert not any(LatentDataset(bucketed, flip=False)[i]["flipped"] for i in range(len(dataset)))


@pytest.mark.parametrize("value", ["mode", "sample"])
def test_caches_of_points_give_what_they_keep(value: str, data: Path, out: Path, vae: VAE) -> None:
    fill(data, out, vae, value=value, store="bfloat16")
    dataset = LatentDataset(out, scaled=False)
    assert torch.equal(dataset[2]["latents"], open_cache(out).row(2)["latents"].float())
    dataset.set_epoch(3)
    assert torch.equal(dataset[2]["latents"], open_cache(out).row(2)["latents"].float())
    other: Any = {"mode": "sample", "sample": "mode"}[value]
    with pytest.raises(UsageError, match=f"keeps each posterior's {value}"):
        LatentDataset(out, value=other)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, from Python 3.12 on
@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_give_the_same_as_one_process(context: str, bucketed: Path) -> None:
    dataset = LatentDataset(bucketed)
    sampler = BucketBatchSampler(dataset, 2)
    dataset[0]  # so that this process has a shard open
    kept = context == "fork"
    loader = DataLoader(
        dataset, sampler=sampler, batch_size=None, num_workers=2, multiprocessing_context=context,
        persistent_workers=True,
    )  # fmt: skip
    epochs = []
    for epoch in range(2 if kept else 1):
        sampler.set_epoch(epoch)
        found = list(loader)
        alone = list(DataLoader(dataset, batch_sampler=sampler))  # sample by sample, and collated by torch
        assert [one["name"] for one in found] == [one["name"] for one in alone]
        assert all(torch.equal(a["latents"], b["latents"]) for a, b in zip(found, alone, strict=True))
        assert sum(len(one["name"]) for one in found) == 11
        names = [name for one in found for name in one["name"]]
        epochs.append(dict(zip(names, (row for one in found for row in one["latents"]), strict=True)))
    if kept:  # workers that stay see the epoch
        assert not any(torch.equal(epochs[0][name], epochs[1][name]) for name in epochs[0])


def test_it_can_be_pickled_and_takes_no_open_file_along(bucketed: Path) -> None:
    dataset = LatentDataset(bucketed, seed=5, value="sample")
    dataset.set_epoch(2)
    before = open_files()
    first = all_of(dataset)
    assert open_files() == before
    data = pickle.dumps(dataset)
    assert len(data) < 3000
    assert equal(all_of(pickle.loads(data)), first)


def test_a_cache_that_grew_is_not_read_by_a_pickle_of_before(data: Path, out: Path, vae: VAE) -> None:
    fill(data, out, vae)
    kept = pickle.dumps(LatentDataset(out))
    picture(data / "00.png", seed=40)
    fill(data, out, vae)
    with pytest.raises(StorageError, match="was changed since"):
        pickle.loads(kept)[0]


def test_refusals(tmp_path: Path, data: Path, out: Path, vae: VAE) -> None:
    with pytest.raises(UsageError, match="no cache here") as told:
        LatentDataset(tmp_path)
    one_sentence(str(told.value))
    fill(data, out, vae)
    wrong: Any = "mean"
    with pytest.raises(UsageError, match="'mean'"):
        LatentDataset(out, value=wrong)
    with pytest.raises(IndexError):
        LatentDataset(out)[7]
    shutil.move(out / "receipts", tmp_path / "receipts")
    with pytest.raises(StorageError, match="3 units of the manifest have no receipt") as told_:
        LatentDataset(out)
    one_sentence(str(told_.value))


def test_pictures_that_are_missing_are_said(data: Path, out: Path, vae: VAE) -> None:
    fill(data, out, vae)
    drop(Store(out), open_cache(out).units[0])
    repair(Store(out))
    with pytest.warns(CalotypeWarning, match="3 pictures are not cached yet"):
        assert len(LatentDataset(out)) == 4


def test_shards_of_other_shapes_are_refused(data: Path, out: Path, vae: VAE) -> None:
    fill(data, out, vae, value="mode")
    paths = sorted(out.glob("shards/*/*.safetensors"))
    for i, change in enumerate((lambda x: x[:, :, :1], lambda x: x.float(), lambda x: x[:1])):
        shutil.copytree(out, out.parent / f"changed {i}")
        for path in paths:
            tensors = {name: change(tensor).clone() for name, tensor in load_file(path).items()}
            save_file(tensors, out.parent / f"changed {i}" / path.relative_to(out))
        with pytest.raises(StorageError, match="calotype cache repair mends it") as told:
            LatentDataset(out.parent / f"changed {i}").__getitems__(range(7))
        one_sentence(str(told.value))
    paths[0].unlink()
    with pytest.raises(StorageError, match="can't be read"):
        LatentDataset(out).__getitems__(range(7))


@pytest.mark.parametrize(
    ("format_", "why"),
    [
        ({"kind": "of tomorrow", "name": "x", "channels": 4}, "of tomorrow"),
        ({"kind": "packed_untold", "name": "flux2", "channels": 4}, "came without a VAE"),
        ({"kind": "scale_shift", "name": "x", "channels": 8, "scaling_factor": 2.0}, "8"),
    ],
)
def test_a_format_that_nobody_knows_is_said(format_: dict[str, Any], why: str, data: Path, out: Path, vae: VAE) -> None:
    fill(data, out, vae)
    with_format(out, format_)
    with pytest.raises(UsageError, match="scaled=False") as told:
        LatentDataset(out)
    assert why in str(told.value)
    assert LatentDataset(out, scaled=False)[0]["latents"].shape == (4, 2, 2)


def test_packed_latents_come_packed_and_odd_ones_are_refused(tmp_path: Path, data: Path, out: Path, vae: VAE) -> None:
    packed = {
        "kind": "packed", "name": "flux2", "channels": 4, "running_mean": [0.5] * 16, "running_var": [4.0] * 16,
        "eps": 0.0,
    }  # fmt: skip
    for size, path in (((16, 16), out), ((24, 16), tmp_path / "odd")):
        fill(data, path, vae, rules=Rules(size=size))
        with_format(path, packed)
    row = open_cache(out).row(0)["mean"].float()
    format_ = latent_format_from_dict(packed)
    found = LatentDataset(out, value="mode")[0]["latents"]
    assert found.shape == (16, 1, 1)
    assert torch.equal(found, format_.to_model(row[None])[0])
    with pytest.raises(UsageError, match="24x16 pixels are 3x2"):
        LatentDataset(tmp_path / "odd")


def test_an_empty_cache_is_refused(tmp_path: Path, out: Path, vae: VAE) -> None:
    fill(folder(tmp_path / "data", 1), out, vae)
    cache = open_cache(out)
    rows = table({name: [] for name in MANIFEST}, MANIFEST)
    Store(out).write("manifest.parquet", parquet(rows, {"fingerprint": cache.job.fingerprint}))
    with pytest.raises(UsageError, match="has no samples") as told:
        LatentDataset(out)
    one_sentence(str(told.value))


def test_buckets_are_those_of_the_manifest(bucketed: Path) -> None:
    dataset, rows = LatentDataset(bucketed), open_cache(bucketed).samples
    sizes = [dataset.buckets[i] for i in dataset.bucket]
    assert sizes == list(zip(rows["bucket_width"].to_pylist(), rows["bucket_height"].to_pylist(), strict=True))
    assert len(dataset.buckets) == 2
    assert np.bincount(dataset.bucket).sum() == 11
