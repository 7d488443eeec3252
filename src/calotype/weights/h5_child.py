"""Reads an h5 file of Keras weights in a process of its own: `python -m calotype.weights.h5_child FILE SECONDS PARENT`.

HDF5 is C code that can run for ever over a damaged file, or crash, and its datasets may claim any size. So this process
may be ended at any moment; it takes time and memory by the size of the file, and it writes to standard output only: a
line once it is there, then a line of JSON on what there is, and the arrays' bytes one after another. Of a file of Keras
3, which may be a whole diffusion model, it reads the arrays of VAEs alone, by keras-hub's names. No torch.
"""

from __future__ import annotations

import ctypes
import faulthandler
import io
import json
import os
import re
import signal
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from calotype.damage import quoted, require_held

READY = b"ready\n"
BFLOAT16 = "V2"  # bytes, where an attribute says of what
TYPES = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1")
_MOST = 2_000  # arrays in a file; a decoder has 140
_MOST_THERE = 100_000  # groups and arrays in a file of Keras 3; one of Stable Diffusion 3 has some ten thousand
_DEEPEST = 32  # groups within groups
_LONGEST = 2**20  # bytes of a config.json
_VAE = re.compile(r"(.*/)?vae_(encoder|decoder)/.*")  # keras-hub's layers
_SECONDS, _RATE = 1.0, 20_000_000  # of the processor's time; and one more for so many bytes
_MEMORY = 2**30  # bytes beside the file's, which are there up to four times
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl.h


def main(path: str, seconds: str, parent: str) -> None:
    """Writes what the file holds, or why it can't be read."""
    size = Path(path).stat().st_size
    _bound(size, float(seconds), int(parent))
    out = sys.stdout.buffer
    out.write(READY)
    out.flush()
    try:
        with h5py.File(_opened(path), "r") as file:
            config = _config(path)
            if "layer_names" in file.get("model_weights", file).attrs:
                _write(file, size, out)
            else:
                _write_named(file, size, config, out)
    except Exception as error:
        said = error.args[0] if isinstance(error, KeyError) and error.args else error  # Python quotes such keys
        _tell(out, {"error": quoted(said) or type(error).__name__})


def _bound(size: int, seconds: float, parent: int) -> None:
    """Limits of this process, which hold whatever HDF5 does."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=Path(os.devnull).open("w"))  # noqa: SIM115
    if sys.platform == "win32":
        return
    import resource

    # the clock of the processor does not run while a slow disk is waited for, and the signal needs no Python
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, _SECONDS + size / _RATE)
    for which, most in ((resource.RLIMIT_AS, _MEMORY + 4 * size), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(which)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, hard))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:  # it died before
            os._exit(1)


def _opened(path: str) -> Any:
    """The h5 file; in an archive (.keras), which is a zip, the part that is one."""
    if not _is_zip(path):
        return path
    with zipfile.ZipFile(path) as archive:
        entry = next((entry for entry in archive.infolist() if entry.filename.endswith(".weights.h5")), None)
    if entry is None or entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError("its weights are packed; unpack the archive")
    return _Part(path, entry.header_offset, entry.file_size)


def _is_zip(path: str) -> bool:
    with Path(path).open("rb") as file:
        return file.read(4) == b"PK\3\4"


class _Part(io.RawIOBase):
    """A member of a zip that is not packed, as a file."""

    def __init__(self, path: str, header: int, size: int) -> None:
        self._file = Path(path).open("rb")  # noqa: SIM115
        self._file.seek(header)
        head = self._file.read(30)
        self._start = header + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer).cast("B")[: max(0, self._size - self._at)]
        self._file.seek(self._start + self._at)
        count = self._file.readinto(room)
        self._at += count
        return count


def _config(path: str) -> str:
    """What the config.json in an archive says, as it stands there."""
    if not _is_zip(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        if "config.json" not in archive.namelist():
            return ""
        with archive.open("config.json") as file:
            return file.read(_LONGEST).decode("utf-8", "replace")


def _write(file: Any, size: int, out: IO[bytes]) -> None:
    """Writes the arrays of a file of Keras 1 or 2, all in Keras's order."""
    found = list(_datasets(file))
    arrays = [(_code(dataset), list(dataset.shape)) for dataset in found]
    require_held(sum(int(dataset.size) * int(dataset.dtype.itemsize) for dataset in found), size)
    _tell(out, {"metadata": _metadata(file), "arrays": arrays})
    _write_numbers(found, [code for code, _ in arrays], out)


