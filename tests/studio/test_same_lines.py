"""The line of a command that studio shows makes the same bytes, and the lines of Python the same pixels."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from studiokit import Visitor, photo, serving

from calotype.cli.standing import run as command_line
from calotype.draw.model import load_model, save_model

FORMS: dict[str, dict[str, Any]] = {
    "look": {"tab": "look", "picture": "a", "vaes": [0]},
    "transparent": {"tab": "look", "picture": "alpha", "vaes": [0]},
    "latents": {
        "tab": "latents", "picture": "a", "second": "b", "size": "48x32",
        "edits": [
            {"do": "noise", "by": 0.5, "seed": 3}, {"do": "copy", "channel": 2},
            {"do": "swap", "channel": 0, "with": 5}, {"do": "scale", "channel": 1, "by": 2},
        ],
    },
    "morph": {"tab": "edit.morph", "pictures": ["a", "b"], "size": "32x32", "frames": 3, "end": "ping-pong"},
    "vary": {"tab": "edit.vary", "picture": "a", "count": 2, "seed": 5, "size": "32x32"},
    "blend": {"tab": "edit.blend", "first": "a", "second": "b", "mask": "mask", "size": "32x32", "feather": 4},
    "transfer": {"tab": "edit.transfer", "content": "a", "style": "b", "strength": 0.7},
    "draw": {"tab": "draw", "prompt": "a red apple", "seed": 3, "steps": 2, "guidance": 3},
    "redraw": {"tab": "draw.redraw", "picture": "a", "prompt": "a pear", "steps": 2, "mask": "whole", "feather": 4},
    "redraw all": {
        "tab": "draw.redraw", "picture": "a", "prompt": "-a pear", "steps": 2, "guidance": 3, "negative": "apple",
    },
    "learn": {"tab": "edit.learn", "start": 0, "end": 1},
    "apply": {"tab": "edit.apply", "picture": "a", "direction": "direction", "strength": -0.5},
}  # fmt: skip


QUICK = ("transparent", "transfer")


def finished(visitor: Visitor, form: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The end of a job, and the files it made by their names."""
    end = visitor.run(**form)
    assert end["state"] == "done", end
    given = {one["file"]: visitor.bytes(one["url"]) for one in end["results"]}
    assert given
    for one in end["results"]:
        if one["kind"] == "picture":  # and what the page saves
            assert visitor.bytes(f"/api/things/{one['thing']['id']}/file") == given[one["file"]]
    return end, given


def made_again(
    end: dict[str, Any], given: dict[str, bytes], folder: Path, monkeypatch: pytest.MonkeyPatch,
    called: str | None = None,
) -> None:  # fmt: skip
    """Runs both lines, each in a folder of its own beside `uploads`, and compares what they make.

    Args:
        called: what the lines of Python call a drawing; None: what the command calls it.
    """
    uploads = list((folder / "uploads").iterdir())
    for way in ("command", "python"):
        here = folder / way
        here.mkdir()
        for one in uploads:
            os.link(one, here / one.name)
        if "edits.json" in given:
            (here / "edits.json").write_bytes(given["edits.json"])
        monkeypatch.chdir(here)
        if way == "command":
            for line in end["command"].splitlines():
                words = shlex.split(line)
                assert words[0] == "calotype"
                code, _, err = command_line(words[1:])
                assert code == 0, err
            for name, content in given.items():
                assert (here / name).read_bytes() == content, name
            continue
        exec(compile(end["python"], "studio", "exec"), {})
        made = {one.relative_to(here).as_posix() for one in here.rglob("*.*")} - {one.name for one in uploads}
        for name, content in given.items():
            if name == "a-vary.png" or name == "edits.json":  # the sheet is the command's
                continue
            found = called or name
            assert found in made, made
            if Path(name).suffix == ".png":
                before, after = (np.array(Image.open(one)) for one in (BytesIO(content), here / found))
                assert np.array_equal(before, after), name
            else:
                assert (here / found).read_bytes() == content, name


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """Pictures and masks."""
    folder = tmp_path / "uploads"
    photo(folder / "a.png")
    photo(folder / "b.png", seed=4)
    photo(folder / "alpha.png", alpha=True)
    for name, size in (("mask", (32, 32)), ("whole", (64, 48))):
        mask = Image.new("L", size)
        mask.paste(255, (8, 8, 24, 24))
        mask.save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("kind", [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in FORMS])
def test_what_is_shown_makes_what_is_given(
    kind: str, visitor: Visitor, uploads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = {one.stem: visitor.upload(one)["id"] for one in uploads.iterdir()}
    if kind == "apply":
        learned = visitor.run(**FORMS["learn"])["results"][0]
        ids["direction"] = learned["thing"]["id"]
        (uploads / "direction.safetensors").write_bytes(visitor.bytes(learned["url"]))

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(one) for one in value]
        return ids.get(value, value) if isinstance(value, str) else value

    form = {key: value if key in ("tab", "prompt", "edits") else named(value) for key, value in FORMS[kind].items()}
    end, given = finished(visitor, form)
    made_again(end, given, tmp_path, monkeypatch, f"{form['seed']}.png" if kind == "draw" else None)


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a studio with two more models that draw: one's own, and a small Stable Diffusion 1."""
    root = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "draw")
        from checkpoint_models import saved

    save_model(load_model(), root / "own.safetensors")
    models = root / "own.safetensors", saved("sd1", root)
    with serving(root / "temporaries", *[word for one in models for word in ("--model", str(one))]) as studio:
        yield studio.base


@pytest.mark.parametrize("kind", ["draw", "redraw", "redraw all"])
@pytest.mark.parametrize("model", ["own", "checkpoint"])
@pytest.mark.slow
def test_models_that_were_given_draw_the_same(
    model: str, kind: str, drawing: str, uploads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor, index = Visitor(drawing), ["builtin", "own", "checkpoint"].index(model)
    form: dict[str, Any] = {"model": index, "prompt": "a cat", "seed": 3, "steps": 3, "guidance": 4, "negative": "dog"}
    if kind == "draw":
        form |= {"tab": "draw"} | ({"size": "80x64"} if model == "checkpoint" else {})
    else:
        form |= {"tab": "draw.redraw", "picture": visitor.upload(uploads / "a.png")["id"], "strength": 0.7}
    if kind == "redraw":
        form |= {"mask": visitor.upload(uploads / "whole.png")["id"], "feather": 4}
    end, given = finished(visitor, form)
    made_again(end, given, tmp_path, monkeypatch, "3.png" if kind == "draw" else None)
    [picture] = [Image.open(BytesIO(content)) for content in given.values()]
    expected = (80, 64) if "size" in form else (64, 48)
    assert picture.size == (expected if kind != "draw" or "size" in form else (128, 128))
    assert np.array(picture).std() > 5
