"""Caches of sd-scripts and musubi-tuner taken over, raw, by a VAE that is named and held against the pictures."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from calotype import __version__
from calotype.cache.attempt import Attempt
from calotype.cache.buckets import Size
from calotype.cache.job import Job, Stored, Value
from calotype.cache.make import job_of
from calotype.cache.manifest import write_manifest
from calotype.cache.rules import Rules
from calotype.cache.scan import look
from calotype.cache.store import JOB, Store
from calotype.cache.tables import arrow
from calotype.cache.trial import Checked, require_right
from calotype.cache.units import Sample, Unit, unit_id, unit_samples
from calotype.cache.whole import whole
from calotype.cache.words import words
from calotype.errors import LatentsError, NonFiniteError, UsageError
from calotype.files import as_text, make_folder
from calotype.latent_files import LatentFile, musubi, open_latents, sd_scripts
from calotype.latent_files.telling import header
from calotype.latents import Packed, same_space
from calotype.sources import Stored as Pictures, open_source
from calotype.vae import VAE

PROGRAMS = ("sd-scripts", "musubi-tuner")  # whose caches are taken over
UNKNOWN = -1
"""The seed of what was taken over, which no cache of `make` has: nobody knows how it was drawn and cropped, and nothing
that is made here is mixed with it."""

_NAME = re.compile(r"(.+)_(\d{4,6})x(\d{4,6})_[a-z0-9]+", re.DOTALL)
_KNOWN = re.compile(r"original_size|crop_ltrb|latents_flipped")
_OF_TEXTS = re.compile(r"_te(_outputs)?\.(npz|safetensors)$")


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What was taken over.

    Attributes:
        program: whose files they are.
        model: that the latents are for; "" where nothing names one.
        samples: how many.
        value: sample or mode, as that program keeps it.
        flips: whether latents of mirrored pictures came along.
        pictures: how many have their picture beside.
        checked: those that were decoded beside their pictures.
        notes: what is to be known, a sentence each.
    """

    program: str
    model: str
    samples: int
    value: Value
    flips: bool
    pictures: int
    checked: tuple[Checked, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _File:
    """One file, and the picture that it is of.

    Attributes:
        beside: whether that lies beside it.
        more: whether there is something in the file that a cache has no place for.
    """

    path: Path
    bucket: Size
    sample: Sample
    beside: bool
    more: bool


def take(
    source: str | Path,
    out: str | Path,
    vae: VAE,
    *,
    store: Stored = "float32",
    check: int = 4,
    memory: int | str | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Taken:
    """Makes a cache of the files in a folder that sd-scripts or musubi-tuner cached.

    OUT is there when it is complete, and else not at all. A sample has the name and the sha256 of its picture where it
    lies beside, and else those of the file.

    Args:
        source: the folder; those in it are looked at too.
        out: OUT, a new or empty folder.
        vae: that made them; nothing in the files tells.
        memory: at most so much to decode in, as for `VAE.decode`.
        store: what latents are stored in.
        check: so many are decoded, and compared with their pictures.
        tell: called with how many are done, and of how many.

    Raises:
        UsageError: there are no such files, they are of several programs or models, or of another VAE's kind; OUT is
            taken.
        LatentsError: a file is damaged, or no such cache.
        CalotypeError: they are not what the VAE makes of their pictures.
    """
    arrow()
    folder, target = Path(source), Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"OUT {target}: there is something already; give a folder that is new, or empty.")
    paths = _paths(folder)
    first = _opened(paths[0], vae)
    files = _files(folder, paths, first, vae)
    value: Value = "mode" if first.drawn == "mode" else "sample"
    flips = first.program == "sd-scripts" and sd_scripts.mirrored(first.path) is not None
    job = _job(vae, files, value, store, flips, f"{first.program} {first.model}".strip())
    with whole(target) as made:
        _fill(Store(made), job, files, vae, tell)
        checked, notes = require_right(
            Store(made), job, vae, _pictures(folder), [one.sample for one in files if one.beside], check, memory
        )
    if more := sum(one.more for one in files):
        notes = (*notes, f"{more:,} of {len(files):,} files hold masks or other tensors too, which were left out.")
    return Taken(
        program=first.program, model=first.model, samples=len(files), value=value, flips=flips,
        pictures=sum(one.beside for one in files), checked=checked, notes=notes,
    )  # fmt: skip


def _paths(folder: Path) -> list[Path]:
    """The files with latents in a folder, in order.

    Raises:
        UsageError: there are none.
    """
    if not folder.is_dir():
        raise UsageError(
            f"SOURCE {folder}: there is no such folder; give one with caches of sd-scripts or musubi-tuner."
        )
    found = sorted(
        Path(above, name)
        for above, inner, names in os.walk(folder)
        for name in names
        if name.lower().endswith((".npz", ".safetensors")) and name[0] != "." and not _OF_TEXTS.search(name)
    )
    if not found:
        raise UsageError(
            f"SOURCE {folder}: no .npz of sd-scripts and no .safetensors of musubi-tuner is in it; give the folder "
            "that they were cached in."
        )
    return found


def _opened(path: Path, vae: VAE) -> LatentFile:
    """A file, whose format is told by it, or the VAE's.

    Raises:
        LatentsError: it is no such cache, or damaged.
        UsageError: it holds several latents, or those of another kind of VAE.
    """
    foreign = (
        path.suffix == ".safetensors" and (names := header(path)) and not any(map(musubi.LATENTS.fullmatch, names))
    )
    file = None if foreign else open_latents(path)
    if file is None or file.program not in PROGRAMS:
        kind = "other tensors" if file is None else f"{file.program or 'bare'} ones"
        raise LatentsError(
            f"{path}: these are no latents that {' or '.join(PROGRAMS)} cached, but {kind}; move them elsewhere."
        )
    if len(file) != 1:
        raise UsageError(
            f"{path}: it holds latents of {len(file)} sizes of one picture, and a cache has one; cache it anew for one."
        )
    ours = vae.latent_format
    if file.format is None:  # old files, which are raw
        file = open_latents(path, latent_format="none")
    elif not same_space(file.format, ours) and not (isinstance(ours, Packed) and file.format.name == ours.name):
        raise UsageError(
            f"{path}: these are latents of format {file.format.name!r}, and {vae.name or 'this VAE'} makes those of "
            f"{ours.name!r}; give the VAE that made them with --vae."
        )
    if file.question:
        raise UsageError(file.question)
    return file


def _files(folder: Path, paths: Sequence[Path], first: LatentFile, vae: VAE) -> list[_File]:
    """All files with their pictures; only headers of latents are read."""
    pictures = _pictures(folder)
    by_stem: dict[str, list[int]] = {}
    for i, name in enumerate(pictures.names if pictures else ()):
        by_stem.setdefault(as_text(str(PurePosixPath(name).with_suffix(""))), []).append(i)
    say = words(pictures.names, pictures.beside) if pictures else None
    found = []
    for path in paths:
        file = first if path == first.path else _opened(path, vae)
        if (file.program, file.model) != (first.program, first.model):
            raise UsageError(
                f"{path}: this is of {_whose(file)}, and {first.path} of {_whose(first)}; a cache is of one model: "
                "move one of them elsewhere."
            )
        inner = path.relative_to(folder)
        told = _NAME.fullmatch(path.stem)
        size = (int(told[2]), int(told[3])) if told else None
        stem = (inner.parent / (told[1] if told else path.stem)).as_posix()
        bucket = _bucket(file, vae)
        sample = None
        if pictures is not None and say is not None:
            sample = _beside(pictures, by_stem.get(as_text(stem), ()), size, say)
        beside = sample is not None
        if sample is None:
            key = hashlib.sha256(path.read_bytes()).digest()
            sample = Sample(0, key, as_text(inner.as_posix()), size or bucket, size or bucket)
        found.append(_File(path, bucket, sample, beside, any(not _KNOWN.match(name) for name in file.left_out)))
    return found


def _whose(file: LatentFile) -> str:
    return f"{file.program}{f' for {file.model}' if file.model else ''}"


def _bucket(file: LatentFile, vae: VAE) -> Size:
    """(width, height) in pixels."""
    assert file.format is not None
    each = vae.factor * (file.format.patch if file.space == "model" else 1)
    return each * file.shape[-1], each * file.shape[-2]


def _pictures(folder: Path) -> Pictures | None:
    try:
        return open_source(folder)
    except UsageError:  # there are none
        return None


def _beside(
    pictures: Pictures, places: Sequence[int], size: Size | None, say: Callable[[int], tuple[str | None, str | None]]
) -> Sample | None:
    """The picture of a file: that of its name and size, if it can be read."""
    for i in places:
        found = look(pictures, i)
        if found.reason is None and size in (None, found.stored):
            return Sample(i, found.key, as_text(pictures.names[i]), found.stored, found.stored, *say(i))
    return None


def _job(vae: VAE, files: Sequence[_File], value: Value, store: Stored, flips: bool, whose: str) -> Job:
    """What the new cache is of; its table of sizes is only one that covers them where there are several."""
    sizes = {one.bucket for one in files}
    side = math.isqrt(max(width * height for width, height in sizes) - 1) + 1
    each = vae.factor * vae.latent_format.patch
    rules = Rules(
        size=next(iter(sizes)) if len(sizes) == 1 else None,
        buckets="" if len(sizes) == 1 else f"{-(-side // each) * each}/{each}",
        flip=flips,
        seed=UNKNOWN,
    )
    job = job_of(vae, rules, value=value if vae.config.has_posterior else "mode", store=store)
    return replace(job, value=value, versions={"calotype": __version__, "taken from": whose})


def _fill(store: Store, job: Job, files: Sequence[_File], vae: VAE, tell: Callable[[int, int], None]) -> None:
    """Writes the cache."""
    make_folder(store.root)
    store.write(JOB, json.dumps(job.to_dict(), indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    made, done = {"device": "none", **(job.versions or {})}, 0
    for bucket, part in _units(job, files):
        unit = Unit(unit_id(job, [one.sample.id for one in part]), bucket, tuple(one.sample for one in part))
        attempt = Attempt(job, unit, store)
        try:
            for one in part:
                placed = Rules(size=bucket).place(*one.sample.upright, one.sample.key)
                attempt.add(one.sample, placed, _tensors(one, job, vae))
                done += 1
                tell(done, len(files))
        except BaseException:
            attempt.drop()
            raise
        attempt.commit(made)
    write_manifest(store, job)


def _units(job: Job, files: Sequence[_File]) -> Iterator[tuple[Size, list[_File]]]:
    for bucket in sorted({one.bucket for one in files}):
        of = [one for one in files if one.bucket == bucket]
        most = unit_samples(job, bucket)
        yield from ((bucket, of[start : start + most]) for start in range(0, len(of), most))


def _tensors(one: _File, job: Job, vae: VAE) -> dict[str, Tensor]:
    """Raw latents of a file, as the cache stores them.

    Raises:
        NonFiniteError: they are more than the type holds.
        LatentsError: the file lacks those of the mirrored picture.
    """
    latents = _opened(one.path, vae)[0]
    made = {"latents": vae.adopt(latents).tensor}
    if job.rules.flip:
        mirrored = sd_scripts.mirrored(one.path)
        if mirrored is None:
            raise LatentsError(
                f"{one.path}: it has no latents of the mirrored picture, and others have; cache all of them alike."
            )
        made["latents_flip"] = vae.adopt(replace(latents, tensor=mirrored)).tensor
    dtype: torch.dtype = getattr(torch, job.store)
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in made.items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in stored.values()):
        raise NonFiniteError(f"{one.path}: its latents are more than {job.store} holds; give --store float32.")
    return stored
