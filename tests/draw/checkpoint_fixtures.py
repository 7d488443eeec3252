"""Fixtures that the tests of checkpoints share; a test module names them in `pytest_plugins`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from checkpoint_models import KINDS, STEMS, only_configs, original, saved
from support import import_diffusers, write

from calotype.draw.checkpoints import Checkpoint, load_checkpoint


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and an empty cache of the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="session")
def diffusers() -> Any:
    library = import_diffusers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"):
            getattr(library, name)
    return library


@pytest.fixture(scope="session")
def folders(diffusers: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A diffusers folder of each kind, saved by diffusers."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {kind: saved(kind, root) for kind in KINDS}


@pytest.fixture(scope="session")
def theirs(diffusers: Any, folders: dict[str, Path]) -> Callable[..., Any]:
    """diffusers' own pipelines, VAE included."""

    def make(kind: str, task: str = "", folder: Path | None = None) -> Any:
        extra: dict[str, dict[str, Any]] = {
            "StableDiffusion": {"safety_checker": None, "requires_safety_checker": False},
            "StableDiffusion3": {"text_encoder_3": None, "tokenizer_3": None},
        }
        pipeline = getattr(diffusers, f"{STEMS[kind]}{task}Pipeline")
        pipe = pipeline.from_pretrained(folder or folders[kind], **extra.get(STEMS[kind], {}))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture(scope="session")
def ours(folders: dict[str, Path]) -> Callable[[str], Checkpoint]:
    """The same folders, loaded by calotype."""
    loaded: dict[str, Checkpoint] = {}

    def make(kind: str) -> Checkpoint:
        if kind not in loaded:
            loaded[kind] = load_checkpoint(folders[kind], device="cpu")
        return loaded[kind]

    return make


@pytest.fixture(scope="session")
def files(theirs: Any, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Single files of the same weights; beside each, a folder `configs` without any weights."""
    root = tmp_path_factory.mktemp("files")
    made = {}
    for kind in KINDS:
        made[kind] = write(root / kind / "model.safetensors", original(kind, theirs(kind)))
        only_configs(folders[kind], root / kind / "configs")
    return made
