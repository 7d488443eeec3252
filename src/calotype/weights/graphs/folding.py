"""What a graph makes of constants alone: casts, transposed matrices, and quantised weights that are widened.

Shapes are known at once; numbers are made when they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from calotype.errors import WeightsError
from calotype.weights.graphs.graph import Constant, Node

SMALL = 64  # numbers that are read at once: shapes, axes, scales
DEEPEST = 32  # operations upon one constant
MOST_READS = 64  # of constants for one tensor

Args = Sequence[Tensor | None]
Made = Callable[[Args, Mapping[str, Any]], Tensor]

QUANTISED = ("int8", "uint8", "int4", "uint4", "int16", "uint16", "float8_e4m3fn", "float8_e5m2")


class Fixed:
    """Numbers that do not depend on the graph's input.

    Attributes:
        shape: theirs.
        sources: the file's constants that they are made of, the largest first.
        dtype: of what is read.
        raw: they are a constant's own, at most in another shape or order.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        sources: tuple[Constant, ...],
        make: Callable[[], Tensor],
        *,
        dtype: torch.dtype = torch.float32,
        depth: int = 0,
        reads: int = 1,
        raw: bool = True,
    ) -> None:
        self.shape = shape
        self.sources = sources
        self.dtype = dtype
        self.depth = depth
        self.reads = reads
        self.raw = raw
        self._make = make
        self._value: Tensor | None = None  # of few numbers

    @property
    def count(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @property
    def stored(self) -> str:
        """The type in which the file has them."""
        return self.sources[0].stored if self.sources else "float32"

    @property
    def quantised(self) -> bool:
        """Whether the file has them in few bits, with scales."""
        return not self.raw and self.stored in QUANTISED

    def read(self) -> Tensor:
        """The numbers."""
        if self._value is not None:
            return self._value
        made = self._make()
        if tuple(made.shape) != self.shape:
            raise WeightsError("the file is damaged: what it makes of its constants has another shape; fetch it again")
        if self.count <= SMALL:
            self._value = made
        return made

    def number(self) -> float | None:
        """The number, where it is one or all are equal; None where they are many."""
        if not 0 < self.count <= SMALL:
            return None
        values = self.read().to(torch.float64).flatten()
        return float(values[0]) if bool((values == values[0]).all()) else None

    def wholes(self) -> list[int] | None:
        """Whole numbers; None where they are none, or many."""
        if self.count > SMALL:
            return None
        values = self.read()
        if values.is_floating_point() or values.is_complex():
            return None
        return [int(value) for value in values.flatten().tolist()]


def fixed(constant: Constant) -> Fixed:
    """A constant of the file."""
    kind = {"int4": "int8", "uint4": "uint8"}.get(constant.stored, constant.stored)
    dtype = getattr(torch, kind, None)
    if not isinstance(dtype, torch.dtype):  # no bytes need to stand behind its shape, so nothing is made of it
        return Fixed(constant.shape, (constant,), constant.read, depth=DEEPEST)
    return Fixed(constant.shape, (constant,), constant.read, dtype=dtype)


def folded(node: Node, args: Sequence[Fixed | None]) -> Fixed | None:
    """What an operation makes of constants; None where it is none of those that weights go through.

    Raises:
        WeightsError: it can't be.
    """
    make = _OPS.get(node.op)
    if make is None or not args or args[0] is None:
        return None
    depth = 1 + max(arg.depth for arg in args if arg)
    reads = sum(arg.reads for arg in args if arg)
    if depth > DEEPEST or reads > MOST_READS:
        return None
    attributes = node.attributes
    stands = [
        None
        if arg is None
        else arg.read()
        if arg.count <= SMALL
        else torch.empty(arg.shape, dtype=arg.dtype, device="meta")
        for arg in args
    ]
    try:
        outline = make(stands, attributes)
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError):
        raise WeightsError(f"the file is damaged: {node} can't be of its constants; fetch it again") from None
    shape = tuple(outline.shape)
    largest = args[0] if node.op in _LAYOUTS else max((arg for arg in args if arg), key=lambda arg: arg.count)
    if math.prod(shape) > max(SMALL, largest.count):  # nothing that grows is a weight
        return None

    def read() -> Tensor:
        return make([arg.read() if arg else None for arg in args], attributes)

    rest = [one for arg in args if arg and arg is not largest for one in arg.sources]
    return Fixed(
        shape,
        (*largest.sources, *rest)[:8],
        read,
        dtype=outline.dtype,
        depth=depth,
        reads=reads,
        raw=node.op in _LAYOUTS and args[0].raw,
    )


def repeated(of: Fixed, times: int) -> Fixed:
    """Each number so many times."""

    def read() -> Tensor:
        return of.read().repeat_interleave(times)

    return Fixed((of.count * times,), of.sources, read, dtype=of.dtype, raw=False)


# --- operations: (values, attributes) -> value ---


def _first(args: Args) -> Tensor:
    if args[0] is None:
        raise ValueError
    return args[0]


def _list(args: Args, at: int, attributes: Mapping[str, Any], name: str) -> list[int] | None:
    """Whole numbers that an input or an attribute gives."""
    if len(args) > at and (given := args[at]) is not None:
        return [int(one) for one in given.flatten().tolist()]
    value = attributes.get(name)
    return value if isinstance(value, list) else None


def _same(args: Args, attributes: Mapping[str, Any]) -> Tensor:
    return _first(args)


def _cast(args: Args, attributes: Mapping[str, Any]) -> Tensor:
    """Floats stay as they are stored, and what is stored in few bits becomes float32, as OpenVINO computes it."""
    x, to = _first(args), attributes.get("to")
    if not isinstance(to, torch.dtype):
        return x
    if to.is_floating_point:
        return x if x.is_floating_point() and x.dtype.itemsize > 1 else x.float()
    return x.to(to)


