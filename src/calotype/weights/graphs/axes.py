"""Along which axis a value has its channels, as far as a graph tells.

Numbers broadcast by their last axes: [8] is one for each channel where channels are last, and one for each column of a
picture. So what a constant's numbers stand for is told by its shape and by where the channels are of what it meets.
"""

from __future__ import annotations

from collections.abc import Sequence

from calotype.weights.graphs.folding import Fixed
from calotype.weights.graphs.graph import Node
from calotype.weights.graphs.terms import (
    UNKNOWN,
    Act,
    Axes,
    Conv,
    Doubled,
    Layout,
    Linear,
    Norm,
    Padded,
    Scaled,
    Shifted,
    Side,
    Sum,
    Term,
    Value,
)

FARTHEST = 256  # terms through which axes are looked for


def axes(term: Term) -> Axes:
    """Of a value; what nothing tells is None."""
    for _ in range(FARTHEST):
        if isinstance(term, Conv | Doubled | Padded):
            return Axes(4, -3)
        if isinstance(term, Linear):
            return Axes(None, term.channels)
        if isinstance(term, Norm | Layout):
            return term.axes
        if isinstance(term, Sum):
            term = term.y if isinstance(term.y, Conv) else term.x
        elif isinstance(term, Act | Scaled | Shifted):
            term = term.x
        else:
            break
    return UNKNOWN


def along(by: Fixed, at: Axes) -> bool:
    """Whether numbers are one for each channel of a value at these axes, or one for all, as they broadcast."""
    many = [i - len(by.shape) for i, n in enumerate(by.shape) if n != 1]
    return (not many or many == [at.channels]) and (at.rank is None or len(by.shape) <= at.rank)


def channels_second(at: Axes) -> bool:
    """Whether channels come after the batch, as torch has them, or nothing tells."""
    return at.rank is None or at.channels is None or at.channels == 1 - at.rank


def turned(at: Axes, order: Sequence[int] | None) -> Axes:
    """After a transposition; without an order, to the reverse."""
    rank = len(order) if order else at.rank
    if rank is None or at.channels is None or at.rank not in (None, rank):
        return Axes(rank, None)
    order = order or range(rank)[::-1]
    where = rank + at.channels
    return Axes(rank, [*order].index(where) - rank if where in order else None)


def reshaped(at: Axes, rank: int | None) -> Axes:
    """After a reshape to so many axes: channels that are last stay so, and those that come second too."""
    if at.channels == -1:
        return Axes(rank, -1)
    second = at.rank is not None and at.channels == 1 - at.rank
    return Axes(rank, 1 - rank if second and rank is not None and rank > 2 else None)


def length(of: Value | None) -> int | None:
    """How many numbers something is that does not depend on the input, such as a shape."""
    if isinstance(of, Fixed):
        return of.count
    return of.length if isinstance(of, Side) else None


def side(node: Node, args: Sequence[Value | None]) -> Side:
    """What a graph makes of shapes, constants and chance."""
    still = tuple(arg for arg in args if not isinstance(arg, Term))
    given = [length(arg) for arg in still]
    made: int | None = None
    if node.op == "Shape":
        whole = not {"start", "end"} & node.attributes.keys()
        made = axes(args[0]).rank if whole and args and isinstance(args[0], Term) else None
        return Side(node.op, (), node, made)
    if node.op == "Concat":
        made = None if None in given else sum(n or 0 for n in given)
    elif node.op in ("Cast", "Identity", "Unsqueeze", "Squeeze"):
        made = given[0] if given else None
    elif node.op == "Gather" and len(given) > 1:
        made = given[1]
    elif node.op == "Slice" and len(still) > 2:
        made = _sliced(given[0], still[1:5])
    elif node.op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mod") and None not in given:
        made = max((n or 0 for n in given), default=None)
    return Side(node.op, still, node, made)


def _sliced(whole: int | None, places: Sequence[Fixed | Side | None]) -> int | None:
    """How many numbers are between two places in a list of so many; places: start, end, axis, step."""
    given = [one.wholes() if isinstance(one, Fixed) else None for one in places]
    start, end = (one[0] if one and len(one) == 1 else None for one in given[:2])
    step = [1] if len(places) < 4 else given[3]
    if whole is None or start is None or end is None or not step or not step[0]:
        return None
    return len(range(*slice(start, end, step[0]).indices(whole)))
