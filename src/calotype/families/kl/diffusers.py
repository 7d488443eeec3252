"""What diffusers' AutoencoderKL and AutoencoderKLFlux2 (0.42.1) have of the same network. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from calotype.errors import WeightsError
from calotype.families.face import Diffusers, DiffusersClass, Parts, contradiction, unsupported
from calotype.families.kl.config import ActivationName, AutoencoderConfig
from calotype.families.kl.names import diffusers_to_ldm, ldm_to_diffusers

# diffusers' names of activations -> ours
ACTIVATIONS: Mapping[str, ActivationName] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "mish": "mish",
}


def _completed(config: AutoencoderConfig, said: Mapping[str, Any], own: Mapping[str, Any]) -> AutoencoderConfig:
    config = replace(config, activation=own.get("activation", config.activation))
    both = said.get("use_quant_conv", True) == said.get("use_post_quant_conv", True)
    if config.quant_conv != config.decoder_quant_conv and both and own.get("post_quant_conv") is None:
        # one of the two is missing: nobody says that it never was there
        config = replace(config, quant_conv=True, post_quant_conv=None)
    if not said:
        return config
    if (act_fn := _activation(said.get("act_fn"))) != own.get("activation", act_fn):
        raise WeightsError(contradiction("act_fn", act_fn, own["activation"]))
    return replace(config, activation=act_fn)


def _activation(name: object) -> ActivationName:
    if name is None:
        return "silu"
    known = ACTIVATIONS.get(name.lower()) if isinstance(name, str) else None
    if known is None:
        raise WeightsError(unsupported("act_fn", name, ", ".join(ACTIVATIONS)))
    return known


def _expected(config: AutoencoderConfig, said: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """What fields must say beside these tensors."""
    for key, blocks in (
        ("down_block_types", ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")),
        ("up_block_types", ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")),
    ):
        named = said.get(key)
        for block in named if isinstance(named, list) else [] if named is None else [named]:
            if block not in blocks:
                raise WeightsError(unsupported(key, block, " and ".join(blocks)))
    if (groups := said.get("norm_num_groups", config.norm_groups)) != config.norm_groups:
        raise WeightsError(contradiction("norm_num_groups", groups, config.norm_groups))
    fields = _fields(config)
    fields["patch_size"] = [2, 2]
    if "decoder" not in parts:
        for key in ("use_post_quant_conv", "decoder_block_out_channels", "up_block_types", "out_channels"):
            fields[key] = said.get(key)
    if "encoder" not in parts:
        for key in ("use_quant_conv", "block_out_channels", "in_channels"):
            fields[key] = said.get(key)
    return fields


def _fields(config: AutoencoderConfig) -> dict[str, Any]:
    """The fields of a config.json that tensors show."""
    levels = range(len(config.channels))
    return {
        "block_out_channels": list(config.channels),
        "decoder_block_out_channels": list(config.decoder_channels),
        "down_block_types": [f"{'Attn' if i in config.attn_levels else ''}DownEncoderBlock2D" for i in levels],
        "up_block_types": [f"{'Attn' if i in config.attn_levels else ''}UpDecoderBlock2D" for i in reversed(levels)],
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.z_channels,
        "layers_per_block": config.num_res_blocks,
        "mid_block_add_attention": config.mid_attention,
        "use_quant_conv": config.quant_conv,
        "use_post_quant_conv": config.decoder_quant_conv,
    }


def _written(config: AutoencoderConfig) -> dict[str, Any]:
    values = {**_fields(config), "act_fn": config.activation, "norm_num_groups": config.norm_groups}
    values |= {"force_upcast": True, "sample_size": 512}
    if config.decoder_ch is None:
        del values["decoder_block_out_channels"]
    return values


DIFFUSERS = Diffusers(
    classes={
        "AutoencoderKL": DiffusersClass(defaults={"norm_num_groups": 32, "scaling_factor": 0.18215}),
        "AutoencoderKLFlux2": DiffusersClass(defaults={"norm_num_groups": 32}, packs=True),
    },
    completed=_completed,
    expected=_expected,
    written=_written,
    theirs=lambda key, config: ldm_to_diffusers(key, len(config.channels)),
    ours=lambda key, config: diffusers_to_ldm(key, len(config.channels)),
    linear=lambda key: key.endswith((".q.weight", ".k.weight", ".v.weight", ".proj_out.weight")),
)
