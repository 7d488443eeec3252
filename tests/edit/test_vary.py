"""Variations: the posterior's own draws, temperatures, seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from editkit import picture
from support import one_sentence

from calotype.edit.sources import latents_of
from calotype.edit.vary import vary
from calotype.errors import LatentsError, UsageError
from calotype.vae import VAE


def test_temperature_1_is_what_encode_image_draws(vae: VAE) -> None:
    for size in ((40, 32), (37, 21)):
        source = picture(0, *size)
        for seed, one in zip((3, 4, 2**63 - 1), vary(vae, source, (3, 4, 2**63 - 1)), strict=True):
            drawn = vae.encode_image(source, seed=seed)
            assert torch.equal(one.tensor, drawn.tensor)
            assert (one.padding, one.vae, one.space) == (drawn.padding, drawn.vae, "raw")


@pytest.mark.parametrize("noise", ["posterior", "latents"])
def test_temperature_0_is_the_mode(noise: str, vae: VAE) -> None:
    mode = vae.encode_image(picture())
    found = vary(vae, picture(), range(3), temperature=0.0, noise=noise)  # type: ignore[arg-type]
    assert torch.equal(found.mode.tensor, mode.tensor)
    assert all(torch.equal(one.tensor, mode.tensor) for one in found)


@pytest.mark.parametrize("noise", ["posterior", "latents"])
def test_a_seed_gives_the_same_alone_and_among_others(noise: str, vae: VAE) -> None:
    many = list(vary(vae, picture(), (5, 6, 7), temperature=2, noise=noise))  # type: ignore[arg-type]
    for seed, one in zip((5, 6, 7), many, strict=True):
        (alone,) = vary(vae, picture(), [seed], temperature=2, noise=noise)  # type: ignore[arg-type]
        assert torch.equal(alone.tensor, one.tensor)
    assert not torch.equal(many[0].tensor, many[1].tensor)
    found = vary(vae, picture(), (5, 6), noise=noise)  # type: ignore[arg-type]
    assert len(found) == 2
    assert all(torch.equal(x.tensor, y.tensor) for x, y in zip(found, found, strict=True))  # also when drawn again


def test_temperature_scales_the_posteriors_noise(vae: VAE) -> None:
    source = picture(1, 160, 160)
    posterior = vae.encode(source.rows(0, 160)[None])
    mean, std = posterior.mode()[0].double(), posterior.std[0].double()
    (one,), (many,) = (vary(vae, source, [0], temperature=t) for t in (1.0, 7.5))
    unit = (one.tensor - mean) / std
    assert torch.allclose((many.tensor - mean) / std, 7.5 * unit, atol=1e-3)
    assert abs(float(unit.mean())) < 0.1  # 1600 numbers: an error of 0.025
    assert abs(float(unit.std()) - 1) < 0.08


@pytest.mark.slow
def test_noise_in_units_of_the_latents(vae: VAE, taesd: VAE) -> None:
    for one in (vae, taesd):
        source = picture(1, 160, 160)
        mode = one.encode_image(source).tensor.numpy()
        (found,) = vary(one, source, [0], temperature=0.5, noise="latents")
        apart = found.tensor.numpy() - mode
        std = mode.astype(np.float64).std(axis=(1, 2))
        assert np.allclose(apart.std(axis=(1, 2)) / std, 0.5, atol=0.07)
        assert vary(one, source, [0], noise="latents").relative_std == pytest.approx(1, rel=1e-5)


def test_how_narrow_a_posterior_is(vae: VAE) -> None:
    source = picture(1, 80, 80)
    posterior = vae.encode(source.rows(0, 80)[None])
    own = posterior.mode()[0].double().numpy().std(axis=(1, 2))
    expected = np.sqrt(np.mean(posterior.std.double().numpy() ** 2) / np.mean(own**2))
    assert vary(vae, source, [0]).relative_std == pytest.approx(expected, rel=1e-5)


def test_latents_vary_too(vae: VAE) -> None:
    latents = latents_of(vae, picture())
    found = list(vary(vae, latents.to_model(), (0, 1), temperature=0.1, noise="latents"))
    assert [one.space for one in found] == ["raw", "raw"]
    own = latents.tensor.numpy().std(axis=(1, 2), keepdims=True)
    for one in found:  # 80 numbers: an error of 8%
        assert ((one.tensor - latents.tensor).numpy() / own).std() == pytest.approx(0.1, rel=0.25)
    (alone,) = vary(vae, latents.to_model(), (1,), temperature=0.1, noise="latents")
    assert torch.equal(alone.tensor, found[1].tensor)


@pytest.mark.slow
def test_what_can_not_vary_is_refused(vae: VAE, taesd: VAE) -> None:
    latents = latents_of(vae, picture())
    foreign = replace(latents, vae="0" * 64, format=replace(latents.format, name="custom"))
    cases = [
        (
            lambda: vary(taesd, picture(), [0]),
            UsageError,
            "imitation gives latents without a variance.*--noise latents",
        ),
        (lambda: vary(vae, latents, [0]), LatentsError, "hold no posterior; give the picture, or give --noise latents"),
        (lambda: vary(vae, picture(), [0], temperature=-1), UsageError, "from 0 up, not -1"),
        (lambda: vary(vae, picture(), [0], temperature=float("nan")), UsageError, "from 0 up, not nan"),
        (lambda: vary(vae, picture(), [0], temperature=float("inf")), UsageError, "from 0 up, not inf"),
        (lambda: vary(vae, picture(), [0], noise="pixels"), UsageError, "not 'pixels'"),  # type: ignore[arg-type]
        (lambda: vary(vae, foreign, [0], noise="latents"), LatentsError, "another VAE"),
    ]
    for make, kind, words in cases:
        with pytest.raises(kind, match=words) as error:
            make()
        one_sentence(str(error.value))
