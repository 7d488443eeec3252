"""Checkpoints: whole, atomic, the newest few and the best."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from calotype.errors import MemoryLimitError, StorageError, UsageError
from calotype.files import atomic_path, make_folder, write_text, writing
from calotype.texts import TextError, is_whole, json_table, whole
from calotype.train.recipe import Recipe

# What may differ between the parts of a run: its length, what lies ahead, and how it is watched.
MAY_CHANGE = {
    "steps", "cooldown", "phases", "accumulate", "log_every", "checkpoint_every", "keep",
    "gradient_checkpointing", "channels_last", "compile", "learning_rate", "muon_rate", "clip",
}  # fmt: skip

# What torch.load raises for bytes that are no checkpoint: an unpickler follows whatever they say.
_DAMAGED = (
    pickle.UnpicklingError, RuntimeError, MemoryError, EOFError, ValueError, LookupError, TypeError, AttributeError,
    ImportError, ArithmeticError,
)  # fmt: skip

FOLDER = "checkpoints"
BEST = "best.pt"
LOCK = ".calotype-training.lock"  # in a run's folder, while it is trained
ADVICE = "delete it to go on from the one before"  # where one is damaged
DOING = "a training"  # what its holder does


def newest(out: Path) -> Path | None:
    """The checkpoint of the highest step in a run's folder."""
    found = sorted((out / FOLDER).glob("step-*.pt"))
    return found[-1] if found else None


def save(out: Path, state: dict[str, Any], recipe: Recipe) -> Path:
    """Writes a checkpoint beside and renames it; then drops the oldest beyond `recipe.keep`.

    Args:
        state: of `Trainer.state_dict`.

    Raises:
        StorageError: if the disk refuses it; those before it stay.
    """
    folder = out / FOLDER
    path = folder / f"step-{state['step']:08}.pt"
    try:
        make_folder(folder)
        with writing(path) as file:
            torch.save({"recipe": json.dumps(recipe.to_dict()), **state}, file)
    except StorageError as error:
        last = newest(out)
        kept = f"{last.name} is kept, and --resume goes on from it" if last else "there is none before it"
        raise StorageError(f"{str(error).removesuffix('.')}; {kept}.") from None
    for old in sorted(folder.glob("step-*.pt"))[: -recipe.keep]:
        with suppress(OSError):
            old.unlink()
    return path


def keep_best(path: Path) -> None:
    """Keeps a checkpoint as the best so far, in the place of the one before.

    Raises:
        StorageError: if the disk refuses it.
    """
    best = path.with_name(BEST)
    try:
        with atomic_path(best) as temporary:
            temporary.unlink(missing_ok=True)
            try:
                os.link(path, temporary)  # the same file under another name
            except OSError:  # not every file system has such links
                shutil.copyfile(path, temporary)
    except OSError as error:
        raise StorageError(
            f"{best}: the best checkpoint can't be kept ({error.strerror}); {path.name} is there."
        ) from None


def read(path: Path, keys: Iterable[str], advice: str) -> dict[str, Any]:
    """What is in a checkpoint, whatever it was trained with.

    Args:
        keys: what must be in it.
        advice: what to do about a damaged one.

    Raises:
        UsageError: if it is damaged, can't be read, or is something else.
        MemoryLimitError: if there is too little memory for it.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"{path}: this checkpoint can't be read ({error.strerror or error}).") from None
    except _DAMAGED as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise MemoryLimitError(f"{path}: there is too little memory to read this checkpoint; free some.") from None
        raise UsageError(f"{path}: this checkpoint is damaged; {advice}.") from None
    if not isinstance(state, dict) or not state.keys() >= {*keys}:
        raise UsageError(f"{path}: `calotype train` did not write this checkpoint; give another --out.")
    try:
        for key in {"step", "word_step"} & state.keys():
            whole(state[key], key, 0)
    except TextError as error:
        raise UsageError(f"{path}: this checkpoint is damaged ({error}); {advice}.") from None
    return dict(state)


def told(state: Mapping[str, Any], key: str, path: Path, advice: str) -> dict[str, Any]:
    """What a checkpoint keeps as JSON under a key.

    Raises:
        UsageError: if it is damaged.
    """
    try:
        if not isinstance(state[key], str):
            raise TextError(f"{key} is no text")
        return json_table(state[key], finite=False, names=True)
    except TextError as error:
        raise UsageError(f"{path}: this checkpoint is damaged ({error}); {advice}.") from None


@contextmanager
def restoring(path: Path, advice: str) -> Iterator[None]:
    """Says that a checkpoint is damaged where what it holds can't be put in its place.

    Raises:
        UsageError: so.
    """
    try:
        yield
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise UsageError(f"{path}: {error}") from None
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise
        raise UsageError(f"{path}: this checkpoint does not fit what is trained, or is damaged; {advice}.") from None


def keep_lines(metrics: Path, done: Callable[[dict[str, Any]], bool]) -> list[dict[str, float]]:
    """Leaves out lines of a run's metrics.jsonl whose steps come again, as a killed process left them.

    Args:
        done: whether a line is of a step that the checkpoint has.

    Returns:
        The figures in the lines left.
    """
    lines, kept = [], []
    if not metrics.exists():
        return []
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, LookupError, TypeError):  # the last may be cut off
            values = json_table(line, finite=False)
            if done(values):
                lines.append(f"{line}\n")
                kept.append(
                    {key: value for key, value in values.items() if isinstance(value, float) or is_whole(value)}
                )
    write_text(metrics, "".join(lines))
    return kept


def load(path: Path, recipe: Recipe) -> dict[str, Any]:
    """The state in a checkpoint, if it is one of this recipe.

    Raises:
        UsageError, MemoryLimitError: see `read`; UsageError also if it is of another recipe.
    """
    keys = ("recipe", "step", "model", "ema", "optimisers")
    state = read(path, keys, ADVICE)
    then, now = told(state, "recipe", path, ADVICE), json.loads(json.dumps(recipe.to_dict()))
    if changed := sorted(key for key in now.keys() - MAY_CHANGE if then.get(key) != now[key]):
        raise UsageError(
            f"{path}: this checkpoint was trained with another {', '.join(changed)}; give its recipe, or another --out."
        )
    return state


def changes(state: dict[str, Any], recipe: Recipe) -> dict[str, list[Any]]:
    """What a recipe changes of the one a checkpoint was made with: key -> [then, now]."""
    then, now = json.loads(state["recipe"]), json.loads(json.dumps(recipe.to_dict()))
    return {key: [then.get(key), now[key]] for key in sorted(now) if then.get(key) != now[key]}
