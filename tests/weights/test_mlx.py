"""mflux and MLX: kernels with their inputs last, mflux's names, quantised attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from otherkit import kernels_last, mflux_tensors, mlx_quantised
from safetensors.torch import load_file
from support import diffusers_tensors, kl, one_sentence, same_tensors, tensors_of, write
from torch import Tensor

from calotype.errors import WeightsError
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.tiny.config import TinyConfig
from calotype.weights.container import open_container
from calotype.weights.load import load_weights
from calotype.weights.mlx import from_mlx

CONFIG = AutoencoderConfig(ch=64, ch_mult=(1, 2), num_res_blocks=1, z_channels=16, quant_conv=False)
MODULE = kl(CONFIG, 1)
ATTENTION = "decoder.mid_block.attentions.0."
SAID = {"quantization_level": "8", "mflux_version": "0.17"}


def refused(path: Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(path)
    one_sentence(str(caught.value))


def quantised(
    module: Any, bits: int, group: int, tensors: dict[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """mflux's tensors with all matrices quantised, and the numbers of those by our keys."""
    tensors = mflux_tensors(module) if tensors is None else tensors
    names = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    made, numbers = {}, {}
    for key, tensor in tensors.items():
        if tensor.ndim != 2:
            made[key] = tensor
            continue
        parts, exact = mlx_quantised(tensor, bits, group)
        name = key.removesuffix(".weight")
        made |= {f"{name}.{part}": value for part, value in parts.items()}
        side, _, rest = name.partition(".mid_block.attentions.0.")
        numbers[f"{side}.mid.attn_1.{names[rest]}.weight"] = exact
    return made, numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mflux(tmp_path: Path, dtype: torch.dtype) -> None:
    module = kl(CONFIG, 1).to(dtype)
    write(tmp_path / "vae" / "0.safetensors", mflux_tensors(module), {**SAID, "quantization_level": "None"})
    for path in (tmp_path, tmp_path / "vae", tmp_path / "vae" / "0.safetensors"):
        loaded = load_weights(path)
        assert same_tensors(loaded.module, module)
        assert (loaded.layout, loaded.container, loaded.prefix) == ("diffusers", "safetensors", "")


def test_shards_of_mflux(tmp_path: Path) -> None:
    tensors = mflux_tensors(MODULE)
    keys = list(tensors)
    parts = {f"{i}.safetensors": keys[i::3] for i in range(3)}
    for name, own in parts.items():
        write(tmp_path / name, {key: tensors[key] for key in own}, SAID)
    table = {key: name for name, own in parts.items() for key in own}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    for path in (tmp_path, tmp_path / "1.safetensors"):
        loaded = load_weights(path)
        assert same_tensors(loaded.module, MODULE)
        assert loaded.container == "safetensors, 3 shards"
    (tmp_path / "1.safetensors").unlink()
    refused(tmp_path, r"one of 3 shards, and 1\.safetensors is not beside it")


def test_flux2_of_mflux(tmp_path: Path) -> None:
    """Whose attention has `to_out`, and whose convolutions have no module more."""
    module = kl(AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=8), 2)
    tensors = {k.replace("to_out.0.", "to_out."): v for k, v in kernels_last(diffusers_tensors(module)).items()}
    tensors |= {"bn.running_mean": torch.zeros(32), "bn.running_var": torch.ones(32)}
    loaded = load_weights(write(tmp_path / "0.safetensors", tensors))
    assert same_tensors(loaded.module, module)
    assert loaded.format is not None and loaded.format.name == "flux2"


def examples(module: Any) -> dict[str, Tensor]:
    """As mlx-examples' Stable Diffusion has it: other words, and linear layers for convolutions of 1x1."""
    named = {}
    for key, tensor in kernels_last(diffusers_tensors(module)).items():
        for theirs, word in {
            "mid_block.resnets.0": "mid_blocks.0", "mid_block.attentions.0": "mid_blocks.1",
            "mid_block.resnets.1": "mid_blocks.2", "to_q": "query_proj", "to_k": "key_proj", "to_v": "value_proj",
            "to_out.0": "out_proj", "downsamplers.0.conv": "downsample", "upsamplers.0.conv": "upsample",
            "quant_conv": "quant_proj",
        }.items():  # fmt: skip
            key = key.replace(theirs, word)
        named[key] = tensor[:, 0, 0, :].contiguous() if tensor.ndim == 4 and tensor.shape[1] == 1 else tensor
    return named


def flux_examples(module: Any) -> dict[str, Tensor]:
    """As mlx-examples' FLUX has it: latent-diffusion's names, and linear layers for convolutions of 1x1."""
    tensors = kernels_last(tensors_of(module))
    return {k: v[:, 0, 0, :].contiguous() if v.ndim == 4 and v.shape[1] == 1 else v for k, v in tensors.items()}


