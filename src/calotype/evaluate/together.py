"""What was measured of several VAEs, put together as one result."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from torch import Tensor

from calotype import __version__
from calotype.errors import MemoryLimitError, PictureError
from calotype.evaluate.bootstrap import mean_interval
from calotype.evaluate.compare import DIRECTIONS, Evaluation, Seen
from calotype.evaluate.measure import ALL_METRICS, place
from calotype.evaluate.sets import distances
from calotype.evaluate.store import Store
from calotype.latents import space_of
from calotype.steps import Direction
from calotype.vae import VAE


def results(evaluation: Evaluation, store: Store, seen: Seen) -> dict[str, Any]:
    """Everything that was measured of these pictures, as plain values; see docs/evaluation.md.

    Args:
        seen: what `run` returned.

    Raises:
        PictureError: none of the pictures can be read.
    """
    if seen.unread and not seen.hashes:
        raise PictureError(next(iter(seen.unread.values())))
    numbers = seen.numbers
    order = [evaluation.key(i, seen.hashes[i]) if i in seen.hashes else None for i in numbers]
    errors = [{"error": seen.unread.get(i, "")} for i in numbers]
    names = evaluation.pictures.names
    sizes = {key: row for kept in evaluation.keys.values() for key, row in store.rows(kept).items() if "height" in row}
    pictures = [
        {
            "name": names[i],
            "sha256": seen.hashes.get(i),
            **{side: sizes.get(key or "", {}).get(side) for side in ("height", "width")},
            "enlarged": i in seen.enlarged,
        }
        for i, key in zip(numbers, order, strict=True)
    ]
    tools = evaluation.tools
    used = [ALL_METRICS[key] for key in evaluation.metrics]
    rows = {label: _rows(store, kept, order, errors) for label, kept in evaluation.keys.items()}
    places = [Counter(_where(row) for row in of if "error" not in row) for of in rows.values()]
    return {
        "calotype": __version__,
        "protocol": {**evaluation.protocol.to_dict(), "text": evaluation.text},
        "channels": evaluation.channels,
        **({} if evaluation.encoder is None else {"encoder": _of_encoder(evaluation.encoder, next(iter(rows)))}),
        "pictures": pictures,
        "metrics": [
            {
                "key": m.key,
                "title": m.title,
                "unit": m.unit,
                "better": "nearest" if m.ideal is not None else "higher" if m.higher else "lower",
                **({} if m.ideal is None else {"ideal": m.ideal}),
                **({"absent": m.absent} if m.absent else {"least": m.least}),
                **({"sha256": tools.sha256[m.key]} if m.key in tools.sha256 else {}),
            }
            for m in used
        ],
        "extractors": {
            name: {
                "weights": one.weights,
                "sha256": tools.sha256.get(name),
                "resize": one.resize,
                "width": one.width,
            }
            for name, one in tools.extractors.items()
        },
        "device": _everywhere(places),
        "warnings": seen.warnings(evaluation, store),
        "vaes": [_of_vae(evaluation, store, label, order, of, _common(places)) for label, of in rows.items()],
    }


def _of_encoder(vae: VAE, label: str) -> dict[str, Any]:
    """The VAE whose latents were decoded, which is the first of the decoders too."""
    space = space_of(vae.loaded.format)
    return {"label": label, "weights": vae.name, "sha256": vae.sha256, "space": space}


def _rows(
    store: Store, vae: str, order: Sequence[str | None], errors: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Of pictures by their hashes; where one has none, `errors` has its row."""
    known = store.measured(vae)
    return [known[key] if key else error for key, error in zip(order, errors, strict=True)]


def _where(row: Mapping[str, Any]) -> str:
    return str(row.get("where", "a device that was not recorded"))


def _everywhere(places: Sequence[Counter[str]]) -> str:
    """Where rows of VAEs were measured, each VAE's by place: one place, or all of them with their rows."""
    found: Counter[str] = sum(places, Counter())
    if len(found) < 2:
        return next(iter(found), "")
    return "mixed: " + "; ".join(f"{name} ({n:,} of {found.total():,})" for name, n in sorted(found.items()))


