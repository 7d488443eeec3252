"""Confidence intervals against scipy's, and whether they hold the mean as often as they say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats as scipy_stats
from support import one_sentence

from calotype.errors import UsageError
from calotype.evaluate import bootstrap as module
from calotype.evaluate.bootstrap import Interval, mean_interval

stats: Any = scipy_stats  # scipy is not typed


def psnrs(n: int, seed: int = 0) -> list[float]:
    """Skewed, as figures of pictures are."""
    found: list[float] = (25.0 + np.random.default_rng(seed).gamma(2.0, 2.0, n)).tolist()
    return found


@pytest.mark.parametrize("confidence", [0.95, 0.8])
@pytest.mark.parametrize("n", [8, 24, 500])
def test_it_is_scipys_within_monte_carlo_error(n: int, confidence: float) -> None:
    values = psnrs(n)
    found = mean_interval(values, confidence=confidence)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", confidence_level=confidence, rng=12345
    ).confidence_interval
    # of a quantile p of r draws: sqrt(p (1 - p) / r) / density there
    p = (1.0 - confidence) / 2.0
    of_means = np.std(values) / n**0.5
    error = (p * (1.0 - p) / 10_000) ** 0.5 / stats.norm.pdf(stats.norm.ppf(p)) * of_means
    assert found.mean == pytest.approx(np.mean(values), rel=1e-14)
    assert found.low == pytest.approx(theirs.low, abs=6 * error)
    assert found.high == pytest.approx(theirs.high, abs=6 * error)
    assert 6 * error < 0.12 * (found.high - found.low)


def test_with_the_same_draws_it_is_exactly_scipys() -> None:
    values = psnrs(24)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-13)


@pytest.mark.parametrize("confidence", [0.9, 0.5])
def test_it_holds_the_mean_as_often_as_it_says(confidence: float) -> None:
    generator = np.random.default_rng(3)
    trials, n = 1000, 40
    inside = 0
    for trial in range(trials):
        found = mean_interval(generator.normal(7.0, 2.0, n).tolist(), confidence=confidence, resamples=400, seed=trial)
        inside += found.low <= 7.0 <= found.high
    # of 40 normal values the interval is a normal one of sqrt(39 / 40) times the deviation: Student's t covers less
    quantile = stats.norm.ppf((1.0 + confidence) / 2.0) * (1.0 - 1.0 / n) ** 0.5
    expected = 1.0 - 2.0 * stats.t.sf(quantile, n - 1)
    assert expected < confidence
    assert inside / trials == pytest.approx(expected, abs=4 * (expected * (1 - expected) / trials) ** 0.5)


def test_it_shrinks_as_pictures_come_and_is_as_wide_as_the_mean_is_uncertain() -> None:
    for n in (100, 400):
        values = psnrs(n)
        found = mean_interval(values)
        assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(values) / n**0.5, rel=0.06)


@pytest.mark.parametrize("block", [1, 100, 24 * 777, 2**21])
def test_blocks_do_not_change_it(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = psnrs(24)
    expected = mean_interval(values, resamples=2000)
    monkeypatch.setattr(module, "_BLOCK", block)
    assert mean_interval(values, resamples=2000) == expected


def test_the_seed_decides() -> None:
    values = psnrs(24)
    assert mean_interval(values) == mean_interval(values, seed=0)
    assert mean_interval(values, seed=1).low != mean_interval(values).low
    assert mean_interval([3.0, 3.0]) == Interval(3.0, 3.0, 3.0)
    two = mean_interval([0.0, 1.0])
    assert (two.mean, two.low, two.high) == (0.5, 0.0, 1.0)  # a quarter of the means each


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, r"at least 2 values, not one of shape \(0,\)"),
        ([1.0], {}, r"at least 2 values, not one of shape \(1,\)"),
        ([[1.0, 2.0]], {}, r"not one of shape \(1, 2\)"),
        ([1.0, math.inf], {}, "needs finite values"),
        ([1.0, math.nan], {}, "needs finite values"),
        ([1.0, 2.0], {"confidence": 1.0}, "not 1.0 and 10000"),
        ([1.0, 2.0], {"confidence": 95}, "not 95 and 10000"),
        ([1.0, 2.0], {"resamples": 0}, "not 0.95 and 0"),
    ],
)
def test_what_has_no_interval(values: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        mean_interval(values, **options)
    one_sentence(str(caught.value))
