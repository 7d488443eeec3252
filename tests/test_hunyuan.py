"""HunyuanImage's VAE, against diffusers."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import assert_close, fill, import_diffusers, network, pictures, same_tensors, taken_over, tensors_of, write

from calotype.families.hunyuan.config import HunyuanImageConfig
from calotype.families.hunyuan.names import to_diffusers
from calotype.latents import KNOWN
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

SMALLEST = HunyuanImageConfig(channels=(32, 64, 64), num_res_blocks=1, z_channels=16)
WIDER = HunyuanImageConfig(channels=(32, 128, 64, 64), num_res_blocks=2, z_channels=8)


def reference(config: HunyuanImageConfig) -> Any:
    """diffusers' network, with random weights."""
    made = import_diffusers().AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=config.z_channels, block_out_channels=config.channels,
        layers_per_block=config.num_res_blocks, spatial_compression_ratio=config.factor, sample_size=64,
        scaling_factor=0.75289,
    )  # fmt: skip
    return fill(made, 1)


@pytest.mark.parametrize("size", [(2, 4), (3, 5)])
@pytest.mark.parametrize("config", [SMALLEST, WIDER], ids=["smallest", "wider"])
def test_it_agrees_with_diffusers(config: HunyuanImageConfig, size: tuple[int, int], tmp_path: Path) -> None:
    theirs = reference(config)
    theirs.save_pretrained(tmp_path)
    loaded = load_weights(tmp_path)
    assert (loaded.layout, loaded.module.config) == ("diffusers", config)
    assert loaded.format is not None
    assert loaded.format.to_dict()["scaling_factor"] == 0.75289
    agree(loaded.module, theirs, 2, *size)


@pytest.mark.slow
def test_it_agrees_with_diffusers_at_full_size() -> None:
    theirs = reference(HunyuanImageConfig())
    ours = taken_over(theirs)
    assert ours.config == HunyuanImageConfig()
    agree(ours, theirs, 1, 3, 2)


def agree(ours: Any, theirs: Any, count: int, height: int, width: int) -> None:
    """Moments and pictures of so many latents, as diffusers' class has them."""
    f = ours.config.factor
    z, x = torch.randn(count, ours.config.z_channels, height, width), pictures(3, count, height * f, width * f)
    with torch.inference_mode():
        assert_close(ours.decode(z), theirs.decode(z).sample)
        assert_close(ours.encode(x).moments, theirs.encode(x).latent_dist.parameters)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
@pytest.mark.parametrize("config", [SMALLEST, WIDER])
def test_every_layout_there_and_back(config: HunyuanImageConfig, prefix: str, tmp_path: Path) -> None:
    module = network(config)
    framed = {
        f"{prefix}{key}": value[:, :, None].contiguous() if value.ndim == 4 else value
        for key, value in tensors_of(module).items()
    }
    bare = {f"{prefix}{key}": value for key, value in tensors_of(module).items()}
    theirs = {f"{prefix}{to_diffusers(k, config.num_res_blocks)}": v for k, v in tensors_of(module).items()}
    for name, tensors, layout in (("a", framed, "ldm"), ("b", bare, "ldm"), ("c", theirs, "diffusers")):
        loaded = load_weights(write(tmp_path / f"{name}.safetensors", tensors))
        assert (loaded.layout, loaded.module.config) == (layout, config)
        assert same_tensors(loaded.module, module)
    for layout, path in (("ldm", tmp_path / "x.safetensors"), ("diffusers", tmp_path / "folder")):
        save_weights(module, path, layout=layout)  # type: ignore[arg-type]
        assert same_tensors(load_weights(path).module, module)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_half_is_told_alone(side: str, tmp_path: Path) -> None:
    tensors = {k: v for k, v in tensors_of(network(WIDER)).items() if k.startswith(side)}
    loaded = load_weights(write(tmp_path / "half.safetensors", tensors))
    assert loaded.parts == {side}
    assert loaded.module.config == WIDER


def test_the_published_one_is_told_from_its_shapes(tmp_path: Path) -> None:
    from calotype.families import make_network
    from calotype.weights.detect import detect

    with torch.device("meta"):
        module = make_network(HunyuanImageConfig())
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(405.6, abs=0.2)
    found = detect({f"vae.{key}": tuple(value.shape) for key, value in module.state_dict().items()})
    assert found.config == HunyuanImageConfig()


def test_diffusers_knows_every_field_that_is_written(tmp_path: Path) -> None:
    save_weights(network(SMALLEST), tmp_path / "out", layout="diffusers", format_=KNOWN["hunyuan-image"])
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["scaling_factor"] == 0.75289
    known = inspect.signature(import_diffusers().AutoencoderKLHunyuanImage.__init__).parameters
    assert {key for key in said if not key.startswith("_")} <= set(known)
    import_diffusers().AutoencoderKLHunyuanImage.from_pretrained(tmp_path / "out")
