"""Where a VAE's weights lie, and which tensors of their files are its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from calotype.damage import quoted
from calotype.errors import WeightsError
from calotype.families.numbers import MOST_CHANNELS
from calotype.texts import TextError, whole
from calotype.weights.container import Container, open_container
from calotype.weights.detect import Detected, detect
from calotype.weights.diffusers_config import Said, as_diffusers_says, norm_groups_of, parse_config, read_said
from calotype.weights.flax import from_flax
from calotype.weights.graphs.folders import model_files, model_of
from calotype.weights.groups import Weights
from calotype.weights.keras_file import CONFIG, from_keras_hub
from calotype.weights.mlx import from_mlx
from calotype.weights.scaled import scaled
from calotype.weights.shards import Shards, in_folder, shards_of
from calotype.weights.sniff import audio_pipeline, in_folder as told_in_folder
from calotype.weights.translated import TOLD

SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".h5")
OTHER_SUFFIXES = (".gguf", ".msgpack", ".keras", ".npz")  # of weights, where nothing else is in a folder

SUBFOLDERS = ("vae", "movq", "vqvae")  # of pipelines, with the VAE in it


def locate(
    path: Path, weights: Weights | None
) -> tuple[tuple[tuple[Path, ...], ...], Path | None, tuple[str, ...], Weights | None]:
    """The weight files at `path`, each with its shards; the config.json that describes them, if any; notices; and which
    weights are still to be chosen in a file."""
    if path.is_file():
        path = model_of(path)
        beside = path.with_name("config.json")
        return (shards_of(path) or (path,),), beside if beside.is_file() else None, (), weights
    if inside := next((name for name in SUBFOLDERS if (path / name).is_dir()), None):
        if name := audio_pipeline(path):
            raise WeightsError(
                f"{path}: this is a pipeline for sound ({name}); its VAE is of spectrograms, not pictures."
            )
        path = path / inside
    config = path / "config.json"
    places, notices, weights = in_folder(path, weights, SUFFIXES)
    if not places:
        places, notices, weights = in_folder(path, weights, OTHER_SUFFIXES)
    if not places:
        models, more = model_files(path)
        places, notices = tuple((model,) for model in models), (*notices, *more)
    if not places and (said := told_in_folder(path)):
        raise WeightsError(f"{path}: this folder holds no weight files that can be read ({said}).")
    if len(places) not in (1, 2):
        names = ", ".join(file.name for file, *_ in places[:4]) + (", ..." if len(places) > 4 else "")
        raise WeightsError(
            f"{path}: this folder holds {len(places)} weight files; give one with a VAE in it "
            f"(or an encoder and a decoder), or name the file itself{f': {names}' if places else ''}."
        )
    return places, config if config.is_file() else None, notices, weights


def open_place(file: Path, more: Sequence[Path]) -> Container:
    """The tensors of a file, or of one that others continue (shards)."""
    container = Shards([open_container(one) for one in (file, *more)]) if more else open_container(file)
    return scaled(from_mlx(from_keras_hub(from_flax(container))))


def find(
    container: Container, file: Path, config_file: Path | None, prefix: str | None, weights: Weights | None
) -> tuple[Detected, Said, Mapping[str, Any]]:
    """The VAE among a file's tensors, what a config.json beside says, and what the file's own metadata do."""
    said = read_said(config_file, file.parent)
    if not said.values and (inside := container.metadata.get(CONFIG)):
        said = replace(said, file=file, values=as_diffusers_says(parse_config(inside)))
    stored = container.metadata.get("calotype_config")
    own = parse_config(container.metadata.get(TOLD, "{}") if stored is None else stored)
    told = own.get("norm_groups")
    try:
        groups = norm_groups_of(said) if told is None else whole(told, "norm_groups", 1, MOST_CHANNELS)
    except TextError as error:
        raise WeightsError(f"its own metadata are damaged ({error}); fetch or convert it again") from None
    if not isinstance(said_so := own.get("post_quant_conv"), bool | None):
        raise WeightsError(f"its metadata say post_quant_conv {quoted(said_so, 40)}, which is true, false or null")

    def same(a: str, b: str) -> bool:
        first, second = container.read(a), container.read(b)
        return first.dtype == second.dtype and torch.equal(first, second)

    try:
        found = detect(container.shapes, norm_groups=groups, prefix=prefix, weights=weights, same=same)
    except WeightsError as error:
        if container.kind.partition(",")[0] in ("safetensors", "torch"):
            raise
        raise WeightsError(f"read as {container.kind}: {error}") from None
    return found, said, own
