"""Any number of VAEs on the same pictures: measured, kept, and put together as one result."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol as Interface

import numpy as np
import torch
from numpy.typing import NDArray

from calotype import __version__
from calotype.engine.program import Direction
from calotype.errors import MemoryLimitError, UsageError
from calotype.evaluate.bootstrap import mean_interval
from calotype.evaluate.distances import Gaussian, frechet_distance, kernel_distance
from calotype.evaluate.measure import METRICS, Box, Taken, Tools, measure, pixels_sha256, reference
from calotype.evaluate.protocol import Protocol
from calotype.evaluate.store import REFERENCE, Store
from calotype.vae import VAE

Array = NDArray[np.uint8]


DIRECTIONS: tuple[Direction, ...] = ("encode", "decode")


class Pictures(Interface):
    """Pictures by number; see `calotype.sources.Pictures`."""

    @property
    def names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def read(self, i: int) -> Array: ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured, on what, and how.

    Attributes:
        vaes: by their labels, in the order in which they are shown.
        pictures: all of them.
        protocol, tools: how.
        boxes: subset -> picture's name -> parts of it, in pixels of the picture as prepared.
    """

    vaes: Mapping[str, VAE]
    pictures: Pictures
    protocol: Protocol
    tools: Tools
    boxes: Mapping[str, Mapping[str, Sequence[Box]]] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What decides the figures, beside VAEs and pictures."""
        return {
            "protocol": self.protocol.to_dict(),
            "metrics": list(self.tools.metrics),
            "features": sorted(self.tools.extractors),
            "boxes": {subset: {k: list(map(list, v)) for k, v in of.items()} for subset, of in self.boxes.items()},
        }  # fmt: skip

    def task(self, label: str, i: int, picture: Array) -> Taken:
        """One picture through one VAE, or ("") its own features."""
        name = self.pictures.names[i]
        if label == REFERENCE:
            return reference(picture, name, self.protocol, self.tools)
        boxes = {subset: of[name] for subset, of in self.boxes.items() if name in of}
        return measure(self.vaes[label], picture, name, self.protocol, self.tools, boxes)


Engine = Callable[[Evaluation, Iterable[tuple[str, int, Array]]], Iterator[tuple[str, int, Taken]]]
"""Does tasks (label, number and pixels of a picture) in any order, anywhere."""


def here(evaluation: Evaluation, tasks: Iterable[tuple[str, int, Array]]) -> Iterator[tuple[str, int, Taken]]:
    """Tasks one after the other, in this process."""
    for label, i, picture in tasks:
        yield label, i, evaluation.task(label, i, picture)


def run(
    evaluation: Evaluation,
    store: Store,
    numbers: Sequence[int],
    *,
    engine: Engine = here,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, str]:
    """Measures what is not there yet, of these pictures; their hashes by number.

    Args:
        progress: told how many of how many pairs of a VAE and a picture are there.

    Raises:
        PictureError: a picture can't be read.
        UsageError: its size does not fit the protocol.
    """
    keys = {REFERENCE: REFERENCE} if evaluation.tools.extractors else {}
    keys |= {label: vae.sha256 for label, vae in evaluation.vaes.items()}
    there = {label: store.rows(key).keys() for label, key in keys.items()}
    hashes: dict[int, str] = {}
    done, total = 0, len(keys) * len(numbers)

    def tasks() -> Iterator[tuple[str, int, Array]]:
        nonlocal done
        for i in numbers:
            picture = evaluation.pictures.read(i)
            evaluation.protocol.require(picture, evaluation.pictures.names[i])
            hashes[i] = pixels_sha256(picture)
            for label in keys:
                if hashes[i] in there[label]:
                    done += 1
                    progress(done, total)
                else:
                    yield label, i, picture

    for label, i, taken in engine(evaluation, tasks()):
        store.put(keys[label], hashes[i], taken)
        done += 1
        progress(done, total)
    return hashes


def results(evaluation: Evaluation, store: Store, hashes: Mapping[int, str]) -> dict[str, Any]:
    """Everything that was measured of these pictures, as plain values; see docs/evaluation.md.

    Raises:
        UsageError: there are too few pictures for a Fréchet distance.
    """
    numbers = sorted(hashes)
    names = evaluation.pictures.names
    sizes = {
        key: row for vae in evaluation.vaes.values() for key, row in store.rows(vae.sha256).items() if "height" in row
    }
    pictures = [
        {
            "name": names[i],
            "sha256": hashes[i],
            **{side: sizes.get(hashes[i], {}).get(side) for side in ("height", "width")},
        }
        for i in numbers
    ]
    used = [METRICS[key] for key in evaluation.tools.metrics]
    return {
        "calotype": __version__,
        "protocol": {**evaluation.protocol.to_dict(), "text": str(evaluation.protocol)},
        "pictures": pictures,
        "metrics": [
            {"key": m.key, "title": m.title, "unit": m.unit, "better": "higher" if m.higher else "lower"} for m in used
        ],
        "vaes": [_of_vae(evaluation, store, label, [hashes[i] for i in numbers]) for label in evaluation.vaes],
    }


def _of_vae(evaluation: Evaluation, store: Store, label: str, order: Sequence[str]) -> dict[str, Any]:
    vae = evaluation.vaes[label]
    known = store.rows(vae.sha256)
    rows = [(i, known[sha256]) for i, sha256 in enumerate(order)]
    good = [row for _, row in rows if "error" not in row]
    hidden = ("latents", "encode_seconds", "decode_seconds")
    subsets: dict[str, list[dict[str, float]]] = {}
    for row in good:
        for subset, parts in row.get("subsets", {}).items():
            subsets.setdefault(subset, []).extend(parts)
    return {
        "label": label,
        "weights": vae.name,
        "sha256": vae.sha256,
        "network": vae.config.to_dict(),
        "parameters": sum(p.numel() for p in vae.module.parameters()),
        "factor": vae.factor,
        "channels": vae.latent_channels,
        "rows": [{"picture": i, **{k: v for k, v in row.items() if k not in hidden}} for i, row in rows],
        "means": _means(good, evaluation.tools.metrics),
        "subsets": {subset: _means(parts, evaluation.tools.metrics) for subset, parts in subsets.items()},
        "distances": _distances(evaluation, store, vae.sha256, [order[i] for i, row in rows if "error" not in row]),
        "latents": _latents(good),
        "speed": _speed(good),
        "memory": _memory(vae, good, evaluation.tools.memory),
    }


def _means(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """Means with 95% intervals; a picture that comes back unchanged has no finite PSNR and is only counted."""
    found: dict[str, dict[str, float]] = {}
    for key in metrics:
        values = [row[key] for row in rows if key in row]
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            continue
        mean = statistics.fmean(finite)
        interval = mean_interval(finite) if len(finite) > 1 else None
        found[key] = {
            "mean": mean,
            "low": interval.low if interval else mean,
            "high": interval.high if interval else mean,
            "n": len(finite),
        }
    return found


def _distances(evaluation: Evaluation, store: Store, vae: str, order: Sequence[str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, extractor in evaluation.tools.extractors.items():
        before, after = (store.features(key, name) for key in (REFERENCE, vae))
        x, y = (torch.from_numpy(np.stack([of[sha256] for sha256 in order])) for of in (before, after))
        if len(order) <= extractor.width:
            raise UsageError(
                f"A Fréchet distance over {name} needs at least {extractor.width + 1:,} pictures, not {len(order):,}; "
                f"give more, or leave {name} out."
            )
        gaussians = Gaussian(extractor.width), Gaussian(extractor.width)
        for gaussian, features in zip(gaussians, (x, y), strict=True):
            gaussian.add(features)
        kernel = kernel_distance(x, y)
        found[f"fid_{name}"] = {"value": frechet_distance(*gaussians), "n": len(order)}
        found[f"kid_{name}"] = {"value": kernel.value if kernel.mean is None else kernel.mean, "n": len(order)}
        if kernel.std is not None:
            found[f"kid_{name}"]["std"] = kernel.std
    return found


def _latents(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and std of each channel, and the one scale and shift for all, of all pictures together."""
    count = sum(row["latents"]["count"] for row in rows)
    if not count:
        return {}
    mean = sum(row["latents"]["count"] * np.array(row["latents"]["mean"]) for row in rows) / count
    m2 = sum(
        np.array(row["latents"]["m2"]) + row["latents"]["count"] * (np.array(row["latents"]["mean"]) - mean) ** 2
        for row in rows
    )
    variance = m2 / count
    shift = float(mean.mean())
    spread = math.sqrt(float((variance + (mean - shift) ** 2).mean()))
    return {
        "mean": mean.tolist(),
        "std": np.sqrt(variance).tolist(),
        "scaling_factor": 1 / spread if spread else None,
        "shift_factor": shift,
    }


def _speed(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians over pictures."""
    found: dict[str, float] = {}
    for way in DIRECTIONS if rows else ():
        seconds = [row[f"{way}_seconds"] / (row["height"] * row["width"]) for row in rows]
        found[f"{way}_seconds_per_megapixel"] = 1e6 * statistics.median(seconds)
    return found


def _memory(vae: VAE, rows: Sequence[Mapping[str, Any]], memory: int | str | None) -> dict[str, int]:
    """Bytes of the weights, and what the plan of the largest picture takes beside them."""
    found = {"weights_bytes": sum(p.numel() * p.element_size() for p in vae.module.parameters())}
    if rows:
        largest = max(rows, key=lambda row: int(row["height"] * row["width"]))
        height, width = (-(-largest[side] // vae.factor) * vae.factor for side in ("height", "width"))
        with suppress(MemoryLimitError):  # less is free by now
            plans = [vae.engine.plan(way, height, width, memory) for way in DIRECTIONS]
            found["planned_peak_bytes"] = max(plan.peak for plan in plans)
    return found
