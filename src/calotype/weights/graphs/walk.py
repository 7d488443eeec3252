"""From a graph's end to its beginning: what all kinds of VAEs share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from calotype.weights.graphs.axes import along, axes
from calotype.weights.graphs.folding import Fixed, repeated
from calotype.weights.graphs.terms import (
    UNKNOWN,
    Act,
    Axes,
    Conv,
    Doubled,
    Input,
    Layout,
    Linear,
    Norm,
    Other,
    Padded,
    Scaled,
    Shifted,
    Side,
    Sum,
    Term,
    Value,
)

# What may come before a VAE's first convolution and after its last: ranges of pixels, other layouts, and the sample of
# a posterior
AROUND = (
    *("Clip", "Concat", "Exp", "Gather", "Mul", "Round", "Slice", "Split", "StridedSlice", "Sub", "Tanh", "Max", "Min"),
    *("Transpose", "Squeeze", "Unsqueeze"),
)
Side_ = Literal["encoder", "decoder"]


class Unfit(Exception):
    """The graph is not of the kind that was tried; says why, in part of a sentence."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A tensor under its name in diffusers' files.

    Attributes:
        fixed: its numbers; None where the graph has none, because they would change nothing.
        shape: in diffusers' files.
        turned: whether the graph has the matrix transposed.
        usual: what a missing one is full of.
    """

    fixed: Fixed | None
    shape: tuple[int, ...]
    turned: bool = False
    usual: float = 0.0


@dataclass(kw_only=True)
class Half:
    """An encoder or a decoder.

    Attributes:
        weights: by their names in diffusers' files.
        groups: of its norms; None without any.
        activation: between its convolutions.
        around: what the graph does before and after it, by names of operations.
    """

    side: Side_
    weights: dict[str, Weight] = field(default_factory=dict)
    groups: int | None = None
    activation: str = "silu"
    around: tuple[str, ...] = ()


def ends_in(values: Iterable[Value]) -> tuple[Conv, list[str]]:
    """The last convolution before some values, and the operations between, none of which has weights.

    Raises:
        Unfit: there are several, or none, or something else comes after it.
    """
    found: dict[int, Conv] = {}
    between: list[str] = []
    seen: set[int] = set()
    nest = [value for value in values if isinstance(value, Term)]
    while nest:
        term = nest.pop()
        if id(term) in seen:
            continue
        seen.add(id(term))
        if isinstance(term, Conv):
            found[id(term)] = term
        elif isinstance(term, Scaled | Shifted | Layout | Sum | Other):
            op, inputs = inside(term)
            if op not in (*AROUND, "Add", "Div") or (inputs and _of_places(term, axes(inputs[0]))):
                raise Unfit(f"its output comes from {described(term)}")
            between.append(op)
            nest += inputs
        else:
            raise Unfit(f"its output comes from {described(term)}")
    if len(found) != 1:
        raise Unfit("its output does not come from one convolution")
    return next(iter(found.values())), list(dict.fromkeys(between))


def _of_places(term: Term, at: Axes) -> bool:
    """Whether this adds or multiplies by numbers of rows or columns, which no range of pixels has.

    Args:
        at: axes of what it is of.
    """
    if not isinstance(term, Scaled | Shifted) or not isinstance(term.by, Fixed):
        return False
    return at.channels is not None and not along(term.by, at)


def begins_with(term: Term) -> tuple[Term, list[str]]:
    """What comes into a first convolution, before operations upon pixels or latents; and those."""
    between: list[str] = []
    at = Axes(4, -3)  # of what a convolution takes
    while isinstance(term, Scaled | Shifted | Layout) or (isinstance(term, Other) and len(term.inputs) == 1):
        op, inputs = inside(term)
        at = UNKNOWN if isinstance(term, Layout) else at
        if op not in (*AROUND, "Add", "Div") or _of_places(term, at):
            raise Unfit(f"its input goes into {described(term)}")
        if isinstance(term, Other) and isinstance(inputs[0], Conv):  # of an encoder before it
            break
        between.append(op)
        term = inputs[0]
    return term, between


def inside(term: Scaled | Shifted | Layout | Sum | Other) -> tuple[str, Sequence[Term]]:
    """ONNX's name of what makes a term, and what it is made of."""
    if isinstance(term, Scaled):
        return "Div" if term.inverse else "Mul", (term.x,)
    if isinstance(term, Shifted):
        return "Sub" if term.inverse else "Add", (term.x,)
    if isinstance(term, Layout):
        return term.op, (term.x,)
    return ("Add", (term.x, term.y)) if isinstance(term, Sum) else (term.op, term.inputs)


