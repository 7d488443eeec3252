"""The manifest: one table of all samples, made of what the units hold. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from calotype.cache.buckets import Size
from calotype.cache.guard import waiting
from calotype.cache.job import Job, canonical
from calotype.cache.receipts import Receipt, receipts
from calotype.cache.seen import scanned, scanned_digest
from calotype.cache.store import MANIFEST, SCAN, Store, samples_name
from calotype.cache.tables import MANIFEST as COLUMNS, SAMPLES, arrow, parquet, read, table
from calotype.cache.units import Held, held, plan, sample_id

MOST_TOLD = 1000  # bad pictures that the manifest tells of


def write_manifest(store: Store, job: Job, tell: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Writes it, of all that is there now and that the last scan has seen; gives the summary that it holds.

    Captions and labels are those of the scan. Without a scan it has every row that units hold.

    Args:
        tell: called while another run writes it.

    Raises:
        StorageError: the disk refuses it, or a file is damaged.
    """
    with waiting(store.path(f".{MANIFEST}.lock"), tell=tell):
        good, _ = receipts(store, job.fingerprint)
        has = held(store, good)
        rows, told = manifest_rows(store, has), summary(store, job, good, has)
        store.write(MANIFEST, parquet(rows, {"fingerprint": job.fingerprint, "summary": canonical(told).decode()}))
    return told


def summary(store: Store, job: Job, good: Mapping[str, Receipt], has: Held) -> dict[str, Any]:
    """What there is and what is missing: `state`, see there; `wanted` pictures of the last scan, of which `done` are
    there, `missing` are not, and `bad` never will be; `stale` rows of no picture; `enlarged` pictures; `buckets`.

    Args:
        good: receipts of whole units, by their names.
        has: what of the pictures they hold.
    """
    rows = sum(receipt.count for receipt in good.values())
    told: dict[str, Any] = {"state": state(store, good), "held": rows, "scanned": store.size(SCAN) is not None}
    if not told["scanned"]:
        buckets: dict[Size, int] = {}
        for receipt in good.values():
            buckets[receipt.bucket] = buckets.get(receipt.bucket, 0) + receipt.count
        bad = [one for receipt in good.values() for one in receipt.bad]
        counts = {"wanted": rows + len(bad), "done": rows, "missing": 0, "bad": len(bad), "enlarged": 0}
    else:
        planned = plan(job, scanned(store), has)
        buckets, bad = planned.buckets, planned.bad
        counts = {"wanted": planned.done + planned.missing + len(bad), "done": planned.done,
                  "missing": planned.missing, "bad": len(bad), "enlarged": planned.enlarged}  # fmt: skip
    return {
        **told,
        **counts,
        "stale": rows - counts["done"],
        "buckets": {f"{width}x{height}": n for (width, height), n in sorted(buckets.items())},
        "bad_ones": [[one.name, one.reason] for one in bad[:MOST_TOLD]],
    }


def state(store: Store, good: Mapping[str, Receipt]) -> str:
    """What a manifest is made of: the same where neither the scan nor a unit has changed."""
    digest = hashlib.sha256(scanned_digest(store).encode())
    for unit, receipt in sorted(good.items()):
        digest.update(f"{unit} {receipt.shard_sha256} {receipt.samples_sha256}".encode())
    return digest.hexdigest()


def manifest_rows(store: Store, has: Held) -> Any:
    """The manifest's rows as a pyarrow Table.

    Raises:
        StorageError: a file is damaged.
    """
    pa, _ = arrow()
    parts = [read(store.path(samples_name(unit)), SAMPLES) for unit in has.units]
    starts = np.cumsum([0, *(part.num_rows for part in parts)])
    made = pa.concat_tables([table({name: [] for name in SAMPLES}, SAMPLES), *parts])
    del parts  # a million rows take hundreds of megabytes
    if store.size(SCAN) is None:
        units = np.repeat(np.arange(len(has.units)), np.diff(starts))
    else:
        seen = scanned(store)
        rows, units, inner = _places(seen, has)
        made, now = made.take(starts[units] + inner), seen.take(rows)
        for name in ("caption", "label"):
            made = made.set_column(made.schema.get_field_index(name), name, now[name])
    used, numbers = np.unique(units, return_inverse=True)
    names = pa.array([has.units[i] for i in used], type=pa.string())
    column = pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), names)
    return made.append_column("unit", column).select(list(COLUMNS)).combine_chunks()


def _places(seen: Any, has: Held) -> tuple[Any, Any, Any]:
    """Rows of the scan that units hold, the number of the unit of each, and the row in it: int64 [N] each."""
    found = np.full((3, seen.num_rows), -1, dtype=np.int64)
    i = 0
    for part in seen.select(["name", "key"]).to_batches(2**14):
        for name, key in zip(part["name"].to_pylist(), part["key"].to_pylist(), strict=True):
            if (place := has.rows.get(sample_id(name, key))) is not None:
                found[:, i] = i, *place
            i += 1
    rows, units, inner = found[:, found[0] >= 0]
    return rows, units, inner
