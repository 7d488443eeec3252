"""`calotype train draw`: what is said before and when something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from clikit import Calotype, draw, files

RECIPE = """steps = 2
word_steps = 2
word_batch = 2
batch = 2
size = 32

[denoiser]
model_channels = 32
channel_mult = [1, 2]
num_res_blocks = 1
attention_resolutions = [2]
num_heads = 4

[text]
vocab_size = 160
width = 32
depth = 1
heads = 4
sketch_side = 2
sketch_width = 48
"""


@pytest.fixture
def small() -> str:
    """A small recipe, and two pictures with texts."""
    Path("small.toml").write_text(RECIPE)
    for name in ("a", "b"):
        draw(f"pictures/{name}.png")
        Path(f"pictures/{name}.txt").write_text(f"picture {name}")
    return "small.toml"


@pytest.mark.slow
def test_a_dry_run_writes_nothing(calotype: Calotype, small: str) -> None:
    before = files()
    ran = calotype("train", small, "--data", "pictures", "--out", "run", "--dry-run")
    assert ran.code == 0
    assert "Nothing was written. 2 pictures, and 0 held out; encoding them takes about" in ran.err
    assert files() == before


@pytest.mark.slow
def test_it_trains_on_pictures_with_texts(calotype: Calotype, small: str) -> None:
    ran = calotype("train", small, "--data", "pictures", "--out", "run")
    assert ran.code == 0
    assert Path(ran.out.strip()) == Path("run/weights.safetensors")
    ran = calotype("draw", "picture a", "--model", "run/weights.safetensors", "--out", "drawn", "--steps", 2)
    assert ran.code == 0
    assert len(files("drawn")) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--strategy", "ddp"), "is trained on one device"),
        (("--set", "start=none.safetensors"), "none.safetensors: there is no such file"),
        (("--set", "steps"), "--set steps: give key=value"),
        (("--set", "steps=many of them"), "steps must be a whole number"),
    ],
)  # fmt: skip
def test_what_is_refused(calotype: Calotype, small: str, options: tuple[str, ...], said: str) -> None:
    for more in ((), ("--dry-run",)):
        ran = calotype("train", small, "--data", "pictures", "--out", "run", *options, *more)
        assert ran.code in (1, 2)
        assert said in " ".join(ran.err.split())
        assert not Path("run/weights.safetensors").exists()
