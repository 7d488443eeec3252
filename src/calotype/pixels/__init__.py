"""Picture files, PIL images and uint8 arrays <-> pixels: float32 in [-1, 1], [C, H, W] or [N, C, H, W], sRGB.

Pictures are read as RGB (C = 3), with alpha aside; `channels` makes of them what VAEs of grey and RGBA take.

Whatever reading or writing does to a picture besides decoding it is either an error or one of the picture's notices.
"""

from calotype.pixels.channels import (
    AlphaMode,
    alpha_mode,
    for_channels,
    luma,
    require_channels,
    require_rgb,
    seen,
    to_channels,
)
from calotype.pixels.geometry import Padding, Rows, crop, pad, pad_rows, planes
from calotype.pixels.levels import from_array, to_pil, to_uint8
from calotype.pixels.opening import MAX_PIXELS
from calotype.pixels.picture import Picture, PictureRows
from calotype.pixels.reading import picture_size, read_picture, read_picture_rows, require_whole, upright_size
from calotype.pixels.writing import require_writable, write_picture

__all__ = [
    "MAX_PIXELS",
    "AlphaMode",
    "Padding",
    "Picture",
    "PictureRows",
    "Rows",
    "alpha_mode",
    "crop",
    "for_channels",
    "from_array",
    "luma",
    "pad",
    "pad_rows",
    "picture_size",
    "planes",
    "read_picture",
    "read_picture_rows",
    "require_channels",
    "require_rgb",
    "require_whole",
    "require_writable",
    "seen",
    "to_channels",
    "to_pil",
    "to_uint8",
    "upright_size",
    "write_picture",
]
