"""Commands one after another in one process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clikit import Calotype, draw


class Standing:
    """The process."""

    def __init__(self) -> None:
        words = [sys.executable, "-m", "calotype.cli.standing"]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.answer() == {"ready": True}

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def order(self, *words: str, folder: Path) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"argv": words, "folder": str(folder)}) + "\n")
        self.process.stdin.flush()

    def end(self) -> tuple[list[Any], Any]:
        parts = []
        while "code" not in (answer := self.answer()):
            parts.append(answer)
        return parts, answer


@pytest.fixture
def standing(interruptible: None) -> Iterator[Standing]:
    made = Standing()
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    assert made.process.wait(60) == 0
    assert made.process.stdout is not None
    made.process.stdout.close()


@pytest.mark.slow
def test_commands_are_what_they_are_alone(standing: Standing, calotype: Calotype, here: Path, vae: Path) -> None:
    draw("a.png")
    words = ["vary", "a.png", "--vae", str(vae), "--count", "2", "--json"]
    standing.order(*words, folder=here)
    parts, end = standing.end()
    assert end["code"] == 0 and parts
    assert [one["part"] for one in parts] == sorted(one["part"] for one in parts)
    assert all(0 <= one["part"] <= 1 and one["says"] == "Varying" for one in parts)
    there = {path.name: path.read_bytes() for path in here.glob("a-vary*.png")}
    alone = calotype(*words)
    assert (alone.code, alone.out) == (0, end["out"])
    assert there == {path.name: path.read_bytes() for path in here.glob("a-vary*.png")}

    standing.order("vary", "none.png", folder=here)
    assert standing.end()[1] == {"code": 1, "out": "", "err": "calotype: none.png does not exist; check the path.\n"}
    standing.order("fly", folder=here)
    assert standing.end()[1]["code"] == 2
    for _ in range(2):  # warnings are said each time
        standing.order("decode", "a.png", folder=here)
        assert standing.end()[1]["code"] != 0


@pytest.mark.slow
def test_an_interrupt_stops_the_command_and_not_the_process(standing: Standing, here: Path, vae: Path) -> None:
    draw("a.png")
    standing.process.send_signal(signal.SIGINT)  # between commands it is nobody's
    standing.order("vary", "a.png", "--vae", str(vae), "--count", "100000", folder=here)
    while standing.answer().get("part", 0) == 0:
        pass
    standing.process.send_signal(signal.SIGINT)
    _, end = standing.end()
    assert end["code"] == 130 and "Stopped" in end["err"]
    standing.order("spaces", folder=here)
    assert standing.end()[1]["code"] == 0
