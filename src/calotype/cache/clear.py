"""Clearing up: what no picture of the data needs any more."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from calotype.cache.attempt import Attempt
from calotype.cache.check import drop, strays
from calotype.cache.guard import alone
from calotype.cache.job import Job
from calotype.cache.manifest import write_manifest
from calotype.cache.reader import Shard, job_in
from calotype.cache.receipts import Receipt, receipts
from calotype.cache.rules import Placed
from calotype.cache.seen import scanned
from calotype.cache.store import (
    CLAIMS,
    JOB,
    LOOKED,
    MANIFEST,
    RECEIPTS,
    RUNS,
    SAMPLES,
    SCAN,
    SHARDS,
    Store,
    of_cache,
    samples_name,
)
from calotype.cache.tables import SAMPLES as COLUMNS, read
from calotype.cache.units import Held, Ids, Sample, Unit, among, held, ids_in, ids_of, sample_id, unit_id
from calotype.errors import UsageError
from calotype.temporaries import is_temporary
from calotype.texts import TextError, json_table


@dataclass
class Cleared:
    """What was removed.

    Attributes:
        files: of units without a receipt, and attempts.
        rows: of pictures that the data no longer has, or that stood there twice.
        units: removed, or written anew without such rows.
        bytes: fewer than before.
    """

    files: int = 0
    rows: int = 0
    units: int = 0
    bytes: int = 0


def gc(store: Store) -> Cleared:
    """Removes what no manifest needs: attempts, files without a receipt, rows of pictures that the last scan lacks.

    A unit with some such rows is written anew without them; nothing is encoded.

    Raises:
        UsageError: there is no cache, or a run is writing it.
        StorageError: something is damaged, or the disk refuses something.
    """
    job = job_in(store)
    with alone(store, "clearing up"):
        before, done = _size(store), Cleared()
        good, wrong = receipts(store, job.fingerprint)
        if wrong:
            unit, why = min(wrong.items())
            raise UsageError(
                f"{store}: {len(wrong):,} units are damaged, such as {unit}: {why}; calotype cache repair drops them, "
                "which comes first."
            )
        for name in strays(store, good):
            store.remove(name)
            done.files += 1
        if store.size(SCAN) is not None:
            has = held(store, good)
            with scanned(store) as seen:
                ids = np.sort(ids_in(seen))
            written: set[str] = set()
            for number, unit in enumerate(has.units):
                if unit not in written:
                    written |= _keep(store, job, good, unit, has, number, ids, done)
        write_manifest(store, job)
        for folder in (RUNS, CLAIMS):
            for name in store.files(folder):
                store.remove(name)
        done.bytes = before - _size(store)
    return done


def empty(store: Store) -> None:
    """Removes all files of a cache, receipts first; the folder stays.

    Raises:
        UsageError: there is no cache, or a run is writing it.
        StorageError: something can't be removed.
    """
    _require_own(store)
    folders = (RECEIPTS, SAMPLES, SHARDS, LOOKED, RUNS, CLAIMS)
    with alone(store, "clearing up"):
        found = [name for folder in folders for name in store.files(folder) if of_cache(name)]
        found += [path.name for path in store.root.glob(".*") if path.is_file() and is_temporary(path.name)]
        for name in (MANIFEST, *found, SCAN, JOB):
            store.remove(name)
        for folder in folders:
            for place in (*sorted(store.path(folder).glob("*")), store.path(folder)):
                with suppress(OSError):  # what others have put there stays
                    place.rmdir()


def _require_own(store: Store) -> None:
    """Checks that a folder is a cache, be it one that is damaged or of another version.

    Raises:
        UsageError: it is something else.
    """
    if store.size(JOB) is None:
        job_in(store)
    try:
        told = json_table(store.read(JOB))
    except (OSError, TextError):
        told = {}
    if not {"fingerprint", "tensors", "space"} <= told.keys():
        raise UsageError(f"{store}: its {JOB} is not of a cache of latents, so nothing was removed; give a cache.")


def _keep(
    store: Store,
    job: Job,
    good: Mapping[str, Receipt],
    unit: str,
    has: Held,
    number: int,
    ids: Ids,
    done: Cleared,
) -> set[str]:
    """Leaves of a unit what is needed; gives the unit that has it then, if that is another one."""
    receipt = good[unit]
    found = read(store.path(samples_name(receipt.unit)), COLUMNS)
    own, rows = ids_of(found), found.to_pylist()
    wanted = among(ids, own)[0].tolist()
    needed = [
        (sample_id(row["name"], row["key"]), row)
        for row, one, place in zip(rows, wanted, zip(*has.places(own), strict=True), strict=True)
        if one and place == (number, row["row"])
    ]
    reasons = [(sample_id(one.name, bytes.fromhex(one.key)), one) for one in receipt.bad if not one.again]
    bad = [one for id_, one in reasons if among(ids, np.array([id_], dtype=ids.dtype))[0][0]]
    if len(needed) == len(rows) and (needed or bad or not receipt.bad):
        return set()
    done.rows += len(rows) - len(needed)
    done.units += 1
    kept = unit_id(job, [id_ for id_, _ in needed]) if needed else ""
    if kept and kept not in good:  # it may be there: of a clearing up that was killed
        _rewrite(store, job, receipt, kept, needed, bad)
    drop(store, unit)
    return {kept} if kept else set()


def _rewrite(
    store: Store, job: Job, receipt: Receipt, id_: str, needed: list[tuple[bytes, dict[str, Any]]], bad: list[Any]
) -> None:
    samples = [_sample(row) for _, row in needed]
    shard = Shard(store.path(receipt.shard), job.tensors)
    unit = Unit(id_, receipt.bucket, tuple(one for one, _ in samples))
    attempt = Attempt(job, unit, store)
    attempt.bad += bad
    try:
        for (sample, placed), (_, row) in zip(samples, needed, strict=True):
            attempt.add(sample, placed, {name: shard.rows(name, row["row"], row["row"] + 1)[0] for name in job.tensors})
    except BaseException:
        attempt.drop()
        raise
    attempt.commit(receipt.made)


def _sample(row: dict[str, Any]) -> tuple[Sample, Placed]:
    def pair(name: str, x: str = "width", y: str = "height") -> tuple[int, int]:
        return row[f"{name}{x}"], row[f"{name}{y}"]

    sample = Sample(0, row["key"], row["name"], pair("stored_"), pair(""), row["caption"], row["label"])
    resized = pair("resized_")
    enlarged = resized[0] > sample.upright[0] or resized[1] > sample.upright[1]
    return sample, Placed(resized=resized, corner=pair("crop_", "x", "y"), bucket=pair("bucket_"), enlarged=enlarged)


def _size(store: Store) -> int:
    return sum(store.size(name) or 0 for name in store.files("."))
