"""Containers of tensors: safetensors, torch files and Keras h5, opened so that only what is asked for is read."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from calotype.errors import WeightsError
from calotype.files import text_path

H5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class Container(Protocol):
    """Named tensors in a file."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape, read without the tensors."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says about itself."""

    def read(self, key: str) -> Tensor:
        """One tensor, on the CPU, in the dtype it is stored in."""


class SafetensorsFile:
    """A safetensors file; tensors are read one by one."""

    def __init__(self, path: Path) -> None:
        with text_path(path) as named:
            file: Any = safe_open(named, framework="pt")  # safetensors has no types
        self._file = file
        self.metadata: dict[str, str] = file.metadata() or {}
        self.shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118

    def read(self, key: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(key)
        return tensor


class TorchFile:
    """A torch pickle, loaded with weights_only; tensors of the zip format are mapped, not read, until asked for."""

    def __init__(self, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters is raised
            # given a path, torch believes the suffix .safetensors, whatever is in the file
            mapped = zipfile.is_zipfile(path) and path.suffix != ".safetensors"
            with path.open("rb") as file:
                content: Any = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
        while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            content = content["state_dict"]
        if not isinstance(content, dict):
            raise WeightsError(f"the file holds a {type(content).__name__}, not named tensors")
        self.metadata: dict[str, str] = {}
        self._tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        self.shapes = {key: tuple(value.shape) for key, value in self._tensors.items()}

    def read(self, key: str) -> Tensor:
        return self._tensors[key]


def open_container(path: Path) -> Container:
    """Opens a safetensors or torch file, told apart by its first bytes.

    Raises:
        WeightsError: if the file is empty, damaged, of another kind, or a pickle that holds more than tensors.
    """
    with path.open("rb") as file:
        head = file.read(9)
    if not head:
        raise WeightsError("the file is empty; fetch it again")
    try:
        # safetensors begin with the length of a JSON header, in eight bytes; the first may be those of a torch file
        if head[4:] == b"\0\0\0\0{":
            return SafetensorsFile(path)
        if head[:2] == b"PK" or head[:1] == b"\x80":
            return TorchFile(path)
        raise WeightsError("this is no weight file: neither safetensors, nor a torch file, nor Keras h5")
    except pickle.UnpicklingError as error:
        if re.search(r"unsupported (global|class)|unrecognized function", str(error), re.IGNORECASE):
            raise WeightsError(
                "this pickle holds Python objects that could run code, so it was not loaded; "
                "get the weights as safetensors"
            ) from None
        raise WeightsError(
            "this pickle is damaged or holds more than tensors, so it was not loaded; get the weights as safetensors"
        ) from None
    except (
        SafetensorError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        struct.error,
    ) as error:
        raise WeightsError(f"the file is truncated or damaged ({_first_line(error)}); fetch it again") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:120].rstrip(".") or type(error).__name__
