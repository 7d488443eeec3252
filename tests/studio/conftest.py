"""What tests of the studio share: one that runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for `studiokit`, whichever way pytest imports the tests

pytest.importorskip("starlette", reason="the studio's packages are not installed (pip install '.[studio]')")

from studiokit import Served, Visitor, photo, serving


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of small pictures."""
    root = tmp_path_factory.mktemp("folders")
    for name, start in (("warm", 0), ("cold", 10)):
        for i in range(6):
            photo(root / name / f"{i}.png", 64, 64, seed=start + i)
    return root / "warm", root / "cold"


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, folders: tuple[Path, Path]) -> Iterator[Served]:
    """A studio with the built-in VAE and two folders."""
    words = [word for folder in folders for word in ("--pictures", str(folder))]
    with serving(tmp_path_factory.mktemp("temporaries"), *words) as found:
        yield found


@pytest.fixture
def visitor(served: Served) -> Visitor:
    """Someone new."""
    return Visitor(served.base)
