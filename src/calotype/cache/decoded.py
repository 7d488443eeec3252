"""Samples of a cache held against their pictures: decoded, beside the VAE's own round trip of the same pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from calotype.cache.job import Job
from calotype.cache.reader import Cache
from calotype.cache.receipts import Bad
from calotype.cache.scan import look, pictures
from calotype.cache.seen import scanned
from calotype.cache.store import SCAN, Store
from calotype.cache.units import Sample
from calotype.cache.worker import Worker, picture
from calotype.errors import NonFiniteError, UsageError
from calotype.evaluate.metrics import psnr
from calotype.files import as_text
from calotype.pixels import alpha_mode, from_array, luma, to_uint8
from calotype.vae import VAE

APART = 0.1  # dB that two devices may differ by, and the type that is stored


@dataclass(frozen=True)
class Decoded:
    """One sample.

    Attributes:
        name: of its picture.
        psnr: of what the cache decodes to, in dB.
        own: of the VAE's own round trip.
        apart: how far stored latents are from those encoded now, as a share of these (root mean square).
    """

    name: str
    psnr: float
    own: float
    apart: float


@dataclass
class Compared:
    """Samples that were looked at, and what is wrong."""

    samples: list[Decoded] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def compare(cache: Cache, data: str | Path, vae: VAE, count: int, memory: int | str | None = None) -> Compared:
    """Decodes so many samples, evenly from first to last, and compares them with their pictures.

    Raises:
        UsageError: the pictures are not there.
    """
    made = Compared()
    if other := another(cache.job, vae):
        made.faults.append(f"{other}; nothing was decoded")
        return made
    for one in again(cache, data, vae, count, memory):
        if isinstance(one, str):
            made.faults.append(one)
            continue
        own, stored = (
            psnr(to_uint8(decode(vae, latents[cache.job.point], memory)), to_uint8(one.pixels))
            for latents in (one.fresh, one.row)
        )
        apart = max(_apart(one.row[tensor], one.fresh[tensor]) for tensor in cache.job.tensors)
        name = one.row["name"]
        made.samples.append(Decoded(name, stored, own, apart))
        if abs(stored - own) > APART or apart > 0.01:
            made.faults.append(
                f"{name} decodes with {stored:.2f} dB, and the VAE's own round trip has {own:.2f} dB; its latents "
                f"differ by {apart:.2%}"
            )
    return made


def another(job: Job, vae: VAE) -> str:
    """That a VAE is not the one that made a cache, without a full stop; empty if it is."""
    if vae.sha256 == job.vae.sha256:
        return ""
    return (
        f"{vae.name} (sha256 {vae.sha256[:12]}...) is not the VAE that made this cache, {job.vae.name} (sha256 "
        f"{job.vae.sha256[:12]}...)"
    )


@dataclass(frozen=True)
class Again:
    """A sample beside what is made of its picture now.

    Attributes:
        row: of the cache (`Cache.row`).
        pixels: that were encoded, [C, H, W].
        fresh: their latents, by the cache's tensors.
    """

    row: dict[str, Any]
    pixels: Tensor
    fresh: dict[str, Tensor]


def again(
    cache: Cache, data: str | Path, vae: VAE, count: int, memory: int | str | None = None
) -> Iterator[Again | str]:
    """So many samples, evenly from first to last; or why one can't be made again, without a full stop.

    Raises:
        UsageError: the pictures are not there.
        WeightsError: half a VAE.
    """
    job = cache.job
    vae.require("encoder", "decoder")
    source, numbers = pictures(data, cache.store.path("."))
    places = {as_text(source.names[i]): i for i in numbers}
    worker = Worker(job, vae, source, cache.store, memory=memory)
    alpha = alpha_mode(vae.picture_channels, None)
    for i in evenly(len(cache), count):
        row = cache.row(i)
        name = row["name"]
        if name not in places:
            yield f"{name} is no longer among the pictures"
            continue
        upright = row["width"], row["height"]
        sample = Sample(places[name], row["key"], name, (row["stored_width"], row["stored_height"]), upright)
        levels = picture(source, sample, job.rules, job.rules.place(*upright, row["key"]), alpha)
        if isinstance(levels, Bad):
            yield f"{name}: {levels.reason.rstrip('.')}"
            continue
        pixels = from_array(levels)
        fresh = worker.encode(levels, row["key"])
        if isinstance(fresh, NonFiniteError):
            yield f"{name}: {str(fresh).rstrip('.')}"
            continue
        yield Again(row, luma(pixels) if vae.picture_channels == 1 else pixels, fresh)


def evenly(length: int, count: int) -> list[int]:
    """So many numbers below a length, or all, at even distances from the first to the last."""
    some = min(length, count)
    return [i * (length - 1) // max(1, some - 1) for i in range(some)]


def changed(store: Store, data: str | Path) -> list[str]:
    """What of the pictures is no longer as the last scan saw it, a sentence each; all of them are read.

    Raises:
        UsageError: there are no pictures, or there was no scan.
    """
    if store.size(SCAN) is None:
        raise UsageError(
            f"{store}: nothing tells what pictures this cache is of; calotype cache make looks at them anew."
        )
    source, numbers = pictures(data, store.path("."))
    before: dict[str, set[bytes]] = {}
    with scanned(store) as seen:
        for part in seen.parts("name", "key"):
            for name, key in zip(part["name"].to_pylist(), part["key"].to_pylist(), strict=True):
                before.setdefault(name, set()).add(key)
    now = {as_text(source.names[i]): i for i in numbers}
    return [
        *_told(
            "changed since it was cached",
            [n for n, i in now.items() if n in before and look(source, i).key not in before[n]],
        ),
        *_told("not in the cache", [name for name in now if name not in before]),
        *_told("no longer among the pictures", [name for name in before if name not in now]),
    ]


def _told(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""
    return [f"{names[0]}{more}: {what}; calotype cache make brings the cache up to date"]


def decode(vae: VAE, latents: Tensor, memory: int | str | None) -> Tensor:
    """Raw latents [C, h, w] -> pixels [C, H, W], as large as those that were encoded."""
    pixels = vae.decode(latents[None].float(), memory=memory)
    return functional.avg_pool2d(pixels, vae.enlarges)[0].cpu() if vae.enlarges > 1 else pixels[0].cpu()


def _apart(stored: Tensor, fresh: Tensor) -> float:
    size = float(fresh.double().square().mean().sqrt()) or 1.0
    return float((stored.double() - fresh.double()).square().mean().sqrt()) / size
