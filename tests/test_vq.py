"""The VQ family, against diffusers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import assert_close, fill, import_diffusers, one_sentence, pictures
from vqkit import AMUSED, F4, MOVQ, SMALL, latents, reference

import calotype
from calotype.engine import plan as plans
from calotype.errors import UsageError
from calotype.families import config_from_dict, make_network
from calotype.families.vq.config import VqConfig
from calotype.families.vq.presets import MOVQ as KANDINSKY, VQ_F4, VQ_F8, VQ_F16
from calotype.posterior import Point
from calotype.vae import VAE
from calotype.weights.detect import detect
from calotype.weights.save import save_weights

SIZES = [(3, 5), (4, 2), (1, 3)]  # rows and columns of latents


def compare(vae: VAE, theirs: Any, height: int, width: int, as_they_are: VAE, *, engine: bool = True) -> None:
    """The network and, if asked, the engine; latents quantised and not."""
    x = pictures(height, 2, height * vae.factor, width * vae.factor)[:, : vae.picture_channels]
    z = latents(theirs, height, 2, height, width)
    with torch.inference_mode():
        encoded, decoded = theirs.encode(x).latents, theirs.decode(z).sample
        plain = theirs.decode(z, force_not_quantize=True).sample if not theirs.config.lookup_from_codebook else None
        assert_close(vae.module.encode(x).mode(), encoded)
        assert_close(vae.module.decode(z), decoded)
        if plain is not None:
            assert (plain - decoded).abs().max() > 1e-2, "quantising changes nothing"
            assert_close(as_they_are.module.decode(z), plain)
        if engine:
            assert_close(vae.encode(x).mode(), encoded)
            assert_close(vae.decode(z, clamp=False), decoded)
            if plain is not None:
                assert_close(as_they_are.decode(z, clamp=False), plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_it_agrees_with_diffusers(name: str, tmp_path: Path) -> None:
    theirs = reference(SMALL[name])
    theirs.save_pretrained(tmp_path)
    vae = calotype.load(tmp_path, device="cpu")
    as_they_are = calotype.load(tmp_path, device="cpu", choices={"quantize": False})
    assert vae.loaded.layout == "diffusers"
    assert isinstance(vae.config, VqConfig)
    for height, width in SIZES:
        compare(vae, theirs, height, width, as_they_are, engine=height == 3)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [F4, MOVQ], ids=["f4", "movq"])
def test_it_agrees_with_diffusers_at_full_size(fields: dict[str, Any], tmp_path: Path) -> None:
    theirs = reference(fields)
    theirs.save_pretrained(tmp_path)
    vae = calotype.load(tmp_path, device="cpu")
    as_they_are = calotype.load(tmp_path, device="cpu", choices={"quantize": False})
    compare(vae, theirs, 9, 14, as_they_are)


@pytest.mark.parametrize(
    ("fields", "config"),
    [
        (F4, VQ_F4),
        (MOVQ, KANDINSKY),
        (MOVQ | {"norm_type": "group"}, VQ_F8),
        (
            AMUSED,
            VqConfig(ch_mult=(1, 2, 2, 4, 6), embed_dim=64, mid_attention=False, lookup_from_codebook=True),
        ),
    ],
    ids=["f4", "movq", "f8", "amused"],
)
def test_the_published_networks_have_the_tensors_of_diffusers(fields: dict[str, Any], config: VqConfig) -> None:
    from calotype.families.vq.names import to_diffusers

    with torch.device("meta"):
        theirs = import_diffusers().VQModel(**fields).state_dict()
        ours = make_network(config).state_dict()
    levels = len(config.channels)
    renamed = {to_diffusers(key, levels): value for key, value in ours.items()}
    assert renamed.keys() == theirs.keys()
    assert all(renamed[key].numel() == value.numel() for key, value in theirs.items())
    told = detect({key: tuple(value.shape) for key, value in theirs.items()}).config
    assert told == replace(config, lookup_from_codebook=False)


def test_the_defaults_are_vq_f4() -> None:
    assert VqConfig() == VQ_F4
    assert [one.factor for one in (VQ_F4, VQ_F8, VQ_F16)] == [4, 8, 16]
    assert [one.z_channels for one in (VQ_F4, VQ_F8, VQ_F16, KANDINSKY)] == [3, 4, 8, 4]


def small(**more: Any) -> Any:
    """A network of two levels."""
    return fill(make_network(VqConfig(**{**NUMBERS, **more})), 0)


NUMBERS: dict[str, Any] = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "n_embed": 20, "norm_groups": 4}


def test_encoding_does_not_quantise_and_decoding_does() -> None:
    module = small()
    posterior = module.encode(pictures(0, 1, 8, 12))
    assert isinstance(posterior, Point)
    z = posterior.mode()
    assert z.shape == (1, 3, 4, 6)
    entries = module.quantize.embedding.weight
    assert (z.permute(0, 2, 3, 1)[..., None, :] - entries).abs().amax(-1).min() > 1e-4
    zq = module.quantize(z)
    distances = (z.permute(0, 2, 3, 1)[..., None, :] - entries).square().sum(-1)
    assert torch.allclose(zq.permute(0, 2, 3, 1), entries[distances.argmin(-1)], atol=1e-6)
    assert_close(module.decode(z), module.decode(zq), 1e-5)
    assert (small(quantize=False).decode(z) - module.decode(z)).abs().max() > 1e-2


def test_the_gradient_goes_past_the_choice() -> None:
    module = small()
    z = torch.randn(1, 3, 2, 2, requires_grad=True)
    through = torch.autograd.grad(module.decode(z).sum(), z)[0]
    zq = module.quantize(z).detach().requires_grad_()
    expected = torch.autograd.grad(small(quantize=False).decode(zq).sum(), zq)[0]
    assert through.abs().max() > 0
    assert torch.allclose(through, expected, atol=1e-6)


@pytest.mark.slow
def test_every_memory_and_every_batch_give_the_same_picture(tmp_path: Path) -> None:
    module = small(ch=32, spatial_norm=True, norm_groups=32)
    save_weights(module, tmp_path / "x.safetensors", layout="ldm")
    vae = calotype.load(tmp_path / "x.safetensors", device="cpu")
    z = torch.randn(2, 3, 60, 30, generator=torch.Generator().manual_seed(0))
    whole = vae.decode(z)
    assert_close(whole, module.decode(z).clamp(-1, 1))
    plan = vae.engine.plan("decode", 120, 60)
    little = min(one.peak for one in plans._candidates(plan.job, plan.program))
    assert little < plan.peak
    assert_close(vae.decode(z, memory=little), whole, 1e-5)
    for i in range(2):
        assert torch.equal(vae.decode(z[i : i + 1]), whole[i : i + 1])
    assert_close(torch.cat(list(vae.decode_rows(z[0])), 1)[None], whole[:1], 1e-5)


def test_what_can_be_chosen(tmp_path: Path) -> None:
    reference(SMALL["f4"]).save_pretrained(tmp_path)
    for choices, message in (
        ({"quantise": False}, "no choice 'quantise'; it has quantize"),
        ({"quantize": "no"}, "VqConfig.quantize must be true or false"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            calotype.load(tmp_path, choices=choices)  # type: ignore[arg-type]
        one_sentence(str(caught.value))
    with pytest.raises(UsageError, match="has no choice 'quantize'"):
        calotype.load("builtin", choices={"quantize": False})


def test_a_configuration_comes_back_from_json() -> None:
    for config in (VqConfig(), KANDINSKY, VqConfig(**NUMBERS, quantize=False, inner_channels=5)):
        assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 0}, "embed_dim"),
        ({"n_embed": 0}, "n_embed"),
        ({"n_embed": 2.5}, "n_embed"),
        ({"inner_channels": -1}, "inner_channels"),
        ({"ch_mult": ()}, "at least one level"),
        ({"ch_mult": (1, "2")}, "numbers above 0"),
        ({"attn_levels": (2,)}, "[2] do not exist"),
        ({"attn_levels": (0.5,)}, "must be levels"),
        ({"activation": "tanh"}, "silu, relu, gelu, mish"),
        ({"norm_groups": 3}, "8 channels can't be split into 3 groups"),
        ({"spatial_norm": True}, "8 channels can't be split into 32 groups"),
        ({"quantize": 1}, "quantize"),
        ({"lookup_from_codebook": None}, "lookup_from_codebook"),
    ],
)
def test_numbers_that_can_not_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        VqConfig(**NUMBERS | fields)
    one_sentence(str(caught.value))
