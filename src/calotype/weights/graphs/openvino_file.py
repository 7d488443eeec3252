"""Models of OpenVINO: a graph in XML, with constants in a .bin beside it.

The format is that of IR versions 10 and 11 (https://docs.openvino.ai/2025/documentation/openvino-ir-format.html).
"""

from __future__ import annotations

import xml.parsers.expat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calotype.damage import quoted
from calotype.errors import WeightsError
from calotype.weights.graphs.graph import (
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
from calotype.weights.mapped import dtype_name, map_file

TYPES: dict[str, torch.dtype | str] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8e4m3": torch.float8_e4m3fn,
    "f8e5m2": torch.float8_e5m2,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "i4": "int4",
    "u64": torch.uint64,
    "u32": torch.uint32,
    "u16": torch.uint16,
    "u8": torch.uint8,
    "u4": "uint4",
    "boolean": torch.bool,
}

# OpenVINO's operations that ONNX has under another name
OPS = {
    "Clamp": "Clip",
    "Convert": "Cast",
    "Convolution": "Conv",
    "Divide": "Div",
    "Interpolate": "Resize",
    "Multiply": "Mul",
    "Power": "Pow",
    "ReLU": "Relu",
    "ScaledDotProductAttention": "Attention",
    "ShapeOf": "Shape",
    "SoftMax": "Softmax",
    "SoftPlus": "Softplus",
    "Subtract": "Sub",
    "VariadicSplit": "Split",
}
LARGEST = 2**26  # bytes of XML: a VAE has half a million
DEEPEST = 32


def bin_of(path: Path) -> Path:
    """Where the constants of an .xml lie."""
    return path.with_suffix(".bin")


def read_openvino(path: Path) -> Graph:
    """The graph of a model of OpenVINO.

    Raises:
        WeightsError: the XML is none, or has entities; its .bin is missing or too short.
    """
    if (size := path.stat().st_size) > LARGEST:
        raise WeightsError(f"its XML has {size:,} bytes, and that of a VAE has a million at most")
    xml = _Xml()
    xml.read(path.read_bytes())
    held = bin_of(path)
    if not held.is_file():
        raise WeightsError(f"its weights are in {quoted(held.name, 200)}, which is not beside it; fetch it as well")
    storage = map_file(held) if held.stat().st_size else empty()
    return _graph(xml, storage, held)


@dataclass
class _Layer:
    id: str
    name: str
    op: str
    data: Mapping[str, str] = field(default_factory=dict)
    called: str = ""  # its output


