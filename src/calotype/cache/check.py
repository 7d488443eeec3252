"""Looking at a cache with distrust, and mending it. No torch but where a picture is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calotype.cache.guard import alone
from calotype.cache.job import Job
from calotype.cache.manifest import manifest_rows, state, summary, write_manifest
from calotype.cache.reader import job_in
from calotype.cache.receipts import Receipt, receipts
from calotype.cache.seen import scanned, summarised
from calotype.cache.shards import look
from calotype.cache.store import (
    MANIFEST,
    RECEIPTS,
    SAMPLES,
    SCAN,
    SHARDS,
    Store,
    of_cache,
    receipt_name,
    samples_name,
    unreadable,
)
from calotype.cache.tables import MANIFEST as COLUMNS, SAMPLES as SAMPLE_COLUMNS, read
from calotype.cache.units import held
from calotype.errors import StorageError

THREADS = 4  # that read shards

Tell = Callable[[int, int], None]  # called with how many are done, and of how many


@dataclass
class Faults:
    """What is wrong with a cache.

    Attributes:
        units: by unit, what is wrong with it; `repair` drops it and the next make makes it again.
        others: what is wrong beside units, a sentence each.
        units_seen: how many units were looked at.
        rows: samples of those with which nothing is wrong.
    """

    units: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    units_seen: int = 0
    rows: int = 0

    def __bool__(self) -> bool:
        return bool(self.units or self.others)


def verify(store: Store, tell: Tell = lambda done, total: None) -> Faults:
    """Reads every file of a cache: shards by their sha256, shapes and finiteness, samples, receipts, the manifest.

    Args:
        tell: called with how many units are done, and of how many.

    Raises:
        UsageError: there is no cache.
        StorageError: cache.json is damaged.
    """
    job = job_in(store)
    good, wrong = receipts(store, job.fingerprint)
    faults = Faults(units=dict(wrong), units_seen=len(good) + len(wrong))
    faults.units |= _damaged(store, job, good, tell)
    sound = {unit: receipt for unit, receipt in good.items() if unit not in faults.units}
    faults.rows = sum(receipt.count for receipt in sound.values())
    faults.others += _of_manifest(store, job, good, sound, bool(faults.units))
    return faults


def repair(store: Store, tell: Tell = lambda done, total: None) -> tuple[dict[str, str], dict[str, Any]]:
    """Drops damaged units, which the next make makes again, and makes the manifest anew of what receipts say.

    Returns:
        What was wrong with each unit that was dropped, or with scan.parquet, and `manifest.summary`.

    Raises:
        UsageError: there is no cache, or a run is writing it.
        StorageError: cache.json is damaged, or the disk refuses something.
    """
    job = job_in(store)
    with alone(store, "repair"):
        good, wrong = receipts(store, job.fingerprint)
        dropped = wrong | _damaged(store, job, good, tell)
        for unit in dropped:
            drop(store, unit)
        if store.size(SCAN) is not None:
            try:
                with scanned(store) as scan:
                    for _ in scan.parts():
                        pass
            except StorageError as error:
                dropped[SCAN] = str(error)
                store.remove(SCAN)  # the next make looks at the pictures anew
        return dropped, write_manifest(store, job)


def drop(store: Store, unit: str) -> None:
    """Removes a unit: its receipt first, so that it never stands for what is not there.

    Raises:
        StorageError: it can't be removed.
    """
    store.remove(receipt_name(unit))
    for path in store.path(SHARDS).glob(f"*/{unit}.safetensors"):
        store.remove(path.relative_to(store.root).as_posix())
    store.remove(samples_name(unit))


def _damaged(store: Store, job: Job, good: Mapping[str, Receipt], tell: Tell) -> dict[str, str]:
    """Units whose files are not what their receipts say."""
    found = {}
    with ThreadPoolExecutor(THREADS) as pool:
        looked = pool.map(lambda one: _wrong(store, job, one), good.values())
        for done, (unit, why) in enumerate(zip(good, looked, strict=True), 1):
            if why:
                found[unit] = why
            tell(done, len(good))
    return found


def _wrong(store: Store, job: Job, receipt: Receipt) -> str:
    """What is wrong with a unit; empty for nothing."""
    try:
        if receipt.count:
            digest, _ = look(store.path(receipt.shard), job, receipt.bucket, receipt.count)
            if digest != receipt.shard_sha256:
                return f"{receipt.shard} is damaged: its sha256 is {digest[:12]}..., not {receipt.shard_sha256[:12]}..."
        if store.sha256(samples_name(receipt.unit)) != receipt.samples_sha256:
            return f"{samples_name(receipt.unit)} is damaged: its sha256 is another one"
        samples = read(store.path(samples_name(receipt.unit)), SAMPLE_COLUMNS, ["row"])
        if samples["row"].to_pylist() != list(range(receipt.count)):
            return f"{samples_name(receipt.unit)} has other rows than its shard"
    except StorageError as error:
        return f"{receipt.shard}: {error}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        raise StorageError(unreadable(Path(error.filename or receipt.shard), error)) from None
    return ""


def _of_manifest(
    store: Store, job: Job, good: Mapping[str, Receipt], sound: Mapping[str, Receipt], damaged: bool
) -> list[str]:
    """What is wrong with the manifest, held against what units hold.

    Args:
        good: units that are there; sound: those of them that are not damaged.
    """
    if store.size(MANIFEST) is None:
        return [f"{MANIFEST} is missing: the run that began this cache was never finished"]
    try:
        told = summarised(store)
        if told and told.get("state") != state(store, good):
            return [f"{MANIFEST} is older than the last run, which was not finished: the same command goes on"]
        there = read(store.path(MANIFEST), COLUMNS)
        lost = set(there["unit"].combine_chunks().unique().to_pylist()) - {
            unit for unit, one in sound.items() if one.count
        }
        if lost and not damaged:
            return [f"{MANIFEST} has rows of {len(lost)} units that are not there, such as {min(lost)}"]
        if not damaged:
            has = held(store, sound)
            if not _same(there, manifest_rows(store, has)):
                return [f"{MANIFEST} and the units' samples disagree"]
            if told != summary(store, job, sound, has):
                return [f"{MANIFEST} sums its samples up wrongly; calotype cache repair makes it anew"]
    except StorageError as error:
        return [str(error)]
    return []


def _same(one: Any, parts: Iterable[Any]) -> bool:
    """Whether a pyarrow Table has the rows of those."""

    def plain(rows: Any) -> Any:
        unit = rows.schema.get_field_index("unit")
        return rows.set_column(unit, "unit", rows["unit"].cast("string")).combine_chunks()

    start = 0
    for part in parts:
        if not plain(one.slice(start, len(part))).equals(plain(part)):
            return False
        start += len(part)
    return start == len(one)


def strays(store: Store, good: Mapping[str, Receipt]) -> list[str]:
    """Files of units that have no receipt, and what attempts and killed runs have left; for who is alone."""
    kept = {name for unit, receipt in good.items() for name in (receipt_name(unit), *receipt.files)}
    found = [name for folder in (RECEIPTS, SAMPLES, SHARDS) for name in store.files(folder) if of_cache(name)]
    # the locks are those of runs that were killed: nobody runs while this is asked
    top = [path.name for path in store.root.glob(".*") if path.is_file() and of_cache(path.name)]
    return [name for name in found if name not in kept] + sorted(top)
