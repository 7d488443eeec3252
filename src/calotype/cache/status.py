"""What is in a cache, told from its receipts and tables alone. No torch."""

from __future__ import annotations

from collections import Counter
from typing import Any

from calotype.cache.manifest import state, summary
from calotype.cache.reader import job_in
from calotype.cache.receipts import Sums, receipts, total
from calotype.cache.seen import scanned_data, summarised
from calotype.cache.store import MANIFEST, Store
from calotype.cache.units import held
from calotype.errors import UsageError


def status(store: Store) -> dict[str, Any]:
    """What there is: the job, and `manifest.summary` with `bytes`, `units`, `broken` units, what made them, and whether
    the `manifest` is "current", "old" or "missing".

    Raises:
        UsageError: there is no cache.
        StorageError: it is damaged.
    """
    job = job_in(store)
    good, wrong = receipts(store, job.fingerprint)
    told = summarised(store)
    current = bool(told) and told.get("state") == state(store, good)
    if not current:
        told = summary(store, job, good, held(store, good))
    made = Counter(
        ", ".join(f"{key} {value}" for key, value in receipt.made.items() if key not in ("at", "seconds"))
        for receipt in good.values()
    )
    return {
        "cache": str(store),
        "data": scanned_data(store),
        **{key: value for key, value in job.to_dict().items() if key != "versions"},
        **{key: value for key, value in told.items() if key != "state"},
        "manifest": "missing" if store.size(MANIFEST) is None else "current" if current else "old",
        "units": len(good),
        "broken": wrong,
        "bytes": sum(receipt.shard_bytes + receipt.samples_bytes for receipt in good.values()),
        "made": dict(made),
    }


def stats(store: Store) -> dict[str, Any]:
    """Statistics of the raw latents: of each channel and of all, and the factors with which they have a mean of 0 and a
    standard deviation of 1.

    They are those of samples from the posterior where moments are kept, and else of the latents as they are; without
    mirrored pictures, and with rows of pictures that were removed, until `gc`.

    Raises:
        UsageError: there is no cache, or nothing in it.
        StorageError: it is damaged.
    """
    job = job_in(store)
    good, _ = receipts(store, job.fingerprint)
    sums = total(list(good.values()))
    if sums is None:
        raise UsageError(f"{store}: nothing is in this cache yet; calotype cache make fills it.")
    channels = len(sums.sum)
    mean, std = _moments(sums)
    whole = Sums(
        sums.count * channels, (sum(sums.sum),), (sum(sums.squares),), (sum(sums.variance),) if sums.variance else ()
    )
    (shift,), (spread,) = _moments(whole)
    return {
        "cache": str(store),
        "of": "samples" if job.value == "moments" else job.value,
        "samples": sum(receipt.count for receipt in good.values()),
        "channels": {"mean": mean, "std": std},
        "mean": shift,
        "std": spread,
        "scaling_factor": 1.0 / spread if spread else None,
        "shift_factor": shift,
        "latent_format": dict(job.vae.latent_format),
    }


def _moments(sums: Sums) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel; a sample's variance is that of the means and the mean variance."""
    means = [value / sums.count for value in sums.sum]
    spare = sums.variance or (0.0,) * len(means)
    variances = [
        max(0.0, squares / sums.count - mean * mean) + more / sums.count
        for squares, mean, more in zip(sums.squares, means, spare, strict=True)
    ]
    return means, [value**0.5 for value in variances]
