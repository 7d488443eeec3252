"""The CPU kernel of gradients of weights: a block of tiles of a 3x3 convolution.

As those of `kernels.py`: compiled once, kept on disk, without a lock; addresses travel as integers. Compiled kernels on
disk follow this file alone: see `vectors.py`.
"""

from __future__ import annotations

from calotype.engine import bilinear
from calotype.engine.kernels import _gather, _kernel
from calotype.engine.products import outer_product
from calotype.engine.vectors import GRADIENT_ROWS, LANES, PANEL, SKEW, emit, input_transform

ALGORITHM = bilinear.winograd(4)
_TILE, _WINDOW, _POSITIONS = ALGORITHM.tile, ALGORITHM.window, ALGORITHM.positions
_transform_input = emit(6, input_transform(ALGORITHM.input, False))
_transform_gradient = emit(6, input_transform(ALGORITHM.of_output, False))
_outer_product = outer_product()


@_kernel("i" * 17)
def gradient_block(
    index: int,
    source: int,
    given: int,
    height: int,
    width: int,
    channels: int,
    out_channels: int,
    scale: int,
    shift: int,
    activation: int,
    block_height: int,
    block_width: int,
    sums: int,
    patch: int,
    inputs: int,
    outputs: int,
    padded_out: int,
) -> None:
    """What one block of tiles adds to the gradient of a 3x3 convolution's weights, at the positions of `ALGORITHM`.

    y = AT ((G w) * (BT x)) gives dw = GT sum((A dy) * (BT x)) along each axis.

    Args:
        index: of the block, counted along columns first.
        source, given: pixels [height, width, channels] and the gradient of results [height, width, out_channels].
        scale, shift: ones and zeros, as many as the larger number of channels; activation: NONE or HALVES.
        sums: [T * T, padded channels, padded_out], added to.
        patch, inputs, outputs: this thread's scratch.
        padded_out: out_channels rounded up to whole panels.
    """
    size, window, positions = _TILE, _WINDOW, _POSITIONS
    padded = (channels + LANES - 1) // LANES * LANES
    down, along = (height + size - 1) // size, (width + size - 1) // size
    across = (along + block_width - 1) // block_width
    tile_y, tile_x = index // across * block_height, index % across * block_width
    high, broad = min(block_height, down - tile_y), min(block_width, along - tile_x)
    tiles = high * broad

    columns = broad * size + window - size
    _gather(
        patch, tile_y * size - 1, tile_x * size - 1, high * size + window - size, columns, padded,
        source, 0, height, width, channels, scale, shift, activation, 0,
    )  # fmt: skip
    position = 4 * tiles * padded + SKEW
    for i in range(tiles):
        at = patch + 4 * size * ((i // broad) * columns + i % broad) * padded
        _transform_input(inputs + 4 * i * padded, position, at, 4 * columns * padded, 4 * padded, padded // LANES)

    columns = broad * size
    _gather(
        patch, tile_y * size, tile_x * size, high * size, columns, padded_out,
        given, 0, height, width, out_channels, scale, shift, activation, 0,
    )  # fmt: skip
    out_position = 4 * tiles * padded_out + SKEW
    for i in range(tiles):
        at = patch + 4 * size * ((i // broad) * columns + i % broad) * padded_out
        to = outputs + 4 * i * padded_out
        _transform_gradient(to, out_position, at, 4 * columns * padded_out, 4 * padded_out, padded_out // LANES)

    for p in range(positions * positions):
        for panel in range(padded_out // PANEL):
            b = outputs + p * out_position + 4 * panel * PANEL
            for i in range(0, padded, GRADIENT_ROWS):
                c = sums + 4 * ((p * padded + i) * padded_out + panel * PANEL)
                _outer_product(c, 4 * padded_out, inputs + p * position + 4 * i, 4 * padded, b, 4 * padded_out, tiles)
