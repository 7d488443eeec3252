"""Where every feature map of a program lives, and what that costs. Pure arithmetic: no torch.

A program's steps are grouped into passes. A pass runs its steps together, stripe by stripe from the top: maps inside it
exist as a window of rows only ("rows"); others are whole, in memory ("kept") or in a temporary file ("spilled"). A map
that is normalised must be known whole before it is read: one that exists as rows only is computed once for its
statistics, in a pass of its own, and again where its rows are needed. No step sees less than it would see in the whole
picture, so the result is that of the whole picture.

Results are written over what is not needed any more: a residual sum over its own term, a map over the rows of its
source that have been read. Offsets in one block of memory are fixed here, so the predicted peak is what is allocated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import ceil
from typing import Literal

from calotype.engine.bilinear import Algorithm, downsampling, pointwise, upsampling, winograd
from calotype.engine.program import Attention, Conv, Fold, Map, Program, Step
from calotype.errors import MemoryLimitError, UsageError

Place = Literal["kept", "spilled", "rows"]
Kernels = Literal["winograd", "reference"]

ALIGN = 4096  # of every block of memory
LANES, PANEL, TILES_AT_ONCE = 16, 32, 12  # of the kernels; `kernels.py` may use less
QUERIES, KEYS = 2048, 1024  # positions that attention takes at once
ATTENTION_BLOCK = (1, 192)  # positions of its linear maps that a thread takes at once

SMALLEST_SPILL = 2**20  # bytes of a map that is worth not keeping
SPILL_COST = 100.0  # operations in the time that a byte takes to the temporary file or from it
READ_COST = 3.5  # operations in the time that a thread takes to read a byte of weights
RUN_COST = 2e7  # operations in the time that starting a step on a stripe takes
COMFORT = 10**9  # bytes that the default plan takes without asking what less would cost
SLACK = 1.1  # above them it takes the least memory that costs no more than this, over the fastest plan
ATTENTION_WARNING = 3.0  # when attention costs so much more than everything else, the plan says so


def algorithm_of(step: Conv) -> Algorithm:
    """How a convolution is computed in few multiplications."""
    if step.kernel == 1:
        return pointwise()
    return {"none": winograd(), "up": upsampling(), "down": downsampling()}[step.resample]


def first_source_row(step: Step, row: int) -> int:
    """The first row of its source that a step needs for its target's rows from `row` on (0 or below for none)."""
    if isinstance(step, Fold):
        return row * step.block if step.target.factor > step.source.factor else row // step.block
    if isinstance(step, Conv) and step.kernel == 3:
        if step.resample == "up":
            return (row - 1) // 2
        return 2 * row - step.pad if step.resample == "down" else row - 1
    return row


def end_source_row(step: Step, end: int) -> int:
    """The row of its source after the last that a step needs for its target's rows before `end` (perhaps beyond it)."""
    if isinstance(step, Fold):
        return end * step.block if step.target.factor > step.source.factor else ceil(end / step.block)
    if isinstance(step, Conv) and step.kernel == 3:
        if step.resample == "up":
            return end // 2 + 1
        return 2 * end + 1 - step.pad if step.resample == "down" else end + 1
    return end


