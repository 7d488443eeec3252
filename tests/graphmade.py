"""Graphs of small AutoencoderKLs written byte by byte, as torch's exporter and OpenVINO write them: without either.

`halves(write, tensors, config)` draws a graph by a writer of one format; a writer has `onnx_model` or `ir_model`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

import torch
from support import diffusers_tensors
from torch import Tensor

from calotype.families.kl.config import AutoencoderConfig
from calotype.families.kl.network import AutoencoderKL

ONNX_TYPES = {torch.float32: 1, torch.uint8: 2, torch.int8: 3, torch.int64: 7, torch.float16: 10, torch.bfloat16: 16}
IR_TYPES = {torch.float32: "f32", torch.uint8: "u8", torch.int8: "i8", torch.int64: "i64", torch.float16: "f16"}
IR_TYPES[torch.bfloat16] = "bf16"


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


# --- protocol buffers ---


def varint(value: int) -> bytes:
    value %= 2**64
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])


def field(number: int, value: int | float | bytes | str) -> bytes:
    """One field of a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def onnx_tensor(name: str, tensor: Tensor, *, place: Mapping[str, str] | None = None, typed: bool = False) -> bytes:
    """A TensorProto; its numbers in a file beside it where a place is given, or in typed fields."""
    head = b"".join(field(1, n) for n in tensor.shape) + field(2, ONNX_TYPES[tensor.dtype]) + field(8, name)
    if place is not None:
        return head + b"".join(field(13, field(1, k) + field(2, v)) for k, v in place.items()) + field(14, 1)
    if not typed:
        return head + field(9, raw(tensor))
    if tensor.dtype == torch.float32:
        return head + field(4, raw(tensor))
    whole = tensor.view(torch.int16) if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    values = [int(n) % 65536 if whole is not tensor else int(n) for n in whole.flatten().tolist()]
    return head + field(7 if tensor.dtype == torch.int64 else 5, b"".join(varint(n) for n in values))


def onnx_halves(name: str, tensor: Tensor, *, signed: bool) -> bytes:
    """A TensorProto of four bits: two numbers in a byte, the first in its lower half."""
    halves = [int(n) % 16 for n in tensor.flatten().tolist()]
    halves += [0] * (len(halves) % 2)
    content = bytes(low | high << 4 for low, high in zip(halves[::2], halves[1::2], strict=True))
    head = b"".join(field(1, n) for n in tensor.shape) + field(2, 22 if signed else 21) + field(8, name)
    return head + field(9, content)


def onnx_node(op: str, inputs: Sequence[str], output: str, attributes: Mapping[str, Any], domain: str = "") -> bytes:
    """A NodeProto with one output, called as the output is."""
    made = b"".join(field(1, name) for name in inputs) + field(2, output) + field(3, output) + field(4, op)
    for name, value in attributes.items():
        kind = 7 if isinstance(value, list) else 1 if isinstance(value, float) else 3 if isinstance(value, str) else 2
        content = (
            b"".join(field(8, one) for one in value)
            if isinstance(value, list)
            else field({1: 2, 2: 3, 3: 4}[kind], value)
        )
        made += field(5, field(1, name) + content + field(20, kind))
    return made + (field(7, domain) if domain else b"")


def value_info(name: str) -> bytes:
    return field(1, name) + field(2, field(1, field(1, 1)))


