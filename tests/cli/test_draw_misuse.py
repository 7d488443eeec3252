"""`draw`, `redraw` and `morph --prompts` with checkpoints, and as people misuse them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clikit import Calotype, draw, files, levels
from PIL import Image, ImageDraw

from calotype.draw.record import read_record
from calotype.latent_files import load_latents
from calotype.vae import load

pytest_plugins = ["drawing_fixtures"]
pytestmark = pytest.mark.usefixtures("builtin_drawing")


# --- checkpoints, whose own tests lie in tests/draw ---


class FakeCheckpoint:
    """What `Checkpoint` shows of itself; draws flat pictures of a colour that its arguments give."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.vae_name, self.vae_sha256 = "builtin", "1" * 64
        vae = load(device="cpu")
        self.latent_format = vae.latent_format
        self.pipe = type("Pipe", (), {"dtype": torch.float16, "vae": None})()

    def draw(self, prompts: list[str], **more: Any) -> Any:
        self.asked.append({"prompts": prompts, **{key: value for key, value in more.items() if key != "on_step"}})
        drawn = type("Drawn", (), {})()
        height, width = more["size"] or (16, 24)
        drawn.picture = Image.new("RGB", (width, height), (more["seeds"][0], 20, 30))
        yield drawn

    def redraw(self, pictures: list[Image.Image], prompts: list[str], **more: Any) -> Any:
        self.asked.append({"picture": np.asarray(pictures[0]), "prompts": prompts, **more})
        drawn = type("Drawn", (), {})()
        drawn.picture = Image.new("RGB", pictures[0].size, (more["seeds"][0], 20, 30))
        drawn.latents = load(device="cpu").encode_image(drawn.picture)
        yield drawn


@pytest.fixture
def checkpoint(monkeypatch: pytest.MonkeyPatch) -> FakeCheckpoint:
    Path("sd").mkdir()
    Path("sd/model_index.json").write_text("{}")
    made = FakeCheckpoint()

    def load_checkpoint(path: Path, **options: Any) -> FakeCheckpoint:
        made.asked.append({"path": path, **options})
        return made

    monkeypatch.setattr("calotype.draw.checkpoints.load_checkpoint", load_checkpoint)
    return made


@pytest.mark.slow
def test_a_checkpoint_draws(calotype: Calotype, checkpoint: FakeCheckpoint) -> None:
    words = ["draw", "sun", "-n", 2, "--model", "sd", "--vae", "v", "--config", "c", "--dtype", "float16"]
    ran = calotype(*words, "--device", "cpu", "--size", "24x16")
    assert (ran.code, ran.err) == (0, "")
    opened, one, two = checkpoint.asked
    assert opened == {"path": Path("sd"), "vae": "v", "config": "c", "device": "cpu", "dtype": torch.float16}
    assert one == {
        "prompts": ["sun"], "seeds": [0], "size": (16, 24), "steps": 30, "guidance": None, "negative": None,
        "sampler": None,
    }  # fmt: skip
    assert two["seeds"] == [1]
    assert levels("sun-1.png").shape == (16, 24, 3)
    told = read_record("sun-1.png")
    assert (told["dtype"], told["steps"], told["sampler"], told["size"]) == ("float16", 30, None, [24, 16])
    assert (told["model"]["name"], told["vae"]["sha256"]) == ("sd", "1" * 64)
    assert "sd is a checkpoint" in calotype("draw", "sun", "--model", "sd", "--guidance-above", 0.4).err
    checkpoint.asked.clear()
    assert calotype("draw", "--like", "sun-1.png", "--model", "sd", "--out", "o").code == 0
    opened, one = checkpoint.asked
    assert opened["dtype"] == torch.float16
    assert (one["seeds"], one["steps"], one["sampler"], one["size"]) == ([1], 30, None, (16, 24))
    assert Path("o/sun-1.png").read_bytes() == Path("sun-1.png").read_bytes()
    Path("sd/model_index.json").write_text("{ }")
    assert "was drawn with the model sd" in calotype("draw", "--like", "sun-1.png", "--model", "sd", "--out", "x").err


@pytest.mark.slow
def test_a_checkpoint_redraws(calotype: Calotype, checkpoint: FakeCheckpoint) -> None:
    draw("a.png", 32, 24)
    mask = Image.new("L", (32, 24))
    ImageDraw.Draw(mask).rectangle((8, 4, 20, 19), fill=255)
    mask.save("mask.png")
    words = ["redraw", "a.png", "sun", "moon", "--model", "sd", "--mask", "mask.png", "--seed", 3, "--save-latents"]
    ran = calotype(*words)
    assert (ran.code, ran.err) == (0, "")
    _, one, two = checkpoint.asked
    assert np.array_equal(one["picture"], levels("a.png"))
    assert np.array_equal(two["picture"], levels("a-redraw-1.png"))
    assert np.array_equal(one["mask"], levels("mask.png"))
    assert (one["feather"], two["feather"]) == (16, 16)
    assert (one["seeds"], two["seeds"], two["strength"], two["prompts"]) == ([3], [4], 0.6, ["moon"])
    assert (load_latents("a-redraw.latents.safetensors").padding.width, read_record("a-redraw-2.png")["feather"]) == (
        32,
        16,
    )
    assert calotype(*words, "--feather", 3).code == 0
    assert checkpoint.asked[-1]["feather"] == 3
    calotype("encode", "a.png")
    ran = calotype("redraw", "a.latents.safetensors", "sun", "--model", "sd")
    assert (ran.code, len(ran.said)) == (2, 1)
    assert "redraws pictures, not latents" in ran.err
    ran = calotype("morph", "--prompts", "a", "b", "--model", "sd")
    assert (ran.code, len(ran.said)) == (2, 1)
    assert "sd is a checkpoint" in ran.err


