"""What a run will take, found with a single crop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from calotype.engine.budget import in_words
from calotype.engine.memory import free_memory
from calotype.errors import UsageError
from calotype.train.loop import Trainer
from calotype.train.sharded import local


@dataclass(frozen=True)
class Estimate:
    """Bytes of a process.

    Attributes:
        weights: of gradients and optimisers' state; the weights are there already.
        crop: that the backward pass keeps of one crop.
        part: of the largest part of a step, with its weights.
        free: what there is.
    """

    weights: int
    crop: int
    part: int
    free: int


def estimate(trainer: Trainer) -> Estimate:
    """Counts what autograd keeps of one crop; nothing is trained.

    Raises:
        UsageError: if a step can't fit in the memory that is free.
    """
    recipe, world = trainer.recipe, trainer.fabric.world_size
    trained = [p for p in trainer.own.parameters() if p.requires_grad]  # what is frozen has no gradient
    parameters = sum(local(p).numel() * p.element_size() for p in trained)
    if trainer.discriminator is not None:
        parameters += sum(local(p).numel() * p.element_size() for p in trainer.discriminator.parameters())
    weights = 3 * parameters  # to come: a gradient and two moments
    most, largest = 0, None
    step = trainer.step
    if recipe.adversarial:
        trainer.step = max(step, recipe.adversarial.start)  # as it is with the discriminator
    for now in (recipe.at(start) for start in (0, *(phase.start for phase in recipe.phases))):
        crops = max(1, now.batch // world // now.accumulate)
        kept = _kept(trainer, now.crop)
        if kept * crops >= most:
            most, largest = kept * crops, (now, crops, kept)
    trainer.step = step
    assert largest
    now, crops, kept = largest
    free = free_memory(trainer.fabric.device)
    found = Estimate(weights, kept, weights + most, free)
    if found.part > free:
        room = free - weights
        tried = range(now.accumulate, now.batch // world + 1)
        parts = next((n for n in tried if _fits(now.batch, world, n, kept, room)), 0)
        saving = "" if recipe.gradient_checkpointing else "set gradient_checkpointing = true, or "
        help_ = f"set accumulate to {parts}" if parts else f"{saving}give a smaller crop"
        raise UsageError(
            f"A part of {crops} crops of {now.crop} pixels takes about {in_words(found.part)} and {in_words(free)} are "
            f"free; {help_}."
        )
    return found


def _fits(batch: int, world: int, parts: int, kept: int, room: int) -> bool:
    """Whether so many parts are equal, and each is small enough."""
    return batch % (world * parts) == 0 and batch // world // parts * kept <= room


def _kept(trainer: Trainer, crop: int) -> int:
    """Bytes that autograd keeps of one crop of this size, each storage once."""
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = local(tensor).untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    held: list[Tensor] = []  # so that no address comes twice
    helpers = (trainer.helpers.perceptual, trainer.helpers.features, trainer.discriminator)
    modules = [trainer.own, *(one for one in helpers if isinstance(one, nn.Module))]
    known = {local(p).untyped_storage().data_ptr() for module in modules for p in module.parameters()}
    black = np.zeros((1, crop, crop, trainer.recipe.network.picture_channels), dtype=np.uint8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = trainer.losses(black)
    total = sum(size for place, size in seen.items() if place not in known)
    del loss
    return total
