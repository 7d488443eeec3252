"""The discriminator against its published form, and its losses against arithmetic by hand."""

from __future__ import annotations

import math
from typing import Literal, get_args

import pytest
import torch
from support import one_sentence, pictures
from torch import Tensor, nn

from calotype.errors import UsageError
from calotype.train.discriminator import (
    LeCam,
    Norm,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)

NORMS: tuple[Norm, ...] = get_args(Norm)


def small(norm: Norm = "batch") -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(ndf=8, layers=2, norm=norm)


# --- the network ---


def test_it_is_the_published_network() -> None:
    network = PatchDiscriminator()
    assert sum(p.numel() for p in network.parameters()) == 2_765_633
    convolutions = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    assert list(convolutions) == ["main.0", "main.2", "main.5", "main.8", "main.11"]  # as in taming-transformers
    assert [m.stride[0] for m in convolutions.values()] == [2, 2, 2, 1, 1]
    assert [m.bias is not None for m in convolutions.values()] == [True, False, False, False, True]
    weights = torch.cat([m.weight.flatten() for m in convolutions.values()])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    norms = torch.cat([m.weight for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
    assert norms.mean().item() == pytest.approx(1.0, abs=0.01)
    assert norms.std().item() == pytest.approx(0.02, rel=0.2)
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_a_patch_is_70_pixels_wide() -> None:
    network = PatchDiscriminator(ndf=4, norm="none")
    x = pictures(0, 1, 192, 192).requires_grad_()
    logits = network(x)
    (gradient,) = torch.autograd.grad(logits[0, 0, 11, 11], x)
    rows, columns = gradient[0].abs().sum(0).nonzero().T
    assert (rows.max() - rows.min() + 1).item() == (columns.max() - columns.min() + 1).item() == 70


@pytest.mark.parametrize("norm", NORMS)
def test_the_smallest_crop_leaves_one_logit(norm: Norm) -> None:
    network = small(norm)
    assert network.least == 12
    logits = network(pictures(0, 1, 12, 12))  # a batch of one, whose batch statistics must exist
    assert logits.shape == (1, 1, 1, 1)
    assert logits.isfinite().all()
    with pytest.raises(UsageError, match=r"crops of at least 12 x 12 pixels, not 40 x 11; ") as caught:
        network(pictures(0, 1, 40, 11))
    one_sentence(str(caught.value))


@pytest.mark.parametrize("norm", NORMS)
def test_only_batch_norm_mixes_pictures(norm: Norm) -> None:
    network = small(norm)
    x = pictures(0, 2, 32, 32)
    together = network(x)[:1]
    if norm == "spectral":
        network.eval()  # each call in training moves the weights' norm on
        together = network(x)[:1]
    other = network(torch.stack([x[0], x[0].flip(-1)]))[:1]
    assert torch.allclose(together, other, atol=1e-6) == (norm != "batch")


def test_spectral_norm_keeps_every_convolution_at_one() -> None:
    network = small("spectral")
    for _ in range(20):
        network(pictures(0, 1, 16, 16))
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            largest = torch.linalg.matrix_norm(module.weight.flatten(1), 2).item()
            assert largest == pytest.approx(1.0, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_it_learns_to_tell_pictures_apart(norm: Norm) -> None:
    network = small(norm)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3, betas=(0.5, 0.9))
    real = pictures(0, 4, 32, 32)
    fake = nn.functional.avg_pool2d(real, 3, stride=1, padding=1)  # blurred
    losses = []
    for _ in range(60):
        loss = discriminator_loss(network(real), network(fake))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1.0, abs=0.25)
    assert losses[-1] < 0.5
    assert network(real).mean() > network(fake).mean()


def test_the_state_is_whole() -> None:
    first, second = small("spectral"), PatchDiscriminator(ndf=8, layers=2, norm="spectral")
    first(pictures(0, 1, 16, 16))
    second.load_state_dict(first.state_dict())
    x = pictures(1, 1, 16, 16)
    assert torch.equal(first(x), second(x))


# --- losses ---


def test_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0, 1.0])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.5 / 2 + (0 + 1 + 2) / 3))
    expected = 0.5 * (
        sum(math.log1p(math.exp(-v)) for v in (2.0, 0.5)) / 2
        + sum(math.log1p(math.exp(v)) for v in (-3.0, 0.0, 1.0)) / 3
    )
    assert discriminator_loss(real, fake, "vanilla").item() == pytest.approx(expected, rel=1e-6)
    assert generator_loss(fake).item() == pytest.approx(2 / 3)
    with pytest.raises(UsageError, match="must be hinge or vanilla, not 'wgan'"):
        discriminator_loss(real, fake, "wgan")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_losses_pull_both_sides_apart(kind: Literal["hinge", "vanilla"]) -> None:
    real = torch.zeros(2, 1, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    fake = torch.zeros(2, 1, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    loss = discriminator_loss(real, fake, kind)
    assert loss.dtype == torch.float32
    of_real, of_fake = torch.autograd.grad(loss, (real, fake))
    assert (of_real < 0).all()
    assert (of_fake > 0).all()
    (of_generator,) = torch.autograd.grad(generator_loss(fake), fake)
    assert (of_generator < 0).all()


# --- LeCam ---


def test_lecam_by_hand() -> None:
    lecam = LeCam(decay=0.75)
    first = lecam(torch.tensor([1.0, 3.0]), torch.tensor([-1.0]))
    assert lecam.anchors.tolist() == [2.0, -1.0]  # the first means, not a part of the way from nothing
    assert first.item() == pytest.approx((2**2 + 4**2) / 2 + 3**2)
    second = lecam(torch.tensor([4.0]), torch.tensor([3.0]))
    assert lecam.anchors.tolist() == pytest.approx([2.5, 0.0])
    assert second.item() == pytest.approx(4**2 + 0.0)  # a fake above the real average costs nothing


def test_lecams_averages_are_state_and_have_no_gradient() -> None:
    lecam = LeCam()
    real, fake = torch.randn(2, 1, 3, 3, requires_grad=True), torch.randn(2, 1, 3, 3, requires_grad=True)
    penalty = lecam(real, fake)
    again = lecam(real, fake)
    gradients = torch.autograd.grad(penalty + again, (real, fake))
    assert all(g.abs().sum() > 0 for g in gradients)
    assert list(lecam.parameters()) == []
    other = LeCam()
    other.load_state_dict(lecam.state_dict())
    assert torch.equal(other(2 * real, fake), lecam(2 * real, fake))
    assert torch.equal(other.anchors, lecam.anchors)


def test_lecams_averages_are_of_all_processes() -> None:
    lecam = LeCam()
    penalty = lecam(torch.tensor([1.0]), torch.tensor([0.0]), lambda means: means + torch.tensor([1.0, -1.0]))
    assert lecam.anchors.tolist() == [2.0, -1.0]
    assert penalty.item() == pytest.approx(2.0**2 + 2.0**2)


# --- R1 ---


def test_r1_by_hand() -> None:
    real = torch.randn(2, 3, 4, 4, requires_grad=True)
    factors = torch.tensor([2.0, 3.0])
    logits = factors[:, None] * real.flatten(1).sum(1, keepdim=True)
    assert r1_penalty(logits, real).item() == pytest.approx(0.5 * (4 * 48 + 9 * 48) / 2)


def test_r1_flattens_a_discriminator() -> None:
    network = small("group")
    real = pictures(0, 2, 24, 24).requires_grad_()
    optimiser = torch.optim.SGD(network.parameters(), 1e-3)
    penalties = []
    for _ in range(6):
        penalty = r1_penalty(network(real), real)
        optimiser.zero_grad()
        penalty.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        penalties.append(penalty.item())
    assert penalties[-1] < penalties[0]
    assert penalties[0] > 0


# --- the adaptive weight ---


def losses(a: float, b: float) -> tuple[Tensor, Tensor, Tensor]:
    """Two losses with gradients of known norms by one weight: 5a and 2b."""
    weight = torch.zeros(2, requires_grad=True)
    return a * (3 * weight[0] + 4 * weight[1]), 2 * b * weight[0], weight


def test_the_adaptive_weight_by_hand() -> None:
    nll, g, weight = losses(1.0, 1.0)
    found = adaptive_weight(nll, g, weight)
    assert found.item() == pytest.approx(5 / (2 + 1e-4), rel=1e-6)
    assert not found.requires_grad
    nll.backward()  # type: ignore[no-untyped-call]  # both graphs are still there
    g.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad.tolist() == [5.0, 4.0]


def test_the_adaptive_weight_has_an_end() -> None:
    nll, g, weight = losses(100.0, 0.0)  # a discriminator that says nothing yet
    assert adaptive_weight(nll, g, weight).item() == 1e4
    assert adaptive_weight(nll, g, weight, maximum=1e8).item() == pytest.approx(5e6, rel=1e-5)


def test_the_adaptive_weight_is_of_gradients_averaged_over_processes() -> None:
    """Not of averaged norms: opposite gradients cancel."""
    nll, g, weight = losses(1.0, 1.0)
    other = iter([torch.tensor([3.0, -4.0]), torch.tensor([2.0, 0.0])])
    found = adaptive_weight(nll, g, weight, reduce=lambda gradient: (gradient + next(other)) / 2)
    assert found.item() == pytest.approx(3 / (2 + 1e-4), rel=1e-6)
