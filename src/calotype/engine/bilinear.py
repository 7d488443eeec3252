"""Convolutions in fewer multiplications: minimal filtering after Toom, Cook and Winograd, as three small matrices.

Along one axis, a tile of outputs is y = AT ((G w) * (BT x)): x are the inputs it sees, w the weights, and * multiplies
number by number. In two dimensions each matrix acts on rows and on columns, and the sum over channels makes a matrix
product at each of T x T positions; nothing else grows with channels squared. (Winograd, Arithmetic Complexity of
Computations, 1980; Lavin & Gray 2015, arXiv:1509.09308.)

A convolution after nearest upsampling is two convolutions of two taps, one for even and one for odd outputs; one of
stride 2 is a two-tap convolution over even inputs and a product with odd ones. Both fit the same form.

No torch, no NumPy: matrices are exact fractions. The compiled kernels on disk follow `kernels.py` alone: after a change
here, change that file too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import ceil, log2, prod

Matrix = tuple[tuple[Fraction, ...], ...]

# Points by the number of taps and of outputs: dyadic with few bits, so that the matrices are exact in float32, and
# those under which rounding grows least: F(4,3) has half the error here that it has with the usual 0, 1, -1, 2, -2.
_POINTS = {
    (3, 4): ("0", "5/8", "-5/8", "3/2", "-3/2"),
    (3, 2): ("0", "1", "-1"),
    (2, 4): ("0", "3/4", "-3/4", "7/4"),
    (2, 2): ("0", "1"),
    (2, 1): ("0",),
}


@dataclass(frozen=True)
class Algorithm:
    """One way to convolve, along one axis.

    Attributes:
        name: what it is called in plans and benchmarks.
        tile: outputs of one tile.
        window: inputs a tile sees.
        step: inputs from one tile to the next.
        input: BT, [positions, window].
        kernel: G, [positions, taps].
        output: AT, [tile, positions].
    """

    name: str
    tile: int
    window: int
    step: int
    input: Matrix
    kernel: Matrix
    output: Matrix

    @property
    def positions(self) -> int:
        """T: products along one axis."""
        return len(self.input)

    @property
    def taps(self) -> int:
        """Weights of the kernel along one axis."""
        return len(self.kernel[0])

    @property
    def of_output(self) -> Matrix:
        """A, [positions, tile]: takes a gradient of the outputs to the positions."""
        return tuple(zip(*self.output, strict=True))

    def products(self, rows: int, columns: int) -> int:
        """Multiplications for a map of rows x columns outputs, of each input channel and output channel."""
        return ceil(rows / self.tile) * ceil(columns / self.tile) * self.positions**2


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients, lowest first, of the product of (x - root)."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [a - root * b for a, b in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


def _scaled(row: Sequence[Fraction], factor: Fraction) -> tuple[Fraction, ...]:
    return tuple(value * factor for value in row)


def toom_cook(tile: int, taps: int, points: Sequence[str]) -> tuple[Matrix, Matrix, Matrix]:
    """(BT, G, AT) of F(tile, taps) at tile + taps - 2 points and infinity.

    Each position's rows of BT and G are balanced by a power of two, which costs no rounding.
    """
    at = [Fraction(point) for point in points]
    size = tile + taps - 1
    assert len(at) == size - 1
    inputs, kernels = [], []
    for i, point in enumerate(at):
        others = [p for j, p in enumerate(at) if j != i]
        inputs.append((*_polynomial(others), Fraction(0)))
        kernels.append(
            _scaled([point**k for k in range(taps)], 1 / prod((point - p for p in others), start=Fraction(1)))
        )
    inputs.append(tuple(_polynomial(at)))
    kernels.append((*[Fraction(0)] * (taps - 1), Fraction(1)))
    for i, (row, kernel) in enumerate(zip(inputs, kernels, strict=True)):
        ratio = sum(value * value for value in kernel) / sum(value * value for value in row)
        power = round(log2(ratio) / 4)
        factor = Fraction(2**power) if power >= 0 else Fraction(1, 2**-power)
        inputs[i], kernels[i] = _scaled(row, factor), _scaled(kernel, 1 / factor)
    outputs = tuple((*[p**k for p in at], Fraction(int(k == tile - 1))) for k in range(tile))
    return tuple(inputs), tuple(kernels), outputs


def _padded(matrix: Matrix, columns: Sequence[int], width: int) -> Matrix:
    """The matrix with its columns at these places of a wider one."""
    rows = []
    for row in matrix:
        wide = [Fraction(0)] * width
        for column, value in zip(columns, row, strict=True):
            wide[column] = value
        rows.append(tuple(wide))
    return tuple(rows)


def _times(a: Matrix, b: Sequence[Sequence[int]]) -> Matrix:
    return tuple(
        tuple(sum((x * y for x, y in zip(row, column, strict=True)), Fraction(0)) for column in zip(*b, strict=True))
        for row in a
    )


@cache
def pointwise() -> Algorithm:
    """A 1x1 convolution."""
    one: Matrix = ((Fraction(1),),)
    return Algorithm("1x1", 1, 1, 1, one, one, one)


@cache
def winograd(tile: int) -> Algorithm:
    """A 3x3 convolution: F(4x4, 3x3), F(2x2, 3x3), or directly with a tile of 1."""
    if tile == 1:
        unit = _unit(3)
        return Algorithm("direct", 1, 3, 1, unit, unit, ((Fraction(1),) * 3,))
    return Algorithm(f"F({tile},3)", tile, tile + 2, tile, *toom_cook(tile, 3, _POINTS[3, tile]))


@cache
def upsampling(half: int) -> Algorithm:
    """Nearest upsampling by 2, then a 3x3 convolution, on the smaller map, of which a tile stands on `half` x `half`.

    y[2i] = w0 x[i-1] + (w1 + w2) x[i] and y[2i+1] = (w0 + w1) x[i] + w2 x[i+1].
    """
    bt, g, at = toom_cook(half, 2, _POINTS[2, half])
    width = half + 2
    inputs = _padded(bt, range(half + 1), width) + _padded(bt, range(1, half + 2), width)
    kernels = _times(g, [[1, 0, 0], [0, 1, 1]]) + _times(g, [[1, 1, 0], [0, 0, 1]])
    n = len(at[0])
    outputs = []
    for row in at:
        outputs += [_padded((row,), range(n), 2 * n)[0], _padded((row,), range(n, 2 * n), 2 * n)[0]]
    return Algorithm(f"up F({half},2)x2", 2 * half, width, half, inputs, kernels, tuple(outputs))


@cache
def downsampling(tile: int) -> Algorithm:
    """A 3x3 convolution of stride 2: y[i] = w0 x[2i] + w2 x[2i+2] (two taps over even inputs) + w1 x[2i+1]."""
    bt, g, at = toom_cook(tile, 2, _POINTS[2, tile])
    width = 2 * tile + 1
    unit = _unit(tile)
    inputs = _padded(bt, range(0, width, 2), width) + _padded(unit, range(1, width, 2), width)
    kernels = _times(g, [[1, 0, 0], [0, 0, 1]]) + ((Fraction(0), Fraction(1), Fraction(0)),) * tile
    outputs = tuple(row + unit[i] for i, row in enumerate(at))
    return Algorithm(f"down F({tile},2)", tile, width, 2 * tile, inputs, kernels, outputs)


def _unit(size: int) -> Matrix:
    return tuple(tuple(Fraction(int(i == j)) for j in range(size)) for i in range(size))


# By what happens before a 3x3 convolution, large tiles first. F(4,2) of stride 2 would save a fifth of F(2,2)'s
# products, and loses more in its transforms, which have 81 positions.
ALGORITHMS = {
    "none": (winograd(4), winograd(2), winograd(1)),
    "up": (upsampling(4), upsampling(2), upsampling(1)),
    "down": (downsampling(2), downsampling(1)),
}
