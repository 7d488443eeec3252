"""Files of Wan's kind: told, read in every layout, written, and refused where they can't be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import import_diffusers, one_sentence, same_tensors, write
from torch import Tensor
from wankit import VARIANTS, originals, theirs

from calotype.errors import UsageError, WeightsError
from calotype.families.wan.config import WanConfig
from calotype.families.wan.presets import FORMATS
from calotype.latents import KNOWN
from calotype.weights.container import open_container
from calotype.weights.load import Loaded, load_weights
from calotype.weights.save import save_weights
from calotype.weights.video import whole_tensors

PUBLISHED = [name for name in VARIANTS if name not in ("wan-2.1-attention", "wan-2.2-no-time")]
SPACES = {"wan-2.1": "wan2.1", "qwen-image": "wan2.1", "qwen-image-layered": "wan2.1", "wan-2.2": "wan2.2",
          "qwen-image-2.1": "qwen-image-2.1"}  # fmt: skip


def tensors_of(variant: str) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in theirs(variant).state_dict().items()}


def flat(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As Qwen2D has them: kernels of two dimensions, and none over time."""
    return {
        key: tensor[:, :, -1].contiguous() if tensor.ndim == 5 else tensor[..., 0].contiguous() if tensor.ndim == 4
        and tensor.shape[1:] == (1, 1, 1) and key.endswith("gamma") else tensor
        for key, tensor in tensors.items()
        if "time_conv" not in key
    }  # fmt: skip


def folder(tmp_path: Path, variant: str = "wan-2.1", **said: Any) -> Path:
    """diffusers' folder of a variant, with other fields in its config.json."""
    theirs(variant).save_pretrained(tmp_path)
    about = tmp_path / "config.json"
    values = json.loads(about.read_text()) | said
    about.write_text(json.dumps({key: value for key, value in values.items() if value != "absent"}))
    return tmp_path


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
@pytest.mark.parametrize("variant", PUBLISHED)
def test_both_names_are_read_under_every_prefix(variant: str, prefix: str, tmp_path: Path) -> None:
    module, config = theirs(variant), VARIANTS[variant][2]
    expected = load_weights(write(tmp_path / "theirs.safetensors", tensors_of(variant)))
    assert expected.module.config == config
    assert expected.layout == "diffusers"
    tensors = {f"{prefix}{key}": value for key, value in originals(module, config).items()}
    tensors |= {"model.diffusion_model.blocks.0.cross_attn.k.weight": torch.zeros(4, 4)} if prefix else {}
    loaded = load_weights(write(tmp_path / "original.safetensors", tensors))
    assert (loaded.layout, loaded.prefix) == ("ldm", prefix)
    assert loaded.module.config == config
    assert same_tensors(loaded.module, expected.module)
    assert loaded.sha256 == expected.sha256
    assert {value.ndim for key, value in loaded.module.state_dict().items() if key.endswith("weight")} == {1, 4}


@pytest.mark.parametrize("kind", [".pth", ".safetensors"])
def test_kernels_are_not_held_with_their_other_slices(kind: str, tmp_path: Path) -> None:
    tensors = originals(theirs("wan-2.1"), VARIANTS["wan-2.1"][2])
    path = tmp_path / f"x{kind}"
    torch.save(tensors, path) if kind == ".pth" else write(path, tensors)
    for key, value in load_weights(path).module.state_dict().items():
        assert value.untyped_storage().nbytes() == value.nbytes, key


@pytest.mark.parametrize("variant", [name for name in PUBLISHED if not VARIANTS[name][2].residual])
def test_two_dimensional_files_are_read(variant: str, tmp_path: Path) -> None:
    expected = load_weights(write(tmp_path / "3d.safetensors", tensors_of(variant)))
    loaded = load_weights(write(tmp_path / "2d.safetensors", flat(tensors_of(variant))))
    assert loaded.layout == "diffusers-2d"
    assert same_tensors(loaded.module, expected.module)
    assert loaded.module.config == expected.module.config


def test_kernels_of_one_slice_are_those_of_two_dimensions(tmp_path: Path) -> None:
    """As the single file of Qwen-Image 2.1 has them."""
    tensors = originals(theirs("qwen-image-2.1"), VARIANTS["qwen-image-2.1"][2])
    deep = {k: v[:, :, None] if v.ndim == 4 and ("resample" not in k) and "to_qkv" not in k else v
            for k, v in tensors.items()}  # fmt: skip
    a, b = (load_weights(write(tmp_path / f"{i}.safetensors", t)) for i, t in enumerate((tensors, deep)))
    assert same_tensors(a.module, b.module)
    assert a.module.config == b.module.config == VARIANTS["qwen-image-2.1"][2]


