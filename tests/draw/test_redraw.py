"""Redrawing: how much changes at which strength, and what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import one_sentence
from torch import Tensor

from calotype.draw.sampler import Keep, Network, Step, sample
from calotype.draw.schedule import SAMPLERS, Diffusion, Flow, Sampler, Schedule
from calotype.errors import UsageError

SHAPE = (3, 4, 8, 6)


def noise(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


class Counted:
    """A network of single values that keeps what it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append((x, t))
        return torch.tanh(1.5 * x + t.to(x)[:, None, None, None])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [Flow(shift=2), Diffusion()])
def test_strength_from_end_to_end(schedule: Schedule, sampler: Sampler) -> None:
    def redrawn(start: Tensor | None, strength: float, network: Network) -> Tensor:
        return sample(
            network, noise(), schedule, steps=10, sampler=sampler, prediction="v", start=start, strength=strength
        )

    start = noise(1)
    start[0, 0] = -0.0
    none = Counted()
    same = redrawn(start, 0.0, none)
    assert same.numpy().tobytes() == start.numpy().tobytes()
    assert not none.seen
    new = redrawn(None, 1.0, Counted())
    for other in (start, torch.full(SHAPE, math.nan)):
        assert torch.equal(redrawn(other, 1.0, Counted()), new)
    far = [(redrawn(start, s, Counted()) - start).norm().item() for s in (1e-12, 0.01, 0.1, 0.3, 0.6, 0.9)]
    assert far == sorted(far)
    assert far[0] < 1e-4


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [Flow(shift=2), Diffusion()])
def test_a_strength_of_whole_steps_is_the_end_of_the_grid(schedule: Schedule, sampler: Sampler) -> None:
    for strength, done in ((0.1, 1), (0.3, 3), (0.6, 6), (0.7, 7), (0.9, 9)):
        network = Counted()
        sample(network, noise(), schedule, steps=10, sampler=sampler, prediction="v", start=noise(1), strength=strength)
        grid = schedule.times(10, sampler)[-done - 1 : -1]
        assert [t[0].item() for _, t in network.seen] == pytest.approx([schedule.model_time(t) for t in grid], rel=1e-6)
        mixed = schedule.alpha(grid[0]) * noise(1) + schedule.sigma(grid[0]) * noise()
        assert torch.allclose(network.seen[0][0], mixed, atol=1e-5)


def test_a_strength_between_whole_steps_takes_even_ones() -> None:
    for strength, expected in ((0.35, [0.35, 0.2625, 0.175, 0.0875]), (0.04, [0.04]), (0.11, [0.11, 0.055])):
        network = Counted()
        sample(network, noise().double(), Flow(), steps=10, start=noise(1).double(), strength=strength)
        assert [t[0].item() for _, t in network.seen] == pytest.approx(expected, abs=1e-12)
    network = Counted()  # 0.07 * 100 is a little above 7
    sample(network, noise(), Flow(), steps=100, start=noise(1), strength=0.07)
    assert len(network.seen) == 7
    near = [
        sample(Counted(), noise(), Flow(), steps=10, start=noise(1), strength=s) for s in (0.5, 0.4999, 0.4501, 0.4499)
    ]
    assert (near[0] - near[1]).abs().max() < 0.1
    assert (near[2] - near[3]).abs().max() < 1e-2


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [Flow(shift=2), Diffusion()])
def test_what_is_kept(schedule: Schedule, sampler: Sampler) -> None:
    mask = torch.zeros(SHAPE[2:])
    mask[2:6, 1:4] = 1
    inside = mask.bool().expand(SHAPE)
    latents, network = noise(2), Counted()
    steps: list[Step] = []
    whole: dict[str, Any] = {"steps": 5, "sampler": sampler, "prediction": "v"}
    found = sample(network, noise(), schedule, keep=Keep(latents=latents, mask=mask), on_step=steps.append, **whole)
    assert torch.equal(found[~inside], latents[~inside])
    assert not torch.isclose(found[inside], latents[inside]).any()
    for (x, _), t in zip(network.seen, schedule.times(5, sampler), strict=False):
        known = schedule.alpha(t) * latents + schedule.sigma(t) * noise()
        assert torch.allclose(x[~inside], known[~inside], atol=1e-6)
    assert all(torch.equal(one.clean[~inside], latents[~inside]) for one in steps)
    assert torch.equal(steps[-1].clean, found)

    alone = sample(Counted(), noise(), schedule, **whole)
    for value, expected in ((1.0, alone), (0.0, latents)):
        keep = Keep(latents=latents, mask=torch.full(SHAPE[2:], value))
        assert torch.equal(sample(Counted(), noise(), schedule, keep=keep, **whole), expected)
    boolean = Keep(latents=latents, mask=mask.bool()[None, None])
    assert torch.equal(sample(Counted(), noise(), schedule, keep=boolean, **whole), found)
    start = noise(3)
    same = sample(Counted(), noise(), schedule, start=start, strength=0, keep=Keep(latents=latents, mask=mask), **whole)
    assert torch.equal(same, torch.where(inside, start, latents))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_a_soft_mask_mixes(dtype: torch.dtype, tolerance: float) -> None:
    keep = Keep(latents=noise(2).to(dtype), mask=torch.full(SHAPE[2:], 0.25))
    found = sample(Counted(), noise().to(dtype), Flow(), steps=1, keep=keep)
    drawn = noise() - Counted()(noise(), torch.ones(3))
    assert found.dtype == dtype
    assert torch.allclose(found.float(), 0.25 * drawn + 0.75 * noise(2), atol=tolerance)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Keep(latents=noise(), mask=torch.ones(8, 7)), "mask is \\[8, 7\\] .* make the mask \\[8, 6\\]"),
        (lambda: Keep(latents=noise(), mask=torch.ones(2, 1, 8, 6)), "mask is \\[2, 1, 8, 6\\]"),
        (lambda: Keep(latents=noise(), mask=torch.full((8, 6), 255)), "numbers from 0, .* to 1"),
        (lambda: Keep(latents=noise(), mask=torch.full((8, 6), math.nan)), "numbers from 0, .* to 1"),
    ],
)
def test_a_mask_that_makes_no_sense_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        make()
    one_sentence(str(caught.value))
