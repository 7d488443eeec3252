"""numpy's archives of arrays (.npz), as MLX and others save weights: zips of .npy files.

The format of a member is that of numpy.lib.format: a few bytes, a header that is a Python dictionary in text, and the
numbers. numpy reads a header by evaluating it and takes the memory that it claims; here three fields are looked for,
and held against the size of the member. Arrays of Python objects are pickles, and are never read.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from calotype.damage import quoted, require_held
from calotype.errors import WeightsError
from calotype.weights.archives import Member, members
from calotype.weights.mapped import dtype_name

_MAGIC = b"\x93NUMPY"
_LONGEST = 10_000  # bytes of a header, as in numpy

# numpy's codes of types, without the order of bytes; what numpy does not know it and MLX save as two bytes: bfloat16
_DTYPES = {
    "f8": torch.float64, "f4": torch.float32, "f2": torch.float16, "V2": torch.bfloat16,
    "i8": torch.int64, "i4": torch.int32, "i2": torch.int16, "i1": torch.int8,
    "u8": torch.uint64, "u4": torch.uint32, "u2": torch.uint16, "u1": torch.uint8, "b1": torch.bool,
}  # fmt: skip


class _Array(NamedTuple):
    """An array in an archive.

    Attributes:
        code: numpy's, with the order of bytes: "<f4".
        fortran: whether columns stand one after another, and not rows.
        start: where its numbers begin in the member.
    """

    member: Member
    code: str
    shape: tuple[int, ...]
    fortran: bool
    start: int


class NpzFile:
    """An archive of arrays, named as its members are without ".npy"."""

    kind = "numpy npz"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrays: dict[str, _Array] = {}
        with path.open("rb") as file:
            for name, member in members(path).items():
                if not name.endswith("/"):
                    self._arrays[name.removesuffix(".npy")] = _array(member, file)
        require_held(sum(array.member.size for array in self._arrays.values()), path.stat().st_size)
        self.shapes: Mapping[str, tuple[int, ...]] = {name: array.shape for name, array in self._arrays.items()}
        self.metadata: Mapping[str, str] = {}
        self.notices: tuple[str, ...] = ()

    def stored(self, key: str) -> str:
        return dtype_name(_DTYPES[self._arrays[key].code[1:]])

    def read(self, key: str) -> Tensor:
        array = self._arrays[key]
        with self._path.open("rb") as file:
            content = array.member.read(file)
        code = array.code.replace("V2", "u2").replace("|", "<")
        numbers = np.frombuffer(content, code, offset=array.start)
        numbers = numbers.astype(code.replace(">", "<"))  # which copies
        shaped = numbers.reshape(array.shape[::-1]).T if array.fortran else numbers.reshape(array.shape)
        tensor = torch.from_numpy(np.ascontiguousarray(shaped).reshape(array.shape))  # numpy makes a number a row
        return tensor.view(torch.bfloat16) if array.code[1:] == "V2" else tensor


def _array(member: Member, file: IO[bytes]) -> _Array:
    """What a member says of its array.

    Raises:
        WeightsError: it is none, or does not fit the member.
    """
    file.seek(member.start)
    head = file.read(min(member.packed, _LONGEST))
    if member.deflated:
        head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, _LONGEST)
    width = {1: 2, 2: 4, 3: 4}.get(head[6] if len(head) > 8 else 0)
    if head[:6] != _MAGIC or width is None:
        raise WeightsError(f"the file is damaged: {quoted(member.name, 60)} in it is no numpy array; fetch it again")
    start = 8 + width + int.from_bytes(head[8 : 8 + width], "little")
    text = head[8 + width : start].decode("latin-1")
    code = re.search(r"'descr'\s*:\s*'([<>|=])([A-Za-z][0-9]{0,9})'", text)
    order = re.search(r"'fortran_order'\s*:\s*(True|False)", text)
    axes = re.search(r"'shape'\s*:\s*\(([0-9, ]{0,400})\)", text)
    if code and code[2].startswith("O"):
        raise WeightsError(
            f"{quoted(member.name, 60)} in it holds Python objects, which are not read; save arrays of numbers"
        )
    if not (code and order and axes) or code[2] not in _DTYPES:
        raise WeightsError(f"{quoted(member.name, 60)} in it is no array of numbers that can be read")
    shape = tuple(int(n) for n in re.findall("[0-9]+", axes[1]))
    if start + math.prod(shape) * _DTYPES[code[2]].itemsize != member.size:
        raise WeightsError(
            f"the file is damaged: {quoted(member.name, 60)} in it says {list(shape)[:8]} of {code[2]} and has "
            f"{member.size:,} bytes; fetch it again"
        )
    order_of_bytes = "<" if code[1] in "|=" else code[1]
    return _Array(member, f"{order_of_bytes}{code[2]}", shape, order[1] == "True", start)
