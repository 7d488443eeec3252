"""Constants of graphs: whether their numbers are of channels, or of rows, columns or positions that are as many."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from graphkit import Decoder, export, run_onnx, run_openvino, vae
from graphmade import OnnxWriter, draw
from support import SMALL, assert_close, kl, one_sentence
from torch import Tensor

from calotype.errors import WeightsError
from calotype.weights.load import load_weights

MODULE = kl(SMALL, 3)
LATENTS = torch.randn(1, 4, 4, 16, generator=torch.Generator().manual_seed(1))  # as wide as there are channels below
assert MODULE.decoder.conv_in.weight.shape[0] == LATENTS.shape[3] == 16


def written(folder: Path, write: OnnxWriter) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(draw(write, MODULE, "decoder"))
    return path


def read(path: Path) -> None:
    """The graph is read, and computed as onnxruntime does it."""
    assert_close(load_weights(path).module.decode(LATENTS), run_onnx(path, LATENTS, plain=True))


def refused(path: Path, said: str) -> None:
    """The graph is a right one, whose result is another than that of its numbers as channels' own."""
    expected = MODULE.decode(LATENTS)
    result = run_onnx(path, LATENTS, plain=True)
    assert result.shape == expected.shape and (result - expected).abs().max() > 1e-3
    with pytest.raises(WeightsError, match=said) as caught:
        load_weights(path)
    one_sentence(str(caught.value))


