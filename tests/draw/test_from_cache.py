"""A drawing model trained from a cache of latents: it learns, goes on to the bit, and refuses another VAE's cache."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from drawkit import CAPTIONS, COLOURS, RECIPE, picture
from support import names, one_sentence, same_tensors

from calotype import VAE, load
from calotype.draw.cached import CachedPictures
from calotype.draw.model import load_model
from calotype.draw.training import train_drawing
from calotype.errors import UsageError

pytest.importorskip("pyarrow")

from calotype.cache import Rules
from calotype.cache.make import job_of, make


@pytest.fixture(scope="module")
def vae() -> VAE:
    return load("builtin", device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures with captions beside them."""
    folder = tmp_path_factory.mktemp("pictures")
    for colour, values in zip(COLOURS, CAPTIONS, strict=True):
        picture(colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(values["name"])
    return folder


def cache_of(pictures: Path, out: Path, vae: VAE, size: int = 32, **more: Any) -> Path:
    make(pictures, out, vae, job_of(vae, Rules(size=(size, size)), **more))
    return out


@pytest.fixture(scope="module")
def cache(pictures: Path, vae: VAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cache_of(pictures, tmp_path_factory.mktemp("cache") / "latents", vae)


@pytest.mark.slow
def test_loss_falls(tmp_path: Path, cache: Path, vae: VAE) -> None:
    recipe = replace(
        RECIPE, word_steps=30, word_batch=8, word_rate=3e-3, steps=45, cooldown=15, batch=8, muon_rate=0.03,
        learning_rate=3e-3, text_dropout=0.0, time_mean=1.5, checkpoint_every=1000, log_every=15,
    )  # fmt: skip
    train_drawing(recipe, cache, tmp_path / "run", vae)
    assert names(tmp_path / "run") == ["checkpoint.pt", "metrics.jsonl", "weights.safetensors"]
    losses: dict[int, list[float]] = {1: [], 2: []}
    for line in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()):
        losses[line["part"]].append(line["loss"])
    assert losses[1][-1] < 0.7 * losses[1][0]
    assert losses[2][-1] < 0.8 * losses[2][0]
    model = load_model(tmp_path / "run" / "weights.safetensors")
    assert sorted(model.names) == sorted(one["name"] for one in CAPTIONS)
    assert (model.config.vae, model.about["pictures"], model.about["held_out"]) == (vae.sha256, 4, [])


def test_a_step_draws_anew_around_the_modes(cache: Path, vae: VAE) -> None:
    cached, every = CachedPictures(cache, vae, 32, seed=3), torch.arange(4)
    modes = cached.modes()
    first, second, again = (cached.drawn(every, step) for step in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    for drawn in (first, second):
        assert 0 < float((drawn - modes).square().mean()) < 0.1 * float(modes.square().mean())


@pytest.mark.slow
def test_a_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, pictures: Path, cache: Path, vae: VAE) -> None:
    def stop(line: dict[str, float]) -> None:
        if (line["part"], line["step"]) == (2, 2):
            signal.raise_signal(signal.SIGTERM)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_drawing(RECIPE, cache, whole, vae)
    assert train_drawing(RECIPE, cache, parts, vae, report=stop) is None
    assert train_drawing(RECIPE, cache, parts, vae, resume=True) == parts / "weights.safetensors"
    assert same_tensors(*(load_model(run / "weights.safetensors") for run in (whole, parts)))
    other = cache_of(pictures, tmp_path / "other", vae, store="float32")
    with pytest.raises(UsageError, match="it was trained with another cache; give another --out"):
        train_drawing(RECIPE, other, parts, vae, resume=True)


def test_refusals(tmp_path: Path, pictures: Path, cache: Path, vae: VAE) -> None:
    said = []
    with pytest.raises(UsageError, match="pictures are 32x32, and the recipe's 64x64") as told:
        CachedPictures(cache, vae, 64, seed=0)
    said.append(told)
    stranger: Any = SimpleNamespace(sha256="1" * 64, name="stranger", latent_format=vae.latent_format)
    with pytest.raises(UsageError, match=r"made by builtin .*, and the recipe's VAE is stranger") as told:
        CachedPictures(cache, stranger, 32, seed=0)
    said.append(told)
    other = load("builtin", device="cpu", latent_format="none")
    with pytest.raises(UsageError, match="latent format is not that of the recipe's VAE") as told:
        CachedPictures(cache, other, 32, seed=0)
    said.append(told)
    cache_of(pictures, tmp_path / "apart", vae)
    (pictures / "red.txt").rename(tmp_path / "red.txt")
    try:
        cache_of(pictures, tmp_path / "apart", vae)
    finally:
        (tmp_path / "red.txt").rename(pictures / "red.txt")
    with pytest.raises(UsageError, match=r"1 of its 4 samples have no caption, such as red\.png") as told:
        train_drawing(RECIPE, tmp_path / "apart", tmp_path / "run", vae)
    said.append(told)
    for one in said:
        one_sentence(str(one.value))
