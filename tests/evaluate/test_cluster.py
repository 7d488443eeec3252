"""An evaluation on a local Ray: the same figures as in one process."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import SMALL, kl

from calotype.evaluate.protocol import Protocol
from calotype.evaluate.session import evaluate
from calotype.evaluate.setup import Setup
from calotype.latents import ScaleShift
from calotype.weights.save import save_weights


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_ray_gives_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (24, 26 + i, 3), dtype=np.uint8)).save(tmp_path / "data" / f"{i}.png")
    format_ = ScaleShift(name="mine", channels=4, scaling_factor=1.0)
    specs = []
    for seed in range(2):
        specs.append(tmp_path / f"vae{seed}.safetensors")
        save_weights(kl(SMALL, seed), specs[-1], layout="ldm", format_=format_)
    protocol = Protocol(name="drawn", latent="sample", seed=1)
    setup = Setup(vaes=tuple(map(str, specs)), protocol=protocol, metrics=("psnr", "ssim"), device="cpu")
    told: list[tuple[int, int]] = []
    here = evaluate(tmp_path / "data", setup, tmp_path / "here")
    there = evaluate(
        tmp_path / "data",
        setup,
        tmp_path / "there",
        engine="ray",
        progress=lambda done, total: told.append((done, total)),
    )
    for a, b in zip(here["vaes"], there["vaes"], strict=True):
        assert a["rows"] == b["rows"]
        assert a["means"] == b["means"]
        assert a["latents"] == b["latents"]
    assert told[-1] == (10, 10)
    assert len(told) == 10


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calotype.errors import UsageError
    from calotype.evaluate.cluster import on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with warnings.catch_warnings(), pytest.raises(UsageError, match=r"pip install 'calotype\[ray\]'"):
        on_ray(Setup(vaes=("builtin",), protocol=Protocol()))
