"""Helpers for tests of training: a tiny network, a tiny recipe and synthetic pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from calotype.families.folded.config import FoldedConfig
from calotype.sources import Array
from calotype.train import checkpoint
from calotype.train.crops import Batch, Crops, load
from calotype.train.loop import Helpers, Trainer, run
from calotype.train.recipe import Phase, Recipe, Source
from calotype.train.run import Options, launch

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


class Made:
    """Pictures in memory, as a source."""

    def __init__(self, arrays: list[Array]) -> None:
        self.arrays = arrays
        self.names = [f"{i:02}.png" for i in range(len(arrays))]

    def __len__(self) -> int:
        return len(self.arrays)

    def read(self, i: int) -> Array:
        return self.arrays[i]

    def side(self, i: int) -> int:
        return min(self.arrays[i].shape[:2])


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


def no_track(items: Iterable[Any], doing: str = "", total: int = 0) -> Iterable[Any]:
    return items


def make(recipe: Recipe, helpers: Helpers | None = None) -> Trainer:
    """A trainer on one process of the CPU."""
    return Trainer(recipe, launch(recipe, Options(device="cpu")), helpers)


def crops(recipe: Recipe, step: int = 0, arrays: list[Array] | None = None) -> Array:
    """The crops of a step."""
    now = recipe.at(step)
    made = Made(arrays or pictures())
    return Crops(made, crop=now.crop, zoom=recipe.zoom, seed=recipe.seed).batch(step, now.batch)[0]


def batches_of(recipe: Recipe, arrays: list[Array] | None = None) -> Callable[[int, int], Iterator[Batch]]:
    made = Made(arrays or pictures())
    by_size = {n: Crops(made, crop=n, zoom=recipe.zoom, seed=recipe.seed) for n in recipe.crops()}

    def plan(step: int) -> tuple[Crops, int]:
        now = recipe.at(step)
        return by_size[now.crop], now.batch

    return lambda first, last: load(plan, first, last, workers=1)


class Keeping:
    """Hooks that keep lines, and checkpoints in a folder if one is given."""

    def __init__(self, out: Path | None = None) -> None:
        self.out = out
        self.lines: list[dict[str, float]] = []
        self.checks: list[int] = []

    def logged(self, line: dict[str, float]) -> None:
        self.lines.append(line)

    def checked(self, trainer: Trainer, line: dict[str, float]) -> None:
        self.checks.append(trainer.step)
        if self.out is not None:
            checkpoint.save(self.out, trainer.state_dict(), trainer.recipe)


def trained(recipe: Recipe, hooks: Keeping | None = None, *, start: Trainer | None = None) -> Trainer:
    """A trainer at the end of the recipe's steps."""
    trainer = start or make(recipe)
    assert run(trainer, batches_of(recipe), hooks or Keeping())
    return trainer


def resumed(recipe: Recipe, out: Path) -> Trainer:
    """A trainer that stands where the newest checkpoint does."""
    path = checkpoint.newest(out)
    assert path is not None
    trainer = make(recipe)
    torch.manual_seed(99)  # what was drawn before must not matter
    trainer.load_state_dict(checkpoint.load(path, recipe))
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
    """Whether all that a checkpoint holds is equal, bit by bit, but for torch's own generator."""
    return same_state(*({k: v for k, v in one.state_dict().items() if k != "rng"} for one in (a, b)))


def changed(**values: Any) -> Recipe:
    return replace(TINY, **values)
