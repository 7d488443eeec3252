"""Noise schedules: how much of latents and of noise there is at a time, and which times a drawing visits.

Everything here is float64 arithmetic in Python; tensors come in with `calotype.draw.sampler`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal, get_args

from calotype.errors import UsageError

Sampler = Literal["ddim", "euler", "dpm++"]  # DDIM, Euler's method, DPM-Solver++(2M)
Betas = Literal["scaled_linear", "linear", "cosine"]  # how variances grow over training's steps
Spacing = Literal["leading", "linspace", "trailing"]  # which of training's steps a drawing takes

SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)  # all of them
TRAINING_STEPS = 1000  # of every `Diffusion`


class Schedule(ABC):
    """x_t = alpha(t) x_0 + sigma(t) eps, with x_0 the latents and eps ~ N(0, I)."""

    clean: ClassVar[float]  # the time at which alpha is 1 and sigma 0

    def times(self, steps: int, sampler: Sampler) -> list[float]:
        """The `steps` + 1 times of a whole drawing, from the noise to exactly `clean`.

        Raises:
            UsageError: no step, more steps than the schedule has times for, or an unknown sampler.
        """
        if sampler not in SAMPLERS:
            raise UsageError(f"There is no sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}.")
        if steps < 1:
            raise UsageError(f"A drawing takes at least one step, not {steps}.")
        return [*self._grid(steps, sampler), self.clean]

    @abstractmethod
    def _grid(self, steps: int, sampler: Sampler) -> list[float]:
        """The times at which the network is asked, the noisiest first."""

    @abstractmethod
    def alpha(self, t: float) -> float:
        """What x_0 is multiplied by, from 0 to 1."""

    @abstractmethod
    def sigma(self, t: float) -> float:
        """What the noise is multiplied by, from 0 to 1."""

    @abstractmethod
    def model_time(self, t: float) -> float:
        """What the network is told of the time."""


@dataclass(frozen=True, kw_only=True)
class Flow(Schedule):
    """Rectified flow (Liu et al. 2022, arXiv:2209.03003): alpha = 1 - t, sigma = t, t from 1 (noise) to 0.

    A drawing visits 1, 1 - 1/steps, ..., 0, each shifted; the same for every sampler. The network is told t itself.

    Attributes:
        shift: s > 0 in t' = s t / (1 + (s - 1) t) (Esser et al. 2024, arXiv:2403.03206, equation 23). Above 1, more of
            the steps are spent on noisy latents, which larger pictures need.

    Raises:
        UsageError: a shift that is no number above 0.
    """

    shift: float = 1.0

    clean: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.shift < math.inf:
            raise UsageError(f"A flow's shift is a number above 0, not {self.shift:g}.")

    def shifted(self, t: float) -> float:
        """Where a time in [0, 1] comes to lie; 0 and 1 stay exactly."""
        return self.shift * t / (1.0 - t + self.shift * t)

    def _grid(self, steps: int, sampler: Sampler) -> list[float]:
        return [self.shifted(1.0 - i / steps) for i in range(steps)]

    def alpha(self, t: float) -> float:
        return 1.0 - t

    def sigma(self, t: float) -> float:
        return t

    def model_time(self, t: float) -> float:
        return t


@dataclass(frozen=True, kw_only=True)
class Diffusion(Schedule):
    """The variance-preserving diffusion of DDPM (Ho et al. 2020, arXiv:2006.11239) with 1000 training steps.

    Times are the indices of training steps, 999 the noisiest; alpha(t)^2 = (1 - beta_0) ... (1 - beta_t) and
    sigma(t)^2 = 1 - alpha(t)^2. Between two indices sigma/alpha is interpolated linearly, as diffusers'
    EulerDiscreteScheduler does; so it is from index 0 to the clean end, -1. The network is told t, at least 0.

    With the same settings, the times a drawing visits are those of diffusers' DDIMScheduler ("ddim"),
    EulerDiscreteScheduler ("euler") and DPMSolverMultistepScheduler ("dpm++"), whose spacings of one name differ. (But
    halves are rounded to the even number, where theirs may go either way.)

    - "leading": multiples of 1000 // steps from 0 up, plus `offset`. Few steps begin well below 999. "dpm++" takes the
      multiples of 1000 // (steps + 1) from 1 up.
    - "linspace": evenly from 999 to 0. "euler" does not round them, as k-diffusion; "dpm++" makes one more and leaves
      out 0. One step is at 999.
    - "trailing": evenly from 999 down to 1000 / steps - 1 (Lin et al. 2023, arXiv:2305.08891, table 2).

    Attributes:
        betas: "scaled_linear" (Stable Diffusion: the root of beta rises linearly), "linear" (DDPM), or "cosine"
            (Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17; "squaredcos_cap_v2" in diffusers).
        beta_start: the first beta, in (0, 1); the cosine's are its own.
        beta_end: the last beta, from `beta_start` to below 1.
        spacing: of the times; None takes the usual one, "leading" for "ddim" and "linspace" for the others.
        offset: added to the times of "leading".

    Raises:
        UsageError: unknown betas or spacing, betas outside (0, 1), or an offset below 0.
    """

    betas: Betas = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    spacing: Spacing | None = None
    offset: int = 1

    clean: ClassVar[float] = -1.0

    def __post_init__(self) -> None:
        if self.betas not in get_args(Betas):
            raise UsageError(f"There are no betas {self.betas!r}; choose one of {', '.join(get_args(Betas))}.")
        if self.spacing not in (None, *get_args(Spacing)):
            raise UsageError(f"There is no spacing {self.spacing!r}; choose one of {', '.join(get_args(Spacing))}.")
        if not 0.0 < self.beta_start <= self.beta_end < 1.0:
            raise UsageError(f"Betas rise between 0 and 1, not from {self.beta_start:g} to {self.beta_end:g}.")
        if self.offset < 0:
            raise UsageError(f"The offset of times is a whole number from 0 up, not {self.offset}.")

    def _grid(self, steps: int, sampler: Sampler) -> list[float]:
        spacing = self.spacing or ("leading" if sampler == "ddim" else "linspace")
        lowest = 1 if sampler == "dpm++" else 0  # the number of the lowest time that is visited
        points = steps + lowest
        if spacing == "trailing":
            grid = [round(i * TRAINING_STEPS / steps) - 1.0 for i in reversed(range(1, steps + 1))]
        elif spacing == "leading":
            grid = [i * (TRAINING_STEPS // points) + float(self.offset) for i in reversed(range(lowest, points))]
        elif points == 1:
            grid = [TRAINING_STEPS - 1.0]
        else:
            grid = [i * (TRAINING_STEPS - 1) / (points - 1) for i in reversed(range(lowest, points))]
            if sampler != "euler":
                grid = [float(round(t)) for t in grid]
        if grid[0] >= TRAINING_STEPS or any(t <= then for t, then in pairwise(grid)):
            raise UsageError(f"A diffusion of {TRAINING_STEPS} training steps has no {steps} times; take fewer steps.")
        return grid

    def alpha(self, t: float) -> float:
        return 1.0 / math.hypot(1.0, self._ratio(t))

    def sigma(self, t: float) -> float:
        ratio = self._ratio(t)
        return ratio / math.hypot(1.0, ratio)

    def model_time(self, t: float) -> float:
        return max(t, 0.0)

    def _ratio(self, t: float) -> float:
        """sigma / alpha at any time from -1 to 999."""
        low = math.floor(t)
        part = t - low
        ratio = self._ratios[low + 1]
        return ratio + part * (self._ratios[low + 2] - ratio) if part else ratio

    @cached_property
    def _ratios(self) -> tuple[float, ...]:
        """sigma / alpha at -1, 0, ..., 999."""
        ratios, kept = [0.0], 1.0
        for i in range(TRAINING_STEPS):
            kept *= 1.0 - self._beta(i)
            ratios.append(math.sqrt((1.0 - kept) / kept))
        return tuple(ratios)

    def _beta(self, i: int) -> float:
        part = i / (TRAINING_STEPS - 1)
        if self.betas == "linear":
            return self.beta_start + part * (self.beta_end - self.beta_start)
        if self.betas == "scaled_linear":
            first, last = math.sqrt(self.beta_start), math.sqrt(self.beta_end)
            return (first + part * (last - first)) ** 2
        return min(1.0 - _cosine(i + 1) / _cosine(i), 0.999)


def _cosine(i: int) -> float:
    """alpha^2 after i training steps, up to a factor."""
    return math.cos((i / TRAINING_STEPS + 0.008) / 1.008 * math.pi / 2) ** 2
