"""`calotype spaces`, and latents of one space in every command that reads latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clikit import FOLDED, Calotype, draw, files, levels, small_vae
from support import fill

from calotype.families.folded.network import FoldedAutoencoder
from calotype.latent_files import load_latents, save_latents
from calotype.latent_spaces import spaces
from calotype.latents import same_as_model
from calotype.weights.save import save_weights

# notices are warnings, which are shown
pytestmark = pytest.mark.filterwarnings("always::calotype.errors.CalotypeWarning")

MADE = "small.safetensors made these latents and other.safetensors decodes them: both are of the space 'small'."


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE whose latents are of no space."""
    return small_vae(tmp_path_factory.mktemp("vae") / "custom.safetensors", 3, "custom")


# --- the command ---


def test_a_table_of_all(calotype: Calotype) -> None:
    ran = calotype("spaces")
    assert (ran.code, ran.err) == (0, "")
    for one in spaces():
        assert one.name in ran.out
    words = " ".join(ran.out.replace("│", " ").split())
    assert "wan2.1-vae-upscale2x (x2)" in words
    assert "32 -> 128" in words
    assert "0.13025" in words
    assert max(map(len, ran.out.splitlines())) <= 120


def test_all_as_json(calotype: Calotype) -> None:
    found = calotype("spaces", "--json").json["spaces"]
    assert [one["name"] for one in found] == [one.name for one in spaces()]
    wan = next(one for one in found if one["name"] == "wan2.1")
    assert len(wan["format"]["mean"]) == 16
    assert {"name": "Qwen-Image", "source": "ComfyUI of 2026-09, comfy/supported_models.py"} in wan["models"]
    assert [one["enlarges"] for one in wan["decoders"] if one["name"] == "wan2.1-vae-upscale2x"] == [2]
    assert calotype("spaces", "wan2.1", "--json").json == wan
    assert next(one for one in found if one["name"] == "flux2")["format"] is None


@pytest.mark.parametrize("name", [one.name for one in spaces()])
def test_one_of_them(name: str, calotype: Calotype) -> None:
    one = next(one for one in spaces() if one.name == name)
    ran = calotype("spaces", name)
    assert (ran.code, ran.err) == (0, "")
    words = " ".join(ran.out.split())
    assert f"space {name} ({one.title})" in words
    for model, source in one.models.items():
        assert f"{model} ({source})" in words
    for decoder in one.decoders:
        assert decoder.name in words


def test_an_unknown_one(calotype: Calotype) -> None:
    ran = calotype("spaces", "sd9")
    assert (ran.code, ran.out, len(ran.said)) == (2, "", 1)
    assert "There is no latent space 'sd9'; choose one of sd1, sdxl, " in ran.err


# --- latents that another VAE of the space made ---


def encoded(calotype: Calotype, vae: Path) -> None:
    """Latents of two pictures."""
    for i in range(2):
        draw(f"{i}.png", seed=i)
    assert calotype("encode", "0.png", "1.png", "--vae", vae, "--out", "l").code == 0


def test_decode(calotype: Calotype, vae: Path, other_vae: Path) -> None:
    encoded(calotype, vae)
    ran = calotype("decode", "l/0.latents.safetensors", "l/1.latents.safetensors", "--vae", other_vae, "--out", "o")
    assert (ran.code, ran.said) == (0, [f"calotype: {MADE}"])
    assert files("o") == ["0-decoded.png", "1-decoded.png"]
    assert calotype("decode", "l/0.latents.safetensors", "--vae", vae, "--out", "own").code == 0
    assert not np.array_equal(levels("o/0-decoded.png"), levels("own/0-decoded.png"))


def test_decode_by_an_imitation(calotype: Calotype, vae: Path, here: Path) -> None:
    """Its raw latents are the model latents of the one that made them."""
    encoded(calotype, vae)
    path = here / "imitation.safetensors"
    save_weights(fill(FoldedAutoencoder(FOLDED), 5, gain=0.7), path, layout="ldm", format_=same_as_model("small", 4))
    assert calotype("decode", "l/0.latents.safetensors", "--vae", path, "--out", "o").code == 0
    latents = load_latents("l/0.latents.safetensors")
    own = replace(latents.to_model(), space="raw", format=same_as_model("small", 4))
    save_latents("own.latents.safetensors", own)
    calotype("decode", "own.latents.safetensors", "--vae", path, "--any-vae", "--out", "o")
    assert np.array_equal(levels("o/0-decoded.png"), levels("o/own-decoded.png"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("morph", "l/0.latents.safetensors", "l/1.latents.safetensors", "--frames", 3, "--out", "o.gif"),
        ("morph", "l/0.latents.safetensors", "1.png", "--frames", 3, "--out", "o.gif"),
        ("transfer", "l/0.latents.safetensors", "l/1.latents.safetensors", "--out", "o.png"),
        ("vary", "l/0.latents.safetensors", "--noise", "latents", "--count", 1, "--out", "o"),
    ],
    ids=lambda words: words[0],
)
def test_edits(words: tuple[object, ...], calotype: Calotype, vae: Path, other_vae: Path, custom: Path) -> None:
    encoded(calotype, vae)
    ran = calotype(*words, "--vae", other_vae)
    assert (ran.code, ran.said) == (0, [f"calotype: {MADE}"])
    ran = calotype(*words, "--vae", custom)
    assert (ran.code, len(ran.said)) == (1, 1)
    assert "custom.safetensors names no space that both could be of" in ran.err