def _transpose(args: Args, attributes: Mapping[str, Any]) -> Tensor:
    x = _first(args)
    order = _list(args, 1, attributes, "perm")
    return x.permute(order if order else list(range(x.ndim))[::-1])


def _reshape(args: Args, attributes: Mapping[str, Any]) -> Tensor:
    x = _first(args)
    wanted = _list(args, 1, attributes, "shape") or []
    keeps = str(attributes.get("special_zero", "true")).lower() != "false" and not attributes.get("allowzero")
    return x.reshape([x.shape[i] if n == 0 and keeps else n for i, n in enumerate(wanted)])


def _unsqueeze(args: Args, attributes: Mapping[str, Any]) -> Tensor:
    x = _first(args)
    axes = _list(args, 1, attributes, "axes") or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(args: Args, attributes: Mapping[str, Any]) -> Tensor:
    x = _first(args)
    axes = _list(args, 1, attributes, "axes")
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True) if axes else ():
        x = x.squeeze(axis)
    return x if axes else x.squeeze()


def _flatten(args: Args, attributes: Mapping[str, Any]) -> Tensor:
    x = _first(args)
    axis = int(attributes.get("axis", 1)) % (x.ndim + 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _concat(args: Args, attributes: Mapping[str, Any]) -> Tensor:
    parts = [one for one in args if one is not None]
    if any(one.is_meta for one in parts):  # outlines, of which small ones are real
        parts = [one.to("meta") for one in parts]
    return torch.cat(parts, int(attributes.get("axis", 0)))


def _slice(args: Args, attributes: Mapping[str, Any]) -> Tensor:
    x = _first(args)
    starts, ends = (_list(args, at, attributes, name) or [] for at, name in ((1, "starts"), (2, "ends")))
    axes = _list(args, 3, attributes, "axes") or list(range(len(starts)))
    steps = _list(args, 4, attributes, "steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = range(*slice(start, end, step).indices(x.shape[axis]))
        x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


def _gather(args: Args, attributes: Mapping[str, Any]) -> Tensor:
    x, places = _first(args), args[1]
    if places is None or places.ndim > 1:
        raise ValueError
    axis = int(attributes.get("axis", 0))
    taken = x.index_select(axis, (places.reshape(-1) % x.shape[axis]).to(x.device))
    return taken if places.ndim else taken.squeeze(axis)


def _filled(args: Args, attributes: Mapping[str, Any]) -> Tensor:
    """ONNX's ConstantOfShape."""
    shape, value = [int(n) for n in _first(args).tolist()], attributes.get("value")
    if math.prod(shape) > SMALL:
        return torch.empty(shape, device="meta")
    return torch.zeros(shape) if value is None else value.read().reshape(-1)[:1].expand(shape).clone()


def _binary(op: Callable[[Tensor, Tensor], Tensor]) -> Made:
    def make(args: Args, attributes: Mapping[str, Any]) -> Tensor:
        a, b = args
        if a is None or b is None:
            raise ValueError
        if a.device != b.device:  # outlines, of which small ones are real
            a, b = a.to("meta"), b.to("meta")
        return op(a, b)

    return make


def _dequantize(args: Args, attributes: Mapping[str, Any]) -> Tensor:
    """ONNX's DequantizeLinear: one scale, one for each part along an axis, or one for each block along it."""
    x, scale = _first(args), args[1]
    if scale is None:
        raise ValueError
    zero = args[2] if len(args) > 2 else None
    axis, block = int(attributes.get("axis", 1)), int(attributes.get("block_size", 0) or 0)
    if scale.numel() == 1 and not block:
        scale, zero = scale.reshape(()), None if zero is None else zero.reshape(())
    elif block:
        size = x.shape[axis]
        if block < 0 or scale.ndim != x.ndim or scale.shape[axis] != -(-size // block):
            raise ValueError
        block = min(block, size)
        scale, zero = (
            None if one is None else one.repeat_interleave(block, axis).narrow(axis, 0, size) for one in (scale, zero)
        )
        assert scale is not None
    else:
        wide = [1] * x.ndim
        wide[axis] = x.shape[axis]
        scale, zero = (None if one is None else one.reshape(wide) for one in (scale, zero))
        assert scale is not None
    device = "meta" if "meta" in (x.device.type, scale.device.type) else "cpu"
    values = x.to(device).float()
    if zero is not None:
        values = values - zero.to(device).float()
    return (values * scale.to(device).float()).to(scale.dtype)


def _fake(args: Args, attributes: Mapping[str, Any]) -> Tensor:
    """OpenVINO's FakeQuantize: to one of so many levels between two numbers, given between two others."""
    device = "meta" if any(one is not None and one.is_meta for one in args) else "cpu"
    x, low, high, below, above = (torch.as_tensor(one).to(device).float() for one in args[:5] if one is not None)
    steps = int(attributes.get("levels", 256)) - 1
    rounded = torch.round((x - low) / (high - low) * steps) / steps * (above - below) + below
    return torch.where(x <= torch.minimum(low, high), below, torch.where(x > torch.maximum(low, high), above, rounded))


_LAYOUTS: dict[str, Made] = {
    "Identity": _same,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Flatten": _flatten,
}
_OPS: dict[str, Made] = {
    **_LAYOUTS,
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "Div": _binary(torch.div),
    "DequantizeLinear": _dequantize,
    "FakeQuantize": _fake,
    "Concat": _concat,
    "Slice": _slice,
    "Gather": _gather,
    "ConstantOfShape": _filled,
}
