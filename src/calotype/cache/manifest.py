"""The manifest: one table of all samples, made of what the units hold. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.cache.buckets import Size
from calotype.cache.guard import waiting
from calotype.cache.job import Job, canonical
from calotype.cache.parts import Parted, write
from calotype.cache.receipts import Receipt, receipts
from calotype.cache.seen import scanned, scanned_digest
from calotype.cache.store import MANIFEST, SCAN, Store, samples_name
from calotype.cache.tables import GROUP, MANIFEST as COLUMNS, SAMPLES, arrow, count, read, schema_of
from calotype.cache.units import Held, held, ids_in, plan
from calotype.errors import StorageError

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
        told = summary(store, job, good, has)
        about = {"fingerprint": job.fingerprint, "summary": canonical(told).decode()}
        with store.writing(MANIFEST) as file:
            write(file, COLUMNS, manifest_rows(store, has), about)
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
        with scanned(store) as scan:
            planned = plan(job, scan, has)
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


def manifest_rows(store: Store, has: Held) -> Iterator[Any]:
    """The manifest's rows as pyarrow Tables, one after another.

    Raises:
        StorageError: a file is damaged.
    """
    with ExitStack() as stack:
        scan = None if store.size(SCAN) is None else stack.enter_context(scanned(store))
        rows, units, inner = _of_units(store, has) if scan is None else _of_scan(scan, has)
        used, numbers = np.unique(units, return_inverse=True)
        names = arrow()[0].array([has.units[i] for i in used], type="string")
        for start in range(0, max(1, len(units)), GROUP):
            part = slice(start, start + GROUP)
            made = _taken(store, has, units[part], inner[part])
            if scan is not None:
                now = scan.taken(rows[part], "caption", "label")
                for name in now.column_names:
                    made = made.set_column(made.schema.get_field_index(name), name, now[name])
            column = arrow()[0].DictionaryArray.from_arrays(numbers[part].astype(np.int32), names)
            yield made.append_column("unit", column).select(list(COLUMNS))


_Places = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]
"""Of each row of the manifest: the row of the scan, the number of the unit, and the row in it."""


def _of_scan(scan: Parted, has: Held) -> _Places:
    """Rows of the scan that units hold."""
    units, inner = has.places(ids_in(scan))
    rows = np.flatnonzero(units >= 0).astype(np.int32)
    return rows, units[rows], inner[rows]


def _of_units(store: Store, has: Held) -> _Places:
    """All rows of units, one after another."""
    counts = [count(store.path(samples_name(unit))) for unit in has.units]
    units = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    inner = [np.arange(n, dtype=np.int32) for n in (0, *counts)]
    return np.arange(len(units), dtype=np.int32), units, np.concatenate(inner)


def _taken(store: Store, has: Held, units: NDArray[np.int32], inner: NDArray[np.int32]) -> Any:
    """These rows of units, as a pyarrow Table; each unit's file is read once."""
    pa, _ = arrow()
    order = np.argsort(units, kind="stable")
    found = [schema_of(SAMPLES).empty_table()]
    for at in np.split(order, np.flatnonzero(np.diff(units[order])) + 1):
        if len(at):
            path = store.path(samples_name(has.units[units[at[0]]]))
            rows = read(path, SAMPLES)
            if inner[at].max() >= len(rows) or inner[at].min() < 0:
                raise StorageError(f"{path}: this file has other rows than its shard; calotype cache repair drops it.")
            found.append(rows.take(pa.array(inner[at])))
    return pa.concat_tables(found).take(pa.array(np.argsort(order)))
