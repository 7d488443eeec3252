"""What config.json says of a network is obeyed, or refused by name; diffusers' own classes are the judges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import (
    NARROW,
    assert_close,
    diffusers_tensors,
    fill,
    import_diffusers,
    kl,
    one_sentence,
    pictures,
    same_tensors,
    tensors_of,
    tiny,
    write,
)

import calotype
from calotype.errors import WeightsError
from calotype.families import make_network
from calotype.families.folded.config import FoldedConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.tiny.config import TinyConfig
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

KL, FLUX2, TINY = "AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderTiny"

STABLE = "diffusion_pytorch_model.safetensors"
TWO = {
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}


def reference(seed: int = 0, **fields: Any) -> Any:
    """diffusers' AutoencoderKL of two levels with random weights."""
    return fill(import_diffusers().AutoencoderKL(**{**TWO, **fields}), seed)


def change(folder: Path, **fields: Any) -> Path:
    """Fields of a folder's config.json set, or taken out where they are `...`."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
    return folder


def refused(path: Path, pattern: str) -> None:
    with pytest.raises(WeightsError, match=pattern) as caught:
        load_weights(path)
    one_sentence(str(caught.value))
    assert str(path) in str(caught.value)


# The network


OBEYED: dict[str, dict[str, Any]] = {
    "relu": {"act_fn": "relu"},
    "gelu": {"act_fn": "gelu"},
    "mish": {"act_fn": "mish"},
    "swish": {"act_fn": "swish"},
    "SiLU": {"act_fn": "SiLU"},
    "groups of 16": {"norm_num_groups": 16},
    "one group": {"norm_num_groups": 1},
    "quant_conv alone": {"use_post_quant_conv": False},
    "post_quant_conv alone": {"use_quant_conv": False},
    "neither": {"use_quant_conv": False, "use_post_quant_conv": False},
    "no attention": {"mid_block_add_attention": False},
    "attention at a level": {
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    },
    "all at once": {
        "act_fn": "relu",
        "norm_num_groups": 8,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
        "latent_channels": 6,
        "layers_per_block": 2,
    },
}


def check(folder: Path, theirs: Any) -> None:
    """The network and the engine compute what diffusers' class does."""
    vae = calotype.load(folder, latent_format="none", device="cpu")
    x = pictures(1, 1, 24, 40)
    z = torch.randn(1, vae.latent_channels, 12, 20, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        moments, pixels = theirs.encode(x).latent_dist.parameters, theirs.decode(z).sample
        assert_close(vae.module.encode(x).moments, moments)  # type: ignore[union-attr]
        assert_close(vae.module.decode(z), pixels)
    assert_close(vae.encode(x).moments, moments)  # type: ignore[attr-defined]
    assert_close(vae.decode(z, clamp=False), pixels)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBEYED)
def test_what_it_says_of_the_network_is_obeyed(name: str, tmp_path: Path) -> None:
    theirs = reference(**OBEYED[name])
    theirs.save_pretrained(tmp_path / "own")
    check(tmp_path / "own", theirs)
    # through the other layout and back, without any other config.json
    first = load_weights(tmp_path / "own")
    (tmp_path / "x").mkdir()
    (ldm,) = save_weights(first.module, tmp_path / "x" / "x.safetensors", layout="ldm", kept=first.kept)
    check(ldm, theirs)
    second = load_weights(ldm)
    save_weights(second.module, tmp_path / "again", layout="diffusers", kept=second.kept)
    check(tmp_path / "again", theirs)
    check(tmp_path / "again", import_diffusers().AutoencoderKL.from_pretrained(tmp_path / "again"))


def test_the_activation_changes_the_result(tmp_path: Path) -> None:
    """The cases above could not tell an ignored field otherwise."""
    z = torch.randn(1, 4, 4, 4)
    with torch.inference_mode():
        results = [reference(act_fn=name).decode(z).sample for name in ("silu", "relu", "gelu", "mish")]
    for i, one in enumerate(results):
        for other in results[:i]:
            assert (one - other).abs().max() > 1e-2 * one.std()


