"""Recipes: what is read from TOML, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import one_sentence

from calotype.errors import UsageError
from calotype.families import config_from_dict
from calotype.families.folded.config import FoldedConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.train.recipe import Adversarial, Phase, Source, Start, load_recipe, named_recipes

RECIPES = named_recipes()
TOML = """
name = "small"
crop = 32
phases = [{ start = 10, crop = 64, batch = 2 }, { start = 20, muon_rate = 3e-3 }]
[network]
kind = "folded"
ch = [8, 16]
[[sources]]
path = "photos.zip"
hold_out = 50
[[sources]]
path = "emoji"
repeat = 2
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(TOML)
    return path


def test_a_recipe_is_read(toml: Path) -> None:
    recipe = load_recipe(toml)
    assert recipe.name == "small"
    assert recipe.network == FoldedConfig(ch=(8, 16))
    assert recipe.sources == (Source(path="photos.zip", hold_out=50), Source(path="emoji", repeat=2))
    assert recipe.phases == (Phase(start=10, crop=64, batch=2), Phase(start=20, muon_rate=3e-3))
    assert (recipe.crop, recipe.batch, recipe.optimiser) == (32, 16, "adamw")


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_that_ship_are_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert all(phase.start < recipe.steps for phase in recipe.phases)
    assert config_from_dict(recipe.to_dict()["network"]) == recipe.network


def test_what_ships() -> None:
    assert {
        "kl-f8",
        "ft-mse",
        "ft-ema",
        "sdxl-like",
        "sd3-like-16ch",
        "tiny-distill",
        "fp16-fix",
        "builtin",
        "builtin-finish",
        "builtin-adversarial",
    } <= {*RECIPES}
    kl_f8 = load_recipe("kl-f8")
    assert kl_f8.network == AutoencoderConfig()
    assert (kl_f8.reconstruction, kl_f8.perceptual, kl_f8.perceptual_net, kl_f8.kl_weight) == ("l1", 1.0, "vgg", 1e-6)
    assert kl_f8.adversarial == Adversarial(start=50_001)  # hinge, batch norm, adaptive, 0.5
    assert (kl_f8.optimiser, kl_f8.betas, kl_f8.learning_rate) == ("adam", (0.5, 0.9), pytest.approx(24 * 4.5e-6))
    ft_mse = load_recipe("ft-mse")
    assert (ft_mse.reconstruction, ft_mse.perceptual) == ("l2", 0.1)
    assert ft_mse.start == Start(weights="sd-vae-ft-ema", train="decoder")
    assert load_recipe("sd3-like-16ch").network == AutoencoderConfig(z_channels=16, quant_conv=False)


def test_phases_change_what_they_name_until_the_next(toml: Path) -> None:
    recipe = load_recipe(toml)
    seen = [(now.crop, now.batch, now.muon_rate) for now in map(recipe.at, (0, 9, 10, 19, 20, 9_999))]
    assert seen == [
        (32, 16, 2e-2),
        (32, 16, 2e-2),
        (64, 2, 2e-2),
        (64, 2, 2e-2),
        (64, 2, 3e-3),
        (64, 2, 3e-3),
    ]
    assert recipe.crops() == {32, 64}
    assert recipe.at(15).name == "small"


def test_settings_reach_inside_and_are_typed(toml: Path) -> None:
    settings = [
        "batch=4",
        "network.z_channels=8",
        "network.ch=[24, 32]",
        "learning_rate=1",
        "name=other name",
        "reconstruction=l2",
        "betas=[0.5, 0.6]",
        "sources.1.repeat=7",
        "phases.0.start=5",
    ]
    recipe = load_recipe(toml, settings)
    assert recipe.batch == 4
    assert recipe.network == FoldedConfig(z_channels=8, ch=(24, 32))
    assert (recipe.learning_rate, type(recipe.learning_rate)) == (1.0, float)
    assert (recipe.name, recipe.reconstruction, recipe.betas) == ("other name", "l2", (0.5, 0.6))
    assert [source.repeat for source in recipe.sources] == [1, 7]
    assert recipe.phases[0] == Phase(start=5, crop=64, batch=2)