@dataclass(frozen=True)
class Run:
    """Rows `start` to `end` of a map, made by step number `step` of a pass, or loaded where that is below zero.

    `drop`: rows of that map before this one are needed no longer, once this run begins.
    """

    map: Map
    step: int
    start: int
    end: int
    drop: int


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Steps that run together.

    Attributes:
        steps: in order.
        stripe: rows of the last step's target at a time.
        measured: names of the maps whose statistics are taken.
        stores: whether what its last step makes is stored, or only measured.
        offsets: of its windows, scratch and transformed weights in its part of the memory, by name.
        temporary: bytes of that part.
    """

    steps: tuple[Step, ...]
    stripe: int
    measured: frozenset[str]
    stores: bool
    rows: Mapping[str, int]  # height of every map it touches
    places: Mapping[str, Place]
    granules: tuple[int, ...]  # rows that each step makes at once
    offsets: Mapping[str, int] = field(default_factory=dict)
    windows: Mapping[str, int] = field(default_factory=dict)  # rows of every window
    temporary: int = 0

    @property
    def made(self) -> dict[str, int]:
        """The step that makes each map."""
        return {step.target.name: i for i, step in enumerate(self.steps)}

    @property
    def loaded(self) -> list[Map]:
        """Maps that come from a file, or from outside."""
        made = self.made
        found: dict[str, Map] = {}
        for step in self.steps:
            for one in read_by(step):
                if one.name not in made and self.places[one.name] != "kept":
                    found[one.name] = one
        return list(found.values())

    @property
    def target(self) -> Map:
        """What its last step makes."""
        return self.steps[-1].target

    @property
    def iterations(self) -> int:
        """Stripes."""
        return ceil(self.rows[self.target.name] / self.stripe)

    def needed(self, iteration: int) -> dict[str, int]:
        """How far each map, made or loaded, must have come at the end of an iteration (-1: before the first)."""
        end = min((iteration + 1) * self.stripe, self.rows[self.target.name])
        if end <= 0:
            return dict.fromkeys((*self.made, *(one.name for one in self.loaded)), 0)
        need = {one.name: 0 for one in self.loaded}
        last = self.rows[self.target.name]
        for step, granule in zip(reversed(self.steps), reversed(self.granules), strict=True):
            name, height = step.target.name, self.rows[step.target.name]
            rows = need.get(name, 0)
            if step is self.steps[-1] or self.places[name] != "rows":
                rows = max(rows, ceil(end * height / last))
            rows = min(height, ceil(rows / granule) * granule)
            need[name] = rows
            for one, until in sources_until(step, rows):
                need[one.name] = max(need.get(one.name, 0), min(until, self.rows[one.name]))
        return need

    def still_read(self, need: Mapping[str, int]) -> dict[str, int]:
        """The first row of each map that steps which have come so far will read again."""
        first: dict[str, int] = {}
        for step in self.steps:
            done = need[step.target.name]
            for one in read_by(step):
                row = done if _is_residual(step, one) else first_source_row(step, done)
                if isinstance(step, Conv) and step.residual == one and step.source == one:
                    row = min(done, first_source_row(step, done))
                first[one.name] = min(first.get(one.name, self.rows[one.name]), max(0, row))
        return first

    def runs(self, iteration: int) -> Iterator[Run]:
        """What an iteration does, in order."""
        before, after = self.needed(iteration - 1), self.needed(iteration)
        first = self.still_read(before)
        for one in self.loaded:
            if after[one.name] > before[one.name]:
                yield Run(one, -1, before[one.name], after[one.name], min(first[one.name], before[one.name]))
        for i, step in enumerate(self.steps):
            name = step.target.name
            if after[name] > before[name]:
                yield Run(step.target, i, before[name], after[name], min(first.get(name, before[name]), before[name]))


def _is_residual(step: Step, one: Map) -> bool:
    return isinstance(step, Conv) and step.residual == one and step.source != one


def read_by(step: Step) -> tuple[Map, ...]:
    """Maps that a step reads."""
    if isinstance(step, Conv) and step.residual and step.residual != step.source:
        return step.source, step.residual
    return (step.source,)


def sources_until(step: Step, rows: int) -> Iterable[tuple[Map, int]]:
    """Each map that a step reads, and how far it needs it for its target's rows before `rows`."""
    for one in read_by(step):
        yield one, rows if _is_residual(step, one) else end_source_row(step, rows)


