"""Fréchet and kernel distances against scipy, torchmetrics, closed forms and the formulas written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg as scipy_linalg
import torch
from support import names, one_sentence

from calotype.errors import NonFiniteError, UsageError
from calotype.evaluate import distances as module
from calotype.evaluate.distances import Gaussian, KernelDistance, frechet_distance, kernel_distance

linalg: Any = scipy_linalg  # scipy is not typed
Array = npt.NDArray[np.float64]


def features(n: int, width: int, seed: int = 0, *, shift: float = 0.0, range_: float = 1.0) -> Array:
    """Correlated, as networks' are, and around something else than 0; their deviations spread over `range_`."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(99).normal(size=(width, width)))[0]
    scale = np.geomspace(1.0, 1.0 / range_, width) * generator.uniform(0.8, 1.2, width)
    found: Array = (generator.normal(size=(n, width)) * scale) @ basis + 0.5 + shift
    return found


def gaussian(values: Array) -> Gaussian:
    made = Gaussian(values.shape[1])
    made.add(torch.from_numpy(values))
    return made


def kernel(values_x: Array, values_y: Array, **options: int) -> KernelDistance:
    return kernel_distance(torch.from_numpy(values_x), torch.from_numpy(values_y), **options)


# --- statistics ---


@pytest.mark.parametrize("batches", [[1000], [1] * 5 + [995], [333, 0, 667], [10] * 100])
def test_statistics_are_numpys_whatever_the_batches(batches: list[int]) -> None:
    values = features(1000, 12) * 1e-3 + 100.0  # where sums of squares would lose ten digits
    made = Gaussian(12)
    for part in np.split(values, np.cumsum(batches)[:-1]):
        made.add(torch.from_numpy(part))
    assert (made.count, made.width) == (1000, 12)
    np.testing.assert_allclose(made.mean.numpy(), values.mean(0), rtol=1e-13)
    expected = np.cov(values.T)
    np.testing.assert_allclose(made.covariance.numpy(), expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_shards_merge_to_the_same() -> None:
    values = features(500, 20)
    whole = gaussian(values)
    parts = [gaussian(part) for part in np.split(values, [3, 200, 201])]
    for order in (parts, parts[::-1]):
        merged = Gaussian(20)
        for part in order:
            merged.merge(part)
        merged.merge(Gaussian(20))
        assert merged.count == 500
        assert torch.allclose(merged.mean, whole.mean, rtol=1e-13)
        assert torch.allclose(merged.scatter, whole.scatter, rtol=0, atol=1e-12 * float(whole.scatter.abs().max()))
    assert parts[0].count == 3


def test_features_in_float16_are_summed_in_float64() -> None:
    values = torch.full((5000, 1), 1.0) + torch.arange(5000)[:, None] % 2
    made = Gaussian(1)
    made.add(values.half())
    assert made.mean.item() == 1.5
    assert made.covariance.item() == pytest.approx(0.25 * 5000 / 4999, rel=1e-12)


def test_statistics_are_kept_and_read(tmp_path: Path) -> None:
    made = gaussian(features(50, 7))
    made.save(tmp_path / "reference.npz")
    assert names(tmp_path) == ["reference.npz"]
    read = Gaussian.load(tmp_path / "reference.npz")
    assert (read.count, read.width) == (50, 7)
    assert torch.equal(read.mean, made.mean)
    assert torch.allclose(read.scatter, made.scatter, rtol=1e-15)
    more = features(30, 7, seed=1)
    read.add(torch.from_numpy(more))
    both = gaussian(np.concatenate([features(50, 7), more]))
    assert torch.allclose(read.covariance, both.covariance, rtol=1e-11)
    with np.load(tmp_path / "reference.npz") as file:  # as pytorch-fid would read it
        np.testing.assert_allclose(file["sigma"], np.cov(features(50, 7).T), rtol=1e-12)
        np.testing.assert_allclose(file["mu"], features(50, 7).mean(0), rtol=1e-13)


def test_what_is_no_statistics_is_refused(tmp_path: Path) -> None:
    good = {"count": np.int64(9), "mu": np.zeros(2), "sigma": np.eye(2)}

    def fails(match: str, **arrays: Any) -> None:
        path = tmp_path / "x.npz"
        if arrays:
            np.savez(path, **arrays)
        with pytest.raises(UsageError, match=match) as caught:
            Gaussian.load(path)
        one_sentence(str(caught.value))
        assert str(path) in str(caught.value)

    fails("there is no such file")
    (tmp_path / "x.npz").write_bytes(b"")
    fails("no whole npz file")
    np.savez(tmp_path / "x.npz", **good)
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:300])
    fails("no whole npz file")
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.eye(2))
    fails("no whole npz file")
    fails("hold no count; a file with count, mu, sigma is needed", mu=good["mu"], sigma=good["sigma"])
    for wrong in (
        {"count": np.int64(1)},
        {"count": np.float64(9.0)},
        {"mu": np.zeros(3)},
        {"mu": np.array([0.0, np.nan])},
        {"sigma": np.array([[1.0, 0.5], [0.0, 1.0]])},
        {"sigma": np.eye(2, dtype=np.int64)},
    ):
        fails("must be a count of at least 2", **{**good, **wrong})
    fails("no whole npz file", **{**good, "mu": np.array([None, None])})


