"""What latents know about labels: against arithmetic done in another way, and where the answer is known."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import optimize, special
from torch import Tensor

from calotype.evaluate.probe import probe
from calotype.evaluate.probe.labels import (
    FOLDS,
    _listed,
    cross_validated,
    k_means,
    logistic,
    mutual_information,
    split,
    standardised,
)
from calotype.latents import LatentFormat, ScaleShift
from calotype.posterior import Point, Posterior

SIDE = 64
FACTOR = 8


class Pooled:
    """Latents that are the mean and the contrast of 8 x 8 pixels; pictures of the means come back."""

    name = "pooled"
    sha256 = "0" * 64
    factor = FACTOR
    latent_channels = 4

    @property
    def latent_format(self) -> LatentFormat:
        return ScaleShift(name="none", channels=4, scaling_factor=1.0)

    def encode(self, pixels: Tensor) -> Posterior:
        mean = F.avg_pool2d(pixels, FACTOR)
        contrast = F.avg_pool2d(pixels.square(), FACTOR) - mean.square()
        return Point(torch.cat([mean, contrast.mean(1, keepdim=True)], 1))

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents[:, :3], scale_factor=FACTOR, mode="nearest").clamp(-1, 1)


def picture(rng: np.random.Generator, level: float, contrast: float) -> np.ndarray[Any, Any]:
    noise = rng.normal(size=(SIDE, SIDE, 3))
    blocks = noise.reshape(8, 8, 8, 8, 3)
    noise = (blocks - blocks.mean((1, 3), keepdims=True)).reshape(SIDE, SIDE, 3)
    return (level + contrast * noise).clip(0, 255).round().astype(np.uint8)


@pytest.mark.slow
def test_labels_that_are_separable_are_found() -> None:
    rng = np.random.default_rng(0)
    given, labels = [], []
    for i in range(24):
        label = ("dark", "middle", "bright")[i % 3]
        given.append((f"{i}", picture(rng, {"dark": 60, "middle": 120, "bright": 180}[label] + rng.normal(), 8)))
        labels.append(label)
    found = probe(Pooled(), given, labels=labels)["labels"]
    for space in ("latents", "pixels"):
        assert found.value(f"accuracy of a linear probe, {space}") == 1.0
        assert found.value(f"NMI of k-means, {space}") == pytest.approx(1.0)
        assert found.value(f"purity of k-means, {space}") == 1.0
    assert found.value("accuracy of the most frequent label") == pytest.approx(1 / 3)
    assert found.value("features, latents") == 64
    assert found.value("features, pixels") == 75  # 5 x 5, the smallest square that has as many
    assert "as much as pixels do" in found.sentence


@pytest.mark.slow
def test_what_only_latents_hold_is_found_in_them_alone() -> None:
    rng = np.random.default_rng(1)
    given = [(f"{i}", picture(rng, 128 + rng.normal(), 6 + 12 * (i % 2))) for i in range(60)]
    found = probe(Pooled(), given, labels=["rough" if i % 2 else "smooth" for i in range(60)])["labels"]
    assert found.value("accuracy of a linear probe, latents") == 1.0
    assert found.value("accuracy of a linear probe, pixels") < 0.75
    assert "more than pixels do" in found.sentence


@pytest.mark.slow
def test_labels_have_the_numbers_of_the_map() -> None:
    rng = np.random.default_rng(5)
    given = [(f"{i}", picture(rng, 60 + 2 * i, 8)) for i in range(6)]
    found = probe(Pooled(), given, labels=["b", "a"] * 3)["labels"].figures[1]
    assert found.title == "Labels as the linear probe of latents finds them (0 a, 1 b)"
    many = [f"label {i:02}" for i in range(21)]
    assert _listed(many[:20]).startswith("0 label 00, 1 label 01, ")
    assert _listed(many[:20]).endswith(", 18 label 18, 19 label 19")
    assert _listed(many).endswith(", 18 label 18, 19 label 19, ... 20 label 20")


@pytest.mark.slow
def test_labels_that_say_nothing_are_not_found() -> None:
    rng = np.random.default_rng(2)
    given = [(f"{i}", picture(rng, 128 + 20 * rng.normal(), 10)) for i in range(60)]
    found = probe(Pooled(), given, labels=[str(int(rng.integers(2))) for _ in range(60)])["labels"]
    assert found.value("accuracy of a linear probe, latents") < 0.7
    assert found.value("NMI of k-means, latents") < 0.2


@pytest.mark.slow
def test_labels_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(3)
    given = [(f"{i}", picture(rng, 100 + 20 * rng.normal() + 20 * (i % 2), 10)) for i in range(20)]
    labels = ["ab"[i % 2] for i in range(20)]
    first = probe(Pooled(), given, labels=labels)
    assert first.to_dict() == probe(Pooled(), given[::-1], labels=labels[::-1]).to_dict()
    assert 0.5 < first["labels"].value("accuracy of a linear probe, latents") < 1.0


@pytest.mark.parametrize("labels", [["a", "a", "a"], ["a", "b", "c"], ["a", "a", "b"]])
def test_too_few_labels_are_left_out(labels: list[str]) -> None:
    rng = np.random.default_rng(4)
    found = probe(Pooled(), [(f"{i}", picture(rng, 100, 10)) for i in range(3)], labels=labels)
    assert "two labels with two pictures each" in found.left_out["labels"]


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_logistic_regression_is_what_another_solver_finds(penalty: float) -> None:
    rng = np.random.default_rng(0)
    x, more = rng.normal(size=(30, 5)), rng.normal(size=(40, 5))
    y = (x[:, 0] + 0.8 * rng.normal(size=30) > 0).astype(int) + (x[:, 1] > 0.7)
    targets = np.eye(3)[y]

    def objective(flat: np.ndarray[Any, Any]) -> float:
        w = flat.reshape(6, 3)
        logits = x @ w[:5] + w[5]
        loss = special.logsumexp(logits, axis=1) - (logits * targets).sum(1)
        return float(loss.mean() + 0.5 * penalty * np.square(w[:5]).sum())

    best = optimize.minimize(objective, np.zeros(18), method="BFGS", options={"gtol": 1e-6}).x.reshape(6, 3)
    expected = special.softmax(more @ best[:5] + best[5], axis=1)
    logits = logistic(torch.from_numpy(x), torch.from_numpy(y), 3, penalty)(torch.from_numpy(more))
    assert logits.softmax(1).numpy() == pytest.approx(expected, abs=1e-4)


def test_a_guess_never_sees_its_own_fold() -> None:
    # features that name the picture: on its own fold this would be perfect, on others it is worthless
    n = 40
    x, y = torch.eye(n, dtype=torch.float64), torch.arange(n) % 2
    folds = split([str(i) for i in range(n)], y, 0)
    guesses = cross_validated(x, y, folds, 2)
    assert (guesses >= 0).all()
    assert (guesses == y).double().mean() < 0.7


def test_folds_are_stratified_by_content_and_seed() -> None:
    digests = [hashlib.sha256(bytes([i])).hexdigest() for i in range(53)]
    y = torch.arange(53) % 3
    folds = split(digests, y, 0)
    for label in range(3):
        counts = folds[y == label].bincount(minlength=FOLDS)
        assert counts.max() - counts.min() <= 1
    order = torch.randperm(53)
    assert torch.equal(split([digests[i] for i in order], y[order], 0), folds[order])
    assert not torch.equal(split(digests, y, 1), folds)


def test_features_that_do_not_vary_become_zero() -> None:
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]], dtype=torch.float64)
    train, test = standardised(x, torch.tensor([[2.0, 9.0]], dtype=torch.float64))
    assert train.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert test.tolist() == [[0.0, 0.0]]


def test_k_means_finds_the_best_of_all_partitions() -> None:
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(5)).double()

    def cost(assignment: list[int]) -> float:
        parts = [x[[i for i in range(9) if assignment[i] == c]] for c in range(2)]
        return sum(float((part - part.mean(0)).square().sum()) for part in parts if len(part))

    every = min(cost([code >> i & 1 for i in range(9)]) for code in range(2**9))
    found = k_means(x, 2, torch.Generator().manual_seed(0))
    assert cost(found.tolist()) == pytest.approx(every)
    assert torch.equal(found, k_means(x, 2, torch.Generator().manual_seed(0)))


def test_k_means_of_fewer_different_points_than_clusters() -> None:
    x = torch.tensor([[0.0], [0.0], [1.0], [1.0]], dtype=torch.float64)
    found = k_means(x, 3, torch.Generator().manual_seed(0))
    assert found[0] == found[1] != found[2] == found[3]


def test_mutual_information_by_hand() -> None:
    a = torch.tensor([0, 0, 0, 1])
    b = torch.tensor([0, 0, 1, 1])
    joint = {(0, 0): 0.5, (0, 1): 0.25, (1, 1): 0.25}
    rows, columns = (0.75, 0.25), (0.5, 0.5)
    shared = sum(p * math.log(p / (rows[i] * columns[j])) for (i, j), p in joint.items())
    entropies = [-sum(p * math.log(p) for p in one) for one in (rows, columns)]
    assert mutual_information(a, b) == pytest.approx(2 * shared / sum(entropies))
    assert mutual_information(b, 1 - b) == pytest.approx(1.0)
    assert mutual_information(b, torch.tensor([0, 1, 0, 1])) == pytest.approx(0.0, abs=1e-12)
