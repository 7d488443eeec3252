"""PSNR and SSIM against scikit-image and against arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from skimage import data as skimage_data, metrics as skimage_metrics
from torch import Tensor

from calotype.errors import UsageError
from calotype.evaluate import metrics as module
from calotype.evaluate.metrics import RowMetrics, ms_ssim, psnr, ssim

data: Any = skimage_data  # scikit-image is not typed
reference: Any = skimage_metrics
Pair = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def chw(array: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def noisy(array: npt.NDArray[np.uint8], sigma: float, seed: int = 0) -> npt.NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0.0, sigma, array.shape)
    return np.clip(np.rint(array + noise), 0, 255).astype(np.uint8)


def random_pair(height: int, width: int) -> Pair:
    a, b = np.random.default_rng(7).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    return a, b


def pairs() -> dict[str, Pair]:
    astronaut, coffee = data.astronaut()[:200, :300], data.coffee()[50:250, 100:311]
    return {
        "random": random_pair(37, 53),
        "smallest": random_pair(11, 11),
        "one row of positions": random_pair(11, 40),
        "astronaut, some noise": (astronaut, noisy(astronaut, 5.0)),
        "astronaut, much noise": (astronaut, noisy(astronaut, 40.0)),
        "astronaut, darker": (astronaut, (astronaut // 2).astype(np.uint8)),
        "coffee, blocks": (coffee, (coffee // 32 * 32).astype(np.uint8)),
        "flat": (np.full((20, 20, 3), 90, np.uint8), np.full((20, 20, 3), 91, np.uint8)),
    }


@pytest.mark.parametrize("name", pairs())
def test_psnr_agrees_with_scikit_image(name: str) -> None:
    a, b = pairs()[name]
    assert psnr(chw(a), chw(b)) == pytest.approx(reference.peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9)


@pytest.mark.parametrize("name", pairs())
def test_ssim_agrees_with_scikit_image(name: str) -> None:
    a, b = pairs()[name]
    # scikit-image cuts its Gaussian at 3.5 sigma, which is the radius of 5 of an 11 x 11 window.
    expected = reference.structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=-1
    )
    assert ssim(chw(a), chw(b)) == pytest.approx(expected, abs=1e-9)


def test_psnr_by_hand() -> None:
    a = torch.zeros(3, 4, 5, dtype=torch.uint8)
    b = a.clone()
    b[1, 2, 3] = 255
    assert psnr(a, b) == pytest.approx(10.0 * math.log10(60.0))
    assert psnr(a, torch.full_like(a, 255)) == 0.0
    assert psnr(a, a + 1) == pytest.approx(48.1308036, abs=1e-6)


def test_identical_pictures() -> None:
    a = chw(data.astronaut()[:64, :64])
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == pytest.approx(1.0, abs=1e-12)


def test_flat_pictures_differ_by_luminance_alone() -> None:
    a, b = (torch.full((3, 16, 16), level, dtype=torch.uint8) for level in (50, 200))
    c1 = 2.55**2
    assert ssim(a, b) == pytest.approx((2 * 50 * 200 + c1) / (50**2 + 200**2 + c1), abs=1e-9)


def test_a_difference_outside_all_windows_but_one_counts_once() -> None:
    a = torch.full((3, 11, 30), 128, dtype=torch.uint8)
    b = a.clone()
    b[:, :, 0] = 0
    score = ssim(a, b)
    assert ssim(a[..., :11], b[..., :11]) < 1.0
    assert score == pytest.approx((19 + ssim(a[..., :11], b[..., :11])) / 20, abs=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metrics_are_symmetric(metric: Callable[[Tensor, Tensor], float]) -> None:
    a, b = map(chw, random_pair(20, 30))
    assert metric(a, b) == pytest.approx(metric(b, a), abs=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(3, 16, 16), torch.zeros(3, 16, 16), r"uint8 \[1, 3 or 6, H, W\], not torch.float32"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), torch.zeros(3, 16, 16), "not torch.float32"),
        (*torch.zeros(2, 16, 16, 3, dtype=torch.uint8), r"not torch.uint8 \[16, 16, 3\]"),
        (*torch.zeros(2, 1, 3, 16, 16, dtype=torch.uint8), r"not torch.uint8 \[1, 3, 16, 16\]"),
        (*torch.zeros(2, 3, 0, 16, dtype=torch.uint8), r"\[3, 0, 16\]"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), torch.zeros(3, 16, 1, dtype=torch.uint8), "one shape"),
    ],
)
def test_what_can_not_be_compared(
    metric: Callable[[Tensor, Tensor], float], a: Tensor, b: Tensor, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        metric(a, b)


@pytest.mark.parametrize("size", [(10, 20), (20, 10), (1, 1)])
def test_ssim_names_the_smallest_size(size: tuple[int, int]) -> None:
    a = torch.zeros(3, *size, dtype=torch.uint8)
    with pytest.raises(UsageError, match=f"at least 11 x 11 pixels, not {size[0]} x {size[1]}"):
        ssim(a, a)
    assert psnr(a, a) == math.inf


# Row by row


def by_rows(a: Tensor, b: Tensor, *heights: int) -> RowMetrics:
    """In stripes of these heights, of which the last is repeated."""
    metrics = RowMetrics(*a.shape[1:])
    top, i = 0, 0
    while top < a.shape[1]:
        n = heights[min(i, len(heights) - 1)]
        metrics.add(a[:, top : top + n], b[:, top : top + n])
        top, i = top + n, i + 1
    return metrics


@pytest.mark.parametrize("name", pairs())
@pytest.mark.parametrize("heights", [(1,), (3, 1, 7), (9, 2), (10,), (11,), (64,), (1000,)])
@pytest.mark.parametrize("band", [1, 2000, 2**16])
def test_rows_give_what_the_whole_gives(
    name: str, heights: tuple[int, ...], band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BAND", band)
    a, b = map(chw, pairs()[name])
    metrics = by_rows(a, b, *heights)
    assert metrics.psnr() == pytest.approx(psnr(a, b), abs=1e-9)
    assert metrics.ssim() == pytest.approx(ssim(a, b), abs=1e-9)


@pytest.mark.parametrize("band", [1, 2000, 2**20])
def test_bands_do_not_matter(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = map(chw, pairs()["astronaut, some noise"])
    expected = ssim(a, b), ms_ssim(a, b)
    monkeypatch.setattr(module, "_BAND", band)
    assert (ssim(a, b), ms_ssim(a, b)) == pytest.approx(expected, abs=1e-12)


def test_rows_without_a_difference() -> None:
    a = chw(data.astronaut()[:64, :64])
    assert by_rows(a, a, 10).psnr() == math.inf
    assert by_rows(a, a, 10).ssim() == pytest.approx(1.0, abs=1e-12)


def test_rows_do_not_keep_the_stripes_they_came_in() -> None:
    a, b = map(chw, random_pair(40, 30))
    expected = ssim(a, b)
    metrics = RowMetrics(40, 30)
    for top in range(0, 40, 8):
        stripes = a[:, top : top + 8].clone(), b[:, top : top + 8].clone()
        metrics.add(*stripes)
        for stripe in stripes:
            stripe.zero_()
    assert metrics.ssim() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size", [(10, 20), (20, 10), (1, 1)])
def test_rows_of_pictures_smaller_than_the_window(size: tuple[int, int]) -> None:
    a = torch.zeros(3, *size, dtype=torch.uint8)
    metrics = by_rows(a, a + 1, 3)
    assert metrics.psnr() == pytest.approx(psnr(a, a + 1))
    with pytest.raises(UsageError, match=f"at least 11 x 11 pixels, not {size[0]} x {size[1]}"):
        metrics.ssim()


def test_rows_must_all_come_and_no_more() -> None:
    metrics = RowMetrics(20, 30)
    stripe = torch.zeros(3, 15, 30, dtype=torch.uint8)
    metrics.add(stripe, stripe)
    for figure in (metrics.psnr, metrics.ssim):
        with pytest.raises(UsageError, match="only 15 of 20 rows"):
            figure()
    with pytest.raises(UsageError, match=r"must be \[3, n, 30\], 20 in all: after 15 of them \[3, 15, 30\]"):
        metrics.add(stripe, stripe)
    with pytest.raises(UsageError, match=r"\[3, 5, 29\]"):
        metrics.add(stripe[:, :5, :29], stripe[:, :5, :29])
    with pytest.raises(UsageError, match="one shape"):
        metrics.add(stripe[:, :5], stripe[:, :4])
    with pytest.raises(UsageError, match="must be uint8"):
        metrics.add(stripe[:, :5].float(), stripe[:, :5].float())
    metrics.add(stripe[:, :5], stripe[:, :5])
    assert metrics.psnr() == math.inf
