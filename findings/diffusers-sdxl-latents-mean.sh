#!/usr/bin/env bash
# diffusers 0.42.1: of the pipelines for SDXL, some leave the VAE's latents_mean and latents_std out.
#
# What one expects: a VAE whose config.json has latents_mean, latents_std and scaling_factor (Playground v2.5) is decoded
# as vae.decode(latents * std / scaling_factor + mean) by every SDXL pipeline. What happens: text to image, inpainting and
# ControlNet do so; T2I-Adapter and ControlNet inpainting decode latents / scaling_factor. Same model, same VAE, no
# warning, and pictures that are far off.
# Who meets it: whoever takes a Playground v2.5 pipeline's parts into one of the other two.
# What helps: ask these for output_type="latent" and decode by the formula above.
#
# Seen:
#   StableDiffusionXLPipeline: with mean and std
#   StableDiffusionXLInpaintPipeline: with mean and std
#   StableDiffusionXLControlNetPipeline: with mean and std
#   StableDiffusionXLAdapterPipeline: without
#   StableDiffusionXLControlNetInpaintPipeline: without
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)

diffusers.utils.logging.set_verbosity_error()
torch.manual_seed(0)
MEAN, STD, FACTOR = (-1.6574, 1.886, -1.383, 2.5155), (8.4927, 5.9022, 6.5498, 5.2299), 0.5
vae = AutoencoderKL(
    block_out_channels=(32, 64),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    latents_mean=MEAN,
    latents_std=STD,
    scaling_factor=FACTOR,
    force_upcast=False,
)
small = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 1),
    "use_linear_projection": True,
    "cross_attention_dim": 32,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}
parts = {
    "vae": vae,
    "unet": UNet2DConditionModel(up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), sample_size=16, **small),
    "scheduler": EulerDiscreteScheduler(),
    **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
}
control = ControlNetModel(conditioning_embedding_out_channels=(8, 16), **small)
adapter = T2IAdapter(channels=[32, 64], num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter_xl")
words = {"prompt_embeds": torch.randn(1, 4, 32), "pooled_prompt_embeds": torch.randn(1, 32)}
picture, mask, size = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32), {"height": 32, "width": 32}
paint = {"image": picture, "mask_image": mask, "strength": 1.0, **size}
pipelines = {
    StableDiffusionXLPipeline: ({}, size),
    StableDiffusionXLInpaintPipeline: ({}, paint),
    StableDiffusionXLControlNetPipeline: ({"controlnet": control}, {"image": picture}),
    StableDiffusionXLAdapterPipeline: ({"adapter": adapter}, {"image": picture, **size}),
    StableDiffusionXLControlNetInpaintPipeline: ({"controlnet": control}, {"control_image": picture, **paint}),
}
mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))


def decoded(raw):
    with torch.no_grad():
        return (vae.decode(raw).sample / 2 + 0.5).clamp(0, 1)


seen = []
for kind, (more, inputs) in pipelines.items():
    pipe = kind(**parts, **more)
    pipe.set_progress_bar_config(disable=True)
    latents, pixels = (
        pipe(
            **words, **inputs, num_inference_steps=1, guidance_scale=1.0, output_type=output,
            generator=torch.Generator().manual_seed(1),
        ).images
        for output in ("latent", "pt")
    )
    ways = {"with mean and std": latents * std / FACTOR + mean, "without": latents / FACTOR}
    (way,) = (way for way, raw in ways.items() if (decoded(raw) - pixels).abs().max() < 1e-3)
    print(f"{kind.__name__}: {way}")
    seen.append(way)
sys.exit(seen != ["with mean and std"] * 3 + ["without"] * 2)
PYTHON
