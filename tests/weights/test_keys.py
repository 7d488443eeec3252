"""Key tables: every key has its name in every layout, and comes back from it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from support import SMALL, all_keys

from calotype.families import make_network
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.kl.names import diffusers_to_ldm, keras_decoder, keras_encoder, ldm_to_diffusers
from calotype.weights.detect import detect

OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@st.composite
def configs(draw: st.DrawFn) -> AutoencoderConfig:
    levels = draw(st.integers(1, 5))
    return AutoencoderConfig(
        ch=32,
        ch_mult=(1, *draw(st.lists(st.integers(1, 3), min_size=levels - 1, max_size=levels - 1))),
        num_res_blocks=draw(st.integers(1, 3)),
        z_channels=draw(st.integers(1, 32)),
        attn_levels=tuple(sorted(draw(st.sets(st.integers(0, levels - 1))))),
        mid_attention=draw(st.booleans()),
        quant_conv=draw(st.booleans()),
        decoder_ch=draw(st.sampled_from([None, 64])),
    )


def keras_keys(config: AutoencoderConfig) -> list[str]:
    layers = keras_encoder(config) + keras_decoder(config)
    return [f"{module}.{leaf}" for _, modules in layers for module in modules for leaf in ("weight", "bias")]


@pytest.mark.slow
@given(config=configs())
@settings(deadline=None)
def test_every_key_goes_to_diffusers_and_back(config: AutoencoderConfig) -> None:
    levels = len(config.ch_mult)
    keys = all_keys([config])
    theirs = [ldm_to_diffusers(key, levels) for key in keys]
    assert None not in theirs
    assert len(set(theirs)) == len(keys)
    assert [diffusers_to_ldm(key or "", levels) for key in theirs] == keys
    for ours, key in zip(keys, theirs, strict=True):
        old = key or ""
        for new_name, old_name in OLD.items():
            old = old.replace(f".{new_name}.", f".{old_name}.") if ".attn" in ours else old
        assert diffusers_to_ldm(old, levels) == ours


@pytest.mark.slow
@given(config=configs())
@settings(deadline=None)
def test_kerass_order_covers_every_key_once(config: AutoencoderConfig) -> None:
    assert sorted(keras_keys(config)) == sorted(all_keys([config]))
    for layers in (keras_encoder(config), keras_decoder(config)):
        names = [name for name, _ in layers]
        assert len(set(names)) == len(names)


@pytest.mark.slow
@given(config=configs())
@settings(deadline=None)
def test_a_config_is_detected_from_its_shapes_in_both_layouts(config: AutoencoderConfig) -> None:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in make_network(config).state_dict().items()}
    ldm = detect(shapes)
    assert (ldm.layout, ldm.config, ldm.parts) == ("ldm", config, {"encoder", "decoder"})
    assert ldm.keys == {key: key for key in shapes}
    diffusers = detect({ldm_to_diffusers(key, len(config.ch_mult)) or "": shape for key, shape in shapes.items()})
    assert (diffusers.layout, diffusers.config, diffusers.parts) == ("diffusers", config, {"encoder", "decoder"})
    assert diffusers.keys == {key: ldm_to_diffusers(key, len(config.ch_mult)) for key in shapes}


@pytest.mark.parametrize(
    ("ldm", "diffusers"),
    [
        ("encoder.conv_in.weight", "encoder.conv_in.weight"),
        ("encoder.down.1.block.0.nin_shortcut.bias", "encoder.down_blocks.1.resnets.0.conv_shortcut.bias"),
        ("encoder.down.2.downsample.conv.weight", "encoder.down_blocks.2.downsamplers.0.conv.weight"),
        ("encoder.mid.block_2.norm1.weight", "encoder.mid_block.resnets.1.norm1.weight"),
        ("decoder.mid.attn_1.proj_out.bias", "decoder.mid_block.attentions.0.to_out.0.bias"),
        ("decoder.mid.attn_1.norm.weight", "decoder.mid_block.attentions.0.group_norm.weight"),
        ("decoder.up.3.block.2.conv1.weight", "decoder.up_blocks.0.resnets.2.conv1.weight"),
        ("decoder.up.1.upsample.conv.bias", "decoder.up_blocks.2.upsamplers.0.conv.bias"),
        ("decoder.norm_out.weight", "decoder.conv_norm_out.weight"),
        ("post_quant_conv.weight", "post_quant_conv.weight"),
    ],
)
def test_landmarks(ldm: str, diffusers: str) -> None:
    assert ldm_to_diffusers(ldm, 4) == diffusers
    assert diffusers_to_ldm(diffusers, 4) == ldm


@pytest.mark.parametrize(
    "key", ["", "conv_in.weight", "encoder.conv_in", "encoder.conv_in.scale", "xencoder.conv_in.bias"]
)
def test_other_keys_have_no_name(key: str) -> None:
    assert ldm_to_diffusers(key, 4) is None
    assert diffusers_to_ldm(key, 4) is None


ENCODER_LANDMARKS = {
    0: "encoder.conv_in.weight",
    1: "encoder.conv_in.bias",
    2: "encoder.down.0.block.0.norm1.weight",
    4: "encoder.down.0.block.0.conv1.weight",
    6: "encoder.down.0.block.0.norm2.weight",
    9: "encoder.down.0.block.0.conv2.bias",
    10: "encoder.down.0.block.1.norm1.weight",
    18: "encoder.down.0.downsample.conv.weight",
    20: "encoder.down.1.block.0.norm1.weight",
    28: "encoder.down.1.block.0.nin_shortcut.weight",
    29: "encoder.down.1.block.0.nin_shortcut.bias",
    30: "encoder.down.1.block.1.norm1.weight",
    38: "encoder.down.1.downsample.conv.weight",
    48: "encoder.down.2.block.0.nin_shortcut.weight",
    59: "encoder.down.2.downsample.conv.bias",
    60: "encoder.down.3.block.0.norm1.weight",
    75: "encoder.down.3.block.1.conv2.bias",
    76: "encoder.mid.block_1.norm1.weight",
    84: "encoder.mid.attn_1.norm.weight",
    86: "encoder.mid.attn_1.q.weight",
    88: "encoder.mid.attn_1.k.weight",
    90: "encoder.mid.attn_1.v.weight",
    92: "encoder.mid.attn_1.proj_out.weight",
    94: "encoder.mid.block_2.norm1.weight",
    102: "encoder.norm_out.weight",
    104: "encoder.conv_out.weight",
    106: "quant_conv.weight",
    107: "quant_conv.bias",
}
DECODER_LANDMARKS = {
    0: "post_quant_conv.weight",
    1: "post_quant_conv.bias",
    2: "decoder.conv_in.weight",
    4: "decoder.mid.block_1.norm1.weight",
    12: "decoder.mid.attn_1.norm.weight",
    21: "decoder.mid.attn_1.proj_out.bias",
    22: "decoder.mid.block_2.norm1.weight",
    30: "decoder.up.3.block.0.norm1.weight",
    53: "decoder.up.3.block.2.conv2.bias",
    54: "decoder.up.3.upsample.conv.weight",
    56: "decoder.up.2.block.0.norm1.weight",
    80: "decoder.up.2.upsample.conv.weight",
    82: "decoder.up.1.block.0.norm1.weight",
    90: "decoder.up.1.block.0.nin_shortcut.weight",
    91: "decoder.up.1.block.0.nin_shortcut.bias",
    92: "decoder.up.1.block.1.norm1.weight",
    108: "decoder.up.1.upsample.conv.weight",
    110: "decoder.up.0.block.0.norm1.weight",
    118: "decoder.up.0.block.0.nin_shortcut.weight",
    135: "decoder.up.0.block.2.conv2.bias",
    136: "decoder.norm_out.weight",
    138: "decoder.conv_out.weight",
    139: "decoder.conv_out.bias",
}


def test_the_keras_files_have_the_documented_order() -> None:
    config = AutoencoderConfig()
    for layers, count, groups, landmarks in (
        (keras_encoder(config), 108, 18, ENCODER_LANDMARKS),
        (keras_decoder(config), 140, 22, DECODER_LANDMARKS),
    ):
        flat = [f"{module}.{leaf}" for _, modules in layers for module in modules for leaf in ("weight", "bias")]
        assert len(flat) == count
        assert len(layers) == groups
        assert {index: flat[index] for index in landmarks} == landmarks


def test_the_small_config_of_these_tests_needs_its_groups_said() -> None:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in make_network(SMALL).state_dict().items()}
    assert detect(shapes, norm_groups=4).config == SMALL
