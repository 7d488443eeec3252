"""Units of work: what is missing in a cache, cut so that everyone who looks cuts it the same way. No torch.

A unit is of one bucket, and its samples are in the data's order. As units are cut of what is missing, and are whole
once they are there, what is left of a run that was stopped is cut as it was before.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.cache.buckets import Size
from calotype.cache.job import Job
from calotype.cache.parts import Parted
from calotype.cache.receipts import Bad, Receipt
from calotype.cache.rules import Placed
from calotype.cache.store import Store, samples_name
from calotype.cache.tables import SAMPLES, read
from calotype.errors import UsageError

UNIT_BYTES = 2**28
"""Bytes of a shard at most, but for one of a single sample."""

UNIT_SAMPLES = 1024
"""Samples of a unit at most: what is lost with it shall take minutes, where a picture takes long."""

_ID = "S16"

Ids = NDArray[np.bytes_]
"""Ids of samples, 16 bytes each."""


@dataclass(frozen=True)
class Sample:
    """A picture to be cached.

    Attributes:
        place: its number in the source.
        key: sha256 of its bytes.
        name: in the source.
        stored: (width, height) in its file, in pixels.
        upright: (width, height) once it is upright.
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
        id: of the unit.
        bucket: of the unit, (width, height) in pixels.
        rows: of its samples in the scan, ascending: [N].
        number: of the unit in a cache that is made at once; says which part does it.
    """

    id: str
    bucket: Size
    rows: NDArray[np.int32]
    number: int


@dataclass(frozen=True)
class Held:
    """What a cache has.

    Attributes:
        ids: of samples, sorted.
        numbers: of the unit that has each: [N].
        rows: of each in its unit's shard: [N].
        bad: sample id -> why it is not in a shard.
        units: ids, in the order of their numbers.
    """

    ids: Ids
    numbers: NDArray[np.int32]
    rows: NDArray[np.int32]
    bad: Mapping[bytes, Bad]
    units: Sequence[str]

    def places(self, ids: Ids) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The number of the unit that has each of these samples, and the row in its shard: int32 [N] each, -1 where
        none has it."""
        there, at = among(self.ids, ids)
        numbers, rows = np.full((2, len(ids)), -1, dtype=np.int32)
        numbers[there], rows[there] = self.numbers[at[there]], self.rows[at[there]]
        return numbers, rows


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
    """What tells a sample from all others: 16 bytes, of its name and its key, the sha256 of its encoded bytes."""
    return hashlib.blake2b(key + name.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def ids_of(rows: Any) -> Ids:
    """Ids of the samples of a pyarrow Table with `name` and `key`."""
    names, keys = (rows[column].to_pylist() for column in ("name", "key"))
    return np.frombuffer(b"".join(map(sample_id, names, keys)), dtype=_ID)


def ids_in(scan: Parted) -> Ids:
    """Ids of all samples of a scan, in its order."""
    return np.concatenate([np.empty(0, dtype=_ID), *map(ids_of, scan.parts("name", "key"))])


def among(ids: Ids, asked: Ids) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which of those that are asked for are among sorted ids, bool [N], and where each is then, int64 [N]."""
    if not len(ids):
        return np.zeros(len(asked), dtype=bool), np.zeros(len(asked), dtype=np.int64)
    at = np.minimum(np.searchsorted(ids, asked), len(ids) - 1)
    return ids[at] == asked, at


def unit_id(job: Job, ids: Iterable[bytes]) -> str:
    """What names a unit of these samples, by their ids."""
    return hashlib.sha256(job.fingerprint.encode() + b"".join(ids)).hexdigest()[:32]


def held(store: Store, receipts: Mapping[str, Receipt]) -> Held:
    """What the units of these receipts hold.

    Raises:
        StorageError: a file of samples can't be read.
    """
    ids: list[Ids] = [np.empty(0, dtype=_ID)]
    rows: list[NDArray[np.int32]] = [np.empty(0, dtype=np.int32)]
    bad: dict[bytes, Bad] = {}
    for unit, receipt in receipts.items():
        found = read(store.path(samples_name(unit)), SAMPLES, ["key", "name", "row"])
        ids.append(ids_of(found))
        rows.append(np.asarray(found["row"], dtype=np.int32))
        for one in receipt.bad:
            if not one.again:
                bad[sample_id(one.name, bytes.fromhex(one.key))] = one
    numbers = np.repeat(np.arange(len(ids), dtype=np.int32) - 1, [len(part) for part in ids])
    every, first = np.unique(np.concatenate(ids), return_index=True)  # of a sample in several units the first one
    return Held(every, numbers[first], np.concatenate(rows)[first], bad, list(receipts))


def plan(job: Job, scan: Parted, has: Held) -> Plan:
    """What is to be done.

    Args:
        scan: see `scan`.
        has: what is there already.
    """
    made = Plan()
    missing: dict[Size, _Missing] = {}
    row = -1
    for part in scan.parts("key", "name", "width", "height", "reason"):
        ids = ids_of(part)
        there = (has.places(ids)[0] >= 0).tolist()
        for (key, name, upright, reason), id_, done in zip(_rows(part), _each(ids), there, strict=True):
            row += 1
            if reason is not None:
                made.bad.append(Bad(name, key.hex(), reason))
                continue
            placed = job.rules.place(*upright, key)
            if placed.enlarged and not job.rules.enlarge:
                made.bad.append(Bad(name, key.hex(), too_small(upright, placed)))
                continue
            rank = made.buckets.get(placed.bucket, 0)
            made.buckets[placed.bucket] = rank + 1
            if id_ in has.bad and not done:
                made.bad.append(has.bad[id_])
                continue
            made.wanted += 1
            made.enlarged += placed.enlarged
            made.done += done
            if not done:
                if placed.bucket not in missing:
                    missing[placed.bucket] = _Missing(job, placed.bucket)
                missing[placed.bucket].add(row, rank, id_)
    before = 0  # units of buckets before this one
    for bucket in sorted(made.buckets):
        if bucket in missing:
            made.units += missing[bucket].units(before)
        before += -(-made.buckets[bucket] // unit_samples(job, bucket))
    return made


class _Missing:
    """What is missing of a bucket, cut as it comes."""

    def __init__(self, job: Job, bucket: Size) -> None:
        self._job, self._bucket, self._most = job, bucket, unit_samples(job, bucket)
        self._cuts: list[Cut] = []
        self._rows, self._ids, self._number = array("i"), bytearray(), 0

    def add(self, row: int, rank: int, id_: bytes) -> None:
        """A row of the scan, which has this rank among all of the bucket."""
        if not self._rows:
            self._number = rank // self._most
        self._rows.append(row)
        self._ids += id_
        if len(self._rows) == self._most:
            self._cut()

    def units(self, before: int) -> list[Cut]:
        """All of them; those of other buckets before them are so many."""
        if self._rows:
            self._cut()
        return [replace(cut, number=before + cut.number) for cut in self._cuts]

    def _cut(self) -> None:
        rows = np.array(self._rows, dtype=np.int32)
        self._cuts.append(Cut(unit_id(self._job, [bytes(self._ids)]), self._bucket, rows, self._number))
        self._rows, self._ids = array("i"), bytearray()


def unit_samples(job: Job, bucket: Size) -> int:
    """Samples of a unit in a bucket."""
    return max(1, min(UNIT_SAMPLES, UNIT_BYTES // job.sample_bytes(bucket)))


def unit(cut: Cut, scan: Parted, places: Sequence[int]) -> Unit:
    """A unit with its samples.

    Args:
        scan: which it was cut of.
        places: numbers of the scan's pictures in the source.

    Raises:
        StorageError: the scan can't be read.
    """
    rows = scan.taken(cut.rows).to_pylist()
    return Unit(
        cut.id, cut.bucket, tuple(_sample(row, places[i]) for i, row in zip(cut.rows.tolist(), rows, strict=True))
    )


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


def _rows(part: Any) -> Iterator[tuple[bytes, str, Size, str | None]]:
    """Key, name, (width, height) and reason of each row."""
    width, height = (np.asarray(part[name]).tolist() for name in ("width", "height"))
    keys, names, reasons = (part[name].to_pylist() for name in ("key", "name", "reason"))
    for key, name, w, h, reason in zip(keys, names, width, height, reasons, strict=True):
        yield key, name, (w, h), reason


def _each(ids: Ids) -> Iterator[bytes]:
    """Each id whole: numpy's own texts end before zeros."""
    content = ids.tobytes()
    return (content[start : start + ids.itemsize] for start in range(0, len(content), ids.itemsize))


def _sample(row: Mapping[str, Any], place: int) -> Sample:
    return Sample(
        place,
        row["key"],
        row["name"],
        (row["stored_width"], row["stored_height"]),
        (row["width"], row["height"]),
        row["caption"],
        row["label"],
    )
