"""GGUF on the command line: written, told and read again."""

from __future__ import annotations

from pathlib import Path

import ggufkit
import pytest
from clikit import Calotype
from ggufkit import Type

from calotype.weights.container import open_container


@pytest.mark.slow
def test_a_file_is_written_told_and_read_again(calotype: Calotype, vae: Path) -> None:
    assert calotype("convert", vae, "half.gguf", "--layout", "gguf", "--dtype", "float16").code == 0
    told = calotype("inspect", "half.gguf", "--json").json
    assert (told["container"], told["dtypes"], told["layout"]) == ("GGUF", ["float16"], "calotype")
    assert told["latent_format"]["name"] == "small"
    ran = calotype("convert", vae, "vae.gguf", "--layout", "gguf")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "calotype -> gguf: vae.gguf\n"
    assert calotype("convert", "vae.gguf", "back.safetensors", "--layout", "ldm").code == 0
    first, back = open_container(vae), open_container(Path("back.safetensors"))
    assert first.shapes == back.shapes
    assert all(first.read(key).equal(back.read(key)) for key in first.shapes)


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