def test_what_can_not_be_taken_in() -> None:
    made = gaussian(features(5, 3))
    before = made.scatter.clone()
    for wrong in (torch.zeros(2, 4), torch.zeros(3), torch.zeros(2, 3, dtype=torch.int64)):
        with pytest.raises(UsageError, match=r"features must be floating-point \[N, 3\], not"):
            made.add(wrong)
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        made.add(torch.tensor([[0.0, 1.0, torch.inf]]))
    with pytest.raises(UsageError, match="statistics of 4 dimensions can't be merged into those of 3"):
        made.merge(Gaussian(4))
    assert made.count == 5
    assert torch.equal(made.scatter, before)
    with pytest.raises(UsageError, match="at least 2 pictures, not of 1"):
        _ = gaussian(features(1, 3)).covariance


# --- Fréchet ---


def by_matrix_root(x: Array, y: Array) -> float:
    """As pytorch-fid computes it."""
    first, second = np.cov(x.T), np.cov(y.T)
    root = linalg.sqrtm(first @ second)
    mean = x.mean(0) - y.mean(0)
    return float(mean @ mean + np.trace(first) + np.trace(second) - 2.0 * np.trace(root).real)


@pytest.mark.parametrize(("width", "n", "range_"), [(2, 30, 1), (16, 17, 1), (64, 300, 10), (128, 400, 1e3)])
def test_frechet_is_that_of_a_matrix_root(width: int, n: int, range_: float) -> None:
    x, y = features(n, width, range_=range_), features(n + 11, width, seed=1, shift=0.05, range_=range_)
    expected = by_matrix_root(x, y)
    assert expected > 0.01
    assert frechet_distance(gaussian(x), gaussian(y)) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(gaussian(y), gaussian(x)) == pytest.approx(expected, rel=1e-8)


def test_frechet_is_torchmetrics() -> None:
    """Which takes the roots of the product's eigenvalues (torch-fidelity's way)."""
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = gaussian(features(200, 40)), gaussian(features(300, 40, seed=1, shift=0.1))
    expected = float(fid._compute_fid(a.mean, a.covariance, b.mean, b.covariance))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_frechet_in_closed_form() -> None:
    """Of Gaussians along the axes: the sum of (difference of means)^2 + (difference of deviations)^2."""
    generator = np.random.default_rng(0)
    scales = generator.uniform(0.1, 3.0, (2, 10))
    shifts = generator.normal(size=(2, 10))
    made = [Gaussian(10), Gaussian(10)]
    for one, scale, shift in zip(made, scales, shifts, strict=True):
        one.count, one.mean = 100, torch.from_numpy(shift)
        one.scatter = torch.diag(torch.from_numpy(scale**2)) * 99
    expected = ((shifts[0] - shifts[1]) ** 2).sum() + ((scales[0] - scales[1]) ** 2).sum()
    assert frechet_distance(*made) == pytest.approx(expected, rel=1e-13)


def test_frechet_of_a_turned_and_moved_set_is_how_far_it_moved() -> None:
    values = features(300, 8)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    assert frechet_distance(gaussian(values), gaussian(values + 2.0)) == pytest.approx(8 * 4.0, rel=1e-12)
    turned = [gaussian(x @ turn) for x in (values, features(300, 8, seed=1))]
    straight = [gaussian(x) for x in (values, features(300, 8, seed=1))]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(*straight), rel=1e-11)


@pytest.mark.parametrize("range_", [1, 1e3, 1e6])
def test_frechet_to_itself_is_0_also_where_the_covariance_is_almost_singular(range_: float) -> None:
    values = features(150, 128, range_=range_)
    values[:, 3] = 0.25  # a feature that is always the same
    values[:, 5] = values[:, 6]
    assert 0.0 <= frechet_distance(gaussian(values), gaussian(values)) < 1e-12
    nudged = values.copy()
    nudged[:, 0] *= 1.0 + 1e-3
    spread = values[:, 0].var(ddof=1)
    moved = (values[:, 0].mean() * 1e-3) ** 2
    found = frechet_distance(gaussian(values), gaussian(nudged))
    # the largest change that one feature's scale can make, and above 0: roots of A B lose this in rounding
    assert moved < found < moved + 1.01 * spread * 1e-6


def test_frechet_is_biased_by_1_over_n() -> None:
    """Which is why figures at different N are no figures of one thing."""
    generator = np.random.default_rng(0)
    biased = []
    for n in (100, 400, 1600):
        pairs = [generator.normal(size=(2, n, 32)) for _ in range(3)]
        biased.append(np.mean([frechet_distance(gaussian(x), gaussian(y)) for x, y in pairs]))
    assert biased[0] / biased[1] == pytest.approx(4.0, rel=0.15)
    assert biased[1] / biased[2] == pytest.approx(4.0, rel=0.15)