@pytest.mark.slow
def test_a_real_checkpoint(calotype: Calotype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Stable Diffusion 1 with all its parts, very small."""
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "draw")
    from checkpoint_models import saved

    from calotype.draw.checkpoints import load_checkpoint

    saved("sd1", tmp_path).rename(tmp_path / "sd")
    model = ["--model", tmp_path / "sd"]
    ran = calotype("draw", "a cat", "-n", 2, "--steps", 3, "--size", "80x64", "--preview", "now.png", *model)
    assert (ran.code, ran.err) == (0, "")
    checkpoint = load_checkpoint(tmp_path / "sd", device="cpu")
    [drawn] = checkpoint.draw("a cat", seeds=[1], steps=3, size=(64, 80))
    assert np.array_equal(levels("cat-1.png"), np.asarray(drawn.picture))
    assert np.abs(levels("now.png") - levels("cat-1.png")).max() <= 1
    told = read_record("cat-1.png")
    assert (told["dtype"], told["size"], told["vae"]["sha256"]) == ("float32", [80, 64], checkpoint.vae_sha256)
    assert calotype("draw", "--like", "cat-1.png", "--out", "again", *model).code == 0
    assert Path("again/cat-1.png").read_bytes() == Path("cat-1.png").read_bytes()
    mask = Image.new("L", (80, 64))
    ImageDraw.Draw(mask).rectangle((40, 0, 79, 63), fill=255)
    mask.save("mask.png")
    words = ["redraw", "cat-0.png", "a dog", "a cat", "--mask", "mask.png", "--steps", 3, "--strength", 0.7]
    ran = calotype(*words, "--sampler", "ddim", *model)
    assert (ran.code, ran.err) == (0, "")
    for i in (1, 2):
        assert np.array_equal(levels(f"cat-0-redraw-{i}.png")[:, :24], levels("cat-0.png")[:, :24])
        assert not np.array_equal(levels(f"cat-0-redraw-{i}.png"), levels("cat-0.png"))


# --- misuse ---


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("draw", 2, "There is no prompt; say what to draw"),
        ("draw sun sun", 2, "'sun' is given twice"),
        ("draw sun sun!", 2, "Two pictures would be written to sun-0.png"),
        ("draw sun-0 sun", 2, "Two pictures would be written to sun-0.png"),
        ("draw sun -n 4 --seed 9223372036854775807", 2, "there are no 4 seeds from there on"),
        ("draw sun --size 3", 2, "'3' is no size"),
        ("draw sun --size 4x64", 2, "8 to 4096 pixels wide and high, not 4x64"),
        ("draw sun --guidance 101", 2, "from 0 to 100, not 101"),
        ("draw sun --guidance nan", 2, "from 0 to 100, not nan"),
        ("draw sun --guidance-above 1", 2, "from 0 (to the end) to below 1, not 1"),
        ("draw sun --guidance 1 --negative red", 2, "does nothing at guidance 1"),
        ("draw sun --out text.png", 2, "text.png is a file; give a folder"),
        ("draw sun --preview folder", 2, "--preview folder: this is a folder"),
        ("draw sun --preview p.gif", 2, "no known format"),
        ("draw sun --preview sun-0.png", 2, "--preview sun-0.png is one of the pictures"),
        ("draw sun -n 2 --preview sun.png", 2, "--preview sun.png is one of the pictures"),
        ("draw sun --like sun-2.png --seed 2", 1, "sun-2.png does not exist"),
        ("draw sun --model none.safetensors", 1, "none.safetensors: there is no such file or folder"),
        ("draw sun --model text.png", 1, "text.png"),
        ("draw sun --config c", 2, "--config goes with a checkpoint"),
        ("draw sun --dtype float16", 2, "--dtype goes with a checkpoint"),
        ("draw sun --device tpu9", 2, "There is no device 'tpu9'"),
        ("draw sun --vae none.safetensors", 1, "none.safetensors"),
        ("draw \udcff", 2, "is no text in UTF-8"),
        ("draw sun --negative \udcff", 2, "is no text in UTF-8"),
        ("redraw none.png sun", 1, "none.png does not exist"),
        ("redraw text.png sun", 1, "holds text"),
        (
            "redraw a.png sun --strength 1.1",
            2,
            "--strength is a number from 0 (nothing changes) to 1 (all is new), not 1.1",
        ),
        ("redraw a.png sun --strength nan", 2, "not nan"),
        ("redraw a.png sun --mask small.png", 2, "small.png is 8x8 and a.png 40x24; draw the mask in that size"),
        ("redraw a.png sun --mask none.png", 1, "none.png does not exist"),
        ("redraw a.png sun --mask black.png", 2, "black.png is black all over, so nothing would be redrawn"),
        ("redraw a.png sun --feather 3", 2, "--feather softens a mask's edges; give --mask too"),
        ("redraw a.png sun --guidance -1", 2, "from 0 to 100, not -1"),
        ("redraw a.png sun --size 3", 2, "'3' is no size"),
        ("redraw a.png sun --out text.png", 2, "text.png is a file"),
        ("redraw a.png sun --preview a.png", 2, "--preview a.png is one of the pictures"),
        ("redraw a.png sun small.png", 2, "small.png is a file and no prompt; give a mask with --mask"),
        ("redraw a.png sun --background nothing", 2, "--background nothing"),
        ("redraw a.png sun --seed 9223372036854775807 moon", 2, "there are no 2 seeds"),
        ("redraw a.png sun --dtype float16", 2, "--dtype goes with"),
        ("redraw a.png \udcff", 2, "is no text in UTF-8"),
        ("redraw a.latents.safetensors sun --size 8x8", 2, "latents can't be scaled"),
        ("morph --prompts moon", 2, "one prompt to another; give another one beside 'moon'"),
        ("morph --prompts moon sun --seed 1 --seed 2 --seed 3", 2, "3 seeds for 2 prompts"),
        ("morph --prompts moon sun --way lerp", 2, "--way does nothing to what is drawn by --prompts"),
        ("morph --prompts moon sun --memory 1GB", 2, "--memory does nothing"),
        ("morph --prompts moon sun --dtype float16", 2, "--dtype does nothing"),
        ("morph --prompts moon sun --background red", 2, "--background does nothing"),
        ("morph --prompts moon sun --ping-pong --closed", 2, "not both"),
        ("morph --prompts moon sun --out m.avi", 2, "'.avi' is no animation"),
        ("morph --prompts moon \udcff", 2, "is no text in UTF-8"),
        ("morph --prompts moon sun --guidance 101", 2, "from 0 to 100"),
        ("morph a.png a.png --seed 1", 2, "--seed goes with --prompts, and these are pictures"),
        ("morph a.png a.png --steps 1", 2, "--steps goes with --prompts"),
        ("morph a.png a.png --guidance 1", 2, "--guidance goes with --prompts"),
        ("morph a.png a.png --guidance-above 0", 2, "--guidance-above goes with --prompts"),
        ("morph a.png a.png --model x", 2, "--model goes with --prompts"),
    ],
)
def test_misuse_is_one_sentence_and_leaves_nothing(words: str, code: int, said: str, calotype: Calotype) -> None:
    draw("a.png")
    draw("small.png", 8, 8)
    Image.new("L", (40, 24)).save("black.png")
    Path("folder").mkdir()
    Path("text.png").write_text("no picture")
    if "latents" in words:
        calotype("encode", "a.png")
    before = files()
    ran = calotype(*words.split())
    assert (ran.code, ran.out, len(ran.said)) == (code, "", 1)
    assert said in ran.err
    assert ran.err.endswith(".\n")
    assert files() == before


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("draw sun --like sun-0.png", "sun-0.png"),
        ("draw sun --like sun-0.png -n 2 --seed 3 --preview sun-0.png", "--preview sun-0.png"),
        ("redraw a.png sun --mask a-redraw-1.png", "a-redraw-1.png would be overwritten"),
        ("redraw a.png sun --mask a-redraw.png", "a-redraw.png would be overwritten"),
    ],
)
def test_nothing_that_is_read_is_overwritten(words: str, name: str, calotype: Calotype) -> None:
    draw("a.png")
    draw("a-redraw-1.png")
    draw("a-redraw.png")
    calotype("draw", "sun", "-n", 1, "--steps", 1)
    before = {path: Path(path).read_bytes() for path in files()}
    ran = calotype(*words.split())
    assert (ran.code, ran.out, len(ran.said)) == (2, "", 1)
    assert name in ran.err
    assert {path: Path(path).read_bytes() for path in files()} == before


@pytest.mark.parametrize("words", ["draw sun", "redraw a.png sun", "vary a.png", "reconstruct a.png"])
def test_a_folder_that_cant_be_written_to_is_found_before_any_work(
    words: str, calotype: Calotype, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw("a.png")
    Path("kept").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "kept" and access(path, mode))
    ran = calotype(*words.split(), "--out", "kept/here")
    assert (ran.code, ran.said) == (2, ["calotype: --out kept/here: kept can't be written to; give another folder."])


@pytest.mark.parametrize("words", ["draw", "redraw"])
def test_help_has_an_example(words: str, calotype: Calotype) -> None:
    ran = calotype(*words.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Example: calotype {words}" in ran.out
    assert "train" not in ran.out.lower()
