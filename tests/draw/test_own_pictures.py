"""A drawing model of one's own pictures: texts beside them, a model to begin with, and what it will take."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawkit import CAPTIONS, COLOURS, RECIPE, picture, write_data
from PIL import Image
from support import one_sentence, same_tensors

from calotype import VAE, load
from calotype.draw.ahead import look_ahead
from calotype.draw.data import Beside, Listed, captioned, shown_small
from calotype.draw.model import load_model
from calotype.draw.recipe import load_drawing_recipe
from calotype.draw.start import start_of
from calotype.draw.training import train_drawing
from calotype.errors import UsageError, WeightsError


@pytest.fixture(scope="module")
def vae() -> VAE:
    return load("builtin", device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures with a text beside each."""
    folder = tmp_path_factory.mktemp("pictures")
    for colour, values in zip(COLOURS, CAPTIONS, strict=True):
        picture(colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"{values['name']}\n")
    return folder


@pytest.fixture(scope="module")
def begun(pictures: Path, vae: VAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model to begin with."""
    out = tmp_path_factory.mktemp("begun") / "run"
    train_drawing(RECIPE, pictures, out, vae)
    return out / "weights.safetensors"


def test_texts_beside_pictures_are_their_captions(pictures: Path, vae: VAE, tmp_path: Path) -> None:
    """In a folder, in an archive, and as a captions.jsonl would name them."""
    beside = captioned(pictures)
    assert isinstance(beside, Beside)
    said = {one.file: one.name for one in beside.captions}
    assert said == {f"{colour}.png": values["name"] for colour, values in zip(COLOURS, CAPTIONS, strict=True)}
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in pictures.iterdir():
            archive.write(file, file.name)
    packed = captioned(tmp_path / "all.zip")
    assert packed.captions == beside.captions
    lines = [json.dumps({"file": one.file, "name": one.name}) for one in beside.captions]
    for one in beside.captions:
        (tmp_path / one.file).write_bytes((pictures / one.file).read_bytes())
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    listed = captioned(tmp_path)
    assert isinstance(listed, Listed)
    latents = [one.latents(vae, 32) for one in (beside, packed, listed)]
    assert torch.equal(latents[0], latents[1])
    assert torch.equal(latents[0], latents[2])


def test_the_middle_is_kept_and_nothing_is_stretched(tmp_path: Path) -> None:
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = (255, 0, 0)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "high.png")
    for name in ("wide.png", "high.png"):
        assert np.array_equal(np.asarray(shown_small(tmp_path / name, 16)), np.full((16, 16, 3), (255, 0, 0)))


def test_pictures_without_a_text_are_refused(tmp_path: Path) -> None:
    for colour in COLOURS:
        picture(colour).save(tmp_path / f"{colour}.png")
    (tmp_path / "red.txt").write_text("a red disc")
    (tmp_path / "blue.txt").write_text("  \n")
    with pytest.raises(UsageError, match=r"3 of 4 pictures have no caption, such as blue\.png") as caught:
        captioned(tmp_path)
    one_sentence(str(caught.value))


@pytest.mark.slow
def test_it_begins_with_a_models_weights_and_words(pictures: Path, vae: VAE, begun: Path, tmp_path: Path) -> None:
    """Without a step nothing of it changes; with some only the weights do, and it knows new names beside the old."""
    data = write_data(tmp_path / "data")
    (data / "captions.jsonl").write_text(
        "".join(json.dumps({"file": f"pictures/{i}.png", "name": f"zebra {i}"}) + "\n" for i in range(4))
    )
    still = replace(RECIPE, start=str(begun), muon_rate=0.0, learning_rate=0.0, word_muon_rate=0.0, word_rate=0.0)
    train_drawing(still, data, tmp_path / "still", vae)
    before, after = load_model(begun), load_model(tmp_path / "still" / "weights.safetensors")
    assert same_tensors(after, before)
    assert after.text.tokenizer.to_str() == before.text.tokenizer.to_str()
    assert after.names == (*before.names, *(f"zebra {i}" for i in range(4)))
    assert {"zebra", "red"} <= set(after.words)
    moved = tmp_path / "moved"
    train_drawing(replace(RECIPE, start=str(begun)), data, moved, vae)
    apart = [
        float((load_model(moved / "weights.safetensors").state_dict()[key] - value).abs().max())
        for key, value in before.state_dict().items()
    ]
    assert max(apart) > 1e-3


def test_the_recipe_draw_begins_with_the_model_that_ships(vae: VAE) -> None:
    recipe = load_drawing_recipe("draw")
    model = start_of(recipe, vae)
    assert model is not None
    assert len(model.names) > 3000
    assert start_of(load_drawing_recipe("draw", ["start="]), vae) is None


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        (["start=nowhere.safetensors"], WeightsError, "nowhere.safetensors: there is no such file"),
        (["denoiser.model_channels=64"], UsageError, "model_channels 96, not 64"),
        (["text.depth=3"], UsageError, "depth 2, not 3"),
        (["sketch_std=0.2"], UsageError, "sketch_std 0.12, not 0.2"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_begun_with(vae: VAE, settings: list[str], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        start_of(load_drawing_recipe("draw", settings), vae)
    one_sentence(str(caught.value))
    assert said in str(caught.value)


@pytest.mark.slow
def test_a_model_of_another_vae_is_refused(begun: Path) -> None:
    other = load("builtin", device="cpu")
    with torch.no_grad():
        next(other.module.parameters()).add_(1)
    other.sha256 = "1" * 64
    with pytest.raises(UsageError, match="the latents of another VAE"):
        start_of(replace(RECIPE, start=str(begun)), other)


@pytest.mark.slow
def test_a_run_that_began_with_another_model_is_not_gone_on_with(
    pictures: Path, vae: VAE, begun: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(begun.read_bytes())
    recipe = replace(RECIPE, start=str(model))
    out = tmp_path / "run"
    train_drawing(recipe, pictures, out, vae)
    train_drawing(replace(recipe, seed=4), pictures, tmp_path / "other", vae)
    model.write_bytes((tmp_path / "other" / "weights.safetensors").read_bytes())
    with pytest.raises(UsageError, match="trained with another start") as caught:
        train_drawing(replace(recipe, steps=8), pictures, out, vae, resume=True)
    one_sentence(str(caught.value))


@pytest.mark.slow
def test_what_a_training_will_take(pictures: Path, vae: VAE) -> None:
    found = look_ahead(RECIPE, pictures, vae)
    assert (found.pictures, found.held_out) == (4, 0)
    parts = found.encoding, found.word_step, found.step
    assert min(parts) > 0
    assert found.seconds == pytest.approx(parts[0] + RECIPE.word_steps * parts[1] + RECIPE.steps * parts[2])
