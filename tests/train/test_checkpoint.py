"""Checkpoints: those of something else and damaged ones are refused, and a full disk costs none."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import SMALL, names, one_sentence, room
from trainkit import FOLDED, TINY, changed, make

from calotype.errors import MemoryLimitError, StorageError, UsageError
from calotype.families.folded.config import FoldedConfig
from calotype.train import checkpoint
from calotype.train.recipe import Adversarial, Recipe


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.save(tmp_path_factory.mktemp("run"), make(TINY).state_dict(), TINY)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (changed(network=FoldedConfig(z_channels=8, ch=(8, 16))), "this checkpoint was trained with another network"),
        (changed(network=replace(FOLDED, encoder_blocks=(2, 1))), "this checkpoint was trained with another network"),
        (changed(network=SMALL), "this checkpoint was trained with another network"),
        (changed(seed=7, kl_weight=0.5), "this checkpoint was trained with another kl_weight, seed"),
        (changed(optimiser="adamw"), "this checkpoint was trained with another optimiser"),
        (changed(adversarial=Adversarial(start=3)), "this checkpoint was trained with another adversarial"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(recipe: Recipe, message: str, saved: Path) -> None:
    with pytest.raises(UsageError, match=message) as error:
        checkpoint.load(saved, recipe)
    one_sentence(str(error.value))
    assert str(error.value).endswith("give its recipe, or another --out.")


def test_what_lies_ahead_may_change(saved: Path) -> None:
    recipe = changed(steps=20, learning_rate=1e-5, log_every=7)
    state = checkpoint.load(saved, recipe)
    assert checkpoint.changes(state, recipe) == {"learning_rate": [3e-3, 1e-5], "log_every": [2, 7], "steps": [8, 20]}
    assert checkpoint.changes(state, TINY) == {}


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "other"])
def test_a_damaged_checkpoint_is_refused(kind: str, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "step-00000000.pt"
    whole = saved.read_bytes()
    path.write_bytes({"empty": b"", "text": b"no checkpoint", "cut": whole[: len(whole) // 2], "other": b""}[kind])
    if kind == "other":
        torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(
        UsageError, match="another --out" if kind == "other" else "delete it to go on from the one before"
    ):
        checkpoint.load(path, TINY)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), UsageError, r"can't be read \(Permission denied\)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryLimitError, "too little memory"),
        (MemoryError(), MemoryLimitError, "too little memory"),
        (KeyError("b"), UsageError, "is damaged; delete it"),
        (AttributeError("'str' object has no attribute 'storage'"), UsageError, "is damaged; delete it"),
    ],
)
def test_why_a_checkpoint_is_not_read(
    error: Exception, kind: type[Exception], said: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(kind, match=said) as caught:
        checkpoint.load(saved, TINY)
    one_sentence(str(caught.value))


@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_a_full_disk_costs_no_checkpoint(part: float, tmp_path: Path) -> None:
    state = make(TINY).state_dict()
    first = checkpoint.save(tmp_path, state, TINY)
    before = {path.name: path.read_bytes() for path in first.parent.iterdir()}

    words = r"step-00000001\.pt can't be written: File too large; .*; step-00000000\.pt is kept"
    with room(int(part * first.stat().st_size)), pytest.raises(StorageError, match=words) as caught:
        checkpoint.save(tmp_path, {**state, "step": 1}, TINY)
    one_sentence(str(caught.value))
    assert {path.name: path.read_bytes() for path in first.parent.iterdir()} == before


def test_the_first_checkpoint_does_not_fit(tmp_path: Path) -> None:
    with room(1000), pytest.raises(StorageError, match=r"File too large; .*; there is none before it"):
        checkpoint.save(tmp_path, make(TINY).state_dict(), TINY)
    assert names(tmp_path) == []


def test_the_newest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    state = make(TINY).state_dict()
    for step in (9, 10, 100):
        path = checkpoint.save(tmp_path, {**state, "step": step}, replace(TINY, keep=2))
        if step == 9:
            checkpoint.keep_best(path)
    assert checkpoint.newest(tmp_path) == path
    names = sorted(one.name for one in path.parent.iterdir())
    assert names == ["best.pt", "step-00000010.pt", "step-00000100.pt"]
    assert torch.load(path.parent / "best.pt", weights_only=True)["step"] == 9
