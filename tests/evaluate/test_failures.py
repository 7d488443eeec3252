"""What becomes of an evaluation when something fails: in a VAE, a metric, an extractor, a part, or on the disk."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluatekit import Means, figures, setup, sheet
from PIL import Image
from safetensors.torch import save_file
from support import fill, names, one_sentence

from calotype.errors import CalotypeWarning, StorageError
from calotype.evaluate import features, session
from calotype.evaluate.lpips import LPIPS
from calotype.evaluate.session import evaluate
from calotype.vae import VAE


def errors_of(found: dict[str, Any]) -> list[tuple[str, int, str]]:
    return [(v["label"], row["picture"], row["error"]) for v in found["vaes"] for row in v["rows"] if "error" in row]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("an odd shape\nand a long story"), "It failed with RuntimeError: an odd shape."),
        (torch.OutOfMemoryError("CUDA out of memory."), "It failed with OutOfMemoryError: CUDA out of memory."),
        (MemoryError(), "It failed with MemoryError."),
    ],
)
@pytest.mark.parametrize("where", ["encode", "decode"])
def test_any_failure_of_a_vae_is_listed(
    where: str,
    error: Exception,
    said: str,
    data: Path,
    vaes: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    doing = getattr(VAE, where)
    calls: list[int] = []

    def failing(self: VAE, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return doing(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(VAE, where, failing)
        found = evaluate(data, setup(vaes[:1]), tmp_path / "r", limit=3)
    assert errors_of(found) == [("vae0", 1, said)]
    one_sentence(said)
    again = evaluate(data, setup(vaes[:1]), tmp_path / "r", limit=3)
    assert figures(again) == figures(evaluate(data, setup(vaes[:1]), tmp_path / "whole", limit=3))


@pytest.mark.slow
def test_a_failure_of_a_metric_or_an_extractor_is_listed(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALOTYPE_LPIPS", str(tmp_path / "weights.safetensors"))
    save_file(fill(LPIPS("alex"), seed=1, gain=1.4).state_dict(), tmp_path / "weights.safetensors")
    stages = LPIPS.stages

    def failing(self: LPIPS, x: torch.Tensor) -> list[torch.Tensor]:
        if x.shape[2:] == (34, 42):  # the second picture's
            raise RuntimeError("no room")
        return stages(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(LPIPS, "stages", failing)
        found = evaluate(data, setup(vaes, metrics=("psnr", "lpips_alex")), tmp_path / "r", limit=3)
    said = "It failed with RuntimeError: no room."
    assert errors_of(found) == [("vae0", 1, said), ("vae1", 1, said)]
    assert [one["means"]["lpips_alex"]["n"] for one in found["vaes"]] == [2, 2]

    class Failing(Means):
        def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
            if pictures.shape[2:] == (34, 42):
                raise torch.OutOfMemoryError("too large")
            return super().__call__(pictures)

    monkeypatch.setattr(features, "load_extractor", lambda name, path: Failing())
    message = r"Distances leave out 1 of 6 pictures, whose own features failed: 1\.png \(It failed with OutOfM"
    with pytest.warns(CalotypeWarning, match=message):
        found = evaluate(data, setup(vaes[:1], features=("means",)), tmp_path / "more")
    assert errors_of(found) == [("vae0", 1, "It failed with OutOfMemoryError: too large.")]
    assert found["vaes"][0]["distances"]["fid_means"]["n"] == 5


@pytest.mark.slow
def test_a_crop_that_fails_is_left_out(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured before is decoded once more for the page; that is no reason to have none."""
    evaluate(data, setup(vaes), tmp_path / "r", limit=3)
    decode = VAE.decode

    def failing(self: VAE, latents: torch.Tensor, size: tuple[int, int] | None = None, **options: Any) -> torch.Tensor:
        if size == (34, 42) or (size == (33, 40) and self.name == "vae1.safetensors"):
            raise RuntimeError("no room")
        return decode(self, latents, size, **options)

    shown: list[Any] = []
    monkeypatch.setattr(VAE, "decode", failing)
    monkeypatch.setattr(session, "evaluation_page", lambda found, crops: shown.extend(crops) or b"")
    found = evaluate(data, setup(vaes), tmp_path / "r", limit=3)
    assert errors_of(found) == []
    assert {crop.picture: list(crop.reconstructions) for crop in shown} == {
        "0.png": ["vae0"], "2.png": ["vae0", "vae1"]
    }  # fmt: skip


