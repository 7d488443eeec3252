"""On a disk that takes no more, every command says which file can't be written, and leaves nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from clikit import Calotype, draw, files, small_vae
from support import NARROW, kl, one_sentence, room

from calotype.edit.directions import Direction, save_direction
from calotype.latent_files import save_latents
from calotype.latents import KNOWN
from calotype.pixels import read_picture
from calotype.vae import load
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
DRAWING = """
size = 64
held_out = 0.0
word_steps = 1
word_batch = 2
steps = 1
batch = 2
warmup = 1
cooldown = 1
[denoiser]
model_channels = 32
channel_mult = [1, 2]
num_res_blocks = 1
attention_resolutions = [2]
num_heads = 2
[text]
vocab_size = 300
width = 32
depth = 1
heads = 2
context_length = 12
sketch_side = 4
sketch_width = 32
"""
COMMANDS = [
    ("convert kl.safetensors o.safetensors --layout ldm", "o.safetensors"),
    ("convert kl.safetensors o --layout diffusers", "o/diffusion_pytorch_model.safetensors"),
    ("convert kl.safetensors o --layout keras", "o/encoder.h5"),
    ("encode a.png --vae v.safetensors --out o", "o/a.latents.safetensors"),
    ("decode a.latents.safetensors --vae v.safetensors --out o", "o/a-decoded.png"),
    ("decode a.latents.safetensors --vae v.safetensors --out o --suffix tif", "o/a-decoded.tif"),
    ("decode a.latents.safetensors --vae v.safetensors --out o --suffix webp", "o/a-decoded.webp"),
    ("decode a.latents.safetensors --vae v.safetensors --out o --suffix jpg", "o/a-decoded.jpg"),
    ("reconstruct a.png --vae v.safetensors --out o", "A temporary file"),  # for pixels between passes
    ("vary a.png --vae v.safetensors --out o", "o/a-vary-0.png"),
    ("morph a.png b.png --vae v.safetensors --frames 2 --out o.gif", "o.gif"),
    ("morph a.png b.png --vae v.safetensors --frames 2 --out o.webp", "o.webp"),
    ("morph a.png b.png --vae v.safetensors --frames 2 --out o.png", "o.png"),
    ("blend a.png b.png mask.png --vae v.safetensors --out o.png", "o.png"),
    ("blend a.png b.png mask.png --vae v.safetensors --out o.tif", "o.tif"),
    ("transfer a.png b.png --vae v.safetensors --out o.webp", "o.webp"),
    ("direction learn set set --vae v.safetensors --out o.safetensors", "o.safetensors"),
    ("direction apply a.png d.safetensors --vae v.safetensors --out o.png", "o.png"),
    ("draw sun --model model.safetensors --steps 1 --out o", "o/sun-0.png"),
    ("redraw a.png sun --model model.safetensors --steps 2 --out o", "o/a-redraw-1.png"),
    ("evaluate set --vae v.safetensors --metrics psnr --report o", "o"),
    ("probe v.safetensors large --lpips none --report o", "o"),
    ("cache make set o --vae v.safetensors --size 16", "o"),
    ("train r.toml --data . --out o --no-tensorboard --device cpu", "o"),
    ("train drawing.toml --data set --out o --device cpu", "o"),
]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """All that the commands read."""
    folder = tmp_path_factory.mktemp("material")
    for name in ("a.png", "b.png", "mask.png"):
        draw(str(folder / name), 32, 24)
    for i in range(6):
        draw(str(folder / f"set/{i}.png"), 32, 24, seed=i)
        draw(str(folder / f"large/{i}.png"), 64, 64, seed=i)
    lines = [json.dumps({"file": f"{i}.png", "name": f"thing {i}"}) + "\n" for i in range(6)]
    (folder / "set/captions.jsonl").write_text("".join(lines))
    (folder / "r.toml").write_text(RECIPE)
    (folder / "drawing.toml").write_text(DRAWING)
    (folder / "model.safetensors").write_bytes(model.read_bytes())
    save_weights(kl(NARROW), folder / "kl.safetensors", layout="ldm", format_=KNOWN["sdxl"])
    vae = load(small_vae(folder / "v.safetensors"), device="cpu")
    latents = vae.encode_image(read_picture(folder / "a.png"))
    save_latents(folder / "a.latents.safetensors", latents)
    way = Direction(
        tensor=latents.tensor.mean((1, 2), keepdim=True), vae=vae.sha256, vae_name="v", names=("a", "b"),
        counts=(4, 4), held_out=(1, 1), d_prime=None, accuracy=0.5,
    )  # fmt: skip
    save_direction(folder / "d.safetensors", way)
    return folder


@pytest.fixture(autouse=True)
def _material(here: Path, vae: Path, material: Path) -> None:
    shutil.copytree(material, here, dirs_exist_ok=True)


@pytest.mark.parametrize("limit", [0, 150])
@pytest.mark.parametrize(("words", "file"), COMMANDS)
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


@pytest.fixture
def full(here: Path) -> Iterator[Path]:
    """A folder with a file system of its own, in which nothing fits any more; one that only root can make."""
    folder = here / "full"
    folder.mkdir()
    mount = shutil.which("mount")
    words = [mount or "", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if mount is None or os.name != "posix" or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(OSError, match="No space left"), (folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("words", [words for words, _ in COMMANDS])
def test_a_disk_that_is_really_full(words: str, full: Path, calotype: Calotype) -> None:
    there = [f"full/{word}" if word == "o" or word.startswith("o.") else word for word in words.split()]
    before = {path: Path(path).read_bytes() for path in files()}
    ran = calotype(*there)
    said = [line for line in ran.said if not line.startswith("calotype: mask.png: ")]
    assert (ran.code, ran.out, len(said)) == (1, "", 1), ran
    assert said[0].startswith("calotype: full/o")
    assert "No space left on device" in said[0] or "disk is full" in said[0]
    one_sentence(said[0])
    assert {path: Path(path).read_bytes() for path in files() if not path.endswith(".sqlite")} == before


@pytest.mark.slow
def test_a_movie(calotype: Calotype) -> None:
    pytest.importorskip("av")
    words = "morph a.png b.png --vae v.safetensors --frames 2 --out o.mp4"
    for limit in (0, 150, 900):
        before = files()
        with room(limit):
            ran = calotype(*words.split())
        assert (ran.code, ran.said[0].partition(";")[0]) == (1, "calotype: o.mp4 can't be written: File too large")
        assert files() == before
