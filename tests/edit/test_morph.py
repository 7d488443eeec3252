"""Morphs: ends, order, frames, steps, and what is refused."""

from __future__ import annotations

import gc
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editkit import levels, picture
from PIL import Image, ImageSequence
from support import names, one_sentence
from torch import Tensor

from calotype.edit.morph import Way, morph, write_morph
from calotype.edit.paths import between
from calotype.edit.sources import fit, latents_of
from calotype.errors import LatentsError, UsageError
from calotype.evaluate.lpips import LPIPS
from calotype.latents import Latents
from calotype.pixels import to_uint8
from calotype.vae import VAE


def keys(vae: VAE, count: int = 2, width: int = 40, height: int = 32) -> list[Latents]:
    return [latents_of(vae, picture(seed, width, height)) for seed in range(count)]


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def shown(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        return [array(frame) for frame in ImageSequence.Iterator(image)]


@pytest.mark.parametrize("kind", ["lerp", "slerp"])
@pytest.mark.parametrize("size", [(40, 32), (37, 21)])
def test_a_morph_is_at_its_pictures_exactly(kind: Any, size: tuple[int, int], vae: VAE, tmp_path: Path) -> None:
    pictures = keys(vae, 3, *size)
    way = Way(frames=5, kind=kind, easing="cosine")
    write_morph(vae, pictures, tmp_path / "m.png", way)
    found = shown(tmp_path / "m.png")
    assert len(found) == way.count(3) == 9
    for i in range(3):
        round_trip = vae.decode_image(vae.encode_image(picture(i, *size)))
        assert np.array_equal(found[4 * i], array(round_trip))
    assert not any(np.array_equal(x, y) for x, y in itertools.pairwise(found))


def test_frames_between_are_decoded_from_between(vae: VAE) -> None:
    a, b = keys(vae)
    frames = list(morph(vae, [a, b], Way(frames=5, easing="in")))
    assert [frame.t for frame in frames] == [0, 0.0625, 0.25, 0.5625, 1]
    for frame in frames:
        z = between(a.tensor, b.tensor, frame.t, "slerp", vae.latent_format)
        assert torch.equal(frame.pixels, vae.decode(z[None])[0])
        fade = (1 - frame.t) * frames[0].pixels + frame.t * frames[-1].pixels
        assert torch.allclose(frame.cross_fade(), fade, atol=1e-6)


def test_ping_pong_comes_back_the_same_way(vae: VAE, tmp_path: Path) -> None:
    way = Way(frames=4, ping_pong=True)
    made = write_morph(vae, keys(vae, 3), tmp_path / "m.webp", way)
    found = shown(tmp_path / "m.webp")
    assert made.frames == len(found) == way.count(3) == 12  # 7 there, 5 back
    for i in range(1, 6):
        assert np.array_equal(found[i], found[12 - i])


def test_a_closed_morph_ends_before_its_first_picture(vae: VAE, tmp_path: Path) -> None:
    pictures = keys(vae, 3)
    way = Way(frames=4, closed=True)
    write_morph(vae, pictures, tmp_path / "m.png", way)
    found = shown(tmp_path / "m.png")
    assert len(found) == way.count(3) == 9
    again = list(morph(vae, [pictures[2], pictures[0]], Way(frames=4)))
    for i in range(3):
        assert np.array_equal(found[6 + i], to_uint8(again[i].pixels).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_two_frames_and_a_contact_sheet(suffix: str, vae: VAE, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    made = write_morph(vae, keys(vae), path, Way(frames=2), sheet=tmp_path / "sheet.png")
    assert (made.frames, made.width, made.height, made.steps) == (2, 40, 32, {})
    sheet = levels_of(tmp_path / "sheet.png")
    assert sheet.shape == (32, 2 * 40 + 4, 3)
    if suffix == ".png":
        assert np.array_equal(sheet, np.concatenate([shown(path)[0], np.full((32, 4, 3), 255), shown(path)[1]], axis=1))


def levels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.slow
def test_frames_are_decoded_one_at_a_time(vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the morph is, few pictures are alive at once."""
    decode, most, count = vae.decode, 0, 0

    def watched(latents: Tensor, *rest: Any, **options: Any) -> Tensor:
        nonlocal most, count
        assert len(latents) == 1
        found = {one.data_ptr() for one in gc.get_objects() if type(one) is Tensor and one.shape[-2:] == (48, 56)}
        most, count = max(most, len(found)), count + 1
        return decode(latents, *rest, **options)

    pictures = keys(vae, 2, 56, 48)
    monkeypatch.setattr(vae, "decode", watched)
    write_morph(vae, pictures, tmp_path / "m.png", Way(frames=12), measure=True)
    assert count == 12
    assert 2 <= most <= 5  # both ends, the frame before, its cross-fade, and one that goes


def test_steps_are_distances_between_frames(vae: VAE, tmp_path: Path) -> None:
    pictures = keys(vae)
    frames = list(morph(vae, pictures, Way(frames=4)))
    steps = write_morph(vae, pictures, tmp_path / "m.gif", Way(frames=4), measure=True).steps
    assert steps.keys() == {"rmse"}
    x = [127.5 * frame.pixels.double().numpy() for frame in frames]
    fade = [x[0] + (x[3] - x[0]) * i / 3 for i in range(4)]
    for found, way in ((steps["rmse"].morph, x), (steps["rmse"].cross_fade, fade)):
        expected = [np.sqrt(np.mean((b - a) ** 2)) for a, b in itertools.pairwise(way)]
        assert found == pytest.approx(expected, rel=1e-5)


def test_lpips_is_that_of_evaluate(vae: VAE, tmp_path: Path) -> None:
    torch.manual_seed(0)
    lpips = LPIPS("alex")
    pictures = keys(vae)
    steps = write_morph(vae, pictures, tmp_path / "m.gif", Way(frames=3), measure=True, lpips=lpips).steps
    frames = [frame.pixels[None] for frame in morph(vae, pictures, Way(frames=3))]
    middle = (frames[0] + frames[2]) / 2
    with torch.no_grad():
        expected = [float(lpips(frames[0], frames[1])), float(lpips(frames[1], frames[2]))]
        fade = [float(lpips(frames[0], middle)), float(lpips(middle, frames[2]))]
    assert steps["lpips"].morph == pytest.approx(expected, rel=1e-4)
    assert steps["lpips"].cross_fade == pytest.approx(fade, rel=1e-4)


def test_a_stopped_morph_leaves_nothing(vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, left = vae.decode, 4

    def stopped(*words: Any, **options: Any) -> Tensor:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return decode(*words, **options)

    monkeypatch.setattr(vae, "decode", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_morph(vae, keys(vae), tmp_path / "m.gif", Way(frames=9, ping_pong=True), sheet=tmp_path / "sheet.png")
    assert names(tmp_path) == []


@pytest.mark.slow
def test_progress_ends_with_one(vae: VAE, tmp_path: Path) -> None:
    for way in (Way(frames=3), Way(frames=3, closed=True), Way(frames=3, ping_pong=True)):
        told: list[float] = []
        write_morph(vae, keys(vae, 3), tmp_path / "m.gif", way, progress=told.append)
        assert told == sorted(told)
        assert told[-1] == pytest.approx(1)


def test_what_is_no_morph_is_refused(vae: VAE) -> None:
    small, large = keys(vae, 2), keys(vae, 2, 48, 32)
    foreign = replace(small[1], vae="0" * 64, vae_name="another", format=replace(small[1].format, name="custom"))
    cases: list[tuple[type[Exception], str, Any]] = [
        (UsageError, "1 was given", lambda: list(morph(vae, small[:1]))),
        (UsageError, "Picture 2 is 48x32 and the first 40x32", lambda: list(morph(vae, [small[0], large[0]]))),
        (LatentsError, "made by another VAE", lambda: list(morph(vae, [small[0], foreign]))),
        (UsageError, "two ends as frames, not 1", lambda: Way(frames=1)),
        (UsageError, "not both", lambda: Way(closed=True, ping_pong=True)),
        (UsageError, "no easing", lambda: Way(easing="bounce")),
    ]
    for kind, words, make in cases:
        with pytest.raises(kind, match=words) as error:
            make()
        one_sentence(str(error.value))


def test_pictures_too_small_for_lpips_are_refused(vae: VAE, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 32 pixels a side, not 24x16"):
        write_morph(vae, keys(vae, 2, 24, 16), tmp_path / "m.gif", measure=True, lpips=LPIPS("alex"))


def test_fit_covers_and_cuts_around_the_middle() -> None:
    whole = picture(3, 60, 20)
    cut = fit(whole, (20, 20))
    assert np.array_equal(np.asarray(cut.levels), levels(3, 60, 20)[:, 20:40])
    assert fit(whole, (60, 20)) is whole
    assert fit(whole, (33, 77)).size == (77, 33)
