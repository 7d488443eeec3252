"""Steps by torch's operations on rows, whoever convolves: norms with a sum, depthwise convolutions, linear attention.

They compute in float32, or in float64 where maps are of it, a block of bounded size at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.engine.attention import normalise
from calotype.engine.blocks import Job
from calotype.engine.memory import Rows
from calotype.steps import Conv, Gated, LinearAttention, Local, Normed, PixelNorm, Scales


@dataclass
class Sums:
    """Of all positions of a map that linear attention reads.

    Attributes:
        values: sums of v k^T, [heads, head_dim, head_dim].
        keys: sums of k, [heads, head_dim].
    """

    values: Tensor
    keys: Tensor

    @classmethod
    def of(cls, step: LinearAttention, positions: Tensor) -> Sums:
        """Of positions [n, C], summed in float32 and kept in float64 where there is such a type."""
        _, k, v = _heads(step, _wide(positions))
        k = k.relu()
        kept = torch.float32 if positions.device.type == "mps" else torch.float64
        return cls((v.mT @ k).to(kept), k.sum(1).to(kept))

    def add(self, other: Sums) -> None:
        """Those of other positions too."""
        self.values += other.values
        self.keys += other.keys


def summed(job: Job, step: LinearAttention, rows: Tensor) -> Sums:
    """The sums of rows [n, width, C] of a map that is still to be read."""
    positions = rows.flatten(0, 1)
    at_once = job.local_positions(step)
    total = Sums.of(step, positions[:at_once])
    for start in range(at_once, len(positions), at_once):
        total.add(Sums.of(step, positions[start : start + at_once]))
    return total


def run(
    job: Job,
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
    """Makes rows `start` to `end`.

    Args:
        sums: of the source, for linear attention.
    """
    if isinstance(step, Gated | Scales):
        rows, channels = job.local_block(step)
        for first in range(start, end, rows):
            last = min(end, first + rows)
            into = target[slice(first, last)]
            if isinstance(step, Gated):
                _gate(job, step, first, last, source, into, weights, channels)
            else:
                into[..., : step.source.channels].copy_(source[slice(first, last)])
                _gather(job, step, first, last, source, into, weights, channels)
        return
    x, into = (rows[slice(start, end)].flatten(0, 1) for rows in (source, target))
    more = None if residual is None else residual[slice(start, end)].flatten(0, 1)
    at_once = job.local_positions(step)
    for first in range(0, len(x), at_once):
        part = slice(first, first + at_once)
        if isinstance(step, LinearAttention):
            assert sums is not None
            into[part] = attended(step, x[part], sums)
        else:
            into[part] = normed(step, x[part], None if more is None else more[part], weights)


def normed(step: Normed, x: Tensor, residual: Tensor | None, weights: Mapping[str, Tensor]) -> Tensor:
    """norm(x) + residual, of positions [..., C]."""
    norm: PixelNorm = step.norm
    y = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32, copy=True)
    y = normalise(y, norm).mul_(weights[f"{norm.weights}.weight"].flatten())
    if norm.bias:
        y.add_(weights[f"{norm.weights}.bias"].flatten())
    return y if residual is None else y.add_(residual)


def attended(step: LinearAttention, x: Tensor, sums: Sums) -> Tensor:
    """What positions [n, C] become: means of all values, [n, C / 3]."""
    q, _, _ = _heads(step, _wide(x))
    q = q.relu()
    values, keys = sums.values.to(q.dtype), sums.keys.to(q.dtype)
    mixed = q @ values.mT
    mixed /= q @ keys[:, :, None] + step.least
    return mixed.permute(1, 0, 2).flatten(1)


def _heads(step: LinearAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of positions [n, C]: [heads, n, head_dim] each."""
    q, k, v = x.view(len(x), -1, 3, step.head_dim).permute(2, 1, 0, 3)
    return q, k, v


