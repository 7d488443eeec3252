"""How well a drawing model draws what it is told, and how finished its drawings look.

    python bench/draw.py --data DATA [--model NEW] [--beside OLD] [--names 200] [--drawings 500] [--keep]

DATA is the folder with captions.jsonl that `scripts/emoji.py` makes. Names are taken evenly from those that the model
was trained on. Each is drawn, and the pictures are sorted by how near they are to the drawing, at the model's size: a
drawing is right where the nearest one carries the name that was asked for, and among the first five where one of them
does. Pictures that are the same file count as one. Near is measured twice:

- lpips-vgg: the last of LPIPS's five terms (VGG16's relu5_3). CALOTYPE_LPIPS may name a folder with its weights.
- efficientnet-lite0: the cosine of EfficientNet-Lite0's pooled features.

Told for each guidance, for held-out combinations, and how far two seeds lie apart. What could be reached at most is
told by the pictures themselves, encoded and decoded. How finished drawings look is told by more of them:

- kernel distance: KID of EfficientNet-Lite0's features, of drawings to the pictures of their names.
- ground: of pixels that are white in a picture, and so is all that is within 8 pixels, the share that differ from white
  by more than 4 levels in its drawing; and the same of the picture encoded and decoded.
- gradients: energy of differences of neighbours, of all drawings over that of the pictures encoded and decoded.

And what the denoiser is told from the start: the share of the variance of pictures' latents that sketches of their
names explain, one minus their squared error over that of the mean of all that were trained.

And what `calotype draw` takes for one picture in a process of its own, imports included (median of 3).

--beside measures another model in the same run, with --beside-as in other settings. Prints tables and one JSON line,
kept in bench/results/.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine import processor
from PIL import Image, ImageFilter
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional

import calotype
from calotype.draw.captions import Caption, is_variant, read_captions
from calotype.draw.data import Listed, shown_small
from calotype.draw.model import save_model
from calotype.draw.pipeline import Drawer, Settings, load_drawer
from calotype.draw.schedule import SAMPLERS, Sampler
from calotype.edit.sheet import sheet
from calotype.evaluate.distances import kernel_distance
from calotype.evaluate.features import Extractor, load_extractor
from calotype.evaluate.lpips import LPIPS, load_lpips
from calotype.pixels import from_array, to_pil, write_picture

ROOT = Path(__file__).resolve().parents[1]
KINDS = (("trained", False), ("held out", True))
OTHERS = ("ground_std", "sketch_noise")  # of a drawing model's settings, drawing alone depends on them


def chosen(captions: list[Caption], count: int) -> list[Caption]:
    """So many captions, the same every time: those whose names' sha256 come first."""
    return sorted(captions, key=lambda one: hashlib.sha256(one.name.encode()).digest())[:count]


class Nearest:
    """The pictures of a folder, found by what a drawing looks like."""

    def __init__(self, data: Path, captions: list[Caption], size: int) -> None:
        self.captions = captions
        self.features: dict[str, Callable[[Tensor], Tensor]] = {
            "lpips-vgg": partial(deepest, load_lpips("vgg")),
            "efficientnet-lite0": partial(pooled, load_extractor("efficientnet-lite0")),
        }
        self.same = [hashlib.sha256((data / one.file).read_bytes()).digest() for one in captions]
        pictures = track([shown_small(data / one.file, size) for one in captions], "Features", transient=True)
        found = [self._seen(one) for one in pictures]
        self.known = {name: torch.cat([one[name] for one in found]) for name in self.features}

    @torch.no_grad()
    def _seen(self, image: Image.Image) -> dict[str, Tensor]:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        return {name: of(pixels) for name, of in self.features.items()}

    def ranks(self, image: Image.Image, wanted: Caption) -> dict[str, int]:
        """How many different pictures are nearer to the drawing than the wanted one, which is named as it."""
        names = set(wanted.names)
        right = torch.tensor([bool(names & set(one.names)) for one in self.captions])
        ranks = {}
        for name, seen in self._seen(image).items():
            distance = (self.known[name] - seen).square().sum(1)
            nearer = (distance < distance[right].min()).nonzero()[:, 0].tolist()
            ranks[name] = len({self.same[i] for i in nearer})
        return ranks


@cache
def nearest_of(data: Path, size: int) -> Nearest:
    """All the pictures of a folder; they are looked at once, however many models are measured."""
    return Nearest(data, read_captions(data), size)


