"""Caches handed to trainers and loaders in formats of theirs: a module for each, and `export` over all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from calotype.cache.buckets import Size
from calotype.cache.export.arrays import Numpy
from calotype.cache.export.face import Format, Value, Wants
from calotype.cache.export.lightningdit import LightningDiT
from calotype.cache.export.mds import Mds
from calotype.cache.export.musubi import Musubi
from calotype.cache.export.parquet import Parquet
from calotype.cache.export.rows import Rows
from calotype.cache.export.sd_scripts import SdScripts
from calotype.cache.export.webdataset import WebDataset
from calotype.cache.job import Job, Stored
from calotype.cache.reader import Cache
from calotype.cache.whole import whole
from calotype.errors import UsageError
from calotype.latents import Space

FORMATS: Mapping[str, Format] = {
    one.name: one for one in (WebDataset(), SdScripts(), Musubi(), Parquet(), LightningDiT(), Mds(), Numpy())
}
"""By the names that the command line has for them."""


_ESCAPED = re.compile(r"\\udc[89a-f][0-9a-f]")  # what `as_text` makes of a byte


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was handed over.

    Attributes:
        samples: how many.
        value: of each posterior, its mode or a sample.
        space: of the latents, raw or model.
        dtype: in which they are stored.
        model: that they are for; "" where the format names none.
        flips: whether those of mirrored pictures came along.
        notes: what is to be known of it, a sentence each.
    """

    samples: int
    value: Literal["mode", "sample"]
    space: Space
    dtype: Stored
    model: str
    flips: bool
    notes: tuple[str, ...]


