"""Convolutions on the CPU by the kernels of `kernels.py`, on as many threads as torch has."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calotype.engine import kernels
from calotype.engine.blocks import Job, aligned
from calotype.engine.memory import Memory, Rows
from calotype.engine.plan import Plan
from calotype.engine.reference import Moments
from calotype.engine.vectors import PANEL
from calotype.steps import Conv, Norm, PixelNorm

Floats = npt.NDArray[np.float32]
_CODES = {"none": kernels.NONE, "silu": kernels.SILU, "relu": kernels.RELU, "clamp": kernels.NONE}
NO_NORM: Floats = np.empty(0, dtype=np.float32)
FLOORS = {relu: np.array([0.0 if relu else -np.inf, -np.inf], dtype=np.float32) for relu in (False, True)}


@cache
def _torch_team() -> Callable[[Any, None, int, int], None] | None:
    """libgomp's GOMP_parallel, of the library that torch computes with; None where torch has another.

    Its threads spin for milliseconds after each of torch's operations, waiting for the next, and what runs on threads
    of its own meanwhile gets half of the processor.
    """
    place = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    try:
        start: Any = ctypes.CDLL(str(place), mode=os.RTLD_NOLOAD).GOMP_parallel
    except (OSError, AttributeError):
        return None
    start.argtypes, start.restype = [_WORK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return start  # type: ignore[no-any-return]


_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_forked: list[bool] = []  # whether this process came from another by a fork: libgomp's threads did not come along
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forked.append(True))


class Workers:
    """Threads that share blocks among them: torch's where it can be asked, which wait for work anyway, or own ones.

    Blocks hold no lock, so plain threads do.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._team = _torch_team() if threads > 1 and not _forked else None
        own = threads > 1 and self._team is None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="calotype") if own else None

    def run(self, count: int, work: Callable[[int, int], None]) -> None:
        """work(thread, i) for every i below `count`; an error or an interrupt stops the others before their next."""
        turns, stop = itertools.count(), threading.Event()

        def take(thread: int) -> None:
            try:
                while not stop.is_set() and (i := next(turns)) < count:
                    work(thread, i)
            except BaseException:
                stop.set()
                raise

        if count == 1 or self.threads == 1:
            take(0)
            return
        if self._team is not None:
            numbers: Iterator[int] = itertools.count()
            errors: list[BaseException] = []

            def join(_: object) -> None:
                try:
                    take(next(numbers))
                except BaseException as error:  # nothing may pass through the library, which is C
                    errors.append(error)

            self._team(_WORK(join), None, self.threads, 0)  # always all of them: those of a smaller team would end
            try:
                if errors:
                    raise errors[0]
            finally:
                errors.clear()  # its traceback holds this frame
            if stop.is_set():
                raise KeyboardInterrupt
            return
        assert self._pool is not None
        futures: list[Future[None]] = []
        try:
            for thread in range(min(self.threads, count)):
                futures.append(self._pool.submit(take, thread))
            for future in futures:
                future.result()
        finally:
            stop.set()
            _outlast(futures)


def _outlast(futures: list[Future[None]]) -> None:
    """Waits until all are done, also through interrupts: memory they write into is about to be given back."""
    interrupted = False
    while True:
        try:
            wait(futures)
            break
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt


class Shared:
    """Transformed weights that runs of one plan have in common: each is made once, by whichever run comes first."""

    def __init__(self, plan: Plan) -> None:
        self.memory = Memory(shared_bytes(plan), torch.device("cpu"))
        self._free, self._made = self.memory.address, dict[Conv, tuple[int, Floats]]()
        self._job, self._lock = plan.job, threading.Lock()

    def of(self, step: Conv, make: Callable[[int], Floats]) -> tuple[int, Floats]:
        """Where a step's weights lie, and its bias; `make` makes both, given a place."""
        with self._lock:
            if step not in self._made:
                self._made[step] = self._free, make(self._free)
                self._free += aligned(self._job.weight_bytes(step))
            return self._made[step]


def shared_bytes(plan: Plan) -> int:
    """What `Shared` takes."""
    return sum(aligned(plan.job.weight_bytes(step)) for step in plan.program.steps if isinstance(step, Conv))


