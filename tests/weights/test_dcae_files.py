"""Files of DC-AEs: how they are told, their names in both layouts, what can't be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dcaekit import LITE, SANA, SMALL, narrow, reference, shuffled
from PIL import Image
from support import assert_close, import_diffusers, one_sentence, same_tensors, tensors_of, write
from torch import Tensor
from typer.testing import CliRunner

from calotype.cli.main import app
from calotype.errors import LatentFormatError, UsageError, WeightsError
from calotype.families import PRESETS
from calotype.families.dcae.config import DcaeConfig
from calotype.families.dcae.names import from_diffusers, to_diffusers
from calotype.latents import KNOWN, latent_format
from calotype.weights.load import Loaded, load_weights, require_format
from calotype.weights.save import save_weights

# names of the original files, as diffusers' own converter of them reads them
ORIGINAL = (
    "encoder.project_in.conv.weight",
    "encoder.stages.0.op_list.0.main.conv1.conv.bias",
    "encoder.stages.0.op_list.1.main.conv2.norm.weight",
    "encoder.stages.0.op_list.2.main.conv.weight",
    "encoder.stages.5.op_list.0.context_module.main.qkv.conv.weight",
    "encoder.stages.5.op_list.0.context_module.main.aggreg.0.0.weight",
    "encoder.stages.5.op_list.0.context_module.main.aggreg.0.1.weight",
    "encoder.stages.5.op_list.1.context_module.main.proj.conv.weight",
    "encoder.stages.5.op_list.1.context_module.main.proj.norm.bias",
    "encoder.stages.5.op_list.1.local_module.main.inverted_conv.conv.bias",
    "encoder.stages.5.op_list.1.local_module.main.depth_conv.conv.weight",
    "encoder.stages.5.op_list.1.local_module.main.point_conv.conv.weight",
    "encoder.stages.5.op_list.1.local_module.main.point_conv.norm.weight",
    "encoder.project_out.main.op_list.0.conv.weight",
    "decoder.project_in.main.conv.weight",
    "decoder.stages.1.op_list.0.main.conv.conv.bias",
    "decoder.project_out.op_list.0.weight",
    "decoder.project_out.op_list.2.conv.bias",
)


def folder(name: str, tmp_path: Path) -> Path:
    """A diffusers folder."""
    reference(SMALL[name]).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def original(loaded: Loaded) -> dict[str, Tensor]:
    """Its tensors under the original files' names, which are ours."""
    return tensors_of(loaded.module)


