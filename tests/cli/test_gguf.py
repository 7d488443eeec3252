"""GGUF on the command line: written, told, and read by the commands that take weights."""

from __future__ import annotations

from pathlib import Path

import ggufkit
import pytest
from clikit import Calotype, draw
from ggufkit import Type
from support import NARROW, kl, tensors_of, write

from calotype.weights.container import open_container


def test_a_file_is_written_told_and_read_again(calotype: Calotype, vae: Path) -> None:
    source = calotype("inspect", vae, "--json").json
    for dtype in ("float32", "float16", "bfloat16"):
        ran = calotype("convert", vae, "vae.gguf", "--layout", "gguf", "--dtype", dtype)
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.rstrip().endswith("vae.gguf")
        told = calotype("inspect", "vae.gguf", "--json").json
        assert (told["container"], told["dtypes"]) == ("GGUF", [dtype])
        assert told["latent_format"] == source["latent_format"]
        assert told["layout"] == source["layout"]
    assert calotype("convert", vae, "vae.gguf", "--layout", "gguf").code == 0
    assert calotype("convert", "vae.gguf", "back.safetensors", "--layout", "ldm").code == 0
    first, back = open_container(vae), open_container(Path("back.safetensors"))
    assert first.shapes == back.shapes
    assert all(first.read(key).equal(back.read(key)) for key in first.shapes)
    draw("a.png")
    assert calotype("encode", "a.png", "a.latent.safetensors", "--vae", "vae.gguf").code == 0
    assert calotype("decode", "a.latent.safetensors", "b.png", "--vae", "vae.gguf").code == 0


def test_what_was_quantised_is_said(calotype: Calotype) -> None:
    tensors = tensors_of(kl(NARROW))
    ggufkit.write(Path("vae.gguf"), ggufkit.as_written(tensors, Type.F16))
    ran = calotype("inspect", "vae.gguf", "--latent-format", "sd1")
    assert (ran.code, ran.err) == (0, "")
    assert "GGUF" in ran.out
    path = write(Path("x.safetensors"), tensors | {"decoder.conv_in.weight_scale": ggufkit.torch.tensor(2.0)})
    ran = calotype("inspect", path, "--latent-format", "sd1")
    assert ran.code == 0
    assert "scaled float32" in ran.out
    assert "1 of" in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("convert", "VAE", "out", "--layout", "gguf"), "give it a name that ends in .gguf"),
        (("convert", "VAE", "out.gguf", "--layout", "ldm"), "give it a name that ends in .safetensors"),
        (("convert", "VAE", "out.gguf", "--layout", "gguf", "--dtype", "float8"), "float8"),
    ],
)
def test_misuse(calotype: Calotype, vae: Path, words: tuple[str, ...], said: str) -> None:
    ran = calotype(*(vae if word == "VAE" else word for word in words))
    assert ran.code == 2
    assert said in " ".join(ran.err.split())
    assert not Path("out.gguf").exists()


def test_one_tensor_is_no_vae(calotype: Calotype) -> None:
    shape = ggufkit.Written(b"first_stage_model.decoder.conv_in.weight", (3, 3, 4, 32), Type.F16, bytes(2304))
    ggufkit.write(Path("vae.gguf"), [shape], [ggufkit.says("general.architecture", "sd1")])
    ran = calotype("inspect", "vae.gguf")
    assert ran.code == 1
    assert "vae.gguf: read as GGUF: " in ran.err
