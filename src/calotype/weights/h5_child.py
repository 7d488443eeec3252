"""Reads an h5 file of Keras weights in a process of its own: `python -m calotype.weights.h5_child FILE SECONDS PARENT`.

HDF5 is C code that can run for ever over a damaged file, or crash, and its datasets may claim any size. So this process
may be ended at any moment; it takes time and memory by the size of the file, and it writes to standard output only: a
line once it is there, then a line of JSON on what there is, and the arrays' bytes one after another. No torch.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from calotype.damage import quoted, require_held

READY = b"ready\n"
TYPES = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1")
_MOST = 2_000  # arrays in a file; a decoder has 140
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
        with h5py.File(path, "r") as file:
            _write(file, size, out)
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


def _write(file: Any, size: int, out: IO[bytes]) -> None:
    found = list(_datasets(file))
    arrays = [(_code(dataset), list(dataset.shape)) for dataset in found]
    require_held(sum(int(dataset.size) * int(dataset.dtype.itemsize) for dataset in found), size)
    metadata = {key: _text(file.attrs[key]) for key in file.attrs if key.startswith("calotype")}
    _tell(out, {"metadata": metadata, "arrays": arrays})
    for dataset, (code, _) in zip(found, arrays, strict=True):
        # whatever is wrong now can't be told any more: the bytes are missing at the end
        out.write(np.ascontiguousarray(dataset[()], dtype=f"<{code}").data.cast("B") if dataset.size else b"")
    out.flush()


def _datasets(file: Any) -> Iterator[Any]:
    """All arrays in Keras's order."""
    root = file.get("model_weights", file)
    if "layer_names" not in root.attrs:
        raise KeyError("no layer_names; those of Keras 3 and keras-hub are not read")
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