@pytest.mark.parametrize("variant", SPACES)
def test_the_architecture_tells_the_latent_format(variant: str, tmp_path: Path) -> None:
    alone = load_weights(write(tmp_path / "x.safetensors", tensors_of(variant)))
    assert alone.format == KNOWN[SPACES[variant]]
    assert alone.format_source == "the architecture"
    beside = load_weights(folder(tmp_path / "folder", variant))
    assert beside.format == KNOWN[SPACES[variant]]
    assert beside.format_source == "config.json"
    assert not beside.notes


def test_formats_are_those_of_diffusers() -> None:
    for variant in ("wan-2.1", "qwen-image", "qwen-image-2.1"):
        config = theirs(variant).config
        known: Any = KNOWN[SPACES[variant]]
        assert (list(known.mean), list(known.std)) == (config.latents_mean, config.latents_std)
    for values in FORMATS:
        assert len(values["mean"]) == len(values["std"]) == values["channels"]


@pytest.mark.parametrize("pipeline", ["WanPipeline", "QwenImagePipeline", "BriaFiboPipeline", "Krea2Pipeline"])
def test_its_pipelines_read_the_means(pipeline: str, tmp_path: Path) -> None:
    folder(tmp_path / "vae", "wan-2.2")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    loaded = load_weights(tmp_path)
    assert loaded.format == KNOWN["wan2.2"]
    assert not loaded.notes


def test_other_means_in_a_config_count(tmp_path: Path) -> None:
    loaded = load_weights(folder(tmp_path, latents_mean=[0.5] * 16, latents_std=[2.0] * 16))
    assert loaded.format is not None
    assert loaded.format.to_model(torch.ones(1, 16, 1, 1)).flatten().tolist() == [0.25] * 16


# --- writing ---


