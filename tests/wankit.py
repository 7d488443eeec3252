"""Networks of Wan's kind: ours, diffusers' with the same weights, and files under the names of both."""

from __future__ import annotations

from typing import Any

import torch
from support import import_diffusers
from torch import Tensor

from calotype.families.wan.config import WanConfig
from calotype.families.wan.presets import FORMATS
from calotype.families.wan.telling import keys_of

SMALL_21: dict[str, Any] = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 2], "num_res_blocks": 1,
                            "temperal_downsample": [False, True]}  # fmt: skip
MEANS_22: dict[str, Any] = {f"latents_{key}": list(FORMATS[1][key]) for key in ("mean", "std")}
SMALL_22: dict[str, Any] = {
    **SMALL_21, "z_dim": 48, "decoder_base_dim": 12, "dim_mult": [1, 2, 2], "is_residual": True,
    "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 8,
    **MEANS_22,
}  # fmt: skip
SMALL_QWEN_21: dict[str, Any] = {"base_dim": 8, "decoder_base_dim": 12, "z_dim": 64, "dim_mult": [1, 2, 2],
                                 "num_res_blocks": 1, "temperal_downsample": [False, True]}  # fmt: skip

# name -> (diffusers' class, its numbers, ours)
VARIANTS: dict[str, tuple[str, dict[str, Any], WanConfig]] = {
    "wan-2.1": ("AutoencoderKLWan", SMALL_21, WanConfig(base_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1)),
    "wan-2.1-deeper": (
        "AutoencoderKLWan",
        {**SMALL_21, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]},
        WanConfig(base_dim=8),
    ),
    "wan-2.1-wider-decoder": (
        "AutoencoderKLWan", {**SMALL_21, "decoder_base_dim": 12},
        WanConfig(base_dim=8, decoder_base_dim=12, dim_mult=(1, 2, 2), num_res_blocks=1),
    ),
    "wan-2.1-attention": (
        "AutoencoderKLWan", {**SMALL_21, "num_res_blocks": 2, "attn_scales": [0.5]},
        WanConfig(base_dim=8, dim_mult=(1, 2, 2), attn_levels=(1,)),
    ),
    "wan-2.1-larger": (
        "AutoencoderKLWan", {**SMALL_21, "out_channels": 12},
        WanConfig(base_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1, enlarges=2),
    ),
    "qwen-image": (
        "AutoencoderKLQwenImage", SMALL_21, WanConfig(base_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1)
    ),
    "qwen-image-layered": (
        "AutoencoderKLQwenImage", {**SMALL_21, "input_channels": 4},
        WanConfig(base_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1, in_channels=4),
    ),
    "wan-2.2": (
        "AutoencoderKLWan", SMALL_22,
        WanConfig(base_dim=8, decoder_base_dim=12, dim_mult=(1, 2, 2), num_res_blocks=1, z_channels=48, patch=2,
                  residual=True, frames=(1, 2)),
    ),
    "wan-2.2-other-times": (
        "AutoencoderKLWan", {**SMALL_22, "temperal_downsample": [True, False]},
        WanConfig(base_dim=8, decoder_base_dim=12, dim_mult=(1, 2, 2), num_res_blocks=1, z_channels=48, patch=2,
                  residual=True, frames=(2, 1)),
    ),
    "wan-2.2-no-time": (
        "AutoencoderKLWan", {**SMALL_22, "temperal_downsample": [False, False]},
        WanConfig(base_dim=8, decoder_base_dim=12, dim_mult=(1, 2, 2), num_res_blocks=1, z_channels=48, patch=2,
                  residual=True, frames=(1, 1)),
    ),
    "qwen-image-2.1": (
        "AutoencoderKLQwenImage21", SMALL_QWEN_21,
        WanConfig(base_dim=8, decoder_base_dim=12, dim_mult=(1, 2, 2), num_res_blocks=1, z_channels=64, in_channels=4,
                  residual=True, frames=(1, 2)),
    ),
    "qwen-image-2.1-wider": (
        "AutoencoderKLQwenImage21", {**SMALL_QWEN_21, "dim_mult": [1, 2, 4, 4],
                                     "temperal_downsample": [False, True, True]},
        WanConfig(base_dim=8, decoder_base_dim=12, dim_mult=(1, 2, 4, 4), num_res_blocks=1, z_channels=64,
                  in_channels=4, residual=True, frames=(1, 2, 2)),
    ),
}  # fmt: skip

FULL: dict[str, tuple[str, dict[str, Any]]] = {
    "wan-2.1": ("AutoencoderKLWan", {}),
    "wan-2.1-larger": ("AutoencoderKLWan", {"out_channels": 12}),
    "qwen-image": ("AutoencoderKLQwenImage", {}),
    "qwen-image-layered": ("AutoencoderKLQwenImage", {"input_channels": 4}),
    "wan-2.2": (
        "AutoencoderKLWan",
        {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12,
         "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16, **MEANS_22},
    ),
    "qwen-image-2.1": ("AutoencoderKLQwenImage21", {}),
}  # fmt: skip


def random(module: Any, seed: int, scale: float = 1.0) -> Any:
    """Random values for every parameter, also the slices in time and the convolutions that one picture never meets."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("gamma"):
                parameter.copy_(1.0 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            else:
                last = parameter[0, :, -1] if parameter.ndim == 5 else parameter[0]
                parameter.copy_(noise / last.numel() ** 0.5)
        for name in ("conv_out.weight", "conv_out.bias"):  # pictures that are not cut off at -1 and 1
            module.decoder.get_parameter(name).mul_(scale)
    return module.eval().requires_grad_(False)


def theirs(variant: str, seed: int = 0) -> Any:
    """diffusers' network, small, with random weights."""
    name, numbers, _ = VARIANTS[variant]
    return random(getattr(import_diffusers(), name)(**numbers), seed)


def originals(module: Any, config: WanConfig) -> dict[str, Tensor]:
    """The tensors of diffusers' network under the names of the original files, in their shapes."""
    rename = {keys_of("diffusers", config)[key]: name for key, name in keys_of("ldm", config).items()}
    found = {}
    for name, tensor in module.state_dict().items():
        if "time_conv" in name:
            at = name.rpartition(".time_conv")[0]
            new = rename[f"{at}.resample.1.weight"].removesuffix(".resample.1.weight")
            found[f"{new}.time_conv{name.rpartition('.time_conv')[2]}"] = tensor.clone()
        else:
            found[rename[name]] = tensor.clone()
    return found