@pytest.mark.parametrize("quant_conv", [True, False])
def test_models_of_mlx_examples(tmp_path: Path, quant_conv: bool) -> None:
    module = kl(AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=2, quant_conv=quant_conv), 4)
    for name, tensors in (("sd", examples(module)), ("flux", flux_examples(module))):
        loaded = load_weights(write(tmp_path / f"{name}.safetensors", tensors))
        assert same_tensors(loaded.module, module)
        assert loaded.layout == {"sd": "diffusers", "flux": "ldm"}[name]


def test_a_whole_model_quantised(tmp_path: Path) -> None:
    """Also matrices that are not square; those of attention tell in how many bits they all are."""
    module = kl(CONFIG, 5)
    made: dict[str, Tensor] = {}
    exact: dict[str, Tensor] = {}
    for key, tensor in flux_examples(module).items():
        if tensor.ndim == 2:
            parts, exact[key] = mlx_quantised(tensor, 8, 32)
            made |= {f"{key.removesuffix('.weight')}.{part}": value for part, value in parts.items()}
        else:
            made[key] = tensor
    state = load_weights(write(tmp_path / "x.safetensors", made)).module.state_dict()
    assert any(value.shape[0] != value.shape[1] for value in exact.values())
    for key, value in exact.items():
        assert torch.allclose(state[key][:, :, 0, 0].double(), value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("names", ["diffusers", "ldm"])
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("channels", [1, 3])
def test_kernels_with_their_inputs_last(tmp_path: Path, names: str, prefix: str, channels: int) -> None:
    """One of 3x3 with three inputs looks the same in both orders, and is turned as the others are."""
    module = kl(AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, in_channels=channels), 3)
    tensors = diffusers_tensors(module) if names == "diffusers" else tensors_of(module)
    unet = {"model.diffusion_model.out.2.weight": torch.zeros(4, 32, 3, 3)}  # which stays as it is
    turned = {f"{prefix}{key}": value for key, value in kernels_last(tensors).items()}
    loaded = load_weights(write(tmp_path / "x.safetensors", {**turned, **(unet if prefix else {})}))
    assert same_tensors(loaded.module, module)
    assert (loaded.layout, loaded.prefix) == (names, prefix)


@pytest.mark.parametrize(
    "config", [CONFIG, AutoencoderConfig(ch=32, z_channels=3), TinyConfig(), AutoencoderConfig(ch=32, in_channels=1)]
)
def test_torchs_own_files_are_left_alone(tmp_path: Path, config: Any) -> None:
    from support import network

    container = open_container(write(tmp_path / "x.safetensors", tensors_of(network(config))))
    assert from_mlx(container) is container


@pytest.mark.parametrize("order", [(2, 3, 1, 0), (3, 1, 2, 0)])
def test_other_orders_are_refused(tmp_path: Path, order: tuple[int, ...]) -> None:
    tensors = {k: v.permute(order).contiguous() if v.ndim == 4 else v for k, v in tensors_of(MODULE).items()}
    refused(write(tmp_path / "x.safetensors", tensors), "axes in another order|misshapen|not a whole VAE")


def test_mixed_orders_are_refused(tmp_path: Path) -> None:
    tensors = kernels_last(tensors_of(MODULE))
    key = "decoder.mid.block_1.conv1.weight"
    tensors[key] = tensors_of(MODULE)[key]
    refused(write(tmp_path / "x.safetensors", tensors), "axes in another order|misshapen")


def test_two_of_a_name_are_refused(tmp_path: Path) -> None:
    tensors = {**mflux_tensors(MODULE), "decoder.conv_in.bias": torch.zeros(128)}
    refused(write(tmp_path / "x.safetensors", tensors), r"two of its tensors are called decoder\.conv_in\.bias")


# Quantised


@pytest.mark.parametrize(
    ("bits", "group"), [(2, 128), (3, 32), (3, 64), (4, 32), (4, 64), (5, 128), (6, 64), (8, 32), (8, 64), (8, 128)]
)
def test_quantised_matrices_are_the_numbers_that_they_stand_for(tmp_path: Path, bits: int, group: int) -> None:
    tensors, numbers = quantised(MODULE, bits, group)
    path = write(tmp_path / "0.safetensors", tensors)  # without metadata: shapes tell
    loaded = load_weights(path)
    state = loaded.module.state_dict()
    for key, exact in numbers.items():
        assert state[key].dtype == torch.float32
        assert (state[key][:, :, 0, 0].double() - exact).abs().max() <= 2e-7 * exact.abs().max()
    for key, tensor in MODULE.state_dict().items():
        assert key in numbers or torch.equal(state[key], tensor)
    assert loaded.dtypes == (f"MLX {bits} bits", "float32")
    assert len(numbers) == 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_of_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors, numbers = quantised(kl(CONFIG, 1).to(dtype), 4, 64)
    state = load_weights(write(tmp_path / "0.safetensors", tensors, SAID)).module.state_dict()
    for key, exact in numbers.items():
        assert (state[key][:, :, 0, 0].double() - exact).abs().max() <= 2e-7 * exact.abs().max()


