#!/usr/bin/env bash
# Pillow 13.0.0: in a colour JPEG 2000 of more than 8 bits, white comes out black.
#
# What one expects: Pillow has no 16-bit colour, so 10, 12 or 16 bits become 8, rounded, and the brightest value is 255.
# What happens: a half is added and nothing is clamped, so the brightest values, those above 254.5, wrap to 0. No error, no
# warning. Grey of 16 bits (mode I;16) and colour of 8 bits are right.
# Who meets it: digital cinema frames (12 bits), scans of libraries and archives and satellite pictures kept as .jp2, with
# blown-out skies and paper white turning into black specks.
# What helps: decode with OpenJPEG itself (imagecodecs, glymur), or refuse `.jp2` whose bit depth is above 8.
#
# Seen:
#   RGB of 8 bits: white is 255, off by 0.0 levels
#   RGB of 10 bits: white is 0, off by 255.0 levels
#   RGB of 12 bits: white is 0, off by 255.0 levels
#   RGB of 16 bits: white is 0, off by 255.0 levels
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6 imagecodecs==2026.3.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import io
import sys

import imagecodecs
import numpy as np
from PIL import Image

seen = {}
for bits in (8, 10, 12, 16):
    top = 2**bits - 1
    ramp = np.linspace(0, top, 64).round().astype(np.uint8 if bits == 8 else np.uint16)
    picture = np.tile(ramp[None, :, None], (16, 1, 3))
    data = imagecodecs.jpeg2k_encode(picture, bitspersample=bits, level=0, reversible=True, codecformat="jp2")
    assert np.array_equal(imagecodecs.jpeg2k_decode(data), picture)  # the file is sound
    with Image.open(io.BytesIO(data)) as image:
        levels = np.asarray(image).astype(float)
        off = abs(levels - picture.astype(float) * 255 / top).max()
        print(f"{image.mode} of {bits} bits: white is {levels[0, -1, 0]:.0f}, off by {off:.1f} levels")
    seen[bits] = int(levels[0, -1, 0])
sys.exit(seen != {8: 255, 10: 0, 12: 0, 16: 0})
PYTHON
