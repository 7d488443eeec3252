"""Convolutions of whole maps with gradients, against torch's in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.engine import convolution as module
from calotype.engine.convolution import convolve, suits
from calotype.engine.run import winograd_available

pytestmark = pytest.mark.skipif(bool(winograd_available()), reason="no CPU kernels here")

# pictures, channels in and out, rows, columns
SHAPES = [(1, 16, 16, 4, 4), (2, 32, 64, 13, 22), (3, 40, 24, 7, 41), (1, 64, 96, 33, 5), (2, 144, 48, 18, 17)]


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def drawn(n: int, channels: int, out: int, rows: int, columns: int) -> tuple[Tensor, nn.Conv2d, Tensor]:
    generator = torch.Generator().manual_seed(channels + out)
    convolution = nn.Conv2d(channels, out, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        for one in convolution.parameters():
            one.copy_(torch.randn(one.shape, generator=generator) / 8)
    x, dy = (torch.randn(n, k, rows, columns, generator=generator) for k in (channels, out))
    return last(x + 0.3), convolution, last(dy - 0.2)


def gradients(made: Tensor, x: Tensor, convolution: nn.Conv2d, dy: Tensor) -> list[Tensor]:
    return [made.detach(), *torch.autograd.grad(made, (x, convolution.weight, convolution.bias), dy)]


def of_kernels(x: Tensor, convolution: nn.Conv2d, dy: Tensor, *, relu: bool = False) -> list[Tensor]:
    x = x.detach().requires_grad_()
    return gradients(convolve(x, convolution.weight, convolution.bias, relu=relu), x, convolution, dy)


def of_definition(x: Tensor, convolution: nn.Conv2d, dy: Tensor, *, relu: bool = False) -> list[Tensor]:
    x, exact = x.detach().double().requires_grad_(), nn.Conv2d(1, 1, 1)
    exact.weight, exact.bias = (nn.Parameter(one.detach().double()) for one in (convolution.weight, convolution.bias))
    made = F.conv2d(x, exact.weight, exact.bias, padding=1)
    return gradients(made.relu() if relu else made, x, exact, dy.double())


@pytest.fixture(params=["kernels", "torch"])
def weights_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of weights by the kernels, or as for few tiles by torch."""
    for dtype in module.FEWEST:
        monkeypatch.setitem(module.FEWEST, dtype, 0 if request.param == "kernels" else 10**9)


@pytest.mark.usefixtures("weights_by")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [False, True])
def test_results_and_gradients_are_those_of_the_definition(shape: tuple[int, ...], relu: bool) -> None:
    x, convolution, dy = drawn(*shape)
    found, expected = of_kernels(x, convolution, dy, relu=relu), of_definition(x, convolution, dy, relu=relu)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 1e-5 * b.norm()
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert found[2].stride() == convolution.weight.stride()


@pytest.mark.usefixtures("weights_by")
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if not (shape[1] % 16 or shape[2] % 16)])
def test_bfloat16_rounds_maps_and_nothing_else(shape: tuple[int, ...]) -> None:
    x, convolution, dy = drawn(*shape)
    x, dy = x.bfloat16(), dy.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert suits(convolution, x)
        found = of_kernels(x, convolution, dy)
    expected = of_definition(x, convolution, dy)
    rounding = 2.0**-9
    assert [one.dtype for one in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= rounding * b.norm()


@pytest.mark.usefixtures("weights_by")
def test_the_same_again_and_in_one_thread() -> None:
    x, convolution, dy = drawn(*SHAPES[1])
    first, again = of_kernels(x, convolution, dy), of_kernels(x, convolution, dy)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = of_kernels(x, convolution, dy)
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(first[:2], alone[:2], strict=True):
        assert torch.equal(a, b)
    assert (first[2] - alone[2]).norm() <= 1e-6 * first[2].norm()


def test_only_what_is_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, convolution, dy = drawn(*SHAPES[1])

    def never(*_: object) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(module, "_gradient", never)
    convolution.requires_grad_(False)
    given = x.detach().requires_grad_()
    (dx,) = torch.autograd.grad(convolve(given, convolution.weight, convolution.bias), given, dy)
    assert (dx - of_definition(x, convolution, dy)[1]).norm() <= 1e-5 * dx.norm()


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2), nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"), nn.Conv2d(32, 8, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1).bfloat16(),
    ],
)  # fmt: skip
def test_what_is_left_to_torch(other: nn.Conv2d) -> None:
    x = last(torch.randn(1, 32, 8, 8))
    assert suits(nn.Conv2d(32, 32, 3, padding=1), x)
    assert not suits(other, x)


def test_maps_that_are_left_to_torch() -> None:
    convolution, narrow = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 24, 3, padding=1)
    x = last(torch.randn(1, 32, 8, 8))
    assert not suits(convolution, x.contiguous())
    assert not suits(convolution, x.double())
    assert suits(narrow, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert suits(convolution, x)
        assert not suits(narrow, x)
    with torch.autocast("cpu", torch.float16):
        assert not suits(convolution, x)
