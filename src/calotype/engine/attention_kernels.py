"""CPU kernels of attention: a block of queries against a block of keys.

As those of `kernels.py`: compiled once, kept on disk, without a lock; addresses travel as integers. Compiled kernels on
disk follow this file alone: see `vectors.py`.
"""

from __future__ import annotations

import numpy as np

from calotype.engine.kernels import _factor, _kernel, _product_single, _read, _write
from calotype.engine.vectors import LANES, PANEL, ROWS, blend, softmax

ATTENTION_ROWS = 48  # queries that a thread takes at once

_softmax_row, _blend_row = softmax(), blend()


@_kernel("i" * 10)
def pack_keys(
    panel: int, source: int, count: int, channels: int, scale: int, shift: int, norm: int, keys: int, values: int,
    padded: int,
) -> None:  # fmt: skip
    """One panel of normalised positions, in the two layouts that the products of attention take.

    Args:
        source: `count` positions of `channels` floats, which scale and shift normalise, after `norm` if that is not 0.
        keys: [padded / PANEL, channels, PANEL]; values: [channels / PANEL, padded, PANEL]. Both are filled with zeros
            up to `padded`, a multiple of PANEL.
    """
    for lane in range(PANEL):
        k = panel * PANEL + lane
        at = source + 4 * k * channels
        factor = _factor(at, channels, norm) if norm and k < count else np.float32(1)
        for c in range(channels):
            x = np.float32(0)
            if k < count:
                x = _read(at + 4 * c) * factor * _read(scale + 4 * c) + _read(shift + 4 * c)
            _write(keys + 4 * ((panel * channels + c) * PANEL + lane), x)
            _write(values + 4 * ((c // PANEL * padded + k) * PANEL + c % PANEL), x)


@_kernel("i" * 5)
def _multiply(made: int, columns: int, rows: int, count: int, panels: int) -> None:
    """made [ATTENTION_ROWS, columns] = rows [ATTENTION_ROWS, count] times panels [columns / PANEL, count, PANEL]."""
    share = 4 * PANEL * ROWS // ATTENTION_ROWS  # of the next panel, which is fetched meanwhile
    for panel in range(columns // PANEL):
        b = panels + 4 * panel * count * PANEL
        for i in range(0, ATTENTION_ROWS, ROWS):
            c, a = made + 4 * (i * columns + panel * PANEL), rows + 4 * i * count
            following = b + 4 * count * (PANEL + i * PANEL // ATTENTION_ROWS)
            _product_single(c, 4 * columns, a, 4 * count, b, count, following, share, a, 0)


@_kernel("i" * 10)
def attend_rows(
    queries: int,
    channels: int,
    keys: int,
    values: int,
    count: int,
    padded: int,
    scores: int,
    mixed: int,
    sums: int,
    state: int,
) -> None:
    """ATTENTION_ROWS queries [ATTENTION_ROWS, channels] against one block of keys.

    Args:
        keys, values: as `pack_keys` makes them; count: of positions in them, without padding.
        scores, mixed: scratch, [ATTENTION_ROWS, padded] and [ATTENTION_ROWS, channels].
        sums: [ATTENTION_ROWS, channels], the weighted sums of values so far.
        state: [ATTENTION_ROWS, 4]: highest score and sum of weights so far.
    """
    _multiply(scores, padded, queries, channels, keys)
    for i in range(ATTENTION_ROWS):
        for k in range(count, padded):
            _write(scores + 4 * (i * padded + k), np.float32(-np.inf))
        _softmax_row(scores + 4 * i * padded, padded // LANES, state + 16 * i)
    _multiply(mixed, channels, scores, padded, values)
    for i in range(ATTENTION_ROWS):
        _blend_row(sums + 4 * i * channels, mixed + 4 * i * channels, channels // LANES, state + 16 * i + 8)
