"""What diffusers' VQModel (0.42.1) has of the same network. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from calotype.errors import UsageError, WeightsError
from calotype.families.face import Diffusers, DiffusersClass, Parts, contradiction, unsupported
from calotype.families.vq.config import ActivationName, VqConfig
from calotype.families.vq.names import from_diffusers, to_diffusers

# diffusers' names of activations -> ours
ACTIVATIONS: Mapping[str, ActivationName] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "mish": "mish",
}
UNTOLD = ("activation", "quantize", "lookup_from_codebook")  # by tensors


def _completed(config: VqConfig, said: Mapping[str, Any], own: Mapping[str, Any]) -> VqConfig:
    config = replace(config, **{field: own[field] for field in UNTOLD if field in own})
    if not said:
        return config
    if (act_fn := _activation(said.get("act_fn"))) != own.get("activation", act_fn):
        raise WeightsError(contradiction("act_fn", act_fn, own["activation"]))
    lookup = said.get("lookup_from_codebook")
    if not isinstance(lookup, bool | None):
        raise WeightsError(unsupported("lookup_from_codebook", lookup, "true and false"))
    return replace(config, activation=act_fn, lookup_from_codebook=bool(lookup))


def _activation(name: object) -> ActivationName:
    if name is None:
        return "silu"
    known = ACTIVATIONS.get(name.lower()) if isinstance(name, str) else None
    if known is None:
        raise WeightsError(unsupported("act_fn", name, ", ".join(ACTIVATIONS)))
    return known


def _expected(config: VqConfig, said: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
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
    if "decoder" not in parts:
        for key in ("up_block_types", "out_channels", "norm_type"):
            fields[key] = said.get(key)
    if "encoder" not in parts:
        for key in ("down_block_types", "in_channels"):
            fields[key] = said.get(key)
    return fields


def _fields(config: VqConfig) -> dict[str, Any]:
    """The fields of a config.json about the network."""
    levels = range(len(config.channels))
    return {
        "block_out_channels": list(config.channels),
        "down_block_types": [f"{'Attn' if i in config.attn_levels else ''}DownEncoderBlock2D" for i in levels],
        "up_block_types": [f"{'Attn' if i in config.attn_levels else ''}UpDecoderBlock2D" for i in reversed(levels)],
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.inner,
        "layers_per_block": config.num_res_blocks,
        "lookup_from_codebook": config.lookup_from_codebook,
        "mid_block_add_attention": config.mid_attention,
        "norm_type": "spatial" if config.spatial_norm else "group",
        "num_vq_embeddings": config.n_embed,
        "vq_embed_dim": config.embed_dim,
    }


def _written(config: VqConfig) -> dict[str, Any]:
    if config.spatial_norm and config.inner != config.embed_dim:
        raise UsageError(
            f"diffusers' VQModel has norms that follow latents of {config.inner} channels, and these have "
            f"{config.embed_dim}; --layout ldm writes it to a single file."
        )
    return {**_fields(config), "act_fn": config.activation, "norm_num_groups": config.norm_groups, "sample_size": 256}


DIFFUSERS = Diffusers(
    classes={
        "VQModel": DiffusersClass(
            defaults={"norm_num_groups": 32}, kept=("force_upcast", "sample_size", "scaling_factor")
        )
    },
    completed=_completed,
    expected=_expected,
    written=_written,
    theirs=lambda key, config: to_diffusers(key, len(config.channels)),
    ours=lambda key, config: from_diffusers(key, len(config.channels)),
    linear=lambda key: key.endswith((".q.weight", ".k.weight", ".v.weight", ".proj_out.weight")),
    scaled=lambda config: not config.spatial_norm,
)
