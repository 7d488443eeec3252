"""Damaged and hostile ONNX models and models of OpenVINO: one sentence, and nothing outside their folder is read."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from graphmade import IrWriter, OnnxWriter, draw, field, onnx_node, onnx_tensor, raw, value_info, varint
from support import SMALL, kl, one_sentence

from calotype.errors import WeightsError
from calotype.weights.container import open_container
from calotype.weights.load import load_weights

MODULE = kl(SMALL)


@pytest.fixture(scope="module")
def whole() -> bytes:
    return draw(OnnxWriter(), MODULE, "decoder")


def refuse(path: Path, said: str) -> None:
    with pytest.raises(WeightsError, match=said) as caught:
        load_weights(path)
    one_sentence(str(caught.value))


def model(*parts: bytes) -> bytes:
    """An ONNX file of a graph's fields."""
    return field(1, 8) + field(2, "pytorch") + field(7, b"".join(parts)) + field(8, field(2, 17))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.9999])
def test_truncated_models(whole: bytes, share: float, tmp_path: Path) -> None:
    refuse(written(tmp_path / "a.onnx", whole[: int(share * len(whole))]), "truncated or damaged .*fetch it again")


def test_no_model_at_all(tmp_path: Path) -> None:
    refuse(written(tmp_path / "a.onnx", b""), "the file is empty")
    refuse(written(tmp_path / "a.onnx", b"\x08\x08\x12\x07pytorch"), "it holds no graph")
    refuse(written(tmp_path / "a.onnx", b"\x08" + b"\xff" * 40), "truncated or damaged")
    refuse(written(tmp_path / "a.onnx", model()), "nothing gives its graph's output")
    refuse(written(tmp_path / "a.onnx", b"version https://git-lfs.github.com/spec/v1"), "a pointer of Git LFS")


def test_a_length_beyond_the_file(tmp_path: Path) -> None:
    refuse(written(tmp_path / "a.onnx", field(1, 8) + field(2, "pytorch") + b"\x3a" + varint(2**40) + b"x"), "at byte")
    tensor = field(1, 2**30) + field(2, 1) + field(8, "w") + field(9, b"1234")
    refuse(written(tmp_path / "a.onnx", model(field(5, tensor))), "w has 4 bytes instead of 4,294,967,296")
    tensor = field(1, 2**62) + field(1, 2**62) + field(2, 1) + field(8, "w") + field(9, b"1234")
    refuse(written(tmp_path / "a.onnx", model(field(5, tensor))), "of a shape that nothing has")


@pytest.mark.slow
def test_a_graph_of_a_million_operations(tmp_path: Path) -> None:
    began = time.process_time()
    refuse(written(tmp_path / "a.onnx", model(field(1, b"") * 1_000_000)), "more than 50,000 operations")
    refuse(written(tmp_path / "a.onnx", model(field(5, b"") * 1_000_000)), "more than 50,000 constants")
    many = field(1, field(1, "x") * 1_000_000)
    refuse(written(tmp_path / "a.onnx", model(many)), "more than 500,000 parts")
    chain = [onnx_node("Neg", [f"{i}"], f"{i + 1}", {}) for i in range(40_000)]
    deep = b"".join(field(1, one) for one in chain)
    ends = field(11, value_info("0")) + field(12, value_info("40000"))
    refuse(written(tmp_path / "a.onnx", model(deep, ends)), "its output comes from Neg")
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("op", "attributes"),
    [("Transpose", {"perm": 3}), ("Transpose", {"perm": "xyz"}), ("Transpose", {"perm": [9, -9]}), ("Slice", {}),
     ("GroupNormalization", {"num_groups": 1, "epsilon": "x"})],
)  # fmt: skip
def test_attributes_of_another_kind(op: str, attributes: dict[str, Any], tmp_path: Path) -> None:
    nodes = [onnx_node("Conv", ["x", "w"], "h", {}), onnx_node(op, ["h", "s", "s", "s"], "y", attributes),
             onnx_node("Add", ["y", "s"], "out", {})]  # fmt: skip
    parts = [field(1, node) for node in nodes]
    parts += [field(5, onnx_tensor("w", torch.ones(4, 4, 1, 1))), field(5, onnx_tensor("s", torch.arange(4.0)))]
    refuse(
        written(tmp_path / "a.onnx", model(*parts, field(11, value_info("x")), field(12, value_info("out")))),
        "not that of an AutoencoderKL",
    )


def test_a_list_and_a_name_that_are_too_long(tmp_path: Path) -> None:
    pads = field(5, field(1, "pads") + field(8, b"\x01" * 5000))
    refuse(written(tmp_path / "a.onnx", model(field(1, field(4, "Conv") + pads))), "more than 4,096 numbers")
    refuse(written(tmp_path / "a.onnx", model(field(1, field(3, "x" * 5000)))), "a name in it has 5,000 bytes")


def test_an_operation_before_what_it_takes(tmp_path: Path) -> None:
    node = field(1, onnx_node("Relu", ["later\0"], "out", {}))
    refuse(written(tmp_path / "a.onnx", model(node)), r"Relu \(out\) takes 'later.*', which nothing before it gives")


def test_constants_that_would_grow(tmp_path: Path) -> None:
    """What a graph makes of constants is no larger than they are."""
    row = torch.zeros(1, 2**14)
    parts = [field(5, onnx_tensor("a", row)), field(5, onnx_tensor("b", row.t().contiguous()))]
    node = field(1, onnx_node("Mul", ["a", "b"], "big", {})) + field(1, onnx_node("Conv", ["x", "big"], "out", {}))
    ends = field(11, value_info("x")) + field(12, value_info("out"))
    refuse(written(tmp_path / "a.onnx", model(*parts, node, ends)), "comes from Conv")