def _normalised(step: Step) -> bool:
    return isinstance(step, Attention) or (isinstance(step, Conv) and step.norm is not None)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a program runs for one size.

    Attributes:
        passes: in order.
        places: of every map.
        offsets: of kept maps in memory; a map may lie over another that is read while it is written.
        kept: bytes of all kept maps together.
        peak: bytes at most, beyond the network's own weights and without what goes in and comes out.
        work: operations, with what moving bytes to the file and starting steps costs in them.
        flops: operations of the products alone, as computed; `direct_flops`: of direct convolutions.
        spill: bytes that go to the temporary file and come from it.
        attention: operations of attention over all positions.
        computed: operations of the products of each map, over all passes that make it.
        threads, itemsize, half: what it was made for; see `plan`.
    """

    program: Program
    height: int
    width: int
    kernels: Kernels
    threads: int
    itemsize: int
    half: bool
    passes: tuple[Pass, ...]
    places: Mapping[str, Place]
    offsets: Mapping[str, int]
    kept: int
    peak: int
    work: float
    flops: int
    spill: int
    attention: int
    computed: Mapping[str, int]

    @property
    def direct_flops(self) -> int:
        """Operations of the whole picture with direct convolutions, each computed once."""
        return self.program.flops(self.height, self.width)

    def notices(self) -> list[str]:
        """What a user should know, a sentence each."""
        found = []
        rest = self.flops - self.attention
        if self.attention > ATTENTION_WARNING * rest:
            found.append(
                f"Attention over all positions costs {self.attention / max(rest, 1):.0f} times as much as everything "
                f"else at this size ({self.attention / 1e12:,.0f} TFLOP); it is exact, and it grows with the fourth "
                f"power of the side."
            )
        return found


@dataclass(frozen=True)
class Policy:
    """What a candidate plan does with maps.

    Attributes:
        streamed: upsampled maps of at least so many bytes that a block narrows exist as rows only (None: none do).
        limit: maps of at least so many bytes are not simply kept (None: all are).
        side: what happens to those inside a residual block: "spilled" or "rows" (computed twice).
        main: and to those between blocks: "kept" or "spilled".
    """

    streamed: int | None
    limit: int | None
    side: Literal["spilled", "rows"]
    main: Literal["kept", "spilled"]


def _consumers(program: Program) -> dict[str, list[Step]]:
    found: dict[str, list[Step]] = {}
    for step in program.steps:
        for one in read_by(step):
            found.setdefault(one.name, []).append(step)
    return found


def _places(program: Program, policy: Policy, height: int, width: int, itemsize: int) -> dict[str, Place]:
    """Where a policy puts every map."""
    consumers = _consumers(program)
    places: dict[str, Place] = {program.source.name: "rows", program.target.name: "rows"}
    for step in program.steps[:-1]:
        one = step.target
        readers = consumers[one.name]
        statistics = any(_normalised(reader) for reader in readers if reader.source.name == one.name)
        large = policy.limit is not None and one.values(height, width) * itemsize >= policy.limit
        if isinstance(step, Attention):
            places[one.name] = places[step.source.name]
        elif not any(_normalised(near) for near in (step, *readers)):
            places[one.name] = "rows"  # nothing stands between it and its readers
        elif any(isinstance(reader, Attention) for reader in readers):
            places[one.name] = policy.main if large else "kept"
        elif (
            policy.streamed is not None
            and one.values(height, width) * itemsize >= policy.streamed
            and _is_widened(step, readers)
        ):
            places[one.name] = "rows"
        elif large and statistics and len(readers) == 1:
            places[one.name] = policy.side
        else:
            places[one.name] = policy.main if large else "kept"
    return places


def _is_widened(step: Step, readers: list[Step]) -> bool:
    """Whether this is an upsampled map whose readers all make narrower ones."""
    return (
        isinstance(step, Conv)
        and step.resample == "up"
        and all(isinstance(r, Conv) and r.residual is None and r.target.channels < r.source.channels for r in readers)
    )


def _groups(program: Program, places: Mapping[str, Place]) -> list[list[Step]]:
    """Steps that run together: from where a map is made as rows to where the last of its rows are read."""
    groups: list[list[Step]] = []
    waiting: set[str] = set()  # rows made in the open group, by readers still to come
    left = {name: len(readers) for name, readers in _consumers(program).items()}
    for step in program.steps:
        if waiting:
            groups[-1].append(step)
        else:
            groups.append([step])
        for one in read_by(step):
            left[one.name] -= 1
            if not left[one.name]:
                waiting.discard(one.name)
        if places[step.target.name] == "rows" and left.get(step.target.name):
            waiting.add(step.target.name)
    return groups


def _ancestors(group: list[Step], target: str) -> list[Step]:
    """The steps of a group that must run for this map."""
    wanted, found = {target}, []
    for step in reversed(group):
        if step.target.name in wanted:
            found.append(step)
            wanted |= {one.name for one in read_by(step)}
    return found[::-1]


def _passes(program: Program, places: Mapping[str, Place]) -> list[tuple[list[Step], str | None]]:
    """Groups in the order in which they run, with those before them that only measure a map (its name)."""
    measured = {step.source.name for step in program.steps if _normalised(step)}
    result: list[tuple[list[Step], str | None]] = []
    for group in _groups(program, places):
        for step in group[:-1]:
            if places[step.target.name] == "rows" and step.target.name in measured:
                result.append((_ancestors(group, step.target.name), step.target.name))
        result.append((group, None))
    return result


def computed_flops(step: Step, height: int, width: int, kernels: Kernels) -> int:
    """Operations of a step's products, as they are computed."""
    if isinstance(step, Attention):
        rows, columns = step.source.size(height, width)
        n, c = rows * columns, step.source.channels
        return 8 * n * c * c + 4 * n * n * c
    if isinstance(step, Fold):
        return 0
    if kernels == "reference":
        return step.flops(height, width)
    algorithm = algorithm_of(step)
    rows, columns = step.target.size(height, width)
    tiles = ceil(rows / algorithm.tile) * ceil(columns / algorithm.tile)
    return 2 * tiles * algorithm.positions**2 * step.source.channels * step.target.channels


