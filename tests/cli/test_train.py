"""`calotype train`, from a recipe to weights that `calotype reconstruct` takes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clikit import Calotype, draw, files
from support import network

from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import KNOWN
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

RECIPE = """
name = "tiny"
crop = 16
batch = 2
steps = 6
warmup = 1
cooldown = 2
log_every = 2
checkpoint_every = 3
[network]
kind = "folded"
z_channels = 4
ch = [8, 16]
encoder_blocks = [1, 1]
decoder_blocks = [1, 1]
[[sources]]
path = "pictures"
hold_out = 4
"""
WORDS = ["train", "tiny.toml", "--data", "data", "--out", "run"]


@pytest.fixture(autouse=True)
def _material(here: Path) -> None:
    Path("tiny.toml").write_text(RECIPE)
    for i in range(6):
        draw(f"data/pictures/{i}.png", 32, 24, seed=i)


@pytest.mark.slow
def test_from_a_recipe_to_weights(calotype: Calotype) -> None:
    ran = subprocess.run([sys.executable, "-m", "calotype", *WORDS], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, "run/weights.safetensors\n")
    assert [line.split("  ")[0] for line in ran.stderr.splitlines() if line.startswith("step")] == [
        "step 2",
        "step 3",
        "step 4",
        "step 6",
    ]
    assert "Traceback" not in ran.stderr
    assert not [line for line in ran.stderr.splitlines() if line.strip() and not line.startswith("step")], ran.stderr
    assert {"README.md", "metrics.jsonl", "weights.safetensors", "checkpoints/best.pt"} <= set(files("run"))
    assert any(name.startswith("tensorboard/events") for name in files("run"))
    told = calotype("inspect", "run/weights.safetensors", "--json").json
    assert told["training"]["steps"] == 6
    assert told["training"]["recipe"]["name"] == told["latent_format"]["name"] == "tiny"
    assert calotype("reconstruct", "data/pictures/0.png", "--vae", "run/weights.safetensors", "--out", "o").code == 0


def test_settings_change_the_recipe(calotype: Calotype) -> None:
    assert calotype(*WORDS, "--set", "steps=2", "--set", "network.z_channels=3").code == 0
    told = calotype("inspect", "run/weights.safetensors", "--json").json
    assert (told["latent_channels"], told["training"]["steps"]) == (3, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_and_resume(calotype: Calotype) -> None:
    long = [*WORDS, "--set", "steps=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "calotype", *long], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while not list(Path("run").glob("checkpoints/step-*.pt")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == (
        "calotype: Stopped; the same command with --resume goes on from the newest checkpoint in run."
    )
    assert "Traceback" not in err
    assert "weights.safetensors" not in files("run")
    ran = calotype(*WORDS)
    assert (ran.code, ran.said) == (
        2,
        ["calotype: run: there is a checkpoint already; go on with --resume, or give another --out."],
    )
    reached = int(Path("run/metrics.jsonl").read_text().splitlines()[-1].split('"step": ')[1].split(",")[0])
    ran = calotype(*WORDS, "--resume", "--set", f"steps={reached + 2}")
    assert (ran.code, ran.out) == (0, "run/weights.safetensors\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "none.toml", "--data", "data", "--out", "run"], "none.toml: there is no such recipe"),
        ([*WORDS, "--set", "colour=3"], "tiny.toml with --set colour=3: unknown key colour"),
        ([*WORDS, "--set", "batch"], "--set batch: give key=value."),
        ([*WORDS, "--resume"], "run: there is no checkpoint to resume from."),
        ([*WORDS, "--device", "toaster"], "There is no device 'toaster' here"),
        (
            [*WORDS, "--set", "sources.0.path=gone"],
            "data/gone: there is no such folder, zip, tar or dataset of pictures; give one that is there.",
        ),
        ([*WORDS[:-1], "tiny.toml"], "--out tiny.toml: tiny.toml is a file; give a folder."),
    ],
)
def test_a_senseless_request_is_one_line_and_leaves_nothing(words: list[str], message: str, calotype: Calotype) -> None:
    before = files()
    ran = calotype(*words)
    assert (ran.code, ran.out, len(ran.said)) == (2, "", 1), ran
    assert ran.said[0].startswith(f"calotype: {message}")
    assert files() == before


def test_a_loss_that_is_not_finite_ends_in_one_line(calotype: Calotype) -> None:
    ran = calotype(*WORDS, "--set", "optimiser=adamw", "--set", "learning_rate=1e30")
    assert ran.code == 1
    assert ran.said[-1].startswith("calotype: At step ")
    assert "the batch was " in ran.said[-1]


def test_a_dry_run_says_what_it_would_take(calotype: Calotype) -> None:
    ran = calotype(*WORDS, "--dry-run")
    assert ran.code == 0
    assert ran.said[-1].startswith("calotype: Nothing was written. 4 pictures, and 2 held out; a step took ")
    assert not Path("run").exists()


def test_named_recipes(calotype: Calotype) -> None:
    ran = calotype("train", "kl-f9", "--data", "data", "--out", "run")
    assert ran.code == 2
    names = "builtin, builtin-adversarial, builtin-finish, flux2-decoder, fp16-fix, ft-ema, ft-mse, kl-f8"
    assert f"{names}, qwen-decoder, sd3-like-16ch, sdxl-like, tiny-distill" in ran.said[0]


@pytest.mark.slow
def test_a_start_by_its_path(calotype: Calotype) -> None:
    """The network is that of the weights, whatever the recipe's is."""
    config = AutoencoderConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4)
    save_weights(network(config), "begin.safetensors", layout="ldm", format_=KNOWN["sd1"])
    done = calotype(*WORDS, "--set", "start=begin.safetensors", "--set", "steps=2", "--dry-run")
    assert (done.code, len(done.said)) == (0, 1), done.err
    assert done.said[0].startswith("calotype: Nothing was written.")
    done = calotype(*WORDS, "--set", "start=begin.safetensors", "--set", "steps=2")
    assert (done.code, done.out) == (0, "run/weights.safetensors\n"), done.err
    before, after = (load_weights(f"{name}.safetensors").module.state_dict() for name in ("begin", "run/weights"))
    moved = {key.split(".")[0] for key in after if not (after[key] == before[key]).all()}
    assert moved == {"decoder", "post_quant_conv"}
    done = calotype(*WORDS, "--set", "start=none.safetensors")
    assert (done.code, len(done.said)) == (1, 1), done.err
    assert "there is no such file or folder" in done.said[0]
