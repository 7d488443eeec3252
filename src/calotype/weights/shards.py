"""Weights that were split over several files (shards), and folders with several variants of one VAE."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from calotype.errors import UsageError, WeightsError
from calotype.texts import TextError, is_file_name, json_table, shown
from calotype.weights.container import Container
from calotype.weights.graphs.folders import model_of
from calotype.weights.groups import Weights

SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")
INDEX = ".index.json"
MFLUX_SHARD = re.compile(r"[0-9]+\.safetensors")
MFLUX_INDEX = "model.safetensors.index.json"
KERAS_SHARD = re.compile(r"(.+)_[0-9]{5}\.weights\.h5")
KERAS_INDEX = ".weights.json"
KERAS_TASK = "task.weights.h5"  # of what a preset of keras-hub does, beside its network
VARIANT = re.compile(r"diffusion_pytorch_model(?:\.([\w-]+))?\.(safetensors|bin)")
ROUNDED = ("fp32", "fp16", "bf16")  # variants that are the same weights, the most exact first


class Shards:
    """Several containers as one."""

    def __init__(self, containers: Sequence[Container]) -> None:
        self._of: dict[str, Container] = {}
        for container in containers:
            for key in container.shapes:
                if key in self._of:
                    raise WeightsError(f"two of its shards hold {key}: they are of different weights; fetch them again")
                self._of[key] = container
        self.shapes: Mapping[str, tuple[int, ...]] = {k: c.shapes[k] for k, c in self._of.items()}
        self.metadata: Mapping[str, str] = {k: v for c in containers for k, v in c.metadata.items()}
        self.notices: tuple[str, ...] = tuple(notice for container in containers for notice in container.notices)
        self.kind = f"{containers[0].kind}, {len(containers)} shards"

    def stored(self, key: str) -> str:
        return self._of[key].stored(key)

    def read(self, key: str) -> Tensor:
        return self._of[key].read(key)


def shards_of(path: Path) -> tuple[Path, ...] | None:
    """All shards of the weights that a file is one of, or the index of; None if it is neither.

    Raises:
        WeightsError: if one is missing.
    """
    if path.name.endswith((INDEX, KERAS_INDEX)):
        names = _index(path)
    elif (index := _index_of(path)) is not None:
        names = _index(index)
    elif match := SHARD.fullmatch(path.name):
        stem, _, count, suffix = match.groups()
        names = [f"{stem}-{i:05}-of-{count}{suffix}" for i in range(1, int(count) + 1)]
    else:
        return None
    if missing := [name for name in names if not path.with_name(name).is_file()]:
        raise WeightsError(
            f"{path}: this is one of {len(names)} shards, and {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more are' if len(missing) > 3 else ' is' if len(missing) == 1 else ' are'} "
            f"not beside it; fetch all of them into one folder."
        )
    return tuple(path.with_name(name) for name in names)


def _index_of(path: Path) -> Path | None:
    """The index of a shard that does not say itself how many there are; None if it is none, or has none."""
    match = KERAS_SHARD.fullmatch(path.name)
    name = f"{match[1]}{KERAS_INDEX}" if match else MFLUX_INDEX if MFLUX_SHARD.fullmatch(path.name) else ""
    return index if name and (index := path.with_name(name)).is_file() else None


def _index(path: Path) -> list[str]:
    try:
        table = json_table(path.read_bytes()).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise TextError("it has no table weight_map")
        # of Keras, a layer's arrays may be in several
        named = [name for one in table.values() for name in (one if isinstance(one, list) else [one])]
        for name in named:
            if not is_file_name(name) or Path(name).name != name:
                raise TextError(f"weight_map must give names of files beside it, not {shown(name)}")
    except TextError as error:
        raise WeightsError(f"{path}: this is no index of shards, or a damaged one ({error}); fetch it again.") from None
    return sorted(set(named))


def in_folder(
    folder: Path, weights: Weights | None, suffixes: Sequence[str]
) -> tuple[tuple[tuple[Path, ...], ...], tuple[str, ...], Weights | None]:
    """The weight files of a folder, each with its shards; notices; and which weights are still to be chosen in a file.

    Variants of diffusers' names are chosen from in its own order, the plain one first; `weights` tells `non_ema` from
    the rest.

    Raises:
        WeightsError: if shards are missing, or there are variants that nothing tells which is meant.
        UsageError: if there are no averaged weights, or no raw ones, and they were asked for.
    """
    files: dict[Path, tuple[Path, ...]] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix not in suffixes or not file.is_file() or model_of(file) != file:
            continue
        shards = shards_of(file) or (file,)
        files.setdefault(shards[0], shards)
    if len(files) > 1:
        files.pop(folder / KERAS_TASK, None)
    variants: dict[tuple[str, str], Path] = {}
    for file in files:
        name = SHARD.sub(r"\1\4", file.name)
        if match := VARIANT.fullmatch(name):
            variants[match[1] or "", match[2]] = file
    if not variants:
        return tuple(files.values()), (), weights
    taken, notice = _variant(folder, variants, weights)
    both = len({_raw(name) for name, _ in variants}) == 2
    return (files[taken],), (notice,) if notice else (), None if both else weights


def _raw(variant: str) -> bool:
    return "non_ema" in variant or "non-ema" in variant


def _variant(folder: Path, variants: Mapping[tuple[str, str], Path], weights: Weights | None) -> tuple[Path, str]:
    names = {name for name, _ in variants}
    if weights == "raw" and any(map(_raw, names)):
        names = {name for name in names if _raw(name)}
    elif any(not _raw(name) for name in names):
        names = {name for name in names if not _raw(name)}
    elif weights == "ema":
        raise UsageError(f"{folder}: its weights are all raw (non_ema); leave --weights ema out.")
    left = sorted({name for name, _ in variants} - names)
    if "" not in names and len({name for name in names if name not in ROUNDED}) > (not names & set(ROUNDED)):
        raise WeightsError(
            f"{folder}: this folder holds several variants, {', '.join(sorted(names))}; name the file itself."
        )
    order: Callable[[tuple[str, str]], tuple[int, int]] = lambda key: (  # noqa: E731
        0 if key[1] == "safetensors" else 1,
        ("", *ROUNDED).index(key[0]) if key[0] in ("", *ROUNDED) else 4,
    )
    taken = min((key for key in variants if key[0] in names), key=order)
    others = sorted((names | set(left)) - {taken[0]})
    if not taken[0] or not others:
        return variants[taken], ""
    return variants[taken], (
        f"{variants[taken]} was taken; {', '.join(name or 'the plain one' for name in others)} lie beside it: name a "
        f"file itself to take another."
    )
