"""Which small network learns most in a given time: the same recipe, data and seconds of training for each.

    python bench/networks.py --data DATA [--seconds 240]

Trains the built-in network and AutoencoderKLs of about its size (f8, 16 channels), and measures PSNR of the averaged
weights on the recipe's held-out photographs. Prints a table and one JSON line, kept in bench/results/.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
import time
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import calotype
from calotype.families.folded.config import FoldedConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.train.crops import Crops, gather, readable
from calotype.train.export import validate
from calotype.train.loop import Trainer
from calotype.train.recipe import Recipe, load_recipe
from calotype.train.run import CACHE, Options, launch

ROOT = Path(__file__).resolve().parents[1]
WARM = 8  # steps that only measure speed


def kl(ch: int, *multiples: float, groups: int) -> AutoencoderConfig:
    """A small AutoencoderKL: one block a level, no attention, no 1x1 convolutions around the latents."""
    return AutoencoderConfig(
        ch=ch,
        ch_mult=multiples,
        num_res_blocks=1,
        z_channels=16,
        mid_attention=False,
        quant_conv=False,
        norm_groups=groups,
    )


NETWORKS: dict[str, AutoencoderConfig | FoldedConfig] = {
    "folded (built-in)": FoldedConfig(),
    "AutoencoderKL 16-32-128-192, 4 groups": kl(16, 1, 2, 8, 12, groups=4),
    "AutoencoderKL 32-64-128-160, 32 groups": kl(32, 1, 2, 4, 5, groups=32),
}


def steps_in(recipe: Recipe, crops: Crops, seconds: float) -> int:
    """How many steps fit into the time, from the median of a few on a throwaway network."""
    trainer = Trainer(recipe, launch(recipe, Options(device="cpu")))
    times = []
    for step in range(WARM):
        start = time.perf_counter()
        trainer.train_step(*crops.batch(step, recipe.batch))
        times.append(time.perf_counter() - start)
    return int(seconds / sorted(times)[WARM // 2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder the built-in recipe is trained from")
    parser.add_argument("--seconds", type=float, default=240, help="training time for each network")
    arguments = parser.parse_args()
    settings = ["phases=[]", "crop=64", "batch=8", "muon_rate=3e-3", "ema_decay=0.99"]
    base = load_recipe("builtin", settings)
    base = dataclasses.replace(base, sources=base.sources[:1])
    pictures, held = gather(base.sources, arguments.data, cache=CACHE, notice=print)
    held_out = [picture for _, picture in readable(held)]
    crops = Crops(pictures, crop=base.crop, zoom=base.zoom, seed=base.seed)

    results = []
    for name, config in NETWORKS.items():
        recipe = dataclasses.replace(base, network=config)
        steps = steps_in(recipe, crops, arguments.seconds)
        recipe = dataclasses.replace(recipe, steps=steps, cooldown=steps // 2, warmup=min(100, steps // 8))
        trainer = Trainer(recipe, launch(recipe, Options(device="cpu")))
        start = time.perf_counter()
        for step in range(steps):
            trainer.train_step(*crops.batch(step, recipe.batch))
        spent = time.perf_counter() - start
        with trainer.averaged() as network:
            quality = validate(network, held_out)
        results.append(
            {
                "network": name,
                "parameters": sum(p.numel() for p in trainer.network.parameters()),
                "steps": steps,
                "seconds": spent,
                "held_out_psnr": quality["psnr"],
            }
        )
        print(json.dumps(results[-1]), flush=True)

    table = Table("network", "parameters", "steps", "seconds", "held-out PSNR (dB)")
    for r in results:
        table.add_row(
            str(r["network"]),
            f"{r['parameters']:,}",
            str(r["steps"]),
            f"{r['seconds']:.0f}",
            f"{r['held_out_psnr']:.2f}",
        )
    Console().print(table)
    line = json.dumps(
        {
            "command": f"python bench/networks.py --data DATA --seconds {arguments.seconds:g}",
            "date": date.today().isoformat(),
            "commit": subprocess.run(
                ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
            ).stdout.strip(),
            "versions": {
                "calotype": calotype.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "threads": torch.get_num_threads(),
            "repeats": 1,
            "results": results,
        }
    )
    (ROOT / "bench" / "results" / "networks.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