@pytest.mark.slow
def test_keras_holds_one_of_the_two_convolutions(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    module = kl(AutoencoderConfig(ch=32, ch_mult=(1, 2), post_quant_conv=False, activation="relu"))
    save_weights(module, tmp_path / "h5", layout="keras")
    again = load_weights(tmp_path / "h5").module
    assert same_tensors(again, module)
    assert again.config == module.config


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("quant", [(True, False), (False, True)])
def test_halves_with_one_of_the_two_convolutions(tmp_path: Path, half: str, quant: tuple[bool, bool]) -> None:
    theirs = reference(use_quant_conv=quant[0], use_post_quant_conv=quant[1])
    theirs.save_pretrained(tmp_path)
    tensors = diffusers_tensors(load_weights(tmp_path).module)  # type: ignore[arg-type]
    own = {"encoder": ("encoder.", "quant_conv."), "decoder": ("decoder.", "post_quant_conv.")}[half]
    write(tmp_path / STABLE, {key: value for key, value in tensors.items() if key.startswith(own)})
    loaded = load_weights(tmp_path)
    assert loaded.parts == {half}
    there = hasattr(loaded.module, "quant_conv" if half == "encoder" else "post_quant_conv")
    assert there == quant[half == "decoder"]


def test_a_convolution_that_nobody_says_is_absent_is_missing(tmp_path: Path) -> None:
    tensors = {key: value for key, value in tensors_of(kl()).items() if not key.startswith("post_quant_conv")}
    refused(
        write(tmp_path / "x.safetensors", tensors), r"missing tensors post_quant_conv\.bias, post_quant_conv\.weight"
    )


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"act_fn": "tanh"}, "act_fn 'tanh', and supported are silu, swish, relu, gelu, mish"),
        ({"act_fn": 3}, "act_fn 3"),
        ({"norm_num_groups": 5}, "32 channels can't be split into 5 groups"),
        ({"norm_num_groups": True}, "norm_num_groups must be the number of a norm's groups, not True"),
        ({"norm_num_groups": 16.0}, r"norm_num_groups .* not 16\.0"),
        ({"latent_channels": 16}, "latent_channels 16, and its tensors are of 4: it is not about these weights"),
        ({"block_out_channels": [32, 32]}, r"block_out_channels \[32, 32\], and its tensors are of \[32, 64\]"),
        ({"block_out_channels": [64]}, "block_out_channels"),
        ({"layers_per_block": 2}, "layers_per_block 2, and its tensors are of 1"),
        ({"layers_per_block": True}, "layers_per_block True"),
        ({"in_channels": 1}, "in_channels 1, and its tensors are of 3"),
        ({"out_channels": 4}, "out_channels 4, and its tensors are of 3"),
        ({"use_quant_conv": False}, "use_quant_conv False, and its tensors are of True"),
        ({"use_post_quant_conv": False}, "use_post_quant_conv False, and its tensors are of True"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention False, and its tensors are of True"),
        ({"down_block_types": ["DownBlock2D"] * 2}, "down_block_types 'DownBlock2D', and supported are DownEncoder"),
        ({"up_block_types": ["UpDecoderBlock2D", "UpBlock2D"]}, "up_block_types 'UpBlock2D', and supported"),
        ({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}, "down_block_types .*Attn.*are of"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types"),
        ({"patch_size": [1, 1]}, r"patch_size \[1, 1\]"),
        ({"force_upcast": "yes"}, "force_upcast 'yes', and supported are true and false"),
        ({"sample_size": "large"}, "sample_size 'large'"),
        ({"resnet_eps": 1e-5}, "resnet_eps 1e-05, and supported is 1e-06"),
        ({"dropout": 0.5}, r"dropout 0\.5"),
        ({"double_z": False}, "double_z False"),
        ({"upsample_mode": "bilinear"}, "a field 'upsample_mode' that no AutoencoderKL of diffusers has"),
        ({"something_new": 0}, "a field 'something_new'"),
        ({"_class_name": "AutoencoderTiny"}, "_class_name 'AutoencoderTiny', and its tensors are of 'AutoencoderKL'"),
    ],
)
@pytest.mark.parametrize("lone", [False, True])
def test_what_can_not_be_obeyed_is_refused_by_name(
    fields: dict[str, Any], pattern: str, lone: bool, tmp_path: Path
) -> None:
    reference().save_pretrained(tmp_path)
    change(tmp_path, **fields)
    if lone:  # a single file with latent-diffusion's names beside it
        module = load_weights_aside(tmp_path)
        (tmp_path / STABLE).unlink()
        refused(write(tmp_path / "x.safetensors", module), pattern)
    else:
        refused(tmp_path, pattern)


