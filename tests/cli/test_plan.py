"""`calotype plan`, `calotype inspect --program`, and --memory of the commands that compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from clikit import Calotype, draw, files, levels, small_vae
from support import NARROW, kl, network, tensors_of, write

from calotype.families import PRESETS
from calotype.families.face import NetworkConfig
from calotype.families.tiny.config import TinyConfig
from calotype.weights.save import save_weights


def narrow(path: Path) -> Path:
    """A narrow kl-f8 with random weights."""
    save_weights(kl(NARROW), path, layout="ldm")
    return path


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing can be fetched, and nothing was."""

    def fetch(name: str) -> Path:
        raise AssertionError(f"{name} was fetched")

    monkeypatch.setattr("calotype.vae.loading.fetch", fetch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "empty"))


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_planned_without_their_weights(name: str, calotype: Calotype) -> None:
    for words in (("64x64",), ("64x64", "--encode", "--dtype", "bfloat16")):
        ran = calotype("plan", name, *words, "--json")
        assert (ran.code, ran.err, ran.json["vae"]) == (0, "", name)
    program = calotype("inspect", name, "--program", "--size", "64x64", "--json")
    assert (program.code, program.err) == (0, "")
    assert program.json["encode"][0]["from"] == "pixels"
    assert program.json["decode"][-1]["shape"] == [PRESETS[name].config.picture_channels, 64, 64]
    assert calotype("inspect", name, "--program").code == 0


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("config", [NARROW, TinyConfig(), TinyConfig(z_channels=32, pool=True)])
def test_a_preset_is_planned_as_its_weights_are(
    config: NetworkConfig, calotype: Calotype, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(Path("v.safetensors"), tensors_of(network(config)))
    monkeypatch.setattr("calotype.outline.PRESETS", {"taesd": replace(PRESETS["taesd"], config=config)})
    for words in (
        ("320x200",),
        ("320x200", "--encode"),
        ("1024x1024", "--memory", "200MB"),
        ("64x64", "--dtype", "float16"),
        ("64x64", "--encode", "--dtype", "float16"),
        ("64x64", "--encode", "--encode-dtype", "bfloat16"),
    ):
        loaded, known = (calotype("plan", name, *words, "--json").json for name in ("v.safetensors", "taesd"))
        assert (loaded.pop("vae"), known.pop("vae")) == ("v.safetensors", "taesd")
        assert known == loaded
    loaded, known = (calotype("inspect", name, "--program", "--json").json for name in ("v.safetensors", "taesd"))
    assert known == loaded


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_a_file_called_like_a_preset_is_read(calotype: Calotype) -> None:
    Path("taesd").mkdir()
    narrow(Path("taesd/v.safetensors"))
    assert calotype("plan", "taesd", "64x64", "--json").json["vae"] == "./taesd"
    ran = calotype("plan", "sdxl-vae", "64x64", "--device", "cuda:99")
    assert (ran.code, ran.said) == (
        2, ["calotype: There is no device 'cuda:99' here; `calotype doctor` lists those there are."],
    )  # fmt: skip
