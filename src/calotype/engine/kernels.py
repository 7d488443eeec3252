"""The CPU kernels: a block of tiles through activation, input transform, products and output transform.

Numba compiles them once and keeps them on disk. The inner loops are written as LLVM vector code, because what counts
here (accumulators that stay in registers, transforms without a multiplication by zero, an exp that is a polynomial) is
more than an auto-vectoriser finds. Vectors are 16 floats; LLVM splits them where registers are shorter.

Addresses travel as integers. A block touches no Python object and holds no lock, so plain threads run many at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import factorial, log
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from calotype.engine.bilinear import Algorithm, Matrix, downsampling, pointwise, upsampling, winograd

LANES = 16  # floats in a vector
F32, I16, I32, I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
VEC, IVEC, VEC16 = (ir.VectorType(kind, LANES) for kind in (F32, I32, I16))

_FEATURES = dict(binding.get_host_cpu_features())
AVX512 = bool(_FEATURES.get("avx512f"))
BF16 = bool(_FEATURES.get("avx512bf16"))  # whether the processor multiplies bfloat16

# Tiles, and vectors of output channels, that one product keeps in registers: 24 of 32, or 12 of 16.
ROWS, PANEL_VECTORS = (12, 2) if AVX512 else (6, 1)
PANEL = PANEL_VECTORS * LANES

AHEAD = 4096  # bytes of weights that are fetched before they are needed
SKEW = 64  # bytes between positions of scratch, which else begin in the same few sets of the cache

POINTWISE, PLAIN, UP, DOWN = range(4)
ALGORITHMS: tuple[Algorithm, ...] = (pointwise(), winograd(), upsampling(), downsampling())


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


class _Code:
    """Vector instructions on one builder."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder

    def address(self, base: Any, index: Any, unit: Any) -> Any:
        """base + index * unit, in bytes."""
        scale = I64(unit) if isinstance(unit, int) else unit
        return self.b.add(base, self.b.mul(I64(index) if isinstance(index, int) else index, scale))

    def load(self, address: Any, kind: Any = VEC) -> Any:
        value = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        value.align = 4 if kind is not VEC16 else 2
        return value

    def store(self, value: Any, address: Any) -> None:
        stored = self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()))
        stored.align = 4 if value.type != VEC16 else 2

    def prefetch(self, address: Any) -> None:
        """Asks for the line at an address; it may lie beyond the data."""
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        function = cgutils.get_or_insert_function(self.b.module, kind, "llvm.prefetch.p0")
        self.b.call(function, [self.b.inttoptr(address, byte), I32(0), I32(3), I32(1)])

    def splat(self, scalar: Any, kind: Any = VEC) -> Any:
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.b.insert_element(undefined, scalar, I32(0))
        return self.b.shuffle_vector(first, undefined, ir.Constant(IVEC, [0] * LANES))

    def constant(self, value: float) -> Any:
        return ir.Constant(VEC, [value] * LANES)

    def call(self, name: str, *operands: Any) -> Any:
        """An LLVM intrinsic whose operands and result are vectors of floats."""
        kind = ir.FunctionType(VEC, [operand.type for operand in operands])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), operands)

    def fma(self, x: Any, y: Any, plus: Any) -> Any:
        return self.call("llvm.fma.v16f32", x, y, plus)

    def at_least(self, x: Any, floor: Any) -> Any:
        """max(x, floor), and NaN where x is NaN."""
        return self.b.select(self.b.fcmp_ordered("<", x, floor), floor, x)

    def at_most(self, x: Any, ceiling: Any) -> Any:
        """min(x, ceiling), and NaN where x is NaN."""
        return self.b.select(self.b.fcmp_ordered(">", x, ceiling), ceiling, x)

    def exp(self, x: Any) -> Any:
        """2^n times a polynomial of degree 7 in the rest, right to about one unit in the last place; at least 1e-38.

        ln 2 is subtracted in two parts, so that the rest stays exact (Cody & Waite 1980).
        """
        x = self.at_most(self.at_least(x, self.constant(-87.3)), self.constant(87.3))
        whole = self.call("llvm.rint.v16f32", self.b.fmul(x, self.constant(1 / log(2))))
        rest = self.fma(whole, self.constant(-0.693359375), x)
        rest = self.fma(whole, self.constant(0.693359375 - log(2)), rest)
        power = self.constant(1 / factorial(7))
        for k in range(6, -1, -1):
            power = self.fma(power, rest, self.constant(1 / factorial(k)))
        exponent = self.b.add(self.b.fptosi(whole, IVEC), ir.Constant(IVEC, [127] * LANES))
        scale = self.b.bitcast(self.b.shl(exponent, ir.Constant(IVEC, [23] * LANES)), VEC)
        return self.b.fmul(power, scale)

    def silu(self, x: Any) -> Any:
        """x / (1 + exp(-x))."""
        minus = self.b.fsub(self.constant(-0.0), x)
        return self.b.fdiv(x, self.b.fadd(self.exp(minus), self.constant(1.0)))

    def combine(self, coefficients: Sequence[float], values: Sequence[Any]) -> Any:
        """The sum of coefficient * value, without what is zero; None if all are."""
        terms = [(c, v) for c, v in zip(coefficients, values, strict=True) if c and v is not None]
        total = None
        for c, v in sorted(terms, key=lambda term: term[0] != 1):  # begin with one that needs no product
            if total is None:
                total = v if c == 1 else self.b.fmul(v, self.constant(c))
            elif abs(c) == 1:
                total = self.b.fadd(total, v) if c == 1 else self.b.fsub(total, v)
            else:
                total = self.fma(v, self.constant(c), total)
        return total

    def apply(self, matrix: Matrix, values: Sequence[Any]) -> list[Any]:
        """matrix @ values.

        Points come as p and -p, so some columns, or some rows, differ in signs only: what they share is computed once.
        """
        rows = [[float(c) for c in row] for row in matrix]
        values = list(values)
        for i, j in _signs_apart(list(zip(*rows, strict=True))):
            values[i], values[j] = self.b.fadd(values[i], values[j]), self.b.fsub(values[i], values[j])
            for row in rows:
                row[i], row[j] = (row[i], 0.0) if row[i] == row[j] else (0.0, row[i])
        results: dict[int, Any] = {}
        for i, j in _signs_apart(rows):
            even = self.combine([a if a == b else 0.0 for a, b in zip(rows[i], rows[j], strict=True)], values)
            odd = self.combine([a if a != b else 0.0 for a, b in zip(rows[i], rows[j], strict=True)], values)
            results[i], results[j] = self.b.fadd(even, odd), self.b.fsub(even, odd)
        return [results.get(i) or self.combine(row, values) for i, row in enumerate(rows)]

    def both_ways(self, matrix: Matrix, values: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """matrix @ values @ matrix.T, for values [rows][columns]."""
        half = [self.apply(matrix, column) for column in zip(*values, strict=True)]
        return [self.apply(matrix, row) for row in zip(*half, strict=True)]


def _signs_apart(vectors: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Pairs of vectors, each in one pair at most, that are equal up to signs but neither equal nor opposite."""
    pairs: list[tuple[int, int]] = []
    for j in range(len(vectors)):
        for i in range(j):
            a, b = vectors[i], vectors[j]
            free = all(k not in pair for pair in pairs for k in (i, j))
            if free and [abs(x) for x in a] == [abs(x) for x in b] and a != b and [-x for x in a] != list(b):
                pairs.append((i, j))
                break
    return pairs


def _emit(arguments: int, body: Callable[..., None]) -> Any:
    """An intrinsic of so many integers that returns nothing and whose code `body(code, *values)` writes."""

    def define(typing: Any, *given: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            body(_Code(builder), *values)
            return context.get_dummy_value()

        return types.void(*[types.intp] * arguments), generate

    names = ", ".join(f"x{i}" for i in range(arguments))
    scope: dict[str, Any] = {"define": define}
    exec(f"def emitted(typing, {names}): return define(typing, {names})", scope)  # Numba reads the signature
    return intrinsic(scope["emitted"])


def _activation(kind: str) -> Any:
    """Columns of pixels: target = activation(source * scale + shift)."""

    def body(code: _Code, target: Any, source: Any, columns: Any, vectors: Any, scale: Any, shift: Any) -> None:
        width = code.b.mul(vectors, I64(4 * LANES))
        with cgutils.for_range(code.b, columns) as column:
            base = code.b.mul(column.index, width)
            with cgutils.for_range(code.b, vectors) as vector:
                at = code.b.mul(vector.index, I64(4 * LANES))
                x = code.load(code.b.add(code.b.add(source, base), at))
                x = code.fma(x, code.load(code.b.add(scale, at)), code.load(code.b.add(shift, at)))
                if kind == "silu":
                    x = code.silu(x)
                elif kind == "relu":
                    x = code.at_least(x, code.constant(0.0))
                code.store(x, code.b.add(code.b.add(target, base), at))

    return _emit(6, body)


def _input_transform(algorithm: Algorithm, half: bool) -> Any:
    """BT x B of one tile: from the patch (row and column strides in bytes) to the tile's row at every position.

    With `half`, as bfloat16.
    """
    n, size = algorithm.window, (2 if half else 4) * LANES

    def body(code: _Code, target: Any, position: Any, source: Any, row: Any, column: Any, vectors: Any) -> None:
        with cgutils.for_range(code.b, vectors) as vector:
            base = code.address(source, vector.index, 4 * LANES)
            corners = [code.address(base, i, row) for i in range(n)]
            tile = [[code.load(code.address(corner, j, column)) for j in range(n)] for corner in corners]
            to = code.address(target, vector.index, size)
            for i, values in enumerate(code.both_ways(algorithm.input, tile)):
                for j, value in enumerate(values):
                    where = code.address(to, i * algorithm.positions + j, position)
                    code.store(_rounded(code, value) if half else value, where)

    return _emit(6, body)


def _rounded(code: _Code, value: Any) -> Any:
    """float32 -> bfloat16, to nearest and ties to even, as 16-bit integers."""
    return code.b.trunc(code.b.lshr(_round_up(code, value), ir.Constant(IVEC, [16] * LANES)), VEC16)


def _round_up(code: _Code, value: Any) -> Any:
    bits = code.b.bitcast(value, IVEC)
    odd = code.b.and_(code.b.lshr(bits, ir.Constant(IVEC, [16] * LANES)), ir.Constant(IVEC, [1] * LANES))
    return code.b.add(bits, code.b.add(odd, ir.Constant(IVEC, [0x7FFF] * LANES)))


def _product(half: bool) -> Any:
    """ROWS rows of a times one panel of b: c[i, :] = sum over k of a[i, k] b[k, :]. Strides in bytes.

    With `half`, k counts pairs of bfloat16 and sums are float32.
    """

    def body(code: _Code, c: Any, c_stride: Any, a: Any, a_stride: Any, b: Any, count: Any) -> None:
        build = code.b
        zero = code.constant(0.0)
        rows = [code.address(a, i, a_stride) for i in range(ROWS)]
        before = build.block
        loop, after = build.append_basic_block("k"), build.append_basic_block("k.end")
        build.branch(loop)
        build.position_at_end(loop)
        k = build.phi(I64)
        k.add_incoming(I64(0), before)
        sums = [[build.phi(VEC) for _ in range(PANEL_VECTORS)] for _ in range(ROWS)]
        panel = code.address(b, k, 4 * PANEL)
        right = [code.load(code.address(panel, j, 4 * LANES)) for j in range(PANEL_VECTORS)]
        for j in range(PANEL_VECTORS):
            code.prefetch(build.add(code.address(panel, j, 4 * LANES), I64(AHEAD)))
        at = build.mul(k, I64(4))
        for row, total in zip(rows, sums, strict=True):
            scalar = code.load(build.add(row, at), I32 if half else F32)
            left = code.splat(scalar, IVEC if half else VEC)
            for phi, r in zip(total, right, strict=True):
                phi.add_incoming(zero, before)
                phi.add_incoming(_pair_product(code, left, r, phi) if half else code.fma(left, r, phi), loop)
        following = build.add(k, I64(1))
        k.add_incoming(following, loop)
        build.cbranch(build.icmp_signed("<", following, count), loop, after)
        build.position_at_end(after)
        for i, total in enumerate(sums):
            for j, phi in enumerate(total):
                final = next(value for value, block in phi.incomings if block is loop)
                code.store(final, code.address(code.address(c, i, c_stride), j, 4 * LANES))

    return _emit(6, body)


def _pair_product(code: _Code, x: Any, y: Any, plus: Any) -> Any:
    """plus + x0 y0 + x1 y1 in every lane, for lanes that hold two bfloat16."""
    pairs = ir.VectorType(_BFloat(), 2 * LANES)
    kind = ir.FunctionType(VEC, [VEC, pairs, pairs])
    function = cgutils.get_or_insert_function(code.b.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return code.b.call(function, [plus, code.b.bitcast(x, pairs), code.b.bitcast(y, pairs)])


def _output_transform(algorithm: Algorithm, residual: bool) -> Any:
    """AT m A + bias (+ residual), not below `floor`: one tile of outputs. Strides in bytes.

    `floor` is an address: of minus infinity, or of 0 for ReLU.
    """
    t = algorithm.positions

    def body(
        code: _Code, target: Any, row: Any, column: Any, source: Any, position: Any, vectors: Any, bias: Any,
        floor: Any, added: Any,
    ) -> None:  # fmt: skip
        lowest = code.splat(code.load(floor, F32))
        with cgutils.for_range(code.b, vectors) as vector:
            at = code.b.mul(vector.index, I64(4 * LANES))
            base = code.b.add(source, at)
            tile = [[code.load(code.address(base, i * t + j, position)) for j in range(t)] for i in range(t)]
            plus = code.load(code.b.add(bias, at))
            for i, values in enumerate(code.both_ways(algorithm.output, tile)):
                for j, value in enumerate(values):
                    place = code.b.add(code.address(code.b.mul(I64(i), row), j, column), at)
                    value = code.b.fadd(value, plus)
                    if residual:
                        value = code.b.fadd(value, code.load(code.b.add(added, place)))
                    code.store(code.at_least(value, lowest), code.b.add(target, place))

    return _emit(9, body)


def _finish(residual: bool) -> Any:
    """A pixel of a finished tile: target = max(source (+ residual), floor), by vectors."""

    def body(code: _Code, target: Any, source: Any, vectors: Any, floor: Any, added: Any) -> None:
        lowest = code.splat(code.load(floor, F32))
        with cgutils.for_range(code.b, vectors) as vector:
            at = code.b.mul(vector.index, I64(4 * LANES))
            value = code.load(code.b.add(source, at))
            if residual:
                value = code.b.fadd(value, code.load(code.b.add(added, at)))
            code.store(code.at_least(value, lowest), code.b.add(target, at))

    return _emit(5, body)


def _accumulate() -> Any:
    """Adds pixels to sums of (x - k) and of its square, by channel: k, sums and squares lie `stride` bytes apart."""

    def body(code: _Code, source: Any, pixels: Any, column: Any, vectors: Any, sums: Any, stride: Any) -> None:
        with cgutils.for_range(code.b, vectors) as vector:
            at = code.b.mul(vector.index, I64(4 * LANES))
            first = code.b.add(sums, at)
            second, third = code.b.add(first, stride), code.b.add(code.b.add(first, stride), stride)
            k = code.load(first)
            total = cgutils.alloca_once_value(code.b, code.load(second))
            squares = cgutils.alloca_once_value(code.b, code.load(third))
            with cgutils.for_range(code.b, pixels) as pixel:
                x = code.load(code.b.add(code.address(source, pixel.index, column), at))
                d = code.b.fsub(x, k)
                code.b.store(code.b.fadd(code.b.load(total), d), total)
                code.b.store(code.fma(d, d, code.b.load(squares)), squares)
            code.store(code.b.load(total), second)
            code.store(code.b.load(squares), third)

    return _emit(6, body)


def _weight_transform(algorithm: Algorithm, half: bool) -> Any:
    """G w GT for 16 output channels of one input channel, or of two with `half`, gathered from [N, K, taps, taps]."""
    taps, t = algorithm.taps, algorithm.positions

    def body(code: _Code, target: Any, position: Any, source: Any, stride: Any) -> None:
        def transformed(k: int) -> list[list[Any]]:
            def gather(tap: int) -> Any:
                vector: Any = ir.Constant(VEC, ir.Undefined)
                for lane in range(LANES):
                    where = code.b.add(code.address(source, lane, stride), I64(4 * (k * taps * taps + tap)))
                    vector = code.b.insert_element(vector, code.load(where, F32), I32(lane))
                return vector

            return code.both_ways(algorithm.kernel, [[gather(i * taps + j) for j in range(taps)] for i in range(taps)])

        first = transformed(0)
        second = transformed(1) if half else None
        for i in range(t):
            for j in range(t):
                value = first[i][j]
                if second is not None:
                    low = code.b.lshr(_round_up(code, value), ir.Constant(IVEC, [16] * LANES))
                    high = code.b.and_(_round_up(code, second[i][j]), ir.Constant(IVEC, [-65536] * LANES))
                    value = code.b.or_(low, high)
                code.store(value, code.address(target, i * t + j, position))

    return _emit(4, body)


def _softmax() -> Any:
    """One step of an online softmax over a row of scores, which become exp(score - highest).

    `state` holds the row's highest score so far, its sum, and the factor by which this step fades what came before.
    """

    def body(code: _Code, scores: Any, vectors: Any, state: Any) -> None:
        build = code.b
        before = code.load(state, F32)
        highest = cgutils.alloca_once_value(build, code.splat(before))
        with cgutils.for_range(build, vectors) as vector:
            x = code.load(code.address(scores, vector.index, 4 * LANES))
            build.store(code.call("llvm.maxnum.v16f32", build.load(highest), x), highest)
        top = build.call(
            cgutils.get_or_insert_function(build.module, ir.FunctionType(F32, [VEC]), "llvm.vector.reduce.fmax.v16f32"),
            [build.load(highest)],
        )
        limit = code.splat(top)
        total = cgutils.alloca_once_value(build, code.constant(0.0))
        with cgutils.for_range(build, vectors) as vector:
            where = code.address(scores, vector.index, 4 * LANES)
            value = code.exp(build.fsub(code.load(where), limit))
            build.store(build.fadd(build.load(total), value), total)
            code.store(value, where)
        fade = code.exp(code.splat(build.fsub(before, top)))
        fade = build.extract_element(fade, I32(0))
        summed = build.call(
            cgutils.get_or_insert_function(
                build.module, ir.FunctionType(F32, [F32, VEC]), "llvm.vector.reduce.fadd.v16f32"
            ),
            [F32(0.0), build.load(total)],
            fastmath=("reassoc",),
        )
        old = code.load(build.add(state, I64(4)), F32)
        code.store(top, state)
        code.store(build.fadd(build.fmul(old, fade), summed), build.add(state, I64(4)))
        code.store(fade, build.add(state, I64(8)))

    return _emit(3, body)


def _blend() -> Any:
    """target = target * factor + source, by vectors; `factor` is an address."""

    def body(code: _Code, target: Any, source: Any, vectors: Any, factor: Any) -> None:
        f = code.splat(code.load(factor, F32))
        with cgutils.for_range(code.b, vectors) as vector:
            at = code.b.mul(vector.index, I64(4 * LANES))
            to = code.b.add(target, at)
            code.store(code.fma(code.load(to), f, code.load(code.b.add(source, at))), to)

    return _emit(4, body)


def _scalars() -> tuple[Any, Any, Any]:
    """Reads and writes of one number at an address: of a float32, and the writing of a float64."""

    @intrinsic
    def read(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            return _Code(builder).load(values[0], F32)

        return types.float32(types.intp), generate

    @intrinsic
    def write(typing: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            _Code(builder).store(values[1], values[0])
            return context.get_dummy_value()

        return types.void(types.intp, types.float32), generate

    @intrinsic
    def write_double(typing: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            _Code(builder).store(values[1], values[0])
            return context.get_dummy_value()

        return types.void(types.intp, types.float64), generate

    return read, write, write_double


_read, _write, _write_double = _scalars()
_identity, _silu, _relu = _activation("none"), _activation("silu"), _activation("relu")
_input_4, _input_up, _input_down = (_input_transform(a, half=False) for a in ALGORITHMS[1:])
_half_1, _half_4, _half_up, _half_down = (_input_transform(a, half=True) for a in ALGORITHMS)
_output_1, _output_4, _output_up, _output_down = (_output_transform(a, residual=False) for a in ALGORITHMS)
_added_1, _added_4, _added_up, _added_down = (_output_transform(a, residual=True) for a in ALGORITHMS)
_weights_1, _weights_4, _weights_up, _weights_down = (_weight_transform(a, half=False) for a in ALGORITHMS)
_halved_1, _halved_4, _halved_up, _halved_down = (_weight_transform(a, half=True) for a in ALGORITHMS)
_finish_pixel, _finish_added = _finish(residual=False), _finish(residual=True)
_accumulate_pixels = _accumulate()
_softmax_row, _blend_row = _softmax(), _blend()
_product_single, _product_half = _product(half=False), _product(half=BF16)

_TILES = tuple(algorithm.tile for algorithm in ALGORITHMS)
_WINDOWS = tuple(algorithm.window for algorithm in ALGORITHMS)
_STEPS = tuple(algorithm.step for algorithm in ALGORITHMS)
_POSITIONS = tuple(algorithm.positions for algorithm in ALGORITHMS)
NONE, SILU, RELU = range(3)
ATTENTION_ROWS = 48  # queries that a thread takes at once


_log = logging.getLogger("calotype")
_announced: list[bool] = []


def _kernel(kinds: str) -> Callable[[Any], Any]:
    """Compiles a function of integers ("i") and booleans ("b") that returns nothing, or reads it from the disk."""
    known = {"i": types.intp, "b": types.boolean}
    signature = types.void(*(known[kind] for kind in kinds))

    def compiled(function: Any) -> Any:
        try:
            made = njit(signature, nogil=True, cache=True)(function)
        except RuntimeError:  # there is no folder for a cache that may be written
            made = njit(signature, nogil=True)(function)
        if not made.stats.cache_hits and not _announced:
            _announced.append(True)
            _log.warning("Compiling the CPU kernels for this machine; this happens once and takes some seconds.")
        return made

    return compiled


@_kernel("ii")
def _zero(address: int, floats: int) -> None:
    for i in range(floats):
        _write(address + 4 * i, np.float32(0))


@_kernel("i" * 8)
def _activate(
    target: int, source: int, columns: int, channels: int, padded: int, scale: int, shift: int, activation: int
) -> None:
    """Pixels of `channels` floats -> activated pixels of `padded` floats."""
    if channels == padded:
        if activation == SILU:
            _silu(target, source, columns, channels // LANES, scale, shift)
        elif activation == RELU:
            _relu(target, source, columns, channels // LANES, scale, shift)
        else:
            _identity(target, source, columns, channels // LANES, scale, shift)
        return
    for column in range(columns):
        for c in range(channels):
            x = _read(source + 4 * (column * channels + c)) * _read(scale + 4 * c) + _read(shift + 4 * c)
            if activation == SILU:
                x = x / (np.float32(1) + np.exp(-x))
            elif activation == RELU and x < 0:
                x = np.float32(0)
            _write(target + 4 * (column * padded + c), x)
        _zero(target + 4 * (column * padded + channels), padded - channels)


@_kernel("iib" + "i" * 29)
def convolve_block(
    index: int,
    algorithm: int,
    half: bool,
    source: int,
    source_row: int,
    height: int,
    width: int,
    channels: int,
    scale: int,
    shift: int,
    activation: int,
    pad: int,
    target: int,
    target_row: int,
    out_height: int,
    out_width: int,
    out_channels: int,
    residual: int,
    residual_row: int,
    floor: int,
    weights: int,
    bias: int,
    first: int,
    end: int,
    tile_columns: int,
    block_height: int,
    block_width: int,
    statistics: int,
    patch: int,
    inputs: int,
    outputs: int,
    tile: int,
) -> None:
    """One block of a convolution: pixels of `target` from those of `source`, both [rows, width, channels].

    Args:
        index: of the block, counted along columns first, in tile rows `first` to `end`.
        algorithm: index in `ALGORITHMS`; `half`: whether products are bfloat16.
        source, source_row: where the map's row of this number lies; what is outside height x width counts as zero.
        scale, shift: [channels], before the activation; pad: zeros before the first row and column.
        target, residual: likewise; `residual` is 0 for none, and `floor` the address of what results are cut at.
        weights: transformed, [T * T, panels, channels, PANEL]; bias: [panels * PANEL].
        statistics: 0, or [blocks, 3, out_channels] of float64: count, mean and M2 (the sum of squared deviations).
        patch, inputs, outputs, tile: this thread's scratch; `scratch_floats` gives the sizes.
    """
    size, window, step = _TILES[algorithm], _WINDOWS[algorithm], _STEPS[algorithm]
    t2 = _POSITIONS[algorithm] * _POSITIONS[algorithm]
    padded = (channels + LANES - 1) // LANES * LANES
    panels = (out_channels + PANEL - 1) // PANEL
    wide = panels * PANEL
    across = (tile_columns + block_width - 1) // block_width
    tile_y, tile_x = first + index // across * block_height, index % across * block_width
    high, broad = min(block_height, end - tile_y), min(block_width, tile_columns - tile_x)
    tiles = high * broad
    tiles_padded = (tiles + ROWS - 1) // ROWS * ROWS

    # activation, once for every pixel the block sees
    y0, x0 = tile_y * step - pad, tile_x * step - pad
    rows, columns = (high - 1) * step + window, (broad - 1) * step + window
    left = max(0, -x0)
    right = max(left, min(columns, width - x0))
    direct = algorithm == POINTWISE and not half
    if direct:
        patch = inputs
    for r in range(rows):
        to = patch + 4 * r * columns * padded
        if y0 + r < 0 or y0 + r >= height:
            _zero(to, columns * padded)
            continue
        _zero(to, left * padded)
        _zero(to + 4 * right * padded, (columns - right) * padded)
        at = source + 4 * ((y0 + r - source_row) * width + x0 + left) * channels
        _activate(to + 4 * left * padded, at, right - left, channels, padded, scale, shift, activation)

    # input transform; a single pixel's is the pixel
    element = 2 if half else 4
    position = tiles_padded * padded * element + SKEW
    vectors = padded // LANES
    for i in range(0 if direct else tiles):
        at = patch + 4 * ((i // broad) * step * columns + (i % broad) * step) * padded
        to = inputs + i * padded * element
        if half:
            if algorithm == PLAIN:
                _half_4(to, position, at, 4 * columns * padded, 4 * padded, vectors)
            elif algorithm == UP:
                _half_up(to, position, at, 4 * columns * padded, 4 * padded, vectors)
            elif algorithm == DOWN:
                _half_down(to, position, at, 4 * columns * padded, 4 * padded, vectors)
            else:
                _half_1(to, position, at, 4 * columns * padded, 4 * padded, vectors)
        elif algorithm == PLAIN:
            _input_4(to, position, at, 4 * columns * padded, 4 * padded, vectors)
        elif algorithm == UP:
            _input_up(to, position, at, 4 * columns * padded, 4 * padded, vectors)
        else:
            _input_down(to, position, at, 4 * columns * padded, 4 * padded, vectors)

    # products
    count = (channels + 1) // 2 if half else channels
    out_position = 4 * tiles_padded * wide + SKEW
    for p in range(t2):
        for panel in range(panels):
            b = weights + 4 * (p * panels + panel) * count * PANEL
            for i in range(0, tiles_padded, ROWS):
                a = inputs + p * position + i * padded * element
                c = outputs + p * out_position + 4 * (i * wide + panel * PANEL)
                if half:
                    _product_half(c, 4 * wide, a, padded * element, b, count)
                else:
                    _product_single(c, 4 * wide, a, padded * element, b, count)

    # output transform
    out_vectors = wide // LANES
    sums = tile + 4 * size * size * wide
    whole_vectors = out_channels % LANES == 0
    seen = 0
    for i in range(tiles):
        y, x = (tile_y + i // broad) * size, (tile_x + i % broad) * size
        down, along = min(size, out_height - y), min(size, out_width - x)
        place = 4 * ((y - target_row) * out_width + x) * out_channels
        added = residual + 4 * ((y - residual_row) * out_width + x) * out_channels if residual else 0
        inside = down == size and along == size and out_channels == wide
        at = outputs + 4 * i * wide
        row, column = 4 * out_width * out_channels, 4 * out_channels
        to = target + place
        if not inside:
            row, column, to = 4 * size * wide, 4 * wide, tile
        use = added if inside else 0
        cut = floor if inside else floor + 4
        if algorithm == PLAIN:
            if use:
                _added_4(to, row, column, at, out_position, out_vectors, bias, cut, use)
            else:
                _output_4(to, row, column, at, out_position, out_vectors, bias, cut, use)
        elif algorithm == UP:
            if use:
                _added_up(to, row, column, at, out_position, out_vectors, bias, cut, use)
            else:
                _output_up(to, row, column, at, out_position, out_vectors, bias, cut, use)
        elif algorithm == DOWN:
            if use:
                _added_down(to, row, column, at, out_position, out_vectors, bias, cut, use)
            else:
                _output_down(to, row, column, at, out_position, out_vectors, bias, cut, use)
        elif use:
            _added_1(to, row, column, at, out_position, out_vectors, bias, cut, use)
        else:
            _output_1(to, row, column, at, out_position, out_vectors, bias, cut, use)

        if not inside:  # what lies beyond the map's edge, or beyond its channels, is left behind
            for r in range(down):
                for k in range(along):
                    pixel = tile + 4 * (r * size + k) * wide
                    offset = 4 * (r * out_width + k) * out_channels
                    if whole_vectors:
                        if added:
                            _finish_added(target + place + offset, pixel, out_channels // LANES, floor, added + offset)
                        else:
                            _finish_pixel(target + place + offset, pixel, out_channels // LANES, floor, 0)
                        continue
                    for c in range(out_channels):
                        value = _read(pixel + 4 * c)
                        if added:
                            value += _read(added + offset + 4 * c)
                        if value < _read(floor):
                            value = _read(floor)
                        _write(target + place + offset + 4 * c, value)

        if statistics:
            if i == 0:  # deviations from the first tile's mean, so that a large mean costs no precision
                for c in range(out_channels):
                    total = np.float32(0)
                    for r in range(down):
                        for k in range(along):
                            total += _read(target + place + 4 * ((r * out_width + k) * out_channels + c))
                    _write(sums + 4 * c, total / np.float32(down * along))
                _zero(sums + 4 * wide, 2 * wide)
            for r in range(down):
                line = target + place + 4 * r * out_width * out_channels
                if whole_vectors:
                    _accumulate_pixels(line, along, 4 * out_channels, out_channels // LANES, sums, 4 * wide)
                    continue
                for k in range(along):
                    for c in range(out_channels):
                        d = _read(line + 4 * (k * out_channels + c)) - _read(sums + 4 * c)
                        _write(sums + 4 * (wide + c), _read(sums + 4 * (wide + c)) + d)
                        _write(sums + 4 * (2 * wide + c), _read(sums + 4 * (2 * wide + c)) + d * d)
            seen += down * along

    if statistics:
        to = statistics + 8 * index * 3 * out_channels
        for c in range(out_channels):
            first_sum, squares = np.float64(_read(sums + 4 * (wide + c))), np.float64(_read(sums + 4 * (2 * wide + c)))
            _write_double(to + 8 * c, np.float64(seen))
            _write_double(to + 8 * (out_channels + c), np.float64(_read(sums + 4 * c)) + first_sum / seen)
            _write_double(to + 8 * (2 * out_channels + c), max(0.0, squares - first_sum * first_sum / seen))


@_kernel("ib" + "i" * 5)
def transform_weights(
    algorithm: int, half: bool, source: int, out_channels: int, channels: int, target: int, panel: int
) -> None:
    """One panel of weights [out_channels, channels, taps, taps] -> [T * T, panels, channels, PANEL].

    With `half`, of pairs of bfloat16 [T * T, panels, channels / 2, PANEL, 2]. `out_channels` is a multiple of PANEL,
    and `channels` even with `half`.
    """
    taps = 1 if algorithm == POINTWISE else 3
    stride = 4 * channels * taps * taps
    k_step = 2 if half else 1
    count = channels // k_step
    position = 4 * (out_channels // PANEL) * count * PANEL
    for part in range(PANEL // LANES):
        for k in range(count):
            at = source + (panel * PANEL + part * LANES) * stride + 4 * k * k_step * taps * taps
            to = target + 4 * ((panel * count + k) * PANEL + part * LANES)
            if half:
                if algorithm == PLAIN:
                    _halved_4(to, position, at, stride)
                elif algorithm == UP:
                    _halved_up(to, position, at, stride)
                elif algorithm == DOWN:
                    _halved_down(to, position, at, stride)
                else:
                    _halved_1(to, position, at, stride)
            elif algorithm == PLAIN:
                _weights_4(to, position, at, stride)
            elif algorithm == UP:
                _weights_up(to, position, at, stride)
            elif algorithm == DOWN:
                _weights_down(to, position, at, stride)
            else:
                _weights_1(to, position, at, stride)


@_kernel("i" * 9)
def pack_keys(
    panel: int, source: int, count: int, channels: int, scale: int, shift: int, keys: int, values: int, padded: int
) -> None:
    """One panel of normalised positions, in the two layouts that the products of attention take.

    Args:
        source: `count` positions of `channels` floats, which scale and shift normalise.
        keys: [padded / PANEL, channels, PANEL]; values: [channels / PANEL, padded, PANEL]. Both are filled with zeros
            up to `padded`, a multiple of PANEL.
    """
    for lane in range(PANEL):
        k = panel * PANEL + lane
        for c in range(channels):
            x = np.float32(0)
            if k < count:
                x = _read(source + 4 * (k * channels + c)) * _read(scale + 4 * c) + _read(shift + 4 * c)
            _write(keys + 4 * ((panel * channels + c) * PANEL + lane), x)
            _write(values + 4 * ((c // PANEL * padded + k) * PANEL + c % PANEL), x)


@_kernel("i" * 10)
def attend_rows(
    queries: int,
    channels: int,
    keys: int,
    values: int,
    count: int,
    padded: int,
    scores: int,
    mixed: int,
    sums: int,
    state: int,
) -> None:
    """ATTENTION_ROWS queries [ATTENTION_ROWS, channels] against one block of keys.

    Args:
        keys, values: as `pack_keys` makes them; count: of positions in them, without padding.
        scores, mixed: scratch, [ATTENTION_ROWS, padded] and [ATTENTION_ROWS, channels].
        sums: [ATTENTION_ROWS, channels], the weighted sums of values so far.
        state: [ATTENTION_ROWS, 4]: highest score and sum of weights so far.
    """
    for panel in range(padded // PANEL):
        for i in range(0, ATTENTION_ROWS, ROWS):
            b = keys + 4 * panel * channels * PANEL
            c = scores + 4 * (i * padded + panel * PANEL)
            _product_single(c, 4 * padded, queries + 4 * i * channels, 4 * channels, b, channels)
    for i in range(ATTENTION_ROWS):
        for k in range(count, padded):
            _write(scores + 4 * (i * padded + k), np.float32(-np.inf))
        _softmax_row(scores + 4 * i * padded, padded // LANES, state + 16 * i)
    for panel in range(channels // PANEL):
        for i in range(0, ATTENTION_ROWS, ROWS):
            b = values + 4 * panel * padded * PANEL
            c = mixed + 4 * (i * channels + panel * PANEL)
            _product_single(c, 4 * channels, scores + 4 * i * padded, 4 * padded, b, padded)
    for i in range(ATTENTION_ROWS):
        _blend_row(sums + 4 * i * channels, mixed + 4 * i * channels, channels // LANES, state + 16 * i + 8)
