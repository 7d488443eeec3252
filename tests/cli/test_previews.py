"""Previews from the command line: of latents on disk, and of what is being drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clikit import Calotype, draw, files, levels
from drawingkit import SIZE
from support import one_sentence

from calotype.draw.pipeline import Drawer
from calotype.latent_files import load_latents, save_latents
from calotype.latents import KNOWN, Latents
from calotype.pixels import Padding
from calotype.previews import Factors, builtin, preview, save_factors

pytest_plugins = ["drawing_fixtures"]


def encoded(calotype: Calotype, vae: Path | None = None) -> Path:
    """Latents of a picture of 40 x 24."""
    draw("a.png")
    assert calotype("encode", "a.png", *(("--vae", vae) if vae else ())).code == 0
    return Path("a.latents.safetensors")


def fitted(latents: Path, to: str = "factors.json") -> Factors:
    """Factors of these latents, of no fit."""
    one = load_latents(latents)
    rows = torch.randn(one.format.channels, 3, generator=torch.Generator().manual_seed(0)).tolist()
    made = Factors(factors=tuple(map(tuple, rows)), format=one.format.name, vae=one.vae, vae_name="small")
    save_factors(to, made)
    return made


def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*given: Any, **options: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("calotype.vae.load", load)


def test_latents_of_the_built_in_vae(calotype: Calotype, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = encoded(calotype)
    no_weights(monkeypatch)
    ran = calotype("decode", latents, "--preview", "--out", "o")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "a.latents.safetensors -> o/a-preview.png (5x3)\n"
    assert np.array_equal(levels("o/a-preview.png"), np.asarray(preview(load_latents(latents))))
    told = calotype("decode", latents, "--preview", "--enlarge", "--suffix", "webp", "--json").json
    assert told["results"] == [{"latents": str(latents), "picture": "a-preview.webp", "width": 40, "height": 24}]
    assert np.abs(levels("a-preview.webp") - levels("a.png")).mean() < 60  # a picture of it


def test_factors_that_were_fitted(calotype: Calotype, vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = encoded(calotype, vae)
    made = fitted(latents)
    no_weights(monkeypatch)
    assert calotype("decode", latents, "--preview", "--factors", "factors.json").code == 0
    assert np.array_equal(levels("a-preview.png"), np.asarray(preview(load_latents(latents), made)))


@pytest.mark.slow
def test_published_factors(calotype: Calotype) -> None:
    z = torch.randn(16, 6, 7, generator=torch.Generator().manual_seed(0))
    for i, padding in enumerate((Padding(48, 56, 0, 0, "reflect"), Padding(41, 50, 7, 6, "reflect"))):
        save_latents(f"{i}.latents.safetensors", Latents(
            tensor=z, space="model", format=KNOWN["flux"], vae="0" * 64, padding=padding))  # fmt: skip
    ran = calotype("decode", "0.latents.safetensors", "1.latents.safetensors", "--preview", "--json")
    assert [(one["width"], one["height"]) for one in ran.json["results"]] == [(7, 6), (7, 6)]


@pytest.mark.slow
def test_what_is_refused(calotype: Calotype, vae: Path) -> None:
    latents = encoded(calotype, vae)
    made = fitted(latents)
    save_factors("other.json", replace(made, vae="0" * 64))
    Path("broken.json").write_text("{")
    for words, code, said in (
        (("--preview",), 1, "No factors are known that make pictures of latents of small.safetensors"),
        (("--preview", "--factors", "other.json"), 1, "These factors are of latents of small (format 'small')"),
        (("--preview", "--factors", "broken.json"), 1, "broken.json: these are no factors"),
        (("--preview", "--factors", "no.json"), 1, "no.json: there is no such file; give the factors.json"),
        (("--preview", "--vae", vae), 2, "--preview takes no decoder; leave --vae"),
        (("--preview", "--suffix", "gif"), 2, "no known format"),
        (("--enlarge",), 2, "--enlarge goes with --preview"),
        (("--factors", "factors.json"), 2, "--factors goes with --preview"),
    ):
        ran = calotype("decode", latents, *words, "--out", "o")
        assert (ran.code, ran.out) == (code, ""), words
        assert said in ran.err
        one_sentence(ran.said[0].removeprefix("calotype: "))
    assert not Path("o").exists()


def test_other_files_go_on(calotype: Calotype) -> None:
    latents = encoded(calotype)
    Path("b.latents.safetensors").write_bytes(b"no")
    ran = calotype("decode", "b.latents.safetensors", latents, "--preview")
    assert ran.code == 1
    assert Path("a-preview.png").exists()
    assert "1 of 2 failed" in ran.err


# --- of what is being drawn ---


@pytest.mark.slow
@pytest.mark.usefixtures("builtin_drawing")
def test_drawings_are_shown_by_factors(calotype: Calotype, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(self: Drawer, step: Any) -> None:
        raise AssertionError("the VAE showed it")

    monkeypatch.setattr(Drawer, "preview", decoded)
    save_factors("f.json", builtin())
    shown = {}
    for by in ("factors", "f.json"):
        ran = calotype("draw", "sun", "--steps", 2, "--preview", "now.png", "--preview-by", by)
        assert (ran.code, ran.err) == (0, "")
        shown[by] = levels("now.png")
        assert shown[by].shape == (SIZE, SIZE, 3)
    assert np.array_equal(shown["factors"], shown["f.json"])
    assert np.unique(shown["factors"]).size > 8
    assert files() == ["f.json", "now.png", "sun-0.png"]


@pytest.mark.usefixtures("builtin_drawing")
def test_a_vae_of_the_same_latents_shows_them(calotype: Calotype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Drawer, "preview", lambda self, step: None)
    ran = calotype("draw", "sun", "--steps", 2, "--preview", "now.png", "--preview-by", "builtin")
    assert (ran.code, ran.err) == (0, "")
    assert np.abs(levels("now.png") - levels("sun-0.png")).max() <= 1  # the last step is the picture


@pytest.mark.usefixtures("builtin_drawing")
def test_not_after_every_step(calotype: Calotype, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, first = [], Drawer.preview

    def seen(self: Drawer, step: Any) -> Any:
        steps.append(step.index + 1)
        return first(self, step)

    monkeypatch.setattr(Drawer, "preview", seen)
    assert calotype("draw", "sun", "--steps", 8, "--preview", "now.png", "--preview-every", 3).code == 0
    assert steps == [3, 6, 8]


@pytest.mark.slow
@pytest.mark.usefixtures("builtin_drawing")
def test_previews_that_make_no_sense(calotype: Calotype, vae: Path) -> None:
    save_factors("f.json", replace(builtin(), vae="0" * 64))
    Path("broken.json").write_text(json.dumps({"calotype": "factors/2"}))
    for words, code, said in (
        (("--preview-by", "factors"), 2, "--preview-by goes with --preview"),
        (("--preview-every", 2), 2, "--preview-every goes with --preview"),
        (("--preview", "p.png", "--preview-by", "f.json"), 1, "These factors are of latents of builtin"),
        (("--preview", "p.png", "--preview-by", "broken.json"), 1, "broken.json: these are no factors"),
        (("--preview", "p.png", "--preview-by", "nothing"), 2, "neither a file, nor a folder, nor a preset"),
        (("--preview", "p.png", "--preview-by", vae), 2, "shows latents of format 'small', and these are drawn in"),
        (("--preview", "f.json", "--preview-by", "f.json"), 2, "--preview f.json is one of"),
    ):
        ran = calotype("draw", "sun", "--steps", 1, *words)
        assert (ran.code, ran.out) == (code, ""), words
        assert said in ran.err
        one_sentence(ran.said[0].removeprefix("calotype: "))
    assert files() == ["broken.json", "f.json"]


@pytest.mark.parametrize(
    "words", [("--any-vae",), ("--memory", "1GB"), ("--dtype", "bfloat16"), ("--device", "cpu"), ("--prefix", "vae.")]
)
def test_what_is_of_a_decoder_is_refused_beside_a_preview(calotype: Calotype, words: tuple[str, ...]) -> None:
    ran = calotype("decode", encoded(calotype), "--preview", *words)
    assert (ran.code, len(ran.said)) == (2, 1)
    assert f"{words[0]} is of a decoder" in ran.err
