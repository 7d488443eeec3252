"""Files of VQModels: how they are told, their names in both layouts, what can't be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import assert_close, import_diffusers, one_sentence, same_tensors, tensors_of, write
from torch import Tensor
from typer.testing import CliRunner
from vqkit import SMALL, latents, reference

import calotype
from calotype.cli.main import app
from calotype.errors import LatentFormatError, UsageError, WeightsError
from calotype.families import PRESETS
from calotype.families.vq.config import VqConfig
from calotype.families.vq.names import from_diffusers, to_diffusers
from calotype.latents import KNOWN, latent_format
from calotype.stopping import stoppable
from calotype.weights.load import load_weights, require_format
from calotype.weights.save import save_weights

FILE = "diffusion_pytorch_model.safetensors"
# names of the original files: latent-diffusion's, and Kandinsky's movq_final.ckpt, as diffusers' converter reads it
ORIGINAL = (
    "encoder.conv_in.weight",
    "encoder.down.0.block.0.norm1.weight",
    "encoder.down.1.block.0.conv2.bias",
    "encoder.down.0.downsample.conv.weight",
    "encoder.down.3.attn.0.q.weight",
    "encoder.mid.attn_1.norm.weight",
    "encoder.norm_out.bias",
    "quant_conv.weight",
    "quantize.embedding.weight",
    "post_quant_conv.bias",
    "decoder.mid.block_1.norm1.norm_layer.weight",
    "decoder.mid.block_2.norm2.conv_y.weight",
    "decoder.mid.attn_1.norm.norm_layer.bias",
    "decoder.mid.attn_1.norm.conv_b.weight",
    "decoder.mid.attn_1.proj_out.weight",
    "decoder.up.3.attn.0.norm.conv_y.bias",
    "decoder.up.3.upsample.conv.weight",
    "decoder.up.0.block.1.norm1.norm_layer.bias",
    "decoder.norm_out.norm_layer.weight",
    "decoder.norm_out.conv_y.weight",
    "decoder.norm_out.conv_b.bias",
    "decoder.conv_out.weight",
)


def folder(name: str, tmp_path: Path) -> Path:
    """A diffusers folder."""
    reference(SMALL[name]).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def stored(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_the_names_are_those_of_the_original_files(tmp_path: Path) -> None:
    keys = tensors_of(load_weights(folder("movq", tmp_path)).module)
    assert [name for name in ORIGINAL if name not in keys] == []
    plain = tensors_of(load_weights(folder("attention", tmp_path / "f8")).module)
    assert {"decoder.mid.attn_1.norm.weight", "decoder.norm_out.weight", "decoder.up.3.attn.1.q.weight"} <= plain.keys()


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
    before, after = (stored(one / FILE) for one in (path, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(before[key].dtype == after[key].dtype and torch.equal(before[key], after[key]) for key in before)
    third = load_weights(tmp_path / "again")
    assert same_tensors(third.module, first.module)
    assert (third.module.config, third.format) == (first.module.config, first.format)


@pytest.mark.parametrize("name", SMALL)
def test_diffusers_reads_what_is_written(name: str, tmp_path: Path) -> None:
    theirs = reference(SMALL[name])
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_weights(tmp_path / "theirs")
    save_weights(loaded.module, tmp_path / "ours", layout="diffusers", format_=loaded.format, kept=loaded.kept)
    said = json.loads((tmp_path / "ours" / "config.json").read_text())
    again = import_diffusers().VQModel.from_pretrained(tmp_path / "ours")
    assert set(said) <= {*theirs.config, "_class_name", "_diffusers_version"}, "no field that the class does not have"
    z = latents(theirs, 0, 1, 2, 2)
    with torch.inference_mode():
        assert_close(again.decode(z).sample, theirs.decode(z).sample)
    for field in theirs.config:
        if not field.startswith("_") and theirs.config[field] is not None:
            assert json.dumps(again.config[field]) == json.dumps(theirs.config[field]), field


@pytest.mark.parametrize("name", ["movq", "movq-mish", "one-level"])
@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_they_are_told_without_a_config(name: str, layout: str, tmp_path: Path) -> None:
    path = folder(name, tmp_path)
    expected = load_weights(path)
    (path / "config.json").unlink()
    tensors = tensors_of(expected.module) if layout == "ldm" else stored(path / FILE)
    # beside it what trainings keep: losses, and averages of a codebook
    more = {"loss.discriminator.main.0.weight": torch.zeros(4), "quantize.embedding.embed_avg": torch.zeros(4)}
    for prefix in ("", "vae.", "first_stage_model."):
        file = write(tmp_path / "x" / "x.safetensors", {prefix + key: v for key, v in (tensors | more).items()})
        loaded = load_weights(file)
        config = expected.module.config
        assert isinstance(config, VqConfig)
        assert loaded.module.config == VqConfig(**{**vars(config), "activation": "silu"})
        assert (loaded.prefix, loaded.layout) == (prefix, layout)
        assert same_tensors(loaded.module, expected.module)


def test_a_training_s_averages_are_found(tmp_path: Path) -> None:
    tensors = tensors_of(load_weights(folder("movq", tmp_path)).module)
    averages = {f"model_ema.{key.replace('.', '')}": 2 * value for key, value in tensors.items()}
    file = write(tmp_path / "x" / "x.safetensors", {**tensors, **averages})
    loaded = load_weights(file)
    assert loaded.averaged
    key = "quantize.embedding.weight"
    assert torch.equal(loaded.module.state_dict()[key], 2 * tensors[key])
    assert torch.equal(load_weights(file, weights="raw").module.state_dict()[key], tensors[key])


def test_old_names_of_attention(tmp_path: Path) -> None:
    """As in the folders of before diffusers 0.17, CompVis/ldm-celebahq-256's among them."""
    path = folder("f4", tmp_path)
    expected = load_weights(path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, value in stored(path / FILE).items():
        for new, before in old.items():
            key = key.replace(f".{new}.", f".{before}.")
        tensors[key] = value
    write(path / FILE, tensors)
    said = json.loads((path / "config.json").read_text())
    kept = ("_class_name", "act_fn", "block_out_channels", "down_block_types", "in_channels", "latent_channels",
            "layers_per_block", "num_vq_embeddings", "out_channels", "sample_size", "up_block_types",
            "norm_num_groups")  # fmt: skip
    (path / "config.json").write_text(json.dumps({key: said[key] for key in kept}))
    loaded = load_weights(path)
    assert same_tensors(loaded.module, expected.module)
    assert loaded.format == KNOWN["vq-f4"]


@pytest.mark.slow
def test_a_decoder_alone_decodes(tmp_path: Path) -> None:
    path = folder("movq", tmp_path)
    whole = load_weights(path)
    for layout, tensors in (("ldm", tensors_of(whole.module)), ("diffusers", stored(path / FILE))):
        half = {k: v for k, v in tensors.items() if k.startswith(("decoder.", "post_quant_conv.", "quantize."))}
        loaded = load_weights(write(tmp_path / layout / "x.safetensors", half))
        assert loaded.parts == {"decoder"}
        z = torch.randn(1, 4, 2, 3)
        assert torch.equal(loaded.module.decode(z), whole.module.decode(z))
    encoder = {k: v for k, v in tensors_of(whole.module).items() if k.startswith(("encoder.", "quant", "post"))}
    del encoder["post_quant_conv.weight"], encoder["post_quant_conv.bias"]
    loaded = load_weights(write(tmp_path / "half" / "x.safetensors", encoder))
    assert loaded.parts == {"encoder"}
    x = torch.rand(1, 3, 16, 8)
    assert torch.equal(loaded.module.encode(x).mode(), whole.module.encode(x).mode())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"act_fn": "tanh"}, "act_fn 'tanh', and supported are silu, swish, relu, gelu, mish"),
        ({"norm_type": "group"}, "norm_type 'group', and its tensors are of 'spatial'"),
        ({"norm_num_groups": 7}, "channels can't be split into 7 groups"),
        ({"num_vq_embeddings": 61}, "num_vq_embeddings 61, and its tensors are of 60"),
        ({"vq_embed_dim": 8}, "vq_embed_dim 8, and its tensors are of 4"),
        ({"latent_channels": 8}, "latent_channels 8, and its tensors are of 4"),
        ({"down_block_types": ["DownEncoderBlock2D"] * 4}, "down_block_types"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 4}, "up_block_types"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types 'UpBlock2D', and supported are UpDecoderBlock2D"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention False, and its tensors are of True"),
        ({"lookup_from_codebook": 1}, "lookup_from_codebook 1, and supported are true and false"),
        ({"layers_per_block": 3}, "layers_per_block 3"),
        ({"double_z": True, "use_quant_conv": True}, "a field 'use_quant_conv' that no VQModel of diffusers has"),
        ({"_class_name": "AutoencoderKL"}, "_class_name 'AutoencoderKL', and its tensors are of 'VQModel'"),
    ],
)
def test_what_a_config_json_says_is_obeyed_or_refused_by_name(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = folder("movq", tmp_path)
    said = json.loads((path / "config.json").read_text()) | fields
    (path / "config.json").write_text(json.dumps(said))
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    assert message in str(caught.value)
    one_sentence(str(caught.value))


@pytest.mark.parametrize("lost", ["conv_y.weight", "quant_conv.bias", "norm_layer.weight", "to_k.weight"])
def test_a_tensor_that_is_missing_is_named(lost: str, tmp_path: Path) -> None:
    path = folder("movq", tmp_path)
    tensors = stored(path / FILE)
    key = next(key for key in tensors if key.endswith(lost) and "norm_out" not in key)
    del tensors[key]
    write(path / FILE, tensors)
    with pytest.raises(WeightsError, match="missing tensor") as caught:
        load_weights(path)
    one_sentence(str(caught.value))


@pytest.mark.parametrize("extra", ["decoder.mask_token", "decoder.up_blocks.0.resnets.0.norm1.conv_z.weight"])
def test_a_tensor_that_does_not_belong_is_named(extra: str, tmp_path: Path) -> None:
    path = folder("movq", tmp_path)
    write(path / FILE, stored(path / FILE) | {extra: torch.zeros(2)})
    with pytest.raises(WeightsError, match=f"unexpected tensor {extra}"):
        load_weights(path)


@pytest.mark.parametrize("change", ["codebook-of-rank-1", "codebook-of-rank-3", "wide-codebook", "far-level", "nan"])
def test_damaged_ones(change: str, tmp_path: Path) -> None:
    path = folder("movq", tmp_path)
    tensors = stored(path / FILE)
    key = "quantize.embedding.weight"
    if change == "codebook-of-rank-1":
        tensors[key] = tensors[key].flatten()
    elif change == "codebook-of-rank-3":
        tensors[key] = tensors[key][None]
    elif change == "wide-codebook":
        tensors[key] = torch.zeros(60, 5)
    elif change == "far-level":
        tensors["encoder.down_blocks.99999999.resnets.0.conv1.weight"] = torch.zeros(4, 4, 3, 3)
    else:
        tensors[key][0, 0] = torch.nan
    write(path / FILE, tensors)
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    one_sentence(str(caught.value))


def test_other_networks_with_codebooks_are_told_apart(tmp_path: Path) -> None:
    """LlamaGen's blocks stand elsewhere, and Gumbel's codebook is called otherwise."""
    tensors = tensors_of(load_weights(folder("movq", tmp_path)).module)
    llamagen = {
        key.replace(".down.", ".conv_blocks.").replace(".up.", ".conv_blocks."): v for key, v in tensors.items()
    }
    gumbel = {key.replace("quantize.embedding", "quantize.embed"): value for key, value in tensors.items()}
    for one in (llamagen, gumbel):
        with pytest.raises(WeightsError, match=r"a VQ autoencoder .*, which is not read"):
            load_weights(write(tmp_path / "x" / "x.safetensors", one))


# Latents


def test_formats_of_latents(tmp_path: Path) -> None:
    """Kandinsky's pipelines don't read the scaling_factor of movq/config.json; others' config.json is obeyed."""
    path = folder("movq", tmp_path)
    assert json.loads((path / "config.json").read_text())["scaling_factor"] == 0.18215
    loaded = load_weights(path)
    assert (loaded.format, loaded.format_source) == (KNOWN["movq"], "the architecture")
    path = folder("f4", tmp_path / "f4")
    assert load_weights(path).format.scaling_factor == 0.18215  # type: ignore[union-attr]
    said = json.loads((path / "config.json").read_text())
    for factor in (1.0, 0.5):
        (path / "config.json").write_text(json.dumps(said | {"scaling_factor": factor}))
        assert load_weights(path).format.scaling_factor == factor  # type: ignore[union-attr]
    del said["scaling_factor"]
    (path / "config.json").write_text(json.dumps(said))
    assert require_format(load_weights(path)) == KNOWN["vq-f4"]


def test_latents_that_nothing_tells(tmp_path: Path) -> None:
    path = folder("amused", tmp_path)
    said = json.loads((path / "config.json").read_text())
    del said["scaling_factor"]
    (path / "config.json").write_text(json.dumps(said))
    with pytest.raises(LatentFormatError, match="--latent-format none"):
        require_format(load_weights(path))
    assert load_weights(path, latent_format_name="none").format.scaling_factor == 1  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="'movq' is for 4 channels, and this VAE has 6"):
        load_weights(path, latent_format_name="movq")


