"""Torch files, read without importing or calling anything that they name.

A pickle is a program that may name any function of any module and have it called. Here it gets torch's own few ways to
rebuild tensors, which note where a tensor's numbers lie and do no more, and in place of every other name an inert
stand-in that swallows whatever it is given. So the tensors of a training checkpoint are read whatever else is in it:
callbacks, dates, arguments, classes of packages that are not installed.

Three forms are read: the zip archives of torch 1.6 and later (mapped into memory), the row of pickles before it, and
plain pickles of tensors, as `pickle.dump` makes them. Sources: torch.serialization, torch._utils.
"""

from __future__ import annotations

import collections
import math
import mmap
import pickle
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from calotype.damage import quoted, require_held
from calotype.errors import WeightsError
from calotype.weights.archives import members
from calotype.weights.machine import Machine, as_key
from calotype.weights.mapped import ODD, map_file, strides
from calotype.weights.stored import Source, Storage, Stored

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of files before torch 1.6
MOST_NAMES = 10_000  # of classes and functions that a pickle may name

DTYPES = {
    name: value for name in dir(torch) if isinstance(value := getattr(torch, name), torch.dtype) and value not in ODD
}

STORAGES: Mapping[str, torch.dtype | None] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    # bytes; the tensors say their types
    "UntypedStorage": None,
    "_UntypedStorage": None,
    "TypedStorage": None,
    "QInt8Storage": None,
    "QUInt8Storage": None,
    "QInt32Storage": None,
}


class Stand:
    """In place of an object, a class or a function that is not torch's: takes what the pickle gives it, does nothing.

    Attributes:
        args: what it was made from.
        state: what it was to have as attributes.
        pairs, members: what was put into it, were it a dictionary, a list or a set.
    """

    named: ClassVar[str] = ""
    __slots__ = ("args", "members", "pairs", "state")
    args: tuple[Any, ...]
    members: list[Any]
    pairs: dict[Any, Any]
    state: Any

    def __new__(cls, *args: Any, **named: Any) -> Any:
        new = object.__new__(cls)
        new.args = (*args, *named.values())
        new.state = None
        new.pairs = {}
        new.members = []
        return new

    def __init__(self, *args: Any, **named: Any) -> None:
        pass

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs[key] = value

    def append(self, value: Any) -> None:
        """Of list and deque."""
        self.members.append(value)

    add = append

    def extend(self, values: Any) -> None:
        """Of list."""
        self.members.extend(values)

    @property
    def attributes(self) -> dict[str, Any]:
        """What would be its __dict__ and __slots__."""
        states = self.state if isinstance(self.state, tuple) else (self.state,)
        found: dict[str, Any] = {}
        for state in states:
            if isinstance(state, dict):
                found.update((key, value) for key, value in dict.items(state) if isinstance(key, str))
        return found