def deepest(network: LPIPS, pixels: Tensor) -> Tensor:
    """uint8 [1, 3, H, W] -> [1, D], whose squared distances are proportional to the last term of LPIPS."""
    stage = network.stages(pixels.float() / 127.5 - 1)[-1]
    weighted: Tensor = functional.normalize(stage, dim=1) * network.heads[-1].sqrt()
    return weighted.flatten(1)


def pooled(extractor: Extractor, pixels: Tensor) -> Tensor:
    """uint8 [1, 3, H, W] -> [1, D] of length 1, where squared distances are in the order of cosines."""
    found: Tensor = extractor(pixels)
    return functional.normalize(found.float(), dim=1)


def drawings(drawer: Drawer, captions: list[Caption], settings: Settings, doing: str) -> list[Image.Image]:
    """One of each name, with its place as the seed."""
    made = []
    for seed, one in enumerate(track(captions, doing, transient=True)):
        made.append(drawer.vae.decode_image(drawer.draw(one.name, seed, settings)))
    return made


def off_white(images: list[Image.Image], pictures: list[Image.Image]) -> float:
    """The share of pixels that should be white ground and differ from it by more than 4 levels."""
    wrong = count = 0
    for image, picture in zip(images, pictures, strict=True):
        darkest = Image.fromarray(np.asarray(picture.convert("RGB")).min(axis=-1))
        ground = np.asarray(darkest.filter(ImageFilter.MinFilter(17))) == 255
        wrong += int((np.asarray(image.convert("RGB"))[ground].min(axis=-1) < 251).sum())
        count += int(ground.sum())
    return wrong / count


def energy(images: list[Image.Image]) -> float:
    """Squared differences of neighbours, summed over all pictures."""
    levels = [np.asarray(one.convert("RGB"), np.float64) for one in images]
    return sum(float(np.square(np.diff(one, axis=axis)).sum()) for one in levels for axis in (0, 1))


@torch.no_grad()
def features_of(extractor: Extractor, images: list[Image.Image]) -> Tensor:
    """[N, D], as they are pooled."""
    pixels = (torch.from_numpy(np.array(one.convert("RGB"))).permute(2, 0, 1)[None] for one in images)
    return torch.cat([extractor(one).float() for one in pixels])


def seconds_of_one(model: Path | None, settings: Settings) -> float:
    """What `calotype draw` takes in a process of its own, with its imports."""
    told = {"--steps": settings.steps, "--guidance": settings.guidance, "--guidance-above": settings.guidance_above}
    options = [text for option, value in told.items() for text in (option, str(value))]
    with tempfile.TemporaryDirectory() as folder:
        options += ["--out", folder, *(["--model", str(model)] if model else [])]
        began = time.perf_counter()
        command = [sys.executable, "-m", "calotype", "draw", "a red apple", *options]
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - began


