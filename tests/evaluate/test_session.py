"""An evaluation as a whole: what is refused, what is written, and what is said of where and of what figures are."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import statistics
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluatekit import setup, sheet
from PIL import Image
from support import names, one_sentence

from calotype import load
from calotype.errors import CalotypeWarning, UsageError
from calotype.evaluate import features, session
from calotype.evaluate.measure import METRICS, place
from calotype.evaluate.metrics import psnr
from calotype.evaluate.protocol import Protocol, preset
from calotype.evaluate.session import evaluate, shard
from calotype.evaluate.setup import labels, read_boxes
from calotype.locks import lock
from calotype.pixels import from_array, to_uint8
from calotype.sources import open_source


@pytest.mark.slow
def test_another_protocol_is_another_evaluation(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    evaluate(data, setup(vaes[:1]), tmp_path / "r", limit=1)
    other = Protocol(name="mine", resize="bicubic", size=32)
    message = "made with protocol name whole, not mine; give the same, or another --report"
    with pytest.raises(UsageError, match=message) as error:
        evaluate(data, setup(vaes[:1], protocol=other), tmp_path / "r", limit=1)
    one_sentence(str(error.value))
    for change, message in (
        ({"protocol": Protocol(seed=3)}, "protocol seed 0, not 3;"),
        ({"protocol": Protocol(name="mine", seed=3)}, "protocol name whole, not mine and protocol seed 0, not 3;"),
        (
            {"protocol": Protocol(resize="bicubic", size=32)},
            "protocol resize none, not bicubic and protocol size 0, not 32;",
        ),
        ({"metrics": ("psnr",)}, "metrics psnr,ssim, not psnr;"),
        ({"boxes": {"faces": {"0.png": [(0, 0, 8, 8)]}}}, "boxes faces none, not of 1 picture;"),
    ):
        with pytest.raises(UsageError) as error:
            evaluate(data, setup(vaes[:1], **change), tmp_path / "r", limit=1)
        assert f"this evaluation was made with {message}" in str(error.value)
        one_sentence(str(error.value))


def test_boxes_that_are_nowhere_are_refused(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    boxes = {"faces": {"1.png": [(0, 0, 42, 34)], "2.png": [(0, 0, 10, 10), (0, 0, 10, 36)]}}
    message = r"2\.png is 44 x 35 pixels, and the box \[0, 0, 10, 36\] of faces reaches beyond"
    with pytest.raises(UsageError, match=message) as error:
        evaluate(data, setup(vaes[:1], boxes=boxes), tmp_path / "r")
    one_sentence(str(error.value))
    assert not (tmp_path / "r").exists()
    assert evaluate(data, setup(vaes[:1], boxes=boxes), tmp_path / "r", limit=2)  # those fit
    with pytest.raises(UsageError, match=r"there is no picture 'other\.png'; .* such as '0\.png'") as error:
        evaluate(data, setup(vaes[:1], boxes={"faces": {"other.png": [(0, 0, 8, 8)]}}), tmp_path / "other")
    one_sentence(str(error.value))


def test_boxes_are_compared_alone(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps({"faces": {"1.png": [[2, 3, 30, 20], [0, 0, 8, 8]]}}))
    boxes = read_boxes(tmp_path / "boxes.json")
    found = evaluate(data, setup(vaes[:1], boxes=boxes), tmp_path / "r", limit=2)
    (one,) = found["vaes"]
    first, second = one["rows"][1]["subsets"]["faces"]
    x = from_array(np.asarray(Image.open(data / "1.png")))
    vae = load(vaes[0], device="cpu")
    y = to_uint8(vae.decode(vae.encode(x[None]).mode(), tuple(x.shape[1:]))[0])
    assert first["psnr"] == psnr(to_uint8(x)[:, 3:20, 2:30], y[:, 3:20, 2:30])
    assert second.keys() == {"box", "psnr"}  # smaller than SSIM's window
    assert (first["box"], second["box"]) == ([2, 3, 30, 20], [0, 0, 8, 8])
    mean, faces, *_, of_first, of_second = sheet(tmp_path / "r")
    assert (mean["kind"], mean["subset"], mean["psnr_n"]) == ("mean", "", "2")
    assert (faces["kind"], faces["subset"], faces["psnr_n"], faces["ssim_n"]) == ("mean", "faces", "2", "1")
    assert faces["why"] == "SSIM: 1 smaller than 11 x 11 pixels"
    for name, key in (("psnr", "mean"), ("psnr_low", "low"), ("psnr_high", "high")):
        assert float(faces[name]) == one["subsets"]["faces"]["psnr"][key]
    assert [part["kind"] for part in (of_first, of_second)] == ["part"] * 2
    assert (of_first["subset"], of_first["picture"], of_first["box"]) == ("faces", "1.png", "2 3 30 20")
    assert (float(of_first["psnr"]), of_first["why"]) == (first["psnr"], "")
    assert (of_second["box"], of_second["ssim"]) == ("0 0 8 8", "")
    assert of_second["why"] == "SSIM: smaller than 11 x 11 pixels"
    assert one["subsets"]["faces"]["psnr"]["n"] == 2
    with pytest.raises(UsageError, match="the protocol crop256 resizes them"):
        setup(vaes[:1], boxes=boxes, protocol=preset("crop256")).build(open_source(data))
    for wrong, message in (
        ("[]", "not [] where names belong"),
        ("{}", "not {} where names belong"),
        ('{"faces": [[1, 2, 3, 4]]}', "not [[1, 2, 3, 4]] where names belong"),
        ('{"faces": {"a.png": 7}}', "a.png must have a list of boxes, not 7"),
        (
            '{"faces": {"a.png": [[1, 2, 3]]}}',
            "faces, a.png: a box must be [left, top, right, bottom] in whole pixels, with left < right and top < "
            "bottom, not [1",
        ),
        ('{"faces": {"a.png": [[5, 5, 5, 9]]}}', "with left < right and top < bottom, not [5, 5, 5, 9]"),
        ("{", "this is no JSON of that kind ("),
    ):
        (tmp_path / "boxes.json").write_text(wrong)
        with pytest.raises(UsageError) as error:
            read_boxes(tmp_path / "boxes.json")
        assert message in str(error.value)
        one_sentence(str(error.value))


def test_shards() -> None:
    assert shard("2/4") == (2, 4)
    for wrong in ("0/4", "5/4", "a/b", "2"):
        with pytest.raises(UsageError, match="give which of how many parts"):
            shard(wrong)


def test_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("sd-1.4", "models/sd-1.5", "vae.safetensors.d", "of.ckpt"):
        Path(folder).mkdir(parents=True)
    assert labels(
        ("builtin", "sd-1.4", "models/sd-1.5/", "of.ckpt", "v1.0.safetensors", "x/mse.fp16.bin", "a/sd-2.1")
    ) == {
        "builtin": "builtin",
        "sd-1.4": "sd-1.4",
        "sd-1.5": "models/sd-1.5/",
        "of.ckpt": "of.ckpt",
        "v1.0": "v1.0.safetensors",
        "mse.fp16": "x/mse.fp16.bin",
        "sd-2.1": "a/sd-2.1",
    }
    assert list(labels((".",))) == [tmp_path.name]
    alike = ("builtin", "a/vae.safetensors", "b/vae.ckpt", "b/builtin.pt", "sdxl-vae")
    assert labels(alike) == {one: one for one in alike[:4]} | {"sdxl-vae": "sdxl-vae"}
    first = ("sd.ckpt", "a/sd.pt", "b/sd.ckpt")  # "sd.ckpt" is a file, and the last one a folder
    Path("b/sd.ckpt").mkdir(parents=True)
    assert labels(first) == {one: one for one in first}
    for given, message in (
        (("builtin", "builtin"), "--vae builtin is given twice"),
        ((" ",), "--vae ' ' names nothing"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            labels(given)
        one_sentence(str(error.value))


def test_the_same_weights_twice_are_refused(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    copy = shutil.copy(vaes[0], tmp_path / "copy.safetensors")
    with pytest.raises(
        UsageError, match=r"vae0\.safetensors and --vae .*copy\.safetensors are the same weights"
    ) as error:
        evaluate(data, setup((*vaes, str(copy))), tmp_path / "r")
    one_sentence(str(error.value))
    assert not (tmp_path / "r").exists()


def test_the_order_of_metrics_is_no_matter(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = setup(vaes[:1], metrics=("ms_ssim", "psnr", "ssim", "psnr")).build(open_source(data))
    assert built.tools.metrics == ("psnr", "ssim", "ms_ssim")
    evaluate(data, setup(vaes[:1]), tmp_path / "r", limit=1)
    again = evaluate(data, setup(vaes[:1], metrics=("ssim", "psnr", "ssim")), tmp_path / "r", limit=1)  # is the same
    assert [one["key"] for one in again["metrics"]] == ["psnr", "ssim"]
    loaded: list[str] = []

    class Extractor:
        def to(self, device: torch.device) -> Extractor:
            return self

        def state_dict(self) -> dict[str, torch.Tensor]:
            return {}

    monkeypatch.setattr(features, "load_extractor", lambda name, path: loaded.append(name) or Extractor())
    both = setup(vaes[:1], features=("inception", "dinov2", "inception")).build(open_source(data))
    assert list(both.tools.extractors) == loaded == ["dinov2", "inception"]
    with pytest.raises(UsageError, match="no metric was given; choose among psnr, ssim, ") as error:
        setup(vaes, metrics=()).build(open_source(data))
    one_sentence(str(error.value))
    with pytest.raises(UsageError, match="no VAE was given; give a preset, a file or a folder") as error:
        setup(()).build(open_source(data))
    one_sentence(str(error.value))


@pytest.mark.slow
def test_the_sheet_says_of_what_each_row_is(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    found = evaluate(data, setup(vaes), tmp_path / "r")
    rows = sheet(tmp_path / "r")
    assert [row["kind"] for row in rows] == ["mean"] * 2 + ["picture"] * 12
    assert {row["protocol"] for row in rows} == {str(preset("whole"))}
    for row, vae in zip(rows, found["vaes"], strict=False):
        assert row["vae"] == vae["label"]
        values = [one["psnr"] for one in vae["rows"]]
        assert float(row["psnr"]) == pytest.approx(statistics.fmean(values))
        assert float(row["psnr_low"]) == vae["means"]["psnr"]["low"] < float(row["psnr"])
        assert float(row["psnr_high"]) == vae["means"]["psnr"]["high"] > float(row["psnr"])
        assert row["psnr_n"] == row["ssim_n"] == "6"
        assert [float(one["psnr"]) for one in rows if (one["kind"], one["vae"]) == ("picture", row["vae"])] == values
    assert all(row["psnr_low"] == row["psnr_n"] == row["why"] == row["error"] == "" for row in rows[2:])


@pytest.mark.slow
def test_an_empty_cell_says_why(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    """MS-SSIM needs 161 pixels a side; one picture has them."""
    pictures = tmp_path / "data"
    pictures.mkdir()
    shutil.copy(data / "0.png", pictures)
    evaluate(pictures, setup(vaes[:1], metrics=("psnr", "ms_ssim")), tmp_path / "none")
    mean, picture = sheet(tmp_path / "none")
    assert (mean["ms_ssim"], mean["ms_ssim_n"]) == ("", "")
    assert mean["why"] == "MS-SSIM: 1 smaller than 161 x 161 pixels"
    assert (picture["ms_ssim"], picture["why"]) == ("", "MS-SSIM: smaller than 161 x 161 pixels")
    assert "1 smaller than 161 \u00d7 161 pixels" in (tmp_path / "none" / "index.html").read_text()
    Image.open(data / "1.png").resize((162, 161)).save(pictures / "1.png")
    found = evaluate(pictures, setup(vaes[:1], metrics=("psnr", "ms_ssim")), tmp_path / "some")
    mean, first, second = sheet(tmp_path / "some")
    assert (mean["psnr_n"], mean["ms_ssim_n"]) == ("2", "1")
    assert float(mean["psnr_low"]) < float(mean["psnr"]) < float(mean["psnr_high"])
    assert mean["ms_ssim_low"] == mean["ms_ssim_high"] == ""  # there is no interval of one figure
    assert mean["why"] == "MS-SSIM: 1 smaller than 161 x 161 pixels"
    assert (bool(first["why"]), second["why"]) == (True, "")
    assert float(second["ms_ssim"]) == found["vaes"][0]["rows"][1]["ms_ssim"]


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["bicubic", "bilinear", "tensor", "adm"])
def test_enlarged_pictures_are_said(resize: Any, data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    """The pictures' shorter sides are 33 to 38 pixels."""
    protocol = Protocol(name="mine", resize=resize, size=35)
    message = (
        r"^The protocol mine enlarged 2 of 6 pictures, which have a side shorter than 35 pixels: "
        r"0\.png \(40 x 33\), 1\.png \(42 x 34\)\.$"
    )
    for _ in range(2):  # and once more of what was measured before
        with pytest.warns(CalotypeWarning, match=message):
            found = evaluate(data, setup(vaes[:1], protocol=protocol), tmp_path / "r")
        assert [one["enlarged"] for one in found["pictures"]] == [True, True, False, False, False, False]
        assert {(one["height"], one["width"]) for one in found["pictures"]} == {(35, 35)}
        assert found["warnings"][0] in (tmp_path / "r" / "index.html").read_text()
    with pytest.warns(CalotypeWarning, match=r"mine enlarged 6 of 6 pictures.*4\.png \(48 x 37\) and 1 more\.$"):
        evaluate(data, setup(vaes[:1], protocol=replace(protocol, size=64)), tmp_path / "more")
    same = evaluate(data, setup(vaes[:1], protocol=replace(protocol, size=33)), tmp_path / "none")
    assert same["warnings"] == []


