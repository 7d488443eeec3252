"""What diffusers' AutoencoderKL, AutoencoderKLFlux2 and AsymmetricAutoencoderKL (0.42.1) have of the same network.

No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from calotype.errors import UsageError, WeightsError
from calotype.families.face import Diffusers, DiffusersClass, Parts, contradiction, unsupported
from calotype.families.kl.config import ActivationName, AutoencoderConfig
from calotype.families.kl.names import diffusers_to_ldm, ldm_to_diffusers

KL, ASYMMETRIC, FLAX = "AutoencoderKL", "AsymmetricAutoencoderKL", "FlaxAutoencoderKL"

# fields that only the one half tells, and those that both classes have
DECODERS = ("decoder_block_out_channels", "up_block_types", "up_block_out_channels", "layers_per_up_block")
ENCODERS = ("block_out_channels", "down_block_out_channels", "layers_per_down_block")
SHARED = ("down_block_types", "up_block_types", "in_channels", "out_channels", "latent_channels")

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
    asymmetric = said.get("_class_name") == ASYMMETRIC
    if "decoder" in parts and "_class_name" in said and asymmetric != config.condition:
        raise WeightsError(contradiction("_class_name", said["_class_name"], ASYMMETRIC if config.condition else KL))
    fields = _asymmetric(config) if asymmetric or config.condition else _fields(config)
    fields["patch_size"] = [2, 2]
    if "decoder" not in parts:
        for key in (*DECODERS, "use_post_quant_conv", "out_channels", *(["block_out_channels"] if asymmetric else [])):
            fields[key] = said.get(key)
    if "encoder" not in parts:
        for key in (*ENCODERS, "use_quant_conv", "in_channels"):
            fields[key] = said.get(key)
    return fields


def _fields(config: AutoencoderConfig) -> dict[str, Any]:
    """The fields of a config.json that tensors show."""
    levels = range(len(config.channels))
    blocks = config.num_res_blocks, config.decoder_blocks
    return {
        "block_out_channels": list(config.channels),
        "decoder_block_out_channels": list(config.decoder_channels),
        "down_block_types": [f"{'Attn' if i in config.attn_levels else ''}DownEncoderBlock2D" for i in levels],
        "up_block_types": [f"{'Attn' if i in config.attn_levels else ''}UpDecoderBlock2D" for i in reversed(levels)],
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.z_channels,
        "layers_per_block": blocks[0] if blocks[0] == blocks[1] else list(blocks),
        "mid_block_add_attention": config.mid_attention,
        "use_quant_conv": config.quant_conv,
        "use_post_quant_conv": config.decoder_quant_conv,
    }


def _asymmetric(config: AutoencoderConfig) -> dict[str, Any]:
    """Those of the class whose decoder takes a picture too."""
    fields = _fields(config)
    return {
        **{key: fields[key] for key in SHARED},
        "block_out_channels": list(config.decoder_channels),  # of the decoder, as the class writes it
        "down_block_out_channels": list(config.channels),
        "up_block_out_channels": list(config.decoder_channels),
        "layers_per_down_block": config.num_res_blocks,
        "layers_per_up_block": config.decoder_blocks,
    }


def _written(config: AutoencoderConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "act_fn": config.activation,
        "norm_num_groups": config.norm_groups,
        "sample_size": 512,
    }
    if config.condition:
        if not (config.mid_attention and config.quant_conv and config.decoder_quant_conv):
            raise UsageError(
                f"diffusers' {ASYMMETRIC} has attention in the middle and 1x1 convolutions around the latents, and "
                f"this network lacks some of them; --layout ldm writes it."
            )
        values |= {"_class_name": ASYMMETRIC, **_asymmetric(config)}
        del values["block_out_channels"]
        return values
    if config.decoder_num_res_blocks not in (None, config.num_res_blocks):
        raise UsageError(
            f"diffusers' {KL} has as many residual blocks in every level of its decoder as in those of its encoder, "
            f"and one more, and this network {config.decoder_blocks + 1} beside {config.num_res_blocks}; --layout ldm "
            f"writes it."
        )
    values |= {**_fields(config), "force_upcast": True}
    if config.decoder_ch is None:
        del values["decoder_block_out_channels"]
    return values


def _flax(config: AutoencoderConfig) -> dict[str, Any]:
    usual = (
        _as_deep(config)
        and config.decoder_ch is None
        and config.activation == "silu"
        and config.mid_attention
        and not config.attn_levels
        and config.quant_conv
        and config.decoder_quant_conv
    )
    if not usual:
        raise UsageError(
            f"diffusers' {FLAX} has SiLU, attention in the middle and nowhere else, 1x1 convolutions around the "
            f"latents and a decoder as wide as its encoder, and this network differs; --layout ldm writes it."
        )
    named = _written(config)
    shown = (*SHARED, "block_out_channels", "layers_per_block", "act_fn", "norm_num_groups", "sample_size")
    return {"_class_name": FLAX, **{key: named[key] for key in shown}}


def _as_deep(config: AutoencoderConfig) -> bool:
    """Whether its decoder is as that of an ordinary one: without a picture beside, with a block more in each level."""
    return not config.condition and config.decoder_num_res_blocks in (None, config.num_res_blocks)


DIFFUSERS = Diffusers(
    classes={
        KL: DiffusersClass(
            defaults={"norm_num_groups": 32, "scaling_factor": 0.18215},
            holds=lambda config: _as_deep(config) and config.decoder_ch in (None, config.ch),
        ),
        "AutoencoderKLFlux2": DiffusersClass(defaults={"norm_num_groups": 32}, packs=True, holds=_as_deep),
        ASYMMETRIC: DiffusersClass(
            defaults={"norm_num_groups": 32, "scaling_factor": 0.18215},
            kept=("sample_size", "scaling_factor"),
            holds=lambda config: config.condition,
        ),
    },
    completed=_completed,
    expected=_expected,
    written=_written,
    flax=_flax,
    theirs=lambda key, config: ldm_to_diffusers(key, len(config.channels)),
    ours=lambda key, config: diffusers_to_ldm(key, len(config.channels)),
    linear=lambda key: key.endswith((".q.weight", ".k.weight", ".v.weight", ".proj_out.weight")),
)
