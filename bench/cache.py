"""What a cache of latents gives, beside other ways to keep them.

    python bench/cache.py [read] [make] [--samples 2048] [--repeats 5] [--keep]

read: batches of 64 samples of 512x512 pixels (4x64x64 numbers) in random order, in one process, as one tensor of
float32. A cache has shards of float16, read by `LatentDataset.read_batch`, or its samples collated as a DataLoader
does. Beside it are npz files, one a sample, as trainers keep them, collated: of latents in float32 (sd-scripts) or
float16, and of moments in float32 (MAR), from which all draw a sample. Numbers are made up. All files are in the
system's memory, as they were just written. Ways take turns, batch by batch.

make: a cache of made-up JPEGs of 640x480, from the first look at them to the manifest, beside encodes of tensors alone,
as many, in batches of 64: the built-in VAE at 256x256 (an eighth of the samples), and a network of Stable Diffusion's
size with random weights at 512x512 (a hundredth). Both take turns.

Prints a table and then one JSON line for each section; --keep keeps it in bench/results/cache.json, by section and
processor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine import git, keep_as, processor, random_network, say
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import default_collate

import calotype
from calotype.cache import Job, LatentDataset, Rules
from calotype.cache.job import Made, Value, canonical
from calotype.cache.make import job_of, make as fill
from calotype.cache.manifest import write_manifest
from calotype.cache.store import JOB, Store
from calotype.cache.units import UNIT_SAMPLES, Sample, Unit
from calotype.cache.worker import Attempt
from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import KNOWN
from calotype.posterior import DiagonalGaussian
from calotype.weights.save import save_weights

SIDE, BATCH, SHAPE = 512, 64, (4, 64, 64)


def made_up(folder: Path, value: Value, samples: int) -> Store:
    """A cache of made-up latents of so many pictures."""
    vae = Made(
        name="made up", sha256="0" * 64, config={}, factor=8, channels=4, latent_format=KNOWN["sd1"].to_dict()
    )  # fmt: skip
    job, store = Job(vae=vae, value=value, rules=Rules(size=(SIDE, SIDE))), Store(folder)
    store.write(JOB, canonical(job.to_dict()))
    generator = torch.Generator().manual_seed(0)
    every = [
        Sample(i, hashlib.sha256(str(i).encode()).digest(), f"{i}.png", (SIDE, SIDE), (SIDE, SIDE), f"picture {i}")
        for i in range(samples)
    ]
    for start in range(0, samples, UNIT_SAMPLES):
        part = tuple(every[start : start + UNIT_SAMPLES])
        attempt = Attempt(job, Unit(f"{start:032x}", (SIDE, SIDE), part), store)
        for sample in part:
            numbers = {name: torch.randn(SHAPE, generator=generator).half() for name in job.tensors}
            attempt.add(sample, job.rules.place(*sample.upright, sample.key), numbers)
        attempt.commit({})
    write_manifest(store, job)
    return store


def as_npz(folder: Path, dataset: LatentDataset, kept: str) -> list[Path]:
    """A file for each sample of a dataset, of latents in this type, or of moments."""
    folder.mkdir()
    paths = [folder / f"{i}.npz" for i in range(len(dataset))]
    for i, path in enumerate(paths):
        if kept == "moments":
            moments = np.stack([dataset[i]["latents"].numpy()] * 2).reshape(8, *SHAPE[1:])
            np.savez(path, moments=moments)
        else:
            np.savez(path, latents=dataset[i]["latents"].numpy().astype(kept))
    return paths


def npz_latents(paths: Sequence[Path], picked: Sequence[int]) -> torch.Tensor:
    """A batch of files of latents."""
    rows = []
    for i in picked:
        with np.load(paths[i]) as file:
            rows.append({"latents": torch.from_numpy(file["latents"]).float()})
    found: torch.Tensor = default_collate(rows)["latents"]
    return found


def npz_moments(paths: Sequence[Path], picked: Sequence[int]) -> torch.Tensor:
    """A batch of files of moments, a sample of each."""
    rows = []
    for i in picked:
        with np.load(paths[i]) as file:
            posterior = DiagonalGaussian(torch.from_numpy(file["moments"])[None])
        rows.append({"latents": posterior.sample([torch.Generator().manual_seed(i)])[0]})
    found: torch.Tensor = default_collate(rows)["latents"]
    return found


def collated(dataset: LatentDataset, picked: Sequence[int]) -> torch.Tensor:
    """The same of a cache, as a DataLoader makes it."""
    found: torch.Tensor = default_collate(dataset.__getitems__(picked))["latents"]
    return found


def read(samples: int, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of a batch, of all ways."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values: tuple[Value, ...] = ("mode", "moments")
        latents, moments = (
            LatentDataset(made_up(folder / value, value, samples).path("."), scaled=False) for value in values
        )
        single, half = (npz(folder / kept, latents, kept) for npz, kept in ((as_npz, "float32"), (as_npz, "float16")))
        both = as_npz(folder / "npz moments", latents, "moments")
        ways: dict[str, Callable[[Sequence[int]], torch.Tensor]] = {
            "latents, cache": lambda picked: latents.read_batch(picked)["latents"],
            "latents, cache, collated": lambda picked: collated(latents, picked),
            "latents, npz float32": lambda picked: npz_latents(single, picked),
            "latents, npz float16": lambda picked: npz_latents(half, picked),
            "samples of moments, cache": lambda picked: moments.read_batch(picked)["latents"],
            "samples of moments, cache, collated": lambda picked: collated(moments, picked),
            "samples of moments, npz float32": lambda picked: npz_moments(both, picked),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        random = np.random.default_rng(0)
        for turn in range(-1, repeats):
            say(f"read: turn {turn + 1} of {repeats}")
            order = random.permutation(samples)
            for start in range(0, samples - BATCH + 1, BATCH):
                picked = order[start : start + BATCH].tolist()
                for way, batch_of in ways.items():
                    begin = time.perf_counter()
                    batch_of(picked)
                    if turn >= 0:  # the first one warms up
                        times[way].append(1000 * (time.perf_counter() - begin))
        return [
            {"way": way, "milliseconds": statistics.median(found), "batches": len(found),
             "quarter": float(np.quantile(found, 0.25)), "three_quarters": float(np.quantile(found, 0.75))}
            for way, found in times.items()
        ]  # fmt: skip


def table_of_read(rows: Sequence[dict[str, Any]]) -> Table:
    """What a reader wants of it."""
    shown = Table("a batch of 64 at 512x512", "milliseconds, median (quartiles)", "of the cache's")
    for row in rows:
        if row["way"].endswith("cache"):
            own = row["milliseconds"]
        spread = f"{row['milliseconds']:.2f} ({row['quarter']:.2f} to {row['three_quarters']:.2f})"
        shown.add_row(row["way"], spread, f"{row['milliseconds'] / own:.1f}")
    return shown


def jpegs(folder: Path, count: int) -> None:
    """So many photographs, nearly: smooth, with a little noise."""
    y, x = np.mgrid[0:480, 0:640]
    for i in range(count):
        noise = np.random.default_rng(i).normal(0, 6, (480, 640, 3))
        waves = [100 * np.sin(x / (40 + i % 7 + 9 * c)) * np.cos(y / (60 + i % 5 + 5 * c)) for c in range(3)]
        levels = np.clip(128 + np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(levels).save(folder / f"{i}.jpg", quality=90)


def make(samples: int, repeats: int) -> list[dict[str, Any]]:
    """Pictures a second of a cache that is made, and of encodes alone."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(random_network(AutoencoderConfig()), folder / "sd1", layout="diffusers")
        for network, weights, side, count in (
            ("built-in", None, 256, samples // 8), ("SD1's size", folder / "sd1", 512, samples // 100)
        ):  # fmt: skip
            vae = calotype.load(weights, device="cpu")
            data = folder / network
            data.mkdir()
            jpegs(data, count)
            pixels = torch.rand(min(count, BATCH), 3, side, side) * 2 - 1
            job = job_of(vae, Rules(size=(side, side)))
            rates: dict[str, list[float]] = {"cache": [], "encodes alone": []}
            vae.encode(pixels[:2])
            for turn in range(repeats):
                say(f"make: {network}, turn {turn + 1} of {repeats}")
                begin = time.perf_counter()
                fill(data, folder / f"{network} {turn}", vae, job)
                rates["cache"].append(count / (time.perf_counter() - begin))
                begin = time.perf_counter()
                for start in range(0, count, BATCH):
                    vae.encode(pixels[: min(BATCH, count - start)])
                rates["encodes alone"].append(count / (time.perf_counter() - begin))
            shares = [one / other for one, other in zip(*rates.values(), strict=True)]
            rows.append(
                {"network": network, "side": side, "pictures": count, "share": statistics.median(shares),
                 "share_min": min(shares), "share_max": max(shares),
                 **{way: statistics.median(found) for way, found in rates.items()}}
            )  # fmt: skip
    return rows


def table_of_make(rows: Sequence[dict[str, Any]]) -> Table:
    """What a reader wants of it."""
    shown = Table("network", "pixels", "pictures", "rate of a cache, of encodes alone: median (least to most)")
    for row in rows:
        share = f"{row['share']:.2f} ({row['share_min']:.2f} to {row['share_max']:.2f})"
        shown.add_row(row["network"], f"{row['side']}x{row['side']}", str(row["pictures"]), share)
    return shown


SECTIONS: dict[str, tuple[Callable[[int, int], list[dict[str, Any]]], Callable[[Any], Table]]] = {
    "read": (read, table_of_read),
    "make": (make, table_of_make),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    if unknown := [one for one in given.sections if one not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]}; known are {', '.join(SECTIONS)}")
    for section in given.sections:
        measure, table = SECTIONS[section]
        rows = measure(given.samples, given.repeats)
        Console().print(table(rows))
        result = {
            "section": section, "processor": processor(), "threads": torch.get_num_threads(),
            "torch": torch.__version__, "commit": git("rev-parse", "--short", "HEAD"), "samples": given.samples,
            "rows": rows,
        }  # fmt: skip
        print(json.dumps(result))
        if given.keep:
            keep_as("cache.json", f"{section}, {result['processor']}", result)


if __name__ == "__main__":
    main()
