"""Samplers: from noise to latents in a few evaluations of a network, all of them deterministic.

One step of any of them, from time t to s, is x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D:
exact if the network's estimate of x_0 were D all the way. The samplers differ in D and in the times:

- "euler": D is the estimate at t. This is Euler's step of the ODE in sigma / alpha (Karras et al. 2022,
  arXiv:2206.00364, equation 1), as k-diffusion takes it, and that of a flow's own ODE in t.
- "ddim": the same. DDIM at eta 0 (Song et al. 2021, arXiv:2010.02502, equation 12) is Euler's step in sigma / alpha,
  and differs from "euler" in the grid of times only; for a `Flow`, in nothing.
- "dpm++": D is extrapolated from the estimates at t and the time before, linearly in lambda = log(alpha / sigma):
  DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2). The first step, and the last one to sigma 0, are of
  first order; so is the second one if the first began where alpha is 0, as lambda is infinite there.

Scalars are float64; latents stay in their own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from calotype.draw.schedule import Sampler, Schedule
from calotype.draw.text import Context
from calotype.errors import UsageError

Prediction = Literal["noise", "v", "flow"]
"""What a network gives: eps; v = alpha eps - sigma x_0 (Salimans & Ho 2022, arXiv:2202.00512); or eps - x_0."""

Network = Callable[[Tensor, Tensor], Tensor]
"""Noisy latents [N, C, h, w] and what the schedule says of their time [N] -> its prediction [N, C, h, w]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Keep:
    """What a drawing leaves as it is.

    Attributes:
        latents: [N, C, h, w], what is kept.
        mask: [h, w], [1, 1, h, w] or [N, 1, h, w], in [0, 1]: 1 where it is drawn, 0 where latents are kept, and a
            mixture between.

    Raises:
        UsageError: a mask of another size, or with values outside [0, 1].
    """

    latents: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        count, _, *size = self.latents.shape
        if list(self.mask.shape) not in (size, [1, 1, *size], [count, 1, *size]):
            raise UsageError(
                f"The mask is {list(self.mask.shape)} and the latents {list(self.latents.shape)}; make the mask {size}."
            )
        if not ((self.mask >= 0) & (self.mask <= 1)).all():
            raise UsageError("A mask holds numbers from 0, where latents are kept, to 1, where they are drawn anew.")

    def pin(self, x: Tensor, kept: Tensor) -> Tensor:
        """`x` where it is drawn, `kept` elsewhere, both [N, C, h, w]; exactly so where the mask is 1 or 0."""
        return torch.lerp(kept, x, self.mask.to(x))


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """How far a drawing is.

    Attributes:
        index: of this step, from 0 up.
        total: steps there are.
        clean: [N, C, h, w], the network's estimate of the finished latents; what is kept is in it. After the last step
            it is the result.
    """

    index: int
    total: int
    clean: Tensor


class _Level(NamedTuple):
    """A time and how much of latents and of noise there is."""

    t: float
    alpha: float
    sigma: float

    @property
    def half_log_snr(self) -> float:
        """lambda; not defined where sigma is 0."""
        return math.log(self.alpha / self.sigma) if self.alpha else -math.inf

    def of(self, latents: Tensor, noise: Tensor) -> Tensor:
        """x_t."""
        return self.alpha * latents + self.sigma * noise


