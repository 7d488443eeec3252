"""Latents as RGB by factors: arithmetic, files, which factors are whose, and pictures of the right size."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import one_sentence
from torch.nn import functional

import calotype
from calotype.errors import LatentsError
from calotype.families import FACTORS
from calotype.latents import (
    KNOWN,
    LatentFormat,
    Latents,
    PerChannel,
    ScaleShift,
    flux2,
    latent_format,
    same_as_model,
)
from calotype.pixels import Padding
from calotype.previews import BUILTIN, Factors, builtin, find_factors, load_factors, preview, published, save_factors

MINE = PerChannel(name="mine", channels=2, mean=(1.0, -1.0), std=(2.0, 0.5))
MADE = Factors(
    factors=((0.25, 0.0, -0.5), (0.125, 0.5, 0.0625)), bias=(0.1, 0.0, -0.1), format="mine", vae="ab" * 32,
    vae_name="mine.safetensors", pictures=7, rmse=12.5, r2=0.9,
)  # fmt: skip


def latents_of(
    tensor: torch.Tensor, format_: LatentFormat = MINE, vae: str = MADE.vae, factor: int = 8, **more: Any
) -> Latents:
    height, width = (factor * side for side in tensor.shape[1:])
    padding = more.pop("padding", Padding(height, width, 0, 0, "reflect"))
    return Latents(tensor=tensor, space="raw", format=format_, vae=vae, padding=padding, **more)


def test_rgb_by_hand() -> None:
    z = torch.tensor([[[1.0, -2.0]], [[0.5, 4.0]]])  # [2, 1, 2]
    expected = [[0.25 + 0.0625 + 0.1, -0.5 + 0.5 + 0.1], [0.25, 2.0], [-0.5 + 0.03125 - 0.1, 1.0 + 0.25 - 0.1]]
    assert torch.allclose(MADE.rgb(z)[:, 0], torch.tensor(expected))
    with pytest.raises(LatentsError, match=r"latents \[2, h, w\] of format 'mine', and these are \[3, 1, 1\]"):
        MADE.rgb(torch.zeros(3, 1, 1))


def test_they_are_of_model_latents_whichever_are_given() -> None:
    z = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    raw = latents_of(z)
    shown = np.asarray(preview(raw, MADE))
    expected = MADE.rgb(MINE.to_model(z[None])[0]).clamp(-1, 1)
    assert np.abs(shown - expected.permute(1, 2, 0).add(1).mul(127.5).numpy()).max() <= 0.51
    assert np.array_equal(shown, np.asarray(preview(raw.to_model(), MADE)))
    of_raw = replace(MADE, space="raw")
    other = np.asarray(preview(raw.to_model(), of_raw))
    assert not np.array_equal(other, shown)
    assert np.array_equal(other, np.asarray(preview(raw, of_raw)))


def test_packed_latents_are_unpacked() -> None:
    """As ComfyUI does: [4C, h, w] to [C, 2h, 2w], without undoing the statistics."""
    found = published("flux2")
    assert found is not None
    assert len(found.factors) == 32
    format_ = flux2(tuple(x / 99 for x in range(128)), tuple(1 + x / 99 for x in range(128)))
    raw = torch.randn(32, 4, 6, generator=torch.Generator().manual_seed(0))
    model = format_.to_model(raw[None])
    rgb = found.rgb(model[0])
    assert rgb.shape == (3, 4, 6)
    cells = model.reshape(1, 32, 2, 2, 2, 3).permute(0, 1, 4, 2, 5, 3).reshape(1, 32, 4, 6)  # their own words for it
    expected = torch.einsum("chw,cd->dhw", cells[0], torch.tensor(found.factors))
    assert torch.allclose(rgb, expected + torch.tensor(found.bias)[:, None, None], atol=1e-5)
    assert preview(latents_of(raw, format_)).size == (6, 4)
    packed_only = same_as_model("flux2", 32)  # a TAEF2's
    assert preview(latents_of(raw, packed_only)).size == (6, 4)


def test_sizes_and_alpha() -> None:
    padding = Padding(21, 30, 3, 2, "reflect")
    alpha = torch.linspace(0, 1, 21 * 30).reshape(21, 30)
    z = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    plain, seen = latents_of(z, padding=padding), latents_of(z, padding=padding, alpha=alpha)
    small, large = preview(plain, MADE), preview(plain, MADE, enlarge=True)
    assert (small.size, small.mode, large.size, large.mode) == ((4, 3), "RGB", (30, 21), "RGB")
    expected = functional.interpolate(MADE.rgb(plain.to_model().tensor)[None], scale_factor=8, mode="bilinear")
    expected = expected[0, :, :21, :30].clamp(-1, 1).add(1).mul(127.5).permute(1, 2, 0)
    assert np.abs(np.asarray(large) - expected.numpy()).max() <= 0.51
    assert (preview(seen, MADE).size, preview(seen, MADE).mode) == ((4, 3), "RGBA")
    whole = np.asarray(preview(seen, MADE, enlarge=True))
    assert np.abs(whole[..., 3] - 255 * alpha.numpy()).max() <= 0.51
    cut = latents_of(torch.randn(2, 3, 4), padding=Padding(9, 8, 15, 24, "reflect"))  # whole latents of padding
    assert preview(cut, MADE).size == (1, 2)


@pytest.mark.parametrize("height", [23, 25, 48, 24 * 2**20, 2])
def test_a_size_that_is_not_that_of_the_latents_is_refused(height: int) -> None:
    damaged = latents_of(torch.zeros(2, 3, 4), padding=Padding(height, 32, 0, 0, "reflect"))
    for enlarge in (False, True):
        with pytest.raises(
            LatentsError, match=r"These latents are 3x4 and of a picture padded to .* damaged"
        ) as caught:
            preview(damaged, MADE, enlarge=enlarge)
        one_sentence(str(caught.value))


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = save_factors(tmp_path / "f.json", MADE)
    assert load_factors(path) == MADE
    values = json.loads(path.read_text())
    assert values["latent_rgb_factors"] == [list(row) for row in MADE.factors]
    assert values["latent_rgb_factors_bias"] == list(MADE.bias)
    assert len(path.read_text().splitlines()) == 13 + len(MADE.factors)
    lines: dict[str, Any] = {}
    exec(MADE.code(), {}, lines)  # it is to be pasted into a program
    assert np.allclose(lines["latent_rgb_factors"], MADE.factors, atol=6e-5)
    assert np.allclose(lines["latent_rgb_factors_bias"], MADE.bias, atol=6e-5)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"calotype": "latents/1"}, "calotype is 'latents/1' in it, and not factors/1"),
        ({"space": "pixels"}, "space is 'pixels', and neither raw nor model"),
        ({"space": []}, "space is .*, and no text"),
        ({"vae_sha256": 7}, "vae_sha256 is 7, and no text"),
        ({"latent_rgb_factors": []}, "latent_rgb_factors is no list of rows"),
        ({"latent_rgb_factors": {}}, "latent_rgb_factors is no list of rows"),
        ({"latent_rgb_factors": [[1, 2, 3], [1, 2]]}, "row 1 of latent_rgb_factors is .*, and not three numbers"),
        ({"latent_rgb_factors": [[1, 2, "3"]]}, "row 0 of latent_rgb_factors is .*, and not three numbers"),
        ({"latent_rgb_factors": [[1, True, 3]]}, "row 0 of latent_rgb_factors is .*, and not three numbers"),
        ({"latent_rgb_factors_bias": None}, "latent_rgb_factors_bias is .*, and not three numbers"),
        ({"pictures": -1}, "pictures"),
        ({"r2": "good"}, "r2"),
        (b"{", "no factors"),
        (b"[1, 2]", "no factors"),
        (b"\xff\xfe", "no factors"),
        (b"[" * 100_000, "no factors"),
        (b'{"latent_rgb_factors": NaN}', "no factors"),
        (b"", "no factors"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, changed: Any, why: str) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(changed if isinstance(changed, bytes) else json.dumps({**MADE.to_dict(), **changed}).encode())
    with pytest.raises(LatentsError, match=why) as caught:
        load_factors(path)
    one_sentence(str(caught.value))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "no.json", "there is no such file"), (tmp_path, "directory")):
        with pytest.raises(LatentsError, match=why) as caught:
            load_factors(path)
        one_sentence(str(caught.value))


def test_whose_they_are() -> None:
    other = "cd" * 32
    assert MADE.fit(MINE, MADE.vae)
    assert not MADE.fit(MINE, other)  # two VAEs may call their formats alike
    of_sd1 = replace(MADE, format="sd1")
    assert of_sd1.fit(KNOWN["sd1"], other)  # a published space is that of many VAEs
    assert not replace(of_sd1, space="raw").fit(KNOWN["sd1"], other)
    assert not of_sd1.fit(KNOWN["sdxl"], other)
    with pytest.raises(LatentsError, match=r"of mine\.safetensors \(format 'mine'\), and these latents of x") as caught:
        find_factors(KNOWN["sd1"], other, "x", MADE)
    one_sentence(str(caught.value))
    with pytest.raises(
        LatentsError, match=r"No factors are known .* of x \(format 'mine'\); .*probe.*--factors"
    ) as caught:
        find_factors(MINE, other, "x")
    one_sentence(str(caught.value))
    assert find_factors(MINE, MADE.vae, "x", MADE) is MADE
    assert find_factors(MINE, builtin().vae) is builtin()


def test_latents_that_tell_nothing_are_taken_for_theirs() -> None:
    """Bare latents are of a VAE that only their owner knows, who gives its factors."""
    mine = latents_of(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))).to_model()
    bare = replace(mine, vae="", vae_name="", format=latent_format("none", 2))
    assert preview(bare, MADE).tobytes() == preview(mine, MADE).tobytes()
    told = replace(bare, format=replace(MINE, name="other"))
    for other in (replace(bare, space="raw"), told, replace(bare, vae="cd" * 32)):
        with pytest.raises(LatentsError, match="These factors are of latents of"):
            preview(other, MADE)


@pytest.mark.parametrize("name", FACTORS)
def test_published_ones_are_whole(name: str) -> None:
    found = published(name)
    assert found is not None
    assert (found.space, found.vae, found.rmse) == ("model", "", None)
    channels = 32 if name == "flux2" else KNOWN[name].channels
    assert len(found.factors) == channels
    assert all(len(row) == 3 and all(abs(value) < 1 for value in row) for row in (*found.factors, found.bias))
    format_ = same_as_model(name, channels) if name == "flux2" else latent_format(name, channels)
    assert find_factors(format_, "0" * 64) == found
    assert preview(latents_of(torch.zeros(channels, 2, 2), format_, "0" * 64)).size == (2, 2)


def test_published_numbers_are_those_of_their_source() -> None:
    """As they were read there, so that none is changed by accident."""
    digest = hashlib.sha256(json.dumps({name: dict(FACTORS[name]) for name in sorted(FACTORS)}).encode()).hexdigest()
    assert digest[:16] == "702caf3272147ffd"


def test_the_built_in_vae_has_its_own() -> None:
    vae = calotype.load(device="cpu")
    found = builtin()
    assert (found.vae, found.vae_name, found.format, found.space) == (vae.sha256, "builtin", "builtin", "model")
    assert len(found.factors) == vae.latent_channels
    assert found.pictures >= 20
    assert found.r2 is not None
    assert found.r2 > 0.9
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 96), indexing="ij")
    pixels = torch.stack([0.8 * y, 0.8 * x, -0.6 * y * x])  # slow colours
    latents = vae.encode_image(calotype.Picture(pixels, None, ()))
    shown = torch.from_numpy(np.asarray(preview(latents)).astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
    small = functional.avg_pool2d(pixels[None], 8)[0]
    apart = 127.5 * float((shown - small).square().mean().sqrt())
    assert apart < 20, apart
    assert BUILTIN.read_text() == found.text()


def test_published_factors_are_of_published_numbers() -> None:
    """A format that is only called so has other latents."""
    other = ScaleShift(name="sd1", channels=4, scaling_factor=1.7)
    assert find_factors(KNOWN["sd1"], "a" * 64) == published("sd1")
    with pytest.raises(LatentsError, match="No factors are known"):
        find_factors(other, "a" * 64)
    assert not Factors(factors=((0.0,) * 3,) * 4, format="sd1", vae="b" * 64).fit(other, "a" * 64)
