"""What presets know of their networks without a file, against what is published and against diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import import_diffusers

from calotype.families import PRESETS, family_of, make_network
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.kl.names import ldm_to_diffusers
from calotype.families.kl.network import AutoencoderKL
from calotype.families.network import Network
from calotype.families.tiny.network import TinyAutoencoder
from calotype.latents import latent_format
from calotype.outline import outline_of_preset
from calotype.vae import load
from calotype.weights.detect import detect
from calotype.weights.presets import is_preset

# parameters of the published files: of the encoder with its 1x1 convolution, and of the decoder with its own
PUBLISHED = {
    "sd-vae-ft-mse": (34_163_664, 49_490_199),
    "sd-vae-ft-ema": (34_163_664, 49_490_199),
    "sdxl-vae": (34_163_664, 49_490_199),
    "sdxl-vae-fp16-fix": (34_163_664, 49_490_199),
    "sd3-vae": (34_274_208, 49_545_475),
    "flux-vae": (34_274_208, 49_545_475),
    "flux2-vae": (34_425_856, 49_620_259),
    "taesd": (1_222_532, 1_222_531),
    "taesdxl": (1_222_532, 1_222_531),
    "taesd3": (1_229_456, 1_229_443),
    "taef1": (1_229_456, 1_229_443),
}


def on_meta(name: str) -> Network:
    with torch.device("meta"):
        return make_network(PRESETS[name].config)


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def parameters(module: Network) -> tuple[int, int]:
    counts = [0, 0]
    for name, value in module.named_parameters():
        counts[name.startswith(("decoder", "post_quant"))] += value.numel()
    return counts[0], counts[1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name: str) -> None:
    assert parameters(on_meta(name)) == PUBLISHED[name]


def theirs(name: str) -> Any:
    """diffusers' class with the numbers of the published config.json."""
    diffusers = import_diffusers()
    if name == "flux2-vae":
        return diffusers.AutoencoderKLFlux2()
    if name.startswith("tae"):
        return diffusers.AutoencoderTiny(latent_channels=16 if name in ("taesd3", "taef1") else 4)
    deep = name in ("sd3-vae", "flux-vae")
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16 if deep else 4,
        use_quant_conv=not deep, use_post_quant_conv=not deep,
    )  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_are_those_of_diffusers(name: str) -> None:
    module = on_meta(name)
    with torch.device("meta"):
        expected = shapes(theirs(name))
    expected = {key: shape for key, shape in expected.items() if not key.startswith("bn.")}
    ours: dict[str, tuple[int, ...]] = {}
    for key, shape in shapes(module).items():
        if isinstance(module, TinyAutoencoder):  # there the clamp before the decoder is not of its list
            side, index, rest = key.split(".", 2)
            ours[f"{side}.layers.{int(index) - (side == 'decoder')}.{rest}"] = shape
        else:
            assert isinstance(module, AutoencoderKL)
            named = ldm_to_diffusers(key, len(module.config.channels))
            assert named is not None
            linear = ".attentions." in named and named.endswith(".weight") and len(shape) == 4
            ours[named] = shape[:2] if linear else shape
    assert ours == expected


@pytest.mark.parametrize("name", PRESETS)
def test_a_file_with_these_tensors_is_told_as_this_network(name: str) -> None:
    config = PRESETS[name].config
    family = family_of(config)
    told = detect({family.original(key, config): shape for key, shape in shapes(on_meta(name)).items()}).config
    if family.diffusers is not None:  # with what its own metadata say
        told = family.diffusers.completed(told, {}, config.to_dict())
    assert told == config
    # model latents have the channels that its format is for
    if name not in ("flux2-vae", "taef2"):
        assert latent_format(PRESETS[name].latent_format, config.z_channels).channels == config.z_channels


def test_the_file_of_taef2(shared: Path) -> None:
    assert load(shared / "weights" / "taef2", device="cpu").config == PRESETS["taef2"].config


def test_a_path_comes_before_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_preset("sdxl-vae")
    Path("sdxl-vae").mkdir()
    assert not is_preset("sdxl-vae")
    assert not is_preset("builtin")


def test_an_outline_has_no_weights() -> None:
    outline = outline_of_preset("flux-vae", device="cpu", dtype=torch.bfloat16)
    assert isinstance(outline.config, AutoencoderConfig)
    assert (outline.name, outline.parts) == ("flux-vae", {"encoder", "decoder"})
    assert {value.device.type for value in outline.engine.module.parameters()} == {"meta"}
    assert {value.dtype for value in outline.engine.module.parameters()} == {torch.bfloat16}
