"""A whole training run: data, loop, and at its end weights that say how they were made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from calotype import __version__
from calotype.errors import UsageError
from calotype.latents import PerChannel
from calotype.networks import Network
from calotype.train.data import Array, centre_crop, read_source
from calotype.train.loop import Report, Trainer, run
from calotype.train.recipe import Recipe
from calotype.weights.save import save_weights


class Track(Protocol):
    """Goes through items and shows progress."""

    def __call__(self, items: Sequence[Any], doing: str) -> Iterable[Any]: ...


SKIP_LIMIT = 0.01  # share of pictures that may be unreadable


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    resume: bool,
    device: torch.device,
    report: Report,
    notice: Callable[[str], None],
    track: Track,
) -> Path | None:
    """Trains as `recipe` says and writes ``weights.safetensors``: its path, or None when stopped by a signal.

    Args:
        data: the folder that source paths are relative to.
        out: gets ``checkpoint.pt``, ``log.jsonl`` and ``weights.safetensors``.
        resume: go on from ``checkpoint.pt``.

    Raises:
        UsageError: for missing data, a folder in use without `resume`, or a checkpoint of another network.
    """
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise UsageError(f"{out}: there is a checkpoint already; go on with --resume, or give another --out.")
    if resume and not checkpoint.exists():
        raise UsageError(f"{out}: there is no checkpoint.pt to resume from.")
    pictures, held_out = read_data(recipe, data, notice, track)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer.create(recipe, device)
    if resume:
        trainer.resume(checkpoint)
    if not run(trainer, [p for group in pictures for p in group], held_out, out, report):
        return None
    return export(
        trainer, [p for group in pictures for p in set_once(group)], held_out, out / "weights.safetensors", track
    )


def read_data(
    recipe: Recipe, data: Path, notice: Callable[[str], None], track: Track
) -> tuple[list[list[Array]], list[Array]]:
    """The recipe's sources decoded: (for each, pictures repeated as it says; all held-out pictures).

    Raises:
        UsageError: if a source is missing, more than 1% of its pictures can't be read, or all are held out.
    """
    training, held_out = [], []
    for source in recipe.sources:
        pictures, skipped = read_source(data / source.path, partial(track, doing=f"Reading {source.path}"))
        for reason in skipped:
            notice(f"{source.path}: {reason}")
        if len(skipped) > SKIP_LIMIT * (len(pictures) + len(skipped)):
            raise UsageError(
                f"{data / source.path}: {len(skipped)} pictures can't be read, more than 1%; mend the data."
            )
        kept = {i for i in range(len(pictures)) if source.hold_out and i % source.hold_out == 0}
        held_out += [pictures[i] for i in sorted(kept)]
        training.append([p for i, p in enumerate(pictures) if i not in kept] * source.repeat)
    if not any(training):
        raise UsageError(f"{data}: no picture is left to train on; raise hold_out of the sources, or set it to 0.")
    return training, held_out


def set_once(pictures: list[Array]) -> list[Array]:
    """Repeated pictures once, in order."""
    return list({id(p): p for p in pictures}.values())


def export(trainer: Trainer, pictures: Sequence[Array], held_out: Sequence[Array], path: Path, track: Track) -> Path:
    """Writes the averaged weights as float16, with latent statistics over the training set and how they were made.

    The trainer's average is rounded to float16 first, so what is measured is what is stored.
    """
    recipe = trainer.recipe
    for value in trainer.ema.shadow.values():
        value.copy_(value.half())
    with trainer.averaged() as module:
        mean, std, noise = latent_statistics(module, pictures, track)
    quality = trainer.validate(held_out, trainer.module.config.factor) if held_out else None
    facts: dict[str, Any] = {
        "recipe": recipe.to_dict(),
        "steps": trainer.step,
        "pictures": len(pictures),
        "held_out": len(held_out),
        "held_out_psnr": quality,
        "posterior_std": noise,
        "calotype": __version__,
        "torch": torch.__version__,
    }
    with trainer.averaged() as module:
        save_weights(
            module,
            path,
            layout="ldm",
            format_=PerChannel(name=recipe.name, channels=len(mean), mean=mean, std=std),
            dtype=torch.float16,
            metadata={f"calotype_training_{key}": json.dumps(value) for key, value in facts.items()},
        )
    return path


@torch.no_grad()
def latent_statistics(
    module: Network, pictures: Sequence[Array], track: Track
) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Per-channel mean and std of latents (mode) over pictures, and the mean std of the posterior; in float64."""
    factor = module.config.factor
    device = next(module.parameters()).device
    count = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    noise = 0.0
    for picture in track(pictures, "Measuring latents"):
        posterior = module.encode(centre_crop(picture, factor).to(device))
        z = posterior.mode().double().cpu()
        count += z.shape[2] * z.shape[3]
        total = total + z.sum((0, 2, 3))
        squares = squares + z.square().sum((0, 2, 3))
        noise += posterior.std.double().mean().item() / len(pictures)
    mean = torch.as_tensor(total) / count
    std = (torch.as_tensor(squares) / count - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std > 1e-6, std, 1.0)  # a channel that never varies needs no scale
    return tuple(mean.tolist()), tuple(std.tolist()), noise
