"""Helpers for tests of edits: small VAEs and pictures."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from support import fill, tiny

from calotype.families.folded.config import FoldedConfig
from calotype.families.folded.network import FoldedAutoencoder
from calotype.latents import PerChannel, same_as_model
from calotype.pixels import PictureRows
from calotype.vae import VAE
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

FOLDED = FoldedConfig(z_channels=4, ch=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1))
FORMAT = PerChannel(name="small", channels=4, mean=(0.1, -0.2, 0.3, 0.0), std=(1.0, 2.0, 0.5, 1.5))


def folded(seed: int = 0, name: str = "small") -> VAE:
    """A small VAE of the built-in kind, f8, that went through a file; its latent format has this name."""
    with tempfile.TemporaryDirectory() as folder:
        module: FoldedAutoencoder = fill(FoldedAutoencoder(FOLDED), seed, gain=0.7)
        save_weights(module, Path(folder) / "small.safetensors", layout="ldm", format_=replace(FORMAT, name=name))
        return VAE(load_weights(Path(folder) / "small.safetensors"), name=f"small-{seed}")


def imitation() -> VAE:
    """A small TAESD."""
    with tempfile.TemporaryDirectory() as folder:
        save_weights(tiny(), Path(folder) / "t.safetensors", layout="ldm", format_=same_as_model("sd1", 4))
        return VAE(load_weights(Path(folder) / "t.safetensors"), name="imitation")


def levels(seed: int = 0, width: int = 40, height: int = 32) -> npt.NDArray[np.uint8]:
    """Smooth colours and a little noise, uint8 [H, W, 3]; another place in them for every seed."""
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(seed)
    phases = rng.uniform(0, 6.28, 3)
    waves = np.sin(x[..., None] / 9 + phases) + np.cos(y[..., None] / 7 - 2 * phases)
    noise = rng.integers(-6, 7, (height, width, 3))
    made: npt.NDArray[np.uint8] = (127 + 55 * waves + noise).clip(0, 255).astype(np.uint8)
    return made


def picture(seed: int = 0, width: int = 40, height: int = 32) -> PictureRows:
    """The same as a picture that was read."""
    return PictureRows(levels(seed, width, height), None, False, (255, 255, 255), ())
