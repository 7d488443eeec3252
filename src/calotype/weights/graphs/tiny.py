"""Halves of AutoencoderTiny in graphs: a row of convolutions and ReLU, counted as in diffusers (0.42.1)."""

from __future__ import annotations

from collections.abc import Sequence

from calotype.weights.graphs.folding import Fixed
from calotype.weights.graphs.terms import Act, Conv, Doubled, Input, Other, Scaled, Shifted, Side, Sum, Term, Value
from calotype.weights.graphs.walk import Half, Unfit, add_conv, described, ends_in, square


def half(outputs: Sequence[Value]) -> Half:
    """The encoder or the decoder whose output a graph gives.

    Raises:
        Unfit: it is of no AutoencoderTiny; says why.
    """
    last, around = ends_in(outputs)
    layers: list[list[Conv]] = []  # from the last on: a convolution, the three of a block, or what has no weights
    term: Term = last
    while True:
        if isinstance(term, Conv):
            if not (square(term, 3) or (term.weight.shape[2:] == (3, 3) and term.stride == (2, 2))):
                raise Unfit(f"{term.at} is no convolution of 3x3 pixels")
            layers.append([term])
            term = term.x
        elif isinstance(term, Act) and term.kind == "relu" and isinstance(term.x, Sum):
            block, term = _block(term.x)
            layers.append(block)
        elif isinstance(term, Doubled) or (isinstance(term, Act) and term.kind == "relu"):
            layers.append([])
            term = term.x
        else:
            break
    encodes = _is_scaled(term, 2.0, True)
    if not encodes and not _is_clamp(term):
        raise Unfit(f"its first convolution takes {described(term)}")
    if not encodes and "Mul" not in around:
        raise Unfit("its decoder does not bring pixels to [-1, 1]")
    made = Half(side="encoder" if encodes else "decoder", around=())
    for i, convs in enumerate(reversed(layers)):
        for j, conv in enumerate(convs):
            stem = f"{made.side}.layers.{i}"
            add_conv(made, f"{stem}.conv.{2 * j}" if len(convs) == 3 else stem, conv)
            if len(convs) == 1 and conv.bias is None:
                del made.weights[f"{stem}.bias"]
    return made


def _block(total: Sum) -> tuple[list[Conv], Term]:
    """Three convolutions, the last without ReLU, and what they are added to."""
    for branch, skip in ((total.x, total.y), (total.y, total.x)):
        convs: list[Conv] = []
        term = branch
        while isinstance(term, Conv) and square(term, 3) and len(convs) < 3:
            convs.append(term)
            term = term.x
            if isinstance(term, Act) and term.kind == "relu" and len(convs) < 3:
                term = term.x
        if len(convs) == 3 and term is skip:
            return convs[::-1], skip
    raise Unfit(f"the sum {total.at} is not that of a block of three convolutions")


def _number(by: Fixed | Side) -> float | None:
    return by.number() if isinstance(by, Fixed) else None


def _is_scaled(term: Term, by: float, inverse: bool) -> bool:
    """Whether these are pixels in [0, 1], of pixels in [-1, 1]."""
    if not isinstance(term, Scaled) or not isinstance(term.x, Shifted):
        return False
    number = _number(term.by)
    halves = number == by if term.inverse == inverse else number == 1 / by
    return halves and _number(term.x.by) == 1 and not term.x.inverse and isinstance(term.x.x, Input)


def _is_clamp(term: Term) -> bool:
    """Whether these are latents, softly limited to [-3, 3]."""
    if not isinstance(term, Scaled) or term.inverse or _number(term.by) != 3:
        return False
    tanh = term.x
    if not isinstance(tanh, Other) or tanh.op != "Tanh" or not isinstance(tanh.inputs[0], Scaled):
        return False
    third = tanh.inputs[0]
    number = _number(third.by) or 0.0
    return (
        isinstance(third.x, Input) and abs((1 / number if third.inverse else number) - 1 / 3) < 1e-3
        if number
        else False
    )
