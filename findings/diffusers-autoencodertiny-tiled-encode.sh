#!/usr/bin/env bash
# diffusers 0.42.1: AutoencoderTiny can't encode in tiles with other than 4 latent channels, and then decodes in them.
#
# What one expects: enable_tiling() works for TAESD3 and TAEF1 (16 channels) as it does for TAESD (4). What happens: the
# tiled encoder puts its pieces into a map of 4 channels, whatever the network has, and raises RuntimeError; the tiled
# decoder asks the network, and works. Pictures of at most tile_sample_min_size are encoded in one piece.
# Who meets it: whoever redraws large pictures with the tiny VAEs of SD3 or FLUX, and tiling on to save memory.
# What helps: disable_tiling() around encode; these networks take little memory.
#
# Seen:
#   4 channels, encode: (1, 4, 16, 16)
#   4 channels, decode: (1, 3, 128, 128)
#   16 channels, encode: RuntimeError: The size of tensor a (16) must match the size of tensor b (4) at non-singleton dimension 1
#   16 channels, decode: (1, 3, 128, 128)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import torch
from diffusers import AutoencoderTiny

torch.manual_seed(0)


def shape(run):
    try:
        with torch.no_grad():
            return str(tuple(run().shape))
    except RuntimeError as error:
        return f"RuntimeError: {error}"


seen = []
for channels in (4, 16):
    vae = AutoencoderTiny(latent_channels=channels).eval()
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 64, 8
    seen.append(shape(lambda: vae.encode(torch.rand(1, 3, 128, 128)).latents))
    print(f"{channels} channels, encode: {seen[-1]}")
    seen.append(shape(lambda: vae.decode(torch.randn(1, channels, 16, 16)).sample))
    print(f"{channels} channels, decode: {seen[-1]}")
refused = "RuntimeError: The size of tensor a (16) must match the size of tensor b (4) at non-singleton dimension 1"
sys.exit(seen != ["(1, 4, 16, 16)", "(1, 3, 128, 128)", refused, "(1, 3, 128, 128)"])
PYTHON
