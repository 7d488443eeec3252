"""The report in Chromium: what clicks, drags and keys do, without an error in its console."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_example import HOSTILE, example

from calotype.evaluate.report import Crop, write_evaluation
from calotype.evaluate.session import SHOWN, SIDE

pytest.importorskip("selenium", reason="selenium is not installed (pip install '.[test]')")

from browsing import chromium
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

LABELS = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results, crops = example(LABELS, count=8, side=64)
    results["pictures"][4]["name"] = HOSTILE  # and the crop of it
    crop = crops[4]
    crops[4] = Crop(picture=HOSTILE, box=crop.box, original=crop.original, reconstructions=crop.reconstructions)
    return write_evaluation(results, crops, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def page(browser: webdriver.Chrome, report: Path, tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """The report, freshly opened; whatever the test did to it, its console is to be empty."""
    browser.get("about:blank")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get(report.as_uri())
    WebDriverWait(browser, 30).until(lambda opened: opened.find_elements(By.CSS_SELECTOR, "#plot .mark"))
    yield browser
    folder = Path(os.environ.get("CALOTYPE_SCREENSHOTS") or tmp_path)
    name = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].partition(" ")[0]
    browser.save_screenshot(str(folder / f"report-{name}.png"))
    assert browser.get_log("browser") == []
    assert "taken" not in browser.title


def one(page: webdriver.Chrome, selector: str) -> WebElement:
    return page.find_element(By.CSS_SELECTOR, selector)


def each(page: webdriver.Chrome | WebElement, selector: str) -> list[WebElement]:
    return page.find_elements(By.CSS_SELECTOR, selector)


def choose(page: webdriver.Chrome, key: str, value: str) -> None:
    Select(one(page, f"#choose-{key}")).select_by_value(value)


def in_view(page: webdriver.Chrome, element: WebElement) -> WebElement:
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    return element


def labels_of(page: webdriver.Chrome) -> list[str]:
    return [row.get_attribute("data-value") or "" for row in each(page, "#summary tbody th")]


def articles(page: webdriver.Chrome) -> list[int]:
    return [int(article.get_attribute("data-picture") or -1) for article in each(page, "article")]


def test_the_table_is_sorted_by_clicks(page: webdriver.Chrome) -> None:
    assert labels_of(page) == ["alpha", "beta", "gamma"]
    heads = {head.text.split("\n")[0].rstrip(" ↕↑↓"): head for head in each(page, "#summary thead th")}
    heads["PSNR"].find_element(By.TAG_NAME, "button").click()
    assert labels_of(page) == ["gamma", "beta", "alpha"]
    assert heads["PSNR"].get_attribute("aria-sort") == "ascending"
    heads["PSNR"].find_element(By.TAG_NAME, "button").click()
    assert labels_of(page) == ["alpha", "beta", "gamma"]
    assert heads["PSNR"].get_attribute("aria-sort") == "descending"
    heads["VAE"].find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert heads["VAE"].get_attribute("aria-sort") == "ascending"
    assert heads["PSNR"].get_attribute("aria-sort") == "none"


def positions(page: webdriver.Chrome) -> list[tuple[str, str, str]]:
    script = "return [...document.querySelectorAll('#plot .mark')].map(m => [m.dataset.vae, m.dataset.picture, "
    return [tuple(mark) for mark in page.execute_script(script + "m.getAttribute('transform')])")]


def axis(page: webdriver.Chrome, which: str) -> str:
    return one(page, f"#plot .label.{which}").text


def test_the_axes_of_the_chart(page: webdriver.Chrome) -> None:
    first = positions(page)
    assert len(first) == 3 * 8 - 1  # one failed
    assert axis(page, "x") == "PSNR (dB, higher is better)"
    assert axis(page, "y") == "LPIPS (VGG) (lower is better)"
    choose(page, "y", "1")
    assert axis(page, "y") == "SSIM (higher is better)"
    assert positions(page) != first
    choose(page, "mode", "vaes")
    assert axis(page, "x") == "alpha: PSNR (dB, higher is better)"
    assert axis(page, "y") == "beta: PSNR (dB, higher is better)"
    assert len(positions(page)) == 8
    assert each(page, "#plot .even")
    assert one(page, "#plot-says").text.startswith("beta is better than alpha on 0 of 8 pictures")
    choose(page, "x", "2")
    choose(page, "by", "2")
    assert axis(page, "x") == "gamma: LPIPS (VGG) (lower is better)"
    assert one(page, "#plot-says").text.startswith("beta is better than gamma on 7 of 7 pictures, below")


def test_the_chart_begins_with_what_every_vae_has(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """A VAE without a posterior has no rate, and one may have failed at a metric."""
    results, crops = example(LABELS, count=4, side=64)
    results["metrics"] = results["metrics"][:2]  # PSNR and SSIM, so that the rate alone judges otherwise
    for vae, rate in zip(results["vaes"], (0.5, None, 0.7), strict=True):
        for row in vae["rows"]:
            row["kl_bits_per_pixel"] = rate
    browser.get(write_evaluation(results, crops, tmp_path / "report.html").as_uri())
    assert (axis(browser, "x"), axis(browser, "y")) == ("PSNR (dB, higher is better)", "SSIM (higher is better)")
    choose(browser, "y", "2")
    assert axis(browser, "y").startswith("KL rate")
    for row in results["vaes"][1]["rows"]:
        row["kl_bits_per_pixel"] = 0.6
    browser.get(write_evaluation(results, crops, tmp_path / "rated.html").as_uri())
    assert axis(browser, "y").startswith("KL rate")
    assert browser.get_log("browser") == []


def test_points_stand_at_their_values(page: webdriver.Chrome, report: Path) -> None:
    """Linear in PSNR and LPIPS: the picture's numbers, which the page was made of, fit the pixels exactly."""
    results, _ = example(LABELS, count=8, side=64)
    rows = {(k, row["picture"]): row for k, vae in enumerate(results["vaes"]) for row in vae["rows"]}
    marks = positions(page)
    at = np.array([list(map(float, mark[2][10:-1].split())) for mark in marks])
    values = [rows[int(vae), int(picture)] for vae, picture, _ in marks]
    for i, key, sign in ((0, "psnr", 1), (1, "lpips_vgg", -1)):
        expected = np.array([value[key] for value in values])
        slope, start = np.polyfit(expected, at[:, i], 1)
        assert np.sign(slope) == sign
        assert np.abs(slope * expected + start - at[:, i]).max() < 0.1


