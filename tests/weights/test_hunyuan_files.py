"""Files of HunyuanImage's VAE that can't be what they say, and those that can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import network, one_sentence, tensors_of, write

from calotype.errors import UsageError, WeightsError
from calotype.families.hunyuan.config import HunyuanImageConfig
from calotype.families.hunyuan.names import to_diffusers
from calotype.latents import KNOWN, PerChannel
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

CONFIG = HunyuanImageConfig(channels=(32, 64, 128), num_res_blocks=1, z_channels=64)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return tensors_of(network(CONFIG))


def folder(tmp_path: Path, **said: Any) -> Path:
    """diffusers' folder, with other fields in its config.json ("absent": without)."""
    save_weights(network(CONFIG), tmp_path, layout="diffusers", format_=KNOWN["hunyuan-image"])
    about = tmp_path / "config.json"
    values = json.loads(about.read_text()) | said
    about.write_text(json.dumps({key: value for key, value in values.items() if value != "absent"}))
    return tmp_path


def refused(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    one_sentence(str(caught.value))
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("block_out_channels", [32, 64, 64], "block_out_channels"),
        ("block_out_channels", 3, "block_out_channels 3"),
        ("layers_per_block", 2, "layers_per_block 2, and its tensors are of 1"),
        ("latent_channels", 32, "latent_channels 32, and its tensors are of 64"),
        ("in_channels", 4, "in_channels 4, and its tensors are of 3"),
        ("out_channels", 1, "out_channels 1"),
        ("spatial_compression_ratio", 32, "spatial_compression_ratio 32, and its tensors are of 4"),
        ("spatial_compression_ratio", "4", "spatial_compression_ratio '4'"),
        ("downsample_match_channel", False, "downsample_match_channel False, and supported is True"),
        ("upsample_match_channel", False, "upsample_match_channel False, and supported is True"),
        ("upsample_match_channel", 1, "upsample_match_channel 1"),
        ("norm_num_groups", "many", "norm_num_groups"),
        ("scaling_factor", 0, "scaling_factor must not be 0"),
        ("scaling_factor", "0.75", "scaling_factor must be a number"),
        ("sample_size", -1, "sample_size -1"),
        ("temporal_compression_ratio", 4, "a field 'temporal_compression_ratio' that no AutoencoderKLHunyuanImage"),
        ("_class_name", "AutoencoderKL", "_class_name 'AutoencoderKL', and its tensors are of"),
        ("_class_name", "AutoencoderKLHunyuanImageRefiner", "of the class AutoencoderKLHunyuanImageRefiner"),
    ],
)
def test_a_config_that_contradicts_is_refused_by_name(field: str, value: object, words: str, tmp_path: Path) -> None:
    assert words in refused(folder(tmp_path, **{field: value}))


@pytest.mark.parametrize(
    "said",
    [
        {"_class_name": "absent"},
        {"sample_size": 512},
        {"sample_size": None},
        {"downsample_match_channel": "absent", "upsample_match_channel": "absent"},
        {"spatial_compression_ratio": "absent"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    ],
)
def test_what_is_not_said_or_changes_nothing(said: dict[str, Any], tmp_path: Path) -> None:
    loaded = load_weights(folder(tmp_path, **said))
    assert loaded.module.config == CONFIG
    assert loaded.format == KNOWN["hunyuan-image"]


@pytest.mark.parametrize("names", ["tencent", "diffusers"])
@pytest.mark.parametrize(
    "lost",
    [
        "encoder.conv_in.bias",
        "encoder.down.0.downsample.conv.bias",
        "encoder.mid.attn_1.k.weight",
        "decoder.up.1.block.1.norm2.weight",
        "decoder.up.0.upsample.conv.bias",
        "decoder.conv_out.bias",
    ],
)
def test_a_tensor_that_is_missing_is_named(
    names: str, lost: str, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    rest = {key: value for key, value in tensors.items() if key != lost}
    if names == "diffusers":
        rest = {str(to_diffusers(key, 1)): value for key, value in rest.items()}
    assert f"missing tensor {lost}" in refused(write(tmp_path / "a.safetensors", rest))


@pytest.mark.parametrize("lost", ["encoder.down.1.block.0.conv1.weight", "encoder.conv_in.weight"])
def test_without_what_tells_its_shape_it_is_refused(
    lost: str, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    refused(write(tmp_path / "a.safetensors", {key: value for key, value in tensors.items() if key != lost}))


def test_what_does_not_belong_or_fit_is_named(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    extra = tensors | {"encoder.mid.block_3.conv1.weight": torch.zeros(2)}
    assert "unexpected tensor encoder.mid.block_3.conv1.weight" in refused(write(tmp_path / "a.safetensors", extra))
    extra = {str(to_diffusers(key, 1)): value for key, value in tensors.items()} | {
        "decoder.up_blocks.x": torch.ones(1)
    }
    assert "unexpected tensor decoder.up_blocks.x" in refused(write(tmp_path / "b.safetensors", extra))
    other = tensors | {"decoder.norm_out.weight": torch.ones(16)}
    assert "decoder.norm_out.weight [16] instead of [32]" in refused(write(tmp_path / "c.safetensors", other))
    other = tensors | {"encoder.conv_in.weight": torch.full_like(tensors["encoder.conv_in.weight"], torch.nan)}
    assert "NaN or infinity in the tensor encoder.conv_in.weight" in refused(write(tmp_path / "d.safetensors", other))
    other = tensors | {"encoder.conv_in.weight": torch.zeros(32, 4, 3, 3)}
    assert "its encoder takes pictures of 4 channels" in refused(write(tmp_path / "e.safetensors", other))


def test_kernels_over_frames_are_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    deep = {k: v[:, :, None].expand(-1, -1, 3, -1, -1).contiguous() if v.ndim == 4 else v for k, v in tensors.items()}
    assert "video" in refused(write(tmp_path / "a.safetensors", deep))


@pytest.mark.parametrize("part", [0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(part: float, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    content = write(tmp_path / "whole.safetensors", tensors).read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(content[: int(len(content) * part)])
    assert "truncated" in refused(cut)


def test_latents_that_its_config_json_can_not_say_are_not_written(tmp_path: Path) -> None:
    format_ = PerChannel(name="mine", channels=64, mean=(0.5,) * 64, std=(2.0,) * 64)
    with pytest.raises(UsageError, match=r"AutoencoderKLHunyuanImage's config\.json has no latents_mean") as caught:
        save_weights(network(CONFIG), tmp_path / "out", layout="diffusers", format_=format_)
    one_sentence(str(caught.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["keras", "diffusers-2d"])
def test_layouts_that_it_has_not(layout: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="hunyuan_image") as caught:
        save_weights(network(CONFIG), tmp_path / "out", layout=layout)
    one_sentence(str(caught.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "numbers",
    [
        {"channels": (32,)},
        {"channels": [32, 64]},
        {"channels": (32, 48)},
        {"channels": (32, 96)},
        {"channels": (0, 32)},
        {"num_res_blocks": 0},
        {"z_channels": 48},
        {"z_channels": 0},
        {"in_channels": 0},
    ],
)
def test_numbers_that_can_not_be(numbers: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="HunyuanImageConfig") as caught:
        HunyuanImageConfig(**{"channels": (32, 64, 128), "z_channels": 64, **numbers})
    one_sentence(str(caught.value))