def _common(places: Sequence[Counter[str]]) -> str | None:
    """Where every VAE has rows, so that their speeds can be compared: the place with the most of them; None if none."""
    found: Counter[str] = sum(places, Counter())
    common = [name for name in sorted(found) if all(name in of for of in places if of)]
    return max(common, key=lambda name: found[name], default=None)


def _of_vae(
    evaluation: Evaluation,
    store: Store,
    label: str,
    order: Sequence[str | None],
    rows: Sequence[dict[str, Any]],
    common: str | None,
) -> dict[str, Any]:
    vae = evaluation.vaes[label]
    alone = evaluation.encoder is not None and vae is not evaluation.encoder  # of which only the decoder is used
    good = [row for row in rows if "error" not in row]
    measured = [key for key, row in zip(order, rows, strict=True) if key and "error" not in row]
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
        "parameters": sum(p.numel() for p in _weights(vae, alone)),
        **({"enlarges": vae.enlarges} if vae.enlarges != 1 else {}),
        "factor": vae.factor,
        "channels": vae.latent_channels,
        "picture_channels": vae.picture_channels,
        "rows": [{"picture": i, **{k: v for k, v in row.items() if k not in hidden}} for i, row in enumerate(rows)],
        "means": _means(good, evaluation.metrics),
        "subsets": {subset: _means(parts, evaluation.metrics) for subset, parts in subsets.items()},
        "distances": distances(evaluation.tools, store, evaluation.keys[label], measured),
        "latents": _latents(good),
        "speed": _speed(good, common, DIRECTIONS[1:] if alone else DIRECTIONS),
        "memory": _memory(vae, good, evaluation.tools.memory, alone),
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


def _speed(
    rows: Sequence[Mapping[str, Any]], common: str | None, ways: Sequence[Direction] = DIRECTIONS
) -> dict[str, Any]:
    """Medians over the pictures that were measured at one place: this one, or else where most of them were.

    Of an even number the lower one: of two pictures the first may have taken ten times as long, as first ones do.
    """
    if not rows:
        return {}
    at = common or Counter(_where(row) for row in rows).most_common(1)[0][0]
    there = [row for row in rows if _where(row) == at]
    found: dict[str, Any] = {"device": at, "n": len(there)}
    for way in ways:
        seconds = [row[f"{way}_seconds"] / (row["height"] * row["width"]) for row in there]
        found[f"{way}_seconds_per_megapixel"] = 1e6 * statistics.median_low(seconds)
    return found


def _weights(vae: VAE, alone: bool) -> list[Tensor]:
    """Its parameters, or (alone) those of its decoder."""
    sides = {"encoder": "encoder", **vae.module.sides}
    named = vae.module.named_parameters()
    return [p for name, p in named if not alone or sides.get(name.partition(".")[0]) != "encoder"]


def _memory(vae: VAE, rows: Sequence[Mapping[str, Any]], memory: int | str | None, alone: bool) -> dict[str, Any]:
    """Bytes of the weights, and what the plan of the largest picture takes beside them, by a plan for here.

    Args:
        alone: of the decoder.
    """
    found: dict[str, Any] = {
        "device": place(vae.device, memory),
        "weights_bytes": sum(p.numel() * p.element_size() for p in _weights(vae, alone)),
    }
    if rows:
        largest = max(rows, key=lambda row: int(row["height"] * row["width"]))
        height, width = (-(-largest[side] // vae.factor) * vae.factor for side in ("height", "width"))
        with suppress(MemoryLimitError):  # less is free by now
            n = vae.enlarges
            plans = [vae.engine_of("decode").plan("decode", n * height, n * width, memory)]
            plans += [] if alone else [vae.engine_of("encode").plan("encode", height, width, memory)]
            found["planned_peak_bytes"] = max(plan.peak for plan in plans)
    return found
