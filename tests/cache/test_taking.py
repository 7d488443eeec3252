"""Caches of sd-scripts and musubi-tuner taken over: made raw, and held against their pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cachekit import fill, picture
from tradekit import cached, sample_of, vae_of

from calotype.cache import Cache, Rules, open_cache
from calotype.cache.check import verify
from calotype.cache.export import export
from calotype.cache.status import status
from calotype.cache.taking import take
from calotype.errors import CalotypeError, LatentsError, UsageError
from calotype.latent_files import sd_scripts
from calotype.vae import VAE


@pytest.fixture(scope="module")
def made(root: Path, sd1: VAE) -> Path:
    """A folder with a cache, and its pictures with sd-scripts' files beside."""
    (root / "made").mkdir()
    export(cached(root / "made", sd1), root / "made/pictures", "sd-scripts")
    return root / "made"


@pytest.fixture
def beside(made: Path, tmp_path: Path) -> Path:
    """A copy of these pictures, and of the cache in `latents` beside it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "pictures"


def by_name(cache: Cache) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in (cache.row(i) for i in range(len(cache)))}


def rescaled(folder: Path, factor: float) -> None:
    """The files as they would be on another scale."""
    for path in folder.rglob("*.npz"):
        with np.load(path) as arrays:
            told = {name: arrays[name] * (factor if name.startswith("latents") else 1) for name in arrays.files}
        np.savez(path, **told)


def test_sd_scripts_beside_their_pictures(sd1: VAE, beside: Path, tmp_path: Path) -> None:
    done = take(beside, tmp_path / "taken", sd1)
    assert (done.program, done.model, done.samples, done.value, done.flips) == ("sd-scripts", "sd", 5, "sample", True)
    assert (done.pictures, done.notes) == (5, ())
    assert len(done.checked) == 4
    assert all(one.psnr > one.own - 1 for one in done.checked)
    own, taken = (by_name(open_cache(tmp_path / name)) for name in ("latents", "taken"))
    assert own.keys() == taken.keys()
    for name, row in own.items():
        other = taken[name]
        for end in ("", "_flip"):
            assert torch.equal(other[f"latents{end}"], sample_of(row, end=end))
        same = ("key", "caption", "stored_width", "resized_width", "crop_x", "crop_y", "bucket_width", "bucket_height")
        assert [other[column] for column in same] == [row[column] for column in same]
    cache = open_cache(tmp_path / "taken")
    assert not verify(cache.store)
    assert (cache.job.value, cache.job.store, cache.job.vae.sha256) == ("sample", "float32", sd1.sha256)
    told = status(cache.store)
    assert (told["done"], told["missing"], told["bad"]) == (5, 0, 0)
    assert "taken from sd-scripts sd" in next(iter(told["made"]))


@pytest.mark.parametrize(("model", "name", "value"), [
    ("qwen_image", "wan2.1", "mode"), (None, "flux", "mode"), ("flux_2_dev", "flux2", "mode"),
    ("ideogram4", "flux2", "mode"),
])  # fmt: skip
def test_musubi_is_made_raw(model: str | None, name: str, value: str, root: Path, tmp_path: Path) -> None:
    vae = vae_of(root, name)
    out = cached(tmp_path, vae, size=True, flip=False)
    export(out, tmp_path / "pictures", "musubi", model=model, dtype="float32")
    done = take(tmp_path / "pictures", tmp_path / "taken", vae, check=1)
    assert (done.program, done.model, done.value, done.flips) == ("musubi-tuner", model or "z_image", value, False)
    own, taken = by_name(open_cache(out)), by_name(open_cache(tmp_path / "taken"))
    for key, row in own.items():
        assert torch.allclose(taken[key]["latents"], row["mean"].float(), atol=1e-4)


def test_scaled_ones_of_sd_scripts_are_made_raw(root: Path, tmp_path: Path) -> None:
    vae = vae_of(root, "flux")
    out = cached(tmp_path, vae)
    export(out, tmp_path / "pictures", "sd-scripts")
    done = take(tmp_path / "pictures", tmp_path / "taken", vae, store="bfloat16")
    assert (done.model, done.value, len(done.checked)) == ("flux", "sample", 4)
    row, other = by_name(open_cache(out))["cat/0.png"], by_name(open_cache(tmp_path / "taken"))["cat/0.png"]
    wanted = sample_of(row)
    assert other["latents"].dtype == torch.bfloat16
    assert torch.allclose(other["latents"].float(), wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("factor", "said"), [
    (0.18215, "scaled for a diffusion model, have a standard deviation of 0.1"),
    (0.5, r"cat/0\.png: its latents decode with .* dB, and sd1-0\.safetensors's own with .*: they are 0\.5 times what"),
    (2.0, "they are 2 times what this VAE gives, so their scale is another one"),
])  # fmt: skip
def test_another_scale_is_found(factor: float, said: str, sd1: VAE, beside: Path, tmp_path: Path) -> None:
    rescaled(beside, factor)
    with pytest.raises(CalotypeError, match=said):
        take(beside, tmp_path / "taken", sd1)
    assert not (tmp_path / "taken").exists()
    assert not list(tmp_path.glob(".calotype*"))


def test_what_was_cut_out_without_resizing_is_found_right(sd1: VAE, tmp_path: Path) -> None:
    """As with sd-scripts' bucket_no_upscale, of a picture a little larger than its bucket."""
    from PIL import Image

    blocks = np.random.default_rng(0).integers(0, 256, (23, 20, 3), dtype=np.uint8)  # so fine that a place tells
    whole = Image.fromarray(blocks.repeat(2, 0).repeat(2, 1))
    (tmp_path / "pictures").mkdir()
    whole.crop((4, 7, 36, 39)).save(tmp_path / "pictures/a.png")
    fill(tmp_path / "pictures", tmp_path / "latents", sd1, rules=Rules(size=(32, 32)))
    export(tmp_path / "latents", tmp_path / "npz", "sd-scripts")
    whole.save(tmp_path / "npz/a.png")
    (tmp_path / "npz/a_0032x0032_sd.npz").rename(tmp_path / "npz/a_0040x0046_sd.npz")
    (one,) = take(tmp_path / "npz", tmp_path / "taken", sd1).checked
    assert one.apart < 0.01


