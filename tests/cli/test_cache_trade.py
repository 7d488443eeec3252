"""`calotype cache export` and `import` on the command line: what they say and what they end with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from clikit import Calotype, draw, files
from support import one_sentence

pytest.importorskip("pyarrow")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cache"))

from tradekit import weights_of


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small VAE's file, whose latents are SD1's."""
    return weights_of(tmp_path_factory.mktemp("vae") / "sd1.safetensors", "sd1")


@pytest.fixture
def made(sd1: Path, calotype: Calotype) -> Path:
    """A cache in `out` of three pictures in `data`."""
    for i in range(3):
        draw(f"data/{i}.png", seed=i)
    assert calotype("cache", "make", "data", "out", "--size", "16", "--flip", "--vae", sd1).code == 0
    return Path("out")


@pytest.mark.slow
def test_there_and_back(made: Path, sd1: Path, calotype: Calotype) -> None:
    ran = calotype("cache", "export", "out", "data", "--to", "sd-scripts")
    assert (ran.code, ran.said) == (0, [])
    assert ran.out == "data: latents of 3 pictures: raw samples, float32, and those of mirrored pictures.\n"
    assert "data/0_0040x0024_sd.npz" in files()
    ran = calotype("cache", "import", "data", "taken", "--vae", sd1, "--verify", "1")
    assert (ran.code, ran.said) == (0, [])
    first, last = ran.out.splitlines()
    assert first.startswith("0.png: ")
    assert first.endswith(" dB the VAE's own round trip")
    assert last == "taken: 3 samples that sd-scripts cached, made raw."
    assert calotype("cache", "verify", "taken").code == 0
    told = calotype("cache", "import", "data", "again", "--vae", sd1, "--json").json
    assert (told["samples"], told["program"], told["pictures"], len(told["checked"])) == (3, "sd-scripts", 3, 3)
    ran = calotype("cache", "make", "data", "taken", "--size", "16", "--flip", "--vae", sd1, "--value", "sample",
                   "--store", "float32")  # fmt: skip
    assert ran.code == 2  # what was taken over is never mixed with what is made here
    assert "seed -1, not 0" in ran.said[0]


def test_as_json_and_what_is_left_out_is_said(made: Path, calotype: Calotype) -> None:
    ran = calotype("cache", "export", "out", "made", "--to", "mds", "--json")
    assert ran.said == ["calotype: An MDS data set has no place for latents of mirrored pictures; they were left out."]
    told = ran.json
    assert (told["to"], told["samples"], told["value"], told["space"]) == ("mds", 3, "sample", "model")
    ran = calotype("cache", "export", "out", "arrays", "--to", "numpy", "--bucket", "16x16")
    assert ran.out == "arrays: latents of 3 pictures: raw modes, float16, and those of mirrored pictures.\n"


@pytest.mark.parametrize(("words", "said"), [
    ("export out made --to musubi", "musubi-tuner has no pictures' latents of format 'sd1'"),
    ("export out made --to lightningdit", "LightningDiT reads a class for each picture"),
    ("export out made --to numpy --dtype bfloat16", "holds no bfloat16"),
    ("export out made --to numpy --bucket many", "'many' is no size"),
    ("export out out/made --to numpy", "this is the cache itself, or lies in it"),
    ("export out data --to numpy", "there is something in this folder already"),
    ("export out data/0.png --to numpy", "DEST data/0.png"),
    ("export data made --to numpy", "there is no cache here"),
    ("import data new", "no .npz of sd-scripts and no .safetensors of musubi-tuner is in it"),
    ("import nothing new", "SOURCE nothing: there is no such folder"),
    ("import data out", "OUT out: there is something already"),
    ("import data data/0.png", "OUT data/0.png"),
])  # fmt: skip
def test_misuse_is_one_sentence_and_writes_nothing(
    words: str, said: str, made: Path, sd1: Path, calotype: Calotype
) -> None:
    before = files()
    ran = calotype("cache", *words.split(), *(("--vae", sd1) if "import" in words else ()))
    assert ran.code == 2
    assert len(ran.said) == 1
    assert said in ran.said[0]
    one_sentence(ran.said[0])
    assert files() == before


@pytest.mark.slow
def test_a_wrong_vae_ends_with_one(made: Path, sd1: Path, tmp_path: Path, calotype: Calotype) -> None:
    calotype("cache", "export", "out", "data", "--to", "sd-scripts")
    other = weights_of(tmp_path / "other.safetensors", "sd1", seed=1)
    ran = calotype("cache", "import", "data", "taken", "--vae", other)
    assert ran.code == 1
    assert "another VAE made them" in ran.said[0]
    one_sentence(ran.said[0])
    assert not Path("taken").exists()


@pytest.mark.parametrize(("command", "words"), [("export", "DEST"), ("import", "SOURCE")])
def test_every_command_explains_itself(command: str, words: str, calotype: Calotype) -> None:
    ran = calotype("cache", command, "--help")
    assert ran.code == 0
    assert words in ran.out
    assert "Example: calotype cache" in ran.out
