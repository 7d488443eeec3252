"""Samplers: diffusers' results, the closed form of Gaussian data, redrawing, what is kept, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from support import import_diffusers, one_sentence
from torch import Tensor

from calotype.draw.sampler import Keep, Network, Prediction, Step, guided, noise_for, sample
from calotype.draw.schedule import SAMPLERS, Diffusion, Flow, Sampler, Schedule
from calotype.draw.text import Context
from calotype.errors import UsageError

SHAPE = (3, 4, 8, 6)
STEPS = (1, 2, 5, 20)
PREDICTIONS: tuple[Prediction, ...] = ("noise", "v", "flow")
BETAS: dict[str, dict[str, Any]] = {
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "linear": {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
}
# diffusers' own way to make arrays of tensors, under NumPy 2
arrays = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@dataclass(frozen=True, kw_only=True)
class Given(Flow):
    """A flow at times from elsewhere, the clean end left out."""

    grid: tuple[float, ...]

    def _grid(self, steps: int, sampler: Sampler) -> list[float]:
        assert len(self.grid) == steps
        return list(self.grid)


def nonlinear(x: Tensor, u: Tensor) -> Tensor:
    """A fixed network; u [N] in [0, 1]."""
    generator = torch.Generator().manual_seed(7)
    first, second = (0.3 * torch.randn(4, 4, 3, 3, generator=generator) for _ in range(2))
    wave = torch.randn(4, generator=generator)
    inner = torch.nn.functional.conv2d(x, first, padding=1) + torch.cos(5 * u[:, None] + wave)[:, :, None, None]
    return torch.nn.functional.conv2d(torch.tanh(inner), second, padding=1) + 0.5 * x * (0.5 + u[:, None, None, None])


def of_index(x: Tensor, t: Tensor) -> Tensor:
    return nonlinear(x, t / 999)


def noise(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def assert_same(found: Tensor, expected: Tensor) -> None:
    spread = expected.std().item()
    assert spread > 0.1, "the expected result is constant, so it can't tell right from wrong"
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() < 1e-4 * spread


def diffused(scheduler: Any) -> Tensor:
    """diffusers' loop, from noise of variance 1 in the variance-preserving form."""
    x = noise()
    if hasattr(scheduler, "is_scale_input_called"):  # Euler's scheduler divides by this before it asks the network
        x = x * (scheduler.sigmas[0] ** 2 + 1) ** 0.5
    for t in scheduler.timesteps:
        out = of_index(scheduler.scale_model_input(x, t), t.expand(len(x)))
        x = scheduler.step(out, t, x).prev_sample
    return x


def ours(betas: str, **more: Any) -> Diffusion:
    ends = {key: value for key, value in BETAS[betas].items() if key != "beta_schedule"}
    return Diffusion(betas=betas, **ends, **more)  # type: ignore[arg-type]


