"""Pictures of every kind."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from fuzzkit import Accepted, Case
from PIL import Image

from calotype.pixels import read_picture_rows


def read(path: Path) -> Accepted:
    rows = read_picture_rows(path, alpha="keep")
    height, width = rows.size
    digest = hashlib.sha256(np.ascontiguousarray(rows.levels))
    if rows.opacity is not None:
        digest.update(np.ascontiguousarray(rows.opacity))
    return Accepted(f"{height} x {width} {digest.hexdigest()}", 20 * height * width)


def cases(folder: Path) -> list[Case]:
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (24, 32, 4), dtype=np.uint8)
    made = []
    for name, mode in (("rgb.png", "RGB"), ("rgba.png", "RGBA"), ("grey.jpg", "L"), ("rgb.webp", "RGB")):
        file = io.BytesIO()
        Image.fromarray(levels).convert(mode).save(file, name.rpartition(".")[2].replace("jpg", "jpeg"))
        made.append(Case(name, file.getvalue(), read, summed=name.endswith(".png")))
    return made
