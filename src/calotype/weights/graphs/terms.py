"""What values of a graph are of its input, with weights in their places.

Exporters write the same network in many ways: a norm as InstanceNormalization between two reshapes, as MVN, or in eight
operations; a bias in the convolution or added after it; SiLU as one operation or two; attention as one or twelve. Each
of these is one term here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from calotype.weights.graphs.folding import Fixed
from calotype.weights.graphs.graph import Node


class Term:
    """A value that depends on the graph's input."""


class Axes(NamedTuple):
    """How many axes a value has, and which of them, from the end, is that of channels; None where it can't be told."""

    rank: int | None
    channels: int | None


UNKNOWN = Axes(None, None)


@dataclass(frozen=True, eq=False)
class Input(Term):
    """The graph's input."""

    name: str


@dataclass(frozen=True, eq=False)
class Conv(Term):
    """A convolution: kernel [out, in, h, w], paddings (top, left, bottom, right)."""

    x: Term
    weight: Fixed
    bias: Fixed | None
    stride: tuple[int, ...]
    pads: tuple[int, ...]
    at: str


@dataclass(frozen=True, eq=False)
class Linear(Term):
    """A product with a matrix of weights, [out, in] where `transposed`, else [in, out].

    Attributes:
        channels: the axis of its results' channels, from the end.
    """

    x: Term
    weight: Fixed
    transposed: bool
    bias: Fixed | None
    channels: int
    at: str

    @property
    def width(self) -> int:
        """How many channels it gives."""
        return self.weight.shape[0 if self.transposed else 1]


@dataclass(frozen=True, eq=False)
class Norm(Term):
    """A norm over groups of channels.

    Attributes:
        axes: unknown while it is in the shape of its groups.
        of_groups: scale and shift are of groups, and not of channels.
    """

    x: Term
    groups: int
    eps: float
    scale: Fixed | None
    shift: Fixed | None
    axes: Axes
    at: str
    of_groups: bool = False


@dataclass(frozen=True, eq=False)
class Act(Term):
    """An activation, by our name for it."""

    x: Term
    kind: str


@dataclass(frozen=True, eq=False)
class Sum(Term):
    """Two values that both depend on the input."""

    x: Term
    y: Term
    at: str


@dataclass(frozen=True, eq=False)
class Scaled(Term):
    """A value times a number, or divided by it."""

    x: Term
    by: Fixed | Side
    inverse: bool
    at: str


@dataclass(frozen=True, eq=False)
class Shifted(Term):
    """A value to which something is added, or from which it is taken, that does not depend on the input."""

    x: Term
    by: Fixed | Side
    inverse: bool
    at: str


@dataclass(frozen=True, eq=False)
class Layout(Term):
    """The same numbers in another shape or order; `groups` is the second size, where that is known."""

    x: Term
    op: str
    groups: int | None
    axes: Axes
    at: str


@dataclass(frozen=True, eq=False)
class Doubled(Term):
    """Twice as high and wide, by the nearest neighbour."""

    x: Term


@dataclass(frozen=True, eq=False)
class Padded(Term):
    """With zeros around: (top, left, bottom, right)."""

    x: Term
    pads: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Attention(Term):
    """softmax(q k^T * scales) v."""

    q: Term
    k: Term
    v: Term
    scales: tuple[tuple[Fixed | Side, bool], ...]  # factors, and whether they divide
    usual: bool  # further by the root of the size of q's vectors
    at: str


@dataclass(frozen=True, eq=False)
class Other(Term):
    """Any other operation."""

    op: str
    inputs: tuple[Term, ...]
    node: Node

    @property
    def at(self) -> str:
        """What it is, for messages."""
        return str(self.node)


@dataclass(frozen=True, eq=False)
class Side:
    """What a graph makes of shapes, constants and chance; `length`: how many numbers, where that is known."""

    op: str
    inputs: tuple[Fixed | Side | None, ...]
    node: Node
    length: int | None = None


Value = Term | Fixed | Side


def bare(term: Term) -> Term:
    """A value without what only changes its shape."""
    while isinstance(term, Layout):
        term = term.x
    return term
