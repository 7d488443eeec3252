"""GGUF: files of every type that the gguf package knows, as stable-diffusion.cpp and ComfyUI's tools write them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import ggufkit
import numpy as np
import pytest
import torch
import wankit
from ggufkit import Type, Written, as_written, dequantised, numbers, says
from support import diffusers_tensors, kl, network, one_sentence, same_tensors, tensors_of, write
from torch import Tensor

from calotype.draw.checkpoints import load_checkpoint
from calotype.errors import UsageError, WeightsError
from calotype.families.hunyuan.config import HunyuanImageConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import KNOWN
from calotype.weights import gguf_file
from calotype.weights.container import open_container
from calotype.weights.gguf_file import GgufFile
from calotype.weights.load import load_weights

CONFIG = AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)
MODULE = kl(CONFIG)
LDM, DIFFUSERS = tensors_of(MODULE), diffusers_tensors(MODULE)
SLOW = partial(pytest.param, marks=pytest.mark.slow)  # much like others


def writes() -> list[Any]:
    """The types that the package can quantise to."""
    found = []
    for type_, (block, _) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.quantize(np.zeros((1, block), np.float32), type_)
        except NotImplementedError:
            continue
        found.append(type_)
    return found


def reads() -> list[Any]:
    """The types that it can turn into numbers."""
    found = []
    for type_, (_, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, size), np.uint8), type_)
        except NotImplementedError:
            continue
        found.append(type_)
    return found


def loaded_as(path: Path, expected: Mapping[str, Tensor]) -> None:
    """Whether a file gives these numbers, under our keys."""
    state = load_weights(path).module.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name].reshape(tensor.shape)), name


# types


@pytest.mark.parametrize("type_", reads(), ids=lambda type_: type_.name)
def test_every_type_gives_what_the_package_makes_of_it(type_: Any, tmp_path: Path) -> None:
    block, size = gguf.GGML_QUANT_SIZES[type_]
    content = np.random.default_rng(0).integers(0, 256, (6, 2 * size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(content, type_)
    path = ggufkit.write(tmp_path / "x.gguf", [Written(b"a.weight", (2 * block, 3, 2), type_, content.tobytes())])
    container = open_container(path)
    assert container.kind == "GGUF"
    assert container.shapes == {"a.weight": (2, 3, 2 * block)}
    found = container.read("a.weight")
    names = {Type.F32: "float32", Type.F16: "float16", Type.BF16: "bfloat16"}
    assert container.stored("a.weight") == names.get(type_, type_.name)
    np.testing.assert_array_equal(found.float().numpy().reshape(expected.shape), expected)
    assert found.dtype == getattr(torch, names.get(type_, "float32"))


@pytest.mark.parametrize("dtype", ["float64", "int8", "int16", "int32", "int64"])
def test_other_plain_types(dtype: str, tmp_path: Path) -> None:
    tensor = torch.tensor([[1, -2, 3], [4, 5, -6]], dtype=getattr(torch, dtype))
    type_ = {"float64": Type.F64}.get(dtype) or Type[f"I{tensor.itemsize * 8}"]
    path = ggufkit.write(tmp_path / "x.gguf", [Written(b"a", (3, 2), type_, tensor.numpy().tobytes())])
    found = open_container(path).read("a")
    assert torch.equal(found, tensor)
    assert found.dtype == tensor.dtype


@pytest.mark.parametrize("type_", writes(), ids=lambda type_: type_.name)
def test_a_network_quantised_by_the_package(type_: Any, tmp_path: Path) -> None:
    block = gguf.GGML_QUANT_SIZES[type_][0]
    path = ggufkit.write(tmp_path / "x.gguf", as_written(DIFFUSERS, type_))
    expected = {
        name: tensor if name.endswith("bias") or tensor.shape[-1] % block else dequantised(tensor, type_)
        for name, tensor in DIFFUSERS.items()
    }
    loaded = load_weights(path)
    reference = load_weights(write(tmp_path / "x.safetensors", expected))
    assert loaded.layout == "diffusers"
    for name, tensor in loaded.module.state_dict().items():
        assert torch.equal(tensor.float(), reference.module.state_dict()[name]), name
    assert loaded.container == "GGUF"
    if block == 32:  # norms of one dimension too
        assert set(loaded.dtypes) == {"float32", type_.name}
        (notice,) = loaded.notices
        assert f"tensors are stored as {type_.name} and were turned into float32" in notice
        assert notice.startswith(str(path))
    else:
        assert loaded.notices == ()


def test_a_type_without_arithmetic_is_refused_by_name(tmp_path: Path) -> None:
    content = bytes(gguf.GGML_QUANT_SIZES[Type.Q8_K][1])
    tensors = as_written(LDM, Type.F16)
    path = ggufkit.write(tmp_path / "x.gguf", [*tensors, Written(b"unet.weight", (256,), Type.Q8_K, content)])
    assert load_weights(path).notices == ()  # nothing is asked of others
    whole = {one.name: one for one in tensors}
    name = b"decoder.mid.block_1.norm1.weight"
    whole[name] = Written(name, (64,), 199, bytes(64))
    refused(ggufkit.write(path, whole.values()), r"block_1\.norm1\.weight is stored as GGML's type 199, which .*know")
    with pytest.raises(WeightsError, match=r"a is stored as Q8_K, which the package gguf can't turn into numbers"):
        open_container(ggufkit.write(path, [Written(b"a", (256,), Type.Q8_K, content)])).read("a")


def test_without_the_package_plain_files_are_read_and_others_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ggufkit.write(tmp_path / "plain.gguf", as_written(LDM, Type.F16))
    packed = ggufkit.write(tmp_path / "packed.gguf", as_written(LDM, Type.Q8_0))
    monkeypatch.setattr(gguf_file, "_installed", lambda: False)
    gguf_file._blocks.cache_clear()
    try:
        assert load_weights(plain).dtypes == ("float16", "float32")
        refused(packed, r"is quantised \(GGML's type 8\).*pip install 'calotype\[gguf\]'", UsageError)
    finally:
        gguf_file._blocks.cache_clear()


# names and shapes


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model.", "model.vae."])
@pytest.mark.parametrize("tensors", [LDM, DIFFUSERS], ids=["ldm", "diffusers"])
def test_names_that_converters_write(tensors: dict[str, Tensor], prefix: str, tmp_path: Path) -> None:
    other = [Written(b"model.diffusion_model.input_blocks.0.0.weight", (4, 2), Type.F16, bytes(16))] if prefix else []
    path = ggufkit.write(tmp_path / "x.gguf", [*as_written(tensors, prefix=prefix), *other])
    loaded = load_weights(path)
    assert same_tensors(loaded.module, MODULE)
    assert loaded.prefix == prefix
    assert loaded.layout == ("ldm" if tensors is LDM else "diffusers")


@pytest.mark.parametrize("names", ["ldm", "diffusers"])
@pytest.mark.parametrize(
    "variant", ["wan-2.1", "wan-2.2", "qwen-image-2.1", SLOW("wan-2.1-larger"), SLOW("qwen-image-layered")]
)
def test_kernels_of_five_dimensions_are_split(variant: str, names: str, tmp_path: Path) -> None:
    module, config = wankit.theirs(variant), wankit.VARIANTS[variant][2]
    tensors = wankit.originals(module, config) if names == "ldm" else dict(module.state_dict())
    written = as_written(tensors, Type.F16 if names == "ldm" else Type.F32, "vae.")
    assert all(len(one.sizes) <= 4 for one in written)
    container = open_container(ggufkit.write(tmp_path / "x.gguf", written))
    assert container.shapes == {f"vae.{key}": tuple(value.shape) for key, value in tensors.items()}
    loaded = load_weights(tmp_path / "x.gguf")
    halves = {key: value if key.endswith("bias") or names != "ldm" else value.half() for key, value in tensors.items()}
    expected = load_weights(write(tmp_path / "x.safetensors", halves))
    assert loaded.module.config == config
    assert same_tensors(loaded.module, expected.module)


def test_kernels_of_images_with_a_frame_are_split(tmp_path: Path) -> None:
    config = HunyuanImageConfig(channels=(32, 64, 128), num_res_blocks=1, z_channels=64)
    module = network(config)
    framed = {
        key: value[:, :, None].contiguous() if value.ndim == 4 else value for key, value in tensors_of(module).items()
    }
    loaded = load_weights(ggufkit.write(tmp_path / "x.gguf", as_written(framed)))
    assert loaded.module.config == config
    assert same_tensors(loaded.module, module)


@pytest.mark.parametrize("channels", [1, 4])
def test_dimensions_of_one_that_ggml_forgets(channels: int, tmp_path: Path) -> None:
    module = kl(AutoencoderConfig(ch=32, ch_mult=(1,), num_res_blocks=1, in_channels=channels, z_channels=1))
    written = as_written(tensors_of(module))
    lost = {one.name: one.sizes for one in written}
    assert lost[b"post_quant_conv.weight"] == (1,)
    assert lost[b"decoder.conv_out.weight"] == ((3, 3, 32) if channels == 1 else (3, 3, 32, 4))
    loaded = load_weights(ggufkit.write(tmp_path / "x.gguf", written))
    assert loaded.module.config == module.config
    assert same_tensors(loaded.module, module)


@pytest.mark.parametrize("architecture", ["pig", "cow", "sd1"])
def test_comfyui_s_tools_note_shapes(architecture: str, tmp_path: Path) -> None:
    """Kernels flattened to rows of whole blocks; five dimensions are written as they are."""
    written, values = [], [says("general.architecture", architecture)]
    for name, tensor in LDM.items():
        if tensor.ndim == 4 and tensor[0].numel() % 32 == 0:
            flat = tensor.reshape(tensor.shape[0], -1)
            values.append(numbers(f"comfy.gguf.orig_shape.{name}", tensor.shape))
            written.append(
                Written(name.encode(), (flat.shape[1], flat.shape[0]), Type.Q8_0, ggufkit.quantised(flat, Type.Q8_0))
            )
        else:
            written += as_written({name: tensor})
    loaded = load_weights(ggufkit.write(tmp_path / "x.gguf", written, values))
    for name, tensor in loaded.module.state_dict().items():
        wide = LDM[name]
        if wide.ndim == 4 and wide[0].numel() % 32 == 0:
            wide = dequantised(wide.reshape(wide.shape[0], -1), Type.Q8_0).reshape(wide.shape)
        assert torch.equal(tensor, wide), name


def test_what_the_package_itself_writes(tmp_path: Path) -> None:
    """With five dimensions, an architecture, numbers, and a vocabulary."""
    module = wankit.theirs("wan-2.1")
    tensors = wankit.originals(module, wankit.VARIANTS["wan-2.1"][2])
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "wan")
    writer.add_quantization_version(2)
    writer.add_bool("a.flag", True)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "longer"])
    writer.add_array("a.scores", [0.5] * 100)
    writer.add_custom_alignment(64)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    container = open_container(tmp_path / "x.gguf")
    assert container.metadata == {"general.architecture": "wan"}
    assert all(torch.equal(container.read(name), tensor) for name, tensor in tensors.items())
    assert load_weights(tmp_path / "x.gguf").module.config == wankit.VARIANTS["wan-2.1"][2]


def test_files_split_in_two_and_folders(tmp_path: Path) -> None:
    written = as_written(LDM, Type.F16)
    for i in range(2):
        ggufkit.write(tmp_path / f"vae-0000{i + 1}-of-00002.gguf", written[90 * i : 90 * (i + 1) if i == 0 else None])
    expected = load_weights(ggufkit.write(tmp_path / "whole.gguf", written))
    loaded = load_weights(tmp_path / "vae-00002-of-00002.gguf")
    assert same_tensors(loaded.module, expected.module)
    assert loaded.container == "GGUF, 2 shards"
    (tmp_path / "vae-00001-of-00002.gguf").unlink()
    refused(tmp_path / "vae-00002-of-00002.gguf", "one of 2 shards, and vae-00001-of-00002.gguf is not beside it")
    (tmp_path / "vae-00002-of-00002.gguf").unlink()
    assert same_tensors(load_weights(tmp_path).module, expected.module)  # the only file of a folder
    write(tmp_path / "vae.safetensors", LDM)
    assert same_tensors(load_weights(tmp_path).module, MODULE)  # and left alone beside others


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large checkpoint the VAE's tensors, once each."""
    others = [Written(b"model.diffusion_model.a.weight", (32, 4), Type.Q8_0, bytes(4 * 34))]
    path = ggufkit.write(tmp_path / "x.gguf", [*others, *as_written(LDM, Type.Q8_0, "first_stage_model.")])
    seen: list[str] = []
    read = GgufFile.read
    monkeypatch.setattr(GgufFile, "read", lambda self, key: seen.append(key) or read(self, key))
    load_weights(path)
    assert sorted(seen) == sorted(f"first_stage_model.{key}" for key in LDM)


