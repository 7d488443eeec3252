"""Losses against arithmetic by hand, scikit-image, and the form they have in latent-diffusion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from skimage import data as skimage_data, metrics as skimage_metrics
from support import one_sentence, pictures
from torch import Tensor

from calotype.errors import UsageError
from calotype.pixels import from_array
from calotype.posterior import DiagonalGaussian
from calotype.train.losses import RECONSTRUCTION, kl, nll, reconstruction

data: Any = skimage_data  # scikit-image is not typed
reference: Any = skimage_metrics


def posterior(mean: Tensor, logvar: Tensor) -> DiagonalGaussian:
    return DiagonalGaussian(torch.cat([mean, logvar], dim=1))


def noisy(x: Tensor, amount: float = 0.2) -> Tensor:
    return x + amount * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


# --- reconstruction ---


def test_reductions_by_hand() -> None:
    x, y = torch.zeros(2, 3, 1, 2), torch.zeros(2, 3, 1, 2)
    y[0, 0, 0] = torch.tensor([0.5, -1.0])
    y[1, 2, 0, 1] = 2.0
    assert reconstruction("l1", x, y).tolist() == pytest.approx([1.5 / 6, 2 / 6])
    assert reconstruction("l2", x, y).tolist() == pytest.approx([1.25 / 6, 4 / 6])
    expected = [
        sum(math.sqrt(d * d + 1e-6) for d in values) / 6 for values in ((0.5, 1, 0, 0, 0, 0), (2, 0, 0, 0, 0, 0))
    ]
    assert reconstruction("charbonnier", x, y).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", RECONSTRUCTION)
def test_one_number_a_picture_which_neighbours_do_not_change(kind: str) -> None:
    x = pictures(0, 3, 164, 171)
    y = noisy(x)
    together = reconstruction(kind, x, y)
    assert together.shape == (3,)
    assert len(set(together.tolist())) == 3
    apart = torch.cat([reconstruction(kind, x[i : i + 1], y[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, apart, atol=1e-6)


@pytest.mark.parametrize("kind", RECONSTRUCTION)
def test_equal_pictures_cost_nothing_and_their_gradient_is_finite(kind: str) -> None:
    x = pictures(0, 2, 164, 164)
    y = x.clone().requires_grad_()
    loss = reconstruction(kind, x, y)
    assert loss.tolist() == pytest.approx([1e-3 if kind == "charbonnier" else 0.0] * 2, abs=2e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), y)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", RECONSTRUCTION)
def test_a_step_against_the_gradient_brings_the_pictures_together(kind: str) -> None:
    x = pictures(0, 2, 164, 164)
    y = noisy(x).requires_grad_()
    loss = reconstruction(kind, x, y).sum()
    (gradient,) = torch.autograd.grad(loss, y)
    step = 0.01 * float(y.detach().norm() / gradient.norm())
    after = y.detach() - step * gradient
    assert reconstruction(kind, x, after).sum() < loss
    assert (after - x).square().mean() < (y - x).square().mean()


@pytest.mark.parametrize("kind", RECONSTRUCTION)
def test_it_is_float32_under_autocast(kind: str) -> None:
    x = pictures(0, 1, 164, 164)
    y = noisy(x).bfloat16()
    expected = reconstruction(kind, x, y.float())
    with torch.autocast("cpu", torch.bfloat16):
        result = reconstruction(kind, x, y)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def real(name: str) -> tuple[Tensor, Tensor, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A picture and a worse one: pixels and uint8 of each."""
    a = getattr(data, name)()[60:260, 100:311]
    noise = np.random.default_rng(0).normal(0.0, 12.0, a.shape)
    b = np.clip(np.rint(a // 16 * 16 + noise), 0, 255).astype(np.uint8)
    return from_array(a)[None], from_array(b)[None], a, b


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_ssim_agrees_with_scikit_image(name: str) -> None:
    x, y, a, b = real(name)
    expected = reference.structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=-1
    )
    assert 1 - reconstruction("ssim", x, y).item() == pytest.approx(expected, abs=2e-5)


def test_ssim_of_flat_pictures_by_hand() -> None:
    """Only luminance is left of it, counted from black, which is -1."""
    x, y = torch.full((1, 3, 12, 12), 0.5), torch.full((1, 3, 12, 12), -0.25)
    c1 = 0.02**2
    expected = (2 * 1.5 * 0.75 + c1) / (1.5**2 + 0.75**2 + c1)
    assert 1 - reconstruction("ssim", x, y).item() == pytest.approx(expected, abs=1e-4)


def multi_scale(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """MS-SSIM in float64 with scikit-image, whose SSIM has no luminance where both pictures have their means."""
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    x, y = (v.astype(np.float64) / 127.5 for v in (a, b))
    channels = []
    for c in range(3):
        u, v, product = x[..., c], y[..., c], 1.0
        for i, weight in enumerate(weights):
            if i:
                u, v = (
                    np.pad(w, [(0, w.shape[0] % 2), (0, w.shape[1] % 2)], mode="edge")
                    .reshape(-(-w.shape[0] // 2), 2, -(-w.shape[1] // 2), 2)
                    .mean((1, 3))
                    for w in (u, v)
                )
            k1 = 1e9 if i < 4 else 0.01  # a luminance of 1
            similarity = reference.structural_similarity(
                u, v, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2.0, K1=k1
            )
            product *= similarity**weight
        channels.append(product)
    return float(np.mean(channels))


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_ms_ssim_agrees_with_its_definition(name: str) -> None:
    x, y, a, b = real(name)
    expected = multi_scale(a, b)
    assert 0.3 < expected < 0.995
    assert 1 - reconstruction("ms_ssim", x, y).item() == pytest.approx(expected, abs=2e-5)


def test_ms_ssim_of_opposites_has_a_finite_gradient() -> None:
    """Contrast and structure are negative then, and a negative number has no root."""
    x = pictures(0, 1, 161, 161)
    y = (-x).requires_grad_()
    loss = reconstruction("ms_ssim", x, y)
    (gradient,) = torch.autograd.grad(loss.sum(), y)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    assert loss.item() > 0.99


def test_one_scale_that_disagrees_leaves_ms_ssim_a_gradient() -> None:
    coarse = pictures(0, 1, 44, 44).repeat_interleave(4, -1).repeat_interleave(4, -2)
    checks = 0.5 * (2.0 * (torch.arange(176)[:, None] + torch.arange(176)).remainder(2) - 1.0)
    x, y = 0.2 * coarse + checks, (0.2 * coarse - checks).requires_grad_()
    loss = reconstruction("ms_ssim", x, y)
    (gradient,) = torch.autograd.grad(loss.sum(), y)
    assert 0.1 < loss.item() < 0.99  # the other scales do not see the checks
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize(("kind", "least"), [("ssim", 11), ("ms_ssim", 161)])
def test_structural_losses_say_what_crops_they_need(kind: str, least: int) -> None:
    x = pictures(0, 1, least, least + 2)
    assert reconstruction(kind, x, x).isfinite().all()
    with pytest.raises(
        UsageError, match=rf"{kind} needs crops of at least {least} x {least} pixels, not {least + 1} x {least - 1}\."
    ) as caught:
        reconstruction(kind, *2 * (pictures(0, 1, least + 1, least - 1),))
    one_sentence(str(caught.value))


def test_shapes_and_kinds_are_checked() -> None:
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(UsageError, match=r"one shape, not \[2, 3, 8, 8\] and \[1, 3, 8, 8\]"):
        reconstruction("l1", x, x[:1])  # which would broadcast
    with pytest.raises(UsageError, match=r"one of l1, l2, charbonnier, ssim, ms_ssim, not 'l3'"):
        reconstruction("l3", x, x)


# --- KL and NLL ---


def test_kl_is_summed_over_latents() -> None:
    mean, logvar = torch.full((2, 3, 2, 2), 3.0), torch.full((2, 3, 2, 2), math.log(4.0))
    expected = 12 * 0.5 * (9 + 4 - 1 - math.log(4))
    assert kl(posterior(mean, logvar)).tolist() == pytest.approx([expected] * 2, rel=1e-6)
    narrow = kl(posterior(mean.bfloat16(), logvar.bfloat16()))
    assert narrow.dtype == torch.float32


@pytest.mark.parametrize("s", [0.0, -1.5])
def test_the_nll_is_latent_diffusions_per_value(s: float) -> None:
    x, y = torch.rand(3, 3, 16, 24), torch.rand(3, 3, 16, 24)
    perceptual, moments = torch.rand(3), torch.randn(3, 8, 2, 3)
    mean, logvar = moments.chunk(2, dim=1)
    # contperceptual.py: LPIPS is broadcast over all values, then sums over everything, divided by the batch
    rec = (x - y).abs() + 0.5 * perceptual[:, None, None, None]
    whole = (rec / math.exp(s) + s).sum() / 3 + 1e-6 * 0.5 * (mean**2 + logvar.exp() - 1.0 - logvar).sum() / 3
    values = 3 * 16 * 24
    found = nll(reconstruction("l1", x, y), perceptual, perceptual_weight=0.5, logvar=torch.tensor(s)).mean()
    found = found + 1e-6 / values * kl(DiagonalGaussian(moments)).mean()
    assert found.item() == pytest.approx(whole.item() / values, rel=1e-5)


def test_a_learned_log_variance_settles_at_the_losss_own_logarithm() -> None:
    """d/ds (r / e^s + s) = 1 - r / e^s."""
    logvar = torch.zeros((), requires_grad=True)
    (gradient,) = torch.autograd.grad(nll(torch.tensor([0.2, 0.4]), logvar=logvar).mean(), logvar)
    assert gradient.item() == pytest.approx(1 - 0.3)
    settled = torch.tensor(math.log(0.3), requires_grad=True)
    (gradient,) = torch.autograd.grad(nll(torch.tensor([0.2, 0.4]), logvar=settled).mean(), settled)
    assert gradient.item() == pytest.approx(0.0, abs=1e-6)
    assert nll(torch.tensor([0.2, 0.4])).tolist() == pytest.approx([0.2, 0.4])