def test_frechet_needs_more_pictures_than_dimensions() -> None:
    enough = gaussian(features(9, 8))
    frechet_distance(enough, enough)
    for few in (gaussian(features(8, 8)), gaussian(features(1, 8)), Gaussian(8)):
        for sides in ((few, enough), (enough, few)):
            with pytest.raises(UsageError, match=f"over 8 dimensions needs at least 9 .* not {few.count};") as caught:
                frechet_distance(*sides)
            one_sentence(str(caught.value))
    with pytest.raises(UsageError, match="of one width, not 8 and 7"):
        frechet_distance(enough, gaussian(features(9, 7)))


# --- kernel ---


def by_definition(x: Array, y: Array) -> float:
    """Equation 3 of Gretton et al. 2012 with all three matrices."""
    m, n = len(x), len(y)
    xx, yy, xy = ((a @ b.T / x.shape[1] + 1.0) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx)) / (m * (m - 1)) + (yy.sum() - np.trace(yy)) / (n * (n - 1))
    return float(within - 2.0 * xy.mean())


@pytest.mark.parametrize("block", [1, 7, 40, 1024])
@pytest.mark.parametrize(("m", "n"), [(2, 2), (40, 40), (41, 83)])
def test_kernel_distance_is_its_definition_whatever_the_blocks(
    m: int, n: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    x, y = features(m, 24), features(n, 24, seed=1, shift=0.2)
    found = kernel(x, y)
    assert found.value == pytest.approx(by_definition(x, y), rel=1e-10)
    assert kernel(y, x).value == pytest.approx(found.value, rel=1e-10)
    assert (found.mean, found.std) == (None, None)


def test_kernel_distance_is_torchmetrics() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = features(60, 24), features(60, 24, seed=1, shift=0.2)
    expected = float(kid.poly_mmd(torch.from_numpy(x), torch.from_numpy(y)))
    assert kernel(x, y).value == pytest.approx(expected, rel=1e-10)


def test_subsets_are_drawn_without_replacement_from_both() -> None:
    x, y = features(50, 24), features(50, 24, seed=1, shift=0.2)
    whole = kernel(x, y, size=50, subsets=4)
    assert whole.mean == pytest.approx(whole.value, rel=1e-12)
    assert whole.std == pytest.approx(0.0, abs=1e-12)
    parts = kernel(x, y, size=30, subsets=200)
    assert parts.mean is not None
    assert parts.std is not None
    assert parts.std > 0.0
    # the mean over subsets estimates the same thing
    assert parts.mean == pytest.approx(parts.value, abs=4 * parts.std / 200**0.5)
    assert (parts.subsets, parts.size) == (200, 30)
    assert kernel(x, y, size=30, subsets=200) == parts
    assert kernel(x, y, size=30, subsets=200, seed=1).mean != parts.mean
    assert kernel(x, y, size=51).mean is None


def test_kernel_distance_of_two_sets_of_one_kind_is_0_on_average_even_if_they_are_small() -> None:
    generator = np.random.default_rng(0)
    found = [kernel(*generator.normal(size=(2, 20, 16))).value for _ in range(300)]
    assert min(found) < 0.0 < max(found)
    assert abs(np.mean(found)) < 3 * np.std(found) / 300**0.5


def test_pictures_and_their_reconstructions_stand_in_pairs() -> None:
    """Which lowers the value by 2 / N of what the kernel of a pair is above that of two different pictures."""
    x = features(100, 24)
    y = x + np.random.default_rng(1).normal(size=x.shape) * 0.1
    xy = (x @ y.T / 24 + 1.0) ** 3
    pairs, others = np.trace(xy) / 100, (xy.sum() - np.trace(xy)) / (100 * 99)
    m = 100
    xx, yy = ((a @ a.T / 24 + 1.0) ** 3 for a in (x, y))
    apart = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2.0 * others
    assert kernel(x, y).value == pytest.approx(apart - 2.0 / m * (pairs - others), rel=1e-9)
    assert kernel(x, y).value < 0.0


def test_what_kernel_distance_can_not_compare() -> None:
    x = torch.from_numpy(features(5, 3))
    with pytest.raises(UsageError, match=r"floating-point \[N, 3\], not torch.float64 \[5, 2\]"):
        kernel_distance(x, x[:, :2])
    with pytest.raises(UsageError, match=r"floating-point \[N, D\]"):
        kernel_distance(torch.tensor(1.0), x)
    for few in (0, 1):
        with pytest.raises(UsageError, match=f"at least 2 pictures on either side, not {few}"):
            kernel_distance(x, x[:few])
    with pytest.raises(UsageError, match="at least 1 subset of 2 pictures, not 0 of 1000"):
        kernel_distance(x, x, subsets=0)
    with pytest.raises(UsageError, match="not 100 of 1"):
        kernel_distance(x, x, size=1)
    with pytest.raises(NonFiniteError):
        kernel_distance(x, x / 0.0)
