"""What a cache of latents gives, beside other ways to keep and to make them.

    python bench/cache.py [read] [make] [memory] [growth] [sd-scripts] [--samples 2048] [--repeats 5] [--keep]
                          [--sd-scripts PATH]

read: batches of 64 samples of 512x512 pixels (4x64x64 numbers) in random order, in one process, by torch's DataLoader,
as one tensor of float32. A cache has shards of float16, and gives batches whole (`batch_size=None`), or samples that
torch collates. Beside it are npz files, one a sample, as trainers keep them, collated: of latents in float32
(sd-scripts) or float16, and of moments in float32 (MAR), from which all draw a sample. Numbers are made up. All files
are in the system's memory, as they were just written. Ways take turns, batch by batch.

make: a cache of made-up JPEGs of 640x480, from the first look at them to the manifest, beside encodes of tensors alone,
as many, in batches of 64, and reading alone: Pillow decodes and resizes each, in a thread a core; all take turns.
Who does both on the same cores has at most the share of encodes' rate that stands as its limit. The built-in VAE at
256x256, and a network of Stable Diffusion's size with random weights: an eighth of the pictures at 128x128, and a
hundredth of them at 512x512, where one takes more than a second.

memory: the most that `calotype cache make` takes beside the weights, in a process of its own: the network of Stable
Diffusion's size at 512x512 and 1024x1024, by default and with --memory 512MB; and so many small pictures by the
built-in VAE.

growth: the same of 150,000 and of 300,000 pictures of 96x64 with captions of 100 letters, hard links of a few, at 64x64
with --memory 512MB, where zeros stand for what the built-in VAE would give: what each picture more takes.

sd-scripts: seconds of a cache (JPEGs of 640x480 with captions, Stable Diffusion's network with random weights, 512x512,
float32, a sixty-fourth of the samples) beside sd-scripts' npz files of them, each turn in processes of their own,
without loading weights and libraries. With --sd-scripts PATH its code there is run: its dataset, and
`new_cache_latents` with its strategy for SD; otherwise its loop as it is rebuilt here, of diffusers' network. Both with
its default of one picture at a time, and with four.

Prints a table and then one JSON line for each section; --keep keeps it in bench/results/cache.json, by section and
processor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cache_apart import apart
from engine import git, keep_as, processor, random_network, say
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import calotype
from calotype.cache import Job, LatentDataset, Rules
from calotype.cache.attempt import Attempt
from calotype.cache.job import Made, Value, canonical
from calotype.cache.make import job_of, make as fill
from calotype.cache.manifest import write_manifest
from calotype.cache.store import JOB, Store
from calotype.cache.units import UNIT_SAMPLES, Sample, Unit
from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import KNOWN
from calotype.posterior import DiagonalGaussian
from calotype.weights.save import save_weights

SIDE, BATCH, SHAPE = 512, 64, (4, 64, 64)
GROWING = 150_000, 300_000  # pictures: more than lie together in tables' files, a group of which is held


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


class Npz(Dataset[dict[str, Tensor]]):
    """Files of latents, or of moments, of which a sample is drawn."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        with np.load(self.paths[i]) as file:
            if "latents" in file:
                return {"latents": torch.from_numpy(file["latents"]).float()}
            posterior = DiagonalGaussian(torch.from_numpy(file["moments"])[None])
        return {"latents": posterior.sample([torch.Generator().manual_seed(i)])[0]}