def load_weights_aside(folder: Path) -> dict[str, torch.Tensor]:
    aside = folder / "aside"
    aside.mkdir()
    (folder / STABLE).rename(aside / STABLE)
    tensors = tensors_of(load_weights(aside).module)
    (aside / STABLE).rename(folder / STABLE)
    return tensors


@pytest.mark.parametrize(
    "fields",
    [
        {"_note": "anything", "_name_or_path": "x"},
        {"resnet_eps": 1e-6, "dropout": 0.0, "double_z": True, "norm_type": "group"},
        {"sample_size": [64, 32]},
        {"sample_size": None, "something_new": None},
        {"torch_dtype": "float32"},
        {"layers_per_block": ..., "act_fn": ..., "force_upcast": ..., "use_quant_conv": ...},
    ],
)
def test_what_changes_nothing_does_not_disturb(fields: dict[str, Any], tmp_path: Path) -> None:
    theirs = reference()
    theirs.save_pretrained(tmp_path)
    check(change(tmp_path, **fields), theirs)


# Classes


@pytest.mark.parametrize(
    "name",
    ["PaellaVQModel", "AutoencoderKLCosmos", "AutoencoderRAE", "ConsistencyDecoderVAE", "MyVAE"],
)
def test_other_autoencoders_are_told_by_their_class(name: str, tmp_path: Path) -> None:
    reference().save_pretrained(tmp_path)
    refused(
        change(tmp_path, _class_name=name), f"of the class {name}, and only {KL}, {FLUX2}, .*{TINY}, .* can be read"
    )


def test_every_autoencoder_of_diffusers_is_read_or_refused(tmp_path: Path) -> None:
    module = import_diffusers().models.autoencoders
    names = [name for name in dir(module) if isinstance(getattr(module, name), type)]
    names = [name for name in names if "Autoencoder" in name or "VAE" in name or "VQ" in name]
    assert len(names) > 20
    reference().save_pretrained(tmp_path)
    for name in names:
        if name not in (KL, FLUX2, TINY):
            refused(change(tmp_path, _class_name=name), name)


FOREIGN: dict[str, dict[str, Any]] = {
    "a text encoder's": {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": "gelu"},
    "a U-Net's": {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "relu",
        "norm_num_groups": 4,
        "block_out_channels": [320, 640],
        "in_channels": 4,
    },
    "anything": {"name": "mine", "version": 3},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_config_about_something_else_does_not_disturb_and_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FOREIGN[name]))
    loaded = load_weights(write(tmp_path / "x.safetensors", tensors_of(kl())))
    assert loaded.module.config == NARROW
    assert loaded.format is None
    assert any("config.json is" in note and note.endswith("was not read.") for note in loaded.notes)


@pytest.mark.parametrize("fields", [{"latent_channels": 16}, {"norm_num_groups": 4}, {"act_fn": "relu"}])
def test_a_file_that_describes_itself_is_not_described_by_another_vaes_config(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    (path,) = save_weights(kl(), tmp_path / "x.safetensors", layout="ldm")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": KL, "scaling_factor": 0.5, **fields}))
    loaded = load_weights(path)
    assert (loaded.module.config, loaded.format) == (NARROW, None)
    assert loaded.notes == (f"{tmp_path / 'config.json'} is about another VAE and was not read.",)


@pytest.mark.parametrize("text", ["[1, 2]", '"AutoencoderKL"', "{'a': 1}"])
def test_a_config_that_is_no_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    refused(write(tmp_path / "x.safetensors", tensors_of(kl())), r"config\.json.* is not valid JSON")


@pytest.mark.slow
def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"scaling_factor": 0.13025}')
    loaded = load_weights(write(tmp_path / "x.safetensors", tensors_of(kl())))
    assert loaded.format is not None
    assert loaded.format.name == "sdxl"


