"""Nests in msgpack, with arrays as Flax has them: walked without being copied, and written.

The format is that of https://github.com/msgpack/msgpack/blob/master/spec.md. An array is an extension of type 1, whose
content is msgpack again: its shape, numpy's name of its type, and its bytes, row by row; type 3 is a single number in
the same way. An array of more than 1 GiB is a map, marked "__msgpack_chunked_array__", of its shape and its pieces,
each of them a map from "0", "1", ... (flax/serialization.py of Flax 0.10).

The package msgpack copies a whole file into memory and makes objects of all that it claims to hold; here arrays are
left where they lie, and only so many values are made as real files have.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from calotype.damage import quoted
from calotype.errors import WeightsError
from calotype.weights.mapped import dtype_name, part, strides, view

CHUNKED = "__msgpack_chunked_array__"

# numpy's names of types that torch has too, by the same names
DTYPES = {
    dtype_name(dtype): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
        torch.bool,
    )
}

_ARRAY, _NUMBER = 1, 3  # types of extensions
_DEEPEST = 64  # maps within maps
_MOST = 50_000  # values of a file; a training's checkpoint has some thousands
_MOST_AXES = 16
_LONGEST = 1_000  # bytes of a name

Kind = Literal["nothing", "number", "text", "bytes", "extension", "list", "map"]

# first byte -> what it begins, and in how many bytes its size follows
_SIZED: Mapping[int, tuple[Kind, int]] = {
    0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4),
    0xC7: ("extension", 1), 0xC8: ("extension", 2), 0xC9: ("extension", 4),
    0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4),
    0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_CONSTANTS: Mapping[int, object] = {0xC0: None, 0xC2: False, 0xC3: True}


class Token(NamedTuple):
    """How a value begins.

    Attributes:
        size: of texts, bytes and extensions the bytes that follow; of lists their members, of maps their pairs.
        value: of a number.
        code: type of an extension.
    """

    kind: Kind
    size: int = 0
    value: Any = None
    code: int = 0


class Piece(NamedTuple):
    """Where an array lies, or a piece of one.

    Attributes:
        dtype: numpy's name of its type.
        start, end: of its bytes in the file.
    """

    shape: tuple[int, ...]
    dtype: str
    start: int
    end: int


class Chunked(NamedTuple):
    """An array in pieces."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def dtype(self) -> str:
        """numpy's name of its type."""
        return self.pieces[0].dtype


class Reader:
    """Reads values one after another.

    Args:
        end: where the last one must end.
    """

    def __init__(self, data: memoryview, at: int = 0, end: int | None = None) -> None:
        self.at = at
        self._data = data
        self._end = len(data) if end is None else end

    def take(self, count: int) -> memoryview:
        """The next bytes.

        Raises:
            WeightsError: there are not so many.
        """
        if count > self._end - self.at:
            raise WeightsError(
                f"the file is truncated or damaged: what begins at byte {self.at:,} claims {count:,} bytes, and "
                f"{self._end - self.at:,} follow; fetch it again"
            )
        self.at += count
        return self._data[self.at - count : self.at]

    def token(self) -> Token:
        """How the next value begins; its content follows.

        Raises:
            WeightsError: nothing begins so, or not all of it is there.
        """
        (first,) = self.take(1)
        if first < 0x80 or first >= 0xE0:
            return Token("number", value=first if first < 0x80 else first - 0x100)
        if first < 0xC0:  # the size is in the byte itself
            kind: Kind = "map" if first < 0x90 else "list" if first < 0xA0 else "text"
            return Token(kind, first & (0x1F if kind == "text" else 0x0F))
        if first in _CONSTANTS:
            return Token("nothing", value=_CONSTANTS[first])
        if first in _NUMBERS:
            (number,) = struct.unpack(_NUMBERS[first], self.take(struct.calcsize(_NUMBERS[first])))
            return Token("number", value=number)
        if first in _SIZED:
            kind, width = _SIZED[first]
            size = int.from_bytes(self.take(width), "big")
            return Token(kind, size, code=self.take(1)[0] if kind == "extension" else 0)
        if 0xD4 <= first <= 0xD8:
            return Token("extension", 2 ** (first - 0xD4), code=self.take(1)[0])
        raise WeightsError(
            f"the file is damaged: nothing in msgpack begins with {first:#x}, as something does at byte "
            f"{self.at - 1:,}; fetch it again"
        )

    def done(self) -> bool:
        """Whether nothing follows."""
        return self.at == self._end