def stored(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_the_names_are_those_of_the_original_files(tmp_path: Path) -> None:
    keys = original(load_weights(folder("sana", tmp_path)))
    assert [name for name in ORIGINAL if name not in keys] == []
    keys = original(load_weights(folder("f32", tmp_path / "f32")))
    for name in (
        "encoder.project_in.conv.conv.weight",
        "encoder.stages.1.op_list.2.main.conv.conv.weight",
        "decoder.stages.1.op_list.1.main.conv2.norm.running_var",
        "decoder.stages.1.op_list.1.main.conv2.norm.num_batches_tracked",
        "decoder.project_out.op_list.2.conv.conv.weight",
    ):
        assert name in keys


@pytest.mark.parametrize("name", ["sana", "f32"])
def test_diffusers_own_converter_reads_the_original_names(name: str, tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers

    path = folder(name, tmp_path)
    converted = convert_autoencoder_dc_checkpoint_to_diffusers(original(load_weights(path)))
    expected = stored(path / "diffusion_pytorch_model.safetensors")
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], expected[key]) for key in expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_layout_there_and_back_changes_no_bit(name: str, tmp_path: Path) -> None:
    path = folder(name, tmp_path)
    first = load_weights(path)
    (single,) = save_weights(
        first.module, tmp_path / "x.safetensors", layout="ldm", format_=first.format, kept=first.kept
    )
    second = load_weights(single)
    assert (second.layout, second.module.config, second.format) == ("ldm", first.module.config, first.format)
    assert same_tensors(second.module, first.module)
    assert second.sha256 == first.sha256
    save_weights(second.module, tmp_path / "again", layout="diffusers", format_=second.format, kept=second.kept)
    before, after = (stored(one / "diffusion_pytorch_model.safetensors") for one in (path, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(before[key].dtype == after[key].dtype and torch.equal(before[key], after[key]) for key in before)
    assert same_tensors(load_weights(tmp_path / "again").module, first.module)


@pytest.mark.parametrize("name", SMALL)
def test_diffusers_reads_what_is_written(name: str, tmp_path: Path) -> None:
    theirs = reference(SMALL[name])
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_weights(tmp_path / "theirs")
    save_weights(loaded.module, tmp_path / "ours", layout="diffusers", format_=loaded.format, kept=loaded.kept)
    said = json.loads((tmp_path / "ours" / "config.json").read_text())
    again = import_diffusers().AutoencoderDC.from_pretrained(tmp_path / "ours")
    assert set(said) <= {*theirs.config, "_class_name", "_diffusers_version"}, "no field that the class does not have"
    z = torch.randn(1, theirs.config.latent_channels, 2, 2)
    with torch.inference_mode():
        assert_close(again.decode(z).sample, theirs.decode(z).sample)
    assert again.config.scaling_factor == theirs.config.scaling_factor


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sana", "f32", "f64", "f128", "lite"])
def test_the_published_kinds_are_told_without_a_config(name: str, tmp_path: Path) -> None:
    path = folder(name, tmp_path)
    expected = load_weights(path)
    (path / "config.json").unlink()
    wide = DcaeConfig().head_dim
    for tensors in (stored(path / "diffusion_pytorch_model.safetensors"), original(expected)):
        for prefix in ("", "vae.", "first_stage_model."):
            alone = write(tmp_path / "x" / "x.safetensors", {prefix + key: value for key, value in tensors.items()})
            loaded = load_weights(alone)
            config = loaded.module.config
            assert isinstance(config, DcaeConfig)
            if config.head_dim == wide:  # no scale tells it; the published ones have 32
                config = type(config)(**{**vars(config), "head_dim": expected.module.config.head_dim})  # type: ignore[attr-defined]
            assert config == expected.module.config
            assert loaded.prefix == prefix
            assert same_tensors(loaded.module, expected.module)
            assert any(
                "Its activations are taken to be those of the published network" in note for note in loaded.notes
            )
            with pytest.raises(LatentFormatError, match="--latent-format"):
                require_format(loaded)


@pytest.mark.slow
def test_heads_that_nothing_tells(tmp_path: Path) -> None:
    """They are of 32 channels in all published ones, which a note says; where these do not fit, somebody must say."""
    path = folder("f32", tmp_path / "wide")
    (path / "config.json").unlink()
    assert any("heads of its attention to have 32 channels" in note for note in load_weights(path).notes)
    assert not any("heads" in note for note in load_weights(alone(folder("sana", tmp_path / "told"))).notes)
    channels = [12, 24, 48, 48, 48, 96]
    fields = narrow(shuffled(6)) | {
        "encoder_block_out_channels": channels, "decoder_block_out_channels": channels, "latent_channels": 4,
        "attention_head_dim": 24,
    }  # fmt: skip
    reference(fields).save_pretrained(tmp_path / "odd")
    first = load_weights(tmp_path / "odd")
    assert first.module.config.to_dict()["head_dim"] == 24
    assert not first.notes
    (tmp_path / "x").mkdir()
    (single,) = save_weights(first.module, tmp_path / "x" / "x.safetensors", layout="ldm")
    assert load_weights(single).module.config == first.module.config
    with pytest.raises(WeightsError, match=r"nothing tells how many channels a head.*attention_head_dim") as caught:
        load_weights(alone(tmp_path / "odd"))
    one_sentence(str(caught.value))


def alone(path: Path) -> Path:
    """Its weights without their config.json."""
    (path / "config.json").unlink()
    return path


@pytest.mark.parametrize("name", ["sana", "f32"])
@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_halves_of_which_one_attends(name: str, layout: str, tmp_path: Path) -> None:
    """LITE's decoder has no attention, so its encoder alone tells of heads."""
    path = folder("lite" if name == "sana" else name, tmp_path)
    whole = load_weights(path)
    tensors = original(whole) if layout == "ldm" else stored(path / "diffusion_pytorch_model.safetensors")
    for side in ("encoder", "decoder"):
        write(tmp_path / "halves" / f"{side}.safetensors", {k: v for k, v in tensors.items() if k.startswith(side)})
    both = load_weights(tmp_path / "halves")
    if name == "sana":
        assert both.module.config.to_dict()["head_dim"] == whole.module.config.to_dict()["head_dim"]
    assert same_tensors(both.module, whole.module)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sana", "f32"])
@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_halves_are_read_alone_and_together(name: str, layout: str, tmp_path: Path) -> None:
    path = folder(name, tmp_path)
    whole = load_weights(path)
    tensors = original(whole) if layout == "ldm" else stored(path / "diffusion_pytorch_model.safetensors")
    for side in ("encoder", "decoder"):
        half = {key: value for key, value in tensors.items() if key.startswith(side)}
        file = write(tmp_path / "halves" / f"{side}.safetensors", half)
        loaded = load_weights(file)
        assert loaded.parts == {side}
        assert loaded.module.state_dict().keys() == {k for k in original(whole) if k.startswith(side)}
    both = load_weights(tmp_path / "halves")
    assert both.parts == {"encoder", "decoder"}
    assert same_tensors(both.module, whole.module)


def test_what_a_file_says_itself_is_obeyed(tmp_path: Path) -> None:
    """Activations, heads and shortcuts, which nothing else tells once the config.json is gone."""
    fields = narrow(shuffled(6)) | {
        "attention_head_dim": 8, "decoder_conv_act_fn": "silu", "encoder_out_shortcut": False,
        "decoder_act_fns": ["silu", "silu", "relu", "silu", "relu", "silu"],
    }  # fmt: skip
    reference(fields).save_pretrained(tmp_path / "theirs")
    first = load_weights(tmp_path / "theirs")
    (tmp_path / "x").mkdir()
    (single,) = save_weights(first.module, tmp_path / "x" / "x.safetensors", layout="ldm")
    again = load_weights(single)
    assert again.module.config == first.module.config
    assert not again.notes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder_act_fns": "gelu"}, "decoder_act_fns 'gelu', and supported are silu, swish, relu"),
        ({"decoder_act_fns": ["silu"]}, "decoder_act_fns"),
        ({"decoder_conv_act_fn": "tanh"}, "decoder_conv_act_fn 'tanh'"),
        ({"decoder_norm_types": "layer_norm"}, "decoder_norm_types 'layer_norm'"),
        ({"decoder_norm_types": "batch_norm"}, "decoder_norm_types 'batch_norm'"),
        ({"encoder_block_types": "ResBlock"}, "encoder_block_types 'ResBlock'"),
        ({"decoder_block_types": ["ResBlock"] * 6}, "decoder_block_types"),
        ({"encoder_block_out_channels": [8, 16, 32, 32, 64, 128]}, "encoder_block_out_channels"),
        ({"decoder_layers_per_block": [1] * 6}, "decoder_layers_per_block"),
        ({"encoder_qkv_multiscales": [[]] * 6}, "encoder_qkv_multiscales"),
        ({"downsample_block_type": "pixel_unshuffle"}, "downsample_block_type 'pixel_unshuffle'"),
        (
            {"downsample_block_type": "pool"},
            "downsample_block_type 'pool', and supported are Conv, conv, pixel_unshuffle",
        ),
        ({"upsample_block_type": "pixel_shuffle"}, "upsample_block_type 'pixel_shuffle'"),
        ({"upsample_block_type": "bilinear"}, "upsample_block_type 'bilinear', and supported are interpolate"),
        ({"attention_head_dim": 4}, "attention_head_dim 4, and its tensors are of 2"),
        ({"encoder_out_shortcut": "no"}, "encoder_out_shortcut 'no', and supported are true and false"),
        ({"latent_channels": 64}, "latent_channels 64"),
        ({"in_channels": 4}, "in_channels 4"),
        ({"timestep_scaling": 1}, "a field 'timestep_scaling' that no AutoencoderDC of diffusers has"),
        ({"_class_name": "AutoencoderKL"}, "_class_name 'AutoencoderKL', and its tensors are of 'AutoencoderDC'"),
        ({"scaling_factor": 0}, "scaling_factor must not be 0"),
    ],
)
def test_what_a_config_json_says_is_obeyed_or_refused_by_name(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = folder("sana", tmp_path)
    said = json.loads((path / "config.json").read_text()) | fields
    (path / "config.json").write_text(json.dumps(said))
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    assert message in str(caught.value)
    one_sentence(str(caught.value))


@pytest.mark.parametrize(
    "lost", ["to_k.weight", "to_qkv_multiscale.0.proj_in.weight", "conv_in.bias", "norm_out.weight"]
)
def test_a_tensor_that_is_missing_is_named(lost: str, tmp_path: Path) -> None:
    path = folder("sana", tmp_path)
    tensors = stored(path / "diffusion_pytorch_model.safetensors")
    key = next(key for key in tensors if key.endswith(lost))
    del tensors[key]
    write(path / "diffusion_pytorch_model.safetensors", tensors)
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    one_sentence(str(caught.value))


@pytest.mark.parametrize("extra", ["decoder.mask_token", "encoder.down_blocks.0.0.attn.to_z.weight"])
def test_a_tensor_that_does_not_belong_is_named(extra: str, tmp_path: Path) -> None:
    path = folder("sana", tmp_path)
    tensors = stored(path / "diffusion_pytorch_model.safetensors") | {extra: torch.zeros(2)}
    write(path / "diffusion_pytorch_model.safetensors", tensors)
    with pytest.raises(WeightsError, match=f"unexpected tensor {extra}"):
        load_weights(path)


@pytest.mark.parametrize("change", ["q-of-another-shape", "q-of-another-type", "far-level", "nan", "counts-of-floats"])
def test_damaged_ones(change: str, tmp_path: Path) -> None:
    path = folder("f32", tmp_path)
    tensors = stored(path / "diffusion_pytorch_model.safetensors")
    q = next(key for key in tensors if key.endswith("to_q.weight"))
    if change == "q-of-another-shape":
        tensors[q] = tensors[q][:4].contiguous()
    elif change == "q-of-another-type":
        tensors[q] = tensors[q].half()
    elif change == "far-level":
        tensors["encoder.down_blocks.99999999.0.conv1.weight"] = torch.zeros(4, 4, 3, 3)
    elif change == "nan":
        tensors[q][0, 0] = torch.nan
    else:
        counted = next(key for key in tensors if key.endswith("num_batches_tracked"))
        tensors[counted] = tensors[counted].float()
    write(path / "diffusion_pytorch_model.safetensors", tensors)
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    one_sentence(str(caught.value))


def test_sanas_latents_have_a_name(tmp_path: Path) -> None:
    loaded = load_weights(folder("sana", tmp_path))
    assert loaded.format is not None
    assert loaded.format.scaling_factor == 0.41407  # type: ignore[union-attr]
    assert KNOWN["sana"] == latent_format("sana", 32)
    preset = PRESETS["sana-dc-ae"]
    assert (preset.latent_format, preset.config) == ("sana", DcaeConfig())


@pytest.mark.slow
def test_pictures_of_any_size_through_the_commands(tmp_path: Path) -> None:
    path = folder("sana", tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (70, 45, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    commands: list[list[str | Path]] = [
        ["encode", tmp_path / "a.png", "--vae", path, "--out", tmp_path / "latents"],
        ["decode", tmp_path / "latents" / "a.latents.safetensors", "--vae", path, "--out", tmp_path / "decoded"],
        ["reconstruct", tmp_path / "a.png", "--vae", path, "--out", tmp_path / "again"],
    ]
    for command in commands:
        result = CliRunner().invoke(app, [str(part) for part in command])
        assert result.exit_code == 0, result.output
    module = load_weights(path).module
    x = torch.zeros(1, 3, 96, 64)
    for name in ("decoded", "again"):
        made = next(one for one in (tmp_path / name).iterdir() if "panel" not in one.name)
        with Image.open(made) as picture:
            assert picture.size == (45, 70)
    assert module.encode(x).mode().shape == (1, 4, 3, 2)


def test_latents_that_its_config_json_can_not_say_are_not_written(tmp_path: Path) -> None:
    loaded = load_weights(folder("sana", tmp_path))
    shifted = KNOWN["flux"]
    assert shifted.shift_factor  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"AutoencoderDC's config\.json has no shift_factor"):
        save_weights(loaded.module, tmp_path / "out", layout="diffusers", format_=shifted)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fields", [SANA, shuffled(6), shuffled(7), shuffled(8), LITE])
def test_names_of_the_published_ones_go_there_and_back(fields: dict[str, Any]) -> None:
    from calotype.weights.detect import detect

    with torch.device("meta"):
        theirs = import_diffusers().AutoencoderDC(**fields)
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    config = detect(shapes).config
    assert isinstance(config, DcaeConfig)
    for key in shapes:
        found = from_diffusers(key, config.down == "conv")
        assert found is not None
        names = to_diffusers(found[0], config)
        assert names[found[1] or 0] == key
    if fields is SANA:
        assert config == DcaeConfig()
