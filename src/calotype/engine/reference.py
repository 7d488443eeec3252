"""Steps by torch's own operations, on stripes of rows: any device, any dtype."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.engine.attention import normalise
from calotype.engine.blocks import Job
from calotype.engine.memory import Rows, room, trim
from calotype.engine.passes import end_source_row, first_source_row
from calotype.steps import Conv, Fold, PixelNorm

Moments = tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]


class Reference:
    """Runs convolutions of one plan.

    What is read is brought into the plan's scratch, ready to be convolved; torch allocates the result only.

    Args:
        job: of that plan.
        dtype: of maps; statistics are float32 and merged in float64 whatever it is.
    """

    def __init__(self, job: Job, dtype: torch.dtype) -> None:
        self.job = job
        self.dtype = torch.float32 if job.widens else dtype
        self._weights: dict[str, tuple[Tensor, Tensor | None]] = {}

    def prepare(self, steps: Sequence[tuple[Conv, Tensor, Tensor | None]]) -> None:
        """Keeps the weights of a pass's convolutions in the form that they take, and no others."""
        self._weights.clear()
        if steps and steps[0][1].device.type == "cpu":
            trim()
        for step, weight, bias in steps:
            if step.kernel == 1:
                weight = weight.flatten(1)[:, :, None, None]
            self._weights[step.weights] = (weight.to(self.dtype), None if bias is None else bias.to(self.dtype))

    def run(
        self,
        step: Conv,
        start: int,
        end: int,
        *,
        source: Rows,
        target: Rows,
        residual: Rows | None,
        scale: Tensor,
        shift: Tensor,
        scratch: Tensor,
        measure: bool,
    ) -> Moments | None:
        """Makes rows `start` to `end`; if asked, their count, mean and M2 by channel.

        Args:
            scratch: bytes to work in, `blocks.Job.reference_scratch` of them.
        """
        x = self._input(step, start, end, source, scale, shift, scratch)
        weight, bias = self._weights[step.weights]
        y = F.conv2d(_nchw(x), weight, bias, stride=2 if step.resample == "down" else 1)
        y = y[0].permute(1, 2, 0)[: end - start]
        if step.gain:
            y.mul_(step.gain[0]).add_(step.gain[1])
        if residual is not None:
            y.add_(residual[slice(start, end)])
        if step.relu:
            y.relu_()
        target[slice(start, end)].copy_(y)
        if not measure:
            return None
        if y.dtype != torch.float32:
            y = room(scratch, y.shape, torch.float32)[0].copy_(y)
        variance, mean = torch.var_mean(y, dim=(0, 1), correction=0)
        n = y.shape[0] * y.shape[1]
        return n, mean.cpu().double().numpy(), n * variance.cpu().double().numpy()

    def _input(
        self, step: Conv, start: int, end: int, source: Rows, scale: Tensor, shift: Tensor, scratch: Tensor
    ) -> Tensor:
        """[rows, width, channels]: what is convolved for these rows of the target, normalised, resampled and padded."""
        high, wide = self.job.size(step.source)
        first, last = first_source_row(step, start), end_source_row(step, end)
        x = source[slice(max(0, first), min(high, last))]
        if step.changes_source:
            given = x
            x, scratch = room(scratch, given.shape, torch.float32)
            x.copy_(given)
            if isinstance(step.norm, PixelNorm):
                normalise(x, step.norm)
            x.mul_(scale).add_(shift)
            if step.activation == "silu":
                F.silu(x, inplace=True)
            elif step.activation == "relu":
                x.relu_()
            elif step.activation == "gelu":
                torch.ops.aten.gelu_(x)
            elif step.activation == "mish":
                F.mish(x, inplace=True)
        if step.kernel == 1:
            return x if x.dtype == self.dtype else room(scratch, x.shape, self.dtype)[0].copy_(x)
        repeat = 2 if step.resample == "up" else 1
        left, right = (step.pad, 1 - step.pad) if step.resample == "down" else (1, 1)
        # rows of zeros only where the map ends; columns on both sides always
        above, below = repeat * max(0, -first), repeat * max(0, last - high)
        made, _ = room(scratch, (above + repeat * len(x) + below, left + repeat * wide + right, x.shape[2]), self.dtype)
        for edge in (made[:above], made[len(made) - below :], made[:, :left], made[:, left + repeat * wide :]):
            edge.zero_()
        inside = made[above : above + repeat * len(x), left : left + repeat * wide]
        inside.view(len(x), repeat, wide, repeat, -1).copy_(x[:, None, :, None])
        if step.resample == "up":  # a window's rows may begin with the second of a pair
            begin = start - 1 - 2 * first
            made = made[begin : begin + end - start + 2]
        return made


def _nchw(rows: Tensor) -> Tensor:
    """[rows, width, channels] as [1, channels, rows, width], a view.

    Made so that the stride of pictures is right too: else torch takes the view for NCHW, and copies it all twice.
    """
    return rows[None].permute(0, 3, 1, 2)


def fold(step: Fold, source: Tensor) -> Tensor:
    """Rows [n, width, channels] with blocks of pixels moved into channels, or back; without the residual."""
    n, rows, wide = step.block, source.shape[0], source.shape[1]
    if step.inwards:
        x = source.view(rows // n, n, wide // n, n, -1)  # row, row in block, column, column in block, channel
        if step.outer == "pixels":
            x = x.permute(0, 2, 1, 3, 4)
        else:
            x = x.permute(0, 2, 4, 1, 3)
            if step.frames > 1:
                x = F.pad(x[:, :, :, None], (0, 0, 0, 0, step.frames - 1, 0))
        x = x.reshape(rows // n, wide // n, step.target.channels, -1)
        return x.mean(3) if x.shape[3] > 1 else x[..., 0]
    x = source.repeat_interleave(step.group, dim=2) if step.group > 1 else source
    out = step.target.channels
    if step.outer == "pixels":
        x = x.view(rows, wide, n, n, out).permute(0, 2, 1, 3, 4)
    else:
        x = x.view(rows, wide, out, step.frames, n, n)[:, :, :, -1].permute(0, 3, 1, 4, 2)
    return x.reshape(rows * n, wide * n, out)
