"""The engine: which executor runs a network where, and how pictures pass through it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from calotype.engine import cuda
from calotype.engine.blocks import Kernels
from calotype.engine.budget import parse_memory
from calotype.engine.executor import Executor, Progress, Source
from calotype.engine.memory import free_memory
from calotype.engine.plan import Plan, plan
from calotype.engine.reference import Reference
from calotype.errors import NonFiniteError, UsageError
from calotype.families.network import Network
from calotype.steps import Conv, Direction, Program

if TYPE_CHECKING:
    from calotype.engine.winograd import Winograd, Workers

EngineName = Literal["auto", "winograd", "fused", "reference"]  # auto: the fastest that runs here

Compute = Callable[[Tensor, Tensor], None]
"""(x [C, H, W], result [C', H', W']) -> computes one picture, into the result."""

_log = logging.getLogger("calotype")
_said: list[bool] = []

MARGIN = 0.1  # of what is free stays free
TOGETHER = 2**28  # bytes at most that pictures take which are computed at the same time
WHOLE_MAPS = 4  # maps of the largest size that the fused path has at once, with what convolutions take


@cache
def winograd_available() -> str:
    """Why the CPU kernels can't be used here; empty if they can."""
    try:
        import numba  # noqa: F401
        from llvmlite import binding
    except ImportError:
        return "Numba is not installed"
    features = dict(binding.get_host_cpu_features())
    if not (features.get("avx2") and features.get("fma")):
        return "the processor has no AVX2"
    return ""


def one_dnn() -> bool:
    """Whether torch has oneDNN's convolutions; its own copy every value nine times."""
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return there


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type in which `reference` multiplies: `dtype`, or float32 for halves that the CPU can't convolve."""
    if device.type != "cpu" or dtype == torch.float32 or not one_dnn():
        return dtype
    mkldnn: Any = torch.ops.mkldnn
    supported = mkldnn._is_mkldnn_bf16_supported if dtype == torch.bfloat16 else mkldnn._is_mkldnn_fp16_supported
    return dtype if supported() else torch.float32


def half_available() -> bool:
    """Whether the CPU kernels multiply bfloat16 faster than float32.

    They do on AMD's processors with AVX512-BF16. On an Intel Xeon that has it a decode took 1.3 times as long as in
    float32.
    """
    if winograd_available():
        return False
    from llvmlite import binding

    multiplies = dict(binding.get_host_cpu_features()).get("avx512bf16")
    return bool(multiplies) and binding.get_host_cpu_name().startswith("znver")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16; a CPU that does not takes longer for it than for float32, by torch's own
    operations up to ten times as long."""
    if device.type != "cpu":
        return True
    try:
        from llvmlite import binding
    except ImportError:  # nothing tells
        return False
    features = dict(binding.get_host_cpu_features())
    return bool(features.get("avx512bf16") or features.get("amx-bf16"))


def unknown_activation(module: Network) -> str:
    """An activation of a network that the CPU kernels do not have; empty if they have all."""
    steps = [step for direction in get_args(Direction) for step in module.program(direction).steps]
    found = {step.activation for step in steps if isinstance(step, Conv)} - {"none", "silu", "relu", "clamp"}
    return min(found, default="")


def choose(module: Network, device: torch.device, dtype: torch.dtype) -> EngineName:
    """The fastest engine there is for a network on a device, in a `dtype`."""
    if device.type == "cpu" and not winograd_available() and not unknown_activation(module):
        if dtype in (torch.float32, torch.bfloat16):
            return "winograd"
    elif device.type == "cuda":
        return "fused"
    return "reference"


class Engine:
    """Encodes and decodes with one network: the numbers of the whole picture, in bounded memory.

    Args:
        module: the network; its weights are read at every call.
        device: where it runs; the weights must be there.
        dtype: of computation. By the CPU's kernels with bfloat16 the products are bfloat16, and sums, maps and norms
            float32; all is float32 where that is faster (`half_available`), which is said once.
        name: which executor; "auto" is the fastest there is.

    Attributes:
        asked: the executor that was asked for, which may be "auto".
        name: the executor that runs: "winograd", "fused" or "reference".

    Raises:
        UsageError: if that executor can't run here.
    """

    def __init__(self, module: Network, device: torch.device, dtype: torch.dtype, name: EngineName = "auto") -> None:
        self.module, self.device, self.dtype, self.asked = module, device, dtype, name
        self.name = choose(module, device, dtype) if name == "auto" else name
        if self.name == "winograd":
            reason = winograd_available() or (device.type != "cpu" and f"it runs on the CPU, not on {device.type}")
            if not reason and (activation := unknown_activation(module)):
                reason = f"it computes no {activation}"
            if not reason and dtype == torch.float16:
                reason = "it computes in float32 or bfloat16"
            if reason:
                raise UsageError(f"The engine 'winograd' can't be used: {reason}; leave it out, or give 'reference'.")
            if dtype == torch.bfloat16 and not half_available() and not _said:
                _said.append(True)
                _log.warning("On this processor bfloat16 is no faster than float32, in which it is computed.")
        elif self.name not in ("fused", "reference"):
            raise UsageError(f"There is no engine {self.name!r}; there are auto, winograd, fused and reference.")

    def program(self, direction: Direction) -> Program:
        """What is computed."""
        return self.module.program(direction)

    def plan(self, direction: Direction, height: int, width: int, memory: int | str | None = None) -> Plan:
        """How a picture of height x width pixels (multiples of the factor) is run; see `plan.plan`.

        Raises:
            MemoryLimitError: if it can't be done in so much memory.
        """
        kernels: Kernels = "winograd" if self.name == "winograd" else "reference"
        return plan(
            self.program(direction), height, width,
            memory=None if memory is None else parse_memory(memory),
            free=int(free_memory(self.device) * (1 - MARGIN)),
            kernels=kernels, threads=torch.get_num_threads(),
            itemsize=4 if kernels == "winograd" else self.dtype.itemsize,
            half=kernels == "winograd" and self.dtype == torch.bfloat16 and half_available(),
            widens=kernels == "reference" and product_dtype(self.device, self.dtype) != self.dtype,
            unfolds=kernels == "reference" and self.device.type == "cpu" and not one_dnn(),
            touched=self.device.type == "cpu",
        )  # fmt: skip

    def rows(
        self,
        direction: Direction,
        source: Source,
        height: int,
        width: int,
        *,
        memory: int | str | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, int, Tensor]]:
        """One picture of height x width pixels: (start, end, rows [C, n, W]) of the result, from the top down.

        Rows are on the device, and a view that the next turn overwrites.

        Args:
            source: (start, end) -> rows [n, W, C] of what goes in, pixels or latents.

        Raises:
            NonFiniteError: if rows hold NaN or infinity.
        """
        for start, end, rows in self._rows(direction, source, height, width, memory, progress):
            self._require_finite(rows)
            yield start, end, rows

    def _require_finite(self, rows: Tensor) -> None:
        if not torch.isfinite(rows).all():
            raise NonFiniteError(f"{str(self.dtype).removeprefix('torch.')} gave NaN or infinity.")

    def _rows(
        self,
        direction: Direction,
        source: Source,
        height: int,
        width: int,
        memory: int | str | None,
        progress: Progress | None,
    ) -> Iterator[tuple[int, int, Tensor]]:
        if self.whole_fits(direction, height, width, memory):
            whole = source(0, self.program(direction).source.size(height, width)[0])
            result = self._fused(direction, whole.permute(2, 0, 1)[None])[0]
            yield 0, result.shape[1], result
            if progress is not None:
                progress(1.0)
            return
        made = self.plan(direction, height, width, memory)
        dtype = torch.float32 if self.name == "winograd" else self.dtype
        backend: Winograd | Reference
        if self.name == "winograd":
            from calotype.engine.winograd import Winograd

            backend = Winograd(workers(made.job.threads), made.job)
        else:
            backend = Reference(made.job, dtype)
        yield from self._executed(made, dtype, backend, source, progress)

    def _executed(
        self, made: Plan, dtype: torch.dtype, backend: Winograd | Reference, source: Source, progress: Progress | None
    ) -> Iterator[tuple[int, int, Tensor]]:
        executor = Executor(made, self.module, self.device, dtype, backend, progress)
        for start, end, rows in executor.run(source):
            yield start, end, rows.permute(2, 0, 1)

    def __call__(
        self, direction: Direction, x: Tensor, *, memory: int | str | None = None, progress: Progress | None = None
    ) -> Tensor:
        """Pixels or latents [N, C, H, W] -> moments or pixels [N, C', H', W'].

        One picture after another, or where they take little memory as many at once as there are threads. A picture's
        result does not depend on the others.

        Raises:
            MemoryLimitError: if it can't be done in so much memory.
            NonFiniteError: if the result holds NaN or infinity.
        """
        program = self.program(direction)
        target, factor = program.target, program.source.factor
        height, width = (n * factor for n in x.shape[2:])
        result = torch.empty(len(x), target.channels, *target.size(height, width), device=x.device)
        if len(x) > 1 and self.at_once(direction, height, width, memory) > 1:
            lock, done = threading.Lock(), count(1)

            def computed(i: int, compute: Compute) -> None:
                compute(x[i], result[i])
                if progress is not None:
                    with lock:
                        progress(next(done) / len(x))

            self.each(direction, height, width, len(x), computed, memory=memory)
            return result
        for i, one in enumerate(x):
            part, source = share(progress, i, len(x)), rows_of(one)
            for start, end, rows in self.rows(direction, source, height, width, memory=memory, progress=part):
                result[i, :, start:end] = rows
        return result

    def at_once(self, direction: Direction, height: int, width: int, memory: int | str | None = None) -> int:
        """How many pictures of a batch are computed at the same time, a thread each: one where that takes much memory.

        Threads that share one small picture wait for each other after each of its steps.

        Raises:
            MemoryLimitError: as `plan`.
        """
        if self.name != "winograd":
            return 1
        from calotype.engine.winograd import shared_bytes

        made = self.plan(direction, height, width, memory)
        limit = TOGETHER if memory is None else min(TOGETHER, parse_memory(memory))
        return made.job.threads if made.job.threads * made.peak + shared_bytes(made) <= limit else 1

    def each(
        self,
        direction: Direction,
        height: int,
        width: int,
        number: int,
        work: Callable[[int, Compute], None],
        *,
        memory: int | str | None = None,
    ) -> None:
        """Calls work(i, compute) for every i below `number`, each by one of the threads, where `at_once` is above one.

        For who has more to do for each picture than to compute it. Weights are transformed once for all.

        Raises:
            MemoryLimitError, NonFiniteError: as the call of `self`; and what `work` raises.
        """
        from calotype.engine.winograd import Shared, Winograd, Workers

        made = self.plan(direction, height, width, memory)
        shared = Shared(made)
        inference = torch.is_inference_mode_enabled()  # which other threads are not in

        def compute(x: Tensor, result: Tensor) -> None:
            backend = Winograd(Workers(1), made.job, shared)
            for start, end, rows in self._executed(made, torch.float32, backend, rows_of(x), None):
                self._require_finite(rows)
                result[:, start:end] = rows

        def one(_: int, i: int) -> None:
            with torch.inference_mode(inference):
                work(i, compute)

        try:
            workers(made.job.threads).run(number, one)
        finally:
            shared.memory.close()

    def _fused(self, direction: Direction, x: Tensor) -> Tensor:
        run = cuda.encode_moments if direction == "encode" else cuda.decode
        return run(self.module, x.to(self.device, self.dtype))

    def whole_fits(self, direction: Direction, height: int, width: int, memory: int | str | None) -> bool:
        """Whether the fused engine computes a picture of `height` x `width` pixels at once."""
        if self.name != "fused":
            return False
        largest = max(step.target.values(height, width) for step in self.program(direction).steps)
        limit = free_memory(self.device) * (1 - MARGIN) if memory is None else parse_memory(memory)
        return WHOLE_MAPS * largest * self.dtype.itemsize <= limit


def rows_of(picture: Tensor) -> Source:
    """Rows [n, W, C] of a tensor [C, H, W]."""
    rows = picture.detach().permute(1, 2, 0)
    return lambda start, end: rows[start:end]


def share(progress: Progress | None, i: int, n: int) -> Progress | None:
    """Progress of picture i of n, as part of all."""
    return None if progress is None else lambda part: progress((i + part) / n)


_lock = threading.Lock()
_pool: dict[int, Workers] = {}
if hasattr(os, "register_at_fork"):  # threads do not come along
    os.register_at_fork(after_in_child=_pool.clear)


def workers(threads: int) -> Workers:
    """So many threads for the kernels, kept between calls."""
    with _lock:
        from calotype.engine.winograd import Workers

        if threads not in _pool:
            _pool[threads] = Workers(threads)
        return _pool[threads]
