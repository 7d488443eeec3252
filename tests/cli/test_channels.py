"""Commands with VAEs of grey, RGBA and other pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clikit import Calotype, draw
from PIL import Image, ImageSequence
from safetensors.torch import save_file
from support import SMALL, network

from calotype.families.tiny.config import TinyConfig
from calotype.latent_files import load_latents
from calotype.latents import KNOWN, same_as_model
from calotype.pixels import from_array, to_uint8
from calotype.vae import VAE
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

KINDS = [(1, "kl"), (4, "kl"), (1, "tiny"), (4, "tiny")]
MODES = {1: "L", 4: "RGBA"}


def save(channels: int, kind: str = "kl", seed: int = 0) -> str:
    """A small VAE's file, which is all f8 or f2."""
    config = TinyConfig(in_channels=channels) if kind == "tiny" else replace(SMALL, in_channels=channels)
    format_ = same_as_model("sd1", 4) if kind == "tiny" else KNOWN["sd1"]
    name = f"{kind}{channels}-{seed}.safetensors"
    save_weights(network(config, seed), name, layout="ldm", format_=format_)
    return name


def glass(path: str, seed: int = 0) -> Path:
    """A picture of which every pixel can be seen, and none is opaque alone."""
    levels = np.array(Image.open(draw(path, mode="RGBA", seed=seed)))
    levels[..., 3] = np.maximum(levels[..., 3], 1)
    Image.fromarray(levels).save(path)
    return Path(path)


def pixels(path: str | Path) -> Any:
    with Image.open(path) as image:
        return image.mode, np.asarray(image)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "kind"), KINDS)
def test_there_and_back(calotype: Calotype, channels: int, kind: str) -> None:
    vae, photo = save(channels, kind), draw("p.png", mode="RGBA")
    if kind == "kl":  # the checks of the other, which is wide, take half a minute
        told = calotype("inspect", vae)
        assert told.code == 0, told.err
        assert f"4 latent channels, {'grey' if channels == 1 else 'RGBA'} pictures" in told.out
    for words in (["inspect", vae, "--program"], ["plan", vae, "64x64"], ["plan", vae, "64x64", "--encode"]):
        assert calotype(*words).code == 0, words
    made = calotype("encode", photo, "--vae", vae, "--json")
    assert made.code == 0
    latents = load_latents(Path("p.latents.safetensors"))
    assert latents.alpha is None
    for suffix in ("png", "tiff", "webp"):
        done = calotype("decode", "p.latents.safetensors", "--vae", vae, "--suffix", suffix)
        assert done.code == 0, done.err
    mode, levels = pixels("p-decoded.png")
    assert mode == MODES[channels]
    assert np.array_equal(levels, pixels("p-decoded.tiff")[1])
    loaded = VAE(load_weights(vae))
    expected = to_uint8(loaded.decode(latents.tensor[None], (24, 40))[0]).permute(1, 2, 0).numpy()
    assert np.abs(levels.reshape(expected.shape).astype(int) - expected).max() <= 1
    jpeg = calotype("decode", "p.latents.safetensors", "--vae", vae, "--suffix", "jpg")
    assert (jpeg.code, "has no alpha" in jpeg.err) == ((1, True) if channels == 4 else (0, False))
    assert Path("p-decoded.jpg").exists() == (channels == 1)
    done = calotype("reconstruct", photo, "--vae", vae, "--out", "o")
    assert done.code == 0, done.err
    assert f"a pixel: {channels} number{'s' * (channels > 1)}, {8 * channels} bits" in done.out
    assert ("alpha: PSNR" in done.out) == (channels == 4)
    assert pixels("o/p-reconstruction.png")[0] == MODES[channels]
    assert pixels("o/p-panel.png")[0] == "RGB"