def test_a_click_on_a_point_leads_to_its_crops(page: webdriver.Chrome) -> None:
    mark = in_view(page, one(page, "#plot .mark[data-vae='0'][data-picture='4']"))
    ActionChains(page).move_to_element(mark).perform()
    tip = one(page, "#plot .tip")
    assert HOSTILE in tip.text
    assert "PSNR" in tip.text
    assert "dB" in tip.text
    ActionChains(page).click(mark).perform()
    assert page.switch_to.active_element.get_attribute("id") == "picture-4"
    assert "found" in (one(page, "#picture-4").get_attribute("class") or "")
    top = page.execute_script("return document.querySelector('#picture-4').getBoundingClientRect().top")
    assert 0 <= top < 400


def test_the_chart_by_keyboard(page: webdriver.Chrome) -> None:
    in_view(page, one(page, "#plot svg"))
    page.execute_script("document.querySelector('#plot svg').focus()")
    ActionChains(page).send_keys(Keys.ARROW_RIGHT).perform()
    worst = one(page, "#plot .mark.now")  # the leftmost: the least PSNR
    picture = worst.get_attribute("data-picture")
    assert worst.get_attribute("data-vae") == "2"
    ActionChains(page).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ENTER).perform()
    assert page.switch_to.active_element.get_attribute("id") == f"picture-{picture}"


