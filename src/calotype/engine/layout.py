"""Where kept maps lie in one block of memory: over what is needed no longer, or anew. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calotype.engine.blocks import Job, aligned
from calotype.engine.passes import Pass, residual_of
from calotype.steps import Attention, Map, Step


@dataclass
class Home:
    """Where a kept map lies in its chain, and from which pass to which it is needed."""

    start: int
    end: int
    first: int
    last: int


Chain = dict[str, Home]
"""Maps that lie over one another, at places relative to the first of them."""


def place(
    job: Job, one: Pass, index: int, last_read: Mapping[str, int], chains: list[Chain], home: dict[str, Chain]
) -> None:
    """Gives the kept maps that a pass makes their place: over what dies with the pass, or anew."""
    taken: set[str] = set()
    for position, step in reversed(list(enumerate(one.steps))):
        t = step.target
        if one.places[t.name] != "kept":
            continue
        dying = {
            m.name: m
            for reads in one.reads for m in reads
            if one.places[m.name] == "kept" and last_read[m.name] == index and m.name not in taken and m.name != t.name
        }  # fmt: skip
        residual = residual_of(step)
        if residual and residual.name in dying and _inplace(one, step):
            chain, shift, under = home.get(residual.name), 0, residual
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
        chain[t.name] = Home(start, start + aligned(job.bytes(t)), index, last)
        home[t.name] = chain


def _inplace(one: Pass, step: Step) -> bool:
    """Whether a sum may be written over its term: no step of the pass reads rows of it that have been written."""
    residual = residual_of(step)
    assert residual is not None
    name = residual.name
    if name in one.made:
        pairs = zip(one.steps, one.reads, strict=True)
        return all(step is s or all(name != m.name for m in reads) for s, reads in pairs)
    for k in one.telling:
        need = one.needed(k)
        if one.still_read(need)[name] < need[step.target.name]:
            return False
    return True


def _slides_over(one: Pass, dying: Mapping[str, Map]) -> Map | None:
    """The map under the next one: one that was there before this pass."""
    return next((m for name, m in dying.items() if name not in one.made), None)


def _shift(job: Job, one: Pass, position: int, old: Map) -> int:
    """Bytes by which the new map must begin before the old one, so that it never reaches rows still to be read."""
    step = one.steps[position]
    same = any(old.name == m.name for reads in one.reads[position:] for m in reads)
    shift = 0
    for k in one.telling:
        after = one.needed(k)
        first = one.still_read(one.needed(k - 1) if same else after).get(old.name, 0)
        shift = max(shift, after[step.target.name] * job.row_bytes(step.target) - first * job.row_bytes(old))
    return aligned(shift)


def arrange(chains: list[Chain]) -> tuple[dict[str, int], int]:
    """Puts chains into one block, the largest first, each as low as maps that live at the same time let it.

    Returns:
        The offset of every map, and the size of the block.
    """
    offsets: dict[str, int] = {}
    settled: list[Home] = []
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
            settled.append(Home(home.start + offset, home.end + offset, home.first, home.last))
    return offsets, max((home.end for home in settled), default=0)
