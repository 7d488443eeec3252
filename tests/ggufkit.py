"""GGUF files as ggml writes them, made by hand: so that a test can say anything in them, true or not."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from torch import Tensor

Type = gguf.GGMLQuantizationType


class Written(NamedTuple):
    """A tensor of a file.

    Attributes:
        sizes: fastest dimension first.
        offset: where its numbers stand after those before it, unless it is given.
    """

    name: bytes
    sizes: tuple[int, ...]
    type_: int
    content: bytes
    offset: int | None = None


def text(content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(content)) + content


def key(name: str, type_: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", type_) + value


def says(name: str, value: str) -> bytes:
    return key(name, 8, text(value))


def numbers(name: str, values: Iterable[int]) -> bytes:
    values = list(values)
    return key(name, 9, struct.pack(f"<IQ{len(values)}i", 5, len(values), *values))


def file(
    tensors: Iterable[Written],
    values: Iterable[bytes] = (),
    *,
    version: int = 3,
    magic: bytes = b"GGUF",
    count: int | None = None,
    keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file; `count` and `keys` are what it claims of tensors and values."""
    tensors, values = list(tensors), list(values)
    entries, data = b"", b""
    for one in tensors:
        at = len(data) if one.offset is None else one.offset
        entries += text(one.name) + struct.pack(f"<I{len(one.sizes)}Q", len(one.sizes), *one.sizes)
        entries += struct.pack("<IQ", one.type_, at)
        data += one.content + bytes(-len(one.content) % alignment)
    head = magic + struct.pack(
        "<IQQ", version, len(tensors) if count is None else count, len(values) if keys is None else keys
    )
    head += b"".join(values) + entries
    return head + bytes(-len(head) % alignment) + data


def as_ggml(shape: Iterable[int]) -> tuple[int, ...]:
    """A shape as ggml has it, fastest dimension first: four at most, and none of one at the end."""
    shape = list(shape)
    if len(shape) == 5:
        shape = [shape[0] * shape[1], *shape[2:]]
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return tuple(reversed(shape or [1]))


def quantised(tensor: Tensor, type_: Any) -> bytes:
    array = np.ascontiguousarray(tensor.float().numpy())
    return gguf.quantize(array.reshape(-1, array.shape[-1] if array.ndim else 1), type_).tobytes()


def dequantised(tensor: Tensor, type_: Any) -> Tensor:
    """What becomes of a tensor on the way to a type and back, as the package has it."""
    array = tensor.float().numpy().reshape(-1, tensor.shape[-1])
    return torch.from_numpy(gguf.dequantize(gguf.quantize(array, type_), type_).reshape(tensor.shape).copy())


def as_written(tensors: Mapping[str, Tensor], type_: Any = Type.F32, prefix: str = "") -> list[Written]:
    """Tensors as stable-diffusion.cpp converts them: what has rows of whole blocks, and is no bias, becomes a type."""
    block = gguf.GGML_QUANT_SIZES[type_][0]
    found = []
    for name, tensor in tensors.items():
        sizes = as_ggml(tensor.shape)
        own = Type.F32 if name.endswith("bias") or sizes[0] % block else type_
        found.append(Written((prefix + name).encode(), sizes, own, quantised(tensor.reshape(sizes[::-1]), own)))
    return found


def write(path: Path, tensors: Iterable[Written], values: Iterable[bytes] = ()) -> Path:
    path.write_bytes(file(tensors, values))
    return path
