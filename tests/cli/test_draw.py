"""`calotype draw`, as people use it."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from clikit import Calotype, draw, files, levels
from drawingkit import SIZE, pixels, stop_after
from PIL import Image
from rich.console import Console

from calotype.cli.drawing import slug
from calotype.draw.model import load_model, save_model
from calotype.draw.pipeline import LONG, Drawer
from calotype.draw.record import read_record

pytest_plugins = ["drawing_fixtures"]
pytestmark = pytest.mark.usefixtures("builtin_drawing")


@pytest.mark.slow
def test_pictures_are_what_the_drawer_draws(calotype: Calotype, drawer: Drawer, model: Path) -> None:
    ran = calotype("draw", "a red apple", "-n", 3, "--seed", 5, "--steps", 2, "--out", "o")
    assert (ran.code, ran.err) == (0, "")
    names = ["red-apple-5.png", "red-apple-6.png", "red-apple-7.png", "red-apple.png"]
    assert ran.out.splitlines() == [f"o/{name}" for name in names]
    assert files() == [f"o/{name}" for name in names]
    for seed in (5, 7):
        assert np.array_equal(levels(f"o/red-apple-{seed}.png"), pixels(drawer, "a red apple", seed))
    assert levels("o/red-apple.png").shape == (2 * 88 - 4, 2 * 68 - 4, 3)
    assert read_record("o/red-apple-6.png") == {
        "calotype": __import__("calotype").__version__, "kind": "draw", "prompt": "a red apple", "negative": "",
        "seed": 6, "steps": 2, "guidance": 4.0, "guidance_above": 0.4, "sampler": "dpm++", "size": [SIZE, SIZE],
        "model": {"name": "builtin", "sha256": hashlib.sha256(model.read_bytes()).hexdigest()},
        "vae": {"name": "builtin", "sha256": drawer.vae.sha256},
    }  # fmt: skip


@pytest.mark.slow
def test_every_setting_counts(calotype: Calotype, drawer: Drawer, other_model: Path) -> None:
    words = ["draw", "sun", "-n", 1, "--steps", 2]
    cases: list[tuple[list[object], dict[str, Any]]] = [
        ([], {}),
        (["--steps", 4], {"steps": 4}),
        (["--guidance", 1.5], {"guidance": 1.5}),
        (["--guidance-above", 0.6], {"guidance_above": 0.6}),
        (["--sampler", "euler", "--steps", 4], {"sampler": "euler", "steps": 4}),
        (["--negative", "red"], {"negative": "red"}),
        (["--size", "90x40"], {"size": (90, 40)}),
    ]
    seen = set()
    for i, (more, settings) in enumerate(cases):
        assert calotype(*words, *more, "--out", f"{i}").code == 0
        assert files(f"{i}") == ["sun-0.png"]
        found = levels(f"{i}/sun-0.png")
        assert np.array_equal(found, pixels(drawer, "sun", 0, **settings))
        told = read_record(f"{i}/sun-0.png")
        wanted = settings | ({"size": list(settings["size"])} if "size" in settings else {})
        assert {key: told[key] for key in wanted} == wanted
        assert told["size"] == [found.shape[1], found.shape[0]]
        seen.add(found.tobytes())
    assert len(seen) == len(cases)
    assert calotype(*words, "--model", other_model, "--out", "m").code == 0
    assert levels("m/sun-0.png").tobytes() not in seen
    assert read_record("m/sun-0.png")["model"]["name"] == "other.safetensors"


@pytest.mark.slow
def test_defaults_are_those_usual_for_the_model(calotype: Calotype) -> None:
    told = calotype("draw", "sun", "--json").json
    default = LONG  # its sketches are all that the small model is told
    assert (told["steps"], told["guidance"], told["sampler"]) == (default.steps, default.guidance, default.sampler)
    assert told["guidance_above"] == default.guidance_above
    assert [one["seed"] for one in told["results"]] == [0]


@pytest.mark.slow
def test_several_prompts(calotype: Calotype, drawer: Drawer) -> None:
    ran = calotype("draw", "a sun", "Full Moon!", "-n", 2, "--steps", 1, "--json")
    told = ran.json
    assert ran.code == 0
    assert told["sheet"] == "sun.png"
    assert told["results"] == [
        {"prompt": "a sun", "seed": 0, "picture": "sun-0.png"},
        {"prompt": "a sun", "seed": 1, "picture": "sun-1.png"},
        {"prompt": "Full Moon!", "seed": 0, "picture": "full-moon-0.png"},
        {"prompt": "Full Moon!", "seed": 1, "picture": "full-moon-1.png"},
    ]
    assert (told["model"], told["vae"], told["vae_sha256"]) == ("builtin", "builtin", drawer.vae.sha256)
    assert (told["steps"], told["size"], told["failures"]) == (1, [SIZE, SIZE], [])
    assert np.array_equal(levels("full-moon-1.png"), pixels(drawer, "Full Moon!", 1, steps=1))
    assert levels("sun.png").shape == (2 * 88 - 4, 2 * 68 - 4, 3)


@pytest.mark.slow
def test_like_draws_it_again_bit_by_bit(calotype: Calotype, other_model: Path) -> None:
    settings = ["--steps", 2, "--guidance", 2.5, "--sampler", "ddim", "--negative", "sun", "--size", "48x64"]
    calotype("draw", "a green  apple", "-n", 2, "--seed", 3, *settings, "--model", other_model)
    ran = calotype("draw", "--like", "green-apple-4.png", "--model", other_model, "--out", "again")
    assert (ran.code, ran.out, ran.err) == (0, "again/green-apple-4.png\n", "")
    assert Path("again/green-apple-4.png").read_bytes() == Path("green-apple-4.png").read_bytes()
    calotype("draw", "--like", "again/green-apple-4.png", "--model", other_model, "--out", "thrice")
    assert Path("thrice/green-apple-4.png").read_bytes() == Path("green-apple-4.png").read_bytes()


@pytest.mark.slow
def test_what_was_drawn_before_guidance_could_end_is_drawn_so_again(
    calotype: Calotype, drawer: Drawer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calotype("draw", "sun", "--steps", 3).code == 0
    told = read_record("sun-0.png")
    del told["guidance_above"]
    with monkeypatch.context() as patch:
        patch.setattr("calotype.draw.record.read_record", lambda path: told)
        assert calotype("draw", "--like", "sun-0.png", "--out", "again").code == 0
    assert read_record("again/sun-0.png")["guidance_above"] == 0.0
    assert np.array_equal(levels("again/sun-0.png"), pixels(drawer, "sun", 0, steps=3, guidance_above=0.0))
    assert not np.array_equal(levels("again/sun-0.png"), levels("sun-0.png"))


@pytest.mark.slow
def test_what_is_given_beside_like_wins(calotype: Calotype, drawer: Drawer) -> None:
    calotype("draw", "sun", "-n", 1, "--steps", 2, "--guidance", 2, "--negative", "red", "--sampler", "euler")
    base = {
        "prompt": "sun", "seed": 0, "steps": 2, "guidance": 2.0, "guidance_above": 0.4, "negative": "red",
        "sampler": "euler",
    }  # fmt: skip
    for i, (more, change) in enumerate(
        (
            (["full moon"], {"prompt": "full moon"}),
            (["--seed", 9], {"seed": 9}),
            (["--steps", 3], {"steps": 3}),
            (["--guidance", 3], {"guidance": 3.0}),
            (["--guidance-above", 0.7], {"guidance_above": 0.7}),
            (["--negative", ""], {"negative": ""}),
            (["--sampler", "dpm++"], {"sampler": "dpm++"}),
            (["--size", "32x48"], {"size": [32, 48]}),
        )
    ):
        [one] = calotype("draw", *more, "--like", "sun-0.png", "--out", f"{i}", "--json").json["results"]
        told = read_record(one["picture"])
        assert {key: told[key] for key in base} == base | {key: change[key] for key in change if key != "size"}
        assert told["size"] == change.get("size", [SIZE, SIZE])
        settings = {key: told[key] for key in ("steps", "guidance", "guidance_above", "negative", "sampler")}
        expected = pixels(drawer, told["prompt"], told["seed"], **settings, size=tuple(told["size"]))
        assert np.array_equal(levels(one["picture"]), expected)
    assert calotype("draw", "--like", "sun-0.png", "-n", 2, "--seed", 1).out.splitlines() == [
        "sun-1.png", "sun-2.png", "sun.png"
    ]  # fmt: skip


@pytest.mark.slow
def test_like_wants_the_same_model(calotype: Calotype, model: Path, other_model: Path) -> None:
    calotype("draw", "sun", "-n", 1, "--steps", 1)
    ran = calotype("draw", "--like", "sun-0.png", "--model", other_model, "--out", "o")
    assert (ran.code, len(ran.said)) == (2, 1)
    assert "sun-0.png was drawn with the model builtin (sha256 " in ran.err
    assert "and this is other.safetensors" in ran.err
    calotype("draw", "sun", "-n", 1, "--steps", 1, "--model", other_model)
    ran = calotype("draw", "--like", "sun-0.png", "--out", "o")
    assert (ran.code, ran.said) == (2, ["calotype: sun-0.png was drawn by other.safetensors; give that with --model."])
    assert files() == ["sun-0.png"]
    shutil.copy(other_model, "renamed.safetensors")
    assert calotype("draw", "--like", "sun-0.png", "--model", "renamed.safetensors", "--out", "o").code == 0
    assert np.array_equal(levels("o/sun-0.png"), levels("sun-0.png"))


@pytest.mark.slow
def test_like_wants_the_same_vae(calotype: Calotype, vae: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calotype("draw", "sun", "-n", 1, "--steps", 1)
    record_of = read_record("sun-0.png")
    record_of["vae"] = {"name": "theirs", "sha256": "0" * 64}
    monkeypatch.setattr("calotype.draw.record.read_record", lambda path: record_of)
    ran = calotype("draw", "--like", "sun-0.png", "--out", "o")
    assert (ran.code, len(ran.said)) == (2, 1)
    assert "with the VAE theirs (sha256 000000000000...)" in ran.err
    ran = calotype("draw", "sun", "--vae", vae)
    assert (ran.code, len(ran.said)) == (2, 1)
    assert "draws in the latents of the VAE with sha256" in ran.err


@pytest.mark.slow
def test_pictures_that_like_can_not_take(calotype: Calotype, vae: Path) -> None:
    draw("photo.png")
    draw("photo.jpg")
    calotype("vary", "photo.png", "--vae", vae, "--count", 1)
    calotype("redraw", "photo.png", "sun", "--steps", 1)
    calotype("draw", "sun", "-n", 2, "--steps", 1)
    text = json.dumps({"kind": "draw", "prompt": "sun"})
    from calotype.pixels import read_picture, write_picture

    write_picture("half.png", read_picture("photo.png").pixels, text={"calotype": text})
    before = files()
    for name, code, said in (
        ("none.png", 1, "none.png does not exist"),
        ("photo.png", 2, "photo.png does not say how it was made"),
        ("photo.jpg", 2, "photo.jpg is no PNG"),
        ("sun.png", 2, "sun.png does not say how it was made"),
        ("photo-vary-0.png", 2, "was made by `calotype vary`; --like takes what `calotype draw` drew"),
        ("photo-redraw-1.png", 2, "was made by `calotype redraw`"),
        ("half.png", 1, "does not say all that is needed"),
    ):
        ran = calotype("draw", "--like", name, "--out", "o")
        assert (ran.code, ran.out, len(ran.said)) == (code, "", 1)
        assert said in ran.err
    assert files() == before


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1}, {"seed": "0"}, {"seed": True}, {"steps": 0}, {"steps": 1e9}, {"size": [64]}, {"size": ["a", 1]},
        {"sampler": "heun"}, {"guidance": "4"}, {"guidance_above": "0"}, {"model": {"name": "builtin"}}, {"vae": None},
        {"prompt": None},
    ],
)  # fmt: skip
def test_a_record_that_makes_no_sense(
    change: dict[str, Any], calotype: Calotype, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {
        "calotype": "0", "kind": "draw", "prompt": "sun", "negative": "", "seed": 0, "steps": 1, "guidance": 4.0,
        "sampler": "ddim", "size": [64, 64], "model": {"name": "builtin", "sha256": ""},
        "vae": {"name": "builtin", "sha256": ""},
    }  # fmt: skip
    monkeypatch.setattr("calotype.draw.record.read_record", lambda path: good)
    assert "was drawn with the model builtin" in calotype("draw", "--like", "a.png").err
    good.update(change)
    ran = calotype("draw", "--like", "a.png")
    assert (ran.code, ran.out, len(ran.said)) == (1, "", 1)
    assert "a.png does not say all that is needed to draw it again" in ran.err


def test_an_empty_prompt_is_drawn_without_words(calotype: Calotype, drawer: Drawer) -> None:
    ran = calotype("draw", " ", "-n", 1, "--steps", 1)
    assert (ran.code, ran.out) == (0, "drawing-0.png\n")
    assert ran.said == ["calotype: The prompt is empty, so it is drawn without words."]
    assert np.array_equal(levels("drawing-0.png"), pixels(drawer, "", 0, steps=1))


def test_a_prompt_far_from_all_names_is_drawn_as_one_of_them(calotype: Calotype, model: Path, drawer: Drawer) -> None:
    """The command says which, and a picture of a seed is that of the name that it is."""
    strict = load_model(model)
    strict.config = replace(strict.config, known_within=1e-3)
    save_model(strict, "strict.safetensors")
    asked = ("draw", "green sun", "-n", 1, "--steps", 2, "--model", "strict.safetensors")
    ran = calotype(*asked)
    [said] = ran.said
    known = Drawer(strict, drawer.vae)
    near = known.near("green sun")
    assert said.startswith("calotype: The model learned no picture called 'green sun'; it draws, by the seed: '")
    assert all(repr(name) in said for name in near)
    assert (ran.code, ran.out) == (0, "green-sun-0.png\n")
    assert np.array_equal(levels("green-sun-0.png"), pixels(drawer, known.meant("green sun", 0), 0))
    assert known.meant("a red apple", 0) == "a red apple"
    assert calotype("draw", "a red apple", *asked[2:]).said == []


@pytest.mark.slow
def test_unknown_words_are_named_with_what_is_near(calotype: Calotype) -> None:
    ran = calotype("draw", "a xyzzy aple", "-n", 1, "--steps", 1)
    assert ran.code == 0
    [said] = ran.said
    assert said.startswith("calotype: The model does not know 'xyzzy', 'aple'; the nearest that it knows: ")
    assert "red apple" in said
    assert "train" not in said
    ran = calotype("draw", "qa qb qc qd qe qf qg qh", "--steps", 1)
    assert "does not know 'qa', 'qb', 'qc', 'qd', 'qe', 'qf' and 2 more; the nearest" in ran.err
    assert f"does not know '{'q' * 40}...'; the nearest" in calotype("draw", "q" * 9999, "--steps", 1).err
    ran = calotype("draw", "sun " * 20, "-n", 1, "--steps", 1)
    assert ran.code == 0
    assert ran.err.startswith("calotype: 'sun sun")
    assert "tokens, and the first 12 are read." in ran.err


@pytest.mark.slow
def test_a_prompt_without_words_is_said_to_be_one(calotype: Calotype) -> None:
    for prompt in ("🍎", "...?", "🍎 🌙"):
        ran = calotype("draw", prompt, "--steps", 1)
        assert (ran.code, ran.out) == (0, "drawing-0.png\n")
        assert ran.said == [
            f"calotype: {prompt!r} has no words, and the model knows nothing else; say in words what to draw."
        ]
    assert calotype("draw", "🍎 sun", "--steps", 1).err == ""


def test_files_of_any_prompt(calotype: Calotype) -> None:
    assert slug("A Red Apple!") == "red-apple"
    assert slug("the") == "the"
    assert slug("../../etc/passwd\0\n") == "etc-passwd"
    assert slug("-rf ~ $(ls) %s") == "rf-ls-s"
    assert slug("红苹果, Äpfel") == slug("红苹果, A\u0308pfel") == "红苹果-äpfel"
    assert slug("सेब") == "सेब"
    assert slug("🍎") == slug("...") == slug("") == "drawing"
    assert slug("word " * 50) == "word-" * 11 + "word"
    for long in ("é" * 500, "x" + "é" * 500, "🍎" + "果" * 99):
        assert 55 < len(slug(long).encode()) <= 60
    ran = calotype("draw", "../sun: a/b\\c\n*?", "-n", 2, "--steps", 1, "--out", "o")
    assert ran.code == 0
    assert files() == ["o/sun-a-b-c-0.png", "o/sun-a-b-c-1.png", "o/sun-a-b-c.png"]


def test_pictures_that_are_there_are_replaced(calotype: Calotype) -> None:
    Path("sun-0.png").write_bytes(b"old")
    assert calotype("draw", "sun", "-n", 1, "--steps", 1).code == 0
    assert levels("sun-0.png").shape == (SIZE, SIZE, 3)


@pytest.mark.slow
def test_the_preview_shows_every_step(calotype: Calotype, monkeypatch: pytest.MonkeyPatch, drawer: Drawer) -> None:
    seen: list[tuple[list[str], np.ndarray]] = []
    first = Drawer.preview

    def preview(self: Drawer, step: Any) -> Image.Image:
        if Path("deep/now.jpg").exists():
            seen.append((files("deep"), levels("deep/now.jpg")))
        return first(self, step)

    monkeypatch.setattr(Drawer, "preview", preview)
    ran = calotype("draw", "sun", "-n", 2, "--steps", 3, "--preview", "deep/now.jpg")
    assert (ran.code, ran.err) == (0, "")
    assert len(seen) == 5
    assert all(names == ["now.jpg"] and shown.shape == (SIZE, SIZE, 3) for names, shown in seen)
    assert len({shown.tobytes() for _, shown in seen}) == 5
    assert np.abs(levels("deep/now.jpg") - levels("sun-1.png")).mean() < 5  # the last step is the picture


@pytest.mark.slow
def test_progress_on_a_terminal(calotype: Calotype, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(
        "rich.console.Console", lambda **_: Console(file=shown, force_terminal=True, width=120, color_system=None)
    )
    assert calotype("draw", "sun", "-n", 2, "--steps", 2).code == 0
    assert "Drawing 2 of 2, step 2 of 2" in shown.getvalue()
    before = shown.getvalue()
    assert calotype("draw", "sun", "-n", 2, "--steps", 2, "--json").code == 0
    assert shown.getvalue() == before


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("count", [0, 2])
def test_ctrl_c_keeps_what_is_finished(
    count: int, calotype: Calotype, drawer: Drawer, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = pixels(drawer, "sun", 1)
    stop_after(count, monkeypatch)
    ran = calotype("draw", "sun", "-n", 4, "--steps", 2, "--out", "o")
    assert (ran.code, ran.out) == (130, "")
    where = ", in o" if count else ""
    assert ran.said == [f"calotype: Stopped; {count} of 4 pictures are finished{where}."]
    assert files() == [f"o/sun-{i}.png" for i in range(count)]
    if count:
        assert np.array_equal(levels("o/sun-1.png"), expected)


@pytest.mark.usefixtures("interruptible")
def test_nothing_is_left_half_written(calotype: Calotype, monkeypatch: pytest.MonkeyPatch) -> None:
    first, calls = Image.Image.save, 0

    def save(self: Image.Image, file: IO[bytes], **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            file.write(b"\x89PNG")
            signal.raise_signal(signal.SIGINT)
        first(self, file, **options)

    monkeypatch.setattr(Image.Image, "save", save)
    ran = calotype("draw", "sun", "-n", 4, "--steps", 1, "--preview", "p.png")
    assert ran.said == ["calotype: Stopped; 0 of 4 pictures are finished."]
    assert files() == ["p.png"]
    assert levels("p.png").shape == (SIZE, SIZE, 3)


def test_a_full_disk_is_one_sentence(calotype: Calotype, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    ran = calotype("draw", "sun", "--steps", 1)
    assert (ran.code, ran.said) == (1, ["calotype: sun-0.png can't be written: No space left on device."])
    assert files() == []
