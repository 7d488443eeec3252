"""Attention as one term, whether a graph has it as one operation or in its parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from calotype.weights.graphs.folding import Fixed, fixed
from calotype.weights.graphs.graph import Graph, Node
from calotype.weights.graphs.terms import Attention, Layout, Other, Scaled, Shifted, Side, Term, Value, bare


def _peeled(term: Term) -> tuple[Term, list[tuple[Fixed | Side, bool]]]:
    """A value without layouts and factors, and the factors."""
    factors: list[tuple[Fixed | Side, bool]] = []
    while isinstance(term, Layout | Scaled | Shifted):
        if isinstance(term, Scaled):
            factors.append((term.by, term.inverse))
        elif isinstance(term, Shifted) and not zero(term.by):
            break
        term = term.x
    return term, factors


def zero(side: Fixed | Side, depth: int = 0) -> bool:
    """Whether something that does not depend on the input is nothing but zeros."""
    if isinstance(side, Fixed):
        return side.number() == 0
    if depth > 8:
        return False
    if side.op == "Mul":
        return any(one is not None and zero(one, depth + 1) for one in side.inputs)
    if side.op in ("Expand", "Cast", "Reshape", "Identity") and side.inputs:
        return side.inputs[0] is not None and zero(side.inputs[0], depth + 1)
    value = side.node.attributes.get("value") if side.op == "ConstantOfShape" else 1
    return value is None or (not isinstance(value, int) and fixed(value).number() == 0)


def attended(a: Term, b: Term, node: Node) -> Term | None:
    """Attention, where one of two factors is a softmax of a product."""
    for weights, v in ((a, b), (b, a)):
        softmax = bare(weights)
        if not (isinstance(softmax, Other) and softmax.op == "Softmax" and len(softmax.inputs) == 1):
            continue
        if softmax.node.attributes.get("axis", -1) not in (-1, 2, 3, "-1", "2", "3"):
            return None
        scores, factors = _peeled(softmax.inputs[0])
        if not (isinstance(scores, Other) and scores.op == "MatMul" and len(scores.inputs) == 2):
            return None
        (q, of_q), (k, of_k) = (_peeled(one) for one in scores.inputs)
        return Attention(q, k, bare(v), (*factors, *of_q, *of_k), False, str(node))
    return None


def attention(graph: Graph, node: Node, args: Sequence[Value | None]) -> Term | None:
    """The operation of that name: ONNX's with a scale as an attribute, or OpenVINO's with one as an input."""
    q, k, v, mask, scale = (*args, None, None, None, None, None)[:5]
    if not (isinstance(q, Term) and isinstance(k, Term) and isinstance(v, Term)):
        return None
    if str(node.attributes.get("causal", node.attributes.get("is_causal", 0))).lower() not in ("0", "false"):
        return None
    if isinstance(mask, Term) or (mask is not None and not zero(mask)):
        return None
    if graph.version and len(args) > 4 and any(args[4:]):
        return None
    (q, of_q), (k, of_k) = _peeled(q), _peeled(k)
    factors = [*of_q, *of_k]
    usual = True
    if isinstance(scale, Fixed | Side):
        factors.append((scale, False))
        usual = False
    elif isinstance(given := node.attributes.get("scale"), float):
        factors.append((_number(given), False))
        usual = False
    return Attention(q, k, bare(v), tuple(factors), usual, str(node))


def _number(value: float) -> Fixed:
    made = torch.tensor(value, dtype=torch.float64)
    return Fixed((), (), lambda: made, dtype=torch.float64)
