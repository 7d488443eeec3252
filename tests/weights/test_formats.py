"""How raw and model latents differ is told by the user, the file, a known hash, config.json or its company."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import kl, one_sentence, tensors_of, tiny, write

import calotype
from calotype.errors import LatentFormatError, UsageError
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.tiny.config import TinyConfig
from calotype.latents import KNOWN, MODEL, PerChannel, ScaleShift, same_as_model
from calotype.weights import formats
from calotype.weights.formats import file_sha256
from calotype.weights.load import load_weights, require_format

FOUR = tensors_of(kl(AutoencoderConfig(ch=32, ch_mult=(1, 2))))
SIXTEEN = tensors_of(kl(AutoencoderConfig(ch=32, ch_mult=(1, 2), z_channels=16, quant_conv=False)))


def weights(folder: Path, channels: int = 4, config: dict[str, Any] | None = None, metadata: Any = None) -> Path:
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return write(folder / "x.safetensors", FOUR if channels == 4 else SIXTEEN, metadata)


def known(monkeypatch: pytest.MonkeyPatch, path: Path, name: str) -> None:
    monkeypatch.setattr(formats, "KNOWN_FILES", {file_sha256(path): name})


@pytest.mark.parametrize(
    ("channels", "config", "name"),
    [
        (4, {"scaling_factor": 0.18215}, "sd1"),
        (4, {"scaling_factor": 0.13025, "force_upcast": True}, "sdxl"),
        (4, {"scaling_factor": 0.18215, "shift_factor": None}, "sd1"),
        (16, {"scaling_factor": 1.5305, "shift_factor": 0.0609}, "sd3"),
        (16, {"scaling_factor": 0.3611, "shift_factor": 0.1159}, "flux"),
    ],
)
def test_a_config_beside_the_file_tells(tmp_path: Path, channels: int, config: dict[str, Any], name: str) -> None:
    path = weights(tmp_path, channels, config)
    for given in (path, tmp_path):
        loaded = load_weights(given)
        assert (loaded.format, loaded.format_source) == (KNOWN[name], "config.json")


def test_an_old_config_leaves_out_what_was_the_default(tmp_path: Path) -> None:
    for channels, format_ in ((4, KNOWN["sd1"]), (16, None)):
        use = channels == 4  # 1x1 convolutions
        config = {"_class_name": "AutoencoderKL", "latent_channels": channels, "use_quant_conv": use}
        config["use_post_quant_conv"] = use
        assert load_weights(weights(tmp_path, channels, config)).format == format_
    assert load_weights(weights(tmp_path, 4, {"latent_channels": 4})).format is None


def test_other_numbers_are_a_format_of_their_own(tmp_path: Path) -> None:
    loaded = load_weights(weights(tmp_path, 4, {"scaling_factor": 0.5, "shift_factor": 0.25}))
    assert loaded.format == ScaleShift(name="custom", channels=4, scaling_factor=0.5, shift_factor=0.25)
    # the numbers of sd1 are no sd1 with sixteen channels
    loaded = load_weights(weights(tmp_path, 16, {"scaling_factor": 0.18215}))
    assert loaded.format == ScaleShift(name="custom", channels=16, scaling_factor=0.18215)


def test_means_and_standard_deviations_of_channels(tmp_path: Path) -> None:
    config = {"scaling_factor": 1.0, "latents_mean": [0.0, 1.0, 2.0, 3.0], "latents_std": [1.0, 2.0, 3.0, 4.0]}
    expected = PerChannel(name="custom", channels=4, mean=(0.0, 1.0, 2.0, 3.0), std=(1.0, 2.0, 3.0, 4.0))
    assert load_weights(weights(tmp_path, 4, config)).format == expected


@pytest.mark.parametrize(
    "config",
    [
        {"latents_mean": [0.0], "latents_std": [1.0]},
        {"latents_mean": [0.0] * 4, "latents_std": [0.0] * 4},
        {"scaling_factor": "large"},
        {"scaling_factor": 0},
    ],
)
def test_a_config_with_impossible_numbers(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(calotype.CalotypeError, match=r"config\.json: what it says about its latents is damaged"):
        load_weights(weights(tmp_path, 4, config))


@pytest.mark.parametrize("config", [{}, {"scaling_factor": None}, {"architectures": ["CLIPTextModel"]}])
def test_a_config_that_says_nothing(tmp_path: Path, config: dict[str, Any]) -> None:
    assert load_weights(weights(tmp_path, 4, config)).format is None


def test_a_known_file_comes_before_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights(tmp_path, 4, {"scaling_factor": 0.18215})
    known(monkeypatch, path, "sdxl")
    loaded = load_weights(path)
    assert (loaded.format, loaded.format_source) == (KNOWN["sdxl"], "the sha256 of a known file")


def test_metadata_come_before_a_known_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights(tmp_path, 4, None, {"calotype_latent_format": json.dumps(KNOWN["sd1"].to_dict())})
    known(monkeypatch, path, "sdxl")
    loaded = load_weights(path)
    assert (loaded.format, loaded.format_source) == (KNOWN["sd1"], "the file's metadata")


def test_the_users_word_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights(
        tmp_path, 4, {"scaling_factor": 0.18215}, {"calotype_latent_format": json.dumps(KNOWN["sd1"].to_dict())}
    )
    known(monkeypatch, path, "sd1")
    loaded = load_weights(path, latent_format_name="sdxl")
    assert (loaded.format, loaded.format_source) == (KNOWN["sdxl"], "--latent-format")
    none = load_weights(path, latent_format_name="none").format
    assert none == ScaleShift(name="none", channels=4, scaling_factor=1.0)


@pytest.mark.parametrize(
    ("channels", "other", "name"),
    [
        (4, "conditioner.embedders.1.model.text_projection", "sdxl"),
        (4, "cond_stage_model.transformer.text_model.embeddings.position_ids", "sd1"),
        (16, "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight", "sd3"),
        (16, "model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "flux"),
    ],
)
@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae."])
def test_the_company_in_a_checkpoint_tells(tmp_path: Path, channels: int, other: str, name: str, prefix: str) -> None:
    tensors = {f"{prefix}{key}": tensor for key, tensor in (FOUR if channels == 4 else SIXTEEN).items()}
    loaded = load_weights(write(tmp_path / "x.safetensors", {**tensors, other: torch.zeros(2)}))
    assert (loaded.format, loaded.format_source) == (KNOWN[name], "the other tensors of the checkpoint")


@pytest.mark.parametrize(("channels", "choices"), [(4, r"sd1\|sdxl\|playground"), (16, r"sd3\|flux")])
def test_where_nothing_tells_the_option_is_named(tmp_path: Path, channels: int, choices: str) -> None:
    loaded = load_weights(weights(tmp_path, channels))
    assert (loaded.format, loaded.format_source) == (None, "")
    with pytest.raises(
        LatentFormatError, match=rf"{channels} latent channels.* --latent-format {choices}\.$"
    ) as caught:
        require_format(loaded)
    one_sentence(str(caught.value))


def test_tensors_are_encoded_and_decoded_without_a_format(tmp_path: Path) -> None:
    vae = calotype.load(weights(tmp_path), device="cpu")
    with pytest.raises(LatentFormatError, match="--latent-format"):
        _ = vae.latent_format
    with pytest.raises(LatentFormatError, match="--latent-format"):
        vae.encode_image(calotype.Picture(torch.zeros(3, 8, 8), None, ()))
    latents = vae.encode(torch.zeros(1, 3, 8, 8)).mode()
    assert vae.decode(latents).shape == (1, 3, 8, 8)


def test_a_wrong_word_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'flux' is for 16 channels, and this VAE has 4"):
        load_weights(weights(tmp_path), latent_format_name="flux")
    with pytest.raises(UsageError, match="There is no latent format 'sd7'"):
        load_weights(weights(tmp_path), latent_format_name="sd7")


def test_tiny_ones_have_model_latents(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", tensors_of(tiny()))
    assert load_weights(path).format == same_as_model("taesd", 4)
    assert load_weights(path, latent_format_name="sd1").format == same_as_model("sd1", 4)
    path = write(tmp_path / "y.safetensors", tensors_of(tiny(TinyConfig(z_channels=32, pool=True))))
    loaded = load_weights(path)
    assert loaded.format == same_as_model("flux2", 32)
    assert loaded.format_source == "the architecture (its latents are model latents)"


def test_the_known_files_are_whole_hashes_of_known_formats() -> None:
    for digest, name in formats.KNOWN_FILES.items():
        assert len(bytes.fromhex(digest)) == 32
        assert name.removeprefix(MODEL) in KNOWN
