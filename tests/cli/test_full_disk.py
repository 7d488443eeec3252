"""On a disk that takes no more, every command says which file can't be written, and leaves nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
from clikit import Calotype, draw, files, small_vae
from support import NARROW, kl, one_sentence, room

from calotype.latents import KNOWN
from calotype.weights.save import save_weights

pytest_plugins = ["drawing_fixtures"]
RECIPE = """
name = "tiny"
crop = 16
batch = 2
steps = 2
warmup = 1
cooldown = 1
[network]
kind = "folded"
z_channels = 4
ch = [8, 16]
encoder_blocks = [1, 1]
decoder_blocks = [1, 1]
[[sources]]
path = "set"
"""


@pytest.fixture(autouse=True)
def _material(here: Path, vae: Path, model: Path) -> None:
    for name in ("a.png", "b.png", "mask.png"):
        draw(name, 32, 24)
    for i in range(6):
        draw(f"set/{i}.png", 32, 24, seed=i)
    small_vae(Path("v.safetensors"))
    save_weights(kl(NARROW), "kl.safetensors", layout="ldm", format_=KNOWN["sdxl"])
    Path("r.toml").write_text(RECIPE)
    Path("model.safetensors").write_bytes(model.read_bytes())


@pytest.mark.parametrize("limit", [0, 150])
@pytest.mark.parametrize(
    ("words", "file"),
    [
        ("convert kl.safetensors o.safetensors --layout ldm", "o.safetensors"),
        ("convert kl.safetensors o --layout diffusers", "o/diffusion_pytorch_model.safetensors"),
        ("convert kl.safetensors o --layout keras", "o/encoder.h5"),
        ("encode a.png --vae v.safetensors --out o", "o/a.latents.safetensors"),
        ("reconstruct a.png --vae v.safetensors --out o", "A temporary file"),  # for pixels between passes
        ("vary a.png --vae v.safetensors --out o", "o/a-vary-0.png"),
        ("morph a.png b.png --vae v.safetensors --frames 2 --out o.gif", "o.gif"),
        ("morph a.png b.png --vae v.safetensors --frames 2 --out o.webp", "o.webp"),
        ("morph a.png b.png --vae v.safetensors --frames 2 --out o.png", "o.png"),
        ("blend a.png b.png mask.png --vae v.safetensors --out o.png", "o.png"),
        ("blend a.png b.png mask.png --vae v.safetensors --out o.tif", "o.tif"),
        ("transfer a.png b.png --vae v.safetensors --out o.webp", "o.webp"),
        ("direction learn set set --vae v.safetensors --out o.safetensors", "o.safetensors"),
        ("draw sun --model model.safetensors --steps 1 --out o", "o/sun-0.png"),
        ("redraw a.png sun --model model.safetensors --steps 2 --out o", "o/a-redraw-1.png"),
        ("evaluate set --vae v.safetensors --metrics psnr --report o", "o"),
        ("train r.toml --data . --out o --no-tensorboard --device cpu", "o"),
    ],
)
def test_one_sentence_and_nothing_left(words: str, file: str, limit: int, calotype: Calotype) -> None:
    before = {path: Path(path).read_bytes() for path in files()}
    with room(limit):
        ran = calotype(*words.split())
    said = [line for line in ran.said if not line.startswith("calotype: mask.png: ")]  # how it was understood
    assert (ran.code, ran.out, len(said)) == (1, "", 1), ran
    assert said[0].startswith(f"calotype: {file}")
    one_sentence(said[0])
    left = {path for path in files() if not path.endswith(".sqlite")}  # which takes up what was measured
    assert {path: Path(path).read_bytes() for path in left} == before


def test_a_movie(calotype: Calotype) -> None:
    pytest.importorskip("av")
    words = "morph a.png b.png --vae v.safetensors --frames 2 --out o.mp4"
    for limit in (0, 150, 900):
        before = files()
        with room(limit):
            ran = calotype(*words.split())
        assert (ran.code, ran.said[0].partition(";")[0]) == (1, "calotype: o.mp4 can't be written: File too large")
        assert files() == before
