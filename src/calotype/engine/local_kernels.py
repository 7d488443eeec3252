"""CPU kernels of steps that are no convolution over channels: a block of rows, or a head, at a time.

As those of `kernels.py`: compiled once, kept on disk, without a lock; addresses travel as integers, strides in bytes.
Channels come in whole vectors. Compiled kernels on disk follow this file alone: see `vectors.py`.
"""

from __future__ import annotations

import numpy as np

from calotype.engine.blocks import SUMMED
from calotype.engine.kernels import (
    _accumulate_pixels,
    _finish_added,
    _finish_pixel,
    _kernel,
    _normed_identity,
    _product_single,
    _read,
    _write,
    _write_double,
    _zero,
)
from calotype.engine.local_vectors import depthwise, gate, moved, ratio, summed, whole_number
from calotype.engine.products import outer_product
from calotype.engine.vectors import GRADIENT_ROWS, LANES, PANEL, ROWS

_copy, _move_silu, _move_relu = moved("none"), moved("silu"), moved("relu")
_three, _five, _seven = depthwise(3), depthwise(5), depthwise(7)
_place = whole_number()
_gate, _ratio, _summed = gate(), ratio(), summed()
_outer_product = outer_product()
KERNELS = (3, 5, 7)
_TURN = 16  # blocks of a row that are folded at once