def test_a_part_that_can_not_be_read_is_listed(vaes: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.fromarray(np.full((33, 40, 3), 40 * i, np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    for i in (1, 3):
        (tmp_path / "photos" / f"{i}.png").write_bytes(b"no picture")
    found = evaluate(tmp_path / "photos", setup(vaes[:1]), tmp_path / "r", part="2/2")
    assert [(one["vae"], one["picture"]) for one in found["failures"]] == [(None, "1.png"), (None, "3.png")]
    assert [(one["rows"], one["measured"]) for one in found["vaes"]] == [(0, 0)]
    whole = evaluate(tmp_path / "photos", setup(vaes[:1]), tmp_path / "r")
    assert [one["sha256"] is None for one in whole["pictures"]] == [False, True, False, True]


@pytest.mark.slow
def test_a_part_that_was_stopped_is_to_be_run(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last(part: str, specs: tuple[str, ...] = vaes[:1], **options: Any) -> str:
        return str(evaluate(data, setup(specs), tmp_path / "r", part=part, **options)["next"])

    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VAE, "encode", stop)
        last("1/3")
    assert (tmp_path / "r" / "measured-1-of-3.sqlite").exists()  # as it would while it runs
    assert last("2/3") == "Run the same command with --shard 1/3, 3/3, then without --shard, which makes the report."
    assert last("1/3") == "Run the same command with --shard 3/3, then without --shard, which makes the report."
    assert last("3/3") == "Run the same command without --shard, which makes the report."
    both = "Run the same command with --shard 1/3, 2/3, then without --shard, which makes the report."
    assert last("3/3", vaes) == both  # of the second VAE there is nothing yet
    assert "with --shard 3/3, then" in last("1/3", limit=5)  # whose third part is one picture, not two


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["index.html", "results.csv", "results.json"])
@pytest.mark.parametrize("first", [True, False])
def test_a_disk_that_fails_between_the_files(
    first: bool, failing: str, data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the three can't take its place, after others did."""
    report = tmp_path / "r"
    files = ["index.html", "results.csv", "results.json"]
    if not first:
        evaluate(data, setup(vaes[:1]), report, limit=1)
    before = {name: (report / name).read_bytes() for name in files if not first}
    replace = Path.replace

    def refusing(self: Path, target: Path) -> Path:
        if Path(target).name == failing and self.name.startswith(".calotype"):
            failed.append(1)
            if len(failed) == 1:
                raise OSError(5, os.strerror(5))
        return replace(self, target)

    failed: list[int] = []
    with monkeypatch.context() as patch, pytest.raises(StorageError, match="Input/output error") as error:
        patch.setattr(Path, "replace", refusing)
        evaluate(data, setup(vaes), report, limit=2)
    one_sentence(str(error.value))
    assert failed
    assert names(report) == sorted([*before, "measured.sqlite"])
    assert {name: (report / name).read_bytes() for name in before} == before
    found = evaluate(data, setup(vaes), report, limit=2)
    assert len(json.loads((report / "results.json").read_text())["vaes"]) == len(found["vaes"]) == 2


def test_a_failure_does_not_hide_figures_of_another_file(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    """Rows are read once; what is put then is what a new reader would see."""
    found = evaluate(data, setup(vaes[:1]), tmp_path / "r", limit=2)
    with closing(sqlite3.connect(tmp_path / "r" / "measured.sqlite")) as file, file:
        file.execute("UPDATE rows SET row = ? WHERE picture = ?", ('{"error": "x."}', found["pictures"][0]["sha256"]))
    again = evaluate(data, setup(vaes[:1]), tmp_path / "r", limit=2)
    assert figures(again) == figures(found)
    assert [row["error"] for row in sheet(tmp_path / "r")] == [""] * 3
