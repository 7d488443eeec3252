"""Helpers for tests of training: a tiny network, a tiny recipe and synthetic pictures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from calotype.config import FoldedConfig
from calotype.train.data import Array
from calotype.train.loop import Trainer, run
from calotype.train.recipe import Phase, Recipe, Source

FOLDED = FoldedConfig(z_channels=4, ch=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1))
TINY = Recipe(
    name="tiny",
    network=FOLDED,
    sources=(Source(path="pictures", hold_out=5),),
    crop=16,
    zoom=1.5,
    batch=4,
    steps=8,
    seed=3,
    optimiser="muon",
    learning_rate=3e-3,
    warmup=2,
    cooldown=4,
    log_every=2,
    checkpoint_every=3,
    phases=(Phase(start=5, crop=24, batch=2, muon_rate=1e-2),),
)


def picture(seed: int, height: int = 40, width: int = 48) -> Array:
    """Smooth colours that depend on the seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / rng.uniform(4, 12) + rng.uniform(0, 6)) + np.cos(y / rng.uniform(4, 12)) for _ in range(3)]
    return ((np.stack(waves, axis=-1) / 4 + 0.5) * 255).astype(np.uint8)


def pictures(count: int = 6) -> list[Array]:
    return [picture(seed) for seed in range(count)]


def png(array: Array, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).convert(mode).save(file, "PNG")
    return file.getvalue()


def write_pictures(folder: Path, count: int = 11) -> Path:
    """A folder with pictures 00.png, 01.png, ..."""
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"{i:02}.png").write_bytes(png(picture(i)))
    return folder


def no_track(items: Sequence[Any], doing: str = "") -> Iterable[Any]:
    return items


def trained(recipe: Recipe, out: Path, *, resume: bool = False) -> Trainer:
    """A trainer at the end of the recipe's steps."""
    out.mkdir(exist_ok=True)
    trainer = Trainer.create(recipe, torch.device("cpu"))
    if resume:
        trainer.resume(out / "checkpoint.pt")
    assert run(trainer, pictures(), pictures(2), out, lambda line: None)
    return trainer


def same_state(a: Any, b: Any) -> bool:
    """Whether nested states are equal, bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_state, a, b))
    return bool(a == b)


def same_trainers(a: Trainer, b: Trainer) -> bool:
    """Whether weights, average, optimisers and step are equal, bit by bit."""
    return a.step == b.step and all(
        same_state(x, y)
        for x, y in (
            (dict(a.module.state_dict()), dict(b.module.state_dict())),
            (a.ema.state_dict(), b.ema.state_dict()),
            ([o.state_dict() for o in a.optimisers], [o.state_dict() for o in b.optimisers]),
        )
    )


def changed(**values: Any) -> Recipe:
    return replace(TINY, **values)
