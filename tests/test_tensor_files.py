"""Safetensors in one order: read by the library, and byte by byte what it writes but for the metadata's order."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from support import one_sentence, room
from torch import Tensor

from calotype.errors import LatentsError, StorageError, UsageError
from calotype.tensor_files import safetensors_parts, write_safetensors

DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.float8_e5m2, torch.float8_e4m3fn, torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz, torch.int16, torch.uint16, torch.float16, torch.bfloat16, torch.int32, torch.uint32,
    torch.float32, torch.complex64, torch.float64, torch.int64, torch.uint64,
)  # fmt: skip


def tensors() -> dict[str, Tensor]:
    """Of every dtype in an order of chance, with odd sizes, empty ones, single numbers and strange names."""
    made = {str(dtype): torch.randn(3, 5).mul(40).abs().to(dtype) for dtype in DTYPES}
    made |= {"b": torch.zeros(0, 3), "a": torch.tensor(3.0), 'ü "\n\x7f': torch.randn(1, 7), "Z": torch.randn(3).half()}
    keys = list(made)
    random.Random(0).shuffle(keys)
    return {key: made[key] for key in keys}


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"ä/\\": '\x01\x7f"\u2028\U0001f600\n'}])
def test_the_bytes_are_the_librarys(metadata: dict[str, str] | None) -> None:
    made = tensors()
    theirs = save(made, metadata or None)
    assert b"".join(safetensors_parts(made, metadata)) == theirs


def test_metadata_are_in_order(tmp_path: Path) -> None:
    entries = [(f"key {i}", f"value {i}") for i in range(20)]
    files = set()
    for seed in range(5):
        random.Random(seed).shuffle(entries)
        path = write_safetensors(tmp_path / "out.safetensors", {"x": torch.zeros(2)}, dict(entries))
        files.add(path.read_bytes())
    assert len(files) == 1
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == dict(entries)


def test_it_is_read_back_bit_by_bit(tmp_path: Path) -> None:
    made = tensors()
    found = load_file(write_safetensors(tmp_path / "out.safetensors", made, {"a": "1", "b": "2"}))
    assert found.keys() == made.keys()
    for key, tensor in made.items():
        assert found[key].dtype == tensor.dtype
        assert found[key].shape == tensor.shape
        assert torch.equal(found[key].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_tensors_begin_where_their_elements_may(tmp_path: Path) -> None:
    content = write_safetensors(tmp_path / "x.safetensors", tensors()).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, end = json.loads(content[8 : 8 + length]), 0
    assert length % 8 == 0
    for key, one in header.items():
        start, stop = one["data_offsets"]
        assert start == end, "there is a hole"
        assert stop == start or start % tensors()[key].element_size() == 0
        end = stop
    assert end == len(content) - 8 - length


@pytest.mark.parametrize("tensor", [
    torch.randn(4, 6).t(), torch.randn(4, 6)[:, ::2], torch.randn(1, 3).expand(4, 3),
    torch.randn(3, 2).requires_grad_(),
    torch.randn(4, 4, dtype=torch.complex64).conj(), torch.randn(4, dtype=torch.complex64).conj().imag,
    torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
])  # fmt: skip
def test_strides_are_no_matter(tensor: Tensor, tmp_path: Path) -> None:
    found = load_file(write_safetensors(tmp_path / "x.safetensors", {"x": tensor, "again": tensor}))
    assert torch.equal(found["x"], tensor)
    assert torch.equal(found["again"], tensor)


def test_what_lies_in_memory_in_order_is_not_copied() -> None:
    tensor = torch.zeros(1000)
    _, part = safetensors_parts({"x": tensor})
    tensor[3] = 1.5
    assert torch.frombuffer(bytearray(part), dtype=torch.float32)[3] == 1.5


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {"x": torch.zeros(1)}, {"name": "photo \udcff"})
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"name": r"photo \udcff"}


def test_a_dtype_that_the_format_has_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no complex128, which 'x' is of\.$"):
        write_safetensors(tmp_path / "x.safetensors", {"x": torch.zeros(1, dtype=torch.complex128)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [StorageError, LatentsError])
def test_a_full_disk(error: type[StorageError | LatentsError], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    with room(10_000), pytest.raises(error, match=r"x\.safetensors can't be written: File too large; ") as caught:
        write_safetensors(path, {"x": torch.zeros(10_000)}, error=error)
    one_sentence(str(caught.value))
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["x.safetensors"]
