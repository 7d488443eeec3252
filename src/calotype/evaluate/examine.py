"""A whole probe: from the name of weights and a place with pictures to findings, a file and a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from calotype.engine.executor import Progress
from calotype.errors import UsageError
from calotype.evaluate.lpips import load_lpips
from calotype.evaluate.measure import Array
from calotype.evaluate.probe import Probe, probe
from calotype.evaluate.report import write_probe
from calotype.evaluate.session import chosen
from calotype.files import atomic_path
from calotype.sources import open_source
from calotype.vae import load

SIDE = 256


def examine(
    vae: str | None,
    data: Path | None,
    report: Path,
    *,
    labels: Path | None = None,
    perceptual: str | None = "vgg",
    every: int = 1,
    limit: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> Probe:
    """Probes a VAE, and writes REPORT/probe.json and REPORT/index.html.

    Args:
        data: a folder, archive or dataset (see `sources.open_source`); None: `cards`.
        labels: see `read_labels`; pictures without one are left out.
        perceptual: LPIPS's network, vgg or alex; None measures without.
        every, limit: see `session.chosen`.

    Raises:
        UsageError, WeightsError, PictureError: see the functions called.
    """
    loaded = load(vae, device=device)
    lpips = None
    if perceptual:
        lpips = load_lpips(perceptual).to(loaded.device)  # type: ignore[arg-type]
    pictures = list(cards() if data is None else _pictures(data, every, limit))
    named: list[str] | None = None
    if labels is not None:
        known = read_labels(labels)
        pictures = [(name, picture) for name, picture in pictures if _key(known, name)]
        named = [known[_key(known, name)] for name, _ in pictures]
        if not pictures:
            raise UsageError(
                f"{labels}: none of the pictures has a label there; its names must be those of the pictures."
            )
    found = probe(loaded, pictures, labels=named, lpips=lpips, seed=seed, side=SIDE, progress=progress)
    report.mkdir(parents=True, exist_ok=True)
    with atomic_path(report / "probe.json") as temporary:
        told = {"command": ["calotype", *sys.argv[1:]], **found.to_dict()}
        temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    write_probe(found, report / "index.html")
    return found


def _pictures(data: Path, every: int, limit: int) -> Iterator[tuple[str, Array]]:
    source = open_source(data.name, data.parent)
    for i in chosen(source, every, limit):
        yield source.names[i], source.read(i)


def read_labels(path: Path) -> dict[str, str]:
    """Labels by picture: JSON {"a.png": "cat"}, or a line of JSON for each, with `file` and `label`.

    Raises:
        UsageError: if the file holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            return {str(row["file"]): str(row["label"]) for row in rows}
        return {str(name): str(label) for name, label in json.loads(text).items()}
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file; give labels as JSON.") from None
    except (ValueError, KeyError, AttributeError, TypeError, OSError):
        raise UsageError(
            f'{path}: labels must be JSON like {{"a.png": "cat"}}, or lines like {{"file": "a.png", "label": "cat"}}.'
        ) from None


def _key(labels: Mapping[str, str], name: str) -> str:
    """What a picture is called among the labels: its path, or its name alone; empty if it has none."""
    return next((key for key in (name, Path(name).name) if key in labels), "")


def cards(side: int = SIDE, count: int = 8) -> Iterator[tuple[str, Array]]:
    """Drawn pictures for those who have none at hand: colours that change slowly, edges, textures of several scales.

    They tell of grids, shifts and colours. What latents of photographs are like they do not tell.
    """
    y, x = np.mgrid[0:side, 0:side] / side
    for i in range(count):
        rng = np.random.default_rng([7, i])
        phases, turns = rng.uniform(0, 6.28, (2, 3)), rng.uniform(1, 4, (2, 3))
        smooth = 0.5 + 0.25 * (
            np.sin(turns[0] * 3 * x[..., None] + phases[0]) + np.cos(turns[1] * 3 * y[..., None] + phases[1])
        )
        texture = np.zeros((side, side, 1))
        for scale in (4, 8, 16, 32):
            coarse = rng.normal(size=(side // scale + 1,) * 2).repeat(scale, 0).repeat(scale, 1)[:side, :side]
            texture[..., 0] += coarse * scale / 240
        mask = (np.hypot(x - rng.uniform(0.3, 0.7), y - rng.uniform(0.3, 0.7)) < rng.uniform(0.15, 0.3))[..., None]
        stripes = ((x + y * rng.uniform(-1, 1)) * side / rng.integers(4, 24) % 2 < 1)[..., None] * (i % 2)
        picture = smooth + texture * (1 + i % 3) / 2 + mask * rng.uniform(-0.5, 0.5, 3) + 0.2 * stripes * mask
        yield f"card-{i}", np.floor(picture.clip(0, 1) * 255 + 0.5).astype(np.uint8)
