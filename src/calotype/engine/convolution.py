"""3x3 convolutions of whole maps by the CPU kernels, with gradients: for training, and for networks that only look."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calotype.engine.blocks import LANES, Job, aligned
from calotype.engine.memory import Rows
from calotype.engine.run import winograd_available, workers
from calotype.steps import Conv, Map

NARROWEST = 16  # channels on either side below which the kernels, which work on panels of channels, are slower

# tiles from which on the gradient of weights is the faster one: where there are fewer, its sums take the time
FEWEST = {torch.float32: 256, torch.bfloat16: 1024}

MOST = 2**28  # bytes at most of the sums that threads make apart
PIECE = 2**18  # values that are added up at a time


def suits(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Whether the kernels compute this convolution of this map [N, C, H, W], and faster than torch does.

    They take stride 1 with a border of one zero, on the CPU, channels-last, in float32 or under autocast to
    bfloat16.
    """
    halved = torch.is_autocast_enabled("cpu")
    return (
        x.device.type == "cpu"
        and (torch.get_autocast_dtype("cpu") == torch.bfloat16 if halved else x.dtype == torch.float32)
        and not (halved and any(n % LANES for n in convolution.weight.shape[:2]))
        and convolution.weight.dtype == torch.float32
        and convolution.kernel_size == (3, 3)
        and convolution.stride == convolution.dilation == convolution.padding == (1, 1)
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
        and min(convolution.in_channels, convolution.out_channels) >= NARROWEST
        and x.is_contiguous(memory_format=torch.channels_last)
        and not winograd_available()
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool = False) -> Tensor:
    """relu?(conv2d(x, weight, bias, padding=1)), of maps that `suits` accepts: [N, C, H, W] -> [N, C', H, W].

    By Winograd's algorithms (Lavin & Gray 2015, arXiv:1509.09308), so that numbers differ from a direct convolution's
    by about 1e-5 of their standard deviation; and so do the gradients. Under autocast to bfloat16 maps and their
    gradients are rounded to it, and nothing else but the gradients of the weights where maps are small, which are
    torch's.
    """
    if torch.is_autocast_enabled("cpu"):
        x = x.bfloat16()
    made: Tensor = _Convolution.apply(x, weight, bias, relu)  # type: ignore[no-untyped-call]
    return made


class _Convolution(torch.autograd.Function):
    """The gradient of x is a convolution too: of that of y, with the weights turned around and transposed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        made = _run(x, weight, bias, relu)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, made if relu else None)
        return made

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, made = ctx.saved_tensors
        if made is not None:
            dy = torch.ops.aten.threshold_backward(dy, made, 0)
        dy = dy.contiguous(memory_format=torch.channels_last)
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        dx = _run(dy, weight.flip(2, 3).transpose(0, 1), None, False) if of_x else None
        with torch.autocast("cpu", enabled=False):  # a backward pass may be under it
            dw = _gradient(x, dy, weight) if of_weight else None
            db = _sums(dy) if of_bias else None
        return dx, dw, db, None


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    from calotype.engine.winograd import Winograd

    pictures, channels, height, width = x.shape
    made = torch.empty((pictures, len(weight), height, width), dtype=x.dtype, memory_format=torch.channels_last)
    source, target = Map("source", channels, 1), Map("target", len(weight), 1)
    step = Conv(source=source, target=target, weights="", kernel=3, relu=relu)
    job = Job(height, width, threads=torch.get_num_threads())
    backend = Winograd(workers(job.threads), job)
    room = aligned(job.weight_bytes(step))
    scratch = job.threads * sum(aligned(4 * n) for n in job.scratch_floats(step, job.block(step)))
    memory = torch.empty(room + scratch, dtype=torch.uint8)
    backend.prepare(step, weight, bias, memory.data_ptr())
    scale, shift = np.ones(channels, dtype=np.float32), np.zeros(channels, dtype=np.float32)
    for given, result in zip(x, made, strict=True):
        backend.run(
            step, 0, height,
            source=Rows(source, given.permute(1, 2, 0), 0, height),
            target=Rows(target, result.permute(1, 2, 0), 0, height),
            residual=None, scale=scale, shift=shift,
            scratch=memory.data_ptr() + room, measure=False,
        )  # fmt: skip
    return made


def _sums(dy: Tensor) -> Tensor:
    """By channel, in float32, by pieces that stay in the cache."""
    if dy.dtype == torch.float32:
        return dy.sum((0, 2, 3))
    positions = dy.permute(0, 2, 3, 1).flatten(0, 2)
    total = torch.zeros(dy.shape[1])
    for piece in torch.split(positions, max(1, PIECE // dy.shape[1])):
        total += piece.float().sum(0)
    return total


def _gradient(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weights: like them, in their layout."""
    from calotype.engine import gradient_kernels, kernels
    from calotype.engine.vectors import PANEL

    threads = torch.get_num_threads()
    pictures, channels, height, width = x.shape
    out = dy.shape[1]
    algorithm = gradient_kernels.ALGORITHM
    size, t = algorithm.tile, algorithm.positions
    padded, padded_out = ceil(channels / LANES) * LANES, ceil(out / PANEL) * PANEL
    down, across = ceil(height / size), ceil(width / size)
    if pictures * down * across < FEWEST[x.dtype]:
        unit = [1, 1]
        made: Tensor = torch.ops.aten.convolution_backward(
            dy, x, weight.to(x.dtype), None, unit, unit, unit, False, [0, 0], 1, [False, True, False]
        )[1]
        return made.to(weight.dtype)
    # few tiles at once, that they stay near the processor, and more where they share the sums of many channels
    rows, columns = min(down, 8 if max(channels, out) > 128 else 4), min(across, 16)
    blocks = ceil(down / rows) * ceil(across / columns)
    # a thread adds up always the same blocks, in order, so that sums come out alike every time
    most = max(1, MOST // (4 * t * t * padded * padded_out))
    parts = min(threads, pictures * blocks, most)
    sums = torch.zeros(parts, t, t, padded, padded_out)
    patch = max((rows * size + 2) * (columns * size + 2) * padded, rows * size * columns * size * padded_out)
    room = [aligned(4 * n) for n in (patch, *(t * t * (rows * columns * n + LANES) for n in (padded, padded_out)))]
    scratch = torch.empty(parts * sum(room), dtype=torch.uint8)
    ones, zeros = torch.ones(max(channels, out)), torch.zeros(max(channels, out))
    code = kernels.HALVES if x.dtype == torch.bfloat16 else kernels.NONE
    fixed = (height, width, channels, out, ones.data_ptr(), zeros.data_ptr(), code, rows, columns)

    def work(_: int, part: int) -> None:
        place = scratch.data_ptr() + part * sum(room)
        places = place, place + room[0], place + room[0] + room[1], padded_out
        for i in range(part, pictures * blocks, parts):
            which, block = divmod(i, blocks)
            gradient_kernels.gradient_block(
                block, x[which].data_ptr(), dy[which].data_ptr(), *fixed, sums[part].data_ptr(), *places
            )

    workers(threads).run(parts, work)
    g = torch.tensor([[float(value) for value in row] for row in zip(*algorithm.kernel, strict=True)])
    taps = len(g)
    total = sums.sum(0) if parts > 1 else sums[0]
    half = (g @ total.view(t, -1)).view(taps, t, -1)
    found = (g @ half).view(taps, taps, padded, padded_out)[:, :, :channels, :out]
    return torch.empty_like(weight).copy_(found.permute(3, 2, 0, 1))
