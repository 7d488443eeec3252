"""The linear map from latents to RGB that a probe fits: against NumPy's least squares, and what it says of itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from probekit import FACTOR, SIDE, Toy, exact, named, pixels_of, pool, unpool
from torch import Tensor

from calotype.evaluate.figures import Pictures
from calotype.evaluate.probe import probe
from calotype.evaluate.probe.preview import Comoments, least_squares, squares
from calotype.latents import LatentFormat, PerChannel, flux2
from calotype.previews import load_factors

FORMAT = PerChannel(name="mine", channels=5, mean=(0.1, 0.2, 0.3, 0.4, 0.5), std=(0.5, 2.0, 4.0, 1.0, 3.0))


def mixed(x: Tensor) -> Tensor:
    """Five channels that know the colours but for what is not linear."""
    low = pool(x)
    mix = torch.tensor([[0.5, 0.2, 0.1], [-0.3, 1.0, 0.0], [2.0, 0.0, -1.0], [0.1, 0.1, 0.1], [0.0, 0.0, 3.0]])
    z = torch.einsum("nchw,dc->ndhw", low, mix) + torch.arange(5.0)[:, None, None]
    return z + 0.3 * torch.sin(7 * z)


def toy(latent_format: LatentFormat | None = FORMAT) -> Toy:
    return Toy(mixed, lambda z: unpool(z[:, :3]), channels=5, latent_format=latent_format)


@pytest.mark.parametrize("format_", [FORMAT, None], ids=["model latents", "raw latents"])
def test_it_is_the_least_squares_of_numpy(format_: LatentFormat | None) -> None:
    given = named(7)
    found = probe(toy(format_), given)
    x = pixels_of(found, given).float()
    z = mixed(x) if format_ is None else format_.to_model(mixed(x))
    rows = z.double().permute(0, 2, 3, 1).reshape(-1, 5).numpy()
    colours = pool(x).double().permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    design = np.column_stack([rows, np.ones(len(rows))])
    expected, left, *_ = np.linalg.lstsq(design, colours, rcond=None)
    factors = found.factors
    assert factors is not None
    assert np.allclose(factors.factors, expected[:5], rtol=1e-4, atol=1e-5)
    assert np.allclose(factors.bias, expected[5], rtol=1e-4, atol=1e-5)
    assert factors.rmse == pytest.approx(127.5 * math.sqrt(left.sum() / colours.size), rel=1e-4)
    assert factors.r2 == pytest.approx(1 - left.sum() / (colours - colours.mean(0)).__pow__(2).sum(), rel=1e-5)
    assert (factors.format, factors.space) == (("none", "raw") if format_ is None else ("mine", "model"))
    assert (factors.vae, factors.vae_name, factors.pictures) == (Toy.sha256, Toy.name, 7)
    finding = found["preview"]
    assert finding.value("RMSE") == factors.rmse
    assert finding.value("PSNR") == pytest.approx(20 * math.log10(255 / factors.rmse))
    assert finding.values("factor of green") == tuple(row[1] for row in factors.factors)
    assert finding.code == factors.code()
    assert finding.to_dict()["code"] == finding.code
    assert f"{finding.value('RMSE'):.3g} levels" in finding.sentence


def test_what_it_was_not_fitted_to_is_measured_apart() -> None:
    given = named(4)
    found = probe(toy(None), given)
    x = pixels_of(found, given).float()
    z, colours = mixed(x).double(), pool(x).double()
    halves = [(z[i::2].transpose(0, 1).flatten(1), colours[i::2].transpose(0, 1).flatten(1)) for i in (0, 1)]
    errors = []
    for (z0, c0), (z1, c1) in (halves, halves[::-1]):
        design = np.column_stack([z0.T, np.ones(z0.shape[1])])
        fitted, *_ = np.linalg.lstsq(design, c0.T.numpy(), rcond=None)
        errors.append(np.column_stack([z1.T, np.ones(z1.shape[1])]) @ fitted - c1.T.numpy())
    expected = 127.5 * math.sqrt(np.mean(np.square(np.concatenate(errors))))
    value = found["preview"].value("RMSE on pictures it was not fitted to")
    assert value == pytest.approx(expected, rel=1e-5)
    assert value > found["preview"].value("RMSE")
    alone = probe(toy(None), given[:1])["preview"]
    assert "not fitted to" not in alone.sentence
    assert not any("not fitted to" in number.name for number in alone.numbers)


def test_what_is_exact_has_nothing_left() -> None:
    finding = probe(exact(), named(3))["preview"]
    assert finding.value("RMSE") < 1e-3  # the factors are rounded
    assert finding.value("R²") == pytest.approx(1.0)


def test_channels_that_say_nothing_or_the_same() -> None:
    def encode(x: Tensor) -> Tensor:
        low = pool(x)
        return torch.cat([low, low[:, :1], torch.full_like(low[:, :1], 5.0), 1e-4 * low[:, 1:2]], 1)

    found = probe(Toy(encode, lambda z: unpool(z[:, :3]), channels=6), named(3)).factors
    assert found is not None
    assert np.isfinite(found.factors).all()
    assert found.factors[4] == (0.0, 0.0, 0.0)
    assert found.factors[0][0] == pytest.approx(found.factors[3][0]) == pytest.approx(0.5, rel=1e-3)
    assert found.rmse is not None
    assert found.rmse < 0.01


def test_packed_latents_are_fitted_unpacked() -> None:
    format_ = flux2(tuple(x / 9 for x in range(12)), tuple(1 + x / 9 for x in range(12)))
    found = probe(Toy(latent_format=format_), named(3)).factors
    assert found is not None
    assert (len(found.factors), found.format) == (3, "flux2")
    x = torch.rand(1, 3, SIDE, SIDE) - 0.5
    rgb = found.rgb(format_.to_model(pool(x))[0])
    assert rgb.shape == (3, SIDE // FACTOR, SIDE // FACTOR)
    assert found.rmse is not None
    assert 0 < found.rmse < 40


def test_the_picture_of_it() -> None:
    given = named(6)
    found = probe(toy(), given)
    (figure,) = found["preview"].figures
    assert isinstance(figure, Pictures)
    assert (figure.columns, figure.captions) == (4, ["picture"] * 4 + ["latents"] * 4)
    assert {image.shape for image in figure.images} == {(SIDE, SIDE, 3)}
    x = F.interpolate(pool(pixels_of(found, given).float())[:1], scale_factor=FACTOR)
    assert np.abs(figure.images[0] - (x[0].permute(1, 2, 0).numpy() + 1) * 127.5).max() <= 0.51
    assert 0 < np.abs(figure.images[0].astype(int) - figure.images[4]).mean() < 30


def test_moments_in_parts_are_those_of_the_whole() -> None:
    values = torch.randn(6, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 1e4
    whole, first, second = Comoments(6), Comoments(6), Comoments(6)
    whole.add(values)
    for i, part in enumerate(values.split([1, 99, 150, 250], 1)):
        (first, second)[i % 2].add(part)
    both = first.merged(second)
    assert torch.allclose(both.products, whole.products, rtol=1e-9, atol=1e-6)
    assert np.allclose(whole.products / 500, np.cov(values.numpy(), bias=True), rtol=1e-9, atol=1e-9)
    weights, bias = least_squares(both)
    left = values[3:].T - values[:3].T @ weights - bias
    assert torch.allclose(squares(both, weights, bias), left.square().sum(0), rtol=1e-6)
    assert torch.allclose(squares(both, weights + 1, bias - 2), (left - values[:3].T.sum(1, keepdim=True) + 2)
                          .square().sum(0), rtol=1e-6)  # fmt: skip


def test_the_file_beside_the_page(tmp_path: Path) -> None:
    from calotype.evaluate.examine import _write  # what `examine` ends with

    found = probe(toy(), named(2))
    _write(found, tmp_path)
    assert load_factors(tmp_path / "factors.json") == found.factors
    page = (tmp_path / "index.html").read_text()
    assert "latent_rgb_factors = [" in page
    assert json.loads((tmp_path / "probe.json").read_text())["factors"] == found.to_dict()["factors"]
