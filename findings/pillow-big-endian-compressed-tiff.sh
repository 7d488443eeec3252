#!/usr/bin/env bash
# Pillow 13.0.0: the bytes of a big-endian TIFF's floats and 32-bit whole numbers are swapped if it is compressed.
#
# What one expects: compression changes how many bytes a file has, not its numbers. What happens: float32, int32 and
# signed 16-bit grey in a big-endian ("MM") TIFF is read right without compression, and as garbage with deflate: libtiff
# gives the numbers in the machine's order, and Pillow swaps them once more. Unsigned 16-bit grey is right both ways. No
# error, no warning, the right mode and size.
# Who meets it: elevation models, depth maps and microscope pictures from ImageJ, ENVI or older Macs.
# What helps: tifffile; or rewrite the file little-endian before Pillow opens it.
#
# Seen:
#   >f4: uncompressed off by 0, deflate off by 1.48519e+38
#   >i4: uncompressed off by 0, deflate off by 2.14448e+09
#   >i2: uncompressed off by 0, deflate off by 54316
#   >u2: uncompressed off by 0, deflate off by 0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6 tifffile==2026.3.3
cd "$folder"
venv/bin/python - <<'PYTHON'
import io
import sys

import numpy as np
import tifffile
from PIL import Image

ramp = np.tile(np.linspace(0, 1, 64), (16, 1))


def off(kind: str, compression: str | None) -> float:
    """How far Pillow's numbers are from those that were written, at most."""
    written = (ramp if kind == ">f4" else ramp * 30000).astype(kind)
    file = io.BytesIO()
    tifffile.imwrite(file, written, byteorder=">", compression=compression, photometric="minisblack")
    with Image.open(file) as image:
        return float(abs(np.asarray(image).astype(float) - written.astype(float)).max())


wrong = set()
for kind in (">f4", ">i4", ">i2", ">u2"):
    plain, deflated = off(kind, None), off(kind, "zlib")
    print(f"{kind}: uncompressed off by {plain:g}, deflate off by {deflated:g}")
    assert plain == 0
    wrong |= {kind} if deflated else set()
sys.exit(wrong != {">f4", ">i4", ">i2"})
PYTHON
