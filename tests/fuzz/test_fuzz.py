"""Mutants of every kind of file that is read: each is refused in one sentence, or read; nothing else happens."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from fuzzkit import run

FAMILIES = sorted(path.stem.removeprefix("seeds_") for path in Path(__file__).parent.glob("seeds_*.py"))
MANY = float(os.environ.get("CALOTYPE_TEST_SECONDS") or 8)  # of each family; give more to look for longer
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are watched as POSIX has it")


@pytest.mark.parametrize("family", FAMILIES)
def test_mutants(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A few, or with --slow many."""
    many = request.config.getoption("--slow")
    report = run(family, tmp_path, total=int(400 * MANY) if many else 100, seconds=MANY if many else 20)
    print(family, report)
    assert not report.failures, "\n".join(report.failures)
    assert report.counts["refused"]
