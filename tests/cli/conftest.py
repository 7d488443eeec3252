"""What tests of the command line share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for `clikit`, whichever way pytest imports the tests

from clikit import Calotype, run, small_vae
from familykit import KINDS


@pytest.fixture
def calotype(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Calotype:
    """Runs the command line in this process."""

    return partial(run, monkeypatch, capsys)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small VAE's file."""
    return small_vae(tmp_path_factory.mktemp("vae") / "small.safetensors")


@pytest.fixture(scope="session")
def other_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one of the same network."""
    return small_vae(tmp_path_factory.mktemp("vae") / "other.safetensors", seed=1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny network of each family, in a folder; see `familykit`."""
    root = tmp_path_factory.mktemp("families")
    for name, kind in KINDS.items():
        kind.make(root / name)
    return {name: root / name for name in KINDS}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from threads, and lose much to them where other programs are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # of subprocesses
        yield
    torch.set_num_threads(threads)
