"""One picture through a VAE and back: the figures by arithmetic, and the panel by its pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import SMALL, network, pictures
from torch import Tensor

from calotype.config import FoldedConfig, NetworkConfig, TinyConfig
from calotype.evaluate import reconstruct as module
from calotype.evaluate.metrics import psnr, ssim
from calotype.evaluate.reconstruct import LABEL_HEIGHT, Reconstruction, reconstruct
from calotype.pixels import Picture, to_uint8
from calotype.vae import VAE
from calotype.weights.load import Loaded

FOLDED = FoldedConfig(z_channels=4, ch=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1))


def vae_of(config: NetworkConfig) -> VAE:
    return VAE(
        Loaded(
            module=network(config),
            layout="ldm",
            parts=frozenset({"encoder", "decoder"}),
            sha256="0" * 64,
            dtypes=("float32",),
            files=(),
        )
    )


@pytest.fixture(scope="module")
def vae() -> VAE:
    return vae_of(FOLDED)


def picture(height: int, width: int, seed: int = 0, alpha: Tensor | None = None) -> Picture:
    return Picture(pictures(seed, 1, height, width)[0], alpha, ())


def test_figures_by_arithmetic(vae: VAE) -> None:
    photo = picture(20, 30)
    result = reconstruct(vae, photo)
    # 20 x 30 is padded to 24 x 32: 3 x 4 latents of 4 channels
    assert result.numbers_per_pixel == pytest.approx(3 * 4 * 4 / 600)
    assert result.bits_per_pixel == pytest.approx(16 * 3 * 4 * 4 / 600)
    assert torch.equal(result.original, to_uint8(photo.pixels))
    assert result.reconstruction.shape == (3, 20, 30)
    assert result.psnr == psnr(result.original, result.reconstruction)
    assert result.ssim == ssim(result.original, result.reconstruction)


def test_bits_of_the_posterior_by_arithmetic(vae: VAE) -> None:
    photo = picture(16, 24)
    posterior = vae.encode(photo.pixels[None])
    mean, logvar = posterior.moments.double().chunk(2, dim=1)
    nats = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum().item()
    assert reconstruct(vae, photo).kl_bits_per_pixel == pytest.approx(nats / math.log(2) / (16 * 24), rel=1e-5)


def test_it_is_encoding_and_decoding(vae: VAE) -> None:
    photo = picture(16, 24)
    with torch.inference_mode():
        expected = to_uint8(vae.decode(vae.encode(photo.pixels[None]).mode())[0])
    assert torch.equal(reconstruct(vae, photo).reconstruction, expected)


def test_other_networks() -> None:
    result = reconstruct(vae_of(SMALL), picture(16, 24))  # f2
    assert result.numbers_per_pixel == 1.0
    assert result.kl_bits_per_pixel is not None
    result = reconstruct(vae_of(TinyConfig()), picture(16, 24))
    assert result.numbers_per_pixel == 4 / 64
    assert result.kl_bits_per_pixel is None  # no posterior, no rate


@pytest.mark.parametrize("size", [(1, 1), (10, 40), (40, 10), (7, 13)])
def test_pictures_below_the_window_have_no_ssim(size: tuple[int, int], vae: VAE) -> None:
    result = reconstruct(vae, picture(*size))
    assert result.ssim is None
    assert math.isfinite(result.psnr)
    assert result.reconstruction.shape == (3, *size)
    assert result.panel().size == (3 * size[1], size[0] + LABEL_HEIGHT)


def test_the_smallest_picture_with_ssim(vae: VAE) -> None:
    assert reconstruct(vae, picture(11, 11)).ssim is not None


def test_a_seed_repeats_and_differs_from_the_mode(vae: VAE) -> None:
    photo = picture(32, 32)
    seen = [reconstruct(vae, photo, seed=seed).reconstruction for seed in (None, 1, 1, 2)]
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[3])


def test_alpha_is_no_part_of_it(vae: VAE) -> None:
    with_alpha = reconstruct(vae, picture(16, 16, alpha=torch.rand(16, 16)))
    without = reconstruct(vae, picture(16, 16))
    assert with_alpha.psnr == without.psnr
    assert with_alpha.image().mode == "RGB"


def by_hand(before: Tensor, after: Tensor) -> Reconstruction:
    return Reconstruction(
        original=before,
        reconstruction=after,
        psnr=psnr(before, after),
        ssim=None,
        numbers_per_pixel=1.0,
        bits_per_pixel=16.0,
        kl_bits_per_pixel=None,
    )


def test_the_panel_by_hand() -> None:
    before = torch.full((3, 30, 200), 100, dtype=torch.uint8)
    after = before.clone()
    after[0], after[1, :15], after[2] = 110, 90, 255
    panel = np.asarray(by_hand(before, after).panel(4.0)).astype(int)
    assert panel.shape == (30 + module.LABEL_HEIGHT, 600, 3)
    body = panel[module.LABEL_HEIGHT :]
    assert (body[:, :200] == 100).all()
    assert (body[:15, 200:400] == (110, 90, 255)).all()
    # mid-grey 127.5, and four times the difference
    assert np.abs(body[:15, 400:] - (167.5, 87.5, 255)).max() <= 0.5
    assert np.abs(body[15:, 400:, 1] - 127.5).max() <= 0.5
    labels = panel[: module.LABEL_HEIGHT]
    assert all((labels[:, i * 200 : i * 200 + 200] < 128).any() for i in range(3))


def test_labels_that_do_not_fit_are_left_out() -> None:
    zeros = torch.zeros(3, 4, 5, dtype=torch.uint8)
    panel = np.asarray(by_hand(zeros, zeros).panel())
    assert (panel[: module.LABEL_HEIGHT] == 255).all()


def test_an_equal_picture_has_an_infinite_psnr_and_a_grey_difference() -> None:
    same = torch.randint(0, 256, (3, 12, 16), dtype=torch.uint8)
    result = by_hand(same, same)
    assert result.psnr == math.inf
    difference = np.asarray(result.panel(100.0))[module.LABEL_HEIGHT :, 32:]
    assert (difference == 128).all()
