"""Every block of commands or Python in README.md and docs/ runs, in the order of its page, or says why it is not run.

Commands run in this process, with the weights that ship, small pictures that are made here, and tiny networks of random
weights in the place of presets. A block that is not run has a comment directly above it: ``<!-- not run: why -->``.
"""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from blocks import MARK, ROOT, Block, blocks_of, commands_of, pages
from PIL import Image
from support import kl

import calotype
from calotype.cli.main import app, main
from calotype.errors import CalotypeWarning
from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import KNOWN
from calotype.weights.save import save_weights

BLOCKS = [block for path in pages() for block in blocks_of(path)]
STAND_IN = AutoencoderConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)  # f8 with 4 channels, as SD1's and SDXL's


def draw(path: str, width: int = 64, height: int = 48, seed: int = 0) -> None:
    """A picture with smooth colours and a little noise."""
    y, x = np.mgrid[0:height, 0:width]
    planes = np.stack([x * 255 // width, y * 255 // height, (x + y + 40 * seed) % 256], axis=-1)
    noise = np.random.default_rng(seed).integers(-12, 12, planes.shape)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((planes + noise).clip(0, 255).astype(np.uint8)).save(path)


def photo() -> None:
    draw("photo.jpg")


def photos() -> None:
    photo()
    for i, name in enumerate("abcdefgh"):
        draw(f"photos/{name}.png", 80, 64, seed=i)


def for_generating() -> None:
    photo()
    draw("a.jpg", seed=1)
    draw("b.jpg", seed=2)
    mask = Image.new("L", (64, 48))
    mask.paste(255, (16, 8, 48, 40))
    mask.save("mask.png")
    np.save("z.npy", np.random.default_rng(0).standard_normal((4, 6, 8), dtype=np.float32))


def a_vae() -> None:
    photos()
    save_weights(kl(STAND_IN), Path("vae.safetensors"), layout="ldm", format_=KNOWN["sdxl"])


def a_cache() -> None:
    from calotype.cache import Rules
    from calotype.cache.make import job_of, make

    photos()
    vae = calotype.load()
    make("photos/", "latents/", vae, job_of(vae, Rules(buckets="64")))


def some_latents() -> None:
    photo()
    np.save("z.npy", np.zeros((4, 6, 8), dtype=np.float32))
    latents = calotype.load().encode_image("photo.jpg")
    calotype.save_latents("photo.latents.safetensors", latents)
    calotype.save_latents("big.latents.safetensors", latents)


def two_pictures() -> None:
    draw("a.png", seed=1)
    draw("b.png", seed=2)


def a_photo_to_redraw() -> None:
    draw("photo.png", 96, 96)


def nothing() -> None:
    pass


def of_engine() -> dict[str, Any]:
    """What the engine's page speaks of."""
    vae = calotype.load()
    latents = vae.encode_image("photo.jpg")
    return {"vae": vae, "latents": latents, "z": latents.tensor[None]}


def of_previews() -> dict[str, Any]:
    """What the part on previews speaks of: factors that a probe has fitted."""
    Path("probe").mkdir()
    from calotype.previews import builtin, save_factors

    save_factors("probe/factors.json", builtin())
    return {"calotype": calotype, "latents": calotype.load_latents("photo.latents.safetensors")}


@dataclass(frozen=True)
class Session:
    """How the blocks of a page are run: what lies in the folder, what Python knows, and whether it takes long."""

    prepare: Callable[[], None] = nothing
    known: Callable[[], dict[str, Any]] = dict
    slow: bool = False


SESSIONS = {
    "README.md": Session(photo),
    "docs/cache.md": Session(a_cache, slow=True),
    "docs/concepts/budgets.md": Session(),
    "docs/concepts/exactness.md": Session(),
    "docs/concepts/posteriors.md": Session(photo),
    "docs/concepts/spaces.md": Session(photo),
    "docs/draw.md": Session(a_photo_to_redraw, slow=True),
    "docs/edit.md": Session(two_pictures, slow=True),
    "docs/engine.md": Session(some_latents, of_engine),
    "docs/guides/generate.md": Session(for_generating, slow=True),
    "docs/guides/integrate.md": Session(photo),
    "docs/guides/make-a-vae.md": Session(a_vae, slow=True),
    "docs/guides/study.md": Session(photos, slow=True),
    "docs/guides/train.md": Session(photos, slow=True),
    "docs/index.md": Session(photo, slow=True),
    "docs/latents.md": Session(some_latents, of_previews),
    "docs/spaces.md": Session(),
}

ELSEWHERE = {"docs/tutorial.md": "tests/test_tutorial.py"}  # page -> the test that runs all of it


def test_every_block_is_run_or_says_why_not() -> None:
    assert all((ROOT / test).is_file() for test in ELSEWHERE.values())
    run = SESSIONS.keys() | ELSEWHERE
    open_ones = [str(block) for block in BLOCKS if block.why is None and block.page not in run]
    assert not open_ones, "blocks of pages without a session, and without a mark that says why they are not run"
    idle = set(SESSIONS) - {block.page for block in BLOCKS if block.why is None}
    assert not idle, "sessions of pages on which nothing is run"


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_marks_stand_above_blocks(path: Path) -> None:
    marks = len(MARK.findall(path.read_text()))
    assert marks == sum(block.why is not None for block in blocks_of(path))


def _extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "commands"], ids=str)
def test_commands_exist(block: Block) -> None:
    """Options of commands are there, scripts are, and extras that are to be installed."""
    for line in commands_of(block):
        words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
        if words[0] == "calotype":
            _parse(words[1:])
        elif words[0] == "torchrun":
            _parse(shlex.split(line.partition("calotype ")[2].strip("'")))
        elif words[0] in ("python", "bash") or words[0].startswith("scripts/"):
            script = ROOT / (words[0] if words[0].startswith("scripts/") else words[1])
            assert script.is_file(), line
            options = [word.partition("=")[0] for word in words[2:] if word.startswith("--")]
            assert all(f'"{option}"' in script.read_text() for option in options), line
        elif words[0] == "pip":
            assert words[1] == "install", line
            wanted = re.search(r"\[([\w,]+)\]", line)
            assert wanted is None or set(wanted[1].split(",")) <= _extras(), line
        else:
            assert words[0] in ("npm", "mkdir", "ray"), f"{block}: what is this? {line}"