def described(term: Term) -> str:
    """What a term is, for messages."""
    if isinstance(term, Input):
        return f"the input {term.name!r}"
    if isinstance(term, Act | Doubled | Padded):
        words = {Act: "an activation", Doubled: "an enlargement", Padded: "a padding"}
        return words[type(term)]
    return str(getattr(term, "at", type(term).__name__))


def square(conv: Conv, side: int) -> bool:
    """Whether its kernel is of so many pixels, and it keeps the size of what it convolves."""
    return conv.weight.shape[2:] == (side, side) and conv.stride == (1, 1) and conv.pads == (side // 2,) * 4


def add_conv(half: Half, name: str, conv: Conv | Linear) -> None:
    """Adds the weights of a convolution or a linear layer.

    Raises:
        Unfit: its bias is of another size.
    """
    shape = conv.weight.shape
    turned = isinstance(conv, Linear) and not conv.transposed
    shape = (shape[1], shape[0]) if turned else shape
    half.weights[f"{name}.weight"] = Weight(fixed=conv.weight, shape=shape, turned=turned)
    if conv.bias is not None and conv.bias.count != shape[0]:
        raise Unfit(f"{conv.at} has {conv.bias.count} biases for {shape[0]} channels")
    half.weights[f"{name}.bias"] = Weight(fixed=conv.bias, shape=shape[:1])


def add_norm(half: Half, name: str, norm: Norm, channels: int) -> None:
    """Adds the weights of a norm over so many channels.

    Raises:
        Unfit: it is none of these networks'.
    """
    if not math.isclose(norm.eps, 1e-6, rel_tol=1e-2):
        raise Unfit(f"the norm {norm.at} adds {norm.eps:g} to variances, and that of an AutoencoderKL 1e-06")
    if half.groups not in (None, norm.groups):
        raise Unfit(f"its norms have {half.groups} and {norm.groups} groups")
    half.groups = norm.groups
    for leaf, fixed, usual in (("weight", norm.scale, 1.0), ("bias", norm.shift, 0.0)):
        parts, what = (norm.groups, "groups") if norm.of_groups else (channels, "channels")
        if fixed is not None and (fixed.count not in (1, parts) or channels % parts):
            raise Unfit(f"the norm {norm.at} has {fixed.count} numbers for {parts} {what}")
        if fixed is not None and fixed.count == parts != channels:
            fixed = repeated(fixed, channels // parts)
        half.weights[f"{name}.{leaf}"] = Weight(fixed=fixed, shape=(channels,), usual=usual)


def factor(scales: Iterable[tuple[Fixed | Side, bool]], size: int) -> float | None:
    """The product of factors, where a graph takes the size of vectors from their shape; None if it can't be told."""
    product = 1.0
    for by, inverse in scales:
        value = _value(by, size, {})
        if not value or not math.isfinite(value):
            return None
        product *= 1 / value if inverse else value
    return product


def _value(of: Fixed | Side | None, size: int, known: dict[int, float | None], depth: int = 0) -> float | None:
    if isinstance(of, Fixed):
        return of.number()
    if of is None or depth > 24:
        return None
    if id(of) not in known:
        known[id(of)] = _computed(of, size, known, depth)
    return known[id(of)]


def _computed(of: Side, size: int, known: dict[int, float | None], depth: int) -> float | None:
    first = of.inputs[0] if of.inputs else None
    if of.op in ("Slice", "StridedSlice", "Gather"):  # of a shape, its last part
        return float(size) if isinstance(first, Side) and first.op == "Shape" else None
    values = [_value(one, size, known, depth + 1) for one in of.inputs[:2]]
    if not values or any(value is None for value in values[:1]):
        return None
    a, b = values[0], values[1] if len(values) > 1 else None
    assert a is not None
    if of.op in ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape"):
        return a
    if of.op == "Sqrt":
        return a**0.5 if a >= 0 else None
    if of.op == "Reciprocal":
        return 1 / a if a else None
    if b is None:
        return None
    if of.op == "Mul":
        return a * b
    if of.op == "Div":
        return a / b if b else None
    return a**b if of.op == "Pow" and a > 0 and abs(b) < 16 else None