class OnnxWriter:
    """A graph in ONNX, as torch's older exporter writes it.

    Args:
        named: whether weights keep the names that that exporter keeps; else they have none.
        stored: (name, numbers) -> a TensorProto.
        version: of the operations.
    """

    def __init__(
        self, *, named: bool = True, stored: Callable[[str, Tensor], bytes] = onnx_tensor, version: int = 17
    ) -> None:
        self.named = named
        self.stored = stored
        self.version = version
        self.nodes: list[bytes] = []
        self.constants: list[bytes] = []
        self.count = 0

    def constant(self, name: str, value: Tensor) -> str:
        name = name if self.named and name else f"onnx::W_{len(self.constants)}"
        self.constants.append(self.stored(name, value))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        self.count += 1
        output = f"/{op}_{self.count}_output_0"
        self.nodes.append(onnx_node(op, inputs, output, attributes))
        return output

    def sizes(self, *values: int) -> str:
        return self.constant("", torch.tensor(values))

    def conv(self, x: str, name: str, w: Mapping[str, Tensor], stride: int, pads: list[int]) -> str:
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        parts = self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)
        return self.node("Conv", x, *parts, strides=[stride] * 2, pads=pads, dilations=[1, 1], group=1)

    def norm(self, x: str, name: str, w: Mapping[str, Tensor], groups: int, wide: int) -> str:
        ones, zeros = self.constant("", torch.ones(groups)), self.constant("", torch.zeros(groups))
        h = self.node("Reshape", x, self.sizes(0, groups, -1))
        h = self.node("InstanceNormalization", h, ones, zeros, epsilon=1e-6)
        h = self.node("Reshape", h, self.node("Shape", x))
        for op, leaf in (("Mul", "weight"), ("Add", "bias")):
            values = w[f"{name}.{leaf}"]
            h = self.node(op, h, self.constant("", values.reshape(len(values), *[1] * wide)))
        return h

    def silu(self, x: str) -> str:
        return self.node("Mul", x, self.node("Sigmoid", x))

    def add(self, x: str, y: str) -> str:
        return self.node("Add", x, y)

    def double(self, x: str) -> str:
        return self.node("Resize", x, "", self.constant("", torch.tensor([1.0, 1.0, 2.0, 2.0])), mode="nearest")

    def linear(self, x: str, name: str, w: Mapping[str, Tensor]) -> str:
        h = self.node("MatMul", x, self.constant("", w[f"{name}.weight"].t().contiguous()))
        return self.node("Add", self.constant(f"{name}.bias", w[f"{name}.bias"]), h)

    def attention(self, x: str, name: str, w: Mapping[str, Tensor], groups: int) -> str:
        size = len(w[f"{name}.to_q.bias"])
        h = self.norm(self.node("Reshape", x, self.sizes(1, size, -1)), f"{name}.group_norm", w, groups, 1)
        h = self.node("Transpose", h, perm=[0, 2, 1])
        q, k, v = (self.linear(h, f"{name}.to_{part}", w) for part in "qkv")
        scale = self.constant("", torch.tensor(size**-0.25))
        q, k = self.node("Mul", q, scale), self.node("Mul", self.node("Transpose", k, perm=[0, 2, 1]), scale)
        h = self.node("MatMul", self.node("Softmax", self.node("MatMul", q, k), axis=-1), v)
        h = self.node("Transpose", self.linear(h, f"{name}.to_out.0", w), perm=[0, 2, 1])
        return self.add(self.node("Reshape", h, self.node("Shape", x)), x)

    def model(self, given: str, output: str) -> bytes:
        graph = b"".join(field(1, node) for node in self.nodes) + field(2, "main_graph")
        graph += b"".join(field(5, constant) for constant in self.constants)
        graph += field(11, value_info(given)) + field(12, value_info(output))
        return (
            field(1, 8) + field(2, "pytorch") + field(3, "2.13.0") + field(7, graph) + field(8, field(2, self.version))
        )


class IrWriter:
    """A graph of OpenVINO: its XML, and in `held` its .bin.

    Args:
        stored: numbers -> how they lie in the .bin; half precision is widened in the graph, and eight bits too.
    """

    def __init__(self, *, stored: Callable[[Tensor], Tensor] = lambda value: value) -> None:
        self.stored = stored
        self.held = bytearray()
        self.layers: list[str] = []
        self.edges: list[str] = []

    def layer(self, op: str, name: str, data: Mapping[str, Any], inputs: Sequence[str] = (), called: str = "") -> str:
        key = len(self.layers)
        for port, source in enumerate(inputs):
            layer, out = source.split(":")
            self.edges.append(f'<edge from-layer="{layer}" from-port="{out}" to-layer="{key}" to-port="{port}"/>')
        said = " ".join(f"{k}={quoteattr(str(v))}" for k, v in data.items())
        port = f'<port id="{len(inputs)}" names={quoteattr(called)}/>'
        self.layers.append(
            f'<layer id="{key}" name={quoteattr(name or f"{op}_{key}")} type="{op}" version="opset1"><data {said}/>'
            f"<output>{port}</output></layer>"
        )
        return f"{key}:{len(inputs)}"

    def const(self, name: str, value: Tensor) -> str:
        shape = ", ".join(map(str, value.shape))
        place = {"element_type": IR_TYPES[value.dtype], "shape": shape, "offset": len(self.held)}
        content = raw(value)
        self.held += content
        return self.layer("Const", name, {**place, "size": len(content)}, called=name)

    def constant(self, name: str, value: Tensor) -> str:
        held = self.stored(value) if value.is_floating_point() else value
        made = self.const(name, held)
        return made if held.dtype == value.dtype else self.layer("Convert", "", {"destination_type": "f32"}, [made])

    def node(self, op: str, *inputs: str, **data: Any) -> str:
        return self.layer(op, "", data, inputs)

    def conv(self, x: str, name: str, w: Mapping[str, Tensor], stride: int, pads: list[int]) -> str:
        data = {"strides": f"{stride}, {stride}", "dilations": "1, 1", "auto_pad": "explicit"}
        data |= {"pads_begin": f"{pads[0]}, {pads[1]}", "pads_end": f"{pads[2]}, {pads[3]}"}
        h = self.layer("Convolution", "", data, [x, self.constant(f"m.{name}.weight", w[f"{name}.weight"])])
        return self.node("Add", h, self.constant("", w[f"{name}.bias"].reshape(1, -1, 1, 1)))

    def norm(self, x: str, name: str, w: Mapping[str, Tensor], groups: int, wide: int) -> str:
        h = self.node("Reshape", x, self.const("", torch.tensor([0, groups, -1])), special_zero="true")
        h = self.node("MVN", h, self.const("", torch.tensor([2])), eps="9.9999999747524271e-07",
                      normalize_variance="true", eps_mode="INSIDE_SQRT")  # fmt: skip
        h = self.node("Reshape", h, self.node("ShapeOf", x), special_zero="true")
        for op, leaf in (("Multiply", "weight"), ("Add", "bias")):
            values = w[f"{name}.{leaf}"]
            h = self.node(op, h, self.constant("", values.reshape(1, len(values), *[1] * wide)))
        return h

    def silu(self, x: str) -> str:
        return self.node("Swish", x)

    def add(self, x: str, y: str) -> str:
        return self.node("Add", x, y)

    def double(self, x: str) -> str:
        scales, axes = self.const("", torch.tensor([2.0, 2.0])), self.const("", torch.tensor([2, 3]))
        return self.node("Interpolate", x, scales, axes, mode="nearest", shape_calculation_mode="scales")

    def linear(self, x: str, name: str, w: Mapping[str, Tensor]) -> str:
        h = self.node("MatMul", x, self.constant("", w[f"{name}.weight"]), transpose_a="false", transpose_b="true")
        return self.node("Add", self.constant("", w[f"{name}.bias"].reshape(1, 1, -1)), h)

    def attention(self, x: str, name: str, w: Mapping[str, Tensor], groups: int) -> str:
        size = len(w[f"{name}.to_q.bias"])
        h = self.node("Reshape", x, self.const("", torch.tensor([1, size, -1])))
        h = self.norm(h, f"{name}.group_norm", w, groups, 1)
        turn = self.const("", torch.tensor([0, 2, 1]))
        h = self.node("Transpose", h, turn)
        h = self.node("ScaledDotProductAttention", *(self.linear(h, f"{name}.to_{part}", w) for part in "qkv"),
                      causal="false")  # fmt: skip
        h = self.node("Transpose", self.linear(h, f"{name}.to_out.0", w), turn)
        return self.add(self.node("Reshape", h, self.node("ShapeOf", x)), x)

    def model(self, given: str, output: str) -> bytes:
        self.layer("Result", "out", {}, [output])
        head = ['<?xml version="1.0"?>', '<net name="made" version="11">', "<layers>"]
        lines = [*head, *self.layers, "</layers>", "<edges>", *self.edges, "</edges>", "</net>", ""]
        return "\n".join(lines).encode()

    def parameter(self, name: str) -> str:
        return self.layer("Parameter", name, {"shape": "?,?,?,?", "element_type": "f32"}, called=name)


