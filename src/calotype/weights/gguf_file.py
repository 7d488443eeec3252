"""GGUF files, of which only the tensors that are asked for are read, and nothing is believed before it is checked.

The format is ggml's (ggml-org/ggml, docs/gguf.md), of versions 2 and 3, little-endian. Its header is parsed here: the
reader of the `gguf` package trusts the counts in it. Quantised tensors become float32 as that package's
`gguf.quants.dequantize` has it, and it is imported for them alone.

ggml has four dimensions at most, and none of one at the slow end. What writes GGUF with it, as stable-diffusion.cpp
does, merges the two slowest of a kernel's five ([O * I, T, H, W]) and forgets the first of [1, I, H, W]; the bias
beside a kernel tells O. Tools that write more or other dimensions note them, as ComfyUI-GGUF's do, under
`comfy.gguf.orig_shape.NAME`.
"""

from __future__ import annotations

import importlib
import math
import re
import struct
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from calotype.damage import LONGEST_HEADER, damage, quoted
from calotype.errors import UsageError, WeightsError
from calotype.weights.container import DAMAGED, GGUF
from calotype.weights.mapped import bytes_of, dtype_name, map_file, part, strides, view

ALIGNMENT = 32  # of tensors in the file, where it does not say
SHAPE = "comfy.gguf.orig_shape."  # what begins the keys of shapes that ggml can't have

# ggml's numbers of types that need no arithmetic
PLAIN = {
    0: torch.float32,
    1: torch.float16,
    24: torch.int8,
    25: torch.int16,
    26: torch.int32,
    27: torch.int64,
    28: torch.float64,
    30: torch.bfloat16,
}
TEXT, ARRAY = 8, 9  # types of values
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
WHOLE = "BbHhIiQq"

MOST = 65_536  # tensors of a file, and its keys; models have some thousands
DIMENSIONS = 8
NAME, KEY = 1024, 65_535  # bytes
DEEPEST = 4  # arrays in arrays


class _Entry(NamedTuple):
    """A tensor as the header has it."""

    type_: int
    shape: tuple[int, ...]  # slowest dimension first, as in torch
    offset: int  # from the beginning of all tensors


