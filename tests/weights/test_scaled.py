"""Weights with scales beside them: the numbers that ComfyUI's formats stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import diffusers_tensors, kl, one_sentence, same_tensors, tensors_of, write
from torch import Tensor

from calotype.errors import WeightsError
from calotype.families.kl.config import AutoencoderConfig
from calotype.weights.comfy_quant import E2M1, QuantError, dequantised, hadamard, rows_of, spread
from calotype.weights.load import load_weights

MODULE = kl(AutoencoderConfig(ch=64, ch_mult=(1,), num_res_blocks=1))
LDM, DIFFUSERS = tensors_of(MODULE), diffusers_tensors(MODULE)
LAYER = "decoder.mid_block.attentions.0.to_q"
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def told(**format_: object) -> Tensor:
    """ComfyUI's JSON in a tensor of bytes."""
    return torch.tensor(list(json.dumps(format_).encode()), dtype=torch.uint8)


def narrowed(weight: Tensor, dtype: torch.dtype, scale: Tensor) -> tuple[Tensor, Tensor]:
    """A weight in eight bits, and the numbers that it stands for."""
    stored = (weight / scale).to(dtype)
    return stored, stored.float() * scale


def refused(path: Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(path)
    one_sentence(str(caught.value))


SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "scalar": lambda w: w.abs().max() / 448,
    "one": lambda w: (w.abs().max() / 448).reshape(1),
    "row": lambda w: w.flatten(1).abs().amax(1) / 448,
    "rows": lambda w: (w.flatten(1).abs().amax(1) / 448).reshape(-1, 1),
    "full": lambda w: (w.flatten(1).abs().amax(1) / 448).reshape(-1, *(1,) * (w.ndim - 1)),
}


def wide(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *(1,) * (weight.ndim - 1)) if scale.numel() > 1 else scale.reshape(())


@pytest.mark.parametrize(
    ("dtype", "kind", "name", "prefix"),
    [
        *((E4M3, kind, "weight_scale", "") for kind in SCALES),
        *((E5M2, "scalar", name, "vae.") for name in ("scale_weight", "weight_scale_inv")),
    ],
)
def test_float8_with_scales(dtype: torch.dtype, kind: str, name: str, prefix: str, tmp_path: Path) -> None:
    tensors, expected = {}, {}
    for key, value in LDM.items():
        if key.endswith("weight") and value.ndim == 4:
            scale = SCALES[kind](value)
            tensors[key], expected[key] = narrowed(value, dtype, wide(scale, value))
            tensors[f"{key.removesuffix('weight')}{name}"] = scale
            tensors[f"{key.removesuffix('weight')}input_scale"] = torch.tensor(3.0)
        else:
            tensors[key] = expected[key] = value
    tensors["scaled_fp8"] = torch.zeros(2, dtype=dtype)
    path = write(tmp_path / "x.safetensors", {f"{prefix}{key}": value for key, value in tensors.items()})
    loaded = load_weights(path)
    for key, value in loaded.module.state_dict().items():
        assert torch.equal(value, expected[key]), key
    type_ = f"scaled {str(dtype).removeprefix('torch.')}"
    assert set(loaded.dtypes) == {"float32", type_}
    assert loaded.beside == ""
    (notice,) = loaded.notices
    assert f"tensors are stored as {type_} and were turned into float32" in notice


def test_what_has_no_scale_is_widened_as_it_is(tmp_path: Path) -> None:
    key = "decoder.conv_in.weight"
    stored, expected = narrowed(LDM[key], E4M3, torch.tensor(0.01))
    tensors = {**LDM, key: stored, "decoder.conv_in.scale_weight": torch.tensor(0.01)}
    tensors["decoder.conv_out.weight"] = LDM["decoder.conv_out.weight"].to(E4M3)
    loaded = load_weights(write(tmp_path / "x.safetensors", tensors))
    state = loaded.module.state_dict()
    assert torch.equal(state[key], expected)
    assert torch.equal(state["decoder.conv_out.weight"], tensors["decoder.conv_out.weight"].half())
    assert [notice.partition(" of ")[0][-1] for notice in loaded.notices] == ["1", "1"]


def test_a_float_with_a_scale_is_multiplied_too(tmp_path: Path) -> None:
    """As ComfyUI does it, and as converters leave it that make float16 of float8 and know nothing of scales."""
    key = "decoder.conv_in.weight"
    tensors = {**LDM, key: LDM[key].half(), "decoder.conv_in.scale_weight": torch.tensor(0.5)}
    state = load_weights(write(tmp_path / "x.safetensors", tensors)).module.state_dict()
    assert torch.equal(state[key], LDM[key].half().float() * 0.5)