@pytest.mark.parametrize(
    "place", ["../secret", "/etc/hostname", "a/../../secret", "C:\\secret", "..\\secret", "", "a\0b"]
)
def test_external_data_elsewhere(place: str, tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    tensor = onnx_tensor("w", torch.zeros(4), place={"location": place})
    refuse(written(inside / "a.onnx", model(field(5, tensor))), "is not in the model's own folder; such a path is not")


def test_external_data_that_is_not_there(tmp_path: Path) -> None:
    tensor = onnx_tensor("w", torch.zeros(4), place={"location": "w.data", "offset": "4096", "length": "16"})
    path = written(tmp_path / "a.onnx", model(field(5, tensor)))
    refuse(path, "its weights are in w.data, which is not beside it; fetch it")
    (tmp_path / "w.data").write_bytes(bytes(4100))
    refuse(path, "w.data beside it is truncated: 4,100 bytes do not hold w, which ends at 4,112")
    for change in ({"offset": "-4"}, {"length": "8"}, {"offset": "x"}, {"offset": str(2**70)}):
        tensor = onnx_tensor("w", torch.zeros(4), place={"location": "w.data", **change})
        refuse(written(tmp_path / "a.onnx", model(field(5, tensor))), "the place of w is none")


def test_numbers_of_other_types(tmp_path: Path) -> None:
    text = OnnxWriter(stored=lambda name, value: onnx_tensor(name, value).replace(b"\x10\x01", b"\x10\x08", 1))
    refuse(written(tmp_path / "a.onnx", draw(text, MODULE, "decoder")), "stored as ONNX's type 8, which is not read")


def test_typed_numbers_that_are_cut_off(tmp_path: Path) -> None:
    cut = OnnxWriter(stored=lambda name, value: onnx_tensor(name, value, typed=True)[:-4] + b"\x80\x80\x80\x80")
    refuse(written(tmp_path / "a.onnx", draw(cut, MODULE, "decoder")), "damaged")


# OpenVINO


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    write = IrWriter()
    path = written(tmp_path / "m.xml", draw(write, MODULE, "decoder"))
    path.with_suffix(".bin").write_bytes(write.held)
    return path


def edited(path: Path, pattern: str, new: str) -> Path:
    text = path.read_text()
    changed = re.sub(pattern, new, text, count=1)
    assert changed != text
    path.write_text(changed)
    return path


def test_a_bin_that_is_missing_or_truncated(ir: Path) -> None:
    content = ir.with_suffix(".bin").read_bytes()
    ir.with_suffix(".bin").write_bytes(content[:-100])
    refuse(ir, r"m\.bin is truncated: [\d,]+ bytes do not hold")
    ir.with_suffix(".bin").unlink()
    refuse(ir, r"its weights are in m\.bin, which is not beside it")


def test_xml_with_entities(ir: Path) -> None:
    entity = '<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "aaaa">]>'
    ir.write_text(entity + ir.read_text().partition("?>")[2])
    refuse(ir, "this is XML|declares a document type or entities")
    with pytest.raises(WeightsError, match="declares a document type or entities"):
        from calotype.weights.graphs.openvino_file import read_openvino

        read_openvino(ir)


@pytest.mark.parametrize(
    ("pattern", "new", "said"),
    [
        (r"</layers>", "", "its XML is truncated or damaged"),
        (r'<layer id="3"', '<layer id="2"', "has the layer 2 twice"),
        (r'from-layer="3"', 'from-layer="99999"', "joins layers that are not there"),
        (r'to-port="1"', 'to-port="-1"', "an edge to the port"),
        (r'to-port="1"', 'to-port="9999"', "is damaged|only ones that are read"),
        (r'offset="\d+"', 'offset="99999999999"', "is truncated"),
        (r'size="\d+"', 'size="12"', "has 12 bytes instead of"),
        (r'shape="\d+, \d+, \d+, \d+"', 'shape="3, x"', "where whole numbers stand"),
        (
            r'(type="Const" version="opset1"><data )element_type="f32"',
            r'\1element_type="nf4"',
            "is stored as nf4, which is not read",
        ),
        (r'type="Swish"', 'type="HSwish"', "HSwish"),
    ],
)
def test_damaged_xml(pattern: str, new: str, said: str, ir: Path) -> None:
    refuse(edited(ir, pattern, new), said)


def test_layers_that_wait_for_each_other(ir: Path) -> None:
    edited(ir, r"</edges>", '<edge from-layer="6" from-port="2" to-layer="4" to-port="7"/></edges>')
    refuse(ir, "wait for each other|nothing")


def test_deep_and_long_xml(ir: Path) -> None:
    began = time.process_time()
    ir.write_text("<net>" + "<a>" * 100_000)
    refuse(ir, "nested deeper than 32 levels")
    ir.write_text("<net><layers>" + "".join(f'<layer id="{i}"/>' for i in range(60_000)) + "</layers></net>")
    refuse(ir, "more than 50,000 operations")
    ir.write_text("<net><layers></layers></net>")
    refuse(ir, "it has no layers")
    assert time.process_time() - began < 5


def test_numbers_are_read_when_they_are_asked_for(whole: bytes, tmp_path: Path) -> None:
    container = open_container(written(tmp_path / "a.onnx", whole))
    assert container.kind == "ONNX"
    assert container.stored("decoder.conv_in.weight") == "float32"
    assert raw(container.read("decoder.conv_in.weight")) == raw(MODULE.state_dict()["decoder.conv_in.weight"])
