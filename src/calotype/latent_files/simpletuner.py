"""SimpleTuner's ``SHA256.pt`` (helpers/caching/vae.py): a tensor alone, or ``latents`` in a table; gzip may pack it.

They are scaled as its models want them: samples, but for Wan, Anima and FLUX.2 the mode. Raw are Sana's, in 32
channels, and Cosmos Predict 2's, which nothing tells from Wan's and Anima's: one frame of 16 channels. Nothing tells
the model. (bghira/SimpleTuner bc8e6ab, run.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from calotype.latent_files.found import Found
from calotype.latent_files.models import Space
from calotype.latent_files.torch_files import item
from calotype.weights.stored import Stored


def is_cache(path: Path, tensors: Mapping[str, Stored]) -> bool:
    """Whether a file is such a cache: its name is the sha256 of the picture's, unless that was turned off."""
    return re.fullmatch(r"[0-9a-f]{64}\.pt", path.name) is not None and bool({"", "latents"} & tensors.keys())


def find(tensors: Mapping[str, Stored]) -> Found:
    """The latents of such a file."""
    name = "latents" if "latents" in tensors else next(iter(tensors))
    shape = tensors[name].shape
    space: Space | None = "raw" if shape[:1] == (32,) else None if shape[:2] == (16, 1) else "model"
    return Found(
        program="SimpleTuner", items=[item(name, tensors[name])], space=space, batches=False,
        left_out=tuple(other for other in tensors if other != name),
    )  # fmt: skip
