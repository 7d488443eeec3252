"""Filling a cache: from pictures and a VAE to shards, receipts and a manifest."""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from calotype import stopping
from calotype.cache.actor import setup_of
from calotype.cache.crew import Crew
from calotype.cache.guard import running, waiting
from calotype.cache.job import Job, Made, Stored as StoredType, Value
from calotype.cache.local import work
from calotype.cache.manifest import write_manifest
from calotype.cache.parts import release
from calotype.cache.reader import job_in
from calotype.cache.receipts import Bad, Receipt, fingerprints, receipts
from calotype.cache.rules import Rules
from calotype.cache.scan import pictures, scan
from calotype.cache.seen import scanned_now
from calotype.cache.store import CLAIMS, JOB, RUNS, SCAN, Store
from calotype.cache.tables import arrow
from calotype.cache.units import Cut, Plan, Unit, held, of_part, plan, unit
from calotype.cache.worker import FINISH, Step, Worker, versions
from calotype.cluster import joined, the_ray
from calotype.engine.memory import trim
from calotype.errors import CalotypeError, CalotypeWarning, UsageError
from calotype.files import write_bytes
from calotype.texts import plain
from calotype.vae import VAE
from calotype.weights.mapped import dtype_name

MOST_BAD = "1%"  # of pictures, unless something else is said
A_FEW = 3  # pictures may be bad in any case


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        doing: "scan", "make" or "manifest".
        done: pictures that are done; of a part those of the part.
        total: pictures there are; of a part those of the part.
        made: of these, by this process.
        bad: pictures that could not be cached so far.
        waiting: units that other processes make, while there is nothing else to do.
        workers: processes of a cluster that make units now; None without one.
    """

    doing: Literal["scan", "make", "manifest"] = "scan"
    done: int = 0
    total: int = 0
    made: int = 0
    bad: int = 0
    waiting: int = 0
    workers: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        stopped: it was told to stop, and the same command goes on.
        wanted: pictures of the data that can be cached, as far as is known; of a part too, all of them.
        held: those in the cache now.
        made: by this run.
        units: of this run.
        bad: pictures that could not be cached, ever.
        enlarged: pictures smaller than what they were brought to.
        seconds: of making, without the scan.
    """

    stopped: bool
    wanted: int
    held: int
    made: int
    units: int
    bad: list[Bad]
    enlarged: int
    seconds: float


@dataclass
class _Run:
    """What is counted while units are made."""

    limit: int
    of: int
    progress: Progress
    tell: Callable[[Progress], None]
    stop: Callable[[], bool]
    bad: list[Bad]
    began: float = field(default_factory=time.monotonic)
    units: int = 0
    made: int = 0
    there: int = 0

    def step(self, step: Step) -> None:
        """After each picture."""
        self.progress.done += 1
        self.progress.made += 1
        self.progress.waiting = 0
        if step.bad is not None:
            self.bad.append(step.bad)
            self.progress.bad += 1
        self.tell(self.progress)

    def lost(self, steps: Sequence[Step]) -> None:
        """Pictures that are to be made again."""
        for step in steps:
            self.progress.done -= 1
            self.progress.made -= 1
            if step.bad is not None:
                self.bad.remove(step.bad)
                self.progress.bad -= 1
        self.tell(self.progress)

    def crew(self, workers: int) -> None:
        """How many there are."""
        self.progress.workers = workers
        self.tell(self.progress)

    def here(self, worker: Worker, cuts: Sequence[Cut], unit_of: Callable[[Cut], Unit]) -> bool:
        """Has this process do the work; gives whether it was stopped."""
        in_unit = left = 0

        def next_unit(cut: Cut) -> Unit:
            nonlocal in_unit, left
            in_unit, left = 0, len(cut.rows)
            if self.stop():
                raise _Stopped
            return unit_of(cut)

        def step(one: Step) -> None:
            nonlocal in_unit
            in_unit += 1
            self.step(one)
            if self.stop():
                each = (time.monotonic() - self.began) / self.progress.made
                if each * (left - in_unit) > FINISH:
                    raise _Stopped

        def pausing(units: int) -> None:
            if self.stop():
                raise _Stopped
            self.pausing(units)

        try:
            work(worker, cuts, next_unit, tell=step, finished=self.finished, pausing=pausing)
        except _Stopped:
            return True
        return False

    def finished(self, receipt: Receipt, own: bool) -> None:
        """After each unit."""
        self.units += own
        self.there += receipt.count
        self.made += own * receipt.count
        if not own:
            self.progress.done += receipt.count + len(receipt.bad)
            self.progress.bad += len(receipt.bad)
            self.bad += receipt.bad
        self.tell(self.progress)
        require_few(self.bad, self.limit, self.of)

    def pausing(self, units: int) -> None:
        """While others make what is left."""
        self.progress.waiting = units
        self.tell(self.progress)


