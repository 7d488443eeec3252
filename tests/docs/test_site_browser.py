"""The built site in Chromium, opened from disk and without a network: pages load, and the search answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="selenium is not installed (pip install '.[test]')")

from browsing import chromium
from selenium import webdriver
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
    with chromium(tmp_path / "profile", "--host-resolver-rules=MAP * ~NOTFOUND") as opened:  # without a network
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
