"""Noise schedules: values by hand and diffusers' tables, the times of drawings, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from support import import_diffusers, one_sentence

from calotype.draw.schedule import SAMPLERS, Diffusion, Flow, Schedule
from calotype.errors import UsageError

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}
BETAS: dict[str, dict[str, Any]] = {
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "linear": {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}


def ours(betas: str, **more: Any) -> Diffusion:
    ends = {key: value for key, value in BETAS[betas].items() if key != "beta_schedule"}
    return Diffusion(betas=betas, **ends, **more)  # type: ignore[arg-type]


def alphas_cumprod(betas: str) -> np.ndarray:
    """In float64, from the definitions."""
    if betas == "cosine":
        bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    elif betas == "linear":
        beta = np.linspace(0.0001, 0.02, 1000)
    else:
        beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return np.cumprod(1 - beta)


@pytest.mark.parametrize("betas", list(BETAS))
def test_diffusion_by_its_definition(betas: str) -> None:
    schedule, kept = ours(betas), alphas_cumprod(betas)
    assert [schedule.alpha(t) for t in range(1000)] == pytest.approx(np.sqrt(kept), rel=1e-10)
    assert [schedule.sigma(t) for t in range(1000)] == pytest.approx(np.sqrt(1 - kept), rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("betas", list(BETAS))
def test_diffusion_has_diffusers_table(betas: str) -> None:
    table = import_diffusers().DDIMScheduler(**BETAS[betas]).alphas_cumprod
    found = [ours(betas).alpha(t) ** 2 for t in range(1000)]
    # float32 keeps 1 - 0.999, the cosine's last factor, to 6e-5
    assert found == pytest.approx(table.tolist(), rel=1e-4 if betas == "cosine" else 2e-5)


def test_stable_diffusion_by_hand() -> None:
    schedule = Diffusion()
    assert schedule.alpha(0) ** 2 == pytest.approx(1 - 0.00085, rel=1e-12)
    root = 0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) / 999
    assert schedule.alpha(1) ** 2 == pytest.approx((1 - 0.00085) * (1 - root**2), rel=1e-12)
    assert schedule.sigma(999) / schedule.alpha(999) == pytest.approx(14.6146, abs=1e-4)  # k-diffusion's sigma_max
    assert schedule.sigma(0) / schedule.alpha(0) == pytest.approx(0.0292, abs=1e-4)  # and its sigma_min


@given(st.floats(-1, 999))
@settings(deadline=None)
def test_diffusion_between_its_times(t: float) -> None:
    schedule = Diffusion()
    low = math.floor(t)
    ends = [schedule.sigma(i) / schedule.alpha(i) for i in (low, min(low + 1, 999))]
    ratio = schedule.sigma(t) / schedule.alpha(t)
    assert ratio == pytest.approx(ends[0] + (t - low) * (ends[1] - ends[0]), rel=1e-9, abs=1e-12)
    assert schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 == pytest.approx(1, rel=1e-12)
    assert schedule.model_time(t) == max(t, 0)


@pytest.mark.parametrize("schedule", [Flow(), Flow(shift=3), Diffusion(), Diffusion(betas="cosine")])
def test_drawings_end_clean(schedule: Schedule) -> None:
    for sampler in SAMPLERS:
        for steps in (1, 2, 7, 50):
            times = schedule.times(steps, sampler)
            assert len(times) == steps + 1
            assert times[-1] == schedule.clean
            assert all(t > then for t, then in pairwise(times))
    assert (schedule.alpha(schedule.clean), schedule.sigma(schedule.clean)) == (1.0, 0.0)


def test_flow_by_hand() -> None:
    flow = Flow(shift=3)
    assert (flow.alpha(0.25), flow.sigma(0.25), flow.model_time(0.25)) == (0.75, 0.25, 0.25)
    assert flow.times(4, "dpm++") == [1.0, pytest.approx(0.9), 0.75, pytest.approx(0.5), 0.0]
    assert Flow().times(4, "euler") == [1.0, 0.75, 0.5, 0.25, 0.0]


@given(st.floats(0.01, 100), st.floats(0, 1))
@settings(deadline=None)
def test_a_shift(shift: float, t: float) -> None:
    flow = Flow(shift=shift)
    assert (flow.shifted(0), flow.shifted(1)) == (0, 1)
    assert flow.shifted(t) == pytest.approx(shift * t / (1 + (shift - 1) * t), rel=1e-9)
    assert Flow(shift=1 / shift).shifted(flow.shifted(t)) == pytest.approx(t, abs=1e-9)


def test_times_by_hand() -> None:
    assert Diffusion().times(4, "ddim") == [751, 501, 251, 1, -1]
    assert Diffusion(offset=0).times(4, "ddim") == [750, 500, 250, 0, -1]
    assert Diffusion(spacing="leading").times(4, "dpm++") == [801, 601, 401, 201, -1]
    assert Diffusion().times(4, "euler") == [999, 666, 333, 0, -1]
    assert Diffusion().times(5, "euler") == [999, 749.25, 499.5, 249.75, 0, -1]
    assert Diffusion().times(4, "dpm++") == [999, 749, 500, 250, -1]  # 499.5 is rounded to the even number
    for sampler in SAMPLERS:
        assert Diffusion(spacing="trailing").times(4, sampler) == [999, 749, 499, 249, -1]
        assert Diffusion(spacing="linspace").times(1, sampler) == [999, -1]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers', under NumPy 2
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_times_are_diffusers(sampler: Any, spacing: Any) -> None:
    theirs = getattr(import_diffusers(), SCHEDULERS[sampler])(timestep_spacing=spacing, steps_offset=1)
    # of one time evenly between 999 and 0, diffusers takes the clean end for two samplers, and we the noisy one
    for steps in range(2 if spacing == "linspace" and sampler != "dpm++" else 1, 120):
        theirs.set_timesteps(steps)
        if len(theirs.timesteps) > steps:
            continue  # rounding gave numpy.arange one time more
        found = Diffusion(spacing=spacing).times(steps, sampler)
        for i, (x, y) in enumerate(zip(found, theirs.timesteps.tolist(), strict=False)):
            # numpy's grids come with rounding errors, so a half may be rounded to either side
            whole, parts = (1000, steps) if spacing == "trailing" else (999, steps - (sampler == "ddim"))
            half = spacing != "leading" and Fraction(whole * i, parts).denominator == 2
            assert y == pytest.approx(x, rel=1e-6) or (half and abs(x - y) == 1)


@given(st.integers(1, 1100), st.sampled_from(SAMPLERS), st.sampled_from(["leading", "linspace", "trailing"]))
@settings(deadline=None)
def test_any_number_of_steps_has_times_or_a_reason(steps: int, sampler: Any, spacing: Any) -> None:
    try:
        times = Diffusion(spacing=spacing).times(steps, sampler)
    except UsageError as error:
        one_sentence(str(error))
        assert steps > 490
        return
    assert len(times) == steps + 1
    assert times[0] <= 999
    assert all(t > then for t, then in pairwise(times))


def test_rounded_times_are_as_exact_as_fractions() -> None:
    for steps in range(1, 400):
        exact = [round(Fraction(1000 * i, steps)) - 1 for i in reversed(range(1, steps + 1))]
        assert Diffusion(spacing="trailing").times(steps, "ddim")[:-1] == exact
        exact = [round(Fraction(999 * i, steps)) for i in reversed(range(1, steps + 1))]
        assert Diffusion(spacing="linspace").times(steps, "dpm++")[:-1] == exact


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Flow().times(0, "euler"), "at least one step, not 0"),
        (lambda: Diffusion().times(-3, "ddim"), "at least one step, not -3"),
        (lambda: Flow().times(4, "heun"), "no sampler 'heun'; choose one of ddim, euler, dpm\\+\\+"),
        (lambda: Diffusion().times(1000, "ddim"), "no 1000 times; take fewer steps"),
        (lambda: Diffusion().times(2000, "dpm++"), "no 2000 times; take fewer steps"),
        (lambda: Flow(shift=0), "a number above 0, not 0"),
        (lambda: Flow(shift=math.nan), "a number above 0, not nan"),
        (lambda: Diffusion(betas="sigmoid"), "no betas 'sigmoid'; choose one of scaled_linear, linear, cosine"),
        (lambda: Diffusion(spacing="karras"), "no spacing 'karras'; choose one of leading, linspace, trailing"),
        (lambda: Diffusion(beta_start=0.02), "between 0 and 1, not from 0.02 to 0.012"),
        (lambda: Diffusion(offset=-1), "from 0 up, not -1"),
    ],
)
def test_what_can_not_be_is_refused(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        make()
    one_sentence(str(caught.value))
