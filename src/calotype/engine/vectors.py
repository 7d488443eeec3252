"""Vector code for the CPU kernels, written as LLVM instructions.

What counts here (transforms without a multiplication by zero, an exp that is a polynomial) is more than an
auto-vectoriser finds. Vectors are 16 floats; LLVM splits them where registers are shorter. Addresses are integers.

Compiled kernels on disk follow `kernels.py` and `..._kernels.py` alone: after a change here, in `products.py` or in
`bilinear.py`, change those too, and the latter after one of `kernels.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import factorial, log
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from calotype.engine.bilinear import Algorithm, Matrix

LANES = 16  # floats in a vector
F32, I16, I32, I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
VEC, IVEC, VEC16 = (ir.VectorType(kind, LANES) for kind in (F32, I32, I16))

_FEATURES = dict(binding.get_host_cpu_features())
AVX512 = bool(_FEATURES.get("avx512f"))
BF16 = bool(_FEATURES.get("avx512bf16"))  # whether the processor multiplies bfloat16

# Tiles, and vectors of output channels, that one product keeps in registers: 24 of 32, or 12 of 16.
ROWS, PANEL_VECTORS = (12, 2) if AVX512 else (6, 1)
PANEL = PANEL_VECTORS * LANES
GRADIENT_ROWS = 8 if AVX512 else 4  # likewise of input channels, in a gradient of weights; it divides LANES

SKEW = 64  # bytes between positions of scratch, which else begin in the same few sets of the cache


class Code:
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

    def prefetch(self, address: Any, *, far: bool = False, written: bool = False) -> None:
        """Asks for the line at an address, which may lie beyond the data.

        Args:
            far: into the second cache only.
            written: to be written to.
        """
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        function = cgutils.get_or_insert_function(self.b.module, kind, "llvm.prefetch.p0")
        self.b.call(function, [self.b.inttoptr(address, byte), I32(int(written)), I32(2 if far else 3), I32(1)])

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

    def across(self, x: Any) -> Any:
        """The sum of a vector's floats."""
        kind = ir.FunctionType(F32, [F32, VEC])
        function = cgutils.get_or_insert_function(self.b.module, kind, "llvm.vector.reduce.fadd.v16f32")
        return self.b.call(function, [F32(0.0), x], fastmath=("reassoc",))

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
        # by an estimate and a step of Newton's, where the processor has one: dividing takes as long as the polynomial
        return self.b.fdiv(x, self.b.fadd(self.exp(minus), self.constant(1.0)), flags=("arcp",))

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


Body = Callable[..., None]
"""Writes code: (code, *values)."""


def emit(arguments: int, body: Body) -> Any:
    """An intrinsic of so many integers that returns nothing and whose code `body` writes."""

    def generate(builder: ir.IRBuilder, values: Sequence[Any]) -> None:
        body(Code(builder), *values)

    return _intrinsic(arguments, generate)


def choice(arguments: int, bodies: Sequence[Body]) -> Any:
    """Like `emit`, with one argument before the others: which of the bodies runs."""

    def generate(builder: ir.IRBuilder, values: Sequence[Any]) -> None:
        after = builder.append_basic_block("after")
        switch = builder.switch(values[0], after)
        for i, body in enumerate(bodies):
            block = builder.append_basic_block(f"choice.{i}")
            switch.add_case(I64(i), block)
            builder.position_at_end(block)
            builder.call(outlined(builder.module, arguments, body), values[1:])
            builder.branch(after)
        builder.position_at_end(after)

    return _intrinsic(arguments + 1, generate)


def outlined(module: ir.Module, arguments: int, body: Body) -> ir.Function:
    """A function of its own, which LLVM compiles sooner than one large one."""
    name = module.get_unique_name(body.__qualname__.replace("<locals>", "in"))
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * arguments), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    body(Code(builder), *function.args)
    builder.ret_void()
    return function