class Winograd:
    """Runs convolutions of one plan.

    Args:
        job: of that plan; with `half`, sums, maps and statistics stay float32.
        shared: transformed weights that other runs have too.
    """

    def __init__(self, workers: Workers, job: Job, shared: Shared | None = None) -> None:
        self.workers, self.job, self.shared = workers, job, shared
        self._weights: dict[str, tuple[int, Floats]] = {}

    def prepare(self, step: Conv, weight: Tensor, bias: Tensor | None, address: int) -> None:
        """Transforms a convolution's weights [N, K, taps, taps] (or [N, K]) into memory, or takes what is shared."""

        def make(place: int) -> Floats:
            return self._transform(step, weight, bias, place)

        self._weights[step.weights] = self.shared.of(step, make) if self.shared else (address, make(address))

    def _transform(self, step: Conv, weight: Tensor, bias: Tensor | None, address: int) -> Floats:
        """Weights into memory; gives the bias, of whole panels."""
        out, channels = weight.shape[:2] if step.kernel == 3 else (weight.shape[0], weight[0].numel())
        half = self.job.half
        wide, deep = -(-out // PANEL) * PANEL, channels + (channels % 2 if half else 0)
        weight = weight.detach().float().reshape(out, channels, step.kernel, step.kernel)
        scale, shift = step.gain or (1.0, 0.0)
        if scale != 1.0:
            weight = weight * scale
        if (wide, deep) != (out, channels):
            weight = torch.nn.functional.pad(weight, (0, 0, 0, 0, 0, deep - channels, 0, wide - out))
        weight = weight.contiguous()
        code = kernels.ALGORITHMS.index(self.job.algorithm(step))
        self.workers.run(
            wide // PANEL,
            lambda _, panel: kernels.transform_weights(code, half, weight.data_ptr(), wide, deep, address, panel),
        )
        padded = np.full(wide, shift, dtype=np.float32)
        if bias is not None:
            padded[:out] += (scale * bias.detach().float()).numpy()  # of a copy: FSDP resizes what NumPy must not see
        return padded

    def run(
        self,
        step: Conv,
        start: int,
        end: int,
        *,
        source: Rows,
        target: Rows,
        residual: Rows | None,
        scale: Floats,
        shift: Floats,
        scratch: int,
        measure: bool,
    ) -> Moments | None:
        """Makes rows `start` to `end` with what was prepared; if asked, their count, mean and M2 by channel."""
        algorithm = self.job.algorithm(step)
        rows, width = self.job.size(step.target)
        high, wide = self.job.size(step.source)
        block = self.job.block(step, end - start)
        first, last = start // algorithm.tile, -(-end // algorithm.tile)
        across = -(-width // algorithm.tile)
        blocks = -(-(last - first) // block[0]) * -(-across // block[1])
        sizes = [aligned(4 * n) for n in self.job.scratch_floats(step, block)]
        places = [[scratch + t * sum(sizes) + sum(sizes[:i]) for i in range(4)] for t in range(self.workers.threads)]
        n = step.target.channels
        statistics = np.empty((blocks, 3, n)) if measure else None
        (weights, bias), floor = self._weights[step.weights], FLOORS[step.relu]
        code = kernels.HALVES if source.tensor.dtype == torch.bfloat16 else _CODES[step.activation]
        norm = pixel_norm(step.norm, step.source.channels)
        fixed = (
            kernels.ALGORITHMS.index(algorithm), self.job.half, source.address, source.first, high, wide,
            step.source.channels, scale.ctypes.data, shift.ctypes.data, code, norm.ctypes.data if norm.size else 0,
            step.pad,
            target.address, target.first, rows, width, n,
            residual.address if residual else 0, residual.first if residual else 0, floor.ctypes.data,
            weights, bias.ctypes.data, first, last, across, *block,
            statistics.ctypes.data if statistics is not None else 0,
        )  # fmt: skip
        self.workers.run(blocks, lambda thread, i: kernels.convolve_block(i, *fixed, *places[thread]))
        return merged(statistics) if statistics is not None else None


def pixel_norm(norm: Norm | PixelNorm | None, channels: int) -> Floats:
    """What `vectors.activation` reads of a norm of pixels; empty where positions are not normalised."""
    if not isinstance(norm, PixelNorm):
        return NO_NORM
    return np.array([1 / channels, norm.least**2 / channels, norm.eps], dtype=np.float32)


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is told at the end
def merged(parts: npt.NDArray[np.float64]) -> Moments:
    """Counts, means and M2 [parts, 3, channels] of disjoint parts -> those of the whole (Chan et al. 1979)."""
    counts, means, m2 = parts[:, 0], parts[:, 1], parts[:, 2]
    n = counts.sum(0)
    mean = (counts * means).sum(0) / n
    return int(n[0]), mean, m2.sum(0) + (counts * (means - mean) ** 2).sum(0)
