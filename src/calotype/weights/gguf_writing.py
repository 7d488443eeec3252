"""Tensors written as GGUF, as stable-diffusion.cpp reads it: the same tensors and metadata give the same bytes.

ggml (ggml-org/ggml, docs/gguf.md) has four dimensions at most: of five, the two slowest are written as one, as
stable-diffusion.cpp has it, and the shape is noted under ComfyUI-GGUF's key, by which it comes back.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from calotype.errors import UsageError
from calotype.files import StrPath, as_text, writing
from calotype.weights.container import GGUF
from calotype.weights.gguf_file import ALIGNMENT, ARRAY, PLAIN, SHAPE, TEXT, restored
from calotype.weights.mapped import dtype_name

VERSION = 3
INT32 = 5  # of values
DIMENSIONS = 4
_TYPES = {dtype: type_ for type_, dtype in PLAIN.items()}


def write_gguf(path: StrPath, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Writes tensors to a GGUF file; what was there is replaced by a whole one only.

    Raises:
        UsageError: a dtype that the format does not have, a missing folder, or `path` is no ordinary file.
        StorageError: the disk refuses it.
    """
    with writing(path) as file:
        file.writelines(gguf_parts(tensors, metadata))
    return Path(path)


def gguf_parts(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of such a file: its header, and then every tensor, in the order of their names.

    Args:
        tensors: on any device and of any strides; only what is not contiguous, or not on the CPU, is copied.

    Raises:
        UsageError: a dtype that the format does not have.
    """
    for key, tensor in tensors.items():
        if tensor.dtype not in _TYPES:
            raise UsageError(f"GGUF has no {dtype_name(tensor.dtype)}, which {key!r} is of; give --dtype float32.")
    keys = sorted(tensors)
    values = [
        _text(as_text(key)) + struct.pack("<I", TEXT) + _text(as_text(value)) for key, value in (metadata or {}).items()
    ]
    read = restored({key: _four(tensors[key].shape) for key in keys})
    entries, end = [], 0
    for key in keys:
        shape = _four(tensors[key].shape)
        if (read[key] != tuple(tensors[key].shape) and tensors[key].ndim) or len(shape) < tensors[key].ndim:
            numbers = struct.pack(f"<IQ{tensors[key].ndim}i", INT32, tensors[key].ndim, *tensors[key].shape)
            values.append(_text(SHAPE + key) + struct.pack("<I", ARRAY) + numbers)
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        entries.append(_text(key) + sizes + struct.pack("<IQ", _TYPES[tensors[key].dtype], end))
        end += tensors[key].nbytes + _lacking(tensors[key].nbytes)
    header = GGUF[0] + struct.pack("<IQQ", VERSION, len(keys), len(values)) + b"".join([*sorted(values), *entries])
    yield header + bytes(_lacking(len(header)))
    for key in keys:
        plain = tensors[key].detach().cpu().contiguous()
        yield plain.reshape(-1).view(torch.uint8).numpy().data
        yield bytes(_lacking(plain.nbytes))


def _four(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as ggml can have it."""
    if not shape:
        return (1,)
    while len(shape) > DIMENSIONS:
        shape = (shape[0] * shape[1], *shape[2:])
    return tuple(shape)


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _lacking(size: int) -> int:
    """Bytes to the next tensor."""
    return -size % ALIGNMENT
