"""The networks that came before the KL autoencoder: what they compute, and that each idea is in them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from calotype.errors import UsageError
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.kl.network import AutoencoderKL
from calotype.posterior import DiagonalGaussian, Point
from calotype.train.configs import ConvConfig, DenseConfig, Trainable
from calotype.train.family import ConvAutoencoder, DenseAutoencoder, Pair, make_autoencoder

DENSE = DenseConfig(side=8, hidden=(16, 12), z_channels=5)
CONV = ConvConfig(ch=4, ch_mult=(1, 2, 3), num_blocks=2, z_channels=6)
BOTH = pytest.mark.parametrize("config", [DENSE, CONV], ids=["dense", "conv"])


def pixels(n: int = 2, side: int = 8) -> Tensor:
    return torch.rand(n, 3, side, side) * 2 - 1


def count(config: Trainable) -> int:
    return sum(p.numel() for p in make_autoencoder(config).parameters())


def test_dense_gives_one_list_of_latents_and_the_picture_back() -> None:
    network = make_autoencoder(DENSE)
    latents = network.encode(pixels()).mode()
    assert latents.shape == (2, 5, 1, 1)
    assert network.decode(latents).shape == (2, 3, 8, 8)
    assert DENSE.factor == 8


@pytest.mark.parametrize("shape", [(8, 8), (16, 24)])
def test_conv_takes_any_size_and_keeps_places(shape: tuple[int, int]) -> None:
    network = make_autoencoder(CONV)
    latents = network.encode(torch.rand(2, 3, *shape)).mode()
    assert latents.shape == (2, 6, shape[0] // CONV.factor, shape[1] // CONV.factor)
    assert network.decode(latents).shape == (2, 3, *shape)


def test_parameters_of_dense_are_those_of_its_matrices() -> None:
    widths = (192, 16, 12, 5)
    one_way = sum(a * b + b for a, b in pairwise(widths))
    back = sum(a * b + a for a, b in pairwise(widths))
    assert count(DENSE) == one_way + back
    assert count(replace(DENSE, variational=True)) == one_way + back + 12 * 5 + 5


def test_parameters_of_conv_are_those_of_its_convolutions() -> None:
    def conv(a: int, b: int) -> int:
        return 9 * a * b + b

    a, b, c = CONV.channels
    assert (a, b, c) == (4, 8, 12)
    pairs = 2 * CONV.num_blocks * (conv(a, a) + conv(b, b) + conv(c, c))
    encoder = conv(3, a) + conv(a, b) + conv(b, c) + conv(c, 6)
    decoder = conv(6, c) + conv(c, b) + conv(b, a) + conv(a, 3)
    assert count(CONV) == encoder + decoder + 2 * pairs
    assert count(replace(CONV, residual=True)) == count(CONV), "an addition has no weights"
    assert count(replace(CONV, variational=True)) == count(CONV) + 9 * c * 6 + 6


@BOTH
def test_variational_networks_give_a_distribution_and_others_a_point(config: DenseConfig | ConvConfig) -> None:
    point = make_autoencoder(config).encode(pixels())
    assert isinstance(point, Point)
    assert not point.std.any()
    spread = make_autoencoder(replace(config, variational=True)).encode(pixels())
    assert isinstance(spread, DiagonalGaussian)
    assert spread.mean.shape == point.mean.shape
    assert (spread.std > 0).all()
    assert spread.kl().shape == (2,)


@BOTH
@pytest.mark.parametrize("variational", [False, True])
def test_every_weight_gets_a_gradient(config: DenseConfig | ConvConfig, variational: bool) -> None:
    network = make_autoencoder(replace(config, variational=variational))
    x = pixels()
    posterior = network.encode(x)
    loss = (network.decode(posterior.sample()) - x).square().mean()
    if isinstance(posterior, DiagonalGaussian):
        loss = loss + posterior.kl().mean()
    loss.backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name


def test_dense_without_hidden_layers_is_linear_and_with_them_is_not() -> None:
    x, y = pixels(1), pixels(1)

    def bend(config: DenseConfig) -> Tensor:
        network = DenseAutoencoder(config)
        through = [network.decode(network.encode(z).mode()) for z in (x, y, 0.3 * x + 0.7 * y)]
        return (0.3 * through[0] + 0.7 * through[1] - through[2]).abs().max()

    assert bend(replace(DENSE, hidden=())) < 1e-6
    assert bend(DENSE) > 1e-4


def test_a_residual_pair_that_adds_nothing_is_the_identity() -> None:
    x = torch.randn(1, 4, 5, 5)
    for residual in (True, False):
        pair = Pair(4, residual)
        before = pair(x)
        torch.nn.init.zeros_(pair.conv2.weight)
        torch.nn.init.zeros_(pair.conv2.bias)
        assert not torch.equal(before, pair(x))
        assert torch.equal(pair(x), x if residual else torch.zeros_like(x))


def test_residual_connections_keep_the_first_layers_gradient() -> None:
    deep = replace(CONV, num_blocks=6)
    norms = {}
    for residual in (False, True):
        torch.manual_seed(0)
        network = ConvAutoencoder(replace(deep, residual=residual))
        x = pixels()
        (network.decode(network.encode(x).mode()) - x).square().mean().backward()
        first = next(network.encoder.parameters()).grad
        assert first is not None
        norms[residual] = float(first.norm())
    assert norms[True] > 1e3 * norms[False]


def test_convolutions_move_latents_with_the_picture() -> None:
    x = pixels(1, 128)
    network = ConvAutoencoder(replace(CONV, residual=True))
    latents, moved = (network.encode(z).mode() for z in (x, x.roll(CONV.factor, 3)))
    inside = slice(12, 20)  # where no border is seen
    assert torch.allclose(latents[..., inside, inside], moved[..., inside, 13:21], atol=1e-6)
    assert (latents - moved)[..., inside, inside].abs().max() > 0.01


def test_make_autoencoder_knows_each_kind() -> None:
    assert isinstance(make_autoencoder(DENSE), DenseAutoencoder)
    assert isinstance(make_autoencoder(CONV), ConvAutoencoder)
    assert isinstance(make_autoencoder(AutoencoderConfig(ch=8, norm_groups=4)), AutoencoderKL)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (DenseConfig, {"side": 0}),
        (DenseConfig, {"hidden": (8, 0)}),
        (DenseConfig, {"z_channels": 1.5}),
        (ConvConfig, {"ch": 0}),
        (ConvConfig, {"ch_mult": ()}),
        (ConvConfig, {"num_blocks": 0}),
    ],
)
def test_impossible_configurations_are_refused(kind: type[DenseConfig | ConvConfig], values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        kind(**values)  # type: ignore[arg-type]