def test_presets() -> None:
    for name, (channels, factor) in {"ldm-vq-f4": (3, 4), "kandinsky-movq": (4, 8)}.items():
        preset = PRESETS[name]
        assert (preset.config.z_channels, preset.config.factor) == (channels, factor)
        assert latent_format(preset.latent_format, channels).scaling_factor == 1  # type: ignore[union-attr]


def test_names_go_there_and_back() -> None:
    with torch.device("meta"):
        keys = import_diffusers().VQModel(**SMALL["movq"]).state_dict()
    for key in keys:
        ours = from_diffusers(key, 4)
        assert ours is not None
        assert to_diffusers(ours, 4) == key
    for name in ("decoder.up_blocks.0.resnets.0.norm1.conv_z.weight", "decoder.conv_in.gamma", "quantize.other.weight"):
        assert from_diffusers(name, 4) is None


# Commands


def run(*command: str | Path) -> str:
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_pictures_of_any_size_through_the_commands(tmp_path: Path) -> None:
    path = folder("movq-groups", tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (37, 45, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    run("encode", tmp_path / "a.png", "--vae", path, "--out", tmp_path / "latents")
    run("decode", tmp_path / "latents" / "a.latents.safetensors", "--vae", path, "--out", tmp_path / "decoded")
    run("reconstruct", tmp_path / "a.png", "--vae", path, "--out", tmp_path / "again")
    for name in ("decoded", "again"):
        made = next(one for one in (tmp_path / name).iterdir() if "panel" not in one.name)
        with Image.open(made) as picture:
            assert picture.size == (45, 37)
    assert "f2, 4 latent channels" in run("inspect", path)
    steps = run("inspect", path, "--program", "--size", "64x64")
    assert "nearest of 60 vectors" in " ".join(steps.split())
    assert "decode" in run("plan", path, "64x64")


@pytest.mark.slow
def test_a_choice_is_kept_by_convert(tmp_path: Path) -> None:
    path, single, again = folder("movq-groups", tmp_path), tmp_path / "x.safetensors", tmp_path / "again"
    run("convert", path, single, "--layout", "ldm", "--choose", "quantize=false")
    run("convert", single, again, "--layout", "diffusers")
    z = torch.randn(1, 4, 3, 2)
    expected = calotype.load(path, device="cpu", choices={"quantize": False}).decode(z)
    for one in (single, again):
        assert torch.equal(calotype.load(one, device="cpu").decode(z), expected)
        back = calotype.load(one, device="cpu", choices={"quantize": True})
        assert torch.equal(back.decode(z), calotype.load(path, device="cpu").decode(z))
    for text, message in (
        ("quantize=maybe", "--choose takes NAME=true or NAME=false, not 'quantize=maybe'"),
        ("clamp=true", "no choice 'clamp'"),
    ):
        with stoppable():  # as `main` runs it: else a signal of an earlier test would count
            result = CliRunner().invoke(
                app, ["convert", str(path), str(tmp_path / "y.safetensors"), "--layout", "ldm", "--choose", text]
            )
        assert isinstance(result.exception, UsageError)
        assert message in str(result.exception)
        one_sentence(str(result.exception))


@pytest.mark.parametrize("inside", ["movq", "vqvae"])
def test_the_folder_of_a_pipeline(inside: str, tmp_path: Path) -> None:
    reference(SMALL["movq"]).save_pretrained(tmp_path / "pipeline" / inside)
    (tmp_path / "pipeline" / "model_index.json").write_text('{"_class_name": "KandinskyV22Pipeline"}')
    loaded = load_weights(tmp_path / "pipeline")
    assert isinstance(loaded.module.config, VqConfig)
    assert loaded.format == KNOWN["movq"]


def test_norms_that_follow_other_latents_are_not_for_diffusers(tmp_path: Path) -> None:
    from calotype.families import make_network

    config = VqConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, embed_dim=3, inner_channels=5, n_embed=9,
                      spatial_norm=True)  # fmt: skip
    module = make_network(config).eval()
    with pytest.raises(UsageError, match="latents of 5 channels, and these have 3; --layout ldm") as caught:
        save_weights(module, tmp_path / "out", layout="diffusers")
    one_sentence(str(caught.value))
    assert not (tmp_path / "out").exists()
    (file,) = save_weights(module, tmp_path / "x.safetensors", layout="ldm")
    assert load_weights(file).module.config == config
