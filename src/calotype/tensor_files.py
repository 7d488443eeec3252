"""Tensors written as safetensors: the same tensors and metadata give the same bytes, whenever and wherever.

The format is that of safetensors (huggingface/safetensors, README.md, "Format"): the length of the header in eight
bytes, little-endian; the header, JSON, padded with spaces to a multiple of eight; then the tensors without holes. They
stand in the order in which safetensors itself writes them, so a file differs from its in the order of the metadata
only: theirs changes from call to call, here it is that of the names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calotype.errors import CalotypeError, StorageError, UsageError
from calotype.files import StrPath, as_text, writing

# In safetensors' order (tensor.rs, Dtype), in which larger elements come later: written from the last to the first,
# every tensor begins at a multiple of its element's size.
_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
_ORDER = {dtype: place for place, dtype in enumerate(_NAMES)}


def write_safetensors(
    path: StrPath,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    error: type[CalotypeError] = StorageError,
) -> Path:
    """Writes tensors, of any device and strides, to a safetensors file; what was there is replaced by a whole one only.

    They are written one after another from where they lie: only what is not contiguous, or not on the CPU, is copied.

    Args:
        metadata: of the file. What is no text in it (in names of files) stands as escape sequences.

    Raises:
        UsageError: a dtype that the format does not have, a missing folder, or `path` is no ordinary file.
        error: the disk refuses it.
    """
    with writing(path, error) as file:
        for part in safetensors_parts(tensors, metadata):
            file.write(part)
    return Path(path)


def safetensors_parts(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[memoryview]:
    """The bytes of such a file: its header, and then every tensor.

    Raises:
        UsageError: a dtype that the format does not have.
    """
    for key, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise UsageError(f"safetensors has no {str(tensor.dtype).removeprefix('torch.')}, which {key!r} is of.")
    keys = sorted(tensors, key=lambda key: (-_ORDER[tensors[key].dtype], key))
    told = {as_text(key): as_text(value) for key, value in sorted((metadata or {}).items())}
    header: dict[str, Any] = {"__metadata__": told} if told else {}
    end = 0
    for key in keys:
        start, end = end, end + tensors[key].nbytes
        header[key] = {
            "dtype": _NAMES[tensors[key].dtype], "shape": list(tensors[key].shape), "data_offsets": [start, end]
        }  # fmt: skip
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for key in keys:
        plain = tensors[key].detach().resolve_conj().resolve_neg().cpu().contiguous()
        yield plain.reshape(-1).view(torch.uint8).numpy().data
