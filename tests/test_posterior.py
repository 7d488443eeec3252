"""The posterior, against torch.distributions and against calculus."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from calotype.posterior import DiagonalGaussian, Point

SHAPE = (2, 3, 4, 5)


def moments(seed: int = 0, spread: float = 2.0) -> Tensor:
    n, c, h, w = SHAPE
    return spread * torch.randn(n, 2 * c, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(posterior: DiagonalGaussian) -> Normal:
    return Normal(posterior.mean, posterior.std)


def per_picture(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


def test_the_first_half_of_the_channels_is_the_mean_and_the_second_the_log_variance() -> None:
    m = moments()
    posterior = DiagonalGaussian(m)
    assert torch.equal(posterior.mean, m[:, :3])
    assert torch.equal(posterior.logvar, m[:, 3:])
    assert torch.equal(posterior.mode(), m[:, :3])
    assert torch.allclose(posterior.var, m[:, 3:].exp())
    assert torch.allclose(posterior.std, m[:, 3:].exp().sqrt())


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 4, 4), (1, 2, 4, 4, 4)])
def test_moments_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[N, 2C, h, w\]"):
        DiagonalGaussian(torch.zeros(shape))


@given(logvar=st.floats(-1e6, 1e6))
def test_the_log_variance_is_clamped(logvar: float) -> None:
    posterior = DiagonalGaussian(torch.tensor([0.0, logvar], dtype=torch.float64).reshape(1, 2, 1, 1))
    expected = min(max(logvar, -30.0), 20.0)
    assert posterior.logvar.item() == expected
    assert posterior.std.item() == pytest.approx(math.exp(expected / 2))


def test_infinite_moments_give_finite_spread() -> None:
    m = torch.tensor([0.0, 0.0, float("inf"), float("-inf")]).reshape(1, 4, 1, 1)
    assert DiagonalGaussian(m).logvar.flatten().tolist() == [20.0, -30.0]


@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_a_sample_are_those_of_the_reparameterisation(seed: int) -> None:
    m = moments(seed).requires_grad_()
    posterior = DiagonalGaussian(m)
    # what the generator will give, drawn as `sample` does: float32, in one piece
    eps = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(seed)).double()
    upstream = torch.randn(posterior.mean.shape, dtype=torch.float64)
    sample = posterior.sample(torch.Generator().manual_seed(seed))
    assert torch.equal(sample, posterior.mean + posterior.std * eps)
    (gradient,) = torch.autograd.grad(sample, m, upstream)
    assert torch.equal(gradient[:, :3], upstream)
    expected = 0.5 * posterior.std.detach() * eps * upstream
    assert torch.allclose(gradient[:, 3:], expected, rtol=1e-12, atol=0)


def test_no_gradient_reaches_a_clamped_log_variance() -> None:
    m = torch.tensor([0.0, 25.0]).reshape(1, 2, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(DiagonalGaussian(m).sample().sum(), m)
    assert gradient.flatten().tolist() == [1.0, 0.0]


@pytest.mark.slow
def test_gradcheck_of_kl_and_nll() -> None:
    m, other, z = moments(0).requires_grad_(), moments(1).requires_grad_(), torch.randn(SHAPE, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: DiagonalGaussian(x).kl(), m)
    assert torch.autograd.gradcheck(lambda x, y: DiagonalGaussian(x).kl(DiagonalGaussian(y)), (m, other))
    assert torch.autograd.gradcheck(lambda x, y: DiagonalGaussian(x).nll(y), (m, z.requires_grad_()))


@given(seed=st.integers(0, 10_000), spread=st.floats(0.0, 4.0))
@settings(max_examples=50, deadline=None)
def test_kl_is_that_of_torch(seed: int, spread: float) -> None:
    p, q = DiagonalGaussian(moments(seed, spread)), DiagonalGaussian(moments(seed + 1, spread))
    standard = Normal(torch.zeros_like(p.mean), torch.ones_like(p.mean))
    assert torch.allclose(p.kl(), per_picture(kl_divergence(normal(p), standard)), rtol=1e-9, atol=1e-9)
    assert torch.allclose(p.kl(q), per_picture(kl_divergence(normal(p), normal(q))), rtol=1e-9, atol=1e-9)
    assert p.kl().shape == (2,)


@given(mean=st.floats(-5, 5), logvar=st.floats(-5, 5))
def test_kl_is_zero_for_the_standard_normal_and_only_for_it(mean: float, logvar: float) -> None:
    posterior = DiagonalGaussian(torch.tensor([mean, logvar], dtype=torch.float64).reshape(1, 2, 1, 1))
    divergence = posterior.kl().item()
    assert divergence >= -1e-15
    if abs(mean) > 1e-3 or abs(logvar) > 1e-3:
        assert divergence > 1e-8
    assert DiagonalGaussian(torch.zeros(1, 2, 1, 1)).kl().item() == 0.0
    assert posterior.kl(posterior).item() == pytest.approx(0.0, abs=1e-12)


def test_the_kl_to_the_standard_normal_is_the_kl_to_zero_moments() -> None:
    posterior = DiagonalGaussian(moments())
    assert torch.allclose(posterior.kl(), posterior.kl(DiagonalGaussian(torch.zeros_like(moments()))))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_nll_is_that_of_torch(seed: int) -> None:
    posterior = DiagonalGaussian(moments(seed))
    z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.allclose(posterior.nll(z), per_picture(-normal(posterior).log_prob(z)), rtol=1e-9)


def test_many_draws_have_the_mean_and_the_spread() -> None:
    posterior = DiagonalGaussian(moments().float()[:1].clamp(-2, 2))
    n = 40_000
    many = DiagonalGaussian(posterior.moments.expand(n, -1, -1, -1))
    draws = many.sample(torch.Generator().manual_seed(0))
    error = (draws.mean(0) - posterior.mean[0]).abs() / posterior.std[0]
    assert error.max() < 5 / n**0.5
    assert (draws.std(0) / posterior.std[0] - 1).abs().max() < 5 / (2 * n) ** 0.5
    standardised = ((draws - posterior.mean) / posterior.std).flatten(1)
    correlation = standardised.T @ standardised / n - torch.eye(standardised.shape[1])
    assert correlation.abs().max() < 0.05


def test_two_draws_differ_and_one_seed_repeats() -> None:
    posterior = DiagonalGaussian(moments().float())
    assert not torch.equal(posterior.sample(), posterior.sample())
    first, second = (posterior.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_with_a_generator_each_a_draw_does_not_depend_on_its_neighbours() -> None:
    m = moments().float()
    seeds = (11, 12)
    together = DiagonalGaussian(m).sample([torch.Generator().manual_seed(s) for s in seeds])
    alone = [DiagonalGaussian(m[i : i + 1]).sample([torch.Generator().manual_seed(s)])[0] for i, s in enumerate(seeds)]
    assert torch.equal(together, torch.stack(alone))


def test_the_number_of_generators_must_be_that_of_pictures() -> None:
    with pytest.raises(ValueError, match="3 generators were given for 2 pictures"):
        DiagonalGaussian(moments()).sample([torch.Generator() for _ in range(3)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_noise_of_a_seed_is_the_same_in_every_dtype(dtype: torch.dtype) -> None:
    m = torch.zeros(1, 8, 4, 4)
    wide = DiagonalGaussian(m).sample(torch.Generator().manual_seed(1))
    other = DiagonalGaussian(m.to(dtype)).sample(torch.Generator().manual_seed(1))
    assert other.dtype == dtype
    assert torch.equal(other, wide.to(dtype))


def test_float_widens_the_moments() -> None:
    posterior = DiagonalGaussian(moments().half()).float()
    assert posterior.moments.dtype == posterior.mean.dtype == posterior.std.dtype == torch.float32
    assert torch.equal(posterior.moments, moments().half().float())


def test_a_point_has_no_spread_and_draws_itself() -> None:
    latents = torch.randn(SHAPE)
    point = Point(latents)
    assert not hasattr(point, "logvar")  # of no variance there is no log
    assert torch.equal(point.mode(), latents)
    assert torch.equal(point.sample(torch.Generator().manual_seed(1)), latents)
    assert torch.equal(point.moments, latents)
    assert torch.equal(point.std, torch.zeros(SHAPE))
    assert point.float() is not point
    assert Point(latents.half()).float().mean.dtype == torch.float32
