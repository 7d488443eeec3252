"""Operations with weights, and those that change shapes, as terms; None where they are not those of these VAEs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from calotype.weights.graphs.attention import attended
from calotype.weights.graphs.axes import along, axes, channels_second, length, reshaped, turned
from calotype.weights.graphs.folding import Fixed
from calotype.weights.graphs.graph import Graph, Node
from calotype.weights.graphs.terms import (
    UNKNOWN,
    Axes,
    Conv,
    Doubled,
    Layout,
    Linear,
    Norm,
    Other,
    Padded,
    Side,
    Term,
    Value,
)


def _wholes(value: Any, usual: list[int]) -> list[int]:
    found = usual if value is None else value
    return found if isinstance(found, list) and all(isinstance(one, int) for one in found) else []


def conv(graph: Graph, node: Node, args: Sequence[Value | None]) -> Term | None:
    x, weight = (*args, None, None)[:2]
    bias = args[2] if len(args) > 2 else None
    if not isinstance(x, Term) or not isinstance(weight, Fixed) or not isinstance(bias, Fixed | None):
        return None
    said = node.attributes
    ones = _wholes(said.get("dilations"), [1, 1]) == [1, 1] and said.get("group", 1) == 1
    if len(weight.shape) != 4 or not ones or str(said.get("auto_pad", "NOTSET")) not in ("NOTSET", "VALID", ""):
        return None
    pads = _wholes(said.get("pads"), [0, 0, 0, 0])
    if said.get("auto_pad") == "VALID":
        pads = [0, 0, 0, 0]
    stride = _wholes(said.get("strides"), [1, 1])
    if len(pads) != 4 or len(stride) != 2:
        return None
    if isinstance(x, Padded):
        pads = [a + b for a, b in zip(x.pads, pads, strict=True)]
        x = x.x
    return Conv(x, weight, bias, tuple(stride), tuple(pads), str(node))


def pad(graph: Graph, node: Node, args: Sequence[Value | None]) -> Term | None:
    x = args[0]
    constant = str(node.attributes.get("mode", node.attributes.get("pad_mode", "constant"))) == "constant"
    rest = [arg.wholes() if isinstance(arg, Fixed) else None for arg in args[1:3]]
    pads = rest[0] if rest else node.attributes.get("pads")
    value = args[2] if len(args) > 2 else None
    if graph.version == 0 and len(rest) == 2:  # OpenVINO has the beginnings and the ends apart
        pads = [*(rest[0] or []), *(rest[1] or [])]
        value = args[3] if len(args) > 3 else None
    if graph.version and len(args) > 3 and isinstance(args[3], Fixed) and isinstance(pads, list):  # axes
        of, given = args[3].wholes() or [], pads
        if len(given) != 2 * len(of) or any(not -4 <= axis < 4 for axis in of):
            return None
        pads = [0] * 8
        for i, axis in enumerate(of):
            pads[axis % 4], pads[4 + axis % 4] = given[i], given[i + len(of)]
    zero = value is None or (isinstance(value, Fixed) and value.number() == 0)
    if not isinstance(x, Term) or not isinstance(pads, list) or len(pads) != 8 or not (constant and zero):
        return None
    if pads[0] or pads[1] or pads[4] or pads[5] or min(pads) < 0:
        return None
    return Padded(x, (pads[2], pads[3], pads[6], pads[7]))


def matmul(graph: Graph, node: Node, args: Sequence[Value | None]) -> Term | None:
    a, b = (*args, None, None)[:2]
    swapped = [
        str(node.attributes.get(name, "false")).lower() in ("true", "1") for name in ("transpose_a", "transpose_b")
    ]
    if isinstance(a, Term) and isinstance(b, Fixed) and len(b.shape) == 2:
        return Linear(a, b, swapped[1], None, -1, str(node))
    if isinstance(b, Term) and isinstance(a, Fixed) and len(a.shape) == 2:
        return Linear(b, a, not swapped[0], None, -2, str(node))
    if isinstance(a, Term) and isinstance(b, Term):
        return attended(a, b, node) or Other("MatMul", (a, b), node)
    return None


def gemm(graph: Graph, node: Node, args: Sequence[Value | None]) -> Term | None:
    x, weight = (*args, None, None)[:2]
    bias = args[2] if len(args) > 2 else None
    said = node.attributes
    if not isinstance(x, Term) or not isinstance(weight, Fixed) or not isinstance(bias, Fixed | None):
        return None
    if len(weight.shape) != 2 or said.get("alpha", 1.0) != 1.0 or said.get("beta", 1.0) != 1.0 or said.get("transA", 0):
        return None
    if bias is not None and not along(bias, Axes(2, -1)):
        return None
    return Linear(x, weight, bool(said.get("transB", 0)), bias, -1, str(node))


def instance_norm(graph: Graph, node: Node, args: Sequence[Value | None]) -> Term | None:
    x, scale, shift = (*args, None, None, None)[:3]
    if not isinstance(x, Term) or not isinstance(scale, Fixed) or not isinstance(shift, Fixed) or len(scale.shape) != 1:
        return None
    ones = bool((scale.read() == 1).all()) and bool((shift.read() == 0).all()) if scale.count <= 2**16 else False
    if isinstance(x, Layout) and ones and x.groups in (None, scale.shape[0]) and channels_second(axes(x.x)):
        return Norm(x.x, scale.shape[0], _real(node.attributes.get("epsilon", 1e-5)), None, None, UNKNOWN, str(node))
    return None


def mvn(graph: Graph, node: Node, args: Sequence[Value | None]) -> Term | None:
    x, said = args[0], node.attributes
    inside = str(said.get("eps_mode", "INSIDE_SQRT")).upper() == "INSIDE_SQRT"
    if not isinstance(x, Layout) or not x.groups or not inside or str(said.get("normalize_variance")) != "true":
        return None
    over = args[1].wholes() if len(args) > 1 and isinstance(args[1], Fixed) else None
    if over not in ([2], [-1], [2, 3], [2, 3, 4]) or not channels_second(axes(x.x)):
        return None
    return Norm(x.x, x.groups, _real(said.get("eps")), None, None, UNKNOWN, str(node))


def group_norm(graph: Graph, node: Node, args: Sequence[Value | None]) -> Term | None:
    x, scale, shift = (*args, None, None, None)[:3]
    groups = node.attributes.get("num_groups")
    count = int(groups) if isinstance(groups, int) or (isinstance(groups, str) and groups.isdecimal()) else 0
    if not isinstance(x, Term) or not isinstance(scale, Fixed) or not isinstance(shift, Fixed) or count < 1:
        return None
    if not channels_second(at := axes(x)) or len(scale.shape) != 1 or len(shift.shape) != 1:
        return None
    at = UNKNOWN if at.rank is None else Axes(at.rank, 1 - at.rank)
    eps = _real(node.attributes.get("epsilon", 1e-5))
    of_groups = 0 < graph.version < 21  # of which exporters leave the numbers at 1 and 0, and multiply after it
    if of_groups and scale.number() == 1 and shift.number() == 0:
        return Norm(x, count, eps, None, None, at, str(node))
    return Norm(x, count, eps, scale, shift, at, str(node), of_groups)


def _real(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


# Ways in which pixels are taken that double each, by how places are counted
_NEAREST = {
    **dict.fromkeys(
        ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"), ("round_prefer_floor", "round_prefer_ceil")
    ),
    "asymmetric": ("floor", "round_prefer_floor", "simple"),
}


def resize(graph: Graph, node: Node, args: Sequence[Value | None]) -> Term | None:
    x, said = args[0], node.attributes
    if not isinstance(x, Term) or str(said.get("mode", "nearest")).lower() != "nearest":
        return None
    places = str(said.get("coordinate_transformation_mode", "half_pixel"))
    if str(said.get("nearest_mode", "round_prefer_floor")) not in _NEAREST.get(places, ()):
        return None
    scales: list[float] | None = None
    for arg in args[1:]:
        if isinstance(arg, Fixed) and arg.count in (2, 4) and arg.dtype.is_floating_point:
            scales = [float(one) for one in arg.read().flatten().tolist()]
    if isinstance(given := said.get("scales"), list):
        scales = given
    if scales is None:  # sizes that are made of the input's, which no constant tells
        return Doubled(x) if any(isinstance(arg, Side) for arg in args[1:]) else None
    return Doubled(x) if scales[-2:] == [2.0, 2.0] and scales[:-2] in ([], [1.0, 1.0]) else None


def layout(graph: Graph, node: Node, args: Sequence[Value | None]) -> Term | None:
    x = args[0]
    if not isinstance(x, Term):
        return None
    given = args[1] if len(args) > 1 else None
    if node.op == "Transpose":
        order = given.wholes() if isinstance(given, Fixed) else _wholes(node.attributes.get("perm"), [])
        return Layout(x, node.op, None, turned(axes(x), order), str(node))
    if node.op != "Reshape":
        return Layout(x, node.op, None, UNKNOWN, str(node))
    rank = length(given)
    if isinstance(x, Norm) and x.scale is None and x.shift is None and x.axes == UNKNOWN:  # back from its groups
        rank = axes(x.x).rank if rank is None else rank
        return replace(x, axes=UNKNOWN if rank is None else Axes(rank, 1 - rank))
    return Layout(x, node.op, _second(given), reshaped(axes(x), rank), str(node))


def _second(shape: Value | None) -> int | None:
    """The second of the sizes to which something is reshaped, where a constant tells it."""
    if isinstance(shape, Fixed):
        sizes = shape.wholes() or []
        return sizes[1] if len(sizes) > 2 and sizes[1] > 0 else None
    if isinstance(shape, Side) and shape.op == "Concat" and len(shape.inputs) > 2:
        second = shape.inputs[1]
        sizes = (second.wholes() or []) if isinstance(second, Fixed) else []
        return sizes[0] if sizes else None
    return None