def test_a_shift_is_found(sd1: VAE, beside: Path, tmp_path: Path) -> None:
    for path in beside.rglob("*.npz"):
        with np.load(path) as arrays:
            told = {name: arrays[name] + (9 if name.startswith("latents") else 0) for name in arrays.files}
        np.savez(path, **told)
    with pytest.raises(CalotypeError, match="near what this VAE gives and not the same, by another shift"):
        take(beside, tmp_path / "taken", sd1)


def test_another_vae_is_found(root: Path, beside: Path, tmp_path: Path) -> None:
    other = vae_of(root, "sd1", seed=1)
    with pytest.raises(CalotypeError, match="another VAE made them, or they are of another picture or crop"):
        take(beside, tmp_path / "taken", other)
    assert not (tmp_path / "taken").exists()
    assert take(beside, tmp_path / "taken", other, check=0).checked == ()


def test_another_picture_is_found(sd1: VAE, beside: Path, tmp_path: Path) -> None:
    picture(beside / "cat/0.png", 40, 40, seed=4)
    with pytest.raises(CalotypeError, match=r"cat/0\.png: its latents decode"):
        take(beside, tmp_path / "taken", sd1)


def test_without_pictures(sd1: VAE, beside: Path, tmp_path: Path) -> None:
    for path in (*beside.rglob("*.png"), *beside.rglob("*.jpg")):
        path.unlink()
    done = take(beside, tmp_path / "taken", sd1)
    assert (done.samples, done.pictures, done.checked) == (5, 0, ())
    assert done.notes == ("No picture lies beside these latents, so nothing was compared but how far they spread.",)
    row = by_name(open_cache(tmp_path / "taken"))["cat/1_0064x0032_sd.npz"]
    assert (row["width"], row["height"], row["bucket_width"]) == (64, 32, 48)


def test_old_files_without_a_model(sd1: VAE, beside: Path, tmp_path: Path) -> None:
    for path in list(beside.rglob("*.npz")):
        path.rename(path.with_name(f"{path.name.rpartition('_')[0].rpartition('_')[0]}.npz"))
    done = take(beside, tmp_path / "taken", sd1)
    assert (done.program, done.model, done.pictures) == ("sd-scripts", "", 5)


