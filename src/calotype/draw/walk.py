"""Walks from prompt to prompt: every frame is a drawing of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from calotype.draw.pipeline import Drawer, Settings
from calotype.draw.text import Context
from calotype.edit.morph import Frame, Way
from calotype.edit.paths import slerp, times
from calotype.engine.executor import Progress
from calotype.errors import UsageError
from calotype.pixels import crop


def walk(
    drawer: Drawer,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings | None = None,
    way: Way = Way(),
    *,
    progress: Progress | None = None,
) -> Iterator[Frame]:
    """Frames from prompt to prompt, for `edit.morph.write_frames`.

    Noise is slerped, so that it stays as long as noise is; what the denoiser is told of the texts is lerped. The
    frames at the prompts are what `Drawer.draw` gives for them, up to the rounding that padding texts to one length
    may bring.

    Args:
        prompts: two or more.
        seeds: one for each prompt.
        settings: those that are usual for the model where none are given.
        way: its frames, easing and whether it is closed; `kind` is not looked at.
        progress: is told which part is done, from 0 to 1.

    Raises:
        UsageError: fewer than two prompts, another number of seeds, or as `Drawer.draw`.
    """
    if len(prompts) < 2:
        raise UsageError(f"A walk leads from one prompt to another, and {len(prompts)} was given.")
    if len(seeds) != len(prompts):
        raise UsageError(f"There are {len(seeds)} seeds for {len(prompts)} prompts; give one each.")
    settings = settings or drawer.usual
    padding = drawer.padding(settings)
    noises = [drawer.noise(seed, padding) for seed in seeds]
    meant = [drawer.meant(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    texts = drawer.embed(*meant, settings.negative)
    of_sketches = [drawer.sketch_noise(seed) for seed in seeds]
    without = texts.rows(len(prompts), len(prompts) + 1)
    total, count = way.decoded(len(prompts)), 0

    def drawn(a: int, b: int, t: float) -> Tensor:
        nonlocal count
        both = lerped(texts.rows(a, a + 1), texts.rows(b, b + 1), t), lerped(without, without, 0.0)
        told = Context(*(torch.cat(parts) for parts in zip(*both, strict=True)))
        told = drawer.sketched(told, slerp(of_sketches[a], of_sketches[b], t))
        latents = drawer.from_noise(told, slerp(noises[a], noises[b], t), padding, settings)
        pixels = crop(drawer.vae.decode(latents.tensor[None])[0].cpu(), padding)
        count += 1
        if progress is not None:
            progress(count / total)
        return pixels

    first = before = drawn(0, 0, 0.0)
    yield Frame(first, first, first, 0.0)
    stops = [*range(len(prompts)), 0] if way.closed else list(range(len(prompts)))
    for i, (a, b) in enumerate(pairwise(stops)):
        closing = way.closed and i == len(prompts) - 1
        after = first if closing else drawn(b, b, 0.0)
        for t in times(way.frames, way.easing)[1:-1]:
            yield Frame(drawn(a, b, t), before, after, t)
        if not closing:
            yield Frame(after, before, after, 1.0)
        before = after


def lerped(a: Context, b: Context, t: float) -> Context:
    """A text between two others, at t from 0 to 1, with weights of its tokens in the place of a mask.

    States and sketches are lerped. A token that only one of the texts has, takes part in attention in proportion to how
    much of that text there is: the log of this share is added to its logits.
    """
    shares = torch.lerp(a.mask.float(), b.mask.float(), t)
    alone_a, alone_b = a.mask & ~b.mask, b.mask & ~a.mask
    states = torch.lerp(a.states, b.states, t)
    states = torch.where(alone_a[..., None], a.states, torch.where(alone_b[..., None], b.states, states))
    pooled, sketch = torch.lerp(a.pooled, b.pooled, t), torch.lerp(a.sketch, b.sketch, t)
    return Context(states, shares.log(), pooled, sketch)
