"""A network as a graph of operations, whichever file it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from calotype.damage import quoted
from calotype.errors import WeightsError
from calotype.weights.mapped import part, strides, view

MOST_NODES = 50_000  # of a graph: VAEs have up to two thousand
MOST_DIMENSIONS = 8


@dataclass(frozen=True, eq=False)
class Constant:
    """Numbers in the file.

    Attributes:
        name: what the file calls them.
        stored: the type that they are stored in.
        read: makes a tensor of them; raises WeightsError where the file does not hold what it says.
    """

    name: str
    shape: tuple[int, ...]
    stored: str
    read: Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class Node:
    """One operation.

    Attributes:
        op: its name, with the domain before it where that is not the standard's own.
        inputs, outputs: names of values; "" is one that is left out.
        attributes: numbers, texts, lists of both, and constants.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{quoted(self.op, 60)} ({quoted(self.name or next(iter(self.outputs), ''), 120)})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A graph, in an order in which it can be computed, and in one vocabulary: that of ONNX.

    Attributes:
        kind: of the file, for people.
        version: of ONNX's operations.
        constants: by the names of values.
        inputs, outputs: names of values.
        functions: the file has operations of its own, each of which is a graph.
    """

    kind: str
    version: int
    nodes: tuple[Node, ...]
    constants: Mapping[str, Constant]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    functions: bool = False


def require_few(count: int, what: str = "operations") -> None:
    """Checks that a graph is no larger than any that is meant.

    Raises:
        WeightsError: it is.
    """
    if count > MOST_NODES:
        raise WeightsError(
            f"its graph has more than {MOST_NODES:,} {what}, and that of a VAE has a few thousand at most"
        )


def require_shape(shape: tuple[int, ...], name: str) -> None:
    """Checks that numbers in a file can be of a shape.

    Raises:
        WeightsError: they can't.
    """
    if len(shape) > MOST_DIMENSIONS or any(not 0 <= n < 2**40 for n in shape) or math.prod(shape) >= 2**40:
        raise WeightsError(f"the file is damaged: {quoted(name, 120)} is of a shape that nothing has; fetch it again")


# --- numbers as bytes ---

# types of four bits, two in a byte, the lower half first; torch has none of them
HALVES = ("int4", "uint4")


def stored_bytes(dtype: torch.dtype | str, shape: tuple[int, ...]) -> int:
    """How many bytes numbers of a type take."""
    count = math.prod(shape)
    return (count + 1) // 2 if isinstance(dtype, str) else count * dtype.itemsize


def empty() -> torch.UntypedStorage:
    """Nothing at all."""
    return torch.empty(0, dtype=torch.uint8).untyped_storage()


def refusing(name: str, kind: str) -> Callable[[], Tensor]:
    """What reads numbers of a type that is not read."""

    def read() -> Tensor:
        raise WeightsError(f"{quoted(name, 120)} is stored as {kind}, which is not read")

    return read


def numbers(storage: torch.UntypedStorage, start: int, dtype: torch.dtype | str, shape: tuple[int, ...]) -> Tensor:
    """Numbers that begin somewhere in a file, which holds all of them; those of four bits in a byte each."""
    size = stored_bytes(dtype, shape)
    if size == 0:
        return torch.empty(shape, dtype=torch.int8 if isinstance(dtype, str) else dtype)
    held = part(storage, start, start + size)
    if not isinstance(dtype, str):
        return view(held, dtype, shape, strides(shape))
    pairs = view(held, torch.uint8, (size,), (1,))
    apart = torch.stack((pairs & 15, pairs >> 4), -1).flatten()[: math.prod(shape)].reshape(shape)
    return apart if dtype == "uint4" else ((apart.to(torch.int8) + 8) % 16) - 8
