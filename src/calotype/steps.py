"""What a decode or an encode computes, as a list of steps over feature maps. No torch.

A step reads one map and makes another: a convolution with everything that belongs to it (GroupNorm, activation and
resampling before, bias and residual after), attention, or a rearrangement of pixels. Attributes are in the network's
own words, and `weights` is the prefix of its keys. The executors run such a program; the network is what it must equal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["encode", "decode"]
Activation = Literal["none", "silu", "relu", "gelu", "mish", "clamp"]


@dataclass(frozen=True)
class Map:
    """A feature map.

    Attributes:
        name: of the step that makes it, or "latents" or "pixels".
        channels: of every position.
        factor: pixels that a position stands for, along each side.
    """

    name: str
    channels: int
    factor: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) for a picture of height x width pixels."""
        return height // self.factor, width // self.factor

    def values(self, height: int, width: int) -> int:
        """Numbers in it."""
        rows, columns = self.size(height, width)
        return rows * columns * self.channels


@dataclass(frozen=True, kw_only=True)
class Norm:
    """GroupNorm: `weights` is its prefix."""

    weights: str
    groups: int
    eps: float


@dataclass(frozen=True, kw_only=True)
class Conv:
    """target = relu?(conv(resample(activation(norm(scale * source + shift)))) + residual).

    Attributes:
        kernel: 3, or 1.
        resample: "up" repeats every position twice along each side before; "down" is a stride of 2.
        pad: rows and columns of zeros before the first; those after the last are what the target's size needs.
        affine: scale and shift of the source, where it is not the identity.
        gain: scale and shift of the result, where it is not the identity.
    """

    source: Map
    target: Map
    weights: str
    kernel: Literal[1, 3]
    bias: bool = True
    resample: Literal["none", "up", "down"] = "none"
    pad: int = 1
    norm: Norm | None = None
    activation: Activation = "none"
    residual: Map | None = None
    relu: bool = False
    affine: tuple[float, float] | None = None
    gain: tuple[float, float] | None = None

    @property
    def changes_source(self) -> bool:
        """Whether its source's numbers are not convolved as they are."""
        return self.norm is not None or self.affine is not None or self.activation not in ("none", "clamp")

    def flops(self, height: int, width: int) -> int:
        """Of the products, computed directly; a multiplication and an addition are two."""
        rows, columns = self.target.size(height, width)
        return 2 * rows * columns * self.kernel**2 * self.source.channels * self.target.channels

    def __str__(self) -> str:
        parts = [f"GroupNorm({self.norm.groups})"] if self.norm else []
        parts += [self.activation] if self.activation != "none" else []
        parts += ["nearest x2"] if self.resample == "up" else []
        parts += [f"conv {self.kernel}x{self.kernel}" + (" /2" if self.resample == "down" else "")]
        parts += [f"+ {self.residual.name}"] if self.residual else []
        parts += ["relu"] if self.relu else []
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Attention:
    """target = source + proj_out(attention over all positions of norm(source)), with a single head."""

    source: Map
    target: Map
    weights: str
    norm: Norm

    def flops(self, height: int, width: int) -> int:
        """Of the products: four 1x1 convolutions, and the scores and sums of every pair of positions."""
        rows, columns = self.source.size(height, width)
        n, c = rows * columns, self.source.channels
        return 8 * n * c * c + 4 * n * n * c

    def __str__(self) -> str:
        return f"GroupNorm({self.norm.groups}), attention over all positions, + {self.source.name}"


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Pixels of blocks into channels (pixel unshuffle), or back where the target's factor is the smaller."""

    source: Map
    target: Map

    def flops(self, height: int, width: int) -> int:
        """None."""
        return 0

    @property
    def block(self) -> int:
        """Side of the blocks."""
        a, b = self.source.factor, self.target.factor
        return max(a, b) // min(a, b)

    def __str__(self) -> str:
        word = "unshuffle" if self.target.factor > self.source.factor else "shuffle"
        return f"pixel {word} {self.block}x{self.block}"


Step = Conv | Attention | Fold


@dataclass(frozen=True)
class Program:
    """Steps in order; the last one makes the result.

    Attributes:
        direction: "encode" (pixels -> moments, or latents where the network has no posterior) or "decode".
        source, target: the first map and the last.
    """

    direction: Direction
    steps: tuple[Step, ...]

    @property
    def source(self) -> Map:
        """What goes in."""
        return self.steps[0].source

    @property
    def target(self) -> Map:
        """What comes out."""
        return self.steps[-1].target

    def flops(self, height: int, width: int) -> int:
        """Of all products, computed directly, for one picture of height x width pixels."""
        return sum(step.flops(height, width) for step in self.steps)


@dataclass
class Builder:
    """Steps so far; each method adds one, and gives the map that it makes."""

    direction: Direction
    steps: list[Step] = field(default_factory=list)

    def conv(self, source: Map, channels: int, weights: str, kernel: Literal[1, 3] = 3, **more: object) -> Map:
        """A convolution; `more` is as for `Conv`."""
        resample = more.get("resample", "none")
        factor = source.factor * 2 if resample == "down" else source.factor // 2 if resample == "up" else source.factor
        more.setdefault("pad", kernel // 2)
        target = Map(weights, channels, factor)
        self.steps.append(Conv(source=source, target=target, weights=weights, kernel=kernel, **more))  # type: ignore[arg-type]
        return target

    def fold(self, source: Map, name: str, block: int) -> Map:
        """Blocks into channels, or back where `block` is negative."""
        inwards = block > 0
        n = abs(block)
        target = Map(name, source.channels * n * n if inwards else source.channels // (n * n),
                     source.factor * n if inwards else source.factor // n)  # fmt: skip
        self.steps.append(Fold(source=source, target=target))
        return target

    def attention(self, x: Map, prefix: str, norm: Norm) -> Map:
        """Attention over all positions."""
        target = Map(prefix, x.channels, x.factor)
        self.steps.append(Attention(source=x, target=target, weights=prefix, norm=norm))
        return target

    def program(self) -> Program:
        """All of them."""
        return Program(self.direction, tuple(self.steps))
