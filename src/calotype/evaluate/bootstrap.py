"""How far the mean of a few pictures' figures can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calotype.errors import UsageError

_BLOCK = 2**21  # values that are drawn at a time


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        mean: of the values themselves.
        low, high: where the interval begins and ends.
    """

    mean: float
    low: float
    high: float


def mean_interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """A percentile bootstrap confidence interval of the mean: Efron 1979; Efron, JASA 82(397), 1987, section 1.

    As many values as there are are drawn from them with replacement, `resamples` times; the interval lies between the
    quantiles (1 - confidence) / 2 and (1 + confidence) / 2 of these means, interpolated linearly. It says how much the
    mean would change with other pictures of the same kind, and nothing about other seeds or other kinds. With few
    values it is too narrow: by about sqrt(1 - 1 / n).

    Args:
        values: one a picture, at least two, all finite (PSNR is infinite where a picture comes back unchanged).
        confidence: above 0 and below 1.
        resamples: at least one.
        seed: the same one gives the same interval.

    Raises:
        UsageError: for anything else.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) < 2:
        raise UsageError(f"a confidence interval needs a list of at least 2 values, not one of shape {sample.shape}.")
    if not np.isfinite(sample).all():
        raise UsageError("a confidence interval needs finite values; leave out the infinite ones and say how many.")
    if not 0.0 < confidence < 1.0 or resamples < 1:
        raise UsageError(
            f"a confidence interval needs a confidence between 0 and 1 and at least 1 resample, not {confidence} and "
            f"{resamples}."
        )
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _BLOCK // len(sample))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        means[start : start + rows] = sample[generator.integers(0, len(sample), (rows, len(sample)))].mean(1)
    low, high = np.quantile(means, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Interval(float(sample.mean()), float(low), float(high))
