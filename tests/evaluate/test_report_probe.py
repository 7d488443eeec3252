"""The page of a probe: each finding with its numbers, its sentence and its figures."""

from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_example import HOSTILE, picture

import calotype
from calotype.evaluate.figures import Bars, Heatmap, Lines, Pictures, Scatter
from calotype.evaluate.probe import Finding, Number, Probe
from calotype.evaluate.report import write_probe


def probe_of(name: str = "some VAE") -> Probe:
    x = np.linspace(0, 1, 9)
    images = [picture(i, 32) for i in range(6)]
    return Probe(
        vae=name,
        sha256="ab" * 32,
        factor=8,
        latent_channels=4,
        pictures=("one.png", name),
        side=256,
        seed=3,
        lpips=None,
        findings=(
            Finding(
                key="first",
                title=f"First {name}",
                numbers=(
                    Number(name="PSNR", value=math.inf, unit="dB"),
                    Number(name="tiny", value=3.2e-7),
                    Number(name="share", value=-0.125),
                    Number(name="std per channel", value=(1.0, 0.5, 2.0, math.nan)),
                ),
                sentence=f"A sentence on {name}.",
                method="Measured by hand.",
                figures=(
                    Lines(title="Lines", x=x, series={"a": x, name: x**2}, x_label="x", y_label="y"),
                    Bars(title="Bars", labels=["0", "1"], series={"a": x[:2]}, x_label="x", y_label="y"),
                    Scatter(title="Scatter", x=x, y=x, x_label="x", y_label="y", labels=[name] * 9),
                ),
            ),
            Finding(
                key="second",
                title="Second",
                numbers=(),
                sentence="Another.",
                method="By eye.",
                figures=(
                    Heatmap(title="Map", values=np.eye(4), x=(0, 3), y=(0, 3), x_label="", y_label="", value_label="v"),
                    Pictures(title="Pictures", images=images, captions=[f"c{i}" for i in range(5)] + [name], columns=3),
                ),
            ),
        ),
        left_out={"labels": "no labels were given"},
    )


def test_a_probe(tmp_path: Path) -> None:
    path = write_probe(probe_of(), tmp_path / "probe.html")
    assert [one.name for one in tmp_path.iterdir()] == ["probe.html"]
    page = path.read_text("utf-8")
    assert re.findall(r'<section id="([^"]+)"', page) == ["first", "second", "left-out", "details"]
    assert "A sentence on some VAE." in page
    assert "Measured by hand." in page
    assert "labels: no labels were given." in page
    cells = re.findall(r'<th scope="row">([^<]+)</th><td>([^<]*)(?:<small>([^<]*)</small>)?', page)
    assert cells[:3] == [("PSNR", "∞", "dB"), ("tiny", "3.2·10⁻⁷", ""), ("share", "\u22120.125", "")]
    assert re.findall(r'<th scope="row">[0-3]</th><td>([^<]*)</td>', page) == ["1", "0.5", "2", "\u2013"]
    assert re.findall(r"<figcaption>([^<]+)</figcaption>", page) == [
        "Lines", "Bars", "Scatter", "Map", "Pictures", "c0", "c1", "c2", "c3", "c4", "some VAE"
    ]  # fmt: skip


def test_its_pictures_are_in_rows_and_unchanged(tmp_path: Path) -> None:
    probe = probe_of()
    page = write_probe(probe, tmp_path / "probe.html").read_text("utf-8")
    rows = page.split('<div class="row">')[1:]
    assert [row.count("<img") for row in rows] == [3, 3]
    figure = probe["second"].figures[1]
    assert isinstance(figure, Pictures)
    files = re.findall(r'<img src="data:image/webp;base64,([^"]+)"', page)
    for file, image in zip(files, figure.images, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))), image)


def test_a_last_row_that_is_not_full_has_tiles_as_wide(tmp_path: Path) -> None:
    probe = probe_of()
    figure = probe["second"].figures[1]
    assert isinstance(figure, Pictures)
    fewer = replace(figure, images=figure.images[:5], captions=figure.captions[:5])
    second = replace(probe["second"], figures=(fewer,))
    page = write_probe(replace(probe, findings=(second,)), tmp_path / "probe.html").read_text("utf-8")
    rows = page.split('<div class="row">')[1:]
    assert [row.count("<img") for row in rows] == [3, 2]
    assert [row.split("</div>")[0].count("<figure") for row in rows] == [3, 3]


def test_its_names_stay_names(tmp_path: Path) -> None:
    page = write_probe(probe_of(HOSTILE), tmp_path / "probe.html").read_text("utf-8")
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert not re.search(r"<[^>]*\sonerror=\"", page)
    assert "<img src=x" not in page


ABOUT: dict[str, Any] = {
    "calotype": "0",
    "created": "2026-01-02T03:04:05+00:00",
    "command": ["calotype", "probe", "my vae", "--seed", "3"],
    "versions": {"torch": "9.9.9", "python": "3.99"},
    "device": "cpu, 1 thread",
    "dtype": "float32",
    "data": "some photos",
    "labels": "some.json",
    "labels_of_no_picture": [f"gone-{i}.png" for i in range(30)],
}


def facts(page: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", page))


def test_it_says_how_it_was_made(tmp_path: Path) -> None:
    probe = replace(probe_of(), about=ABOUT, labelled=1, unread=("photos: bad.png: it is damaged.",))
    page = write_probe(probe, tmp_path / "probe.html").read_text("utf-8")
    found = facts(page)
    expected = {
        "weights": "some VAE", "sha256": "ab" * 32, "factor": "8", "latent channels": "4",
        "data": "some photos", "pictures": "2", "side": "256 pixels", "seed": "3",
        "labels": "some.json", "without a label": "1",
        "created": ABOUT["created"], "device": "cpu, 1 thread", "dtype": "float32",
        "calotype": calotype.__version__, "torch": "9.9.9", "python": "3.99",
    }  # fmt: skip
    assert {key: found.get(key) for key in expected} == expected
    assert found["labels of no picture"].startswith("gone-0.png, gone-1.png")
    assert found["labels of no picture"].endswith("gone-19.png, ...")
    assert "<pre>calotype probe &#x27;my vae&#x27; --seed 3</pre>" in page
    assert "<li>photos: bad.png: it is damaged.</li>" in page
    header = page.split("</header>")[0]
    assert f"{ABOUT['created']} · cpu, 1 thread" in header
    assert "1 more can&#x27;t be read and is left out." in header
    for note in probe.notes:
        assert note in header
    assert "30 names there belong to no picture, gone-0.png for one." in header


@pytest.mark.parametrize(("data", "drawn"), [("photos", False), (None, True)])
def test_it_says_what_the_program_drew(tmp_path: Path, data: str | None, drawn: bool) -> None:
    page = write_probe(replace(probe_of(), about={**ABOUT, "data": data}), tmp_path / "probe.html").read_text("utf-8")
    header = page.split("</header>")[0]
    assert "Charts and maps are drawn from the numbers; pictures of one colour and of noise are made by" in header
    assert ("drawn cards, not photographs" in header) == drawn
    assert ("all others are the pictures given" in header) != drawn
    assert facts(page)["data"] == (data or "cards that the program draws")


def test_without_all_that_it_is_whole_too(tmp_path: Path) -> None:
    page = write_probe(probe_of(), tmp_path / "probe.html").read_text("utf-8")
    assert facts(page)["pictures"] == "2"
    assert "can't be read" not in page
    assert "<pre>" not in page
