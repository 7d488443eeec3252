"""Files of other kinds are told by what they are and what to do; shards and variants of a folder are put in order."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from support import diffusers_tensors, import_diffusers, kl, one_sentence, same_tensors, tensors_of, write
from torch import nn

from calotype.errors import UsageError, WeightsError
from calotype.families.kl.config import AutoencoderConfig
from calotype.weights.container import SAFE_DTYPES, SafetensorsFile, open_container
from calotype.weights.load import load_weights

CONFIG = AutoencoderConfig(ch=32, ch_mult=(1,), num_res_blocks=1)
MODULE, OTHER = kl(CONFIG, 1), kl(CONFIG, 2)
LDM = tensors_of(MODULE)
DIFFUSERS, DIFFUSERS_OTHER = diffusers_tensors(MODULE), diffusers_tensors(OTHER)
STABLE = "diffusion_pytorch_model"


def refused(path: Path, message: str, error: type[Exception] = WeightsError, **more: Any) -> None:
    with pytest.raises(error, match=message) as caught:
        load_weights(path, **more)
    one_sentence(str(caught.value))
    assert str(caught.value).startswith(str(path))
    assert "truncated" not in str(caught.value)


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x" * 10)
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


XML = b'<?xml version="1.0"?>\n'
# (content, name, what is said)
FILES: list[tuple[Callable[[], bytes] | bytes, str, str]] = [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "a.safetensors", "Git LFS.*git lfs pull"),
    (b"<!DOCTYPE html><html>404</html>", "a.ckpt", "a web page, not weights.*download the file itself"),
    (b"\xef\xbb\xbf\n  <html lang='en'>", "a.pt", "a web page, not weights"),
    (b'{"error": "Repository not found"}', "a.safetensors", r"answer of a server.*\(Repository not found\).*a login"),
    (b'{"detail":"Not authenticated"}', "a.pt", "answer of a server.*Not authenticated"),
    (b'{"_class_name": "AutoencoderKL"}', "config.json", "a configuration.*give the folder it lies in"),
    (b'[{"a": 1}]', "a.json", "this is JSON, not weights"),
    (XML + b"<Error><Code>AccessDenied</Code></Error>", "a.safetensors", r"this is XML, not weights \(AccessDenied"),
    (b"Entry not found", "a.safetensors", r"this is text, not weights \(Entry not found\)"),
    (b"Access to model x is restricted. Log in.", "a.bin", "this is text, not weights .Access to model"),
    (b"GGUF" + bytes(40), "a.gguf", "a GGUF file of version 0, and 2 and 3 are read"),
    (b"lmgg" + bytes(40), "a.bin", "old version of ggml"),
    (npy, "a.npy", "a single numpy array"),
    (lambda: zipped("photo.txt"), "a.pt", r"zip archive of something else than weights, of 1 files \(photo\.txt"),
    (lambda: zipped(), "a.pt", "zip archive of something else than weights without files"),
    (lambda: zipped("vae/sdxl.safetensors", "b.pt"), "a.zip", r"holds vae/sdxl\.safetensors and 1 more; unpack it"),
    (lambda: zipped("config.json", "model.weights.h5"), "a.keras", "this is no whole h5 file of Keras weights"),
    (lambda: zipped("Manifest.json", "Data/model.mlmodel"), "a.zip", "a Core ML model"),
    (lambda: zipped("x/data.pkl", "x/constants.pkl", "x/code/a.py"), "a.pt", r"TorchScript.*torch\.jit\.load"),
    (lambda: zipped("x/archive_format", "x/serialized_exported_program.json"), "a.pt2", r"program of torch\.export"),
    (lambda: zipped("x/.data/extern_modules", "x/a.py"), "a.pt", r"a package of torch\.package"),
    (tar, "a.tar", "a tar archive; unpack it"),
    (lambda: gzip.compress(b"x"), "a.ckpt.gz", "a gzip archive; unpack it"),
    (b"BZh91AY" + bytes(20), "a.bz2", "a bzip2 archive; unpack it"),
    (b"\xfd7zXZ\0" + bytes(20), "a.xz", "an xz archive; unpack it"),
    (b"\x28\xb5\x2f\xfd" + bytes(20), "a.zst", "a Zstandard archive; unpack it"),
    (b"7z\xbc\xaf\x27\x1c" + bytes(20), "a.7z", "a 7z archive; unpack it"),
    (b"Rar!\x1a\x07" + bytes(20), "a.rar", "a RAR archive; unpack it"),
    (b"\x89PNG\r\n\x1a\n" + bytes(100), "a.safetensors", "a picture .PNG., not weights"),
    (b"\xff\xd8\xff\xe0" + bytes(100), "a.pt", "a picture .JPEG., not weights"),
    (b"%PDF-1.7" + bytes(100), "a.pt", "a PDF document"),
    (b"\x01\x02" * 40, "model.onnx_data", "numbers of an ONNX model"),
    (b"ftrt" + bytes(60), "a.engine", "a TensorRT engine"),
    (b"\x01\x02" * 40, "vae.plan", "a TensorRT engine"),
    (b"\x01\x02" * 40, "model.ckpt.data-00000-of-00001", "part of a TensorFlow checkpoint"),
    (b"\x01\x02" * 40, "model.ckpt.index", "part of a TensorFlow checkpoint"),
    (b"\x08\x01\x12\x02" * 40, "saved_model.pb", "a TensorFlow model"),
    (b"\x01\x02" * 40, "vae.mlmodel", "a Core ML model"),
    (b"\x01\x02" * 40, "vae.safetensors.part", "a download that has not finished"),
    (lambda: zipped("x/data.pkl"), "__0_0.distcp", r"checkpoint of torch\.distributed.*dcp_to_torch"),
    (bytes(4096), "vae.safetensors", "begins with nothing but zeros"),
]


@pytest.mark.parametrize(
    ("content", "name", "said"), FILES, ids=[f"{i}-{name}" for i, (_, name, _) in enumerate(FILES)]
)
def test_files_of_other_kinds(tmp_path: Path, content: Any, name: str, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content())
    refused(path, said)


def test_real_torchscript(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        torch.jit.save(torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)), tmp_path / "vae.jit")
    refused(
        tmp_path / "vae.jit",
        r"a TorchScript archive.*torch\.save\(torch\.jit\.load\(FILE\)\.state_dict\(\), 'vae\.pt'\)",
    )


def test_all_files_that_other_programs_wrote_are_read(shared: Path) -> None:
    names = [
        "flax.msgpack", "sdcpp_f16.gguf", "sdcpp-real-q8_0.gguf", "keras-hub.weights.h5", "mflux", "onnx-optimum",
        "openvino", "fp8_e4m3fn.safetensors", "fp8_weight_scale.safetensors",
    ]  # fmt: skip
    there = [name for name in names if (shared / "files" / name).exists()]
    if not there:
        pytest.skip("there are no such files")
    for name in there:
        assert load_weights(shared / "files" / name).parts == {"encoder", "decoder"}


# safetensors


@pytest.mark.parametrize("count", [1, 12, 4096])
def test_bytes_after_the_last_tensor(tmp_path: Path, count: int) -> None:
    path = write(tmp_path / "x.safetensors", LDM)
    path.write_bytes(path.read_bytes() + bytes(count))
    loaded = load_weights(path)
    assert same_tensors(loaded.module, MODULE)
    assert loaded.notices == (f"{path}: {count:,} bytes too many after the last tensor, which were left out.",)


def test_every_type_is_read_as_safetensors_reads_it(tmp_path: Path) -> None:
    tensors = {}
    for name, dtype in SAFE_DTYPES.items():
        numbers = torch.randint(0, 2 if dtype == torch.bool else 256, (3 * dtype.itemsize, 5), dtype=torch.uint8)
        tensors[name] = numbers.flatten().view(dtype).reshape(3, 5)
    path = write(
        tmp_path / "x.safetensors", {**tensors, "empty": torch.empty(0, 3), "scalar": torch.tensor(2.5)}, {"a": "b"}
    )
    ours = SafetensorsFile(path)
    with safe_open(path, "pt") as theirs:  # type: ignore[no-untyped-call]
        assert ours.shapes.keys() == set(theirs.keys())
        assert ours.metadata == theirs.metadata()
        for key in ours.shapes:
            expected = theirs.get_tensor(key)
            read = ours.read(key)
            assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
            assert read.contiguous().flatten().view(torch.uint8).equal(expected.flatten().view(torch.uint8)), key


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]},
        {"shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        [1, 2],
        "x",
    ],
)
def test_headers_that_safetensors_refuses_are_refused(tmp_path: Path, entry: Any) -> None:
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(SafetensorError):
        safe_open(path, "pt")
    with pytest.raises(WeightsError, match="damaged"):
        open_container(path)


# Shards


def test_shards_of_diffusers(tmp_path: Path) -> None:
    diffusers = import_diffusers()
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), layers_per_block=1)
    vae.save_pretrained(tmp_path / "one")
    vae.save_pretrained(tmp_path / "many", max_shard_size="100KB")
    vae.save_pretrained(tmp_path / "pipe" / "vae", max_shard_size="100KB")
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    expected = load_weights(tmp_path / "one")
    index = tmp_path / "many" / f"{STABLE}.safetensors.index.json"
    for path in (tmp_path / "many", tmp_path / "pipe", files[0], files[-1], index):
        loaded = load_weights(path)
        assert loaded.sha256 == expected.sha256
        assert loaded.format == expected.format
        assert len(loaded.files) == len(files)
    files[1].unlink()
    for path in (index, files[0]):
        refused(path, rf"one of {len(files)} shards, and {files[1].name} is not beside it; fetch all of them")
    with pytest.raises(WeightsError, match="shards"):
        load_weights(tmp_path / "many")


def test_shards_of_torch_files(tmp_path: Path) -> None:
    keys = list(DIFFUSERS)
    for i, part in enumerate((keys[:50], keys[50:]), 1):
        torch.save({k: DIFFUSERS[k] for k in part}, tmp_path / f"pytorch_model-{i:05}-of-00002.bin")
    assert same_tensors(load_weights(tmp_path).module, MODULE)
    (tmp_path / "x.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}')
    refused(tmp_path / "x.index.json", "no index of shards")


# Variants


def variants(folder: Path, *names: str) -> Path:
    for name in names:
        raw = "non_ema" in name
        tensors = DIFFUSERS_OTHER if raw else DIFFUSERS
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(name.split(".")[0], torch.float32)
        path = folder / f"{STABLE}{'.' if name else ''}{name}"
        if name.endswith("bin"):
            torch.save({k: v.to(dtype) for k, v in tensors.items()}, path)
        else:
            write(Path(f"{path}.safetensors"), {k: v.to(dtype) for k, v in tensors.items()})
    return folder


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("", "fp16", "bf16", "non_ema"), ""),
        (("fp16", "bf16", "non_ema"), "fp16"),
        (("bf16", "non_ema"), "bf16"),
        (("bf16", "fp16"), "fp16"),
        (("fp32", "fp16"), "fp32"),
        (("non_ema",), "non_ema"),
        (("ema",), "ema"),
        (("mine",), "mine"),
        (("ema", "non_ema"), "ema"),
    ],
)
def test_variants_of_a_folder(tmp_path: Path, names: tuple[str, ...], taken: str) -> None:
    loaded = load_weights(variants(tmp_path, *names))
    assert loaded.files == (tmp_path / f"{STABLE}{'.' if taken else ''}{taken}.safetensors",)
    others = ", ".join(sorted(set(names) - {taken}))
    if taken and others:
        assert f"was taken; {others} lie beside it: name a file itself to take another." in loaded.notices[0]
    else:
        assert loaded.notices == ()


def test_variants_that_are_raw_or_averaged(tmp_path: Path) -> None:
    folder = variants(tmp_path, "fp16", "non_ema")
    assert load_weights(folder, weights="raw").files[0].name == f"{STABLE}.non_ema.safetensors"
    assert load_weights(folder, weights="ema").files[0].name == f"{STABLE}.fp16.safetensors"
    folder = variants(tmp_path / "raw", "non_ema")
    assert same_tensors(load_weights(folder, weights="raw").module, OTHER)
    refused(folder, r"its weights are all raw \(non_ema\)", UsageError, weights="ema")


def test_variants_that_nothing_tells_apart(tmp_path: Path) -> None:
    refused(variants(tmp_path, "mine", "yours"), "several variants, mine, yours; name the file itself")


def test_folders_of_other_programs(tmp_path: Path) -> None:
    (tmp_path / "vae_decoder").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "vae_decoder" / "model.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    refused(tmp_path, r"vae_decoder/model\.onnx: this is a pointer of Git LFS")
    (tmp_path / "coreml" / "vae.mlpackage").mkdir(parents=True)
    refused(tmp_path / "coreml", "a Core ML model")


@pytest.mark.parametrize("name", ["AudioLDM2Pipeline", "MusicLDMPipeline", "StableAudioPipeline"])
def test_pipelines_for_sound(tmp_path: Path, name: str) -> None:
    write(tmp_path / "vae" / f"{STABLE}.safetensors", DIFFUSERS)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    refused(tmp_path, rf"a pipeline for sound \({name}\)")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert same_tensors(load_weights(tmp_path).module, MODULE)
