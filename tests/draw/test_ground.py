"""The ground of drawings: what is near to plain white becomes it, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import drawkit
import pytest
import torch
from support import fill
from torch import Tensor
from torch.distributions import Normal

from calotype import VAE, load
from calotype.draw.ground import Ground, white_ground
from calotype.draw.model import DrawingModel
from calotype.draw.pipeline import Drawer, Settings
from calotype.draw.sampler import Keep, sample
from calotype.draw.schedule import Flow


@pytest.fixture(scope="module")
def vae() -> VAE:
    return load()


def test_white_is_what_the_vae_decodes_to_white(vae: VAE) -> None:
    ground = white_ground(vae, 0.1, 40, 56)
    assert ground.latents.shape == (1, 16, 5, 7)
    decoded = vae.decode(vae.latent_format.to_raw(ground.latents))
    assert (decoded > 1 - 2 * 4 / 255).all()  # four levels of 255, over -1 to 1


def test_what_is_likely_ground_becomes_it() -> None:
    """By the odds of two normal distributions, in float64."""
    torch.manual_seed(0)
    white, std = torch.randn(1, 16, 6, 6, dtype=torch.float64), 0.1
    clean = white + torch.linspace(0, 0.5, 36, dtype=torch.float64).reshape(6, 6) * torch.randn(2, 16, 6, 6).double()
    near, broad = (Normal(white, scale).log_prob(clean).sum(1, keepdim=True).exp() for scale in (std, 1.0))
    likely = near / (near + broad)
    made = Ground(latents=white, std=std).settled(clean)
    torch.testing.assert_close(made, likely * white + (1 - likely) * clean)
    assert (likely > 0.99).any()
    assert (likely < 0.01).any()


def test_errors_on_ground_vanish_and_pictures_stay() -> None:
    torch.manual_seed(1)
    white = torch.randn(1, 16, 8, 8)
    ground = Ground(latents=white, std=0.1)
    off = white + 0.1 * torch.randn(3, 16, 8, 8)
    assert (ground.settled(off) - white).abs().max() < 1e-3
    picture = white + torch.randn(3, 16, 8, 8)
    assert torch.equal(ground.settled(picture), picture)


@pytest.mark.parametrize("sampler", ["euler", "dpm++"])
def test_a_drawing_ends_on_its_ground(sampler: str) -> None:
    """Of a network that is off by a little everywhere; what is kept is kept as it is."""
    torch.manual_seed(2)
    white, noise = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    aim = white.clone()
    aim[..., 2:] += 2
    wrong = aim + 0.1 * torch.randn(aim.shape)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return (x - wrong) / t[:, None, None, None]

    held = Ground(latents=white, std=0.1).held(network)
    made = sample(held, noise, Flow(), steps=4, sampler=sampler)  # type: ignore[arg-type]
    torch.testing.assert_close(made[..., :2], white[..., :2], atol=1e-4, rtol=0)
    torch.testing.assert_close(made[..., 2:], wrong[..., 2:], atol=1e-4, rtol=0)
    kept = Keep(latents=wrong, mask=torch.zeros(4, 4))
    assert torch.equal(sample(held, noise, Flow(), steps=4, sampler=sampler, keep=kept), wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(96, 96), (84, 92)])
def test_a_model_that_knows_of_its_ground_draws_it(vae: VAE, size: tuple[int, int]) -> None:
    """A network that has learned nothing gives back its sketch; that of white, a little off, becomes white."""
    config = replace(drawkit.SIZES, vae=vae.sha256, size=96, sketch_noise=0.0, sketch_std=0.1)
    model = fill(DrawingModel(config, drawkit.tokenizer()), 0)
    white = white_ground(vae, 0.1, 96, 96).latents[0]
    off = torch.tensor([0.1, -0.1]).repeat(8)
    with torch.no_grad():
        for p in (*model.denoiser.out[-1].parameters(), *list(model.text.sketch.parameters())[-2:]):
            p.zero_()
        model.text.sketch[-2].bias.copy_((white[:, 6, 6] + off)[:, None].expand(16, 4).flatten())

    def drawn(std: float) -> Tensor:
        """Latents in the middle; even there white is not quite the same everywhere."""
        model.config = replace(config, ground_std=std)
        made = Drawer(model, vae).draw("red circle", 0, Settings(steps=2, guidance=1.0, size=size, sampler="euler"))
        return vae.latent_format.to_model(made.tensor[None])[0, :, 5:7, 5:7]

    middle = white[:, 5:7, 5:7]
    torch.testing.assert_close(drawn(0.0), middle + off[:, None, None], atol=0.03, rtol=0)
    torch.testing.assert_close(drawn(0.1), middle, atol=0.03, rtol=0)
