"""Passes: steps that run together, stripe by stripe from the top, and which rows each of them needs. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import Literal

from calotype.steps import Attention, Conv, Fold, Gated, LinearAttention, Map, Norm, Scales, SpatialNorm, Step

Place = Literal["kept", "spilled", "rows"]


def first_source_row(step: Step, row: int) -> int:
    """The first row of its source that a step needs for its target's rows from `row` on (0 or below for none)."""
    if isinstance(step, Fold):
        return row * step.block if step.inwards else row // step.block
    if isinstance(step, Conv) and step.kernel == 3:
        if step.resample == "up":
            return (row - 1) // 2
        return 2 * row - step.pad if step.resample == "down" else row - 1
    return row - step.kernel // 2 if isinstance(step, Gated | Scales) else row


def end_source_row(step: Step, end: int) -> int:
    """The row of its source after the last that a step needs for its target's rows before `end` (perhaps beyond it)."""
    if isinstance(step, Fold):
        return end * step.block if step.inwards else ceil(end / step.block)
    if isinstance(step, Conv) and step.kernel == 3:
        if step.resample == "up":
            return end // 2 + 1
        return 2 * end + 1 - step.pad if step.resample == "down" else end + 1
    return end + step.kernel // 2 if isinstance(step, Gated | Scales) else end


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
        beside: bytes that operations allocate themselves.
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
    beside: int = 0

    @property
    def takes(self) -> int:
        """Bytes beside kept maps."""
        return self.temporary + self.beside

    @cached_property
    def reads(self) -> tuple[tuple[Map, ...], ...]:
        """The maps that each step reads."""
        return tuple(read_by(step) for step in self.steps)

    @cached_property
    def made(self) -> dict[str, int]:
        """The step that makes each map."""
        return {step.target.name: i for i, step in enumerate(self.steps)}

    @cached_property
    def loaded(self) -> list[Map]:
        """Maps that come from a file, or from outside."""
        made = self.made
        found: dict[str, Map] = {}
        for reads in self.reads:
            for one in reads:
                if one.name not in made and self.places[one.name] != "kept":
                    found[one.name] = one
        return list(found.values())

    @property
    def target(self) -> Map:
        """What its last step makes."""
        return self.steps[-1].target

    @cached_property
    def lead(self) -> int:
        """Iterations in which earlier steps get ahead, a stripe at a time, before the last has anything to do.

        So a window holds about a stripe, and not all that the first rows of a long chain ask for.
        """
        lead = 0
        while max(self._needed(-lead * self.stripe).values()) > 0:
            lead += 1
        return lead

    @property
    def iterations(self) -> int:
        """Stripes, and those that come before the first."""
        return self.lead + ceil(self.rows[self.target.name] / self.stripe)

    @cached_property
    def telling(self) -> list[int]:
        """Iterations that differ from others: the first, up to where all goes on as before, and the last."""
        rows = self.rows[self.target.name]
        period = max(
            ceil(granule * rows / self.rows[step.target.name] / self.stripe)
            for step, granule in zip(self.steps, self.granules, strict=True)
        )
        first, last = self.lead + period + 6, self.lead + period + 3
        return sorted({*range(min(self.iterations, first)), *range(max(0, self.iterations - last), self.iterations)})

    @cached_property
    def _reads(self) -> tuple[tuple[tuple[str, int, int, bool], ...], ...]:
        """Of each step's maps: name, height, rows made of each of its rows (0: not so simple), whether it adds it too.

        What is only added makes a row of each.
        """
        return tuple(
            tuple(
                (one.name, self.rows[one.name], _rows_of_each(step, one), residual_of(step) == one == step.source)
                for one in reads
            )
            for step, reads in zip(self.steps, self.reads, strict=True)
        )

    @cached_property
    def _known(self) -> dict[int, dict[str, int]]:
        """What `needed` has found; plans ask for the same again and again."""
        return {}

    def needed(self, iteration: int) -> Mapping[str, int]:
        """How far each map, made or loaded, must have come at the end of an iteration (-1: before the first)."""
        if iteration not in self._known:
            end = min((iteration + 1 - self.lead) * self.stripe, self.rows[self.target.name])
            self._known[iteration] = {name: max(0, rows) for name, rows in self._needed(end).items()}
        return self._known[iteration]

    def _needed(self, end: int) -> dict[str, int]:
        """How far they must have come for the last step's rows before `end`; that may lie above the picture."""
        far = min(end, 0) - 2**40
        need = {one.name: far for one in self.loaded}
        last = self.rows[self.target.name]
        for i in reversed(range(len(self.steps))):
            step, granule = self.steps[i], self.granules[i]
            name = step.target.name
            height, rows = self.rows[name], need.get(name, far)
            if i == len(self.steps) - 1 or self.places[name] != "rows":
                rows = max(rows, -(-end * height // last))
            rows = min(height, -(-rows // granule) * granule)
            need[name] = rows
            for one, most, each, _ in self._reads[i]:
                until = min(most, -(-rows // each) if each else end_source_row(step, rows))
                if until > need.get(one, far):
                    need[one] = until
        return need

    def still_read(self, need: Mapping[str, int]) -> dict[str, int]:
        """The first row of each map that steps which have come so far will read again."""
        first: dict[str, int] = {}
        for step, reads in zip(self.steps, self._reads, strict=True):
            done = need[step.target.name]
            for one, height, each, too in reads:
                row = done // each if each else first_source_row(step, done)
                if too:
                    row = min(done, row)
                first[one] = min(first.get(one, height), max(0, row))
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


def residual_of(step: Step) -> Map | None:
    """What a step adds to its result."""
    return None if isinstance(step, Attention) else step.residual


def guide_of(step: Step) -> Map | None:
    """What tells a step how to change each position of its source."""
    return step.guide if isinstance(step, SpatialNorm) else None


def _rows_of_each(step: Step, one: Map) -> int:
    if one == step.source:
        return 0
    return 1 if one == residual_of(step) else one.factor // step.target.factor


def read_by(step: Step) -> tuple[Map, ...]:
    """Maps that a step reads."""
    others = (residual_of(step), guide_of(step))
    return (step.source, *(one for one in others if one is not None and one != step.source))


def needs_statistics(step: Step) -> bool:
    """Whether a step needs statistics of its source."""
    if isinstance(step, LinearAttention):
        return True
    return isinstance(step, Conv | Attention | SpatialNorm) and isinstance(step.norm, Norm)


def needs_whole(step: Step) -> bool:
    """Whether a step reads its source only when all of it is there."""
    return isinstance(step, Attention) or needs_statistics(step)