def _parse(words: list[str]) -> None:
    """Reads a command line as typer does, and runs nothing."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("calotype", [], resilient_parsing=True)
    while hasattr(command, "resolve_command"):
        name, command, words = command.resolve_command(context, words)
        known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("-") and not re.fullmatch(r"-\d.*", option):
            assert option in known, f"calotype {context.command_path} has no {option}"


@pytest.fixture
def presets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tiny networks in the place of presets, and nothing to fetch others by."""

    def fetch(name: str) -> Path:
        folder = tmp_path / "presets" / name
        if not folder.exists():
            save_weights(kl(STAND_IN), folder, layout="diffusers", format_=KNOWN[{"sdxl-vae": "sdxl"}[name]])
        return folder

    monkeypatch.setattr("calotype.vae.loading.fetch", fetch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small pictures gain nothing from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("presets", "one_thread")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if one.slow else page for page, one in SESSIONS.items()],
)
def test_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    session = SESSIONS[page]
    session.prepare()
    known: dict[str, Any] = session.known()
    for block in blocks_of(ROOT / page):
        if block.why is not None:
            continue
        if block.kind == "python":
            _run_python(block, known)
        else:
            for line in commands_of(block):
                _run_command(block, line, monkeypatch)


def _run_python(block: Block, known: dict[str, Any]) -> None:
    code = compile("\n" * block.line + block.text, str(ROOT / block.page), "exec")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalotypeWarning)
            exec(code, known)
    except Exception:
        pytest.fail(f"{block}\n{traceback.format_exc(limit=-3)}")


def _run_command(block: Block, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line)
    assert words[0] == "calotype", f"{block}: {line} is not run here; say why above it"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", words)
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        main()
    assert not stopped.value.code, f"{block}: {line}"