@pytest.mark.slow
def test_alpha_and_background(calotype: Calotype) -> None:
    vae, photo = save(4), glass("p.png")
    for command in ("encode", "reconstruct"):
        refused = calotype(command, photo, "--vae", vae, "--alpha", "keep", "--out", "o")
        assert refused.code == 2
        assert "--alpha keep" in refused.err
        assert "takes RGBA" in refused.err
        assert not Path("o").exists()
    over = calotype("encode", photo, "--vae", vae, "--alpha", "over", "--background", "black")
    assert "composited over the background (0, 0, 0)" in over.err
    assert calotype("encode", photo, "--vae", vae, "--out", "through").err == ""
    a, b = (load_latents(at / "p.latents.safetensors").tensor for at in (Path(), Path("through")))
    assert not torch.equal(a, b)
    levels = pixels(photo)[1]
    assert torch.equal(b, VAE(load_weights(vae)).encode(from_array(levels)[None]).mode()[0])
    levels = levels.copy()
    levels[:4, :, 3] = 0
    Image.fromarray(levels).save("q.png")
    told = calotype("reconstruct", "q.png", "--vae", vae, "--background", "#010203")
    assert "Fully transparent pixels were given the background's colour (1, 2, 3)" in told.err
    grey = save(1)
    kept = calotype("encode", photo, "--vae", grey, "--alpha", "keep", "--out", "kept")
    assert kept.code == 0
    assert calotype("decode", "kept/p.latents.safetensors", "--vae", grey).code == 0
    mode, back = pixels("p-decoded.png")
    assert mode == "LA"
    assert np.array_equal(back[..., 1], pixels(photo)[1][..., 3])
    assert calotype("reconstruct", photo, "--vae", grey, "--alpha", "keep").code == 0
    assert pixels("p-reconstruction.png")[0] == "LA"