def test_flux2s_attention_quantised(tmp_path: Path) -> None:
    tensors, numbers = quantised(MODULE, 8, 64)
    tensors = {key.replace("to_out.0.", "to_out."): value for key, value in tensors.items()}
    state = load_weights(write(tmp_path / "0.safetensors", tensors)).module.state_dict()
    exact = numbers["encoder.mid.attn_1.proj_out.weight"]
    assert torch.allclose(state["encoder.mid.attn_1.proj_out.weight"][:, :, 0, 0].double(), exact, rtol=0, atol=1e-6)


def changed(path: Path, change: dict[str, Any]) -> Path:
    """A quantised file with some of its tensors changed, or left out."""
    tensors, _ = quantised(MODULE, 4, 64)
    for key, value in change.items():
        del tensors[key]
        if value is not None:
            tensors[key] = value
    return write(path, tensors)


Q = f"{ATTENTION}to_q"
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("no scales", {f"{Q}.scales": None}, "unexpected tensor.*to_q.biases|quantised"),
    ("no biases", {f"{Q}.biases": None}, "its weights are quantised"),
    ("no words", {f"{Q}.weight": None}, "its weights are quantised"),
    ("scales of another shape", {f"{Q}.scales": torch.zeros(64, 3)}, "its weights are quantised"),
    ("a group that is none", {f"{Q}.scales": torch.zeros(128, 5), f"{Q}.biases": torch.zeros(128, 5)}, "are quantised"),
    ("without groups", {f"{Q}.scales": torch.zeros(128, 0), f"{Q}.biases": torch.zeros(128, 0)}, "are quantised"),
    ("words of int32", {f"{Q}.weight": torch.zeros(128, 16, dtype=torch.int32)}, "its weights are quantised"),
    ("scales of bytes", {
        f"{Q}.scales": torch.zeros(128, 2, dtype=torch.uint8), f"{Q}.biases": torch.zeros(128, 2, dtype=torch.uint8),
    }, "its scales are no numbers with a point"),
    ("scales that are no numbers", {
        f"{Q}.scales": torch.full((128, 2), torch.nan), f"{Q}.biases": torch.zeros(128, 2),
    }, "NaN or infinity in the tensor decoder.mid.attn_1.q.weight"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_bad_quantisation(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    refused(changed(tmp_path / "x.safetensors", change), message)


def test_metadata_tell_where_shapes_do_not(tmp_path: Path) -> None:
    """Of a matrix that is not square 8 bits in groups of 32 look like 4 in groups of 64."""
    parts, exact = mlx_quantised(torch.randn(32, 64), 4, 64)
    tensors = {f"decoder.x.{part}": value for part, value in parts.items()}
    for level, stored in (("4", "MLX 4 bits"), ("8", "MLX 8 bits"), ("many", "uint32"), ("3", "uint32")):
        path = write(tmp_path / f"{level}.safetensors", tensors, {"quantization_level": level})
        container = from_mlx(open_container(path))
        assert container.stored("decoder.x.weight") == stored
    container = from_mlx(open_container(tmp_path / "4.safetensors"))
    assert torch.allclose(container.read("decoder.x.weight").double(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("more", "whose"),
    [
        (("qweight", "qzeros", "scales", "g_idx"), "GPTQ's, AWQ's or MLX's quantisation"),
        (("weight", "scales"), "GPTQ's, AWQ's or MLX's quantisation"),
    ],
)
def test_other_quantisations_are_refused_by_name(tmp_path: Path, more: tuple[str, ...], whose: str) -> None:
    tensors = diffusers_tensors(MODULE)
    del tensors[f"{Q}.weight"]
    tensors |= {
        f"{Q}.{name}": torch.zeros(128, 16, dtype=torch.uint32 if name == "weight" else torch.uint8) for name in more
    }
    refused(write(tmp_path / "x.safetensors", tensors), whose)


def test_what_is_made_after_mflux(shared: Path) -> None:
    """It holds the numbers of a file under LDM's names, if that was made of the same network; and decodes."""
    if not (shared / "files" / "mflux").exists():
        pytest.skip("there is no such folder")
    loaded = load_weights(shared / "files" / "mflux")
    stored = load_file(shared / "files" / "mflux" / "vae" / "0.safetensors")
    kernel = stored["decoder.conv_in.conv2d.weight"]
    state = loaded.module.state_dict()
    assert torch.equal(state["decoder.conv_in.weight"], kernel.permute(0, 3, 1, 2))
    assert sum(value.numel() for value in state.values()) == sum(value.numel() for value in stored.values())
    reference = load_weights(shared / "files" / "reference-ldm.safetensors").module
    assert same_tensors(loaded.module, reference)
