#!/usr/bin/env bash
# safetensors 0.8.0: a file with more than one metadata entry has other bytes each time it is written.
#
# What one expects: the same tensors and the same metadata, in the same order, give the same file. What happens: the
# entries of `__metadata__` are written in an order of their own, which changes from call to call, within one process
# too, and PYTHONHASHSEED has no say in it. Tensors are in order, so a file with one entry, or none, is repeatable.
# Who meets it: whoever tells files by their hash: caches keyed by sha256, Git LFS, deduplication, "is this the same LoRA?"
# What helps: hash the tensors instead of the file, or put everything into one entry as JSON.
#
# Seen: "one entry: 1 different files of 20; six entries: 19 different files of 20" (19 varies).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cd "$folder"
PYTHONHASHSEED=0 venv/bin/python - <<'PYTHON'
import hashlib
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def different(entries: int, times: int = 20) -> int:
    """How many different files the same call makes."""
    hashes = set()
    for _ in range(times):
        save_file({"weight": np.arange(4.0)}, "x.safetensors", {f"key{i}": "value" for i in range(entries)})
        hashes.add(hashlib.sha256(Path("x.safetensors").read_bytes()).hexdigest())
    return len(hashes)


one, six = different(1), different(6)
print(f"one entry: {one} different files of 20; six entries: {six} different files of 20")
sys.exit(not (one == 1 and six > 1))
PYTHON