class GgufFile:
    """A GGUF file, mapped into memory."""

    kind = "GGUF"

    def __init__(self, path: Path) -> None:
        self._whole = map_file(path)
        header = _Header(bytes_of(self._whole))
        self._entries, values = header.read()
        self._base = header.end(_alignment(values))
        self.metadata: Mapping[str, str] = {key: value for key, value in values.items() if isinstance(value, str)}
        self.notices: tuple[str, ...] = ()
        if beyond := self._beyond():
            self.notices = (f"{path}: {beyond:,} bytes too many after the last tensor, which were left out.",)
        self.shapes: Mapping[str, tuple[int, ...]] = self._shapes(values)

    def stored(self, key: str) -> str:
        type_ = self._entries[key].type_
        return dtype_name(PLAIN[type_]) if type_ in PLAIN else _name(type_)

    @damage(WeightsError, DAMAGED)
    def read(self, key: str) -> Tensor:
        entry, shape = self._entries[key], self.shapes[key]
        dtype = PLAIN.get(entry.type_, torch.float32)
        if 0 in shape:
            return torch.empty(shape, dtype=dtype)
        if entry.type_ not in PLAIN:
            return self._dequantised(key, entry).reshape(shape)
        start = self._base + entry.offset
        data = part(self._whole, start, start + math.prod(shape) * dtype.itemsize)
        return view(data, dtype, shape, strides(shape))

    def _dequantised(self, key: str, entry: _Entry) -> Tensor:
        name = _name(entry.type_)
        if not _installed():
            raise UsageError(
                f"{quoted(key)} is quantised ({name}), which takes the package gguf; install it with: "
                f"pip install 'calotype[gguf]'"
            )
        size = _size(entry)
        if size is None:
            raise WeightsError(f"{quoted(key)} is stored as {name}, which the package gguf does not know")
        quants = importlib.import_module("gguf.quants")
        start = self._base + entry.offset
        rows = np.frombuffer(bytes_of(part(self._whole, start, start + size)), np.uint8)
        rows = rows.reshape(math.prod(entry.shape[:-1]), -1)
        try:
            with np.errstate(all="ignore"):  # scales of a damaged file may be infinite, which is said later
                numbers = quants.dequantize(rows, quants.GGMLQuantizationType(entry.type_))
        except NotImplementedError:
            raise WeightsError(
                f"{quoted(key)} is stored as {name}, which the package gguf can't turn into numbers; get the weights "
                f"in float16 or float32"
            ) from None
        return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32))

    def _beyond(self) -> int:
        """Bytes after the last tensor and what aligns it.

        Raises:
            WeightsError: tensors reach beyond the end, or into each other.
        """
        end, last = 0, ""
        for offset, size, key in sorted((e.offset, _size(e) or 0, key) for key, e in self._entries.items()):
            if offset < end and size:
                raise WeightsError(
                    f"the file is damaged: its tensors {quoted(last, 60)} and {quoted(key, 60)} overlap; fetch it again"
                )
            if offset + size >= end:
                end, last = offset + size, key
        held = self._whole.nbytes() - self._base
        if end > held:
            raise WeightsError(
                f"the file is truncated: {end - held:,} of {self._base + end:,} bytes are missing; fetch it again"
            )
        known = all(_size(entry) is not None for entry in self._entries.values())
        return held - end if known and held - end >= ALIGNMENT else 0

    def _shapes(self, values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Shapes, as the file's metadata note them where they do.

        Raises:
            WeightsError: if such a shape is not that of the tensor's numbers.
        """
        shapes = restored({key: entry.shape for key, entry in self._entries.items()})
        for key in shapes:
            noted = values.get(SHAPE + key)
            if noted is None:
                continue
            if not isinstance(noted, tuple) or math.prod(noted) != math.prod(shapes[key]) or min(noted, default=1) < 0:
                raise WeightsError(
                    f"the file is damaged: the shape noted for {quoted(key, 60)} is not that of its numbers; "
                    f"fetch it again"
                )
            shapes[key] = noted
        return shapes


def restored(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of kernels as they were before ggml, as far as the biases beside them tell."""
    found = dict(shapes)
    for key, shape in shapes.items():
        stem, _, leaf = key.rpartition(".")
        bias = shapes.get(f"{stem}.bias", ())
        if leaf != "weight" or len(bias) != 1 or not shape:
            continue
        rows = bias[0]
        if len(shape) == 4 and rows and shape[0] != rows and shape[0] % rows == 0:
            found[key] = (rows, shape[0] // rows, *shape[1:])
        elif rows == 1 and (len(shape) == 3 or (len(shape) < 3 and re.search(r"conv(?!.*norm)", stem))):
            found[key] = (*(1,) * (4 - len(shape)), *shape)
    return found


class _Header:
    """The header of a file, read from its beginning to its end.

    Raises:
        WeightsError, ValueError: it is not whole, or claims what no header has.
    """

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._at = 0

    def read(self) -> tuple[dict[str, _Entry], dict[str, Any]]:
        """Its tensors, and values by their keys: texts, numbers, and short rows of whole numbers."""
        magic = bytes(self._content[self._take(4) : 4])
        (version,) = self._numbers("I")
        if magic != GGUF[0] or (version and version & 0xFFFF == 0):
            raise WeightsError(
                "this is a big-endian GGUF file, which is not read; turn it with the package gguf: "
                "gguf-convert-endian FILE little"
            )
        if version not in (2, 3):
            raise WeightsError(
                f"this is a GGUF file of version {version:,}, and 2 and 3 are read; convert the weights anew, or get "
                f"them as safetensors"
            )
        tensors, keys = self._numbers("QQ")
        for count, what in ((tensors, "tensors"), (keys, "keys")):
            if count > MOST:
                raise WeightsError(
                    f"the file is damaged: it claims {quoted(f'{count:,}', 30)} {what}, and no model has more than "
                    f"{MOST:,}; fetch it again"
                )
        values: dict[str, Any] = {}
        for _ in range(keys):
            key = self._text(KEY)
            if key in values:
                raise ValueError(f"the key {quoted(key, 60)} stands in it twice")
            values[key] = self._value(self._numbers("I")[0])
        entries: dict[str, _Entry] = {}
        for _ in range(tensors):
            name = self._text(NAME)
            if not name or "\0" in name or name in entries:
                raise ValueError(f"a tensor's name, {quoted(name, 60) or 'empty'}, can't be one, or stands in it twice")
            entries[name] = self._entry(name)
        return entries, values

    def end(self, alignment: int) -> int:
        """Where tensors begin."""
        return -(-self._at // alignment) * alignment

    def _take(self, count: int) -> int:
        """Where the next bytes are."""
        start, end = self._at, self._at + count
        if end > len(self._content):
            raise WeightsError(
                f"the file is truncated: {len(self._content):,} bytes do not hold its header; fetch it again"
            )
        if end > LONGEST_HEADER:
            raise WeightsError(
                f"the file is damaged: its header is longer than that of any weights ({LONGEST_HEADER:,} bytes); "
                f"fetch it again"
            )
        self._at = end
        return start

    def _numbers(self, codes: str) -> tuple[Any, ...]:
        form = f"<{codes}"
        return struct.unpack_from(form, self._content, self._take(struct.calcsize(form)))

    def _text(self, most: int) -> str:
        (length,) = self._numbers("Q")
        if length > most:
            raise ValueError(f"a name of {quoted(length, 30)} bytes")
        start = self._take(length)
        return bytes(self._content[start : start + length]).decode()

    def _value(self, type_: int, depth: int = 0) -> Any:
        if type_ in NUMBERS:
            return self._numbers(NUMBERS[type_])[0]
        if type_ == TEXT:
            (length,) = self._numbers("Q")
            start = self._take(length)
            return bytes(self._content[start : start + length]).decode("utf-8", "replace")
        if type_ != ARRAY or depth == DEEPEST:
            raise ValueError(f"a value of a type, {type_}, that GGUF does not have, or arrays {depth} deep")
        inner, count = self._numbers("IQ")
        if inner in NUMBERS:
            code = NUMBERS[inner]
            start = self._take(count * struct.calcsize(f"<{code}"))
            if count > DIMENSIONS or code not in WHOLE:
                return None
            return struct.unpack_from(f"<{count}{code}", self._content, start)
        for _ in range(count):  # each takes eight bytes at least
            self._value(inner, depth + 1)
        return None

    def _entry(self, name: str) -> _Entry:
        (dimensions,) = self._numbers("I")
        if dimensions > DIMENSIONS:
            raise ValueError(f"{quoted(name, 60)} has {dimensions:,} dimensions")
        shape = tuple(reversed(self._numbers(f"{dimensions}Q")))
        type_, offset = self._numbers("IQ")
        entry = _Entry(type_, shape, offset)
        if max((*shape, math.prod(shape), offset)) >= 2**48:
            raise ValueError(f"{quoted(name, 60)} is of {quoted(list(shape), 90)}, at {offset:,}")
        _size(entry)
        return entry


def _alignment(values: Mapping[str, Any]) -> int:
    alignment = values.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
        raise ValueError(f"its alignment is {quoted(alignment, 30)}")
    return alignment


class _Blocks(NamedTuple):
    """How numbers of a quantised type stand in a file."""

    name: str
    numbers: int
    size: int  # in bytes


@cache
def _blocks(type_: int) -> _Blocks | None:
    """Those of a type; None where the package gguf is not there, or does not know it."""
    if not _installed():
        return None
    constants = importlib.import_module("gguf.constants")
    try:
        known = constants.GGMLQuantizationType(type_)
        return _Blocks(str(known.name), *constants.GGML_QUANT_SIZES[known])
    except (KeyError, ValueError):
        return None


def _installed() -> bool:
    return find_spec("gguf") is not None


def _name(type_: int) -> str:
    blocks = _blocks(type_)
    return blocks.name if blocks else f"GGML's type {type_}"


def _size(entry: _Entry) -> int | None:
    """Bytes of a tensor; None where its type is not known.

    Raises:
        ValueError: if its rows are no whole blocks of its type.
    """
    count = math.prod(entry.shape)
    if entry.type_ in PLAIN:
        return count * PLAIN[entry.type_].itemsize
    if (blocks := _blocks(entry.type_)) is None:
        return None
    row = entry.shape[-1] if entry.shape else 1
    if row % blocks.numbers:
        raise ValueError(f"rows of {row:,} numbers are no whole blocks of {blocks.numbers} ({blocks.name})")
    return count // blocks.numbers * blocks.size
