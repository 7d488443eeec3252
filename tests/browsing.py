"""A browser for tests: Chromium without a window, of which no request is to leave this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="selenium is not installed (pip install '.[test]')")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1000",
)  # fmt: skip


@contextmanager
def chromium(profile: Path, *flags: str, logs: tuple[str, ...] = ("browser",)) -> Iterator[webdriver.Chrome]:
    """A browser of its own; without one the test is skipped, and fails where CI is set.

    Args:
        profile: a folder for it.
        logs: what is kept to be asked for.
    """
    places = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    browser, driver = next(filter(None, places), None), shutil.which("chromedriver")
    if browser is None or driver is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there are no chromium and chromium-driver (of Debian)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, *flags, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", dict.fromkeys(logs, "ALL"))
    with webdriver.Chrome(options=options, service=Service(driver)) as opened:
        yield opened
