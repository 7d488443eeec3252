"""`calotype doctor --device`: what it says, keeps and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from clikit import Calotype, draw
from support import one_sentence

from calotype.steps import Direction
from calotype.vae import trials
from calotype.vae.tensors import Coder
from calotype.vae.trials import Way, compute, record_path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(trials.TRUST, raising=False)
    monkeypatch.setattr(trials, "HEIGHT", 16)
    monkeypatch.setattr(trials, "WIDTH", 24)
    return tmp_path / "cache"


def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that encodes a wrong picture in bfloat16."""

    def run(coder: Coder, direction: Direction, x: torch.Tensor, way: Way) -> torch.Tensor:
        if direction == "encode" and coder.dtype == torch.bfloat16:
            x = x.flip(2)
        return compute(coder, direction, x, way)

    first = trials.try_device
    monkeypatch.setattr(trials, "try_device", lambda *given, **options: first(*given, run=run, **options))


@pytest.mark.slow
def test_a_device_that_is_right(calotype: Calotype, vae: Path) -> None:
    ran = calotype("doctor", "--device", "cpu", "--vae", vae)
    assert (ran.code, ran.err) == (0, "")
    assert "with small.safetensors, against the CPU's float32:" in ran.out
    assert ran.said == []
    assert ran.out.rstrip().endswith("cpu computes right.")
    rows = [line for line in ran.out.splitlines() if line.count(" dB") == 2]
    assert len(rows) == 9
    assert record_path(torch.device("cpu")).exists()
    draw("a.png")
    assert calotype("encode", "a.png", "--vae", vae, "--device", "cpu").code == 0


@pytest.mark.slow
def test_a_device_that_is_wrong(calotype: Calotype, vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        broken(patch)
        ran = calotype("doctor", "--device", "cpu", "--vae", vae)
        assert ran.code == 1
        assert ran.out.count("WRONG: at least 20") == 3
        assert "cpu computes wrong numbers without saying so: encodes in bfloat16" in ran.out
        told = calotype("doctor", "--device", "cpu", "--vae", vae, "--json")
    assert told.code == 1
    assert told.json["right"] is False
    wrong = {(one["direction"], one["dtype"]) for one in told.json["trials"] if one["verdict"] == "wrong"}
    assert wrong == {("encode", "bfloat16")}
    assert told.json["kept"] == str(record_path(torch.device("cpu")))
    draw("a.png")
    encode: tuple[Any, ...] = ("encode", "a.png", "--vae", vae, "--device", "cpu", "--encode-dtype", "bfloat16")
    ran = calotype(*encode)
    assert (ran.code, ran.out) == (2, "")
    one_sentence(ran.said[0].removeprefix("calotype: "))
    assert "The device cpu encodes wrong in bfloat16" in ran.err
    assert calotype(*encode[:-2]).code == 0
    monkeypatch.setenv(trials.TRUST, "1")
    assert calotype(*encode).code == 0


def test_what_cannot_be_kept_is_said(calotype: Calotype, vae: Path, cache: Path) -> None:
    cache.write_text("a file where the folder would be")
    ran = calotype("doctor", "--device", "cpu", "--vae", vae, "--json")
    assert ran.code == 0
    assert ran.json["kept"] is None
    assert "This is not kept:" in ran.err


def test_what_is_refused(calotype: Calotype, vae: Path) -> None:
    for words, said in (
        (("--device", "tpu"), "There is no device 'tpu' here"),
        (("--device", "cpu", "--vae", "nothing"), "neither a file, nor a folder, nor a preset"),
        (("--vae", vae), "--vae goes with --device"),
    ):
        ran = calotype("doctor", *words)
        assert (ran.code, ran.out) == (2, ""), words
        assert said in ran.err
        one_sentence(ran.said[0].removeprefix("calotype: "))


def test_without_a_device_none_is_tried(calotype: Calotype, cache: Path) -> None:
    told = calotype("doctor", "--json").json
    assert "trials" not in told
    assert told["builtin"].startswith("VAE('builtin'")
    assert not cache.exists()
