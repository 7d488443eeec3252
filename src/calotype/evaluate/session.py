"""A whole evaluation: from names of weights and a place with pictures to figures, files and a page."""

from __future__ import annotations

import json
import math
import platform
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from calotype import __version__
from calotype.errors import CalotypeWarning, UsageError
from calotype.evaluate.compare import Engine, Evaluation, Pictures, Seen, here, results, run
from calotype.evaluate.measure import METRICS, Array, Taken, encode
from calotype.evaluate.report import Crop, write_evaluation, write_sheet
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
) -> dict[str, Any]:
    """Measures VAEs on pictures, and writes REPORT/results.json, results.csv and index.html: all three, or none.

    What was measured before is not measured again: a stopped evaluation goes on, and VAEs or pictures may be added.

    Args:
        data: a folder, archive or dataset; see `sources.open_source`.
        every, limit: see `chosen`.
        part: "2/4" measures the second quarter of the pictures only, and writes no report.

    Returns:
        What results.json holds; of a part, what was done of it (see docs/evaluation.md).

    Warns:
        CalotypeWarning: the protocol enlarges pictures.

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
    evaluation.require(numbers)
    if part:
        which, of = shard(part)
        name, numbers = f"{which}-of-{of}", numbers[which - 1 :: of]
    store = Store(report, evaluation.settings(), name)
    shown = _Shown(evaluation)
    measured: Counter[str] = Counter()

    def watch(label: str, i: int, taken: Taken) -> None:
        measured[label] += "error" not in taken.row
        shown.add(label, i, taken)

    try:
        seen = run(evaluation, store, numbers, engine=doing, progress=progress, watch=watch)
        found = _of_part(evaluation, store, seen, part, measured) if part else results(evaluation, store, seen)
    finally:
        store.close()
    for text in found["warnings"]:
        warnings.warn(text, CalotypeWarning, stacklevel=2)
    if part:
        return found
    found = {**about(), **found}
    _write(report, found, list(crops(evaluation, found, numbers, shown.crops)))
    return found


def _of_part(
    evaluation: Evaluation, store: Store, seen: Seen, part: str, measured: Mapping[str, int]
) -> dict[str, Any]:
    """What a part holds by now, and how to go on."""
    names, (which, of) = evaluation.pictures.names, shard(part)
    failures: list[dict[str, str | None]] = [
        {"vae": None, "picture": names[i], "error": error} for i, error in seen.unread.items()
    ]
    vaes = []
    for label, vae in evaluation.vaes.items():
        known = store.rows(vae.sha256)
        errors = {i: known[key]["error"] for i, key in seen.hashes.items() if "error" in known[key]}
        failures += [{"vae": label, "picture": names[i], "error": error} for i, error in errors.items()]
        rows = len(seen.hashes) - len(errors)
        vaes.append({"label": label, "sha256": vae.sha256, "rows": rows, "measured": measured[label]})
    beside = {n: store.path.with_name(f"measured-{n}-of-{of}.sqlite") for n in range(1, of + 1) if n != which}
    others = [f"{n}/{of}" for n, path in beside.items() if not path.exists()]
    missing = f"with --shard {', '.join(others)}, then " if others else ""
    return {
        "calotype": __version__,
        "shard": part,
        "protocol": {**evaluation.protocol.to_dict(), "text": str(evaluation.protocol)},
        "pictures": len(seen.numbers),
        "vaes": vaes,
        "failures": failures,
        "warnings": seen.warnings(evaluation),
        "file": str(store.path),
        "next": f"Run the same command {missing}without --shard, which makes the report.",
    }


def about() -> dict[str, Any]:
    """When and with what."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["calotype", *sys.argv[1:]],
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "numpy": np.__version__},
    }


def _write(report: Path, found: dict[str, Any], crops: Sequence[Crop]) -> None:
    """All are written beside their places before the first takes its own; results.json, by which others go, is last."""
    with (
        atomic_path(report / "results.json") as figures,
        atomic_path(report / "results.csv") as sheet,
        atomic_path(report / "index.html") as page,
    ):
        write_evaluation(found, crops, page)
        write_sheet(found, sheet)
        figures.write_text(json.dumps(plain(found), indent=1) + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """Values as JSON knows them: what is infinite becomes text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


class _Shown:
    """Crops of the worst pictures so far, made while what was decoded is at hand."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._metric = METRICS[_telling(evaluation.tools.metrics)]
        self._at = -1
        self._of: dict[str, Taken] = {}
        self._kept: dict[int, tuple[float, Crop]] = {}

    def add(self, label: str, i: int, taken: Taken) -> None:
        """What one VAE gave; pictures come one after the other, or else there are no crops of them."""
        if i != self._at:
            self._at, self._of = i, {}
        self._of[label] = taken
        made = {one: self._of[one].levels for one in self._evaluation.vaes if one in self._of}
        after = {one: levels[1] for one, levels in made.items() if levels}
        failed = [one for one in made if "error" in self._of[one].row]
        if not after or len(after) + len(failed) < len(self._evaluation.vaes):
            return
        before = next(levels[0] for levels in made.values() if levels)
        values = [self._of[one].row[self._metric.key] for one in after if self._metric.key in self._of[one].row]
        if not values:
            return
        self._of = {}
        bad = _badness(values, self._metric.higher)
        if len(self._kept) >= SHOWN:
            least = min(self._kept, key=lambda one: self._kept[one][0], default=None)
            if least is None or bad < self._kept[least][0]:
                return
            del self._kept[least]
        self._kept[i] = bad, _crop(self._evaluation.pictures.names[i], before, after)

    @property
    def crops(self) -> dict[int, Crop]:
        """By the pictures' numbers."""
        return {i: crop for i, (_, crop) in self._kept.items()}


def crops(
    evaluation: Evaluation, found: Mapping[str, Any], numbers: Sequence[int], known: Mapping[int, Crop]
) -> Iterator[Crop]:
    """Of the pictures that come back worst, the parts that do so: as known, by number, or else decoded once more."""
    failed = {(one["label"], row["picture"]) for one in found["vaes"] for row in one["rows"] if "error" in row}
    for i in _worst(found)[:SHOWN]:
        if numbers[i] in known:
            yield known[numbers[i]]
            continue
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


def _telling(metrics: Sequence[str]) -> str:
    """The first metric of how things look, or else the first there is."""
    return next((key for key in metrics if "lpips" in key), metrics[0])


def _badness(values: Sequence[float], higher: bool) -> float:
    """Of a picture, by what VAEs gave for it: more is worse."""
    return (-1.0 if higher else 1.0) * sum(values) / len(values)


def _worst(found: Mapping[str, Any]) -> list[int]:
    """Pictures, the worst first."""
    telling = _telling([metric["key"] for metric in found["metrics"]])
    values: dict[int, list[float]] = {}
    for vae in found["vaes"]:
        for row in vae["rows"]:
            if telling in row:
                values.setdefault(row["picture"], []).append(row[telling])
    return sorted(values, key=lambda i: -_badness(values[i], METRICS[telling].higher))


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