def test_an_edit_is_what_the_other_vae_makes_of_these_latents(calotype: Calotype, vae: Path, here: Path) -> None:
    """Through model space once, and not once more when they are decoded."""
    encoded(calotype, vae)
    path = here / "imitation.safetensors"
    save_weights(fill(FoldedAutoencoder(FOLDED), 5, gain=0.7), path, layout="ldm", format_=same_as_model("small", 4))
    calotype("decode", "l/0.latents.safetensors", "--vae", path, "--out", "d")
    for words in (
        ("transfer", "l/0.latents.safetensors", "l/1.latents.safetensors", "--strength", 0, "--out", "t.png"),
        ("vary", "l/0.latents.safetensors", "--noise", "latents", "--temperature", 0, "--count", 1, "--out", "v"),
    ):
        assert calotype(*words, "--vae", path).code == 0
    assert np.abs(levels("t.png") - levels("d/0-decoded.png")).max() <= 1
    assert (
        np.abs(
            levels("v/0.latents-vary-0.png" if Path("v/0.latents-vary-0.png").exists() else "v/0-vary-0.png")
            - levels("d/0-decoded.png")
        ).max()
        <= 1
    )


@pytest.mark.slow
def test_a_direction_of_the_space(calotype: Calotype, vae: Path, other_vae: Path, custom: Path) -> None:
    encoded(calotype, vae)
    for i in range(5):
        draw(f"a/{i}.png", 24, 24, seed=i)
        draw(f"b/{i}.png", 24, 24, seed=i + 9)
    assert calotype("direction", "learn", "a", "b", "--vae", vae, "--out", "way.safetensors").code == 0
    own = calotype("direction", "apply", "l/0.latents.safetensors", "way.safetensors", "--vae", vae, "--out", "own.png")
    assert (own.code, own.err) == (0, "")
    words = ("direction", "apply", "l/0.latents.safetensors", "way.safetensors", "--out", "o.png")
    ran = calotype(*words, "--vae", other_vae)
    assert ran.code == 0, ran.err
    assert set(ran.said) == {f"calotype: {MADE}"}
    ran = calotype(*words, "--vae", custom)
    assert (ran.code, len(ran.said)) == (1, 1)
    assert "nothing tells that they are of one space; learn it anew with that one" in ran.err


def test_the_first_that_names_a_preset_names_the_vae_for_all(calotype: Calotype, vae: Path) -> None:
    """Of latents by a file, another's decoder does; where there is none, the file is asked for."""
    encoded(calotype, vae)
    latents = load_latents("l/1.latents.safetensors")
    save_latents("builtin.latents.safetensors", replace(latents, vae_name="builtin"))
    both = ("l/0.latents.safetensors", "builtin.latents.safetensors")
    ran = calotype("transfer", *both)
    assert (ran.code, len(ran.said)) == (1, 1)
    assert "builtin decodes those of 'builtin'" in ran.err  # and not that the first names none
    ran = calotype("transfer", *both[:1], *both[:1])
    assert "were made by small.safetensors" in ran.err


def test_latents_that_name_no_vae(calotype: Calotype, vae: Path, here: Path) -> None:
    encoded(calotype, vae)
    save_latents("x.latents.safetensors", replace(load_latents("l/0.latents.safetensors"), vae="", vae_name=""))
    ran = calotype("decode", "x.latents.safetensors")
    assert (ran.code, len(ran.said)) == (1, 1)
    assert "these latents name no VAE; give one of the space 'small' with --vae." in ran.err
    twin = small_vae(here / "twin.safetensors", seed=4)
    ran = calotype("decode", "x.latents.safetensors", "--vae", twin, "--out", "o")
    assert (ran.code, ran.err) == (0, "")
