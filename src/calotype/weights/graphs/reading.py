"""From a graph to terms: each operation in turn, with casts and what is made of shapes alone out of the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from calotype.damage import quoted
from calotype.errors import WeightsError
from calotype.weights.graphs import operations, sums
from calotype.weights.graphs.attention import attention
from calotype.weights.graphs.axes import side
from calotype.weights.graphs.folding import Fixed, fixed, folded
from calotype.weights.graphs.graph import Graph, Node
from calotype.weights.graphs.terms import Act, Input, Other, Term, Value

SAME = ("Identity", "Cast", "CastLike", "Dropout")
LAYOUTS = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten")
ACTIVATIONS = {"Relu": "relu", "Gelu": "gelu", "Mish": "mish", "Swish": "silu", "com.microsoft.QuickGelu": "silu"}


def terms_of(graph: Graph) -> list[Value]:
    """What the graph gives.

    Raises:
        WeightsError: an operation takes a value that nothing before it gives.
    """
    values: dict[str, Value] = {name: fixed(constant) for name, constant in graph.constants.items()}
    values |= {name: Input(name) for name in graph.inputs}
    for node in graph.nodes:
        missing = next((name for name in node.inputs if name and name not in values), None)
        if missing is not None:
            raise WeightsError(
                f"the file is damaged: {node} takes {quoted(missing, 120)!r}, which nothing before it gives; fetch it "
                f"again"
            )
        args = [values[name] if name else None for name in node.inputs]
        made = _made(graph, node, args)
        for name in node.outputs:
            values[name] = made  # of several results the first stands for all
    lost = next((name for name in graph.outputs if name not in values), None)
    if lost is not None or not graph.outputs:
        raise WeightsError("the file is damaged: nothing gives its graph's output; fetch it again")
    return [values[name] for name in graph.outputs]


def _made(graph: Graph, node: Node, args: Sequence[Value | None]) -> Value:
    data = [arg for arg in args if isinstance(arg, Term)]
    still = [arg for arg in args if not isinstance(arg, Term)]
    if node.op in ("Shape", "Size") or "Random" in node.op:
        return side(node, args)
    if not data:
        every = [arg for arg in still if isinstance(arg, Fixed) or arg is None]
        if len(every) == len(still) and (made := folded(node, every)) is not None:
            return made
        return side(node, args)
    if node.op in SAME:
        return data[0]
    read = _READERS.get(node.op)
    made_term = read(graph, node, args) if read else None
    if made_term is None and node.op in ACTIVATIONS and _plain(node, args):
        made_term = Act(data[0], ACTIVATIONS[node.op])
    if made_term is None and node.op in ("Max", "Min") and any(_many(one) for one in still):
        return Other(f"{node.op} of many", tuple(data), node)  # of which may be one for each column
    return made_term or Other(node.op, tuple(data), node)


def _many(of: Value | None) -> bool:
    return isinstance(of, Fixed) and of.number() is None


def _plain(node: Node, args: Sequence[Value | None]) -> bool:
    """Whether an activation is the usual one of its name."""
    if node.op == "Gelu":
        return str(node.attributes.get("approximate", node.attributes.get("approximation_mode", "none"))).lower() in (
            "none",
            "erf",
        )
    slope = node.attributes.get("alpha", 1.0)
    if len(args) > 1 and args[1] is not None:
        slope = args[1].number() if isinstance(args[1], Fixed) else None
    return isinstance(slope, float) and slope == 1.0


_READERS: Mapping[str, Callable[[Graph, Node, Sequence[Value | None]], Term | None]] = {
    "Conv": operations.conv,
    "Pad": operations.pad,
    "MatMul": operations.matmul,
    "Gemm": operations.gemm,
    "InstanceNormalization": operations.instance_norm,
    "MVN": operations.mvn,
    "GroupNormalization": operations.group_norm,
    "Resize": operations.resize,
    "Upsample": operations.resize,
    "Add": sums.add,
    "Sub": sums.sub,
    "Mul": sums.mul,
    "Div": sums.div,
    "Attention": attention,
    **dict.fromkeys(LAYOUTS, operations.layout),
}
