"""Files that hold no VAE: each is refused in one clear sentence, and nothing in them runs."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from support import NARROW, SMALL, diffusers_tensors, kl, names, one_sentence, tensors_of, tiny, write
from torch import Tensor

from calotype.errors import WeightsError
from calotype.families import make_network
from calotype.families.folded.config import FoldedConfig
from calotype.weights.load import load_weights

LDM = tensors_of(kl(NARROW))
DIFFUSERS = diffusers_tensors(kl(NARROW))


def refuse(path: Path, message: str) -> str:
    before = names(path if path.is_dir() else path.parent)
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(path)
    one_sentence(str(caught.value))
    assert str(caught.value).startswith(str(path))
    assert caught.value.__cause__ is None
    assert names(path if path.is_dir() else path.parent) == before
    return str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    refuse(tmp_path / "no.safetensors", "there is no such file or folder; give weights, or the name of a preset")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pth", ".bin", ".h5"])
def test_an_empty_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.touch()
    refuse(path, "the file is empty; fetch it again")


@pytest.mark.parametrize("content", [b"abc", b"\x01\x02\x03" * 40, b"{" * 40, b"\x00\x01" * 30])
def test_a_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    refuse(path, "neither safetensors, nor a torch file, nor GGUF, Keras h5, .* ONNX or OpenVINO|truncated or damaged")


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_safetensors_file(tmp_path: Path, part: float) -> None:
    path = write(tmp_path / "x.safetensors", LDM)
    content = path.read_bytes()
    path.write_bytes(content[: max(20, int(part * len(content)))])
    missing = f"{len(content) - path.stat().st_size:,} of {len(content):,} bytes are missing"
    refuse(path, rf"the file is truncated: {missing if part else '20 bytes do not hold its header'}; fetch it again")


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_truncated_torch_file(tmp_path: Path, zipped: bool, part: float) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": LDM}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: max(20, int(part * len(content)))])
    refuse(path, r"the file is truncated.*; fetch it again")


@pytest.mark.parametrize("length", [1, 2, 10, 30, 60, 100, 200, 300, 400])
def test_the_beginning_of_a_pickle(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"a": torch.zeros(100)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:length])
    refuse(path, "truncated|holds a (int|dict|tuple)|holds no tensors")


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("photo.txt", "hello")
    refuse(path, r"a zip archive of something else than weights, of 1 files \(photo\.txt")


def test_no_length_of_a_header_makes_safetensors_another_kind_of_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", LDM)
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length], content[8 + length :]
    for wanted in (0x8080, 0x4B50 + 0x10000):  # begin like a pickle, and like a zip
        path.write_bytes(struct.pack("<Q", wanted) + header.ljust(wanted) + data)
        assert path.read_bytes()[:2] in (b"\x80\x80", b"PK")
        assert load_weights(path).layout == "ldm"


def test_a_safetensors_header_of_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\x00" * 4)
    refuse(path, "truncated or damaged")
    write(path, {}, {"a": "b"})
    refuse(path, "holds no tensors")


@pytest.mark.parametrize(("content", "kind"), [([torch.zeros(3)], "list"), (torch.zeros(3), "Tensor"), (3, "int")])
def test_a_torch_file_of_something_else(tmp_path: Path, content: Any, kind: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", rf"the file holds a {kind}, not named tensors\.$")


@pytest.mark.parametrize("content", [{}, {"a": 1}, {"state_dict": {}}])
def test_a_torch_file_without_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", r"the file holds no tensors\.$")


# Files of tensors that are not quite those of a VAE


@pytest.mark.parametrize("layout", [LDM, DIFFUSERS], ids=["ldm", "diffusers"])
@pytest.mark.parametrize("key", ["encoder.conv_in.bias", "decoder.conv_out.bias", "post_quant_conv.weight"])
def test_a_missing_tensor(tmp_path: Path, layout: dict[str, Tensor], key: str) -> None:
    path = write(tmp_path / "x.safetensors", {k: v for k, v in layout.items() if k != key})
    refuse(path, rf"missing tensor {key}\.$")


def test_every_missing_tensor_is_named_up_to_a_limit(tmp_path: Path) -> None:
    def lacking(*starts: str) -> Path:
        return write(tmp_path / "x.safetensors", {k: v for k, v in LDM.items() if not k.startswith(starts)})

    refuse(lacking("encoder.norm_out", "decoder.norm_out"), r"missing tensors decoder\.norm_out\.bias, .*, .*weight\.$")
    refuse(lacking("encoder.down.2.block.1"), r"missing tensors (\S+, ){7}\S+\.$")
    refuse(lacking("encoder.down.2.block.1", "encoder.down.1.block.1"), r"missing tensors (\S+, ){7}\S+ and 8 more\.$")


@pytest.mark.parametrize(
    "start",
    ["encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "encoder.down.0", "encoder.down.", "decoder.up."],
)
def test_a_missing_piece_that_tells_the_architecture(tmp_path: Path, start: str) -> None:
    path = write(tmp_path / "x.safetensors", {k: v for k, v in LDM.items() if not k.startswith(start)})
    refuse(path, "missing|not a whole VAE|unexpected|not the weights of a whole VAE")


def test_an_unexpected_tensor(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {**LDM, "decoder.extra.weight": torch.zeros(3)})
    refuse(path, r"unexpected tensor decoder\.extra\.weight\.$")
    path = write(tmp_path / "x.safetensors", {**DIFFUSERS, "decoder.time_embedding.weight": torch.zeros(3)})
    refuse(path, r"unexpected tensor decoder\.time_embedding\.weight\.$")


def test_a_misshapen_tensor(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {**LDM, "decoder.norm_out.bias": torch.zeros(7)})
    refuse(path, r"misshapen tensor decoder\.norm_out\.bias \[7\] instead of \[32\]\.$")
    path = write(tmp_path / "x.safetensors", {**LDM, "encoder.conv_in.weight": torch.zeros(32, 27)})
    refuse(path, r"encoder\.conv_in\.weight is missing or is no convolution")
    path = write(tmp_path / "x.safetensors", {**LDM, "encoder.conv_in.weight": torch.zeros(48, 3, 3, 3)})
    refuse(path, "whole VAE|32 groups")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_tensor_that_is_not_finite(tmp_path: Path, value: float) -> None:
    broken = torch.zeros(32)
    broken[5] = value
    path = write(tmp_path / "x.safetensors", {**LDM, "decoder.norm_out.bias": broken})
    refuse(path, r"NaN or infinity in the tensor decoder\.norm_out\.bias\.$")


@pytest.mark.slow
def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    tensors = {**LDM, "decoder.extra.bias": torch.zeros(3), "decoder.norm_out.bias": torch.zeros(7)}
    del tensors["encoder.norm_out.bias"]
    message = refuse(write(tmp_path / "x.safetensors", tensors), "these are not the weights of a whole VAE")
    for part in ("missing tensor encoder.norm_out.bias", "unexpected tensor decoder.extra.bias", "misshapen tensor"):
        assert part in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float8_e8m0fnu])
def test_tensors_that_are_no_usual_floats(tmp_path: Path, dtype: torch.dtype) -> None:
    path = write(tmp_path / "x.safetensors", {**LDM, "decoder.norm_out.bias": torch.zeros(32).to(dtype)})
    refuse(path, rf"{str(dtype).removeprefix('torch.')}, .* in the tensor decoder\.norm_out\.bias\.$")


def test_widths_that_need_their_groups_said(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", tensors_of(kl(SMALL)))
    refuse(path, r"8, 16 channels can't be normalised in the usual 32 groups, .* put its config\.json beside it\.$")
    (tmp_path / "config.json").write_text('{"norm_num_groups": 4}')
    assert load_weights(path).module.config == SMALL
    for groups in ("5", '"four"', "0", "-1"):
        (tmp_path / "config.json").write_text(f'{{"norm_num_groups": {groups}}}')
        refuse(path, "groups")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00\x80", b"\x80\x81"])
def test_a_damaged_config_beside_the_weights(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "x.safetensors", LDM)
    (tmp_path / "config.json").write_bytes(content)
    refuse(path, r"config\.json.* is not valid JSON")


# What people give instead of a VAE


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.out.2.bias"], "a denoiser"),
        (["conv_in.weight", "time_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight"], "a denoiser"),
        (["transformer_blocks.0.attn.to_q.weight"], "a denoiser"),
        (["lora_unet_down_blocks_0_attentions_0.lora_down.weight", "lora_unet_mid.alpha"], "a LoRA"),
        (["transformer.single_blocks.0.attn.to_q.lora_A.weight"], "a LoRA"),
        (["unet.up_blocks.0.attentions.0.processor.to_q.lora.up.weight"], "a LoRA"),
        (["text_model.embeddings.token_embedding.weight"], "a text encoder"),
        (["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"], "a text encoder"),
        (["control_model.input_hint_block.0.weight"], "a ControlNet"),
    ],
)
def test_other_models_are_named(tmp_path: Path, keys: list[str], what: str) -> None:
    path = write(tmp_path / "x.safetensors", {key: torch.zeros(4, 4) for key in keys})
    refuse(path, rf"the file holds {what}.*, not a VAE\.$")


def test_unknown_models_have_their_keys_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {f"fc{i}.weight": torch.zeros(2) for i in range(12)})
    refuse(path, r"the file holds no VAE: its tensors fc0\.weight, .* and 4 more\.$")


@pytest.mark.slow
def test_batch_norm_statistics_that_can_not_be(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    mean, var = torch.zeros(16), torch.ones(16)
    steps = torch.tensor(3)
    write(path, {**LDM, "bn.running_mean": mean, "bn.num_batches_tracked": steps})
    refuse(path, r"missing tensor bn\.running_var\.$")
    write(path, {**LDM, "bn.running_mean": mean})
    refuse(path, r"missing tensor bn\.running_var\.$")
    write(path, {**LDM, "bn.running_mean": torch.zeros(8), "bn.running_var": torch.ones(8)})
    refuse(path, "8 batch-norm statistics do not fit 4 latent channels")
    write(path, {**LDM, "bn.running_mean": mean, "bn.running_var": torch.full((16,), float("nan"))})
    refuse(path, "what it says about its latents is damaged")
    write(path, {**LDM, "bn.running_mean": mean, "bn.running_var": torch.ones(12)})
    refuse(path, "what it says about its latents is damaged")
    write(path, {**LDM, "bn.running_mean": mean, "bn.running_var": var})
    assert load_weights(path).format is not None


# Tiny and folded ones


@pytest.mark.parametrize("key", ["encoder.14.weight", "decoder.1.weight", "encoder.3.conv.0.weight", "decoder.19.bias"])
@pytest.mark.parametrize("parts", ["both", "half"])
def test_a_taesd_without_a_tensor(tmp_path: Path, key: str, parts: str) -> None:
    side = key.split(".")[0]
    tensors = {k: v for k, v in tensors_of(tiny()).items() if parts == "both" or k.startswith(side)}
    del tensors[key]
    refuse(write(tmp_path / "x.safetensors", tensors), "missing|TAESD|no VAE")


def test_a_taesd_with_a_stranger(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {**tensors_of(tiny()), "decoder.extra.weight": torch.zeros(3)})
    refuse(path, r"unexpected tensor decoder\.extra\.weight in a TAESD\.$")


def test_any_other_sequence_of_layers(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", {"0.weight": torch.zeros(8, 3, 3, 3), "2.weight": torch.zeros(8, 8, 3, 3)})
    refuse(tmp_path / "x.safetensors", r"encoder\.14\.weight is missing")


def test_a_folded_network_is_known_by_its_tensors(tmp_path: Path) -> None:
    config = FoldedConfig(z_channels=3, ch=(8, 12), encoder_blocks=(1, 2), decoder_blocks=(3, 1))
    path = write(tmp_path / "x.safetensors", tensors_of(make_network(config)))
    assert load_weights(path).module.config == config


def test_a_folded_network_without_a_tensor(tmp_path: Path) -> None:
    config = FoldedConfig(ch=(8, 8))
    tensors = tensors_of(make_network(config))
    del tensors["decoder.conv_out.bias"]
    path = write(tmp_path / "x.safetensors", tensors, {"calotype_config": json.dumps(config.to_dict())})
    refuse(path, r"missing tensor decoder\.conv_out\.bias\.$")


@pytest.mark.parametrize(
    "value", ["", "{", "[]", "3", '{"kind": "x"}', '{"kind": "scale_shift", "scaling_factor": "a"}']
)
def test_damaged_metadata(tmp_path: Path, value: str) -> None:
    path = write(tmp_path / "x.safetensors", LDM, {"calotype_latent_format": value or "x"})
    refuse(path, "what it says about its latents is damaged")


# Folders


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    refuse(tmp_path, "this folder holds 0 weight files; give one with a VAE in it")


def test_a_folder_with_three_files(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.safetensors", LDM)
    refuse(tmp_path, "this folder holds 3 weight files; .* or name the file itself")


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_folder_with_the_same_half_twice(tmp_path: Path, side: str) -> None:
    own = ("encoder", "quant") if side == "encoder" else ("decoder", "post")
    for i in range(2):
        write(tmp_path / f"{i}.safetensors", {k: v for k, v in LDM.items() if k.startswith(own)})
    refuse(tmp_path, "its two weight files are not the encoder and the decoder of one VAE; name the file itself")


def test_a_folder_with_halves_of_different_families(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", {k: v for k, v in LDM.items() if k.startswith(("encoder", "quant"))})
    write(tmp_path / "b.safetensors", {k: v for k, v in tensors_of(tiny()).items() if k.startswith("decoder")})
    refuse(tmp_path, "are not the encoder and the decoder of one VAE")


def test_a_folder_with_halves_that_do_not_fit(tmp_path: Path) -> None:
    other = tensors_of(kl(type(NARROW)(ch=32, z_channels=8)))
    write(tmp_path / "a.safetensors", {k: v for k, v in LDM.items() if k.startswith(("encoder", "quant"))})
    write(tmp_path / "b.safetensors", {k: v for k, v in other.items() if k.startswith(("decoder", "post"))})
    refuse(tmp_path, r"misshapen tensors decoder\.conv_in\.weight")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="everything may be read here")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", LDM)
    path.chmod(0)
    refuse(path, "may not be read; check its permissions")
