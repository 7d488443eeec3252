"""TAEHV for one picture, against the arithmetic of its project over frames."""

from __future__ import annotations

from pathlib import Path

import pytest
import taekit
import torch
from support import assert_close, fill, pictures, write

from calotype.engine.run import EngineName
from calotype.families import make_network
from calotype.families.taehv.config import TaehvConfig
from calotype.families.taehv.network import VideoTinyAutoencoder
from calotype.pixels import pad
from calotype.posterior import Point
from calotype.vae import VAE, load
from calotype.weights.load import load_weights

CONFIGS = {"taew2_1": TaehvConfig(), "taew2_2": TaehvConfig(z_channels=48)}


@pytest.fixture(scope="module", params=CONFIGS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A published network's file, with random weights."""
    name = request.param
    return name, write(tmp_path_factory.mktemp(name) / "x.safetensors", taekit.tensors(name))


@pytest.mark.slow
def test_it_is_what_its_project_makes_of_one_picture(files: tuple[str, Path]) -> None:
    name, path = files
    loaded = load_weights(path)
    module, given = loaded.module, taekit.tensors(name)
    assert isinstance(module, VideoTinyAutoencoder)
    assert module.config == CONFIGS[name]
    f = module.config.factor
    for seed, (h, w) in enumerate(((4, 6), (5, 3), (1, 1))):
        x = pictures(seed, 2, h * f, w * f)
        z = 3 * torch.randn(2, module.config.z_channels, h, w, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            posterior = module.encode(x)
            assert isinstance(posterior, Point)
            assert_close(posterior.mode(), taekit.encode(name, given, (x + 1) / 2))
            assert_close(module.decode(z), taekit.decode(name, given, z) * 2 - 1)


@pytest.mark.slow
def test_two_frames_tell(files: tuple[str, Path]) -> None:
    """The frame before counts: with zeros in its place, or with the first frame taken, another picture comes."""
    name, path = files
    module, given = load_weights(path).module, taekit.tensors(name)
    z = torch.randn(1, module.config.z_channels, 3, 3)
    frames = taekit.run(name, "decoder", given, [z])
    assert all((frames[-1] - other).abs().max() > 0.01 for other in frames[:-1])
    for side, at in (("encoder", 4), ("decoder", 15)):
        changed = dict(given)
        changed[f"{side}.{at}.conv.0.weight"] = given[f"{side}.{at}.conv.0.weight"].clone()
        changed[f"{side}.{at}.conv.0.weight"][:, 64:] = 0
        f = module.config.factor
        if side == "decoder":
            assert (taekit.decode(name, changed, z) - frames[-1]).abs().max() > 0.01
        else:
            x = pictures(0, 1, f, f)
            assert (taekit.encode(name, changed, x) - taekit.encode(name, given, x)).abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["reference", "auto", "fused"])
def test_a_picture_of_any_size_goes_through_the_engine(engine: EngineName, files: tuple[str, Path]) -> None:
    _, path = files
    vae = VAE(load_weights(path), engine=engine)
    x = pictures(3, 1, 37, 50)
    z = vae.encode(x).mode()
    f = vae.factor
    assert z.shape == (1, vae.latent_channels, -(-37 // f), -(-50 // f))
    with torch.inference_mode():
        whole = vae.module.decode(z)
        assert_close(z, vae.module.encode(pad(x, f)[0]).mode())
    assert_close(vae.decode(z, (37, 50), clamp=False), whole[:, :, :37, :50])
    least = vae.engine.plan("decode", *whole.shape[2:], memory="20MB").peak
    assert_close(torch.cat(list(vae.decode_rows(z[0], memory=least)), 1), whole[0].clamp(-1, 1))


@pytest.mark.slow
def test_pixels_are_limited_as_its_project_limits_them(files: tuple[str, Path]) -> None:
    name, path = files
    given = {key: 2 * value if key == "decoder.22.weight" else value for key, value in taekit.tensors(name).items()}
    vae = load(write(path.with_name("loud.safetensors"), given), device="cpu")
    z = torch.randn(1, vae.latent_channels, 2, 2)
    expected = taekit.decode(name, given, z).clamp(0, 1) * 2 - 1
    assert (expected.abs() == 1).any()
    assert_close(vae.decode(z), expected)


def test_of_its_weights_a_picture_needs_few(files: tuple[str, Path]) -> None:
    name, path = files
    module = load_weights(path).module
    held = sum(value.numel() for value in module.state_dict().values())
    assert held < 0.8 * sum(value.numel() for value in taekit.tensors(name).values())
    for key, value in module.state_dict().items():
        assert value.untyped_storage().nbytes() == value.nbytes, key


def test_gradients_reach_every_weight() -> None:
    module = fill(make_network(TaehvConfig()), 0, gain=0.7)
    module.requires_grad_(True)
    z = module.encode(pictures(0, 1, 16, 16)).mode()
    module.decode(z).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
