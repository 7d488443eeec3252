"""ONNX models and models of OpenVINO, of a network so small that their graphs are most of them."""

from __future__ import annotations

from pathlib import Path

from fuzzkit import Accepted, Case
from graphmade import IrWriter, OnnxWriter, draw, onnx_tensor, raw
from seeds_weights import TINIEST, read
from support import SMALL, kl
from torch import Tensor


def cases(folder: Path) -> list[Case]:
    module, kept = kl(TINIEST), kl(SMALL)
    held = bytearray()

    def outside(name: str, value: Tensor) -> bytes:
        place = {"location": "numbers.bin", "offset": str(len(held)), "length": str(value.nbytes)}
        held.extend(raw(value))
        return onnx_tensor(name, value, place=place)

    whole = draw(OnnxWriter(stored=outside), module, "decoder")
    ir = IrWriter()
    xml = draw(ir, module, "encoder")

    def beside(path: Path) -> Accepted:
        """A model alone, whose numbers are whole and in another file."""
        (path.parent / "numbers.bin").write_bytes(held)
        return read(path)

    def numbers(path: Path) -> Accepted:
        """Numbers alone, whose model is whole."""
        model = path.with_name("outside.onnx")
        model.write_bytes(whole)
        (path.parent / "numbers.bin").write_bytes(path.read_bytes())
        return read(model)

    def with_bin(path: Path) -> Accepted:
        """XML alone, whose numbers are whole."""
        path.with_suffix(".bin").write_bytes(ir.held)
        return read(path)

    return [
        Case("decoder.onnx", draw(OnnxWriter(), module, "decoder"), read),
        Case("attention.onnx", draw(OnnxWriter(named=False), kept, "encoder"), read),
        Case("typed.onnx", draw(OnnxWriter(stored=lambda n, v: onnx_tensor(n, v, typed=True)), module, "encoder"),
             read),
        Case("half.onnx", draw(OnnxWriter(stored=lambda n, v: onnx_tensor(n, v.half() if v.is_floating_point() else v)),
                               module, "encoder"), read),
        Case("outside.onnx", whole, beside),
        Case("numbers.data", bytes(held), numbers),
        Case("words.xml", xml, with_bin, text=True),
        Case("bytes.xml", xml, with_bin),
    ]  # fmt: skip