# AutoencoderTiny, AutoencoderKLFlux2, and networks that no config.json is about


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    diffusers = import_diffusers()
    fill(diffusers.AutoencoderTiny(), 0, 0.7).save_pretrained(tmp_path)
    return tmp_path


def test_a_tiny_ones_config_is_read(tiny_folder: Path) -> None:
    loaded = load_weights(tiny_folder)
    assert loaded.module.config == TinyConfig()
    assert loaded.notes == ()


def test_a_tiny_one_of_four_picture_channels_is_described_too(tmp_path: Path) -> None:
    fill(import_diffusers().AutoencoderTiny(in_channels=4, out_channels=4), 0, 0.7).save_pretrained(tmp_path)
    assert load_weights(tmp_path).module.config == TinyConfig(in_channels=4)
    refused(change(tmp_path, in_channels=3), "in_channels 3, and its tensors are of 4")


@pytest.mark.parametrize("alone", [False, True], ids=["folder", "file"])
@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        (
            {"encoder_block_out_channels": (32,) * 4, "decoder_block_out_channels": (32,) * 4},
            "TAESD's with 32 channels",
        ),
        ({"num_encoder_blocks": (1, 2, 2, 2), "num_decoder_blocks": (2, 2, 2, 1)}, "TAESD's with fewer blocks"),
        ({"num_encoder_blocks": (1, 4, 4, 4)}, "encoder is a TAESD's with more blocks"),
    ],
)
def test_tiny_ones_of_other_sizes(fields: dict[str, Any], pattern: str, alone: bool, tmp_path: Path) -> None:
    fill(import_diffusers().AutoencoderTiny(**fields), 0, 0.7).save_pretrained(tmp_path)
    if alone:
        (tmp_path / "config.json").unlink()
    refused(tmp_path, pattern)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"act_fn": "gelu"}, "act_fn 'gelu', and supported is 'relu'"),
        ({"upsample_fn": "bilinear"}, "upsample_fn 'bilinear'"),
        ({"upsampling_scaling_factor": 4}, "upsampling_scaling_factor 4"),
        ({"num_decoder_blocks": [3, 3, 3, 2]}, "num_decoder_blocks"),
        ({"encoder_block_out_channels": [64, 64]}, "encoder_block_out_channels"),
        ({"latent_channels": 16}, "latent_channels 16"),
        ({"new": 1}, "a field 'new' that no AutoencoderTiny of diffusers has"),
        ({"_class_name": KL}, "_class_name 'AutoencoderKL', and its tensors are of 'AutoencoderTiny'"),
    ],
)
def test_a_tiny_one_that_is_told_otherwise(fields: dict[str, Any], pattern: str, tiny_folder: Path) -> None:
    refused(change(tiny_folder, **fields), pattern)


@pytest.fixture
def flux2_folder(tmp_path: Path) -> Path:
    diffusers = import_diffusers()
    fields: dict[str, Any] = {"block_out_channels": (32, 64), "latent_channels": 8, "layers_per_block": 1}
    fields |= {"down_block_types": TWO["down_block_types"], "up_block_types": TWO["up_block_types"]}
    theirs = fill(diffusers.AutoencoderKLFlux2(**fields, decoder_block_out_channels=(32, 64), batch_norm_eps=1e-5), 0)
    theirs.save_pretrained(tmp_path)
    return tmp_path


def test_flux2s_config_is_read(flux2_folder: Path) -> None:
    loaded = load_weights(flux2_folder)
    assert loaded.format is not None
    assert loaded.format.to_dict()["eps"] == 1e-5


