"""Drawers: seeds, settings, changes by words, and walks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import drawkit
import numpy as np
import pytest
import torch
from PIL import Image
from support import fill, one_sentence
from torch import Tensor

from calotype.draw.area import thin, whole_latents
from calotype.draw.model import DrawingModel, save_model
from calotype.draw.pipeline import LONG, Drawer, Settings, load_drawer
from calotype.draw.redraw import latent_mask, redrawn, write_redrawn
from calotype.draw.sampler import Step, noise_for
from calotype.draw.text import Context
from calotype.draw.walk import lerped, walk
from calotype.edit.feather import shown
from calotype.edit.morph import Way
from calotype.errors import CalotypeWarning, LatentsError, UsageError
from calotype.pixels import read_picture_rows
from calotype.vae import VAE, load

FEW = Settings(steps=3, guidance=2.0)


@pytest.fixture(scope="module")
def vae() -> VAE:
    return load()


def drawer_of(vae: VAE, seed: int = 0) -> Drawer:
    config = replace(drawkit.SIZES, vae=vae.sha256, size=48)
    words = [word for prompt in drawkit.PROMPTS for word in prompt.replace(",", "").split()]
    model = DrawingModel(config, drawkit.tokenizer(), drawkit.PROMPTS, words)
    return Drawer(fill(model, seed), vae)


@pytest.fixture(scope="module")
def drawer(vae: VAE) -> Drawer:
    return drawer_of(vae)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """52x44: neither side a multiple of what the denoiser halves."""
    y, x = np.mgrid[0:44, 0:52]
    waves = 127 + 90 * np.sin(np.stack([x / 9, y / 7, (x + y) / 11], -1))
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(waves.astype(np.uint8)).save(path)
    return path


@pytest.mark.slow
def test_a_drawing_is_of_prompt_seed_and_settings(drawer: Drawer) -> None:
    first = drawer.draw("red circle", 1, FEW)
    assert (first.padding.width, first.padding.height) == (48, 48)
    assert torch.equal(first.tensor, drawer.draw("red circle", 1, FEW).tensor)
    for other in (
        drawer.draw("blue square", 1, FEW),
        drawer.draw("red circle", 2, FEW),
        drawer.draw("red circle", 1, replace(FEW, guidance=1.0)),
        drawer.draw("red circle", 1, replace(FEW, guidance_above=0.0)),
        drawer.draw("red circle", 1, replace(FEW, steps=4)),
        drawer.draw("red circle", 1, replace(FEW, negative="blue")),
        drawer.draw("red circle", 1, replace(FEW, steps=4, sampler="euler")),
    ):
        assert float((other.tensor - first.tensor).abs().max()) > 1e-3


def test_a_drawing_is_told_its_sketch_with_its_seeds_noise(drawer: Drawer) -> None:
    settings = replace(FEW, negative="blue")
    made = drawer.draw("red circle", 1, settings).tensor
    texts, padding = drawer.embed("red circle", "blue"), drawer.padding(settings)

    def told(sketch: Tensor) -> Tensor:
        return drawer.from_noise(texts._replace(sketch=sketch), drawer.noise(1, padding), padding, settings).tensor

    noise = 0.3 * drawer.sketch_noise(1)
    torch.testing.assert_close(told(texts.sketch + noise), made)
    for other in (texts.sketch, texts.sketch + 0.3 * drawer.sketch_noise(2), noise.expand_as(texts.sketch)):
        assert float((told(other) - made).abs().max()) > 1e-2


def test_noise_on_sketches_is_a_seeds_own(drawer: Drawer) -> None:
    """No two are alike, and none is like noise that drawings begin with."""
    many = torch.cat([drawer.sketch_noise(seed) for seed in range(64)])
    assert many.shape == (64, 16, 2, 2)
    assert torch.equal(drawer.sketch_noise(3), many[3:4])
    both = torch.cat([many, noise_for(range(64), (16, 2, 2))]).flatten(1)
    assert float((torch.corrcoef(both) - torch.eye(128)).abs().max()) < 0.7  # 64 numbers: an error of 0.13
    assert abs(float(many.mean())) < 0.06  # 4,096 numbers: an error of 0.016
    assert abs(float(many.std()) - 1) < 0.05
    assert torch.isfinite(drawer.sketch_noise(2**64 - 1)).all()


def test_prompts_are_meant_as_names_wherever_they_are_drawn(vae: VAE, photo: Path) -> None:
    """Drawn, redrawn and walked between: the same as the names that they are taken for, of their seeds."""
    plain, strict = drawer_of(vae), drawer_of(vae)
    strict.model.config = replace(strict.model.config, known_within=1e-3)
    strict = Drawer(strict.model, vae)
    prompts, seeds = ("moon", "a square or a star"), (3, 4)
    meant = [strict.meant(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    assert set(meant) <= set(strict.model.names)
    assert torch.equal(strict.draw("moon", 3, FEW).tensor, plain.draw(meant[0], 3, FEW).tensor)
    source = vae.encode_image(photo)
    changed = [one.redraw(source, prompt, 4, FEW).tensor for one, prompt in ((strict, prompts[1]), (plain, meant[1]))]
    assert torch.equal(*changed)
    walks = [walk(one, said, seeds, FEW, Way(frames=3)) for one, said in ((strict, prompts), (plain, meant))]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(*walks, strict=True))
    with pytest.raises(UsageError):
        next(walk(strict, prompts, seeds[:1], FEW))
    with pytest.raises(UsageError, match="A seed is"):
        next(walk(strict, prompts, (3, -1), FEW))


def test_guidance_is_a_sum_of_two_predictions(drawer: Drawer) -> None:
    """One Euler step from noise is linear in the prediction, and so in the guidance."""
    one = [drawer.draw("red circle", 1, Settings(steps=1, guidance=g, sampler="euler")).tensor for g in (0.0, 1.0, 3.0)]
    torch.testing.assert_close(one[2], one[0] + 3.0 * (one[1] - one[0]), rtol=1e-4, atol=1e-4)


def test_a_reloaded_model_draws_the_same(vae: VAE, tmp_path: Path) -> None:
    """Bit by bit, wherever its tensors lie in the file, which depends on how long the header is."""
    made = drawer_of(vae)
    drawn = made.draw("red circle", 1, FEW).tensor
    for length in range(0, 64, 8):
        made.model.about = {"said": "x" * length}
        save_model(made.model, tmp_path / "model.safetensors", dtype=torch.float32)
        again = load_drawer(tmp_path / "model.safetensors")
        assert torch.equal(again.draw("red circle", 1, FEW).tensor, drawn)
    assert again.model.names == made.model.names
    assert again.model.words == made.model.words


def test_any_size_is_padded_and_cut(drawer: Drawer) -> None:
    made = drawer.draw("red circle", 1, replace(FEW, size=(50, 33)))
    assert made.tensor.shape == (16, 6, 8)
    assert drawer.vae.decode_image(made).size == (50, 33)
    for size in ((16, 16), (128, 32)):  # of fewer latents than the model was trained on, and of more
        made = drawer.draw("red circle", 1, replace(FEW, size=size))
        assert drawer.vae.decode_image(made).size == size
        assert torch.isfinite(made.tensor).all()
        assert torch.isfinite(drawer.draw("red circle", 1, replace(FEW, size=size, guidance=1.0)).tensor).all()


def test_guidance_counts_above_a_part_of_the_noise(drawer: Drawer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of the noise that a redraw begins with."""
    seen: list[tuple[float, int]] = []
    forward = drawer.model.forward

    def watched(x: Tensor, t: Tensor, context: Context) -> Tensor:
        seen.append((round(float(t[0]), 6), len(x)))
        return forward(x, t, context)

    monkeypatch.setattr(drawer.model, "forward", watched)
    settings = Settings(steps=5, guidance=2.0, guidance_above=0.4)
    source = drawer.draw("red circle", 1, settings)
    assert seen == [(1.0, 2), (0.8, 2), (0.6, 2), (0.4, 1), (0.2, 1)]
    for above, counts in ((0.5, [2, 2, 1, 1]), (0.0, [2, 2, 2, 2])):
        seen.clear()
        drawer.redraw(source, "blue square", 1, Settings(steps=8, guidance=2.0, guidance_above=above), strength=0.5)
        assert seen == list(zip((0.5, 0.375, 0.25, 0.125), counts, strict=True))


