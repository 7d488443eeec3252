"""The built-in network: where pixels go, and how far they reach."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support import fill, names, pictures, same_tensors

from calotype.families import make_network
from calotype.families.folded.config import FoldedConfig
from calotype.families.folded.network import FOLD, FoldedAutoencoder
from calotype.latents import PerChannel
from calotype.posterior import DiagonalGaussian
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

CONFIG = FoldedConfig(z_channels=6, ch=(16, 24), encoder_blocks=(1, 2), decoder_blocks=(2, 1))


def folded(seed: int = 0) -> FoldedAutoencoder:
    module = fill(make_network(CONFIG), seed, gain=0.7)
    assert isinstance(module, FoldedAutoencoder)
    return module


@pytest.mark.parametrize("size", [(8, 8), (16, 40), (72, 24)])
def test_a_latent_stands_for_eight_by_eight_pixels(size: tuple[int, int]) -> None:
    module = folded()
    posterior = module.encode(pictures(0, 2, *size))
    assert isinstance(posterior, DiagonalGaussian)
    assert posterior.mode().shape == (2, 6, size[0] // 8, size[1] // 8)
    assert module.decode(posterior.mode()).shape == (2, 3, *size)


def test_pixels_are_folded_by_four() -> None:
    assert FOLD == 4
    x = torch.arange(3 * 8 * 8.0).reshape(1, 3, 8, 8)
    folded_pixels = torch.nn.functional.pixel_unshuffle(x, FOLD)
    for c, i, j in ((0, 0, 0), (1, 2, 3), (2, 3, 1)):
        assert torch.equal(folded_pixels[0, 16 * c + 4 * i + j], x[0, c, i::4, j::4])


def test_the_blocks_of_a_fresh_network_are_near_the_identity() -> None:
    module = make_network(FoldedConfig())
    assert isinstance(module, FoldedAutoencoder)
    x = torch.randn(1, 96, 8, 8)
    with torch.inference_mode():
        assert (module.encoder.quarter(x) - x).std() < 0.1


def test_a_latent_depends_on_a_bounded_neighbourhood() -> None:
    module = folded()
    x = pictures(1, 1, 256, 64)
    other = x.clone()
    other[:, :, :8] = -other[:, :, :8]
    difference = (module.encode(x).mode() - module.encode(other).mode()).abs().amax((0, 1, 3))
    # conv_in and one block at a quarter (3 x 4 pixels), then two blocks at an eighth (4 x 8 pixels): 44 pixels
    assert difference[0] > 0
    assert difference[1 + 6 :].max() == 0
    z = torch.randn(1, 6, 32, 4)
    changed = z.clone()
    changed[:, :, 0] += 1
    reach = (module.decode(z) - module.decode(changed)).abs().amax((0, 1, 3))
    assert reach[0] > 0
    assert reach[8 * 8 :].max() == 0


def test_gradients_reach_every_parameter() -> None:
    module = folded().requires_grad_(True)
    result, posterior = None, module.encode(pictures(0, 1, 32, 32))
    result = module.decode(posterior.sample())
    (result.square().sum() + posterior.kl().sum()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_it_comes_back_from_a_file(tmp_path: Path) -> None:
    module = folded(3)
    format_ = PerChannel(name="builtin", channels=6, mean=(0.5,) * 6, std=(2.0,) * 6)
    (path,) = save_weights(module, tmp_path / "x.safetensors", layout="ldm", format_=format_, metadata={"steps": "3"})
    loaded = load_weights(path)
    assert loaded.layout == "calotype"
    assert loaded.module.config == CONFIG
    assert same_tensors(loaded.module, module)
    assert loaded.format == format_
    assert loaded.metadata is not None
    assert loaded.metadata["steps"] == "3"
    assert json.loads(loaded.metadata["calotype_config"])["kind"] == "folded"
    assert names(tmp_path) == ["x.safetensors"]
