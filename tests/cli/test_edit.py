"""`calotype morph`, `vary`, `blend`, `direction` and `transfer`, as people use them and as they misuse them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from clikit import Calotype, draw, files, levels, small_vae
from PIL import Image, ImageDraw

from calotype.draw.record import read_record
from calotype.evaluate import lpips as module


def encoded(calotype: Calotype, vae: Path, *names: str) -> None:
    assert calotype("encode", *names, "--vae", vae).code == 0


def frames(path: str) -> list[np.ndarray]:
    found = []
    with Image.open(path) as image:
        for i in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(i)
            found.append(np.asarray(image.convert("RGB")).astype(np.float64))
    return found


def folders(count: int = 5) -> None:
    for i in range(count):
        draw(f"a/{i}.png", 24, 24, seed=i)
        with Image.open(f"a/{i}.png") as image:
            Path("b").mkdir(exist_ok=True)
            image.point(lambda level: 255 - level).save(f"b/{i}.png")


# --- morph ---


def test_a_morph_begins_and_ends_as_reconstruct_says(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    draw("b.png", seed=1)
    ran = calotype("morph", "a.png", "b.png", "--vae", vae, "--frames", 5, "--out", "deep/m.png", "--sheet", "s.png")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == ["deep/m.png: 5 frames of 40x24, 0.42 s", "s.png"]
    calotype("reconstruct", "a.png", "b.png", "--vae", vae)
    found = frames("deep/m.png")
    assert len(found) == 5
    assert np.array_equal(found[0], levels("a-reconstruction.png"))
    assert np.array_equal(found[-1], levels("b-reconstruction.png"))
    assert files("deep") == ["m.png"]
    assert levels("s.png").shape == (24, 5 * 44 - 4, 3)


@pytest.mark.parametrize("suffix", ["gif", "apng", "webp"])
def test_formats_frames_and_durations(suffix: str, calotype: Calotype, vae: Path) -> None:
    for i in range(3):
        draw(f"{i}.png", seed=i)
    words = ["0.png", "1.png", "2.png", "--vae", vae, "--frames", 4, "--fps", 20, "--ping-pong", "--easing", "cosine"]
    told = calotype("morph", *words, "--out", f"m.{suffix}", "--json").json
    assert (told["frames"], told["seconds"], told["width"], told["height"]) == (12, 0.6, 40, 24)
    assert (told["out"], told["sheet"], told["steps"]) == (f"m.{suffix}", None, {})
    assert len(frames(f"m.{suffix}")) == 12
    with Image.open(f"m.{suffix}") as image:
        image.load()
        assert image.info["duration"] == 50
        assert image.info["loop"] == 0


def test_an_mp4(calotype: Calotype, vae: Path) -> None:
    av = pytest.importorskip("av")
    draw("a.png")
    draw("b.png", seed=1)
    assert calotype("morph", "a.png", "b.png", "--vae", vae, "--frames", 6, "--out", "m.mp4").code == 0
    with av.open("m.mp4") as container:
        assert (container.streams.video[0].frames, container.streams.video[0].average_rate) == (6, 12)


@pytest.mark.slow
def test_latents_morph_too_and_name_their_vae(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    draw("b.png", seed=1)
    encoded(calotype, vae, "a.png")
    ran = calotype("morph", "a.latents.safetensors", "b.png", "--out", "m.gif")
    assert ran.code == 1
    assert "give its weights with --vae" in ran.err
    assert calotype("morph", "a.latents.safetensors", "b.png", "--vae", vae, "--frames", 3, "--out", "x.png").code == 0
    assert calotype("morph", "a.png", "b.png", "--vae", vae, "--frames", 3, "--out", "y.png").code == 0
    assert all(np.array_equal(x, y) for x, y in zip(frames("x.png"), frames("y.png"), strict=True))


@pytest.mark.slow
def test_measured_steps(calotype: Calotype, vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_lpips", lambda net: module.LPIPS(net))
    draw("a.png", 40, 32)
    draw("b.png", 40, 32, seed=1)
    words = ["morph", "a.png", "b.png", "--vae", vae, "--frames", 4, "--measure", "--lpips", "alex", "--out", "m.png"]
    told = calotype(*words, "--json").json["steps"]
    assert told.keys() == {"rmse", "lpips"}
    for kinds in told.values():
        for one in kinds.values():
            assert len(one["steps"]) == 3
            assert one["mean"] == pytest.approx(sum(one["steps"]) / 3)
            assert one["ratio"] == pytest.approx(max(one["steps"]) / one["mean"])
    found = frames("m.png")
    expected = [np.sqrt(np.mean((y - x) ** 2)) for x, y in itertools.pairwise(found)]
    assert told["rmse"]["morph"]["steps"] == pytest.approx(expected, abs=0.3)  # of frames rounded to levels
    text = calotype(*words).out
    assert "LPIPS (alex) a step, morph: mean " in text
    assert "RMSE (levels) a step, cross-fade: mean " in text


def test_pictures_of_several_sizes_need_one(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    draw("b.png", 30, 50, seed=1)
    ran = calotype("morph", "a.png", "b.png", "--vae", vae)
    assert ran.code == 2
    assert ran.said == ["calotype: b.png is 30x50 and a.png 40x24; bring them to one size with --size."]
    assert calotype("morph", "a.png", "b.png", "--vae", vae, "--size", "20x16", "--frames", 2).code == 0
    assert frames("morph.gif")[0].shape == (16, 20, 3)


@pytest.mark.parametrize("command", ["morph", "vary"])
def test_ctrl_c_leaves_nothing(command: str, calotype: Calotype, vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw("a.png")
    draw("b.png", seed=1)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("calotype.vae.VAE.decode", stop)
    words = ["b.png", "--sheet", "s.png"] if command == "morph" else []
    ran = calotype(command, "a.png", *words, "--vae", vae)
    assert (ran.code, ran.said[-1]) == (130, "calotype: Stopped.")
    assert files() == ["a.png", "b.png"]


# --- vary ---


@pytest.mark.slow
def test_variations_are_reconstructs_draws(calotype: Calotype, vae: Path) -> None:
    draw("a.png", 37, 21)
    ran = calotype("vary", "a.png", "--vae", vae, "--count", 3, "--seed", 5, "--out", "o")
    assert (ran.code, ran.err) == (0, "")
    assert files("o") == ["a-vary-5.png", "a-vary-6.png", "a-vary-7.png", "a-vary.png"]
    assert "% of the latents' own: temperature " in ran.out
    for seed in (5, 7):
        calotype("reconstruct", "a.png", "--vae", vae, "--seed", seed, "--out", "r")
        assert np.array_equal(levels(f"o/a-vary-{seed}.png"), levels("r/a-reconstruction.png"))
    alone = calotype("vary", "a.png", "--vae", vae, "--count", 1, "--seed", 6, "--out", "alone", "--json").json
    assert np.array_equal(levels(alone["results"][0]["picture"]), levels("o/a-vary-6.png"))


def test_temperature_0_is_the_reconstruction(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    calotype("vary", "a.png", "--vae", vae, "--count", 1, "--temperature", 0)
    calotype("reconstruct", "a.png", "--vae", vae)
    assert np.array_equal(levels("a-vary-0.png"), levels("a-reconstruction.png"))


@pytest.mark.slow
def test_latents_vary_with_their_own_noise(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    encoded(calotype, vae, "a.png")
    words = ["vary", "a.latents.safetensors", "--vae", vae, "--count", 2]
    ran = calotype(*words)
    assert ran.code == 1
    assert "hold no posterior" in ran.err
    assert calotype(*words, "--noise", "latents", "--temperature", 0.5).code == 0
    assert not np.array_equal(levels("a-vary-0.png"), levels("a-vary-1.png"))


# --- blend ---


def test_a_blend_keeps_what_the_mask_keeps(calotype: Calotype, vae: Path) -> None:
    draw("a.png", 90, 40)
    draw("b.png", 90, 40, seed=1)
    mask = Image.new("L", (90, 40))
    ImageDraw.Draw(mask).rectangle((45, 0, 90, 40), fill=255)
    mask.save("mask.png")
    ran = calotype("blend", "a.png", "b.png", "mask.png", "--vae", vae, "--feather", 8, "--out", "o/c.png")
    assert (ran.code, ran.out, ran.err) == (0, "o/c.png (90x40)\n", "")
    found = levels("o/c.png")
    assert np.array_equal(found[:, :37], levels("a.png")[:, :37])
    assert np.array_equal(found[:, 53:], levels("b.png")[:, 53:])
    told = calotype("blend", "a.png", "b.png", "mask.png", "--vae", vae, "--decoded", "--out", "d.png", "--json").json
    assert (told["paste_back"], told["feather"]) == (False, 16)
    assert not np.array_equal(levels("d.png")[:, :20], levels("a.png")[:, :20])


@pytest.mark.slow
def test_a_blend_by_alpha(calotype: Calotype, vae: Path) -> None:
    draw("a.png", 60, 40)
    draw("b.png", 60, 40, seed=1)
    region = Image.new("L", (60, 40))
    ImageDraw.Draw(region).rectangle((30, 0, 59, 39), fill=255)
    for name, alpha in (("a", region.point(lambda level: 255 - level)), ("b", region)):
        with Image.open(f"{name}.png") as image:
            image.putalpha(alpha)
            image.save(f"{name}-cut.png")
    a, b = levels("a.png"), levels("b.png")
    expected = np.where(np.asarray(region)[..., None] > 0, b, a)
    # the hole of the first picture is filled; what is cut out of the second is put over; of others, holes are selected
    for words in (
        ("a-cut.png", "b.png", "a-cut.png"),
        ("a.png", "b-cut.png", "b-cut.png"),
        ("a.png", "b.png", "a-cut.png"),
    ):
        assert calotype("blend", *words, "--vae", vae, "--feather", 0).code == 0
        assert np.array_equal(levels("blend.png"), expected)
    ran = calotype("blend", "a.png", "b.png", "b-cut.png", "--invert-mask", "--vae", vae, "--feather", 0)
    assert "what is transparent in it is selected; inverted, the rest would be" in ran.err
    assert np.array_equal(levels("blend.png"), expected)
    assert read_record("blend.png")["invert_mask"] is True
    for level, kept in ((0, "nothing, so the blend is a.png"), (255, "all, so the blend is b.png")):
        Image.new("L", (60, 40), level).save("one.png")
        ran = calotype("blend", "a.png", "b.png", "one.png", "--vae", vae)
        assert ran.said == [f"calotype: one.png: It selects {kept}."]


# --- direction ---


@pytest.mark.slow
def test_a_direction_is_learned_and_applied(calotype: Calotype, vae: Path) -> None:
    folders()
    other_vae = small_vae(Path("other.safetensors"), 1, "custom")
    told = calotype("direction", "learn", "a", "b", "--vae", vae, "--out", "neg.safetensors", "--json").json
    assert (told["names"], told["counts"], told["held_out"], told["shape"]) == (["a", "b"], [3, 3], [2, 2], [4, 1, 1])
    assert (
        "learned from 3 and 3 pictures; of 2 and 2 held out it tells "
        in calotype("direction", "learn", "a", "b", "--vae", vae, "--out", "neg.safetensors", "--aligned").out
    )
    ran = calotype("direction", "apply", "a/0.png", "neg.safetensors", "--vae", vae)
    assert (ran.code, ran.out) == (0, "0-neg.png (24x24)\n")
    calotype("direction", "apply", "a/0.png", "neg.safetensors", "--vae", vae, "--strength", 0, "--out", "same.png")
    calotype("reconstruct", "a/0.png", "--vae", vae)
    assert np.array_equal(levels("same.png"), levels("0-reconstruction.png"))
    assert not np.array_equal(levels("0-neg.png"), levels("same.png"))
    ran = calotype("direction", "apply", "a/0.png", "neg.safetensors", "--vae", other_vae, "--out", "x.png")
    assert (ran.code, len(ran.said)) == (1, 1)
    assert "learned with small.safetensors" in ran.err
    assert not Path("x.png").exists()
    ran = calotype("direction", "apply", "a/0.png", "neg.safetensors")
    assert (ran.code, "give its weights with --vae" in ran.err) == (1, True)


# --- transfer ---


def test_transfer(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    draw("b.png", 64, 16, seed=1)
    told = calotype("transfer", "a.png", "b.png", "--vae", vae, "--json").json
    assert (told["out"], told["width"], told["height"], told["strength"]) == ("transfer.png", 40, 24, 1.0)
    calotype("transfer", "a.png", "b.png", "--vae", vae, "--strength", 0, "--out", "same.png")
    calotype("reconstruct", "a.png", "--vae", vae)
    assert np.array_equal(levels("same.png"), levels("a-reconstruction.png"))
    assert not np.array_equal(levels("transfer.png"), levels("same.png"))


@pytest.mark.slow
def test_the_built_in_vae_does_it_all(calotype: Calotype) -> None:
    """And is what latents and directions are by where nothing else is said."""
    folders(4)
    draw("c.png", 24, 24, seed=9)
    mask = Image.new("L", (24, 24))
    ImageDraw.Draw(mask).rectangle((12, 0, 23, 23), fill=255)
    mask.save("mask.png")
    assert calotype("encode", "c.png").code == 0
    for words in (
        ("morph", "c.latents.safetensors", "a/0.png", "--frames", 2),
        ("vary", "c.latents.safetensors", "--noise", "latents", "--count", 1),
        ("blend", "a/0.png", "b/0.png", "mask.png"),
        ("direction", "learn", "a", "b"),
        ("direction", "apply", "c.latents.safetensors", "direction.safetensors"),
        ("transfer", "c.latents.safetensors", "b/0.png"),
    ):
        ran = calotype(*words)
        assert (ran.code, ran.err) == (0, "")
    made = {"blend.png", "c-direction.png", "c-vary-0.png", "c-vary.png", "direction.safetensors", "morph.gif"}
    assert made | {"transfer.png"} <= set(files())


# --- misuse ---


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("morph a.png", 2, "give another one beside a.png"),
        ("morph a.png b.png --out m.avi", 2, "'.avi' is no animation"),
        ("morph a.png b.png --out a.png", 2, "a.png would be overwritten"),
        ("morph a.png b.png --out m.png --sheet m.png", 2, "m.png would be overwritten"),
        ("morph a.png b.png --out folder", 2, "folder: this is a folder; give the name of a file"),
        ("morph a.png b.png --ping-pong --closed", 2, "not both"),
        ("morph a.png b.png --fps 60", 2, "at most 50 frames a second"),
        ("morph a.png b.png --size 3", 2, "'3' is no size"),
        ("morph a.png none.png", 1, "none.png does not exist"),
        ("morph a.png text.png", 1, "holds text"),
        ("morph a.png b.png --memory much", 2, "much"),
        ("vary a.png --temperature -1", 2, "from 0 up, not -1"),
        ("vary a.png --size 0x3", 2, "no size"),
        ("vary a.png --out text.png", 2, "is a file"),
        ("vary a.latents.safetensors --noise latents --size 8x8", 2, "latents can't be scaled"),
        ("blend a.png b.png small.png", 2, "small.png is 8x8 and a.png 40x24; draw the mask in that size"),
        ("blend a.png small.png b.png", 2, "small.png is 8x8 and a.png 40x24; bring both to one size"),
        ("blend a.png b.png a.png --out b.png", 2, "b.png would be overwritten"),
        ("blend a.latents.safetensors b.png a.png", 2, "these are latents; give the picture"),
        ("blend a.png b.png a.png --out x.gif", 2, "no known format"),
        ("direction learn set a.png --out a.png", 2, "a.png would be overwritten"),
        ("direction learn none set", 2, "there is no such folder"),
        ("direction learn set set", 2, "set: a direction needs at least 4 pictures of each set, and here is 1"),
        ("direction apply a.png none.safetensors", 1, "there is no such file"),
        ("direction apply a.png a.latents.safetensors", 1, "this is no direction"),
        ("direction apply a.png x.safetensors --strength nan", 2, "finite number, not nan"),
        ("transfer a.png b.png --strength inf", 2, "finite number, not inf"),
        ("transfer a.png b.png --out t", 2, "no known format"),
    ],
)
def test_misuse_is_one_sentence_and_leaves_nothing(
    words: str, code: int, said: str, calotype: Calotype, vae: Path
) -> None:
    draw("a.png")
    draw("b.png", seed=1)
    draw("small.png", 8, 8)
    draw("set/a.png")
    Path("folder").mkdir()
    Path("text.png").write_text("no picture")
    encoded(calotype, vae, "a.png")
    before = files()
    ran = calotype(*words.split(), "--vae", vae)
    assert (ran.code, ran.out, len(ran.said)) == (code, "", 1)
    assert said in ran.err
    assert ran.err.endswith(".\n")
    assert files() == before


@pytest.mark.slow
def test_a_vae_without_a_posterior_says_what_to_do(calotype: Calotype, tmp_path: Path) -> None:
    from support import tiny

    from calotype.latents import same_as_model
    from calotype.weights.save import save_weights

    save_weights(tiny(), tmp_path / "t.safetensors", layout="ldm", format_=same_as_model("sd1", 4))
    draw("a.png")
    ran = calotype("vary", "a.png", "--vae", tmp_path / "t.safetensors")
    assert ran.code == 2
    assert "without a variance, so nothing can vary; give --noise latents" in ran.err
    assert calotype("vary", "a.png", "--vae", tmp_path / "t.safetensors", "--noise", "latents", "--count", 1).code == 0


@pytest.mark.parametrize(
    "words", ["morph", "vary", "blend", "transfer", "direction", "direction learn", "direction apply"]
)
def test_help_has_an_example(words: str, calotype: Calotype) -> None:
    ran = calotype(*words.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Example: calotype {words}" in ran.out
