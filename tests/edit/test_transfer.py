"""Statistics of one picture given to another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from editkit import folded, picture
from support import one_sentence

from calotype.edit.sources import latents_of
from calotype.edit.transfer import adain, transfer
from calotype.errors import LatentsError, UsageError
from calotype.latents import KNOWN, Latents, same_as_model
from calotype.pixels import Padding
from calotype.vae import VAE


def test_adain_gives_the_styles_statistics() -> None:
    x, y = torch.randn(4, 6, 9) * 3 + 1, torch.rand(4, 5, 5) * 7
    found = adain(x, y).double().numpy()
    assert np.allclose(found.mean(axis=(1, 2)), y.double().numpy().mean(axis=(1, 2)), atol=1e-5)
    assert np.allclose(found.std(axis=(1, 2)), y.double().numpy().std(axis=(1, 2)), atol=1e-5)
    for c in range(4):  # and what is seen stays: each channel is scaled and moved, no more
        assert np.corrcoef(found[c].ravel(), x[c].numpy().ravel())[0, 1] == pytest.approx(1, abs=1e-6)


def test_adain_by_hand() -> None:
    x = torch.tensor([[[1.0, 3.0]]])  # mean 2, std 1
    y = torch.tensor([[[10.0, 16.0], [10.0, 16.0]]])  # mean 13, std 3
    assert adain(x, y).tolist() == [[[10.0, 16.0]]]
    assert torch.allclose(adain(y, y), y)


def test_latents_that_name_no_vae_are_of_their_formats() -> None:
    z, padding = torch.randn(4, 6, 9), Padding(48, 72, 0, 0, "replicate")
    one = Latents(tensor=z, space="raw", format=KNOWN["sd1"], vae="", padding=padding)
    assert transfer(one, replace(one, tensor=z * 2)).tensor.shape == z.shape
    with pytest.raises(LatentsError, match="nothing tells that they are of one space"):
        transfer(one, replace(one, format=KNOWN["sdxl"]))


def test_a_constant_channel_is_moved() -> None:
    assert adain(torch.full((1, 2, 2), 5.0), torch.tensor([[[1.0, 3.0]]])).tolist() == [[[2.0, 2.0], [2.0, 2.0]]]


@pytest.mark.parametrize("strength", [-0.5, 0.0, 0.3, 1.0, 1.5])
def test_strength(strength: float, vae: VAE) -> None:
    content, style = latents_of(vae, picture(0)), latents_of(vae, picture(1, 64, 24))
    found = transfer(content, style, strength)
    whole = adain(content.tensor, style.tensor)
    assert torch.allclose(found.tensor, content.tensor + strength * (whole - content.tensor), atol=1e-5)
    assert (found.padding, found.vae, found.space) == (content.padding, vae.sha256, "raw")
    if not strength:
        assert torch.equal(found.tensor, content.tensor)


def test_model_latents_are_taken_for_what_they_are(vae: VAE) -> None:
    content, style = latents_of(vae, picture(0)), latents_of(vae, picture(1))
    found = transfer(content.to_model(), style.to_model())
    assert torch.allclose(found.tensor, transfer(content, style).tensor, atol=1e-5)


def test_what_can_not_be_transferred_is_refused(vae: VAE) -> None:
    content, other = latents_of(vae, picture(0)), latents_of(folded(1, "custom"), picture(1))
    for make, kind, words in (
        (lambda: transfer(content, other), LatentsError, "by small-0 .* by small-1 .*encode both with one"),
        (lambda: transfer(content, content, float("nan")), UsageError, "finite number, not nan"),
        (lambda: latents_of(vae, other), LatentsError, "made by another VAE"),
        (lambda: latents_of(vae, replace(other, vae="0" * 64)), LatentsError, "made by another VAE"),
    ):
        with pytest.raises(kind, match=words) as error:
            make()
        one_sentence(str(error.value))


def test_latents_that_another_vae_of_the_space_made(vae: VAE) -> None:
    """Whose raw latents are scaled otherwise: what is transferred is the same."""
    content, style = latents_of(vae, picture(0)), latents_of(vae, picture(1))
    other = replace(style.to_model(), space="raw", format=same_as_model("small", 4), vae="1" * 64)
    found = transfer(content, other)
    assert torch.allclose(found.tensor, transfer(content, style).tensor, atol=1e-5)
    assert (found.vae, found.format) == (vae.sha256, content.format)
