"""How fast a training step is beside that of diffusers' example trainer, and what the loop around it costs.

    python bench/train.py [--repeats 3] [--batch 2] [--device cpu] [--keep]

The network is KL-f8 at half width, crops are 256 x 256, the losses L1, LPIPS (VGG) and KL, before the discriminator
takes part. The other contender does what the example trainer of diffusers (train_autoencoderkl.py) does in such a step,
with diffusers' own network and the same weights: LPIPS without a gradient, and the adaptive weight computed though it
is not used yet, which takes the discriminator's forward pass and two partial backward passes. Each contender is a
process of its own, as its users run it, and they take turns, in float32 and in bfloat16 (autocast). Then the loop
itself trains on JPEGs: "overhead" is what is no training step.

LPIPS has random weights here: they cost the same. Prints tables and then one JSON line; --keep keeps that line in
bench/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

import calotype
import calotype.families.kl.network
from calotype.evaluate.lpips import LPIPS
from calotype.families.kl.config import AutoencoderConfig
from calotype.pixels import from_array
from calotype.train.crops import Batch, Crops, gather, load
from calotype.train.discriminator import PatchDiscriminator
from calotype.train.loop import Helpers, Trainer, run
from calotype.train.recipe import Recipe, Source
from calotype.train.run import Options, launch
from calotype.weights.save import save_weights

ROOT = Path(__file__).resolve().parents[1]
CROP = 256


def recipe(batch: int, precision: str, steps: int = 1_000) -> Recipe:
    """KL-f8 at half width, as `kl-f8` trains it, in the layout that pays."""
    return Recipe(
        name="bench", network=AutoencoderConfig(ch=64), sources=(Source(path="."),), crop=CROP, batch=batch,
        steps=steps, perceptual=1.0, optimiser="adam", learning_rate=1e-5, clip=0.0, warmup=0, cooldown=0,
        channels_last=True,
        precision="bfloat16" if precision == "bfloat16" else "float32", log_every=1, checkpoint_every=10**6,
    )  # fmt: skip


def example(batch: int, device: torch.device, precision: str) -> Callable[[np.ndarray], object]:
    """diffusers' example step on pixels; see above."""
    torch.manual_seed(0)
    start = calotype.families.kl.network.AutoencoderKL(recipe(batch, "float32").network)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        save_weights(start, folder, layout="diffusers")
        vae = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).to(device).train()
    judge, perceptual = PatchDiscriminator().to(device), LPIPS("vgg").to(device)
    optimiser = torch.optim.AdamW(vae.parameters(), 1e-5)
    last = vae.decoder.conv_out.weight

    def step(crops: np.ndarray) -> object:
        x = from_array(crops).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            posterior = vae.encode(x).latent_dist
            made: Tensor = vae.decode(posterior.sample()).sample
            rec = (x - made.float()).abs()
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                seen_apart = plain_lpips(perceptual, made.float(), x)
            rec = rec + seen_apart[:, None, None, None]
            nll = rec.sum() / len(x)
            kl = posterior.kl().sum() / len(x)
            g = -judge(made).mean()
            norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (nll, g)]
            weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
            loss = nll + 1e-6 * kl + 0.0 * weight * g
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return step


def plain_lpips(network: LPIPS, x: Tensor, y: Tensor) -> Tensor:
    """LPIPS by operations on whole maps, as the package lpips has it."""
    total = torch.zeros(len(x), device=x.device)
    ends = [i for i, layer in enumerate(network.features) if isinstance(layer, torch.nn.MaxPool2d)]
    pair = [(one - network.shift) / network.scale for one in (x, y)]
    heads = iter(network.heads)
    for i, layer in enumerate(network.features):
        if i in ends:
            total = total + _apart(pair, next(heads))
        pair = [layer(one) for one in pair]
    return total + _apart(pair, next(heads))


def _apart(pair: list[Tensor], head: Tensor) -> Tensor:
    units = [one / (one.square().sum(1, keepdim=True).sqrt() + 1e-10) for one in pair]
    return ((units[0] - units[1]).square() * head).sum(1).mean((1, 2))


def ours(batch: int, device: torch.device, precision: str) -> Callable[[np.ndarray], object]:
    """calotype's step."""
    one = recipe(batch, precision)
    torch.manual_seed(0)
    start = calotype.families.kl.network.AutoencoderKL(one.network)  # type: ignore[arg-type]
    fabric = launch(one, Options(device=str(device)))
    trainer = Trainer(one, fabric, Helpers(start=start, perceptual=LPIPS("vgg").to(device)))
    return lambda crops: trainer.train_step(crops)


CONTENDERS = {"diffusers' example": example, "calotype": ours}


