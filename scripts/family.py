"""Makes docs/family.md: what each step from PCA to Stable Diffusion's autoencoder adds, trained and measured here.

    python scripts/family.py --data DATA

DATA is a folder or zip of photographs; labels.jsonl in it (file, set, label) adds a section. Finished models stay in
the folder --work and are not trained again, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import zipfile
from collections.abc import Iterable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from family_page import figures, measures, models
from family_page.claims import SWEEP, short
from family_page.measures import Coder
from family_page.models import Array, Photos, Trained
from family_page.page import PROBED, SAMPLED, TITLES, page
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

import calotype
from calotype.files import atomic_path
from calotype.pixels import from_array, to_uint8

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = 10  # that are shown of each model
MOVE = 8  # pixels
PAIRS = (("astronaut", "coffee"), ("cat", "rocket"))


def main(arguments: list[str] | None = None) -> int:
    """Trains, measures, draws and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder or zip of photographs")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "family", help="where finished models are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where the page, its pictures and numbers go")
    parser.add_argument("--quick", action="store_true", help="narrow networks and a few steps: does it run?")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    begin = time.perf_counter()
    try:
        results = make(options.data, options.work, options.out, quick=options.quick, console=console)
    except models.Stopped:
        console.print("Stopped. Finished models are kept: the same command goes on.")
        return 130
    except calotype.CalotypeError as error:
        console.print(str(error), markup=False)
        return 2
    results["seconds"] = time.perf_counter() - begin + results.pop("seconds_before")
    with atomic_path(options.out / "family.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    with atomic_path(options.out / "family.md") as temporary:
        temporary.write_text(page(json.loads(json.dumps(results))), encoding="utf-8")
    console.print(f"{options.out / 'family.md'} was written, after {results['seconds']:.0f} s.", markup=False)
    return 0


@torch.no_grad()
def make(data: Path, work: Path, out: Path, *, quick: bool, console: Console) -> dict[str, Any]:
    """All numbers; the figures are drawn on the way."""
    recipes = models.recipes(quick)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:

        def track(items: Iterable[Any], doing: str, total: int) -> Iterable[Any]:
            return progress.track(items, total=total, description=doing)

        def notice(text: str) -> None:
            progress.console.print(text, markup=False)

        training, held_out = models.photographs(data, track, notice)
        all_steps = progress.add_task("Training", total=sum(one.steps for one in recipes.values()))
        found: dict[str, Trained] = {}
        before = 0.0
        for name, recipe in recipes.items():
            progress.update(all_steps, description=f"Training {name}")
            start = time.perf_counter()
            with torch.enable_grad():
                found[name] = models.trained(recipe, training, work, lambda n: progress.advance(all_steps, n))
            took = found[name].seconds
            before += took if time.perf_counter() - start < took else 0.0  # it was kept from a run before
        progress.update(all_steps, description="Training")
        measuring = progress.add_task("Measuring", total=7)
        results = facts(training, held_out, found, data, quick)
        results["seconds_before"] = before
        bench = Bench(found, training, held_out, out / "pictures", results)
        for part in (bench.reconstruct, bench.samples, bench.interpolate, bench.rate, bench.residual, bench.without_kl):
            part()
            progress.advance(measuring)
        results["probe"] = bench.probe(labels(data))
        progress.advance(measuring)
    return results


def facts(training: Photos, held_out: Photos, found: dict[str, Trained], data: Path, quick: bool) -> dict[str, Any]:
    """What was run, on what."""
    versions = {name: metadata.version(name) for name in ("numpy", "lightning-fabric", "matplotlib", "scikit-image")}
    return {
        "command": f"python scripts/family.py --data {data.name}" + (" --quick" if quick else ""),
        "date": date.today().isoformat(),
        "versions": {
            "calotype": calotype.__version__, "torch": torch.__version__, "python": platform.python_version(),
            **versions,
        },
        "device": processor(),
        "threads": torch.get_num_threads(),
        "pictures": len(training),
        "held_out": len(held_out),
        "hold_out": models.HOLD_OUT,
        "side": models.SIDE,
        "numbers": models.NUMBERS,
        "seconds_training": sum(one.seconds for one in found.values()),
        "models": {
            name: {
                "network": one.recipe.network.to_dict(),
                "parameters": one.parameters,
                "steps": one.recipe.steps,
                "batch": one.recipe.batch,
                "seed": one.recipe.seed,
                "learning_rate": one.recipe.learning_rate,
                "kl_weight": one.recipe.kl_weight,
                "seconds": one.seconds,
                "curve": one.curve,
                "gradients": one.gradients,
            }
            for name, one in found.items()
        },
    }  # fmt: skip


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def labels(data: Path) -> dict[str, dict[str, str]]:
    """labels.jsonl beside the pictures, by file; empty where there is none."""
    if data.is_dir():
        path = data / "labels.jsonl"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    elif zipfile.is_zipfile(data):
        with zipfile.ZipFile(data) as archive:
            text = archive.read("labels.jsonl").decode() if "labels.jsonl" in archive.namelist() else ""
    else:
        text = ""
    lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    return {line["file"]: line for line in lines}


class Bench:
    """Measures models part by part, into `results`, and draws what belongs to it."""

    def __init__(
        self, found: dict[str, Trained], training: Photos, held_out: Photos, pictures: Path, results: dict[str, Any]
    ) -> None:
        self.results, self.pictures, self.names = results, pictures, (training.names, held_out.names)
        self.training, self.held_out = from_array(training.pictures), from_array(held_out.pictures)
        shown = models.shown()
        self.shown, self.shown_names = from_array(shown.pictures), list(shown.names)
        begin = time.perf_counter()
        pca = models.PCA(self.training, min(models.NUMBERS, 2 * len(training)))
        results["pca_seconds"] = time.perf_counter() - begin
        results["pca_parameters"] = sum(p.numel() for p in pca.parameters())
        self.coders: dict[str, Coder] = {"pca": pca, **{name: one.network for name, one in found.items()}}
        self.distance = measures.Distance(self.training)

    def figure(self, name: str) -> Path:
        return self.pictures / f"family-{name}.png"

    def decoded(self, name: str, latents: Tensor) -> Array:
        return as_pictures(measures.decode(self.coders[name], latents))

    def reconstruct(self) -> None:
        """Section 1."""
        rec = {
            name: measures.reconstruction(coder, self.held_out, self.training) for name, coder in self.coders.items()
        }
        self.results["reconstruction"] = rec
        latents = {name: measures.encode(self.coders[name], self.shown).mode() for name in self.coders}
        short = {
            "pca": "PCA", "linear": "dense, linear", "dense": "dense,\nhidden layer", "conv": "convolutional",
            "vae": "conv. VAE", "kl-f8": "KL-f8",
        }  # fmt: skip
        rows = [("picture", as_pictures(self.shown))]
        rows += [
            (f"{short[name]}\n{rec[name]['held_out']:.1f} dB", self.decoded(name, latents[name])) for name in TITLES
        ]
        figures.panel(self.figure("reconstruction"), rows, scale=3, labels=120)
        kept = ("pca", "dense", "conv", "kl-f8")
        self.results["shift"] = {name: measures.shift(self.coders[name], self.held_out, MOVE) for name in kept}
        chosen = self.shown[[self.shown_names.index(name) for name in ("astronaut", "cat", "rocket")]]
        after = measures.moved(chosen, MOVE)
        moved_latents = measures.moved(measures.encode(self.coders["conv"], chosen).mode(), MOVE // 8)
        columns = {
            "picture": as_pictures(chosen),
            "moved": as_pictures(after),
            "dense": self.decoded("dense", measures.encode(self.coders["dense"], after).mode()),
            "conv.": self.decoded("conv", measures.encode(self.coders["conv"], after).mode()),
            "conv.,\nlatents moved": self.decoded("conv", moved_latents),
        }
        rows = [("", np.stack([column[i] for column in columns.values()])) for i in range(len(chosen))]
        figures.panel(self.figure("shift"), rows, columns=list(columns), scale=3, labels=10)

    def samples(self) -> None:
        """Section 2."""
        count = len(self.held_out)
        latents = {name: measures.encode(self.coders[name], self.training).mode() for name in ("pca", "conv")}
        latents |= {name: measures.encode(self.coders[name], self.held_out).mode() for name in SWEEP}
        kinds = {"N(0, I)": measures.standard, "per channel": measures.per_channel, "all": measures.full}
        far, rows = {}, {}
        asked = [key for key in SAMPLED if key not in ("photographs", "noise")]
        for key in dict.fromkeys([*asked, *(f"{name} N(0, I)" for name in SWEEP)]):
            name, _, kind = key.partition(" ")
            sampler = kinds[kind](latents[name])
            far[key] = measures.sample_distance(self.coders[name], sampler, self.distance, count)
            rows[key] = self.decoded(name, sampler(SAMPLES, measures.generator(0)))
        noise = torch.rand(count, 3, models.SIDE, models.SIDE, generator=measures.generator(0)) * 2 - 1
        far |= {"photographs": self.distance(self.held_out), "noise": self.distance(noise)}
        self.results["samples"] = far
        rows["photographs"] = as_pictures(self.shown)
        shown = [(row, rows[key]) for key, (row, _) in SAMPLED.items() if key != "noise"]
        figures.panel(self.figure("samples"), shown, labels=120)

    def interpolate(self) -> None:
        """Section 3."""
        names = {"conv": "autoencoder", "vae": "VAE", "kl-f8": "KL-f8"}
        self.results["interpolation"] = {
            name: measures.interpolation(self.coders[name], self.held_out, self.distance) for name in names
        }
        rows = []
        for pair in PAIRS:
            a, b = self.shown[[self.shown_names.index(name) for name in pair]]
            rows.append(("cross-fade", as_pictures(measures.between(a, b))))
            for name, title in names.items():
                ends = measures.encode(self.coders[name], torch.stack([a, b])).mode()
                rows.append((title, self.decoded(name, measures.between(*ends))))
        figures.panel(self.figure("interpolation"), rows, labels=110)

    def rate(self) -> None:
        """Section 4."""
        found = {name: measures.posterior(self.coders[name], self.held_out) for name in SWEEP}
        self.results["posterior"] = found
        made = measures.decode(self.coders["vae"], measures.encode(self.coders["vae"], self.held_out).mode())
        self.results["elbo_weight"] = 2 * float((made - self.held_out).square().mean())
        figures.rate(self.figure("rate"), self.results)

    def residual(self) -> None:
        """Section 5."""
        encoder = self.coders["deep-plain"].encoder  # type: ignore[attr-defined]
        self.results["deep_encoder_layers"] = sum(p.ndim > 1 for p in encoder.parameters())
        self.results["mean_loss"] = float((self.training - self.training.mean(0)).square().mean())
        figures.residual(self.figure("residual"), self.results)

    def without_kl(self) -> None:
        """Section 6."""
        names = {
            f"KL weight {short(self.results['models'][name]['kl_weight'])}": name
            for name in ("vae-0", "vae-1e-6", "vae")
        }
        found = {title: measures.encode(self.coders[name], self.held_out) for title, name in names.items()}
        noise = {title: posterior.std.flatten().numpy() for title, posterior in found.items()}
        figures.without_kl(
            self.figure("without-kl"), noise, {title: one.mode().flatten().numpy() for title, one in found.items()}
        )

    def probe(self, known: dict[str, dict[str, str]]) -> dict[str, Any]:
        """Section 7; empty without labels."""
        if not known:
            return {}
        found: dict[str, Any] = {"asked": {}, "gains": {}}
        right: dict[str, dict[str, list[int]]] = {"set": {}, "label": {}}
        for name in PROBED:
            features = [
                (pixels if name == "pixels" else measures.encode(self.coders[name], pixels).mode()).flatten(1)
                for pixels in (self.training, self.held_out)
            ]
            found[name] = {}
            for key in right:
                given = [[known[file][key] for file in files] for files in self.names]
                answers = measures.probe(*features, *given)
                right[key][name] = answers.pop("right")
                found[name][key] = 100 * float(np.mean(right[key][name]))
                found["asked"][key] = {**answers, "asked": len(right[key][name])}
                if key == "set":
                    found[name]["clusters"] = measures.clusters(features[0], given[0])
        for key, named in right.items():
            found["gains"][key] = {name: measures.gain(named["vae"], named[name]) for name in ("pixels", "pca")}
        return found


def as_pictures(pixels: Tensor) -> Array:
    """uint8 [N, H, W, 3]."""
    return to_uint8(pixels).permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
    sys.exit(main())