def test_one_picture_of_another_size_is_refused_before_any_is_measured(
    data: Path, vaes: tuple[str, ...], tmp_path: Path
) -> None:
    pictures = tmp_path / "data"
    pictures.mkdir()
    for i in (0, 1):
        Image.open(data / f"{i}.png").resize((32, 32)).save(pictures / f"{i}.png")
    shutil.copy(data / "2.png", pictures)
    exact = Protocol(name="mine", resize="exact", size=32)
    message = r"2\.png is 44 x 35 pixels, and the protocol mine takes 32 x 32 only; leave it out, or choose a protocol"
    with pytest.raises(UsageError, match=message) as error:
        evaluate(pictures, setup(vaes[:1], protocol=exact), tmp_path / "r")
    one_sentence(str(error.value))
    assert not (tmp_path / "r").exists()
    found = evaluate(pictures, setup(vaes[:1], protocol=exact), tmp_path / "r", limit=2)
    assert len(found["vaes"][0]["rows"]) == 2


def elsewhere(report: Path, vae: str, wanted: Callable[[int], bool]) -> None:
    """Makes what was measured so far of some pictures, by their widths, what another machine measured, and slowly."""
    with closing(sqlite3.connect(report / "measured.sqlite")) as file, file:
        for key, text in file.execute("SELECT picture, row FROM rows WHERE vae = ?", (vae,)).fetchall():
            row = json.loads(text)
            if wanted(row["width"]):
                row |= {"where": "cuda (Elsewhere)", "encode_seconds": 1e6, "decode_seconds": 1e6}
                file.execute("UPDATE rows SET row = ? WHERE vae = ? AND picture = ?", (json.dumps(row), vae, key))