def work(contender: str, precision: str, batch: int, device: torch.device) -> None:
    """A contender's process: a step for each line it is given, and its seconds for an answer."""
    step = CONTENDERS[contender](batch, device, precision)
    crops = np.random.default_rng(0).integers(0, 256, (batch, CROP, CROP, 3), dtype=np.uint8)
    for _ in sys.stdin:
        begin = time.perf_counter()
        step(crops)
        print(f"seconds {time.perf_counter() - begin}", flush=True)


def speed(batch: int, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """Pictures a second of both contenders in both precisions."""
    found: list[dict[str, Any]] = []
    for precision in ("float32", "bfloat16"):
        times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        with ExitStack() as stack:
            running = {}
            for name in CONTENDERS:
                words = [
                    sys.executable,
                    __file__,
                    "--worker",
                    name,
                    precision,
                    "--batch",
                    str(batch),
                    "--device",
                    str(device),
                ]
                running[name] = stack.enter_context(
                    subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                )
            for turn in range(repeats + 1):
                for name, process in running.items():
                    assert process.stdin and process.stdout
                    process.stdin.write("go\n")
                    process.stdin.flush()
                    line = next(line for line in process.stdout if line.startswith("seconds "))
                    if turn:  # the first one warms up
                        times[name].append(float(line.split()[1]))
        for name, seconds in times.items():
            middle = statistics.median(seconds)
            found.append(
                {
                    "contender": name, "precision": precision, "pictures_per_second": batch / middle,
                    "seconds": middle, "seconds_min": min(seconds), "seconds_max": max(seconds),
                    "speedup": statistics.median(times["diffusers' example"]) / middle,
                }
            )  # fmt: skip
    return found


def overhead(batch: int, steps: int, device: str) -> dict[str, float]:
    """What of the loop's time is no training step: waiting for data, logging, and all else."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        for i in range(16):
            noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            noise.resize((512, 512), Image.Resampling.BICUBIC).save(Path(name) / f"{i}.jpg", quality=90)
        one = recipe(batch, "float32", steps)
        pictures, _ = gather(one.sources, Path(name), cache=0, notice=print)  # decoded each time, as of large sets
        crops = Crops(pictures, crop=CROP, seed=0)
        trainer = Trainer(one, launch(one, Options(device=device)), Helpers(perceptual=LPIPS("vgg")))
        inside = 0.0
        genuine = trainer.train_step

        def timed(*arguments: Any) -> dict[str, float]:
            nonlocal inside
            begin = time.perf_counter()
            line = genuine(*arguments)
            inside += time.perf_counter() - begin
            return line

        trainer.train_step = timed  # type: ignore[method-assign,assignment]

        class Hooks:
            def logged(self, line: dict[str, float]) -> None:
                (Path(name) / "metrics.jsonl").open("a").write(json.dumps(line) + "\n")

            def checked(self, trainer: Trainer, line: dict[str, float]) -> None: ...

        def batches(first: int, end: int) -> Iterator[Batch]:
            return load(lambda step: (crops, batch), first, end, workers=2)

        begin = time.perf_counter()
        run(trainer, batches, Hooks())
        whole = time.perf_counter() - begin
    return {"seconds": whole, "seconds_in_steps": inside, "overhead": (whole - inside) / inside, "steps": float(steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="turns that contenders take")
    parser.add_argument("--batch", type=int, default=2, help="crops a step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", action="store_true", help="keep the result")
    parser.add_argument("--worker", nargs=2, metavar=("CONTENDER", "PRECISION"), help="be one of the processes")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.worker:
        contender, precision = arguments.worker
        work(contender, precision, arguments.batch, device)
        return
    found = speed(arguments.batch, arguments.repeats, device)
    around = overhead(arguments.batch, 2 * arguments.repeats, arguments.device)
    table = Table("contender", "precision", "pictures a second", "times as fast")
    for row in found:
        rate = f"{row['pictures_per_second']:.3f}"
        table.add_row(row["contender"], row["precision"], rate, f"{row['speedup']:.2f}")
    Console(width=100).print(table)
    print(f"The loop takes {around['overhead']:.1%} more than its steps ({around['steps']:.0f} of them).")
    words = f"--repeats {arguments.repeats} --batch {arguments.batch} --device {arguments.device}"
    line = json.dumps(
        {
            "command": f"python bench/train.py {words}", "date": date.today().isoformat(),
            "commit": subprocess.run(
                ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
            ).stdout.strip(),
            "versions": {"calotype": calotype.__version__, "torch": torch.__version__,
                         "python": platform.python_version()},
            "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
            "processors": os.cpu_count(), "threads": torch.get_num_threads(), "repeats": arguments.repeats,
            "spread": "median, minimum and maximum", "results": found, "loop": around,
        }
    )  # fmt: skip
    if arguments.keep:
        suffix = "" if device.type == "cpu" else f"-{device.type}"
        (ROOT / "bench" / "results" / f"train{suffix}.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
