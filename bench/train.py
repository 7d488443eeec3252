"""How fast a training step is beside that of diffusers' example trainer, and what the loop around it costs.

    python bench/train.py [--repeats 3] [--batch 2] [--device cpu] [--keep]

The network is KL-f8 at half width, crops are 256 x 256, the losses L1, LPIPS (VGG) and KL, before the discriminator
takes part. The other contender does what the example trainer of diffusers (train_autoencoderkl.py) does in such a step,
with diffusers' own network and the same weights: LPIPS without a gradient, and the adaptive weight computed though it
is not used yet, which takes the discriminator's forward pass and two partial backward passes. Contenders take turns, in
float32 and in bfloat16 (autocast). Then the loop itself trains on JPEGs: "overhead" is what is no training step.

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
import tempfile
import time
from collections.abc import Callable, Iterator
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
import calotype.autoencoder
from calotype.config import AutoencoderConfig
from calotype.evaluate.lpips import LPIPS
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


def example(folder: Path, device: torch.device, precision: str, perceptual: LPIPS) -> Callable[[np.ndarray], object]:
    """diffusers' example step on pixels; see above."""
    vae = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).to(device).train()
    judge = PatchDiscriminator().to(device)
    optimiser = torch.optim.AdamW(vae.parameters(), 1e-5)
    last = vae.decoder.conv_out.weight

    def step(crops: np.ndarray) -> object:
        x = from_array(crops).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            posterior = vae.encode(x).latent_dist
            made: Tensor = vae.decode(posterior.sample()).sample
            rec = (x - made.float()).abs()
            with torch.no_grad():
                seen_apart = perceptual(made.float(), x)
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


def ours(batch: int, device: str, precision: str, perceptual: LPIPS, start: Any) -> Callable[[np.ndarray], object]:
    """calotype's step."""
    one = recipe(batch, precision)
    trainer = Trainer(one, launch(one, Options(device=device)), Helpers(start=start, perceptual=perceptual))
    return lambda crops: trainer.train_step(crops)


def speed(batch: int, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """Pictures a second of both contenders in both precisions."""
    crops = np.random.default_rng(0).integers(0, 256, (batch, CROP, CROP, 3), dtype=np.uint8)
    found: list[dict[str, Any]] = []
    perceptual = LPIPS("vgg").to(device)
    channels = perceptual.to(memory_format=torch.channels_last) if device.type == "cpu" else perceptual  # type: ignore[call-overload]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        start = calotype.autoencoder.AutoencoderKL(recipe(batch, "float32").network)  # type: ignore[arg-type]
        save_weights(start, folder, layout="diffusers")
        for precision in ("float32", "bfloat16"):
            steps = {
                "diffusers' example": example(folder, device, precision, perceptual),
                "calotype": ours(batch, str(device), precision, channels, start),
            }
            times: dict[str, list[float]] = {key: [] for key in steps}
            for turn in range(repeats + 1):
                for key, step in steps.items():
                    begin = time.perf_counter()
                    step(crops)
                    if turn:  # the first one warms up
                        times[key].append(time.perf_counter() - begin)
            for key, seconds in times.items():
                middle = statistics.median(seconds)
                found.append(
                    {
                        "contender": key, "precision": precision, "pictures_per_second": batch / middle,
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
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
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