@arrays
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["noise", "v"])
@pytest.mark.parametrize("betas", ["scaled_linear", "linear"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_diffusers(sampler: Sampler, betas: str, prediction: Any, steps: int) -> None:
    name, more = SCHEDULERS[sampler]
    for spacing in ("linspace", "leading", "trailing"):
        if (spacing, sampler) == ("linspace", "ddim"):
            continue  # its steps do not lead to the next of these times
        theirs = getattr(import_diffusers(), name)(
            **BETAS[betas], prediction_type={"noise": "epsilon", "v": "v_prediction"}[prediction],
            timestep_spacing=spacing, steps_offset=1, **more,
        )  # fmt: skip
        if (spacing, sampler, steps) == ("linspace", "euler", 1):
            theirs.set_timesteps(timesteps=[999.0])  # its own would be 0
        else:
            theirs.set_timesteps(steps)
        schedule = ours(betas, spacing=spacing)
        found = sample(of_index, noise(), schedule, steps=steps, sampler=sampler, prediction=prediction)
        assert_same(found, diffused(theirs))


@arrays
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_diffusers_cosine(sampler: Any, steps: int) -> None:
    name, more = SCHEDULERS[sampler]
    theirs = getattr(import_diffusers(), name)(
        **BETAS["cosine"], prediction_type="v_prediction", timestep_spacing="trailing", **more
    )
    theirs.set_timesteps(steps)
    schedule = Diffusion(betas="cosine", spacing="trailing")
    assert_same(sample(of_index, noise(), schedule, steps=steps, sampler=sampler, prediction="v"), diffused(theirs))


def flowed(scheduler: Any) -> Tensor:
    """diffusers' loop for flows; the network is told the exact time, where the scheduler would round it."""
    x = noise()
    scheduler.set_begin_index(0)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = scheduler.step(nonlinear(x, sigma.expand(len(x))), t, x).prev_sample
    return x


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_diffusers_flow_euler(shift: float, steps: int) -> None:
    theirs = import_diffusers().FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    expected = flowed(theirs)
    assert_same(sample(nonlinear, noise(), Flow(shift=shift), steps=steps, sampler="euler"), expected)
    assert_same(sample(nonlinear, noise(), Flow(shift=shift), steps=steps, sampler="ddim"), expected)
    theirs.set_timesteps(steps)  # on its own grid, which ends close to 0
    schedule = Given(grid=tuple(theirs.sigmas[:-1].tolist()))
    assert_same(sample(nonlinear, noise(), schedule, steps=steps, sampler="euler"), flowed(theirs))


@arrays
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("prediction", ["flow", "noise"])
def test_diffusers_flow_dpm(prediction: Any, shift: float, steps: int) -> None:
    theirs = import_diffusers().DPMSolverMultistepScheduler(
        prediction_type={"noise": "epsilon", "flow": "flow_prediction"}[prediction],
        use_flow_sigmas=True, flow_shift=shift, algorithm_type="dpmsolver++", solver_order=2,
    )  # fmt: skip
    theirs.set_timesteps(steps)  # its grid begins at about 0.999
    schedule = Given(grid=tuple(theirs.sigmas[:-1].tolist()))
    found = sample(nonlinear, noise(), schedule, steps=steps, sampler="dpm++", prediction=prediction)
    assert_same(found, flowed(theirs))


@arrays
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_diffusers_flow_dpm_from_pure_noise(shift: float, steps: int) -> None:
    theirs = import_diffusers().DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, algorithm_type="dpmsolver++", solver_order=2
    )
    theirs.set_timesteps(steps)
    schedule = Flow(shift=shift)
    theirs.sigmas = torch.tensor(schedule.times(steps, "dpm++"))
    assert_same(sample(nonlinear, noise(), schedule, steps=steps, sampler="dpm++"), flowed(theirs))


def test_ddim_is_euler_at_the_same_times() -> None:
    for schedule in (Diffusion(spacing="trailing"), Flow(shift=2)):
        found = [sample(of_index, noise(), schedule, steps=7, sampler=s, prediction="v") for s in ("ddim", "euler")]  # type: ignore[arg-type]
        assert torch.equal(*found)


# Gaussian data: x_0 ~ N(MEAN, diag STD^2), so the best estimate of x_0, and the way of every x, are known.

MEAN = torch.tensor([0.5, -2.0, 0.0, 1.0], dtype=torch.float64)[:, None, None]
STD = torch.tensor([0.3, 1.0, 2.0, 0.05], dtype=torch.float64)[:, None, None]


def denoised(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """The mean of x_0 where x is known."""
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)


def best(prediction: Prediction, level: Callable[[float], tuple[float, float]]) -> Network:
    """The network that minimises the training loss."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.float64
        assert (t == t[0]).all()
        alpha, sigma = level(t[0].item())
        clean = denoised(x, alpha, sigma)
        eps = (x - alpha * clean) / sigma
        return {"noise": eps, "v": alpha * eps - sigma * clean, "flow": eps - clean}[prediction]

    return network


def carried(x: Tensor, level: tuple[float, float], then: tuple[float, float]) -> Tensor:
    """Where the ODE leads: the number of standard deviations from the mean stays the same on the way."""
    (alpha, sigma), (alpha_then, sigma_then) = level, then
    scores = (x - alpha * MEAN) / torch.sqrt(alpha**2 * STD**2 + sigma**2)
    return alpha_then * MEAN + scores * torch.sqrt(alpha_then**2 * STD**2 + sigma_then**2)


def flow_level(t: float) -> tuple[float, float]:
    return 1 - t, t


def diffusion_level(t: float) -> tuple[float, float]:
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[int(t)]
    return math.sqrt(kept), math.sqrt(1 - kept)


def errors(schedule: Schedule, sampler: Sampler, prediction: Prediction, counts: tuple[int, ...]) -> list[float]:
    """Root mean square distance to where the ODE leads, for some numbers of steps."""
    level = flow_level if isinstance(schedule, Flow) else diffusion_level
    x, network, found = noise().double(), best(prediction, level), []
    for steps in counts:
        first, *_, last, _ = schedule.times(steps, sampler)
        if isinstance(schedule, Flow):
            exact = carried(x, level(first), (1.0, 0.0))
        else:  # training times end short of sigma 0, and what is left is for one estimate, whatever the number of steps
            exact = denoised(carried(x, level(first), level(last)), *level(last))
        one = sample(network, x, schedule, steps=steps, sampler=sampler, prediction=prediction)
        found.append((one - exact).square().mean().sqrt().item())
    return found


CASES = [
    (schedule, prediction)
    for schedule in (Flow(), Flow(shift=3), Diffusion(spacing="trailing"))
    for prediction in PREDICTIONS
    if not (isinstance(schedule, Flow) and prediction == "noise")
]


@pytest.mark.parametrize(("schedule", "prediction"), CASES)
def test_gaussian_data_are_drawn_exactly_in_the_limit(schedule: Schedule, prediction: Prediction) -> None:
    euler = errors(schedule, "euler", prediction, (10, 160, 320))
    dpm = errors(schedule, "dpm++", prediction, (10, 160, 320))
    assert errors(schedule, "ddim", prediction, (10, 160, 320)) == euler
    assert dpm[0] < euler[0] / 2
    assert euler[2] < 0.007
    assert dpm[2] < 0.0007
    assert 1.8 < euler[1] / euler[2] < 2.2  # first order
    assert dpm[0] > dpm[1] > dpm[2]


def test_dpm_is_of_second_order_in_lambda() -> None:
    found: dict[Sampler, list[float]] = {"euler": [], "dpm++": []}
    for steps in (80, 160):
        # evenly in lambda from -4 to 4; what is left is one estimate, also in what is expected
        grid = tuple(1 / (1 + math.exp(8 * i / steps - 4)) for i in range(steps + 1))
        x, first, last = noise().double(), flow_level(grid[0]), flow_level(grid[-1])
        exact = denoised(carried(x, first, last), *last)
        for sampler, distances in found.items():
            one = sample(best("flow", flow_level), x, Given(grid=grid), steps=steps + 1, sampler=sampler)
            distances.append((one - exact).square().mean().sqrt().item())
    assert 1.9 < found["euler"][0] / found["euler"][1] < 2.1
    assert 3.8 < found["dpm++"][0] / found["dpm++"][1] < 4.2


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_picture_alone_is_drawn_exactly(prediction: Prediction, sampler: Sampler) -> None:
    only = noise(5).double()
    for schedule in (Given(grid=(0.99, 0.6, 0.1)), Diffusion()):

        def network(x: Tensor, t: Tensor, schedule: Schedule = schedule) -> Tensor:
            alpha, sigma = schedule.alpha(t[0].item()), schedule.sigma(t[0].item())
            eps = (x - alpha * only) / sigma
            return {"noise": eps, "v": alpha * eps - sigma * only, "flow": eps - only}[prediction]

        found = sample(network, noise().double(), schedule, steps=3, sampler=sampler, prediction=prediction)
        assert torch.allclose(found, only, rtol=0, atol=1e-10)


def test_a_step_by_hand() -> None:
    """x of 1, and a network that says x + t: the way of a flow from 1 over 1/2 to 0, and DPM++ from 0.8."""
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return x + t[:, None, None, None]

    # 1 - (1 + 1) / 2 = 0, and 0 - (0 + 1/2) / 2 = -1/4
    assert sample(network, x, Flow(), steps=2, sampler="euler").item() == -0.25
    # estimates: at 0.8, 1 - 0.8 (1.8) = -0.44, so x is 0.625 (1) + 0.375 (-0.44) = 0.46 at 0.5;
    # there 0.46 - 0.5 (0.96) = -0.02; lambda is log(1/4), 0, log 4, so half of their difference is added: 0.19;
    # at 0.2 x is 0.4 (0.46) + 0.6 * ... : sigma falls to 2/5, and alpha 0.8 - 0.5 (2/5) = 0.6 is left: 0.298;
    # and the last estimate is 0.298 - 0.2 (0.498) = 0.1984
    found = sample(network, x, Given(grid=(0.8, 0.5, 0.2)), steps=3, sampler="dpm++")
    assert found.item() == pytest.approx(0.1984, abs=1e-12)


class Counted:
    """A network of single values, so that a picture's are the same in any batch; keeps what it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append((x, t))
        return torch.tanh(1.5 * x + t.to(x)[:, None, None, None])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [Flow(shift=2), Diffusion()])
