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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import ceil
from typing import TypeVar

from calotype.engine.blocks import TILES_AT_ONCE, Job, Kernels, aligned
from calotype.engine.budget import in_words
from calotype.engine.layout import Chain, arrange, place
from calotype.engine.passes import Pass, Place, needs_statistics, read_by
from calotype.engine.places import Policy, consumers_of, grouped, is_widened, loose_of, places_of
from calotype.errors import MemoryLimitError
from calotype.steps import Attention, Conv, LinearAttention, Program, SpatialNorm, Step

_T = TypeVar("_T")

SMALLEST_SPILL = 2**20  # bytes of a map that is worth not keeping
SPILL_COST = 100.0  # operations in the time that a byte takes to the temporary file or from it
READ_COST = 3.5  # operations in the time that a thread takes to read a byte of weights
RUN_COST = 2e7  # operations in the time that starting a step on a stripe takes
# The default plan takes the least memory that costs no more than NEAR over the fastest plan, and if that is more than
# COMFORT bytes, the least that costs no more than SLACK.
NEAR, COMFORT, SLACK = 1.02, 10**9, 1.1
ATTENTION_WARNING = 3.0  # when attention costs so much more than everything else, the plan says so


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a program runs for one size.

    Attributes:
        program: the steps that are run.
        passes: in order.
        places: of every map.
        offsets: of kept maps in memory; a map may lie over another that is read while it is written.
        kept: bytes of all kept maps together.
        peak: bytes at most, beyond the network's own weights and without what goes in and comes out.
        work: operations, with what moving bytes to the file and starting steps costs in them.
        flops: operations of the products alone, as computed; `direct_flops` are those of direct convolutions.
        spill: bytes that go to the temporary file and come from it.
        attention: operations of attention over all positions.
        computed: operations of the products of each map, over all passes that make it.
        job: what it was made for.
    """

    program: Program
    job: Job
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
        return self.program.flops(self.job.height, self.job.width)

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


FIXED = 14 * 2**20  # what small arrays, threads and statistics take beside all that is counted
BLOCKS_AT_ONCE = 256  # of a map without windows, so that its statistics stay few and progress is seen


def _plans(
    job: Job, program: Program, places: Mapping[str, Place], known: dict[tuple[object, ...], list[Pass]]
) -> list[Plan]:
    """What these places come to, each pass a stripe at a time that is large and takes little; in less and less memory.

    Passes that other plans have too are looked up in `known`.
    """
    order: list[list[Pass]] = []
    measured = {step.source.name for step in program.steps if needs_statistics(step)}
    summed = {step.source.name: step for step in program.steps if isinstance(step, LinearAttention)}
    for steps, measures in grouped(program, places):
        names = {m.name for step in steps for m in (*read_by(step), step.target)}
        key = (steps[0].target, steps[-1].target, measures, *(places[name] for name in sorted(names)))
        if key not in known:
            ways = [_pass(job, stripe, steps, measures, places, measured, summed) for stripe in STRIPES]
            different = {way.stripe: way for way in ways}.values()
            known[key] = sorted(different, key=lambda way: (_overhead(job, way), way.takes))
        order.append(known[key])
    found: dict[tuple[int, ...], list[Pass]] = {}
    least = max(min(way.takes for way in ways) for ways in order)
    for most in sorted({way.takes for ways in order for way in ways if way.takes >= least}, reverse=True):
        passes = [next(way for way in ways if way.takes <= most) for ways in order]
        found.setdefault(tuple(way.stripe for way in passes), passes)
    return [_plan(job, program, places, passes) for passes in _some(list(found.values()), CEILINGS_TRIED)]


def _plan(job: Job, program: Program, places: Mapping[str, Place], passes: list[Pass]) -> Plan:
    """What these passes come to."""
    chains: list[Chain] = []
    home: dict[str, Chain] = {}  # of kept maps
    last_read: dict[str, int] = {}
    for i, one in enumerate(passes):
        for reads in one.reads:
            for m in reads:
                last_read[m.name] = i
    for i, one in enumerate(passes):
        if one.stores:
            place(job, one, i, last_read, chains, home)
    offsets, kept = arrange(chains)
    spill = 0
    for one in passes:
        maps = {m.name: m for step, reads in zip(one.steps, one.reads, strict=True) for m in (*reads, step.target)}
        for name, m in maps.items():
            if places[name] == "spilled" and (name not in one.made or one.stores):
                spill += job.bytes(m)
    computed: dict[str, int] = {}
    for one in passes:
        for step in one.steps:
            computed[step.target.name] = computed.get(step.target.name, 0) + job.flops(step)
    flops = sum(computed.values())
    return Plan(
        program=program, job=job, passes=tuple(passes), places=places, offsets=offsets, kept=kept,
        peak=kept + _most(job, passes) + _heap(program),
        work=flops + sum(_overhead(job, one) for one in passes) + SPILL_COST * spill, flops=flops, spill=spill,
        attention=sum(computed[s.target.name] for s in program.steps if isinstance(s, Attention)),
        computed=computed,
    )  # fmt: skip


def _pass(
    job: Job,
    pixels: int,
    steps: list[Step],
    measures: str | None,
    places: Mapping[str, Place],
    measured: set[str],
    summed: Mapping[str, LinearAttention],
) -> Pass:
    """A pass, about so many rows of pixels at a time, with its windows, scratch and weights laid out."""
    target = steps[-1].target
    made = {step.target.name for step in steps}
    maps = {one.name: one for step in steps for one in (*read_by(step), step.target)}
    windowed = [one for name, one in maps.items() if places[name] != "kept" or (measures and name in made)]
    high, wide = job.size(target)
    granules = tuple(job.granule(step) for step in steps)
    if isinstance(steps[-1], Attention):
        stripe = high
    elif not windowed and isinstance(steps[-1], Conv) and job.kernels == "winograd" and not _narrows(steps):
        down, across = job.block(steps[-1])
        tile = job.algorithm(steps[-1]).tile
        stripe = min(high, max(1, BLOCKS_AT_ONCE // ceil(wide / tile / across)) * down * tile)
    else:
        stripe = min(high, max(1, pixels // target.factor))
    stripe = min(high, ceil(stripe / max(granules)) * max(granules))
    takes = {measures} if measures else {name for name in made if name in measured and places[name] != "rows"}
    one = Pass(
        steps=tuple(steps), stripe=stripe, measured=frozenset(takes), stores=measures is None,
        rows={name: job.size(m)[0] for name, m in maps.items()},
        places={name: ("rows" if measures and name == measures else places[name]) for name in maps}, granules=granules,
    )  # fmt: skip
    windows = {m.name: 0 for m in windowed}
    lengths: dict[str, set[int]] = {step.target.name: set() for step in steps}
    for k in one.telling:
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
    scratch = beside = apart = 0
    for step in steps:
        if step.target.name in takes and (reader := summed.get(step.target.name)):
            beside = max(beside, job.local_bytes(reader, max(lengths[step.target.name])))
        if isinstance(step, Attention):
            scratch = job.spilled_blocks(step) if places[step.source.name] == "spilled" else 0
            scratch += job.attention_bytes(step)
        elif isinstance(step, Conv) and job.kernels == "winograd":
            offsets["weights " + step.weights] = end
            end += aligned(job.weight_bytes(step))
            for length in lengths[step.target.name]:
                floats = job.scratch_floats(step, job.block(step, length))
                scratch = max(scratch, job.threads * sum(aligned(4 * n) for n in floats))
        else:
            rows = max(lengths[step.target.name])
            if isinstance(step, SpatialNorm):
                apart = max(apart, job.local_bytes(step, rows))
                continue
            if isinstance(step, Conv):
                rows = min(rows, job.reference_rows(step))
            beside = max(beside, job.reference_result(step, rows))
            if isinstance(step, Conv):
                scratch = max(scratch, job.reference_scratch(step, rows))
    beside += apart  # what these free is kept by the allocator while a convolution after them takes more
    # weights that a batch norm is in
    beside += sum(
        2 * 4 * one.kernel**2 * one.source.channels * one.target.channels
        for one in steps if isinstance(one, Conv) and one.batch
    )  # fmt: skip
    if job.widens:  # the weights of all convolutions, in float32
        beside += sum(
            4 * one.kernel**2 * one.source.channels * one.target.channels for one in steps if isinstance(one, Conv)
        )
    offsets["scratch"] = end
    made_whole = replace(one, offsets=offsets, windows=windows, temporary=end + aligned(scratch), beside=beside)
    made_whole.__dict__.update(vars(one) | vars(made_whole))  # with what was found of its rows
    return made_whole


def _overhead(job: Job, one: Pass) -> float:
    """Operations in the time that a pass takes beside its products.

    That is of starting steps on a stripe, and with the kernels of blocks that read their weights, of tiles that only
    fill up a block, and of threads that have no block left.
    """
    total = RUN_COST * one.iterations * len(one.steps)
    for step in one.steps if job.kernels == "winograd" else ():
        if not isinstance(step, Conv):
            continue
        rows, columns = job.size(step.target)
        at_once = ceil(rows / one.iterations)
        high, wide = job.block(step, at_once)
        tile = job.algorithm(step).tile
        blocks = ceil(ceil(at_once / tile) / high) * ceil(ceil(columns / tile) / wide)
        total += one.iterations * blocks * job.weight_bytes(step) * READ_COST
        padded = ceil(high * wide / TILES_AT_ONCE) * TILES_AT_ONCE / (high * wide)
        total += job.flops(step) * (padded * ceil(blocks / job.threads) * job.threads / blocks - 1)
    return total


def _narrows(steps: list[Step]) -> bool:
    """Whether the last step may write over rows of its own source, which then limits how many it may write at once."""
    step = steps[-1]
    return isinstance(step, Conv) and step.residual is None and (step.norm is None or step.resample != "none")


def _most(job: Job, passes: list[Pass]) -> int:
    """Bytes of the passes' part of the block, and of what operations allocate beside it, at their most."""
    if not job.touched:
        return max(one.temporary for one in passes) + max(one.beside for one in passes)
    reached = most = 0
    for one in passes:
        reached = max(reached, one.temporary)
        most = max(most, reached + one.beside)
    return most


