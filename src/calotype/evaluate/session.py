"""A whole evaluation: from names of weights and a place with pictures to figures, files and a page."""

from __future__ import annotations

import csv
import json
import math
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from calotype.errors import UsageError
from calotype.evaluate.compare import Engine, Evaluation, Pictures, here, results, run
from calotype.evaluate.measure import Array, encode
from calotype.evaluate.report import Crop, write_evaluation
from calotype.evaluate.setup import Setup
from calotype.evaluate.store import Store
from calotype.files import atomic_path
from calotype.pixels import to_uint8
from calotype.sources import open_source

SHOWN = 24  # pictures at most whose crops the page shows
SIDE = 320  # pixels of a crop


def chosen(pictures: Pictures, every: int, limit: int) -> list[int]:
    """Every n-th picture, from the first on, and at most `limit` of them (0: all)."""
    numbers = list(range(0, len(pictures), every))
    return numbers[:limit] if limit else numbers


def shard(text: str) -> tuple[int, int]:
    """ "2/4" -> the second of four parts.

    Raises:
        UsageError: if it is no such thing.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--shard {text}: give which of how many parts, as in 2/4.")
    return int(found[1]), int(found[2])


def evaluate(
    data: Path,
    setup: Setup,
    report: Path,
    *,
    every: int = 1,
    limit: int = 0,
    part: str = "",
    engine: Literal["local", "ray"] = "local",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any] | None:
    """Measures VAEs on pictures, and writes REPORT/results.json, results.csv and index.html.

    What was measured before is not measured again: a stopped evaluation goes on, and VAEs or pictures may be added.

    Args:
        data: a folder, archive or dataset; see `sources.open_source`.
        every, limit: see `chosen`.
        part: "2/4" measures the second quarter of the pictures only, and writes no report.

    Returns:
        What results.json holds; None for a part.

    Raises:
        UsageError, WeightsError, PictureError, StorageError: see the functions called.
    """
    pictures = open_source(data.name, data.parent)
    numbers = chosen(pictures, every, limit)
    evaluation = setup.build(pictures)
    doing: Engine = here
    if engine == "ray":
        from calotype.evaluate.cluster import on_ray

        doing = on_ray(setup)
    name = ""
    if part:
        which, of = shard(part)
        name, numbers = f"{which}-of-{of}", numbers[which - 1 :: of]
    store = Store(report, evaluation.settings(), name)
    try:
        hashes = run(evaluation, store, numbers, engine=doing, progress=progress)
        if part:
            return None
        found = {**about(evaluation), **results(evaluation, store, hashes)}
    finally:
        store.close()
    _write(report, found)
    write_evaluation(found, list(crops(evaluation, found, numbers)), report / "index.html")
    return found


def about(evaluation: Evaluation) -> dict[str, Any]:
    """When, with what and on what."""
    device = next(iter(evaluation.vaes.values())).device
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["calotype", *sys.argv[1:]],
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "numpy": np.__version__},
        "device": f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device),
    }


def _write(report: Path, found: Mapping[str, Any]) -> None:
    with atomic_path(report / "results.json") as temporary:
        temporary.write_text(json.dumps(_plain(found), indent=1) + "\n", encoding="utf-8")
    keys = [metric["key"] for metric in found["metrics"]]
    with atomic_path(report / "results.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["vae", "picture", *keys, "error"])
        for vae in found["vaes"]:
            for row in vae["rows"]:
                name = found["pictures"][row["picture"]]["name"]
                table.writerow([vae["label"], name, *(row.get(key, "") for key in keys), row.get("error", "")])


def _plain(value: Any) -> Any:
    """Values as JSON knows them: what is infinite becomes text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def crops(evaluation: Evaluation, found: Mapping[str, Any], numbers: Sequence[int]) -> Iterator[Crop]:
    """Of the pictures that come back worst, the parts that do so: decoded once more."""
    failed = {(one["label"], row["picture"]) for one in found["vaes"] for row in one["rows"] if "error" in row}
    for i in _worst(found)[:SHOWN]:
        picture = evaluation.pictures.read(numbers[i])
        x = evaluation.protocol.prepare(picture)
        before = to_uint8(x)
        after = {}
        for label, vae in evaluation.vaes.items():
            if (label, i) in failed:
                continue
            _, z = encode(vae, x, evaluation.protocol, evaluation.tools)
            after[label] = to_uint8(vae.decode(z, (x.shape[1], x.shape[2]), memory=evaluation.tools.memory)[0].cpu())
        if after:
            yield _crop(found["pictures"][i]["name"], before, after)


def _worst(found: Mapping[str, Any]) -> list[int]:
    """Pictures by their mean over VAEs of the first metric of how things look, or else of the first there is."""
    metric = next((m for m in found["metrics"] if "lpips" in m["key"]), found["metrics"][0])
    sums: dict[int, list[float]] = {}
    for vae in found["vaes"]:
        for row in vae["rows"]:
            if metric["key"] in row:
                sums.setdefault(row["picture"], []).append(row[metric["key"]])
    better = 1.0 if metric["better"] == "higher" else -1.0
    return sorted(sums, key=lambda i: better * sum(sums[i]) / len(sums[i]))


def _crop(name: str, before: torch.Tensor, after: Mapping[str, torch.Tensor]) -> Crop:
    """Where the VAEs together err most."""
    error = sum((one.float() - before.float()).square().sum(0) for one in after.values())
    assert isinstance(error, torch.Tensor)
    height, width = (min(SIDE, n) for n in error.shape)
    sums = torch.nn.functional.avg_pool2d(error[None, None], (height, width), stride=8)[0, 0]
    top, left = (8 * int(n) for n in divmod(int(sums.argmax()), sums.shape[1]))

    def part(one: torch.Tensor) -> Array:
        return np.ascontiguousarray(one[:, top : top + height, left : left + width].permute(1, 2, 0).numpy())

    return Crop(
        picture=name, box=(top, left, height, width), original=part(before),
        reconstructions={label: part(one) for label, one in after.items()},
    )  # fmt: skip
