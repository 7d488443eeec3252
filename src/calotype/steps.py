"""What a decode or an encode computes, as a list of steps over feature maps. No torch.

A step reads one map and makes another: a convolution with everything that belongs to it (GroupNorm, activation and
resampling before, bias and residual after), attention, or a rearrangement of pixels. Attributes are in the network's
own words, and `weights` is the prefix of its keys. The executors run such a program; the network is what it must equal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

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
class PixelNorm:
    """Every position by the root mean square of its channels: x / sqrt(max(mean(x^2), least^2 / C) + eps) * w (+ b).

    Attributes:
        weights: prefix of w, and of b where there is one.
        eps: below the root.
        least: the length of a position's channels below which it is divided by this (`torch.nn.functional.normalize`).
        bias: whether there is a b.
    """

    weights: str
    eps: float = 0.0
    least: float = 0.0
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """BatchNorm by its running mean and variance: `weights` is its prefix."""

    weights: str
    eps: float


@dataclass(frozen=True, kw_only=True)
class Conv:
    """target = relu?(batch(conv(resample(activation(norm(scale * source + shift))))) + residual).

    Attributes:
        kernel: 3, or 1.
        resample: "up" repeats every position twice along each side before; "down" is a stride of 2.
        pad: rows and columns of zeros before the first; those after the last are what the target's size needs.
        affine: scale and shift of the source, where it is not the identity.
        gain: scale and shift of the result, where it is not the identity.
        batch: a BatchNorm of the result, which changes weights and bias only.
    """

    source: Map
    target: Map
    weights: str
    kernel: Literal[1, 3]
    bias: bool = True
    resample: Literal["none", "up", "down"] = "none"
    pad: int = 1
    norm: Norm | PixelNorm | None = None
    activation: Activation = "none"
    residual: Map | None = None
    relu: bool = False
    affine: tuple[float, float] | None = None
    gain: tuple[float, float] | None = None
    batch: BatchNorm | None = None

    @property
    def changes_source(self) -> bool:
        """Whether its source's numbers are not convolved as they are."""
        return self.norm is not None or self.affine is not None or self.activation not in ("none", "clamp")

    def flops(self, height: int, width: int) -> int:
        """Of the products, computed directly; a multiplication and an addition are two."""
        rows, columns = self.target.size(height, width)
        return 2 * rows * columns * self.kernel**2 * self.source.channels * self.target.channels

    def __str__(self) -> str:
        parts = [_named(self.norm)] if self.norm else []
        parts += [self.activation] if self.activation != "none" else []
        parts += ["nearest x2"] if self.resample == "up" else []
        parts += [f"conv {self.kernel}x{self.kernel}" + (" /2" if self.resample == "down" else "")]
        parts += ["batch norm"] if self.batch else []
        parts += [f"+ {self.residual.name}"] if self.residual else []
        parts += ["relu"] if self.relu else []
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Attention:
    """target = source + proj_out(attention over all positions of norm(source)), with a single head.

    Attributes:
        fused: q, k and v are one convolution, `qkv`.
        adds: whether its source is added; where a norm is a step of its own, something else is, after it.
    """

    source: Map
    target: Map
    weights: str
    norm: Norm | PixelNorm | None
    fused: bool = False
    adds: bool = True

    def flops(self, height: int, width: int) -> int:
        """Of the products: four 1x1 convolutions, and the scores and sums of every pair of positions."""
        rows, columns = self.source.size(height, width)
        n, c = rows * columns, self.source.channels
        return 8 * n * c * c + 4 * n * n * c

    def __str__(self) -> str:
        parts = [_named(self.norm)] if self.norm else []
        parts += ["attention over all positions"]
        parts += [f"+ {self.source.name}"] if self.adds else []
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Pixels of blocks into channels (pixel unshuffle), or back where the target's factor is the smaller.

    Inwards the channels that come of it may be more than the target's: those that follow one another are averaged to
    one. Outwards, or with a block of one, the source's may be fewer than are needed: each is repeated.

    Attributes:
        outer: what counts slowest among a block's values, a position's "channels", as in torch's pixel_unshuffle, or
            "pixels".
        frames: of so many frames this picture is the last: inwards each channel's block follows those of the others,
            which are zeros; outwards only the last frame's is taken (Wan 2.2).
        residual: added to the result.
    """

    source: Map
    target: Map
    outer: Literal["channels", "pixels"] = "channels"
    frames: int = 1
    residual: Map | None = None

    def flops(self, height: int, width: int) -> int:
        """None."""
        return 0

    @property
    def inwards(self) -> bool:
        """Whether blocks become channels, or channels are averaged."""
        a, b = self.source, self.target
        return b.factor > a.factor or (b.factor == a.factor and b.channels < a.channels)

    @property
    def block(self) -> int:
        """Side of the blocks."""
        a, b = self.source.factor, self.target.factor
        return max(a, b) // min(a, b)

    @property
    def group(self) -> int:
        """How many channels are averaged to one, or how often each is repeated."""
        few, many = (self.target, self.source) if self.inwards else (self.source, self.target)
        return many.channels * self.frames * self.block**2 // few.channels

    def __str__(self) -> str:
        parts = [f"pixel {'un' * self.inwards}shuffle {self.block}x{self.block}"] if self.block > 1 else []
        if self.group > 1:
            parts.append(f"means of {self.group} channels" if self.inwards else f"channels x{self.group}")
        parts += [f"+ {self.residual.name}"] if self.residual else []
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Normed:
    """target = norm(source) + residual."""

    source: Map
    target: Map
    norm: PixelNorm
    residual: Map | None = None

    def flops(self, height: int, width: int) -> int:
        """None: they are few."""
        return 0

    def __str__(self) -> str:
        return _named(self.norm) + (f", + {self.residual.name}" if self.residual else "")


@dataclass(frozen=True, kw_only=True)
class Gated:
    """target = a * silu(b), where a and b are the halves of a depthwise convolution of silu(source).

    Attributes:
        kernel: odd; padded by zeros.
    """

    source: Map
    target: Map
    weights: str
    kernel: int = 3

    residual: ClassVar[Map | None] = None

    def flops(self, height: int, width: int) -> int:
        """Of the products."""
        return 2 * self.kernel**2 * self.source.values(height, width)

    def __str__(self) -> str:
        return f"silu, depthwise {self.kernel}x{self.kernel}, gate"


@dataclass(frozen=True, kw_only=True)
class Scales:
    """target = source, and after it for each scale a depthwise convolution of it and one within groups of channels.

    Attributes:
        weights: prefix; those of scale i are `weights`.i.0 and .1.
        kernels: of the depthwise ones, odd; padded by zeros.
        group: channels of a group.
    """

    source: Map
    target: Map
    weights: str
    kernels: tuple[int, ...]
    group: int

    residual: ClassVar[Map | None] = None

    @property
    def kernel(self) -> int:
        """The largest."""
        return max(self.kernels)

    def flops(self, height: int, width: int) -> int:
        """Of the products."""
        return 2 * sum(kernel**2 + self.group for kernel in self.kernels) * self.source.values(height, width)

    def __str__(self) -> str:
        return ", ".join(f"+ depthwise {kernel}x{kernel} in groups of {self.group}" for kernel in self.kernels)


@dataclass(frozen=True, kw_only=True)
class LinearAttention:
    """Attention with relu(k) . relu(q) as weights: sums over all positions come first, then each is by itself.

    Attributes:
        head_dim: the source's channels are heads of so many q, k and v.
        least: added to the sum of the weights.
    """

    source: Map
    target: Map
    head_dim: int
    least: float

    residual: ClassVar[Map | None] = None

    def flops(self, height: int, width: int) -> int:
        """Of the products: values with keys, and what queries make of them."""
        return (4 * self.head_dim + 2) * self.target.values(height, width)

    def __str__(self) -> str:
        return f"linear attention over all positions, heads of {self.head_dim}"


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """target = of every position of the source the nearest entry of a codebook (Euclidean distance).

    Attributes:
        weights: the codebook's key, [entries, channels].
    """

    source: Map
    target: Map
    weights: str
    entries: int

    residual: ClassVar[Map | None] = None

    def flops(self, height: int, width: int) -> int:
        """Of the products of positions with entries."""
        return 2 * self.entries * self.source.values(height, width)

    def __str__(self) -> str:
        return f"the nearest of {self.entries} vectors"


@dataclass(frozen=True, kw_only=True)
class SpatialNorm:
    """target = activation(norm(source) * y + b), y and b being 1x1 convolutions of a smaller map, repeated to its size.

    (MoVQ: Zheng et al. 2022, arXiv:2209.09002.)

    Attributes:
        weights: prefix of those convolutions, conv_y and conv_b.
        guide: what they are of; each of its positions stands for whole positions of the source.
    """

    source: Map
    target: Map
    guide: Map
    weights: str
    norm: Norm
    activation: Activation = "none"

    residual: ClassVar[Map | None] = None

    @property
    def repeat(self) -> int:
        """Positions of the source, along each side, that one of the guide stands for."""
        return self.guide.factor // self.source.factor

    def flops(self, height: int, width: int) -> int:
        """Of the two convolutions."""
        return 4 * self.source.channels * self.guide.values(height, width)

    def __str__(self) -> str:
        parts = [f"{_named(self.norm)} scaled and shifted by {self.guide.name}"]
        return ", ".join(parts + ([self.activation] if self.activation != "none" else []))


def _named(norm: Norm | PixelNorm) -> str:
    return f"GroupNorm({norm.groups})" if isinstance(norm, Norm) else "pixel norm"


Local = Normed | Gated | Scales | LinearAttention | Quantized | SpatialNorm
"""Steps that every executor runs by torch's operations on rows."""

