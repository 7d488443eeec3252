"""Pictures of every format and kind that is read."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filekit import chrm, chunk, cicp, cmyk_profile, gama, png, tiff
from fuzzkit import Accepted, Case
from PIL import Image, ImageCms, ImageFile

from calotype.pixels import picture_size, read_picture_rows
from calotype.pixels.kinds import suffixes

Array = npt.NDArray[Any]

WIDTH, HEIGHT = 36, 28
rng = np.random.default_rng(0)


def read(path: Path) -> Accepted:
    with path.open("rb") as file:
        picture_size(file)
    rows = read_picture_rows(path, alpha="keep")
    assert all(notice.isprintable() and notice.endswith(".") for notice in rows.notices), rows.notices
    height, width = rows.size
    digest = hashlib.sha256(np.ascontiguousarray(rows.levels))
    if rows.opacity is not None:
        digest.update(np.ascontiguousarray(rows.opacity))
    return Accepted(f"{height} x {width} {digest.hexdigest()}", 40 * height * width)


def read_resummed(path: Path) -> Accepted:
    """A PNG whose checksums are made right first: damage that was there when it was written."""
    content = bytearray(path.read_bytes())
    at = 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4])
        content[end : end + 4] = zlib.crc32(content[at + 4 : end]).to_bytes(4)[: max(0, len(content) - end)]
        at = end + 4
    path.write_bytes(content)
    return read(path)


def colours(width: int = WIDTH, height: int = HEIGHT, channels: int = 4) -> Array:
    """A smooth part, so that packing packs, and noise."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([(x * (i + 3) + y * (7 - i)) % 256 for i in range(channels)], axis=-1)
    noise = rng.integers(0, 256, smooth.shape)
    return np.where((y > height // 2)[..., None], noise, smooth).astype(np.uint8)


def saved(image: Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def profile() -> bytes:
    """Of a picture of another colour space than sRGB."""
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for number in range(struct.unpack_from(">I", made, 128)[0]):
        name, at, length = struct.unpack_from(">4sII", made, 132 + 12 * number)
        if name == b"rXYZ":
            struct.pack_into(">i", made, at + 8, round(0.6 * 65536))
        del length
    return bytes(made)


def packed(array: Array, size: int, *chunks: tuple[bytes, bytes], after: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """A PNG whose data are in chunks of so many bytes."""
    whole = png(array, *chunks, after=after)
    at = whole.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", whole, at)
    data = whole[at + 8 : at + 8 + length]
    parts = b"".join(chunk(b"IDAT", data[i : i + size]) for i in range(0, length, size))
    return whole[:at] + parts + whole[at + 12 + length :]


def shallow_png(colour_type: int, depth: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Of less than 8 bits, or of 8."""
    rows = rng.integers(0, 256, (HEIGHT, (WIDTH * depth + 7) // 8), dtype=np.uint8)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour_type, 0, 0, 0))
    middle = b"".join(chunk(*one) for one in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + middle + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def pngs() -> Iterator[tuple[str, bytes]]:
    rgba = colours()
    deep = rng.integers(0, 65536, (HEIGHT, WIDTH, 4), dtype=np.uint16)
    text = ((b"tEXt", b"Title\0a picture"), (b"zTXt", b"Software\0\0" + zlib.compress(b"none" * 9)))
    exif = Image.Exif()
    exif[274] = 6
    palette = (b"PLTE", rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    icc = (b"iCCP", b"wide\0\0" + zlib.compress(profile()))
    for depth in (1, 2, 4, 8):
        yield f"palette {depth}", shallow_png(3, depth, (palette[0], palette[1][: 3 * 2**depth]), (b"tRNS", b"\0"))
        yield f"grey {depth}", shallow_png(0, depth, (b"tRNS", b"\0\1"))
    yield "grey 16", png(deep[..., 0])
    yield "grey and alpha", png(rgba[..., :2])
    yield "grey and alpha 16", png(deep[..., :2], gama(0.5))
    yield "rgb", png(rgba[..., :3], *text)
    yield "rgb 16", packed(deep[..., :3], 1000, cicp(9, 13))
    yield "rgba", png(rgba, icc)
    yield "rgba 16", png(deep, icc)
    yield "gamma", png(rgba[..., :3], gama(0.3), chrm(0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06))
    yield "cicp", png(rgba[..., :3], cicp(12, 13), *text)
    yield "exif", png(rgba[..., :3], (b"eXIf", exif.tobytes()[6:]))
    yield "exif after", png(rgba[..., :3], after=((b"eXIf", exif.tobytes()[6:]), *text))
    yield "key", png(rgba[..., :3], (b"tRNS", b"\0\1\0\2\0\3"))
    yield "many chunks", packed(colours(300, 200, 3), 700)
    yield "large", packed(np.broadcast_to(colours(1, 900, 3), (900, 900, 3)), 2**16)
    yield "noise", png(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    yield "interlaced", interlaced()
    frames = [Image.fromarray(colours()) for _ in range(3)]
    yield "animated", saved(frames[0], "PNG", save_all=True, append_images=frames[1:])


def interlaced() -> bytes:
    levels = colours(WIDTH, HEIGHT, 3)
    rows = []
    for x, y, across, down in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):  # fmt: skip  # noqa: E501
        rows += [b"\0" + row.tobytes() for row in levels[y::down, x::across]]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")


def tiffs() -> Iterator[tuple[str, bytes]]:
    rgb = colours(80, 70, 3)
    image = Image.fromarray(rgb)
    for packing in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd"):
        yield packing, saved(image, "TIFF", compression=packing, strip_size=80 * 3 * 16, icc_profile=profile())
    yield "fax", saved(image.convert("1"), "TIFF", compression="group4")
    yield "palette", saved(image.convert("P"), "TIFF")
    yield "lab", saved(image.convert("LAB"), "TIFF")
    yield "cmyk", saved(image.convert("CMYK"), "TIFF", compression="tiff_lzw", icc_profile=cmyk_profile())
    deep = rng.integers(0, 65536, (HEIGHT, WIDTH, 4), dtype=np.uint16)
    yield "grey 16", tiff(deep[..., :1], 1)
    yield "rgb 16", tiff(deep[..., :3], 2)
    yield "rgba 16 big", tiff(deep, 2, extra=(1,), big=True, order=">")
    yield "planes", tiff(deep[..., :3], 2, planar=True)
    yield "signed", tiff(deep[..., :1].astype(np.int32), 1)
    yield "floats", tiff(rng.random((HEIGHT, WIDTH, 3), dtype=np.float32), 2)
    yield "nodata", tiff(rng.random((HEIGHT, WIDTH, 1)), 1, more=[(42113, 2, b"-9999\0")])
    try:
        import tifffile
    except ImportError:
        return
    for name, array, options in (
        ("tiles", rgb, {"tile": (32, 32), "compression": "deflate"}),
        ("tiles 16", deep[..., :3], {"tile": (16, 16), "compression": "lzw", "predictor": 2}),
        ("jpeg 2000", rgb, {"compression": "jpeg2000"}),
        ("floats deflate", deep[..., :3] / np.float32(65535), {"compression": "deflate", "predictor": 3}),
        ("zstd 16", deep[..., :3], {"compression": "zstd"}),
        ("lzma 16", deep[..., :3], {"compression": "lzma"}),
        ("lerc", deep[..., :1] / np.float32(65535), {"compression": "lerc"}),
        ("pages", rgb, {}),
    ):
        file = io.BytesIO()
        with tifffile.TiffWriter(file) as writer:
            for _ in range(3 if name == "pages" else 1):
                writer.write(array, photometric="rgb" if array.shape[-1] == 3 else "minisblack", **options)
        yield name, file.getvalue()


def others() -> Iterator[tuple[str, bytes]]:
    rgba = Image.fromarray(colours())
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    exif = Image.Exif()
    exif[274] = 6
    exif.get_ifd(0x8769)[0xA001] = 2
    said = {"icc_profile": profile(), "exif": exif.tobytes()}
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'></x:xmpmeta>"
    yield "grey.jpg", saved(grey, "JPEG")
    yield "rgb.jpg", saved(rgb, "JPEG", **said, xmp=xmp)
    yield "progressive.jpg", saved(rgb, "JPEG", progressive=True, subsampling=2)
    yield "cmyk.jpg", saved(rgb.convert("CMYK"), "JPEG", icc_profile=cmyk_profile())
    yield "two.mpo", saved(rgb, "MPO", save_all=True, append_images=[rgb])
    yield "lossy.webp", saved(rgba, "WEBP", **said, xmp=xmp)
    yield "lossless.webp", saved(rgba, "WEBP", lossless=True)
    yield "simple.webp", saved(rgb, "WEBP")
    yield "animated.webp", saved(rgba, "WEBP", save_all=True, append_images=[rgba.rotate(180)], lossless=True)
    yield "rgb.avif", saved(rgb, "AVIF", **said)
    yield "rgba.avif", saved(rgba, "AVIF")
    yield "one.gif", saved(rgb, "GIF")
    yield "animated.gif", saved(rgb, "GIF", save_all=True, append_images=[rgb.rotate(180)], transparency=3)
    yield "rgb.bmp", saved(rgb, "BMP")
    yield "palette.bmp", saved(rgb.convert("P"), "BMP")
    yield "rle.bmp", rle_bmp()
    yield "rgb.dib", saved(rgb, "DIB")
    yield "rgb.ppm", saved(rgb, "PPM")
    yield "deep.ppm", b"P6 36 28 4095\n" + rng.integers(0, 4096, HEIGHT * WIDTH * 3).astype(">u2").tobytes()
    yield "grey.pgm", saved(grey, "PPM")
    yield "bits.pbm", saved(grey.convert("1"), "PPM")
    yield "plain.ppm", b"P3 5 4 255\n" + b" ".join(b"%d" % n for n in range(60))
    yield "floats.pfm", saved(Image.fromarray(rng.random((HEIGHT, WIDTH), dtype=np.float32)), "PPM")
    yield "icon.ico", saved(rgba, "ICO", sizes=[(16, 16), (24, 24)])
    yield "bitmap.ico", saved(rgba, "ICO", sizes=[(16, 16)], bitmap_format="bmp")
    yield "icon.icns", saved(rgba.resize((64, 64)), "ICNS")
    yield "rgb.jp2", saved(rgb, "JPEG2000")
    yield "lossy.j2k", saved(rgba, "JPEG2000", irreversible=True, tile_size=(16, 16))
    yield "rgb.tga", saved(rgba, "TGA")
    yield "rle.tga", saved(rgb.convert("P"), "TGA", compression="tga_rle")
    yield "rgb.sgi", saved(rgb, "SGI")
    yield "rle.sgi", rle_sgi()
    yield "rgb.pcx", saved(rgb, "PCX")
    yield "rgb.dds", saved(rgba, "DDS")
    yield "dxt.dds", saved(rgba, "DDS", pixel_format="DXT5")
    yield "rgba.qoi", saved(rgba, "QOI")
    yield "bits.msp", saved(grey.convert("1"), "MSP")
    yield "bits.xbm", saved(grey.convert("1"), "XBM")
    yield "drawing.xpm", XPM
    yield "picture.psd", psd()
    yield "picture.blp", saved(rgb.convert("P"), "BLP")
    read_too = suffixes()
    if ".heic" in read_too:
        yield "rgb.heic", saved(rgb, "HEIF", **said)
        yield "rgba.heif", saved(rgba, "HEIF")
    if ".jxl" in read_too:
        yield "rgb.jxl", saved(rgb, "JXL", lossless=True, exif=exif.tobytes())
        yield "lossy.jxl", saved(rgba, "JXL", quality=80)
    try:
        import imagecodecs
    except ImportError:
        return
    deep = rng.integers(0, 1024, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    yield "deep.avif", imagecodecs.avif_encode(deep, bitspersample=10)
    yield "deep.jp2", imagecodecs.jpeg2k_encode(deep, bitspersample=10)
    if imagecodecs.JPEGXL.available:
        yield "deep.jxl", imagecodecs.jpegxl_encode(deep << 6, lossless=True)


def rle_bmp() -> bytes:
    rows = b"".join(b"\x10\x03\x14\x07" + b"\0\0" for _ in range(HEIGHT)) + b"\0\1"
    table = rng.integers(0, 256, 1024, dtype=np.uint8).tobytes()
    head = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 8, 1, len(rows), 0, 0, 256, 0)
    start = 14 + len(head) + len(table)
    return struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start) + head + table + rows


def rle_sgi() -> bytes:
    row = bytes((0x80 | 4, 1, 2, 3, 4, WIDTH - 4, 9, 0))
    start = 512 + 8 * HEIGHT
    head = struct.pack(">HBBHHHHII", 474, 1, 1, 2, WIDTH, HEIGHT, 1, 0, 255).ljust(512, b"\0")
    return head + struct.pack(">I", start) * HEIGHT + struct.pack(">I", len(row)) * HEIGHT + row


def psd() -> bytes:
    levels = colours(WIDTH, HEIGHT, 3)
    head = struct.pack(">4sH6sHIIHH", b"8BPS", 1, bytes(6), 3, HEIGHT, WIDTH, 8, 3)
    return head + bytes(12) + b"\0\0" + levels.transpose(2, 0, 1).tobytes()


XPM = b"""/* XPM */
static char *drawing[] = {
"4 3 2 1",
"a c #102030",
"b c #f0e0d0",
"abab",
"baba",
"abba",
};
"""


def cases(folder: Path) -> list[Case]:
    ImageFile.MAXBLOCK = 2**20  # Pillow's writers need it for small pictures with much said of them
    made = [Case(f"{name}.png", content, read, summed=True) for name, content in pngs()]
    made += [Case(f"resummed {name}.png", content, read_resummed) for name, content in pngs()]
    made += [Case(f"{name}.tif", content, read) for name, content in tiffs()]
    return made + [Case(name, content, read) for name, content in others()]
