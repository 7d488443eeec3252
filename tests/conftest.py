"""What all tests share: the ``--slow`` option, the optional folder with real weights, and seeds."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import settings

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # for `support`, whichever way pytest imports the tests
os.environ["KERAS_BACKEND"] = "torch"  # before anything imports keras
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# what terminals and CI systems set, and what is printed depends on; typer and rich look while they are imported
for name in (
    "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "LINES", "NO_COLOR", "PY_COLORS",
    "PYTHONIOENCODING", "TTY_COMPATIBLE", "TTY_INTERACTIVE",
):  # fmt: skip
    os.environ.pop(name, None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests that take more than a few seconds")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--slow") and not config.getoption("--hypothesis-profile", None):
        settings.register_profile("quick", settings.default, max_examples=30)  # of those that name no number
        settings.load_profile("quick")
    if not hasattr(config, "workerinput"):  # once, where xdist starts processes
        _unlock_folders_of_killed_runs()


def _unlock_folders_of_killed_runs() -> None:
    """Lets pytest remove them, all but the newest; it keeps what is locked for three days, whoever locked it."""
    for lock in Path(tempfile.gettempdir()).glob("pytest-of-*/pytest-*/.lock"):
        with suppress(OSError, ValueError, OverflowError):
            if lock.parent.is_symlink() or sys.platform == "win32":  # whose os.kill would end the process
                continue
            try:
                os.kill(int(lock.read_text()), 0)
            except ProcessLookupError:
                lock.unlink()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Signals stop this process, and those it starts, as they do from a terminal.

    A shell without job control starts what runs in its background with SIGINT ignored, nohup with SIGHUP, and children
    inherit that.
    """
    ordinary = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if hasattr(signal, "SIGHUP"):
        ordinary[signal.SIGHUP] = signal.SIG_DFL
    before = {number: signal.signal(number, handler) for number, handler in ordinary.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real weights and photos that may lie beside the repository."""
    folder = Path(os.environ.get("CALOTYPE_TEST_DATA") or HERE.parents[1] / "shared")
    if not folder.is_dir():
        pytest.skip("there is no folder with real weights and photos; see CALOTYPE_TEST_DATA in CONTRIBUTING.md")
    return folder