def test_masks_are_left_out_and_told_of(sd1: VAE, beside: Path, tmp_path: Path) -> None:
    path = beside / "cat/0_0040x0040_sd.npz"
    with np.load(path) as arrays:
        told = {name: arrays[name] for name in arrays.files}
    np.savez(path, **told, alpha_mask=np.ones((32, 32), np.float32))
    done = take(beside, tmp_path / "taken", sd1, check=0)
    assert done.notes == ("1 of 5 files hold masks or other tensors too, which were left out.",)


def test_files_of_text_encoders_are_left_aside(sd1: VAE, beside: Path, tmp_path: Path) -> None:
    np.savez(beside / "cat/0_sdxl_te_outputs.npz", hidden=np.zeros(3, np.float32))
    np.savez(beside / "cat/0_flux_te.npz", hidden=np.zeros(3, np.float32))
    assert take(beside, tmp_path / "taken", sd1, check=0).samples == 5


@pytest.mark.parametrize(("change", "error", "said"), [
    ("model", UsageError, r"a_0040x0040_flux\.npz: these are latents of format 'flux', and .*sd1"),
    ("mixed", UsageError, r"z_0040x0040\.npz: this is of sd-scripts, and .*/0_0040x0040_sd\.npz of sd-scripts for sd;"),
    ("foreign", LatentsError, r"lora\.safetensors: these are no latents that sd-scripts or musubi-tuner cached"),
    ("bare", LatentsError, r"x\.npz: these are no latents that .* cached, but bare ones"),
    ("damaged", LatentsError, r"cat/1_0064x0032_sd\.npz: "),
    ("flips", LatentsError, r"cat/1_0064x0032_sd\.npz: it has no latents of the mirrored picture"),
    ("sizes", UsageError, r"y_0040x0040_sd\.npz: it holds latents of 2 sizes"),
    ("empty", UsageError, "no .npz of sd-scripts and no .safetensors of musubi-tuner is in it"),
    ("missing", UsageError, "there is no such folder"),
    ("taken", UsageError, "there is something already"),
])  # fmt: skip
def test_what_cannot_be_taken_is_refused_by_name(
    change: str, error: type[CalotypeError], said: str, sd1: VAE, beside: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    first, out = beside / "cat/0_0040x0040_sd.npz", tmp_path / "taken"
    z = np.zeros((4, 4, 4), np.float32)
    if change == "model":
        (beside / "a_0040x0040_flux.npz").write_bytes(
            sd_scripts.packed("flux", torch.zeros(16, 4, 4), (40, 40), (0, 0, 32, 32))
        )
    elif change == "mixed":
        shutil.copy(first, beside / "z_0040x0040.npz")
    elif change == "foreign":
        save_file({"lora_up.weight": torch.zeros(4, 4), "lora_down.weight": torch.zeros(4, 4)},
                  beside / "lora.safetensors")  # fmt: skip
    elif change == "bare":
        np.savez(beside / "x.npz", latents=z)
    elif change == "damaged":
        path = beside / "cat/1_0064x0032_sd.npz"
        path.write_bytes(path.read_bytes()[:300])
    elif change == "flips":
        (beside / "cat/1_0064x0032_sd.npz").write_bytes(
            sd_scripts.packed("sd", torch.ones(4, 2, 6), (64, 32), (0, 0, 48, 16))
        )
    elif change == "sizes":
        np.savez(beside / "y_0040x0040_sd.npz", latents_4x4=z, latents_2x2=z[:, :2, :2])
    elif change == "empty":
        shutil.rmtree(beside)
        beside.mkdir()
    elif change == "missing":
        shutil.rmtree(beside)
    else:
        out.mkdir()
        (out / "mine").touch()
    with pytest.raises(error, match=said):
        take(beside, out, sd1)
    assert not list(tmp_path.glob(".calotype*"))
    assert out.exists() == (change == "taken")


def test_stopped_it_leaves_nothing(sd1: VAE, beside: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(beside, tmp_path / "deep/taken", sd1, tell=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latents", "pictures"]
