"""Files made by hand, and what they must give."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for `filekit`, whichever way pytest imports the tests


@pytest.fixture
def no_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if calotype[deep] were not installed."""
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
