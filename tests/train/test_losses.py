"""Losses against arithmetic by hand, and against the form they have in latent-diffusion."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from calotype.posterior import DiagonalGaussian
from calotype.train.losses import RECONSTRUCTION, autoencoder_loss, l1, l2


def posterior(mean: Tensor, logvar: Tensor) -> DiagonalGaussian:
    return DiagonalGaussian(torch.cat([mean, logvar], dim=1))


def test_reductions_by_hand() -> None:
    x = torch.zeros(2, 3, 1, 2)
    y = torch.zeros(2, 3, 1, 2)
    y[0, 0, 0] = torch.tensor([0.5, -1.0])
    y[1, 2, 0, 1] = 2.0
    assert l1(x, y).tolist() == [1.5, 2.0]
    assert l2(x, y).tolist() == [1.25, 4.0]
    assert {"l1": l1, "l2": l2} == RECONSTRUCTION


def test_the_whole_loss_by_hand() -> None:
    x = torch.zeros(2, 3, 2, 2)
    y = torch.full((2, 3, 2, 2), 0.5)
    y[1] = 1.0
    mean = torch.full((2, 1, 1, 1), 3.0)
    logvar = torch.full((2, 1, 1, 1), math.log(4.0))
    kl = 0.5 * (9 + 4 - 1 - math.log(4))
    loss, parts = autoencoder_loss(x, y, posterior(mean, logvar), kind="l1", kl_weight=0.1)
    assert parts["rec"].item() == pytest.approx(0.75)  # (6 + 12) / 2 pictures / 12 values
    assert parts["kl"].item() == pytest.approx(kl / 12, rel=1e-6)
    assert loss.item() == pytest.approx(0.75 + 0.1 * kl / 12, rel=1e-6)
    loss, parts = autoencoder_loss(x, y, posterior(mean, logvar), kind="l2", kl_weight=0.0)
    assert parts["rec"].item() == pytest.approx((0.25 + 1) / 2)
    assert loss.item() == parts["rec"].item()


@pytest.mark.parametrize("kl_weight", [1e-6, 1e-3, 1.0])
def test_it_is_latent_diffusions_loss_per_value(kl_weight: float) -> None:
    x, y = torch.rand(3, 3, 16, 24), torch.rand(3, 3, 16, 24)
    moments = torch.randn(3, 8, 2, 3)
    mean, logvar = moments.chunk(2, dim=1)
    # contperceptual.py without its perceptual, logvar and adversarial terms: sums over everything, divided by B
    rec = (x - y).abs().sum() / 3
    kl = 0.5 * (mean**2 + logvar.exp() - 1.0 - logvar).sum() / 3
    expected = (rec + kl_weight * kl) / (3 * 16 * 24)
    loss, _ = autoencoder_loss(x, y, DiagonalGaussian(moments), kind="l1", kl_weight=kl_weight)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradients_reach_mean_and_log_variance() -> None:
    mean = torch.randn(2, 4, 2, 2, requires_grad=True)
    logvar = torch.randn(2, 4, 2, 2, requires_grad=True)
    both = posterior(mean, logvar)
    sample = both.sample(torch.Generator().manual_seed(0))
    x = torch.rand(2, 3, 4, 4)
    reconstruction = torch.nn.functional.pixel_shuffle(sample, 2).expand(-1, 3, -1, -1)
    loss, parts = autoencoder_loss(x, reconstruction, both, kind="l2", kl_weight=0.0)
    through_sample = torch.autograd.grad(loss, (mean, logvar), retain_graph=True)
    assert all((gradient != 0).all() for gradient in through_sample)
    loss, _ = autoencoder_loss(x, reconstruction.detach(), both, kind="l2", kl_weight=1.0)
    gradients = torch.autograd.grad(loss, (mean, logvar))
    values = 2 * 3 * 4 * 4
    assert torch.allclose(gradients[0], mean / values)
    assert torch.allclose(gradients[1], 0.5 * (logvar.exp() - 1) / values)
    assert not parts["rec"].requires_grad


def test_a_narrow_reconstruction_is_compared_in_float32() -> None:
    x = torch.rand(1, 3, 8, 8)
    y = torch.rand(1, 3, 8, 8).bfloat16()
    loss, _ = autoencoder_loss(x, y, DiagonalGaussian(torch.zeros(1, 2, 1, 1)), kind="l1", kl_weight=1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((x - y.float()).abs().mean().item())