def read(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds of a batch, of all ways."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values: tuple[Value, ...] = ("mode", "moments")
        latents, moments = (
            LatentDataset(made_up(folder / value, value, given.samples).path("."), scaled=False) for value in values
        )
        ways: dict[str, tuple[Any, bool]] = {
            "latents, cache": (latents, True),
            "latents, cache, collated": (latents, False),
            "latents, npz float32": (Npz(as_npz(folder / "float32", latents, "float32")), False),
            "latents, npz float16": (Npz(as_npz(folder / "float16", latents, "float16")), False),
            "samples of moments, cache": (moments, True),
            "samples of moments, cache, collated": (moments, False),
            "samples of moments, npz float32": (Npz(as_npz(folder / "npz", latents, "moments")), False),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        random = np.random.default_rng(0)
        for turn in range(-1, given.repeats):
            say(f"read: turn {turn + 1} of {given.repeats}")
            order = random.permutation(given.samples)
            batches = [order[i : i + BATCH].tolist() for i in range(0, given.samples - BATCH + 1, BATCH)]
            loaders = {
                way: iter(
                    DataLoader(dataset, sampler=batches, batch_size=None)
                    if whole
                    else DataLoader(dataset, batch_sampler=batches)
                )
                for way, (dataset, whole) in ways.items()
            }
            for _ in batches:
                for way, loader in loaders.items():
                    begin = time.perf_counter()
                    found = next(loader)["latents"]
                    if turn >= 0:  # the first one warms up
                        times[way].append(1000 * (time.perf_counter() - begin))
                    assert tuple(found.shape) == (BATCH, *SHAPE)
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


def jpegs(folder: Path, count: int, width: int = 640, height: int = 480) -> Path:
    """So many photographs, nearly: smooth, with a little noise; each with a caption."""
    folder.mkdir()
    y, x = np.mgrid[0:height, 0:width]
    for i in range(count):
        noise = np.random.default_rng(i).normal(0, 6, (height, width, 3))
        waves = [100 * np.sin(x / (40 + i % 7 + 9 * c)) * np.cos(y / (60 + i % 5 + 5 * c)) for c in range(3)]
        levels = np.clip(128 + np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(levels).save(folder / f"{i}.jpg", quality=90)
        (folder / f"{i}.txt").write_text(f"waves, number {i}\n")
    return folder


def make(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Pictures a second of a cache that is made, and of encodes alone."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(random_network(AutoencoderConfig()), folder / "sd1", layout="diffusers", format_=KNOWN["sd1"])
        runs = (
            ("built-in", None, 256, given.samples),
            ("SD1's size", folder / "sd1", 128, given.samples // 8),
            ("SD1's size", folder / "sd1", 512, given.samples // 100),
        )
        data = {count: jpegs(folder / str(count), count) for *_, count in runs}
        for network, weights, side, count in runs:
            vae = calotype.load(weights, device="cpu")
            pixels = torch.rand(min(count, BATCH), 3, side, side) * 2 - 1
            job = job_of(vae, Rules(size=(side, side)))
            rates: dict[str, list[float]] = {"cache": [], "encodes alone": [], "reads alone": []}
            vae.encode(pixels[:2])
            for turn in range(given.repeats):
                out = folder / f"{network} {side} {turn}"
                begin = time.perf_counter()
                fill(data[count], out, vae, job)
                rates["cache"].append(count / (time.perf_counter() - begin))
                begin = time.perf_counter()
                for start in range(0, count, BATCH):
                    vae.encode(pixels[: min(BATCH, count - start)])
                rates["encodes alone"].append(count / (time.perf_counter() - begin))
                begin = time.perf_counter()
                with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                    list(pool.map(partial(_read, side), sorted(data[count].glob("*.jpg"))))
                rates["reads alone"].append(count / (time.perf_counter() - begin))
                shutil.rmtree(out)
                told = ", ".join(f"{way} {found[-1]:.2f} a second" for way, found in rates.items())
                say(f"make: {network}, {side}, turn {turn + 1} of {given.repeats}: {told}")
            shares = [one / other for one, other, _ in zip(*rates.values(), strict=True)]
            limits = [read / (read + encode) for _, encode, read in zip(*rates.values(), strict=True)]
            rows.append(
                {"network": network, "side": side, "pictures": count, "share": statistics.median(shares),
                 "share_min": min(shares), "share_max": max(shares), "limit": statistics.median(limits),
                 **{way: statistics.median(found) for way, found in rates.items()}}
            )  # fmt: skip
    return rows


def _read(side: int, path: Path) -> None:
    """As little as can be done for a picture before it is encoded."""
    with Image.open(path) as image:
        width, height = image.size
        left, top = (width - min(image.size)) / 2, (height - min(image.size)) / 2
        box = (left, top, width - left, height - top)
        np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC, box=box))


def table_of_make(rows: Sequence[dict[str, Any]]) -> Table:
    """What a reader wants of it."""
    shown = Table("network", "pixels", "pictures", "rate of a cache, of encodes alone: median (least to most)", "limit")
    for row in rows:
        share = f"{row['share']:.2f} ({row['share_min']:.2f} to {row['share_max']:.2f})"
        limit = f"{row['limit']:.2f}"
        shown.add_row(row["network"], f"{row['side']}x{row['side']}", str(row["pictures"]), share, limit)
    return shown


def memory(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Bytes that a cache takes beside the weights while it is made."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(random_network(AutoencoderConfig()), folder / "sd1", layout="diffusers", format_=KNOWN["sd1"])
        for network, weights, side, count, size in (
            ("SD1's size", str(folder / "sd1"), 512, 16, (1600, 1200)),  # as many as are encoded together
            ("SD1's size", str(folder / "sd1"), 1024, 6, (1600, 1200)),
            ("built-in", "", 64, given.samples, (96, 64)),
        ):
            data = jpegs(folder / f"{network} {side}", count, *size)
            task = {"network": network, "weights": weights, "side": side, "pictures": count, "data": str(data)}
            for limit in (None, "512MB"):
                found = apart({**task, "way": "calotype", "memory": limit, "out": str(folder / "out")})
                shutil.rmtree(folder / "out")
                keys = ("network", "side", "pictures")
                say(f"memory: {network}, {side}, {limit or 'default'}: {found['peak'] / 1e6:.0f} MB")
                taken = {key: found[key] for key in ("peak", "how")}  # seconds are what `make` shows
                rows.append({**{key: task[key] for key in keys}, "memory": limit, **taken})
    return rows


def table_of_memory(rows: Sequence[dict[str, Any]]) -> Table:
    """What a reader wants of it."""
    shown = Table("network", "pixels", "pictures", "--memory", "beside the weights at most")
    for row in rows:
        side, most = f"{row['side']}x{row['side']}", f"{row['peak'] / 1e6:,.0f} MB ({row['how']})"
        shown.add_row(row["network"], side, str(row["pictures"]), row["memory"] or "", most)
    return shown


def linked(folder: Path, count: int) -> Path:
    """So many pictures with captions, of which a thousand each are one."""
    for i in range(count):
        inner, name = folder / f"folder-{i // 10_000:04d}", f"picture-number-{i:08d}"
        if i % 1000 == 0:
            inner.mkdir(parents=True, exist_ok=True)
            first = inner / name
            Image.new("RGB", (96, 64), (i // 1000 % 256, 0, 0)).save(first.with_suffix(".png"))
            first.with_suffix(".txt").write_text(f"{i:99d}\n")
        else:
            for suffix in (".png", ".txt"):
                (inner / name).with_suffix(suffix).hardlink_to(first.with_suffix(suffix))
    return folder


def growth(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Bytes that caches of few and of many pictures take beside the weights while they are made."""
    rows = []
    for count in GROWING:
        with tempfile.TemporaryDirectory() as name:
            data, out = linked(Path(name) / "data", count), str(Path(name) / "out")
            task = {"weights": "", "side": 64, "data": str(data), "out": out, "memory": "512MB", "encodes": False}
            rows.append({"pictures": count, **apart({**task, "way": "calotype"})})
            say(f"growth: {count:,} pictures: {rows[-1]['peak'] / 1e6:.0f} MB in {rows[-1]['seconds']:.0f} s")
    return rows


def table_of_growth(rows: Sequence[dict[str, Any]]) -> Table:
    """What a reader wants of it."""
    shown = Table("pictures", "beside the weights at most", "each more than before")
    for before, row in zip([None, *rows], rows, strict=False):
        each = (row["peak"] - before["peak"]) / (row["pictures"] - before["pictures"]) if before else None
        told = "" if each is None else f"{each:.0f} bytes"
        shown.add_row(f"{row['pictures']:,}", f"{row['peak'] / 1e6:,.0f} MB ({row['how']})", told)
    return shown


def sd_scripts(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of a cache, and of sd-scripts' files, by turns."""
    count = given.samples // 64
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(random_network(AutoencoderConfig()), folder / "sd1", layout="diffusers", format_=KNOWN["sd1"])
        data = jpegs(folder / "data", count)
        task = {"weights": str(folder / "sd1"), "data": str(data), "side": SIDE, "memory": None}
        ways = {
            "calotype": {"way": "calotype", "out": str(folder / "out")},
            "sd-scripts": {"way": "sd-scripts", "code": given.sd_scripts, "batch": 1},
            "sd-scripts, 4 at a time": {"way": "sd-scripts", "code": given.sd_scripts, "batch": 4},
        }
        for turn in range(given.repeats):
            for way, more in ways.items():
                found = apart({**task, **more})
                times.setdefault(way, []).append(found["seconds"])
                written = list(data.glob("*_sd.npz")) if way != "calotype" else []
                assert way == "calotype" or len(written) == count
                for path in written:
                    path.unlink()
                shutil.rmtree(folder / "out", ignore_errors=True)
            told = ", ".join(f"{way} {found[-1]:.1f} s" for way, found in times.items())
            say(f"sd-scripts: turn {turn + 1} of {given.repeats}: {told}")
    own = times["calotype"]
    rows = []
    for way, seconds in times.items():
        ratios = [other / one for one, other in zip(own, seconds, strict=True)]
        rows.append(
            {"way": way, "code": (given.sd_scripts and "its own") or "rebuilt", "pictures": count,
             "seconds": statistics.median(seconds), "ratio": statistics.median(ratios), "ratio_min": min(ratios),
             "ratio_max": max(ratios)}
        )  # fmt: skip
    return rows


def table_of_sd_scripts(rows: Sequence[dict[str, Any]]) -> Table:
    """What a reader wants of it."""
    shown = Table(f"{rows[0]['pictures']} pictures, {SIDE}x{SIDE}", "seconds", "times calotype's: median (from, to)")
    for row in rows:
        way = row["way"] if row["way"] == "calotype" else f"{row['way']}, {row['code']} code"
        ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        shown.add_row(way, f"{row['seconds']:.1f}", ratio)
    return shown


SECTIONS: dict[str, tuple[Callable[[argparse.Namespace], list[dict[str, Any]]], Callable[[Any], Table]]] = {
    "read": (read, table_of_read),
    "make": (make, table_of_make),
    "memory": (memory, table_of_memory),
    "growth": (growth, table_of_growth),
    "sd-scripts": (sd_scripts, table_of_sd_scripts),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sd-scripts", metavar="PATH", default="", help="folder of sd-scripts, whose code is run")
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    if unknown := [one for one in given.sections if one not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]}; known are {', '.join(SECTIONS)}")
    for section in given.sections:
        measure, table = SECTIONS[section]
        rows = measure(given)
        Console().print(table(rows))
        words = f"{section} --samples {given.samples} --repeats {given.repeats}"
        result = {
            "command": f"python bench/cache.py {words}{' --sd-scripts PATH' * (section == 'sd-scripts')}",
            "section": section, "processor": processor(), "threads": torch.get_num_threads(),
            "torch": torch.__version__, "commit": git("rev-parse", "--short", "HEAD"), "samples": given.samples,
            "rows": rows,
        }  # fmt: skip
        print(json.dumps(result))
        if given.keep:
            keep_as("cache.json", f"{section}, {result['processor']}", result)


if __name__ == "__main__":
    main()