class _Stopped(Exception):
    pass


def job_of(vae: VAE, rules: Rules, *, value: Value = "moments", store: StoredType = "float16") -> Job:
    """What a cache by a VAE is of.

    Args:
        vae: it encodes in its `encode_dtype`.
        rules: what is done to pictures.
        value: what of the posterior is kept.
        store: what latents are stored in.

    Raises:
        UsageError: the VAE has no posterior and moments or samples are asked for; sides are no multiples of its factor.
        LatentFormatError: how its latents are scaled is not known.
        WeightsError: it has no encoder.
    """
    vae.require("encoder")
    if not vae.config.has_posterior and value != "mode":
        raise UsageError(
            f"--value {value}: {vae.name or 'this VAE'} gives latents and no posterior; give --value mode."
        )
    format_ = vae.latent_format
    rules.require_multiples(vae.factor * format_.patch)
    return Job(
        vae=Made(
            name=vae.name,
            sha256=vae.sha256,
            config=_plain(vae.config.to_dict()),
            factor=vae.factor,
            channels=vae.latent_channels,
            latent_format=_plain(format_.to_dict()),
        ),
        value=value,
        rules=rules,
        dtype=dtype_name(vae.encode_dtype),  # type: ignore[arg-type]
        store=store,
        versions=versions(),
    )


