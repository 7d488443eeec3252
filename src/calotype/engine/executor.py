"""Runs a plan: passes over stripes of rows, statistics merged as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from calotype.engine import local
from calotype.engine.attention import Folded, attend
from calotype.engine.blocks import KEYS, QUERIES
from calotype.engine.memory import Memory, Rows, Spill, spill_folder
from calotype.engine.passes import Pass, Run, guide_of, read_by
from calotype.engine.plan import Plan
from calotype.engine.reference import Moments, Reference, fold, moments_of
from calotype.steps import Attention, Conv, Fold, LinearAttention, Local, Map, Norm, PixelNorm, SpatialNorm, Step

if TYPE_CHECKING:
    from calotype.engine.local_cpu import LocalKernels
    from calotype.engine.winograd import Winograd

Progress = Callable[[float], None]
"""Called with the part of the work that is done, from 0 to 1."""

Source = Callable[[int, int], Tensor]
"""(start, end) -> rows [n, width, channels] of what goes in; rows may be asked for more than once."""


_not_finite = np.errstate(over="ignore", invalid="ignore")  # what is not finite stays so, and `Engine.rows` refuses it


@dataclass
class Statistics:
    """Of a map, by channel: count, mean, and M2, the sum of squared deviations from the mean."""

    count: int
    mean: npt.NDArray[np.float64]
    m2: npt.NDArray[np.float64]

    @_not_finite
    def add(self, count: int, mean: npt.NDArray[np.float64], m2: npt.NDArray[np.float64]) -> None:
        """Merges those of other positions (Chan, Golub & LeVeque 1979)."""
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.m2 = self.m2 + m2 + delta**2 * (self.count * count / total)
        self.count = total

    @_not_finite
    def normalise(
        self, norm: Norm, weight: Tensor, bias: Tensor
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Scale and shift by channel, [C] each, that apply this GroupNorm to the map."""
        mean, m2 = self.mean.reshape(norm.groups, -1), self.m2.reshape(norm.groups, -1)
        centre = mean.mean(1, keepdims=True)
        variance = (m2 / self.count + (mean - centre) ** 2).mean(1, keepdims=True)
        gamma = weight.detach().cpu().double().numpy().reshape(norm.groups, -1)
        beta = bias.detach().cpu().double().numpy().reshape(norm.groups, -1)
        scale = gamma / np.sqrt(variance + norm.eps)
        return scale.astype(np.float32).ravel(), (beta - centre * scale).astype(np.float32).ravel()