def export(
    cache: str | Path,
    dest: str | Path,
    to: str,
    *,
    value: Value | None = None,
    space: Space | None = None,
    dtype: Stored | None = None,
    model: str | None = None,
    bucket: Size | None = None,
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Writes the latents of a cache as another program reads them.

    A folder that is not there yet, or is empty, is there when it is complete, and else not at all. Formats with a file
    for each picture are also written among files that are there: each file is whole, and one that is there with the
    same bytes is left alone, so that the same call goes on.

    Args:
        to: one of `FORMATS`.
        value: mode (the mean) or sample of the posterior; None: what the program keeps itself, as far as the cache has
            it.
        space: raw or model (scaled); None: what the program wants.
        dtype: that numbers are written in; None: what the program wants, or the cache has.
        model: that the program trains, where it has several with such latents.
        bucket: only samples of this (width, height) in pixels.
        seed: of samples.
        tell: called with how many are done, and of how many.

    Raises:
        UsageError: there is no cache; the format can't hold it, or is asked for what it does not do; DEST is taken.
        StorageError: the cache is damaged, or the disk refuses something.
    """
    if to not in FORMATS:
        raise UsageError(f"--to {to}: give one of {', '.join(FORMATS)}.")
    opened, format_, target = Cache(cache), FORMATS[to], Path(dest)
    job = opened.job
    wants = format_.wants(job, model)
    chosen = _chosen(format_, wants, job, value, space, dtype)
    rows = Rows(
        cache=opened, to=to, model=model or "", value=chosen[0], space=chosen[1], published=wants.published,
        dtype=chosen[2], flips=job.rules.flip and wants.flips != "left out", seed=seed, bucket=bucket, tell=tell,
    )  # fmt: skip
    _require_sizes(rows, format_, wants)
    _require_free(target, opened, format_)
    if target.is_dir() and any(target.iterdir()):
        format_.write(rows, target)
    else:
        with whole(target) as folder:
            format_.write(rows, folder)
    return Exported(
        samples=len(rows), value=rows.value, space=rows.space, dtype=rows.dtype, model=rows.model, flips=rows.flips,
        notes=tuple(_notes(rows, format_, wants, value)),
    )  # fmt: skip


def _chosen(
    format_: Format, wants: Wants, job: Job, value: Value | None, space: Space | None, dtype: Stored | None
) -> tuple[Value, Space, Stored]:
    """Value, space and type, of what is asked for and what the reader wants.

    Raises:
        UsageError: they don't fit.
    """
    for option, given, known in (("value", value, Value), ("space", space, Space), ("dtype", dtype, Stored)):
        if given is not None and given not in get_args(known):
            raise UsageError(f"--{option} {given}: give one of {', '.join(get_args(known))}.")
    if value is not None and job.value not in ("moments", value):
        raise UsageError(
            f"--value {value}: this cache keeps the {job.value} alone; leave out --value, or make one with --value "
            "moments."
        )
    made_value: Value = (value or wants.value) if job.value == "moments" else job.value
    if space is not None and wants.fixed and space != wants.space:
        raise UsageError(f"--space {space}: {format_.title} reads {_said(wants.space)} latents; leave out --space.")
    if dtype is not None and wants.fixed and wants.dtype not in (None, dtype):
        raise UsageError(f"--dtype {dtype}: {format_.title} reads {wants.dtype}; leave out --dtype.")
    made_dtype = dtype or wants.dtype or job.store
    if made_dtype == "bfloat16" and not wants.bfloat16:
        raise UsageError(
            f"{format_.title} holds no bfloat16, which {'is asked for' if dtype else 'this cache is stored in'}; give "
            "--dtype float32 or float16."
        )
    if wants.flips == "needed" and not job.rules.flip:
        raise UsageError(
            f"{format_.title} reads latents of mirrored pictures too, and this cache has none; make one with --flip."
        )
    return made_value, space or wants.space, made_dtype


def _require_sizes(rows: Rows, format_: Format, wants: Wants) -> None:
    """Checks that there is something to hand over, and that it is of one size where it must be.

    Raises:
        UsageError: if not.
    """
    if not len(rows):
        has = ", ".join(sorted({f"{w}x{h}" for w, h in _all_buckets(rows)}))
        told = f"there are no such samples in this cache; it has sizes {has}" if has else "this cache has no samples"
        raise UsageError(f"{rows.cache.store}: {told}.")
    if wants.one_size and len(rows.buckets) > 1:
        sizes = [f"{w}x{h}" for w, h in rows.buckets]
        told = ", ".join(sizes[:5]) + (", ..." if len(sizes) > 5 else "")
        raise UsageError(
            f"{format_.title} reads latents of one size, and this cache has {len(sizes)} ({told}); give --bucket "
            f"{sizes[0]}, or make a cache with --size."
        )


def _all_buckets(rows: Rows) -> set[Size]:
    found = rows.cache.columns("bucket_width", "bucket_height")
    return set(zip(*(found[name].to_pylist() for name in ("bucket_width", "bucket_height")), strict=True))


def _require_free(target: Path, cache: Cache, format_: Format) -> None:
    """Checks that a folder may be written to.

    Raises:
        UsageError: it is a file, the cache itself, or holds something that this format is not put among.
    """
    nearest = next(path for path in (target, *target.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UsageError(f"DEST {target}: {nearest} is a file; give a folder.")
    if target.resolve().is_relative_to(cache.store.root.resolve()):
        raise UsageError(f"DEST {target}: this is the cache itself, or lies in it; give another folder.")
    if not format_.beside and target.is_dir() and any(target.iterdir()):
        raise UsageError(f"DEST {target}: there is something in this folder already; give one that is new, or empty.")


def _notes(rows: Rows, format_: Format, wants: Wants, value: Value | None) -> Iterator[str]:
    job = rows.cache.job
    if value is None and rows.value != wants.value:
        yield f"{format_.title} keeps the {wants.value} itself, and this cache has the {rows.value} alone."
    if job.rules.flip and wants.flips == "left out":
        yield f"{format_.title} has no place for latents of mirrored pictures; they were left out."
    if format_.beside and (odd := sum(bool(_ESCAPED.search(name)) for name in rows.samples["name"].to_pylist())):
        yield (
            f"{odd:,} pictures have names that are no text (UTF-8), and {format_.title} won't find the files that are "
            "called after them; rename the pictures."
        )
    if not format_.upright:
        samples = rows.samples
        turned = int((np.asarray(samples["stored_width"]) != np.asarray(samples["width"])).sum())
        if turned:
            yield (
                f"{format_.title} does not turn pictures upright, and looks for latents of another size for those "
                f"that lie on their side in their files, {turned:,} here; turn the files themselves."
            )


def _said(space: Space) -> str:
    return "raw" if space == "raw" else "scaled (model)"
