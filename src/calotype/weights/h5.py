"""h5 files read in a process of their own, which is ended where HDF5 does not come to an end."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.spawn import get_executable
from pathlib import Path
from typing import IO, Any

import numpy as np

from calotype.errors import WeightsError

CHILD = "calotype.weights.h5_child"
START = 60.0  # seconds for Python and h5py to begin
SECONDS, RATE = 30.0, 5_000_000  # to read a file, and bytes of it a second; waiting for a disk, mostly
_LOOK = 0.05  # seconds between two looks whether the time is over, and in which Ctrl-C is seen
_PIECE = 2**20

BFLOAT16 = np.dtype("V2")  # numpy knows no such type; these are its bytes


@dataclass(frozen=True, kw_only=True)
class Content:
    """What an h5 file of Keras weights holds.

    Attributes:
        metadata: calotype's.
        arrays: all, in Keras's order; or, of a file of Keras 3, those of VAEs.
        keys: where the arrays lie in a file of Keras 3; None of one of Keras 1 or 2.
        others: where the other arrays of a file of Keras 3 lie -> their shapes.
        titles: where blocks of a VAE lie -> what they are called.
        config: the config.json of an archive, or "".
    """

    metadata: dict[str, str]
    arrays: list[np.ndarray]
    keys: list[str] | None = None
    others: dict[str, list[int]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    config: str = ""


def read_h5(path: Path) -> Content:
    """Reads an h5 file of Keras weights, or that in a Keras 3 archive (.keras).

    Raises:
        WeightsError: it is damaged, or HDF5 crashes over it or comes to no end.
    """
    size = path.stat().st_size
    seconds = SECONDS + size / RATE
    with _Child(path, seconds) as child:
        if child.line(START) is None:
            raise WeightsError(
                f"h5py could not be started to read it ({child.ending()}); check that it can be imported"
            )
        end = time.monotonic() + seconds
        said = child.line(end - time.monotonic())
        if said is None:
            raise WeightsError(f"HDF5 {child.ending()} while it read the file, which is damaged; fetch it again")
        told = json.loads(said)
        if "error" in told:
            raise WeightsError(f"this is no whole h5 file of Keras weights ({told['error']})")
        arrays = []
        for code, shape in told["arrays"]:
            array = np.empty(shape, dtype=f"<{code}")
            if not child.fill(array.reshape(-1).view(np.uint8).data, end):
                raise WeightsError(
                    f"the file is truncated or damaged (HDF5 {child.ending()} at an array of {shape}); fetch it again"
                )
            arrays.append(array)
    return Content(arrays=arrays, **{key: value for key, value in told.items() if key != "arrays"})


class _Child:
    """The process that reads, and what it says; it is ended with the block."""

    def __init__(self, path: Path, seconds: float) -> None:
        # it finds what this process finds, and nothing in the folder that happens to be the current one
        places = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
        words = [os.fsdecode(get_executable()), "-P", "-m", CHILD, str(path.absolute())]
        self._process = subprocess.Popen(
            # its own limit is for the case that this process is killed
            [*words, str(seconds + START), str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            **_apart(),
        )  # fmt: skip
        assert self._process.stdout
        self._late = False
        self._kept = b""
        self._pieces: queue.Queue[bytes] = queue.Queue(8)
        self._pump = threading.Thread(target=_pump, args=(self._process.stdout, self._pieces), daemon=True)
        self._pump.start()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        while self._pump.is_alive():  # it may wait for room
            with suppress(queue.Empty):
                self._pieces.get(timeout=_LOOK)
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()

    def line(self, seconds: float) -> bytes | None:
        """The next line that it says; None if it ends before, or the time is over."""
        end, said = time.monotonic() + seconds, bytearray(self._kept)
        while b"\n" not in said:
            piece = self._next(end)
            if not piece:
                return None
            said += piece
        first, _, self._kept = bytes(said).partition(b"\n")
        return first

    def fill(self, room: memoryview, end: float) -> bool:
        """Whether the next bytes that it says fill the room, until a time."""
        at = 0
        while at < len(room):
            piece = self._kept or self._next(end)
            if not piece:
                return False
            taken, self._kept = piece[: len(room) - at], piece[len(room) - at :]
            room[at : at + len(taken)] = taken
            at += len(taken)
        return True

    def ending(self) -> str:
        """How it ended."""
        if not self._late:
            code = self._process.wait()
            if code < 0 and -code != getattr(signal, "SIGPROF", 0):
                return f"crashed ({signal.Signals(-code).name})"
            if code >= 0:
                return f"ended with {code:#x}"
        return "came to no end"

    def _next(self, end: float) -> bytes:
        """More of what it says; nothing where it ends before, or the time is over."""
        while time.monotonic() < end:
            with suppress(queue.Empty):
                return self._pieces.get(timeout=_LOOK)
        self._late = True
        return b""


def _pump(source: IO[bytes], pieces: queue.Queue[bytes]) -> None:
    while True:
        piece = os.read(source.fileno(), _PIECE)
        pieces.put(piece)
        if not piece:
            return


def _apart() -> dict[str, Any]:
    """In a group of processes of its own: Ctrl-C is for this process, which ends the other."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"process_group": 0}
