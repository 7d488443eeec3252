"""The CPU kernels of steps that are no convolution over channels, against torch's operations in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calotype.engine import local
from calotype.engine.blocks import Job
from calotype.engine.memory import Rows
from calotype.engine.reference import fold
from calotype.engine.run import winograd_available
from calotype.steps import Fold, Gated, LinearAttention, Local, Map, Normed, PixelNorm, Scales

if reason := winograd_available():
    pytest.skip(reason, allow_module_level=True)

from calotype.engine.local_cpu import LocalKernels
from calotype.engine.winograd import Workers

SENTINEL = -7.77e33
THREADS = pytest.mark.parametrize("threads", [1, 2])
# rows of the map, columns, first and end of the rows that are made, first row of the source's window
PLACES = [(21, 13, 0, 21, 0), (21, 13, 5, 20, 2), (1, 1, 0, 1, 0), (3, 70, 1, 2, 0)]
PLACE = pytest.mark.parametrize("place", PLACES)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def window(one: Map, whole: Tensor, first: int) -> Rows:
    return Rows(one, whole[first:].contiguous(), first, len(whole))


def made(
    step: Local,
    x: Tensor,
    weights: Mapping[str, Tensor],
    place: tuple[int, int, int, int, int],
    threads: int,
    *,
    residual: Tensor | None = None,
    sums: Any = None,
) -> Tensor:
    """Rows that the kernels make, with none around them touched."""
    high, wide, start, end, first = place
    kernels = LocalKernels(Workers(threads), Job(high, wide, threads=threads))
    assert kernels.suit(step)
    out = torch.full((high, wide, step.target.channels), SENTINEL)
    target = Rows(step.target, out, 0, high)
    added = None if residual is None else Rows(step.target, residual.contiguous(), 0, high)
    source = window(step.source, x, first)
    kernels.run(step, start, end, source=source, target=target, residual=added, weights=weights, sums=sums)
    assert (out[:start] == SENTINEL).all()
    assert (out[end:] == SENTINEL).all()
    return out[start:end]


def same(found: Tensor, expected: Tensor) -> None:
    assert torch.isfinite(found).all()
    error = (found.double() - expected).abs().max() / max(1.0, expected.std(correction=0).item())
    assert error < 5e-6


def nchw(x: Tensor) -> Tensor:
    return x.permute(2, 0, 1)[None].double()


@THREADS
@PLACE
@pytest.mark.parametrize(("channels", "kernel"), [(16, 3), (80, 5), (64, 7)])
def test_gates(channels: int, kernel: int, place: tuple[int, int, int, int, int], threads: int) -> None:
    step = Gated(source=Map("x", 2 * channels, 1), target=Map("y", channels, 1), weights="g", kernel=kernel)
    weights = {"g.weight": numbers(2 * channels, 1, kernel, kernel, seed=1) / kernel, "g.bias": numbers(2 * channels)}
    x = numbers(*place[:2], 2 * channels)
    expected = local.gated(step, nchw(x), {key: value.double() for key, value in weights.items()})
    same(made(step, x, weights, place, threads), expected[0].permute(1, 2, 0)[place[2] : place[3]])


@THREADS
@PLACE
@pytest.mark.parametrize("kernels", [(5,), (3, 7)])
def test_scales(kernels: tuple[int, ...], place: tuple[int, int, int, int, int], threads: int) -> None:
    channels, group = 96, 32
    target = Map("y", channels * (1 + len(kernels)), 1)
    step = Scales(source=Map("x", channels, 1), target=target, weights="s", kernels=kernels, group=group)
    weights = {}
    for i, kernel in enumerate(kernels):
        weights[f"s.{i}.0.weight"] = numbers(channels, 1, kernel, kernel, seed=i) / kernel
        weights[f"s.{i}.1.weight"] = numbers(channels, group, 1, 1, seed=9 + i) / group**0.5
    x = numbers(*place[:2], channels)
    expected = local.gathered(step, nchw(x), {key: value.double() for key, value in weights.items()})
    same(made(step, x, weights, place, threads), expected[0].permute(1, 2, 0)[place[2] : place[3]])


@THREADS
@PLACE
def test_linear_attention(place: tuple[int, int, int, int, int], threads: int) -> None:
    heads, size = 3, 32
    step = LinearAttention(
        source=Map("x", 3 * heads * size, 1), target=Map("y", heads * size, 1), head_dim=size, least=1e-15
    )
    x = numbers(*place[:2], 3 * heads * size)
    exact = local.Sums.of(step, x.flatten(0, 1).double())
    kernels = LocalKernels(Workers(threads), Job(*place[:2], threads=threads))
    sums = kernels.summed(step, x)
    same(sums.values, exact.values)
    same(sums.keys, exact.keys)
    expected = local.attended(step, x[place[2] : place[3]].flatten(0, 1).double(), exact)
    found = made(step, x, {}, place, threads, sums=sums)
    weight = (x[..., :size].relu().double() @ exact.keys[0]).min()
    if weight > 0.1:  # else rounding of nearly nothing counts
        same(found, expected.view(found.shape))


def test_sums_are_those_of_all_positions_however_many() -> None:
    step = LinearAttention(source=Map("x", 96, 1), target=Map("y", 32, 1), head_dim=32, least=1e-15)
    x = numbers(50, 60, 96)
    kernels = LocalKernels(Workers(2), Job(50, 60, threads=2))
    exact = local.Sums.of(step, x.flatten(0, 1).double())
    assert torch.allclose(kernels.summed(step, x).values, exact.values, rtol=1e-5, atol=1e-3)


@THREADS
@PLACE
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_norms_of_positions(bias: bool, adds: bool, place: tuple[int, int, int, int, int], threads: int) -> None:
    channels = 48
    term = Map("r", channels, 1) if adds else None
    norm = PixelNorm(weights="n", eps=1e-5, bias=bias)
    step = Normed(source=Map("x", channels, 1), target=Map("y", channels, 1), norm=norm, residual=term)
    weights = {"n.weight": numbers(channels, seed=1), "n.bias": numbers(channels, seed=2)}
    x, more = numbers(*place[:2], channels), numbers(*place[:2], channels, seed=3) if adds else None
    rows = slice(place[2], place[3])
    y = x[rows].double()
    expected = y / (y.square().mean(-1, keepdim=True) + norm.eps).sqrt() * weights["n.weight"]
    expected = expected + (weights["n.bias"] if bias else 0) + (0 if more is None else more[rows])
    same(made(step, x, weights, place, threads, residual=more), expected)


def test_a_norm_is_written_over_what_it_adds() -> None:
    step = Normed(source=Map("x", 16, 1), target=Map("y", 16, 1), norm=PixelNorm(weights="n"), residual=Map("r", 16, 1))
    x, more = numbers(40, 30, 16), numbers(40, 30, 16, seed=1)
    weights = {"n.weight": torch.ones(16)}
    y = x.double()
    expected = y / y.square().mean(-1, keepdim=True).sqrt() + more
    kernels = LocalKernels(Workers(2), Job(40, 30, threads=2))
    both = Rows(step.target, more, 0, 40)
    kernels.run(step, 0, 40, source=Rows(step.source, x, 0, 40), target=both, residual=both, weights=weights, sums=None)
    same(more, expected)


FOLDS = {
    "unshuffle": Fold(source=Map("x", 5, 1), target=Map("y", 20, 2)),
    "shuffle": Fold(source=Map("x", 20, 2), target=Map("y", 5, 1)),
    "pixels-in": Fold(source=Map("x", 3, 1), target=Map("y", 48, 4), outer="pixels"),
    "pixels-out": Fold(source=Map("x", 48, 4), target=Map("y", 3, 1), outer="pixels"),
    "means": Fold(source=Map("x", 12, 1), target=Map("y", 16, 2)),
    "means-of-channels": Fold(source=Map("x", 12, 1), target=Map("y", 4, 1)),
    "repeats": Fold(source=Map("x", 8, 2), target=Map("y", 6, 1)),
    "repeats-of-channels": Fold(source=Map("x", 4, 1), target=Map("y", 12, 1)),
    "frames-in": Fold(source=Map("x", 6, 1), target=Map("y", 12, 2), frames=2),
    "frames-out": Fold(source=Map("x", 16, 2), target=Map("y", 8, 1), frames=2),
}


@THREADS
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("name", FOLDS)
def test_folds(name: str, adds: bool, threads: int) -> None:
    step, (high, wide) = FOLDS[name], (24, 16)
    job = Job(high, wide, threads=threads)
    x = numbers(*job.size(step.source), step.source.channels)
    rows, columns = job.size(step.target)
    more = numbers(rows, columns, step.target.channels, seed=1)
    out = torch.full((rows, columns, step.target.channels), SENTINEL)
    n = step.block
    start, end = (1, rows - 1) if step.inwards else (n, rows - n)
    first = start * n if step.inwards else start // n
    moments = LocalKernels(Workers(threads), job).fold(
        step, start, end, source=window(step.source, x, first), target=Rows(step.target, out, 0, rows),
        residual=Rows(step.target, more, 0, rows) if adds else None, measure=adds,
    )  # fmt: skip
    expected = fold(step, x.double()) + (more if adds else 0)
    assert (out[:start] == SENTINEL).all()
    assert (out[end:] == SENTINEL).all()
    assert np.allclose(out[start:end], expected[start:end], rtol=1e-6, atol=1e-6)
    assert (moments is not None) == adds
    if moments is not None:
        made = out[start:end].double().reshape(-1, step.target.channels)
        variance, mean = torch.var_mean(made, dim=0, correction=0)
        assert moments[0] == len(made)
        assert np.allclose(moments[1], mean, rtol=1e-6, atol=1e-7)
        assert np.allclose(moments[2], len(made) * variance, rtol=1e-5)


@pytest.mark.parametrize("channels", [32, 20])
def test_a_large_mean_costs_a_measured_fold_no_precision(channels: int) -> None:
    step = Fold(source=Map("x", 4 * channels, 2), target=Map("y", channels, 1))
    job = Job(8, 64)
    x = numbers(4, 32, 4 * channels) + 1e4
    out = torch.empty(8, 64, channels)
    moments = LocalKernels(Workers(1), job).fold(
        step, 0, 8, source=window(step.source, x, 0), target=Rows(step.target, out, 0, 8), residual=None, measure=True
    )
    assert moments is not None
    variance = torch.var(out.double().reshape(-1, channels), dim=0, correction=0)
    assert np.allclose(moments[2] / moments[0], variance, rtol=1e-4)


def test_what_is_not_in_whole_vectors_is_left_to_torch() -> None:
    kernels = LocalKernels(Workers(1), Job(8, 8))
    assert not kernels.suit(Gated(source=Map("x", 40, 1), target=Map("y", 20, 1), weights="g"))
    assert not kernels.suit(Normed(source=Map("x", 20, 1), target=Map("y", 20, 1), norm=PixelNorm(weights="n")))
    small = LinearAttention(source=Map("x", 24, 1), target=Map("y", 8, 1), head_dim=8, least=1e-15)
    assert not kernels.suit(small)
