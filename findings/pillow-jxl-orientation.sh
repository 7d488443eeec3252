#!/usr/bin/env bash
# pillow-jxl-plugin 1.3.8: a turned picture that it encodes from pixels lies on its side in programs that follow the format.
#
# What one expects: save("photo.jxl", exif=...) keeps a photo's orientation as it does for JPEG. What happens: the format
# has an orientation in its header, which decoders apply, and says that the one in EXIF counts for nothing. From pixels the
# plugin writes the second alone; from a JPEG that it packs as it is (lossless_jpeg, what it does by default if the image
# still is that file), libjxl writes the first. So the same picture, the same call and the same EXIF give one file that
# others turn, and one that they don't. The plugin itself gives pixels as they are stored and the orientation in EXIF,
# for both, and a round trip through Pillow shows nothing.
# Who meets it: whoever turns phone photos into JPEG XL for a data set, resized or with a quality, and reads them elsewhere.
# What helps: ImageOps.exif_transpose before saving; to a reader, the header's orientation first and EXIF's only if it is 1.
#
# Seen (a photo of 64x32 whose orientation is 6, so 32x64 upright; width x height):
#   packed as it is: imagecodecs 32x64, Pillow and exif_transpose 32x64
#   from pixels: imagecodecs 64x32, Pillow and exif_transpose 32x64
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    pillow==13.0.0 pillow-jxl-plugin==1.3.8 imagecodecs==2026.3.6 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pillow_jxl  # noqa: F401
from PIL import Image, ImageOps

exif = Image.Exif()
exif[0x0112] = 6
picture = np.zeros((32, 64, 3), np.uint8)
picture[:, :32] = 255
Image.fromarray(picture).save("photo.jpg", exif=exif)


def told(packed):
    """What two readers make of the photo as JPEG XL."""
    with Image.open("photo.jpg") as image:
        image.save("photo.jxl", exif=image.info["exif"], lossless_jpeg=packed)
    height, width = imagecodecs.jpegxl_decode(Path("photo.jxl").read_bytes()).shape[:2]
    with Image.open("photo.jxl") as image:
        turned = ImageOps.exif_transpose(image)
    return f"imagecodecs {width}x{height}, Pillow and exif_transpose {turned.width}x{turned.height}"


packed, pixels = told(True), told(False)
print(f"packed as it is: {packed}\nfrom pixels: {pixels}")
sys.exit(
    packed != "imagecodecs 32x64, Pillow and exif_transpose 32x64"
    or pixels != "imagecodecs 64x32, Pillow and exif_transpose 32x64"
)
PYTHON