class Nest:
    """All that a file holds: maps as dictionaries, arrays as where they lie.

    Raises:
        WeightsError: it is damaged, deeper or of more values than any weights.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._reader = Reader(data)
        self._count = 0
        self.content = self._value(0)
        if not self._reader.done():
            raise WeightsError(
                f"the file is damaged: it ends at byte {self._reader.at:,}, and {len(data):,} are there; fetch it again"
            )

    def _value(self, depth: int) -> Any:
        self._count += 1
        if self._count > _MOST:
            raise WeightsError(f"the file holds more than {_MOST:,} values, as no weights do")
        if depth > _DEEPEST:
            raise WeightsError(f"the file is a nest of more than {_DEEPEST} levels, as no weights are")
        reader = self._reader
        token = reader.token()
        if token.kind == "map":
            found: dict[str, Any] = {}
            for _ in range(token.size):
                name = self._name()
                if name in found:
                    raise WeightsError(f"the file is damaged: it names {quoted(name, 60)} twice; fetch it again")
                found[name] = self._value(depth + 1)
            return _whole(found) if CHUNKED in found else found
        if token.kind == "list":
            return {str(i): self._value(depth + 1) for i in range(token.size)}
        if token.kind == "extension" and token.code in (_ARRAY, _NUMBER):
            start = reader.at
            reader.take(token.size)
            return self._array(start, reader.at)
        if token.kind in ("text", "bytes", "extension"):
            reader.take(token.size)
            return None
        return token.value

    def _name(self) -> str:
        token = self._reader.token()
        if token.kind == "number" and isinstance(token.value, int):
            return str(token.value)
        if token.kind not in ("text", "bytes") or token.size > _LONGEST:
            raise WeightsError("the file is damaged, or of something else than weights: a name in it is no name")
        return bytes(self._reader.take(token.size)).decode("utf-8", "backslashreplace")

    def _array(self, start: int, end: int) -> Piece:
        reader = Reader(self._data, start, end)
        if reader.token()[:2] != ("list", 3):
            raise _no_array(start)
        axes = reader.token()
        if axes.kind != "list" or axes.size > _MOST_AXES:
            raise _no_array(start)
        shape = tuple(reader.token().value for _ in range(axes.size))
        name = reader.token()
        if name.kind not in ("text", "bytes"):
            raise _no_array(start)
        dtype = bytes(reader.take(name.size)).decode("ascii", "backslashreplace")
        content = reader.token()
        if content.kind not in ("text", "bytes") or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
            raise _no_array(start)
        first = reader.at
        reader.take(content.size)
        if not reader.done():
            raise _no_array(start)
        if dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != content.size:
            raise WeightsError(
                f"the file is damaged: an array of {list(shape)} {dtype} in it has {content.size:,} bytes; fetch it "
                f"again"
            )
        return Piece(shape, dtype, first, reader.at)


def _no_array(at: int) -> WeightsError:
    return WeightsError(f"the file is damaged: what begins as an array at byte {at:,} is none; fetch it again")


def _whole(found: Mapping[str, Any]) -> Chunked:
    """The array whose pieces are in a map."""
    shape, pieces = (_members(found.get(name)) for name in ("shape", "chunks"))
    fits = all(type(n) is int and 0 <= n < 2**63 for n in shape) and all(isinstance(one, Piece) for one in pieces)
    if not fits or not pieces or len({one.dtype for one in pieces}) > 1 or pieces[0].dtype not in DTYPES:
        raise WeightsError("the file is damaged: an array in pieces is not whole; fetch it again")
    if sum(math.prod(one.shape) for one in pieces) != math.prod(shape):
        raise WeightsError(
            f"the file is damaged: the pieces of an array of {list(shape)} hold "
            f"{sum(math.prod(one.shape) for one in pieces):,} numbers; fetch it again"
        )
    return Chunked(shape, pieces)


def _members(found: Any) -> tuple[Any, ...]:
    """What stands under "0", "1" and so on."""
    if not isinstance(found, dict) or found.keys() != {str(i) for i in range(len(found))}:
        return (None,)
    return tuple(found[str(i)] for i in range(len(found)))


def arrays(content: Any, way: tuple[str, ...] = ()) -> Iterator[tuple[str, Piece | Chunked]]:
    """All arrays in a nest, named by the way to them: "params/encoder/conv_in/kernel"."""
    if isinstance(content, Piece | Chunked):
        yield "/".join(way), content
    elif isinstance(content, dict):
        for name, inner in content.items():
            yield from arrays(inner, (*way, name))


def read(whole: torch.UntypedStorage, array: Piece | Chunked) -> Tensor:
    """An array of a file; it may share the file's memory.

    Raises:
        WeightsError: it is of a type that torch does not have.
    """
    if isinstance(array, Chunked):
        return torch.cat([read(whole, piece).reshape(-1) for piece in array.pieces]).reshape(array.shape)
    if array.dtype not in DTYPES:
        raise WeightsError(f"it is stored as {quoted(array.dtype, 20)}, which is not read")
    if array.start == array.end:
        return torch.empty(array.shape, dtype=DTYPES[array.dtype])
    return view(part(whole, array.start, array.end), DTYPES[array.dtype], array.shape, strides(array.shape))


# --- written ---


def written(content: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    """The bytes of a nest of tensors, in the order of their names: those that Flax's `to_bytes` writes of it.

    Args:
        content: names -> tensors on the CPU, or such nests.
    """
    yield _sized(0x80, 0x0F, (None, 0xDE, 0xDF), len(content))
    for name in sorted(content):
        yield _text(name)
        inner = content[name]
        if isinstance(inner, Tensor):
            yield from _written_array(inner)
        else:
            yield from written(inner)


def _written_array(tensor: Tensor) -> Iterator[bytes | memoryview]:
    numbers = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    head = b"\x93" + _sized(0x90, 0x0F, (None, 0xDC, 0xDD), tensor.ndim) + b"".join(map(_count, tensor.shape))
    head += _text(dtype_name(tensor.dtype)) + _sized(None, 0, (0xC4, 0xC5, 0xC6), numbers.nbytes)
    size = len(head) + numbers.nbytes
    fixed = {1: b"\xd4", 2: b"\xd5", 4: b"\xd6", 8: b"\xd7", 16: b"\xd8"}
    yield fixed.get(size) or _sized(None, 0, (0xC7, 0xC8, 0xC9), size)
    yield bytes([_ARRAY]) + head
    yield numbers


def _text(text: str) -> bytes:
    content = text.encode()
    return _sized(0xA0, 0x1F, (0xD9, 0xDA, 0xDB), len(content)) + content


def _count(number: int) -> bytes:
    for most, first, width in ((0x80, 0, 0), (2**8, 0xCC, 1), (2**16, 0xCD, 2), (2**32, 0xCE, 4), (2**64, 0xCF, 8)):
        if number < most:
            return bytes([first]) + number.to_bytes(width, "big") if width else bytes([number])
    raise OverflowError(number)


def _sized(fixed: int | None, most: int, wide: tuple[int | None, int, int], size: int) -> bytes:
    """How something of a size begins: in one byte if that holds it, else with its size in one, two or four more."""
    if fixed is not None and size <= most:
        return bytes([fixed | size])
    for first, width in zip(wide, (1, 2, 4), strict=True):
        if first is not None and size < 2 ** (8 * width):
            return bytes([first]) + size.to_bytes(width, "big")
    raise WeightsError(f"{size:,} bytes are more than msgpack can hold of one array")
