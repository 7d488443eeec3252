"""Files of TAEHVs: told, read, written, and refused where they can't be read."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import taekit
import torch
from PIL import Image
from support import one_sentence, same_tensors, write
from torch import Tensor

from calotype.errors import CalotypeWarning, LatentFormatError, LatentsError, UsageError, WeightsError
from calotype.families import taehv
from calotype.families.taehv.config import TaehvConfig
from calotype.families.tiny.config import TinyConfig
from calotype.latents import KNOWN, Latents, latent_format, same_as_model
from calotype.vae import load
from calotype.weights.load import load_weights, require_format
from calotype.weights.save import save_weights

CONFIGS = {"taew2_1": TaehvConfig(), "taew2_2": TaehvConfig(z_channels=48)}


def refused(path: Path, pattern: str) -> str:
    with pytest.raises((WeightsError, UsageError), match=pattern) as error:
        load_weights(path)
    one_sentence(str(error.value))
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model.", "module."])
@pytest.mark.parametrize("name", CONFIGS)
def test_files_are_told_under_every_prefix(name: str, prefix: str, tmp_path: Path) -> None:
    tensors = {f"{prefix}{key}": value for key, value in taekit.tensors(name).items()}
    loaded = load_weights(write(tmp_path / "x.safetensors", tensors))
    assert (loaded.module.config, loaded.layout, loaded.parts) == (CONFIGS[name], "taehv", {"encoder", "decoder"})
    whole = load_weights(write(tmp_path / "y.safetensors", taekit.tensors(name)))
    assert loaded.sha256 == whole.sha256


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_written_is_read_again(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {key: value.to(dtype) for key, value in taekit.tensors("taew2_1").items()}
    path = tmp_path / f"x{kind}"
    torch.save(tensors, path) if kind == ".pth" else write(path, tensors)
    first = load_weights(path)
    assert first.dtypes == (str(dtype).removeprefix("torch."),)
    format_ = latent_format("model:wan2.1", 16)
    (written,) = save_weights(first.module, tmp_path / "again.safetensors", layout="ldm", format_=format_)
    again = load_weights(written)
    assert same_tensors(again.module, first.module)
    assert (again.layout, again.format, again.sha256) == ("taehv", format_, first.sha256)
    for layout in ("diffusers", "diffusers-2d", "keras"):
        with pytest.raises(UsageError, match=f"kind taehv has no {layout} layout") as error:
            save_weights(first.module, tmp_path / layout, layout=layout)
        one_sentence(str(error.value))


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_half_does_its_half(side: str, tmp_path: Path) -> None:
    tensors = {key: value for key, value in taekit.tensors("taew2_2").items() if key.startswith(side)}
    loaded = load_weights(write(tmp_path / "x.safetensors", tensors))
    assert (loaded.parts, loaded.module.config) == ({side}, CONFIGS["taew2_2"])
    vae = load(tmp_path / "x.safetensors", device="cpu")
    with pytest.raises(WeightsError, match=f"holds only the {side}"):
        vae.decode(torch.zeros(1, 48, 2, 2)) if side == "encoder" else vae.encode(torch.zeros(1, 3, 32, 32))


@pytest.mark.slow
def test_of_two_halves_one_is_made(tmp_path: Path) -> None:
    tensors = taekit.tensors("taew2_1")
    for side in ("encoder", "decoder"):
        write(tmp_path / f"{side}.safetensors", {k: v for k, v in tensors.items() if k.startswith(side)})
    assert same_tensors(
        load_weights(tmp_path).module, load_weights(write(tmp_path / "whole" / "x.safetensors", tensors)).module
    )


# Latent formats


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_files_do_not_tell_whose_latents_they_have(name: str, tmp_path: Path) -> None:
    path, space = (
        write(tmp_path / "x.safetensors", taekit.tensors(name)),
        {"taew2_1": "wan2.1", "taew2_2": "wan2.2"}[name],
    )
    loaded = load_weights(path)
    assert loaded.format is None
    with pytest.raises(LatentFormatError, match=rf"--latent-format model:{space}\|{space}\.") as error:
        require_format(loaded)
    one_sentence(str(error.value))
    channels = loaded.module.config.z_channels
    assert load_weights(path, latent_format_name=space).format == KNOWN[space]
    assert load_weights(path, latent_format_name=f"model:{space}").format == same_as_model(space, channels)
    with pytest.raises(UsageError, match="is for 64 channels"):
        load_weights(path, latent_format_name="model:qwen-image-2.1")
    with pytest.raises(UsageError, match="no latent format 'x'"):
        load_weights(path, latent_format_name="model:x")


def test_known_files_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.safetensors", taekit.tensors("taew2_1"))
    monkeypatch.setattr(
        "calotype.weights.formats.KNOWN_FILES", {hashlib.sha256(path.read_bytes()).hexdigest(): "model:wan2.1"}
    )
    loaded = load_weights(path)
    assert loaded.format == same_as_model("wan2.1", 16)
    assert loaded.format_source == "the sha256 of a known file"


def test_presets_know() -> None:
    for name, preset in taehv.PRESETS.items():
        light = name.startswith("light")
        assert preset.latent_format.startswith("model:") != light
        assert preset.latent_format in taehv.spaces(preset.config)
        assert all(taehv.KNOWN_FILES[sha] == preset.latent_format for sha in preset.sha256)


def test_latents_of_wan_pass_through_model_space(tmp_path: Path) -> None:
    """Raw ones as they are for LightTAE, normalised ones for TAEHV's own."""
    path = write(tmp_path / "x.safetensors", taekit.tensors("taew2_1"))
    light, own = (load(path, latent_format=name, device="cpu") for name in ("wan2.1", "model:wan2.1"))
    latents = light.encode_image(Image.new("RGB", (16, 24), (200, 90, 30)))
    assert torch.equal(light.own(latents), latents.tensor)
    model = KNOWN["wan2.1"].to_model(latents.tensor)
    with pytest.warns(CalotypeWarning, match=r"both are of the space 'wan2\.1'"):
        assert torch.allclose(own.own(_other(latents)), model, atol=1e-6)


