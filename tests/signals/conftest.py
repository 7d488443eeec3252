"""What tests of signals share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# for `killkit`, `drawingkit` and `tradekit`, whichever way pytest imports
sys.path[:0] = [str(HERE), str(HERE.parent / "cli"), str(HERE.parent / "cache")]

from killkit import Bench  # noqa: E402


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("bench"))
    with closing(made.forker):
        yield made
