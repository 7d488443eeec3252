"""Ways between latents."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from editkit import FORMAT
from hypothesis import assume, given, settings, strategies as st
from support import one_sentence
from torch import Tensor

from calotype.edit.paths import EASINGS, between, slerp, times
from calotype.errors import UsageError
from calotype.latents import KNOWN, flux2

NUMBERS = st.floats(-100, 100, width=32)
FRACTIONS = st.floats(0, 1)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two vectors of one length, any but zero."""
    n = draw(st.integers(2, 12))
    both = [torch.tensor(draw(st.lists(NUMBERS, min_size=n, max_size=n)), dtype=torch.float64) for _ in range(2)]
    assume(all(float(one.norm()) > 1e-3 for one in both))
    return both[0], both[1]


@given(pairs(), FRACTIONS)
@settings(max_examples=60, deadline=None)
def test_slerp_interpolates_norms(both: tuple[Tensor, Tensor], t: float) -> None:
    a, b = both
    expected = (1 - t) * float(a.norm()) + t * float(b.norm())
    assert float(slerp(a, b, t).norm()) == pytest.approx(expected, rel=1e-6)


@given(pairs(), FRACTIONS)
@settings(max_examples=60, deadline=None)
def test_slerp_turns_evenly_in_the_plane_of_the_two(both: tuple[Tensor, Tensor], t: float) -> None:
    a, b = (one / one.norm() for one in both)
    cosine = float(a @ b)
    assume(abs(cosine) < 0.999)
    found, angle = slerp(a, b, t), math.acos(cosine)
    assert float(found @ a) == pytest.approx(math.cos(t * angle), abs=1e-9)
    assert float(found @ b) == pytest.approx(math.cos((1 - t) * angle), abs=1e-9)


@given(pairs(), FRACTIONS)
@settings(max_examples=40, deadline=None)
def test_slerp_is_the_same_from_the_other_end(both: tuple[Tensor, Tensor], t: float) -> None:
    a, b = both
    assume(float((a / a.norm() + b / b.norm()).norm()) > 1e-3)  # of opposite ones there is an arc for each side
    scale = float(a.norm() + b.norm())
    assert torch.allclose(slerp(a, b, t), slerp(b, a, 1 - t), rtol=0, atol=1e-7 * scale)


def test_slerp_is_shoemakes_formula() -> None:
    a, b = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    a, b = a / a.norm(), b / b.norm()
    angle = np.arccos(np.vdot(a.numpy(), b.numpy()))
    for t in (0.1, 0.5, 0.8):
        formula = (np.sin((1 - t) * angle) * a.numpy() + np.sin(t * angle) * b.numpy()) / np.sin(angle)
        assert np.allclose(slerp(a, b, t).numpy(), formula, rtol=0, atol=1e-14)


def test_slerp_by_hand() -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])
    angle = math.radians(22.5)
    assert slerp(a, b, 0.25).tolist() == pytest.approx([2.5 * math.cos(angle), 2.5 * math.sin(angle)])
    assert slerp(a, b, 0.5).tolist() == pytest.approx([3 * math.sqrt(0.5)] * 2)


@pytest.mark.parametrize("b", [(3.0, 4.0), (30.0, 40.0), (-3.0, -4.0), (0.0, 0.0), (3.0, 4.0000005)])
def test_slerp_has_its_ends_always(b: tuple[float, float]) -> None:
    a, other = torch.tensor([3.0, 4.0]), torch.tensor(b)
    assert torch.equal(slerp(a, other, 0.0), a)
    assert torch.equal(slerp(a, other, 1.0), other)
    for t in (1e-9, 0.3, 1 - 1e-9):
        assert torch.isfinite(slerp(a, other, t)).all()


def test_slerp_of_one_direction_is_linear() -> None:
    a = torch.randn(6)
    assert torch.allclose(slerp(a, 3 * a, 0.25), 1.5 * a)
    assert torch.equal(slerp(a, a, 0.3), a)