class _Xml:
    """Layers and edges, as they come; nothing else of the document is kept."""

    def __init__(self) -> None:
        self.layers: dict[str, _Layer] = {}
        self.edges: list[tuple[str, str, str, int]] = []
        self._stack: list[str] = []
        self._now: _Layer | None = None

    def read(self, content: bytes) -> None:
        parser = xml.parsers.expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = _refuse
        parser.EntityDeclHandler = _refuse
        try:
            parser.Parse(content, True)
        except xml.parsers.expat.ExpatError as error:
            raise WeightsError(f"its XML is truncated or damaged ({quoted(error)}); fetch it again") from None
        if not self.layers:
            raise WeightsError("its XML is no model of OpenVINO: it has no layers; fetch it again")

    def _start(self, name: str, values: dict[str, str]) -> None:
        way = tuple(self._stack)
        if len(way) >= DEEPEST:
            raise WeightsError(f"its XML is nested deeper than {DEEPEST} levels; fetch it again")
        self._stack.append(name)
        if way == ("net", "layers") and name == "layer":
            require_few(len(self.layers) + 1)
            self._now = _Layer(values.get("id", ""), values.get("name", ""), values.get("type", ""))
            if self._now.id in self.layers:
                raise WeightsError(f"the file is damaged: its XML has the layer {quoted(self._now.id, 20)} twice")
            self.layers[self._now.id] = self._now
        elif way == ("net", "layers", "layer") and name == "data" and self._now:
            self._now.data = values
        elif way == ("net", "layers", "layer", "output") and name == "port" and self._now:
            self._now.called = self._now.called or values.get("names", "")
        elif way == ("net", "edges") and name == "edge":
            require_few(len(self.edges) // 4, "edges")
            port = values.get("to-port", "")
            if not port.isdecimal() or len(port) > 4:
                raise WeightsError(f"the file is damaged: its XML has an edge to the port {quoted(port, 20)!r}")
            self.edges.append(
                (values.get("from-layer", ""), values.get("from-port", ""), values.get("to-layer", ""), int(port))
            )

    def _end(self, name: str) -> None:
        self._stack.pop()


def _refuse(*_: object) -> None:
    raise WeightsError("its XML declares a document type or entities, which no model of OpenVINO does; it is not read")


def _graph(xml: _Xml, storage: torch.UntypedStorage, held: Path) -> Graph:
    sources: dict[str, dict[int, str]] = {key: {} for key in xml.layers}
    after: dict[str, list[str]] = {key: [] for key in xml.layers}
    given: dict[str, dict[str, None]] = {key: {} for key in xml.layers}  # its values, by ports that are used
    for source, port, target, at in xml.edges:
        if source not in sources or target not in sources or at in sources[target]:
            raise WeightsError(
                "the file is damaged: an edge in its XML joins layers that are not there; fetch it again"
            )
        sources[target][at] = f"{source}:{port}"
        after[source].append(target)
        given[source][f"{source}:{port}"] = None
    waiting = {key: len(found) for key, found in sources.items()}
    ready = [key for key, count in waiting.items() if count == 0][::-1]
    nodes: list[Node] = []
    constants: dict[str, Constant] = {}
    inputs: list[str] = []
    outputs: list[str] = []
    done = 0
    while ready:
        key = ready.pop()
        done += 1
        for target in after[key]:
            waiting[target] -= 1
            if waiting[target] == 0:
                ready.append(target)
        layer, ports = xml.layers[key], sources[key]
        last = max(ports, default=-1)
        values = tuple(ports.get(at, "") for at in range(last + 1)) if last < 64 else ()
        if layer.op == "Const":
            constant = _constant(layer, storage, held)
            constants |= dict.fromkeys(given[key], constant)
        elif layer.op == "Parameter":
            inputs += given[key]
        elif layer.op == "Result":
            outputs += values[:1]
        else:
            nodes.append(_node(layer, values, tuple(given[key])))
    if done < len(xml.layers):
        raise WeightsError("the file is damaged: its XML has layers that wait for each other; fetch it again")
    # people know inputs by what the model calls them
    called = {name: xml.layers[name.partition(":")[0]] for name in inputs}
    return Graph(
        kind="OpenVINO IR",
        version=0,
        nodes=tuple(nodes),
        constants=constants,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        metadata={name: layer.called or layer.name for name, layer in called.items()},
    )


def _node(layer: _Layer, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Node:
    op = OPS.get(layer.op, layer.op)
    attributes: dict[str, Any] = dict(layer.data)
    if op == "Conv":
        attributes = {name: _wholes(layer.data.get(name, "")) for name in ("strides", "dilations")}
        attributes["pads"] = [*_wholes(layer.data.get("pads_begin", "")), *_wholes(layer.data.get("pads_end", ""))]
        if (auto := layer.data.get("auto_pad", "explicit")) not in ("explicit", "notset"):
            attributes["auto_pad"] = auto
    elif op == "Cast":
        attributes["to"] = TYPES.get(layer.data.get("destination_type", ""))
    elif op == "Slice" and len(inputs) > 3:  # which has the steps before the axes, and may leave these out
        inputs = (*inputs[:3], inputs[4] if len(inputs) > 4 else "", inputs[3])
    return Node(op, layer.name, inputs, outputs, attributes)


def _wholes(text: str) -> list[int]:
    """Of "1, 2"."""
    parts = [part.strip() for part in text.split(",") if part.strip()][:64]
    if not all(part.isdecimal() and len(part) < 16 for part in parts):
        raise WeightsError(f"the file is damaged: its XML says {quoted(text, 40)!r} where whole numbers stand")
    return [int(part) for part in parts]


def _constant(layer: _Layer, storage: torch.UntypedStorage, held: Path) -> Constant:
    kind = layer.data.get("element_type", "")
    name = layer.called or layer.name
    shape = tuple(_wholes(layer.data.get("shape", "")))
    require_shape(shape, name)
    start, size = (_wholes(layer.data.get(key, "0") or "0")[:1] for key in ("offset", "size"))
    if not start or not size or start[0] + size[0] > storage.nbytes():
        raise WeightsError(
            f"{quoted(held.name, 200)} is truncated: {storage.nbytes():,} bytes do not hold {quoted(name, 120)}; "
            f"fetch it again"
        )
    dtype, begin = TYPES.get(kind), start[0]
    if dtype is None:
        return Constant(name, shape, quoted(kind, 20), refusing(name, quoted(kind, 20)))
    if size[0] != stored_bytes(dtype, shape):
        raise WeightsError(
            f"the file is damaged: {quoted(name, 120)} has {size[0]:,} bytes instead of "
            f"{stored_bytes(dtype, shape):,}; fetch it again"
        )

    def read() -> Tensor:
        return numbers(storage, begin, dtype, shape)

    return Constant(name, shape, dtype if isinstance(dtype, str) else dtype_name(dtype), read)
