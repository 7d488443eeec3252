"""Soft edges of masks: how far they reach, and what of thin parts stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from support import one_sentence
from torch import Tensor

from calotype.edit.feather import feathered, shown, softened, washed_out
from calotype.errors import UsageError


def windows(mask: np.ndarray, radius: int) -> np.ndarray:
    """Of every pixel, all within the radius."""
    padded = np.pad(mask, radius, mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, (2 * radius + 1, 2 * radius + 1))


def painted(seed: int) -> np.ndarray:
    """A rectangle, a line and a dot."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((20, 26), np.uint8)
    top, left = rng.integers(0, 20), rng.integers(0, 26)
    mask[top : top + rng.integers(1, 20), left : left + rng.integers(1, 26)] = 255
    mask[rng.integers(0, 20)] = mask[rng.integers(0, 20), rng.integers(0, 26)] = 255
    return mask


def slowly(mask: np.ndarray, radius: int) -> np.ndarray:
    """A tent as the convolution of two boxes, over a mask with repeated edges, by definition."""
    a, b = radius // 2, radius - radius // 2
    tent = np.convolve(np.ones(2 * a + 1) / (2 * a + 1), np.ones(2 * b + 1) / (2 * b + 1))
    padded = np.pad(mask / 255.0, radius, mode="edge")
    rows = np.apply_along_axis(np.convolve, 1, padded, tent, "valid")
    return np.apply_along_axis(np.convolve, 0, rows, tent, "valid")


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 8])
def test_a_feather_is_a_tent(radius: int) -> None:
    rng = np.random.default_rng(0)
    mask = (255 * (rng.random((23, 31)) > 0.8)).astype(np.uint8)
    mask[5:12, 8:20] = 255
    found = feathered(torch.from_numpy(mask), radius).numpy()
    # a running mean repeats its own edge, which differs from a mask's only within the radius of the border
    inner = (slice(radius, 23 - radius), slice(radius, 31 - radius)) if radius else (slice(None), slice(None))
    assert found.shape == mask.shape
    assert np.allclose(found[inner], slowly(mask, radius)[inner], atol=1e-6)


@given(st.integers(0, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_a_feather_ends(radius: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((20, 26), np.uint8)
    top, left = rng.integers(0, 20), rng.integers(0, 26)
    mask[top : top + rng.integers(1, 20), left : left + rng.integers(1, 26)] = 255
    found = feathered(torch.from_numpy(mask), radius).numpy()
    padded = np.pad(mask, radius, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * radius + 1, 2 * radius + 1))
    assert np.array_equal(found == 0, windows.max(axis=(2, 3)) == 0)
    assert np.array_equal(found == 1, windows.min(axis=(2, 3)) == 255)
    assert 0 <= found.min() <= found.max() <= 1


@given(st.integers(0, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_outside_a_feather_nothing_is_shown_and_inside_the_mask_all(radius: int, seed: int) -> None:
    mask = painted(seed)
    found = shown(torch.from_numpy(mask), radius).numpy()
    assert np.array_equal(found == 0, windows(mask, radius).max(axis=(2, 3)) == 0)
    assert np.array_equal(found == 1, mask == 255)
    by_hand = np.mean([windows(mask / 255, reach).max(axis=(2, 3)) for reach in range(radius + 1)], axis=0)
    assert np.allclose(found, by_hand, atol=1e-6)


def test_grey_is_shown_as_much_as_it_is_white() -> None:
    mask = torch.full((9, 30), 51, dtype=torch.uint8)
    assert torch.allclose(shown(mask, 5), torch.tensor(0.2))
    mask[:, :10] = 255
    mask[:, 20:] = 0
    found = shown(mask, 4)[4]
    assert found[:10].tolist() == [1.0] * 10
    assert found[10:14].tolist() == pytest.approx([1 - 0.8 * (i / 5) for i in range(1, 5)])
    assert found[14:20].tolist() == pytest.approx([0.2] * 6)
    assert found[20:24].tolist() == pytest.approx([0.2 * (1 - i / 5) for i in range(1, 5)])
    assert found[24:].tolist() == [0.0] * 6


@given(st.integers(0, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_softened_edges_end_too(radius: int, seed: int) -> None:
    mask = painted(seed)
    found = softened(torch.from_numpy(mask), radius).numpy()
    assert (found[windows(mask, radius).max(axis=(2, 3)) == 0] == 0).all()
    assert (found[windows(mask, radius).min(axis=(2, 3)) == 255] == 1).all()
    assert 0 <= found.min() <= found.max() <= 1


def lined(width: int, level: int = 255) -> Tensor:
    mask = torch.zeros(120, 100, dtype=torch.uint8)
    mask[40 : 40 + width] = level
    return mask


@pytest.mark.parametrize("radius", [1, 2, 5, 16, 40])
def test_what_is_thin_stays(radius: int) -> None:
    for width in range(1, 64):
        soft = softened(lined(width), radius)
        peak = float(soft[40 : 40 + width].max())
        assert peak > 0.74
        if width < 0.9 * radius:  # thinner lines are whole, wider ones as they ever were
            assert (soft[40 : 40 + width] == 1).all()
        if width > 1.2 * radius + 1:
            assert torch.equal(soft, feathered(lined(width), radius))
        assert torch.allclose(softened(255 - lined(width), radius), 1 - soft, atol=1e-6)
    grey = softened(lined(2, 128), radius)
    assert float(grey.max()) == pytest.approx(128 / 255, rel=0.26)
    assert torch.equal(softened(lined(120, 128), radius), feathered(lined(120, 128), radius))


def test_stems_and_dots_and_ramps() -> None:
    mask = torch.zeros(100, 160, dtype=torch.uint8)
    mask[20:80, 10:60] = 255
    mask[48:52, 60:140] = 255
    soft = softened(mask, 16)
    assert (soft[48:52, 92:140] == 1).all()
    assert float(soft[48:52].min(dim=0).values[10:140].min()) > 0.25  # and it is not cut off the rectangle
    assert torch.equal(soft[:, :40], feathered(mask, 16)[:, :40])
    dots = torch.zeros(100, 160, dtype=torch.uint8)
    dots[10, 10] = dots[90, 10] = dots[50, 159] = dots[99, 80] = 255
    assert (softened(dots, 16)[dots > 0] == 1).all()
    ramp = torch.arange(256, dtype=torch.uint8).expand(40, 256).contiguous()
    assert torch.equal(softened(ramp, 16), feathered(ramp, 16))
    for mask in (dots, ramp, lined(4)):
        assert washed_out(mask, softened(mask, 16), 16) is None


def test_what_is_lost_between_others_is_told() -> None:
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[:, ::8] = mask[:, 1::8] = mask[:, 2::8] = 255
    soft = softened(mask, 16)
    assert torch.equal(soft[:, 20:44], feathered(mask, 16)[:, 20:44])
    told = washed_out(mask, soft, 16)
    assert told is not None
    one_sentence(told)
    assert "finer than a feather of 16 pixels can show" in told
    less = int(told.split("a feather of ")[2].split()[0])
    assert 0 < less < 16
    assert washed_out(mask, softened(mask, less), less) is None


def test_masks_and_feathers_that_cannot_be() -> None:
    for make in (feathered, shown, softened):
        with pytest.raises(UsageError, match="from 0 to 1024 pixels, not 1025"):
            make(lined(1), 1025)
        with pytest.raises(UsageError, match="must be uint8"):
            make(lined(1).float(), 1)
