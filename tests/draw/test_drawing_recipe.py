"""A drawing model's recipe: what can be in it, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from drawkit import tokenizer
from support import one_sentence

from calotype import load
from calotype.draw.denoiser import DenoiserConfig
from calotype.draw.model import DrawingConfig, DrawingModel
from calotype.draw.recipe import DrawingRecipe, is_drawing_recipe, load_drawing_recipe
from calotype.draw.text import TextConfig
from calotype.errors import UsageError


def written(folder: Path, text: str) -> str:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(source: str, *settings: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_drawing_recipe(source, settings)
    one_sentence(str(caught.value))
    return str(caught.value)


def test_the_builtin_models_recipe() -> None:
    recipe = load_drawing_recipe("emoji")
    z_channels = load("builtin", device="cpu").encode(torch.zeros(1, 3, 16, 16)).mode().shape[1]
    config = DrawingConfig(
        denoiser=recipe.denoiser_config(z_channels), text=recipe.text_config(), size=recipe.size, vae=""
    )
    with torch.device("meta"):
        model = DrawingModel(config, tokenizer())
    # bytes of float16, and a header of names, words and tokens (the shipped file's own size is tested too)
    assert sum(p.numel() for p in model.state_dict().values()) * 2 + 0.5e6 <= 60e6
    assert recipe.size == 8 * recipe.text_config().sketch_side  # a sketch is as large as the latents
    assert recipe.size % (8 * config.denoiser.factor) == 0
    assert 0 < recipe.cooldown < recipe.steps


def test_values_and_settings(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        'name = "mine"\nword_rate = 1\nbatch = 3\nmuon_rate = 1\n[denoiser]\nnum_heads = 4\nnum_res_blocks = 1\n',
    )
    settings = ["batch=5", "word_steps=9", "sketch_noise=0", "time_mean=-0.5", "denoiser.num_heads=8", "text.width=64"]
    recipe = load_drawing_recipe(path, [*settings, "size=48"])
    assert recipe == DrawingRecipe(
        name="mine", word_steps=9, word_rate=1, sketch_noise=0, batch=5, time_mean=-0.5, size=48, muon_rate=1,
        denoiser={"num_heads": 8, "num_res_blocks": 1}, text={"width": 64}
    )  # fmt: skip
    assert recipe.text_config() == TextConfig(width=64)
    assert recipe.denoiser_config(16) == DenoiserConfig(
        in_channels=32, out_channels=16, context_dim=64, adm_in_channels=64, num_heads=8, num_res_blocks=1
    )


def test_lists_are_sizes(tmp_path: Path) -> None:
    path = written(tmp_path, "[denoiser]\nmodel_channels = 32\nchannel_mult = [1, 2]\nattention_resolutions = [2]\n")
    config = load_drawing_recipe(path).denoiser_config(4)
    assert (config.channel_mult, config.attention_resolutions, config.factor) == ((1, 2), (2,), 2)


def test_rates_rise_stay_and_fall() -> None:
    recipe = DrawingRecipe(steps=10, warmup=4, cooldown=5)
    rates = [recipe.rate(step) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    flat = DrawingRecipe(steps=3, warmup=0, cooldown=0)
    assert [flat.rate(step) for step in range(3)] == [1, 1, 1]
    assert flat.rate(3) == 0


def test_rates_of_words_fall_in_the_second_half() -> None:
    recipe = DrawingRecipe(word_steps=8, warmup=2, steps=3, cooldown=1)
    assert [recipe.word_share(step) for step in range(9)] == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]
    assert DrawingRecipe(word_steps=1, warmup=0).word_share(0) == 1


def test_no_recipe(tmp_path: Path) -> None:
    assert "emoji" in refused("nonsense")
    assert "emoji" in refused(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("content", [b"batch = ", b"batch = 1\nbatch = 2", b'name = "\xff\xfe"'])
def test_no_toml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.toml").write_bytes(content)
    assert "not valid TOML" in refused(str(tmp_path / "recipe.toml"))


def test_no_setting() -> None:
    assert "give key=value" in refused("emoji", "batch")


def test_text_needs_no_quotes() -> None:
    for setting in ("start=a/model.safetensors", 'start = "a/model.safetensors"'):
        assert load_drawing_recipe("emoji", [setting]).start == "a/model.safetensors"
    assert load_drawing_recipe("draw", ["start="]).start == ""
    assert load_drawing_recipe("draw", ["name=2024-01-01"]).name == "2024-01-01"


@pytest.mark.parametrize(
    ("text", "key"),
    [("bach = 3", "bach"), ("[denoiser]\nwidth = 3", "width"), ("[text]\ngirth = 3", "girth"), ("[txt]\na = 1", "txt")],
)
def test_unknown_keys(tmp_path: Path, text: str, key: str) -> None:
    message = refused(written(tmp_path, text))
    assert f"'{key}'" in message
    assert "known are" in message


@pytest.mark.parametrize(
    "setting",
    [
        "batch=0", "batch=1.5", 'batch="many"', "batch=true", "steps=0", "size=4", "seed=-1", "log_every=0",
        "checkpoint_every=0", "warmup=-1", "held_out=1.5", "held_out=-0.1", "text_dropout=2", "ema_decay=1.1",
        "word_steps=0", "word_steps=2.5", "word_batch=0", "word_rate=-1", "sketch_noise=-0.1", "sketch_noise=nan",
        "learning_rate=-1", "muon_rate=nan", "variants=-1", 'clip="none"', "name=3", "denoiser=3", "text=[]",
        "denoiser.model_channels=48", "denoiser.model_channels=0", 'denoiser.model_channels="wide"',
        "denoiser.num_heads=0", "denoiser.num_heads=7", "denoiser.channel_mult=2", "denoiser.channel_mult=[]",
        "denoiser.channel_mult=[1, 0]", 'denoiser.attention_resolutions=["2"]', "denoiser.num_res_blocks=0",
        "text.heads=3", "text.width=0", "text.vocab_size=4", "text.context_length=0", "text.depth=0",
        "text.sketch_side=0", "text.sketch_width=0", "text.sketch_side=2.5",
        "text.sketch_inner=-1", "sketch_std=-0.1", "sketch_std=inf", "ground_std=1.5",
    ],
)  # fmt: skip
def test_values_that_cannot_be(setting: str) -> None:
    message = refused("emoji", setting)
    if "." not in setting.partition("=")[0]:
        assert setting.partition("=")[0] in message


def test_which_recipes_are_of_drawing_models(tmp_path: Path) -> None:
    assert is_drawing_recipe("emoji")
    assert not is_drawing_recipe("builtin")
    assert is_drawing_recipe(written(tmp_path, "[denoiser]\n"))
    assert not is_drawing_recipe(written(tmp_path, "steps = 3\n"))
    assert not is_drawing_recipe(written(tmp_path, "steps = "))


def test_all_values_are_in_its_table() -> None:
    recipe = load_drawing_recipe("emoji")
    assert DrawingRecipe(**recipe.to_dict()) == recipe
    assert set(recipe.to_dict()) == {field.name for field in dataclasses.fields(recipe)}
