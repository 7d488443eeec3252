"""Containers of tensors, told apart; and safetensors and torch files, opened so that only what is asked for is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from calotype.damage import LONGEST_HEADER, damage, quoted, require_held
from calotype.errors import WeightsError
from calotype.weights.flax import FlaxFile
from calotype.weights.graphs.opened import open_onnx, open_openvino
from calotype.weights.keras_file import KerasFile
from calotype.weights.mapped import dtype_name, map_file, part, strides, view
from calotype.weights.npz import NpzFile
from calotype.weights.pickles import Array, Stand, read_pickle
from calotype.weights.sniff import is_flax, is_onnx, is_openvino, other_file, zip_of_weights
from calotype.weights.stored import Stored

H5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
GGUF = (b"GGUF", b"FUGG")  # the second where it is big-endian

# safetensors' names of types
SAFE_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DEEPEST = 16  # levels of a nest that are searched
DAMAGED = "the file is truncated or damaged ({why}); fetch it again"


class Container(Protocol):
    """Named tensors in a file, or in several that belong together."""

    @property
    def kind(self) -> str:
        """What kind of file it is, for people: "safetensors"."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape, read without the tensors."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says about itself."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know of the file, though it can be read."""

    def stored(self, key: str) -> str:
        """The type in which the file has a tensor's numbers: torch's name of it, or the file's own ("Q8_0")."""

    def read(self, key: str) -> Tensor:
        """One tensor, on the CPU, in the dtype it is stored in, or in one that holds its numbers exactly."""


class SafetensorsFile:
    """A safetensors file, mapped into memory; see https://github.com/huggingface/safetensors for the format.

    Its own library refuses a file with anything after the last tensor, as some tools leave it there, and does not say
    how much of a truncated one is missing.
    """

    kind = "safetensors"

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length + 8 > size:
                raise WeightsError(f"the file is truncated: {size:,} bytes do not hold its header; fetch it again")
            if length > LONGEST_HEADER:
                raise WeightsError(
                    f"the file is damaged: a header of {length:,} bytes is longer than that of any weights "
                    f"({LONGEST_HEADER:,}); fetch it again"
                )
            header = _header(file.read(length))
        self.metadata: dict[str, str] = {k: str(v) for k, v in (header.pop("__metadata__", None) or {}).items()}
        self._entries = {key: _entry(key, value) for key, value in header.items()}
        end = 0
        for start, stop in sorted(entry[2] for entry in self._entries.values()):
            if start != end:
                raise WeightsError("the file is damaged: its header leaves gaps between tensors; fetch it again")
            end = stop
        self._base = 8 + length
        beyond = size - self._base - end
        if beyond < 0:
            raise WeightsError(
                f"the file is truncated: {-beyond:,} of {self._base + end:,} bytes are missing; fetch it again"
            )
        self.notices: tuple[str, ...] = ()
        if beyond:
            self.notices = (f"{path}: {beyond:,} bytes too many after the last tensor, which were left out.",)
        self.shapes = {key: shape for key, (_, shape, _) in self._entries.items()}
        self._whole = map_file(path)

    def stored(self, key: str) -> str:
        name = self._entries[key][0]
        return dtype_name(SAFE_DTYPES[name]) if name in SAFE_DTYPES else name

    @damage(WeightsError, DAMAGED)
    def read(self, key: str) -> Tensor:
        name, shape, (start, end) = self._entries[key]
        if name not in SAFE_DTYPES:
            raise WeightsError(
                f"{quoted(key)} is stored as {quoted(name, 20)}, which this version of torch does not know"
            )
        if start == end:
            return torch.empty(shape, dtype=SAFE_DTYPES[name])
        return view(part(self._whole, self._base + start, self._base + end), SAFE_DTYPES[name], shape, strides(shape))


def _header(content: bytes) -> dict[str, Any]:
    try:
        header = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"the file is truncated or damaged (its header: {quoted(error)}); fetch it again") from None
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__") or {}, dict):
        raise WeightsError("the file is truncated or damaged (its header is no table of tensors); fetch it again")
    return header