def test_another_network(toml: Path) -> None:
    text = TOML.replace('kind = "folded"\nch = [8, 16]', 'kind = "autoencoder_kl"\nch = 32\nch_mult = [1, 2]')
    toml.write_text(text)
    assert load_recipe(toml).network == AutoencoderConfig(ch=32, ch_mult=(1, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["colour=3"], "unknown key colour; Recipe has accumulate, activation_range, "),
        (["learning_rates=3"], "unknown key learning_rates; did you mean learning_rate\\? Recipe has "),
        (["network.blocks=3"], r"network: unknown key blocks; did you mean encoder_blocks\? FoldedConfig has ch, "),
        (["sources.0.folder=x"], r"sources\[0\]: unknown key folder; Source has hold_out, path, repeat"),
        (["phases.1.steps=3"], r"phases\[1\]: unknown key steps; Phase has "),
        (["batch=many"], "batch must be a whole number, not 'many'"),
        (["batch=1.5"], r"batch must be a whole number, not 1\.5"),
        (["batch=true"], "batch must be a whole number, not True"),
        (["zoom=true"], "zoom must be a number, not True"),
        (["name=3"], "name must be text, not 3"),
        (["betas=[0.9]"], "betas must have 2 entries, not 1"),
        (["betas=0.9"], r"betas must be a list, not 0\.9"),
        (["betas=[0.9, 1]"], r"betas must be below 1, not \(0\.9, 1\.0\)"),
        (["optimiser=sgd"], "optimiser must be one of adam, adamw, muon, not 'sgd'"),
        (["optimiser=[1]"], r"optimiser must be one of adam, adamw, muon, not \[1\]"),
        (["network.kind=unet"], "network.kind must be one of folded, .*taesd, dense, conv, not 'unet'"),
        (["network.kind=[1]"], r"network.kind must be one of folded, .*taesd, dense, conv, not \[1\]"),
        (["adversarial.start=10000"], r"adversarial\.start is 10000; it must lie below steps \(10000\)"),
        (["adversarial.start=5", "adversarial.warm_up=6"], r"not below its warm_up \(6\)"),
        (["adversarial.weight=1"], "adversarial: start must be given"),
        (
            ["adversarial.start=1", "adversarial.norm=layer"],
            "norm must be one of batch, group, spectral, none, not 'layer'",
        ),
        (["teacher.weights=x", "equivariance.low=0.1"], "a teacher decides what the latents are"),
        (["equivariance.low=2"], "probabilities of equivariance must be at most 1"),
        (
            ["equivariance.low=0.1", "crop=32", "reconstruction=ssim"],
            r"ssim needs pictures of at least 11 .* not 8 x 8 \(",
        ),
        (
            ["crop=16", "adversarial.start=1"],
            "the discriminator needs pictures of at least 24 x 24 pixels, not 16 x 16",
        ),
        (["reconstruction=ms_ssim"], "ms_ssim needs pictures of at least 161"),
        (["network={kind='dense', side=32}", "phases=[]", "optimiser=muon"], "muon is for convolutions"),
        (["network={kind='dense', side=16}", "phases=[]"], "a dense network takes crops of its side, 16 pixels, only"),
        (["shift.weight=1", "crop=24"], "shift needs crops of at least 32 pixels"),
        (["start={weights='x', train='decoder'}", "alignment.weight=1"], "leaves nothing to weigh the gradient of"),
        (["accumulate=3"], "batch must be a multiple of accumulate, 3, not 2"),
        (["start=3"], "start must be a table, not 3"),
        (["start=x"], "network must be given"),  # x is no preset, and nobody is there who could look at a file
        (["start.train=decoder"], "start: weights must be given"),
        (["network=3"], "network must be a table, not 3"),
        (["network.ch=[0, 8]"], r"network: FoldedConfig\.ch must be a whole number from 1 to 65536, not 0"),
        (["sources=[]"], "sources must name at least one folder or zip"),
        (["sources.0=3"], r"sources\[0\] must be a table, not 3"),
        (["sources.0.hold_out=-1"], r"sources\[0\]: hold_out must be at least 0, not -1"),
        (["phases.0.batch=0"], r"phases\[0\]: batch must be at least 1, not 0"),
        (["phases.0.start=30"], r"phases must stand in the order of their starts, not \[30, 20\]"),
        (["crop=20"], "crop must be a multiple of 8, because the network is f8, not 20"),
        (["crop=0"], "crop must be at least 1, not 0"),
        (["zoom=0.5"], r"zoom must be at least 1, not 0\.5"),
        (["kl_weight=nan"], "kl_weight must be a number, not 'nan'"),
        (["log_every=0"], "log_every must be at least 1, not 0"),
        (["ema_decay=1"], r"ema_decay must be below 1, not 1\.0"),
        (["batch"], "--set batch: give key=value"),
        (["sources.7.repeat=1"], r"--set sources\.7\.repeat=1: the recipe has no such place"),
        (["sources.repeat=1"], r"--set sources\.repeat=1: the recipe has no such place"),
        (["crop.x=1"], r"--set crop\.x=1: the recipe has no such place"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: list[str], message: str, toml: Path) -> None:
    with pytest.raises(UsageError, match=message) as error:
        load_recipe(toml, settings)
    one_sentence(str(error.value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not valid TOML"),
        ("", "name, network, sources must be given"),
        (TOML.replace('path = "emoji"', ""), r"sources\[1\]: path must be given"),
        (
            TOML.replace('kind = "folded"', ""),
            "network.kind must be one of folded, .*taesd, dense, conv, not None",
        ),
    ],
)
def test_damaged_recipes(text: str, message: str, toml: Path) -> None:
    toml.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        load_recipe(toml)
    one_sentence(str(error.value))
    assert str(error.value).startswith(str(toml))


def test_a_file_that_is_no_text(toml: Path) -> None:
    toml.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not valid TOML"):
        load_recipe(toml)


def test_a_missing_recipe(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(UsageError, match="there is no such recipe"):
            load_recipe(path)


def test_a_table_can_be_left_out(toml: Path) -> None:
    text = TOML + "\n[adversarial]\nstart = 50\n"
    toml.write_text(text)
    assert load_recipe(toml).adversarial == Adversarial(start=50)
    assert load_recipe(toml, ["adversarial=none"]).adversarial is None
    with pytest.raises(
        UsageError, match=r"small\.toml with --set steps=9: adversarial\.start is 50; .*or set adversarial=none"
    ):
        load_recipe(toml, ["steps=9"])
