"""A whole evaluation: from names of weights and a place with pictures to figures, files and a page."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from calotype import __version__
from calotype.apart import require_apart, weights_files
from calotype.errors import CalotypeWarning, LatentsError, StorageError, UsageError
from calotype.evaluate.compare import Engine, Evaluation, Pictures, Seen, here, run
from calotype.evaluate.measure import ALL_METRICS, FAILURES, Array, Metric, Original, Taken, decoded, looks
from calotype.evaluate.report import Crop, evaluation_page, evaluation_sheet
from calotype.evaluate.setup import Setup
from calotype.evaluate.store import Store
from calotype.evaluate.together import results
from calotype.files import writing_all
from calotype.locks import lock
from calotype.pixels import to_channels, to_uint8
from calotype.previews import find_factors, latents_rgb
from calotype.sources import files_of, open_source
from calotype.vae import VAE

REPORT = ("index.html", "results.csv", "results.json")  # files of a report
SHOWN = 24  # pictures at most whose crops the page shows
SIDE = 320  # pixels of a crop


def chosen(pictures: Pictures, every: int, limit: int) -> list[int]:
    """Numbers of each `every`-th picture, from the first on, and at most `limit` of them (0: all)."""
    numbers = list(range(0, len(pictures), every))
    return numbers[:limit] if limit else numbers


def shard(text: str) -> tuple[int, int]:
    """The text "2/4" -> (2, 4), the second of four parts.

    Raises:
        UsageError: if it is no such thing.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--shard {text}: give which of how many parts, as in 2/4.")
    return int(found[1]), int(found[2])


