"""The CPU kernels against torch's convolutions in float64."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.engine import bilinear, blocks, vectors
from calotype.engine.bilinear import Algorithm
from calotype.engine.blocks import Job, aligned, fastest
from calotype.engine.memory import Rows
from calotype.engine.run import winograd_available
from calotype.steps import Conv, Map

if reason := winograd_available():
    pytest.skip(reason, allow_module_level=True)

from calotype.engine.winograd import Winograd, Workers, merged

Kind = Literal["1x1", "3x3", "up", "down", "down-tiny"]
RESAMPLES = {"3x3": "none", "up": "up", "down": "down", "down-tiny": "down"}
# each kind by every algorithm that it has: (kind, number of the algorithm)
KINDS: list[tuple[Kind, int]] = [("1x1", 0)]
KINDS += [(kind, i) for kind, resample in RESAMPLES.items() for i in range(len(bilinear.ALGORITHMS[resample]))]  # type: ignore[misc]
SENTINEL = -7.77e33
half_only = pytest.mark.skipif(not vectors.BF16, reason="the processor does not multiply bfloat16")
PRECISIONS = [False, pytest.param(True, marks=half_only)]


@dataclass(frozen=True)
class Given(Job):
    """A job whose algorithm is given."""

    given: Algorithm | None = None

    def algorithm(self, step: Conv) -> Algorithm:
        assert self.given
        return self.given


@dataclass
class Case:
    """One convolution with random numbers."""

    step: Conv
    x: Tensor  # [height, width, channels]
    weight: Tensor
    bias: Tensor | None
    scale: Tensor
    shift: Tensor
    residual: Tensor | None
    height: int
    width: int
    algorithm: Algorithm

    def expected(self, *, relu: bool = True) -> Tensor:
        """In float64, [rows, columns, channels]; without its last ReLU if not wanted."""
        step = self.step
        x = self.x.double() * self.scale.double() + self.shift.double()
        x = {"silu": F.silu, "relu": F.relu, "none": lambda x: x, "clamp": lambda x: x}[step.activation](x)
        x = x.permute(2, 0, 1)[None]
        if step.resample == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if step.kernel == 3:
            x = F.pad(x, (step.pad, 1, step.pad, 1) if step.resample == "down" else (1, 1, 1, 1))
        bias = None if self.bias is None else self.bias.double()
        y = F.conv2d(x, self.weight.double(), bias, stride=2 if step.resample == "down" else 1)
        rows, columns = step.target.size(self.height, self.width)
        y = y[:, :, :rows, :columns]
        if step.gain:
            y = y * step.gain[0] + step.gain[1]
        if self.residual is not None:
            y = y + self.residual.double().permute(2, 0, 1)
        return (F.relu(y) if step.relu and relu else y)[0].permute(1, 2, 0)

    def ours(
        self, *, half: bool = False, threads: int = 1, stripe: int | None = None, guard: int = 0
    ) -> tuple[Tensor, list[Any]]:
        """By the kernels, in stripes of so many rows; and the statistics of each.

        Behind every block of memory lie `guard` numbers that must stay as they are.
        """
        step = self.step
        rows, columns = step.target.size(self.height, self.width)
        stripe = stripe or rows
        workers = Workers(threads)
        job = Given(self.height, self.width, threads=threads, half=half, given=self.algorithm)
        winograd = Winograd(workers, job)
        weights = torch.full((job.weight_bytes(step) // 4 + guard,), SENTINEL)
        winograd.prepare(step, self.weight, self.bias, weights.data_ptr())
        sizes = [aligned(4 * n) for n in job.scratch_floats(step, job.block(step))]
        scratch = torch.full((threads * sum(sizes) // 4 + guard,), SENTINEL)
        memory = torch.full((rows * columns * step.target.channels + guard,), SENTINEL)
        target = memory[: len(memory) - guard].view(rows, columns, step.target.channels)
        residual = None if self.residual is None else Rows(step.residual or step.source, self.residual.clone(), 0, rows)
        found = []
        for start in range(0, rows, stripe):
            found.append(
                winograd.run(
                    step, start, min(rows, start + stripe), source=Rows(step.source, self.x, 0, len(self.x)),
                    target=Rows(step.target, target, 0, rows), residual=residual,
                    scale=self.scale.numpy(), shift=self.shift.numpy(),
                    scratch=scratch.data_ptr(), measure=True,
                )
            )  # fmt: skip
        assert all((block[len(block) - guard :] == SENTINEL).all() for block in (weights, scratch, memory))
        return target, found


def case(
    which: tuple[Kind, int],
    rows: int = 13,
    columns: int = 21,
    channels: int = 32,
    out: int = 32,
    *,
    activation: Any = "none",
    residual: bool = False,
    relu: bool = False,
    bias: bool = True,
    gain: tuple[float, float] | None = None,
    seed: int = 0,
) -> Case:
    """A convolution whose result is rows x columns (even ones where it is twice the source)."""
    g = torch.Generator().manual_seed(seed)
    kind, i = which
    algorithm = bilinear.pointwise() if kind == "1x1" else bilinear.ALGORITHMS[RESAMPLES[kind]][i]
    if kind == "up":
        rows, columns = rows + rows % 2, columns + columns % 2
    down = kind.startswith("down")
    factors = {"up": (2, 1)}.get(kind, (1, 2) if down else (1, 1))
    height, width = rows * factors[1], columns * factors[1]
    source, target = Map("source", channels, factors[0]), Map("target", out, factors[1])
    kernel: Literal[1, 3] = 1 if kind == "1x1" else 3
    resample: Any = "down" if down else "up" if kind == "up" else "none"
    step = Conv(
        source=source, target=target, weights="w", kernel=kernel, resample=resample, bias=bias, activation=activation,
        relu=relu, gain=gain, pad=0 if kind in ("1x1", "down") else 1,
        residual=Map("residual", out, factors[1]) if residual else None,
    )  # fmt: skip
    x = torch.randn(*source.size(height, width), channels, generator=g)
    weight = torch.randn(out, channels, kernel, kernel, generator=g) / (channels * kernel**2) ** 0.5
    return Case(
        step, x, weight, torch.randn(out, generator=g) if bias else None,
        1 + 0.2 * torch.randn(channels, generator=g), 0.3 * torch.randn(channels, generator=g),
        torch.randn(rows, columns, out, generator=g) if residual else None, height, width, algorithm,
    )  # fmt: skip


def errors(one: Case, result: Tensor) -> tuple[float, float]:
    """RMS and largest error, as parts of the result's standard deviation (before ReLU)."""
    expected = one.expected()
    assert result.shape == expected.shape
    assert torch.isfinite(result).all()
    difference = result.double() - expected
    before = one.expected(relu=False)
    spread = max(before.std(correction=0).item(), 0.5)
    return (difference.square().mean().sqrt() / spread).item(), (difference.abs().max() / spread).item()


