"""Keras h5 files of Stable Diffusion's VAE: encoder and decoder apart, tensors known by their order only.

Four such files are in circulation (fchollet/stable-diffusion and divamgupta's): decoder.h5 and encoder_newW.h5 keep
all arrays in one nested group, kcv_decoder.h5 and vae_encoder.h5 one group a layer, as keras-cv loads them. Both kinds
list arrays in the same order; the order and the HWIO kernels are those of divamgupta/stable-diffusion-tensorflow.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calotype.errors import UsageError, WeightsError
from calotype.families import FAMILIES, config_from_dict, family_of
from calotype.families.face import NetworkConfig
from calotype.files import make_folder, writing_all
from calotype.texts import TextError, json_of
from calotype.weights.keras_file import require_h5py

LEAVES = ("weight", "bias")  # in Keras's order


def read_keras(
    arrays: Sequence[np.ndarray], metadata: Mapping[str, str]
) -> tuple[NetworkConfig, str, dict[str, Tensor]]:
    """What one h5 file holds: its configuration, its side ("encoder" or "decoder"), and tensors under our keys.

    Args:
        arrays: all of it, in Keras's order.
        metadata: calotype's in it.

    Raises:
        WeightsError: if the arrays are not those of an encoder or a decoder, in Keras's order.
    """
    stored = metadata.get("calotype_config")
    default = next(family.config for family in FAMILIES if family.keras)
    config: NetworkConfig | None = None
    with suppress(TextError, UsageError):
        config = default() if stored is None else config_from_dict(json_of(stored))
    if config is None or (order := family_of(config).keras) is None:
        raise WeightsError("its metadata describe no network that this version knows; update calotype")
    first = arrays[0].shape if arrays else ()
    keys = {
        side: [f"{module}.{leaf}" for _, modules in order(config, side) for module in modules for leaf in LEAVES]
        for side in ("encoder", "decoder")
    }
    for side, inputs in (("encoder", config.picture_channels), ("decoder", config.z_channels)):
        if len(keys[side]) == len(arrays) and first[2:3] == (inputs,):
            return config, side, {k: _to_torch(a) for k, a in zip(keys[side], arrays, strict=True)}
    if stored is not None and all(len(side) > len(arrays) for side in keys.values()):
        raise WeightsError(f"its metadata describe a larger network than {len(arrays)} arrays are of; fetch it again")
    raise WeightsError(
        f"{len(arrays)} arrays are neither an encoder (108) nor a decoder (140) of Stable Diffusion's VAE in Keras"
    )


def write_keras(
    folder: Path, config: NetworkConfig, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> list[Path]:
    """Writes encoder.h5 and decoder.h5, one group a layer, as keras-cv's `load_weights` reads them.

    Raises:
        UsageError: bfloat16, or no h5py.
        StorageError: the disk refuses them; both are written, or none.
    """
    require_h5py()
    if any(tensor.dtype == torch.bfloat16 for tensor in tensors.values()):
        raise UsageError("h5 files have no bfloat16; give --dtype float32.")
    order = family_of(config).keras
    assert order is not None
    sides = [side for side in ("encoder", "decoder") if f"{side}.conv_in.weight" in tensors]  # or half a VAE
    paths = [make_folder(folder) / f"{side}.h5" for side in sides]
    with writing_all(paths) as files:
        for side, file in zip(sides, files, strict=True):
            file.write(_h5(order(config, side), tensors, metadata).getbuffer())
    return paths


def _h5(
    layers: Iterable[tuple[str, Sequence[str]]], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> io.BytesIO:
    """One such file in memory: HDF5 itself ends in a segmentation fault where a disk is full."""
    import h5py

    made = io.BytesIO()
    with h5py.File(made, "w") as file:
        file.attrs["layer_names"] = [name for name, _ in layers]
        file.attrs["backend"] = "torch"
        file.attrs.update(sorted(metadata.items()))
        for name, modules in layers:
            group = file.create_group(name)
            keys = [f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")]
            group.attrs["weight_names"] = keys
            for key in keys:
                group.create_dataset(key, data=_to_keras(tensors[key]))
    return made


def _to_torch(array: np.ndarray) -> Tensor:
    """HWIO kernels become OIHW; vectors stay."""
    return torch.from_numpy(array.transpose(3, 2, 0, 1).copy() if array.ndim == 4 else array)


def _to_keras(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.numpy()
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
