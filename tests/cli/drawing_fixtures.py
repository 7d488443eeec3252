"""Small drawing models; a test module names this one in `pytest_plugins`."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawingkit import small_model

from calotype.draw.model import load_model
from calotype.draw.pipeline import Drawer
from calotype.vae import load


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model") / "small.safetensors")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model") / "other.safetensors", seed=1)


@pytest.fixture(scope="session")
def drawer(model: Path) -> Drawer:
    return Drawer(load_model(model), load(device="cpu"))


@pytest.fixture
def builtin_drawing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small model is the one that ships."""
    monkeypatch.setattr("calotype.draw.model.BUILTIN", model)
