"""GroupNorm's own backward pass against autograd's, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from trainkit import changed, crops, make

from calotype.families.kl.config import AutoencoderConfig
from calotype.train import norm as module
from calotype.train.norm import hasten

WIDE = AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)


def normed(seed: int = 0) -> nn.GroupNorm:
    norm = nn.GroupNorm(4, 24, eps=1e-6)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(24, generator=generator) + 0.5)
        norm.bias.copy_(torch.randn(24, generator=generator))
    return norm


def gradients(norm: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    made = norm(x)
    return [made.detach(), *torch.autograd.grad(made, (x, *norm.parameters()), dy)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 6e-3)])
@pytest.mark.parametrize("piece", [1, 24 * 9 * 2, 2**18])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_the_gradient_is_that_of_the_definition(
    dtype: torch.dtype, tolerance: float, piece: int, mean: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PIECE", piece)
    generator = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(2, 24, 7, 9, generator=generator).contiguous(memory_format=torch.channels_last) for _ in "xy")
    x, dy = (x * 3 + mean).to(dtype), (dy + 0.3).to(dtype)
    expected = gradients(normed().double(), x.double(), dy.double())
    norm = normed()
    hasten(norm)
    found = gradients(norm, x, dy)
    assert found[1].is_contiguous(memory_format=torch.channels_last)
    assert found[1].dtype == dtype
    for a, b in zip(found, expected, strict=True):
        # the forward pass is torch's own, whose float32 mean of what lies far from zero is not exact
        assert (a.double() - b).norm() <= tolerance * (10 if mean and dtype == torch.float32 else 1) * b.norm()


def test_maps_in_the_other_layout_are_left_to_torch() -> None:
    x = torch.randn(2, 24, 8, 8)
    hastened = normed()
    hasten(hastened)
    for a, b in zip(
        gradients(hastened, x, torch.ones_like(x)), gradients(normed(), x, torch.ones_like(x)), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_training_on_the_cpu_takes_it_and_keeps_its_keys() -> None:
    plain, fast = (
        make(changed(network=WIDE, phases=(), optimiser="adam", crop=32, channels_last=on)) for on in (False, None)
    )
    assert list(plain.network.state_dict()) == list(fast.network.state_dict())
    norms = [m for m in fast.network.modules() if isinstance(m, nn.GroupNorm)]
    assert all("forward" in vars(norm) for norm in norms)
    assert not any("forward" in vars(norm) for norm in plain.network.modules())
    for trainer in (plain, fast):
        trainer.losses(crops(trainer.recipe)).backward()
    largest = max(float(p.grad.abs().max()) for p in plain.network.parameters() if p.grad is not None)
    for p, q in zip(plain.network.parameters(), fast.network.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-5 * largest)