def test_the_worst_come_first(page: webdriver.Chrome) -> None:
    results, _ = example(LABELS, count=8, side=64)

    def expected(vae: int, key: str, sign: int) -> list[int]:
        figures = {row["picture"]: sign * row[key] for row in results["vaes"][vae]["rows"] if key in row}
        return sorted(range(8), key=lambda i: (figures.get(i, -1e9), i))

    assert articles(page) == expected(0, "psnr", 1)
    choose(page, "order-vae", "2")
    assert articles(page) == expected(2, "psnr", 1)
    assert articles(page)[0] == 2  # the one that failed
    choose(page, "order", "lpips_vgg")
    choose(page, "order-vae", "1")
    assert articles(page) == expected(1, "lpips_vgg", -1)
    assert one(page, "#all summary").text == "Pictures by the metric chosen above"
    one(page, "#all summary").click()
    assert len(each(page, "#all-pictures tbody tr")) == 8
    assert "LPIPS" in one(page, "#all-pictures thead").text
    rows = [row.text for row in each(page, "#all-pictures tbody tr")]
    assert ["failed" in row for row in rows] == ["picture-02.png" in row for row in rows]  # why there is no figure


def wiped(page: webdriver.Chrome, frame: WebElement) -> float:
    """The part of a picture's width that the other picture covers, in percent."""
    script = "return getComputedStyle(arguments[0].querySelector('.over')).clipPath"
    found = re.fullmatch(r"inset\(0px ([\d.]+)% 0px 0px\)", page.execute_script(script, frame))
    assert found is not None
    return 100 - float(found[1])


def test_the_slider_by_keyboard_and_pointer(page: webdriver.Chrome) -> None:
    article = in_view(page, one(page, "article"))
    frames = each(article, ".tile:not([data-vae='original']) .frame")
    slider = frames[0].find_element(By.CSS_SELECTOR, ".wipe")
    assert wiped(page, frames[0]) == 0
    page.execute_script("arguments[0].focus()", slider)
    slider.send_keys(Keys.ARROW_RIGHT * 3)
    assert [wiped(page, frame) for frame in frames] == [3] * len(frames)  # all of a picture move together
    assert slider.get_attribute("aria-valuetext") == "3% original"
    edge = frames[0].find_element(By.CSS_SELECTOR, ".edge")
    before = edge.rect["x"]
    ActionChains(page).move_to_element(frames[0]).click_and_hold().move_by_offset(40, 0).release().perform()
    width = frames[0].rect["width"]
    assert wiped(page, frames[0]) == pytest.approx(50 + 100 * 40 / width, abs=6)
    assert edge.rect["x"] > before + 50
    other = each(page, "article")[1].find_element(By.CSS_SELECTOR, ".wipe")
    assert other.get_attribute("value") == "0"
    choose(page, "side", "1")
    over, rebuilt = (
        one(page, f"article .tile[data-vae='{key}'] img{more}") for key, more in (("0", ".over"), ("1", ""))
    )
    assert over.get_attribute("src") == rebuilt.get_attribute("src")
    assert "beta" in (slider.get_attribute("aria-label") or "")


def canvas(page: webdriver.Chrome, picture: int, vae: int) -> np.ndarray[Any, Any]:
    script = """
        const canvas = document.querySelector(`#picture-${arguments[0]} [data-vae="${arguments[1]}"] canvas`);
        if (canvas.hidden) return null;
        const [width, height] = [canvas.width, canvas.height];
        return [height, width, [...canvas.getContext("2d").getImageData(0, 0, width, height).data]];
    """
    height, width, values = page.execute_script(script, picture, vae)
    return np.array(values).reshape(height, width, 4)[..., :3]


def test_differences_and_their_factor(page: webdriver.Chrome) -> None:
    _, crops = example(LABELS, count=8, side=64)
    first = articles(page)[0]
    assert not one(page, "#factor").is_displayed()
    choose(page, "view", "difference")
    in_view(page, one(page, "article"))
    slider = one(page, "#factor")
    assert slider.is_displayed()
    assert one(page, "#factor-says").text == "\u00d74"
    apart = crops[first].reconstructions["beta"].astype(int) - crops[first].original
    assert np.array_equal(canvas(page, first, 1), (128 + 4 * apart).clip(0, 255))
    slider.send_keys(Keys.ARROW_RIGHT * 6)
    assert one(page, "#factor-says").text == "\u00d710"
    assert np.array_equal(canvas(page, first, 1), (128 + 10 * apart).clip(0, 255))
    choose(page, "view", "wipe")
    assert not any(found.is_displayed() for found in each(page, "canvas"))


