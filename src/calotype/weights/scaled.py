"""Weights in eight bits or four with scales beside them, multiplied out to float32 as they are read.

A scale stands beside its weight as `weight_scale`, as `scale_weight` (ComfyUI's older name) or as `weight_scale_inv`
(which is a factor too): one number, one for each row, or one for each block of rows and columns. ComfyUI's
`comfy_quant`, JSON in a tensor of bytes, or `_quantization_metadata` in the header say in which format a layer's weight
is; `weights.comfy_quant` knows their arithmetic. Scales of a layer's input belong to arithmetic in eight bits, and
change no weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from calotype.damage import quoted
from calotype.errors import WeightsError
from calotype.texts import TextError, json_table
from calotype.weights.comfy_quant import QuantError, dequantised, rows_of
from calotype.weights.container import Container
from calotype.weights.mapped import dtype_name
from calotype.weights.translated import Made, Translated

SCALES = ("weight_scale", "scale_weight", "weight_scale_inv")
MORE = ("weight_scale_2", "pre_quant_scale")
INPUTS = ("input_scale", "scale_input")
FORMAT = "comfy_quant"
BESIDE = (*SCALES, *MORE, *INPUTS, FORMAT)  # beside a weight
MARKER = re.compile(r"(.*\.)?scaled_fp8")
LAYERS = "_quantization_metadata"  # of a header: the formats of all layers
LONGEST = 65_536  # bytes of a layer's format

ADVICE = "get the weights as they were before, in float16 or float32"


def scaled(container: Container) -> Container:
    """A container whose weights have been multiplied by the scales beside them; the same one where there are none.

    Nothing is read of weights until they are asked for.

    Raises:
        WeightsError: if a header's formats can't be read; and from `read`, if what stands beside a weight does not fit
            it, or its format is none that is read.
    """
    layers: dict[str, dict[str, str]] = {}
    for key in container.shapes:
        stem, dot, leaf = key.rpartition(".")
        if leaf in BESIDE and f"{stem}{dot}weight" in container.shapes:
            layers.setdefault(f"{stem}{dot}", {})[leaf] = key
    if not layers:
        return container
    hidden = {key for beside in layers.values() for key in beside.values()}
    hidden |= {key for key in container.shapes if MARKER.fullmatch(key)}
    formats = _formats(container.metadata)
    made = {
        key: Made(shape, container.stored(key), partial(container.read, key))
        for key, shape in container.shapes.items()
        if key not in hidden
    }
    for stem, beside in layers.items():
        if not beside.keys() <= set(INPUTS):
            key, shape = f"{stem}weight", _shape(container, stem, beside)
            read = partial(_multiplied, container, key, shape, beside, _told(formats, stem.rstrip(".")))
            made[key] = Made(shape, f"scaled {container.stored(key)}", read)
    return Translated(made, kind=container.kind, metadata=container.metadata, notices=container.notices)


def _shape(container: Container, stem: str, beside: Mapping[str, str]) -> tuple[int, ...]:
    """Of a weight when it is multiplied out."""
    shape = container.shapes[f"{stem}weight"]
    if len(shape) != 2 or "weight_scale" not in beside:
        return shape
    tiled = "weight_scale_2" in beside or container.stored(beside["weight_scale"]) in ("uint8", "float8_e8m0fnu")
    columns = 2 * shape[1] if container.stored(f"{stem}weight") == "uint8" else shape[1]
    return (rows_of(shape[0], container.shapes.get(f"{stem}bias", ())) if tiled else shape[0], columns)


def _formats(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """The formats of layers, by name, as a header has them."""
    if LAYERS not in metadata:
        return {}
    try:
        layers = json_table(metadata[LAYERS]).get("layers")
    except TextError as error:
        raise WeightsError(f"what its header says of how it is quantised can't be read ({error})") from None
    return layers if isinstance(layers, dict) else {}


def _told(formats: Mapping[str, Any], layer: str) -> Any:
    """The format of a layer, whose name in the header may lack what stands before the network's own names."""
    steps = layer.split(".")
    names = (".".join(steps[i:]) for i in range(len(steps)))
    return next((formats[name] for name in names if name in formats), None)


def _multiplied(container: Container, key: str, shape: tuple[int, ...], beside: Mapping[str, str], told: Any) -> Tensor:
    """A weight as numbers."""
    weight = container.read(key)
    scales = {leaf: container.read(name) for leaf, name in beside.items() if leaf in (*SCALES, *MORE)}
    if FORMAT in beside:
        told = _format(container, beside[FORMAT])
    if len(scales.keys() & set(SCALES)) > 1:
        raise WeightsError(f"{quoted(key)} has several scales: {', '.join(sorted(scales))}")
    if told is None and not weight.is_floating_point():
        raise WeightsError(
            f"{quoted(key)} is of {dtype_name(weight.dtype)} with scales, and nothing says in which format (as "
            f"{FORMAT} or {LAYERS} would), so that it may be rotated too; {ADVICE}"
        )
    try:
        return dequantised(told, weight, next((scales[name] for name in SCALES if name in scales), None), scales, shape)
    except QuantError as error:
        raise WeightsError(f"{quoted(key)} is quantised {error}; {ADVICE}") from None


def _format(container: Container, key: str) -> Mapping[str, Any]:
    """What JSON in a tensor of bytes says."""
    try:
        if max(container.shapes[key], default=1) > LONGEST:
            raise TextError(f"{max(container.shapes[key]):,} numbers")
        return json_table(bytes(container.read(key).reshape(-1).tolist()))
    except (TextError, TypeError, ValueError) as error:
        raise WeightsError(f"{quoted(key)} does not say in which format a weight is ({quoted(error)})") from None
