"""Steps by torch's operations on rows, whoever convolves: norms, depthwise convolutions, linear attention, codebooks.

They compute in float32, or in float64 where maps are of it, a block of bounded size at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.engine.attention import normalise
from calotype.engine.blocks import ENTRIES, Job
from calotype.engine.memory import Rows
from calotype.steps import (
    Activation,
    Conv,
    Gated,
    LinearAttention,
    Local,
    Normed,
    PixelNorm,
    Quantized,
    Scales,
    SpatialNorm,
)


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
    guide: Rows | None,
    weights: Mapping[str, Tensor],
    sums: Sums | None,
    affine: tuple[Tensor, Tensor] | None,
) -> None:
    """Makes rows `start` to `end`.

    Args:
        sums: of the source, for linear attention.
        affine: scale and shift of the source by channel, where its norm needs its statistics.
    """
    if isinstance(step, SpatialNorm):
        assert guide is not None and affine is not None
        for row in range(start // step.repeat, -(-end // step.repeat)):
            first, last = max(start, row * step.repeat), min(end, (row + 1) * step.repeat)
            above = guide[slice(row, row + 1)][0]
            _guided(job, step, source[slice(first, last)], above, target[slice(first, last)], weights, affine)
        return
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
        elif isinstance(step, Quantized):
            into[part] = quantized(step, x[part], weights)
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


def quantized(step: Quantized, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """The entries nearest to positions [n, C].

    Products are float64 where there is such a type, so that the choice does not hang on which positions are taken
    together; only the half square of an entry's length minus its product with a position differs between entries.
    """
    codebook = weights[step.weights]
    kind = torch.float32 if x.device.type == "mps" else torch.float64
    y = x.to(kind)
    best = torch.full((len(y),), float("inf"), dtype=kind, device=y.device)
    found = torch.zeros(len(y), dtype=torch.int64, device=y.device)
    for first in range(0, len(codebook), ENTRIES):
        entries = codebook[first : first + ENTRIES].to(kind)
        distances = torch.addmm(entries.square().sum(1).div_(2), y, entries.T, alpha=-1)
        least, place = distances.min(1)
        nearer = least < best
        best = torch.where(nearer, least, best)
        found = torch.where(nearer, place.add_(first), found)
    return codebook[found] + (x - x)  # what is not finite stays so


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "silu": lambda x: F.silu(x, inplace=True),
    "relu": lambda x: x.relu_(),
    "gelu": torch.ops.aten.gelu_,
    "mish": lambda x: F.mish(x, inplace=True),
}
"""In place."""


def _guided(
    job: Job,
    step: SpatialNorm,
    x: Tensor,
    guide: Tensor,
    into: Tensor,
    weights: Mapping[str, Tensor],
    affine: tuple[Tensor, Tensor],
) -> None:
    """Rows [n, repeat * w, C] over one row [w, G] of the guide."""
    n, at_once = step.repeat, job.guided_block(step)
    (y_weight, y_bias), (b_weight, b_bias) = (_linear(step, part, weights, x.dtype) for part in ("conv_y", "conv_b"))
    scale, shift = (part.to(y_weight.dtype) for part in affine)
    for low in range(0, len(guide), at_once[1]):
        some = guide[low : low + at_once[1]].to(y_weight.dtype)
        # (scale x + shift) y + b, with all that is of the guide alone in two factors
        times = torch.addmm(y_bias, some, y_weight.T)
        plus = torch.addmm(b_bias, some, b_weight.T).addcmul_(times, shift)
        times.mul_(scale)
        columns = slice(low * n, (low + len(some)) * n)
        for first in range(0, len(x), at_once[0]):
            rows = slice(first, first + at_once[0])
            part = torch.unflatten(x[rows, columns], 1, (len(some), n)).to(times.dtype)
            made = torch.addcmul(plus[:, None], part, times[:, None])
            into[rows, columns] = ACTIVATIONS[step.activation](made).flatten(1, 2)


def _linear(step: SpatialNorm, name: str, weights: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Matrix and bias of one of its convolutions."""
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (weights[f"{step.weights}.{name}.{leaf}"].to(kind) for leaf in ("weight", "bias"))
    return weight.flatten(1), bias


def guided(step: SpatialNorm, x: Tensor, guide: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """A whole normalised map [N, C, H, W], scaled and shifted as its guide [N, G, h, w] says, in place."""
    n = step.repeat
    y = torch.unflatten(torch.unflatten(x, 2, (-1, n)), 4, (-1, n))
    for name, change in (("conv_y", y.mul_), ("conv_b", y.add_)):
        weight, bias = (weights[f"{step.weights}.{name}.{leaf}"] for leaf in ("weight", "bias"))
        change(F.conv2d(guide, weight, bias)[:, :, :, None, :, None])
    ACTIVATIONS[step.activation](y)
    return x


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
