"""Weights that a graph widens itself, and norms as one operation: each held against what its program makes of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphkit import HALVES, SHAPES, export, run_onnx, run_openvino, vae
from graphmade import OnnxWriter, draw, onnx_halves
from support import SMALL, assert_close, kl, one_sentence, same_tensors
from torch import Tensor

from calotype.errors import WeightsError
from calotype.weights.load import load_weights

MODULE = kl(SMALL, 4)
LATENTS = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(2))


def written(folder: Path, write: OnnxWriter) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(draw(write, MODULE, "decoder"))
    return path


def refused(path: Path, said: str) -> None:
    with pytest.raises(WeightsError, match=said) as caught:
        load_weights(path)
    one_sentence(str(caught.value))


# --- ONNX's DequantizeLinear ---

LEVELS = {"int4": (-8, 7), "uint4": (0, 15), "int8": (-128, 127), "uint8": (0, 255)}


class Few(OnnxWriter):
    """Keeps kernels and matrices as whole numbers with scales.

    Args:
        kind: of the numbers.
        axis: along which scales differ; None for one scale.
        block: so many in a row along the axis share one; 0 for all that are at one place of it.
        zero: whether zero is another number than 0 (of those without a sign, than none given).
    """

    def __init__(self, kind: str, axis: int | None, block: int = 0, *, zero: bool = True) -> None:
        super().__init__(version=21)
        self.kind, self.axis, self.block, self.zero = kind, axis, block, zero

    def constant(self, name: str, value: Tensor) -> str:
        if value.ndim < 2 or not value.is_floating_point() or value.numel() < 64 or value.shape[-1] == 1:
            return super().constant(name, value)
        low, high = (self._of_parts(value, reduce) for reduce in (torch.amin, torch.amax))
        least, most = LEVELS[self.kind]
        scale = (high - low) / (most - least) if self.zero else torch.maximum(high, -low) / most
        zero = torch.round(least - low / scale).clamp(least, most) if self.zero else torch.zeros_like(scale)
        rounded = torch.round(value / self._wide(scale, value) + self._wide(zero, value)).clamp(least, most)
        parts = [self._whole(f"{name}_quantized" if name else "", rounded), self._scales(scale)]
        if self.zero:
            parts.append(self._whole("", zero))
        more = {} if self.axis is None else {"axis": self.axis}
        return self.node("DequantizeLinear", *parts, **more, **({"block_size": self.block} if self.block else {}))

    def _scales(self, scale: Tensor) -> str:
        return super().constant("", scale)

    def _of_parts(self, value: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
        """One number of all that share a scale."""
        if self.axis is None:
            return reduce(value)
        if not self.block:
            return reduce(value.movedim(self.axis, 0).flatten(1), 1)
        return torch.stack([reduce(part, self.axis) for part in value.split(self.block, self.axis)], self.axis)

    def _wide(self, scale: Tensor, value: Tensor) -> Tensor:
        """Scales for each number."""
        if self.axis is None:
            return scale
        if self.block:
            return scale.repeat_interleave(self.block, self.axis).narrow(self.axis, 0, value.shape[self.axis])
        return scale.reshape([-1 if i == self.axis % value.ndim else 1 for i in range(value.ndim)])

    def _whole(self, name: str, value: Tensor) -> str:
        if "4" not in self.kind:
            return super().constant(name, value.to(getattr(torch, self.kind)))
        name = name or f"onnx::W_{len(self.constants)}"
        self.constants.append(onnx_halves(name, value, signed=self.kind == "int4"))
        return name


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize(("axis", "block"), [(None, 0), (0, 0), (1, 0), (-1, 0), (0, 4), (1, 3), (-2, 2), (1, 99)])
def test_what_a_graph_widens(kind: str, axis: int | None, block: int, tmp_path: Path) -> None:
    path = written(tmp_path, Few(kind, axis, block))
    loaded = load_weights(path)
    assert loaded.dtypes == ("float32", kind)
    assert f"are stored in {kind} with scales and were widened" in loaded.notices[0]
    assert not same_tensors(loaded.module, MODULE)
    assert_close(loaded.module.decode(LATENTS), run_onnx(path, LATENTS, plain=True))


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8"])
@pytest.mark.parametrize(("axis", "block"), [(None, 0), (0, 0), (1, 3)])
def test_without_zero_points(kind: str, axis: int | None, block: int, tmp_path: Path) -> None:
    path = written(tmp_path, Few(kind, axis, block, zero=False))
    assert_close(load_weights(path).module.decode(LATENTS), run_onnx(path, LATENTS, plain=True))


def test_too_few_scales(tmp_path: Path) -> None:
    class Fewer(Few):
        def _scales(self, scale: Tensor) -> str:
            return super()._scales(scale[:1])

    refused(
        written(tmp_path, Fewer("int8", 0, 4)), "the file is damaged: DequantizeLinear .* can't be of its constants"
    )


# --- ONNX's GroupNormalization ---


class Grouped(OnnxWriter):
    """Norms as one operation: with scales of channels (from version 21 on), or of groups and channels' after it.

    Args:
        ones: whether groups' scales and shifts change nothing.
        after: whether those of channels come after it.
    """

    def __init__(self, version: int, *, ones: bool = True, after: bool = True) -> None:
        super().__init__(version=version)
        self.ones, self.after = ones, after

    def norm(self, x: str, name: str, w: Mapping[str, Tensor], groups: int, wide: int) -> str:
        scale, shift = w[f"{name}.weight"], w[f"{name}.bias"]
        if self.version >= 21:
            parts = self.constant(f"{name}.weight", scale), self.constant(f"{name}.bias", shift)
            return self.node("GroupNormalization", x, *parts, num_groups=groups, epsilon=1e-6)
        few = torch.linspace(0.5, 1.5, groups)
        first, second = (torch.ones(groups), torch.zeros(groups)) if self.ones else (few, few - 1)
        parts = self.constant("", first), self.constant("", second)
        h = self.node("GroupNormalization", x, *parts, num_groups=groups, epsilon=1e-6)
        for op, values in (("Mul", scale), ("Add", shift)) if self.after else ():
            h = self.node(op, h, self.constant("", values.reshape(-1, *[1] * wide)))
        return h


def test_a_norm_of_channels_as_one_operation(tmp_path: Path) -> None:
    path = written(tmp_path, Grouped(21))
    loaded = load_weights(path)
    state = loaded.module.state_dict()
    own = {key: value for key, value in MODULE.state_dict().items() if key in state and key.startswith("decoder")}
    assert own and all(torch.equal(state[key], value) for key, value in own.items())
    assert_close(loaded.module.decode(LATENTS), run_onnx(path, LATENTS, plain=True))


@pytest.mark.parametrize(("ones", "after"), [(True, True), (False, False)])
def test_a_norm_of_groups_as_one_operation(ones: bool, after: bool, tmp_path: Path) -> None:
    path = written(tmp_path, Grouped(18, ones=ones, after=after))
    assert_close(load_weights(path).module.decode(LATENTS), run_onnx(path, LATENTS, plain=True))


def test_scales_of_groups_and_of_channels_are_refused(tmp_path: Path) -> None:
    refused(written(tmp_path, Grouped(18, ones=False)), "not that of an AutoencoderKL .*Mul|no norm with SiLU")


def test_scales_of_another_number_of_groups(tmp_path: Path) -> None:
    class Other(Grouped):
        def constant(self, name: str, value: Tensor) -> str:
            return super().constant(name, value[:2] if value.shape == (4,) and value[0].abs() == 0.5 else value)

    refused(written(tmp_path, Other(18, ones=False, after=False)), "has 2 numbers for 4 groups")


# --- OpenVINO ---

Change = Callable[[np.ndarray[Any, Any]], Any]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openvino")
    return export(HALVES["decoder"](vae(6)), "decoder", tmp_path_factory.mktemp("onnx") / "m.onnx")


def changed(exported: Path, folder: Path, change: Change) -> Path:
    """A decoder that OpenVINO wrote, with its kernels and matrices replaced."""
    openvino = pytest.importorskip("openvino")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(exported)
    places = {"Convolution": 1, "MatMul": 1}
    count = 0
    for node in model.get_ops():
        if node.get_type_name() not in places:
            continue
        source = node.input_value(places[node.get_type_name()]).get_node()
        if source.get_type_name() != "Constant" or source.data.size < 64:
            continue
        node.input(places[node.get_type_name()]).replace_source_output(change(source.data.astype(np.float32)).output(0))
        count += 1
    assert count > 8
    path = folder / "q.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def held(path: Path, kind: str | None) -> None:
    """What is read computes as OpenVINO does."""
    given = torch.randn(SHAPES["decoder"], generator=torch.Generator().manual_seed(3))
    loaded = load_weights(path)
    if kind is not None:
        assert kind in loaded.dtypes
        assert f"are stored in {kind} with scales and were widened" in loaded.notices[0]
    assert_close(loaded.module.float().decode(given), run_openvino(path, given))


@pytest.mark.slow
@pytest.mark.parametrize(("levels", "parts"), [(256, "one"), (16, "channels"), (255, "two ranges")])
def test_fake_quantisation(levels: int, parts: str, exported: Path, tmp_path: Path) -> None:
    opset = pytest.importorskip("openvino").opset13

    def change(value: np.ndarray[Any, Any]) -> Any:
        axes = None if parts == "one" else tuple(range(1, value.ndim))
        low, high = (np.asarray(reduce(value, axis=axes, keepdims=True), np.float32) for reduce in (np.min, np.max))
        low, high = low * 0.9, high * 0.8  # some numbers are beyond
        given = (low * 1.1, high * 0.7) if parts == "two ranges" else (low, high)
        ends = [opset.constant(one.astype(np.float32)) for one in (low, high, *given)]
        return opset.fake_quantize(opset.constant(value), *ends, levels)

    held(changed(exported, tmp_path, change), None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "group", "zero"),
    [("u4", 0, True), ("u4", 2, True), ("i4", 2, False), ("i4", 0, True), ("u8", 2, True), ("i8", 0, False)],
)
def test_compressed_weights(kind: str, group: int, zero: bool, exported: Path, tmp_path: Path) -> None:
    """Whole numbers, less a zero point, times a scale, of output channels or of groups in them."""
    openvino = pytest.importorskip("openvino")
    opset = openvino.opset13
    least, most = LEVELS[{"u": "uint", "i": "int"}[kind[0]] + kind[1]]

    def change(value: np.ndarray[Any, Any]) -> Any:
        grouped = group and value.shape[1] % group == 0
        parts = value.reshape(len(value), -1, group, *value.shape[2:]) if grouped else value
        axes = tuple(range(2 if grouped else 1, parts.ndim))
        low, high = (reduce(parts, axis=axes, keepdims=True) for reduce in (np.min, np.max))
        low, high = np.minimum(low, -1e-3), np.maximum(high, 1e-3)
        scale = (high - low) / (most - least)
        point = np.round(least - low / scale).clip(least, most)
        if not zero:
            scale, point = np.maximum(high, -low) / most, np.zeros_like(scale)
        whole = np.round(parts / scale + point).clip(least, most)
        type_ = getattr(openvino.Type, kind)
        made = opset.convert(opset.constant(whole.astype(np.int64), dtype=type_), "f16")
        if zero:
            points = opset.convert(opset.constant(point.astype(np.int64), dtype=type_), "f16")
            made = opset.subtract(made, points)
        made = opset.multiply(made, opset.constant(scale.astype(np.float16)))
        if grouped:
            made = opset.reshape(made, opset.constant(np.array(value.shape)), False)
        return opset.convert(made, "f32")

    held(changed(exported, tmp_path, change), {"u": "uint", "i": "int"}[kind[0]] + kind[1])


@pytest.mark.slow
def test_fake_quantisation_of_activations_is_refused(exported: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    path = changed(exported, tmp_path, lambda value: openvino.opset13.constant(value))
    model = openvino.Core().read_model(path)
    last = next(node for node in model.get_ops() if node.get_type_name() == "Convolution")
    ends = [openvino.opset13.constant(np.float32(one)) for one in (-3, 3, -3, 3)]
    few = openvino.opset13.fake_quantize(last.input_value(0), *ends, 256)
    last.input(0).replace_source_output(few.output(0))
    openvino.save_model(model, tmp_path / "a.xml", compress_to_fp16=False)
    refused(tmp_path / "a.xml", "FakeQuantize")


@pytest.mark.slow
def test_parts_of_constants(exported: Path, tmp_path: Path) -> None:
    """OpenVINO's Slice takes its steps before its axes."""
    openvino = pytest.importorskip("openvino")
    opset = openvino.opset13

    def change(value: np.ndarray[Any, Any]) -> Any:
        ends = [opset.constant(np.array([one])) for one in (0, len(value), 1, 0)]
        return opset.slice(opset.constant(np.concatenate([value, -value])), *ends)

    held(changed(exported, tmp_path, change), None)
