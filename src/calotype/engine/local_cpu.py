"""Steps of `local.py` on the CPU by the kernels of `local_kernels.py`, on the threads of the convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calotype.engine import local_kernels
from calotype.engine.blocks import LOCAL_CHANNELS, LOCAL_POSITIONS, LOCAL_ROWS, SUMMED, Job
from calotype.engine.local import Sums
from calotype.engine.memory import Rows
from calotype.engine.reference import Moments
from calotype.engine.vectors import LANES, PANEL
from calotype.engine.winograd import Floats, Workers, merged, pixel_norm
from calotype.steps import Fold, Gated, LinearAttention, Local, Normed, Scales

Places = npt.NDArray[np.int64]

WIDEST = 64 * 1024  # values of one row's channels that a thread takes at once, about
_FLOOR = np.array([-np.inf], dtype=np.float32)


class LocalKernels:
    """Makes steps of one plan, in float32.

    Args:
        workers: threads that share the blocks.
        job: of that plan.
    """

    def __init__(self, workers: Workers, job: Job) -> None:
        self.workers, self.job = workers, job

    def suit(self, step: Local) -> bool:
        """Whether they make a step's result: one in whole vectors of channels."""
        if isinstance(step, Gated):
            return step.target.channels % LANES == 0 and step.kernel in local_kernels.KERNELS
        if isinstance(step, Scales):
            return step.group % max(PANEL, LANES) == 0 and all(one in local_kernels.KERNELS for one in step.kernels)
        if isinstance(step, LinearAttention):
            return step.head_dim % max(PANEL, LANES) == 0
        return isinstance(step, Normed) and step.source.channels % LANES == 0

    def run(
        self,
        step: Local,
        start: int,
        end: int,
        *,
        source: Rows,
        target: Rows,
        residual: Rows | None,
        weights: Mapping[str, Tensor],
        sums: Sums | None,
    ) -> None:
        """Makes rows `start` to `end`, as `local.run` does, of a step that they suit."""
        if isinstance(step, Gated):
            self._gate(step, start, end, source, target, weights)
        elif isinstance(step, Scales):
            for part in range(len(step.kernels)):
                self._scale(step, part, start, end, source, target, weights)
        elif isinstance(step, LinearAttention):
            assert sums is not None
            self._attend(step, start, end, source, target, sums)
        else:
            assert isinstance(step, Normed)
            self._norm(step, start, end, source, target, residual, weights)

    def summed(self, step: LinearAttention, rows: Tensor) -> Sums:
        """The sums of rows [n, width, C] of a map that is still to be read: in float32 a few, and in float64 those."""
        size, channels = step.head_dim, rows.shape[2]
        heads, count, most = channels // (3 * size), rows.shape[0] * rows.shape[1], SUMMED
        scratch = self._scratch(step)
        total = np.zeros((heads, size + 1, size))
        address = rows.data_ptr()

        def work(thread: int, head: int) -> None:
            made = scratch[thread, 2 * most * size :][: (size + 1) * size].reshape(size + 1, size)
            for first in range(0, count, most):
                some = min(most, count - first)
                at = address + 4 * first * channels
                local_kernels.sum_head(head, at, some, channels, size, _address(scratch, thread))
                total[head] += made

        self.workers.run(heads, work)
        return Sums(torch.from_numpy(total[:, :size]), torch.from_numpy(total[:, size]))

    def _scratch(self, step: Local) -> Floats:
        """[threads, floats]."""
        return np.empty((self.workers.threads, self.job.local_scratch(step)), dtype=np.float32)

    def fold(
        self,
        step: Fold,
        start: int,
        end: int,
        *,
        source: Rows,
        target: Rows,
        residual: Rows | None,
        measure: bool,
    ) -> Moments | None:
        """Makes rows `start` to `end` of a fold, of float32; if asked, their count, mean and M2 by channel."""
        n, (_, wide) = step.block, self.job.size(step.target)
        pixel = 4 * step.source.channels
        across = self.job.size(step.source)[1] * pixel
        tables = _inwards(step, across) if step.inwards else _outwards(step)
        group = tables.shape[-1]
        share = np.array([1 / group], dtype=np.float32)
        channels = step.target.channels
        row_bytes = 4 * wide * channels
        statistics = np.empty((end - start, 3, channels)) if measure else None
        scratch = np.empty((self.workers.threads, 3 * channels), dtype=np.float32)

        def work(thread: int, i: int) -> None:
            row = start + i
            made = target.address + (row - target.first) * row_bytes
            line = row * n if step.inwards else row // n
            table = tables[0 if step.inwards else row % n]
            local_kernels.fold_row(
                source.address + (line - source.first) * across, pixel * (n if step.inwards else 1), len(table),
                table.ctypes.data, wide, channels, group, share.ctypes.data, made,
                residual.address + (row - residual.first) * row_bytes if residual else 0,
            )  # fmt: skip
            if statistics is not None:  # while the row is near the processor
                local_kernels.measure_row(made, wide, channels, _address(scratch, thread), _address(statistics, i))

        self.workers.run(end - start, work)
        return merged(statistics) if statistics is not None else None

    def _gate(
        self, step: Gated, start: int, end: int, source: Rows, target: Rows,
        weights: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        high, wide = self.job.size(step.source)
        half = step.target.channels
        chunk = _chunk(half, wide)
        taps = _taps(weights[f"{step.weights}.weight"])
        bias = _floats(weights[f"{step.weights}.bias"])
        scratch = self._scratch(step)
        fixed = (
            source.address, source.first, high, wide, half, target.address, target.first, start, end, LOCAL_ROWS, chunk,
            step.kernel, taps.ctypes.data, bias.ctypes.data,
        )  # fmt: skip
        blocks = half // chunk * ceil((end - start) / LOCAL_ROWS)
        self.workers.run(blocks, lambda thread, i: local_kernels.gate_block(i, *fixed, _address(scratch, thread)))

    def _scale(
        self, step: Scales, part: int, start: int, end: int, source: Rows, target: Rows,
        weights: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        high, wide = self.job.size(step.source)
        channels, group, kernel = step.source.channels, step.group, step.kernels[part]
        taps = _taps(weights[f"{step.weights}.{part}.0.weight"])
        mixed = _floats(weights[f"{step.weights}.{part}.1.weight"]).reshape(-1, group, group)
        matrices = _panels(mixed.transpose(0, 2, 1))
        none = np.zeros(channels, dtype=np.float32)
        scratch = self._scratch(step)
        fixed = (
            source.address, source.first, high, wide, channels, target.address, target.first, step.target.channels,
            part + 1, start, end, LOCAL_ROWS, group, kernel, taps.ctypes.data, none.ctypes.data, matrices.ctypes.data,
        )  # fmt: skip
        blocks = channels // group * ceil((end - start) / LOCAL_ROWS)
        self.workers.run(blocks, lambda thread, i: local_kernels.scale_block(i, *fixed, _address(scratch, thread)))

    def _attend(
        self, step: LinearAttention, start: int, end: int, source: Rows, target: Rows, sums: Sums
    ) -> None:  # fmt: skip
        size, channels = step.head_dim, step.source.channels
        heads, count = channels // (3 * size), (end - start) * self.job.size(step.source)[1]
        matrices = _panels(sums.values.float().numpy().transpose(0, 2, 1))
        keys = np.append(sums.keys.float().numpy().ravel(), np.float32(step.least))
        scratch = self._scratch(step)
        fixed = (
            source[slice(start, end)].data_ptr(), count, channels, target[slice(start, end)].data_ptr(), size,
            LOCAL_POSITIONS, matrices.ctypes.data, keys.ctypes.data,
        )  # fmt: skip
        blocks = heads * ceil(count / LOCAL_POSITIONS)
        self.workers.run(blocks, lambda thread, i: local_kernels.attend_block(i, *fixed, _address(scratch, thread)))

    def _norm(
        self, step: Normed, start: int, end: int, source: Rows, target: Rows, residual: Rows | None,
        weights: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        channels, count = step.source.channels, (end - start) * self.job.size(step.source)[1]
        scale = _floats(weights[f"{step.norm.weights}.weight"])
        shift = _floats(weights[f"{step.norm.weights}.bias"]) if step.norm.bias else np.zeros_like(scale)
        norm = pixel_norm(step.norm, channels)
        scratch = self._scratch(step)
        fixed = (
            source[slice(start, end)].data_ptr(), count, channels, target[slice(start, end)].data_ptr(),
            residual[slice(start, end)].data_ptr() if residual else 0, LOCAL_POSITIONS, scale.ctypes.data,
            shift.ctypes.data, norm.ctypes.data, _FLOOR.ctypes.data,
        )  # fmt: skip
        blocks = ceil(count / LOCAL_POSITIONS)
        self.workers.run(blocks, lambda thread, i: local_kernels.norm_block(i, *fixed, _address(scratch, thread)))


def _inwards(step: Fold, across: int) -> Places:
    """Where the numbers lie that each of the target's is a mean of: [1, 1, channels, group]."""
    n, channels = step.block, step.source.channels
    places = np.arange(n)[:, None, None] * across + 4 * np.arange(n * channels).reshape(n, channels)
    if step.outer == "channels":
        places = places.transpose(2, 0, 1)[:, None]
        if step.frames > 1:  # the others' blocks, which are zeros
            places = np.concatenate([np.full((channels, step.frames - 1, n, n), -1), places], axis=1)
    return np.ascontiguousarray(places.reshape(1, 1, step.target.channels, -1), dtype=np.int64)


def _outwards(step: Fold) -> Places:
    """Which number each of a block of the target is: [rows, columns, channels, 1]."""
    n, out = step.block, step.target.channels
    if step.outer == "pixels":
        channels = np.arange(n * n * out).reshape(n, n, out)
    else:
        channels = np.arange(out * step.frames * n * n).reshape(out, step.frames, n, n)[:, -1].transpose(1, 2, 0)
    return np.ascontiguousarray(4 * (channels // step.group)[..., None], dtype=np.int64)


def _chunk(channels: int, wide: int) -> int:
    """Channels that a thread takes at once: whole vectors that divide them, so many that a row of them is not long."""
    most = max(LANES, WIDEST // wide // LOCAL_ROWS)
    return next(
        n for n in (LOCAL_CHANNELS, LOCAL_CHANNELS // 2, LANES) if channels % n == 0 and (n <= most or n == LANES)
    )


def _taps(weight: Tensor) -> Floats:
    """[C, 1, k, k] -> [k * k, C]."""
    made: Floats = np.ascontiguousarray(_floats(weight).reshape(weight.shape[0], -1).T)
    return made


def _panels(matrices: Floats) -> Floats:
    """Matrices [n, k, m] as products take them: [n, m / PANEL, k, PANEL]."""
    n, k, m = matrices.shape
    made: Floats = np.ascontiguousarray(matrices.reshape(n, k, m // PANEL, PANEL).transpose(0, 2, 1, 3))
    return made


def _floats(tensor: Tensor) -> Floats:
    made: Floats = np.ascontiguousarray(tensor.detach().float().numpy()).reshape(-1)
    return made


def _address(scratch: Floats | npt.NDArray[np.float64], thread: int) -> int:
    return scratch.ctypes.data + thread * scratch.strides[0]
