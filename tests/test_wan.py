"""The autoencoders of Wan and Qwen-Image, for one picture, against diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import assert_close, import_diffusers, one_sentence, taken_over, write
from wankit import FULL, VARIANTS, random, theirs

from calotype.errors import LatentsError, UsageError, WeightsError
from calotype.families import make_network, wan
from calotype.families.wan.config import WanConfig
from calotype.families.wan.presets import PRESETS
from calotype.vae import load
from calotype.weights.detect import detect
from calotype.weights.load import load_weights


def agree(ours: Any, module: Any, config: WanConfig, height: int, width: int) -> None:
    """Moments and pictures of so many latents, as diffusers' class has them.

    Its encoder is called without a cache of frames, with which its attention can't be called; the rest is as `_encode`.
    """
    generator = torch.Generator().manual_seed(5)
    f = config.factor
    x = torch.rand(2, config.in_channels, height * f, width * f, generator=generator) * 2 - 1
    z = torch.randn(2, config.z_channels, height, width, generator=generator)
    with torch.inference_mode():
        patches = torch.nn.functional.pixel_unshuffle(x, config.patch)
        if config.patch > 1:  # theirs are column by column
            patches = patches.unflatten(1, (-1, 2, 2)).transpose(2, 3).flatten(1, 3)
        moments = module.quant_conv(module.encoder(patches[:, :, None]))[:, :, 0]
        assert_close(ours.quant_conv(ours.encoder(x)), moments)
        if not config.attn_levels:
            assert torch.equal(module._encode(x[:, :, None])[:, :, 0], moments)
        picture = torch.nn.functional.pixel_shuffle(module.decode(z[:, :, None]).sample[:, :, 0], config.enlarges)
        made = ours.decode(z)
        assert (made.abs() > 1).any() or made.numel() < 1000  # theirs is cut off, ours is not
        assert_close(made.clamp(-1, 1), picture)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3), (1, 1)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_agrees_with_diffusers(variant: str, height: int, width: int, tmp_path: Path) -> None:
    module = theirs(variant)
    module.save_pretrained(tmp_path)
    loaded = load_weights(tmp_path)
    config = VARIANTS[variant][2]
    assert loaded.module.config == config
    agree(loaded.module, module, config, height, width)


@pytest.mark.parametrize("variant", FULL)
def test_published_tensors_are_those_of_diffusers(variant: str) -> None:
    name, numbers = FULL[variant]
    with torch.device("meta"):
        theirs = {k: tuple(v.shape) for k, v in getattr(import_diffusers(), name)(**numbers).state_dict().items()}
        told = detect(theirs)
        ours = {key: tuple(value.shape) for key, value in make_network(told.config).state_dict().items()}
    if f"{variant}-vae" in PRESETS:
        assert told.config == PRESETS[f"{variant}-vae"].config
    assert ours == {key: flat(theirs[name]) for key, name in told.keys.items()}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in theirs.keys() - told.keys.values()} <= {"time_conv"}


def flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a kernel without time, or of a norm's gamma."""
    if len(shape) == 5:
        return (*shape[:2], *shape[3:])
    return shape[:1] if shape[1:] in ((1, 1), (1, 1, 1)) else shape