def test_the_size_of_crops(page: webdriver.Chrome) -> None:
    image = one(page, "article .tile[data-vae='0'] img")
    choose(page, "zoom", "4")
    assert image.rect["width"] == 256
    choose(page, "zoom", "1")
    assert image.rect["width"] == 64
    choose(page, "zoom", "fit")
    assert image.rect["width"] > 150


def test_small_latents_are_beside_pictures_and_none_of_them(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """The slider, the differences and the size are those of the reconstruction."""
    results, crops = example(LABELS, count=2, side=64)
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    crops = [replace(crop, latents={"alpha": small, "beta": 255 - small}) for crop in crops]
    browser.get(write_evaluation(results, crops, tmp_path / "report.html").as_uri())
    in_view(browser, one(browser, "article"))
    for vae in "01":
        latents = one(browser, f"article .tile[data-vae='{vae}'] .latents")
        picture = one(browser, f"article .tile[data-vae='{vae}'] .frame img")
        assert latents.is_displayed() and browser.execute_script("return arguments[0].naturalWidth", latents) == 8
        style = "return getComputedStyle(arguments[0]).imageRendering"
        assert browser.execute_script(style, latents) == "pixelated"
        assert 40 < latents.rect["width"] < picture.rect["width"] / 2
        assert latents.rect["y"] >= picture.rect["y"] + picture.rect["height"]
        over = one(browser, f"article .tile[data-vae='{vae}'] img.over")
        original = one(browser, "article .tile[data-vae='original'] .frame img")
        assert over.get_attribute("src") == original.get_attribute("src")
    choose(browser, "zoom", "2")
    assert one(browser, "article .tile[data-vae='0'] .frame img").rect["width"] == 128
    choose(browser, "view", "difference")
    first = articles(browser)[0]
    apart = crops[first].reconstructions["beta"].astype(int) - crops[first].original
    assert np.array_equal(canvas(browser, first, 1), (128 + 4 * apart).clip(0, 255))
    assert browser.get_log("browser") == []


def test_details_open(page: webdriver.Chrome) -> None:
    facts = one(page, "#protocol dl")
    assert not facts.is_displayed()
    in_view(page, one(page, "#protocol summary")).click()
    assert facts.is_displayed()
    assert "As they are." in facts.text
    assert not one(page, "#hashes table").is_displayed()


@pytest.mark.slow
def test_a_whole_page_opens_in_a_second(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """Three VAEs and 24 pictures with crops of their real size: the median of three openings, until all is there.

    Where other work has the processor too, a second is as much longer as this process waits for its turn.
    """
    results, crops = example(LABELS, count=SHOWN, side=SIDE)
    path = write_evaluation(results, crops, tmp_path / "report.html")
    assert path.stat().st_size > 5e6
    times, turns = [], []
    for _ in range(3):
        begin, used = time.perf_counter(), time.process_time()
        while time.process_time() - used < 0.1:
            pass
        turns.append((time.perf_counter() - begin) / (time.process_time() - used))
        browser.get("about:blank")
        browser.get(path.as_uri())
        times.append(browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"))
        assert len(articles(browser)) == SHOWN
        assert each(browser, "#plot .mark")
    assert 0 < statistics.median(times) < max(1.0, statistics.median(turns))


@pytest.mark.slow
def test_nothing_sticks_out_on_a_phone(page: webdriver.Chrome, report: Path) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.get(report.as_uri())
    assert page.execute_script("return document.documentElement.scrollWidth") == 390
    for dark in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": dark}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        script = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        ink, ground = (sum(map(int, value[4:-1].split(","))) for value in page.execute_script(script))
        assert (ink < ground) == (dark == "light")
        assert abs(ink - ground) > 500
