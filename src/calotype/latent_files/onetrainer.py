"""OneTrainer's ``cache/.../variation-0/I.pt`` (mgds, DiskCache): ``latent_image``, raw means of any VAE.

Nothing in it tells the model. ``aggregate.pt`` beside has sizes and paths, and no latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calotype.latent_files.found import CacheError, Found
from calotype.latent_files.torch_files import item
from calotype.weights.stored import Stored

TENSOR = "latent_image"


def find(tensors: Mapping[str, Stored]) -> Found:
    """The latents of such a file."""
    return Found(
        program="OneTrainer", items=[item(TENSOR, tensors[TENSOR])], space="raw", drawn="mode",
        left_out=tuple(name for name in tensors if name != TENSOR),
    )  # fmt: skip


def require_no_aggregate(content: Any) -> None:
    """Checks that this is not the list of sizes and paths beside its caches.

    Raises:
        CacheError: it is.
    """
    if (
        isinstance(content, list)
        and content
        and all(
            isinstance(one, dict) and TENSOR not in one and {"crop_resolution", "image_path"} & one.keys()
            for one in content
        )
    ):
        raise CacheError(
            "this is OneTrainer's list of sizes and paths (aggregate.pt), without latents; give one of the numbered "
            "files beside it."
        )
