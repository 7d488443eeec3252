"""What the training of a drawing model will take, before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from calotype.draw.cached import CachedPictures
from calotype.draw.recipe import DrawingRecipe
from calotype.draw.start import start_of
from calotype.draw.training import Drawing, pictures_of, require_drawable
from calotype.vae import VAE

A_FEW = 8  # pictures that are encoded


@dataclass(frozen=True)
class Outlook:
    """What a training will take, by a few steps that were timed.

    Attributes:
        pictures, held_out: how many.
        encoding: seconds of making latents of all.
        word_step, step: seconds of a step of either part.
        seconds: of everything.
    """

    pictures: int
    held_out: int
    encoding: float
    word_step: float
    step: float
    seconds: float


def look_ahead(recipe: DrawingRecipe, data: str | Path, vae: VAE) -> Outlook:
    """Checks a recipe and its data, and times a few pictures and steps. Nothing is written.

    Raises:
        UsageError, PictureError, RemoteError, StorageError: as `train_drawing`.
    """
    require_drawable(vae)
    start = start_of(recipe, vae)
    pictures, seen = pictures_of(recipe, data, vae)
    encoding = 0.0
    if isinstance(pictures, CachedPictures):
        latents = pictures.modes()
    else:
        count = len(pictures.captions)
        few = [i * count // A_FEW for i in range(A_FEW)] if count > A_FEW else list(range(count))
        pictures.latents_of(few[:1], vae, recipe.size)  # what is loaded or compiled is so once
        began = time.perf_counter()
        some = pictures.latents_of(few, vae, recipe.size)
        encoding = (time.perf_counter() - began) / len(few) * count
        latents = some[torch.arange(len(seen)) % len(some)]
    drawing = Drawing(recipe, [pictures.captions[i] for i in seen], latents, vae.sha256, vae.device, start=start)
    word_step, step = (_seconds(advance) for advance in (drawing.advance_words, drawing.advance))
    return Outlook(
        pictures=len(seen),
        held_out=len(pictures.captions) - len(seen),
        encoding=encoding,
        word_step=word_step,
        step=step,
        seconds=encoding + recipe.word_steps * word_step + recipe.steps * step,
    )


def _seconds(advance: Callable[[], float]) -> float:
    """Of a step, after one that warms up: the shorter of two."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        advance()
        taken.append(time.perf_counter() - began)
    return min(taken[1:])