def check(one: Case, *, half: bool, **options: Any) -> Tensor:
    result, statistics = one.ours(half=half, **options)
    rms, largest = errors(one, result)
    assert rms <= RMS[half]
    assert largest <= LARGEST[half]
    count, mean, m2 = merged(np.stack([np.stack([np.full_like(m, n), m, s]) for n, m, s in statistics]))
    assert count == result.shape[0] * result.shape[1]
    flat = result.double().flatten(0, 1)
    assert np.abs(mean - flat.mean(0).numpy()).max() <= 1e-6 * flat.abs().max()
    exact = (flat - flat.mean(0)).square().sum(0).numpy()
    assert np.allclose(m2, exact, rtol=2e-6, atol=2e-5 * exact.max())
    return result


# Of the output's standard deviation. Measured up to 512 channels: 1.4e-6 and 1.6e-5; with products of bfloat16 (whose
# last place is 2^-8) 0.0132 and 0.096.
RMS = {False: 2e-6, True: 1.5e-2}
LARGEST = {False: 2e-5, True: 0.12}


@pytest.mark.parametrize("half", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "out"), [(1, 1), (3, 32), (32, 3), (16, 64), (33, 17), (64, 96), (5, 31)])
def test_convolutions(kind: tuple[Kind, int], channels: int, out: int, half: bool) -> None:
    check(case(kind, 9, 14, channels, out), half=half)


@pytest.mark.slow
@pytest.mark.parametrize("half", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "out"), [(512, 512), (128, 3), (256, 128)])
def test_wide_convolutions(kind: tuple[Kind, int], channels: int, out: int, half: bool) -> None:
    check(case(kind, 33, 40, channels, out, activation="silu", residual=True), half=half, threads=2)


@pytest.mark.parametrize("half", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 2), (4, 4), (8, 16), (5, 3), (15, 17)])
def test_sizes(kind: tuple[Kind, int], size: tuple[int, int], half: bool) -> None:
    check(case(kind, *size, 16, 24), half=half, threads=2)


@pytest.mark.parametrize("half", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [(32, 64), (7, 9)])
@pytest.mark.parametrize("activation", ["none", "silu", "relu"])
@pytest.mark.parametrize(
    ("residual", "relu", "bias"), [(False, False, False), (True, False, True), (False, True, True), (True, True, False)]
)
def test_what_comes_before_and_after(
    kind: tuple[Kind, int],
    channels: tuple[int, int],
    activation: str,
    residual: bool,
    relu: bool,
    bias: bool,
    half: bool,
) -> None:
    one = case(kind, 10, 7, *channels, activation=activation, residual=residual, relu=relu, bias=bias)
    result = check(one, half=half)
    assert (result.min() == 0) == relu


@pytest.mark.parametrize("kind", KINDS)
def test_a_gain_belongs_to_the_weights(kind: tuple[Kind, int]) -> None:
    check(case(kind, 9, 9, 16, 3, gain=(2.0, -1.0)), half=False)


