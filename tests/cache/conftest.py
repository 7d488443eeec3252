"""What tests of caches share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "cli")]  # for `cachekit` and `clikit`, whichever way pytest imports

from cachekit import folder, units_of  # noqa: E402
from clikit import small_vae  # noqa: E402
from tradekit import vae_of  # noqa: E402

from calotype.vae import VAE, load  # noqa: E402

pytest.importorskip("pyarrow")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small VAE's file."""
    return small_vae(tmp_path_factory.mktemp("vae") / "small.safetensors")


@pytest.fixture(scope="session")
def vae(weights: Path) -> VAE:
    return load(weights, device="cpu")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> VAE:
    """Another VAE of the same network."""
    return load(small_vae(tmp_path_factory.mktemp("vae") / "small.safetensors", seed=1), device="cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a module's caches and VAEs lie."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(scope="module")
def sd1(root: Path) -> VAE:
    """A small VAE whose latents are SD1's."""
    return vae_of(root, "sd1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with seven pictures."""
    return folder(tmp_path / "data")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def _small_units() -> Iterator[None]:
    with units_of(3):
        yield
