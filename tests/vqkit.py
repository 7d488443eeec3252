"""VQModels as diffusers has them: the published ones, narrow ones of every kind, random weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from support import import_diffusers
from torch import Tensor

F4: dict[str, Any] = {
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "latent_channels": 3,
    "num_vq_embeddings": 8192,
    "sample_size": 256,
}
MOVQ: dict[str, Any] = {
    "block_out_channels": [128, 256, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "latent_channels": 4,
    "vq_embed_dim": 4,
    "num_vq_embeddings": 16384,
    "norm_type": "spatial",
}
AMUSED: dict[str, Any] = {
    "block_out_channels": [128, 256, 256, 512, 768],
    "down_block_types": ["DownEncoderBlock2D"] * 5,
    "up_block_types": ["UpDecoderBlock2D"] * 5,
    "layers_per_block": 2,
    "latent_channels": 64,
    "num_vq_embeddings": 8192,
    "lookup_from_codebook": True,
    "mid_block_add_attention": False,
    "force_upcast": True,
}


def narrow(fields: dict[str, Any], channels: list[int], **more: Any) -> dict[str, Any]:
    """The same with narrower levels and a block in each."""
    return fields | {"block_out_channels": channels, "layers_per_block": 1, "num_vq_embeddings": 60} | more


SMALL: dict[str, dict[str, Any]] = {
    "f4": narrow(F4, [16, 16, 32], norm_num_groups=8),
    "movq": narrow(MOVQ, [32, 32, 32, 64]),
    # as hf-internal-testing/tiny-random-kandinsky-v22-decoder: only the norms without latents have 8 groups
    "movq-groups": narrow(MOVQ, [32, 64], norm_num_groups=8, layers_per_block=2)
    | {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
       "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]},
    "attention": narrow(MOVQ, [8, 16, 16, 16], norm_num_groups=4, norm_type="group"),
    "amused": narrow(AMUSED, [8, 8, 16, 16, 24], norm_num_groups=4, latent_channels=6),
    "embedded": narrow(F4, [16, 16, 32], norm_num_groups=8, latent_channels=6, vq_embed_dim=3),
    "one-level": {"block_out_channels": [32], "num_vq_embeddings": 30},
    "grey": narrow(F4, [16, 16, 32], norm_num_groups=8, in_channels=1, out_channels=1),
    "relu": narrow(F4, [16, 16, 32], norm_num_groups=8, act_fn="relu"),
    "movq-mish": narrow(MOVQ, [32, 32, 32, 32], act_fn="mish"),
}  # fmt: skip


def reference(fields: dict[str, Any], seed: int = 0) -> Any:
    """diffusers' class with random weights; the codebook's entries are points of a lattice, none near another."""
    theirs = import_diffusers().VQModel(**fields)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            if name == "quantize.embedding.weight":
                value.copy_(lattice(*value.shape, generator=generator))
            elif name.endswith("bias"):
                value.copy_(0.2 * noise)
            elif value.ndim == 1:
                value.copy_(1 + 0.3 * noise)
            else:
                value.copy_(noise / value[0].numel() ** 0.5)
    return theirs.eval().requires_grad_(False)


def spacing(entries: int, channels: int) -> float:
    """Between the lattice's points, along each axis."""
    return 4 / max(2, math.ceil(entries ** (1 / channels)))


def lattice(entries: int, channels: int, generator: torch.Generator) -> Tensor:
    """So many of its points, within 2 of the middle."""
    side = max(2, math.ceil(entries ** (1 / channels)))
    if channels > 12:  # a random corner of a cube each
        points = torch.randint(0, side, (entries, channels), generator=generator)
    else:
        number = torch.randperm(side**channels, generator=generator)[:entries]
        points = torch.stack([number // side**i % side for i in range(channels)], 1)
    return (points - (side - 1) / 2) * spacing(entries, channels)


def latents(theirs: Any, seed: int, *shape: int) -> Tensor:
    """Latents [n, C, height, width] near entries, so that rounding changes no choice, and not so near as to be them."""
    n, height, width = shape
    codebook = theirs.quantize.embedding.weight
    entries, channels = codebook.shape
    generator = torch.Generator().manual_seed(seed)
    z = codebook[torch.randint(0, entries, (n, height, width), generator=generator)]
    off = (torch.rand(z.shape, generator=generator) - 0.5) * 0.6 * spacing(entries, channels)
    return (z + off).permute(0, 3, 1, 2).contiguous()
