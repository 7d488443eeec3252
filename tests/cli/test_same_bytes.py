"""The same command gives the same bytes: in another process, at another time, with another seed of Python's hashes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clikit import draw, files, small_vae
from drawingkit import small_model
from support import NARROW, kl

from calotype.latents import KNOWN
from calotype.weights.save import save_weights

RECIPE = """
name = "tiny"
crop = 16
batch = 2
steps = 3
warmup = 1
cooldown = 1
log_every = 1
checkpoint_every = 3
[network]
kind = "folded"
z_channels = 4
ch = [8, 16]
encoder_blocks = [1, 1]
decoder_blocks = [1, 1]
[[sources]]
path = "set"
hold_out = 4
"""
COMMANDS = [
    "convert ../kl.safetensors ldm.safetensors --layout ldm --dtype float16",
    "convert ../kl.safetensors diffusers --layout diffusers",
    "convert ../kl.safetensors keras --layout keras",
    "convert ../trained.safetensors again.safetensors --layout ldm",
    "encode ../a.png ../alpha.png --alpha keep --vae ../small.safetensors --space model",
    "reconstruct ../a.png --vae ../small.safetensors",
    "vary ../a.png --vae ../small.safetensors -o varied",
    "direction learn ../set ../set --vae ../small.safetensors",
    "morph ../a.png ../b.png --vae ../small.safetensors --frames 3 --out m.gif",
    "morph ../a.png ../b.png --vae ../small.safetensors --frames 3 --out m.webp",
    "morph ../a.png ../b.png --vae ../small.safetensors --frames 3 --out m.png --sheet sheet.png",
    "draw sun --model ../model.safetensors --steps 1 -n 2",
    "redraw ../a.png sun --model ../model.safetensors --steps 2 --save-latents -o redrawn",
    "evaluate ../set --vae ../small.safetensors --metrics psnr,ssim --report report",
    "train ../tiny.toml --data .. --out run --no-tensorboard --device cpu",
]
SCRIPT = """
import sys
from calotype.cli.main import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["calotype", *line.split()]
    try:
        main()
    except SystemExit as stopped:
        if stopped.code:
            sys.exit(f"{line}: {stopped.code}")
"""


def measured(value: Any) -> Any:
    """What results.json says but for times."""
    if isinstance(value, dict):
        return {key: measured(one) for key, one in value.items() if key not in ("created", "speed")}
    return [measured(one) for one in value] if isinstance(value, list) else value


def made(folder: Path, commands: list[str], seed: str) -> dict[str, str]:
    """What commands leave in a folder: file -> sha256."""
    folder.mkdir()
    if len(commands) == len(COMMANDS) and importlib.util.find_spec("av"):
        commands = [*commands, "morph ../a.png ../b.png --vae ../small.safetensors --frames 3 --out m.mp4"]
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], input="\n".join(commands), cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONHASHSEED": seed}, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = {}
    for name in files(folder):
        content = (folder / name).read_bytes()
        if name == "report/results.json":
            content = json.dumps(measured(json.loads(content))).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("commands", [COMMANDS[3:5], pytest.param(COMMANDS, marks=pytest.mark.slow)])
def test_two_processes_give_the_same_files(commands: list[str], here: Path) -> None:
    for name in ("a.png", "b.png"):
        draw(name, 32, 24, seed=len(name))
    draw("alpha.png", 32, 24, mode="RGBA")
    for i in range(6):
        draw(f"set/{i}.png", 32, 24, seed=i)
    small_vae(Path("small.safetensors"))
    small_model(Path("model.safetensors"))
    Path("tiny.toml").write_text(RECIPE)
    module = kl(NARROW)
    save_weights(module, "kl.safetensors", layout="ldm", format_=KNOWN["sdxl"])
    facts = {f"calotype_training_{i}": f'"{i}"' for i in range(12)}
    save_weights(module, "trained.safetensors", layout="ldm", format_=KNOWN["sdxl"], metadata=facts)
    first, second = (made(Path(f"run{seed}"), commands, seed) for seed in ("0", "1"))
    # what a run was made with and how fast it was, what was measured when, and the page with both
    told = {"run/environment.json", "run/metrics.jsonl", "report/measured.sqlite", "report/index.html"}
    assert {"again.safetensors", "a.latents.safetensors"} <= first.keys()
    assert len(commands) < len(COMMANDS) or {"run/weights.safetensors", "keras/encoder.h5", "m.gif"} <= first.keys()
    differing = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
    assert differing <= told
