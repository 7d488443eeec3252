"""Four processes that run the same command into the same place at once: every file is whole, and nothing is left."""

from __future__ import annotations

import os
import time

import pytest
from killkit import COMMANDS, Bench, Command, contents, left, place, require_whole, written
from support import one_sentence

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

WRITERS = 4
TAKEN = ("under way there", "is here already", "there is a checkpoint")
ALONE = ("evaluate", "probe", "train", "train-drawing")  # of which one at a time may run in a folder


def by_name(name: str) -> Command:
    return next(one for one in COMMANDS if one.name == name)


def four_at_once(command: Command, bench: Bench) -> None:
    whole = bench.undisturbed(command)
    here = place(bench.folder / command.name / f"together-{time.monotonic_ns()}", bench.inputs, command)
    together = bench.forker.run_together(command.words, here, WRITERS)
    for ran in together:
        assert "Traceback" not in ran.said
        if ran.code:
            assert command.name in ALONE or command.at_once
            one_sentence(ran.said.splitlines()[-1])
            taken = ("Directory not empty", "there is something") if command.at_once else TAKEN
            assert any(text in ran.said for text in taken)
    assert any(ran.code == 0 for ran in together)
    assert left(here) == []
    for path in written(here).values():
        require_whole(path)
    assert contents(command, here) == whole.files


@pytest.mark.parametrize("name", ["encode", "decode", "convert-diffusers", "evaluate", "cache"])
def test_four_writers(name: str, bench: Bench) -> None:
    four_at_once(by_name(name), bench)


@pytest.mark.slow
@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_four_writers_of_every_command(name: str, bench: Bench) -> None:
    four_at_once(by_name(name), bench)
