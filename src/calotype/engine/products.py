"""Vector code of products, whose sums stay in registers: panels of weights, and gradients of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils

from calotype.engine.vectors import (
    F32,
    GRADIENT_ROWS,
    I32,
    I64,
    IVEC,
    LANES,
    PANEL_VECTORS,
    ROWS,
    VEC,
    Code,
    emit,
    outlined,
)

AHEAD = 4096  # bytes of weights that are fetched before they are needed
UNROLLED = 4  # numbers of a row that one turn of the loop takes, where what comes next is fetched
# What a product reads comes from far: weights are read once a block, inputs once a position. On Intel's processors a
# product that asks for what the next ones read is up to a fifth faster; on AMD's Zen, where fetching inputs made no
# difference, weights are asked for a little before they are needed.
FETCHES_NEXT = not binding.get_host_cpu_name().startswith("znver")

Sums = list[list[Any]]


def product(half: bool) -> Any:
    """ROWS rows of a times one panel of b: c[i, :] = sum over k of a[i, k] b[k, :]. Strides in bytes.

    With `half`, k counts pairs of bfloat16 and sums are float32. The last four arguments are where lies what following
    products read, of b and of a, and by how many bytes each k goes on there; every fourth fetches a line.
    """

    def inner(code: Code, *given: Any) -> None:
        _product(code, half, *given)

    def body(code: Code, c: Any, c_stride: Any, a: Any, a_stride: Any, *rest: Any) -> None:
        # what a function is given it knows nothing of: LLVM would make each row's address from the one before, and
        # products would wait for that
        starts = [code.address(a, i, a_stride) for i in range(0, ROWS, 4)]
        given = (c, c_stride, a_stride, code.b.mul(a_stride, I64(3)), *starts, *rest)
        code.b.call(outlined(code.b.module, len(given), inner), given)

    return emit(10, body)


def _product(code: Code, half: bool, c: Any, c_stride: Any, stride: Any, thrice: Any, *given: Any) -> None:
    """The function of `product`; of a it has the address of every fourth row, and once and thrice the stride."""
    build = code.b
    *starts, b, count, next_b, b_share, next_a, a_share = given
    apart = [None, stride, build.shl(stride, I64(1)), thrice]
    places = [
        [code.address(code.address(c, i, c_stride), j, 4 * LANES) for j in range(PANEL_VECTORS)] for i in range(ROWS)
    ]
    size = 4 * LANES * PANEL_VECTORS

    def add(u: int, sums: Sums, panel: Any, *bases: Any) -> Sums:
        right = [code.load(build.add(panel, I64(u * size + 4 * LANES * j))) for j in range(PANEL_VECTORS)]
        if not FETCHES_NEXT:
            for j in range(PANEL_VECTORS):
                code.prefetch(build.add(panel, I64(AHEAD + 4 * LANES * j)))
        made = []
        for i, total in enumerate(sums):
            base, away = bases[i // 4], apart[i % 4]
            at = build.add(base if away is None else build.add(base, away), I64(4 * u))
            left = code.splat(code.load(at, I32 if half else F32), IVEC if half else VEC)
            multiply = _pair_product if half else Code.fma
            made.append([multiply(code, left, r, one) for r, one in zip(right, total, strict=True)])
        return made

    def turn(sums: Sums, ahead_b: Any, ahead_a: Any, *pointers: Any) -> Sums:
        code.prefetch(ahead_b, far=True)
        code.prefetch(ahead_a, far=True)
        for u in range(UNROLLED):
            sums = add(u, sums, *pointers)
        return sums

    sums = [[code.constant(0.0) for _ in range(PANEL_VECTORS)] for _ in range(ROWS)]
    pointers = [b, *starts]
    steps: list[Any] = [I64(size), *[I64(4)] * len(starts)]
    if FETCHES_NEXT:
        for row in places:
            for place in row:
                code.prefetch(place, written=True)
        turns = build.lshr(count, I64(UNROLLED.bit_length() - 1))
        wide = [build.mul(step, I64(UNROLLED)) for step in (b_share, a_share, *steps)]
        sums, (_, _, *pointers) = _repeat(code, turns, sums, [next_b, next_a, *pointers], wide, turn)
        count = build.and_(count, I64(UNROLLED - 1))
    sums, _ = _repeat(code, count, sums, pointers, steps, lambda sums, *pointers: add(0, sums, *pointers))
    for row, total in zip(places, sums, strict=True):
        for place, final in zip(row, total, strict=True):
            code.store(final, place)


def _repeat(
    code: Code, times: Any, sums: Sums, pointers: list[Any], steps: list[Any], turn: Callable[..., Sums]
) -> tuple[Sums, list[Any]]:
    """turn(sums, *pointers) so many times, or not at all, each time with pointers a step further."""
    build = code.b
    before = build.block
    inside, after = build.append_basic_block("k"), build.append_basic_block("k.end")
    build.cbranch(build.icmp_signed(">", times, I64(0)), inside, after)
    build.position_at_end(inside)
    left = build.phi(I64)
    left.add_incoming(times, before)
    moving = [build.phi(I64) for _ in pointers]
    kept = [[build.phi(VEC) for _ in row] for row in sums]
    made = turn(kept, *moving)
    further = [build.add(pointer, step) for pointer, step in zip(moving, steps, strict=True)]
    rest = build.sub(left, I64(1))
    left.add_incoming(rest, inside)
    build.cbranch(build.icmp_signed(">", rest, I64(0)), inside, after)
    build.position_at_end(after)

    def joined(phi: Any, start: Any, final: Any) -> Any:
        phi.add_incoming(start, before)
        phi.add_incoming(final, inside)
        last = build.phi(phi.type)
        last.add_incoming(start, before)
        last.add_incoming(final, inside)
        return last

    return (
        [[joined(*ones) for ones in zip(*rows, strict=True)] for rows in zip(kept, sums, made, strict=True)],
        [joined(*ones) for ones in zip(moving, pointers, further, strict=True)],
    )


def outer_product() -> Any:
    """GRADIENT_ROWS rows of c: c[i, :] += sum over k of a[k, i] b[k, :], one panel of b. Strides in bytes."""

    def body(code: Code, c: Any, c_stride: Any, a: Any, a_stride: Any, b: Any, b_stride: Any, count: Any) -> None:
        build = code.b
        places = [
            [code.address(code.address(c, i, c_stride), j, 4 * LANES) for j in range(PANEL_VECTORS)]
            for i in range(GRADIENT_ROWS)
        ]
        given = [[code.load(place) for place in row] for row in places]
        before = build.block
        loop, after = build.append_basic_block("k"), build.append_basic_block("k.end")
        build.branch(loop)
        build.position_at_end(loop)
        k = build.phi(I64)
        k.add_incoming(I64(0), before)
        sums = [[build.phi(VEC) for _ in range(PANEL_VECTORS)] for _ in range(GRADIENT_ROWS)]
        left, panel = build.add(a, build.mul(k, a_stride)), build.add(b, build.mul(k, b_stride))
        right = [code.load(code.address(panel, j, 4 * LANES)) for j in range(PANEL_VECTORS)]
        finals = []
        for i, (row, starts) in enumerate(zip(sums, given, strict=True)):
            scalar = code.splat(code.load(code.address(left, i, 4), F32))
            for phi, start, r in zip(row, starts, right, strict=True):
                final = code.fma(scalar, r, phi)
                phi.add_incoming(start, before)
                phi.add_incoming(final, loop)
                finals.append(final)
        following = build.add(k, I64(1))
        k.add_incoming(following, loop)
        build.cbranch(build.icmp_signed("<", following, count), loop, after)
        build.position_at_end(after)
        for final, place in zip(finals, (place for row in places for place in row), strict=True):
            code.store(final, place)

    return emit(7, body)


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def _pair_product(code: Code, x: Any, y: Any, plus: Any) -> Any:
    """plus + x0 y0 + x1 y1 in every lane, for lanes that hold two bfloat16."""
    pairs = ir.VectorType(_BFloat(), 2 * LANES)
    kind = ir.FunctionType(VEC, [VEC, pairs, pairs])
    function = cgutils.get_or_insert_function(code.b.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return code.b.call(function, [plus, code.b.bitcast(x, pairs), code.b.bitcast(y, pairs)])
