"""What diffusers' AutoencoderTiny (0.42.1) has of the same network. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from calotype.families.face import Diffusers, DiffusersClass, Parts
from calotype.families.tiny.config import TinyConfig


def _expected(config: TinyConfig, said: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    down, up = list(config.channels), list(config.decoder_channels)
    return {
        "act_fn": "relu",
        "block_out_channels": down,
        "decoder_block_out_channels": up,
        "encoder_block_out_channels": down,
        "in_channels": config.in_channels,
        "latent_channels": config.z_channels,
        "num_decoder_blocks": [3] * (len(up) - 1) + [1],
        "num_encoder_blocks": [1] + [3] * (len(down) - 1),
        "out_channels": config.in_channels,
        "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2,
    }


def _theirs(key: str, config: TinyConfig) -> str | None:
    """Its layers stand in a list, and the clamp before the decoder's is not among them."""
    match = re.fullmatch(r"(encoder|decoder)\.([0-9]+)\.(.+)", key)
    return match and f"{match[1]}.layers.{int(match[2]) - (match[1] == 'decoder')}.{match[3]}"


def _ours(key: str, config: TinyConfig) -> str | None:
    match = re.fullmatch(r"(encoder|decoder)\.layers\.([0-9]+)\.(.+)", key)
    return match and f"{match[1]}.{int(match[2]) + (match[1] == 'decoder')}.{match[3]}"


DIFFUSERS = Diffusers(
    classes={"AutoencoderTiny": DiffusersClass()},
    expected=_expected,
    untold=("act_fn", "upsample_fn", "upsampling_scaling_factor"),
    theirs=_theirs,
    ours=_ours,
)
