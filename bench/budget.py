"""Large pictures of every family within a budget: what runs really take beside what was allowed and what was planned.

    python bench/budget.py [--families wan2.1,flux2,...] [--directions encode decode] [--size 2048] [--memory 512MB]
        [--exact] [--keep]

Weights are random, at full size, in float32. Each run has a process of its own; measured is the most memory above what
was there before, beside what goes in and what comes out (of an encode its moments; the posterior's log-variances,
half as much, are in it). --exact also runs with what is free, and compares: the largest difference over max(1, the
result's standard deviation).

Prints a table and then one JSON line; --keep keeps each direction as soon as it is measured, in
bench/results/budget.json, by processor, size and budget.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from engine import git, processor, resident, say, version, watched_peak
from families import NETWORKS, keep, picture, theirs
from rich.console import Console
from rich.table import Table
from torch import Tensor

import calotype
from calotype.engine.budget import parse_memory
from calotype.engine.memory import Memory
from calotype.families import CLASSES

DIRECTIONS = ("encode", "decode")


def run_here(task: dict[str, Any]) -> dict[str, Any]:
    """One direction in this process."""
    name, size, direction = task["name"], task["size"], task["direction"]
    torch.set_num_threads(task["threads"])
    vae = calotype.load(task["folder"], device="cpu", latent_format="sd1" if name == "sd1" else None)

    def run(x: Tensor, memory: str | None) -> Tensor:
        if direction == "encode":
            return vae.encode(x, memory=memory).moments
        return vae.decode(x, clamp=False, memory=memory)

    def given(side: int) -> Tensor:
        if direction == "encode":
            return picture(name, side)
        shape = 1, vae.config.z_channels, side // vae.factor, side // vae.factor
        return torch.randn(shape, generator=torch.Generator().manual_seed(side))

    run(given(2 * vae.factor), None)
    x = given(size)
    plan = vae.engine.plan(direction, size, size, task["memory"])
    Memory._idle.clear()  # the warm-up's block, which would hide as many bytes
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    before = resident()
    with watched_peak() as watched:
        result = run(x, task["memory"])
    found = {"predicted": plan.peak, "measured": watched["peak"] - before - result.nbytes}
    if task["exact"]:
        free = run(x, None)
        found["error"] = ((result - free).abs().max() / max(1.0, free.std().item())).item()
    return found


def measure(name: str, folder: Path, direction: str, given: argparse.Namespace) -> dict[str, Any]:
    """One direction of one family, whose weights are put in `folder` where there are none."""
    say(f"{name}: {direction}")
    if not any(folder.iterdir()):
        theirs(name).save_pretrained(folder)
    task = {
        "name": name, "folder": str(folder), "direction": direction, "size": given.size, "memory": given.memory,
        "exact": given.exact, "threads": torch.get_num_threads(),
    }  # fmt: skip
    done = subprocess.run([sys.executable, __file__, "--child", json.dumps(task)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(rows: list[dict[str, Any]], size: int, memory: str) -> Table:
    """What a reader wants of it."""
    shown = Table("family", "encode: planned", "measured", "error", "decode: planned", "measured", "error")
    shown.title = f"{size} x {size} in {memory}, MB"
    for row in rows:
        cells = []
        for found in (row.get(direction) for direction in DIRECTIONS):
            cells += [f"{found[key] / 1e6:.0f}" if found else "" for key in ("predicted", "measured")]
            cells.append(f"{found['error']:.1e}" if found and "error" in found else "")
        shown.add_row(row["family"], *cells)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=",".join(NETWORKS))
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=DIRECTIONS)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--memory", default="512MB")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(run_here(json.loads(given.child))))
        return
    parse_memory(given.memory)
    some = "" if given.families == parser.get_default("families") else f" --families {given.families}"
    exact = " --exact" if given.exact else ""
    result = {
        "command": f"python bench/budget.py{some} --size {given.size} --memory {given.memory}{exact}",
        "processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "diffusers": version("diffusers"), "commit": git("rev-parse", "--short", "HEAD"), "size": given.size,
        "memory": given.memory,
    }  # fmt: skip
    rows = []
    for name in given.families.split(","):
        if NETWORKS[name][0] not in CLASSES:
            say(f"{name}: {NETWORKS[name][0]} is not known here")
            continue
        rows.append({"family": name})
        with tempfile.TemporaryDirectory() as folder:
            for direction in given.directions:
                rows[-1][direction] = measure(name, Path(folder), direction, given)
                say(json.dumps(rows[-1]))
                if given.keep:
                    key = f"{result['processor']}, {given.size} in {given.memory}"
                    keep("budget.json", key, result, rows[-1], [direction])
    Console().print(table(rows, given.size, given.memory))
    print(json.dumps({**result, "families": rows}))


if __name__ == "__main__":
    main()