@pytest.mark.slow
def test_errors_of_alpha_in_json(calotype: Calotype) -> None:
    from calotype.evaluate.alpha import apart

    vae, photo = save(4), draw("p.png", mode="RGBA")
    (found,) = calotype("reconstruct", photo, "--vae", vae, "--background", "black", "--json").json["results"]
    before = pixels(photo)[1].copy()
    before[before[..., 3] == 0] = 0
    a, b = (torch.from_numpy(x.copy()).permute(2, 0, 1) for x in (before, pixels("p-reconstruction.png")[1]))
    told = vars(apart(a, b))
    assert {key: found[key] for key in told} == told
    (found,) = calotype("reconstruct", photo, "--vae", save(1), "--json").json["results"]
    assert {found[key] for key in told} == {None}


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_conversions(calotype: Calotype, channels: int) -> None:
    pytest.importorskip("h5py")
    at = save(channels)
    config = load_weights(at).module.config
    for layout, to in (("diffusers", "d"), ("keras", "k"), ("ldm", "l.safetensors")):
        done = calotype("convert", at, to, "--layout", layout)
        assert done.code == 0, done.err
        assert load_weights(to).module.config == config
        at = to
    described = json.loads(Path("d/config.json").read_text())
    assert (described["in_channels"], described["out_channels"]) == (channels, channels)
    first, last = load_weights("d"), load_weights("l.safetensors")
    assert first.sha256 == last.sha256


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_edits(calotype: Calotype, channels: int) -> None:
    vae = save(channels)
    a, b = glass("a.png"), glass("b.png", 1)
    Image.fromarray(np.kron(np.array([[0, 255]]), np.ones((24, 20))).astype(np.uint8)).save("m.png")
    for words in (
        ["vary", a, "--vae", vae, "--count", 2, "--out", "v"],
        ["vary", a, "--vae", vae, "--count", 1, "--noise", "latents", "--out", "w", "--size", "32x32"],
        ["transfer", a, b, "--vae", vae, "--out", "t.png"],
        ["blend", a, b, "m.png", "--vae", vae, "--feather", 4, "--out", "blend.png"],
        ["morph", a, b, "--vae", vae, "--frames", 3, "--ping-pong", "--out", "m.webp", "--sheet", "s.png",
         "--measure", "--lpips", "none"],
        ["morph", a, b, "--vae", vae, "--frames", 3, "--ping-pong", "--out", "m.apng"],
        ["morph", a, b, "--vae", vae, "--frames", 2, "--out", "m.gif"],
        ["reconstruct", a, "--vae", vae, "--out", "n"],
    ):  # fmt: skip
        done = calotype(*words)
        assert done.code == 0, (words, done.err)
        assert ("frames are over white" in done.err) == ("m.gif" in words and channels == 4)
        assert ("composited" in done.err) == (channels == 1)
    for name in ("m.webp", "m.apng"):
        with Image.open(name) as animated:
            assert (animated.n_frames, animated.mode) == (4, "RGBA" if channels == 4 else "RGB")
            frames = [np.asarray(frame) for frame in ImageSequence.Iterator(animated)]
        first = pixels("n/a-reconstruction.png")[1]
        if channels == 4:  # to the last level, under alpha 0 too
            assert np.array_equal(frames[0], first)
            assert np.array_equal(frames[1], frames[3])
            assert (frames[0][..., 3] < 255).any()
        else:
            assert np.array_equal(frames[0][..., 0], first)
    for name in ("v/a-vary-0.png", "v/a-vary-1.png", "w/a-vary-0.png", "t.png", "blend.png"):
        assert pixels(name)[0] == MODES[channels], name
    # beyond the feather not one level changes
    _, levels = pixels("blend.png")
    white = Image.new("RGBA", (40, 24), "white")
    first, second = (pixels(path)[1] for path in (a, b))
    if channels == 4:
        assert np.array_equal(levels[:, :16], first[:, :16])
        assert np.array_equal(levels[:, 24:], second[:, 24:])
    else:
        grey = np.asarray(Image.alpha_composite(white, Image.fromarray(first)).convert("L")).astype(int)
        assert np.abs(levels[:, :16].astype(int) - grey[:, :16]).max() <= 1
    latents = calotype("encode", a, "--vae", vae)
    assert latents.code == 0
    again = calotype("transfer", "a.latents.safetensors", b, "--vae", vae, "--out", "u.png")
    assert again.code == 0, again.err
    assert np.array_equal(pixels("u.png")[1], pixels("t.png")[1])


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_directions(calotype: Calotype, channels: int) -> None:
    vae = save(channels)
    for i in range(4):
        draw(f"x/{i}.png", mode="RGBA", seed=i)
        bright = np.array(Image.open(draw(f"y/{i}.png", mode="RGBA", seed=i)))
        bright[..., 3] = 255 - bright[..., 3]  # RGB differs over white only
        Image.fromarray(bright).save(f"y/{i}.png")
    done = calotype("direction", "learn", "x", "y", "--vae", vae, "--out", "d.safetensors")
    assert done.code == 0, done.err
    done = calotype("direction", "apply", "x/0.png", "d.safetensors", "--vae", vae, "--out", "moved.png")
    assert done.code == 0, done.err
    assert pixels("moved.png")[0] == MODES[channels]


@pytest.mark.slow
@pytest.mark.filterwarnings("default::calotype.errors.CalotypeWarning")
@pytest.mark.parametrize("channels", [1, 4])
def test_measuring(calotype: Calotype, channels: int) -> None:
    vae = save(channels)
    for i in range(2):
        draw(f"data/{i}.png", mode="RGBA", seed=i)
    done = calotype("evaluate", "data", "--vae", vae, "--report", "r", "--metrics", "psnr,ssim")
    assert done.code == 0, done.err
    assert {1: "in grey (luma)", 4: "RGBA over white and over black"}[channels] in done.out
    done = calotype("evaluate", "data", "--vae", vae, "--report", "a", "--metrics", "psnr,colour_psnr,alpha_mae")
    if channels == 4:
        assert done.code == 0, done.err
        assert "Error of alpha" in done.out
        assert "those of alpha are of alpha alone" in " ".join(done.out.split())
    else:
        assert (done.code, len(done.said)) == (2, 1)
        assert "the metric colour_psnr is of VAEs of RGBA pictures" in done.err
    done = calotype("evaluate", "data", "--vae", vae, "--vae", save(3), "--report", "s", "--metrics", "psnr")
    assert done.code == 0, done.err
    assert f"All VAEs are compared in {'grey' if channels == 1 else 'RGB'}" in done.err
    done = calotype("probe", vae, "data", "--report", "p", "--lpips", "none")
    assert done.code == 0, done.err


