"""Blends: feathered masks, what is kept, and what is mixed."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from editkit import levels, picture
from PIL import Image
from support import kl, names, one_sentence

from calotype.edit.blend import blend, blended, pasted
from calotype.edit.feather import feathered
from calotype.errors import CalotypeWarning, UsageError
from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import KNOWN
from calotype.pixels import PictureRows, to_uint8
from calotype.vae import VAE
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights


def half(width: int, height: int, at: int | None = None) -> torch.Tensor:
    """White from column `at` on."""
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[:, width // 2 if at is None else at :] = 255
    return mask


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_latents_get_the_mean_of_the_mask_over_their_pixels() -> None:
    a, b = torch.randn(2, 4, 3, 2)
    mask = torch.zeros(24, 16)
    mask[:8, 8:] = 1.0
    mask[8:16, :4] = 1.0
    mask[16, 8] = 0.5
    found = blended(a, b, mask)
    weight = torch.tensor([[0, 1], [0.5, 0], [0, 0.5 / 64]])
    assert torch.allclose(found, a + weight * (b - a), atol=1e-6)
    assert torch.equal(found[:, 0, 1], b[:, 0, 1])
    assert torch.equal(found[:, 0, 0], a[:, 0, 0])


@pytest.mark.parametrize("size", [(96, 40), (93, 37)])
@pytest.mark.parametrize("feather", [0, 5, 16])
def test_beyond_the_feather_not_one_pixel_changes(
    feather: int, size: tuple[int, int], vae: VAE, tmp_path: Path
) -> None:
    a, b, mask = levels(0, *size), levels(1, *size), half(*size)
    blend(vae, picture(0, *size), picture(1, *size), mask, tmp_path / "b.png", feather=feather)
    found = opened(tmp_path / "b.png")
    middle = size[0] // 2
    assert np.array_equal(found[:, : middle - feather], a[:, : middle - feather])
    assert np.array_equal(found[:, middle + feather :], b[:, middle + feather :])
    if feather > 1:  # and between something does
        between = slice(middle - feather // 2, middle + feather // 2)
        assert not np.array_equal(found[:, between], a[:, between])
        assert not np.array_equal(found[:, between], b[:, between])


def test_a_black_mask_gives_the_first_and_a_white_one_the_second(vae: VAE, tmp_path: Path) -> None:
    for level, seed in ((0, 0), (255, 1)):
        mask = torch.full((32, 40), level, dtype=torch.uint8)
        blend(vae, picture(0), picture(1), mask, tmp_path / "b.png")
        assert np.array_equal(opened(tmp_path / "b.png"), levels(seed))


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_line_does_not_vanish_in_the_feather(width: int, inverted: bool, vae: VAE, tmp_path: Path) -> None:
    mask = torch.zeros(64, 96, dtype=torch.uint8)
    mask[20 : 20 + width] = 255
    first, second = levels(0, 96, 64), levels(1, 96, 64)
    blend(vae, picture(0, 96, 64), picture(1, 96, 64), 255 - mask if inverted else mask, tmp_path / "b.png")
    found = opened(tmp_path / "b.png").astype(int)
    wanted, other = (first, second) if inverted else (second, first)
    line = slice(20, 20 + width)
    if width <= 16:
        assert np.array_equal(found[line], wanted[line])
    else:
        middle = slice(20 + width // 2 - 1, 20 + width // 2 + 1)
        assert (
            np.abs(found[middle] - wanted[middle]).mean()
            < 0.3 * np.abs(other[middle] - wanted[middle].astype(int)).mean()
        )
    assert np.array_equal(found[:4], other[:4])
    assert np.array_equal(found[20 + width + 16 :], other[20 + width + 16 :])


def test_a_pattern_finer_than_the_feather_is_told(vae: VAE, tmp_path: Path) -> None:
    mask = torch.zeros(32, 40, dtype=torch.uint8)
    mask[::4] = mask[1::4] = 255
    with pytest.warns(CalotypeWarning, match="finer than a feather of 16 .* a feather of 0 shows them") as told:
        blend(vae, picture(0), picture(1), mask, tmp_path / "b.png")
    one_sentence(str(told[0].message))
    blend(vae, picture(0), picture(1), mask, tmp_path / "b.png", feather=0)


def test_halfway_is_what_was_decoded(vae: VAE, tmp_path: Path) -> None:
    a, b = (vae.encode_image(picture(seed, 96, 40)).tensor for seed in (0, 1))
    mask = half(96, 40)
    soft = feathered(mask, 12)
    mixed = torch.lerp(a, b, torch.nn.functional.avg_pool2d(soft[None], 8))
    decoded = to_uint8(vae.decode(mixed[None])[0]).permute(1, 2, 0).numpy()
    blend(vae, picture(0, 96, 40), picture(1, 96, 40), mask, tmp_path / "d.png", feather=12, paste_back=False)
    assert np.abs(opened(tmp_path / "d.png").astype(int) - decoded).max() <= 1
    grey = torch.full((40, 96), 255, dtype=torch.uint8)
    grey[:] = 51
    blend(vae, picture(0, 96, 40), picture(1, 96, 40), grey, tmp_path / "g.png", feather=0)
    z = a + 0.2 * (b - a)
    x = vae.decode(z[None])[0].permute(1, 2, 0).numpy()
    expected = 0.4 * (x * 127.5 + 127.5) + 0.6 * levels(0, 96, 40)  # m = 0.2: 2 m of it is decoded
    assert np.abs(opened(tmp_path / "g.png") - expected).max() <= 0.51


def test_pasting_by_hand() -> None:
    decoded, a, b = (torch.full((3, 1, 5), value) for value in (0.0, 1.0, -1.0))
    found = pasted(decoded, a, b, torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0]]))
    assert found[0, 0].tolist() == [255, 191, 128, 64, 0]


def test_deep_grey_pictures_blend(vae: VAE, tmp_path: Path) -> None:
    grey = PictureRows(np.linspace(-1, 1, 32 * 40, dtype=np.float32).reshape(32, 40), None, False, (0, 0, 0), ())
    blend(vae, grey, picture(1), half(40, 32), tmp_path / "b.png", feather=4)
    expected = to_uint8(grey.rows(0, 32)).permute(1, 2, 0).numpy()
    assert np.array_equal(opened(tmp_path / "b.png")[:, :16], expected[:, :16])


def test_what_does_not_fit_is_refused(vae: VAE, tmp_path: Path) -> None:
    a, b, mask = picture(0), picture(1), half(40, 32)
    cases = [
        (lambda: blend(vae, a, picture(1, 48, 32), mask, tmp_path / "b.png"), "second picture is 48x32 .* 40x32"),
        (lambda: blend(vae, a, b, half(40, 24), tmp_path / "b.png"), "mask is 40x24 and the first picture 40x32"),
        (lambda: blend(vae, a, b, mask, tmp_path / "b.gif"), "no known format"),
        (lambda: blend(vae, a, b, mask, tmp_path / "b.png", feather=-1), "from 0 to 1024 pixels, not -1"),
    ]
    for make, words in cases:
        with pytest.raises(UsageError, match=words) as error:
            make()
        one_sentence(str(error.value))
    assert names(tmp_path) == []


def test_what_overflows_in_float16_is_computed_again(tmp_path: Path) -> None:
    """In the decoder only, where rows are written as they come."""
    module = kl(AutoencoderConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4))
    for block in (module.decoder.mid.block_1, module.decoder.mid.block_2):
        torch.nn.init.constant_(block.conv2.bias, 6e4)
    (path,) = save_weights(module, tmp_path / "x.safetensors", layout="ldm", format_=KNOWN["sd1"])
    first, second = picture(0, 16, 16), picture(1, 16, 16)
    made = []
    for dtype in (torch.float16, torch.float32):
        vae = VAE(load_weights(path), name="test", dtype=dtype, encode_dtype=dtype)
        out = tmp_path / f"{dtype}.png"
        with pytest.warns(CalotypeWarning, match="computing in float32") if dtype == torch.float16 else nullcontext():
            blend(vae, first, second, half(16, 16), out, feather=0)
        made.append(opened(out).astype(int))
    assert abs(made[0] - made[1]).max() <= 2  # latents are float16 there
