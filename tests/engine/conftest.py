"""Makes `enginekit` importable, whichever way pytest imports the tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from calotype.engine import plan as plans

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture
def spill_everything(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plans think of files for small maps too."""
    monkeypatch.setattr(plans, "SMALLEST_SPILL", 1)
    plans._candidates.cache_clear()
    yield
    plans._candidates.cache_clear()
