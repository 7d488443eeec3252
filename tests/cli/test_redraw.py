"""`calotype redraw` and `morph --prompts`, and what edits say of themselves."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from clikit import Calotype, draw, files, levels
from drawingkit import SIZE, frames, pixels, stop_after
from PIL import Image, ImageDraw

from calotype.draw.pipeline import Drawer, Settings
from calotype.draw.record import read_record
from calotype.edit.feather import shown
from calotype.latent_files import load_latents

pytest_plugins = ["drawing_fixtures"]
pytestmark = pytest.mark.usefixtures("builtin_drawing")


# --- redraw ---


@pytest.mark.slow
def test_redrawing_is_what_the_drawer_does(calotype: Calotype, drawer: Drawer) -> None:
    draw("a.png", 70, 50)
    words = ["--steps", 2, "--strength", 0.5, "--seed", 4, "--guidance", 2, "--negative", "red", "--sampler", "ddim"]
    ran = calotype("redraw", "a.png", "a sun", "full moon", *words, "--out", "o")
    assert (ran.code, ran.err) == (0, "")
    names = ["a-redraw-1.png", "a-redraw-2.png", "a-redraw.png"]
    assert ran.out.splitlines() == [f"o/{name}" for name in names]
    assert files("o") == names
    settings = Settings(steps=2, guidance=2.0, negative="red", sampler="ddim")
    first = drawer.redraw(drawer.vae.encode_image("a.png"), "a sun", 4, settings, strength=0.5)
    second = drawer.redraw(first, "full moon", 5, settings, strength=0.5)
    for name, latents in zip(names[:2], (first, second), strict=True):
        assert np.array_equal(levels(f"o/{name}"), np.asarray(drawer.vae.decode_image(latents)))
    assert levels("o/a-redraw.png").shape == (50 + 20, 3 * 74 - 4, 3)
    told = read_record("o/a-redraw-2.png")
    assert (told["kind"], told["prompts"], told["seed"]) == ("redraw", ["a sun", "full moon"], 4)
    assert (told["strength"], told["mask"], told["feather"], told["size"]) == (0.5, None, None, [70, 50])
    assert told["source"] == {"name": "a.png", "sha256": hashlib.sha256(Path("a.png").read_bytes()).hexdigest()}
    assert (told["steps"], told["guidance"], told["negative"], told["sampler"]) == (2, 2.0, "red", "ddim")
    assert read_record("o/a-redraw-1.png")["prompts"] == ["a sun"]


@pytest.mark.slow
def test_strength_0_is_the_reconstruction_and_1_a_drawing(calotype: Calotype, drawer: Drawer) -> None:
    draw("a.png", SIZE, SIZE)
    calotype("redraw", "a.png", "sun", "--steps", 2, "--strength", 0)
    calotype("reconstruct", "a.png")
    assert np.array_equal(levels("a-redraw-1.png"), levels("a-reconstruction.png"))
    calotype("redraw", "a.png", "sun", "--steps", 2, "--strength", 1, "--seed", 3)
    assert np.array_equal(levels("a-redraw-1.png"), pixels(drawer, "sun", 3))


@pytest.mark.slow
def test_beyond_the_feather_no_pixel_changes(calotype: Calotype) -> None:
    draw("a.png", 96, 40)
    mask = Image.new("L", (96, 40))
    ImageDraw.Draw(mask).rectangle((60, 0, 95, 39), fill=255)
    mask.save("mask.png")
    ran = calotype("redraw", "a.png", "sun", "full moon", "--mask", "mask.png", "--feather", 8, "--steps", 2)
    assert (ran.code, ran.err) == (0, "")
    calotype("redraw", "a.png", "sun", "--mask", "mask.png", "--steps", 2, "--feather", 0, "--out", "hard")
    soft = shown(torch.from_numpy(np.array(mask)), 8).numpy()
    assert (soft[:, :52] == 0).all()
    for i in (1, 2):
        found = levels(f"a-redraw-{i}.png")
        assert np.array_equal(found[soft == 0], levels("a.png")[soft == 0])
        assert np.abs(found[:, 70:] - levels("a.png")[:, 70:]).mean() > 5
    assert np.array_equal(levels("hard/a-redraw-1.png")[:, :60], levels("a.png")[:, :60])
    told = read_record("a-redraw-1.png")
    assert told["mask"] == {"name": "mask.png", "sha256": hashlib.sha256(Path("mask.png").read_bytes()).hexdigest()}
    assert told["feather"] == 8
    told = calotype("redraw", "a.png", "sun", "--mask", "mask.png", "--steps", 1, "--json").json
    assert (told["feather"], told["sheet"], told["latents"]) == (16, "a-redraw.png", None)
    assert told["results"] == [{"prompt": "sun", "seed": 0, "picture": "a-redraw-1.png"}]
    assert (told["picture"], told["model"], told["strength"]) == ("a.png", "builtin", 0.6)


@pytest.mark.slow
def test_latents_go_in_and_come_out(calotype: Calotype, drawer: Drawer) -> None:
    draw("a.png", 64, 48)
    mask = Image.new("L", (64, 48))
    ImageDraw.Draw(mask).rectangle((40, 0, 63, 47), fill=255)
    mask.save("mask.png")
    calotype("encode", "a.png")
    words = ["sun", "--steps", 2, "--save-latents"]
    ran = calotype("redraw", "a.latents.safetensors", *words)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[-1] == "a-redraw.latents.safetensors"
    calotype("redraw", "a.png", *words, "--out", "o")
    assert np.array_equal(levels("a-redraw-1.png"), levels("o/a-redraw-1.png"))
    saved = load_latents("o/a-redraw.latents.safetensors")
    assert np.array_equal(np.asarray(drawer.vae.decode_image(saved)), levels("o/a-redraw-1.png"))
    # one prompt after another is the same as the second on the latents that the first left
    calotype("redraw", "a.png", "sun", "full moon", "--steps", 2, "--out", "both")
    calotype("redraw", "a-redraw.latents.safetensors", "full moon", "--steps", 2, "--seed", 1, "--out", "then")
    assert np.array_equal(levels("both/a-redraw-2.png"), levels("then/a-redraw-redraw-1.png"))
    ran = calotype("redraw", "a.latents.safetensors", "sun", "--mask", "mask.png", "--steps", 1)
    assert (ran.code, len(ran.said)) == (0, 1)
    assert "these are latents, so what the mask keeps is as the VAE decodes it" in ran.err
    calotype("decode", "a.latents.safetensors", "--out", "d")
    [decoded] = files("d")
    found, kept = levels("a-redraw-1.png"), levels(f"d/{decoded}")
    assert np.array_equal(found[:, :24], kept[:, :24])
    assert np.abs(found - kept)[:, 40:].mean() > 1


def test_latents_of_another_vae(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    calotype("encode", "a.png", "--vae", vae)
    ran = calotype("redraw", "a.latents.safetensors", "sun")
    assert (ran.code, len(ran.said)) == (1, 1)
    assert "are of format 'small', with 4 channels, and builtin decodes those of 'builtin', with 16" in ran.err
    assert files() == ["a.latents.safetensors", "a.png"]


def test_a_prompt_may_be_longer_than_a_files_name(calotype: Calotype) -> None:
    draw("a.png")
    assert calotype("redraw", "a.png", "sun " * 100, "--steps", 1).code == 0


@pytest.mark.slow
def test_a_picture_is_brought_to_a_size(calotype: Calotype) -> None:
    draw("a.png", 100, 50)
    told = calotype("redraw", "a.png", "sun", "--steps", 1, "--size", "32x40", "--preview", "p.png", "--json").json
    assert told["size"] == [32, 40]
    assert levels("a-redraw-1.png").shape == (40, 32, 3)
    assert levels("p.png").ndim == 3


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_finished_stages(calotype: Calotype, monkeypatch: pytest.MonkeyPatch) -> None:
    draw("a.png")
    stop_after(1, monkeypatch)
    ran = calotype("redraw", "a.png", "sun", "red", "sun", "--steps", 1, "--save-latents", "--out", "o")
    assert (ran.code, ran.said) == (130, ["calotype: Stopped; 1 of 3 pictures are finished, in o."])
    assert files() == ["a.png", "o/a-redraw-1.png"]


def masked(*boxes: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (96, 40))
    for box in boxes:
        ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


@pytest.mark.slow
def test_a_picture_is_redrawn_where_it_has_a_hole(calotype: Calotype) -> None:
    draw("a.png", 96, 40)
    hole = masked((60, 8, 85, 30))
    with Image.open("a.png") as image:
        image.putalpha(hole.point(lambda level: 255 - level))
        image.save("hole.png")
        Image.new("RGBA", (96, 40), (0, 0, 0, 0)).save("blank.png")
    flat = Image.new("RGBA", (96, 40), "red")
    flat.putalpha(hole.point(lambda level: 255 - level))
    flat.save("flat.png")
    inside = np.asarray(hole) > 0
    for name in ("hole", "flat"):  # one colour is what strokes have, but the picture itself is none
        ran = calotype("redraw", f"{name}.png", "sun", "--mask", f"{name}.png", "--feather", 0, "--steps", 1)
        assert ran.code == 0
        assert "what is transparent in it is selected" in ran.said[1]
        assert "at --strength 1 it is not looked at" in ran.said[2]
        found, before = levels(f"{name}-redraw-1.png"), levels(f"{name}.png")[..., :3]
        assert np.array_equal(found[~inside], before[~inside])
        assert np.abs(found[inside] - 255).mean() > 20  # and it is no background
    ran = calotype("redraw", "a.png", "sun", "--mask", "hole.png", "--feather", 0, "--steps", 1, "--out", "o")
    assert "It shows a picture, so what is transparent in it is selected" in ran.err
    assert np.array_equal(levels("o/a-redraw-1.png")[~inside], levels("a.png")[~inside])
    ran = calotype("redraw", "a.png", "sun", "--mask", "blank.png")
    assert (ran.code, len(ran.said)) == (2, 1)


@pytest.mark.slow
def test_a_mask_can_be_inverted(calotype: Calotype) -> None:
    draw("a.png", 96, 40)
    mask = masked((0, 0, 59, 39))
    mask.save("keep.png")
    mask.point(lambda level: 255 - level).save("mask.png")
    calotype("redraw", "a.png", "sun", "--mask", "mask.png", "--steps", 1, "--out", "one")
    ran = calotype("redraw", "a.png", "sun", "--mask", "keep.png", "--invert-mask", "--steps", 1, "--out", "two")
    assert (ran.code, ran.err) == (0, "")
    assert np.array_equal(levels("one/a-redraw-1.png"), levels("two/a-redraw-1.png"))
    assert read_record("two/a-redraw-1.png")["invert_mask"] is True
    Image.new("L", (96, 40), 255).save("white.png")
    for words, said in (
        (("--mask", "white.png", "--invert-mask"), "white all over and inverted"),
        (("--invert-mask",), "--invert-mask goes with a mask"),
    ):
        ran = calotype("redraw", "a.png", "sun", *words)
        assert (ran.code, len(ran.said)) == (2, 1)
        assert said in ran.err


@pytest.mark.slow
@pytest.mark.filterwarnings("always::calotype.errors.CalotypeWarning")
@pytest.mark.parametrize("latents", [False, True])
def test_a_thin_mask_is_drawn_and_told(latents: bool, calotype: Calotype) -> None:
    draw("a.png", 96, 40)
    masked((0, 18, 95, 18), (90, 2, 90, 2)).save("mask.png")
    source = "a.png"
    if latents:
        calotype("encode", "a.png")
        calotype("reconstruct", "a.png")
        source = "a.latents.safetensors"
    before = levels("a-reconstruction.png" if latents else "a.png")
    for feather in (0, 3, 16):
        ran = calotype("redraw", source, "sun", "--mask", "mask.png", "--feather", feather, "--steps", 2)
        assert ran.code == 0
        assert ran.said[-1].startswith("calotype: The mask is nowhere as wide as a latent (8x8 pixels)")
        found = levels("a-redraw-1.png")
        part = shown(torch.from_numpy(np.array(Image.open("mask.png"))), feather).numpy()
        assert np.array_equal(found[part == 0], before[part == 0])
        assert np.abs(found - before)[part == 1].mean() > 20
        assert np.abs(found - before)[2, 90].max() > 5


# --- morph --prompts ---


@pytest.mark.slow
def test_a_walk_begins_and_ends_as_draw_says(calotype: Calotype, drawer: Drawer) -> None:
    words = ["morph", "--prompts", "red apple", "sun", "--steps", 2, "--frames", 4, "--out", "m.png"]
    ran = calotype(*words, "--seed", 3, "--seed", 7, "--guidance", 2, "--sheet", "s.png")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == ["m.png: 4 frames of 64x64, 0.33 s", "s.png"]
    found = frames("m.png")
    for frame, prompt, seed in ((found[0], "red apple", 3), (found[-1], "sun", 7)):
        assert np.abs(frame - pixels(drawer, prompt, seed, guidance=2.0)).max() <= 1  # texts padded to one length
    assert len({one.tobytes() for one in found}) == 4
    told = read_record("s.png")
    assert (told["kind"], told["prompts"], told["seeds"]) == ("morph", ["red apple", "sun"], [3, 7])
    assert (told["steps"], told["guidance"], told["size"]) == (2, 2.0, [SIZE, SIZE])


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ways_of_walks(calotype: Calotype, other_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["morph", "--prompts", "red apple", "sun", "moon", "--steps", 1, "--frames", 3]
    told = calotype(*words, "--closed", "--easing", "cosine", "--fps", 20, "--size", "48x64", "--json").json
    assert (told["frames"], told["width"], told["height"], told["seconds"]) == (6, 48, 64, 0.3)
    assert (told["prompts"], told["seeds"], told["model"]) == (["red apple", "sun", "moon"], [0, 0, 0], "builtin")
    ran = calotype(*words, "--ping-pong", "--measure", "--lpips", "none", "--model", other_model, "--json")
    assert ran.json["frames"] == 8
    assert ran.json["steps"].keys() == {"rmse"}
    assert ran.json["model"] == "other.safetensors"
    calotype(*words, "--seed", 5, "--out", "a.png")
    calotype(*words, "--seed", 5, "--seed", 5, "--seed", 5, "--out", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    ran = calotype("morph", "--prompts", "", "xyzzy", "--steps", 1, "--frames", 2)
    assert ran.code == 0
    assert ["empty" in ran.said[0], "'xyzzy'" in ran.said[1]] == [True, True]
    before = files()
    stop_after(1, monkeypatch)
    ran = calotype(*words, "--out", "c.png", "--sheet", "d.png")
    assert (ran.code, ran.said, files()) == (130, ["calotype: Stopped."], before)


# --- records of edits ---


@pytest.mark.slow
def test_edits_say_how_they_were_made(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    draw("b.png", seed=1)
    sha = {name: hashlib.sha256(Path(f"{name}.png").read_bytes()).hexdigest() for name in "ab"}
    calotype("vary", "a.png", "--vae", vae, "--count", 2, "--temperature", 0.5)
    calotype("blend", "a.png", "b.png", "b.png", "--vae", vae, "--feather", 3)
    calotype("transfer", "a.png", "b.png", "--vae", vae, "--strength", 0.25)
    calotype("morph", "a.png", "b.png", "--vae", vae, "--frames", 2, "--sheet", "s.png")
    vary, blend, transfer, morph = map(read_record, ("a-vary-1.png", "blend.png", "transfer.png", "s.png"))
    assert [one["kind"] for one in (vary, blend, transfer, morph)] == ["vary", "blend", "transfer", "morph"]
    assert all(one["vae"]["name"] == "small.safetensors" and one["size"] == [40, 24] for one in (vary, blend, morph))
    assert (vary["seed"], vary["temperature"], vary["source"]["sha256"]) == (1, 0.5, sha["a"])
    assert (blend["first"]["sha256"], blend["mask"]["sha256"], blend["feather"]) == (sha["a"], sha["b"], 3)
    assert (transfer["content"]["sha256"], transfer["style"]["sha256"]) == (sha["a"], sha["b"])
    assert (transfer["strength"], transfer["size"]) == (0.25, [40, 24])
    assert [one["sha256"] for one in morph["sources"]] == [sha["a"], sha["b"]]
