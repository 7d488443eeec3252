"""The built site in Chromium, opened from disk and without a network: pages load, and the search answers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="selenium is not installed (pip install '.[test]')")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

SITE = Path(__file__).resolve().parents[2] / "site"
FOUND = """
for (const element of document.querySelectorAll("*"))
  for (const input of element.shadowRoot?.querySelectorAll("input") ?? [])
    return [input.value, element.shadowRoot.textContent];
return ["", ""];
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="scripts/check builds the site"),
]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no chromium with its chromedriver (Debian's packages chromium and chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    no_network = "--host-resolver-rules=MAP * ~NOTFOUND"
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000", no_network)
    for flag in (*flags, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(driver)) as opened:
        yield opened


def test_the_search_works_from_disk(browser: webdriver.Chrome) -> None:
    browser.get((SITE / "guides" / "train.html").as_uri())
    browser.find_element(By.CSS_SELECTOR, ".md-search__button").click()
    until = time.monotonic() + 60
    while time.monotonic() < until and not browser.execute_script("return document.activeElement.shadowRoot"):
        time.sleep(0.2)
    ActionChains(browser).send_keys("codebook").perform()
    while time.monotonic() < until:
        typed, shown = browser.execute_script(FOUND)
        if "results" in shown and "Codebooks" in shown:
            break
        time.sleep(0.2)
    assert typed == "codebook"  # what is typed stays there
    assert "Codebooks" in shown
    assert browser.get_log("browser") == []
