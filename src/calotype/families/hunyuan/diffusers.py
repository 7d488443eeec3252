"""What diffusers' AutoencoderKLHunyuanImage (0.42.1) has of the same network. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calotype.families.face import Diffusers, DiffusersClass, Parts
from calotype.families.hunyuan.config import HunyuanImageConfig
from calotype.families.hunyuan.names import from_diffusers, to_diffusers


def _fields(config: HunyuanImageConfig) -> dict[str, Any]:
    return {
        "block_out_channels": list(config.channels),
        "downsample_match_channel": True,
        "in_channels": config.in_channels,
        "latent_channels": config.z_channels,
        "layers_per_block": config.num_res_blocks,
        "out_channels": config.in_channels,
        "spatial_compression_ratio": config.factor,
        "upsample_match_channel": True,
    }


def _expected(config: HunyuanImageConfig, said: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    return _fields(config)


DIFFUSERS = Diffusers(
    classes={"AutoencoderKLHunyuanImage": DiffusersClass(kept=("sample_size", "scaling_factor"))},
    expected=_expected,
    untold=("downsample_match_channel", "upsample_match_channel"),
    written=lambda config: {**_fields(config), "sample_size": 384},
    theirs=lambda key, config: to_diffusers(key, config.num_res_blocks),
    ours=lambda key, config: from_diffusers(key, config.num_res_blocks),
)
