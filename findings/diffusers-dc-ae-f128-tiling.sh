#!/usr/bin/env bash
# diffusers 0.42.1: AutoencoderDC of factor 128 (eight levels, as dc-ae-f128c512) gives another size with tiling on.
#
# What one expects: enable_tiling() changes memory and, at the seams, a little of the numbers; 1024x1024 pixels are 8x8
# latents with it and without it. What happens: the default stride of tiles is 448 pixels, which is no multiple of 128;
# in latents it is taken as 3 (384 pixels). Decoding moves on by 3 latents and keeps 448 pixels of each tile, encoding
# moves on by 448 pixels and keeps 3 latents: nothing raises, and pictures and latents have other sizes, with strips
# that come twice or are lost. Factors 32 and 64 divide 448 and are right.
# Who meets it: whoever turns tiling on for DC-AE f128, for pictures of more than 512 pixels.
# What helps: enable_tiling(tile_sample_stride_height=384, tile_sample_stride_width=384).
#
# Seen:
#   factor 64, 1024x1024: latents 16x16, picture 1024x1024
#   factor 128, 1024x1024: latents 7x7, picture 1152x1152
#   factor 128, stride 384: latents 8x8, picture 1024x1024
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import torch
from diffusers import AutoencoderDC

torch.manual_seed(0)


def sizes(levels, **tiles):
    """Sides of the latents of 1024x1024 pixels, and of the picture that as many latents as there should be give."""
    vae = AutoencoderDC(
        latent_channels=8, attention_head_dim=8, encoder_block_out_channels=(8,) * levels,
        decoder_block_out_channels=(8,) * levels, encoder_layers_per_block=(1,) * levels,
        decoder_layers_per_block=(1,) * levels, encoder_qkv_multiscales=((),) * levels,
        decoder_qkv_multiscales=((),) * levels,
    ).eval()
    vae.enable_tiling(**tiles)
    side = 1024 // 2 ** (levels - 1)
    with torch.no_grad():
        latents = vae.encode(torch.rand(1, 3, 1024, 1024)).latent
        picture = vae.decode(torch.randn(1, 8, side, side)).sample
    return f"latents {latents.shape[2]}x{latents.shape[3]}, picture {picture.shape[2]}x{picture.shape[3]}"


stride = {"tile_sample_stride_height": 384, "tile_sample_stride_width": 384}
seen = [sizes(7), sizes(8), sizes(8, **stride)]
for what, size in zip(("factor 64, 1024x1024", "factor 128, 1024x1024", "factor 128, stride 384"), seen):
    print(f"{what}: {size}")
right = "latents {}x{}, picture 1024x1024"
sys.exit(seen != [right.format(16, 16), "latents 7x7, picture 1152x1152", right.format(8, 8)])
PYTHON
