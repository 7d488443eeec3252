"""The DC-AE family, against diffusers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dcaekit import SANA, SMALL, reference, shuffled
from support import assert_close, import_diffusers, pictures, taken_over

from calotype.errors import UsageError
from calotype.families import config_from_dict, make_network
from calotype.families.dcae.config import DcaeConfig
from calotype.families.dcae.network import LinearAttention
from calotype.posterior import Point
from calotype.weights.load import load_weights


def sizes(levels: int) -> list[tuple[int, int]]:
    """Rows and columns of latents: odd, even, and so few that diffusers multiplies positions by positions."""
    return [(3, 5), (4, 2), (1, 1)] if levels < 7 else [(3, 2), (1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_it_agrees_with_diffusers(name: str, tmp_path: Path) -> None:
    theirs = reference(SMALL[name])
    theirs.save_pretrained(tmp_path)
    loaded = load_weights(tmp_path)
    module = loaded.module
    assert loaded.layout == "diffusers"
    assert isinstance(module.config, DcaeConfig)
    assert module.config.factor == theirs.spatial_compression_ratio
    for height, width in sizes(module.config.levels):
        f, generator = module.config.factor, torch.Generator().manual_seed(height)
        x = pictures(1, 2, height * f, width * f)[:, : module.config.picture_channels]
        z = torch.randn(2, module.config.z_channels, height, width, generator=generator)
        with torch.inference_mode():
            assert_close(module.encode(x).mode(), theirs.encode(x).latent)
            assert_close(module.decode(z), theirs.decode(z).sample)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [SANA, shuffled(6)], ids=["sana", "f32"])
def test_it_agrees_with_diffusers_at_full_size(fields: dict[str, Any]) -> None:
    theirs = reference(fields)
    module = taken_over(theirs)
    x, z = pictures(1, 1, 96, 64), torch.randn(1, 32, 3, 2)
    with torch.inference_mode():
        assert_close(module.encode(x).mode(), theirs.encode(x).latent)
        assert_close(module.decode(z), theirs.decode(z).sample)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [7, 8])
def test_the_widest_have_the_tensors_of_diffusers(levels: int) -> None:
    """As large as they are they are compared by shape alone; narrow ones by what they compute."""
    from calotype.families.dcae.names import to_diffusers
    from calotype.weights.detect import detect

    with torch.device("meta"):
        theirs = import_diffusers().AutoencoderDC(**shuffled(levels))
        shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
        told = detect(shapes)
        ours = make_network(told.config).state_dict()
    names = [name for key in ours for name in to_diffusers(key, told.config)]
    assert sorted(names) == sorted(shapes)


def test_the_published_networks_parameters_are_counted() -> None:
    with torch.device("meta"):
        module: Any = make_network(DcaeConfig())
    counts = [sum(p.numel() for p in half.parameters()) for half in (module.encoder, module.decoder)]
    theirs = []
    with torch.device("meta"):
        reference_ = import_diffusers().AutoencoderDC(**SANA)
    for half in (reference_.encoder, reference_.decoder):
        theirs.append(sum(p.numel() for p in half.parameters()))
    assert counts == theirs


def test_encoding_has_no_posterior() -> None:
    module = make_network(DcaeConfig(**tiny_numbers()))
    posterior = module.eval().encode(pictures(0, 1, 8, 12))
    assert isinstance(posterior, Point)
    assert posterior.mode().shape == (1, 4, 2, 3)


def tiny_numbers() -> dict[str, Any]:
    return {
        "z_channels": 4, "encoder_ch": (8, 8, 16), "decoder_ch": (8, 8, 16), "encoder_blocks": (1, 1, 1),
        "decoder_blocks": (1, 1, 1), "encoder_attn_levels": (2,), "decoder_attn_levels": (2,),
        "encoder_scales": ((), (), (5,)), "decoder_scales": ((), (), (5,)), "head_dim": 4,
        "decoder_norms": ("rms",) * 3, "decoder_activations": ("silu",) * 3,
    }  # fmt: skip


def test_attention_is_what_it_says() -> None:
    """Every output is a mean of values, weighed by relu(k) . relu(q): against the sum written out."""
    layer: Any = LinearAttention(8, 4, ()).double().eval()
    layer.proj.conv.weight.data = torch.eye(8, dtype=torch.float64)[:, :, None, None]
    layer.proj.norm = torch.nn.Identity()
    x = torch.randn(1, 8, 3, 2, dtype=torch.float64)
    heads = layer.qkv(x).reshape(2, 3, 4, 6)
    result = layer(x).reshape(2, 4, 6)
    for head in range(2):
        q, k, v = heads[head]
        for i in range(6):
            weights = torch.stack([k[:, j].relu() @ q[:, i].relu() for j in range(6)])
            expected = (v * weights).sum(1) / (weights.sum() + 1e-15)
            assert torch.allclose(result[head, :, i], expected)


def test_a_configuration_comes_back_from_json() -> None:
    import json

    for config in (DcaeConfig(), DcaeConfig(**tiny_numbers())):
        assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"z_channels": 0}, "z_channels"),
        ({"encoder_ch": (8,)}, "2 to 16 levels"),
        ({"encoder_ch": (8, 8)}, "must name 2 levels"),
        ({"encoder_blocks": (1, 0, 1)}, "encoder_blocks"),
        ({"encoder_blocks": (1, 1, True)}, "encoder_blocks"),
        ({"head_dim": 5}, "heads of 5"),
        ({"down": "maxpool"}, "conv, unshuffle"),
        ({"up": None}, "nearest, shuffle"),
        ({"decoder_norms": ("rms", "layer", "rms")}, "rms, batch"),
        ({"decoder_activations": ("silu",)}, "must name 3 levels"),
        ({"out_activation": "gelu"}, "silu, relu"),
        ({"encoder_scales": ((), (), (4,))}, "odd kernels"),
        ({"encoder_scales": ((), (), 5)}, "odd kernels"),
        ({"encoder_attn_levels": (3,)}, "of 0 to 2"),
        ({"z_channels": 5}, "latents of 5"),
        ({"encoder_ch": (8, 8, 12)}, "can't be shared out to 12"),
        ({"encoder_shortcut": 1}, "encoder_shortcut"),
    ],
)
def test_numbers_that_can_not_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        DcaeConfig(**tiny_numbers() | fields)


def test_numbers_of_an_empty_first_level_count_for_nothing() -> None:
    one = DcaeConfig(**tiny_numbers() | {"encoder_blocks": (0, 1, 1), "decoder_blocks": (0, 1, 1)})
    shapes = [
        {key: value.shape for key, value in make_network(config).state_dict().items()}
        for config in (one, replace(one, encoder_ch=(4, 8, 16), decoder_ch=(1, 8, 16)))
    ]
    assert shapes[0] == shapes[1]
