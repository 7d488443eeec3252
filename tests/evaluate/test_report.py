"""The report of an evaluation: what is on the page, that names stay names, and what pictures it holds."""

from __future__ import annotations

import base64
import copy
import hashlib
import html.parser
import io
import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_example import HOSTILE, example, picture, psnr_of
from support import names, one_sentence

from calotype.errors import UsageError
from calotype.evaluate.report import Crop, write_evaluation
from calotype.evaluate.report.page import MOST_PICTURES
from calotype.evaluate.report.pictures import encode
from calotype.evaluate.report.standing import standings, unmarked
from calotype.evaluate.session import SHOWN, SIDE


class Page(html.parser.HTMLParser):
    """Elements with their attributes, and the text in and below each."""

    VOID = ("img", "input", "meta")

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text("utf-8")
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(self.source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        one = (tag, dict(attrs), list[str]())
        self.elements.append(one)
        if tag not in self.VOID:
            self._open.append(one)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for one in self._open:
            one[2].append(data)

    def all(self, tag: str, **attributes: str) -> list[tuple[dict[str, str | None], str]]:
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [
            (attrs, "".join(text))
            for name, attrs, text in self.elements
            if name == tag and all(attrs.get(key) == value for key, value in wanted.items())
        ]

    def data(self) -> dict[str, Any]:
        ((_, text),) = self.all("script", id="data")
        return dict(json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON")))


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def column(page: Page, section: str, title: str) -> list[str]:
    """The texts of a column of the first table of a section."""
    start = page.source.index(f'<section id="{section}"')
    table = page.source[start : page.source.index("</table>", start)]
    head, *rows = (re.findall(r"<t[hd][ >].*?</t[hd]>", row) for row in table.split("<tr>")[1:])
    place = next(i for i, cell in enumerate(head) if f">{title}<" in cell)
    return [re.sub(r"<[^>]*>", " ", row[place]).strip() for row in rows]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    results, crops = example()
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert write_evaluation(results, crops, path) == path
    assert names(path.parent) == ["report.html"]
    return Page(path)


def test_the_summary_has_means_intervals_and_standings(page: Page) -> None:
    results, _ = example()
    cells = column(page, "summary", "PSNR")
    for cell, vae in zip(cells, results["vaes"], strict=True):
        mean = vae["means"]["psnr"]
        for key in ("mean", "low", "high"):
            assert f"{mean[key]:.2f}" in cell
    assert ["best" in cell for cell in cells] == [True, False, False]  # on every picture, though intervals overlap
    means = [vae["means"]["psnr"] for vae in results["vaes"]]
    assert means[1]["high"] > means[0]["low"]
    assert ["7 of 8 pictures" in cell for cell in cells] == [False, False, True]
    assert [cell.split()[0] for cell in column(page, "summary", "FID (inception)")] == ["3.500", "4.500", "5.500"]
    assert "± 0.00020" in column(page, "summary", "KID (inception)")[0]


def test_all_parts_are_there(page: Page) -> None:
    sections = [attrs["id"] for attrs, _ in page.all("section")]
    assert sections == ["summary", "chart", "pictures", "failures", "subsets", "cost", "latents", "details"]
    assert column(page, "failures", "What went wrong") == ["picture-02.png needs 9 GB; give a smaller one."]
    assert column(page, "failures", "VAE") == ["gamma"]
    assert [cell.split()[0] for cell in column(page, "subsets", "PSNR")] == ["30.00", "29.00", "28.00"]
    assert column(page, "cost", "Decoding") == ["2.00", "1.50", "1.00"]
    assert column(page, "cost", "Parameters") == ["4.9 M", "9.8 M", "14.7 M"]
    assert len(page.all("figure", class_="chart")) == 3
    assert [text for _, text in page.all("pre")] == ['calotype evaluate "my photos" --vae alpha']
    for picture_ in example()[0]["pictures"]:
        assert any(picture_["sha256"] in text for _, text in page.all("code"))
    ((_, title),) = page.all("h1")
    assert title == "alpha, beta and gamma on 8 pictures"


def test_the_scripts_data_are_the_results(page: Page) -> None:
    results, _ = example()
    data = page.data()
    assert data["pictures"] == [one["name"] for one in results["pictures"]]
    assert data["crops"] == list(range(8))
    for k, vae in enumerate(results["vaes"]):
        for row in vae["rows"]:
            for key in ("psnr", "ssim", "lpips_vgg", "kl_bits_per_pixel"):
                assert data["values"][key][k][row["picture"]] == row.get(key)
    assert data["values"]["psnr"][2][2] is None


@pytest.mark.slow
def test_of_many_pictures_the_page_names_some_and_its_means_are_of_all(tmp_path: Path) -> None:
    small, crops = example(count=4)
    count, wanted, worst = 20_000, (7, 8, 12_345), 13_001
    results = copy.deepcopy(small)
    results["pictures"] = [{**small["pictures"][0], "name": f"val/{i:08d}.png"} for i in range(count)]
    for k, vae in enumerate(results["vaes"]):
        vae["rows"] = [{**small["vaes"][k]["rows"][0], "picture": i, "psnr": 20 + i / count} for i in range(count)]
    results["vaes"][1]["rows"][worst]["lpips_vgg"] = 3.0
    for row in results["vaes"][1]["rows"][-2000:]:
        row["error"] = "It failed."
    results["vaes"][2]["rows"][5]["error"] = "It failed alone."
    results["vaes"][1]["means"]["psnr"]["n"] = count - 2000
    shown = [replace(crop, picture=f"val/{i:08d}.png") for crop, i in zip(crops, wanted, strict=False)]
    page = Page(write_evaluation(results, shown, tmp_path / "many.html"))
    data = page.data()
    assert len(data["pictures"]) == MOST_PICTURES
    assert data["pictures"] == sorted(set(data["pictures"]))
    assert [data["pictures"][i] for i in data["crops"]] == [f"val/{i:08d}.png" for i in wanted]
    numbers = np.array([int(name[4:12]) for name in data["pictures"]])
    assert set(range(20)) <= set(numbers)  # the worst by PSNR
    assert worst in numbers
    assert numbers[-1] >= count - 5
    assert np.diff(numbers).max() <= 5
    assert data["values"]["psnr"][0] == [20 + i / count for i in numbers]
    ((_, title),) = page.all("h1")
    assert title == "alpha, beta and gamma on 20,000 pictures"
    assert "18,000 of 20,000 pictures" in column(page, "summary", "PSNR")[1]
    assert page.source.count("Of 20,000 pictures 5,000 are shown") == 2
    assert "Pictures and their hashes (5,000 of 20,000)" in page.source
    assert Counter(column(page, "failures", "VAE")) == {"beta": 166, "gamma": 1}
    assert "More are in results.csv: beta 1,834." in page.source
    assert (tmp_path / "many.html").stat().st_size < 8e6


def test_crops_are_the_pixels(page: Page) -> None:
    _, crops = example()
    images = iter(page.all("img"))
    for crop in crops:
        for label, expected in (("original", crop.original), *crop.reconstructions.items()):
            attrs, _ = next(images)
            assert attrs["alt"] == f"{crop.picture}, {label}"
            assert np.array_equal(pixels(attrs["src"] or ""), expected)
    assert next(images, None) is None
    assert "stored without loss" in page.source


def test_nothing_is_fetched_and_only_its_own_script_runs(page: Page) -> None:
    ((policy, _),) = page.all("meta", http_equiv="Content-Security-Policy")
    allowed = dict(part.strip().split(" ", 1) for part in (policy["content"] or "").split(";"))
    assert allowed["default-src"] == "'none'"
    assert allowed["img-src"] == "data:"
    scripts = [text for attrs, text in page.all("script") if attrs.get("type") != "application/json"]
    for blocks, key in ((scripts, "script-src"), ([text for _, text in page.all("style")], "style-src")):
        (block,) = blocks
        assert allowed[key] == f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"
    assert not page.all("link")
    for _, attrs, _ in page.elements:
        assert not any(key.startswith("on") or key == "style" for key in attrs)
        assert (attrs.get("src") or "data:").startswith("data:")
    assert set(re.findall(r"https?://[^\"' ]*", page.source)) == {"http://www.w3.org/2000/svg"}


def test_names_stay_names(tmp_path: Path) -> None:
    results, crops = example(labels=(HOSTILE, "beta"), count=4)
    plain, hostile = results["pictures"][0]["name"], "a " + HOSTILE
    results["pictures"][0]["name"] = hostile
    results["protocol"]["note"] = results["device"] = results["versions"][HOSTILE] = HOSTILE
    results["vaes"][1]["rows"][2]["error"] = HOSTILE
    results["vaes"][0]["subsets"] = {HOSTILE: results["vaes"][0]["subsets"]["faces"]}
    results["command"].append(HOSTILE)
    first = crops[0]
    assert first.picture == plain
    crops[0] = Crop(picture=hostile, box=first.box, original=first.original, reconstructions=first.reconstructions)
    page = Page(write_evaluation(results, crops, tmp_path / "report.html"))
    assert len(page.all("script")) == 2
    assert all((attrs["src"] or "").startswith("data:image/") for attrs, _ in page.all("img"))
    assert not any("onerror" in attrs for _, attrs, _ in page.elements)
    assert page.data()["pictures"][0] == hostile
    assert page.data()["vaes"][0] == HOSTILE
    assert any(text.startswith(hostile) for _, text in page.all("h3"))
    assert column(page, "failures", "What went wrong")[0].startswith("&lt;/script&gt;")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    results, _ = example(count=3)
    results["pictures"][0]["name"] = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    page = Page(write_evaluation(results, [], tmp_path / "report.html"))
    assert any(text == "caf\\udce9.png" for _, text in page.all("th"))


def test_only_what_must_be_there(tmp_path: Path) -> None:
    results, _ = example(labels=("one",), count=3)
    for key in ("created", "command", "versions", "device"):
        del results[key]
    for key in ("format", "subsets", "distances", "latents", "speed", "memory", "network"):
        del results["vaes"][0][key]
    results["vaes"][0]["rows"] = [{"picture": i, "error": "It failed."} for i in range(3)]
    results["vaes"][0]["means"] = {}
    for one in results["pictures"]:
        one["height"] = one["width"] = None
    page = Page(write_evaluation(results, [], tmp_path / "report.html"))
    assert [attrs["id"] for attrs, _ in page.all("section")] == [
        "summary", "chart", "pictures", "failures", "cost", "details"
    ]  # fmt: skip
    assert column(page, "summary", "PSNR") == ["\u2013 3 failed"]


def test_an_unchanged_picture(tmp_path: Path) -> None:
    results, _ = example(labels=("one", "two"), count=3)
    results["vaes"][0]["rows"][1]["psnr"] = math.inf
    results["vaes"][0]["means"]["psnr"] = {"mean": math.inf, "low": 30.0, "high": math.inf, "n": 3}
    page = Page(write_evaluation(results, [], tmp_path / "report.html"))
    assert page.data()["values"]["psnr"][0][1] == "inf"
    assert column(page, "summary", "PSNR")[0].startswith("∞")


def vae_of(values: list[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    rows = [{"picture": i, "m": v} if v is not None else {"picture": i, "error": "."} for i, v in enumerate(values)]
    return {"rows": rows, "means": {"m": {"mean": sum(known) / len(known)}} if known else {}}


def standings_of(*vaes: list[float | None], higher: bool = True) -> list[str]:
    results = {"vaes": [vae_of(values) for values in vaes], "pictures": [None] * len(vaes[0])}
    return list(standings(results, "m", higher))


def test_standings() -> None:
    base: list[float | None] = [20.0, 25.0, 30.0, 35.0, 40.0, 28.0]
    above: list[float | None] = [v + 0.1 + 0.01 * i for i, v in enumerate(base) if v is not None]
    mixed: list[float | None] = [v + 0.5 * (-1) ** i + 0.01 for i, v in enumerate(base) if v is not None]
    assert standings_of(base, above) == ["", "best"]  # a tenth of a dB, but on each picture
    assert standings_of(base, above, higher=False) == ["best", ""]
    assert standings_of(base, mixed) == ["tied", "tied"]
    assert standings_of(base, [v + 10 for v in base if v is not None], mixed) == ["", "best", ""]
    assert standings_of(base, base) == ["tied", "tied"]
    assert standings_of(base) == [""]
    assert standings_of(base, [None] * 6) == ["", ""]
    assert standings_of(base, [41.0, None, None, None, None, None]) == ["", ""]  # one picture in common
    # the first has the better mean only because it failed on the dark picture
    base, above = [*base, 31.0], [*above, 31.3]
    assert standings_of([None, *base[1:]], [20.0, *above[1:]]) == ["", "best"]
    assert standings_of([*base[:6], math.inf], above)[1] == "best"
    for count in range(1, 6):  # all on one side once in 2^(count - 1) times, by chance alone
        assert standings_of(base[:count], above[:count]) == ["", ""]
        results = {"vaes": [vae_of(base[:count])] * 2, "pictures": [None] * count}
        assert unmarked(results).startswith("No VAE is marked best")
        assert unmarked({**results, "vaes": results["vaes"][:1]}) == ""
    assert unmarked({"vaes": [vae_of(base)] * 2, "pictures": [None] * 6}) == ""


def noisy(results: dict[str, Any]) -> list[Crop]:
    """Crops of noise, as large as those of an evaluation."""
    generator = np.random.default_rng(0)
    shape = (SIDE, SIDE, 3)
    return [
        Crop(
            picture=one["name"],
            box=(0, 0, SIDE, SIDE),
            original=generator.integers(0, 256, shape, dtype=np.uint8),
            reconstructions={
                vae["label"]: generator.integers(0, 256, shape, dtype=np.uint8) for vae in results["vaes"]
            },
        )
        for one in results["pictures"]
    ]


@pytest.mark.slow
def test_crops_that_are_too_many_are_left_out(tmp_path: Path) -> None:
    """Of ten VAEs not even the lowest quality of noise fits: the worst pictures, which are given first, stay."""
    results, _ = example(labels=tuple(f"vae{k}" for k in range(10)), count=SHOWN, side=16)
    crops = noisy(results)[::-1]
    path = write_evaluation(results, crops, tmp_path / "report.html")
    assert path.stat().st_size < 15e6
    page = Page(path)
    shown = [int(attrs["data-picture"] or "") for attrs, _ in page.all("article")]
    assert shown == page.data()["crops"] == list(range(SHOWN - len(shown), SHOWN))
    assert 4 < len(shown) < SHOWN
    assert f"Crops of {SHOWN - len(shown)} more pictures would be too much for a page." in page.source


@pytest.mark.slow
def test_many_crops_become_jpeg_and_the_page_says_so(tmp_path: Path) -> None:
    """Noise can't be stored in less than its 8 bits a value: 3 VAEs x 24 pictures of it are the worst there is."""
    results, _ = example(count=SHOWN, side=16)
    crops = noisy(results)
    path = write_evaluation(results, crops, tmp_path / "report.html")
    assert path.stat().st_size < 15e6
    page = Page(path)
    assert "more pictures would be too much for a page" not in page.source
    found = re.search(r"JPEG of quality (\d+), which itself is ([\d.]+) dB", page.source)
    assert found is not None
    flat = [image for crop in crops for image in (crop.original, *crop.reconstructions.values())]
    shown = [pixels(attrs["src"] or "") for attrs, _ in page.all("img")]
    assert float(found[2]) == pytest.approx(psnr_of(np.stack(flat), np.stack(shown)), abs=0.06)


def test_the_best_quality_that_fits() -> None:
    images = [picture(i, 48) for i in range(3)]
    whole = encode(images)
    assert whole.quality == 0
    assert whole.psnr == math.inf
    size = sum(len(base64.b64decode(uri.partition(",")[2])) for uri in whole.uris)
    assert encode(images, size).quality == 0
    less = encode(images, size - 1)
    assert less.quality == 97
    assert 35 < less.psnr < 60
    assert encode(images, 1).quality == 30  # the least there is, however small the budget


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"picture": "other.png"}, "other.png"),
        ({"reconstructions": {"delta": np.zeros((64, 64, 3), np.uint8)}}, "delta"),
        ({"original": np.zeros((64, 63, 3), np.uint8)}, "the original"),
        ({"reconstructions": {"alpha": np.zeros((64, 64, 3), np.float32)}}, "float32"),
    ],
)
def test_crops_that_make_no_sense(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    results, crops = example(count=2)
    fields = {key: getattr(crops[0], key) for key in ("picture", "box", "original", "reconstructions")} | change
    with pytest.raises(UsageError) as error:
        write_evaluation(results, [Crop(**fields)], tmp_path / "report.html")
    assert words in str(error.value)
    one_sentence(str(error.value))
    assert names(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    results, crops = example(count=2)
    before = copy.deepcopy(results)
    with pytest.raises(UsageError, match="there is no folder"):
        write_evaluation(results, crops, tmp_path / "none" / "report.html")
    assert results == before