def test_models_draw_as_is_usual_for_them(drawer: Drawer) -> None:
    assert drawer.usual == LONG
    config = replace(drawer.model.config, sketch_std=0.2)
    sketching = Drawer(DrawingModel(config, drawer.model.text.tokenizer), drawer.vae)
    assert sketching.usual == Settings(steps=2, guidance=1.0)
    for one in (sketching, drawer):
        made = one.draw("red circle", 1)
        assert torch.equal(made.tensor, one.draw("red circle", 1, one.usual).tensor)
        (again,) = redrawn(one, made, ["blue square"], 2)
        assert torch.equal(again.tensor, one.redraw(made, "blue square", 2, one.usual).tensor)


def test_another_vae_is_refused(drawer: Drawer) -> None:
    model = DrawingModel(drawkit.SIZES, drawkit.tokenizer())
    with pytest.raises(UsageError, match=r"sha256 000000000000.*give the VAE it was trained with"):
        Drawer(model, drawer.vae)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"guidance": -1.0}, "Guidance"),
        ({"guidance": float("nan")}, "Guidance"),
        ({"guidance_above": 1.0}, "a part of noise"),
        ({"guidance_above": -0.1}, "a part of noise"),
        ({"size": (4, 64)}, "pixels wide"),
        ({"negative": "blue"}, "does nothing at guidance 1"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Settings(**values)  # type: ignore[arg-type]


def test_steps_samplers_and_seeds_that_cannot_be(drawer: Drawer) -> None:
    for settings, seed in ((Settings(steps=0), 0), (Settings(sampler="heun"), 0), (Settings(), -1)):  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            drawer.draw("red circle", seed, settings)
    for seed in (-1, 2**64):
        with pytest.raises(UsageError, match=rf"not {seed}\."):
            drawer.draw("red circle", seed, FEW)


def test_words_that_are_not_known(drawer: Drawer) -> None:
    assert drawer.unknown("a Red dragonfruit on the circle, dragonfruit") == ["dragonfruit"]
    assert drawer.unknown("Réd circle") == []
    assert drawer.nearest("greenish triangles", 1) == ["green triangle on white"]
    assert drawer.nearest("the circle", 2)[0] == "red circle"


def test_previews_follow_the_drawing(drawer: Drawer) -> None:
    steps: list[Step] = []
    made = drawer.draw("red circle", 1, FEW, on_step=steps.append)
    assert [(one.index, one.total) for one in steps] == [(0, 3), (1, 3), (2, 3)]
    last = np.asarray(drawer.preview(steps[-1]), np.int16)
    assert last.shape == (48, 48, 3)
    assert np.abs(last - np.asarray(drawer.vae.decode_image(made), np.int16)).max() <= 1


# --- changes by words ---


def test_strength_0_is_the_round_trip_and_1_does_not_look(drawer: Drawer, photo: Path) -> None:
    source = drawer.vae.encode_image(photo)
    same = drawer.redraw(source, "red circle", 3, FEW, strength=0.0)
    assert torch.equal(same.tensor, source.tensor)
    blank = replace(source, tensor=torch.zeros_like(source.tensor))
    new, of_blank = (drawer.redraw(one, "red circle", 3, FEW, strength=1.0).tensor for one in (source, blank))
    assert torch.equal(new, of_blank)
    half, half_blank = (drawer.redraw(one, "red circle", 3, FEW, strength=0.5).tensor for one in (source, blank))
    assert float((half - half_blank).abs().max()) > 0.01


def test_strength_1_is_a_drawing(drawer: Drawer, photo: Path) -> None:
    made = drawer.redraw(drawer.vae.encode_image(photo), "red circle", 3, FEW, strength=1.0).tensor
    drawn = drawer.draw("red circle", 3, replace(FEW, size=(52, 44))).tensor
    torch.testing.assert_close(made, drawn[:, : made.shape[1], : made.shape[2]])


def test_a_stronger_change_is_further_from_the_source(drawer: Drawer, photo: Path) -> None:
    source = drawer.vae.encode_image(photo)
    apart = [
        float((drawer.redraw(source, "red circle", 3, FEW, strength=s).tensor - source.tensor).square().mean())
        for s in (0.0, 0.2, 0.5, 0.9)
    ]
    assert apart == sorted(apart)
    assert apart[0] == 0.0 < apart[1]


def test_stages_begin_with_the_latents_before(drawer: Drawer, photo: Path) -> None:
    source = drawer.vae.encode_image(photo)
    stages = list(redrawn(drawer, source, ["red circle", "blue square"], 5, FEW, strength=0.5))
    by_hand = drawer.redraw(stages[0], "blue square", 6, FEW, strength=0.5)
    assert torch.equal(stages[1].tensor, by_hand.tensor)
    unchanged = list(redrawn(drawer, source, ["a"] * 5, 5, FEW, strength=0.0))
    assert all(torch.equal(one.tensor, source.tensor) for one in unchanged)
    with pytest.raises(UsageError, match="no prompt"):
        list(redrawn(drawer, source, [], 0))


@pytest.mark.parametrize("feather", [0, 7])
def test_outside_the_mask_not_one_pixel_changes(drawer: Drawer, photo: Path, tmp_path: Path, feather: int) -> None:
    original = read_picture_rows(photo)
    mask = torch.zeros(44, 52, dtype=torch.uint8)
    mask[10:30, 21:40] = 255
    part = shown(mask, feather)
    source = drawer.vae.encode_image(original)
    (made,) = redrawn(drawer, source, ["red circle"], 0, FEW, strength=1.0, mask=latent_mask(drawer.vae, mask))
    out = write_redrawn(drawer.vae, made, original, part, tmp_path / "out.png")
    before, after = (np.asarray(Image.open(path).convert("RGB"), np.int16) for path in (photo, out))
    changed = np.abs(before - after).max(2) > 0
    assert not changed[part.numpy() == 0].any()
    assert changed[mask.numpy() > 0].mean() > 0.9


def masks_of_widths() -> Iterator[tuple[str, Tensor]]:
    """Lines, dots, edges and corners of a picture of 52x44."""
    for width in (1, 2, 4, 8, 16, 32):
        mask = torch.zeros(44, 52, dtype=torch.uint8)
        mask[7 : 7 + width] = 255
        yield f"{width} rows", mask
    for name, places in (("dot", [(20, 25)]), ("dots", [(3, 3), (20, 40), (35, 10)]), ("corners", [(0, 0), (43, 51)])):
        mask = torch.zeros(44, 52, dtype=torch.uint8)
        for y, x in places:
            mask[y, x] = 255
        yield name, mask
    mask = torch.zeros(44, 52, dtype=torch.uint8)
    mask[:, 51] = mask[43] = 255
    yield "edges", mask


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The mask is nowhere")
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_what_a_mask_selects_is_new_however_thin_it_is(
    strength: float, drawer: Drawer, photo: Path, tmp_path: Path
) -> None:
    """It changes as much as where all is drawn by the same seed."""
    original = read_picture_rows(photo)
    source = drawer.vae.encode_image(original)
    before = np.asarray(Image.open(photo), np.int16)
    unmasked = drawer.redraw(source, "red circle", 0, FEW, strength=strength)
    whole = np.abs(np.asarray(drawer.vae.decode_image(unmasked), np.int16) - before)
    for name, mask in masks_of_widths():
        made = drawer.redraw(
            source, "red circle", 0, FEW, strength=strength, mask=latent_mask(drawer.vae, mask)
        )  # fmt: skip
        decoded = np.asarray(drawer.vae.decode_image(made), np.int16)
        inside = mask.numpy() > 0
        for feather in (0, 16):
            part = shown(mask, feather)
            write_redrawn(drawer.vae, made, original, part, tmp_path / "out.png")
            found = np.asarray(Image.open(tmp_path / "out.png"), np.int16)
            assert np.array_equal(found[part.numpy() == 0], before[part.numpy() == 0]), name
            assert np.array_equal(found[inside], decoded[inside]), name
            if inside.sum() > 3:  # single pixels may be of any colour by chance
                assert np.abs(found - before)[inside].mean() > 0.7 * whole[inside].mean(), name
            else:
                assert np.abs(found - before)[inside].max() > 0.3 * whole.mean(), name


def test_whole_latents_are_drawn_and_those_beside_them() -> None:
    mask = torch.zeros(40, 52, dtype=torch.uint8)
    mask[20, 25] = 1
    cells = torch.zeros(5, 7)
    cells[1:4, 2:5] = 1
    assert torch.equal(whole_latents(mask, 8), cells)
    patches = torch.zeros(3, 4)
    patches[0:2, 1:3] = 1
    assert torch.equal(whole_latents(mask, 8, 2), patches)
    edge = torch.zeros(40, 52, dtype=torch.uint8)
    edge[:, 51] = 255  # and so what is added to the right of it
    found = whole_latents(edge, 8, 2)
    assert found.shape == (3, 4)
    assert found[:, 2:].all()
    assert not found[:, :2].any()
    assert not whole_latents(torch.zeros(9, 9), 8).any()
    assert whole_latents(torch.ones(9, 9, dtype=torch.bool), 8).all()


@pytest.mark.parametrize(("side", "told"), [(1, True), (7, True), (8, False), (30, False)])
def test_a_mask_thinner_than_a_latent_is_told(side: int, told: bool, vae: VAE) -> None:
    mask = torch.zeros(44, 52, dtype=torch.uint8)
    mask[3 : 3 + side, 5 : 5 + side] = 255
    mask[3:4] = 255
    assert (thin(mask, 8) is not None) == told
    assert thin(mask, 8, 4) is not None or side > 8
    if told:
        with pytest.warns(CalotypeWarning, match="nowhere as wide as a latent") as caught:
            latent_mask(vae, mask)
        one_sentence(str(caught[0].message))
    else:
        latent_mask(vae, mask)
    assert thin(torch.full((5, 5), 255), 8) is None


def test_latents_outside_the_mask_are_kept(drawer: Drawer, photo: Path) -> None:
    source = drawer.vae.encode_image(photo)
    mask = torch.zeros(*source.tensor.shape[1:])
    mask[1:3, 2:4] = 1.0
    made = drawer.redraw(source, "red circle", 0, FEW, strength=1.0, mask=mask)
    apart = (made.tensor - source.tensor).abs().amax(0)
    assert float(apart[mask == 0].max()) < 1e-5
    assert float(apart[mask == 1].min()) > 1e-3


def test_redraws_that_cannot_be(drawer: Drawer, photo: Path) -> None:
    source = drawer.vae.encode_image(photo)
    with pytest.raises(UsageError, match="make it their size"):
        drawer.redraw(source, "red circle", 0, FEW, mask=torch.ones(3, 3))
    with pytest.raises(UsageError, match="strength"):
        drawer.redraw(source, "red circle", 0, FEW, strength=1.5)
    with pytest.raises(UsageError, match=r"not -1\."):
        drawer.redraw(source, "red circle", -1, FEW)
    with pytest.raises(LatentsError):
        own = replace(source.format, name="custom")
        drawer.redraw(replace(source, format=own, vae="1" * 64, vae_name="other"), "red circle", 0, FEW)
    with pytest.raises(UsageError, match="52x44"):
        write_redrawn(drawer.vae, source, read_picture_rows(photo), torch.ones(8, 8), Path("out.png"))


# --- walks ---


def test_a_walk_ends_where_its_prompts_are_drawn(drawer: Drawer) -> None:
    prompts, seeds = ["red circle", "yellow star"], [1, 2]
    frames = list(walk(drawer, prompts, seeds, FEW, Way(frames=4)))
    assert [frame.t for frame in frames] == [0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0]
    for frame, prompt, seed in ((frames[0], prompts[0], 1), (frames[-1], prompts[1], 2)):
        drawn = drawer.vae.decode(drawer.draw(prompt, seed, FEW).tensor[None])[0]
        torch.testing.assert_close(frame.pixels, drawn, rtol=0.0, atol=1e-4)


def test_a_walk_between_one_prompt_and_itself_turns_the_noise_alone(drawer: Drawer) -> None:
    still = list(walk(drawer, ["red circle"] * 2, [1, 1], FEW, Way(frames=3)))
    torch.testing.assert_close(still[0].pixels, still[1].pixels, rtol=0.0, atol=1e-4)
    turned = list(walk(drawer, ["red circle"] * 2, [1, 2], FEW, Way(frames=3)))
    assert float((turned[0].pixels - turned[1].pixels).abs().max()) > 1e-2


def test_noise_on_sketches_stays_as_strong_on_a_walk(drawer: Drawer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    real = Drawer.from_noise

    def kept(self: Drawer, texts: Context, *words: Any, **more: Any) -> Any:
        seen.append(texts.sketch)
        return real(self, texts, *words, **more)

    monkeypatch.setattr(Drawer, "from_noise", kept)
    list(walk(drawer, ["red circle", "yellow star"], [1, 2], FEW, Way(frames=5)))
    a, b, negative = drawer.embed("red circle", "yellow star", "").sketch
    clean = [a, b, *(torch.lerp(a, b, t) for t in (0.25, 0.5, 0.75))]  # those at the prompts are drawn first
    noises = [(sketch[0] - without) / 0.3 for sketch, without in zip(seen, clean, strict=True)]
    for found, seed in zip(noises, (1, 2), strict=False):
        torch.testing.assert_close(found, drawer.sketch_noise(seed)[0], atol=1e-5, rtol=1e-5)
    lengths = [float(one.norm()) for one in noises]
    assert max(lengths) < 1.01 * max(lengths[:2])
    assert min(lengths) > 0.99 * min(lengths[:2])
    for sketch, found in zip(seen, noises, strict=True):  # the same for both texts
        torch.testing.assert_close(sketch[1] - negative, 0.3 * found, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_walk_is_even_near_its_ends(drawer: Drawer) -> None:
    """Texts of different lengths: a token that only one has must come in slowly, not at once."""
    frames = list(walk(drawer, ["red", "green triangle on white"], [1, 1], FEW, Way(frames=41)))
    steps = [float((a.pixels - b.pixels).abs().mean()) for a, b in pairwise(frames)]
    assert steps[0] < 4 * sorted(steps)[len(steps) // 2]
    assert steps[-1] < 4 * sorted(steps)[len(steps) // 2]


def test_texts_between(drawer: Drawer) -> None:
    both = drawer.embed("red", "green triangle on white")
    a, b = both.rows(0, 1), both.rows(1, 2)
    middle = lerped(a, b, 0.25)
    common = (a.mask & b.mask)[0]
    torch.testing.assert_close(middle.states[0, common], torch.lerp(a.states, b.states, 0.25)[0, common])
    assert middle.mask[0, common].abs().max() == 0.0
    alone = (b.mask & ~a.mask)[0]
    assert alone.any()
    torch.testing.assert_close(middle.mask[0, alone].exp(), torch.full((int(alone.sum()),), 0.25))
    torch.testing.assert_close(middle.states[0, alone], b.states[0, alone])
    torch.testing.assert_close(middle.pooled, 0.75 * a.pooled + 0.25 * b.pooled)
    torch.testing.assert_close(middle.sketch, 0.75 * a.sketch + 0.25 * b.sketch)
    assert float((a.sketch - b.sketch).abs().max()) > 0.1
    assert isinstance(middle, Context)


def test_walks_that_cannot_be(drawer: Drawer) -> None:
    with pytest.raises(UsageError, match="from one prompt to another"):
        list(walk(drawer, ["red"], [0]))
    with pytest.raises(UsageError, match="2 seeds for 3 prompts"):
        list(walk(drawer, ["a", "b", "c"], [0, 1]))


def test_a_closed_walk_comes_back(drawer: Drawer) -> None:
    frames = list(walk(drawer, ["red circle", "yellow star"], [1, 2], FEW, Way(frames=3, closed=True)))
    assert len(frames) == Way(frames=3, closed=True).decoded(2) == 4
    assert torch.equal(frames[-1].after, frames[0].pixels)
