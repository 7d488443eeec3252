"""`calotype probe` from the command line: what it writes, what it says of labels, and what becomes of bad input."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from probekit import small_vae

import calotype
from calotype.cli.main import main
from calotype.evaluate import examine
from calotype.evaluate.measure import place
from calotype.locks import lock

QUICK = ("--lpips", "none", "--device", "cpu", "--report", "report")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one, with a VAE beside it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_vae(tmp_path_factory.mktemp("vae") / "small.safetensors")


class Ran:
    """What a command left behind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> None:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["calotype", "probe", *map(str, words)])
            with pytest.raises(SystemExit) as stopped:
                main()
        self.code = stopped.value.code or 0
        self.out, self.err = capsys.readouterr()

    @property
    def said(self) -> list[str]:
        return self.err.splitlines()


def draw(path: str, seed: int = 0, side: int = 64) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    Image.fromarray(levels.repeat(8, 0).repeat(8, 1)).save(path)


def written() -> dict[str, Any]:
    found = json.loads(Path("report/probe.json").read_text())
    assert isinstance(found, dict)
    return found


def nothing_is_left() -> None:
    assert not Path("report").exists()
    assert not list(Path().rglob(".calotype-*"))


@pytest.mark.slow
def test_what_is_written_says_how_it_was_made(
    vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        draw(f"photos/{i}.png", i)
    ran = Ran(monkeypatch, capsys, vae, "photos", *QUICK, "--seed", 5, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = written()
    assert json.loads(ran.out) == found
    assert sorted(path.name for path in Path("report").iterdir()) == ["factors.json", "index.html", "probe.json"]
    assert found["calotype"] == calotype.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert found["command"] == ["calotype", "probe", str(vae), "photos", *QUICK, "--seed", "5", "--json"]
    assert found["device"] == place(torch.device("cpu"), None)
    assert found["dtype"] == "float32"
    assert (found["vae"], found["sha256"]) == ("small.safetensors", calotype.load(vae, device="cpu").sha256)
    assert (found["seed"], found["data"], len(found["pictures"])) == (5, "photos", 3)
    page = Path("report/index.html").read_text()
    for text in (found["sha256"], found["created"], found["versions"]["torch"], "--seed 5", "<dd>float32</dd>"):
        assert text in page


@pytest.mark.slow
def test_cards_are_no_photographs(
    vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(examine, "SIDE", 64)
    assert Ran(monkeypatch, capsys, vae, *QUICK).code == 0
    assert written()["data"] is None
    assert "drawn cards, not photographs" in Path("report/index.html").read_text()


@pytest.mark.slow
def test_a_folder_with_dots_keeps_its_name(
    vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my.vae.v1.5").mkdir()
    Path("my.vae.v1.5/diffusion_pytorch_model.safetensors").write_bytes(vae.read_bytes())
    draw("photos/0.png")
    assert Ran(monkeypatch, capsys, "my.vae.v1.5/", "photos", *QUICK).code == 0
    assert written()["vae"] == "my.vae.v1.5"
    assert "<h1>The latent space of my.vae.v1.5</h1>" in Path("report/index.html").read_text()


@pytest.mark.slow
def test_folders_are_labels(vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        draw(f"photos/{'cat' if i % 2 else 'dog'}/{i}.png", i)
    draw("photos/stray.png", 9)
    ran = Ran(monkeypatch, capsys, vae, "photos", *QUICK)
    assert ran.code == 0, ran.err
    note = (
        "Labels are from the folders that the pictures lie in, and 4 of 5 pictures have one; 1 without are left out "
        "where labels are needed."
    )
    assert note in ran.out.splitlines()
    assert note in Path("report/index.html").read_text()
    found = written()
    assert found["notes"] == [note]
    assert (len(found["pictures"]), found["labelled"], found["unlabelled"]) == (5, 4, 1)
    numbers = {n["name"]: n["value"] for f in found["findings"] if f["key"] == "labels" for n in f["numbers"]}
    assert (numbers["pictures"], numbers["labels"], numbers["pictures without a label, left out here"]) == (4, 2, 1)


@pytest.mark.slow
def test_labels_in_a_zip_are_of_all_its_pictures(
    vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for i in range(6):
            draw(f"{i}.png", i)
            archive.write(f"{i}.png")
            rows.append(json.dumps({"file": f"{i}.png", "label": "ab"[i // 2 % 2]}))
        archive.writestr("labels.jsonl", "\n".join([*rows, '{"file": "gone.png", "label": "a"}']))
    ran = Ran(monkeypatch, capsys, vae, "photos.zip", *QUICK, "--limit", 4)
    assert ran.code == 0, ran.err
    # those beyond the limit are pictures all the same
    assert "Labels are from labels.jsonl in photos.zip, and all 4 pictures have one." in ran.out
    assert "1 name there belongs to no picture, gone.png for one." in ran.out
    found = written()
    assert found["labels_of_no_picture"] == ["gone.png"]
    assert "labels" not in found["left_out"]
    assert "gone.png" in Path("report/index.html").read_text()


@pytest.mark.slow
def test_labels_stay_with_their_pictures(
    vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(8):
        draw(f"photos/{i}.png", i)
    # of every second picture: x x y y; the others tell which was taken instead
    Path("labels.json").write_text(json.dumps({f"{i}.png": f"z{i}" if i % 2 else "xxyy"[i // 2] for i in range(8)}))
    assert Ran(monkeypatch, capsys, vae, "photos", *QUICK, "--labels", "labels.json", "--every", 2).code == 0
    page = Path("report/index.html").read_text()
    assert "Labels as the linear probe of latents finds them (0 x, 1 y)" in page
    numbers = {n["name"]: n["value"] for f in written()["findings"] if f["key"] == "labels" for n in f["numbers"]}
    assert (numbers["pictures"], numbers["labels"]) == (4, 2)


@pytest.mark.slow
def test_a_file_that_is_none_of_labels_is_told(
    vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw("photos/0.png")
    Path("photos/labels.json").write_text("[]")
    ran = Ran(monkeypatch, capsys, vae, "photos", *QUICK)
    assert ran.code == 0
    assert "labels was left out: labels.json in photos: labels must be JSON" in ran.out
    assert written()["left_out"]["labels"].startswith("labels.json in photos: labels must be JSON")


@pytest.mark.slow
def test_a_picture_that_cannot_be_read(
    vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw("photos/0.png", 0)
    draw("photos/2.png", 2)
    Path("photos/1.png").write_bytes(Path("photos/0.png").read_bytes()[:60])
    ran = Ran(monkeypatch, capsys, vae, "photos", *QUICK)
    assert ran.code == 1
    assert len(ran.said) == 2
    assert ran.said[0].startswith("calotype: photos: 1.png: ")
    assert ran.said[1] == "calotype: 1 of 3 pictures can't be read."
    found = written()
    assert sorted(found["pictures"]) == ["0.png", "2.png"]
    assert found["unread"] == [ran.said[0].removeprefix("calotype: ")]
    assert "1 more can&#x27;t be read and is left out" in Path("report/index.html").read_text()


def bad_input(kind: str) -> tuple[int, str]:
    """Makes what is wrong in ``photos``; the exit code and words of the sentence."""
    Path("photos").mkdir()
    if kind == "none":
        return 2, "there is no picture in it"
    if kind == "small":
        draw("photos/0.png", 0)
        draw("photos/1.png", 1, side=24)
        return 2, "1.png: this picture is 24x24"
    if kind == "unreadable":
        Path("photos/0.png").write_text("no picture")
        return 1, "No picture to probe with can be read: photos: 0.png"
    Path("photos").rmdir()
    return 2, "there is no such folder"


@pytest.mark.parametrize("kind", ["none", "small", "unreadable", "nowhere"])
def test_bad_pictures_are_one_sentence(
    vae: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, words = bad_input(kind)
    ran = Ran(monkeypatch, capsys, vae, "photos", *QUICK)
    assert (ran.code, ran.out) == (code, "")
    assert len(ran.said) == 1
    assert words in ran.err
    nothing_is_left()


@pytest.mark.slow
def test_one_picture_says_what_it_is_too_few_for(
    vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw("photos/0.png")
    ran = Ran(monkeypatch, capsys, vae, "photos", *QUICK)
    assert ran.code == 0
    assert "kl was left out: active units need the variance over at least two pictures." in ran.out
    assert "interpolation was left out: a way needs two pictures." in ran.out


def test_labels_need_pictures(vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(monkeypatch, capsys, vae, "--labels", "x.json", *QUICK)
    assert (ran.code, len(ran.said)) == (2, 1)
    assert "--labels are of pictures, and none were given" in ran.err


def test_a_report_that_cannot_be_written_is_told_before_any_work(
    vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**options: Any) -> Any:  # as for root nothing is forbidden
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), options["dir"])

    draw("photos/0.png")
    monkeypatch.setattr(examine, "load", None)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", refuse)
        ran = Ran(monkeypatch, capsys, vae, "photos", *QUICK)
    assert ran.code == 2
    assert ran.said == [
        "calotype: --report report: nothing can be written in . (Permission denied); give another folder."
    ]
    nothing_is_left()


def test_two_probes_in_one_folder(
    vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw("photos/0.png")
    with lock(Path("report/.calotype-probe.lock"), "a probe", "wait"):
        ran = Ran(monkeypatch, capsys, vae, "photos", *QUICK)
    assert (ran.code, len(ran.said)) == (2, 1)
    assert ran.said[0].startswith(f"calotype: report: a probe is under way there, by process {os.getpid()} on ")
    assert ran.said[0].endswith("; wait for it, or give another --report.")
    nothing_is_left()


@pytest.mark.slow
def test_a_page_that_fails_leaves_no_numbers(
    vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill_up(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    draw("photos/0.png")
    monkeypatch.setattr(os, "fsync", fill_up)
    ran = Ran(monkeypatch, capsys, vae, "photos", *QUICK)
    said = "calotype: report/index.html can't be written: No space left on device; make room, or give another place."
    assert (ran.code, ran.said) == (1, [said])
    assert not Path("report").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_one_word_and_leaves_nothing(here: Path) -> None:
    for i in range(2):
        draw(f"photos/{i}.png", i, side=512)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "calotype", "probe", "builtin", "photos", *QUICK]
    started = """import signal, sys, runpy
from calotype.evaluate.probe import bench
first = bench.Bench.encode
def encode(self, pixels):
    signal.raise_signal(signal.SIGINT)
    return first(self, pixels)
bench.Bench.encode = encode
sys.argv = sys.argv[2:]
runpy.run_module("calotype", run_name="__main__")
"""
    words[1:3] = ["-c", started, "-m", "calotype"]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment, cwd=here, check=False)
    assert (ran.returncode, ran.stdout) == (128 + signal.SIGINT, "")
    assert ran.stderr.strip().splitlines() == ["calotype: Stopped."]
    nothing_is_left()