def make(
    data: str | Path,
    out: str | Path,
    vae: VAE,
    job: Job,
    *,
    memory: int | str | None = None,
    part: str = "",
    max_bad: str = MOST_BAD,
    folders: bool = False,
    engine: Literal["local", "ray"] = "local",
    device: str | None = None,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Fills a cache with what it lacks: exactly that is made which is not there for these pictures.

    Several processes may do so at once, each with a part or all with none. A process that ends in whatever way loses
    the unit that it had in hand, and the next run makes it.

    Args:
        data: a folder, archive or dataset; see `sources.open_source`.
        out: the cache's folder; made if it is not there.
        job: see `job_of`.
        memory: at most so much beside the weights, in bytes or words; None: what is fast, and free.
        part: "2/4" makes the second of four parts.
        max_bad: pictures that may be bad before the run ends, as a number, or in percent, of which three may always be.
        folders: pictures without a label have the name of their folder as one.
        engine: this process, or the Ray cluster that RAY_ADDRESS names (a local one without it), where each worker
            has so much memory.
        device: of the cluster's workers; None: GPUs where it has some. This process computes where `vae` lies.
        tell: called with how far it is, often.

    Raises:
        UsageError: no pictures, a cache of another job, someone who repairs it; a cluster without room, or whose nodes
            don't have these pictures and this cache.
        StorageError: the disk refuses what is written.
        CalotypeError: too many pictures are bad, or all of them.

    Warns:
        CalotypeWarning: files of the place are left out.
    """
    arrow()
    ray = the_ray() if engine == "ray" else None
    store, progress = Store(out), Progress()
    allowed(max_bad, 1)
    of_part((), part)
    source, numbers = pictures(data, store.path("."))
    if source.left_out:
        warnings.warn(source.left_out.sentence, CalotypeWarning, stacklevel=2)
    _require_free(store, job)
    with running(store) as mark, ExitStack() as joining:
        job = _begun(store, job)
        if ray:
            joining.enter_context(joined(ray))
            setup = setup_of(job, os.fspath(data), store, mark, source.names, device=device, memory=memory)
            crew = Crew(ray, setup)

        def scanning(done: int, total: int) -> None:
            progress.done, progress.total = done, total
            tell(progress)

        with waiting(store.path(f".{SCAN}.lock"), tell=lambda: tell(progress)):
            places = scan(source, numbers, store, os.fspath(data), folders=folders, tell=scanning)
            seen = joining.enter_context(scanned_now(store))
        planned = plan(job, seen, held(store, receipts(store, job.fingerprint)[0]))
        release()
        trim()
        of = len(seen)
        _require_some(planned, source.title)
        require_few(planned.bad, limit := allowed(max_bad, of), of)
        cuts = of_part(planned.units, part)
        progress.doing, progress.done = "make", 0 if part else planned.done
        progress.total = progress.done + sum(len(cut.rows) for cut in cuts)
        progress.bad = len(planned.bad)
        with stopping.noted() as stop:
            run = _Run(limit, of, progress, tell, stop, list(planned.bad))
            if ray:
                stopped = crew.work(vae, cuts, lambda cut: unit(cut, seen, places), run)
            else:
                worker = Worker(job, vae, source, store, memory=memory)
                stopped = run.here(worker, cuts, lambda cut: unit(cut, seen, places))
        seconds = time.monotonic() - run.began
        if not stopped:
            progress.doing = "manifest"
            tell(progress)
        count = planned.done + run.there if stopped else write_manifest(store, job)["done"]
    if not stopped and not part and not count:
        raise CalotypeError(_all_bad(source.title, run.bad))
    return Outcome(
        stopped=stopped,
        wanted=planned.wanted - (len(run.bad) - len(planned.bad)),
        held=count,
        made=run.made,
        units=run.units,
        bad=run.bad,
        enlarged=planned.enlarged,
        seconds=seconds,
    )


def allowed(text: str, of: int) -> int:
    """How many of so many pictures may be bad.

    Raises:
        UsageError: the text is neither a number nor a share.
    """
    if found := re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*%", text):
        if float(found[1]) <= 100:
            return max(A_FEW, int(of * float(found[1]) / 100))
    elif text.isdecimal():
        return int(text)
    raise UsageError(f"--max-bad {text}: give how many pictures may be bad, as a number or in percent: 20 or 1%.")


def require_few(bad: list[Bad], limit: int, of: int) -> None:
    """Checks that not too many pictures are bad: at most `limit`, among `of` of them.

    Raises:
        CalotypeError: they are; the message names the first ones.
    """
    if len(bad) > limit:
        raise CalotypeError(
            f"{len(bad):,} of {of:,} pictures can't be cached, and --max-bad allows {limit:,}: {_first(bad)}; mend or "
            "remove them, or allow more. What was made is kept."
        )


def _first(bad: list[Bad]) -> str:
    told = [f"{plain(one.name)}: {one.reason.rstrip('.')}" for one in bad[:3]]
    return "; ".join(told) + (f"; and {len(bad) - 3:,} more" if len(bad) > 3 else "")


def _all_bad(title: str, bad: list[Bad]) -> str:
    return f"{title}: none of its pictures can be cached: {_first(bad)}."


def _require_some(planned: Plan, title: str) -> None:
    if not planned.wanted:
        raise CalotypeError(_all_bad(title, planned.bad))


def _require_free(store: Store, job: Job) -> None:
    """Checks that a folder is a cache, or can become one. A cache of this job that lost its cache.json is one.

    Raises:
        UsageError: there is something else in it.
    """
    if not store.root.is_dir() or store.size(JOB) is not None:
        return
    made = set(fingerprints(store))
    if job.fingerprint in made:
        return
    if made:
        raise UsageError(
            f"{store}: this cache lost its {JOB}, and was made of another VAE or with other options; give those that "
            "it was made with, or another OUT."
        )
    own = (RUNS, CLAIMS)
    if other := sorted(path.name for path in store.root.iterdir() if path.name not in own and path.name[0] != "."):
        raise UsageError(f"{store}: this folder is no cache and not empty (it has {other[0]}); give another one.")


def _begun(store: Store, job: Job) -> Job:
    """The job as the cache has it; a new cache gets it.

    Raises:
        UsageError: the cache is of another job.
    """
    with waiting(store.path(f".{JOB}.lock")):  # or two that begin at once would each go on with its own
        if store.size(JOB) is None:
            text = json.dumps(job.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
            write_bytes(store.path(JOB), text.encode("utf-8", "backslashreplace") + b"\n")
        there = job_in(store)
    if other := there.difference(job):
        raise UsageError(
            f"{store}: this cache was made with {other}; give the same, or another OUT, or empty this one with "
            "calotype cache gc --all."
        )
    return replace(there, versions=job.versions)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As they are after a trip through JSON."""
    told: dict[str, Any] = json.loads(json.dumps(values))
    return told