def block_of(step: Conv, height: int, width: int, threads: int, rows: int | None = None) -> tuple[int, int]:
    """Rows and columns of tiles that a thread takes at once, of a map or of so many rows of it.

    Many, so that weights are read seldom, and few, so that a block stays near the processor.
    """
    algorithm = algorithm_of(step)
    high, wide = step.target.size(height, width)
    if rows is not None:
        high = min(high, rows)
    down, across = ceil(high / algorithm.tile), ceil(wide / algorithm.tile)
    channels = max(step.source.channels, step.target.channels)
    many = step.kernel == 1 or channels > 256
    tiles = (192 if many else 96 if channels > 128 else 48) if algorithm.positions <= 6 else (144 if many else 96)
    # one thread and two share a map alike, so that they give the same bits
    tiles = min(tiles, max(TILES_AT_ONCE, ceil(down * across / max(2, threads))))
    columns = ceil(across / ceil(across / min(across, max(TILES_AT_ONCE, ceil(tiles**0.5)))))
    return min(down, max(1, round(tiles / columns))), columns


def weight_bytes(step: Conv, half: bool) -> int:
    """Bytes of a convolution's transformed weights."""
    channels = step.source.channels + (step.source.channels % 2 if half else 0)
    out = ceil(step.target.channels / PANEL) * PANEL
    return algorithm_of(step).positions ** 2 * channels * out * (2 if half else 4)


def scratch_floats(step: Conv, block: tuple[int, int]) -> tuple[int, int, int, int]:
    """Floats of a thread's patch, inputs, outputs and tile (see `kernels.convolve_block`)."""
    algorithm = algorithm_of(step)
    padded = ceil(step.source.channels / LANES) * LANES
    wide = ceil(step.target.channels / PANEL) * PANEL
    tiles = ceil(block[0] * block[1] / TILES_AT_ONCE) * TILES_AT_ONCE
    rows, columns = ((n - 1) * algorithm.step + algorithm.window for n in block)
    t2, skew = algorithm.positions**2, LANES
    return (
        rows * columns * padded,
        t2 * (tiles * padded + skew),
        t2 * (tiles * wide + skew),
        (algorithm.tile**2 + 3) * wide,
    )


def aligned(size: int) -> int:
    """A size rounded up to whole pages."""
    return ceil(size / ALIGN) * ALIGN


FIXED = 12 * 2**20  # what small arrays, threads and statistics take beside all that is counted
BLOCKS_AT_ONCE = 256  # of a map without windows, so that its statistics stay few and progress is seen


@dataclass
class _Home:
    """Where a kept map lies in its chain, and from which pass to which it is needed."""

    start: int
    end: int
    first: int
    last: int


_Chain = dict[str, _Home]
"""Maps that lie over one another, at places relative to the first of them."""


