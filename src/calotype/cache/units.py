"""Units of work: what is missing in a cache, cut so that everyone who looks cuts it the same way. No torch.

A unit is of one bucket, and its samples are in the data's order. As units are cut of what is missing, and are whole
once they are there, what is left of a run that was stopped is cut as it was before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.cache.buckets import Size
from calotype.cache.job import Job
from calotype.cache.receipts import Bad, Receipt
from calotype.cache.rules import Placed
from calotype.cache.store import Store, samples_name
from calotype.cache.tables import SAMPLES, read
from calotype.errors import UsageError

UNIT_BYTES = 2**28
"""Bytes of a shard at most, but for one of a single sample."""

UNIT_SAMPLES = 1024
"""Samples of a unit at most: what is lost with it shall take minutes, where a picture takes long."""


@dataclass(frozen=True)
class Sample:
    """A picture to be cached.

    Attributes:
        place: its number in the source.
        key: sha256 of its bytes.
        name: in the source.
        stored, upright: (width, height) in its file, and once it is upright.
        caption, label: what the source says of it.
    """

    place: int
    key: bytes
    name: str
    stored: Size
    upright: Size
    caption: str | None = None
    label: str | None = None

    @property
    def id(self) -> bytes:
        """What tells it from all others: of its name and its bytes."""
        return sample_id(self.name, self.key)


@dataclass(frozen=True)
class Unit:
    """What is done or lost as a whole; all that a worker must know, and small enough to be sent.

    Attributes:
        id: of the job and its samples.
        bucket: (width, height) in pixels.
        samples: in the data's order.
        bad: those of them of which it is known already that they can't be cached, and why.
    """

    id: str
    bucket: Size
    samples: tuple[Sample, ...]
    bad: tuple[Bad, ...] = ()


@dataclass(frozen=True)
class Cut:
    """A unit, as long as nobody works on it.

    Attributes:
        id, bucket: of the unit.
        rows: of its samples in the scan.
        number: of the unit in a cache that is made at once; says which part does it.
    """

    id: str
    bucket: Size
    rows: NDArray[np.int64]
    number: int


@dataclass(frozen=True)
class Held:
    """What a cache has.

    Attributes:
        rows: sample id -> (number of the unit, row in its shard).
        bad: sample id -> why it is not in a shard.
        units: ids, in the order of their numbers.
    """

    rows: Mapping[bytes, tuple[int, int]]
    bad: Mapping[bytes, Bad]
    units: Sequence[str]


@dataclass
class Plan:
    """What is wanted, and what of it is missing.

    Attributes:
        wanted: pictures of the data that can be told to be well.
        done: those that the cache has.
        bad: those that it can't have, with the reason: of the scan, too small, or of receipts.
        units: what makes those that are missing.
        enlarged: pictures that are smaller than their bucket.
        buckets: pictures of each.
    """

    wanted: int = 0
    done: int = 0
    bad: list[Bad] = field(default_factory=list)
    units: list[Cut] = field(default_factory=list)
    enlarged: int = 0
    buckets: dict[Size, int] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        """Pictures of all units."""
        return sum(len(unit.rows) for unit in self.units)


def sample_id(name: str, key: bytes) -> bytes:
    """What tells a sample from all others."""
    return hashlib.blake2b(key + name.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def unit_id(job: Job, ids: Sequence[bytes]) -> str:
    """What names a unit of these samples, by their ids."""
    return hashlib.sha256(job.fingerprint.encode() + b"".join(ids)).hexdigest()[:32]


def held(store: Store, receipts: Mapping[str, Receipt]) -> Held:
    """What the units of these receipts hold.

    Raises:
        StorageError: a file of samples can't be read.
    """
    rows: dict[bytes, tuple[int, int]] = {}
    bad: dict[bytes, Bad] = {}
    for number, (unit, receipt) in enumerate(receipts.items()):
        found = read(store.path(samples_name(unit)), SAMPLES, ["key", "name", "row"])
        columns = (found[name].to_pylist() for name in ("name", "key", "row"))
        for name, key, row in zip(*columns, strict=True):
            rows.setdefault(sample_id(name, key), (number, row))
        for one in receipt.bad:
            if not one.again:
                bad[sample_id(one.name, bytes.fromhex(one.key))] = one
    return Held(rows, bad, list(receipts))


def plan(job: Job, scan: Any, has: Held) -> Plan:
    """What is to be done.

    Args:
        scan: a pyarrow Table, see `scan`.
        has: what is there already.
    """
    made = Plan()
    missing: dict[Size, list[tuple[int, int, bytes]]] = {}  # row of the scan, rank among all of its bucket, id
    for i, (key, name, upright, reason) in enumerate(_rows(scan)):
        if reason is not None:
            made.bad.append(Bad(name, key.hex(), reason))
            continue
        placed = job.rules.place(*upright, key)
        if placed.enlarged and not job.rules.enlarge:
            made.bad.append(Bad(name, key.hex(), too_small(upright, placed)))
            continue
        rank = made.buckets.get(placed.bucket, 0)
        made.buckets[placed.bucket] = rank + 1
        id_ = sample_id(name, key)
        if id_ in has.bad and id_ not in has.rows:
            made.bad.append(has.bad[id_])
            continue
        made.wanted += 1
        made.enlarged += placed.enlarged
        if id_ in has.rows:
            made.done += 1
        else:
            missing.setdefault(placed.bucket, []).append((i, rank, id_))
    before = 0  # units of buckets before this one
    for bucket in sorted(made.buckets):
        most = unit_samples(job, bucket)
        for start in range(0, len(missing.get(bucket, ())), most):
            part = missing[bucket][start : start + most]
            rows = np.array([i for i, _, _ in part], dtype=np.int64)
            made.units.append(Cut(unit_id(job, [id_ for *_, id_ in part]), bucket, rows, before + part[0][1] // most))
        before += -(-made.buckets[bucket] // most)
    return made


def unit_samples(job: Job, bucket: Size) -> int:
    """Samples of a unit in a bucket."""
    return max(1, min(UNIT_SAMPLES, UNIT_BYTES // job.sample_bytes(bucket)))


def unit(cut: Cut, scan: Any, places: Sequence[int]) -> Unit:
    """A unit with its samples.

    Args:
        places: numbers of the scan's pictures in the source.
    """
    return Unit(cut.id, cut.bucket, tuple(_sample(scan, int(i), places[i]) for i in cut.rows))


def of_part(units: Sequence[Cut], part: str) -> list[Cut]:
    """The units of a part.

    Which they are depends on the data alone, and not on what is there already.

    Args:
        part: "2/4" for the second of four; "" for all.

    Raises:
        UsageError: it is no such thing.
    """
    if not part:
        return list(units)
    first, _, last = part.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UsageError(f"--part {part}: give which of how many parts, as in 2/4.")
    return [unit for unit in units if unit.number % int(last) == int(first) - 1]


def too_small(upright: Size, placed: Placed) -> str:
    """Why a picture is bad that would have to be enlarged."""
    return (
        f"it has {upright[0]}x{upright[1]} pixels, and would have to be enlarged to cover "
        f"{placed.bucket[0]}x{placed.bucket[1]}."
    )


def _rows(scan: Any) -> Iterator[tuple[bytes, str, Size, str | None]]:
    """Key, name, (width, height) and reason of each row, a part of them as Python's objects at a time."""
    for part in scan.select(["key", "name", "width", "height", "reason"]).to_batches(2**14):
        width, height = (np.asarray(part[name]).tolist() for name in ("width", "height"))
        keys, names, reasons = (part[name].to_pylist() for name in ("key", "name", "reason"))
        for key, name, w, h, reason in zip(keys, names, width, height, reasons, strict=True):
            yield key, name, (w, h), reason


def _sample(scan: Any, i: int, place: int) -> Sample:
    row = {name: scan[name][i].as_py() for name in scan.column_names}
    return Sample(
        place,
        row["key"],
        row["name"],
        (row["stored_width"], row["stored_height"]),
        (row["width"], row["height"]),
        row["caption"],
        row["label"],
    )