def _entry(key: str, value: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """What a header says of a tensor: (type, shape, begin and end)."""
    try:
        name, shape, (start, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        whole = all(type(n) is int and 0 <= n < 2**63 for n in (*shape, start, end)) and end >= start
        fits = name not in SAFE_DTYPES or end - start == math.prod(shape) * SAFE_DTYPES[name].itemsize
    except (KeyError, TypeError, ValueError):
        whole = fits = False
    if not (whole and fits):
        raise WeightsError(f"the file is truncated or damaged (its header, at {quoted(key, 60)}); fetch it again")
    return name, shape, (start, end)


class TorchFile:
    """A torch file; nests of dictionaries, lists and objects are searched, and tensors named by the way to them."""

    kind = "torch"

    def __init__(self, path: Path) -> None:
        content = read_pickle(path)
        claimed = 0
        self.metadata: dict[str, str] = {}
        self.notices: tuple[str, ...] = ()
        self._tensors: dict[str, Stored] = {}
        modules: list[str] = []
        if isinstance(content, Stored) or not isinstance(content, dict | Stand):
            members = content if isinstance(content, list | tuple) and not isinstance(content, Stored) else ()
            if not any(isinstance(member, dict | Stand) for member in members):
                kind = "Tensor" if isinstance(content, Stored) else type(content).__name__
                raise WeightsError(f"the file holds a {kind}, not named tensors")
        for way, tensor in _tensors(content, (), modules, set()):
            short = ".".join(step for step in way if step != "state_dict") or ".".join(way)
            name = short if self._tensors.get(short, tensor) == tensor else ".".join(way)
            self._tensors.setdefault(name, tensor)
            claimed += tensor.claimed
        require_held(claimed, path.stat().st_size)
        self.shapes = {key: value.shape for key, value in self._tensors.items()}
        if modules and not any(len(shape) > 1 for shape in self.shapes.values()):
            raise WeightsError(
                f"the file holds a whole module ({quoted(modules[0])}), which only its own code can build; load it "
                f"there and save its tensors alone: torch.save(module.state_dict(), ...)"
            )
        if isinstance(content, Stand) and not self.shapes:
            raise WeightsError(f"the file holds a {quoted(content.named)}, not named tensors")

    def stored(self, key: str) -> str:
        return dtype_name(self._tensors[key].dtype or torch.uint8)

    @damage(WeightsError, DAMAGED)
    def read(self, key: str) -> Tensor:
        try:
            return self._tensors[key].read()
        except WeightsError as error:
            raise WeightsError(f"{quoted(key)}: {error}") from None


def _tensors(
    content: Any, way: tuple[str, ...], modules: list[str], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], Stored]]:
    """All tensors in a nest and the ways to them; pickled modules are noted, not searched."""
    if isinstance(content, Stored):
        yield way, content
        return
    if not isinstance(content, dict | list | tuple | Stand) or id(content) in seen or len(way) > DEEPEST:
        return
    seen.add(id(content))
    inside: list[tuple[Any, Any]] = []
    if isinstance(content, Array) and (tensor := content.stored()):
        yield way, tensor
    elif isinstance(content, dict):
        inside = list(dict.items(content))
    elif isinstance(content, list | tuple):
        inside = [(str(i), member) for i, member in enumerate(content)]
    elif isinstance(content, Stand):
        attributes = content.attributes
        if {"_parameters", "_modules"} <= attributes.keys():
            modules.append(content.named)
            return
        inside = [*content.pairs.items(), *attributes.items()]
        for argument in content.args:  # of dictionaries that are made from one
            inside += list(dict.items(argument)) if isinstance(argument, dict) else []
        inside += [(str(i), member) for i, member in enumerate(content.members)]
    for key, value in inside:
        # numbers are keys in optimisers' states, whose tensors are nobody's weights
        if isinstance(key, str) or isinstance(value, Stored):
            yield from _tensors(value, (*way, str(key)), modules, seen)


@damage(WeightsError, DAMAGED)
def open_container(path: Path) -> Container:
    """Opens a weight file of any kind, told by its first bytes.

    Raises:
        WeightsError: if the file is empty, damaged, or of another kind; the message says which, and what to do.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise WeightsError("the file is empty; fetch it again")
    # safetensors begin with the length of a JSON header, in eight bytes; the first may be those of a torch file
    if head[4:9] == b"\0\0\0\0{":
        return SafetensorsFile(path)
    if head[:4] in GGUF:
        from calotype.weights.gguf_file import GgufFile

        return GgufFile(path)
    if said := other_file(path, head):
        raise WeightsError(said)
    if is_openvino(head):
        return open_openvino(path)
    if head.startswith(H5_SIGNATURE):
        return KerasFile(path)
    if head[:2] == b"PK":
        inside = zip_of_weights(path)
        return NpzFile(path) if inside == "npz" else KerasFile(path) if inside == "keras" else TorchFile(path)
    if head[:1] == b"\x80":
        return TorchFile(path)
    if is_flax(path, head):
        return FlaxFile(path)
    if is_onnx(path, head):
        return open_onnx(path)
    raise WeightsError(
        "this is no weight file: neither safetensors, nor a torch file, nor GGUF, Keras h5, Flax msgpack, numpy's npz, "
        "ONNX or OpenVINO"
    )
