"""Where maps are: what a policy does with each, and which steps run together then. Pure arithmetic: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from calotype.engine.blocks import Job
from calotype.engine.passes import Place, needs_statistics, needs_whole, read_by
from calotype.steps import Attention, Conv, Program, SpatialNorm, Step


@dataclass(frozen=True)
class Policy:
    """What a candidate plan does with maps.

    Attributes:
        streamed: upsampled maps of at least so many bytes that a block narrows exist as rows only (None: none do).
        limit: maps of at least so many bytes are not simply kept (None: all are).
        side: what happens to those inside a residual block: "spilled" or "rows" (computed twice).
        main: and to those between blocks: "kept" or "spilled".
        small: maps of at most so many bytes are kept, or spilled, though only rows of them are needed at a time: a
            pass ends there, and with it the time that its transformed weights are there.
    """

    streamed: int | None
    limit: int | None
    side: Literal["spilled", "rows"]
    main: Literal["kept", "spilled"]
    small: int = 0


def consumers_of(program: Program) -> dict[str, list[Step]]:
    """The steps that read each map, by its name."""
    found: dict[str, list[Step]] = {}
    for step in program.steps:
        for one in read_by(step):
            found.setdefault(one.name, []).append(step)
    return found


def places_of(job: Job, program: Program, policy: Policy) -> dict[str, Place]:
    """Where a policy puts every map."""
    consumers, loose = consumers_of(program), loose_of(program)
    places: dict[str, Place] = {program.source.name: "rows", program.target.name: "rows"}
    for step in program.steps[:-1]:
        one = step.target
        readers = consumers[one.name]
        statistics = any(needs_statistics(reader) for reader in readers if reader.source.name == one.name)
        large = policy.limit is not None and job.bytes(one) >= policy.limit
        if isinstance(step, Attention):
            places[one.name] = places[step.source.name]
        elif one.name in loose:
            # nothing stands between it and its readers
            whole = policy.main if large else "kept"
            places[one.name] = whole if job.bytes(one) <= policy.small else "rows"
        elif any(isinstance(reader, Attention) for reader in readers):
            places[one.name] = policy.main if large else "kept"
        elif isinstance(step, SpatialNorm):
            places[one.name] = "rows"  # as cheap to make as the norm within a convolution
        elif policy.streamed is not None and job.bytes(one) >= policy.streamed and is_widened(step, consumers):
            places[one.name] = "rows"
        elif large and statistics and len(readers) == 1:
            places[one.name] = policy.side
        else:
            places[one.name] = policy.main if large else "kept"
    return places


def is_widened(step: Step, consumers: Mapping[str, list[Step]]) -> bool:
    """Whether this is an upsampled map whose readers, after norms that stand alone, all make narrower ones."""
    readers = [
        reader
        for first in consumers.get(step.target.name, [])
        for reader in (consumers[first.target.name] if isinstance(first, SpatialNorm) else [first])
    ]
    return (
        isinstance(step, Conv)
        and step.resample == "up"
        and all(isinstance(r, Conv) and r.residual is None and r.target.channels < r.source.channels for r in readers)
    )


def loose_of(program: Program) -> set[str]:
    """Maps of which nothing makes the whole needed at once, though a pass could end there."""
    last = {one.name: i for i, step in enumerate(program.steps) for one in read_by(step)}
    return {
        step.target.name
        for i, step in enumerate(program.steps[:-1])
        if not any(needs_whole(near) for near in program.steps[_begin(program, i) : last[step.target.name] + 1])
    }


def _begin(program: Program, i: int) -> int:
    """Where a step begins: with the norm or the attention that in other networks is a part of it."""
    before, step = program.steps[i - 1], program.steps[i]
    apart = isinstance(before, SpatialNorm) or (isinstance(before, Attention) and not before.adds)
    return i - 1 if i and apart and before.target == step.source else i


def _groups(program: Program, places: Mapping[str, Place]) -> list[list[Step]]:
    """Steps that run together: from where a map is made as rows to where the last of its rows are read."""
    groups: list[list[Step]] = []
    waiting: set[str] = set()  # rows made in the open group, by readers still to come
    left = {name: len(readers) for name, readers in consumers_of(program).items()}
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


def grouped(program: Program, places: Mapping[str, Place]) -> list[tuple[list[Step], str | None]]:
    """Groups in the order in which they run, with those before them that only measure a map (its name)."""
    measured = {step.source.name for step in program.steps if needs_statistics(step)}
    result: list[tuple[list[Step], str | None]] = []
    for group in _groups(program, places):
        for step in group[:-1]:
            if places[step.target.name] == "rows" and step.target.name in measured:
                result.append((_ancestors(group, step.target.name), step.target.name))
        result.append((group, None))
    return result
