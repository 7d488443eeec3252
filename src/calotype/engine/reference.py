"""Steps by torch's own operations, on stripes of rows: any device, any dtype."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.engine.blocks import Job
from calotype.engine.memory import Rows
from calotype.engine.passes import end_source_row, first_source_row
from calotype.engine.program import Conv, Fold

Moments = tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]


class Reference:
    """Runs convolutions of one plan.

    Args:
        job: of that plan.
        dtype: of computation; statistics are float32 and merged in float64 whatever it is.
    """

    def __init__(self, job: Job, dtype: torch.dtype) -> None:
        self.job, self.dtype = job, dtype
        self._weights: dict[str, tuple[Tensor, Tensor | None]] = {}

    def prepare(self, step: Conv, weight: Tensor, bias: Tensor | None) -> None:
        """Keeps a convolution's weights in the form that it takes."""
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
        measure: bool,
    ) -> Moments | None:
        """Makes rows `start` to `end`; if asked, their count, mean and M2 by channel."""
        high, _ = self.job.size(step.source)
        first, last = first_source_row(step, start), end_source_row(step, end)
        x = _nchw(source[slice(max(0, first), min(high, last))])
        if step.norm or step.affine:
            x = torch.addcmul(shift.view(1, -1, 1, 1), x.float(), scale.view(1, -1, 1, 1)).to(self.dtype)
        if step.activation == "silu":
            x = F.silu(x)
        elif step.activation == "relu":
            x = F.relu(x)
        if step.kernel == 3:
            # rows of zeros only where the map ends; columns on both sides always
            above, below = max(0, -first), max(0, last - high)
            if step.resample == "up":
                x = F.interpolate(F.pad(x, (0, 0, above, below)), scale_factor=2.0, mode="nearest")
                begin = start - 1 - 2 * first
                x = x[:, :, begin : begin + end - start + 2]
                above = below = 0
            right = 1 if step.resample != "down" else 1 - step.pad
            x = F.pad(x, (step.pad if step.resample == "down" else 1, right, above, below))
        weight, bias = self._weights[step.weights]
        y = F.conv2d(x, weight, bias, stride=2 if step.resample == "down" else 1)[:, :, : end - start]
        if step.gain:
            y = y * step.gain[0] + step.gain[1]
        if residual is not None:
            y = y + _nchw(residual[slice(start, end)])
        if step.relu:
            y = F.relu(y)
        _nchw(target[slice(start, end)]).copy_(y)
        if not measure:
            return None
        variance, mean = torch.var_mean(y.float(), dim=(0, 2, 3), correction=0)
        n = y.shape[2] * y.shape[3]
        return n, mean.cpu().double().numpy(), n * variance.cpu().double().numpy()


def _nchw(rows: Tensor) -> Tensor:
    """[rows, width, channels] as [1, channels, rows, width], a view."""
    return rows.permute(2, 0, 1)[None]


def fold(step: Fold, source: Tensor) -> Tensor:
    """Rows [n, width, channels] with blocks of pixels moved into channels, or back."""
    shuffle = F.pixel_unshuffle if step.target.factor > step.source.factor else F.pixel_shuffle
    return shuffle(_nchw(source), step.block)[0].permute(1, 2, 0)
