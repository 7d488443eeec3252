#!/usr/bin/env bash
# Pillow 13.0.0: an uncompressed 16-bit RGB TIFF whose planes lie one after another opens, and its colours are wrong.
#
# What one expects: Pillow has no 16-bit colour, so such a picture comes as 8 bits, each the upper half of 16, as it does
# where the samples of a pixel lie side by side. What happens: with PlanarConfiguration 2 and no compression the planes
# are taken for 8-bit ones, so that low and high bytes become neighbouring pixels. No error, no warning, mode RGB, the
# right size. The same planes compressed with deflate are read right.
# Who meets it: scans and microscope or satellite pictures saved by planes (tifffile's planarconfig="separate", GDAL's
# INTERLEAVE=BAND, libvips), read for a training set.
# What helps: tifffile reads them; or check tag 284 and BitsPerSample before believing Pillow.
#
# Seen: "side by side: RGB (64, 16), off by 0 levels; by planes: RGB (64, 16), off by 130 levels; by planes, deflate: RGB
# (64, 16), off by 0 levels"
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6 tifffile==2026.3.3
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import numpy as np
import tifffile
from PIL import Image

ramp = np.linspace(0, 65535, 64).round().astype(np.uint16)
picture = np.stack([np.tile(ramp, (16, 1)), np.tile(ramp[::-1], (16, 1)), np.full((16, 64), 16384, np.uint16)])


def told(how, compression=None):
    """Pillow's picture, and how far it is from the upper bytes."""
    array = picture if how == "separate" else picture.transpose(1, 2, 0)
    tifffile.imwrite("x.tif", array, photometric="rgb", planarconfig=how, compression=compression)
    with Image.open("x.tif") as image:
        levels = np.asarray(image).astype(int)
        return f"{image.mode} {image.size}, off by {abs(levels - (picture >> 8).transpose(1, 2, 0)).max()} levels"


side, planes, deflated = told("contig"), told("separate"), told("separate", "zlib")
print(f"side by side: {side}; by planes: {planes}; by planes, deflate: {deflated}")
sys.exit(not (side == deflated == "RGB (64, 16), off by 0 levels" and planes == "RGB (64, 16), off by 130 levels"))
PYTHON