def test_a_changed_eps_of_flux2_counts(flux2_folder: Path, tmp_path: Path) -> None:
    first = load_weights(flux2_folder)
    save_weights(first.module, tmp_path / "again", layout="diffusers", format_=first.format)
    assert load_weights(tmp_path / "again").format == first.format
    again = load_weights(change(tmp_path / "again", batch_norm_eps=1e-3)).format
    assert again is not None
    assert again.to_dict()["eps"] == 1e-3


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"batch_norm_eps": "small"}, "batch_norm_eps 'small'"),
        ({"batch_norm_eps": -1.0}, "batch_norm_eps -1.0"),
        ({"patch_size": [4, 4]}, r"patch_size \[4, 4\]"),
        ({"decoder_block_out_channels": [32, 32]}, "decoder_block_out_channels"),
    ],
)
def test_flux2_that_is_told_otherwise(fields: dict[str, Any], pattern: str, flux2_folder: Path) -> None:
    refused(change(flux2_folder, **fields), pattern)


def test_flux2_without_its_statistics_asks(flux2_folder: Path) -> None:
    from safetensors.torch import load_file

    tensors = {key: value for key, value in load_file(flux2_folder / STABLE).items() if not key.startswith("bn.")}
    write(flux2_folder / STABLE, tensors)
    loaded = load_weights(flux2_folder)
    assert loaded.format is None
    assert "batch-norm statistics are not among its tensors" in loaded.question


def test_other_networks_are_not_what_a_config_describes(tmp_path: Path) -> None:
    module: Any = fill(make_network(FoldedConfig(z_channels=4, ch=(8, 8))), 0)
    (path,) = save_weights(module, tmp_path / "x.safetensors", layout="ldm")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    assert load_weights(path).module.config == module.config
    refused(write(tmp_path / "y.safetensors", tensors_of(module)), "not about these weights")


# What is kept, and what is said


@pytest.mark.parametrize("upcast", [True, False])
@pytest.mark.parametrize("size", [32, 768, [64, 96]])
def test_what_pipelines_read_survives_conversions(upcast: bool, size: Any, tmp_path: Path) -> None:
    reference(force_upcast=upcast, sample_size=32).save_pretrained(tmp_path / "own")
    first = load_weights(change(tmp_path / "own", sample_size=size))
    folder = tmp_path / "ldm"
    folder.mkdir()
    (ldm,) = save_weights(first.module, folder / "x.safetensors", layout="ldm", format_=first.format, kept=first.kept)
    second = load_weights(ldm)
    save_weights(second.module, tmp_path / "again", layout="diffusers", format_=second.format, kept=second.kept)
    written = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("own", "again")]
    for config in written:
        config.pop("_diffusers_version")
    # what this class's config.json has beyond ours says nothing
    assert {key: value for key, value in written[0].items() if value is not None} == {
        key: value for key, value in written[1].items() if value is not None
    }
    assert load_weights(tmp_path / "again").format == first.format


def test_a_changed_config_counts_though_the_weights_remember_the_old_one(tmp_path: Path) -> None:
    reference().save_pretrained(tmp_path / "own")
    first = load_weights(tmp_path / "own")
    save_weights(first.module, tmp_path / "again", layout="diffusers", format_=first.format, kept=first.kept)
    loaded = load_weights(change(tmp_path / "again", scaling_factor=0.13025, force_upcast=False))
    assert loaded.format is not None
    assert (loaded.format.name, loaded.format_source) == ("sdxl", "config.json")
    assert loaded.kept["force_upcast"] is False


ASSUMED = "taken to have 32 groups"
TOLD: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "alone": (lambda path: write(path, tensors_of(kl())), True),
    "with metadata": (lambda path: save_weights(kl(), path, layout="ldm"), False),
    "with a config": (
        lambda path: (
            write(path, tensors_of(kl())),
            (path.parent / "config.json").write_text('{"_class_name": "AutoencoderKL"}'),
        ),
        False,
    ),
    "in a checkpoint": (
        lambda path: write(
            path,
            {f"first_stage_model.{k}": v for k, v in tensors_of(kl()).items()}
            | {"cond_stage_model.x": torch.zeros(1)},
        ),
        False,
    ),
    "a tiny one": (lambda path: write(path, tensors_of(tiny())), False),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_assumed_groups_are_said(name: str, tmp_path: Path) -> None:
    make, said = TOLD[name]
    make(tmp_path / "x.safetensors")
    notes = load_weights(tmp_path / "x.safetensors").notes
    assert any(ASSUMED in note for note in notes) == said
