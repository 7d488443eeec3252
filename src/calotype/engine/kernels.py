"""The CPU kernels: a block of tiles through activation, input transform, products and output transform.

Numba compiles them once and keeps them on disk; their inner loops are those of `vectors.py` and `products.py`. A block
touches no Python object and holds no lock, so plain threads run many at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types

from calotype.engine import bilinear
from calotype.engine.products import product
from calotype.engine.vectors import (
    BF16,
    LANES,
    PANEL,
    ROWS,
    SKEW,
    accumulate,
    activation,
    choice,
    finish,
    finish_half,
    input_transform,
    output_transform,
    scalars,
    weight_transform,
    widen,
)

ALGORITHMS = (bilinear.pointwise(), *(one for kind in bilinear.ALGORITHMS.values() for one in kind))
POINTWISE = ALGORITHMS.index(bilinear.pointwise())
_COUNT = len(ALGORITHMS)
_HALVES = (False, True) if BF16 else (False,)

_read, _write, _write_double = scalars()
_identity, _silu, _relu = activation("none"), activation("silu"), activation("relu")
_normed_identity, _normed_silu, _normed_relu = (activation(kind, norm=True) for kind in ("none", "silu", "relu"))
# which of each: the algorithm's number, and _COUNT more with products of bfloat16, or with a residual
_transform_input = choice(6, [input_transform(one.input, half) for half in _HALVES for one in ALGORITHMS])
_transform_output = choice(9, [output_transform(one, residual) for residual in (False, True) for one in ALGORITHMS])
_transform_weights = choice(4, [weight_transform(one, half) for half in _HALVES for one in ALGORITHMS])
_finish_pixel, _finish_added = finish(residual=False), finish(residual=True)
_finish_half, _widen = finish_half(), widen()
_accumulate_pixels = accumulate()
_product_single, _product_half = product(half=False), product(half=BF16)

_TILES = tuple(algorithm.tile for algorithm in ALGORITHMS)
_WINDOWS = tuple(algorithm.window for algorithm in ALGORITHMS)
_STEPS = tuple(algorithm.step for algorithm in ALGORITHMS)
_POSITIONS = tuple(algorithm.positions for algorithm in ALGORITHMS)
# HALVES: none, and maps are bfloat16: source and target alike, with channels of whole vectors, and no residual
NONE, SILU, RELU, HALVES = range(4)


_log = logging.getLogger("calotype")
_announced: list[bool] = []


def _kernel(kinds: str, gives: Any = types.void) -> Callable[[Any], Any]:
    """Compiles a function of integers ("i") and booleans ("b"), or reads it from the disk."""
    known = {"i": types.intp, "b": types.boolean}
    signature = gives(*(known[kind] for kind in kinds))

    def compiled(function: Any) -> Any:
        try:
            made = njit(signature, nogil=True, cache=True)(function)
        except RuntimeError:  # there is no folder for a cache that may be written
            made = njit(signature, nogil=True)(function)
        if not made.stats.cache_hits and not _announced:
            _announced.append(True)
            _log.warning("Compiling the CPU kernels for this machine; this happens once and takes some seconds.")
        return made

    return compiled


@_kernel("ii")
def _zero(address: int, floats: int) -> None:
    for i in range(floats):
        _write(address + 4 * i, np.float32(0))


@_kernel("iii", types.float32)
def _factor(source: int, channels: int, norm: int) -> Any:
    """What normalises one pixel of any number of channels, as `vectors.activation` has it."""
    total = np.float32(0)
    for c in range(channels):
        total += _read(source + 4 * c) * _read(source + 4 * c)
    mean = total * _read(norm)
    if mean < _read(norm + 4):
        mean = _read(norm + 4)
    return np.float32(1) / np.sqrt(mean + _read(norm + 8))


@_kernel("i" * 9)
def _activate(
    target: int, source: int, columns: int, channels: int, padded: int, scale: int, shift: int, activation: int,
    norm: int,
) -> None:  # fmt: skip
    """Pixels of `channels` floats -> normalised and activated pixels of `padded` floats."""
    if activation == HALVES:
        if channels == padded:
            _widen(target, source, columns * (channels // LANES))
            return
        for column in range(columns):
            _widen(target + 4 * column * padded, source + 2 * column * channels, channels // LANES)
            _zero(target + 4 * (column * padded + channels), padded - channels)
        return
    if channels == padded:
        if norm:
            if activation == SILU:
                _normed_silu(target, source, columns, channels // LANES, scale, shift, norm)
            elif activation == RELU:
                _normed_relu(target, source, columns, channels // LANES, scale, shift, norm)
            else:
                _normed_identity(target, source, columns, channels // LANES, scale, shift, norm)
        elif activation == SILU:
            _silu(target, source, columns, channels // LANES, scale, shift)
        elif activation == RELU:
            _relu(target, source, columns, channels // LANES, scale, shift)
        else:
            _identity(target, source, columns, channels // LANES, scale, shift)
        return
    for column in range(columns):
        at = source + 4 * column * channels
        factor = _factor(at, channels, norm) if norm else np.float32(1)
        for c in range(channels):
            x = _read(at + 4 * c) * factor * _read(scale + 4 * c) + _read(shift + 4 * c)
            if activation == SILU:
                x = x / (np.float32(1) + np.exp(-x))
            elif activation == RELU and x < 0:
                x = np.float32(0)
            _write(target + 4 * (column * padded + c), x)
        _zero(target + 4 * (column * padded + channels), padded - channels)


@_kernel("i" * 15)
def _gather(
    patch: int,
    y0: int,
    x0: int,
    rows: int,
    columns: int,
    padded: int,
    source: int,
    source_row: int,
    height: int,
    width: int,
    channels: int,
    scale: int,
    shift: int,
    activation: int,
    norm: int,
) -> None:
    """Activated pixels of a map from row y0 and column x0 on: [rows, columns, padded], zeros where there are none."""
    left = max(0, -x0)
    right = max(left, min(columns, width - x0))
    for r in range(rows):
        to = patch + 4 * r * columns * padded
        if y0 + r < 0 or y0 + r >= height:
            _zero(to, columns * padded)
            continue
        _zero(to, left * padded)
        _zero(to + 4 * right * padded, (columns - right) * padded)
        element = 2 if activation == HALVES else 4
        at = source + element * ((y0 + r - source_row) * width + x0 + left) * channels
        _activate(to + 4 * left * padded, at, right - left, channels, padded, scale, shift, activation, norm)


@_kernel("iib" + "i" * 30)
def convolve_block(
    index: int,
    algorithm: int,
    half: bool,
    source: int,
    source_row: int,
    height: int,
    width: int,
    channels: int,
    scale: int,
    shift: int,
    activation: int,
    norm: int,
    pad: int,
    target: int,
    target_row: int,
    out_height: int,
    out_width: int,
    out_channels: int,
    residual: int,
    residual_row: int,
    floor: int,
    weights: int,
    bias: int,
    first: int,
    end: int,
    tile_columns: int,
    block_height: int,
    block_width: int,
    statistics: int,
    patch: int,
    inputs: int,
    outputs: int,
    tile: int,
) -> None:
    """One block of a convolution: pixels of `target` from those of `source`, both [rows, width, channels].

    Args:
        index: of the block, counted along columns first, in tile rows `first` to `end`.
        algorithm: index in `ALGORITHMS`; `half`: whether products are bfloat16.
        source, source_row: where the map's row of this number lies; what is outside height x width counts as zero.
        scale, shift: [channels], before the activation; norm: 0, or of each pixel before (see `vectors.activation`).
        pad: zeros before the first row and column.
        target, residual: likewise; `residual` is 0 for none, and `floor` the address of what results are cut at.
        weights: transformed, [T * T, panels, channels, PANEL]; bias: [panels * PANEL].
        statistics: 0, or [blocks, 3, out_channels] of float64: count, mean and M2 (the sum of squared deviations).
        patch, inputs, outputs, tile: this thread's scratch; `scratch_floats` gives the sizes.
    """
    size, window, step = _TILES[algorithm], _WINDOWS[algorithm], _STEPS[algorithm]
    t2 = _POSITIONS[algorithm] * _POSITIONS[algorithm]
    padded = (channels + LANES - 1) // LANES * LANES
    panels = (out_channels + PANEL - 1) // PANEL
    wide = panels * PANEL
    across = (tile_columns + block_width - 1) // block_width
    tile_y, tile_x = first + index // across * block_height, index % across * block_width
    high, broad = min(block_height, end - tile_y), min(block_width, tile_columns - tile_x)
    tiles = high * broad
    tiles_padded = (tiles + ROWS - 1) // ROWS * ROWS

    # activation, once for every pixel the block sees
    y0, x0 = tile_y * step - pad, tile_x * step - pad
    rows, columns = (high - 1) * step + window, (broad - 1) * step + window
    direct = algorithm == POINTWISE and not half
    if direct:
        patch = inputs
    _gather(
        patch,
        y0,
        x0,
        rows,
        columns,
        padded,
        source,
        source_row,
        height,
        width,
        channels,
        scale,
        shift,
        activation,
        norm,
    )

    # input transform; a single pixel's is the pixel
    element = 2 if half else 4
    position = tiles_padded * padded * element + SKEW
    vectors = padded // LANES
    kind = algorithm + (_COUNT if half else 0)
    for i in range(0 if direct else tiles):
        at = patch + 4 * ((i // broad) * step * columns + (i % broad) * step) * padded
        to = inputs + i * padded * element
        _transform_input(kind, to, position, at, 4 * columns * padded, 4 * padded, vectors)

    # products, which fetch the next panel of weights and the next position's inputs meanwhile, each a share
    count = (channels + 1) // 2 if half else channels
    out_position = 4 * tiles_padded * wide + SKEW
    parts = tiles_padded // ROWS
    b_share = (4 * PANEL + parts - 1) // parts
    a_share = (ROWS * padded * element + panels * count - 1) // (panels * count)
    for p in range(t2):
        for panel in range(panels):
            b = weights + 4 * (p * panels + panel) * count * PANEL
            for part in range(parts):
                a = inputs + p * position + part * ROWS * padded * element
                c = outputs + p * out_position + 4 * (part * ROWS * wide + panel * PANEL)
                next_b = b + count * (4 * PANEL + part * b_share)
                next_a = inputs + (p + 1) * position + (panel * parts + part) * count * a_share
                if half:
                    _product_half(c, 4 * wide, a, padded * element, b, count, next_b, b_share, next_a, a_share)
                else:
                    _product_single(c, 4 * wide, a, padded * element, b, count, next_b, b_share, next_a, a_share)

    # output transform
    out_vectors = wide // LANES
    sums = tile + 4 * size * size * wide
    whole_vectors = out_channels % LANES == 0
    seen = 0
    for i in range(tiles):
        y, x = (tile_y + i // broad) * size, (tile_x + i % broad) * size
        down, along = min(size, out_height - y), min(size, out_width - x)
        place = 4 * ((y - target_row) * out_width + x) * out_channels
        added = residual + 4 * ((y - residual_row) * out_width + x) * out_channels if residual else 0
        inside = down == size and along == size and out_channels == wide and activation != HALVES
        at = outputs + 4 * i * wide
        row, column = 4 * out_width * out_channels, 4 * out_channels
        to = target + place
        if not inside:
            row, column, to = 4 * size * wide, 4 * wide, tile
        use = added if inside else 0
        cut = floor if inside else floor + 4
        which = algorithm + (_COUNT if use else 0)
        _transform_output(which, to, row, column, at, out_position, out_vectors, bias, cut, use)

        if not inside:  # what lies beyond the map's edge, or beyond its channels, is left behind
            for r in range(down):
                for k in range(along):
                    pixel = tile + 4 * (r * size + k) * wide
                    offset = 4 * (r * out_width + k) * out_channels
                    if activation == HALVES:
                        _finish_half(target + (place + offset) // 2, pixel, out_channels // LANES, floor)
                        continue
                    if whole_vectors:
                        if added:
                            _finish_added(target + place + offset, pixel, out_channels // LANES, floor, added + offset)
                        else:
                            _finish_pixel(target + place + offset, pixel, out_channels // LANES, floor, 0)
                        continue
                    for c in range(out_channels):
                        value = _read(pixel + 4 * c)
                        if added:
                            value += _read(added + offset + 4 * c)
                        if value < _read(floor):
                            value = _read(floor)
                        _write(target + place + offset + 4 * c, value)

        if statistics:
            if i == 0:  # deviations from the first tile's mean, so that a large mean costs no precision
                for c in range(out_channels):
                    total = np.float32(0)
                    for r in range(down):
                        for k in range(along):
                            total += _read(target + place + 4 * ((r * out_width + k) * out_channels + c))
                    _write(sums + 4 * c, total / np.float32(down * along))
                _zero(sums + 4 * wide, 2 * wide)
            for r in range(down):
                line = target + place + 4 * r * out_width * out_channels
                if whole_vectors:
                    _accumulate_pixels(line, along, 4 * out_channels, out_channels // LANES, sums, 4 * wide)
                    continue
                for k in range(along):
                    for c in range(out_channels):
                        d = _read(line + 4 * (k * out_channels + c)) - _read(sums + 4 * c)
                        _write(sums + 4 * (wide + c), _read(sums + 4 * (wide + c)) + d)
                        _write(sums + 4 * (2 * wide + c), _read(sums + 4 * (2 * wide + c)) + d * d)
            seen += down * along

    if statistics:
        to = statistics + 8 * index * 3 * out_channels
        for c in range(out_channels):
            first_sum, squares = np.float64(_read(sums + 4 * (wide + c))), np.float64(_read(sums + 4 * (2 * wide + c)))
            _write_double(to + 8 * c, np.float64(seen))
            _write_double(to + 8 * (out_channels + c), np.float64(_read(sums + 4 * c)) + first_sum / seen)
            _write_double(to + 8 * (2 * out_channels + c), max(0.0, squares - first_sum * first_sum / seen))


@_kernel("ib" + "i" * 5)
def transform_weights(
    algorithm: int, half: bool, source: int, out_channels: int, channels: int, target: int, panel: int
) -> None:
    """One panel of weights [out_channels, channels, taps, taps] -> [T * T, panels, channels, PANEL].

    With `half`, of pairs of bfloat16 [T * T, panels, channels / 2, PANEL, 2]. `out_channels` is a multiple of PANEL,
    and `channels` even with `half`.
    """
    taps = 1 if algorithm == POINTWISE else 3
    stride = 4 * channels * taps * taps
    k_step = 2 if half else 1
    count = channels // k_step
    position = 4 * (out_channels // PANEL) * count * PANEL
    for part in range(PANEL // LANES):
        for k in range(count):
            at = source + (panel * PANEL + part * LANES) * stride + 4 * k * k_step * taps * taps
            to = target + 4 * ((panel * count + k) * PANEL + part * LANES)
            _transform_weights(algorithm + (_COUNT if half else 0), to, position, at, stride)
