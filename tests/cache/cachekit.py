"""Helpers for tests of caches: pictures of several shapes, a small VAE, caches of them and what lies in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calotype.cache import Rules, units
from calotype.cache.make import Outcome, job_of, make
from calotype.vae import VAE


def picture(path: Path, width: int = 40, height: int = 32, seed: int = 0, mode: str = "RGB", **more: Any) -> Path:
    """A picture file with smooth colours and a little noise."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).integers(0, 16, (height, width, 3))
    levels = ((np.stack([x * 2 + seed * 40, y * 3, x + y], axis=-1) + noise) % 256).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).convert(mode).save(path, **more)
    return path


def spoilt(path: Path, like: Path, at: int = 60) -> Path:
    """A PNG whose header is well and whose data are not, which is seen when it is decoded."""
    content = bytearray(like.read_bytes())
    content[-at] ^= 255
    path.write_bytes(content)
    return path


def folder(path: Path, count: int = 7) -> Path:
    """A folder with so many pictures, each with a caption."""
    for i in range(count):
        picture(path / f"{i}.png", seed=i)
        (path / f"{i}.txt").write_text(f"picture {i}\n")
    return path


def fill(data: Path | str, out: Path, vae: VAE, *, rules: Rules | None = None, **more: Any) -> Outcome:
    """Makes a cache of 16 x 16 pixels, or by other rules; `value` and `store` are of the job."""
    of_job = {key: more.pop(key) for key in ("value", "store") if key in more}
    return make(data, out, vae, job_of(vae, rules or Rules(size=(16, 16)), **of_job), **more)


def contents(out: Path) -> dict[str, Any]:
    """All that must be the same however a cache was made: files' bytes, receipts without times; no stamps."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_file() and name != "scan.parquet":
            found[name] = path.read_bytes()
            if name.startswith("receipts/"):
                found[name] = json.loads(found[name])
                found[name].pop("made")
    return found


def shards(out: Path) -> dict[str, bytes]:
    """Shards by the names of their units."""
    return {path.stem: path.read_bytes() for path in out.glob("shards/*/*.safetensors")}


@contextmanager
def units_of(samples: int) -> Iterator[None]:
    """Units have so many samples at most."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "UNIT_SAMPLES", samples)
        yield