@pytest.mark.parametrize("rows", [64, 96])
def test_scales_of_blocks(rows: int) -> None:
    weight = torch.randn(rows, 192)
    scale = torch.rand(-(-rows // 64), 3) + 0.5
    expected = weight.clone()
    for i in range(scale.shape[0]):
        for j in range(3):
            expected[64 * i : 64 * (i + 1), 64 * j : 64 * (j + 1)] *= scale[i, j]
    assert torch.equal(weight * spread(scale, (rows, 192)), expected)
    grouped = torch.rand(rows, 6)  # of columns
    by_hand = torch.cat([weight[:, 32 * j : 32 * (j + 1)] * grouped[:, j : j + 1] for j in range(6)], 1)
    assert torch.equal(weight * spread(grouped, (rows, 192)), by_hand)


@pytest.mark.parametrize("shape", [(3,), (64, 5), (2, 2, 2), (7, 192), (0,)])
def test_scales_that_fit_nothing(shape: tuple[int, ...]) -> None:
    with pytest.raises(QuantError, match="which do not fit"):
        spread(torch.ones(shape), (64, 192))


# comfy_quant


def int8(weight: Tensor, group: int = 0, rows: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """A weight in ComfyUI's int8_tensorwise, its scale, and what it stands for."""
    if group:
        weight = (weight.unflatten(1, (-1, group)) @ hadamard(group).T).flatten(1)
    scale = weight.flatten(1).abs().amax(1, keepdim=True) / 127 if rows else weight.abs().max() / 127
    scale = scale.reshape(-1, *(1,) * (weight.ndim - 1)) if rows else scale
    stored = (weight / scale).round().clamp(-128, 127).to(torch.int8)
    meant = stored.float() * scale
    return stored, scale, (meant.unflatten(1, (-1, group)) @ hadamard(group)).flatten(1) if group else meant


@pytest.mark.parametrize("group", [0, 16])
@pytest.mark.parametrize("where", ["tensor", "params", "header", "header without prefix"])
def test_int8(where: str, group: int, tmp_path: Path) -> None:
    weight = DIFFUSERS[f"{LAYER}.weight"]
    stored, scale, expected = int8(weight, group)
    format_ = {"format": "int8_tensorwise"}
    more = {"convrot": True, "convrot_groupsize": group} if group else {}
    tensors = {**DIFFUSERS, f"{LAYER}.weight": stored, f"{LAYER}.weight_scale": scale}
    metadata = None
    if where.startswith("header"):
        layer = LAYER if where == "header without prefix" else f"vae.{LAYER}"
        metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {layer: format_ | more}})}
    elif where == "params":
        tensors[f"{LAYER}.comfy_quant"] = told(**format_, params=more)
    else:
        tensors[f"{LAYER}.comfy_quant"] = told(**format_, **more)
    path = write(tmp_path / "x.safetensors", {f"vae.{key}": value for key, value in tensors.items()}, metadata)
    loaded = load_weights(path)
    found = loaded.module.state_dict()["decoder.mid.attn_1.q.weight"].reshape(weight.shape)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - weight).abs().max() < 0.02 * weight.abs().max()  # it is the weight, whatever was done to it
    assert "scaled int8" in loaded.dtypes


def test_a_convolution_in_int8(tmp_path: Path) -> None:
    stored, scale, expected = int8(LDM["decoder.conv_in.weight"])
    tensors = {**LDM, "decoder.conv_in.weight": stored, "decoder.conv_in.weight_scale": scale}
    tensors["decoder.conv_in.comfy_quant"] = told(format="int8_tensorwise")
    state = load_weights(write(tmp_path / "x.safetensors", tensors)).module.state_dict()
    assert torch.equal(state["decoder.conv_in.weight"], expected)


@pytest.mark.parametrize("size", [4, 16, 64, 256])
def test_convrot_s_rotation_is_its_own_inverse(size: int) -> None:
    h = hadamard(size)
    torch.testing.assert_close(h @ h, torch.eye(size), atol=1e-6, rtol=0)
    assert torch.equal(h, h.T)
    if size == 4:
        assert (2 * h).tolist() == [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]


