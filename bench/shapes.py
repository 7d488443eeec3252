"""Which algorithm is fastest for a convolution of some shape, and whether the engine chooses it.

    python bench/shapes.py [--repeats 9] [--keep]

Every shape of Stable Diffusion's decoder and encoder at 64 to 512 pixels, by every algorithm that the CPU kernels have,
weights transformed anew each time as in a decode, and by torch's own convolution, which transforms nothing. Algorithms
take turns. Prints a table of median milliseconds and then one JSON line; --keep keeps that line in bench/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import calotype
from calotype.engine import blocks
from calotype.engine.bilinear import ALGORITHMS, Algorithm
from calotype.engine.blocks import Job, aligned, cost, fastest
from calotype.engine.memory import Memory, Rows
from calotype.engine.winograd import Winograd, Workers
from calotype.families import program
from calotype.families.kl.config import AutoencoderConfig
from calotype.steps import Conv

ROOT = Path(__file__).resolve().parents[1]
SIZES = (64, 128, 256, 512)


@dataclass(frozen=True)
class Chosen(Job):
    """A job whose algorithm is given."""

    one: Algorithm | None = None

    def algorithm(self, step: Conv) -> Algorithm:
        return self.one or fastest(step, *self.size(step.target))


def shapes() -> list[tuple[int, Conv]]:
    """A picture's side and a step, for every shape there is."""
    found: dict[tuple[object, ...], tuple[int, Conv]] = {}
    for size in SIZES:
        for direction in ("decode", "encode"):
            for step in program(AutoencoderConfig(), direction).steps:
                if isinstance(step, Conv) and step.kernel == 3:
                    side, _ = step.target.size(size, size)
                    key = (step.resample, step.source.channels, step.target.channels, side)
                    found.setdefault(key, (size, step))
    return list(found.values())


def run_of(step: Conv, size: int, algorithm: Algorithm, workers: Workers) -> Callable[[], object]:
    """One convolution with its weights' transform."""
    job = Chosen(size, size, threads=workers.threads, one=algorithm)
    backend = Winograd(workers, job)
    (high, wide), (rows, columns) = job.size(step.source), job.size(step.target)
    room = aligned(job.weight_bytes(step))
    scratch = workers.threads * sum(aligned(4 * n) for n in job.scratch_floats(step, job.block(step)))
    memory = Memory(room + scratch, torch.device("cpu"))
    weight = torch.randn(step.target.channels, step.source.channels, 3, 3)
    source = Rows(step.source, torch.randn(high, wide, step.source.channels), 0, high)
    target = Rows(step.target, torch.zeros(rows, columns, step.target.channels), 0, rows)
    n = step.source.channels
    scale, shift = np.ones(n, dtype=np.float32), np.zeros(n, dtype=np.float32)

    def run() -> object:
        backend.prepare(step, weight, None, memory.address)
        return backend.run(
            step, 0, rows, source=source, target=target, residual=None, scale=scale, shift=shift,
            scratch=memory.address + room, measure=False,
        )  # fmt: skip

    return run


def torchs(step: Conv, size: int) -> Callable[[], object]:
    """torch's convolution, channels last, with the activation before it."""
    high, wide = step.source.size(size, size)
    x = torch.randn(1, step.source.channels, high, wide).to(memory_format=torch.channels_last)
    w = torch.randn(step.target.channels, step.source.channels, 3, 3).to(memory_format=torch.channels_last)

    def run() -> object:
        y = F.silu(x) if step.activation == "silu" else x
        if step.resample == "up":
            return F.conv2d(F.interpolate(y, scale_factor=2.0, mode="nearest"), w, padding=1)
        if step.resample == "down":
            return F.conv2d(F.pad(y, (0, 1, 0, 1)), w, stride=2)
        return F.conv2d(y, w, padding=1)

    return run


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="turns that algorithms take")
    parser.add_argument("--keep", action="store_true", help="keep the result")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be 1 or more")
    workers = Workers(torch.get_num_threads())
    results: list[dict[str, Any]] = []
    for size, step in shapes():
        algorithms = ALGORITHMS[step.resample]
        runs = {one.name: run_of(step, size, one, workers) for one in algorithms}
        runs["torch"] = torchs(step, size)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(arguments.repeats + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if turn:  # the first one warms up
                    times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(t) for name, t in times.items()}
        side, _ = step.target.size(size, size)
        chosen = fastest(step, side, side).name
        ours = {name: t for name, t in medians.items() if name != "torch"}
        results.append(
            {
                "kind": step.resample, "channels": [step.source.channels, step.target.channels], "side": side,
                "seconds": medians, "seconds_min": {name: min(t) for name, t in times.items()},
                "cost": {one.name: cost(one, step, side, side) for one in algorithms},
                "chosen": chosen, "over_fastest": medians[chosen] / min(ours.values()),
            }
        )  # fmt: skip
    table = Table("", "channels", "side", "large tiles", "small", "direct", "torch", "chosen", "over fastest")
    for row in results:
        names = [one.name for one in ALGORITHMS[row["kind"]]]
        cells = [f"{1e3 * row['seconds'][name]:.2f}" for name in (*names, "torch")]
        table.add_row(
            {"none": "", "up": "up", "down": "down"}[row["kind"]], "-".join(map(str, row["channels"])),
            str(row["side"]), *([""] if len(names) == 2 else []), *cells, row["chosen"],
            f"{row['over_fastest']:.2f}",
        )  # fmt: skip
    Console(width=120).print(table)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    command = "python bench/shapes.py" + (f" --repeats {arguments.repeats}" if arguments.repeats != 9 else "")
    line = json.dumps(
        {
            "command": command, "date": date.today().isoformat(), "commit": commit,
            "versions": {"calotype": calotype.__version__, "torch": torch.__version__}, "threads": workers.threads,
            "processors": os.cpu_count(), "repeats": arguments.repeats, "spread": "median and minimum",
            "costs": [blocks.WEIGHT_COST, blocks.INPUT_COST, blocks.OUTPUT_COST], "results": results,
        }
    )  # fmt: skip
    if arguments.keep:
        (ROOT / "bench" / "results" / "shapes.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