class Executor:
    """Runs a plan with a network's weights.

    Args:
        plan: for one size.
        module: the network.
        device, dtype: of the maps.
        backend: what convolves.
        progress: told how far it is, now and then; may raise to stop.
    """

    def __init__(
        self,
        plan: Plan,
        module: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        backend: Reference | Winograd,
        progress: Progress | None = None,
    ) -> None:
        self.plan, self.module, self.device, self.dtype = plan, module, device, dtype
        self.backend = backend
        self._progress = progress
        self._weights = dict(module.named_parameters()) | dict(module.named_buffers())
        self._summed = {step.source.name: step for step in plan.program.steps if isinstance(step, LinearAttention)}
        self._work = 0.0
        self._done = 0.0

    @torch.no_grad()
    def run(self, source: Source) -> Iterator[tuple[int, int, Tensor]]:
        """One picture: (start, end, rows [end - start, width, channels]) of the result, from the top down.

        Rows are a view that the next turn overwrites. Closing the iterator, or an error in it, gives all memory and
        the temporary file back.
        """
        plan = self.plan
        self._source = source
        self._statistics: dict[str, Statistics] = {}
        self._sums: dict[str, local.Sums] = {}
        self._kept: dict[str, Rows] = {}
        self._windows: dict[str, Rows] = {}
        self._memory = Memory(plan.kept + max(one.temporary for one in plan.passes), self.device)
        self._spill = Spill(spill_folder())
        self._done, self._work = 0.0, sum(self._cost(step) for one in plan.passes for step in one.steps)
        last_read = {one.name: i for i, part in enumerate(plan.passes) for step in part.steps for one in read_by(step)}
        try:
            for i, part in enumerate(plan.passes):
                yield from self._pass(part)
                for name, last in last_read.items():
                    if last == i:
                        self._spill.forget(name)
        finally:
            self._kept.clear()
            self._windows.clear()
            self._spill.close()
            self._memory.close()

    @cached_property
    def _kernels(self) -> LocalKernels | None:
        """Asked for by the steps that have some, so that only what a network takes is compiled."""
        if isinstance(self.backend, Reference) or self.dtype != torch.float32:
            return None
        from calotype.engine.local_cpu import LocalKernels  # needs Numba

        return LocalKernels(self.backend.workers, self.plan.job)

    def _cost(self, step: Step) -> float:
        return self.plan.job.flops(step) + 1.0

    def _advance(self, work: float) -> None:
        self._done += work
        if self._progress is not None:
            self._progress(min(1.0, self._done / self._work))

    def _view(self, one: Map, offset: int, rows: int) -> Rows:
        width = self.plan.job.size(one)[1]
        return Rows(one, self._memory.view(offset, rows, width, one.channels, self.dtype))

    def _pass(self, one: Pass) -> Iterator[tuple[int, int, Tensor]]:
        base = self.plan.kept
        self._windows = {
            m.name: self._view(m, base + one.offsets[m.name], one.windows[m.name])
            for step in one.steps for m in (*read_by(step), step.target) if m.name in one.offsets
        }  # fmt: skip
        for name in one.measured:
            self._statistics.pop(name, None)
            self._sums.pop(name, None)
        for step in one.steps:
            if one.places[step.target.name] == "kept" and step.target.name not in self._windows:
                rows, _ = self.plan.job.size(step.target)
                self._kept[step.target.name] = self._view(step.target, self.plan.offsets[step.target.name], rows)
        self._prepare(one)
        if isinstance(one.steps[-1], Attention):
            self._attend(one, one.steps[-1])
            return
        for iteration in range(one.iterations):
            for run in one.runs(iteration):
                self._run(one, run)
                if run.map == self.plan.program.target:
                    yield run.start, run.end, self._windows[run.map.name][slice(run.start, run.end)]

    def _prepare(self, one: Pass) -> None:
        weights = [(step, *self._weights_of(step)) for step in one.steps if isinstance(step, Conv)]
        if isinstance(self.backend, Reference):
            self.backend.prepare(weights)
        else:
            for step, weight, bias in weights:
                self.backend.prepare(step, weight, bias, self._address(one, f"weights {step.weights}"))

    def _weights_of(self, step: Conv) -> tuple[Tensor, Tensor | None]:
        return local.batched(step, self._weights)

    def _address(self, one: Pass, name: str) -> int:
        return self._memory.address + self.plan.kept + one.offsets[name]

    def _scratch(self, one: Pass) -> Tensor:
        return self._memory.bytes[self.plan.kept + one.offsets["scratch"] : self.plan.kept + one.temporary]

    def _rows(self, one: Map) -> Rows:
        return self._windows.get(one.name) or self._kept[one.name]

    def _run(self, one: Pass, run: Run) -> None:
        if run.map.name in self._windows:
            self._windows[run.map.name].make_room(run.end, run.drop)
        target = self._rows(run.map)
        if run.step < 0:
            rows = target[slice(run.start, run.end)]
            if run.map == self.plan.program.source:
                rows.copy_(self._source(run.start, run.end))
            else:
                self._spill.read(run.map, run.start, rows)
            return
        step = one.steps[run.step]
        if isinstance(step, Fold):
            self._fold(one, step, run, target)
        elif isinstance(step, Conv):
            self._convolve(one, step, run, target)
        elif isinstance(step, Local):
            self._local(step, run, target)
        if run.map.name in one.measured and (reader := self._summed.get(run.map.name)):
            self._sum(reader, target[slice(run.start, run.end)])
        rows_of, _ = self.plan.job.size(step.target)
        if one.stores and one.places[run.map.name] == "spilled":
            self._spill.write(run.map, run.start, target[slice(run.start, run.end)])
        self._advance(self._cost(step) * (run.end - run.start) / rows_of)

    def _local(self, step: Local, run: Run, target: Rows) -> None:
        source, residual = self._rows(step.source), self._rows(step.residual) if step.residual else None
        sums = self._sums.get(step.source.name)
        if self._kernels and self._kernels.suit(step):
            self._kernels.run(
                step, run.start, run.end, source=source, target=target, residual=residual, weights=self._weights,
                sums=sums,
            )  # fmt: skip
            return
        local.run(
            self.plan.job, step, run.start, run.end, source=source, target=target, residual=residual,
            guide=self._rows(guide) if (guide := guide_of(step)) else None, weights=self._weights, sums=sums,
            affine=self._affine(step),
        )  # fmt: skip

    def _fold(self, one: Pass, step: Fold, run: Run, target: Rows) -> None:
        n, source, residual = step.block, self._rows(step.source), step.residual and self._rows(step.residual)
        measure = step.target.name in one.measured
        if self._kernels:
            moments = self._kernels.fold(
                step, run.start, run.end, source=source, target=target, residual=residual or None, measure=measure
            )
            if moments is not None:
                self._measured(step.target, moments)
            return
        rows = self.plan.job.fold_rows(step)
        for start in range(run.start, run.end, rows):
            end = min(run.end, start + rows)
            first, last = (start * n, end * n) if step.inwards else (start // n, end // n)
            made = fold(step, source[slice(first, last)])
            if residual:
                made = made + residual[slice(start, end)]
            target[slice(start, end)].copy_(made)
            if measure:
                self._measured(step.target, moments_of(target[slice(start, end)]))

    def _convolve(self, one: Pass, step: Conv, run: Run, target: Rows) -> None:
        source = self._rows(step.source)
        residual = self._rows(step.residual) if step.residual else None
        scale, shift = self._scale(step)
        measure = step.target.name in one.measured and step.target.name not in self._summed
        if step.activation == "clamp":  # of latents only, so small that a copy costs nothing
            clamped = Rows(step.source, torch.tanh(source.tensor.float() / 3).mul_(3).to(self.dtype), source.first)
            source = clamped
        if isinstance(self.backend, Reference):
            on_device = [torch.from_numpy(part).to(self.device) for part in (scale, shift)]
            rows = self.plan.job.reference_rows(step)
            for start in range(run.start, run.end, rows):
                moments = self.backend.run(
                    step, start, min(run.end, start + rows), source=source, target=target, residual=residual,
                    scale=on_device[0], shift=on_device[1], scratch=self._scratch(one), measure=measure,
                )  # fmt: skip
                if moments is not None:
                    self._measured(step.target, moments)
            return
        moments = self.backend.run(
            step, run.start, run.end, source=source, target=target, residual=residual, scale=scale, shift=shift,
            scratch=self._address(one, "scratch"), measure=measure,
        )  # fmt: skip
        if moments is not None:
            self._measured(step.target, moments)

    def _sum(self, reader: LinearAttention, rows: Tensor) -> None:
        if self._kernels and self._kernels.suit(reader):
            sums = self._kernels.summed(reader, rows)
        else:
            sums = local.summed(self.plan.job, reader, rows)
        if reader.source.name in self._sums:
            self._sums[reader.source.name].add(sums)
        else:
            self._sums[reader.source.name] = sums

    def _measured(self, one: Map, moments: Moments) -> None:
        if one.name in self._statistics:
            self._statistics[one.name].add(*moments)
        else:
            self._statistics[one.name] = Statistics(*moments)

    def _affine(self, step: Local) -> tuple[Tensor, Tensor] | None:
        """A norm that is a step of its own, as scale and shift of its source."""
        if not isinstance(step, SpatialNorm):
            return None
        scale, shift = (torch.from_numpy(part).to(self.device) for part in self._scale(step))
        return scale, shift

    def _scale(self, step: Conv | Attention | SpatialNorm) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        if step.norm is None:
            scale, shift = (isinstance(step, Conv) and step.affine) or (1.0, 0.0)
            n = step.source.channels
            return np.full(n, scale, dtype=np.float32), np.full(n, shift, dtype=np.float32)
        weight = self._weights[f"{step.norm.weights}.weight"]
        if isinstance(step.norm, PixelNorm):
            bias = self._weights[f"{step.norm.weights}.bias"] if step.norm.bias else torch.zeros_like(weight)
            parts = [np.ascontiguousarray(one.detach().cpu().float().numpy().ravel()) for one in (weight, bias)]
            return parts[0], parts[1]
        bias = self._weights[f"{step.norm.weights}.bias"]
        return self._statistics[step.source.name].normalise(step.norm, weight, bias)

    def _attend(self, one: Pass, step: Attention) -> None:
        height, width = self.plan.job.size(step.source)
        channels = step.source.channels
        spilled = one.places[step.source.name] == "spilled"

        scratch = self._scratch(one)

        def read(start: int, end: int, slot: int) -> Tensor:
            if not spilled:
                return self._kept[step.source.name].tensor.view(-1, channels)[start:end]
            size = max(QUERIES, KEYS) * channels * self.dtype.itemsize
            place = scratch[len(scratch) - (slot + 1) * size :][:size].view(self.dtype)
            block = place[: (end - start) * channels].view(end - start, 1, channels)
            self._spill.read(step.source, start, block)
            return block.view(-1, channels)

        def write(start: int, end: int, values: Tensor, moments: Moments) -> None:
            if spilled:
                self._spill.write(step.target, start, values.view(-1, 1, channels))
            else:
                self._kept[step.target.name].tensor.view(-1, channels)[start:end] = values
            self._measured(step.target, moments)
            self._advance(self._cost(step) * (end - start) / (height * width))

        def measure(start: int, end: int, values: Tensor) -> None:
            write(start, end, values.to(self.dtype), moments_of(values))

        folded = Folded.of(step, self._weights)
        norm = step.norm if isinstance(step.norm, PixelNorm) else None
        scale, shift = self._scale(step)
        self._statistics.pop(step.target.name, None)
        if isinstance(self.backend, Reference) or not self.plan.job.kernels_attend(step):
            on_device = [torch.from_numpy(part).to(self.device) for part in (scale, shift)]
            attend(height * width, read, measure, folded, on_device[0], on_device[1], scratch, norm, step.adds)
        else:
            from calotype.engine.attention_cpu import AttentionKernels  # needs Numba

            kernels = AttentionKernels(self.backend.workers, self.plan.job)
            kernels.run(height * width, read, write, folded, scale, shift, scratch, norm, step.adds)