class Apart(OnnxWriter):
    """Biases are added after convolutions; that of the first one in a shape of its own."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def conv(self, x: str, name: str, w: Mapping[str, Tensor], stride: int, pads: list[int]) -> str:
        weight = self.constant(f"{name}.weight", w[f"{name}.weight"])
        h = self.node("Conv", x, weight, strides=[stride] * 2, pads=pads, dilations=[1, 1], group=1)
        shape = self.shape if name == "decoder.conv_in" else (-1, 1, 1)
        return self.node("Add", h, self.constant(f"{name}.bias", w[f"{name}.bias"].reshape(shape)))


@pytest.mark.parametrize("shape", [(16, 1, 1), (1, 16, 1, 1)])
def test_a_bias_of_channels(shape: tuple[int, ...], tmp_path: Path) -> None:
    read(written(tmp_path, Apart(*shape)))


@pytest.mark.parametrize("shape", [(16,), (1, 16), (1, 1, 1, 16)])
def test_a_bias_of_columns(shape: tuple[int, ...], tmp_path: Path) -> None:
    refused(written(tmp_path, Apart(*shape)), "not that of an AutoencoderKL .*where a block ends, stands Add")


class Pixels(OnnxWriter):
    """Something is added to its pixels at last, or another operation of two operands is done."""

    def __init__(self, value: Tensor, op: str = "Add") -> None:
        super().__init__()
        self.value, self.op = value, op

    def model(self, given: str, output: str) -> bytes:
        return super().model(given, self.node(self.op, output, self.constant("", self.value)))


class Latents(OnnxWriter):
    """Something is done to its latents at first."""

    def __init__(self, value: Tensor, op: str) -> None:
        super().__init__()
        self.value, self.op, self.first = value, op, True

    def conv(self, x: str, name: str, w: Mapping[str, Tensor], stride: int, pads: list[int]) -> str:
        if self.first:
            self.first = False
            x = self.node(self.op, x, self.constant("", self.value))
        return super().conv(x, name, w, stride, pads)


def test_what_is_added_to_pixels(tmp_path: Path) -> None:
    """A shift of channels is around the VAE, and one of columns is of no VAE."""
    values = torch.linspace(-1, 1, 3)
    (notice,) = load_weights(written(tmp_path, Pixels(values.reshape(3, 1, 1)))).notices
    assert "(Add) was left out" in notice
    load_weights(written(tmp_path, Pixels(torch.tensor(0.5))))
    refused(written(tmp_path, Pixels(torch.linspace(-1, 1, 2 * LATENTS.shape[3]))), "its output comes from Add")


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
def test_what_is_done_to_columns_is_of_no_vae(op: str, tmp_path: Path) -> None:
    columns = torch.linspace(0.1, 1, 2 * LATENTS.shape[3])
    refused(written(tmp_path, Pixels(columns, op)), f"its output comes from {op}")
    refused(written(tmp_path, Latents(columns[::2].contiguous(), op)), f"its input goes into {op}")
    for value in (torch.tensor(0.5), torch.linspace(0.1, 1, 3).reshape(3, 1, 1)):
        if op in ("Max", "Min") and value.ndim:
            continue
        (notice,) = load_weights(written(tmp_path, Pixels(value, op))).notices
        assert f"({op}) was left out" in notice
    (notice,) = load_weights(written(tmp_path, Latents(torch.linspace(0.1, 1, 4).reshape(1, 4, 1, 1), "Mul"))).notices
    assert "(Mul) was left out" in notice


class Scaled(OnnxWriter):
    """The scale or the shift of the first norm of 16 channels has a shape of its own."""

    def __init__(self, op: str, *shape: int) -> None:
        super().__init__()
        self.op, self.shape = op, shape

    def norm(self, x: str, name: str, w: Mapping[str, Tensor], groups: int, wide: int) -> str:
        self.first = name == "decoder.mid_block.resnets.0.norm1"
        return super().norm(x, name, w, groups, wide)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        if op == self.op and self.first and self.sizes_of(inputs[1]) == (16, 1, 1):
            inputs = (inputs[0], self.constant("", self.values[inputs[1]].reshape(self.shape)))
            self.first = False
        return super().node(op, *inputs, **attributes)

    def constant(self, name: str, value: Tensor) -> str:
        made = super().constant(name, value)
        self.values = {**getattr(self, "values", {}), made: value}
        return made

    def sizes_of(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[name].shape) if name in self.values else ()


@pytest.mark.parametrize("op", ["Mul", "Add"])
@pytest.mark.parametrize("shape", [(16,), (1, 1, 16)])
def test_a_norm_of_columns(op: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    refused(written(tmp_path, Scaled(op, *shape)), "before Conv .* stands no norm with an activation")


@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_a_norm_of_channels(op: str, tmp_path: Path) -> None:
    read(written(tmp_path, Scaled(op, 1, 16, 1, 1)))


class Products(OnnxWriter):
    """Linear layers of attention as another operation, with biases of another shape.

    Args:
        way: "Gemm", "left" (the matrix comes first), or "right".
    """

    def __init__(self, way: str, *shape: int) -> None:
        super().__init__()
        self.way, self.shape = way, shape

    def linear(self, x: str, name: str, w: Mapping[str, Tensor]) -> str:
        weight, bias = w[f"{name}.weight"], self.constant("", w[f"{name}.bias"].reshape(self.shape))
        size = len(weight)
        if self.way == "Gemm":
            flat = self.node("Reshape", x, self.sizes(-1, size))
            h = self.node("Gemm", flat, self.constant("", weight), bias, transB=1)
            return self.node("Reshape", h, self.sizes(1, -1, size))
        if self.way == "left":
            h = self.node("MatMul", self.constant("", weight), self.node("Transpose", x, perm=[0, 2, 1]))
            return self.node("Transpose", self.node("Add", h, bias), perm=[0, 2, 1])
        return self.node("Add", self.node("MatMul", x, self.constant("", weight.t().contiguous())), bias)


FEW = LATENTS[:, :, :2, :8]  # 16 positions, as many as channels


@pytest.mark.parametrize(
    ("way", "shape"), [("right", (16,)), ("right", (1, 1, 16)), ("left", (16, 1)), ("Gemm", (16,)), ("Gemm", (1, 16))]
)
def test_a_bias_of_attention(way: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = written(tmp_path, Products(way, *shape))
    assert_close(load_weights(path).module.decode(FEW), run_onnx(path, FEW, plain=True))


@pytest.mark.parametrize(
    ("way", "shape"), [("right", (16, 1)), ("left", (16,)), ("left", (1, 1, 16)), ("Gemm", (16, 1))]
)
def test_a_bias_of_positions(way: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = written(tmp_path, Products(way, *shape))
    result, other = run_onnx(path, FEW, plain=True), MODULE.decode(FEW)
    assert result.shape == other.shape and (result - other).abs().max() > 1e-3
    with pytest.raises(
        WeightsError, match=r"the sum .* is neither a residual block's nor that of attention|do not come"
    ):
        load_weights(path)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "right"), [((16, 1, 1), True), ((16,), False), ((1, 16), False)])
def test_a_bias_in_openvino(shape: tuple[int, ...], right: bool, tmp_path: Path) -> None:
    """After the first convolution."""
    openvino = pytest.importorskip("openvino")
    whole = Decoder(vae(3))
    model = openvino.convert_model(export(whole, "decoder", tmp_path / "m.onnx"))
    sums = [node for node in model.get_ops() if node.get_type_name() == "Add" and convolved(node) == (16, 3, 3, 3)]
    bias = sums[0].input_value(1).get_node().data
    assert bias.shape == (1, 16, 1, 1)
    changed = openvino.opset13.constant(bias.reshape(shape))
    sums[0].input(1).replace_source_output(changed.output(0))
    path = tmp_path / "m.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    given = LATENTS[:, :3]
    result, expected = run_openvino(path, given), whole(given)
    if right:
        assert_close(load_weights(path).module.decode(given), result)
        return
    assert result.shape == expected.shape and (result - expected).abs().max() > 1e-3
    with pytest.raises(WeightsError, match="where a block ends, stands Add"):
        load_weights(path)


def convolved(node: Any) -> tuple[int, ...]:
    """The shape of the kernel before a sum."""
    before = node.input_value(0).get_node()
    return tuple(before.input_value(1).get_shape()) if before.get_type_name() == "Convolution" else ()
