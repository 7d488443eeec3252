"""The page of a probe: each finding with its numbers, its sentence and its figures."""

from __future__ import annotations

import base64
import io
import math
import re
from pathlib import Path

import numpy as np
from PIL import Image
from report_example import HOSTILE, picture

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


def test_its_names_stay_names(tmp_path: Path) -> None:
    page = write_probe(probe_of(HOSTILE), tmp_path / "probe.html").read_text("utf-8")
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert not re.search(r"<[^>]*\sonerror=\"", page)
    assert "<img src=x" not in page
