"""Published weights of VQModels, and formats of their latents. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calotype.families.face import Preset, Space, on_the_hub
from calotype.families.vq.config import VqConfig

VQ_F4 = VqConfig()
VQ_F8 = VqConfig(ch_mult=(1, 2, 2, 4), embed_dim=4, n_embed=16384, attn_levels=(3,))
VQ_F16 = VqConfig(ch_mult=(1, 1, 2, 2, 4), embed_dim=8, n_embed=16384, attn_levels=(4,))
MOVQ = VqConfig(ch_mult=(1, 2, 2, 4), embed_dim=4, n_embed=16384, attn_levels=(3,), spatial_norm=True)

PRESETS: Mapping[str, Preset] = {
    "ldm-vq-f4": Preset(
        repo="CompVis/ldm-celebahq-256",
        files=("vqvae/config.json", "vqvae/diffusion_pytorch_model.bin"),
        latent_format="vq-f4",
        config=VQ_F4,
        licence="Apache-2.0",
        about="latent-diffusion's VQ-f4; latents are entries of a codebook",
    ),
    "kandinsky-movq": Preset(
        repo="kandinsky-community/kandinsky-2-2-decoder",
        files=on_the_hub("movq/"),
        latent_format="movq",
        config=MOVQ,
        licence="Apache-2.0",
        about="Kandinsky 2.2; the decoder's norms follow the latents",
    ),
}

# Latents of a codebook have a variance near 1 and are not scaled: latent-diffusion's models on VQ autoencoders leave
# scale_factor at 1 (configs/latent-diffusion/celebahq-ldm-vq-4.yaml), and Kandinsky's pipelines (diffusers 0.42.1,
# pipelines/kandinsky*) decode latents as they are, whatever scaling_factor their movq/config.json says.
FORMATS: tuple[Mapping[str, Any], ...] = tuple(
    {"kind": "scale_shift", "name": name, "channels": channels, "scaling_factor": 1.0}
    for name, channels in (("vq-f4", 3), ("vq-f8", 4), ("vq-f16", 8), ("movq", 4))
)


SPACES: Mapping[str, Space] = {
    "vq-f4": Space(
        title="latent-diffusion, VQ-f4",
        factor=4,
        models={
            "LDM on CelebA-HQ, FFHQ and LSUN bedrooms": "CompVis/latent-diffusion, configs/latent-diffusion",
            "LDM super-resolution": "diffusers 0.42.1, pipelines/latent_diffusion",
        },
    ),
    "vq-f8": Space(
        title="latent-diffusion, VQ-f8",
        factor=8,
        models={"LDM on ImageNet": "CompVis/latent-diffusion, configs/latent-diffusion/cin-ldm-vq-f8.yaml"},
    ),
    "vq-f16": Space(title="latent-diffusion, VQ-f16", factor=16, models={}),
    "movq": Space(
        title="Kandinsky 2",
        factor=8,
        models={
            "Kandinsky 2.1": "diffusers 0.42.1, pipelines/kandinsky",
            "Kandinsky 2.2": "diffusers 0.42.1, pipelines/kandinsky2_2",
        },
    ),
}


def space(config: VqConfig) -> str | None:
    """The latent format of its kind: what a config.json says of scales comes first."""
    if config.spatial_norm:
        return "movq" if config.embed_dim == MOVQ.embed_dim else None
    kinds = {"vq-f4": VQ_F4, "vq-f8": VQ_F8, "vq-f16": VQ_F16}
    numbers = config.factor, config.embed_dim
    return next((name for name, known in kinds.items() if (known.factor, known.embed_dim) == numbers), None)
