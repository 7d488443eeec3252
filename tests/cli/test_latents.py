"""`calotype encode` and `calotype decode`: there and back with nothing but the file between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from clikit import Calotype, draw, files, levels, small_vae
from PIL import Image, features
from support import room

from calotype.cli import common
from calotype.latent_files import load_latents


@pytest.mark.slow
def test_latents_know_all_that_decoding_needs(calotype: Calotype) -> None:
    draw("photos/a.png", 37, 50)
    draw("photos/b.jpg", 13, 7)
    ran = calotype("encode", "photos/a.png", "photos/b.jpg", "--out", "latents")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "photos/a.png -> latents/a.latents.safetensors [16, 7, 5], raw, format builtin",
        "photos/b.jpg -> latents/b.latents.safetensors [16, 1, 2], raw, format builtin",
    ]
    for path in Path("photos").iterdir():
        path.unlink()
    ran = calotype("decode", "latents/a.latents.safetensors", "latents/b.latents.safetensors", "--out", "again")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "latents/a.latents.safetensors -> again/a-decoded.png (37x50)",
        "latents/b.latents.safetensors -> again/b-decoded.png (13x7)",
    ]
    assert levels("again/a-decoded.png").shape == (50, 37, 3)
    assert levels("again/b-decoded.png").shape == (7, 13, 3)


def test_json(calotype: Calotype, vae: Path) -> None:
    draw("a.png", 20, 12)
    ran = calotype("encode", "a.png", "--vae", vae, "--space", "model", "--json")
    assert (ran.code, ran.err) == (0, "")
    told = ran.json
    assert told["space"] == "model"
    assert told["latent_format"] == "small"
    assert told["results"] == [{"photo": "a.png", "latents": "a.latents.safetensors", "shape": [4, 2, 3]}]
    assert load_latents("a.latents.safetensors").vae == told["vae_sha256"]
    ran = calotype("decode", "a.latents.safetensors", "none.safetensors", "--vae", vae, "--out", "o", "--json")
    assert ran.code == 1
    assert ran.json["results"] == [
        {"latents": "a.latents.safetensors", "picture": "o/a-decoded.png", "width": 20, "height": 12}
    ]
    (failure,) = ran.json["failures"]
    assert failure["file"] == "none.safetensors"
    assert "there is no such file" in failure["error"]


@pytest.mark.parametrize("space", ["raw", "model"])
def test_decoding_gives_what_reconstruct_gives(space: str, calotype: Calotype, vae: Path) -> None:
    draw("a.png", 45, 30)
    assert calotype("reconstruct", "a.png", "--vae", vae, "--seed", 3, "--out", "o").code == 0
    assert calotype("encode", "a.png", "--vae", vae, "--seed", 3, "--space", space, "--out", "l").code == 0
    assert calotype("decode", "l/a.latents.safetensors", "--vae", vae, "--out", "d").code == 0
    apart = np.abs(levels("d/a-decoded.png") - levels("o/a-reconstruction.png"))
    assert apart.max() <= (0 if space == "raw" else 1)  # scaling rounds


def test_model_latents_are_the_raw_ones_scaled(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    for space in ("raw", "model"):
        assert calotype("encode", "a.png", "--vae", vae, "--space", space, "--out", space).code == 0
    raw, model = (load_latents(f"{space}/a.latents.safetensors") for space in ("raw", "model"))
    mean = torch.tensor([0.1, -0.2, 0.3, 0.0])[:, None, None]
    std = torch.tensor([1.0, 2.0, 0.5, 1.5])[:, None, None]
    assert torch.allclose(model.tensor, (raw.tensor - mean) / std, atol=1e-6)


def test_a_seed_repeats(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    tensors = []
    for i, words in enumerate([(), ("--seed", 1), ("--seed", 1), ("--seed", 2)]):
        assert calotype("encode", "a.png", "--vae", vae, "--out", i, *words).code == 0
        tensors.append(load_latents(f"{i}/a.latents.safetensors").tensor)
    assert torch.equal(tensors[1], tensors[2])
    assert not torch.equal(tensors[0], tensors[1])
    assert not torch.equal(tensors[1], tensors[3])


def test_a_file_names_its_weights_no_further_than_by_name(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    calotype("encode", "a.png", "--vae", vae)
    ran = calotype("decode", "a.latents.safetensors", "--out", "o")
    assert (ran.code, len(ran.said)) == (1, 1)
    assert "were made by small.safetensors" in ran.err
    assert "give its weights with --vae" in ran.err
    assert files() == ["a.latents.safetensors", "a.png"]


@pytest.mark.slow
def test_latents_of_another_vae_are_refused_unless_wanted(calotype: Calotype, here: Path) -> None:
    vae, other_vae = (small_vae(here / f"{name}.safetensors", i, "custom") for i, name in enumerate(("small", "other")))
    draw("a.png")
    calotype("encode", "a.png", "--vae", vae, "--out", "l")
    words = ("decode", "l/a.latents.safetensors", "--vae", other_vae, "--out", "o")
    ran = calotype(*words)
    assert (ran.code, ran.out, len(ran.said)) == (1, "", 1)
    assert "made by another VAE (small.safetensors, " in ran.err
    assert "--any-vae" in ran.err
    assert not Path("o").exists()
    assert calotype(*words, "--any-vae").code == 0
    assert calotype("decode", "l/a.latents.safetensors", "--vae", vae, "--out", "right").code == 0
    assert levels("o/a-decoded.png").shape == levels("right/a-decoded.png").shape
    assert not np.array_equal(levels("o/a-decoded.png"), levels("right/a-decoded.png"))


def test_the_same_weights_under_another_name_are_the_same_vae(calotype: Calotype, vae: Path, here: Path) -> None:
    draw("a.png")
    calotype("encode", "a.png", "--vae", vae)
    twin = small_vae(here / "twin.safetensors")
    assert calotype("decode", "a.latents.safetensors", "--vae", twin, "--out", "o").code == 0


@pytest.mark.parametrize("suffix", ["png", ".png", "jpg", "webp", "tiff", "avif", "PNG"])
def test_kinds_of_pictures(suffix: str, calotype: Calotype, vae: Path) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    draw("a.png", 33, 21)
    calotype("encode", "a.png", "--vae", vae)
    ran = calotype("decode", "a.latents.safetensors", "--vae", vae, "--suffix", suffix, "--out", "o", "--json")
    assert ran.code == 0
    path = ran.json["results"][0]["picture"]
    assert path == f"o/a-decoded.{suffix.removeprefix('.')}"
    with Image.open(path) as image:
        assert image.size == (33, 21)
        assert image.format == {"jpg": "JPEG"}.get(suffix, suffix.removeprefix(".").upper())


@pytest.mark.parametrize("suffix", ["gif", "", "heic"])
def test_an_unknown_kind_of_picture(suffix: str, calotype: Calotype) -> None:
    ran = calotype("decode", "a.latents.safetensors", "--suffix", suffix, "--out", "o")
    assert (ran.code, len(ran.said)) == (2, 1)
    assert "use one of .png, .jpg" in ran.err
    assert not Path("o").exists()


def test_alpha_comes_back_where_pictures_have_it(calotype: Calotype, vae: Path) -> None:
    draw("glass.png", 19, 14, mode="RGBA")
    calotype("encode", "glass.png", "--vae", vae, "--alpha", "keep", "--out", "l")
    for suffix in ("png", "webp"):
        assert (
            calotype("decode", "l/glass.latents.safetensors", "--vae", vae, "--suffix", suffix, "--out", "o").code == 0
        )
        assert np.array_equal(levels(f"o/glass-decoded.{suffix}")[..., 3], levels("glass.png")[..., 3])
    ran = calotype("decode", "l/glass.latents.safetensors", "--vae", vae, "--suffix", "jpg", "--out", "jpg")
    assert (ran.code, ran.out, len(ran.said)) == (1, "", 1)
    assert "JPEG has no alpha; use .png" in ran.err
    assert files("jpg") == []


def test_one_picture_that_can_not_be_written_does_not_stop_the_others(calotype: Calotype, vae: Path) -> None:
    draw("a.png", 19, 14, mode="RGBA")
    draw("b.png", 19, 14)
    calotype("encode", "a.png", "b.png", "--vae", vae, "--alpha", "keep")
    ran = calotype("decode", "a.latents.safetensors", "b.latents.safetensors", "--vae", vae, "--suffix", "jpg")
    assert (ran.code, ran.said[-1]) == (1, "calotype: 1 of 2 failed.")
    assert files() == ["a.latents.safetensors", "a.png", "b-decoded.jpg", "b.latents.safetensors", "b.png"]


def test_alpha_is_composited_with_a_notice(calotype: Calotype, vae: Path) -> None:
    draw("glass.png", mode="RGBA")
    ran = calotype("encode", "glass.png", "--vae", vae, "--background", "black")
    assert ran.code == 0
    assert ran.said[0].startswith("calotype: glass.png: Alpha was composited over the background (0, 0, 0)")
    assert load_latents("glass.latents.safetensors").alpha is None


def test_bad_latents_are_said_once_and_the_others_done(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    calotype("encode", "a.png", "--vae", vae)
    whole = Path("a.latents.safetensors").read_bytes()
    Path("cut.latents.safetensors").write_bytes(whole[:-50])
    Path("empty.latents.safetensors").touch()
    Path("text.latents.safetensors").write_text("no latents")
    Path("folder.latents.safetensors").mkdir()
    bad = ["cut", "empty", "text", "folder", "missing"]
    names = [f"{name}.latents.safetensors" for name in bad]
    ran = calotype("decode", *names, vae, "a.latents.safetensors", "--vae", vae, "--out", "o")
    assert ran.code == 1
    for name, line in zip([*names, str(vae)], ran.said[:-1], strict=True):
        assert line.startswith(f"calotype: {name}: ")
    assert "these are not latents with calotype's metadata" in ran.said[-2]
    assert ran.said[-1] == "calotype: 6 of 7 failed."
    assert files("o") == ["a-decoded.png"]


def test_bad_pictures_are_said_once_and_the_others_done(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    Path("text.png").write_text("not a picture")
    ran = calotype("encode", "text.png", "missing.png", "a.png", "--vae", vae, "--out", "o")
    assert ran.code == 1
    assert [line.split()[1] for line in ran.said] == ["text.png", "missing.png", "2"]
    assert files("o") == ["a.latents.safetensors"]


def test_names_of_outputs() -> None:
    inputs = ["a.b.latents.safetensors", "latents-1.jpg", "my.latents.png", "x.safetensors"]
    paths = common.outputs([Path("in") / name for name in inputs], Path("out"), ".webp")
    assert [path.name for path in paths] == ["a.b.webp", "latents-1.webp", "my.latents.webp", "x.webp"]


def test_two_inputs_of_one_name(calotype: Calotype) -> None:
    draw("a.png")
    draw("a.jpg")
    ran = calotype("encode", "a.png", "a.jpg", "--out", "o")
    assert (ran.code, len(ran.said)) == (2, 1)
    assert "a.png and a.jpg would both be written to o/a.latents.safetensors" in ran.err
    assert files() == ["a.jpg", "a.png"]


def test_an_unknown_latent_format_is_asked_for(calotype: Calotype, here: Path) -> None:
    from support import SMALL, kl

    from calotype.weights.save import save_weights

    save_weights(kl(SMALL), here / "kl.safetensors", layout="ldm")
    draw("a.png")
    ran = calotype("encode", "a.png", "--vae", "kl.safetensors", "--out", "o")
    assert (ran.code, len(ran.said)) == (2, 1)
    assert "--latent-format sd1|sdxl" in ran.err
    assert not Path("o").exists()
    ran = calotype("encode", "a.png", "--vae", "kl.safetensors", "--latent-format", "sdxl", "--json")
    assert (ran.code, ran.json["latent_format"]) == (0, "sdxl")


def test_a_failed_write_leaves_nothing(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    with room(100):
        ran = calotype("encode", "a.png", "--vae", vae, "--out", "o")
    assert (ran.code, len(ran.said)) == (1, 1)
    assert ran.err.startswith("calotype: o/a.latents.safetensors can't be written: File too large; ")
    assert files() == ["a.png"]


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_stopping_in_the_middle(vae: Path) -> None:
    names = [f"{i:03}.png" for i in range(400)]
    draw(names[0], 128, 128)
    for name in names[1:]:
        os.link(names[0], name)
    process = subprocess.Popen(
        [sys.executable, "-m", "calotype", "encode", *names, "--vae", str(vae), "--out", "o"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(Path().glob("o/[!.]*"))) < 3:  # those being written have names with a dot before
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "calotype: Stopped.\n")
    written = files("o")
    assert 3 <= len(written) < len(names)
    assert all(name.endswith(".latents.safetensors") and not name.startswith(".") for name in written)
    for name in written:
        load_latents(Path("o") / name)


def test_decoding_beside_the_photo_leaves_the_photo(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    before = Path("a.png").read_bytes()
    calotype("encode", "a.png", "--vae", vae)
    assert calotype("decode", "a.latents.safetensors", "--vae", vae).code == 0
    assert Path("a.png").read_bytes() == before
    assert files() == ["a-decoded.png", "a.latents.safetensors", "a.png"]
