"""FLUX and Wan with text encoders, drawn from the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_models import array, t5, text_encoder, tokenizer
from PIL import Image
from pipekit import drawn, pipeline, transformer
from support import one_sentence

from calotype.cli.main import main
from calotype.draw.checkpoints import load_checkpoint
from calotype.errors import CalotypeWarning

pytest_plugins = ("checkpoint_fixtures",)
pytestmark = pytest.mark.usefixtures("offline")

WIDTH = 48  # of the T5


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """diffusers' pipelines, and where they are saved."""
    root = tmp_path_factory.mktemp("texts")
    encoder, words = t5()
    torch.manual_seed(8)
    flux, _ = pipeline("flux")
    numbers = dict(flux.transformer.config) | {"joint_attention_dim": WIDTH, "pooled_projection_dim": 16}
    flux.register_modules(
        transformer=transformer("FluxTransformer2DModel", **_own(numbers)), text_encoder=text_encoder(16),
        tokenizer=tokenizer(root / "words"), text_encoder_2=encoder, tokenizer_2=words,
    )  # fmt: skip
    flux.tokenizer_max_length = 8
    wan, _ = pipeline("wan")
    numbers = dict(wan.transformer.config) | {"text_dim": WIDTH}
    wan.register_modules(
        transformer=transformer("WanTransformer3DModel", **_own(numbers)), text_encoder=encoder, tokenizer=words
    )
    found = {}
    for name, pipe in (("flux", flux), ("wan", wan)):
        pipe.save_pretrained(root / name)
        found[name] = (pipe, root / name)
    return found


def _own(numbers: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in numbers.items() if not key.startswith("_")}


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["calotype", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_prompts_are_read(kind: str, pipes: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pipe, folder = pipes[kind]
    monkeypatch.chdir(tmp_path)
    preview = tmp_path / "now.png"
    assert run(monkeypatch, "draw", "a cat", "--seed", 5, "--steps", 2, "--size", "96x64", "--model", folder,
               "--preview", preview, "--device", "cpu", "--guidance", 3) == 0  # fmt: skip
    picture = Image.open(tmp_path / "cat-5.png")
    more = {"num_frames": 1} if kind == "wan" else {}
    expected = drawn(pipe, {"prompt": ["a cat"], "height": 64, "width": 96, "guidance_scale": 3.0, **more})
    levels = (expected[0] if kind == "flux" else expected[0, 0]).permute(1, 2, 0).mul(255).numpy()
    assert np.abs(array(picture) - levels).max() <= 1.5
    assert np.abs(array(Image.open(preview)) - array(picture)).max() <= 1


@pytest.mark.slow
def test_the_command_line_refuses_in_a_sentence(
    pipes: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, words in (("flux", ["--negative", "dog"]), ("wan", ["--sampler", "ddim"]), ("wan", ["--size", "96x65"])):
        code = run(monkeypatch, "draw", "a cat", "--model", pipes[kind][1], "--device", "cpu", "--steps", 2, *words)
        assert code == 2
        assert "Traceback" not in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


def test_what_is_too_long_is_said(pipes: Any) -> None:
    checkpoint = load_checkpoint(pipes["flux"][1], device="cpu")
    with pytest.warns(CalotypeWarning, match="tokens, and the text encoder reads the first 512") as warned:
        next(checkpoint.draw(["cat " * 600], seeds=[1], steps=1, size=(64, 64)))
    one_sentence(str(warned[0].message))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flux", pytest.param("wan", marks=pytest.mark.slow)])
def test_a_narrower_type_draws_nearly_the_same(kind: str, pipes: Any) -> None:
    folder = pipes[kind][1]
    wide, narrow = (load_checkpoint(folder, device="cpu", dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert narrow.pipe.vae.dtype == narrow.pipe.transformer.dtype == torch.bfloat16
    first, second = (
        array(next(one.draw(["a cat"], seeds=[5], steps=2, size=(64, 96))).picture) for one in (wide, narrow)
    )
    assert 0 < np.abs(first - second).mean() < 10
