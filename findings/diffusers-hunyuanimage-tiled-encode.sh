#!/usr/bin/env bash
# diffusers 0.42.1: AutoencoderKLHunyuanImage decodes in tiles, and can't encode in them.
#
# What one expects: after enable_tiling() a picture larger than a tile is encoded and decoded piece by piece, as with the
# other autoencoders of still images. What happens: decode does so; encode raises ValueError, because tiled_encode takes
# its input for a video of five dimensions, while the class, which is for pictures, takes four everywhere else. Pictures
# of at most sample_size are encoded in one piece, so small tests pass.
# Who meets it: whoever edits large pictures, or caches latents of them, with tiling on to save memory.
# What helps: disable_tiling() around encode.
#
# Seen:
#   encode 32x32 with tiling: latents 8x8
#   encode 64x64 without tiling: latents 16x16
#   encode 64x64 with tiling: ValueError: not enough values to unpack (expected 5, got 4)
#   decode 16x16 latents with tiling: picture 64x64
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import torch
from diffusers import AutoencoderKLHunyuanImage

torch.manual_seed(0)
vae = AutoencoderKLHunyuanImage(
    in_channels=3,
    out_channels=3,
    latent_channels=8,
    block_out_channels=(32, 32, 64),
    layers_per_block=1,
    spatial_compression_ratio=4,
    sample_size=32,
).eval()
small, large, latents = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 64, 64), torch.randn(1, 8, 16, 16)


def sides(x):
    return f"{x.shape[-2]}x{x.shape[-1]}"


def encoded(x):
    try:
        return f"latents {sides(vae.encode(x).latent_dist.mode())}"
    except ValueError as error:
        return f"ValueError: {error}"


with torch.no_grad():
    whole = encoded(large)
    vae.enable_tiling()
    seen = {
        "encode 32x32 with tiling": encoded(small),
        "encode 64x64 without tiling": whole,
        "encode 64x64 with tiling": encoded(large),
        "decode 16x16 latents with tiling": f"picture {sides(vae.decode(latents).sample)}",
    }
for what, came in seen.items():
    print(f"{what}: {came}")
sys.exit(
    list(seen.values())
    != [
        "latents 8x8",
        "latents 16x16",
        "ValueError: not enough values to unpack (expected 5, got 4)",
        "picture 64x64",
    ]
)
PYTHON
