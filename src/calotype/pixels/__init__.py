"""Picture files, PIL images and uint8 arrays <-> pixels: float32 in [-1, 1], [3, H, W] or [N, 3, H, W], sRGB.

Whatever reading or writing does to a picture besides decoding it is either an error or one of the picture's notices.
"""

from calotype.pixels.geometry import Padding, Rows, crop, pad, pad_rows, planes
from calotype.pixels.levels import from_array, to_pil, to_uint8
from calotype.pixels.opening import MAX_PIXELS
from calotype.pixels.picture import Picture, PictureRows
from calotype.pixels.reading import picture_size, read_picture, read_picture_rows
from calotype.pixels.writing import require_writable, write_picture

__all__ = [
    "MAX_PIXELS",
    "Padding",
    "Picture",
    "PictureRows",
    "Rows",
    "crop",
    "from_array",
    "pad",
    "pad_rows",
    "picture_size",
    "planes",
    "read_picture",
    "read_picture_rows",
    "require_writable",
    "to_pil",
    "to_uint8",
    "write_picture",
]