def _heap(program: Program) -> int:
    """Bytes outside the planned block; the matrices of attention are multiplied in float64."""
    widths = [step.source.channels for step in program.steps if isinstance(step, Attention)]
    return FIXED + 48 * max(widths, default=0) ** 2


LIMITS_TRIED, LOOSE_TRIED = 10, 5  # sizes of maps; networks of many sizes would take long to plan
CEILINGS_TRIED = 6  # of what passes take beside kept maps
STRIPES = (512, 128, 64, 32, 16, 8)  # rows of pixels at a time, about


def _some(values: list[_T], most: int) -> list[_T]:
    """The first, the last, and evenly many between."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _ways(job: Job, program: Program, everything: bool = True) -> list[dict[str, Place]]:
    """Places of all maps by every policy worth trying, each once; or by those that spill nothing."""
    consumers = consumers_of(program)
    sizes = sorted({job.bytes(step.target) for step in program.steps}, reverse=True)
    widened = {job.bytes(s.target) for s in program.steps if is_widened(s, consumers)}
    policies = [Policy(streamed, None, "rows", "kept") for streamed in (None, *widened)]
    for limit in _some([size for size in sizes if everything and size >= SMALLEST_SPILL], LIMITS_TRIED):
        for side, main in product(("spilled", "rows"), ("kept", "spilled")):
            policies += [Policy(streamed, limit, side, main) for streamed in (None, *widened)]  # type: ignore[arg-type]
    found: dict[tuple[object, ...], dict[str, Place]] = {}
    loose = loose_of(program)
    sizes_of_loose = {job.bytes(step.target) for step in program.steps if step.target.name in loose}
    for policy, small in product(policies, _some(sorted({0, *sizes_of_loose}), LOOSE_TRIED)):
        places = places_of(job, program, replace(policy, small=small))
        found.setdefault(tuple(places.values()), places)
    return list(found.values())


@lru_cache(maxsize=8)
def _candidates(job: Job, program: Program, everything: bool = True) -> tuple[Plan, ...]:
    """Plans of every policy worth trying, by how much work they are; or of those only that spill nothing.

    The fastest of all is among these.
    """
    passes: dict[tuple[object, ...], list[Pass]] = {}
    found = [one for places in _ways(job, program, everything) for one in _plans(job, program, places, passes)]
    return tuple(sorted(found, key=lambda one: (one.work, one.peak)))


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
    widens: bool = False,
    unfolds: bool = False,
    touched: bool = True,
) -> Plan:
    """The plan for a picture of height x width pixels, multiples of the network's factor.

    Args:
        memory: bytes it may take: the least work in them. None: the least memory that costs little more than the
            fastest plan, and no more than is `free`; without a temporary file where that can be.
        kernels: who computes: their blocks and transformed weights take memory too.
        itemsize: bytes of a number in a map.
        half, widens, unfolds, touched: see `Job`.

    Raises:
        MemoryLimitError: if not even the smallest plan fits; the message says what would.
    """
    job = Job(height, width, kernels, threads, itemsize, half, widens, unfolds, touched)
    limit = memory if memory is not None else free
    quick = _candidates(job, program, everything=False)
    if (limit is None or quick[0].peak <= limit) and (memory is not None or quick[0].peak <= COMFORT):
        return quick[0] if memory is not None else _least(quick, NEAR)
    candidates = _candidates(job, program)
    fitting = [one for one in candidates if limit is None or one.peak <= limit]
    if not fitting and kernels == "winograd":
        candidates = (*candidates, *_candidates(replace(job, lean=True), program))
        fitting = sorted((one for one in candidates if limit is None or one.peak <= limit), key=lambda one: one.work)
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
    fitting = [one for one in fitting if not one.spill] or fitting  # nobody asked for files
    near = _least(fitting, NEAR)
    return near if near.peak <= COMFORT else _least(fitting, SLACK)


def _least(plans: Sequence[Plan], slack: float) -> Plan:
    """That of the least memory among those that cost no more than so many times what the first does."""
    return min((one for one in plans if one.work <= slack * plans[0].work), key=lambda one: (one.peak, one.work))