@pytest.mark.parametrize("layout", ["ldm", "diffusers-2d"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_comes_back(variant: str, layout: Any, tmp_path: Path) -> None:
    first = load_weights(folder(tmp_path / "theirs", variant))
    out = tmp_path / ("x.safetensors" if layout == "ldm" else "out")
    written = save_weights(first.module, out, layout=layout, format_=first.format, kept=first.kept)
    again = load_weights(out)
    assert again.layout == layout
    assert again.module.config == first.module.config
    assert same_tensors(again.module, first.module)
    assert (again.sha256, again.format) == (first.sha256, first.format)
    shapes = open_container(written[-1]).shapes
    assert max(len(shape) for shape in shapes.values()) == 4
    assert not any("time_conv" in key for key in shapes)
    found = flat(originals(theirs(variant), first.module.config) if layout == "ldm" else tensors_of(variant))
    assert shapes.keys() == found.keys()
    container = open_container(written[-1])
    for key, value in found.items():  # the very numbers of the file, in its own order
        assert torch.equal(container.read(key).flatten(), value.flatten()), key


def test_layouts_with_time_are_refused(tmp_path: Path) -> None:
    module = load_weights(folder(tmp_path / "theirs")).module
    with pytest.raises(UsageError, match="only the original file has: the other slices") as caught:
        save_weights(module, tmp_path / "out", layout="diffusers")
    one_sentence(str(caught.value))
    with pytest.raises(UsageError, match="has no keras layout"):
        save_weights(module, tmp_path / "out", layout="keras")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("of", ["original", "theirs"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_file_with_time_is_written_with_it(variant: str, of: str, tmp_path: Path) -> None:
    """As diffusers has it, from either names; and what one picture leaves out is read again only then."""
    module = theirs(variant)
    begin = folder(tmp_path / "theirs", variant)
    if of == "original":
        if variant == "wan-2.2-no-time":
            pytest.skip("nothing in such a file tells what its levels do with frames")
        begin = write(tmp_path / "x.safetensors", originals(module, VARIANTS[variant][2]))
    first = load_weights(begin)
    whole = whole_tensors(first)
    _, written = save_weights(
        first.module, tmp_path / "out", layout="diffusers", format_=first.format, kept=first.kept, said=first.said,
        whole=whole,
    )  # fmt: skip
    again = open_container(written)
    expected = module.state_dict()
    assert again.shapes == {key: tuple(value.shape) for key, value in expected.items()}
    assert all(torch.equal(again.read(key), value) for key, value in expected.items())
    loaded = load_weights(tmp_path / "out")
    assert (loaded.layout, loaded.sha256, loaded.format) == ("diffusers", first.sha256, first.format)
    class_ = VARIANTS[variant][0] if of == "theirs" or loaded.module.config.residual else "AutoencoderKLWan"  # type: ignore[attr-defined]
    if class_ == VARIANTS[variant][0] or VARIANTS[variant][2].in_channels == 3:
        loads = getattr(import_diffusers(), class_).from_pretrained(tmp_path / "out")
        assert all(torch.equal(value, expected[key]) for key, value in loads.state_dict().items())


def test_other_slices_stay_where_a_network_has_changed(tmp_path: Path) -> None:
    begin = folder(tmp_path / "theirs", "wan-2.1")
    first = load_weights(begin)
    whole = whole_tensors(first)
    with torch.no_grad():
        for value in first.module.state_dict().values():
            value.add_(1)
    for layout, name in (("ldm", "x.safetensors"), ("diffusers", "out")):
        save_weights(first.module, tmp_path / name, layout=layout, whole=whole)  # type: ignore[arg-type]
        again = load_weights(tmp_path / name)
        assert same_tensors(again.module, first.module)
        for key, value in whole_tensors(again).items():
            if value.ndim == 5 and "time_conv" not in key:
                assert torch.equal(value[:, :, :-1], whole[key][:, :, :-1])
                assert torch.equal(value[:, :, -1], whole[key][:, :, -1] + 1)
            else:
                assert torch.equal(value, whole[key] + (0 if "time_conv" in key else 1)), key


def test_what_has_no_time_has_nothing_more(tmp_path: Path) -> None:
    path = write(tmp_path / "2d.safetensors", flat(tensors_of("wan-2.1")))
    loaded = load_weights(path)
    assert whole_tensors(loaded) == {}
    with pytest.raises(UsageError, match="only the original file has: the other slices"):
        save_weights(loaded.module, tmp_path / "out", layout="diffusers", whole={})


# --- what can't be ---


def refused(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    one_sentence(str(caught.value))
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("is_residual", True, "is_residual"),
        ("base_dim", 96, "base_dim 96"),
        ("z_dim", 48, "z_dim 48"),
        ("dim_mult", [1, 2, 4, 4], "dim_mult"),
        ("num_res_blocks", 2, "num_res_blocks 2"),
        ("patch_size", 2, "patch_size 2"),
        ("attn_scales", [1.0], "attn_scales"),
        ("in_channels", 12, "in_channels 12"),
        ("out_channels", 12, "out_channels 12"),
        ("temperal_downsample", [1, 2], "temperal_downsample"),
        ("_class_name", "AutoencoderKL", "_class_name"),
        ("latent_channels", 16, "latent_channels"),
    ],
)
def test_a_config_that_contradicts_is_refused_by_name(field: str, value: object, words: str, tmp_path: Path) -> None:
    assert words in refused(folder(tmp_path, **{field: value}))


@pytest.mark.parametrize(
    "said",
    [
        {"patch_size": 1},
        {"clip_output": False},
        {"dropout": 0.1},
        {"decoder_base_dim": "absent"},
        {"temperal_downsample": [True, True]},
        {"scale_factor_temporal": 8},
        {"_class_name": "absent"},
    ],
)
def test_what_one_picture_does_not_meet_may_be_said(said: dict[str, Any], tmp_path: Path) -> None:
    assert load_weights(folder(tmp_path, **said)).module.config == VARIANTS["wan-2.1"][2]


def test_which_levels_take_two_frames_must_be_told(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", flat(tensors_of("wan-2.2")))
    assert "put its config.json beside it" in refused(path)
    about = tmp_path / "config.json"
    about.write_text(json.dumps({"_class_name": "AutoencoderKLWan", "temperal_downsample": [False, True]}))
    assert load_weights(path).module.config == VARIANTS["wan-2.2"][2]
    about.write_text(json.dumps({"_class_name": "AutoencoderKLWan", "temperal_downsample": [True]}))
    assert "temperal_downsample" in refused(path)


def test_a_config_with_other_times_is_refused(tmp_path: Path) -> None:
    assert "temperal_downsample" in refused(folder(tmp_path, "wan-2.2", temperal_downsample=[True, False]))


def test_halves_are_read_alone_and_joined(tmp_path: Path) -> None:
    for variant in ("wan-2.1-wider-decoder", "wan-2.2"):
        whole = tensors_of(variant)
        sides: dict[str, Loaded] = {}
        both = tmp_path / variant
        for side, more in (("encoder", "quant_conv."), ("decoder", "post_quant_conv.")):
            half = {key: value for key, value in whole.items() if key.startswith((f"{side}.", more))}
            sides[side] = load_weights(write(both / f"{side}.safetensors", half))
            assert sides[side].parts == {side}
        assert sides["decoder"].module.config.to_dict()["base_dim"] == 12
        loaded = load_weights(both)
        assert loaded.module.config == VARIANTS[variant][2]
        assert same_tensors(loaded.module, load_weights(write(tmp_path / "whole.safetensors", whole)).module)


def test_what_is_missing_or_too_much_is_listed(tmp_path: Path) -> None:
    tensors = tensors_of("wan-2.1")
    del tensors["decoder.mid_block.resnets.1.conv2.bias"]
    assert "missing tensor decoder.mid.block_2.conv2.bias" in refused(write(tmp_path / "a.safetensors", tensors))
    tensors = tensors_of("wan-2.1") | {"encoder.mid_block.extra.weight": torch.zeros(3)}
    assert "unexpected tensor encoder.mid_block.extra.weight" in refused(write(tmp_path / "b.safetensors", tensors))
    tensors = tensors_of("wan-2.1")
    tensors = {k: v.permute(0, 2, 3, 4, 1).contiguous() if v.ndim == 5 else v for k, v in tensors.items()}
    assert "axes in another order" in refused(write(tmp_path / "c.safetensors", tensors))
    tensors = tensors_of("wan-2.1")
    tensors["encoder.norm_out.gamma"] = torch.ones(16, 2, 1, 1)
    assert "encoder.norm_out.weight [16, 2, 1, 1] instead of [16]" in refused(
        write(tmp_path / "d.safetensors", tensors)
    )
    tensors = {"encoder.conv_in.base_layer.weight" if k == "encoder.conv_in.weight" else k: v
               for k, v in tensors_of("wan-2.1").items()}  # fmt: skip
    assert "LoRA layers that are not merged" in refused(write(tmp_path / "e.safetensors", tensors))


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("variant", ["wan-2.1", "qwen-image-layered"])
def test_the_upscaling_decoder_is_told(variant: str, alone: bool, tmp_path: Path) -> None:
    config = VARIANTS[variant][2]
    tensors = originals(theirs(variant), config)
    for name in ("decoder.head.2.weight", "decoder.head.2.bias"):
        tensors[name] = tensors[name].repeat_interleave(4, dim=0)
    tensors = {key: value for key, value in tensors.items() if not alone or key.startswith(("decoder", "conv2"))}
    loaded = load_weights(write(tmp_path / "x.safetensors", tensors))
    assert loaded.module.config == replace(config, enlarges=2)
    assert loaded.parts == ({"decoder"} if alone else {"encoder", "decoder"})


def test_the_upscaling_decoder_beside_an_encoder(tmp_path: Path) -> None:
    tensors = originals(theirs("wan-2.1-larger"), VARIANTS["wan-2.1-larger"][2])
    for side, own in (("encoder", ("encoder", "conv1")), ("decoder", ("decoder", "conv2"))):
        write(tmp_path / f"{side}.safetensors", {k: v for k, v in tensors.items() if k.startswith(own)})
    assert load_weights(tmp_path).module.config == VARIANTS["wan-2.1-larger"][2]


def test_encoder_and_decoder_of_other_pictures_are_refused(tmp_path: Path) -> None:
    tensors = tensors_of("qwen-image-layered")
    other = tensors_of("wan-2.1")
    tensors |= {key: value for key, value in other.items() if key.startswith("decoder.")}
    assert "its encoder takes pictures of 4 channels" in refused(write(tmp_path / "x.safetensors", tensors))


@pytest.mark.parametrize(
    "numbers",
    [
        {"dim_mult": ()},
        {"dim_mult": (0,)},
        {"dim_mult": [1, 2]},
        {"attn_levels": (4,)},
        {"attn_levels": (1,), "residual": True, "frames": (1, 1, 1)},
        {"frames": (1, 2, 2)},
        {"residual": True},
        {"residual": True, "frames": (1, 2, 3)},
        {"residual": True, "frames": (1, 1, 1), "dim_mult": (1, 2, 4, 8)},
        {"residual": True, "frames": (1, 1), "dim_mult": (1, 8, 8)},
        {"base_dim": 3, "dim_mult": (1, 1)},
        {"patch": 0},
        {"residual": 1},
    ],
)
def test_numbers_that_can_not_be(numbers: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="WanConfig") as caught:
        WanConfig(**numbers)
    one_sentence(str(caught.value))
