"""Receipts: what says that a unit is there. They alone are the truth of a cache. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from calotype.cache.job import canonical
from calotype.cache.store import RECEIPTS, Store, of_cache, receipt_name, samples_name, shard_name, unreadable
from calotype.errors import StorageError
from calotype.texts import TextError, flag, json_table, number, plain, shown, whole


@dataclass(frozen=True)
class Bad:
    """A picture that could not be cached.

    Attributes:
        name: of the picture in its source.
        key: sha256 of its bytes, in hexadecimal digits.
        reason: a sentence.
        again: whether another run may find it well: it vanished or changed while this one ran.
    """

    name: str
    key: str
    reason: str
    again: bool = False


@dataclass(frozen=True)
class Sums:
    """Sums over all latents of each channel, as they are stored, in float64; those of mirrored pictures don't count.

    Attributes:
        count: numbers of each channel.
        sum, squares: of the mean, or of the latents, and of their squares.
        variance: of the posterior's variances, of moments; empty without them.
    """

    count: int
    sum: tuple[float, ...]
    squares: tuple[float, ...]
    variance: tuple[float, ...] = ()

    def plus(self, other: Sums) -> Sums:
        """Both together."""

        def add(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
            return tuple(x + y for x, y in zip(a, b, strict=True)) if a and b else tuple(a or b)

        return Sums(
            self.count + other.count,
            add(self.sum, other.sum),
            add(self.squares, other.squares),
            add(self.variance, other.variance),
        )


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """A unit that is on the disk.

    Attributes:
        unit: its id.
        fingerprint: of the job.
        bucket: (width, height) in pixels.
        count: rows of its shard.
        shard_bytes, shard_sha256: of its shard; 0 and "" where all its pictures are bad and there is none.
        samples_bytes, samples_sha256: of its samples' file.
        sums: of its latents.
        bad: its pictures that are not in the shard.
        made: by what, when and how long; decides nothing.
    """

    unit: str
    fingerprint: str
    bucket: tuple[int, int]
    count: int
    shard_bytes: int
    shard_sha256: str
    samples_bytes: int
    samples_sha256: str
    sums: Sums
    bad: tuple[Bad, ...] = ()
    made: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shard(self) -> str:
        """The file of its tensors."""
        return shard_name(self.unit, self.bucket)

    @property
    def files(self) -> tuple[str, ...]:
        """Its files, but for the receipt."""
        return (*((self.shard,) if self.count else ()), samples_name(self.unit))

    def is_there(self, store: Store) -> bool:
        """Whether its files are there and of the right size; what is in them `verify` looks at."""
        shard = not self.count or store.size(self.shard) == self.shard_bytes
        return shard and store.size(samples_name(self.unit)) == self.samples_bytes

    def to_bytes(self) -> bytes:
        """As it lies on the disk: with a checksum, since nothing else tells of its sums whether they were changed."""
        told = asdict(self)
        text = json.dumps({**told, "checksum": _checksum(told)}, indent=1, ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace") + b"\n"


def receipt_of(data: bytes) -> Receipt:
    """The inverse of `Receipt.to_bytes`.

    Raises:
        TextError: it is no receipt, or was changed.
    """
    told = json_table(data, names=True)
    if "checksum" in told and told.pop("checksum") != _checksum(told):  # the first ones have none
        raise TextError("it was changed since it was written")
    try:
        bad = tuple(_bad(one) for one in told["bad"])
        receipt = Receipt(**{**told, "bucket": tuple(told["bucket"]), "bad": bad, "sums": _sums(told["sums"])})
        for key in ("count", "shard_bytes", "samples_bytes"):
            whole(getattr(receipt, key), key, 0, 2**60)
        for key in ("unit", "fingerprint", "shard_sha256", "samples_sha256"):
            _text(getattr(receipt, key), key)
        width, height = receipt.bucket
        whole(width, "bucket"), whole(height, "bucket")
        if not isinstance(receipt.made, dict):
            raise TextError(f"made must be a table, not {shown(receipt.made)}")
    except TextError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TextError(f"it is no receipt ({plain(str(error))})") from None
    return receipt


def _checksum(told: Mapping[str, Any]) -> str:
    """Of what is the same whenever the unit is made."""
    return hashlib.sha256(canonical({key: value for key, value in told.items() if key != "made"})).hexdigest()


def _bad(told: Mapping[str, Any]) -> Bad:
    bad = Bad(_text(told["name"], "name"), _text(told["key"], "key"), _text(told["reason"], "reason"))
    bytes.fromhex(bad.key)
    return replace(bad, again=flag(told["again"], "again"))


def _sums(told: Mapping[str, Any]) -> Sums:
    columns = [tuple(number(value, key) for value in told[key]) for key in ("sum", "squares", "variance")]
    if len(columns[0]) != len(columns[1]) or len(columns[2]) not in (0, len(columns[0])):
        raise TextError("sums must be of as many channels each")
    return Sums(whole(told["count"], "sums.count", 0, 2**60), *columns)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TextError(f"{name} must be a text, not {shown(value)}")
    return value


def receipts(store: Store, fingerprint: str) -> tuple[dict[str, Receipt], dict[str, str]]:
    """All receipts of a job whose files are there, by unit; and what is wrong with others, by unit."""
    good: dict[str, Receipt] = {}
    wrong: dict[str, str] = {}
    for unit in store.names(RECEIPTS, ".json"):
        if not of_cache(receipt_name(unit)):  # another's file, of which nothing may be removed
            continue
        try:
            receipt = receipt_of(store.read(receipt_name(unit)))
        except (FileNotFoundError, TextError) as error:
            wrong[unit] = f"its receipt can't be read ({error})"
            continue
        except OSError as error:
            raise StorageError(unreadable(store.path(receipt_name(unit)), error)) from None
        if receipt.unit != unit:
            wrong[unit] = "its receipt is of another unit"
        elif receipt.fingerprint != fingerprint:
            wrong[unit] = "its receipt is of another job"
        elif not receipt.is_there(store):
            wrong[unit] = "a file of it is missing, or of another size"
        else:
            good[unit] = receipt
    return good, wrong


def fingerprints(store: Store) -> Iterator[str]:
    """Jobs of all receipts that can be read, one by one, whatever is left of their cache."""
    names: list[str] = []
    with suppress(OSError):
        names = store.names(RECEIPTS, ".json")
    for unit in names:
        if of_cache(receipt_name(unit)):
            with suppress(TextError, OSError):
                yield receipt_of(store.read(receipt_name(unit))).fingerprint


def total(found: Sequence[Receipt]) -> Sums | None:
    """Sums over all of them; None where nothing was counted."""
    sums = [one.sums for one in found if one.sums.count]
    whole_: Sums | None = None
    for one in sums:
        whole_ = one if whole_ is None else whole_.plus(one)
    return whole_
