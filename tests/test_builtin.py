"""The weights that ship."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import calotype
from calotype.latents import PerChannel
from calotype.vae import BUILTIN


@pytest.fixture(scope="module")
def vae() -> calotype.VAE:
    return calotype.load(device="cpu")


def test_they_are_small() -> None:
    assert BUILTIN.stat().st_size <= 12_000_000


def test_they_say_how_they_were_made(vae: calotype.VAE) -> None:
    facts = vae.loaded.training()
    assert facts["held_out_psnr"] > 30
    assert facts["pictures"] > 8_000
    parts = [facts, facts["start"], facts["start"]["start"]]
    assert [part["recipe"]["name"] for part in parts] == ["builtin-adversarial", "builtin-finish", "builtin"]
    assert all(part["steps"] == part["recipe"]["steps"] and part["recipe"]["kl_weight"] > 0 for part in parts)
    assert "start" not in parts[-1]


def test_the_choice_is_the_best_lpips_near_the_first_psnr(vae: calotype.VAE) -> None:
    first, *others = vae.loaded.training()["choice"]["table"]
    (own,) = (row for row in others if row["sha256"] == vae.sha256)
    assert own["psnr"] >= first["psnr"] - 0.3
    assert own["lpips_alex"] == min(row["lpips_alex"] for row in (first, *others))
    assert own["lpips_vgg"] < 0.9 * first["lpips_vgg"]


def test_their_format_is_measured_per_channel(vae: calotype.VAE) -> None:
    format_ = vae.latent_format
    assert isinstance(format_, PerChannel)
    assert len(format_.mean) == len(format_.std) == vae.latent_channels == 16
    assert all(0.01 < std < 100 for std in format_.std)


def test_they_are_stored_in_float16_and_run_in_float32(vae: calotype.VAE) -> None:
    assert vae.loaded.dtypes == ("float16",)
    assert next(vae.module.parameters()).dtype == torch.float32


def test_the_posterior_is_narrow_and_used(vae: calotype.VAE) -> None:
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    posterior = vae.encode(x)
    assert 1e-4 < posterior.std.mean().item() < 0.5
    drawn = posterior.sample(torch.Generator().manual_seed(0))
    assert not torch.equal(drawn, posterior.mode())


def test_a_pixel_sees_sixteen_latents_to_each_side(vae: calotype.VAE) -> None:
    z = torch.randn(1, 16, 4, 40, generator=torch.Generator().manual_seed(0))
    changed = z.clone()
    changed[..., -1] += 3
    difference = (vae.decode(z) - vae.decode(changed)).abs().amax((0, 1, 2))
    reach = 8 * (39 - 16)
    assert difference[:reach].max() <= 1e-5  # tiles reach further, but with rounding errors only
    assert difference[reach + 8 * 6 :].max() > 1e-3


def test_a_latent_sees_nine_latents_of_pixels_to_each_side(vae: calotype.VAE) -> None:
    x = torch.rand(1, 3, 32, 8 * 24, generator=torch.Generator().manual_seed(0)) - 0.5
    changed = x.clone()
    changed[..., -8:] += 0.5
    difference = (vae.encode(x).mode() - vae.encode(changed).mode()).abs().amax((0, 1, 2))
    assert difference[: 23 - 9].max() <= 1e-5
    assert difference[-2:].max() > 1e-2


@pytest.mark.slow
def test_they_reach_the_mark_on_kodak(vae: calotype.VAE, shared: Path) -> None:
    paths = sorted((shared / "photos" / "kodak").glob("*.png"))
    assert len(paths) == 24
    scores = [calotype.reconstruct(vae, calotype.read_picture(path)).psnr for path in paths]
    assert sum(scores) / len(scores) >= 30.5
