"""What commands say of files that they leave out of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clikit import Calotype, draw
from test_train import RECIPE, WORDS

pytestmark = pytest.mark.filterwarnings("always::calotype.errors.CalotypeWarning")

SAID = "2 files were left out: 1 .cr3 (a camera raw file), 1 .mov (a video)."


def mixed(folder: str, count: int = 1) -> None:
    """Pictures of kinds that are seldom met, and what is none."""
    for i in range(count):
        draw(f"{folder}/{i}.png", 64, 64, seed=i)
        Path(f"{folder}/{i}.png").rename(f"{folder}/{i}.JFIF")
    draw(f"{folder}/b.ppm", 64, 64)
    for name in ("c.cr3", "d.mov", "e.txt", ".DS_Store", "Thumbs.db"):
        Path(folder, name).write_bytes(b"\0" * 40)


@pytest.mark.slow
def test_evaluate(calotype: Calotype, vae: Path) -> None:
    mixed("d")
    words = ["evaluate", "d", "--vae", vae, "--report", "r", "--metrics", "psnr"]
    ran = calotype(*words)
    assert (ran.code, ran.said) == (0, [f"calotype: {SAID}"])
    assert "2 pictures" in ran.out
    told = json.loads(Path("r/results.json").read_text())
    assert told["left_out"] == [
        {"suffix": ".cr3", "count": 1, "why": "a camera raw file"}, {"suffix": ".mov", "count": 1, "why": "a video"},
    ]  # fmt: skip
    assert told["warnings"] == [SAID]
    assert SAID in Path("r/index.html").read_text()
    ran = calotype(*words, "--json")
    assert (ran.json["left_out"], ran.said) == (told["left_out"], [f"calotype: {SAID}"])
    ran = calotype(*words, "--json", "--shard", "1/2")
    assert ran.json["left_out"] == told["left_out"]
    for name in ("c.cr3", "d.mov"):
        Path("d", name).unlink()
    ran = calotype(*words, "--json")
    assert (ran.json["left_out"], ran.json["warnings"], ran.err) == ([], [], "")


@pytest.mark.slow
def test_probe(calotype: Calotype, vae: Path) -> None:
    mixed("d", 3)
    ran = calotype("probe", vae, "d", "--report", "r", "--lpips", "none")
    assert (ran.code, [line for line in ran.said if "left out" in line]) == (0, [f"calotype: {SAID}"])
    assert [one["suffix"] for one in json.loads(Path("r/probe.json").read_text())["files_left_out"]] == [
        ".cr3", ".mov",
    ]  # fmt: skip
    assert "1 .cr3 (a camera raw file), 1 .mov (a video)" in Path("r/index.html").read_text()


def test_train(calotype: Calotype) -> None:
    Path("tiny.toml").write_text(RECIPE)
    mixed("data/pictures", 4)
    ran = calotype(*WORDS, "--set", "steps=1", "--set", "cooldown=0")
    assert ran.code == 0
    assert [line for line in ran.said if "left out" in line] == [f"calotype: data/pictures: {SAID}"]


def test_direction(calotype: Calotype, vae: Path) -> None:
    mixed("a", 3)
    for i in range(4):
        draw(f"b/{i}.png", 64, 64, seed=i + 9)
    ran = calotype("direction", "learn", "a", "b", "--vae", vae, "--out", "way.safetensors")
    assert (ran.code, ran.said) == (0, [f"calotype: a: {SAID}"])


@pytest.mark.parametrize("words", [("evaluate", "d"), ("probe", "builtin", "d")])
def test_a_folder_of_nothing_else_is_refused(words: tuple[str, ...], calotype: Calotype) -> None:
    Path("d").mkdir()
    for i in range(3):
        Path(f"d/{i}.NEF").write_bytes(b"II*\0" + bytes(60))
    ran = calotype(*words, "--report", "r")
    assert (ran.code, ran.out) == (2, "")
    assert ran.said == ["calotype: d: there is no picture in it that can be read, but 3 .nef (a camera raw file)."]
    assert not Path("r").exists()


def test_doctor_tells_what_can_be_read(calotype: Calotype, monkeypatch: pytest.MonkeyPatch) -> None:
    told = calotype("doctor", "--json").json
    assert {".jpg", ".jfif", ".gif", ".jp2"} <= set(told["picture_suffixes"])
    assert {"heif", "jxl", "jpg_2000"} <= told["picture_formats"].keys()
    monkeypatch.setattr("calotype.pixels.plugins.lacking", lambda name: f"pip install {name.lower()}-plugin")
    ran = calotype("doctor")
    assert "heif no, jxl no" in ran.out
    assert "pip install heif-plugin" in ran.out
