"""The commands with a tiny network of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clikit import Calotype, draw
from familykit import KINDS, NAMES
from PIL import Image

from calotype.latent_files import load_latents
from calotype.pixels import to_uint8
from calotype.vae import VAE
from calotype.weights.container import open_container
from calotype.weights.load import load_weights

WIDTH, HEIGHT = 37, 21  # of no factor


def mode_of(kind: Any) -> str:
    return "RGBA" if kind.pictures == 4 else "RGB"


def stored(path: Path) -> dict[str, torch.Tensor]:
    container = open_container(path / "diffusion_pytorch_model.safetensors" if path.is_dir() else path)
    return {key: container.read(key) for key in container.shapes}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_it_is(calotype: Calotype, folders: dict[str, Path], name: str) -> None:
    kind, path = KINDS[name], folders[name]
    if kind.factor < 32:  # the checks are of pictures of eight times that
        told = calotype("inspect", path, "--json")
        assert told.code == 0, told.err
        found = told.json
        assert (found["layout"], found["factor"], found["latent_channels"]) == ("diffusers", kind.factor, kind.channels)
        assert found["parts"] == ["decoder", "encoder"]
        assert found["finite_in"]["float32"]
        assert found["latent_format"]["channels"] == kind.channels
        assert not found["notes"]
    steps = calotype("inspect", path, "--program", "--size", f"{WIDTH}x{HEIGHT}", "--json").json
    f = kind.factor
    height, width = -(-HEIGHT // f) * f, -(-WIDTH // f) * f
    assert (steps["height"], steps["width"]) == (height, width)
    assert steps["decode"][-1]["shape"] == [kind.pictures, height, width]
    for words in ([], ["--encode"]):
        planned = calotype("plan", path, f"{WIDTH}x{HEIGHT}", *words, "--json")
        assert planned.code == 0, planned.err
        assert (planned.json["height"], planned.json["width"]) == (height, width)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_pictures_there_and_back(calotype: Calotype, folders: dict[str, Path], name: str) -> None:
    kind, path = KINDS[name], folders[name]
    photo = draw("p.png", WIDTH, HEIGHT, mode=mode_of(kind))
    done = calotype("encode", photo, "--vae", path)
    assert (done.code, done.err) == (0, "" if kind.pictures == 3 else done.err)
    latents = load_latents("p.latents.safetensors")
    f, patch = kind.factor, latents.format.patch
    side = f * patch
    assert latents.tensor.shape == (kind.channels, -(-HEIGHT // side) * patch, -(-WIDTH // side) * patch)
    done = calotype("decode", "p.latents.safetensors", "--vae", path)
    assert done.code == 0, done.err
    vae = VAE(load_weights(path))
    expected = to_uint8(vae.decode(latents.tensor[None], (HEIGHT, WIDTH))[0]).permute(1, 2, 0).numpy()
    with Image.open("p-decoded.png") as image:
        assert (image.mode, image.size) == (mode_of(kind), (WIDTH, HEIGHT))
        assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1
    done = calotype("reconstruct", photo, "--vae", path, "--out", "o", "--json")
    assert done.code == 0, done.err
    (found,) = done.json["results"]
    assert (found["alpha_psnr"] is None) == (kind.pictures == 3)
    with Image.open("o/p-reconstruction.png") as image, Image.open("p-decoded.png") as decoded:
        assert (image.mode, image.size) == (mode_of(kind), (WIDTH, HEIGHT))
        if patch == 1:  # else latents on disk are of a larger picture
            assert np.abs(np.asarray(image).astype(int) - np.asarray(decoded)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_evaluation(calotype: Calotype, folders: dict[str, Path], name: str) -> None:
    kind = KINDS[name]
    draw("data/p.png", WIDTH, HEIGHT, mode=mode_of(kind))
    done = calotype("evaluate", "data", "--vae", folders[name], "--report", "r", "--metrics", "psnr,ssim", "--json")
    assert done.code == 0, done.err
    (vae,) = done.json["vaes"]
    (row,) = vae["rows"]
    assert (row["height"], row["width"]) == (HEIGHT, WIDTH)
    assert (row["kl_bits_per_pixel"] is None) == (not VAE(load_weights(folders[name])).config.has_posterior)
    assert 0 < row["psnr"] < 60


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_layout_there_and_back(calotype: Calotype, folders: dict[str, Path], name: str) -> None:
    kind, first = KINDS[name], folders[name]
    at: Path = first
    for layout, to in (("ldm", "a.safetensors"), ("diffusers", "b"), ("ldm", "c.safetensors")):
        done = calotype("convert", at, to, "--layout", layout, "--json")
        assert done.code == 0, done.err
        assert done.json["to"] == layout
        at = Path(to)
    before, after = stored(first), stored(Path("b"))
    assert {k: (v.dtype, v.shape) for k, v in before.items()} == {k: (v.dtype, v.shape) for k, v in after.items()}
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert Path("a.safetensors").read_bytes() == Path("c.safetensors").read_bytes()
    a, b = load_weights(first), load_weights("c.safetensors")
    assert (a.sha256, a.module.config, a.format) == (b.sha256, b.module.config, b.format)
    if not kind.flat:
        return
    for layout, to in ((kind.flat, "d"), ("ldm", "e.safetensors"), (kind.flat, "f")):
        assert calotype("convert", at, to, "--layout", layout).code == 0
        at = Path(to)
        assert load_weights(at).sha256 == a.sha256
    assert (
        Path("d/diffusion_pytorch_model.safetensors").read_bytes()
        == (at / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    refused = calotype("convert", "e.safetensors", "g", "--layout", "diffusers")
    assert (refused.code, len(refused.said)) == (2, 1)
    assert "only the original file has" in refused.err
    assert "--layout diffusers-2d writes what there is" in refused.err
    assert not Path("g").exists()