@pytest.mark.slow
def test_speed_is_of_one_device(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "SHOWN", 0)
    here = place(torch.device("cpu"), None)
    found = evaluate(data, setup(vaes), tmp_path / "r")
    hashes = [one["sha256"] for one in found["vaes"]]
    assert found["device"] == here
    assert [one["speed"]["device"] for one in found["vaes"]] == [here] * 2
    assert [one["speed"]["n"] for one in found["vaes"]] == [6] * 2
    page = tmp_path / "r" / "index.html"
    assert f"Speed was measured on {here}." in page.read_text()

    for sha256 in hashes:  # two of six, of each
        elsewhere(tmp_path / "r", sha256, lambda width: width < 44)
    found = evaluate(data, setup(vaes), tmp_path / "r")
    assert found["device"] == f"mixed: {here} (8 of 12); cuda (Elsewhere) (4 of 12)"
    for one in found["vaes"]:
        assert (one["speed"]["device"], one["speed"]["n"]) == (here, 4)
        assert one["speed"]["encode_seconds_per_megapixel"] < 1e6
    assert "speed of 4 of 6 pictures" in page.read_text()

    elsewhere(tmp_path / "r", hashes[0], lambda width: width < 50)  # all but one: the other VAE has four of these here
    found = evaluate(data, setup(vaes), tmp_path / "r")
    first, second = (one["speed"] for one in found["vaes"])
    assert first["device"] == second["device"] == "cuda (Elsewhere)"
    assert (first["n"], second["n"]) == (5, 2)
    assert "Memory is planned for cpu" in page.read_text()

    elsewhere(tmp_path / "r", hashes[0], lambda width: True)
    evaluate(data, setup(vaes[:1]), tmp_path / "r")
    assert "Speed was measured on cuda (Elsewhere). Memory is planned for cpu" in page.read_text()


