"""`calotype plan`, `calotype inspect --program`, and --memory of the commands that compute."""

from __future__ import annotations

from pathlib import Path

import pytest
from clikit import Calotype, draw, files, levels, small_vae
from support import NARROW, kl

from calotype.weights.save import save_weights


def narrow(path: Path) -> Path:
    """A narrow kl-f8 with random weights."""
    save_weights(kl(NARROW), path, layout="ldm")
    return path


def test_a_plan_says_what_it_takes(calotype: Calotype) -> None:
    narrow(Path("v.safetensors"))
    plain = calotype("plan", "v.safetensors", "500x300", "--json").json
    assert (plain["width"], plain["height"], plain["direction"]) == (504, 304, "decode")
    assert plain["passes"][-1]["makes"] == "decoder.conv_out"
    assert plain["passes"][-1]["shape"] == [3, 304, 504]
    assert plain["spilled_bytes"] == 0
    tight = calotype("plan", "v.safetensors", "500x300", "--memory", "29MB", "--json").json
    assert tight["peak_bytes"] <= 29_000_000 < plain["peak_bytes"]
    assert tight["flops"] > plain["flops"] or tight["spilled_bytes"] > 0
    encode = calotype("plan", "v.safetensors", "64x64", "--encode", "--json").json
    assert encode["passes"][-1]["makes"] == "quant_conv"


def test_a_plan_is_readable(calotype: Calotype) -> None:
    narrow(Path("v.safetensors"))
    ran = calotype("plan", "v.safetensors", "4096x4096", "--memory", "2GB")
    assert (ran.code, ran.err) == (0, "")
    for words in ("4096x4096, decode", "of 2GB", "TFLOP", "decoder.mid.attn_1", "Attention over all positions costs"):
        assert words in " ".join(ran.out.split())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("64x64", "--memory", "1kB"), 1, "the smallest plan takes"),
        (("64x64", "--memory", "much"), 2, "'much' is no amount of memory"),
        (("64",), 2, "'64' is no size"),
        (("0x64",), 2, "'0x64' is no size"),
        (("99999x64",), 2, "up to 65536"),
    ],
)
def test_what_can_not_be_planned(calotype: Calotype, words: tuple[str, ...], code: int, said: str) -> None:
    ran = calotype("plan", "builtin", *words)
    assert (ran.code, ran.out, len(ran.said)) == (code, "", 1)
    assert said in ran.err


def test_a_program_lists_every_step(calotype: Calotype) -> None:
    narrow(Path("v.safetensors"))
    document = calotype("inspect", "v.safetensors", "--program", "--size", "64x32", "--json").json
    last = document["decode"][-1]
    assert last["does"] == "GroupNorm(32), silu, conv 3x3"
    assert last["shape"] == [3, 32, 64]
    assert last["flops"] == 2 * 9 * 32 * 3 * 32 * 64
    assert last["bytes"] == 4 * 3 * 32 * 64
    ran = calotype("inspect", "v.safetensors", "--program")
    assert "attention over all positions" in " ".join(ran.out.split())
    assert "in all" in ran.out


def test_the_same_picture_in_less_memory(calotype: Calotype) -> None:
    small_vae(Path("v.safetensors"))
    draw("a.png", width=300, height=200)
    assert calotype("encode", "a.png", "--vae", "v.safetensors", "--memory", "1GB").code == 0
    for out, memory in (("one", "1GB"), ("two", "20MB")):
        ran = calotype("decode", "a.latents.safetensors", "--vae", "v.safetensors", "--out", out, "--memory", memory)
        assert ran.code == 0, ran.err
    assert abs(levels("one/a-decoded.png") - levels("two/a-decoded.png")).max() <= 1
    assert levels("one/a-decoded.png").shape == (200, 300, 3)


@pytest.mark.parametrize("command", ["encode", "decode", "reconstruct"])
def test_too_little_memory_leaves_nothing(calotype: Calotype, command: str) -> None:
    small_vae(Path("v.safetensors"))
    draw("a.png")
    calotype("encode", "a.png", "--vae", "v.safetensors")
    source = "a.latents.safetensors" if command == "decode" else "a.png"
    before = files()
    ran = calotype(command, source, "--vae", "v.safetensors", "--out", "o", "--memory", "10kB")
    assert (ran.code, ran.out, len(ran.said)) == (1, "", 1)
    assert "--memory" in ran.err
    assert files() == before
    ran = calotype(command, source, "--vae", "v.safetensors", "--out", "o", "--memory", "-1")
    assert ran.code == 2
