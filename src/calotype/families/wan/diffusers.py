"""What diffusers' classes of Wan and Qwen-Image (0.42.1) have of the same network. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from calotype.errors import UsageError, WeightsError
from calotype.families.face import Diffusers, DiffusersClass, Parts, unsupported
from calotype.families.wan.config import WanConfig
from calotype.families.wan.telling import keys_of, name_of

# about training, tiles, and time, of which one picture has none; published ones of Wan say clip_output, which no
# version of the class reads
FREE = ("clip_output", "dropout", "scale_factor_temporal", "scale_factor_spatial")


MEANS = ("latents_mean", "latents_std")  # what its classes say about latents


def _completed(config: WanConfig, said: Mapping[str, Any], own: Mapping[str, Any]) -> WanConfig:
    """The frames of each change of size, where no convolution over time is there to tell them."""
    if not config.frames or max(config.frames) > 1:
        return config
    frames, time = own.get("frames"), said.get("temperal_downsample")
    if frames is None and time is not None:
        _require_flags(config, time)
        frames = [2 if two else 1 for two in time]
    if frames is None:
        raise WeightsError(
            "its convolutions over time are gone, and nothing else tells which of its levels take two frames for one; "
            "put its config.json beside it"
        )
    try:
        return replace(config, frames=tuple(frames))
    except (TypeError, UsageError):
        raise WeightsError(f"its own metadata are damaged (frames {frames!r}); fetch or convert it again") from None


def _require_flags(config: WanConfig, time: object) -> None:
    count = len(config.dim_mult) - 1
    if not isinstance(time, list) or len(time) < count or not all(isinstance(two, bool) for two in time):
        raise WeightsError(
            unsupported("temperal_downsample", time, f"true or false for each of {count} changes of size")
        )


def _expected(config: WanConfig, said: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """What fields must say beside these tensors."""
    folded = config.in_channels * config.patch**2
    fields = {
        **{key: said.get(key) for key in FREE},
        "base_dim": config.base_dim,
        "decoder_base_dim": config.decoder_base_dim or config.base_dim,
        "dim_mult": list(config.dim_mult),
        "num_res_blocks": config.num_res_blocks,
        "z_dim": config.z_channels,
        "attn_scales": [0.5**level for level in config.attn_levels],
        "temperal_downsample": said.get("temperal_downsample"),
        "is_residual": config.residual,
        "in_channels": folded,
        "out_channels": folded,
        "input_channels": folded,
        "patch_size": config.patch if config.patch > 1 or said.get("patch_size") != 1 else 1,
    }
    if fields["temperal_downsample"] is not None:
        _require_flags(config, fields["temperal_downsample"])
        if config.residual:
            fields["temperal_downsample"] = [n == 2 for n in config.frames]
    if "decoder" not in parts:
        fields |= {key: said.get(key) for key in ("decoder_base_dim", "out_channels")}
    if "encoder" not in parts:
        fields |= {key: said.get(key) for key in ("base_dim", "in_channels", "attn_scales")}
    return fields


def _written(config: WanConfig) -> dict[str, Any]:
    changes = len(config.dim_mult) - 1
    values = {
        **_expected(config, {}, frozenset({"encoder", "decoder"})),
        # of networks without shortcuts nothing in one picture tells; this is what Wan 2.1 has
        "temperal_downsample": [n == 2 for n in config.frames] if config.residual else [i > 0 for i in range(changes)],
        "dropout": 0.0,
        "patch_size": config.patch if config.patch > 1 else None,
        "scale_factor_temporal": 4,
        "scale_factor_spatial": config.factor,
    }
    for key in ("input_channels", "clip_output"):
        del values[key]
    images = config.residual and config.patch == 1
    return {"_class_name": "AutoencoderKLQwenImage21" if images else "AutoencoderKLWan", **values}


DIFFUSERS = Diffusers(
    classes={
        "AutoencoderKLWan": DiffusersClass(kept=MEANS),
        "AutoencoderKLQwenImage": DiffusersClass(kept=MEANS),
        "AutoencoderKLQwenImage21": DiffusersClass(kept=MEANS),
    },
    completed=_completed,
    expected=_expected,
    untold=("patch_size",),
    written=_written,
    layout="diffusers-2d",
    lacks="it is held as it is for one picture, and only the original file has the other slices of its kernels",
    theirs=lambda key, config: name_of("diffusers", key, config),
    ours=lambda key, config: {b: a for a, b in keys_of("diffusers", config).items()}.get(key),
)