def test_what_a_network_is_given(schedule: Schedule, sampler: Sampler) -> None:
    for dtype, told in ((torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)):
        network = Counted()
        found = sample(network, noise().to(dtype), schedule, steps=6, sampler=sampler, prediction="v")
        assert found.dtype == dtype
        assert torch.isfinite(found).all()
        times = [schedule.model_time(t) for t in schedule.times(6, sampler)[:-1]]
        assert [t.tolist() for _, t in network.seen] == [torch.tensor([t] * 3, dtype=told).tolist() for t in times]
        assert all(x.dtype == dtype and t.dtype == told for x, t in network.seen)
        assert torch.equal(network.seen[0][0], noise().to(dtype))


def test_no_gradient_is_kept_and_nothing_given_is_changed() -> None:
    layer = torch.nn.Conv2d(4, 4, 1)
    x, start, mask = noise(), noise(1), torch.full(SHAPE[2:], 0.5)
    keep = Keep(latents=noise(2), mask=mask)
    found = sample(lambda x, t: layer(x), x, Flow(), steps=3, start=start, strength=0.5, keep=keep)
    assert not found.requires_grad
    assert torch.equal(x, noise())
    assert torch.equal(start, noise(1))
    assert torch.equal(keep.latents, noise(2))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_is_the_same_alone_and_among_others(sampler: Sampler) -> None:
    mask = torch.rand(3, 1, *SHAPE[2:]).round()
    whole: dict[str, Any] = {"steps": 5, "sampler": sampler, "strength": 0.7}
    many = sample(Counted(), noise(), Flow(), start=noise(1), keep=Keep(latents=noise(2), mask=mask), **whole)
    for i in range(3):
        keep = Keep(latents=noise(2)[i : i + 1], mask=mask[i : i + 1])
        alone = sample(Counted(), noise()[i : i + 1], Flow(), start=noise(1)[i : i + 1], keep=keep, **whole)
        assert torch.equal(alone[0], many[i])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [Flow(shift=2), Diffusion()])