def test_speeds_that_can_not_be_compared(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "SHOWN", 0)
    (one,) = evaluate(data, setup(vaes[:1]), tmp_path / "r", limit=2)["vaes"]
    elsewhere(tmp_path / "r", one["sha256"], lambda width: True)
    found = evaluate(data, setup(vaes), tmp_path / "r", limit=2)
    here = place(torch.device("cpu"), None)
    assert [vae["speed"]["device"] for vae in found["vaes"]] == ["cuda (Elsewhere)", here]
    text = (tmp_path / "r" / "index.html").read_text()
    assert "measured on several devices, so their speeds can't be compared" in text.replace("&#x27;", "'")
    assert "on cuda (Elsewhere)" in text


def test_a_place_says_what_speed_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert place(torch.device("cpu"), None).endswith("), 7 threads")
    assert place(torch.device("cpu"), "512MB").endswith("), 7 threads, at most 512MB")
    assert place(torch.device("cpu"), 1000).endswith(", at most 1000 bytes")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X")
    assert place(torch.device("cuda:1"), None) == "cuda (NVIDIA X)"


@pytest.mark.parametrize("failing", ["crops", "evaluation_page", "evaluation_sheet", "plain"])
def test_a_report_is_whole_or_not_there(
    failing: str, data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session, failing, stop)
        evaluate(data, setup(vaes[:1]), tmp_path / "r", limit=1)
    assert names(tmp_path / "r") == ["measured.sqlite"]
    files = ["index.html", "measured.sqlite", "results.csv", "results.json"]
    evaluate(data, setup(vaes[:1]), tmp_path / "r", limit=1)
    before = {name: (tmp_path / "r" / name).read_bytes() for name in files if name != "measured.sqlite"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session, failing, stop)
        evaluate(data, setup(vaes), tmp_path / "r", limit=2)
    assert names(tmp_path / "r") == files
    assert {name: (tmp_path / "r" / name).read_bytes() for name in before} == before