def _other(latents: Latents) -> Latents:
    return replace(latents, vae="another")


# Bad input


@pytest.mark.parametrize("channels", [24, 32, 128])
def test_those_of_other_video_models_are_named(channels: int, tmp_path: Path) -> None:
    tensors = taekit.tensors("taew2_1")
    tensors["decoder.1.weight"] = torch.zeros(256, channels, 3, 3)
    path = write(tmp_path / "x.safetensors", tensors)
    refused(path, rf"tiny VAE of videos \(TAEHV\) for latents of {channels} channels, which no model of pictures has")


def test_the_larger_decoder_is_named(tmp_path: Path) -> None:
    tensors = {key: value for key, value in taekit.tensors("taew2_2").items() if key.startswith("encoder")}
    tensors |= {
        "decoder.0.weight": torch.zeros(512, 48, 1, 1),
        "decoder.1.conv.0.weight": torch.zeros(1024, 1, 7, 7),
        "decoder.1.conv.1.weight": torch.zeros(2048, 1024, 1, 1),
        "decoder.1.conv.1.bias": torch.zeros(2048),
        "decoder.1.conv.3.weight": torch.zeros(512, 2048, 1, 1),
        "decoder.7.conv.weight": torch.zeros(256, 256, 1, 1),
    }
    refused(write(tmp_path / "x.safetensors", tensors), "with the larger decoder, which is not read")


CHANGES: dict[str, tuple[str, Tensor | None, str]] = {
    "missing": ("decoder.9.conv.2.bias", None, "missing tensor decoder.9.conv.2.bias"),
    "missing, of two parts": ("decoder.15.conv.0.weight", None, "missing tensors decoder.15.conv.0.weight, .*past"),
    "unexpected": ("decoder.23.weight", torch.zeros(1), "unexpected tensor decoder.23.weight in a TAEHV"),
    "other frames": (
        "encoder.2.conv.weight",
        torch.zeros(64, 192, 1, 1),
        "has 128 columns there: its frames are others",
    ),
    "other rows": ("decoder.13.conv.weight", torch.zeros(128, 128, 1, 1), "has 256 rows there"),
    "misshapen": ("decoder.20.weight", torch.zeros(64, 32, 3, 3), r"decoder.20.weight \[64, 32, 3, 3\] instead of"),
    "not finite": ("encoder.0.bias", torch.full((64,), torch.nan), "NaN or infinity in the tensor encoder.0.bias"),
    "half a block": ("encoder.4.conv.0.weight", torch.zeros(64, 64, 3, 3), "missing tensor encoder.4.past.weight"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_damaged_files_are_refused(change: str, tmp_path: Path) -> None:
    key, value, pattern = CHANGES[change]
    tensors = taekit.tensors("taew2_1")
    tensors = {k: v for k, v in tensors.items() if k != key} | ({} if value is None else {key: value})
    refused(write(tmp_path / "x.safetensors", tensors), pattern)


def test_frames_are_refused(tmp_path: Path) -> None:
    vae = load(write(tmp_path / "x.safetensors", taekit.tensors("taew2_1")), device="cpu")
    for call, shape in ((vae.encode, (1, 3, 5, 16, 16)), (vae.decode, (1, 16, 2, 2, 2))):
        with pytest.raises(UsageError, match="of a video") as error:
            call(torch.zeros(shape))
        one_sentence(str(error.value))


@pytest.mark.slow
def test_latents_of_another_space_are_refused(tmp_path: Path) -> None:
    first = load(write(tmp_path / "a.safetensors", taekit.tensors("taew2_1")), latent_format="wan2.1", device="cpu")
    second = load(write(tmp_path / "b.safetensors", taekit.tensors("taew2_2")), latent_format="wan2.2", device="cpu")
    latents = first.encode_image(picture())
    with pytest.raises(LatentsError, match=r"'wan2.1', with 16 channels, .* 'wan2.2', with 48") as error:
        second.decode_image(latents, any_vae=True)
    one_sentence(str(error.value))


def picture() -> Image.Image:
    return Image.new("RGB", (32, 32), (10, 200, 90))


def test_what_is_no_taehv_is_none() -> None:
    with pytest.raises(UsageError, match="16 or 48, not 32"):
        TaehvConfig(z_channels=32)
    assert TinyConfig().factor == TaehvConfig().factor == 8