@pytest.mark.slow
@pytest.mark.parametrize("channels", [2, 5])
def test_other_channels_are_one_sentence(calotype: Calotype, channels: int) -> None:
    vae, photo = save(channels), draw("p.png")
    draw("data/a.png", 32, 32)
    for words in (["inspect", vae], ["plan", vae, "64x64"], ["convert", vae, "d", "--layout", "diffusers"]):
        assert calotype(*words).code == 0, words
    Image.new("L", (40, 24), 255).save("m.png")
    for words in (
        ["encode", photo, "--vae", vae],
        ["reconstruct", photo, "--vae", vae],
        ["vary", photo, "--vae", vae],
        ["morph", photo, photo, "--vae", vae],
        ["transfer", photo, photo, "--vae", vae, "--out", "t.png"],
        ["blend", photo, photo, "m.png", "--vae", vae, "--out", "t.png"],
        ["direction", "learn", "data", "data", "--vae", vae],
        ["evaluate", "data", "--vae", vae, "--report", "r", "--metrics", "psnr"],
        ["probe", vae, "data", "--report", "r", "--lpips", "none"],
    ):
        done = calotype(*words)
        assert done.code == 2, (words, done.err)
        assert len(done.said) == 1, (words, done.err)
        assert f"{channels} channels" in done.said[0]
        assert "1 (grey), 3 (RGB), 4 (RGBA)" in done.said[0]
    assert {path.name for path in Path().iterdir()} == {"d", "data", "m.png", "p.png", vae}


def test_other_channels_out_than_in_are_one_sentence(calotype: Calotype) -> None:
    a, b = (network(replace(SMALL, in_channels=n)).state_dict() for n in (3, 4))

    tensors = {k: v for k, v in a.items() if "decoder" not in k} | {k: v for k, v in b.items() if "decoder" in k}
    save_file(tensors, "x.safetensors", {"calotype_config": json.dumps(SMALL.to_dict())})
    for words in (["inspect", "x.safetensors"], ["convert", "x.safetensors", "y.safetensors", "--layout", "ldm"]):
        done = calotype(*words)
        assert done.code == 1
        assert len(done.said) == 1
        assert "takes pictures of 3 channels and its decoder makes 4" in done.said[0]


@pytest.mark.parametrize("channels", [1, 4])
def test_training_takes_no_grey_and_drawing_rgb_alone(calotype: Calotype, channels: int) -> None:
    draw("data/a.png", 64, 64)
    if channels == 1:
        done = calotype("train", "kl-f8", "--data", ".", "--out", "run", "--set", f"network.in_channels={channels}")
        assert (done.code, len(done.said)) == (2, 1), done.err
        assert "network.in_channels must be 3 (RGB) or 4 (RGBA), not 1" in done.said[0]
    draw("drawn/a.png", 64, 64)
    Path("drawn/captions.jsonl").write_text('{"file": "a.png", "captions": ["a"]}\n')
    done = calotype("train", "emoji", "--data", "drawn", "--out", "run", "--set", f'vae="{save(channels)}"')
    assert (done.code, len(done.said)) == (2, 1), done.err
    assert f"has pictures of {channels} channel" in done.said[0]
    assert "drawing takes a VAE of RGB pictures (3 channels)" in done.said[0]
    assert not Path("run").exists()
