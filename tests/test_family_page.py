"""docs/family.md: the command that makes it runs, and the page says what its numbers say."""

from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from family_page import measures  # noqa: E402
from family_page.claims import claims  # noqa: E402
from family_page.models import PCA, photographs, recipes, trained  # noqa: E402
from family_page.page import page  # noqa: E402

SETS = ("waves", "stripes")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic pictures of two sets, and labels."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:32, 0:40]
    lines = []
    for i in range(240):
        kind = SETS[i % 2]
        wave = np.sin(x / rng.uniform(3, 9) + rng.uniform(0, 6)) * (np.cos(y / rng.uniform(3, 9)) if i % 2 else 1)
        picture = (wave[..., None] * rng.uniform(0.2, 1, 3) / 3 + 0.5) * 255 + rng.normal(0, 9, (32, 40, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03}.png")
        lines.append(json.dumps({"file": f"{i:03}.png", "set": kind, "label": kind}))
    (folder / "labels.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.slow
def test_the_command_makes_page_pictures_and_numbers_and_trains_nothing_twice(data: Path, tmp_path: Path) -> None:
    main = runpy.run_path(str(ROOT / "scripts" / "family.py"))["main"]
    work, out = tmp_path / "work", tmp_path / "docs"
    arguments = ["--quick", "--data", str(data), "--work", str(work), "--out", str(out)]
    assert main(arguments) == 0
    results = json.loads((out / "family.json").read_text())
    text = (out / "family.md").read_text()
    assert text == page(results)
    linked = re.findall(r"\]\((pictures/[^)]+)\)", text)
    assert len(linked) == 7
    for name in linked:
        with Image.open(out / name) as image:
            assert np.asarray(image.convert("L")).std() > 5, f"{name} is empty"
    assert all(claim.text in text for claim in claims(results))
    assert not re.search(r"\b(nan|inf)\b", text)
    assert (results["pictures"], results["held_out"]) == (228, 12)

    kept = {path: path.stat().st_mtime_ns for path in work.iterdir()}
    assert {path.stem for path in kept} == set(recipes(quick=True))
    training, _ = photographs(data, lambda items, doing, total: items, pytest.fail)
    one, steps = recipes(quick=True)["vae"], list[int]()
    again = trained(one, training, work, steps.append)
    assert steps == [one.steps]
    assert {path: path.stat().st_mtime_ns for path in work.iterdir()} == kept
    assert again.seconds == results["models"]["vae"]["seconds"]
    changed = trained(replace(one, steps=2, checkpoint_every=2), training, work, steps.append)
    assert changed.curve[-1][0] == 2, "another recipe of the same name is trained"


def test_the_page_in_docs_is_what_its_numbers_say() -> None:
    results = json.loads((ROOT / "docs" / "family.json").read_text())
    assert (ROOT / "docs" / "family.md").read_text() == page(results)
    assert {claim.verdict for claim in claims(results)} <= {"true here", "partly true here", "false here"}


def test_verdicts_follow_the_numbers() -> None:
    results: dict[str, Any] = json.loads((ROOT / "docs" / "family.json").read_text())

    def verdict() -> str:
        return next(c.verdict for c in claims(results) if c.text == "A linear autoencoder learns what PCA computes.")

    best = results["reconstruction"]["pca"]["held_out"]
    results["reconstruction"]["linear"]["held_out"] = best - 0.1
    assert verdict() == "true here"
    results["reconstruction"]["linear"]["held_out"] = best - 3
    assert verdict() == "false here"


def test_pca_is_numpys_svd() -> None:
    pixels = torch.rand(40, 3, 4, 4) * 2 - 1
    pca = PCA(pixels, 5)
    rows = torch.cat([pixels, pixels.flip(3)]).flatten(1).double().numpy()
    mean = rows.mean(0)
    directions = np.linalg.svd(rows - mean, full_matrices=False)[2][:5]
    expected = ((pixels.flatten(1).numpy() - mean) @ directions.T) @ directions + mean
    found = pca.decode(pca.encode(pixels).mode()).flatten(1).numpy()
    assert np.abs(found - expected).max() < 1e-5


def test_distance_is_zero_for_the_same_pictures_and_rises_with_noise() -> None:
    pixels = torch.rand(300, 3, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3) * 2 - 1
    distance = measures.Distance(pixels)
    assert distance(pixels) < 1e-6
    found = [distance(pixels + s * torch.randn(pixels.shape)) for s in (0.02, 0.1, 0.5)]
    assert 0 < found[0] < found[1] < found[2]


def test_probe_and_clusters_find_what_is_there_and_nothing_else() -> None:
    labels = ["a", "b"] * 60
    inside = torch.tensor([[0.0], [9.0]]).repeat(60, 4) + torch.randn(120, 4)
    chance = torch.randn(120, 4)
    assert all(measures.probe(inside, inside, labels, labels)["right"])
    assert measures.clusters(inside, labels) == pytest.approx(1)
    assert sum(measures.probe(chance, torch.randn(120, 4), labels, labels)["right"]) < 90
    assert measures.clusters(chance, labels) < 0.1


def test_a_gain_counts_from_twice_its_standard_error_on() -> None:
    gain, error = measures.gain([1, 1, 1, 0] * 25, [1, 1, 0, 0] * 25)
    assert gain == pytest.approx(25)
    assert error == pytest.approx(2 * 100 * (0.25 * 0.75 / 99) ** 0.5)