def test_previews_end_with_the_result(schedule: Schedule, sampler: Sampler) -> None:
    steps: list[Step] = []
    network = Counted()
    found = sample(network, noise(), schedule, steps=4, sampler=sampler, prediction="v", on_step=steps.append)
    assert [(one.index, one.total) for one in steps] == [(i, 4) for i in range(4)]
    for one, t, (x, told) in zip(steps, schedule.times(4, sampler), network.seen, strict=False):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        estimate = (alpha * x - sigma * Counted()(x, told)) / (alpha**2 + sigma**2)
        assert torch.allclose(one.clean, estimate, atol=1e-5)
    assert torch.equal(steps[-1].clean, found)
    silent = sample(Counted(), noise(), schedule, steps=4, sampler=sampler, prediction="v")
    assert torch.equal(silent, found)


def test_noise_is_each_seeds_own() -> None:
    many = noise_for([3, 0, 2**64 - 1, 3], (4, 9, 7))
    assert many.shape == (4, 4, 9, 7)
    assert many.dtype == torch.float32
    for i, seed in enumerate((3, 0, 2**64 - 1)):
        assert torch.equal(many[i : i + 1], noise_for([seed], (4, 9, 7)))
    assert torch.equal(many[0], many[3])
    assert not torch.isclose(many[0], many[1]).any()
    state = torch.get_rng_state()
    lots = noise_for([1], (4, 128, 128))
    assert torch.equal(torch.get_rng_state(), state)
    assert abs(lots.mean().item()) < 0.02  # 65,536 numbers: an error of 0.004
    assert abs(lots.std().item() - 1) < 0.02