@dataclass(frozen=True)
class _Job:
    """What is planned: everything but the policy."""

    program: Program
    height: int
    width: int
    kernels: Kernels
    threads: int
    itemsize: int
    half: bool

    def row_bytes(self, one: Map) -> int:
        return one.size(self.height, self.width)[1] * one.channels * self.itemsize

    def bytes(self, one: Map) -> int:
        return one.values(self.height, self.width) * self.itemsize

    def granule(self, step: Step) -> int:
        """Rows that a step makes at once."""
        if isinstance(step, Fold):
            return step.block if step.target.factor < step.source.factor else 1
        return algorithm_of(step).tile if isinstance(step, Conv) and self.kernels == "winograd" else 1


def _plan(job: _Job, places: Mapping[str, Place], stripe: int, known: dict[tuple[object, ...], Pass]) -> Plan:
    """What these places come to; passes that other plans have too are looked up in `known`."""
    passes: list[Pass] = []
    chains: list[_Chain] = []
    home: dict[str, _Chain] = {}  # of kept maps
    last_read: dict[str, int] = {}
    order = _passes(job.program, places)
    measured = {step.source.name for step in job.program.steps if _normalised(step)}
    for i, (steps, _) in enumerate(order):
        for step in steps:
            for m in read_by(step):
                last_read[m.name] = i
    for i, (steps, measures) in enumerate(order):
        names = {m.name for step in steps for m in (*read_by(step), step.target)}
        key = (steps[0].target, steps[-1].target, measures, stripe, *(places[name] for name in sorted(names)))
        if key not in known:
            known[key] = _pass(job, stripe, steps, measures, places, measured)
        one = known[key]
        passes.append(one)
        if one.stores:
            _place(job, one, i, last_read, chains, home)
    offsets, kept = _arrange(chains)
    spill = 0
    for one in passes:
        maps = {m.name: m for step in one.steps for m in (*read_by(step), step.target)}
        for name, m in maps.items():
            if places[name] == "spilled" and (name not in one.made or one.stores):
                spill += job.bytes(m)
    computed: dict[str, int] = {}
    runs, overhead = 0, 0.0
    for one in passes:
        runs += one.iterations * len(one.steps)
        overhead += _weight_reads(job, one)
        for step in one.steps:
            flops = computed_flops(step, job.height, job.width, job.kernels)
            computed[step.target.name] = computed.get(step.target.name, 0) + flops
    flops = sum(computed.values())
    return Plan(
        program=job.program, height=job.height, width=job.width, kernels=job.kernels, threads=job.threads,
        itemsize=job.itemsize, half=job.half, passes=tuple(passes), places=places, offsets=offsets, kept=kept,
        peak=kept + max(one.temporary for one in passes) + _heap(job),
        work=flops + overhead + SPILL_COST * spill + RUN_COST * runs, flops=flops, spill=spill,
        attention=sum(computed[s.target.name] for s in job.program.steps if isinstance(s, Attention)),
        computed=computed,
    )  # fmt: skip


