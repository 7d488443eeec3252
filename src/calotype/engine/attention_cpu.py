"""Attention on the CPU by the kernels of `attention_kernels.py`, on the threads of the convolutions."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import torch
from torch import Tensor

from calotype.engine import kernels
from calotype.engine.attention import Folded
from calotype.engine.attention_kernels import ATTENTION_ROWS, attend_rows, pack_keys
from calotype.engine.blocks import ATTENTION_BLOCK, KEYS, QUERIES, Job, aligned
from calotype.engine.reference import Moments
from calotype.engine.vectors import PANEL
from calotype.engine.winograd import FLOORS, NO_NORM, Floats, Workers, merged, pixel_norm
from calotype.steps import Conv, Map, PixelNorm


class AttentionKernels:
    """Attends in one plan.

    Args:
        workers: threads that share the blocks.
        job: of that plan.
    """

    def __init__(self, workers: Workers, job: Job) -> None:
        self.workers, self.job = workers, job

    def run(
        self,
        positions: int,
        read: Callable[[int, int, int], Tensor],
        write: Callable[[int, int, Tensor, Moments], None],
        folded: Folded,
        scale: Floats,
        shift: Floats,
        scratch: Tensor,
        norm: PixelNorm | None = None,
        adds: bool = True,
    ) -> None:
        """`attention.attend` with these kernels' products; no operation of torch, whose threads would go on spinning.

        Args:
            write: (start, end, values, their moments by channel).
            scratch: bytes to work in, `blocks.Job.attention_bytes` of them.
        """
        channels, step, panel = len(scale), ATTENTION_ROWS, PANEL
        padded = -(-min(KEYS, positions) // panel) * panel
        rows = -(-min(QUERIES, positions) // step) * step
        take = _Carver(scratch)
        keys, values = (take(padded, channels) for _ in range(2))
        query, sums, result = (take(rows, channels) for _ in range(3))
        state = take(rows, 4)
        places = [take(step, padded + channels) for _ in range(self.workers.threads)]
        linear = _Linear(self.workers, self.job, channels, take)
        ask, answer = linear.weights(folded.query), linear.weights(folded.out)
        of_positions = pixel_norm(norm, channels)
        one, zero = np.ones(channels, dtype=np.float32), np.zeros(channels, dtype=np.float32)
        for start in range(0, positions, QUERIES):
            end = min(positions, start + QUERIES)
            asked = read(start, end, 0)
            linear.run(
                asked.data_ptr(), end - start, ask, folded.query_bias, scale, shift, query, of_positions=of_positions
            )
            sums.fill(0.0)
            state[:] = (-np.inf, 0.0, 0.0, 0.0)
            for first in range(0, positions, KEYS):
                block = read(first, min(positions, first + KEYS), 1)
                self._attend_block(
                    block, query, end - start, sums, state, keys, values, places, scale, shift, of_positions
                )
            sums[: end - start] /= state[: end - start, 1:2]
            moments = linear.run(
                sums.ctypes.data, end - start, answer, folded.out_bias, one, zero, result,
                residual=asked.data_ptr() if adds else 0,
            )  # fmt: skip
            write(start, end, torch.from_numpy(result[: end - start]), moments)

    def _attend_block(
        self,
        block: Tensor,
        query: Floats,
        queries: int,
        sums: Floats,
        state: Floats,
        keys: Floats,
        values: Floats,
        scratch: list[Floats],
        scale: Floats,
        shift: Floats,
        of_positions: Floats,
    ) -> None:
        """All queries against one block of positions [n, C]."""
        (count, channels), step, panel = block.shape, ATTENTION_ROWS, PANEL
        padded = -(-count // panel) * panel
        source = block.data_ptr()
        norm = scale.ctypes.data, shift.ctypes.data, of_positions.ctypes.data if of_positions.size else 0
        packed = keys.ctypes.data, values.ctypes.data
        self.workers.run(padded // panel, lambda _, i: pack_keys(i, source, count, channels, *norm, *packed, padded))
        places = [part.ctypes.data for part in scratch]
        q, s, t = query.ctypes.data, sums.ctypes.data, state.ctypes.data

        def attend(thread: int, i: int) -> None:
            at, scores = 4 * i * step * channels, places[thread]
            attend_rows(
                q + at, channels, *packed, count, padded, scores, scores + 4 * step * padded, s + at, t + 16 * i * step
            )

        self.workers.run(-(-queries // step), attend)


class _Carver:
    """Arrays of float32 out of one piece of memory, each at the beginning of a page."""

    def __init__(self, memory: Tensor) -> None:
        self._memory, self._used = memory, 0

    def __call__(self, *shape: int) -> Floats:
        size = 4 * prod(shape)
        part = self._memory[self._used : self._used + size]
        self._used += aligned(size)
        array: Floats = part.numpy().view(np.float32).reshape(shape)
        return array


class _Linear:
    """Linear maps of positions [n, C] to [n, C], by the kernel of 1x1 convolutions."""

    def __init__(self, workers: Workers, job: Job, channels: int, take: _Carver) -> None:
        self.workers, self.channels, self._take = workers, channels, take
        one = Map("", channels, 1)
        sizes = job.scratch_floats(Conv(source=one, target=one, weights="", kernel=1), ATTENTION_BLOCK)
        self._scratch = [[take(n) for n in sizes] for _ in range(workers.threads)]

    def weights(self, matrix: Tensor) -> Floats:
        """A matrix [C, C] as the kernel takes it."""
        n = self.channels
        made = self._take(n, n)
        self.workers.run(
            n // PANEL,
            lambda _, i: kernels.transform_weights(
                kernels.POINTWISE, False, matrix.data_ptr(), n, n, made.ctypes.data, i
            ),
        )
        return made

    def run(
        self,
        source: int,
        count: int,
        weights: Floats,
        bias: Tensor,
        scale: Floats,
        shift: Floats,
        target: Floats,
        residual: int = 0,
        of_positions: Floats = NO_NORM,
    ) -> Moments:
        """target = weights (scale * source + shift) + bias (+ residual), and its moments by channel."""
        n = self.channels
        blocks = -(-count // ATTENTION_BLOCK[1])
        statistics = np.empty((blocks, 3, n))
        fixed = (
            kernels.POINTWISE, False, source, 0, 1, count, n, scale.ctypes.data, shift.ctypes.data, kernels.NONE,
            of_positions.ctypes.data if of_positions.size else 0, 0,
            target.ctypes.data, 0, 1, count, n, residual, 0, FLOORS[False].ctypes.data,
            weights.ctypes.data, bias.data_ptr(), 0, 1, count, *ATTENTION_BLOCK, statistics.ctypes.data,
        )  # fmt: skip
        places = [[part.ctypes.data for part in parts] for parts in self._scratch]
        self.workers.run(blocks, lambda thread, i: kernels.convolve_block(i, *fixed, *places[thread]))
        return merged(statistics)