@pytest.mark.parametrize("half", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_stripes_and_threads_change_no_bit(kind: tuple[Kind, int], half: bool) -> None:
    one = case(kind, 50, 40, 20, 40, activation="silu", residual=True)
    whole, _ = one.ours(half=half)
    tile = one.algorithm.tile
    for options in ({"stripe": tile}, {"stripe": 3 * tile, "threads": 2}, {"threads": 4}):
        result, _ = one.ours(half=half, **options)  # type: ignore[arg-type]
        assert torch.equal(result, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_mean_costs_no_precision(kind: tuple[Kind, int]) -> None:
    """Values of 10000 that spread by 0.05, of which sums of squares in float32 know nothing."""
    for out in (32, 5):
        one = case(kind, 60, 60, 16, out)
        assert one.bias is not None
        one.weight *= 0.05
        one.bias.fill_(1e4)
        result, [(count, mean, m2)] = one.ours()
        flat = result.flatten(0, 1)
        exact = (flat.double() - flat.double().mean(0)).square().sum(0).numpy()
        assert 0.01 < (exact / count).max() ** 0.5 < 0.2
        assert np.abs(mean / flat.double().mean(0).numpy() - 1).max() < 1e-9
        assert np.abs(m2 / exact - 1).max() < 2e-4
        naive = (flat.square().sum(0) - flat.sum(0) ** 2 / count).numpy()
        assert np.abs(naive / exact - 1).max() > 0.5


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    x = 1e5 + rng.standard_normal((1000, 3))
    cuts = [0, 1, 30, 600, 999, 1000]
    parts = [x[a:b] for a, b in pairwise(cuts)]
    moments = [np.stack([np.full(3, len(p)), p.mean(0), ((p - p.mean(0)) ** 2).sum(0)]) for p in parts]
    count, mean, m2 = merged(np.stack(moments))
    assert count == 1000
    assert np.allclose(mean, x.mean(0), rtol=1e-14)
    assert np.allclose(m2, ((x - x.mean(0)) ** 2).sum(0), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_so(kind: tuple[Kind, int]) -> None:
    for value in (float("nan"), float("inf")):
        for relu in (False, True):
            one = case(kind, 9, 9, 16, 32, activation="silu", relu=relu)
            one.x[2, 3, 4] = value
            result, _ = one.ours()
            assert not torch.isfinite(result).all()


def test_extremes_of_silu() -> None:
    """Large arguments neither overflow nor turn into NaN."""
    for channels in (16, 3):
        one = case(("1x1", 0), 8, 8, channels, 32, activation="silu", bias=False)
        one.scale.fill_(1)
        one.shift.fill_(0)
        one.weight.fill_(0)
        one.weight[:channels, :, 0, 0] = torch.eye(channels)
        one.x[:] = torch.cat([torch.logspace(-30, 4, 32), -torch.logspace(-30, 4, 32)]).view(8, 8, 1)
        result, _ = one.ours()
        expected = one.expected()
        # one unit or two in the last place, and what is below 1e-30 may be zero
        assert ((result - expected).abs() <= 3e-7 * expected.abs() + 1e-30).all()


def test_plans_know_what_the_kernels_need() -> None:
    assert blocks.LANES == vectors.LANES
    assert blocks.PANEL % vectors.PANEL == 0
    assert blocks.TILES_AT_ONCE % vectors.ROWS == 0
    assert vectors.SKEW <= 4 * blocks.LANES


@pytest.mark.parametrize("resample", ["none", "up", "down"])
def test_large_maps_take_large_tiles_and_small_ones_small(resample: Any) -> None:
    """Few positions do not pay for the transforms of many weights."""
    source = Map("source", 512, 2 if resample == "up" else 1)
    step = Conv(source=source, target=Map("target", 512, 1), weights="w", kernel=3, resample=resample)
    chosen = [bilinear.ALGORITHMS[resample].index(fastest(step, side, side)) for side in (4, 8, 16, 32, 64, 128, 512)]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[0] > 0
    assert chosen[-1] == 0


@pytest.mark.parametrize("half", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_beside_its_place(kind: tuple[Kind, int], half: bool) -> None:
    """Scratch, weights and targets end exactly where plans think; what lies behind stays as it was."""
    for channels, out in ((32, 64), (5, 33)):
        one = case(kind, 13, 22, channels, out)
        result, _ = one.ours(half=half, guard=4096)
        assert torch.equal(result, one.ours(half=half)[0])


def test_workers_stop_at_an_error() -> None:
    workers = Workers(2)
    done = []

    def work(thread: int, i: int) -> None:
        if i == 3:
            raise KeyboardInterrupt
        done.append(i)

    with pytest.raises(KeyboardInterrupt):
        workers.run(10_000, work)
    assert len(done) < 10_000
    done.clear()
    workers.run(50, lambda thread, i: done.append(i))
    assert sorted(done) == list(range(50))
