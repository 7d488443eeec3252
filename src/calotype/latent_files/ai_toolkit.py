"""ai-toolkit's ``_latent_cache/NAME_HASH.safetensors`` (toolkit/dataloader_mixins.py): ``latent``, of one picture.

It is always scaled. `latent_space_version` in the metadata tells the model, and crops and flips stand there too. Models
without a VAE have their pixels there, as uint8.
"""

from __future__ import annotations

from functools import partial

from calotype.latent_files.found import CacheError, Found, Item, told
from calotype.latent_files.models import AI_TOOLKIT
from calotype.weights.container import SafetensorsFile

TENSOR = "latent"
_SAYS = "latent_space_version"


def is_cache(container: SafetensorsFile) -> bool:
    """Whether a file is such a cache."""
    return TENSOR in container.shapes and bool({_SAYS, "latent_version"} & container.metadata.keys())


def find(container: SafetensorsFile) -> Found:
    """The latents of such a file."""
    model = container.metadata.get(_SAYS, "")
    format_, _, drawn = told(AI_TOOLKIT.get(model), "ai-toolkit", model)
    if container.stored(TENSOR) == "uint8":
        raise CacheError("these were cached by ai-toolkit, and are pixels (uint8) of a model without a VAE.")
    item = Item(TENSOR, container.shapes[TENSOR], container.stored(TENSOR), partial(container.read, TENSOR))
    return Found(
        program="ai-toolkit", model=model, items=[item], format=format_, space="model", drawn=drawn, batches=False,
        left_out=tuple(name for name in container.shapes if name != TENSOR),
    )  # fmt: skip
