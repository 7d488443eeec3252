"""What decides a cache's bytes, as it stands in cache.json. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from calotype.cache.rules import Rules, rules_from_dict
from calotype.errors import UsageError
from calotype.texts import TextError, shown

Value = Literal["moments", "mode", "sample"]
Stored = Literal["float16", "float32", "bfloat16"]

FORMAT = 1

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True)
class Made:
    """The VAE that makes a cache.

    Attributes:
        name: what it was loaded as.
        sha256: of its weights, the same in whatever layout they came.
        config: of its network.
        factor: pixels along a side that one latent stands for.
        channels: of raw latents.
        latent_format: how raw and model latents differ (`LatentFormat.to_dict`).
    """

    name: str
    sha256: str
    config: Mapping[str, Any]
    factor: int
    channels: int
    latent_format: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that decides the bytes of a cache, but for the pictures.

    Attributes:
        vae: see there.
        value: what of the posterior is kept: its moments (mean and log-variance), its mode, or one sample.
        rules: what is done to pictures.
        dtype: what is encoded in.
        store: what latents are stored in; raw, that is as the encoder gives them, never scaled.
        versions: of the packages that began the cache; they decide nothing.

    Raises:
        UsageError: there is no such value, dtype or store.
    """

    vae: Made
    value: Value
    rules: Rules
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    store: Stored = "float16"
    versions: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for option, given, known in (("value", self.value, Value), ("store", self.store, Stored)):
            if given not in get_args(known):
                raise UsageError(f"--{option} {given}: give one of {', '.join(get_args(known))}.")

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors of a shard, each [N, C, h, w]."""
        names = ("mean", "logvar") if self.value == "moments" else ("latents",)
        return (*names, *(f"{name}_flip" for name in names)) if self.rules.flip else names

    @property
    def point(self) -> str:
        """The tensor whose statistics are kept: the mean, or the latents."""
        return self.tensors[0]

    def shape(self, bucket: tuple[int, int]) -> tuple[int, int, int]:
        """[C, h, w] of one sample's tensor in a bucket of (width, height) pixels."""
        return self.vae.channels, bucket[1] // self.vae.factor, bucket[0] // self.vae.factor

    def sample_bytes(self, bucket: tuple[int, int]) -> int:
        """Bytes of one sample in a shard of a bucket, (width, height) in pixels."""
        channels, height, width = self.shape(bucket)
        return len(self.tensors) * channels * height * width * ITEMSIZE[self.store]

    @property
    def decides(self) -> dict[str, Any]:
        """What decides the bytes, as plain values."""
        vae = {"sha256": self.vae.sha256, "config": dict(self.vae.config)}
        return {
            "format": FORMAT,
            "vae": vae,
            "value": self.value,
            "dtype": self.dtype,
            "store": self.store,
            "rules": self.rules.to_dict(),
        }

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON of what decides the bytes."""
        return hashlib.sha256(canonical(self.decides)).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """What cache.json holds."""
        told = self.decides
        told["vae"] = {
            "name": self.vae.name,
            **told["vae"],
            "factor": self.vae.factor,
            "channels": self.vae.channels,
            "latent_format": dict(self.vae.latent_format),
        }
        told |= {"space": "raw", "tensors": list(self.tensors), "fingerprint": self.fingerprint}
        told["versions"] = dict(self.versions or {})
        return {**told, "checksum": _checksum(told)}

    def difference(self, other: Job) -> str:
        """What of another job's options is not as in this one, as in "value moments, not mode"; empty for nothing."""
        told = []
        if self.vae.sha256 != other.vae.sha256:
            told.append(f"the VAE {_named(self.vae)}, not {_named(other.vae)}")
        elif self.vae.config != other.vae.config:
            told.append("another configuration of the VAE")
        elif self.vae.latent_format != other.vae.latent_format:
            one, two = (str(of.vae.latent_format.get("name")) for of in (self, other))
            told.append(
                f"the latent format {one}, not {two}" if one != two else f"other numbers of latent format {one}"
            )
        for name in ("value", "dtype", "store"):
            if getattr(self, name) != getattr(other, name):
                told.append(f"--{name} {getattr(self, name)}, not {getattr(other, name)}")
        mine, its = self.rules.to_dict(), other.rules.to_dict()
        for name, value in mine.items():
            if value != its[name] and (name != "sizes" or mine["buckets"] == its["buckets"] != ""):
                told.append(_differs(name, value, its[name]))
        return " and ".join(told)


def canonical(values: Any) -> bytes:
    """The one JSON text of plain values."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


def job_from_dict(values: Mapping[str, Any]) -> Job:
    """The inverse of `Job.to_dict`.

    Raises:
        TextError: it is of another format, something is missing or changed.
    """
    if values.get("format") != FORMAT:
        raise TextError(f"its format is {shown(values.get('format'))}, and this calotype reads format {FORMAT}")
    if values.get("checksum") != _checksum({key: value for key, value in values.items() if key != "checksum"}):
        raise TextError("it was changed since it was written")
    try:
        vae = {key: values["vae"][key] for key in Made.__dataclass_fields__}
        job = Job(
            vae=Made(**vae),
            value=values["value"],
            rules=rules_from_dict(values["rules"]),
            dtype=values["dtype"],
            store=values["store"],
            versions=values["versions"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TextError(f"it does not describe a cache ({error})") from None
    if job.fingerprint != values.get("fingerprint"):
        raise TextError("its fingerprint is another one, so another version of calotype wrote it")
    return job


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(values)).hexdigest()


def _named(vae: Made) -> str:
    return f"{vae.name} ({vae.sha256[:12]}...)"


def _differs(name: str, one: Any, other: Any) -> str:
    if isinstance(one, bool):
        return f"{name}, not no {name}" if one else f"no {name}"
    return f"{name} {_said(one)}, not {_said(other)}"


def _said(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, list):
        return "x".join(map(str, value)) if len(value) == 2 else ",".join(map(str, value))
    return str(value)