# bad files


def refused(path: Path, message: str, error: type[Exception] = WeightsError) -> None:
    with pytest.raises(error, match=message) as caught:
        load_weights(path)
    one_sentence(str(caught.value))
    assert str(caught.value).startswith(str(path))


SMALL = Written(b"encoder.conv_in.weight", (4, 2), Type.F32, bytes(32))
A, B = (SMALL._replace(name=name) for name in (b"a", b"b"))
HUGE = 2**62
WHOLE = ggufkit.file([A, B])

# (content, what is said)
BAD: list[tuple[bytes, str]] = [
    (b"GGUF", "20|4 bytes do not hold its header"),
    (b"GGUF" + bytes(40), "GGUF file"),
    (ggufkit.file([A], magic=b"FUGG"), "a big-endian GGUF file.*gguf-convert-endian FILE little"),
    (b"GGUF\0\0\0\3" + bytes(60), "a big-endian GGUF file"),
    (ggufkit.file([A], version=1), "a GGUF file of version 1, and 2 and 3 are read"),
    (ggufkit.file([A], version=77), "a GGUF file of version 77"),
    (ggufkit.file([A], count=1_000_000), "claims 1,000,000 tensors, and no model has more than 65,536"),
    (ggufkit.file([A], count=2**64 - 1), "claims 18,446,744,073,709,551,615 tensors"),
    (ggufkit.file([A], keys=2**40), "claims 1,099,511,627,776 keys"),
    (ggufkit.file([A], count=3), "damaged|do not hold its header"),
    (ggufkit.file([A], keys=1), "damaged|do not hold its header"),
    (ggufkit.file([A._replace(name=b"")]), "a tensor's name, empty, can't be one"),
    (ggufkit.file([A._replace(name=b"encoder\0.weight")]), r"a tensor's name, encoder\\x00\.weight, can't be one"),
    (ggufkit.file([A._replace(name=b"\xff\xfe")]), "truncated or damaged .*codec can't decode"),
    (ggufkit.file([A._replace(name=b"x" * 2000)]), "truncated or damaged .a name of 2000 bytes"),
    (ggufkit.file([A, A]), "a tensor's name, a, can't be one, or stands in it twice"),
    (ggufkit.file([A, B._replace(offset=0)]), "its tensors a and b overlap"),
    (ggufkit.file([A, B._replace(offset=16)]), "its tensors a and b overlap"),
    (ggufkit.file([A, B._replace(offset=96)]), "truncated: 64 of 256 bytes are missing"),
    (ggufkit.file([A, B._replace(offset=2**50)]), "truncated or damaged .b is of .*, at 1,125,899,906,842,624"),
    (WHOLE[:-32], "truncated: 32 of 192 bytes are missing"),
    (WHOLE[:100], "100 bytes do not hold its header"),
    (ggufkit.file([A._replace(sizes=(4, 2**40))]), r"truncated: .* bytes are missing"),
    (ggufkit.file([A._replace(sizes=(HUGE, HUGE))]), r"truncated or damaged .a is of \[46116"),
    (ggufkit.file([A._replace(sizes=(2**64 - 1,))]), "truncated or damaged .a is of"),
    (ggufkit.file([A._replace(sizes=(1,) * 9)]), "a has 9 dimensions"),
    (ggufkit.file([A._replace(sizes=(33, 2), type_=Type.Q8_0)]), r"rows of 33 numbers .* blocks of 32 \(Q8_0\)"),
    (ggufkit.file([A], [ggufkit.key("a", 13, b"")]), "a value of a type, 13,"),
    (ggufkit.file([A], [ggufkit.key("a", 8, struct.pack("<Q", HUGE))]), "do not hold its header"),
    (ggufkit.file([A], [ggufkit.key("a", 9, struct.pack("<IQ", 8, HUGE))]), "do not hold its header"),
    (ggufkit.file([A], [ggufkit.key("a", 9, struct.pack("<IQ", 5, HUGE))]), "do not hold its header"),
    (ggufkit.file([A], [ggufkit.key("a", 9, struct.pack("<IQ", 9, 1) * 50)]), "arrays 4 deep"),
    (ggufkit.file([A], [says("a", "x"), says("a", "y")]), "the key a stands in it twice"),
    (ggufkit.file([A], [ggufkit.key("general.alignment", 4, struct.pack("<I", 0))]), "its alignment is 0"),
    (ggufkit.file([A], [ggufkit.key("general.alignment", 4, struct.pack("<I", 33))]), "its alignment is 33"),
    (ggufkit.file([A], [says("general.alignment", "32")]), "its alignment is 32"),
    (ggufkit.file([A], [numbers("comfy.gguf.orig_shape.a", (3, 3))]), "the shape noted for a is not that of its"),
    (ggufkit.file([A], [numbers("comfy.gguf.orig_shape.a", (-2, -4))]), "the shape noted for a is not that of its"),
    (ggufkit.file([A], [says("comfy.gguf.orig_shape.a", "4")]), "the shape noted for a is not that of its"),
    (ggufkit.file([A, B]), "the file holds no VAE: its tensors a, b"),
]


