"""How fast and in how much memory the CPU engine runs, beside what else runs the same network on this machine.

    python bench/engine.py [--sections speed limit memory scaling large] [--repeats 5] [--size 512] [--quick] [--keep]

The network is Stable Diffusion 1's, with random weights that all contenders read. Sections:
speed    decode and encode: calotype, diffusers (eager and compiled), ONNX Runtime, OpenVINO; float32 and bfloat16
limit    the rate of matrix products on this machine, and the engine's share of it
memory   predicted and measured peaks of decodes at 2x and 4x the size, each in a process of its own
scaling  seconds a pixel without attention, at 1x, 2x and 4x the size
large    decode at 8x the size in 1 GB: many minutes, so only where asked for

Contenders take turns (A B C A B C ...), since speed drifts on a machine that others use. Prints tables and then one
JSON line; --keep keeps it in bench/results/, by sections and processor. Of bfloat16 only calotype is measured where the
processor has no products of it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import logging
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import cache, partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import calotype
from calotype.engine.blocks import Job, aligned
from calotype.engine.budget import parse_memory
from calotype.engine.executor import Executor
from calotype.engine.memory import Memory, Rows
from calotype.engine.run import multiplies_bfloat16
from calotype.errors import MemoryLimitError
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.kl.network import AutoencoderKL
from calotype.steps import Conv, Direction, Map
from calotype.weights.save import save_weights

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ("speed", "limit", "memory", "scaling", "large")
DEFAULT = SECTIONS[:-1]
PAUSE = 0.3  # seconds before every run: threads of the one before may still spin
PROTOCOL = (
    "batch 1, random weights, the same for all; contenders take turns after a warm-up, each after a pause; "
    "wall seconds. error_max and error_rms: difference to the plain float32 module on the whole picture, in standard "
    "deviations of its output; in memory: to the first row of that size. ready: seconds to load, convert or compile, "
    "and to run once. memory: one run each in a fresh process, planning included; measured is the peak of resident "
    "bytes less those before the run (weights, libraries, latents) and less the pixels that are returned; the file "
    "cache of the temporary file is not in it. scaling: planning, once for every size, is apart."
)
CONVOLUTION = "oneDNN 3x3 convolution, 512 channels"  # no product alone, but the highest rate there is
FASTEST = "100GB"  # a budget that decides nothing
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """What is measured with: the full network and budgets, or small ones that only show that this script works."""

    config: AutoencoderConfig
    size: int
    budgets: tuple[str, str, str]  # at 4x the size, at 8x, and one in which 4x spills nothing


FULL = Setting(AutoencoderConfig(), 512, ("512MB", "1GB", "12GB"))
QUICK = Setting(AutoencoderConfig(ch=32), 128, ("64MB", "64MB", "1GB"))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def random_network(config: AutoencoderConfig) -> AutoencoderKL:
    """Random weights, norms and biases included, that keep outputs O(1)."""
    torch.manual_seed(0)
    module = AutoencoderKL(config).requires_grad_(False)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 4:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter, *((0.0, 0.2) if name.endswith("bias") else (1.0, 0.3)))
    return module.eval()


def given(direction: Direction, size: int, config: AutoencoderConfig) -> Tensor:
    """Random latents or pixels of a square picture."""
    generator = torch.Generator().manual_seed(size)
    if direction == "encode":
        return torch.rand(1, 3, size, size, generator=generator) * 2 - 1
    side = size // config.factor
    return torch.randn(1, config.z_channels, side, side, generator=generator)


def difference(result: Tensor, expected: Tensor) -> dict[str, float]:
    """Largest and rms error, in standard deviations of what is expected."""
    error, std = (result - expected).abs(), expected.std()
    return {"error_max": (error.max() / std).item(), "error_rms": (error.square().mean().sqrt() / std).item()}


def interleaved(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Wall seconds of every run, which take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name, run in runs.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
        say(f"  turn {turn + 1} of {repeats}: " + ", ".join(f"{n} {t[-1]:.2f}" for n, t in times.items()))
    return times


def summary(times: Sequence[float], unit: str = "seconds") -> dict[str, Any]:
    return {
        unit: statistics.median(times),
        f"{unit}_min": min(times),
        f"{unit}_max": max(times),
        "repeats": len(times),
    }


def spread(row: dict[str, Any], unit: str = "seconds", digits: int = 2) -> str:
    return f"{row[unit]:.{digits}f} ({row[f'{unit}_min']:.{digits}f} to {row[f'{unit}_max']:.{digits}f})"


# --- what else runs the network ---


class Moments(nn.Module):
    """diffusers' encoder as one module: pixels -> moments."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> Tensor:
        moments: Tensor = self.vae.quant_conv(self.vae.encoder(x))
        return moments


