"""What tests of evaluations share; makes `probekit` and `evaluatekit` importable, however pytest imports the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import SMALL, kl

from calotype.latents import ScaleShift
from calotype.weights.save import save_weights

sys.path.insert(0, str(Path(__file__).resolve().parent))

FORMAT = ScaleShift(name="mine", channels=4, scaling_factor=1.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of different sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(6):
        small = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        Image.fromarray(small).resize((40 + 2 * i, 33 + i), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def vaes(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("weights")
    paths = []
    for seed in range(2):
        paths.append(folder / f"vae{seed}.safetensors")
        save_weights(kl(SMALL, seed), paths[-1], layout="ldm", format_=FORMAT)
    return tuple(map(str, paths))
