"""GroupNorm and SiLU on channels-last data, in Triton; importing this needs triton.

Three kernels in two passes over the map: `_partial` takes statistics of chunks of positions, one channel a lane;
`_merge`, a small one, merges chunks and the channels of each group; `_apply` normalises and activates. All of it is
computed in float32, whatever the map's dtype. Means and M2 (sums of squared deviations from the mean) are updated as
Welford (1962) and merged as Chan, Golub & LeVeque (1979, STAN-CS-79-773) do, so that a large mean costs no precision.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 128  # a program's tile is at most so wide: rows of 256 bytes or more are read whole
ELEMENTS = 4096  # of a tile
TILES = 4  # a chunk holds at least so many, else its few sums cost as much as reading it
PARTIALS = 1 << 17  # means of a picture that `_merge` has to read, about; this bounds the number of chunks


@triton.jit(do_not_specialize=["positions", "chunk", "chunks"])
def _partial(
    x,
    means,
    m2s,
    positions,
    channels,
    chunk,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """x [N, positions, channels] -> means and m2s [N, chunks, channels], each over `chunk` positions."""
    i, n = tl.program_id(0), tl.program_id(2)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    held = tl.minimum(chunk, positions - i * chunk)  # the last chunk may be shorter
    # a map can hold more than 2 ** 31 numbers, a chunk can't
    x += (n.to(tl.int64) * positions + i * chunk) * channels
    mean = tl.zeros((ROWS, COLUMNS), tl.float32)
    m2 = tl.zeros((ROWS, COLUMNS), tl.float32)
    steps = tl.cdiv(held, ROWS)
    for step in range(steps):
        at = step * ROWS + row
        there = (at < held)[:, None] & (column < channels)[None, :]
        value = tl.load(x + at[:, None] * channels + column[None, :], mask=there, other=0.0).to(tl.float32)
        delta = tl.where(there, value - mean, 0.0)
        mean += delta * (1.0 / (step + 1))
        m2 += delta * (value - mean)
    # every row of the tile has seen the same number of positions, or one less
    count = (steps - (((steps - 1) * ROWS + row) >= held).to(tl.int32)).to(tl.float32)[:, None]
    total = tl.sum(count * mean, axis=0) / held
    spread = tl.sum(m2 + count * (mean - total[None, :]) * (mean - total[None, :]), axis=0)
    out = (n.to(tl.int64) * tl.num_programs(0) + i) * channels + column
    tl.store(means + out, total, mask=column < channels)
    tl.store(m2s + out, spread, mask=column < channels)


@triton.jit(do_not_specialize=["positions", "chunk", "chunks"])
def _merge(
    means,
    m2s,
    mean,
    rstd,
    positions,
    channels,
    chunk,
    chunks,
    eps,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """means and m2s [N, chunks, channels] -> mean and 1 / sqrt(variance + eps), [N, groups], SIZE channels a group."""
    group, n = tl.program_id(0), tl.program_id(1)
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    start = n.to(tl.int64) * chunks * channels + group * SIZE
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, chunks, ROWS):
        at = first + row
        count = tl.minimum(chunk, positions - at * chunk).to(tl.float32)[:, None]
        there = (at < chunks)[:, None] & (column < SIZE)[None, :]
        part = tl.load(means + start + at[:, None] * channels + column[None, :], mask=there, other=0.0)
        total += count * part
    whole = tl.sum(total) / positions / SIZE
    spread = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, chunks, ROWS):
        at = first + row
        count = tl.minimum(chunk, positions - at * chunk).to(tl.float32)[:, None]
        there = (at < chunks)[:, None] & (column < SIZE)[None, :]
        offset = start + at[:, None] * channels + column[None, :]
        delta = tl.load(means + offset, mask=there, other=0.0) - whole
        m2 = tl.load(m2s + offset, mask=there, other=0.0)
        spread += tl.where(there, m2 + count * delta * delta, 0.0)
    variance = tl.sum(spread) / positions / SIZE
    out = n * tl.num_programs(0) + group
    tl.store(mean + out, whole)
    tl.store(rstd + out, 1.0 / tl.sqrt(variance + eps))


@triton.jit(do_not_specialize=["positions", "chunk", "chunks"])
def _apply(
    x,
    out,
    mean,
    rstd,
    weight,
    bias,
    positions,
    channels,
    groups,
    SIZE: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out = silu((x - mean) * rstd * weight + bias); out may be x. The sigmoid is computed in float32 too."""
    i, n = tl.program_id(0), tl.program_id(2)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    inside = column < channels
    group = n * groups + column // SIZE
    centre = tl.load(mean + group, mask=inside, other=0.0)
    scale = tl.load(rstd + group, mask=inside, other=0.0)
    scale *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    start = (n.to(tl.int64) * positions + i * ROWS) * channels
    offset = row[:, None] * channels + column[None, :]
    there = (i * ROWS + row < positions)[:, None] & inside[None, :]
    value = tl.load(x + start + offset, mask=there, other=0.0).to(tl.float32)
    y = (value - centre[None, :]) * scale[None, :] + shift[None, :]
    if SILU:
        y = y * tl.sigmoid(y)
    tl.store(out + start + offset, y.to(out.dtype.element_ty), mask=there)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool, out: Tensor) -> None:
    """Writes silu(group_norm(x)), or group_norm(x), to `out`.

    Args:
        x: [N, positions, C], contiguous; float32, bfloat16 or float16.
        weight, bias: [C].
        out: as x, of any of these dtypes; may be x.
    """
    n, positions, channels = x.shape
    size = channels // groups
    columns = min(CHANNELS, triton.next_power_of_2(channels))
    rows = ELEMENTS // columns
    blocks = triton.cdiv(channels, columns)
    chunk = rows * max(TILES, triton.cdiv(positions * channels, PARTIALS * rows))
    chunks = triton.cdiv(positions, chunk)
    means, m2s = x.new_empty((2, n, chunks, channels), dtype=torch.float32)
    mean, rstd = x.new_empty((2, n, groups), dtype=torch.float32)
    wide = triton.next_power_of_2(size)
    # kernels run on the current device, which need not be the tensor's
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _partial[chunks, blocks, n](x, means, m2s, positions, channels, chunk, ROWS=rows, COLUMNS=columns)
        _merge[groups, n](
            *(means, m2s, mean, rstd, positions, channels, chunk, chunks, eps),
            SIZE=size,
            ROWS=max(1, ELEMENTS // wide),
            COLUMNS=wide,
        )
        _apply[triton.cdiv(positions, rows), blocks, n](
            *(x, out, mean, rstd, weight, bias, positions, channels, groups),
            SIZE=size,
            SILU=silu,
            ROWS=rows,
            COLUMNS=columns,
        )
