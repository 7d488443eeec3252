"""How the executors compute a step, and what that takes: algorithms, blocks, scratch, operations. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Literal

from calotype.engine.bilinear import ALGORITHMS, Algorithm, pointwise
from calotype.engine.passes import end_source_row, first_source_row
from calotype.steps import (
    Attention,
    Conv,
    Fold,
    Gated,
    LinearAttention,
    Local,
    Map,
    Quantized,
    Scales,
    SpatialNorm,
    Step,
)

Kernels = Literal["winograd", "reference"]

ALIGN = 4096  # of every block of memory
LANES, PANEL, TILES_AT_ONCE = 16, 32, 12  # of the kernels; `kernels.py` may use less
QUERIES, KEYS = 2048, 1024  # positions that attention takes at once
LEAN = 64 * 2**20  # bytes of a convolution's transformed weights at most, where memory is scarce
REFERENCE = 4 * 2**20  # bytes of a result that `reference` makes at once on the CPU
LOCAL_ROWS = 8  # that a depthwise convolution makes at once
LOCAL_CHANNELS = 64  # at most of them, by the kernels
LOCAL_POSITIONS = 256  # that a thread of the kernels takes at once where each is made by itself
SUMMED = 1024  # positions that linear attention sums in float32 at a time
LOCAL_COPIES = 8  # of what is read, that steps by torch's operations allocate at a time
ENTRIES = 2048  # of a codebook that positions are held against at once
ATTENTION_BLOCK = (1, 192)  # positions of its linear maps that a thread takes at once

# Operations of products in the time of what comes with them, fitted to bench/shapes.py: of transforming a weight to a
# position, and a number that goes in or comes out, whose transforms grow with the positions along an axis.
WEIGHT_COST = 240.0
INPUT_COST = 20.0
OUTPUT_COST = 6.0


@dataclass(frozen=True)
class Job:
    """A size, and who computes.

    Attributes:
        height, width: of the picture in pixels, multiples of the network's factor.
        kernels: who computes: their blocks and transformed weights take memory too.
        threads: that share the blocks.
        itemsize: bytes of a number in a map.
        half: whether products are of bfloat16.
        widens: whether torch multiplies halves in float32, as where oneDNN has no convolution for them.
        unfolds: whether torch's convolutions copy every value nine times first, as where there is no oneDNN.
        touched: whether memory counts once it is written to, as the CPU's, and not once it is allocated.
        lean: whether transformed weights are few rather than products.
    """

    height: int
    width: int
    kernels: Kernels = "winograd"
    threads: int = 1
    itemsize: int = 4
    half: bool = False
    widens: bool = False
    unfolds: bool = False
    touched: bool = True
    lean: bool = False

    def size(self, one: Map) -> tuple[int, int]:
        """Rows and columns of a map."""
        return one.size(self.height, self.width)

    def row_bytes(self, one: Map) -> int:
        """Bytes of a row of a map."""
        return self.size(one)[1] * one.channels * self.itemsize

    def bytes(self, one: Map) -> int:
        """Bytes of a map."""
        return one.values(self.height, self.width) * self.itemsize

    def granule(self, step: Step) -> int:
        """Rows that a step makes at once."""
        if isinstance(step, Fold):
            return 1 if step.inwards else step.block
        if isinstance(step, SpatialNorm):
            return step.repeat
        return self.algorithm(step).tile if isinstance(step, Conv) and self.kernels == "winograd" else 1

    def algorithm(self, step: Conv) -> Algorithm:
        """How the kernels compute a convolution: what takes the least time for a map of this size."""
        rows, columns = self.size(step.target)
        return fastest(step, rows, columns, LEAN if self.lean else None)

    def flops(self, step: Step) -> int:
        """Operations of a step's products, as they are computed."""
        if self.kernels == "reference" or not isinstance(step, Conv):
            return step.flops(self.height, self.width)
        algorithm = self.algorithm(step)
        return 2 * algorithm.products(*self.size(step.target)) * step.source.channels * step.target.channels

    def block(self, step: Conv, rows: int | None = None) -> tuple[int, int]:
        """Rows and columns of tiles that a thread takes at once, of a map or of so many rows of it.

        Many, so that weights are read seldom, and few, so that a block stays near the processor.
        """
        algorithm = self.algorithm(step)
        high, wide = self.size(step.target)
        if rows is not None:
            high = min(high, rows)
        down, across = ceil(high / algorithm.tile), ceil(wide / algorithm.tile)
        channels = max(step.source.channels, step.target.channels)
        many = step.kernel == 1 or channels > 256
        tiles = (192 if many else 96 if channels > 128 else 48) if algorithm.positions <= 6 else (144 if many else 96)
        # one thread and two share a map alike, so that they give the same bits
        tiles = min(tiles, max(TILES_AT_ONCE, ceil(down * across / max(2, self.threads))))
        columns = ceil(across / ceil(across / min(across, max(TILES_AT_ONCE, ceil(tiles**0.5)))))
        return min(down, max(1, round(tiles / columns))), columns

    def weight_bytes(self, step: Conv) -> int:
        """Bytes of a convolution's transformed weights."""
        channels = step.source.channels + (step.source.channels % 2 if self.half else 0)
        out = ceil(step.target.channels / PANEL) * PANEL
        return self.algorithm(step).positions ** 2 * channels * out * (2 if self.half else 4)

    def scratch_floats(self, step: Conv, block: tuple[int, int]) -> tuple[int, int, int, int]:
        """Floats of a thread's patch, inputs, outputs and tile (see `kernels.convolve_block`)."""
        algorithm = self.algorithm(step)
        padded = ceil(step.source.channels / LANES) * LANES
        wide = ceil(step.target.channels / PANEL) * PANEL
        tiles = ceil(block[0] * block[1] / TILES_AT_ONCE) * TILES_AT_ONCE
        rows, columns = ((n - 1) * algorithm.step + algorithm.window for n in block)
        t2, skew = algorithm.positions**2, LANES
        return (
            rows * columns * padded,
            t2 * (tiles * padded + skew),
            t2 * (tiles * wide + skew),
            (algorithm.tile**2 + 3) * wide,
        )

    def kernels_attend(self, step: Attention) -> bool:
        """Whether attention is by the CPU's kernels; else it is by torch's operations."""
        return self.kernels == "winograd" and not step.source.channels % PANEL

    def attention_bytes(self, step: Attention) -> int:
        """What attention takes: queries and their sums, keys in both layouts, scores."""
        rows, columns = self.size(step.source)
        c, n = step.source.channels, rows * columns
        queries, keys = min(QUERIES, n), min(KEYS, n)
        if not self.kernels_attend(step):
            floats = 2 * queries * c + keys * c + queries * keys
        else:
            queries, keys = queries + TILES_AT_ONCE * 4, keys + PANEL
            one = Conv(source=step.source, target=step.target, weights="", kernel=1)
            linear = sum(self.scratch_floats(one, ATTENTION_BLOCK))
            at_once = self.threads * (TILES_AT_ONCE * 4 * (keys + c) + linear)
            floats = 3 * queries * c + 2 * keys * c + 4 * queries + 2 * c * c + at_once
        return 4 * floats + (8 + 5 * self.threads) * ALIGN

    def spilled_blocks(self, step: Attention) -> int:
        """Bytes of the blocks in which attention reads a spilled map."""
        return 2 * aligned(max(QUERIES, KEYS) * step.source.channels * self.itemsize)

    def reference_rows(self, step: Conv) -> int:
        """Rows that `reference` convolves at once: few on the CPU, for they stay near the processor.

        And so little is what torch allocates for them, whose allocator keeps now more and now less of what was freed.
        """
        if not self.touched:
            return self.size(step.target)[0]
        source, target = (self.size(one)[1] * one.channels for one in (step.source, step.target))
        changed = source if step.resample == "none" else 2 * source
        return max(1, REFERENCE // (max(changed, target) * self.product_size))

    def fold_rows(self, step: Fold) -> int:
        """Rows that a shuffle makes at once: whole blocks, and few, for the reasons of `reference_rows`."""
        granule, (high, _) = self.granule(step), self.size(step.target)
        if not self.touched:
            return high
        return max(1, REFERENCE // (granule * step.frames * self.row_bytes(step.target))) * granule

    def local_block(self, step: Gated | Scales) -> tuple[int, int]:
        """Rows and channels of its target's, or its source's, that a depthwise convolution takes at once.

        Few, for the reasons of `reference_rows`.
        """
        high, wide = self.size(step.target)
        rows = min(high, LOCAL_ROWS)
        unit = step.group if isinstance(step, Scales) else 1
        channels = step.source.channels if isinstance(step, Scales) else step.target.channels
        around = (rows + step.kernel - 1) * (wide + step.kernel - 1)
        return rows, min(channels, max(1, self._local_values // (around * unit)) * unit)

    def local_positions(self, step: Local) -> int:
        """Positions that a step takes at once which makes each by itself."""
        values = self._local_values
        if isinstance(step, Quantized | SpatialNorm):  # by torch beside the kernels too, whose allocator keeps many
            values //= 4
        if isinstance(step, Quantized):  # a distance, in float64, to each entry
            return max(1, values // (2 * (min(ENTRIES, step.entries) + step.source.channels)))
        return max(1, values // step.source.channels)

    def guided_block(self, step: SpatialNorm) -> tuple[int, int]:
        """Rows of its target and columns of its guide that a norm takes at once: rows of one row of the guide."""
        positions, wide = self.local_positions(step), self.size(step.guide)[1]
        columns = min(wide, max(1, positions // step.repeat))
        return min(step.repeat, max(1, positions // (columns * step.repeat))), columns

    @property
    def _local_values(self) -> int:
        return (REFERENCE if self.touched else 64 * REFERENCE) // 4

    def local_bytes(self, step: Local, rows: int) -> int:
        """Bytes that are allocated at a time for such a step, by torch or by the kernels."""
        if self.kernels == "winograd":
            return max(self._of_torch(step, rows), 4 * self.threads * self.local_scratch(step))
        return self._of_torch(step, rows)

    def _of_torch(self, step: Local, rows: int) -> int:
        wide = self.size(step.target)[1]
        if isinstance(step, Gated | Scales):
            most, channels = self.local_block(step)
            block = (min(rows, most) + step.kernel - 1) * (wide + step.kernel - 1) * channels
            weights = step.source.channels * (step.kernel**2 + (step.group if isinstance(step, Scales) else 0))
            return 4 * (LOCAL_COPIES * block + 2 * weights)
        if isinstance(step, SpatialNorm):
            high, columns = self.guided_block(step)
            each = (min(rows, high) * step.repeat * columns + 4 * columns) * step.source.channels
            return 4 * (2 * each + 4 * step.source.channels * (step.guide.channels + 2))
        positions = min(self.local_positions(step), rows * wide)
        if isinstance(step, Quantized):
            entries, channels = min(ENTRIES, step.entries), step.source.channels
            return 8 * (2 * positions * (entries + channels) + 3 * entries * channels)
        sums = 4 * step.head_dim * step.target.channels if isinstance(step, LinearAttention) else 0
        return 4 * (LOCAL_COPIES * positions * step.source.channels + sums)

    def local_scratch(self, step: Local) -> int:
        """Floats in which a thread of the kernels makes such a step."""
        wide, reach = self.size(step.target)[1], 0
        if isinstance(step, Gated | Scales):
            reach = step.kernel // 2
            around = (LOCAL_ROWS + 2 * reach) * (wide + 2 * reach)
            channels = step.group if isinstance(step, Scales) else LOCAL_CHANNELS
            return channels * (around + 2 * (LOCAL_ROWS * wide + TILES_AT_ONCE))
        if isinstance(step, LinearAttention):
            size = step.head_dim
            return max(2 * SUMMED + size + 1, 2 * (LOCAL_POSITIONS + TILES_AT_ONCE)) * size
        return LOCAL_POSITIONS * step.source.channels

    @property
    def product_size(self) -> int:
        """Bytes of a number that torch multiplies."""
        return 4 if self.widens else self.itemsize

    def reference_scratch(self, step: Conv, rows: int) -> int:
        """Bytes in which `reference` prepares what so many rows of a target are made of."""
        _, wide = self.size(step.source)
        high = end_source_row(step, rows) - first_source_row(step, 0)
        channels = step.source.channels
        changed = aligned(4 * high * wide * channels) if step.changes_source else 0
        repeat = 2 if step.resample == "up" else 1
        padded = self.product_size * repeat * high * (repeat * wide + 2) * channels
        if step.kernel == 1:
            padded = 0 if self.itemsize == 4 else self.product_size * high * wide * channels
        measured = rows * self.size(step.target)[1] * step.target.channels * 4 if self.itemsize < 4 else 0
        return max(changed + padded, measured)

    def reference_result(self, step: Step, rows: int) -> int:
        """Bytes that torch allocates for so many rows: the result, and weights in its own order."""
        if isinstance(step, Fold):
            rows = min(rows, self.fold_rows(step))
            source = (rows * step.block if step.inwards else ceil(rows / step.block)) * self.row_bytes(step.source)
            largest = step.frames * max(source, rows * self.row_bytes(step.target))
            return (2 if step.group == 1 and step.residual is None else 4) * largest
        if isinstance(step, Local):
            return self.local_bytes(step, rows)
        assert isinstance(step, Conv)  # attention has its own scratch
        across, size = self.size(step.target)[1], self.product_size
        unfolded = 9 * rows * across * step.source.channels * size if self.unfolds and step.kernel == 3 else 0
        weights = size * step.kernel**2 * step.source.channels * step.target.channels
        made = rows * across * step.target.channels * size + unfolded + weights  # once more in oneDNN's own order
        kept = 2 if self.touched else 1  # what is freed stays in the allocator's heap, and may not fit what comes next
        return kept * made


@lru_cache(maxsize=4096)
def fastest(step: Conv, rows: int, columns: int, most: int | None = None) -> Algorithm:
    """The algorithm that takes the least time for a target of this size.

    Large tiles take fewer multiplications, small ones fewer transformed weights, which count where there are few
    positions to share them.

    Args:
        most: bytes of transformed weights in float32, where one has so few; else that which has the fewest.
    """
    if step.kernel == 1:
        return pointwise()
    able = ALGORITHMS[step.resample]
    if most is not None:
        fewest = min(one.positions for one in able)
        weights = 4 * step.source.channels * ceil(step.target.channels / PANEL) * PANEL
        able = tuple(one for one in able if one.positions == fewest or one.positions**2 * weights <= most)
    return min(able, key=lambda one: cost(one, step, rows, columns))


def cost(algorithm: Algorithm, step: Conv, rows: int, columns: int) -> float:
    """What an algorithm takes, in operations of products."""
    tiles = ceil(rows / algorithm.tile) * ceil(columns / algorithm.tile)
    padded = ceil(tiles / TILES_AT_ONCE) * TILES_AT_ONCE
    source, target = step.source.channels, ceil(step.target.channels / PANEL) * PANEL
    return algorithm.positions**2 * (
        2.0 * padded * source * target
        + WEIGHT_COST * source * target
        + tiles * algorithm.positions * (INPUT_COST * source + OUTPUT_COST * target)
    )


def aligned(size: int) -> int:
    """A size rounded up to whole pages."""
    return ceil(size / ALIGN) * ALIGN
