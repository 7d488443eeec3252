"""The numbers from which networks follow."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, strategies as st

from calotype.errors import UsageError
from calotype.families import CONFIGS, config_from_dict
from calotype.families.face import NetworkConfig
from calotype.families.folded.config import FoldedConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.tiny.config import TinyConfig


@st.composite
def kl_configs(draw: st.DrawFn) -> AutoencoderConfig:
    levels = draw(st.integers(1, 5))
    groups = draw(st.sampled_from([1, 2, 8, 32]))
    return AutoencoderConfig(
        ch=groups * draw(st.integers(1, 4)),
        ch_mult=tuple(draw(st.lists(st.integers(1, 6), min_size=levels, max_size=levels))),
        num_res_blocks=draw(st.integers(1, 3)),
        z_channels=draw(st.integers(1, 64)),
        attn_levels=tuple(sorted(draw(st.sets(st.integers(0, levels - 1))))),
        mid_attention=draw(st.booleans()),
        quant_conv=draw(st.booleans()),
        decoder_ch=draw(st.none() | st.integers(1, 4).map(lambda n: n * groups)),
        norm_groups=groups,
        in_channels=draw(st.integers(1, 4)),
    )


configs: st.SearchStrategy[NetworkConfig] = (
    kl_configs()
    | st.builds(TinyConfig, z_channels=st.integers(1, 64), pool=st.booleans())
    | st.builds(FoldedConfig, z_channels=st.integers(1, 64), ch=st.tuples(st.integers(1, 99), st.integers(1, 99)))
)


@pytest.mark.slow
@given(config=configs)
def test_a_config_survives_json(config: NetworkConfig) -> None:
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(config=kl_configs())
def test_the_factor_is_two_for_every_change_of_level(config: AutoencoderConfig) -> None:
    assert config.factor == 2 ** (len(config.ch_mult) - 1)
    assert isinstance(config.factor, int)
    assert len(config.channels) == len(config.decoder_channels) == len(config.ch_mult)


def test_the_defaults_are_those_of_stable_diffusion() -> None:
    config = AutoencoderConfig()
    assert config.channels == config.decoder_channels == (128, 256, 512, 512)
    assert (config.factor, config.z_channels, config.num_res_blocks, config.norm_groups) == (8, 4, 2, 32)
    assert config.quant_conv
    assert config.mid_attention
    assert config.attn_levels == ()


def test_a_narrower_decoder_keeps_the_multiples() -> None:
    config = AutoencoderConfig(decoder_ch=96)
    assert config.channels == (128, 256, 512, 512)
    assert config.decoder_channels == (96, 192, 384, 384)


def test_multiples_need_not_be_whole() -> None:
    assert AutoencoderConfig(ch=96, ch_mult=(1, 4 / 3, 2, 4)).channels == (96, 128, 192, 384)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ch": 0}, r"ch must be a whole number from 1 to 65536, not 0\.$"),
        ({"ch": 128.0}, r"ch must be a whole number from 1 to 65536, not 128\.0\.$"),
        ({"num_res_blocks": -1}, r"num_res_blocks must be a whole number from 1 to"),
        ({"z_channels": 0}, r"z_channels must be a whole number from 1 to"),
        ({"norm_groups": 0}, r"norm_groups must be a whole number from 1 to"),
        ({"in_channels": 0}, r"in_channels must be a whole number from 1 to"),
        ({"ch_mult": ()}, r"at least one level, and at most 16, not 0\.$"),
        ({"attn_levels": (4,)}, r"\[4\] do not exist: there are 4 levels\.$"),
        ({"attn_levels": (0, -1)}, r"\[-1\] do not exist"),
        ({"ch": 100}, r"100 channels can't be split into 32 groups; choose .*\.$"),
        ({"decoder_ch": 40}, r"40 channels can't be split into 32 groups"),
    ],
)
def test_contradictions_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AutoencoderConfig(**values)  # type: ignore[arg-type]


def test_every_kind_of_network_has_a_name() -> None:
    for kind, cls in CONFIGS.items():
        assert cls().to_dict()["kind"] == kind


def test_configuration_key_tables_and_detection_do_not_import_torch() -> None:
    code = (
        "import sys, calotype.families, calotype.families.kl.names, calotype.weights.detect, calotype.weights.presets;"
        "assert not {'torch', 'numpy', 'safetensors'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