@pytest.mark.parametrize("length", [2, 3, 1000])
def test_slerp_of_opposite_ones_takes_one_arc(length: int) -> None:
    a = torch.randn(length, dtype=torch.float64)
    a /= a.norm()
    way = [slerp(a, -2 * a, t) for t in torch.linspace(0, 1, 9).tolist()]
    assert float(way[4].norm()) == pytest.approx(1.5)
    assert float(way[4] @ a) == pytest.approx(0, abs=1e-12)
    assert torch.equal(way[4], slerp(a, -2 * a, 0.5))  # the same arc every time
    steps = [float((y / y.norm() - x / x.norm()).norm()) for x, y in itertools.pairwise(way)]
    assert steps == pytest.approx([2 * math.sin(math.pi / 16)] * 8)


def test_slerp_where_there_is_no_arc_is_linear() -> None:
    zero, a = torch.zeros(4), torch.tensor([1.0, 2.0, -3.0, 4.0])
    assert torch.equal(slerp(zero, a, 0.25), 0.25 * a)
    assert torch.equal(slerp(a, zero, 0.25), 0.75 * a)
    assert torch.equal(slerp(zero, zero, 0.5), zero)
    assert slerp(torch.tensor([2.0]), torch.tensor([-2.0]), 0.25).tolist() == [1.0]


def test_slerp_keeps_shape_and_type() -> None:
    a, b = torch.randn(2, 4, 3, 2, dtype=torch.float16)
    found = slerp(a, b, 0.4)
    assert (found.shape, found.dtype) == (a.shape, torch.float16)


@pytest.mark.parametrize("easing", EASINGS)
def test_time_passes_from_0_to_1(easing: str) -> None:
    found = times(33, easing)
    assert (found[0], found[-1], len(found)) == (0.0, 1.0, 33)
    assert all(before < after for before, after in itertools.pairwise(found))
    assert (EASINGS[easing](0.0), EASINGS[easing](1.0)) == (0.0, 1.0)


def test_easings_by_hand() -> None:
    quarter = {name: times(5, name)[1] for name in EASINGS}
    assert quarter == pytest.approx(
        {"linear": 0.25, "cosine": (1 - math.sqrt(0.5)) / 2, "smoothstep": 0.15625, "in": 0.0625, "out": 0.4375}
    )


def test_between_has_its_ends_bit_by_bit() -> None:
    a, b = torch.randn(2, 4, 3, 5) * 1e3
    for kind in ("lerp", "slerp"):
        assert torch.equal(between(a, b, 0.0, kind, FORMAT), a)  # type: ignore[arg-type]
        assert torch.equal(between(a, b, 1.0, kind, FORMAT), b)  # type: ignore[arg-type]


def test_between_turns_around_the_middle_of_model_latents() -> None:
    a, b = torch.randn(2, 4, 3, 5)
    mean = np.array(FORMAT.mean)[:, None, None]
    std = np.array(FORMAT.std)[:, None, None]
    x, y = ((z.double().numpy() - mean) / std for z in (a, b))
    m, n = np.linalg.norm(x), np.linalg.norm(y)
    angle = np.arccos(np.vdot(x, y) / m / n)
    way = (np.sin(0.7 * angle) * x / m + np.sin(0.3 * angle) * y / n) / np.sin(angle) * (0.7 * m + 0.3 * n)
    assert np.allclose(between(a, b, 0.3, "slerp", FORMAT).numpy(), way * std + mean, rtol=0, atol=1e-5)
    assert np.allclose(between(a, b, 0.3, "lerp", FORMAT).numpy(), (0.7 * a + 0.3 * b).numpy(), rtol=0, atol=1e-6)


def test_between_packed_latents() -> None:
    format_ = flux2(tuple(x / 9 for x in range(16)), tuple(1 + x / 9 for x in range(16)))
    a, b = torch.randn(2, 4, 6, 4)
    model = slerp(format_.to_model(a[None]), format_.to_model(b[None]), 0.5)
    assert torch.allclose(format_.to_model(between(a, b, 0.5, "slerp", format_)[None]), model, atol=1e-5)


def test_what_is_no_way_is_refused() -> None:
    a = torch.zeros(4, 2, 2)
    for make, words in (
        (lambda: times(1), "two ends as frames, not 1"),
        (lambda: times(5, "bounce"), "no easing 'bounce'; choose one of linear, cosine"),
        (lambda: between(a, torch.zeros(4, 2, 3), 0.5, "lerp", KNOWN["sd1"]), "of one shape"),
        (lambda: between(a, a, 0.5, "cubic", KNOWN["sd1"]), "'cubic'; choose lerp or slerp"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError, match=words) as error:
            make()
        one_sentence(str(error.value))