@pytest.mark.slow
def test_two_evaluations_in_one_folder(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    """Parts go on side by side, each once."""
    report = tmp_path / "r"
    for mine, others in (("", ("1/2", "2/2")), ("1/2", ("2/2", "1/3", ""))):
        name = f"-{mine.replace('/', '-of-')}" if mine else ""
        with lock(report / f".calotype-measured{name}.lock", "an evaluation", "wait"):
            with pytest.raises(UsageError) as caught:
                evaluate(data, setup(vaes[:1]), report, part=mine)
            one_sentence(str(caught.value))
            what = f"an evaluation of part {mine}" if mine else "an evaluation"
            assert f"{what} is under way there, by process {os.getpid()} on " in str(caught.value)
            for other in others:
                evaluate(data, setup(vaes[:1]), report, part=other)
    assert not list(report.glob(".calotype-*"))


@pytest.mark.slow
def test_a_part_says_what_it_holds(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    found = evaluate(data, setup(vaes), tmp_path / "r", part="2/3")
    assert (found["shard"], found["pictures"], found["failures"], found["warnings"]) == ("2/3", 2, [], [])
    assert [(one["label"], one["rows"], one["measured"]) for one in found["vaes"]] == [("vae0", 2, 2), ("vae1", 2, 2)]
    assert found["file"] == str(tmp_path / "r" / "measured-2-of-3.sqlite")
    assert Path(found["file"]).exists()
    assert found["protocol"]["text"] == str(preset("whole"))
    assert found["next"] == "Run the same command with --shard 1/3, 3/3, then without --shard, which makes the report."
    again = evaluate(data, setup(vaes), tmp_path / "r", part="2/3")
    assert [(one["rows"], one["measured"]) for one in again["vaes"]] == [(2, 0), (2, 0)]
    for part in ("1/3", "3/3"):
        last = evaluate(data, setup(vaes), tmp_path / "r", part=part)
    assert last["next"] == "Run the same command without --shard, which makes the report."


def test_every_metric_says_how_large_pictures_must_be() -> None:
    """At this size it is measured, and one pixel less is refused by the metric itself."""
    from calotype.evaluate.metrics import ms_ssim, ssim

    for key, function in (("ssim", ssim), ("ms_ssim", ms_ssim)):
        least = METRICS[key].least
        one = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, least, least), dtype=np.uint8))
        assert function(one, one) == pytest.approx(1)
        with pytest.raises(UsageError, match="needs pictures of at least"):
            function(one[:, 1:], one[:, 1:])
