"""A browser at the studio, and what a test does there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from browsing import chromium
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.ui import WebDriverWait

TABS = ("look", "latents", "edit", "draw", "measure", "plan")
PATIENCE = 120.0  # seconds, for machines that others keep busy


class Page:
    """A browser at the studio."""

    def __init__(self, driver: webdriver.Chrome, base: str) -> None:
        self.driver, self.base = driver, base

    def open(self) -> Page:
        """The page, with all that is to be chosen from there."""
        self.driver.get(self.base)
        self.wait(lambda: self.script("return 'ready' in document.body.dataset"))
        return self

    def script(self, text: str, *values: Any) -> Any:
        """Runs in the page."""
        return self.driver.execute_script(text, *values)

    def wait(self, ready: Callable[[], Any]) -> Any:
        """Until it is so."""
        waiting = WebDriverWait(self.driver, PATIENCE, 0.05, [StaleElementReferenceException])
        return waiting.until(lambda _: ready())

    def each(self, selector: str) -> list[WebElement]:
        """All that can be seen."""
        while True:
            with suppress(StaleElementReferenceException):  # the page went on meanwhile
                return [one for one in self.driver.find_elements(By.CSS_SELECTOR, selector) if one.is_displayed()]

    def one(self, selector: str) -> WebElement:
        """The first that can be seen, as soon as there is one."""
        found: list[WebElement] = self.wait(lambda: self.each(selector))
        return found[0]

    def go(self, tab: str) -> None:
        """To a tab."""
        self.one(f"#go-{tab}").click()
        assert [one for one in TABS if self.each(f"#{one}")] == [tab]

    def add(self, *paths: Path) -> None:
        """Adds pictures."""
        count = len(self.each("#things li"))
        self.driver.find_element(By.ID, "files").send_keys("\n".join(map(str, paths)))
        self.wait(lambda: len(self.each("#things li")) == count + len(paths))

    def put(self, tab: str, name: str, value: object) -> None:
        """Fills a field."""
        field = self.one(f"#{tab} [name='{name}']")
        if field.tag_name == "select":
            Select(field).select_by_value(str(value))
        else:
            self.script("arguments[0].value = ''", field)
            field.send_keys(str(value))

    def choose(self, tab: str, name: str, picture: str) -> None:
        """Chooses a picture by its name."""
        Select(self.one(f"#{tab} [name='{name}']")).select_by_visible_text(picture)

    def switch(self, tab: str, value: str) -> None:
        """One of several."""
        self.one(f"#{tab} .switch [data-value='{value}']").click()

    def press(self, tab: str, index: int = 0) -> None:
        """Runs the form, to its end."""
        button = self.each(f"#{tab} .run")[index]
        self.script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        self.wait(button.is_enabled)

    def error(self, tab: str) -> str:
        """The sentence that a form got."""
        [error] = self.each(f"#{tab} .error")
        assert "\n" not in error.text and "Traceback" not in error.text
        return error.text

    def shown(self, tab: str) -> list[tuple[int, int]]:
        """Sizes of the pictures that a tab shows, as they are."""
        script = "return arguments[0].complete ? [arguments[0].naturalWidth, arguments[0].naturalHeight] : [0, 0]"
        return [tuple(self.script(script, one)) for one in self.each(f"#{tab} .stage .shot-card img")]

    def painted(self, selector: str) -> int:
        """How many different colours a canvas has."""
        return int(
            self.script(
                "const c = document.querySelector(arguments[0]); if (!c || !c.width) return 0;"
                "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const found = new Set();"
                "for (let i = 0; i < d.length; i += 4) found.add((d[i] << 16) | (d[i + 1] << 8) | d[i + 2]);"
                "return found.size;",
                selector,
            )
        )

    def keep(self, name: str) -> None:
        """A screenshot, where those are kept."""
        if folder := os.environ.get("CALOTYPE_SCREENSHOTS"):
            self.driver.save_screenshot(str(Path(folder) / f"studio-{name}.png"))

    def hosts(self) -> set[str]:
        """Where requests went since it was last asked."""
        found = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = urlsplit(message["params"]["request"]["url"])
                found |= {url.netloc} if url.scheme in ("http", "https", "ws", "wss") else set()
        return found


@contextmanager
def browsing(profile: Path, base: str) -> Iterator[Page]:
    """A browser of its own."""
    with chromium(profile, "--window-size=1440,900", logs=("browser", "performance")) as opened:
        yield Page(opened, base)


def slowness() -> float:
    """How many times as long this process takes because others have the processor too."""
    begin, used = time.perf_counter(), time.process_time()
    while time.process_time() - used < 0.1:
        pass
    return max(1.0, (time.perf_counter() - begin) / (time.process_time() - used))