def evaluate(
    data: str | Path,
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
        data: a folder, archive or dataset, here or at an address; see `sources.open_source`.
        every, limit: see `chosen`.
        part: "2/4" measures the second quarter of the pictures only, and writes no report.

    Returns:
        What results.json holds; of a part, what was done of it (see docs/evaluation.md).

    Warns:
        CalotypeWarning: the protocol enlarges pictures, or files of the place are left out.

    Raises:
        UsageError, WeightsError, PictureError, StorageError: see the functions called.
    """
    kept = [report / name for name in (*REPORT, *(path.name for path in report.glob("measured*.sqlite")))]
    require_apart(kept, chain(files_of(data), weights_files(*setup.vaes, *setup.decoders)), "--report")
    pictures = open_source(data)
    left_out = pictures.left_out
    if left_out:
        warnings.warn(left_out.sentence, CalotypeWarning, stacklevel=2)
    numbers = chosen(pictures, every, limit)
    evaluation = setup.build(pictures, len(numbers))
    if evaluation.channels == 4:
        evaluation = replace(evaluation, pictures=pictures.with_alpha())
    doing: Engine = here
    if engine == "ray":
        from calotype.evaluate.cluster import on_ray

        doing = on_ray(setup)
    evaluation.require(numbers)
    parts = _parts(numbers, part)
    if part:
        numbers = parts[part]
    shown = _Shown(evaluation)
    measured: Counter[str] = Counter()

    def watch(label: str, i: int, taken: Taken) -> None:
        measured[label] += "error" not in taken.row
        shown.add(label, i, taken)

    # parts may be measured side by side, each into a file of its own
    name, told = (f"-{part.replace('/', '-of-')}", f"an evaluation of part {part}") if part else ("", "an evaluation")
    store = Store(report, evaluation.settings(), name[1:])
    with closing(store), lock(report / f".calotype-measured{name}.lock", told, "give another --report"):
        seen = run(evaluation, store, numbers, engine=doing, progress=progress, watch=watch)
        found = _of_part(evaluation, store, seen, parts, part, measured) if part else results(evaluation, store, seen)
        for text in found["warnings"]:
            warnings.warn(text, CalotypeWarning, stacklevel=2)
        if left_out:
            found["warnings"].insert(0, left_out.sentence)
        found["left_out"] = left_out.to_dict()
        if part:
            return found
        found = {**about(), "engine": engine, **found}
        _write(report, found, list(crops(evaluation, found, numbers, shown.crops)))
    return found


def _parts(numbers: list[int], part: str) -> dict[str, list[int]]:
    """Pictures of this part and of all beside it; nothing without a part."""
    if not part:
        return {}
    _, of = shard(part)
    return {f"{n}/{of}": numbers[n - 1 :: of] for n in range(1, of + 1)}


def _work(evaluation: Evaluation, numbers: Sequence[int]) -> str:
    """What a part has to do, as a hash: these pictures, VAEs and features."""
    vaes = sorted(evaluation.keys.values())
    features = sorted(map(evaluation.tools.kept, evaluation.tools.extractors))
    pictures = [evaluation.pictures.names[i] for i in numbers]
    return hashlib.sha256(json.dumps([vaes, features, pictures]).encode()).hexdigest()


def _of_part(
    evaluation: Evaluation,
    store: Store,
    seen: Seen,
    parts: Mapping[str, Sequence[int]],
    part: str,
    measured: Mapping[str, int],
) -> dict[str, Any]:
    """Notes that a part came to its end: what it holds by now, and how to go on."""
    store.finish(_work(evaluation, parts[part]))
    names = evaluation.pictures.names
    keys = {i: evaluation.key(i, sha256) for i, sha256 in seen.hashes.items()}
    failures: list[dict[str, str | None]] = [
        {"vae": None, "picture": names[i], "error": error} for i, error in seen.unread.items()
    ]
    vaes = []
    for label, vae in evaluation.vaes.items():
        known = store.rows(evaluation.keys[label])
        errors = {i: known[key]["error"] for i, key in keys.items() if "error" in known[key]}
        failures += [{"vae": label, "picture": names[i], "error": error} for i, error in errors.items()]
        rows = len(seen.hashes) - len(errors)
        vaes.append({"label": label, "sha256": vae.sha256, "rows": rows, "measured": measured[label]})
    others = [one for one, of in parts.items() if not store.finished(one.replace("/", "-of-"), _work(evaluation, of))]
    missing = f"with --shard {', '.join(others)}, then " if others else ""
    return {
        "calotype": __version__,
        "shard": part,
        "protocol": {**evaluation.protocol.to_dict(), "text": evaluation.text},
        "pictures": len(seen.numbers),
        "vaes": vaes,
        "failures": failures,
        "warnings": seen.warnings(evaluation, store),
        "file": str(store.path),
        "next": f"Run the same command {missing}without --shard, which makes the report.",
    }


def about() -> dict[str, Any]:
    """When and with what."""
    return {
        "calotype": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["calotype", *sys.argv[1:]],
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "numpy": np.__version__},
    }


def _write(report: Path, found: dict[str, Any], crops: Sequence[Crop]) -> None:
    """All or none; results.json, which says that there is a report, comes last.

    Raises:
        StorageError: the disk refuses them.
    """
    numbers = (json.dumps(plain(found), indent=1) + "\n").encode()
    contents = (evaluation_page(found, crops), evaluation_sheet(found), numbers)
    try:
        with writing_all([report / name for name in REPORT]) as files:
            for file, content in zip(files, contents, strict=True):
                file.write(content)
    except StorageError as error:
        said = str(error).removesuffix(".")
        raise StorageError(f"{said}; what was measured is kept, so the same command goes on from there.") from None


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
        self._metric = ALL_METRICS[_telling(evaluation.metrics)]
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
        latents = {one: z for one in after if (z := self._of[one].latents) is not None}
        values = [self._of[one].row[self._metric.key] for one in after if self._metric.key in self._of[one].row]
        if not values:
            return
        self._of = {}
        bad = _badness(values, self._metric)
        if len(self._kept) >= SHOWN:
            least = min(self._kept, key=lambda one: self._kept[one][0], default=None)
            if least is None or bad < self._kept[least][0]:
                return
            del self._kept[least]
        crop = _crop(self._evaluation.pictures.names[i], before, after)
        self._kept[i] = bad, replace(crop, latents=_previews(self._evaluation, latents, crop.box))

    @property
    def crops(self) -> dict[int, Crop]:
        """By the pictures' numbers."""
        return {i: crop for i, (_, crop) in self._kept.items()}


def crops(
    evaluation: Evaluation, found: Mapping[str, Any], numbers: Sequence[int], known: Mapping[int, Crop]
) -> Iterator[Crop]:
    """Of the pictures that come back worst, the parts that do so: as known, by number, or else decoded once more.

    Args:
        found: the results, as `results` gives them.
        numbers: of the pictures that were measured.
        known: crops that were made meanwhile.
    """
    failed = {(one["label"], row["picture"]) for one in found["vaes"] for row in one["rows"] if "error" in row}
    for i in _worst(found)[:SHOWN]:
        if numbers[i] in known:
            yield known[numbers[i]]
            continue
        after, latents = {}, {}
        with suppress(*FAILURES):  # by now; the figures are there
            original = evaluation.original(numbers[i], evaluation.pictures.read(numbers[i]))
            for label, vae in evaluation.vaes.items():
                if (label, i) not in failed:
                    with suppress(*FAILURES):
                        after[label], latents[label] = _decoded(evaluation, vae, original)
        if after:
            crop = _crop(found["pictures"][i]["name"], original.levels, after)
            yield replace(crop, latents=_previews(evaluation, latents, crop.box))


def _decoded(evaluation: Evaluation, vae: VAE, original: Original) -> tuple[torch.Tensor, torch.Tensor]:
    """A prepared picture after a VAE, uint8 [3, H, W], and the raw latents [C, h, w] between."""
    encoder, tools = evaluation.encoder, evaluation.tools
    encoded = original.encoded(encoder or vae, evaluation.protocol, tools, keep=encoder is not None)
    y = decoded(vae, original, encoded.latents, tools, encoder)
    return looks(to_channels(y.clamp(-1, 1), evaluation.channels)), encoded.latents[0].float().cpu()


def _telling(metrics: Sequence[str]) -> str:
    """The first metric of how things look, or else the first there is."""
    return next((key for key in metrics if "lpips" in key), metrics[0])


def _badness(values: Sequence[float], metric: Metric) -> float:
    """Of a picture, by what VAEs gave for it: more is worse."""
    return sum(map(metric.badness, values)) / len(values)


def _worst(found: Mapping[str, Any]) -> list[int]:
    """Pictures, the worst first."""
    telling = _telling([metric["key"] for metric in found["metrics"]])
    values: dict[int, list[float]] = {}
    for vae in found["vaes"]:
        for row in vae["rows"]:
            if telling in row:
                values.setdefault(row["picture"], []).append(row[telling])
    return sorted(values, key=lambda i: -_badness(values[i], ALL_METRICS[telling]))


def _sums(values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Sums of `size` rows each, from every eighth row on."""
    running = np.zeros((len(values) + 1, values.shape[1]), np.int64)
    np.cumsum(values, axis=0, out=running[1:])
    return np.asarray(running[size:][::8] - running[:-size][::8])


def _crop(name: str, before: torch.Tensor, after: Mapping[str, torch.Tensor]) -> Crop:
    """Where the VAEs together err most."""
    error = np.zeros(before.shape[1:], np.int64)
    for one in after.values():
        error += np.square(one.numpy().astype(np.int32) - before.numpy()).sum(0)
    height, width = (min(SIDE, n) for n in error.shape)
    sums = _sums(_sums(error, height).T, width).T
    top, left = (8 * int(n) for n in np.unravel_index(sums.argmax(), sums.shape))

    def part(one: torch.Tensor) -> Array:
        return np.ascontiguousarray(one[:, top : top + height, left : left + width].permute(1, 2, 0).numpy())

    return Crop(
        picture=name, box=(top, left, height, width), original=part(before),
        reconstructions={label: part(one) for label, one in after.items()},
    )  # fmt: skip


def _previews(
    evaluation: Evaluation, latents: Mapping[str, torch.Tensor], box: tuple[int, int, int, int]
) -> dict[str, Array]:
    """Latents that stand for a part of a picture, as RGB: of those VAEs that made them, where factors are known."""
    made = latents
    if evaluation.encoder is not None and latents:  # all are its own
        made = {next(iter(evaluation.vaes)): next(iter(latents.values()))}
    top, left, height, width = box
    found = {}
    for label, raw in made.items():
        vae = evaluation.encoder or evaluation.vaes[label]
        if vae.loaded.format is None:
            continue
        with suppress(LatentsError):
            factors = find_factors(vae.loaded.format, vae.sha256, vae.name)
            rgb = to_uint8(latents_rgb(raw, vae.loaded.format, factors))
            rows, columns = (
                slice(at // vae.factor, -(-(at + n) // vae.factor)) for at, n in ((top, height), (left, width))
            )
            found[label] = np.ascontiguousarray(rgb[:, rows, columns].permute(1, 2, 0).numpy())
    return found