def tiled(scales: Tensor) -> Tensor:
    """Scales as NVIDIA's libraries have them: tiles of 128 rows and 4 columns, in each 32 rows of 4 times 4."""
    rows, columns = -(-scales.shape[0] // 128) * 128, -(-scales.shape[1] // 4) * 4
    whole = torch.zeros(rows, columns, dtype=scales.dtype)
    whole[: scales.shape[0], : scales.shape[1]] = scales
    tiles = whole.reshape(rows // 128, 4, 32, columns // 4, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(rows, columns)


def nibbles(numbers: Tensor) -> Tensor:
    table = torch.tensor(E2M1)
    codes = (numbers.abs()[..., None] - table).abs().argmin(-1) + 8 * (numbers < 0)
    return (codes[:, ::2] * 16 + codes[:, 1::2]).to(torch.uint8)


@pytest.mark.parametrize("shape", [(64, 64), (160, 96), (256, 320)])
def test_nvfp4(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.tensor(E2M1)[torch.randint(0, 8, shape, generator=generator)]
    numbers *= torch.where(torch.rand(shape, generator=generator) < 0.5, -1.0, 1.0)
    scales = (torch.rand(shape[0], shape[1] // 16, generator=generator) * 100 + 1).to(E4M3)
    whole = torch.tensor(0.01)
    smooth = torch.rand(shape[1], generator=generator) + 0.5
    expected = (numbers.unflatten(1, (-1, 16)) * (scales.float() * whole)[:, :, None]).flatten(1)
    stored = tiled(scales.view(torch.uint8))
    for given in (stored, stored.view(E4M3)):
        beside = {"weight_scale": given, "weight_scale_2": whole}
        found = dequantised({"format": "nvfp4"}, nibbles(numbers), given, beside, shape)
        assert torch.equal(found, expected)
        found = dequantised({"format": "nvfp4"}, nibbles(numbers), given, {**beside, "pre_quant_scale": smooth}, shape)
        assert torch.equal(found, expected * smooth)


@pytest.mark.parametrize("shape", [(64, 64), (160, 96), (256, 320)])
def test_mxfp8(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(shape, generator=generator).to(E4M3)
    exponents = torch.randint(120, 134, (shape[0], shape[1] // 32), generator=generator, dtype=torch.uint8)
    expected = (stored.float().unflatten(1, (-1, 32)) * torch.exp2(exponents.float() - 127)[:, :, None]).flatten(1)
    scales = tiled(exponents)
    for given in (scales, scales.view(torch.float8_e8m0fnu)):
        found = dequantised({"format": "mxfp8"}, stored, given, {"weight_scale": given}, shape)
        assert torch.equal(found, expected)


def test_rows_that_only_make_tiles_whole_are_left_out(tmp_path: Path) -> None:
    assert rows_of(96, (80,)) == 80
    assert rows_of(96, (64,)) == rows_of(96, ()) == rows_of(96, (97,)) == 96
    weight = DIFFUSERS[f"{LAYER}.weight"]
    scale = torch.full((64, 2), 127, dtype=torch.uint8)
    tensors = {**DIFFUSERS, f"{LAYER}.weight": weight.to(E4M3), f"{LAYER}.weight_scale": tiled(scale)}
    tensors[f"{LAYER}.comfy_quant"] = told(format="mxfp8")
    state = load_weights(write(tmp_path / "x.safetensors", tensors)).module.state_dict()
    found = state["decoder.mid.attn_1.q.weight"].reshape(weight.shape)
    assert torch.equal(found, weight.to(E4M3).float())


ROWS = torch.ones(64, 1)
I8, F8 = torch.zeros(64, 64, dtype=torch.int8), torch.zeros(64, 64).to(E4M3)
U8 = torch.zeros(64, 32, dtype=torch.uint8)
# (the weight, its scale, its format, what is said)
REFUSED: list[tuple[Tensor, Tensor | None, Tensor | None, str]] = [
    (I8, ROWS, None, "int8 with scales, and nothing says in which format"),
    (U8, ROWS, None, "uint8 with scales, and nothing says in which format"),
    (I8, None, told(format="int8_tensorwise"), "its scale is missing"),
    (I8, ROWS, told(format="convrot_w4a4"), "'convrot_w4a4', that is not read"),
    (I8, ROWS, told(format="asym_w4a8_int8"), "'asym_w4a8_int8', that is not read"),
    (I8, ROWS, told(format="awq_w4a16"), "'awq_w4a16', that is not read"),
    (I8, ROWS, told(), "in a format, 'None', that is not read"),
    (torch.zeros(64, 64).half(), ROWS, told(format="int8_tensorwise"), "holds torch.float16 where its format has"),
    (I8, ROWS[:50], told(format="int8_tensorwise"), r"of \[50, 1\], which do not fit"),
    (
        I8, ROWS, told(format="int8_tensorwise", convrot=True),
        "in groups of 256, which do not divide 64 columns",
    ),
    (
        I8, ROWS,
        told(format="int8_tensorwise", convrot=True, convrot_groupsize=32), "in groups of 32, which is no power of",
    ),
    (
        I8, ROWS,
        told(format="int8_tensorwise", convrot=True, convrot_groupsize=2**40), "which is no power of four",
    ),
    (F8, ROWS, told(format="mxfp8"), "holds torch.float32 where its format has torch.uint8"),
    (F8, ROWS.to(torch.uint8), told(format="mxfp8"), "with 64 scales, which do not fit"),
    (U8, ROWS.to(E4M3), told(format="nvfp4"), "nvfp4, and its scale is missing"),
    (F8, ROWS, torch.zeros(20, dtype=torch.uint8), "does not say in which format a weight is"),
    (F8, ROWS, torch.zeros(20), "does not say in which format a weight is"),
    (F8, ROWS, torch.zeros(70_000, dtype=torch.uint8), "does not say .*70,000 numbers"),
    (F8, ROWS * torch.inf, None, "NaN or infinity"),
]  # fmt: skip


@pytest.mark.parametrize(("weight", "scale", "format_", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_can_t_be_read_is_refused_by_name(
    weight: Tensor, scale: Tensor | None, format_: Tensor | None, said: str, tmp_path: Path
) -> None:
    tensors = {**DIFFUSERS, f"{LAYER}.weight": weight}
    tensors |= {} if scale is None else {f"{LAYER}.weight_scale": scale}
    tensors |= {} if format_ is None else {f"{LAYER}.comfy_quant": format_}
    refused(write(tmp_path / "x.safetensors", tensors), said)


def test_a_rotated_convolution_is_refused(tmp_path: Path) -> None:
    stored, scale, _ = int8(LDM["decoder.conv_in.weight"])
    tensors = {**LDM, "decoder.conv_in.weight": stored, "decoder.conv_in.weight_scale": scale}
    tensors["decoder.conv_in.comfy_quant"] = told(format="int8_tensorwise", convrot=True, convrot_groupsize=4)
    refused(
        write(tmp_path / "x.safetensors", tensors), r"rotated \(ConvRot\), and of 4 dimensions, of which nobody says"
    )


def test_two_scales_and_damaged_headers(tmp_path: Path) -> None:
    one = {"decoder.conv_in.weight_scale": torch.ones(()), "decoder.conv_in.scale_weight": torch.ones(())}
    refused(write(tmp_path / "x.safetensors", {**LDM, **one}), "has several scales: scale_weight, weight_scale")
    del one["decoder.conv_in.scale_weight"]
    for text in ("[]", "{", '{"layers": {"a": NaN}}'):
        path = write(tmp_path / "y.safetensors", {**LDM, **one}, {"_quantization_metadata": text})
        refused(path, "what its header says of how it is quantised can't be read")
    path = write(tmp_path / "y.safetensors", {**LDM, **one}, {"_quantization_metadata": '{"layers": 3}'})
    assert same_tensors(load_weights(path).module, MODULE)


def test_scales_of_other_networks_are_not_even_read(tmp_path: Path) -> None:
    tensors = {f"vae.{key}": value for key, value in LDM.items()}
    tensors["model.diffusion_model.x.weight"] = torch.zeros(4, 4, dtype=torch.int8)
    tensors["model.diffusion_model.x.weight_scale"] = torch.ones(3, 3)
    tensors["model.diffusion_model.x.comfy_quant"] = torch.zeros(4)
    loaded = load_weights(write(tmp_path / "x.safetensors", tensors))
    assert same_tensors(loaded.module, MODULE)
    assert loaded.notices == ()


def test_a_file_of_the_field(shared: Path) -> None:
    path = shared / "files" / "fp8_weight_scale.safetensors"
    if not path.exists():
        pytest.skip("there is no such file")
    reference = load_weights(shared / "files" / "reference-ldm.safetensors").module.state_dict()
    state = load_weights(path).module.state_dict()
    for key, value in state.items():
        step = reference[key].abs().max() / 16  # float8 has three bits after the first
        assert (value.float() - reference[key].reshape(value.shape)).abs().max() <= step, key
