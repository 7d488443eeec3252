"""ONNX models: their graph, with constants where they lie in the file or in files beside it.

The format is onnx.proto3's of ONNX 1.23 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calotype.damage import quoted
from calotype.errors import WeightsError
from calotype.texts import is_file_name
from calotype.weights.graphs.graph import (
    MOST_DIMENSIONS,
    Constant,
    Graph,
    Node,
    empty,
    numbers,
    refusing,
    require_few,
    require_shape,
    stored_bytes,
)
from calotype.weights.graphs.protobuf import BYTES, FIXED32, FIXED64, Field, Message, damaged, packed_wholes
from calotype.weights.mapped import bytes_of, dtype_name, map_file

# TensorProto.DataType
TYPES: dict[int, torch.dtype | str] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.bfloat16,
    17: torch.float8_e4m3fn,
    18: torch.float8_e4m3fnuz,
    19: torch.float8_e5m2,
    20: torch.float8_e5m2fnuz,
    21: "uint4",
    22: "int4",
}
FLOATS, INT32S, INT64S, DOUBLES, UINT64S = 4, 5, 7, 10, 11  # fields of numbers that are not raw
_LIST = 4096  # the longest list among an operation's attributes
_IN_FIELDS: dict[int, tuple[int, str]] = {FLOATS: (FIXED32, "<f4"), DOUBLES: (FIXED64, "<f8")}


def read_onnx(path: Path) -> Graph:
    """The graph of an ONNX model.

    Raises:
        WeightsError: the file is damaged, or a file that it needs is missing, too short or elsewhere than beside it.
    """
    return _Reader(path).graph()


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, torch.UntypedStorage] = {}
        self._whole = map_file(path)
        self._message = Message(bytes_of(self._whole))

    def graph(self) -> Graph:
        message = self._message
        graph: Field | None = None
        version, functions = 0, False
        metadata: dict[str, str] = {}
        for field in message.fields(0, len(message.content)):
            if field.number == 7:
                graph = self._nested(field)
            elif field.number == 8:
                domain, said = "", 0
                for part in message.fields(*_inside(self._nested(field))):
                    if part.number == 1:
                        domain = message.text(part)
                    elif part.number == 2:
                        said = message.whole(part)
                version = said if domain in ("", "ai.onnx") else version
            elif field.number == 14:
                key, value = self._pair(field)
                metadata[key] = value
            functions = functions or field.number == 25
        if graph is None:
            raise WeightsError("the file is truncated or damaged (it holds no graph); fetch it again")
        nodes: list[Node] = []
        constants: dict[str, Constant] = {}
        count = 0
        inputs: list[str] = []
        outputs: list[str] = []
        for field in message.fields(*_inside(graph)):
            if field.number == 1:
                require_few(len(nodes) + 1)
                node = self._node(self._nested(field))
                if node.op == "Constant":
                    if made := _constant(node):
                        constants[node.outputs[0]] = made
                else:
                    nodes.append(node)
            elif field.number == 5:
                count += 1
                require_few(count, "constants")
                constant = self._tensor(self._nested(field))
                constants[constant.name] = constant
            elif field.number in (11, 12):
                (inputs if field.number == 11 else outputs).append(self._named(field))
            elif field.number == 15:
                raise WeightsError("its graph has sparse constants, which no VAE has; export it anew without them")
        return Graph(
            kind="ONNX",
            version=version,
            nodes=tuple(nodes),
            constants=constants,
            inputs=tuple(name for name in inputs if name not in constants),
            outputs=tuple(outputs),
            metadata=metadata,
            functions=functions,
        )

    def _nested(self, field: Field) -> Field:
        if field.way != BYTES:
            raise damaged(field.start)
        return field

    def _named(self, field: Field) -> str:
        return next(
            (self._message.text(part) for part in self._message.fields(*_inside(field)) if part.number == 1), ""
        )

    def _pair(self, field: Field) -> tuple[str, str]:
        """A key and a value."""
        found = {
            part.number: self._message.text(part, 2**20)
            for part in self._message.fields(*_inside(self._nested(field)))
            if part.number in (1, 2)
        }
        return found.get(1, ""), found.get(2, "")

    def _node(self, field: Field) -> Node:
        message = self._message
        texts: dict[int, list[str]] = {}
        attributes: dict[str, Any] = {}
        for part in message.fields(*_inside(field)):
            if part.number in (1, 2, 3, 4, 7):
                texts.setdefault(part.number, []).append(message.text(part))
            elif part.number == 5:
                name, value = self._attribute(self._nested(part))
                attributes[name] = value
        domain, op = texts.get(7, [""])[0], texts.get(4, [""])[0]
        if op == "Cast":
            attributes["to"] = TYPES.get(attributes.get("to", 0))
        return Node(
            op=op if domain in ("", "ai.onnx") else f"{domain}.{op}",
            name=texts.get(3, [""])[0],
            inputs=tuple(texts.get(1, ())),
            outputs=tuple(texts.get(2, ())),
            attributes=attributes,
        )

    def _attribute(self, field: Field) -> tuple[str, Any]:
        message = self._message
        name = ""
        value: Any = None
        values: list[Any] = []
        for part in message.fields(*_inside(field)):
            if part.number == 1:
                name = message.text(part)
            elif part.number == 2:
                value = message.real(part)
            elif part.number == 3:
                value = message.whole(part)
            elif part.number == 4:
                value = message.text(part, 2**20)
            elif part.number == 5:
                value = self._tensor(self._nested(part))
            elif part.number == 7 and part.way == FIXED32:
                values.append(message.real(part))
            elif part.number == 7:
                values += np.frombuffer(message.bytes(part)[: 4 * _LIST], "<f4").tolist() if part.way == BYTES else []
            elif part.number == 8:
                values += message.wholes(part, _LIST)
            if len(values) > _LIST:
                raise WeightsError(f"the file is damaged: a list in it has more than {_LIST:,} numbers; fetch it again")
        return name, values if values else value

    def _tensor(self, field: Field) -> Constant:
        message = self._message
        dimensions: list[int] = []
        name, code, outside = "", 0, False
        raw: Field | None = None
        typed: list[Field] = []
        where: dict[str, str] = {}
        for part in message.fields(*_inside(field)):
            if part.number == 1:
                dimensions += message.wholes(part, MOST_DIMENSIONS)
            elif part.number == 2:
                code = message.whole(part)
            elif part.number in (FLOATS, INT32S, INT64S, DOUBLES, UINT64S):
                typed.append(part)
            elif part.number == 8:
                name = message.text(part)
            elif part.number == 9:
                raw = self._nested(part)
            elif part.number == 13:
                key, value = self._pair(part)
                where[key] = value
            elif part.number == 14:
                outside = message.whole(part) == 1
        shape = tuple(dimensions)
        require_shape(shape, name)
        if code not in TYPES:  # texts, complex numbers: of no use, and not read
            return Constant(name, shape, f"type {code}", refusing(name, f"ONNX's type {code}"))
        dtype = TYPES[code]
        stored = dtype if isinstance(dtype, str) else dtype_name(dtype)
        size = stored_bytes(dtype, shape)
        read: Callable[[], Tensor]
        if outside:
            file, start = self._outside(name, where, size)

            def read() -> Tensor:
                return numbers(self._mapped(file, name, start + size), start, dtype, shape)
        elif raw is not None or not typed:
            begin, length = (raw.start, raw.end - raw.start) if raw is not None else (0, 0)
            if length != size:
                raise WeightsError(
                    f"the file is truncated or damaged ({quoted(name, 120)} has {length:,} bytes instead of {size:,}); "
                    f"fetch it again"
                )

            def read() -> Tensor:
                return numbers(self._whole, begin, dtype, shape)
        else:

            def read() -> Tensor:
                return self._typed(name, typed, dtype, shape)

        return Constant(name, shape, stored, read)

    def _outside(self, name: str, where: dict[str, str], size: int) -> tuple[str, int]:
        """The file beside the model in which numbers lie, and where they begin in it.

        Raises:
            WeightsError: it is elsewhere, or places in it are none.
        """
        file = where.get("location", "")
        steps = PureWindowsPath(file)  # which knows both kinds of slashes
        if not is_file_name(file) or steps.is_absolute() or steps.drive or steps.root or ".." in steps.parts:
            raise WeightsError(
                f"{quoted(name, 120)} is said to lie in the file {quoted(file, 80)!r}, which is not in the model's own "
                f"folder; such a path is not followed"
            )
        try:
            start, length = int(where.get("offset", "0") or 0), int(where.get("length", size) or size)
        except ValueError:
            start, length = -1, -1
        if start < 0 or length != size or start >= 2**62:
            raise WeightsError(f"the file is damaged: the place of {quoted(name, 120)} is none; fetch it again")
        self._mapped(file, name, start + size)
        return file, start

    def _mapped(self, name: str, what: str, end: int) -> torch.UntypedStorage:
        """A file beside the model, of at least so many bytes."""
        if name not in self._files:
            path = self._path.parent / name
            if not path.is_file():
                raise WeightsError(
                    f"its weights are in {quoted(name, 200)}, which is not beside it; fetch it into the same folder"
                )
            require_few(len(self._files) + 1, "files")
            size = path.stat().st_size
            self._files[name] = map_file(path) if size else empty()
        if self._files[name].nbytes() < end:
            raise WeightsError(
                f"{quoted(name, 200)} beside it is truncated: {self._files[name].nbytes():,} bytes do not hold "
                f"{quoted(what, 120)}, which ends at {end:,}; fetch it again"
            )
        return self._files[name]

    def _typed(self, name: str, fields: list[Field], dtype: torch.dtype | str, shape: tuple[int, ...]) -> Tensor:
        """Numbers that are not raw: in a list of floats, doubles or whole numbers."""
        number, content = fields[0].number, []
        for field in fields:
            if number in _IN_FIELDS and field.way in (BYTES, _IN_FIELDS[number][0]):
                content.append(np.frombuffer(self._message.bytes(field), _IN_FIELDS[number][1]))
            elif field.way == BYTES:
                content.append(packed_wholes(self._message.bytes(field)))
            else:
                content.append(np.array(self._message.wholes(field, 1), np.int64))
        values = np.concatenate(content)
        halves = isinstance(dtype, str)
        count = stored_bytes(dtype, shape) if halves else math.prod(shape)
        if len(values) != count:
            raise WeightsError(
                f"the file is truncated or damaged ({quoted(name, 120)} has {len(values):,} numbers instead of "
                f"{count:,}); fetch it again"
            )
        if number in (FLOATS, DOUBLES):
            return (
                torch.from_numpy(values.copy()).to(torch.float64 if number == DOUBLES else torch.float32).reshape(shape)
            )
        size = 1 if isinstance(dtype, str) else dtype.itemsize
        held = torch.from_numpy(values.astype(f"<i{size}")).untyped_storage()  # the lowest bytes of each
        return numbers(held, 0, dtype, shape)


def _inside(field: Field) -> tuple[int, int]:
    return field.start, field.end


def _constant(node: Node) -> Constant | None:
    """What an operation without inputs gives, if it is numbers."""
    name = node.outputs[0] if node.outputs else ""
    value = next((v for k, v in node.attributes.items() if k in ("value", "value_float", "value_floats", "value_int",
                                                                 "value_ints")), None)  # fmt: skip
    if isinstance(value, Constant):
        return Constant(value.name or name, value.shape, value.stored, value.read)
    if value is None or isinstance(value, str):
        return None
    real = isinstance(value, float) or (isinstance(value, list) and any(isinstance(one, float) for one in value))
    made = torch.tensor(value, dtype=torch.float32 if real else torch.int64)
    return Constant(name, tuple(made.shape), "float32" if real else "int64", lambda: made)