Writer = OnnxWriter | IrWriter
SAME, POINT, DOWN = [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 1]


def draw(write: Writer, module: AutoencoderKL, side: str) -> bytes:
    """One half's graph."""
    config, w = module.config, diffusers_tensors(module)
    given = "latent_sample" if side == "decoder" else "sample"
    x = write.parameter(given) if isinstance(write, IrWriter) else given
    if side == "decoder" and config.decoder_quant_conv:
        x = write.conv(x, "post_quant_conv", w, 1, POINT)
    x = write.conv(x, f"{side}.conv_in", w, 1, SAME)
    if side == "decoder":
        x = _middle(write, x, side, w, config)
    levels = len(config.channels)
    for i in range(levels):
        stem = f"{side}.{'up' if side == 'decoder' else 'down'}_blocks.{i}"
        for j in range(config.num_res_blocks + (side == "decoder")):
            x = _resnet(write, x, f"{stem}.resnets.{j}", w, config)
            if f"{stem}.attentions.{j}.to_q.weight" in w:
                x = write.attention(x, f"{stem}.attentions.{j}", w, config.norm_groups)
        if i < levels - 1 and side == "decoder":
            x = write.conv(write.double(x), f"{stem}.upsamplers.0.conv", w, 1, SAME)
        elif i < levels - 1:
            x = write.conv(x, f"{stem}.downsamplers.0.conv", w, 2, DOWN)
    if side == "encoder":
        x = _middle(write, x, side, w, config)
    x = write.silu(write.norm(x, f"{side}.conv_norm_out", w, config.norm_groups, 2))
    x = write.conv(x, f"{side}.conv_out", w, 1, SAME)
    if side == "encoder" and config.quant_conv:
        x = write.conv(x, "quant_conv", w, 1, POINT)
    return write.model(given, x)


def _resnet(write: Writer, x: str, name: str, w: Mapping[str, Tensor], config: AutoencoderConfig) -> str:
    h = x
    for i in (1, 2):
        h = write.conv(write.silu(write.norm(h, f"{name}.norm{i}", w, config.norm_groups, 2)), f"{name}.conv{i}", w, 1,
                       SAME)  # fmt: skip
    shortcut = f"{name}.conv_shortcut"
    return write.add(write.conv(x, shortcut, w, 1, POINT) if f"{shortcut}.weight" in w else x, h)


def _middle(write: Writer, x: str, side: str, w: Mapping[str, Tensor], config: AutoencoderConfig) -> str:
    x = _resnet(write, x, f"{side}.mid_block.resnets.0", w, config)
    if config.mid_attention:
        x = write.attention(x, f"{side}.mid_block.attentions.0", w, config.norm_groups)
    return _resnet(write, x, f"{side}.mid_block.resnets.1", w, config)