def _write_named(file: Any, size: int, config: str, out: IO[bytes]) -> None:
    """Writes the arrays of VAEs in a file of Keras 3, with the way to each, and of the others what there is."""
    own: dict[str, Any] = {}
    others: dict[str, list[int]] = {}
    titles: dict[str, str] = {}
    for way, one in _all_in(file):
        vae = _VAE.fullmatch(way)
        if isinstance(one, h5py.Group):
            if vae and "name" in one.attrs:
                titles[way] = _text(one.attrs["name"])[:100]
        elif vae:
            own[way] = _here(file, one, h5py.Dataset)
        elif isinstance(one, h5py.Dataset):
            others[way] = [int(n) for n in one.shape or ()]
    if len(own) > _MOST:
        raise ValueError(f"more than {_MOST:,} arrays of a VAE")
    arrays = [(_code(dataset), list(dataset.shape)) for dataset in own.values()]
    require_held(sum(int(dataset.size) * int(dataset.dtype.itemsize) for dataset in own.values()), size)
    told = {"keys": list(own), "others": others, "titles": titles, "config": config}
    _tell(out, {"metadata": _metadata(file), "arrays": arrays, **told})
    _write_numbers(own.values(), [code for code, _ in arrays], out)


def _write_numbers(datasets: Iterable[Any], codes: Iterable[str], out: IO[bytes]) -> None:
    for dataset, code in zip(datasets, codes, strict=True):
        if dataset.size:
            # whatever is wrong now can't be told any more: the bytes are missing at the end
            numbers = dataset[()].view("u2") if code == BFLOAT16 else dataset[()]
            kind = "<u2" if code == BFLOAT16 else f"<{code}"
            out.write(np.ascontiguousarray(numbers, dtype=kind).data.cast("B"))
    out.flush()


def _all_in(file: Any) -> Iterator[tuple[str, Any]]:
    """All groups and arrays of a file, and the ways to them."""
    left = [("", file, 0)]
    seen = {h5py.h5o.get_info(file.id).addr}
    count = 0
    while left:
        way, group, depth = left.pop()
        for name in group:
            count += 1
            if count > _MOST_THERE or depth > _DEEPEST:
                raise ValueError(f"more than {_MOST_THERE:,} groups and arrays, or {_DEEPEST} levels of them")
            inside = f"{way}/{name}" if way else str(name)
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{inside} is a link")
            one = group[name]
            yield inside, one
            if isinstance(one, h5py.Group):
                place = h5py.h5o.get_info(one.id).addr
                if place in seen:
                    raise ValueError(f"{inside} is a group that is there twice")
                seen.add(place)
                left.append((inside, one, depth + 1))


def _metadata(file: Any) -> dict[str, str]:
    return {key: _text(file.attrs[key]) for key in file.attrs if key.startswith("calotype")}


def _datasets(file: Any) -> Iterator[Any]:
    """All arrays in Keras's order."""
    root = file.get("model_weights", file)
    count = 0
    for layer in _names(root.attrs["layer_names"]):
        group = _here(file, root[layer], h5py.Group)
        for name in _names(group.attrs["weight_names"]):
            count += 1
            if count > _MOST:
                raise ValueError(f"more than {_MOST:,} arrays")
            yield _here(file, group[name], h5py.Dataset)


def _here(file: Any, one: Any, kind: Any) -> Any:
    """What is named, where it is what it should be, and lies in this file and in no other."""
    if not isinstance(one, kind):
        raise TypeError(f"{one.name} is no {kind.__name__.lower()}")
    made = one.id.get_create_plist()
    outside = kind is h5py.Dataset and (made.get_external_count() or made.get_layout() == h5py.h5d.VIRTUAL)
    if outside or h5py.h5o.get_info(one.id).fileno != h5py.h5o.get_info(file.id).fileno:
        raise ValueError(f"{one.name} lies in another file")
    return one


def _code(dataset: Any) -> str:
    code = str(dataset.dtype.str[1:])
    if code == BFLOAT16 and dataset.shape is not None and dataset.attrs.get("dtype") == "bfloat16":
        return code
    if code not in TYPES or dataset.shape is None:
        raise TypeError(f"{dataset.name} is of type {dataset.dtype}")
    return code


def _names(value: Any) -> list[str]:
    if np.ndim(value) != 1:
        raise TypeError("its lists of names are none")
    return [_text(name) for name in value]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise TypeError("an attribute of it is no text")
    return str(value)


def _tell(out: IO[bytes], what: dict[str, Any]) -> None:
    out.write(json.dumps(what).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
