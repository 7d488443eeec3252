"""Masks: the same region, in every kind of file that people have it in; and what is no mask."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from editkit import levels as photo
from PIL import Image, ImageCms, ImageDraw, ImageFilter
from support import one_sentence

from calotype.edit.masks import read_mask
from calotype.errors import PictureError, UsageError

W, H = 96, 80
Array = npt.NDArray[Any]


def region() -> npt.NDArray[np.bool_]:
    """A rectangle and a disc."""
    y, x = np.mgrid[:H, :W]
    return ((y >= 20) & (y < 60) & (x >= 30) & (x < 50)) | ((y - 40) ** 2 + (x - 70) ** 2 < 17**2)


M = region()
BW = (M * 255).astype(np.uint8)


def rgba(colour: Array | tuple[int, ...], alpha: Array, under: Array | tuple[int, ...] = (0, 0, 0)) -> Image.Image:
    """A colour where alpha is above 0, and another one, that can't be seen, elsewhere."""
    colours = np.where((alpha > 0)[..., None], np.asarray(colour), np.asarray(under))
    return Image.fromarray(np.dstack([colours, alpha]).astype(np.uint8))


def palette(*colours: tuple[int, int, int], indices: Array = M) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette([level for colour in colours for level in colour])
    return image


def in_colour(white: tuple[int, int, int], black: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    return Image.fromarray(np.where(M[..., None], white, black).astype(np.uint8))


def grey(values: Array, dtype: npt.DTypeLike) -> Image.Image:
    return Image.fromarray(values.astype(dtype))


def soft() -> Array:
    """Grey towards the edges, from 0 to 255."""
    blurred = np.asarray(Image.fromarray(BW).filter(ImageFilter.GaussianBlur(3)))
    return blurred.copy()


def turned() -> tuple[Image.Image, dict[str, Any]]:
    exif = Image.Exif()
    exif[274] = 6
    return Image.fromarray(BW).transpose(Image.Transpose.ROTATE_90), {"exif": exif}


def with_profile(mode: str, array: Array = BW) -> tuple[Image.Image, dict[str, Any]]:
    """A profile that makes all greys others: Lab's, or one with another gamma would."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    return Image.fromarray(array).convert(mode), {"icc_profile": profile}


def cmyk() -> Image.Image:
    return Image.fromarray(np.dstack([np.zeros((H, W, 3)), 255 - BW]).astype(np.uint8), "CMYK")


def lab() -> Image.Image:
    return Image.fromarray(np.dstack([BW, np.zeros((H, W, 2))]).astype(np.uint8), "LAB")


def frames() -> tuple[Image.Image, dict[str, Any]]:
    return Image.fromarray(BW), {"save_all": True, "append_images": [Image.fromarray(255 - BW)], "duration": 100}


def noisy(most: int) -> Array:
    noise = np.random.default_rng(0).integers(0, most + 1, (H, W))
    return np.where(M, 255 - noise, noise)


OPAQUE = "What is opaque in it is selected"
SAME: dict[str, tuple[Any, str, str]] = {
    # what it is, suffix, what is said
    "grey": (lambda: Image.fromarray(BW), "png", ""),
    "1 bit": (lambda: Image.fromarray(BW).convert("1"), "png", ""),
    "1 bit TIFF": (lambda: Image.fromarray(BW).convert("1"), "tif", ""),
    "1 bit TIFF, group 4": (lambda: (Image.fromarray(BW).convert("1"), {"compression": "group4"}), "tif", ""),
    "1 bit BMP": (lambda: Image.fromarray(BW).convert("1"), "bmp", ""),
    "1 bit PBM": (lambda: Image.fromarray(BW).convert("1"), "pbm", ""),
    "RGB": (lambda: Image.fromarray(BW).convert("RGB"), "png", ""),
    "TGA": (lambda: Image.fromarray(BW).convert("RGB"), "tga", ""),
    "grey palette": (lambda: Image.fromarray(BW).convert("P"), "png", ""),
    "palette": (lambda: palette((0, 0, 0), (255, 255, 255)), "gif", ""),
    "red on black palette": (lambda: palette((0, 0, 0), (128, 0, 0)), "png", "(128, 0, 0) was taken for white"),
    "palette of 0 and 1": (lambda: palette((0, 0, 0), (1, 1, 1)), "png", "0 and 1, were taken for"),
    "opaque alpha": (lambda: rgba(BW[..., None].repeat(3, 2), np.full_like(BW, 255)), "png", ""),
    "grey, opaque alpha": (lambda: Image.merge("LA", [Image.fromarray(BW), Image.new("L", (W, H), 255)]), "png", ""),
    "alpha the same all over": (
        lambda: Image.merge("LA", [Image.fromarray(BW), Image.new("L", (W, H), 128)]),
        "png",
        "alpha is the same all over",
    ),
    "white strokes": (lambda: rgba((255, 255, 255), BW), "png", OPAQUE),
    "white strokes over white": (lambda: rgba((255, 255, 255), BW, (255, 255, 255)), "png", OPAQUE),
    "black strokes": (lambda: rgba((0, 0, 0), BW), "png", OPAQUE),
    "black strokes over white": (lambda: rgba((0, 0, 0), BW, (255, 255, 255)), "png", OPAQUE),
    "red strokes": (lambda: rgba((255, 0, 0), BW), "png", OPAQUE),
    "strokes of alpha 1": (
        lambda: Image.merge("LA", [Image.new("L", (W, H), 255), Image.fromarray(BW // 255)]),
        "png",
        OPAQUE,
    ),
    "0 and 1 in lossless WebP": (
        lambda: (Image.fromarray(BW // 255), {"lossless": True}),
        "webp",
        "0 and 1, were taken for",
    ),
    "0 and 128 in lossless WebP": (
        lambda: (Image.fromarray(BW // 255 * 128), {"lossless": True}),
        "webp",
        "0 and 128, were taken for",
    ),
    "0 and 1 in JPEG 2000": (lambda: Image.fromarray(BW // 255), "jp2", "0 and 1, were taken for"),
    "100 and 150 in a lossless AVIF": (
        lambda: (Image.fromarray(100 + BW // 255 * 50).convert("RGB"), {"quality": 100, "subsampling": "4:4:4"}),
        "avif",
        "were taken for",
    ),
    "half strokes": (lambda: rgba((255, 255, 255), BW // 2), "png", "0 and 127, were taken for"),
    "strokes of two colours": (
        lambda: rgba(np.where(np.arange(W)[None, :, None] < 50, (255, 0, 0), (0, 200, 0)), BW),
        "webp",
        OPAQUE,
    ),
    "black strokes, grey and alpha": (
        lambda: Image.merge("LA", [Image.new("L", (W, H), 0), Image.fromarray(BW)]),
        "png",
        OPAQUE,
    ),
    "strokes in a GIF": (
        lambda: (palette((255, 255, 255), (255, 0, 0)), {"transparency": 0}),
        "gif",
        OPAQUE,
    ),
    "a transparent colour": (lambda: (Image.fromarray(BW), {"transparency": 0}), "png", OPAQUE),
    "black and white strokes": (
        lambda: rgba(BW[..., None].repeat(3, 2), np.where(np.arange(W) > 10, 255, 0) * np.ones((H, 1))),
        "png",
        "what is white is selected",
    ),
    "a picture with a hole": (
        lambda: rgba(photo(0, W, H), 255 - BW),
        "png",
        "what is transparent in it is selected",
    ),
    "a picture with a hole, lossy": (lambda: (rgba(photo(0, W, H), 255 - BW), {"quality": 80}), "webp", "transparent"),
    "0 and 1": (lambda: grey(M, np.uint8), "png", "0 and 1, were taken for black and white"),
    "0 and 17": (lambda: grey(M * 17, np.uint8), "png", "0 and 17, were"),
    "100 and 200": (lambda: grey(M * 100 + 100, np.uint8), "png", "100 and 200, were"),
    "0 and 1, RGB": (lambda: grey(M, np.uint8).convert("RGB"), "png", "0 and 1, were"),
    "16 bits": (lambda: grey(M * 65535, np.uint16), "png", ""),
    "16 bits, 0 and 1": (lambda: grey(M, np.uint16), "png", "0 and 1, were"),
    "16 bits, 0 and 255": (lambda: grey(M * 255, np.uint16), "tif", ""),
    "32 bits, 0 and 1": (lambda: grey(M, np.int32), "tif", "0 and 1, were"),
    "32 bits, 0 and 255": (lambda: grey(M * 255, np.int32), "tif", ""),
    "32 bits, -1 and 0": (lambda: grey(M * 1 - 1, np.int32), "tif", "-1 and 0, were"),
    "floats of 0 and 1": (lambda: grey(M, np.float32), "tif", ""),
    "floats of 0 and 255": (lambda: grey(BW, np.float32), "tif", ""),
    "red channel": (lambda: in_colour((255, 0, 0)), "png", "(255, 0, 0) was taken for white"),
    "blue on black": (lambda: in_colour((0, 0, 255)), "png", "(0, 0, 255) was taken for white"),
    "yellow on nearly black": (lambda: in_colour((250, 240, 10), (8, 4, 6)), "png", "(250, 240, 10) was taken"),
    "CMYK": (cmyk, "tif", ""),
    "CMYK JPEG": (lambda: (cmyk(), {"quality": 100}), "jpg", ""),
    "Lab": (lab, "tif", ""),
    "EXIF": (turned, "png", ""),
    "EXIF, JPEG": (turned, "jpg", ""),
    "first frame": (frames, "gif", "Only frame 1 of 2 was used."),
    "first page": (frames, "tif", "Only frame 1 of 2 was used."),
    "a profile": (lambda: with_profile("L"), "png", ""),
    "a profile, RGB": (lambda: with_profile("RGB"), "tif", ""),
    "lossless WebP": (lambda: (Image.fromarray(BW), {"lossless": True}), "webp", ""),
    "noise up to 3": (lambda: grey(noisy(3), np.uint8), "png", ""),
    "noise up to 7": (lambda: grey(noisy(7), np.uint8), "png", ""),
    "noise where it is black": (lambda: grey(np.where(M, 255, noisy(3)), np.uint8), "png", ""),
    "AVIF": (lambda: (Image.fromarray(BW), {"quality": 50}), "avif", ""),
}


def saved(made: Any, path: Path) -> Path:
    image, options = made if isinstance(made, tuple) else (made, {})
    image.save(path, **options)
    return path


@pytest.mark.parametrize("kind", SAME)
def test_every_kind_selects_the_same_region(kind: str, tmp_path: Path) -> None:
    make, suffix, said = SAME[kind]
    path = saved(make(), tmp_path / f"mask.{suffix}")
    mask = read_mask(path)
    if kind == "a picture with a hole, lossy":
        assert ((mask.levels.numpy() > 127) != M).mean() < 0.001
    else:
        assert np.array_equal(mask.levels.numpy(), BW)
    assert (said in " ".join(mask.notices)) if said else mask.notices == ()
    for notice in mask.notices:
        one_sentence(notice)
    inverted = read_mask(path, invert=True)
    assert np.array_equal(inverted.levels.numpy(), 255 - mask.levels.numpy())
    assert np.array_equal(read_mask(path.read_bytes()).levels, mask.levels)
    with Image.open(path) as image:
        profile = image.info.get("icc_profile")
        if suffix != "avif" and ";16" not in kind:
            assert np.array_equal(read_mask(image).levels, mask.levels)
        assert image.info.get("icc_profile") == profile  # it is left as it was


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        *[("jpg", {"quality": quality}) for quality in (30, 50, 75, 90, 95)],
        ("jpg", {"quality": 75, "subsampling": 2}),
        ("webp", {"quality": 30}),
        ("webp", {"quality": 75}),
        ("jp2", {"quality_mode": "rates", "quality_layers": [8]}),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_what_compression_does_to_a_mask_is_undone(
    mode: str, suffix: str, options: dict[str, Any], tmp_path: Path
) -> None:
    path = saved((Image.fromarray(BW).convert(mode), options), tmp_path / f"mask.{suffix}")
    found = read_mask(path)
    assert np.array_equal(found.levels.numpy() > 127, M)
    apart = np.abs(found.levels.numpy().astype(int) - BW)
    near = np.asarray(Image.fromarray(BW).filter(ImageFilter.MaxFilter(17))) > 0
    assert apart[~near].max() == 0  # nothing is selected further away than a block of JPEG's
    assert (apart > 0).mean() < (0.01 if options.get("quality", 75) > 30 else 0.03)


def test_red_strokes_in_a_jpeg(tmp_path: Path) -> None:
    path = saved(in_colour((255, 0, 0)), tmp_path / "mask.jpg")
    assert (np.abs(read_mask(path).levels.numpy().astype(int) - BW) > 127).mean() < 0.005


@pytest.mark.parametrize(
    "make",
    [
        lambda array: Image.fromarray(array),
        lambda array: rgba((255, 255, 255), array),
        lambda array: rgba((0, 0, 0), array, (255, 255, 255)),
        lambda array: rgba((20, 90, 255), array),
        lambda array: Image.merge("LA", [Image.new("L", (W, H), 255), Image.fromarray(array)]),
        lambda array: grey(array.astype(int) * 257, np.uint16),
        lambda array: grey(array / 255, np.float32),
        lambda array: grey(array, np.float32),
        lambda array: grey(array, np.int32),
        lambda array: grey(array, np.uint16),
        lambda array: with_profile("L", array),
        lambda array: Image.fromarray(np.dstack([array, 0 * array, 0 * array])),
        lambda array: Image.fromarray(np.dstack([0 * array, 0 * array, array])),
    ],
)
def test_greys_stay_what_they_are(make: Callable[[Array], Any], tmp_path: Path) -> None:
    path = saved(make(soft()), tmp_path / "mask.tif")
    found = read_mask(path).levels.numpy().astype(int)
    clean = np.where(soft() < 8, 0, np.where(soft() > 247, 255, soft())).astype(int)
    assert np.abs(found - clean).max() <= (1 if np.array_equal(found % 255 == 0, clean % 255 == 0) else 8)


def test_half_stays_half_in_a_jpeg(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, W), (H, 1)).round().astype(np.uint8)
    found = read_mask(saved((Image.fromarray(ramp), {"quality": 95}), tmp_path / "m.jpg")).levels.numpy().astype(int)
    assert np.abs(found[:, W // 2 - 1 : W // 2 + 1] - 128).max() <= 8
    assert (np.diff(found.mean(axis=0)) >= -1).all()


def test_a_few_greys_are_told(tmp_path: Path) -> None:
    three = np.where(M, 255, 0)
    three[:, 60:] = three[:, 60:] // 2
    mask = read_mask(saved(grey(three, np.uint8), tmp_path / "m.png"))
    assert np.array_equal(mask.levels.numpy(), three)
    assert mask.notices == ("What is grey in it (127) is selected in part.",)
    faint = np.clip(soft().astype(int), 0, 200)
    mask = read_mask(saved(grey(faint, np.uint8), tmp_path / "f.png"))
    assert mask.notices == ("Its brightest level is 200 of 255, so nothing is selected whole.",)


def test_one_level(tmp_path: Path) -> None:
    for name, values, dtype, level in (
        ("black", 0, np.uint8, 0),
        ("white", 255, np.uint8, 255),
        ("half", 128, np.uint8, 128),
        ("one", 1.0, np.float32, 255),
        ("deep", 65535, np.uint16, 255),
    ):
        mask = read_mask(saved(grey(np.full((H, W), values), dtype), tmp_path / f"{name}.tif"))
        assert (mask.levels == level).all()
        assert mask.notices == ()


def test_a_photo_is_its_luminance_and_that_is_told(tmp_path: Path) -> None:
    mask = read_mask(saved(Image.fromarray(photo(0, W, H)), tmp_path / "photo.png"))
    assert mask.notices[0] == "It is in colours; their luminance was taken."
    expected = np.asarray(Image.fromarray(photo(0, W, H)).convert("L")).astype(int)
    assert np.abs(mask.levels.numpy().astype(int) - expected).max() <= 8


@pytest.mark.parametrize("alpha", ["opaque", "transparent"])
def test_which_part_is_selected_can_be_said(alpha: Any, tmp_path: Path) -> None:
    for made in (rgba(photo(0, W, H), BW), rgba((255, 255, 255), BW)):
        path = saved(made, tmp_path / "m.png")
        assert np.array_equal(read_mask(path, alpha=alpha).levels.numpy() > 0, (alpha == "opaque") == M)


def test_a_hole_with_soft_edges_is_selected_whole(tmp_path: Path) -> None:
    path = saved(rgba(photo(0, W, H), 255 - soft()), tmp_path / "m.png")
    assert np.array_equal(read_mask(path).levels.numpy(), np.where(soft() > 7, 255, 0))


def labels(*values: int) -> Array:
    y = np.mgrid[:H, :W][0]
    return np.asarray(values)[y * len(values) // H]


def smooth(low: float, high: float) -> Array:
    return np.tile(np.linspace(low, high, W), (H, 1))


NO_MASK: dict[str, tuple[Any, str, str]] = {
    "labels": (lambda: grey(labels(0, 1, 2, 3), np.uint8), "png", "values 0, 1, 2 and 3, as labels are"),
    "more labels": (lambda: grey(labels(*range(20)), np.uint8), "png", "0, 1, 2, 3, 4, 5 and 14 more, as labels"),
    "labels and void": (lambda: grey(labels(0, 1, 2, 255), np.uint8), "png", "values 0, 1, 2 and 255, as labels"),
    "one label and void": (lambda: grey(labels(0, 15, 255), np.uint8), "png", "values 0, 15 and 255, as labels"),
    "cityscapes": (lambda: grey(labels(0, 7, 11, 21, 26), np.uint8), "png", "0, 7, 11, 21 and 26, as labels"),
    "deep labels": (lambda: grey(labels(0, 1000, 24001), np.uint16), "png", "0, 1000 and 24001, as labels"),
    "whole labels": (lambda: grey(labels(0, 1, 2, 90), np.int32), "tif", "0, 1, 2 and 90, as labels"),
    "float labels": (lambda: grey(labels(0, 1, 2), np.float32), "tif", "0, 1 and 2, as labels"),
    "labels in greys of a palette": (
        lambda: palette((0, 0, 0), (1, 1, 1), (2, 2, 2), indices=labels(0, 1, 2)),
        "png",
        "0, 1 and 2, as labels",
    ),
    "labels in colours": (
        lambda: palette((0, 0, 0), (128, 0, 0), (0, 128, 0), indices=labels(0, 1, 2)),
        "png",
        "colours (0, 0, 0), (0, 128, 0) and (128, 0, 0)",
    ),
    "red and white on black": (
        lambda: palette((0, 0, 0), (255, 0, 0), (255, 255, 255), indices=labels(0, 1, 2)),
        "png",
        "colours (0, 0, 0), (255, 0, 0) and (255, 255, 255)",
    ),
    "red on white": (lambda: in_colour((255, 0, 0), (255, 255, 255)), "png", "do not tell what is selected"),
    "blue on yellow": (lambda: in_colour((0, 0, 255), (255, 255, 0)), "png", "do not tell what is selected"),
    "soft red on white": (
        lambda: Image.fromarray(np.dstack([np.full_like(BW, 255), 255 - soft(), 255 - soft()])),
        "png",
        "do not tell what is selected",
    ),
    "1 all over": (lambda: grey(np.ones((H, W)), np.uint8), "png", "holds 1 all over"),
    "1 all over, of 32 bits": (lambda: grey(np.ones((H, W)), np.int32), "tif", "holds 1 all over"),
    "nearly black": (
        lambda: (grey(noisy(3) % 4 * 4, np.uint8), {"quality": 90}),
        "jpg",
        "which is black; make white what is selected",
    ),
    "logits": (lambda: grey(smooth(-4.5, 8), np.float32), "tif", "from -4.5 to 8, which is no mask"),
    "large floats": (lambda: grey(smooth(0, 1e6), np.float32), "tif", "from 0 to 1e+06, which is no mask"),
    "NaN": (lambda: grey(np.where(M, np.nan, 0), np.float32), "tif", "NaN or infinity"),
    "infinity": (lambda: grey(np.where(M, np.inf, 0), np.float32), "tif", "NaN or infinity"),
    "transparent all over": (lambda: rgba((255, 255, 255), 0 * BW), "png", "transparent all over"),
}


@pytest.mark.parametrize("kind", NO_MASK)
def test_what_is_no_mask_is_refused(kind: str, tmp_path: Path) -> None:
    make, suffix, said = NO_MASK[kind]
    path = saved(make(), tmp_path / f"mask.{suffix}")
    with pytest.raises(UsageError) as error:
        read_mask(path)
    assert said in str(error.value)
    assert str(error.value).startswith(str(path))
    one_sentence(str(error.value))


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"none\.png does not exist"):
        read_mask(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(PictureError, match="holds text"):
        read_mask(tmp_path / "text.png")
    whole = saved(Image.fromarray(noisy(200).astype(np.uint8)), tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PictureError, match=r"cut\.png is damaged or cut off"):
        read_mask(tmp_path / "cut.png")


def test_a_damaged_mask_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By its checksums, in 8 bits and in 16, and by what its header claims; nothing is printed besides."""
    for name, values in (("8.png", BW), ("16.png", BW.astype(np.uint16) * 257)):
        whole = bytearray(saved(Image.fromarray(values), tmp_path / name).read_bytes())
        whole[whole.index(b"IDAT") + 30] ^= 1
        (tmp_path / name).write_bytes(whole)
        with pytest.raises(
            PictureError, match=rf"{name} is damaged or cut off \(the checksum of its chunk IDAT is wrong"
        ):
            read_mask(tmp_path / name)
        with pytest.raises(PictureError, match="the checksum of its chunk IDAT is wrong"):
            read_mask(bytes(whole))
    file = io.BytesIO()
    Image.fromarray(noisy(200).astype(np.uint8)).save(file, "TIFF", compression="tiff_lzw")
    damaged = bytearray(file.getvalue())
    damaged[300:900] = bytes(600)
    with pytest.raises(PictureError, match="is damaged or cut off"):
        read_mask(bytes(damaged))
    assert capfd.readouterr() == ("", "")
    with pytest.raises(UsageError, match="a mask is a picture"):
        read_mask(tmp_path / "a.latents.safetensors")


def test_a_dot_of_one_pixel_is_a_mask(tmp_path: Path) -> None:
    for colour in ("white", (255, 0, 0)):
        image = Image.new("RGB", (W, H))
        ImageDraw.Draw(image).point((5, 6), fill=colour)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        found = read_mask(buffer.getvalue()).levels
        assert (int(found.sum()), int(found[6, 5])) == (255, 255)