def _pass(
    job: _Job, pixels: int, steps: list[Step], measures: str | None, places: Mapping[str, Place], measured: set[str]
) -> Pass:
    """A pass, about so many rows of pixels at a time, with its windows, scratch and weights laid out."""
    target = steps[-1].target
    made = {step.target.name for step in steps}
    maps = {one.name: one for step in steps for one in (*read_by(step), step.target)}
    windowed = [one for name, one in maps.items() if places[name] != "kept" or (measures and name in made)]
    high, _ = target.size(job.height, job.width)
    granules = tuple(job.granule(step) for step in steps)
    if isinstance(steps[-1], Attention):
        stripe = high
    elif not windowed and isinstance(steps[-1], Conv) and job.kernels == "winograd" and not _narrows(steps):
        down, across = block_of(steps[-1], job.height, job.width, job.threads)
        tile = algorithm_of(steps[-1]).tile
        wide = ceil(target.size(job.height, job.width)[1] / tile / across)
        stripe = min(high, max(1, BLOCKS_AT_ONCE // wide) * down * tile)
    else:
        stripe = min(high, max(1, pixels // target.factor))
    stripe = min(high, ceil(stripe / max(granules)) * max(granules))
    takes = {measures} if measures else {name for name in made if name in measured and places[name] != "rows"}
    one = Pass(
        steps=tuple(steps), stripe=stripe, measured=frozenset(takes), stores=measures is None,
        rows={name: m.size(job.height, job.width)[0] for name, m in maps.items()},
        places={name: ("rows" if measures and name == measures else places[name]) for name in maps}, granules=granules,
    )  # fmt: skip
    windows = {m.name: 0 for m in windowed}
    lengths: dict[str, set[int]] = {step.target.name: set() for step in steps}
    for k in _telling(one.iterations):
        for run in one.runs(k):
            if run.map.name in windows:
                windows[run.map.name] = max(windows[run.map.name], run.end - run.drop)
            if run.step >= 0:
                lengths[run.map.name].add(run.end - run.start)
    offsets: dict[str, int] = {}
    end = 0
    for m in windowed:
        if isinstance(steps[-1], Attention):
            continue
        offsets[m.name] = end
        end += aligned(windows[m.name] * job.row_bytes(m))
    scratch = 0
    for step in steps:
        if isinstance(step, Attention):
            scratch = max(scratch, attention_bytes(job, step, places[step.source.name] == "spilled"))
        elif isinstance(step, Conv) and job.kernels == "winograd":
            offsets["weights " + step.weights] = end
            end += aligned(weight_bytes(step, job.half))
            for length in lengths[step.target.name]:
                block = block_of(step, job.height, job.width, job.threads, length)
                scratch = max(scratch, job.threads * sum(aligned(4 * n) for n in scratch_floats(step, block)))
        else:
            scratch = max(scratch, reference_bytes(job, step, max(lengths[step.target.name])))
    offsets["scratch"] = end
    return Pass(
        steps=one.steps, stripe=stripe, measured=one.measured, stores=one.stores, rows=one.rows, places=one.places,
        granules=granules, offsets=offsets, windows=windows, temporary=end + aligned(scratch),
    )  # fmt: skip


def _weight_reads(job: _Job, one: Pass) -> float:
    """Operations in the time that blocks take to read their weights."""
    if job.kernels != "winograd":
        return 0.0
    total = 0.0
    for step in one.steps:
        if isinstance(step, Conv):
            rows, columns = step.target.size(job.height, job.width)
            at_once = ceil(rows / one.iterations)
            block = block_of(step, job.height, job.width, job.threads, at_once)
            tile = algorithm_of(step).tile
            total += (
                one.iterations
                * ceil(ceil(at_once / tile) / block[0])
                * ceil(ceil(columns / tile) / block[1])
                * weight_bytes(step, job.half)
                * READ_COST
            )
    return total


def _narrows(steps: list[Step]) -> bool:
    """Whether the last step may write over rows of its own source, which then limits how many it may write at once."""
    step = steps[-1]
    return isinstance(step, Conv) and step.residual is None and (step.norm is None or step.resample != "none")


def _telling(iterations: int) -> list[int]:
    """Iterations that differ from others: the first few and the last few."""
    return sorted({*range(min(iterations, 6)), *range(max(0, iterations - 3), iterations)})


def _heap(job: _Job) -> int:
    """Bytes outside the planned block; the matrices of attention are multiplied in float64."""
    widths = [step.source.channels for step in job.program.steps if isinstance(step, Attention)]
    return FIXED + 48 * max(widths, default=0) ** 2


def attention_bytes(job: _Job, step: Attention, spilled: bool) -> int:
    """Scratch of attention: queries and their sums, keys in both layouts, scores; and blocks of a spilled map."""
    rows, columns = step.source.size(job.height, job.width)
    c, n = step.source.channels, rows * columns
    queries, keys = min(QUERIES, n) + TILES_AT_ONCE * 4, min(KEYS, n) + PANEL
    if job.kernels == "reference" or c % PANEL:
        floats = 5 * queries * c + 4 * keys * c + 2 * queries * keys
    else:
        one = Conv(source=step.source, target=step.target, weights="", kernel=1)
        at_once = job.threads * (TILES_AT_ONCE * 4 * (keys + c) + sum(scratch_floats(one, ATTENTION_BLOCK)))
        floats = 3 * queries * c + 2 * keys * c + 4 * queries + 2 * c * c + at_once
    return (
        4 * floats
        + (8 + 5 * job.threads) * ALIGN
        + (2 * aligned(max(QUERIES, KEYS) * c * job.itemsize) if spilled else 0)
    )


def reference_bytes(job: _Job, step: Step, rows: int) -> int:
    """What torch's operations take beside source and target for so many rows: copies in both layouts, and weights."""
    source = min(end_source_row(step, rows) - first_source_row(step, 0), step.source.size(job.height, job.width)[0])
    read = source * job.row_bytes(step.source) * (4 if isinstance(step, Conv) and step.resample == "up" else 1)
    made = rows * job.row_bytes(step.target)
    weights = 9 * step.source.channels * step.target.channels * 4 if isinstance(step, Conv) else 0
    return int((5 * read + 3 * made) * max(1, 4 // job.itemsize) + 2 * weights)


def _place(
    job: _Job, one: Pass, index: int, last_read: Mapping[str, int], chains: list[_Chain], home: dict[str, _Chain]
) -> None:
    """Gives the kept maps that a pass makes their place: over what dies with the pass, or anew."""
    taken: set[str] = set()
    for position, step in reversed(list(enumerate(one.steps))):
        t = step.target
        if one.places[t.name] != "kept":
            continue
        dying = {
            m.name: m
            for s in one.steps for m in read_by(s)
            if one.places[m.name] == "kept" and last_read[m.name] == index and m.name not in taken and m.name != t.name
        }  # fmt: skip
        if isinstance(step, Conv) and step.residual and step.residual.name in dying and _in_place(one, step):
            chain, shift, under = home.get(step.residual.name), 0, step.residual
        elif dying and not isinstance(step, Attention) and (old := _slides_over(one, dying)) is not None:
            chain, under = home.get(old.name), old
            shift = _shift(job, one, position, old)
        else:
            chain, shift, under = None, 0, None
        start = 0
        if chain is None or under is None:
            chain = {}
            chains.append(chain)
        else:
            taken.add(under.name)
            start = chain[under.name].start - shift
        last = last_read.get(t.name, index)
        chain[t.name] = _Home(start, start + aligned(job.bytes(t)), index, last)
        home[t.name] = chain


def _in_place(one: Pass, step: Conv) -> bool:
    """Whether a sum may be written over its term: no step of the pass reads rows of it that have been written."""
    assert step.residual is not None
    name = step.residual.name
    if name in one.made:
        return all(step is s or name not in {m.name for m in read_by(s)} for s in one.steps)
    for k in _telling(one.iterations):
        need = one.needed(k)
        if one.still_read(need)[name] < need[step.target.name]:
            return False
    return True


def _slides_over(one: Pass, dying: Mapping[str, Map]) -> Map | None:
    """The map under the next one: one that was there before this pass."""
    return next((m for name, m in dying.items() if name not in one.made), None)


def _shift(job: _Job, one: Pass, position: int, old: Map) -> int:
    """Bytes by which the new map must begin before the old one, so that it never reaches rows still to be read."""
    step = one.steps[position]
    same = any(old.name == m.name for s in one.steps[position:] for m in read_by(s))
    shift = 0
    for k in _telling(one.iterations):
        after = one.needed(k)
        first = one.still_read(one.needed(k - 1) if same else after).get(old.name, 0)
        shift = max(shift, after[step.target.name] * job.row_bytes(step.target) - first * job.row_bytes(old))
    return aligned(shift)


def _arrange(chains: list[_Chain]) -> tuple[dict[str, int], int]:
    """Puts chains into one block, the largest first, each as low as maps that live at the same time let it.

    Returns:
        The offset of every map, and the size of the block.
    """
    offsets: dict[str, int] = {}
    settled: list[_Home] = []
    for chain in sorted(chains, key=lambda one: -sum(home.end - home.start for home in one.values())):
        taken = sorted(
            (there.start - home.end, there.end - home.start)
            for home in chain.values() for there in settled
            if home.first <= there.last and there.first <= home.last
        )  # fmt: skip
        offset = -min(home.start for home in chain.values())
        for low, high in taken:
            if low < offset < high:
                offset = high
        for name, home in chain.items():
            offsets[name] = home.start + offset
            settled.append(_Home(home.start + offset, home.end + offset, home.first, home.last))
    return offsets, max((home.end for home in settled), default=0)


@lru_cache(maxsize=8)
def _candidates(job: _Job, everything: bool = True) -> tuple[Plan, ...]:
    """Plans of every policy worth trying, by how much work they are; or of those only that spill nothing.

    The fastest of all is among these.
    """
    consumers = _consumers(job.program)
    sizes = sorted({job.bytes(step.target) for step in job.program.steps}, reverse=True)
    widened = {job.bytes(s.target) for s in job.program.steps if _is_widened(s, consumers.get(s.target.name, []))}
    policies = [Policy(streamed, None, "rows", "kept") for streamed in (None, *widened)]
    for limit in (size for size in sizes if everything and size >= SMALLEST_SPILL):
        for side, main in product(("spilled", "rows"), ("kept", "spilled")):
            policies += [Policy(streamed, limit, side, main) for streamed in (None, *widened)]  # type: ignore[arg-type]
    found: dict[tuple[object, ...], Plan] = {}
    passes: dict[tuple[object, ...], Pass] = {}
    for policy in policies:
        places = _places(job.program, policy, job.height, job.width, job.itemsize)
        for stripe in (512, 128, 64, 32, 16, 8):
            key = (tuple(places.values()), stripe)
            if key not in found:
                found[key] = _plan(job, places, stripe, passes)
    return tuple(sorted(found.values(), key=lambda one: (one.work, one.peak)))


def plan(
    program: Program,
    height: int,
    width: int,
    *,
    memory: int | None = None,
    free: int | None = None,
    kernels: Kernels = "winograd",
    threads: int = 1,
    itemsize: int = 4,
    half: bool = False,
) -> Plan:
    """The plan for a picture of height x width pixels, multiples of the network's factor.

    Args:
        memory: bytes it may take: the least work in them. None: the least memory that costs little more than the
            fastest plan, and no more than is `free`.
        kernels: who computes: their blocks and transformed weights take memory too.
        itemsize: bytes of a number in a map.
        half: whether products are of bfloat16.

    Raises:
        MemoryLimitError: if not even the smallest plan fits; the message says what would.
    """
    job = _Job(program, height, width, kernels, threads, itemsize, half)
    limit = memory if memory is not None else free
    fastest = _candidates(job, everything=False)[0]
    if (limit is None or fastest.peak <= limit) and (memory is not None or fastest.peak <= COMFORT):
        return fastest
    candidates = _candidates(job)
    fitting = [one for one in candidates if limit is None or one.peak <= limit]
    if not fitting:
        least = min(candidates, key=lambda one: one.peak)
        enough = in_words(least.peak, up=True)
        what = f"The {program.direction} of {width}x{height} pixels can't be done in {in_words(limit or 0)}"
        if memory is None:
            raise MemoryLimitError(
                f"{what}, which is what is free: the smallest plan takes {enough} beside the weights; give a smaller "
                f"picture, or free some memory."
            )
        raise MemoryLimitError(
            f"{what}: the smallest plan takes {enough} beside the weights; give --memory {enough} (memory=), or a "
            f"smaller picture."
        )
    if memory is not None:
        return fitting[0]
    return min((one for one in fitting if one.work <= SLACK * fitting[0].work), key=lambda one: (one.peak, one.work))


def parse_memory(text: str | int) -> int:
    """Bytes from a number of them or from words: 512MB, 1.5 GB, 2GiB.

    Raises:
        UsageError: if it is no such amount.
    """
    if isinstance(text, int):
        if text > 0:
            return text
        raise UsageError(f"An amount of memory must be above 0, not {text}; give bytes, or words like 512MB or 1.5GB.")
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    size = 0
    if match:
        power = " kmgt".index(match[2].lower() or " ")
        size = int(Fraction(match[1]) * (1024 if match[3] else 1000) ** power)
    if not size:
        raise UsageError(f"{text!r} is no amount of memory; give one like 512MB, 1.5GB or 2GiB.")
    return size


def in_words(size: int, *, up: bool = False) -> str:
    """Bytes as people write them, in powers of 1000: 512MB, 1.5GB."""
    for unit, value in (("GB", 10**9), ("MB", 10**6)):
        if size >= value:
            hundredths = -(-size * 100 // value) if up else round(size * 100 / value)
            return f"{hundredths / 100:.2f}".rstrip("0").rstrip(".") + unit
    return f"{ceil(size / 1000)}kB"