@dataclass(frozen=True)
class Bench:
    """What models are measured by.

    Attributes:
        data: the folder of pictures.
        every: all their captions.
        names, drawings: how many are judged by what is nearest, and how many by how they look.
        steps, guidance, above: of drawings; each guidance is measured, and counts above this part of noise. How they
            look is told of the last.
        sampler: of drawings.
        noise: std of what is added to the model latents of pictures that are encoded and decoded.
        grid: where held-out names are written.
    """

    data: Path
    every: list[Caption]
    names: int
    drawings: int
    steps: int
    guidance: list[float]
    above: float
    sampler: Sampler
    noise: float
    grid: Path | None
    console: Console

    def measured(self, drawer: Drawer, model: Path | None) -> dict[str, Any]:
        """All figures of one model, of a file or the one that ships."""
        size, listed, title = drawer.model.config.size, Listed(self.data), model.name if model else "built-in"
        usual = Settings(steps=self.steps, guidance=self.guidance[-1], guidance_above=self.above, sampler=self.sampler)
        apart = set(drawer.model.about.get("held_out", []))
        many = chosen([one for one in self.every if one.name not in apart], max(self.names, self.drawings))
        trained, held = many[: self.names], chosen([one for one in self.every if one.name in apart], self.names)
        table = Table("features", "names", "guidance", "drawn", "nearest is right", "among five", title=title)
        results: list[dict[str, Any]] = []

        def judge(kind: str, guidance: float | None, captions: list[Caption], images: list[Image.Image]) -> None:
            if not captions:
                return
            nearest = nearest_of(self.data, size)
            ranks = [nearest.ranks(image, one) for image, one in zip(images, captions, strict=True)]
            parts = {kind: list(range(len(captions)))}
            if captions is trained:
                parts[f"{kind}, without skin tone"] = [i for i, one in enumerate(captions) if not is_variant(one)]
                parts[f"{kind}, with skin tone"] = [i for i, one in enumerate(captions) if is_variant(one)]
            for features, (part, places) in itertools.product(nearest.features, parts.items()):
                if places:
                    first, five = (sum(ranks[i][features] < n for i in places) / len(places) for n in (1, 5))
                    told = "-" if guidance is None else f"{guidance:g}"
                    table.add_row(features, part, told, str(len(places)), f"{first:.1%}", f"{five:.1%}")
                    results.append(
                        {
                            "features": features, "names": part, "guidance": guidance, "count": len(places),
                            "first": first, "five": five,
                        }
                    )  # fmt: skip

        for guidance in self.guidance:
            settings = dataclasses.replace(usual, guidance=guidance)
            wanted = many if guidance == usual.guidance else trained
            images = drawings(drawer, wanted, settings, f"{title}: trained, guidance {guidance:g}")
            judge("trained", guidance, trained, images[: self.names])
            if guidance == usual.guidance:
                looks = self.looks(drawer, many[: self.drawings], images[: self.drawings])
            images = drawings(drawer, held, settings, f"{title}: held out, guidance {guidance:g}")
            if self.grid and held and guidance == usual.guidance:
                shown = range(min(8, len(images)))
                pictures = [shown_small(self.data / held[i].file, size) for i in shown]
                write_picture(self.grid, sheet([images[i] for i in shown] + pictures, columns=len(shown)))
                self.console.print("In the grid: " + "; ".join(held[i].name for i in shown))
            judge("held out", guidance, held, images)
        judge("pictures themselves", None, trained, self.decoded(drawer, trained))
        if results:
            self.console.print(table)
        pairs = [
            [np.asarray(drawer.vae.decode_image(drawer.draw(one.name, seed, usual)), np.float32) for seed in (1, 2)]
            for one in track(many[:20], "Two seeds", transient=True)
        ]
        return {
            "model": title,
            "trained_steps": drawer.model.about.get("steps"),
            "results": results,
            "looks": looks,
            "sketches_explain": self.explained(drawer, listed.latents(drawer.vae, size), apart) if results else {},
            "seconds_one_picture": statistics.median(seconds_of_one(model, usual) for _ in range(3)),
            "seeds_apart_levels": statistics.median(float(np.sqrt(np.square(a - b).mean())) for a, b in pairs),
        }

    @torch.no_grad()
    def explained(self, drawer: Drawer, latents: Tensor, apart: set[str]) -> dict[str, float]:
        """How much of what pictures [N, C, h, w] differ in their names' sketches say."""
        shown = functional.adaptive_avg_pool2d(latents, drawer.model.config.text.sketch_side)
        parts = {kind: [i for i, one in enumerate(self.every) if (one.name in apart) == held] for kind, held in KINDS}
        mean = shown[parts["trained"]].mean(0)
        found = {}
        for kind, places in parts.items():
            if places:
                told = torch.cat([drawer.embed(self.every[i].name).sketch.cpu() for i in places])
                found[kind] = 1 - float((told - shown[places]).square().sum() / (shown[places] - mean).square().sum())
        return found

    def looks(self, drawer: Drawer, captions: list[Caption], images: list[Image.Image]) -> dict[str, float]:
        """How finished drawings look."""
        pictures = [shown_small(self.data / one.file, drawer.model.config.size) for one in captions]
        decoded, extractor = self.decoded(drawer, captions), load_extractor("efficientnet-lite0")
        of_drawings, of_pictures = (features_of(extractor, shown) for shown in (images, pictures))
        found = kernel_distance(of_drawings, of_pictures).value
        assert found is not None
        return {
            "drawings": len(images),
            "kernel_distance": found,
            "ground_off_white": off_white(images, pictures),
            "ground_off_white_decoded": off_white(decoded, pictures),
            "gradients": energy(images) / energy(decoded),
        }

    def decoded(self, drawer: Drawer, captions: list[Caption]) -> list[Image.Image]:
        """The pictures themselves, encoded and decoded."""
        size = drawer.model.config.size
        prepared = [from_array(np.asarray(shown_small(self.data / one.file, size))[None]) for one in captions]
        generator, made, scale = torch.Generator().manual_seed(0), [], drawer.vae.latent_format
        for one in prepared:
            latents = scale.to_model(drawer.vae.encode(one).mode().float().cpu())
            latents += self.noise * torch.randn(latents.shape, generator=generator)
            made.append(to_pil(drawer.vae.decode(scale.to_raw(latents))[0].float().cpu()))
        return made


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl")
    parser.add_argument("--model", type=Path, help="a drawing model; the built-in one where none is given")
    parser.add_argument("--beside", type=Path, help="another one, measured in the same run")
    parser.add_argument("--beside-as", type=float, nargs=3, metavar=("STEPS", "GUIDANCE", "ABOVE"),
                        help="how the other one draws; as the first where nothing is given")  # fmt: skip
    parser.add_argument("--names", type=int, default=200, help="0 for how drawings look alone")
    parser.add_argument("--drawings", type=int, default=500, help="for how they look, at the last guidance")
    parser.add_argument("--steps", type=int, default=Settings().steps)
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0, Settings().guidance])
    parser.add_argument("--guidance-above", type=float, default=Settings().guidance_above)
    parser.add_argument("--sampler", choices=SAMPLERS, default=Settings().sampler)
    parser.add_argument("--decoded-noise", type=float, default=0.0, help="std, on the latents of pictures themselves")
    parser.add_argument("--ground-std", type=float, help="draw with this one in place of the model's")
    parser.add_argument("--sketch-noise", type=float, help="draw with this one in place of the model's")
    parser.add_argument("--keep", action="store_true", help="write bench/results/draw.json")
    parser.add_argument("--grid", type=Path, help="write held-out names here: drawings above, pictures below")
    parser.add_argument("--stamp", type=Path, help="write the model here, with these figures in its header")
    arguments = parser.parse_args()
    console = Console()
    bench = Bench(
        arguments.data, read_captions(arguments.data), arguments.names, arguments.drawings, arguments.steps,
        arguments.guidance, arguments.guidance_above, arguments.sampler, arguments.decoded_noise, arguments.grid,
        console,
    )  # fmt: skip
    drawer = load_drawer(arguments.model)
    others = {key: value for key in OTHERS if (value := getattr(arguments, key)) is not None}
    drawer.model.config = dataclasses.replace(drawer.model.config, **others)
    measured = [bench.measured(drawer, arguments.model)]
    if arguments.beside:
        other = dataclasses.replace(bench, grid=None, guidance=bench.guidance[-1:])
        if arguments.beside_as:
            steps, guidance, above = arguments.beside_as
            other = dataclasses.replace(other, steps=int(steps), guidance=[guidance], above=above)
        measured.append(other.measured(load_drawer(arguments.beside), arguments.beside))
    table = Table("model", "kernel distance", "ground off white", "decoded", "gradients", "two seeds, levels apart",
                  "sketches explain", "seconds a picture")  # fmt: skip
    for one in measured:
        looks = one["looks"]
        table.add_row(
            one["model"], f"{looks['kernel_distance']:.4f}", f"{looks['ground_off_white']:.2%}",
            f"{looks['ground_off_white_decoded']:.2%}", f"{looks['gradients']:.2f}", f"{one['seeds_apart_levels']:.1f}",
            f"{explain['trained']:.1%}" if (explain := one["sketches_explain"]) else "",
            f"{one['seconds_one_picture']:.1f}",
        )  # fmt: skip
    console.print(table)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    first, *beside = measured
    told = []  # what is not as usual, paths left out
    for key, value in vars(arguments).items():
        if value != parser.get_default(key) and not isinstance(value, Path | bool):
            told += [f"--{key.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    line = {
        "command": " ".join(["python bench/draw.py --data DATA", *told]),
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "versions": {
            "calotype": calotype.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "processor": processor(),
        "device": str(drawer.vae.device),
        "processors": os.cpu_count(),
        "steps": arguments.steps,
        "guidance_above": arguments.guidance_above,
        **first,
        "beside": beside,
    }
    print(json.dumps(line))
    if arguments.stamp:
        figures: dict[str, Any] = {"guidance": Settings().guidance, "steps": arguments.steps}
        figures |= {"guidance_above": arguments.guidance_above, "looks": first["looks"]}
        for one in first["results"]:
            if one["guidance"] == Settings().guidance:
                of_names = {key: one[key] for key in ("count", "first", "five")}
                figures.setdefault(one["features"], {})[one["names"]] = of_names
        drawer.model.about["figures"] = figures
        save_model(drawer.model, arguments.stamp)
    if arguments.keep:
        (ROOT / "bench/results/draw.json").write_text(json.dumps(line, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