@pytest.mark.parametrize(("content", "said"), BAD, ids=range(len(BAD)))
def test_bad_files_are_refused_in_a_sentence(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    refused(path, said)


def test_a_header_is_not_longer_than_any_model_s(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(ggufkit.file([A], [ggufkit.key("a", 9, struct.pack("<IQ", 0, 30_000_000) + bytes(30_000_000))]))
    refused(path, r"its header is longer than that of any weights \(25,000,000 bytes\)")


def test_infinite_scales_are_refused_like_any_infinity(tmp_path: Path) -> None:
    written = {one.name: one for one in as_written(DIFFUSERS, Type.Q8_0)}
    name = b"decoder.mid_block.attentions.0.to_q.weight"
    content = b"\x00\x7c" + b"\1" * 32  # float16's infinity
    written[name] = written[name]._replace(content=content + written[name].content[34:])
    refused(
        ggufkit.write(tmp_path / "x.gguf", written.values()), r"NaN or infinity in the tensor decoder\.mid\.attn_1\.q"
    )


def test_bytes_after_the_last_tensor_are_told_of(tmp_path: Path) -> None:
    path = ggufkit.write(tmp_path / "x.gguf", as_written(LDM))
    path.write_bytes(path.read_bytes() + bytes(100))
    loaded = load_weights(path)
    assert same_tensors(loaded.module, MODULE)
    (notice,) = loaded.notices
    assert notice.startswith(f"{path}: 1")
    assert "bytes too many after the last tensor" in notice


def test_empty_tensors_of_others_do_no_harm(tmp_path: Path) -> None:
    marker = Written(b"scaled_fp8", (0,), Type.F16, b"")
    assert same_tensors(load_weights(ggufkit.write(tmp_path / "x.gguf", [marker, *as_written(LDM)])).module, MODULE)


# files that other programs wrote


@pytest.mark.parametrize(
    ("name", "dtypes"),
    [
        ("sdcpp_f16.gguf", ("float16",)),
        ("sdcpp-real-q8_0.gguf", ("Q8_0", "float32")),
        ("sdcpp-real-diffusers-bf16-q8_0.gguf", ("Q8_0", "bfloat16")),
        ("sdcpp-real-from-fp8.gguf", ("float16",)),
    ],
)
def test_files_of_stable_diffusion_cpp(name: str, dtypes: tuple[str, ...], shared: Path) -> None:
    if not (shared / "files" / name).exists():
        pytest.skip("there is no such file")
    reference = load_weights(shared / "files" / "reference-ldm.safetensors").module.state_dict()
    loaded = load_weights(shared / "files" / name)
    state = loaded.module.state_dict()
    stored = {
        key: open_container(shared / "files" / name).stored(key)
        for key in open_container(shared / "files" / name).shapes
    }
    assert set(loaded.dtypes) == set(stored.values())
    assert set(dtypes) <= set(loaded.dtypes)
    for key, tensor in state.items():
        wide = reference[key]
        source = wide.bfloat16() if "bf16" in name else wide.to(torch.float8_e4m3fn) if "fp8" in name else wide
        if tensor.dtype == torch.float32 and not torch.equal(tensor, wide):  # norms, and diffusers' attention
            expected = dequantised(source.reshape(wide.shape[:2] if wide.ndim == 4 else (1, -1)), Type.Q8_0)
        else:
            expected = source.to(tensor.dtype)
        assert torch.equal(tensor, expected.reshape(tensor.shape)), key
    assert KNOWN["sd1"].channels == loaded.module.config.z_channels


def test_checkpoints_to_draw_with_are_not_read(tmp_path: Path) -> None:
    path = ggufkit.write(tmp_path / "x.gguf", as_written(LDM, Type.F16, "first_stage_model."))
    with pytest.raises(WeightsError, match="this is a GGUF file, of which the VAE alone is read") as caught:
        load_checkpoint(path)
    one_sentence(str(caught.value))
