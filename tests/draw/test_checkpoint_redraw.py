"""Pictures redrawn by small random checkpoints, against the same pipelines made of diffusers' own parts."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_models import (
    KINDS,
    array,
    as_input,
    drawn,
    expected_latents,
    only_configs,
    original,
    parts_of,
    photo,
    redrawn,
)
from PIL import Image
from support import assert_close, one_sentence, write

import calotype
from calotype.draw.checkpoints import Checkpoint, load_checkpoint
from calotype.errors import CalotypeWarning, UsageError
from calotype.pixels import from_array, to_pil

pytest_plugins = ("checkpoint_fixtures",)
pytestmark = pytest.mark.usefixtures("offline")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_redrawn_picture_is_that_of_diffusers(kind: str, ours: Any, theirs: Any) -> None:
    size = {"height": 64, "width": 80} if kind == "sd3" else {}
    expected = expected_latents(
        theirs(kind, "Img2Img"),
        image=as_input(photo()),
        strength=0.6,
        num_inference_steps=5,
        guidance_scale=ours(kind)._found.kind.guidance,
        **size,
    )
    (result,) = redrawn(ours(kind), [photo()], strength=0.6)
    assert_close(result.latents.tensor[None], expected)


def grown(checkpoint: Checkpoint, hole: torch.Tensor) -> torch.Tensor:
    """The mask with all latents that it touches or comes near, as pixels, [1, 1, H, W]; by definition."""
    found = torch.zeros_like(hole)
    for y, x in hole.nonzero().tolist():
        f, m = checkpoint.factor, checkpoint.multiple
        top, left = (max(0, at - f) // m * m for at in (y, x))
        found[top : (y + f) // m * m + m, left : (x + f) // m * m + m] = 1
    return found[None, None]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_filled_hole_is_that_of_diffusers_and_the_rest_is_untouched(kind: str, ours: Any, theirs: Any) -> None:
    hole = torch.zeros(64, 80)
    hole[13:50, 21:] = 1.0
    expected = expected_latents(
        theirs(kind, "Inpaint"),
        image=as_input(photo()),
        mask_image=grown(ours(kind), hole),
        strength=0.8,
        num_inference_steps=5,
        guidance_scale=3.0,
        height=64,
        width=80,
    )
    (result,) = redrawn(ours(kind), [photo()], strength=0.8, mask=hole, guidance=3.0, feather=0)
    assert_close(result.latents.tensor[None], expected)
    before, after, inside = array(photo()), array(result.picture), hole.bool().numpy()
    assert np.array_equal(after[~inside], before[~inside])
    assert np.abs(after[inside] - before[inside]).mean() > 5
    whole = ours(kind).pipe.vae.decode(ours(kind).latent_format.to_raw(result.latents.tensor[None])).sample[0]
    assert np.array_equal(after[inside], array(to_pil(whole))[inside])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd1", "sd3"])
def test_a_thin_mask_is_drawn_in_full(kind: str, ours: Any) -> None:
    before = array(photo())
    (whole,) = redrawn(ours(kind), [photo()], strength=1.0)
    for width in (4, 16):
        line = torch.zeros(64, 80, dtype=torch.uint8)
        line[21 : 21 + width] = 255
        for feather in (0, 5):
            with pytest.warns(CalotypeWarning, match="nowhere as wide") if width < 8 else nullcontext():
                (result,) = redrawn(ours(kind), [photo()], strength=1.0, mask=line, feather=feather)
            after = array(result.picture)
            outside = np.ones(64, bool)
            outside[max(0, 21 - feather) : 21 + width + feather] = False
            assert np.array_equal(after[outside], before[outside])
            decoded = ours(kind).pipe.vae.decode(ours(kind).latent_format.to_raw(result.latents.tensor[None])).sample[0]
            inside = slice(21, 21 + width)
            assert np.array_equal(after[inside], array(to_pil(decoded))[inside])
            assert np.abs(after - before)[inside].mean() > 0.7 * np.abs(array(whole.picture) - before)[inside].mean()


@pytest.mark.slow
def test_masks_are_files_and_tensors_of_any_type(ours: Any, tmp_path: Path) -> None:
    mask = torch.zeros(64, 80, dtype=torch.uint8)
    mask[21:37] = 255
    Image.fromarray(mask.numpy() // 255).save(tmp_path / "mask.png")
    few = {"strength": 1.0, "steps": 1}
    with pytest.warns(CalotypeWarning, match="0 and 1, were taken for black and white"):
        (read,) = redrawn(ours("sd1"), [photo()], mask=tmp_path / "mask.png", **few)
    for same in (mask, mask.bool(), mask // 255, mask / 255, (mask // 255).long()):
        (one,) = redrawn(ours("sd1"), [photo()], mask=same, **few)
        assert np.array_equal(array(one.picture), array(read.picture))
    with pytest.raises(UsageError, match="numbers from 0") as error:
        redrawn(ours("sd1"), [photo()], mask=mask.float())
    one_sentence(str(error.value))


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_sizes_that_are_no_multiple_come_back(strength: float, ours: Any) -> None:
    images = [photo(61, 70), photo(33, 50, 1)]
    hole = Image.new("L", (70, 61), 0)
    hole.paste(255, (5, 6, 40, 30))
    for one, image in zip(redrawn(ours("sd1"), images, strength=strength), images, strict=True):
        assert one.picture.size == image.size
        assert (one.latents.padding.width, one.latents.padding.height) == image.size
    (filled,) = redrawn(ours("sd1"), images[:1], strength=strength, mask=hole, feather=0)
    outside = np.asarray(hole) == 0
    assert np.array_equal(array(filled.picture)[outside], array(images[0])[outside])
    assert not np.array_equal(array(filled.picture), array(images[0]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3"])
def test_little_strength_is_about_the_round_trip(kind: str, ours: Any, folders: dict[str, Path]) -> None:
    vae = calotype.load(folders[kind] / "vae", device="cpu")
    image = photo()
    trip = vae.encode(from_array(np.asarray(image))[None]).mode()
    (none,) = redrawn(ours(kind), [image], strength=0.0)
    assert_close(none.latents.tensor[None], vae.latent_format.to_model(trip))
    assert np.abs(array(none.picture) - array(to_pil(vae.decode(trip)[0]))).max() <= 1
    apart = []
    for strength in (0.005, 0.1, 0.6):
        (one,) = redrawn(ours(kind), [image], strength=strength, steps=200, guidance=1.0, sampler="euler")
        apart.append((one.latents.tensor - none.latents.tensor).abs().mean().item())
    assert apart[0] < 0.1 < apart[2]
    assert apart == sorted(apart)


@pytest.mark.slow
def test_full_strength_draws_anew(ours: Any) -> None:
    for kind in ("sd2", "sd3"):
        (result,) = ours(kind).redraw(photo(), "a cat", seeds=[3], steps=5, strength=1.0)
        (expected,) = drawn(ours(kind), steps=5)
        assert torch.equal(result.latents.tensor, expected.latents.tensor)


@pytest.mark.slow
def test_a_redrawn_picture_does_not_depend_on_the_others(ours: Any) -> None:
    images = [photo(seed=1), photo(seed=2)]
    together = redrawn(ours("sdxl"), images, strength=0.5)
    (alone,) = redrawn(ours("sdxl"), images[1:], strength=0.5, seeds=[4])
    assert torch.equal(together[1].latents.tensor, alone.latents.tensor)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++"])
def test_every_sampler_redraws_with_flow_too(sampler: str, ours: Any) -> None:
    (result,) = redrawn(ours("sd3"), [photo()], strength=0.6, sampler=sampler, steps=10)
    (own,) = redrawn(ours("sd3"), [photo()], strength=0.6, steps=10)
    assert (result.latents.tensor - own.latents.tensor).abs().mean() < 0.2


@pytest.mark.slow
def test_an_inpainting_checkpoint_only_redraws(diffusers: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    parts = parts_of("sd1", diffusers, tmp_path / "words", in_channels=9, out_channels=4)
    vae = diffusers.AutoencoderKL.from_pretrained(folders["sd1"] / "vae")
    pipe = diffusers.StableDiffusionInpaintPipeline(vae=vae, **parts)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "holes")
    checkpoint = load_checkpoint(tmp_path / "holes", device="cpu")
    assert checkpoint.inpainting
    with pytest.raises(UsageError, match="only redraws") as error:
        drawn(checkpoint)
    one_sentence(str(error.value))
    hole = torch.zeros(64, 80)
    hole[:, 40:] = 1
    for mask in (hole, torch.ones(64, 80)):
        expected = expected_latents(
            pipe,
            image=as_input(photo()),
            mask_image=grown(checkpoint, mask),
            strength=1.0,
            num_inference_steps=5,
            height=64,
            width=80,
        )
        (result,) = redrawn(checkpoint, [photo()], strength=1.0, mask=mask, feather=0)
        assert_close(result.latents.tensor[None], expected)
    path = write(tmp_path / "holes.safetensors", original("sd1", pipe))
    single = load_checkpoint(path, config=only_configs(tmp_path / "holes", tmp_path / "configs"), device="cpu")
    assert single.inpainting
    for whole in (checkpoint, single):
        (one,) = redrawn(whole, [photo()], strength=1.0)  # without a mask, all is redrawn
        assert_close(one.latents.tensor, result.latents.tensor, 1e-5)


@pytest.mark.slow
def test_latents_scaled_by_channel_are_those_of_diffusers(
    theirs: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "scaled"
    shutil.copytree(folders["sdxl"], folder)
    scales = {"scaling_factor": 0.5, "latents_mean": [-1.6, 1.1, 3.3, -2.6], "latents_std": [8.4, 5.9, 6.6, 5.2]}
    config = json.loads((folder / "vae" / "config.json").read_text()) | scales
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    checkpoint = load_checkpoint(folder, device="cpu")
    expected = expected_latents(
        theirs("sdxl", "Img2Img", folder),
        image=as_input(photo()),
        strength=0.6,
        num_inference_steps=5,
        guidance_scale=5.0,
    )
    (result,) = redrawn(checkpoint, [photo()], strength=0.6)
    assert_close(result.latents.tensor[None], expected)
    pixels = expected_latents(theirs("sdxl", "", folder), height=64, width=80, guidance_scale=5.0, output_type="pt")
    (result,) = drawn(checkpoint)
    assert np.abs(array(result.picture) - array(to_pil(pixels[0] * 2 - 1))).max() <= 1