@_kernel("i" * 12)
def _patch(
    to: int, source: int, source_row: int, height: int, width: int, channels: int, first: int, rows: int, reach: int,
    low: int, chunk: int, silu: int,
) -> None:  # fmt: skip
    """Rows of some channels with `reach` rows and columns around them, zeros around the map; after SiLU if asked."""
    columns = width + 2 * reach
    for r in range(rows + 2 * reach):
        y = first - reach + r
        line = to + 4 * r * columns * chunk
        if y < 0 or y >= height:
            _zero(line, columns * chunk)
            continue
        _zero(line, reach * chunk)
        _zero(line + 4 * (reach + width) * chunk, reach * chunk)
        at = source + 4 * ((y - source_row) * width * channels + low)
        if silu:
            _move_silu(line + 4 * reach * chunk, 4 * chunk, at, 4 * channels, width, chunk // LANES)
        else:
            _copy(line + 4 * reach * chunk, 4 * chunk, at, 4 * channels, width, chunk // LANES)


@_kernel("i" * 9)
def _filtered(
    to: int, patch: int, rows: int, width: int, kernel: int, chunk: int, weights: int, channels: int, bias: int
) -> None:
    """A patch through a kernel for each channel: [rows, width, chunk]."""
    columns = width + kernel - 1
    for r in range(rows):
        line, at = to + 4 * r * width * chunk, patch + 4 * r * columns * chunk
        row, column, tap = 4 * columns * chunk, 4 * chunk, 4 * channels
        if kernel == 3:
            _three(line, at, row, column, width, chunk // LANES, weights, tap, bias)
        elif kernel == 5:
            _five(line, at, row, column, width, chunk // LANES, weights, tap, bias)
        else:
            _seven(line, at, row, column, width, chunk // LANES, weights, tap, bias)


@_kernel("i" * 16)
def gate_block(
    index: int, source: int, source_row: int, height: int, width: int, half: int, target: int, target_row: int,
    first: int, end: int, block: int, chunk: int, kernel: int, weights: int, bias: int, scratch: int,
) -> None:  # fmt: skip
    """Some rows and channels of a gated depthwise convolution.

    Args:
        index: of the block, counted along channels first.
        half: channels of the target; the source has twice as many.
        weights: [kernel * kernel, 2 * half]; bias: [2 * half].
        scratch: this thread's, of `Job.local_scratch`.
    """
    parts = half // chunk
    low, top = index % parts * chunk, first + index // parts * block
    rows = min(block, end - top)
    patch = scratch + 2 * 4 * block * width * chunk
    for side in range(2):
        at = side * half + low
        _patch(patch, source, source_row, height, width, 2 * half, top, rows, kernel // 2, at, chunk, 1)
        to = scratch + 4 * side * block * width * chunk
        _filtered(to, patch, rows, width, kernel, chunk, weights + 4 * at, 2 * half, bias + 4 * at)
    a, b = scratch, scratch + 4 * block * width * chunk
    to = target + 4 * ((top - target_row) * width * half + low)
    _gate(to, 4 * half, a, b, 4 * chunk, rows * width, chunk // LANES)


@_kernel("i" * 19)
def scale_block(
    index: int, source: int, source_row: int, height: int, width: int, channels: int, target: int, target_row: int,
    wide: int, part: int, first: int, end: int, block: int, group: int, kernel: int, weights: int, none: int,
    matrices: int, scratch: int,
) -> None:  # fmt: skip
    """Some rows of one group of channels at one scale; with `part` 1 they are copied as they are, too.

    Args:
        index: of the block, counted along groups first.
        wide: channels of the target; part: which of its parts this scale is, from 1.
        weights: [kernel * kernel, channels]; none: zeros, as many as channels.
        matrices: [groups, group / PANEL, group, PANEL].
        scratch: this thread's, of `Job.local_scratch`.
    """
    groups = channels // group
    g, top = index % groups, first + index // groups * block
    rows = min(block, end - top)
    count = rows * width
    padded = (count + ROWS - 1) // ROWS * ROWS
    most = (block * width + ROWS - 1) // ROWS * ROWS
    made, patch = scratch + 4 * most * group, scratch + 8 * most * group
    low = g * group
    _patch(patch, source, source_row, height, width, channels, top, rows, kernel // 2, low, group, 0)
    _filtered(made, patch, rows, width, kernel, group, weights + 4 * low, channels, none)
    _zero(made + 4 * count * group, (padded - count) * group)
    for panel in range(group // PANEL):
        b = matrices + 4 * (g * (group // PANEL) + panel) * group * PANEL
        for i in range(0, padded, ROWS):
            c = scratch + 4 * (i * group + panel * PANEL)
            _product_single(c, 4 * group, made + 4 * i * group, 4 * group, b, group, b, 0, b, 0)
    to = target + 4 * ((top - target_row) * width * wide + part * channels + low)
    _copy(to, 4 * wide, scratch, 4 * group, count, group // LANES)
    if part == 1:
        at = source + 4 * ((top - source_row) * width * channels + low)
        _copy(to - 4 * channels, 4 * wide, at, 4 * channels, count, group // LANES)


@_kernel("i" * 6)
def sum_head(head: int, source: int, count: int, channels: int, size: int, scratch: int) -> None:
    """Of one head: sums over positions of v k^T [size, size], and of k, in float32; `scratch` ends with them.

    Args:
        source: positions of `channels`: q, k and v of `size` each, head after head.
        scratch: [SUMMED, 2 * size], and then [size + 1, size].
    """
    keys, values = scratch, scratch + 4 * SUMMED * size
    sums = scratch + 8 * SUMMED * size
    _zero(sums, (size + 1) * size)
    at = source + 4 * head * 3 * size
    _move_relu(keys, 4 * size, at + 4 * size, 4 * channels, count, size // LANES)
    _copy(values, 4 * size, at + 8 * size, 4 * channels, count, size // LANES)
    for panel in range(size // PANEL):
        for i in range(0, size, GRADIENT_ROWS):
            c = sums + 4 * (i * size + panel * PANEL)
            _outer_product(c, 4 * size, values + 4 * i, 4 * size, keys + 4 * panel * PANEL, 4 * size, count)
    _summed(sums + 4 * size * size, keys, 4 * size, count, size // LANES)


@_kernel("i" * 10)
def attend_block(
    index: int, source: int, count: int, channels: int, target: int, size: int, at_once: int, matrices: int,
    keys: int, scratch: int,
) -> None:  # fmt: skip
    """One head's means of values, for some positions.

    Args:
        index: of the block, counted along heads first.
        matrices: [heads, size / PANEL, size, PANEL], of the sums' transpose; keys: [heads, size], and then what is
            added to the sum of weights.
        scratch: this thread's, of [2, at_once rounded up to ROWS, size].
    """
    heads = channels // (3 * size)
    head, start = index % heads, index // heads * at_once
    some = min(at_once, count - start)
    padded = (some + ROWS - 1) // ROWS * ROWS
    query, mixed = scratch, scratch + 4 * ((at_once + ROWS - 1) // ROWS * ROWS) * size
    at = source + 4 * (start * channels + head * 3 * size)
    _move_relu(query, 4 * size, at, 4 * channels, some, size // LANES)
    _zero(query + 4 * some * size, (padded - some) * size)
    for panel in range(size // PANEL):
        b = matrices + 4 * (head * (size // PANEL) + panel) * size * PANEL
        for i in range(0, padded, ROWS):
            c = mixed + 4 * (i * size + panel * PANEL)
            _product_single(c, 4 * size, query + 4 * i * size, 4 * size, b, size, b, 0, b, 0)
    to = target + 4 * (start * heads * size + head * size)
    _ratio(
        to, 4 * heads * size, mixed, query, keys + 4 * head * size, 4 * size, some, size // LANES,
        keys + 4 * heads * size,
    )  # fmt: skip


@_kernel("i" * 12)
def norm_block(
    index: int, source: int, count: int, channels: int, target: int, residual: int, at_once: int, scale: int,
    shift: int, norm: int, floor: int, scratch: int,
) -> None:  # fmt: skip
    """Some positions, normalised, and a residual (0: none) added.

    Args:
        norm: as `vectors.activation` reads it; floor: the address of minus infinity.
        scratch: this thread's, of [at_once, channels]: what is added may lie where the result goes.
    """
    start = index * at_once
    some = min(at_once, count - start)
    offset = 4 * start * channels
    _normed_identity(scratch, source + offset, some, channels // LANES, scale, shift, norm)
    if residual:
        _finish_added(target + offset, scratch, some * channels // LANES, floor, residual + offset)
    else:
        _finish_pixel(target + offset, scratch, some * channels // LANES, floor, 0)


@_kernel("i" * 10)
def fold_row(
    line: int, step: int, turns: int, table: int, width: int, channels: int, group: int, share: int, target: int,
    residual: int,
) -> None:  # fmt: skip
    """A row of pixels whose every number is a mean of some in a block of its source.

    Args:
        line: the first block of the source that the row is of; step: from one to the next; turns: pixels of each.
        table: [turns, channels, group] int64, places in the block, or below zero for none.
        share: the address of one over `group`.
        residual: 0, or the address of what is added.
    """
    scale = _read(share)
    blocks = width // turns
    for start in range(0, blocks, _TURN):  # so few that what they read and make stays in the first cache
        some = min(_TURN, blocks - start)
        for i in range(turns * channels):
            offset = 4 * ((start * turns + i // channels) * channels + i % channels)
            places = table + 8 * i * group
            place = _place(places)
            for k in range(some):
                base = line + (start + k) * step
                at = offset + 4 * k * turns * channels
                total = np.float32(0) if place < 0 else _read(base + place)
                if group > 1:
                    for q in range(1, group):
                        other = _place(places + 8 * q)
                        if other >= 0:
                            total += _read(base + other)
                    total *= scale
                if residual:  # which may lie where the result goes
                    total += _read(residual + at)
                _write(target + at, total)


@_kernel("i" * 5)
def measure_row(source: int, width: int, channels: int, sums: int, statistics: int) -> None:
    """Count, mean and M2 by channel of a row of pixels, as `kernels.convolve_block` gives those of a block.

    Args:
        sums: scratch of [3, channels].
        statistics: [3, channels] of float64.
    """
    for c in range(channels):  # deviations from the first pixel, so that a large mean costs no precision
        _write(sums + 4 * c, _read(source + 4 * c))
    _zero(sums + 4 * channels, 2 * channels)
    if channels % LANES == 0:
        _accumulate_pixels(source, width, 4 * channels, channels // LANES, sums, 4 * channels)
    else:
        for column in range(width):
            for c in range(channels):
                d = _read(source + 4 * (column * channels + c)) - _read(sums + 4 * c)
                _write(sums + 4 * (channels + c), _read(sums + 4 * (channels + c)) + d)
                _write(sums + 4 * (2 * channels + c), _read(sums + 4 * (2 * channels + c)) + d * d)
    for c in range(channels):
        total = np.float64(_read(sums + 4 * (channels + c)))
        squares = np.float64(_read(sums + 4 * (2 * channels + c)))
        _write_double(statistics + 8 * c, np.float64(width))
        _write_double(statistics + 8 * (channels + c), np.float64(_read(sums + 4 * c)) + total / width)
        _write_double(statistics + 8 * (2 * channels + c), max(0.0, squares - total * total / width))
