"""Helpers for tests of the engine: configurations, and a replay of plans that knows nothing of how they were made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import ceil, gcd
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from support import NARROW, SMALL
from torch import Tensor

from calotype.engine import plan as plans
from calotype.engine.blocks import Job, Kernels
from calotype.engine.executor import Executor
from calotype.engine.passes import Pass
from calotype.engine.plan import Plan
from calotype.engine.reference import Reference
from calotype.families import program
from calotype.families.dcae.config import DcaeConfig
from calotype.families.face import NetworkConfig
from calotype.families.folded.config import FoldedConfig
from calotype.families.hunyuan.config import HunyuanImageConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.network import Network
from calotype.families.taehv.config import TaehvConfig
from calotype.families.tiny.config import TinyConfig
from calotype.families.vq.config import VqConfig
from calotype.families.wan.config import WanConfig
from calotype.steps import (
    Attention,
    Conv,
    Direction,
    Gated,
    LinearAttention,
    Local,
    Map,
    Norm,
    Scales,
    SpatialNorm,
    Step,
)

FEW = AutoencoderConfig(ch=4, ch_mult=(1, 2), num_res_blocks=1, z_channels=3, norm_groups=2)
MOVQ = VqConfig(
    ch=32,
    ch_mult=(1, 1, 2),
    num_res_blocks=1,
    embed_dim=4,
    n_embed=50,
    attn_levels=(2,),
    norm_groups=8,
    spatial_norm=True,
)

CONFIGS: dict[str, NetworkConfig] = {
    "small": SMALL,
    "narrow": NARROW,
    "attention-at-two-levels": AutoencoderConfig(ch=8, ch_mult=(1, 2, 2), norm_groups=4, attn_levels=(1, 2)),
    "no-mid-attention": replace(SMALL, mid_attention=False, num_res_blocks=2),
    "no-quant-conv": replace(SMALL, quant_conv=False, z_channels=16),
    "quant-conv-of-the-encoder": replace(SMALL, quant_conv=True, post_quant_conv=False),
    "quant-conv-of-the-decoder": replace(SMALL, quant_conv=False, post_quant_conv=True),
    "relu": replace(SMALL, activation="relu"),
    "narrower-decoder": AutoencoderConfig(ch=32, ch_mult=(1, 2), z_channels=32, decoder_ch=24, norm_groups=8),
    "narrowing-steeply": AutoencoderConfig(ch=8, ch_mult=(1, 4, 8), num_res_blocks=1, norm_groups=4),
    "odd": AutoencoderConfig(ch=9, ch_mult=(1, 3), num_res_blocks=1, norm_groups=3, z_channels=5),
    "one-group": AutoencoderConfig(ch=6, ch_mult=(1, 2), num_res_blocks=1, norm_groups=1),
    "one-level": AutoencoderConfig(ch=8, ch_mult=(1,), num_res_blocks=1, norm_groups=4, z_channels=1),
    "folded": FoldedConfig(z_channels=4, ch=(8, 12), encoder_blocks=(1, 2), decoder_blocks=(2, 1)),
    "wan": WanConfig(base_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1),
    "wan-attention": WanConfig(base_dim=8, dim_mult=(1, 2), num_res_blocks=1, attn_levels=(1,)),
    "wan-shortcuts": WanConfig(
        base_dim=8,
        decoder_base_dim=12,
        dim_mult=(1, 2, 2),
        num_res_blocks=1,
        z_channels=8,
        patch=2,
        residual=True,
        frames=(1, 2),
    ),
    "hunyuan": HunyuanImageConfig(channels=(32, 64, 64), num_res_blocks=1, z_channels=16),
    "dcae": DcaeConfig(
        z_channels=4,
        encoder_ch=(4, 8, 16),
        decoder_ch=(4, 8, 16),
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1, 2),
        encoder_attn_levels=(2,),
        decoder_attn_levels=(1, 2),
        encoder_scales=((), (), (5, 3)),
        decoder_scales=((), (), (5,)),
        head_dim=4,
        decoder_norms=("rms",) * 3,
        decoder_activations=("silu",) * 3,
    ),
    "dcae-shuffled": DcaeConfig(
        z_channels=8,
        encoder_ch=(4, 8, 16),
        decoder_ch=(4, 8, 16),
        encoder_blocks=(0, 2, 1),
        decoder_blocks=(0, 1, 1),
        encoder_attn_levels=(2,),
        decoder_attn_levels=(2,),
        encoder_scales=((),) * 3,
        decoder_scales=((),) * 3,
        head_dim=8,
        down="unshuffle",
        up="shuffle",
        decoder_norms=("batch", "batch", "rms"),
        decoder_activations=("relu", "relu", "silu"),
    ),
    "vq": VqConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, n_embed=40, attn_levels=(1,), norm_groups=4),
    "movq": MOVQ,
    "movq-not-quantised": replace(MOVQ, quantize=False, ch_mult=(1, 2), attn_levels=(), mid_attention=False),
    "taehv": TaehvConfig(),
    "tiny": TinyConfig(),
    "tiny-pool": TinyConfig(pool=True, z_channels=16),
}


EACH = 3  # plans that are looked at of each way to place maps, where few are


def candidates(
    config: NetworkConfig,
    direction: Direction,
    height: int,
    width: int,
    *,
    kernels: Kernels = "winograd",
    threads: int = 2,
    itemsize: int = 4,
    half: bool = False,
    few: int = 0,
) -> tuple[Plan, ...]:
    """Every plan that there is, of a picture of so many latents, by how much work they are; or a few at random."""
    job = Job(height * config.factor, width * config.factor, kernels, threads, itemsize, half)
    steps = program(config, direction)
    if not few:
        return plans._candidates(job, steps)
    ways = plans._ways(job, steps)
    random = Random(repr((config, direction, job)))
    passes: dict[tuple[object, ...], list[Pass]] = {}
    made: list[Plan] = []
    chosen = random.sample(ways, min(ceil(few / EACH), len(ways)))
    spilling = [places for places in ways if "spilled" in places.values()]
    if spilling and not any("spilled" in places.values() for places in chosen):
        chosen[-1] = random.choice(spilling)
    for places in chosen:
        found = plans._plans(job, steps, places, passes)
        made += random.sample(found, min(EACH, len(found)))
    return tuple(sorted(made, key=lambda one: (one.work, one.peak)))


def maps_read(step: Step) -> list[Map]:
    """Maps that a step looks at, each once."""
    others = (getattr(step, "residual", None), getattr(step, "guide", None))
    return list(dict.fromkeys([step.source, *(one for one in others if one)]))


def rows_read(step: Step, name: str, start: int, end: int, height: int) -> tuple[int, int]:
    """Rows of a map, `height` rows high, that a step looks at for rows `start` to `end` of its target."""
    residual = getattr(step, "residual", None)
    added = residual is not None and name == residual.name
    if isinstance(step, Attention):
        return 0, height
    if isinstance(step, Local):
        guide = getattr(step, "guide", None)
        if guide is not None and name == guide.name:
            each = guide.factor // step.source.factor
            return start // each, (end - 1) // each + 1
        reach = step.kernel // 2 if isinstance(step, Gated | Scales) else 0
        return max(0, start - reach), min(height, end + reach)
    if not isinstance(step, Conv):  # a row of blocks for each row, or a row of pixels within one
        n = step.block
        if added:
            return start, end
        return (start * n, end * n) if step.inwards else (start // n, (end - 1) // n + 1)
    first, last = height, 0
    if added:
        first, last = start, end
    if name == step.source.name:
        taps = [0] if step.kernel == 1 else [-1, 0, 1]
        for row in (start, end - 1):
            if step.kernel == 3 and step.resample == "up":
                seen = [(row + tap) // 2 for tap in taps if 0 <= row + tap < 2 * height]
            elif step.kernel == 3 and step.resample == "down":
                seen = [2 * row - step.pad + 1 + tap for tap in taps]
            else:
                seen = [row + tap for tap in taps]
            seen = [row for row in seen if 0 <= row < height]
            first, last = min(first, *seen), max(last, seen[-1] + 1)
    return first, last


@dataclass
class _Window:
    """Rows of a map that move down, each remembered by its number."""

    rows: npt.NDArray[np.int64]
    first: int = 0
    end: int = 0

    def move(self, end: int, drop: int) -> None:
        """As `Rows.make_room` says."""
        if end - self.first > len(self.rows):
            drop = min(drop, self.end)
            held = self.rows[drop - self.first : self.end - self.first].copy()
            self.rows[:] = -1
            self.rows[: len(held)] = held
            self.first = drop
        self.end = max(self.end, end)
        assert self.end - self.first <= len(self.rows), "a window is too small"

    def __getitem__(self, rows: tuple[int, int]) -> npt.NDArray[np.int64]:
        assert self.first <= rows[0] <= rows[1] <= self.end, f"rows {rows} of {self.first}..{self.end}"
        return self.rows[rows[0] - self.first : rows[1] - self.first]


@dataclass
class Replay:
    """Runs a plan on a byte map instead of memory: every row of every map is a token.

    Asserts that nothing reads what was overwritten, was never written, was dropped from its window, or is forgotten;
    that maps are normalised only by statistics of all their rows; and that windows, weights and scratch lie apart.
    """

    plan: Plan
    runs: int = 0
    slid: int = 0  # maps written over another that was still being read
    spilled: dict[str, set[int]] = field(default_factory=dict)
    measured: dict[str, list[int]] = field(default_factory=dict)
    windows: dict[str, _Window] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        plan = self.plan
        self.maps = {m.name: m for step in plan.program.steps for m in (step.source, step.target)}
        self.reads = {step.target.name: maps_read(step) for step in plan.program.steps}
        self.rows = {name: one.size(plan.job.height, plan.job.width)[0] for name, one in self.maps.items()}
        self.tokens = {name: (i << 24) + np.arange(self.rows[name]) for i, name in enumerate(self.maps)}
        unit = plan.kept or 1
        for name, offset in plan.offsets.items():
            unit = gcd(unit, gcd(offset, self.row_bytes(self.maps[name])))
            assert offset >= 0
            assert offset + self.rows[name] * self.row_bytes(self.maps[name]) <= plan.kept
        self.unit = unit
        self.arena = np.full(plan.kept // unit, -1, dtype=np.int64)
        assert plan.peak >= plan.kept + max(one.temporary for one in plan.passes)

    def row_bytes(self, one: Map) -> int:
        return one.size(self.plan.job.height, self.plan.job.width)[1] * one.channels * self.plan.job.itemsize

    def kept(self, one: Map, start: int, end: int) -> npt.NDArray[np.int64]:
        """The part of memory where these rows lie, [rows, units]."""
        per_row = self.row_bytes(one) // self.unit
        begin = self.plan.offsets[one.name] // self.unit
        return self.arena[begin + start * per_row : begin + end * per_row].reshape(end - start, per_row)

    def assert_there(self, one: Map, start: int, end: int) -> None:
        expected = self.tokens[one.name][start:end]
        if one.name in self.windows:
            assert (self.windows[one.name][start, end] == expected).all(), f"window of {one.name}"
        else:
            assert self.plan.places[one.name] == "kept"
            there = self.kept(one, start, end)
            assert (there == expected[:, None]).all(), f"{one.name} is overwritten, or was never written"

    def put(self, one: Map, start: int, end: int) -> None:
        if one.name in self.windows:
            self.windows[one.name][start, end][:] = self.tokens[one.name][start:end]
        else:
            there = self.kept(one, start, end)
            self.slid += bool((there >= 0).any())
            there[:] = self.tokens[one.name][start:end, None]

    def run(self) -> Replay:
        """All of it."""
        plan = self.plan
        came = 0
        last = {
            m.name: i
            for i, one in enumerate(plan.passes) for step in one.steps
            for m in maps_read(step)
        }  # fmt: skip
        for i, one in enumerate(plan.passes):
            came += self._pass(one)
            for name, until in last.items():
                if until == i:
                    self.spilled.pop(name, None)
        assert came == self.rows[plan.program.target.name], "not all rows came"
        assert self.made == {step.target.name for step in plan.program.steps}
        assert not self.spilled
        return self

    def _pass(self, one: Pass) -> int:
        self._layout(one)
        maps = {m.name: m for step in one.steps for m in maps_read(step)}
        maps |= {step.target.name: step.target for step in one.steps}
        self.windows = {
            name: _Window(np.full(one.windows[name], -1)) for name in maps if name in one.offsets
        }  # fmt: skip
        for name in one.measured:
            self.measured[name] = []
        if isinstance(one.steps[-1], Attention):
            assert len(one.steps) == 1
            self._attend(one.steps[-1])
            return 0
        came = 0
        for iteration in range(one.iterations):
            for run in one.runs(iteration):
                self.runs += 1
                assert run.start < run.end <= self.rows[run.map.name]
                if run.map.name in self.windows:
                    window = self.windows[run.map.name]
                    assert window.end == run.start, "rows come in order"
                    window.move(run.end, run.drop)
                if run.step >= 0:
                    self._step(one, one.steps[run.step], run.start, run.end)
                elif run.map.name != self.plan.program.source.name:
                    assert self.spilled[run.map.name] >= set(range(run.start, run.end))
                self.put(run.map, run.start, run.end)
                if run.step >= 0:
                    self._after(one, one.steps[run.step], run.start, run.end)
                    if run.map.name == self.plan.program.target.name:
                        assert run.start == came
                        came = run.end
        for step in one.steps:
            if one.stores or step.target.name in one.measured:
                assert self.windows.get(step.target.name, _Window(np.empty(0), 0, 0)).end in (
                    0,
                    self.rows[step.target.name],
                )
        return came

    def _read(self, step: Step, start: int, end: int) -> Sequence[tuple[Map, int, int]]:
        return [(m, *rows_read(step, m.name, start, end, self.rows[m.name])) for m in self.reads[step.target.name]]

    def _step(self, one: Pass, step: Step, start: int, end: int) -> None:
        if isinstance(step, LinearAttention) or (isinstance(step, Conv | SpatialNorm) and isinstance(step.norm, Norm)):
            assert sorted(self.measured[step.source.name]) == list(range(self.rows[step.source.name]))
        if isinstance(step, Conv) and self.plan.job.kernels == "winograd":
            tile = self.plan.job.algorithm(step).tile
            assert start % tile == 0
            assert end % tile == 0 or end == self.rows[step.target.name]
            floats = self.plan.job.scratch_floats(step, self.plan.job.block(step, end - start))
            need = self.plan.job.threads * sum(ceil(4 * n / 4096) * 4096 for n in floats)
            assert need <= one.temporary - one.offsets["scratch"]
        for source, first, last in self._read(step, start, end):
            self.assert_there(source, first, last)

    def _after(self, one: Pass, step: Step, start: int, end: int) -> None:
        """Blocks of a run come in any order, so what the first writes must not be what the last still reads."""
        self.made.add(step.target.name)
        residual = getattr(step, "residual", None)
        for source, first, last in self._read(step, start, end):
            over = residual is not None and source.name == residual.name != step.source.name
            kept = source.name not in self.windows and step.target.name not in self.windows
            if over and kept and self.plan.offsets[source.name] == self.plan.offsets[step.target.name]:
                assert self.row_bytes(source) == self.row_bytes(step.target)
                continue  # a sum over its own term, number by number
            self.assert_there(source, first, last)
        if step.target.name in one.measured:
            self.measured[step.target.name] += range(start, end)
        if one.stores and one.places[step.target.name] == "spilled":
            self.spilled.setdefault(step.target.name, set()).update(range(start, end))

    def _attend(self, step: Attention) -> None:
        rows = self.rows[step.source.name]
        if isinstance(step.norm, Norm):
            assert sorted(self.measured[step.source.name]) == list(range(rows))
        assert step.target.name not in self.windows
        assert self.plan.places[step.source.name] == self.plan.places[step.target.name]
        self.made.add(step.target.name)
        if self.plan.places[step.source.name] == "spilled":
            assert self.spilled[step.source.name] == set(range(rows))
            self.spilled[step.target.name] = set(range(rows))
        else:
            self.assert_there(step.source, 0, rows)
            self.put(step.target, 0, rows)
            self.assert_there(step.source, 0, rows)
        self.measured[step.target.name] = list(range(rows))

    def _layout(self, one: Pass) -> None:
        """Windows, weights and scratch of a pass lie apart, in its part of the memory."""
        parts = []
        for name, offset in one.offsets.items():
            if name == "scratch":
                size = one.temporary - offset
            elif name.startswith("weights "):
                step = next(s for s in one.steps if isinstance(s, Conv) and f"weights {s.weights}" == name)
                algorithm = self.plan.job.algorithm(step)
                channels = step.source.channels + (step.source.channels % 2 if self.plan.job.half else 0)
                wide = ceil(step.target.channels / 32) * 32
                size = algorithm.positions**2 * channels * wide * (2 if self.plan.job.half else 4)
            else:
                size = one.windows[name] * self.row_bytes(self.maps[name])
            parts.append((offset, offset + size))
        parts.sort()
        assert parts[-1][1] <= one.temporary
        assert parts[0][0] >= 0
        for (_, end), (start, _) in pairwise(parts):
            assert end <= start


def execute(
    module: Network,
    made: Plan,
    x: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """What a plan makes of latents or pixels [C, H, W]."""
    backend: Any
    if made.job.kernels == "winograd":
        from calotype.engine.winograd import Winograd, Workers

        workers = Workers(made.job.threads)
        backend = Winograd(workers, made.job)
        dtype = torch.float32
    else:
        workers = None
        backend = Reference(made.job, dtype)
    executor = Executor(made, module, torch.device("cpu"), dtype, backend, progress)
    source = x.permute(1, 2, 0)
    parts = [rows.clone() for _, _, rows in executor.run(lambda start, end: source[start:end])]
    return torch.cat(parts).permute(2, 0, 1)


def exact(module: Network, direction: Direction, x: Tensor) -> Tensor:
    """What the whole network makes of latents or pixels [C, H, W], in float64."""
    double: Any = copy.deepcopy(module).double()
    return plain(double, direction, x.double())


def plain(module: Network, direction: Direction, x: Tensor) -> Tensor:
    """What the network itself makes of latents or pixels [C, H, W]."""
    with torch.no_grad():
        if direction == "decode":
            return module.decode(x[None])[0]
        return module.encode(x[None]).moments[0]


def inputs(kind: str, channels: int, height: int, width: int) -> Tensor:
    """What goes in: [channels, height, width]."""
    noise = torch.randn(channels, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))
    if kind == "noise":
        return noise
    if kind == "zero":
        return torch.zeros(channels, height, width)
    if kind == "constant":
        return torch.linspace(-0.8, 0.9, channels).view(-1, 1, 1).expand(channels, height, width).contiguous()
    ramp = torch.linspace(-1, 1, height).view(-1, 1) + torch.linspace(0, 1, width)
    return ramp.expand(channels, height, width) + 0.01 * noise