def gated(step: Gated, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """A whole map [N, C, H, W] through a gated depthwise convolution."""
    weight, bias = (weights[f"{step.weights}.{leaf}"] for leaf in ("weight", "bias"))
    y = F.conv2d(F.silu(x), weight, bias, padding=step.kernel // 2, groups=len(weight))
    a, b = y.chunk(2, 1)
    return a * F.silu(b)


def gathered(step: Scales, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """A whole map [N, C, H, W], and what each scale makes of it: [N, (1 + scales) C, H, W]."""
    made = [x]
    for i, kernel in enumerate(step.kernels):
        near, mixed = (weights[f"{step.weights}.{i}.{j}.weight"] for j in (0, 1))
        y = F.conv2d(x, near, padding=kernel // 2, groups=len(near))
        made.append(F.conv2d(y, mixed, groups=len(mixed) // step.group))
    return torch.cat(made, 1)


def _gate(
    job: Job, step: Gated, first: int, last: int, source: Rows, into: Tensor, weights: Mapping[str, Tensor], most: int
) -> None:
    half = step.target.channels
    weight, bias = (weights[f"{step.weights}.{leaf}"] for leaf in ("weight", "bias"))
    for low in range(0, half, most):
        parts = []
        for offset in (0, half):
            some = slice(offset + low, offset + min(half, low + most))
            x = F.silu(_padded(job, step, step.kernel, first, last, source, some), inplace=True)
            parts.append(_depthwise(x, _wide(weight[some]), _wide(bias[some])))
            del x
        a, b = parts
        into[..., low : low + most] = a.mul_(F.silu(b, inplace=True))


def _gather(
    job: Job, step: Scales, first: int, last: int, source: Rows, into: Tensor, weights: Mapping[str, Tensor], most: int
) -> None:
    channels = step.source.channels
    for i, kernel in enumerate(step.kernels):
        near, mixed = (weights[f"{step.weights}.{i}.{j}.weight"] for j in (0, 1))
        for low in range(0, channels, most):
            some = slice(low, min(channels, low + most))
            y = _depthwise(_padded(job, step, kernel, first, last, source, some), _wide(near[some]), None)
            # [groups, positions, channels of a group]
            groups = torch.unflatten(y, 2, (-1, step.group)).permute(2, 0, 1, 3).flatten(1, 2)
            matrices = _wide(mixed[some]).view(-1, step.group, step.group)
            y = (groups @ matrices.mT).permute(1, 0, 2).reshape(y.shape)
            into[..., (i + 1) * channels + some.start : (i + 1) * channels + some.stop] = y


def _padded(job: Job, step: Gated | Scales, kernel: int, first: int, last: int, source: Rows, some: slice) -> Tensor:
    """A copy of what a depthwise convolution reads for some rows and channels, with zeros around the map."""
    high, wide = job.size(step.source)
    reach = kernel // 2
    begin, stop = max(0, first - reach), min(high, last + reach)
    x = source[slice(begin, stop)]
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    made = x.new_zeros((last - first + 2 * reach, wide + 2 * reach, some.stop - some.start), dtype=kind)
    above = begin - (first - reach)
    made[above : above + stop - begin, reach : reach + wide] = x[..., some]
    return made


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Rows [n, width, C], padded, through a kernel for each channel."""
    y = F.conv2d(x[None].permute(0, 3, 1, 2), weight, bias, groups=len(weight))
    return y[0].permute(1, 2, 0)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def batched(step: Conv, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """A convolution's weight and bias, with the BatchNorm of its result in them."""
    weight, bias = weights[f"{step.weights}.weight"], weights[f"{step.weights}.bias"] if step.bias else None
    if step.batch is None:
        return weight, bias
    gamma, beta, mean, variance = (
        _wide(weights[f"{step.batch.weights}.{leaf}"].detach())
        for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma * torch.rsqrt(variance + step.batch.eps)
    shift = beta - mean * scale if bias is None else beta + (_wide(bias.detach()) - mean) * scale
    return _wide(weight.detach()) * scale[:, None, None, None], shift