@torch.no_grad()
def sample(
    network: Network,
    noise: Tensor,
    schedule: Schedule,
    *,
    steps: int,
    sampler: Sampler = "dpm++",
    prediction: Prediction = "flow",
    start: Tensor | None = None,
    strength: float = 1.0,
    keep: Keep | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Latents drawn from noise.

    No picture depends on the others of its batch, as far as the network's do not.

    A strength below 1 changes pictures (SDEdit: Meng et al. 2022, arXiv:2108.01073): the last `strength` of the steps
    are done, on the noise mixed with `start` in the proportions of the time where they begin. Where that is no whole
    number of steps, one more is done and all are made shorter, so every strength has a beginning of its own. At
    strength 1 the drawing begins with the noise alone.

    What is kept is, at every time, alpha latents + sigma noise (RePaint without its resampling: Lugmayr et al. 2022,
    arXiv:2201.09865, equation 8), and the latents themselves in the result.

    Args:
        network: called ceil(strength * steps) times.
        noise: [N, C, h, w] from N(0, I), float; see `noise_for`.
        schedule: the one the network was trained with.
        steps: of a whole drawing, at least 1.
        start: [N, C, h, w], in the noise's dtype, what is changed; needed where the strength is below 1.
        strength: from 0, which gives `start` itself, to 1, which does not depend on it.
        keep: what is left as it is, in the noise's dtype too.
        on_step: called after each step.

    Returns:
        [N, C, h, w], in the dtype of the noise.

    Raises:
        UsageError: if an argument is not one of those above, or shapes differ; or if a network that predicts noise is
            to begin where alpha is 0: it says nothing about x_0 there.
    """
    if prediction not in get_args(Prediction):
        raise UsageError(f"There is no prediction {prediction!r}; choose one of {', '.join(get_args(Prediction))}.")
    if not 0.0 <= strength <= 1.0:
        raise UsageError(f"A strength is a number from 0 (nothing changes) to 1 (all is new), not {strength:g}.")
    if strength < 1.0 and start is None:
        raise UsageError(f"A strength of {strength:g} changes latents, and there are none; give start, or strength 1.")
    for given, name in ((start, "start"), (None if keep is None else keep.latents, "what is kept")):
        if given is not None and given.shape != noise.shape:
            raise UsageError(f"The noise is {list(noise.shape)} and {name} {list(given.shape)}; they must be alike.")
    times = schedule.times(steps, sampler)
    if strength < 1.0:
        times = _last(times, strength)
    levels = [_Level(t, schedule.alpha(t), schedule.sigma(t)) for t in times]
    x = noise
    if start is not None and strength < 1.0:
        x = levels[0].of(start, noise) if strength else start  # itself: computed, it might not be the same bit by bit
    before: tuple[_Level, Tensor] | None = None  # where the last step began, and its estimate
    for index, (level, then) in enumerate(pairwise(levels)):
        if keep is not None:
            x = keep.pin(x, level.of(keep.latents, noise))
        told = x.new_full((len(x),), schedule.model_time(level.t), dtype=torch.promote_types(x.dtype, torch.float32))
        of_x, of_prediction = _estimate(prediction, level)
        clean = of_x * x + of_prediction * network(x, told).to(x.dtype)
        towards = clean
        if sampler == "dpm++" and before is not None and then.sigma:
            earlier, estimate = before
            further = 0.5 * (then.half_log_snr - level.half_log_snr) / (level.half_log_snr - earlier.half_log_snr)
            towards = clean + further * (clean - estimate)
        before = level, clean
        shrink = then.sigma / level.sigma
        x = shrink * x + (then.alpha - level.alpha * shrink) * towards
        if on_step is not None:
            shown = clean if keep is None else keep.pin(clean, keep.latents)
            on_step(Step(index=index, total=len(levels) - 1, clean=shown))
    return x if keep is None else keep.pin(x, keep.latents)


def _last(times: list[float], strength: float) -> list[float]:
    """The last part of a grid, in steps of even length, none of them longer than the grid's; at 0 its end alone."""
    steps = len(times) - 1
    length = strength * steps
    count = math.ceil(length - 1e-9)  # 0.3 * 10 and the like are whole
    made = []
    for i in range(count):
        place = steps - length + i * length / count
        low = min(int(place), steps - 1)
        made.append(times[low] + (place - low) * (times[low + 1] - times[low]))
    return [*made, times[-1]]


def _estimate(prediction: Prediction, level: _Level) -> tuple[float, float]:
    """x_0 is the first number times x_t, plus the second times the prediction."""
    alpha, sigma = level.alpha, level.sigma
    if prediction == "flow":
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    if prediction == "v":
        return alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2)
    if not alpha:
        raise UsageError("Noise alone can't be drawn from by predicting noise; take a network that predicts v or flow.")
    return 1 / alpha, -sigma / alpha


def noise_for(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Noise from N(0, I), float32 on the CPU: [N, *shape], each picture's from a generator with its own seed.

    Args:
        seeds: one for each picture, from 0 to 2^64 - 1.
        shape: of one picture's noise.

    Raises:
        UsageError: no seed, or one outside 0 to 2^64 - 1.
    """
    if not seeds:
        raise UsageError("There is no seed; give one for each picture.")
    for seed in seeds:
        if not 0 <= seed < 2**64:
            raise UsageError(f"A seed is a whole number from 0 to 2^64 - 1, not {seed}.")
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def guided(
    network: Callable[[Tensor, Tensor, Context], Tensor],
    conditional: Context,
    unconditional: Context,
    scale: float,
    above: float | None = None,
) -> Network:
    """Classifier-free guidance: unconditional + scale (conditional - unconditional), from one call with 2 N latents.

    (Ho & Salimans 2022, arXiv:2207.12598, equation 6, whose w is scale - 1.) At scale 1 only the conditional half is
    computed, and so it is where noise has become little (Kynkäänniemi et al. 2024, arXiv:2404.07724).

    Args:
        network: of noisy latents [N, C, h, w], times [N] and the context of N texts.
        conditional: of N texts.
        unconditional: of N texts or of one; as many tokens long as the conditional one.
        above: the scale counts at times above this one; at all where there is none.
    """

    def network_of_both(x: Tensor, t: Tensor) -> Tensor:
        if scale == 1.0 or (above is not None and float(t[0]) <= above + 1e-6):  # times come in float32
            return network(x, t, conditional)
        parts = zip(unconditional, conditional, strict=True)
        both = Context(*(torch.cat([no.expand_as(yes), yes]) for no, yes in parts))
        without, given = network(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return without + scale * (given - without)

    return network_of_both
