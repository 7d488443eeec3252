"""Vector code for the kernels of `local_kernels.py`, in the manner of `vectors.py`: strides and addresses in bytes.

Compiled kernels on disk follow `local_kernels.py` alone: after a change here, change that file too.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from calotype.engine.vectors import F32, I64, LANES, Code, emit

VECTOR = 4 * LANES  # bytes


def moved(kind: str) -> Any:
    """Columns of some vectors each: target = kind(source), "none", "silu" or "relu"."""

    def body(
        code: Code, target: Any, target_column: Any, source: Any, source_column: Any, columns: Any, vectors: Any
    ) -> None:
        with cgutils.for_range(code.b, columns) as column:
            to = code.address(target, column.index, target_column)
            at = code.address(source, column.index, source_column)
            with cgutils.for_range(code.b, vectors) as vector:
                x = code.load(code.address(at, vector.index, VECTOR))
                if kind == "silu":
                    x = code.silu(x)
                elif kind == "relu":
                    x = code.at_least(x, code.constant(0.0))
                code.store(x, code.address(to, vector.index, VECTOR))

    return emit(6, body)


def depthwise(kernel: int) -> Any:
    """A row of a depthwise convolution, of a padded patch: columns of some vectors, whose stride is `column`.

    `weights` is [kernel * kernel, channels], a tap `tap` bytes after another; `bias` has a number a channel.
    """

    def body(
        code: Code, target: Any, source: Any, row: Any, column: Any, columns: Any, vectors: Any, weights: Any, tap: Any,
        bias: Any,
    ) -> None:  # fmt: skip
        with cgutils.for_range(code.b, vectors) as vector:
            at = code.b.mul(vector.index, I64(VECTOR))
            taps = [code.load(code.b.add(code.address(weights, i, tap), at)) for i in range(kernel * kernel)]
            start = code.load(code.b.add(bias, at))
            rows = [code.b.add(code.address(source, i, row), at) for i in range(kernel)]
            with cgutils.for_range(code.b, columns) as place:
                moved_by = code.b.mul(place.index, column)
                total = start
                for i, first in enumerate(rows):
                    here = code.b.add(first, moved_by)
                    for j in range(kernel):
                        total = code.fma(code.load(code.address(here, j, column)), taps[i * kernel + j], total)
                code.store(total, code.b.add(code.b.add(target, moved_by), at))

    return emit(9, body)


def gate() -> Any:
    """Columns of some vectors each: target = a * silu(b)."""

    def body(
        code: Code, target: Any, target_column: Any, a: Any, b: Any, column: Any, columns: Any, vectors: Any
    ) -> None:
        with cgutils.for_range(code.b, columns) as place:
            to = code.address(target, place.index, target_column)
            offset = code.b.mul(place.index, column)
            with cgutils.for_range(code.b, vectors) as vector:
                at = code.b.add(offset, code.b.mul(vector.index, I64(VECTOR)))
                gated = code.silu(code.load(code.b.add(b, at)))
                x = code.b.fmul(code.load(code.b.add(a, at)), gated)
                code.store(x, code.address(to, vector.index, VECTOR))

    return emit(7, body)


def ratio() -> Any:
    """Columns of some vectors each: target = sums / (query . keys + least); `least` is an address."""

    def body(
        code: Code, target: Any, target_column: Any, sums: Any, query: Any, keys: Any, column: Any, columns: Any,
        vectors: Any, least: Any,
    ) -> None:  # fmt: skip
        smallest = code.load(least, F32)
        total = cgutils.alloca_once(code.b, code.constant(0.0).type)
        with cgutils.for_range(code.b, columns) as place:
            offset = code.b.mul(place.index, column)
            code.b.store(code.constant(0.0), total)
            with cgutils.for_range(code.b, vectors) as vector:
                at = code.b.mul(vector.index, I64(VECTOR))
                q = code.load(code.b.add(code.b.add(query, offset), at))
                code.b.store(code.fma(q, code.load(code.b.add(keys, at)), code.b.load(total)), total)
            weight = code.splat(code.b.fadd(code.across(code.b.load(total)), smallest))
            to = code.address(target, place.index, target_column)
            with cgutils.for_range(code.b, vectors) as vector:
                at = code.b.mul(vector.index, I64(VECTOR))
                x = code.load(code.b.add(code.b.add(sums, offset), at))
                code.store(code.b.fdiv(x, weight), code.b.add(to, at))

    return emit(9, body)


def summed() -> Any:
    """target += the sum of columns, by vectors."""

    def body(code: Code, target: Any, source: Any, column: Any, columns: Any, vectors: Any) -> None:
        with cgutils.for_range(code.b, vectors) as vector:
            at = code.b.mul(vector.index, I64(VECTOR))
            to = code.b.add(target, at)
            total = cgutils.alloca_once_value(code.b, code.load(to))
            with cgutils.for_range(code.b, columns) as place:
                x = code.load(code.b.add(code.address(source, place.index, column), at))
                code.b.store(code.b.fadd(code.b.load(total), x), total)
            code.store(code.b.load(total), to)

    return emit(5, body)


def whole_number() -> Any:
    """Reads an int64 at an address."""

    @intrinsic
    def read(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            return builder.load(builder.inttoptr(values[0], I64.as_pointer()))

        return types.intp(types.intp), generate

    return read