class _Known:
    """One of torch's functions, as it is called here."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


class _Ordered(collections.OrderedDict[Any, Any]):
    """collections.OrderedDict; what it is made from are pairs."""

    def __init__(self, pairs: Any = ()) -> None:
        super().__init__()
        for name, value in dict.items(pairs) if isinstance(pairs, dict) else pairs:
            self[as_key(name)] = value


class _Parameter(Stand):
    """torch.nn.Parameter, made from its data."""

    def __new__(cls, data: Any = None, *rest: Any) -> Any:
        return data if isinstance(data, Stored) else super().__new__(cls, data, *rest)


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or not all(type(n) is int for n in values):
        raise pickle.UnpicklingError("a tensor's shape is none")
    return tuple(values)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None, metadata: Any = None) -> Any:
    (first,) = _whole_numbers((offset,))
    size, stride = _whole_numbers(size), _whole_numbers(stride)
    dtype = dtype or (storage.dtype if isinstance(storage, Storage) else None)
    if not isinstance(storage, Storage) or len(size) != len(stride) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor has no storage, or no type")
    turned = [key for key in ("conj", "neg") if isinstance(metadata, dict) and metadata.get(key)]
    kind = "" if len(turned) < 2 else "a tensor that is both conjugate and negative"
    return Stored(size, dtype, storage, first, stride, kind, "".join(turned[:1]))


def _v2(storage: Any, offset: Any, size: Any, stride: Any, grad: Any = 0, hooks: Any = 0, metadata: Any = None) -> Any:
    return _tensor(storage, offset, size, stride, None, metadata)


def _v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Any:
    return _tensor(storage, offset, size, stride, dtype, metadata)


def _quantised(storage: Any, offset: Any, size: Any, *rest: Any) -> Stored:
    return Stored(_whole_numbers(size), None, None, kind="a quantised tensor; save it after .dequantize()")


def _sparse(layout: Any, data: Any, *rest: Any) -> Stored:
    shapes = [part for part in data if isinstance(part, tuple) and not isinstance(part, Stored)]
    return Stored(_whole_numbers(shapes[0] if shapes else ()), None, None, kind="sparse; save it after .to_dense()")


def _meta(dtype: Any, size: Any, *rest: Any) -> Stored:
    return Stored(_whole_numbers(size), None, None, kind="a tensor of the meta device, whose numbers were never saved")


def _wrapped(cls: Any, dtype: Any, size: Any, *rest: Any) -> Stored:
    name = getattr(cls, "named", "") or "tensor"
    return Stored(
        _whole_numbers(size), None, None, kind=f"a {name}, no plain tensor; save it where its package is, as one"
    )


def _typed(make: Any, cls: Any, args: Any, state: Any = None) -> Any:
    """A tensor of a subclass, or with attributes: the tensor."""
    return make(*args) if isinstance(make, _Known) and isinstance(args, tuple) else Stand(make, cls, args, state)


def _made_of(data: Any, *rest: Any) -> Any:
    """What is made of another tensor: a parameter, or one of another device, kept as a tensor or array of the CPU."""
    return data if isinstance(data, Stored | Array) else Stand(data, *rest)


def _reconstructor(cls: Any, base: Any = None, state: Any = None) -> Any:
    """How objects are made before protocol 2."""
    new = cls() if isinstance(cls, type) and issubclass(cls, Stand) else Stand(cls, base, state)
    if isinstance(new, Stand) and isinstance(state, dict):
        new.pairs.update(state)
    return new


def _encoded(text: Any, encoding: Any = "") -> Any:
    """Bytes, before protocol 3."""
    return text.encode("latin-1") if isinstance(text, str) and encoding in ("latin1", "latin-1") else Stand(text)


class Array(Stand):
    """A numpy array: its state is (version, shape, type, whether columns come first, bytes)."""

    def stored(self) -> Stored | None:
        """It as a tensor, if it is one of plain numbers."""
        state = self.state
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], Stand):
            return None
        _, shape, type_, columns, data = state
        code = type_.args[0] if type_.args else None
        order = type_.state[1] if isinstance(type_.state, tuple) and len(type_.state) > 1 else "|"
        dtype = NUMPY.get(code) if isinstance(code, str) else None
        if isinstance(data, str):  # written by Python 2
            data = data.encode("latin-1")
        if dtype is None or order not in ("<", "|", "=") or not isinstance(data, bytes):
            return None
        shape = _whole_numbers(shape)
        if len(data) != math.prod(shape) * dtype.itemsize:
            return None
        source = Source()
        source.packed["array"] = lambda: data
        stride = strides(shape[::-1])[::-1] if columns else strides(shape)
        return Stored(shape, dtype, Storage(source, "array", None, 0, len(data)), 0, stride)


NUMPY = {
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
    "i8": torch.int64,
    "i4": torch.int32,
    "i2": torch.int16,
    "i1": torch.int8,
    "u1": torch.uint8,
    "b1": torch.bool,
}


def _new_array(cls: Any = None, *rest: Any) -> Array:
    array: Array = Array(cls, *rest)
    return array


TORCH: Mapping[str, Callable[..., Any]] = {
    "_rebuild_tensor": _v2,
    "_rebuild_tensor_v2": _v2,
    "_rebuild_tensor_v3": _v3,
    "_rebuild_parameter": _made_of,
    "_rebuild_parameter_with_state": _made_of,
    "_rebuild_device_tensor_from_cpu_tensor": _made_of,
    "_rebuild_device_tensor_from_numpy": _made_of,
    "_rebuild_xla_tensor": _made_of,
    "_rebuild_qtensor": _quantised,
    "_rebuild_sparse_tensor": _sparse,
    "_rebuild_sparse_csr_tensor": _sparse,
    "_rebuild_meta_tensor_no_storage": _meta,
    "_rebuild_wrapper_subclass": _wrapped,
}

KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Ordered,
    ("torch", "Size"): _Known(_whole_numbers),
    ("torch.nn.parameter", "Parameter"): _Parameter,
    ("torch.nn.parameter", "Buffer"): _Parameter,
    **{("torch._utils", name): _Known(call) for name, call in TORCH.items()},
    ("torch._tensor", "_rebuild_from_type_v2"): _Known(_typed),
    ("torch._tensor", "_rebuild_from_type"): _Known(_typed),
    ("numpy.core.multiarray", "_reconstruct"): _Known(_new_array),
    ("numpy._core.multiarray", "_reconstruct"): _Known(_new_array),
    ("copyreg", "_reconstructor"): _Known(_reconstructor),
    ("copy_reg", "_reconstructor"): _Known(_reconstructor),
    ("_codecs", "encode"): _Known(_encoded),
}


class StorageType(NamedTuple):
    """A class of storages."""

    dtype: torch.dtype | None


class _Unpickler(Machine):
    """Reads a pickle with nothing but the names above."""

    def __init__(self, data: bytes | mmap.mmap, source: Source, at: int = 0, *, within: bool = False) -> None:
        super().__init__(data, at)
        self._source = source
        self._within = within
        self._stands: dict[tuple[str, str], type[Stand]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (known := KNOWN.get((module, name))) is not None:
            return known
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if name in STORAGES and module in ("torch", "torch.cuda", "torch.storage"):
            return StorageType(STORAGES[name])
        if (module, name) == ("torch.storage", "_load_from_bytes") and not self._within:
            return _Known(_storage_in_bytes)
        if (module, name) not in self._stands:
            if len(self._stands) == MOST_NAMES:
                raise pickle.UnpicklingError(f"it names more than {MOST_NAMES:,} classes and functions")
            self._stands[module, name] = type("Stand", (Stand,), {"named": f"{module}.{name}", "__slots__": ()})
        return self._stands[module, name]

    def reduce(self, make: Any, args: tuple[Any, ...]) -> Any:
        if not isinstance(make, _Known | Stand) and not (isinstance(make, type) and issubclass(make, Stand | _Ordered)):
            raise pickle.UnpicklingError("it calls what is no function")
        return make(*args)

    def new(self, cls: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if not isinstance(cls, type) or not issubclass(cls, Stand | _Ordered):
            raise pickle.UnpicklingError("it makes an object of what is no class")
        return cls.__new__(cls, *args, **named)  # type: ignore[arg-type, type-var]

    def build(self, made: Any, state: Any) -> None:
        if isinstance(made, Stand):
            made.state = state
        elif isinstance(made, _Known | type):
            raise pickle.UnpicklingError("it changes a function or a class")
        # tensors and dictionaries have attributes that are of no account

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or not pid:
            raise pickle.UnpicklingError("it points to something that is not in it")
        if pid[0] == "module" and len(pid) > 1:  # a class, with its source beside it
            return pid[1]
        if pid[0] != "storage" or len(pid) not in (5, 6) or not isinstance(pid[1], StorageType):
            raise pickle.UnpicklingError("it points to something that is not in it")
        _, kind, key, _, count, *view_ = pid
        if type(key) not in (str, int):
            raise pickle.UnpicklingError("a storage has no name")
        key = str(key)
        (count,) = _whole_numbers((count,))
        dtype = kind.dtype
        self._source.widths[key] = dtype.itemsize if dtype else 1
        if view_ and isinstance(view_[0], tuple):  # of before torch 0.4: part of another storage
            first, count = _whole_numbers(view_[0][1:3])
            return Storage(self._source, key, dtype, first, count)
        return Storage(self._source, key, dtype, 0, count)


def _storage_in_bytes(content: Any) -> Any:
    """A storage in a plain pickle: a torch file of its own, in the old format."""
    if not isinstance(content, bytes):
        raise pickle.UnpicklingError("a storage is no bytes")
    return _row_of_pickles(content, None)


def read_pickle(path: Path) -> Any:
    """What a torch file holds: dictionaries, lists and values, with `Stored` for tensors and `Stand` for the rest.

    Raises:
        WeightsError: if it is truncated, damaged, big-endian, or an archive of another kind.
        Exception: whatever damage makes of it.
    """
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            return _archive(path)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _row_of_pickles(data, path)


def _archive(path: Path) -> Any:
    entries = members(path)
    main = min((name for name in entries if name.rpartition("/")[2] == "data.pkl"), key=len, default=None)
    if main is None:
        raise WeightsError("the file is truncated or damaged (there is no data.pkl in it); fetch it again")
    root = main.removesuffix("data.pkl")
    wanted = {name: entry for name, entry in entries.items() if name.startswith(f"{root}data/")}
    require_held(entries[main].size + sum(entry.size for entry in wanted.values()), path.stat().st_size)
    source = Source()
    with path.open("rb") as file:
        if f"{root}byteorder" in entries:
            _little(entries[f"{root}byteorder"].read(file).strip() == b"little")
        content = _Unpickler(entries[main].read(file), source).load()

    def unpack(key: str) -> bytes:
        """Of an archive that was packed again."""
        with path.open("rb") as file:
            return wanted[f"{root}data/{key}"].read(file)

    for name, entry in wanted.items():
        key = name.removeprefix(f"{root}data/")
        if entry.deflated:
            source.packed[key] = partial(unpack, key)
        else:
            source.places[key] = entry.start, entry.size
            source.checks[key] = entry.require
    source.whole = map_file(path)
    return content


def _row_of_pickles(data: bytes | mmap.mmap, path: Path | None) -> Any:
    """The format of before torch 1.6, or a plain pickle.

    Args:
        path: of the file; None: it stands in another one.
    """
    source, within, at = Source(), path is None, 0

    def load(within: bool = True) -> Any:
        nonlocal at
        machine = _Unpickler(data, source, at, within=within)
        made = machine.load()
        at = machine.at
        return made

    first = load(within)
    if type(first) is not int or first != MAGIC:
        return first
    version, system = load(), load()
    if version != 1001:
        raise WeightsError(
            f"it is in version {quoted(version, 20)} of torch's format, which is not known; save it anew"
        )
    _little(not isinstance(system, dict) or bool(system.get("little_endian", True)))
    content = load(within)
    keys = load()
    for key in map(str, keys):
        (count,) = struct.unpack("<q", data[at : at + 8])
        start, size = at + 8, count * source.widths.get(key, 1)
        if size < 0 or start + size > len(data):
            raise WeightsError(f"the file is truncated: {start + size - len(data):,} bytes or more are missing at its "
                               f"end; fetch it again")  # fmt: skip
        source.places[key] = start, size
        at = start + size
    if path is None:
        source.whole = torch.frombuffer(bytearray(data), dtype=torch.uint8).untyped_storage()
    else:
        source.whole = map_file(path)
    return content


def _little(little: bool) -> None:
    if not little:
        raise WeightsError(
            "it was saved on a big-endian machine; load it there and save it as safetensors, which knows one order only"
        )
