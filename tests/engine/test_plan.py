"""Plans: what they promise, and a replay of every run of them on a map of the memory."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from enginekit import CONFIGS, Replay, candidates
from hypothesis import HealthCheck, given, settings, strategies as st
from support import SMALL, one_sentence

from calotype.engine import layout, passes, plan as plans
from calotype.engine.blocks import ALIGN
from calotype.engine.budget import in_words, parse_memory
from calotype.engine.passes import first_source_row, read_by
from calotype.engine.plan import FIXED, Plan, plan
from calotype.errors import MemoryLimitError, UsageError
from calotype.families import program
from calotype.families.face import NetworkConfig
from calotype.families.folded.config import FoldedConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.tiny.config import TinyConfig
from calotype.steps import Attention, Conv, Direction, Step

KL = AutoencoderConfig()  # of Stable Diffusion: planned only, never made


@st.composite
def configs(draw: Callable[[Any], Any]) -> NetworkConfig:
    """Small networks of every kind."""
    kind = draw(st.sampled_from(["kl", "kl", "kl", "folded", "tiny"]))
    few = st.integers(1, 4)
    if kind == "tiny":
        return TinyConfig(pool=draw(st.booleans()))
    if kind == "folded":
        pair = st.tuples(few, few)
        return FoldedConfig(ch=draw(pair), encoder_blocks=draw(pair), decoder_blocks=draw(pair))
    groups = draw(st.integers(1, 3))
    levels = draw(st.integers(1, 4))
    return AutoencoderConfig(
        ch=groups * draw(few),
        ch_mult=tuple(draw(st.lists(few, min_size=levels, max_size=levels))),
        num_res_blocks=draw(st.integers(1, 2)),
        attn_levels=tuple(i for i in range(levels) if draw(st.integers(0, 4)) == 0),
        mid_attention=draw(st.booleans()),
        quant_conv=draw(st.booleans()),
        norm_groups=groups,
    )


DIRECTIONS = st.sampled_from(["encode", "decode"])
KERNELS = st.sampled_from(["winograd", "reference"])


# Safety


@pytest.mark.usefixtures("spill_everything")
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("kernels", ["winograd", "reference"])
@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_read_that_is_not_there(name: str, kernels: Any, direction: Direction) -> None:
    seen = set()
    for height, width in ((1, 1), (13, 5)):
        for one in candidates(CONFIGS[name], direction, height, width, kernels=kernels, few=8):
            Replay(one).run()
            seen |= set(one.places.values())
    if name not in ("folded", "tiny"):
        assert seen == {"kept", "spilled", "rows"}


@pytest.mark.slow
@pytest.mark.usefixtures("spill_everything")
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("kernels", ["winograd", "reference"])
@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_read_that_is_not_there_in_many_candidates(name: str, kernels: Any, direction: Direction) -> None:
    for height, width in ((2, 9), (40, 2)):
        for one in candidates(CONFIGS[name], direction, height, width, kernels=kernels, threads=8, few=12):
            Replay(one).run()


@pytest.mark.slow
@pytest.mark.usefixtures("spill_everything")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_is_read_that_is_not_there_in_any_network(data: Any) -> None:
    config, direction, kernels = data.draw(configs()), data.draw(DIRECTIONS), data.draw(KERNELS)
    height, width = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 6))
    half = kernels == "winograd" and data.draw(st.booleans())
    found = candidates(
        config, direction, height, width, kernels=kernels, threads=data.draw(st.integers(1, 3)), half=half,
        itemsize=4 if kernels == "winograd" else data.draw(st.sampled_from([2, 4])), few=4,
    )  # fmt: skip
    for one in found:
        Replay(one).run()


@pytest.mark.slow
def test_the_replay_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch, spill_everything: None) -> None:
    def caught() -> bool:
        plans._candidates.cache_clear()
        for name in ("narrow", "tiny-pool"):
            for one in candidates(CONFIGS[name], "decode", 13, 5, few=60):
                try:
                    Replay(one).run()
                except AssertionError:
                    return True
        return False

    assert not caught()
    shift = layout._shift

    def later(step: Step, row: int) -> int:
        return first_source_row(step, row) + (isinstance(step, Conv) and step.resample == "up")

    for module, attribute, wrong in (
        (layout, "_shift", lambda *given: max(0, shift(*given) - ALIGN)),  # over a page that is still read
        (passes.Pass, "telling", property(lambda one: [0])),  # windows as large as the first stripe needs them
        (passes, "first_source_row", later),  # a row is dropped too early
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, attribute, wrong)
            assert caught(), attribute
    plans._candidates.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("spill_everything")
def test_maps_are_written_over_what_is_not_needed_any_more() -> None:
    kept = candidates(CONFIGS["narrow"], "decode", 16, 16)[0]
    assert Replay(kept).run().slid > 0
    steps = kept.program.steps
    last_read = {m.name: i for i, step in enumerate(steps) for m in read_by(step)}
    apart = max(
        sum(
            made.target.values(128, 128) * 4
            for j, made in enumerate(steps[: i + 1])
            if i == j or last_read[made.target.name] >= i
        )
        for i in range(len(steps) - 1)
    )
    assert kept.kept < 1.25 * apart  # what maps take that are needed at the same time
    assert kept.kept < sum(step.target.values(128, 128) * 4 for step in steps) / 3


# Promises


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(config=configs(), direction=DIRECTIONS, kernels=KERNELS, height=st.integers(1, 120), width=st.integers(1, 60))
def test_a_plan_keeps_within_its_memory(
    config: NetworkConfig, direction: Direction, kernels: Any, height: int, width: int
) -> None:
    steps, f = program(config, direction), config.factor
    found = candidates(config, direction, height, width, kernels=kernels, threads=1)
    smallest = min(one.peak for one in found)

    def within(memory: int) -> Plan:
        return plan(steps, height * f, width * f, memory=memory, kernels=kernels)

    works = []
    peaks = sorted({one.peak for one in found})
    for memory in sorted({*peaks[:: max(1, len(peaks) // 8)], smallest + 1, 10**12}):
        one = within(memory)
        assert one.peak <= memory
        assert one.peak >= one.kept + max(part.temporary for part in one.passes) + FIXED
        works.append(one.work)
    assert works == sorted(works, reverse=True)
    assert within(smallest).peak == smallest
    # the limit is exact, and a refusal names one that works
    with pytest.raises(MemoryLimitError) as caught:
        within(smallest - 1)
    one_sentence(str(caught.value))
    named = re.search(r"give --memory ([\w.]+)", str(caught.value))
    assert named
    assert smallest <= parse_memory(named[1]) <= 1.01 * smallest + 10_000
    within(parse_memory(named[1]))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(config=configs(), direction=DIRECTIONS, height=st.integers(1, 200), width=st.integers(1, 40))
def test_places_make_sense(config: NetworkConfig, direction: Direction, height: int, width: int) -> None:
    steps = program(config, direction)
    for one in candidates(config, direction, height, width, few=24):
        names = {m.name for step in steps.steps for m in (step.source, step.target)}
        assert set(one.places) == names
        assert one.places[steps.source.name] == one.places[steps.target.name] == "rows"
        assert set(one.offsets) == {name for name in names if one.places[name] == "kept"}
        assert [step for part in one.passes if part.stores for step in part.steps] == list(steps.steps)
        for step in steps.steps:
            if isinstance(step, Attention):
                assert one.places[step.source.name] == one.places[step.target.name] != "rows"
        for part in one.passes:
            assert part.stores or part.measured == {part.target.name}
            for name in part.measured:
                assert one.places[name] != "rows" or not part.stores
        spilled = any(place == "spilled" for place in one.places.values())
        assert spilled == (one.spill > 0)
        assert one.flops >= one.attention


@pytest.mark.slow
def test_what_is_free_bounds_a_plan_that_is_not_told() -> None:
    steps = program(KL, "decode")
    smallest = min(one.peak for one in candidates(KL, "decode", 256, 256))
    free = plan(steps, 2048, 2048, threads=2, free=10**11)
    assert plan(steps, 2048, 2048, threads=2, free=free.peak - 1).peak < free.peak
    with pytest.raises(MemoryLimitError, match=r"decode of 2048x2048 pixels can't be done in 1MB, which is"):
        plan(steps, 2048, 2048, threads=2, free=10**6)
    assert plan(steps, 2048, 2048, threads=2, memory=smallest, free=10**6).peak == smallest


@pytest.mark.slow
def test_a_plan_takes_less_where_that_costs_little() -> None:
    """Above a gigabyte; below it the fastest is taken."""
    for size in (512, 4096):
        found = candidates(KL, "decode", size // 8, size // 8)
        one = plan(program(KL, "decode"), size, size, threads=2)
        assert found[0].work <= one.work <= plans.SLACK * found[0].work
        if size == 512:
            assert (one.work, one.peak) == (found[0].work, found[0].peak)
        else:
            assert one.peak < found[0].peak


@pytest.mark.slow
def test_less_memory_is_enough_for_more_work() -> None:
    steps = program(KL, "decode")
    large, small = (plan(steps, 4096, 4096, memory=memory, threads=2) for memory in (10**11, 10**9))
    assert small.peak <= 10**9 < 5e9 < large.peak
    assert small.work > large.work
    assert small.spill > 0 == large.spill
    assert large.flops - large.attention < (large.direct_flops - large.attention) / 2


@pytest.mark.slow
def test_attention_that_costs_more_than_all_else_is_told() -> None:
    assert plan(program(KL, "decode"), 512, 512).notices() == []
    (notice,) = plan(program(KL, "decode"), 8192, 8192).notices()
    assert re.match(r"Attention over all positions costs \d+ times as much as everything else", notice)
    one_sentence(notice)


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys, calotype.engine.plan\n"
        "from calotype.families import program\nfrom calotype.families.kl.config import AutoencoderConfig\n"
        "calotype.engine.plan.plan(program(AutoencoderConfig(), 'decode'), 512, 512)\n"
        "print(sorted({'torch', 'numpy', 'numba', 'llvmlite'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# Amounts


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1),
        (512, 512),
        ("512", 512),
        ("1k", 1000),
        ("512MB", 512_000_000),
        ("512 mb", 512_000_000),
        (" 1.5 GB ", 1_500_000_000),
        (".5g", 500_000_000),
        ("2.GiB", 2 * 2**30),
        ("1KiB", 1024),
        ("3TB", 3 * 10**12),
        ("0.3kB", 300),
        ("514.56MB", 514_560_000),  # which a float makes one byte less
        ("9" * 400, int("9" * 400)),
    ],
)
def test_amounts_of_memory(text: str | int, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text", [0, -5, "0", "0.0GB", "", "GB", "-1GB", "1.2.3", "1e9", "half", "5 XB", "1 G i B", "0.4"]
)
def test_amounts_that_are_none(text: str | int) -> None:
    with pytest.raises(UsageError, match="amount of memory") as caught:
        parse_memory(text)
    one_sentence(str(caught.value))


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (1, "1kB"),
        (999_999, "1000kB"),
        (10**6, "1MB"),
        (512_000_000, "512MB"),
        (1_234_000_000, "1.23GB"),
        (123_456_789 * 10**6, "123456.79GB"),
    ],
)
def test_amounts_in_words(size: int, words: str) -> None:
    assert in_words(size) == words


@settings(max_examples=300)
@given(size=st.one_of(st.integers(1, 10**15), st.integers(1, 10**8).map(lambda n: n * 10**4)))
def test_amounts_rounded_up_are_enough(size: int) -> None:
    assert size <= parse_memory(in_words(size, up=True)) <= 1.01 * size + 1000


def test_a_small_map_is_not_worth_a_file() -> None:
    assert {p for one in candidates(SMALL, "decode", 16, 16) for p in one.places.values()} == {"kept", "rows"}
