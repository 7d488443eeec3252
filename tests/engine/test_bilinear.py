"""Algorithms in exact fractions, and their two-dimensional form in NumPy."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from calotype.engine import bilinear
from calotype.engine.bilinear import Algorithm, Matrix, pointwise, toom_cook, winograd

ALGORITHMS = {one.name: one for one in (pointwise(), *(a for kind in bilinear.ALGORITHMS.values() for a in kind))}
FRACTIONS = st.fractions(min_value=-9, max_value=9, max_denominator=12)


def times(matrix: Matrix, vector: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


def tile(algorithm: Algorithm, x: list[Fraction], w: list[Fraction]) -> list[Fraction]:
    """One tile by the algorithm."""
    products = [a * b for a, b in zip(times(algorithm.kernel, w), times(algorithm.input, x), strict=True)]
    return times(algorithm.output, products)


def directly(algorithm: Algorithm, x: list[Fraction], w: list[Fraction]) -> list[Fraction]:
    """The same by its definition. The first input is the one left of what the first output stands on."""
    if algorithm.name.startswith("up"):
        doubled = [value for value in x for _ in range(2)][1:]  # the right one of the two before
        return [sum((w[k] * doubled[i + k] for k in range(3)), Fraction(0)) for i in range(algorithm.tile)]
    stride = 2 if algorithm.name.startswith("down") else 1
    return [sum((w[k] * x[stride * i + k] for k in range(algorithm.taps)), Fraction(0)) for i in range(algorithm.tile)]


@pytest.mark.parametrize("name", ALGORITHMS)
@settings(max_examples=25)
@given(data=st.data())
def test_a_tile_is_the_convolution_exactly(name: str, data: st.DataObject) -> None:
    algorithm = ALGORITHMS[name]
    x = data.draw(st.lists(FRACTIONS, min_size=algorithm.window, max_size=algorithm.window))
    w = data.draw(st.lists(FRACTIONS, min_size=algorithm.taps, max_size=algorithm.taps))
    assert tile(algorithm, x, w) == directly(algorithm, x, w)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_it_is_the_convolution_of_every_input_with_every_weight(name: str) -> None:
    """Unit vectors, which prove it for all by linearity."""
    algorithm = ALGORITHMS[name]
    for i in range(algorithm.window):
        for k in range(algorithm.taps):
            x = [Fraction(int(i == j)) for j in range(algorithm.window)]
            w = [Fraction(int(k == j)) for j in range(algorithm.taps)]
            assert tile(algorithm, x, w) == directly(algorithm, x, w)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_shapes_and_steps(name: str) -> None:
    algorithm = ALGORITHMS[name]
    t = algorithm.positions
    assert [len(row) for row in algorithm.input] == [algorithm.window] * t
    assert [len(row) for row in algorithm.kernel] == [algorithm.taps] * t
    assert [len(row) for row in algorithm.output] == [t] * algorithm.tile
    # tiles meet without a gap: what one sees beyond its step the next sees too
    assert algorithm.window >= algorithm.step


@pytest.mark.parametrize(
    ("name", "tile", "window", "step", "positions"),
    [
        ("1x1", 1, 1, 1, 1),
        ("F(4,3)", 4, 6, 4, 6),
        ("F(2,3)", 2, 4, 2, 4),
        ("direct", 1, 3, 1, 3),
        ("up F(4,2)x2", 8, 6, 4, 10),
        ("up F(2,2)x2", 4, 4, 2, 6),
        ("up F(1,2)x2", 2, 3, 1, 4),
        ("down F(2,2)", 2, 5, 4, 5),
        ("down F(1,2)", 1, 3, 2, 3),
    ],
)
def test_tiles_are_minimal(name: str, tile: int, window: int, step: int, positions: int) -> None:
    one = ALGORITHMS[name]
    assert (one.tile, one.window, one.step, one.positions) == (tile, window, step, positions)


def test_products_are_counted() -> None:
    """Of the 9 for every output, a tile that is not whole included."""
    assert [one.products(8, 8) / 64 for one in bilinear.ALGORITHMS["none"]] == [2.25, 4, 9]
    assert [one.products(8, 8) / 64 for one in bilinear.ALGORITHMS["up"]] == [1.5625, 2.25, 4]
    assert [one.products(8, 8) / 64 for one in bilinear.ALGORITHMS["down"]] == [6.25, 9]
    assert winograd(4).products(5, 4) == 2 * 36


@pytest.mark.parametrize("name", ALGORITHMS)
def test_matrices_of_the_maps_are_exact_in_float32(name: str) -> None:
    """Those of the weights are not, and need not be: they are applied once."""
    for matrix in (ALGORITHMS[name].input, ALGORITHMS[name].output):
        for row in matrix:
            for value in row:
                assert Fraction(float(np.float32(float(value)))) == value


@pytest.mark.parametrize("taps", [2, 3, 5])
@pytest.mark.parametrize("outputs", [1, 2, 4])
def test_minimal_filtering_at_any_points(taps: int, outputs: int) -> None:
    points = ["0", "1", "-1", "2", "-1/2", "7/3", "-5"][: outputs + taps - 2]
    bt, g, at = toom_cook(outputs, taps, points)
    assert len(bt) == outputs + taps - 1
    one = Algorithm("F", outputs, outputs + taps - 1, outputs, bt, g, at)
    x = [Fraction(i * i - 3, 7) for i in range(one.window)]
    w = [Fraction(2 * i + 1, 5) for i in range(taps)]
    assert tile(one, x, w) == directly(one, x, w)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_dimensions(name: str) -> None:
    """Each matrix on rows and on columns: equal to sums over all taps, in float64."""
    one = ALGORITHMS[name]
    rng = np.random.default_rng(0)
    bt, g, at = (np.array([[float(v) for v in row] for row in m]) for m in (one.input, one.kernel, one.output))
    x, w = rng.standard_normal((one.window, one.window)), rng.standard_normal((one.taps, one.taps))
    result = at @ ((g @ w @ g.T) * (bt @ x @ bt.T)) @ at.T
    if name.startswith("up"):
        x = x.repeat(2, 0).repeat(2, 1)[1:, 1:]
    stride = 2 if name.startswith("down") else 1
    expected = np.zeros((one.tile, one.tile))
    for i in range(one.tile):
        for j in range(one.tile):
            a, b = stride * i, stride * j
            expected[i, j] = (w * x[a : a + one.taps, b : b + one.taps]).sum()
    assert np.abs(result - expected).max() < 1e-12


def test_the_points_are_better_than_the_usual_ones() -> None:
    """F(4,3) in float32 at 0, 5/8, -5/8, 3/2, -3/2 and at 0, 1, -1, 2, -2."""
    usual = Algorithm("usual", 4, 6, 4, *toom_cook(4, 3, ["0", "1", "-1", "2", "-2"]))
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4000, 6, 6)), rng.standard_normal((4000, 3, 3))

    def error(one: Algorithm) -> float:
        bt, g, at = (np.array([[float(v) for v in row] for row in m]) for m in (one.input, one.kernel, one.output))
        exact = at @ ((g @ w @ g.T) * (bt @ x @ bt.T)) @ at.T
        bt, at = bt.astype(np.float32), at.astype(np.float32)
        u = (g @ w @ g.T).astype(np.float32)
        single = at @ (u * (bt @ x.astype(np.float32) @ bt.T)) @ at.T
        return float(np.sqrt(((single - exact) ** 2).mean()))

    assert error(winograd(4)) < 0.7 * error(usual)
