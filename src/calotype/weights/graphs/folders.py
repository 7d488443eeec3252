"""Which files of a folder are the VAE of a pipeline in ONNX or OpenVINO, as optimum writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from calotype.errors import WeightsError

SIDES = ("vae_encoder", "vae_decoder")  # subfolders of a pipeline
PLAIN = ("model", "openvino_model")  # the file that is meant, where variants lie beside it


def model_files(folder: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The files of the encoder and of the decoder, or of one; and notices. Nothing where there is no such model.

    Raises:
        WeightsError: there are several, and nothing tells which is meant.
    """
    inside = [folder / name for name in SIDES if (folder / name).is_dir()]
    found = [_one(place, models) for place in inside if (models := _models(place))]
    if not found and (models := _models(folder)):
        names = {model: model.stem.lower() for model in models}
        vaes = [model for model in models if "vae" in names[model]] or models
        sides = [[model for model in vaes if re.search(rf"(?<!text_){side}", names[model])] for side in
                 ("encoder", "decoder")]  # fmt: skip
        found = [_one(folder, side) for side in sides if side] or [_one(folder, vaes)]
    return tuple(file for file, _ in found), tuple(notice for _, notice in found if notice)


def _models(folder: Path) -> list[Path]:
    files = sorted(folder.iterdir())
    return [file for file in files if file.suffix == ".onnx" and file.is_file()] or [
        file for file in files if file.suffix == ".xml" and file.with_suffix(".bin").is_file()
    ]


def _one(folder: Path, models: Sequence[Path]) -> tuple[Path, str]:
    """The model that is meant among variants of one, and what to say."""
    shortest = min(models, key=lambda model: len(model.stem))
    plain = next((model for model in models if model.stem in PLAIN), shortest)
    others = [model.name for model in models if model is not plain]
    if not all(name.startswith(plain.stem) for name in others):
        names = ", ".join(sorted(model.name for model in models)[:4])
        raise WeightsError(f"{folder}: this folder holds several models, {names}; name the file itself.")
    if not others:
        return plain, ""
    return plain, f"{plain} was taken; {', '.join(others)} lie beside it: name a file itself to take another."


def model_of(path: Path) -> Path:
    """The model that a file belongs to, where it is one of numbers alone."""
    if path.suffix == ".bin" and path.with_suffix(".xml").is_file():
        return path.with_suffix(".xml")
    match = re.fullmatch(r"(.+\.onnx)[._]data", path.name)
    model = path.with_name(match[1]) if match else path
    return model if model.is_file() else path
