#!/usr/bin/env bash
# diffusers 0.42.1: kl() and nll() of a posterior of Wan's, Qwen-Image's or any video VAE are no number per sample.
#
# What one expects: DiagonalGaussianDistribution.kl() sums over all but the batch and gives [batch], as it does for
# AutoencoderKL. What happens: it sums over dimensions 1 to 3, whatever there is, and the moments of these VAEs have
# five dimensions (channels, frames, height, width), for a single picture too: one number is left for each column of
# latents, [batch, width], and each is the sum over its column alone. A mean over it is too small by the factor of the
# width, without a word.
# Who meets it: whoever trains or fine-tunes such a VAE with a weight for the KL that is right for SD's.
# What helps: posterior.kl().sum(-1), or one's own 0.5 * (mean**2 + var - 1 - logvar).flatten(1).sum(1).
#
# Seen:
#   AutoencoderKL: kl (2,), nll (2,)
#   AutoencoderKLWan: kl (2, 16), nll (2, 16); mean over what is returned / mean over samples: 0.0625
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import math
import sys

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan

torch.manual_seed(0)
picture = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).eval()
video = AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1).eval()
with torch.no_grad():
    flat = picture.encode(torch.rand(2, 3, 16, 16) * 2 - 1).latent_dist
    deep = video.encode(torch.rand(2, 3, 1, 128, 128) * 2 - 1).latent_dist
seen = [tuple(one.shape) for dist in (flat, deep) for one in (dist.kl(), dist.nll(dist.mean))]
own = 0.5 * (deep.mean**2 + deep.var - 1 - deep.logvar).flatten(1).sum(1)
ratio = (deep.kl().mean() / own.mean()).item()
print(f"AutoencoderKL: kl {seen[0]}, nll {seen[1]}")
print(f"AutoencoderKLWan: kl {seen[2]}, nll {seen[3]}; mean over what is returned / mean over samples: {ratio:.4f}")
sys.exit(not (seen == [(2,), (2,), (2, 16), (2, 16)] and math.isclose(ratio, 1 / 16, rel_tol=1e-4)))
PYTHON