Step = Conv | Attention | Fold | Local


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

    def conv(
        self, source: Map, channels: int, weights: str, kernel: Literal[1, 3] = 3, *, name: str = "", **more: object
    ) -> Map:
        """A convolution; `more` is as for `Conv`.

        Args:
            name: of the map, where others are made with the same weights.
        """
        resample = more.get("resample", "none")
        factor = source.factor * 2 if resample == "down" else source.factor // 2 if resample == "up" else source.factor
        more.setdefault("pad", kernel // 2)
        target = Map(name or weights, channels, factor)
        self.steps.append(Conv(source=source, target=target, weights=weights, kernel=kernel, **more))  # type: ignore[arg-type]
        return target

    def fold(self, source: Map, name: str, block: int, channels: int = 0, **more: object) -> Map:
        """Blocks into channels, or back where `block` is negative.

        Args:
            channels: of the result, where they are averaged or repeated; `more` is as for `Fold`.
        """
        inwards = block > 0
        n = abs(block)
        channels = channels or (source.channels * n * n if inwards else source.channels // (n * n))
        target = Map(name, channels, source.factor * n if inwards else source.factor // n)
        self.steps.append(Fold(source=source, target=target, **more))  # type: ignore[arg-type]
        return target

    def attention(
        self, x: Map, prefix: str, norm: Norm | PixelNorm | None, fused: bool = False, adds: bool = True
    ) -> Map:
        """Attention over all positions."""
        target = Map(prefix, x.channels, x.factor)
        self.steps.append(Attention(source=x, target=target, weights=prefix, norm=norm, fused=fused, adds=adds))
        return target

    def normed(self, x: Map, norm: PixelNorm, residual: Map | None = None) -> Map:
        """A norm of positions, and a sum."""
        target = Map(norm.weights, x.channels, x.factor)
        self.steps.append(Normed(source=x, target=target, norm=norm, residual=residual))
        return target

    def gated(self, x: Map, weights: str, kernel: int = 3) -> Map:
        """A gated depthwise convolution, which halves channels."""
        target = Map(weights, x.channels // 2, x.factor)
        self.steps.append(Gated(source=x, target=target, weights=weights, kernel=kernel))
        return target

    def linear_attention(
        self, qkv: Map, name: str, head_dim: int, least: float, scales: str = "", kernels: tuple[int, ...] = ()
    ) -> Map:
        """Linear attention of q, k and v, and of what each kernel gathers of them by the weights `scales`."""
        if kernels:
            wide = Map(scales, qkv.channels * (1 + len(kernels)), qkv.factor)
            self.steps.append(Scales(source=qkv, target=wide, weights=scales, kernels=kernels, group=head_dim))
            qkv = wide
        target = Map(name, qkv.channels // 3, qkv.factor)
        self.steps.append(LinearAttention(source=qkv, target=target, head_dim=head_dim, least=least))
        return target

    def quantized(self, x: Map, name: str, weights: str, entries: int) -> Map:
        """The nearest entries of a codebook."""
        target = Map(name, x.channels, x.factor)
        self.steps.append(Quantized(source=x, target=target, weights=weights, entries=entries))
        return target

    def spatial_norm(self, x: Map, guide: Map, prefix: str, norm: Norm, activation: Activation = "none") -> Map:
        """A norm, scaled and shifted by what a smaller map says of each position."""
        target = Map(prefix, x.channels, x.factor)
        self.steps.append(
            SpatialNorm(source=x, target=target, guide=guide, weights=prefix, norm=norm, activation=activation)
        )
        return target

    def program(self) -> Program:
        """All of them."""
        return Program(self.direction, tuple(self.steps))