def _intrinsic(arguments: int, generate: Callable[[ir.IRBuilder, Sequence[Any]], None]) -> Any:
    def define(typing: Any, *given: Any) -> Any:
        def generated(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            generate(builder, values)
            return context.get_dummy_value()

        return types.void(*[types.intp] * arguments), generated

    names = ", ".join(f"x{i}" for i in range(arguments))
    scope: dict[str, Any] = {"define": define}
    exec(f"def emitted(typing, {names}): return define(typing, {names})", scope)  # Numba reads the signature
    return intrinsic(scope["emitted"])


def activation(kind: str, norm: bool = False) -> Any:
    """Columns of pixels: target = activation(source * scale + shift).

    With `norm`, of pixels over sqrt(max(mean of squares, floor) + eps); one more argument is the address of one over
    the number of channels, floor and eps.
    """

    def body(
        code: Code, target: Any, source: Any, columns: Any, vectors: Any, scale: Any, shift: Any, *rest: Any
    ) -> None:  # fmt: skip
        width = code.b.mul(vectors, I64(4 * LANES))
        total = cgutils.alloca_once(code.b, VEC) if norm else None
        given = [code.load(code.address(rest[0], i, 4), F32) for i in range(3)] if norm else []
        with cgutils.for_range(code.b, columns) as column:
            base = code.b.mul(column.index, width)
            here, to = code.b.add(source, base), code.b.add(target, base)
            factor = _pixel_factor(code, here, vectors, total, *given) if norm else None
            with cgutils.for_range(code.b, vectors) as vector:
                at = code.b.mul(vector.index, I64(4 * LANES))
                x = code.load(code.b.add(here, at))
                if factor is not None:
                    x = code.b.fmul(x, factor)
                x = code.fma(x, code.load(code.b.add(scale, at)), code.load(code.b.add(shift, at)))
                if kind == "silu":
                    x = code.silu(x)
                elif kind == "relu":
                    x = code.at_least(x, code.constant(0.0))
                code.store(x, code.b.add(to, at))

    return emit(7 if norm else 6, body)


def _pixel_factor(code: Code, source: Any, vectors: Any, total: Any, share: Any, floor: Any, eps: Any) -> Any:
    """What normalises one pixel, in every lane; the root and the quotient are of one number, not of sixteen."""
    build = code.b
    build.store(code.constant(0.0), total)
    with cgutils.for_range(build, vectors) as vector:
        x = code.load(code.address(source, vector.index, 4 * LANES))
        build.store(code.fma(x, x, build.load(total)), total)
    mean = build.fmul(code.across(build.load(total)), share)
    mean = build.select(build.fcmp_ordered("<", mean, floor), floor, mean)  # NaN stays
    kind = ir.FunctionType(F32, [F32])
    root = build.call(cgutils.get_or_insert_function(build.module, kind, "llvm.sqrt.f32"), [build.fadd(mean, eps)])
    return code.splat(build.fdiv(F32(1.0), root))


def widen() -> Any:
    """Vectors of bfloat16 -> float32."""

    def body(code: Code, target: Any, source: Any, vectors: Any) -> None:
        with cgutils.for_range(code.b, vectors) as vector:
            bits = code.b.zext(code.load(code.address(source, vector.index, 2 * LANES), VEC16), IVEC)
            x = code.b.bitcast(code.b.shl(bits, ir.Constant(IVEC, [16] * LANES)), VEC)
            code.store(x, code.address(target, vector.index, 4 * LANES))

    return emit(3, body)


def input_transform(matrix: Matrix, half: bool) -> Body:
    """M x MT of one tile: from the patch (row and column strides in bytes) to the tile's row at every position.

    M is an algorithm's BT, or for a gradient of its outputs A. With `half`, as bfloat16.
    """
    n, size = len(matrix[0]), (2 if half else 4) * LANES

    def body(code: Code, target: Any, position: Any, source: Any, row: Any, column: Any, vectors: Any) -> None:
        with cgutils.for_range(code.b, vectors) as vector:
            base = code.address(source, vector.index, 4 * LANES)
            corners = [code.address(base, i, row) for i in range(n)]
            tile = [[code.load(code.address(corner, j, column)) for j in range(n)] for corner in corners]
            to = code.address(target, vector.index, size)
            for i, values in enumerate(code.both_ways(matrix, tile)):
                for j, value in enumerate(values):
                    where = code.address(to, i * len(matrix) + j, position)
                    code.store(_rounded(code, value) if half else value, where)

    return body


def _rounded(code: Code, value: Any) -> Any:
    """float32 -> bfloat16, to nearest and ties to even, as 16-bit integers."""
    return code.b.trunc(code.b.lshr(_round_up(code, value), ir.Constant(IVEC, [16] * LANES)), VEC16)


def _round_up(code: Code, value: Any) -> Any:
    bits = code.b.bitcast(value, IVEC)
    odd = code.b.and_(code.b.lshr(bits, ir.Constant(IVEC, [16] * LANES)), ir.Constant(IVEC, [1] * LANES))
    return code.b.add(bits, code.b.add(odd, ir.Constant(IVEC, [0x7FFF] * LANES)))


def output_transform(algorithm: Algorithm, residual: bool) -> Body:
    """AT m A + bias (+ residual), not below `floor`: one tile of outputs. Strides in bytes.

    `floor` is an address: of minus infinity, or of 0 for ReLU.
    """
    t = algorithm.positions

    def body(
        code: Code, target: Any, row: Any, column: Any, source: Any, position: Any, vectors: Any, bias: Any,
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

    return body


def finish(residual: bool) -> Any:
    """A pixel of a finished tile: target = max(source (+ residual), floor), by vectors."""

    def body(code: Code, target: Any, source: Any, vectors: Any, floor: Any, added: Any) -> None:
        lowest = code.splat(code.load(floor, F32))
        with cgutils.for_range(code.b, vectors) as vector:
            at = code.b.mul(vector.index, I64(4 * LANES))
            value = code.load(code.b.add(source, at))
            if residual:
                value = code.b.fadd(value, code.load(code.b.add(added, at)))
            code.store(code.at_least(value, lowest), code.b.add(target, at))

    return emit(5, body)


def finish_half() -> Any:
    """A pixel of a finished tile as bfloat16: target = max(source, floor), by vectors."""

    def body(code: Code, target: Any, source: Any, vectors: Any, floor: Any) -> None:
        lowest = code.splat(code.load(floor, F32))
        with cgutils.for_range(code.b, vectors) as vector:
            value = code.load(code.address(source, vector.index, 4 * LANES))
            value = _rounded(code, code.at_least(value, lowest))
            code.store(value, code.address(target, vector.index, 2 * LANES))

    return emit(4, body)


def accumulate() -> Any:
    """Adds pixels to sums of (x - k) and of its square, by channel: k, sums and squares lie `stride` bytes apart."""

    def body(code: Code, source: Any, pixels: Any, column: Any, vectors: Any, sums: Any, stride: Any) -> None:
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

    return emit(6, body)


def weight_transform(algorithm: Algorithm, half: bool) -> Body:
    """G w GT for 16 output channels of one input channel, or of two with `half`, gathered from [N, K, taps, taps]."""
    taps, t = algorithm.taps, algorithm.positions

    def body(code: Code, target: Any, position: Any, source: Any, stride: Any) -> None:
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

    return body


def softmax() -> Any:
    """One step of an online softmax over a row of scores, which become exp(score - highest).

    `state` holds the row's highest score so far, its sum, and the factor by which this step fades what came before.
    """

    def body(code: Code, scores: Any, vectors: Any, state: Any) -> None:
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
        summed = code.across(build.load(total))
        old = code.load(build.add(state, I64(4)), F32)
        code.store(top, state)
        code.store(build.fadd(build.fmul(old, fade), summed), build.add(state, I64(4)))
        code.store(fade, build.add(state, I64(8)))

    return emit(3, body)


def blend() -> Any:
    """target = target * factor + source, by vectors; `factor` is an address."""

    def body(code: Code, target: Any, source: Any, vectors: Any, factor: Any) -> None:
        f = code.splat(code.load(factor, F32))
        with cgutils.for_range(code.b, vectors) as vector:
            at = code.b.mul(vector.index, I64(4 * LANES))
            to = code.b.add(target, at)
            code.store(code.fma(code.load(to), f, code.load(code.b.add(source, at))), to)

    return emit(4, body)


def scalars() -> tuple[Any, Any, Any]:
    """Reads and writes of one number at an address: of a float32, and the writing of a float64."""

    @intrinsic
    def read(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            return Code(builder).load(values[0], F32)

        return types.float32(types.intp), generate

    @intrinsic
    def write(typing: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            Code(builder).store(values[1], values[0])
            return context.get_dummy_value()

        return types.void(types.intp, types.float32), generate

    @intrinsic
    def write_double(typing: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            Code(builder).store(values[1], values[0])
            return context.get_dummy_value()

        return types.void(types.intp, types.float64), generate

    return read, write, write_double
