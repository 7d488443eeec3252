"""Sums and products as terms: biases, scales of norms, activations, and norms that are written in their parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from calotype.weights.graphs.axes import along, axes, channels_second
from calotype.weights.graphs.folding import Fixed
from calotype.weights.graphs.graph import Graph, Node
from calotype.weights.graphs.terms import (
    UNKNOWN,
    Act,
    Conv,
    Layout,
    Linear,
    Norm,
    Other,
    Scaled,
    Shifted,
    Sum,
    Term,
    Value,
)


def _pair(args: Sequence[Value | None]) -> tuple[Term, Value, bool] | None:
    """(what depends on the input, the other, whether the other comes first)."""
    if len(args) < 2 or args[0] is None or args[1] is None:
        return None
    a, b = args[0], args[1]
    if isinstance(a, Term):
        return a, b, False
    return (b, a, True) if isinstance(b, Term) else None


def add(graph: Graph, node: Node, args: Sequence[Value | None]) -> Term | None:
    pair = _pair(args)
    if pair is None:
        return None
    x, by, _ = pair
    if isinstance(by, Term):
        return Sum(x, by, str(node))
    if isinstance(by, Fixed):
        told = along(by, axes(x))
        if isinstance(x, Norm) and x.shift is None and told:
            return replace(x, shift=by)
        if isinstance(x, Conv) and x.bias is None and by.count == x.weight.shape[0] and told:
            return replace(x, bias=by)
        if isinstance(x, Linear) and x.bias is None and by.count == x.width and told:
            return replace(x, bias=by)
        if by.number() == 0:
            return x
    return Shifted(x, by, False, str(node))


def sub(graph: Graph, node: Node, args: Sequence[Value | None]) -> Term | None:
    pair = _pair(args)
    if pair is None or pair[2]:
        return None
    x, by, _ = pair
    if isinstance(by, Term):
        return None
    return x if isinstance(by, Fixed) and by.number() == 0 else Shifted(x, by, True, str(node))


def mul(graph: Graph, node: Node, args: Sequence[Value | None]) -> Term | None:
    pair = _pair(args)
    if pair is None:
        return None
    x, by, _ = pair
    if isinstance(by, Term):
        return _gate(x, by) or _gate(by, x) or _normalised(x, by, node) or _normalised(by, x, node)
    if isinstance(by, Fixed):
        if isinstance(x, Norm) and x.scale is None and x.shift is None and along(by, x.axes):
            return replace(x, scale=by)
        number = by.number()
        if number == 1:
            return x
        if number == 0.5 and isinstance(x, Other) and x.op == "Mul" and (gelu := _gelu(*x.inputs)):
            return gelu
    return Scaled(x, by, False, str(node))


def div(graph: Graph, node: Node, args: Sequence[Value | None]) -> Term | None:
    pair = _pair(args)
    if pair is None or pair[2]:
        return None
    x, by, _ = pair
    if isinstance(by, Term):
        return _normalised(x, by, node)
    if isinstance(by, Fixed) and by.number() == 1:
        return x
    return Scaled(x, by, True, str(node))


def _gate(x: Term, by: Term) -> Term | None:
    """SiLU, Mish or GELU, where x is multiplied by something of itself."""
    if isinstance(by, Other) and by.op == "Sigmoid" and by.inputs == (x,):
        return Act(x, "silu")
    if isinstance(by, Other) and by.op == "Tanh" and isinstance(inner := by.inputs[0], Other):
        return Act(x, "mish") if inner.op == "Softplus" and inner.inputs == (x,) else None
    half = isinstance(x, Scaled) and isinstance(x.by, Fixed) and x.by.number() == (2.0 if x.inverse else 0.5)
    if half and isinstance(x, Scaled):
        return _gelu(x.x, by)
    if isinstance(by, Scaled) and isinstance(by.by, Fixed) and by.by.number() == (2.0 if by.inverse else 0.5):
        return _gelu(x, by.x)
    return None


def _gelu(a: Term, b: Term) -> Term | None:
    """x * (1 + erf(x / sqrt(2))), of which GELU is half."""
    for x, by in ((a, b), (b, a)):
        if not (
            isinstance(by, Shifted) and isinstance(by.by, Fixed) and by.by.number() == 1 and isinstance(by.x, Other)
        ):
            continue
        erf = by.x
        inner = erf.inputs[0] if erf.op == "Erf" else None
        if isinstance(inner, Scaled) and inner.x is x and isinstance(inner.by, Fixed):
            number = inner.by.number() or 0.0
            if math.isclose(number, 2**0.5 if inner.inverse else 0.5**0.5, rel_tol=1e-3):
                return Act(x, "gelu")
    return None


def _normalised(x: Term, by: Term, node: Node) -> Term | None:
    """A norm in its parts: (x - mean) / sqrt(mean of squares + eps), over groups."""
    inverse = node.op == "Div"
    if not inverse:
        if not (isinstance(by, Other) and by.op in ("Reciprocal",)):
            return None
        by = by.inputs[0]
    if not (isinstance(x, Other) and x.op == "Sub" and isinstance(by, Other) and by.op == "Sqrt"):
        return None
    whole, mean = x.inputs if len(x.inputs) == 2 else (x, x)
    added = by.inputs[0]
    if not (isinstance(mean, Other) and mean.op == "ReduceMean" and mean.inputs == (whole,)):
        return None
    if not (isinstance(added, Shifted) and isinstance(added.by, Fixed) and isinstance(whole, Layout) and whole.groups):
        return None
    variance = added.x
    if not (isinstance(variance, Other) and variance.op == "ReduceMean" and len(variance.inputs) == 1):
        return None
    square = variance.inputs[0]
    if not (isinstance(square, Other) and square.op in ("Mul", "Pow") and set(square.inputs) == {x}):
        return None
    if not channels_second(axes(whole.x)):
        return None
    return Norm(whole.x, whole.groups, added.by.number() or math.nan, None, None, UNKNOWN, str(node))