class Pixels(nn.Module):
    """diffusers' decoder as one module: raw latents -> pixels."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        pixels: Tensor = self.vae.decoder(self.vae.post_quant_conv(z))
        return pixels


@dataclass
class Peers:
    """Makes the contenders' runs of one direction: pixels -> moments, or latents -> pixels, both float32."""

    folder: Path
    direction: Direction
    x: Tensor
    _converted: dict[str, Any] = field(default_factory=dict)

    def theirs(self) -> nn.Module:
        """diffusers' network with the same weights."""
        diffusers = import_module("diffusers")
        vae = diffusers.AutoencoderKL.from_pretrained(self.folder, low_cpu_mem_usage=False)
        vae.requires_grad_(False).eval()
        return Pixels(vae) if self.direction == "decode" else Moments(vae)

    def calotype(self, dtype: torch.dtype) -> Run:
        vae = calotype.load(self.folder, device="cpu", dtype=dtype)
        if self.direction == "decode":
            return lambda z: vae.decode(z, clamp=False)
        return lambda x: vae.encode(x).mode()

    def eager(self, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> Run:
        module = self.theirs().to(dtype)
        module.to(memory_format=layout)  # type: ignore[call-overload]
        return lambda x: module(x.to(dtype, memory_format=layout)).float()

    def compiled(self) -> Run:
        run: Run = torch.compile(self.theirs(), dynamic=False)
        return run

    def onnxruntime(self) -> Run:
        ort = import_module("onnxruntime")
        import_module("onnx")
        import_module("onnxscript")
        path = self.folder / f"{self.direction}.onnx"
        torch.onnx.export(self.theirs(), (self.x,), path, dynamo=True, verbose=False)
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    def openvino(self, precision: str) -> Run:
        ov = import_module("openvino")
        if not self._converted:
            self._converted["openvino"] = ov.convert_model(
                self.theirs(), example_input=self.x, input=list(self.x.shape)
            )
        hints = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        model = ov.Core().compile_model(self._converted["openvino"], "CPU", hints)
        if (used := model.get_property("INFERENCE_PRECISION_HINT").to_string()) != precision:
            raise RuntimeError(f"computes in {used} here")
        return lambda x: torch.from_numpy(model(x.numpy())[0].copy())

    def all(self) -> dict[str, Callable[[], Run]]:
        """Contenders by name."""
        return {
            "calotype": lambda: self.calotype(torch.float32),
            "diffusers": lambda: self.eager(torch.float32),
            "diffusers, channels last": lambda: self.eager(torch.float32, torch.channels_last),
            "diffusers, torch.compile": self.compiled,
            "ONNX Runtime": self.onnxruntime,
            "OpenVINO": lambda: self.openvino("f32"),
            "calotype bf16": lambda: self.calotype(torch.bfloat16),
            "diffusers bf16": lambda: self.eager(torch.bfloat16),
            "OpenVINO bf16": lambda: self.openvino("bf16"),
        }


def speed(folder: Path, setting: Setting, repeats: int) -> list[dict[str, Any]]:
    """Seconds and errors of every contender in both directions."""
    return compete(folder, setting, "decode", repeats) + compete(folder, setting, "encode", repeats)


def compete(folder: Path, setting: Setting, direction: Direction, repeats: int) -> list[dict[str, Any]]:
    """Seconds and errors of every contender in one direction."""
    x = given(direction, setting.size, setting.config)
    plain = calotype.load(folder, device="cpu").module
    assert isinstance(plain, AutoencoderKL)
    expected = plain.decode(x) if direction == "decode" else plain.encode(x).mode()
    found: dict[str, dict[str, Any]] = {}
    runs: dict[str, Run] = {}
    for name, make in Peers(folder, direction, x).all().items():
        row: dict[str, Any] = {"direction": direction, "size": setting.size, "contender": name}
        found[name] = row
        say(f"{direction}: {name}")
        start = time.perf_counter()
        if name.endswith("bf16") and name != "calotype bf16" and not multiplies_bfloat16(torch.device("cpu")):
            row["note"] = "left out: this processor has no products of bfloat16"
            continue
        try:
            run = make()
            result = run(x)
        except ModuleNotFoundError as error:
            row["note"] = f"{error.name} is not installed"
        except Exception as error:  # whatever a peer does not like, the others are measured
            lines = str(error).strip().splitlines()
            row["note"] = f"failed: {type(error).__name__}: {lines[0] if lines else ''}"
        else:
            runs[name] = run
            row["ready"] = time.perf_counter() - start
            row |= difference(result[:, : expected.shape[1]], expected)
    for name, times in interleaved({name: partial(run, x) for name, run in runs.items()}, repeats).items():
        found[name] |= summary(times)
    base = found["diffusers"].get("seconds")
    for row in found.values():
        if base and "seconds" in row:
            row["speedup"] = base / row["seconds"]
    return list(found.values())


def show_speed(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "",
        "contender",
        "seconds: median (min to max)",
        "speed-up on diffusers",
        "largest error / std",
        "rms",
        "ready s",
    )
    for row in rows:
        name = f"{row['direction']} {row['size']}", row["contender"]
        if "note" in row:
            table.add_row(*name, row["note"][:60])
            continue
        table.add_row(
            *name,
            spread(row),
            f"{row['speedup']:.2f}" if "speedup" in row else "",
            f"{row['error_max']:.1e}",
            f"{row['error_rms']:.1e}",
            f"{row['ready']:.1f}",
        )
    return table


# --- what the machine could do ---


def matrix_rates() -> dict[str, tuple[Callable[[], object], float]]:
    """Products without anything else, and their operations: torch's and our own; and a direct convolution's."""
    from calotype.engine.winograd import Winograd, Workers

    n, channels, side = 2048, 512, 128
    a, b = torch.randn(n, n), torch.randn(n, n)
    x = torch.randn(1, channels, side, side).to(memory_format=torch.channels_last)
    w = torch.randn(channels, channels, 3, 3).to(memory_format=torch.channels_last)
    direct = 2.0 * side**2 * channels**2

    step = Conv(source=Map("in", channels, 1), target=Map("out", channels, 1), weights="w", kernel=1)
    threads = torch.get_num_threads()
    job = Job(side, side, threads=threads)
    backend = Winograd(Workers(threads), job)
    room = aligned(job.weight_bytes(step))
    scratch = threads * sum(aligned(4 * n) for n in job.scratch_floats(step, job.block(step)))
    memory = Memory(room + scratch, torch.device("cpu"))
    backend.prepare(step, torch.randn(channels, channels), None, memory.address)
    source = Rows(step.source, torch.randn(side, side, channels), 0, side)
    target = Rows(step.target, torch.zeros(side, side, channels), 0, side)
    scale, shift = np.ones(channels, dtype=np.float32), np.zeros(channels, dtype=np.float32)

    def pointwise() -> object:
        return backend.run(
            step, 0, side, source=source, target=target, residual=None, scale=scale, shift=shift,
            scratch=memory.address + room, measure=False,
        )  # fmt: skip

    return {
        f"torch.mm {n}": (lambda: torch.mm(a, b), 2.0 * n**3),
        f"our kernel, 1x1, {channels} channels": (pointwise, direct),
        CONVOLUTION: (lambda: nn.functional.conv2d(x, w, padding=1), 9 * direct),
    }


def limit(folder: Path, setting: Setting, repeats: int) -> dict[str, Any]:
    """The fastest products measured here, and which part of their rate a decode has."""
    vae = calotype.load(folder, device="cpu")
    x = given("decode", setting.size, setting.config)
    plan = vae.engine.plan("decode", setting.size, setting.size)
    vae.decode(x, clamp=False)
    rates = matrix_rates()
    counts: dict[str, int] = {}
    for name, (run, _) in rates.items():
        run()
        start = time.perf_counter()
        run()
        counts[name] = max(1, round(0.5 / (time.perf_counter() - start)))  # about half a second at a time

    def often(name: str) -> None:
        for _ in range(counts[name]):
            rates[name][0]()

    runs: dict[str, Callable[[], object]] = {name: partial(often, name) for name in rates}
    runs["decode"] = lambda: vae.decode(x, clamp=False)
    times = interleaved(runs, repeats)
    measured = {
        name: summary([counts[name] * flops / t / 1e9 for t in times[name]], "gflops")
        for name, (_, flops) in rates.items()
    }
    fastest = max((name for name in measured if name != CONVOLUTION), key=lambda name: float(measured[name]["gflops"]))
    seconds = summary(times["decode"])
    rate = float(measured[fastest]["gflops"]) * 1e9
    return {
        "size": setting.size,
        "rates": measured,
        "fastest": fastest,
        "decode": seconds,
        "flops": plan.flops,
        "direct_flops": plan.direct_flops,
        "share": plan.flops / rate / seconds["seconds"],
        "share_of_convolution": plan.flops / measured[CONVOLUTION]["gflops"] / 1e9 / seconds["seconds"],
    }


def show_limit(found: dict[str, Any]) -> Table:
    table = Table("products alone", "GFLOP/s: median (min to max)")
    for name, row in found["rates"].items():
        table.add_row(name, spread(row, "gflops", 0), style="bold" if name == found["fastest"] else "")
    table.add_section()
    table.add_row(f"decode {found['size']}, seconds", spread(found["decode"]))
    table.add_row(
        "its products, GFLOP (direct convolutions)", f"{found['flops'] / 1e9:.0f} ({found['direct_flops'] / 1e9:.0f})"
    )
    table.add_row("share of the fastest product's rate", f"{found['share']:.0%}")
    table.add_row("share of the direct convolution's rate", f"{found['share_of_convolution']:.0%}")
    return table


# --- memory, in processes of their own ---


def resident() -> int:
    """Bytes of this process in memory."""
    return int(import_module("psutil").Process().memory_info().rss)


@contextmanager
def watched_peak() -> Iterator[dict[str, Any]]:
    """The most bytes of this process in memory meanwhile: as Linux counts them, else looked at every 5 ms."""
    found: dict[str, Any] = {}
    try:
        Path("/proc/self/clear_refs").write_text("5")
        counted = "VmHWM" in Path("/proc/self/status").read_text()
    except OSError:
        counted = False
    highest, stop = [resident()], threading.Event()

    def look() -> None:
        while not stop.wait(0.005):
            highest[0] = max(highest[0], resident())

    watcher = None if counted else threading.Thread(target=look, daemon=True)
    if watcher:
        watcher.start()
    try:
        yield found
    finally:
        stop.set()
        if watcher:
            watcher.join()
            found |= {"peak": highest[0], "how": "sampled every 5 ms"}
        else:
            lines = Path("/proc/self/status").read_text().splitlines()
            found |= {
                "peak": next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")),
                "how": "VmHWM",
            }


def decode_here(task: dict[str, Any]) -> dict[str, Any]:
    """One decode in this process, measured beside its weights, what is warm, its latents and its pixels."""
    size, memory = task["size"], task["memory"]
    if task["contender"] == "diffusers":
        module = Peers(Path(task["folder"]), "decode", torch.empty(0)).theirs()
        config, vae = AutoencoderConfig(**task["config"]), None
        run: Run = lambda z: module(z)  # noqa: E731
    else:
        vae = calotype.load(task["folder"], device="cpu")
        assert isinstance(vae.config, AutoencoderConfig)
        config = vae.config
        run = lambda z: vae.decode(z, clamp=False, memory=memory)  # noqa: E731
    warm = given("decode", 64, config)
    vae.decode(warm, clamp=False) if vae else run(warm)
    z = given("decode", size, config)
    Memory._idle.clear()  # the warm-up's block, which would hide as many bytes
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what the warm-up gave back must not hide what comes
    before = resident()
    start = time.perf_counter()
    try:
        with watched_peak() as found:
            pixels = run(z)
    except MemoryLimitError as error:
        return {"note": str(error)}
    seconds = time.perf_counter() - start
    result = {"seconds": seconds, "measured": found["peak"] - before - pixels.nbytes, "how": found["how"]}
    if vae:
        plan = vae.engine.plan("decode", size, size, memory)
        result |= {"predicted": plan.peak, "spill": plan.spill}
    np.save(task["pixels"], pixels.numpy())
    return result


def decode_apart(folder: Path, setting: Setting, contender: str, size: int, memory: str | None) -> dict[str, Any]:
    """`decode_here` in a fresh process; `pixels` is the file they are in."""
    row: dict[str, Any] = {"contender": contender, "size": size, "memory": memory}
    say(f"memory: {contender}, {size}, {memory}")
    try:
        import_module("psutil")
        if contender == "diffusers":
            import_module("diffusers")
    except ModuleNotFoundError as error:
        return row | {"note": f"{error.name} is not installed"}
    pixels = folder / f"{contender}-{size}-{memory}.npy"
    channels = {"ch": setting.config.ch}
    task = {**row, "folder": str(folder), "pixels": str(pixels), "config": channels, "threads": torch.get_num_threads()}
    done = subprocess.run([sys.executable, __file__, "--child", json.dumps(task)], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return row | {"note": f"failed: {lines[-1] if lines else f'exit {done.returncode}'}"}
    row |= json.loads(done.stdout.splitlines()[-1])
    if "note" not in row:
        say(f"  {row['seconds']:.1f} s, {row['measured'] / 1e6:.0f} MB")
    return row | {"pixels": str(pixels)}


def compared(rows: list[dict[str, Any]], base: dict[str, Any]) -> list[dict[str, Any]]:
    """With errors against a run of the same size; pixels are dropped."""
    expected = torch.from_numpy(np.load(base["pixels"])) if "measured" in base else None
    for row in rows:
        if "measured" in row and expected is not None and row is not base:
            row |= difference(torch.from_numpy(np.load(row["pixels"])), expected)
    for row in rows:
        Path(row.pop("pixels", "")).unlink(missing_ok=True) if "pixels" in row else None
    return rows


def memory_of(folder: Path, setting: Setting) -> list[dict[str, Any]]:
    """Peaks and times at 2x and 4x the size."""
    twice, four = 2 * setting.size, 4 * setting.size
    budget, _, free = setting.budgets
    first = [
        decode_apart(folder, setting, contender, twice, memory)
        for contender, memory in (("calotype", FASTEST), ("calotype", None), ("diffusers", None))
    ]
    second = [decode_apart(folder, setting, "calotype", four, memory) for memory in (free, budget)]
    return compared(first, first[0]) + compared(second, second[0])


def large(folder: Path, setting: Setting) -> list[dict[str, Any]]:
    """8x the size in its budget."""
    row = decode_apart(folder, setting, "calotype", 8 * setting.size, setting.budgets[1])
    return compared([row], row)


def show_memory(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "decode", "contender", "budget", "seconds", "MB predicted", "MB measured", "GB spilled", "error / std"
    )
    for row in rows:
        budget = {None: "", FASTEST: "fastest plan"}.get(row["memory"], row["memory"])
        name = str(row["size"]), row["contender"], budget or ("default plan" if row["contender"] == "calotype" else "")
        if "note" in row:
            table.add_row(*name, row["note"][:60])
            continue
        over = row["memory"] is not None and row["measured"] > parse_memory(row["memory"])
        table.add_row(
            *name,
            f"{row['seconds']:.1f}",
            f"{row['predicted'] / 1e6:.0f}" if "predicted" in row else "",
            f"{row['measured'] / 1e6:.0f}" + (" (over)" if over else ""),
            f"{row['spill'] / 1e9:.1f}" if row.get("spill") else "",
            f"{row['error_max']:.1e}" if "error_max" in row else "",
        )
    return table


# --- growth with the picture ---


def scaling(folder: Path, setting: Setting, repeats: int) -> list[dict[str, Any]]:
    """Seconds a pixel at 1x, 2x and 4x the size, without those that attention takes, in memory touched before."""
    vae = calotype.load(folder, device="cpu")
    attending = 0.0
    attend = Executor._attend

    def timed(*arguments: Any) -> None:
        nonlocal attending
        start = time.perf_counter()
        attend(*arguments)
        attending += time.perf_counter() - start

    sizes = [setting.size * n for n in (1, 2, 4)]
    rest: dict[int, list[float]] = {size: [] for size in sizes}
    alone: dict[int, list[float]] = {size: [] for size in sizes}
    inputs = {size: given("decode", size, setting.config) for size in sizes}
    plans, planning = {}, {}
    for size in sizes:
        start = time.perf_counter()
        plans[size] = vae.engine.plan("decode", size, size)
        planning[size] = time.perf_counter() - start
    vae.decode(inputs[sizes[0]], clamp=False)
    Executor._attend = timed  # type: ignore[method-assign,assignment]
    try:
        for turn in range(repeats):
            for size in sizes:
                time.sleep(PAUSE)
                touched = Memory(plans[size].peak, torch.device("cpu"))  # as after a first decode of this size
                touched.bytes.zero_()
                touched.close()
                attending, start = 0.0, time.perf_counter()
                vae.decode(inputs[size], clamp=False)
                alone[size].append(attending)
                rest[size].append(time.perf_counter() - start - attending)
                say(f"scaling, turn {turn + 1} of {repeats}: {size}: {rest[size][-1]:.2f} + {attending:.2f} s")
    finally:
        Executor._attend = attend  # type: ignore[method-assign]
    rows: list[dict[str, Any]] = []
    for size, plan in plans.items():
        row = {
            "size": size,
            **summary([1e9 * t / size**2 for t in rest[size]], "ns_per_pixel"),
            "seconds_without_attention": statistics.median(rest[size]),
            "seconds_of_attention": statistics.median(alone[size]),
            "seconds_of_planning": planning[size],
            "flops_per_pixel": (plan.flops - plan.attention) / size**2,
            "peak": plan.peak,
            "spill": plan.spill,
        }
        rows.append(row | {"growth": row["ns_per_pixel"] / (rows[0]["ns_per_pixel"] if rows else row["ns_per_pixel"])})
    return rows


def show_scaling(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "decode",
        "ns a pixel, without attention: median (min to max)",
        "growth",
        "attention s",
        "planning s",
        "kFLOP a pixel",
    )
    for row in rows:
        table.add_row(
            str(row["size"]),
            spread(row, "ns_per_pixel", 0),
            f"{row['growth']:.3f}",
            f"{row['seconds_of_attention']:.2f}",
            f"{row['seconds_of_planning']:.2f}",
            f"{row['flops_per_pixel'] / 1e3:.0f}",
        )
    return table


# --- the script ---


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@cache
def processor() -> str:
    """Its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        family = [line.partition(":")[2].strip() for line in lines if line.startswith(("cpu family", "model\t"))][:2]
        return f"{name} (family {family[0]}, model {family[1]})"
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()


def keep_as(name: str, key: str, result: dict[str, Any]) -> None:
    """Puts a result in its place in a file of bench/results, beside those of other keys."""
    path = ROOT / "bench" / "results" / name
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**kept, key: result}, indent=1) + "\n")


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def file_system(folder: Path) -> str:
    """What the temporary file lies on; memory itself, where it is tmpfs."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    inside = [(len(at), kind) for _, at, kind, *_ in mounts if folder.is_relative_to(at)]
    return max(inside)[1] if inside else "unknown"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=DEFAULT, help="what to measure")
    parser.add_argument("--repeats", type=int, default=5, help="turns that contenders take")
    parser.add_argument("--size", type=int, help="pixels a side of the smallest picture")
    parser.add_argument("--quick", action="store_true", help="a narrow network and small pictures: does it run?")
    parser.add_argument("--keep", action="store_true", help="keep the result")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # exporters give dozens
    for name in ("torch.onnx", "diffusers", "nncf"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if arguments.child:
        task = json.loads(arguments.child)
        torch.set_num_threads(task["threads"])
        print(json.dumps(decode_here(task)))
        return
    if arguments.keep and arguments.quick:
        parser.error("--quick measures nothing worth keeping")
    if arguments.repeats < 1:
        parser.error("--repeats must be 1 or more")
    setting = QUICK if arguments.quick else FULL
    if arguments.size:
        if arguments.size < 64 or arguments.size % 64:
            parser.error("--size must be a multiple of 64")
        setting = Setting(setting.config, arguments.size, setting.budgets)
    sections = [one for one in SECTIONS if one in arguments.sections]
    console = Console(width=None if sys.stdout.isatty() else 132)
    console.print(f"{processor()}, {torch.get_num_threads()} threads", markup=False)
    commit, changed = git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "src"))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="calotype-bench-") as name:
        folder = Path(name)
        save_weights(random_network(setting.config), folder, layout="diffusers")
        for section in sections:
            if section == "speed":
                results[section] = speed(folder, setting, arguments.repeats)
                console.print(show_speed(results[section]))
            elif section == "limit":
                results[section] = limit(folder, setting, arguments.repeats)
                console.print(show_limit(results[section]))
            elif section == "scaling":
                results[section] = scaling(folder, setting, arguments.repeats)
                console.print(show_scaling(results[section]))
            else:
                results[section] = (memory_of if section == "memory" else large)(folder, setting)
                console.print(show_memory(results[section]))
            gc.collect()

    command = "python bench/engine.py"
    if tuple(sections) != DEFAULT:
        command += f" --sections {' '.join(sections)}"
    command += f" --repeats {arguments.repeats}" if arguments.repeats != parser.get_default("repeats") else ""
    command += f" --size {arguments.size}" if arguments.size else ""
    command += " --quick" if arguments.quick else ""
    packages = (
        "numpy", "numba", "llvmlite", "diffusers", "onnx", "onnxscript", "onnxruntime", "openvino", "psutil"
    )  # fmt: skip
    line = json.dumps(
        {
            "command": command,
            "date": date.today().isoformat(),
            "commit": commit,
            "changed": changed,
            "protocol": PROTOCOL,
            "versions": {
                "calotype": calotype.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                **{package: version(package) for package in packages},
            },
            "device": processor(),
            "threads": torch.get_num_threads(),
            "engine": calotype.load(None, device="cpu").engine.name,
            "temporary_files": file_system(Path(tempfile.gettempdir()).resolve()),
            "parameters": sum(p.numel() for p in random_network(setting.config).parameters()),
            "repeats": arguments.repeats,
            "spread": "minimum to maximum, as _min and _max",
            "results": results,
        }
    )
    if arguments.keep:
        suffix = "" if tuple(sections) == DEFAULT else "-" + "-".join(sections)
        keep_as(f"engine{suffix}.json", processor(), json.loads(line))
    print(line)


if __name__ == "__main__":
    main()
