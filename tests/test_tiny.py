"""The TAESD family, against diffusers and with real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import taekit
import torch
from PIL import Image
from support import assert_close, fill, import_diffusers, one_sentence, pictures, same_tensors, tensors_of, tiny, write
from torch import Tensor

from calotype.errors import UsageError, WeightsError
from calotype.families.tiny.config import TinyConfig
from calotype.families.tiny.network import Block, TinyAutoencoder
from calotype.latents import same_as_model
from calotype.posterior import Point
from calotype.vae import load
from calotype.weights.load import load_weights

SIDES = ("encoder", "decoder")
TAESD, TAESD3, TAEF2 = TinyConfig(), TinyConfig(z_channels=16), TinyConfig(z_channels=32, pool=True)


def halves(module: TinyAutoencoder) -> dict[str, dict[str, Tensor]]:
    """The two published files: keys without encoder. and decoder."""
    result: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for key, tensor in tensors_of(module).items():
        side, _, rest = key.partition(".")
        result[side][rest] = tensor
    return result


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("config", [TAESD, TAESD3], ids=["taesd", "taesd3"])
def test_it_agrees_with_diffusers(config: TinyConfig, seed: int, tmp_path: Path) -> None:
    theirs: Any = fill(import_diffusers().AutoencoderTiny(latent_channels=config.z_channels), seed, gain=0.7)
    theirs.save_pretrained(tmp_path)
    loaded = load_weights(tmp_path)
    assert loaded.layout == "taesd"
    assert loaded.module.config == config
    height, width = ((64, 64), (72, 40), (40, 24))[seed]
    x = pictures(seed, 2, height, width)
    z = 3 * torch.randn(2, config.z_channels, height // 8, width // 8)
    with torch.inference_mode():
        assert_close(loaded.module.encode(x).mode(), theirs.encode(x).latents)
        assert_close(loaded.module.decode(z), theirs.decode(z).sample)


@pytest.mark.parametrize("config", [TAESD, TAESD3, TAEF2], ids=["taesd", "taesd3", "taef2"])
@pytest.mark.parametrize("kind", [".pth", ".safetensors"])
def test_the_published_halves_are_read_together_and_alone(config: TinyConfig, kind: str, tmp_path: Path) -> None:
    module = tiny(config, 4)
    for side, tensors in halves(module).items():
        path = tmp_path / f"taesd_{side}{kind}"
        torch.save(tensors, path) if kind == ".pth" else write(path, tensors)
        alone = load_weights(path)
        assert alone.parts == {side}
        assert alone.module.config == config
        assert alone.module.state_dict().keys() == {f"{side}.{key}" for key in tensors}
    both = load_weights(tmp_path)
    assert both.parts == {"encoder", "decoder"}
    assert both.module.config == config
    assert same_tensors(both.module, module)


@pytest.mark.parametrize("form", ["{side}.{key}", "taesd_{side}.{key}"])
def test_both_halves_in_one_file_are_read(form: str, tmp_path: Path) -> None:
    module = tiny(TAESD, 5)
    tensors = {form.format(side=s, key=k): t for s, half in halves(module).items() for k, t in half.items()}
    tensors |= {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    assert same_tensors(load_weights(write(tmp_path / "x.safetensors", tensors)).module, module)


def test_its_parameters_are_counted() -> None:
    for config, encoder, decoder in ((TAESD, 1_222_532, 1_222_531), (TAEF2, None, None)):
        module = tiny(config)
        counts = [sum(p.numel() for p in half.parameters()) for half in (module.encoder, module.decoder)]
        if encoder:
            assert counts == [encoder, decoder]
        else:  # 1.34 million each way
            assert [round(n / 1e6, 2) for n in counts] == [1.34, 1.34]


def test_latents_are_softly_limited_to_three() -> None:
    module = tiny()
    z = torch.randn(1, 4, 4, 4)
    assert torch.allclose(module.decode(1e6 * z), module.decode(1e7 * z))
    assert torch.allclose(module.decoder[0](torch.tensor([0.0, 3.0, -1e9])), torch.tensor([0.0, 2.284783, -3.0]))


def test_the_pooled_branch_is_added_before_the_convolutions() -> None:
    block: Any = fill(Block(64, pool=True), 0, gain=0.7)
    x = torch.randn(2, 64, 5, 6)
    norm = block.pool[1]
    assert (norm.num_groups, norm.num_channels) == (4, 256)
    y = x + block.pool[3](torch.relu(norm(block.pool[0](x))))
    assert torch.allclose(block(x), torch.relu(block.conv(y) + y), atol=1e-6)


def test_pixels_go_from_minus_one_to_one() -> None:
    module = tiny()
    x = pictures(0, 1, 16, 16)
    posterior = module.encode(x)
    assert isinstance(posterior, Point)
    assert torch.equal(posterior.mode(), module.encoder((x + 1) / 2))
    assert torch.equal(module.decode(posterior.mode()), module.decoder(posterior.mode()) * 2 - 1)


def test_real_taef2_weights_reconstruct_a_picture(shared: Path) -> None:
    folder = shared / "weights" / "taef2"
    if not folder.is_dir():
        pytest.skip("its weights are not here")
    loaded = load_weights(folder)
    assert loaded.layout == "taesd"
    assert loaded.module.config == TAEF2
    assert loaded.dtypes == ("float16",)
    assert loaded.format == same_as_model("flux2", 32)
    for side in ("encoder", "decoder"):
        alone = load_weights(folder / f"taef2_{side}.pth")
        assert alone.parts == {side}
        assert alone.module.config == TAEF2
    module = loaded.module.float()
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 5) * 2 - 1, size=(96, 80), mode="bicubic").clamp(-1, 1)
    with torch.inference_mode():
        z = module.encode(x).mode()
        again = module.decode(z)
        assert torch.equal(z, module.encode(x).mode())
        assert torch.equal(again, module.decode(z))
    assert z.shape == (1, 32, 12, 10)
    model = loaded.format.to_model(z)
    assert model.shape == (1, 128, 6, 5)
    assert torch.equal(loaded.format.to_raw(model), z)
    psnr = 10 * torch.log10(4 / (again.clamp(-1, 1) - x).square().mean())
    assert psnr > 30  # smooth colours: a wrong block, clamp or range is far below


PUBLISHED = {
    "taeqi2_1": TinyConfig(z_channels=64, in_channels=4, variant="f16"),
    "taesana": TinyConfig(z_channels=32, variant="f32"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_larger_ones_are_what_their_project_computes(name: str, tmp_path: Path) -> None:
    config, given = PUBLISHED[name], taekit.tensors(name)
    module = load_weights(write(tmp_path / "x.safetensors", given)).module
    assert module.config == config
    f, channels = config.factor, config.picture_channels
    for seed, (h, w) in enumerate(((3, 2), (1, 5))):
        x = pictures(seed, 2, h * f, w * f)
        x = torch.cat([x, x.flip(3)], 1)[:, :channels]
        z = 3 * torch.randn(2, config.z_channels, h, w)
        with torch.inference_mode():
            assert_close(module.encode(x).mode(), taekit.encode(name, given, (x + 1) / 2))
            assert_close(module.decode(z), taekit.decode(name, given, z) * 2 - 1)


@pytest.mark.parametrize("form", ["{side}.{key}", "taesd_{side}.{key}", "{side}.layers.{shifted}", "halves"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_larger_ones_are_read_in_every_form(name: str, form: str, tmp_path: Path) -> None:
    given = taekit.tensors(name)
    parts = {side: {k.partition(".")[2]: t for k, t in given.items() if k.startswith(side)} for side in SIDES}
    if form == "halves":
        for side, tensors in parts.items():
            path = tmp_path / f"{name}_{side}.pth"
            torch.save(tensors, path)
            alone = load_weights(path)
            assert (alone.parts, alone.module.config) == ({side}, PUBLISHED[name])
        loaded = load_weights(tmp_path)
    else:
        named = {}
        for side, tensors in parts.items():
            for key, tensor in tensors.items():
                index, _, rest = key.partition(".")
                shifted = f"{int(index) - (side == 'decoder')}.{rest}"  # there the clamp is not of its list
                named[form.format(side=side, key=key, shifted=shifted)] = tensor
        loaded = load_weights(write(tmp_path / "x.safetensors", named))
    assert loaded.module.config == PUBLISHED[name]
    assert loaded.layout == "taesd"
    assert all(torch.equal(value, given[key]) for key, value in loaded.module.state_dict().items())
    imitated = {"taeqi2_1": "qwen-image-2.1", "taesana": "sana"}[name]
    assert loaded.format == same_as_model(imitated, PUBLISHED[name].z_channels)


@pytest.mark.slow
def test_pictures_of_four_channels(tmp_path: Path) -> None:
    """Alpha goes in and comes out, whatever the variant."""
    for config in (TinyConfig(in_channels=4), PUBLISHED["taeqi2_1"]):
        vae = load(write(tmp_path / f"{config.variant}.safetensors", tensors_of(tiny(config, 3))), device="cpu")
        assert vae.picture_channels == 4
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 33, 4), dtype=np.uint8))
        latents = vae.encode_image(image)
        assert latents.alpha is None
        again = vae.decode_image(latents)
        assert (again.mode, again.size) == ("RGBA", (33, 21))


def test_blocks_of_pixels_have_all_their_channels(tmp_path: Path) -> None:
    given = taekit.tensors("taeqi2_1")
    given["encoder.1.weight"] = given["encoder.1.weight"][:, :15].contiguous()
    given["decoder.19.weight"], given["decoder.19.bias"] = given["decoder.19.weight"][:15].contiguous(), torch.zeros(15)
    with pytest.raises(WeightsError, match="15 channels of blocks of 2x2 pixels") as error:
        load_weights(write(tmp_path / "x.safetensors", given))
    one_sentence(str(error.value))


@pytest.mark.parametrize(("values", "message"), [({"variant": "f64"}, "f8, f16, f32"), ({"pool": True}, "pooled")])
def test_networks_that_there_are_not(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TinyConfig(**{"variant": "f16", **values})
