"""Muon and the moving average, against definitions written out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from trainkit import FOLDED, changed

from calotype.families.kl.config import AutoencoderConfig
from calotype.train.configs import ConvConfig, Trainable
from calotype.train.ema import EMA
from calotype.train.family import make_autoencoder
from calotype.train.model import Model
from calotype.train.optim import Muon, optimisers_of, orthogonalize
from calotype.train.recipe import Alignment


@pytest.mark.parametrize("shape", [(24, 24), (16, 144), (144, 16), (1, 9), (9, 1), (48, 50)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_singular_values_come_near_one(shape: tuple[int, int], scale: float) -> None:
    result = orthogonalize(torch.randn(shape) * scale)
    assert result.shape == shape
    values = torch.linalg.svdvals(result)
    # the quintic trades accuracy for speed; what was tiny beside the largest takes more steps than five
    assert values.max() < 1.3
    assert values.min() > (0.6 if shape[0] != shape[1] else 0.0)
    assert values.median() > 0.6


def test_singular_vectors_stay() -> None:
    u = torch.linalg.qr(torch.randn(12, 12))[0]
    v = torch.linalg.qr(torch.randn(30, 12))[0]
    result = u.T @ orthogonalize(u @ torch.diag(torch.linspace(0.2, 2, 12)) @ v.T) @ v
    assert (result - torch.diag(result.diagonal())).abs().max() < 1e-4
    assert result.diagonal().min() > 0.6


def test_a_diagonal_keeps_its_directions() -> None:
    g = torch.diag(torch.tensor([3.0, -2.0, 1.0, -0.5]))
    result = orthogonalize(g)
    assert torch.equal(result.sign(), g.sign())
    assert (result.diagonal().abs() - 1).abs().max() < 0.4


def test_nothing_stays_nothing() -> None:
    assert torch.equal(orthogonalize(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_muon_by_hand() -> None:
    weight = nn.Parameter(torch.randn(16, 2, 3, 3) * 0.1)
    optimiser = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    expected = weight.detach().clone()
    buffer = torch.zeros_like(expected)
    for seed in range(3):
        gradient = torch.randn(16, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
        weight.grad = gradient.clone()
        optimiser.step()
        buffer = 0.9 * buffer + 0.1 * gradient
        update = orthogonalize((0.1 * gradient + 0.9 * buffer).reshape(16, 18)).reshape(16, 2, 3, 3)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * update  # 16 rows, 18 columns: scale 1
        assert torch.allclose(weight, expected, atol=1e-5)


def test_tall_updates_are_scaled_up() -> None:
    wide, tall = nn.Parameter(torch.zeros(4, 16, 1, 1)), nn.Parameter(torch.zeros(16, 4, 1, 1))
    gradient = torch.randn(4, 16)
    wide.grad, tall.grad = gradient.view(4, 16, 1, 1), gradient.T.reshape(16, 4, 1, 1)
    Muon([wide, tall], lr=1.0).step()
    assert torch.allclose(tall.flatten(1), 2 * wide.flatten(1).T, atol=1e-6)  # sqrt(16 / 4)


def test_decay_alone_shrinks_and_no_gradient_changes_nothing() -> None:
    still, decaying = nn.Parameter(torch.ones(4, 4, 1, 1)), nn.Parameter(torch.ones(4, 4, 1, 1))
    decaying.grad = torch.zeros(4, 4, 1, 1)
    Muon([still, decaying], lr=0.1, weight_decay=0.2).step()
    assert torch.equal(still, torch.ones(4, 4, 1, 1))
    assert torch.allclose(decaying, torch.full((4, 4, 1, 1), 0.98))


ENDS = {"encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out"}


@pytest.mark.parametrize(
    ("network", "ends"),
    [
        (FOLDED, ENDS),
        (AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1), {*ENDS, "quant_conv", "post_quant_conv"}),
        (ConvConfig(ch=4, z_channels=2), {"encoder.0", "encoder.7", "decoder.0", "decoder.9"}),
    ],
)
def test_muon_takes_hidden_convolutions_only(network: Trainable, ends: set[str]) -> None:
    recipe = changed(network=network, optimiser="muon", alignment=Alignment(), phases=(), crop=32)
    model = Model(make_autoencoder(network), recipe, features=12)
    optimisers = optimisers_of(recipe, model)
    muon, adam = ({id(p) for group in one.param_groups for p in group["params"]} for one in optimisers)
    of_adam = {name for name, p in model.named_parameters() if id(p) in adam and p.ndim == 4}
    assert {name.removesuffix(".weight") for name in of_adam} == {f"network.{name}" for name in ends} | {
        name.removesuffix(".weight") for name, p in model.alignment.named_parameters("alignment") if p.ndim == 4
    }
    assert muon.isdisjoint(adam)
    assert muon | adam == {id(p) for p in model.parameters() if p.requires_grad}
    assert muon


def test_muon_goes_on_from_its_state() -> None:
    gradients = [torch.randn(6, 5, 1, 1) for _ in range(4)]
    first = nn.Parameter(torch.ones(6, 5, 1, 1))
    one = Muon([first], lr=0.1)
    for i, gradient in enumerate(gradients):
        if i == 2:
            second = nn.Parameter(first.detach().clone())
            other = Muon([second], lr=0.7)
            other.load_state_dict(copy.deepcopy(one.state_dict()))
        first.grad = gradient.clone()
        one.step()
        if i >= 2:
            second.grad = gradient.clone()
            other.step()
    assert torch.equal(first, second)


def test_the_average_by_hand() -> None:
    module = nn.Linear(3, 2)
    ema = EMA(module, decay=0.5)
    shadow = module.weight.detach().clone()
    for n in range(1, 30):
        with torch.no_grad():
            module.weight.add_(torch.randn(2, 3))
        ema.update(module)
        decay = min(0.5, (1 + n) / (10 + n))  # 2/11, 3/12, ... until it reaches 0.5
        shadow = decay * shadow + (1 - decay) * module.weight.detach()
        assert torch.allclose(ema.shadow["weight"], shadow, atol=1e-5)
    assert ema.updates == 29


def test_the_average_is_a_copy_in_float32() -> None:
    module = nn.Linear(3, 2).bfloat16()
    ema = EMA(module, decay=0.999)
    before = {name: value.clone() for name, value in ema.shadow.items()}
    with torch.no_grad():
        module.weight.add_(1)
    assert all(torch.equal(before[name], value) for name, value in ema.shadow.items())
    ema.update(module)
    assert {value.dtype for value in ema.shadow.values()} == {torch.float32}
    assert not any(value.requires_grad for value in ema.shadow.values())
    assert ema.shadow.keys() == dict(module.named_parameters()).keys()


def test_the_average_goes_on_from_its_state() -> None:
    module = nn.Linear(3, 2)
    one = EMA(module, decay=0.9)
    with torch.no_grad():
        module.weight.mul_(2)
    one.update(module)
    other = EMA(nn.Linear(3, 2), decay=0.9)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for ema in (one, other):
        ema.update(module)
    assert one.updates == other.updates == 2
    assert all(torch.equal(one.shadow[name], other.shadow[name]) for name in one.shadow)
