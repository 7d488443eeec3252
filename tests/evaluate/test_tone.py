"""What pictures have more of or less: against numpy, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from calotype.errors import UsageError
from calotype.evaluate.measure import ALL_METRICS
from calotype.evaluate.tone import TONE, colour_bias, tone


def levels(height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("size", [(1, 2), (2, 1), (7, 5), (64, 9), (65, 9), (130, 20)])
def test_against_numpy(size: tuple[int, int]) -> None:
    """Also where rows are taken in several bands."""
    a, b = levels(*size), levels(*size, seed=1)
    found = tone(a, b)
    x, y = (one.double().numpy() for one in (a, b))
    bias = (y - x).mean((1, 2))
    assert [found.bias_red, found.bias_green, found.bias_blue] == pytest.approx(bias.tolist())
    spread = [np.sqrt(one.var((1, 2)).sum()) for one in (x, y)]
    assert found.contrast == pytest.approx(spread[1] / spread[0])
    energy = [sum((np.diff(one, axis=axis) ** 2).sum() for axis in (1, 2)) for one in (x, y)]
    assert found.gradient == pytest.approx(energy[1] / energy[0])


def test_a_picture_that_turned_green() -> None:
    a = levels(40, 30) // 2
    b = a.clone()
    b[1] += 3
    found = tone(a, b)
    assert (found.bias_red, found.bias_green, found.bias_blue) == (0.0, 3.0, 0.0)
    assert (found.contrast, found.gradient) == (1.0, 1.0)


def test_a_picture_that_got_softer() -> None:
    a = levels(40, 30)
    b = torch.nn.functional.avg_pool2d(a.float()[None], 3, 1, 1, count_include_pad=False)[0].round().to(torch.uint8)
    found = tone(a, b)
    assert found.gradient is not None
    assert found.contrast is not None
    assert found.gradient < 0.3
    assert found.contrast < 0.6


def test_of_one_colour_there_is_neither_contrast_nor_gradients() -> None:
    a = torch.full((3, 5, 4), 7, dtype=torch.uint8)
    found = tone(a, levels(5, 4))
    assert (found.contrast, found.gradient) == (None, None)
    assert found.bias_red is not None
    found = tone(levels(5, 4), a)
    assert (found.contrast, found.gradient) == (0.0, 0.0)


def test_colours_count_as_they_are_opaque() -> None:
    a, b = levels(6, 5, 4), levels(6, 5, 4, seed=1)
    weight = a[3].double()
    expected = [float(((b[c].double() - a[c].double()) * weight).sum() / weight.sum()) for c in range(3)]
    assert colour_bias(a, b) == pytest.approx(tuple(expected))
    found = tone(levels(6, 5), levels(6, 5, seed=2), (a, b))
    assert found.bias_green == pytest.approx(expected[1])
    a[3] = 0
    assert colour_bias(a, b) is None
    assert tone(levels(6, 5), levels(6, 5), (a, b)).bias_blue is None
    a[3] = 255
    assert colour_bias(a, b) == pytest.approx(colour_bias(a[:3], b[:3]))


def test_they_are_metrics_whose_ideal_is_what_equal_pictures_have() -> None:
    found = vars(tone(levels(9, 9), levels(9, 9)))
    assert {key: ALL_METRICS[key].ideal for key in TONE} == found
    assert ALL_METRICS["bias_red"].badness(-2.0) == ALL_METRICS["bias_red"].badness(2.0) == 2.0
    assert ALL_METRICS["contrast"].badness(0.75) == ALL_METRICS["contrast"].badness(1.25) == 0.25
    assert ALL_METRICS["psnr"].badness(30.0) < ALL_METRICS["psnr"].badness(20.0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (levels(4, 4), levels(4, 5)),
        (levels(4, 4).float(), levels(4, 4)),
        (levels(4, 4, 1), levels(4, 4, 1)),
        (levels(4, 4), levels(4, 4).float()),
        (torch.empty(3, 0, 4, dtype=torch.uint8), torch.empty(3, 0, 4, dtype=torch.uint8)),
    ],
)
def test_what_can_not_be_compared(a: Tensor, b: Tensor) -> None:
    with pytest.raises(UsageError, match=r"must be uint8 \[3, H, W\] of one shape"):
        tone(a, b)
    with pytest.raises(UsageError, match="must be uint8"):
        colour_bias(a, b)
