"""Errors of colours and of alpha, told apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from calotype.errors import UsageError
from calotype.evaluate.alpha import APART, Apart, ApartMetrics, apart
from calotype.evaluate.metrics import psnr


def picture(seed: int, height: int = 20, width: int = 30) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (4, height, width), dtype=np.uint8))


def test_of_opaque_pictures_colours_have_the_usual_psnr() -> None:
    a, b = picture(0), picture(1)
    a[3] = 255
    b[3] = 255
    found = apart(a, b)
    assert found.colour_psnr == pytest.approx(psnr(a[:3], b[:3]), abs=1e-9)
    assert (found.alpha_psnr, found.alpha_mae, found.alpha_max) == (math.inf, 0.0, 0.0)


def test_alpha_alone_does_not_touch_colours() -> None:
    a = picture(0)
    a[3] = 100
    b = a.clone()
    b[3, :10] = 130
    b[3, 0, 0] = 0
    found = apart(a, b)
    assert found.colour_psnr == math.inf
    assert found.alpha_mae == pytest.approx((299 * 30 + 100) / 600)
    assert found.alpha_max == 100.0
    assert found.alpha_psnr == pytest.approx(10 * math.log10(255**2 / ((299 * 900 + 10000) / 600)))


def test_colours_count_as_much_as_they_are_opaque() -> None:
    a = torch.full((4, 2, 2), 100, dtype=torch.uint8)
    a[3] = torch.tensor([[0, 51], [204, 255]], dtype=torch.uint8)
    b = a.clone()
    b[:3] = a[:3] + torch.tensor([[100, 10], [0, 20]], dtype=torch.uint8)
    mse = (51 * 100 + 255 * 400) / (51 + 204 + 255)
    found = apart(a, b)
    assert found.colour_psnr == pytest.approx(10 * math.log10(255**2 / mse))
    assert (found.alpha_psnr, found.alpha_mae) == (math.inf, 0.0)
    # a transparent frame around it changes nothing
    wide = [torch.nn.functional.pad(x, (3, 3, 3, 3)) for x in (a, b)]
    wide[1][:3, 0] = 255
    assert apart(wide[0], wide[1]).colour_psnr == found.colour_psnr


def test_where_nothing_is_to_be_seen_colours_have_no_figure() -> None:
    a = picture(0)
    a[3] = 0
    assert apart(a, picture(1)).colour_psnr is None


def test_rows_give_the_same() -> None:
    a, b = picture(0, 200), picture(1, 200)
    metrics = ApartMetrics()
    for top, bottom in ((0, 1), (1, 70), (70, 200)):
        metrics.add(a[:, top:bottom], b[:, top:bottom])
    assert metrics.figures() == apart(a, b)
    x, y = a.double(), b.double()
    assert (
        apart(a, b)
        == Apart(
            colour_psnr=pytest.approx(
                10 * math.log10(255**2 * 3 * float(x[3].sum()) / float(((x - y)[:3].square() * x[3]).sum()))
            ),  # type: ignore[arg-type]
            alpha_psnr=pytest.approx(psnr(a[3:], b[3:])),  # type: ignore[arg-type]
            alpha_mae=pytest.approx(float((x - y)[3].abs().mean())),  # type: ignore[arg-type]
            alpha_max=float((x - y)[3].abs().max()),
        )
    )


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (picture(0)[:3], picture(1)[:3]),
        (picture(0), picture(1)[:, :5]),
        (picture(0).float(), picture(1).float()),
        (picture(0)[:, :0], picture(1)[:, :0]),
        (picture(0)[None], picture(1)[None]),
    ],
)
def test_what_can_not_be_compared(a: Tensor, b: Tensor) -> None:
    with pytest.raises(UsageError, match=r"uint8 \[4, H, W\] of one shape"):
        apart(a, b)


def test_without_rows_there_are_no_figures() -> None:
    with pytest.raises(UsageError, match="no rows"):
        ApartMetrics().figures()


def test_figures_are_metrics() -> None:
    from calotype.evaluate.measure import METRICS

    assert tuple(key for key, metric in METRICS.items() if metric.absent) == APART
