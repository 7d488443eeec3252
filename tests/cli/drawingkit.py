"""Helpers for tests of drawing: a model so small that a picture takes a moment, what it draws, and Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import fill

from calotype.draw.denoiser import DenoiserConfig
from calotype.draw.model import DrawingConfig, DrawingModel, save_model
from calotype.draw.pipeline import Drawer
from calotype.draw.text import TextConfig, make_tokenizer
from calotype.vae import load

NAMES = ("red apple", "green apple", "full moon", "sun")
SIZE = 64


def small_model(path: Path, seed: int = 0) -> Path:
    """A drawing model in the latents of the built-in VAE, with random weights."""
    found = load(device="cpu")
    channels = found.latent_channels
    text = TextConfig(
        vocab_size=300, width=32, depth=1, heads=2, context_length=12, sketch_side=4, sketch_width=32
    )  # fmt: skip
    denoiser = DenoiserConfig(
        in_channels=2 * channels, out_channels=channels, model_channels=32, channel_mult=(1, 2), num_res_blocks=1,
        attention_resolutions=(2,), num_heads=2, context_dim=32, adm_in_channels=32,
    )  # fmt: skip
    config = DrawingConfig(denoiser=denoiser, text=text, size=SIZE, vae=found.sha256, sketch_noise=0.3)
    words = sorted({word for name in NAMES for word in name.split()})
    model = DrawingModel(config, make_tokenizer(NAMES, text), NAMES, words)
    save_model(fill(model, seed), path)
    return path


def pixels(drawer: Drawer, prompt: str, seed: int, **settings: Any) -> np.ndarray:
    """What a drawer draws in two steps, and else as usual."""
    latents = drawer.draw(prompt, seed, replace(drawer.usual, **{"steps": 2, **settings}))
    return np.asarray(drawer.vae.decode_image(latents)).astype(np.float64)


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Presses Ctrl-C when so many pictures are drawn and the next one is begun."""
    first: Callable[..., Any] = Drawer.from_noise
    calls = 0

    def drawn(self: Drawer, *words: Any, **more: Any) -> Any:
        nonlocal calls
        if calls == count:
            signal.raise_signal(signal.SIGINT)
        calls += 1
        return first(self, *words, **more)

    monkeypatch.setattr(Drawer, "from_noise", drawn)


def frames(path: str) -> list[np.ndarray]:
    """Those of an animation."""
    found = []
    with Image.open(path) as image:
        for i in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(i)
            found.append(np.asarray(image.convert("RGB")).astype(np.float64))
    return found
