"""What is written held against what is read, so that no input is overwritten."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from calotype.errors import UsageError

_WEIGHTS = (
    *(".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".h5", ".keras", ".msgpack", ".npz", ".gguf"),
    ".json",
)


def require_apart(outputs: Iterable[Path], inputs: Iterable[Path], option: str = "--out") -> None:
    """Checks that no output is a file that is read: whatever it is called, through links of both kinds, and where
    upper and lower case are the same.

    Args:
        outputs: files to be written; those that are not there yet replace nothing.
        inputs: files that are read; gone through only where an output is there.
        option: what the user changes.

    Raises:
        UsageError: if one is.
    """
    there = {key: output for output in outputs if (key := _key(output)) is not None}
    if not there:
        return
    for file in inputs:
        key = _key(file)
        if key in there:
            overwritten = there[key]
            said = f"{file} would be overwritten"
            if os.path.normpath(file) != os.path.normpath(overwritten):
                said = f"{overwritten} is {file}, which is read and would be overwritten"
            raise UsageError(f"{said}; give another {option}.")


def weights_files(*named: str | os.PathLike[str] | None) -> list[Path]:
    """Files that may be read where weights are named so: a file and what describes it, or those of a folder.

    Of a preset, whose name is no file's, there are none.
    """
    return [file for one in named if one is not None for file in _weights_files(Path(one))]


def _weights_files(path: Path) -> list[Path]:
    if path.is_dir():
        # a pipeline's parts lie in folders of their own
        return [file for pattern in ("*", "*/*") for file in path.glob(pattern) if file.suffix.lower() in _WEIGHTS]
    return described_by([path])


def described_by(files: Iterable[Path]) -> list[Path]:
    """Weight files, and those beside them that say what they hold: config.json, and the list of a sharded one."""
    found = list(dict.fromkeys(files))
    folders = dict.fromkeys(file.parent for file in found)
    return [*found, *(file for folder in folders for file in (folder / "config.json", *folder.glob("*.index.json")))]


def _key(path: Path) -> tuple[int, int] | None:
    """What tells an ordinary file from all others."""
    with suppress(OSError, ValueError):
        found = path.stat()
        if stat.S_ISREG(found.st_mode):
            return found.st_dev, found.st_ino
    return None