@pytest.mark.parametrize("engine", ["reference", "winograd"])
@pytest.mark.parametrize("variant", ["wan-2.1", "qwen-image-layered", "wan-2.2", "qwen-image-2.1"])
def test_pictures_go_through_the_engine(variant: str, engine: Any, tmp_path: Path) -> None:
    """Of a size that it can't take: padded, and cropped back; alpha goes in and comes out."""
    theirs(variant).save_pretrained(tmp_path)
    vae = load(tmp_path, engine=engine, device="cpu")
    channels = VARIANTS[variant][2].in_channels
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(0, 256, (21, 27, 4), generator=generator, dtype=torch.uint8)
    picture = Image.fromarray(values.numpy(), "RGBA")
    if channels == 3:
        picture = picture.convert("RGB")
    picture.save(tmp_path / "picture.png")
    latents = vae.encode_image(tmp_path / "picture.png")
    f = vae.factor
    assert latents.tensor.shape == (vae.latent_channels, -(-21 // f), -(-27 // f))
    made = vae.decode_image(latents)
    assert (made.size, made.mode) == ((27, 21), "RGBA" if channels == 4 else "RGB")
    with torch.inference_mode():
        expected = vae.module.decode(latents.to_raw().tensor[None])[0, :, :21, :27].clamp(-1, 1)
    found = torch.from_numpy(np.array(made)).permute(2, 0, 1).float() / 127.5 - 1
    assert (found - expected).abs().max() <= 0.51 / 127.5


def test_an_opaque_alpha_is_added(tmp_path: Path) -> None:
    theirs("qwen-image-2.1").save_pretrained(tmp_path)
    vae = load(tmp_path, device="cpu")
    values = torch.randint(0, 256, (16, 24, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8).numpy()
    for mode, array in (("rgb", values), ("rgba", np.dstack([values, np.full((16, 24), 255, np.uint8)]))):
        Image.fromarray(array).save(tmp_path / f"{mode}.png")
    a, b = (vae.encode_image(tmp_path / f"{mode}.png").tensor for mode in ("rgb", "rgba"))
    assert torch.equal(a, b)


def test_frames_of_a_video_are_refused(tmp_path: Path) -> None:
    theirs("wan-2.1").save_pretrained(tmp_path)
    vae = load(tmp_path, device="cpu")
    for call, shape in ((vae.encode, (1, 3, 5, 8, 8)), (vae.decode, (1, 16, 3, 2, 2))):
        with pytest.raises(UsageError, match=r"one frame after another, as (pixels|latents)\[:, :, 0\]") as caught:
            call(torch.zeros(shape))
        one_sentence(str(caught.value))
    assert vae.decode(torch.zeros(1, 16, 1, 2, 2)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("any_vae", [False, True])
def test_latents_of_another_space_are_refused_by_both_names(any_vae: bool, tmp_path: Path) -> None:
    vaes = {}
    for variant in ("wan-2.1", "wan-2.2", "qwen-image-2.1"):
        theirs(variant).save_pretrained(tmp_path / variant)
        vaes[variant] = load(tmp_path / variant, device="cpu")
    Image.new("RGB", (32, 24), (200, 100, 0)).save(tmp_path / "picture.png")
    latents = vaes["wan-2.1"].encode_image(tmp_path / "picture.png")
    for variant, name in (("wan-2.2", "wan2.2"), ("qwen-image-2.1", "qwen-image-2.1")):
        with pytest.raises(LatentsError, match=rf"format 'wan2\.1', with 16 channels, .*those of '{name}'") as caught:
            vaes[variant].decode_image(latents, any_vae=any_vae)
        one_sentence(str(caught.value))


def test_a_decoder_alone_decodes(tmp_path: Path) -> None:
    module = theirs("wan-2.1")
    tensors = {k: v for k, v in module.state_dict().items() if k.startswith(("decoder", "post_quant"))}
    vae = load(write(tmp_path / "x.safetensors", tensors), device="cpu")
    z = torch.randn(1, 16, 3, 2)
    assert_close(vae.decode(z).clamp(-1, 1), module.decode(z[:, :, None]).sample[:, :, 0])
    with pytest.raises(WeightsError, match="encoder") as caught:
        vae.encode(torch.zeros(1, 3, 8, 8))
    one_sentence(str(caught.value))


@pytest.mark.parametrize("variant", ["wan-2.1", "qwen-image", "qwen-image-2.1"])
def test_diffusers_clamps_and_the_family_says_so(variant: str) -> None:
    module = theirs(variant)
    module.decoder.conv_out.weight.mul_(50)
    assert module.decode(torch.ones(1, module.config.z_dim, 1, 2, 2)).sample.abs().max() == 1
    assert wan.FAMILY.clamps


@pytest.mark.slow
@pytest.mark.parametrize("variant", FULL)
def test_it_agrees_at_full_size(variant: str) -> None:
    name, numbers = FULL[variant]
    module = random(getattr(import_diffusers(), name)(**numbers), 1)
    ours: Any = taken_over(module)
    if f"{variant}-vae" in PRESETS:
        assert ours.config == PRESETS[f"{variant}-vae"].config
    agree(ours, module, ours.config, 6, 5)
