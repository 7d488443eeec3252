"""Any number of VAEs on the same pictures: measured, kept, and put together as one result."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol as Interface

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from calotype import __version__
from calotype.engine.memory import give_back
from calotype.errors import MemoryLimitError, PictureError, UsageError
from calotype.evaluate.alpha import APART
from calotype.evaluate.bootstrap import mean_interval
from calotype.evaluate.decoders import rows_key
from calotype.evaluate.measure import ALL_METRICS, Box, Original, Taken, Tools, measure, pixels_sha256, place, reference
from calotype.evaluate.protocol import Protocol
from calotype.evaluate.sets import distances, require_enough
from calotype.evaluate.store import REFERENCE, Store
from calotype.latents import space_of
from calotype.pixels.channels import NAMES
from calotype.steps import Direction
from calotype.vae import VAE

Array = NDArray[np.uint8]  # a picture: [H, W, P], levels


DIRECTIONS: tuple[Direction, ...] = ("encode", "decode")  # in the order in which they are timed
KEPT = 2**21  # pixels of a picture at most of which features are kept for several VAEs
LISTED = 5  # names at most in a sentence


class Pictures(Interface):
    """Pictures by number, uint8 [H, W, 3] or with alpha [H, W, 4]; see `calotype.sources.Pictures`."""

    @property
    def names(self) -> Sequence[str]:
        """What they are called."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> Array:
        """The picture with number `i`: [H, W, P], uint8."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured, on what, and how.

    Attributes:
        vaes: by their labels, in the order in which they are shown; where there is an encoder, the decoders.
        encoder: the VAE whose latents all of `vaes` decode, of which it is the first; None: each its own.
        notices: what is to be said of the VAEs.
        pictures: all of them.
        protocol, tools: how it is measured, and with what.
        boxes: subset -> picture's name -> parts of it, in pixels of the picture as prepared.
    """

    vaes: Mapping[str, VAE]
    pictures: Pictures
    protocol: Protocol
    tools: Tools
    boxes: Mapping[str, Mapping[str, Sequence[Box]]] = field(default_factory=dict)
    encoder: VAE | None = None
    notices: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """In what pictures are compared: what all VAEs have, grey (1), RGB (3) or RGBA (4)."""
        return min(vae.picture_channels for vae in self.vaes.values())

    @cached_property
    def keys(self) -> dict[str, str]:
        """Under what rows of each VAE are kept, by label: they differ where figures do."""
        return {label: rows_key(self.encoder or vae, vae) for label, vae in self.vaes.items()}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of `tools` that any of the VAEs can have."""
        rgba = any(vae.picture_channels == 4 for vae in self.vaes.values())
        return tuple(key for key in self.tools.metrics if rgba or key not in APART)

    @property
    def text(self) -> str:
        """The protocol in words, and in what pictures are compared where that is not RGB."""
        compared = {1: ", in grey (luma)", 4: ", RGBA over white and over black"}
        through = (
            "" if self.encoder is None else f"latents of {next(iter(self.vaes))} through {len(self.vaes)} decoders, "
        )
        return f"{through}{self.protocol}{compared.get(self.channels, '')}"

    def settings(self) -> dict[str, Any]:
        """What decides the figures, beside VAEs, pictures and what else is measured of them."""
        return {
            "calotype": __version__,
            "protocol": self.protocol.to_dict(),
            "channels": self.channels,
            "metrics": list(self.tools.metrics),
            "weights": {key: self.tools.sha256[key] for key in self.tools.metrics if key in self.tools.sha256},
            "boxes": {subset: {k: list(map(list, v)) for k, v in of.items()} for subset, of in self.boxes.items()},
        }  # fmt: skip

    def require(self, numbers: Sequence[int]) -> None:
        """Checks, before pictures of these `numbers` are measured, that they are enough, and that sizes and boxes fit.

        Raises:
            UsageError: they do not.
        """
        widths = {name: extractor.width for name, extractor in self.tools.extractors.items()}
        require_enough(widths, self.tools.distances, len(numbers))
        names = self.pictures.names
        for i in numbers:
            parts = [(subset, box) for subset, of in self.boxes.items() for box in of.get(names[i], ())]
            if not parts and self.protocol.resize != "exact":
                continue
            try:
                picture = self.pictures.read(i)
            except PictureError:  # which is said when its turn comes
                continue
            self.protocol.require(picture, names[i])
            height, width = picture.shape[:2]
            for subset, box in parts:
                if box[2] > width or box[3] > height:
                    raise UsageError(
                        f"{names[i]} is {width} x {height} pixels, and the box {list(box)} of {subset} reaches beyond; "
                        f"give [left, top, right, bottom] inside it."
                    )

    def original(self, i: int, picture: Array) -> Original:
        """Picture `i`, [H, W, P], uint8, as prepared.

        Raises:
            UsageError: its size does not fit the protocol.
        """
        pixels = self.protocol.prepare(picture, self.pictures.names[i])
        return Original(pixels, self.channels, keep=len(self.vaes) > 1 and pixels[0].numel() <= KEPT)

    def task(self, label: str, i: int, original: Original) -> Taken:
        """Picture `i` through the VAE that is called `label`, or ("") its own features."""
        try:
            if label == REFERENCE:
                return reference(original, self.tools)
            return measure(self.vaes[label], original, self.protocol, self.tools, self._parts(i), self.encoder)
        finally:
            give_back()  # a large picture's maps are not to lie beside what the next one takes

    def key(self, i: int, sha256: str) -> str:
        """Under what rows of picture `i` are kept: a hash of its pixels' `sha256` and of parts compared alone."""
        parts = self._parts(i)
        return hashlib.sha256(f"{sha256} {json.dumps(parts)}".encode()).hexdigest() if parts else sha256

    def _parts(self, i: int) -> dict[str, Sequence[Box]]:
        name = self.pictures.names[i]
        return {subset: of[name] for subset, of in self.boxes.items() if name in of}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Pictures of a run, by their numbers.

    Attributes:
        hashes: of those that could be read.
        unread: why others could not.
        enlarged: width and height of those that the protocol makes larger.
    """

    hashes: Mapping[int, str]
    unread: Mapping[int, str] = field(default_factory=dict)
    enlarged: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def numbers(self) -> list[int]:
        """All, in their order."""
        return sorted({*self.hashes, *self.unread})

    def warnings(self, evaluation: Evaluation, store: Store) -> list[str]:
        """What a reader of the figures should know, in sentences."""
        found, names, protocol = [*evaluation.notices], evaluation.pictures.names, evaluation.protocol
        kinds = {label: NAMES[vae.picture_channels] for label, vae in evaluation.vaes.items()}
        if len(set(kinds.values())) > 1:
            least = NAMES[evaluation.channels]
            fewest = ", ".join(label for label, kind in kinds.items() if kind == least)
            found.append(
                f"All VAEs are compared in {least}, for the pictures of {fewest} have no more: figures of the others "
                f"say nothing of the rest of theirs."
            )
            if 4 in (vae.picture_channels for vae in evaluation.vaes.values()):
                found.append(
                    "VAEs of RGBA got the same pictures as the others, over white and opaque: their errors of alpha "
                    "say how far from opaque it came back."
                )
        if self.enlarged:
            sizes = [f"{names[i]} ({w} x {h})" for i, (w, h) in sorted(self.enlarged.items())]
            found.append(
                f"The protocol {protocol.name} enlarged {len(sizes):,} of {len(self.numbers):,} pictures, "
                f"which have a side shorter than {protocol.size} pixels: {_listed(sizes)}."
            )
        originals = store.rows(REFERENCE) if evaluation.tools.extractors else {}
        errors = {i: originals.get(evaluation.key(i, key), {}).get("error") for i, key in self.hashes.items()}
        if failed := [f"{names[i]} ({error.rstrip('.')})" for i, error in errors.items() if error]:
            many = f"{len(failed):,} of {len(self.numbers):,} pictures"
            found.append(f"Distances leave out {many}, whose own features failed: {_listed(failed)}.")
        return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED:,} more" if len(names) > LISTED else "")


Engine = Callable[[Evaluation, Iterable[tuple[str, int, Array]]], Iterator[tuple[str, int, Taken]]]
"""Does tasks (label, number and pixels of a picture) in any order, anywhere."""


def here(evaluation: Evaluation, tasks: Iterable[tuple[str, int, Array]]) -> Iterator[tuple[str, int, Taken]]:
    """Does `tasks` one after the other, here: a VAE's label, a picture's number, the picture [H, W, P], uint8."""
    at, original = -1, None
    for label, i, picture in tasks:
        if original is None or i != at:
            at, original = i, evaluation.original(i, picture)
        yield label, i, evaluation.task(label, i, original)


def run(
    evaluation: Evaluation,
    store: Store,
    numbers: Sequence[int],
    *,
    engine: Engine = here,
    progress: Callable[[int, int], None] = lambda done, total: None,
    watch: Callable[[str, int, Taken], None] = lambda label, i, taken: None,
) -> Seen:
    """Measures what is not there yet, of these pictures; what failed before is tried again.

    Args:
        numbers: of the pictures.
        progress: told how many of how many pairs of a VAE and a picture are there.
        watch: gets the label, the picture's number, and what was measured now.

    Raises:
        UsageError: a picture's size does not fit the protocol.
    """
    keys = {REFERENCE: REFERENCE} if evaluation.tools.extractors else {}
    keys |= evaluation.keys
    there = {label: _there(evaluation, store, key) for label, key in keys.items()}
    hashes: dict[int, str] = {}
    unread: dict[int, str] = {}
    enlarged: dict[int, tuple[int, int]] = {}
    done, total = 0, len(keys) * len(numbers)

    def tasks() -> Iterator[tuple[str, int, Array]]:
        nonlocal done
        for i in numbers:
            try:
                picture = evaluation.pictures.read(i)
            except PictureError as error:
                unread[i] = str(error)
                done += len(keys)
                progress(done, total)
                continue
            evaluation.protocol.require(picture, evaluation.pictures.names[i])
            hashes[i] = pixels_sha256(picture)
            if evaluation.protocol.enlarges(picture):
                enlarged[i] = picture.shape[1], picture.shape[0]
            for label in keys:
                if evaluation.key(i, hashes[i]) in there[label]:
                    done += 1
                    progress(done, total)
                else:
                    yield label, i, picture

    for label, i, taken in engine(evaluation, tasks()):
        store.put(keys[label], evaluation.key(i, hashes[i]), taken)
        watch(label, i, taken)
        done += 1
        progress(done, total)
    return Seen(hashes=hashes, unread=unread, enlarged=enlarged)


def _there(evaluation: Evaluation, store: Store, key: str) -> set[str]:
    """Pictures of which all that is asked for was measured, without an error."""
    found = {picture for picture, row in store.rows(key).items() if "error" not in row}
    tools = evaluation.tools
    return found.intersection(*(store.pictures(key, tools.kept(name)) for name in tools.extractors))


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