def texts(seed: int, count: int) -> Context:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(count, 5, 4, generator=generator)
    sketch = torch.randn(count, 4, 2, 2, generator=generator)
    return Context(states, torch.ones(count, 5, dtype=torch.bool), states.mean(1), sketch)


def test_guidance() -> None:
    calls: list[int] = []

    def network(x: Tensor, t: Tensor, context: Context) -> Tensor:
        calls.append(len(x))
        assert {len(one) for one in (t, *context)} == {len(x)}
        told = context.states.sum(1) + context.pooled + context.sketch[:, :, 0, 1]
        return x * t[:, None, None, None] + told[:, :, None, None]

    x, t = noise(), torch.tensor([0.1, 0.5, 0.9])
    yes, no, nothing = texts(1, 3), texts(2, 3), texts(3, 1)
    for without in (no, nothing):
        separate = (
            network(x, t, yes),
            network(x, t, Context(*(part.expand_as(of) for part, of in zip(without, yes, strict=True)))),
        )
        for scale in (0.0, 1.0, 3.5):
            calls.clear()
            found = guided(network, yes, without, scale)(x, t)
            assert calls == [3 if scale == 1 else 6]
            assert torch.allclose(found, separate[1] + scale * (separate[0] - separate[1]), atol=1e-4)
            if scale == 1:
                assert torch.equal(found, separate[0])
        late = torch.full((3,), 0.4)
        expected = network(x, late, yes)
        for above, count in ((0.4, 3), (0.39, 6), (0.0, 6)):
            calls.clear()
            found = guided(network, yes, without, 3.5, above)(x, late)
            assert calls == [count]
            assert torch.equal(found, expected) == (count == 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sampler": "heun"}, "no sampler 'heun'; choose one of ddim, euler, dpm\\+\\+"),
        ({"steps": 0}, "at least one step, not 0"),
        ({"prediction": "x0"}, "no prediction 'x0'; choose one of noise, v, flow"),
        ({"strength": -0.1, "start": noise()}, "from 0 .* to 1 .*, not -0.1"),
        ({"strength": 1.5, "start": noise()}, "from 0 .* to 1 .*, not 1.5"),
        ({"strength": math.nan, "start": noise()}, "from 0 .* to 1 .*, not nan"),
        ({"strength": 0.5}, "strength of 0.5 changes latents, and there are none"),
        ({"start": noise()[:2]}, "noise is \\[3, 4, 8, 6\\] and start \\[2, 4, 8, 6\\]"),
        ({"keep": Keep(latents=noise()[:, :, :7], mask=torch.ones(7, 6))}, "and what is kept \\[3, 4, 7, 6\\]"),
        ({"prediction": "noise"}, "by predicting noise; take a network that predicts v or flow"),
    ],
)
def test_what_can_not_be_drawn_is_refused(arguments: dict[str, Any], words: str) -> None:
    network = Counted()
    with pytest.raises(UsageError, match=words) as caught:
        sample(network, noise(), Flow(), **{"steps": 4, **arguments})
    one_sentence(str(caught.value))
    assert not network.seen


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: noise_for([], (4, 2, 2)), "There is no seed"),
        (lambda: noise_for([1, -1], (4, 2, 2)), "from 0 to 2\\^64 - 1, not -1"),
        (lambda: noise_for([2**64], (4, 2, 2)), "from 0 to 2\\^64 - 1, not 18446744073709551616"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        make()
    one_sentence(str(caught.value))
