"""DC-AEs as diffusers has them: the published ones, narrow ones of every kind, random weights."""

from __future__ import annotations

from typing import Any

import torch
from support import import_diffusers

SANA: dict[str, Any] = {
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "downsample_block_type": "Conv",
    "upsample_block_type": "interpolate",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}


def shuffled(levels: int, **more: Any) -> dict[str, Any]:
    """The fields of dc-ae-f32c32-in, -f64c128-in and -f128c512-in (6, 7 and 8 levels), and of their -mix kin."""
    channels = [128, 256, 512, 512, 1024, 1024, 2048, 2048][:levels]
    return {
        "latent_channels": {6: 32, 7: 128, 8: 512}[levels],
        "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * (levels - 3),
        "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * (levels - 3),
        "encoder_block_out_channels": channels,
        "decoder_block_out_channels": channels,
        "encoder_layers_per_block": [0, 4, 8] + [2] * (levels - 3),
        "decoder_layers_per_block": [0, 5, 10] + [2] * (levels - 3),
        "encoder_qkv_multiscales": [[] for _ in range(levels)],
        "decoder_qkv_multiscales": [[] for _ in range(levels)],
        "decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * (levels - 3),
        "decoder_act_fns": ["relu"] * 3 + ["silu"] * (levels - 3),
        "scaling_factor": 0.3189,
        **more,
    }


LITE: dict[str, Any] = SANA | {
    "decoder_block_types": ["ResBlock"] * 6,
    "decoder_layers_per_block": [0, 3, 5, 4, 4, 4],
    "decoder_qkv_multiscales": [[]] * 6,
    "upsample_block_type": "pixel_shuffle",
    "decoder_conv_act_fn": "silu",
}


def narrow(fields: dict[str, Any], by: int = 16, most: int = 2) -> dict[str, Any]:
    """The same with narrower and fewer blocks."""
    found = dict(fields)
    for side in ("encoder", "decoder"):
        found[f"{side}_block_out_channels"] = [n // by for n in fields[f"{side}_block_out_channels"]]
        found[f"{side}_layers_per_block"] = [min(n, most) for n in fields[f"{side}_layers_per_block"]]
    return found | {"latent_channels": max(4, fields.get("latent_channels", 32) // by), "attention_head_dim": 32 // by}


SMALL: dict[str, dict[str, Any]] = {
    "sana": narrow(SANA),
    "f32": narrow(shuffled(6)),
    "f64": narrow(shuffled(7)),
    "f128": narrow(shuffled(8)),
    "lite": narrow(LITE),
    "several-scales": narrow(SANA) | {"encoder_qkv_multiscales": [[], [], [], [3, 5], [5], []]},
    "no-shortcuts": narrow(SANA) | {"encoder_out_shortcut": False, "decoder_in_shortcut": False},
    "first-level-strided": narrow(SANA) | {
        "encoder_layers_per_block": [0, 1, 1, 1, 1, 1], "decoder_layers_per_block": [0, 1, 1, 1, 1, 1],
    },
    "activations": narrow(SANA) | {"decoder_act_fns": ["relu", "silu", "relu", "silu", "silu", "silu"]},
    "scales-that-count-for-nothing": narrow(SANA) | {"decoder_qkv_multiscales": [[], [3], [], [5], [5], [5]]},
    "heads-that-nothing-tells": narrow(shuffled(6)) | {"attention_head_dim": 8},
    "grey": narrow(SANA) | {"in_channels": 1},
    "two-levels": {
        "latent_channels": 4, "attention_head_dim": 4, "encoder_block_types": "EfficientViTBlock",
        "decoder_block_types": "EfficientViTBlock", "encoder_block_out_channels": [8, 16],
        "decoder_block_out_channels": [8, 16], "encoder_layers_per_block": [1, 1], "decoder_layers_per_block": [1, 2],
        "encoder_qkv_multiscales": [[5], []], "decoder_qkv_multiscales": [[], [3]],
    },
}  # fmt: skip


def reference(fields: dict[str, Any], seed: int = 0) -> Any:
    """diffusers' class with random weights, those of norms and their statistics too."""
    theirs = import_diffusers().AutoencoderDC(**fields)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            if "running_var" in name:
                value.copy_(0.5 + noise.square())
            elif "running_mean" in name or name.endswith("bias"):
                value.copy_(0.2 * noise)
            elif "num_batches" in name:
                value.fill_(1234)
            elif value.ndim == 1:
                value.copy_(0.3 + 0.1 * noise)
            else:
                value.copy_(noise / value[0].numel() ** 0.5)
    return theirs.eval().requires_grad_(False)
