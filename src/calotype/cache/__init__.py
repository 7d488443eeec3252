"""Caches of latents: those of all pictures of a data set, made once by a VAE that the cache names, verified, resumable.

What lies where: docs/cache.md. `open_cache` reads one, and `LatentDataset` and `BucketBatchSampler` train from it;
`make.make` fills one, `local` runs its units here, and `worker.Worker` makes one unit, for whoever hands them out.
"""

import importlib
from typing import TYPE_CHECKING, Any

from calotype.cache.job import Job
from calotype.cache.reader import Cache, Shard, open_cache
from calotype.cache.rules import Rules

if TYPE_CHECKING:
    from calotype.cache.dataset import LatentDataset
    from calotype.cache.sampler import BucketBatchSampler

__all__ = ["BucketBatchSampler", "Cache", "Job", "LatentDataset", "Rules", "Shard", "open_cache"]

_WITH_TORCH = {"BucketBatchSampler": "calotype.cache.sampler", "LatentDataset": "calotype.cache.dataset"}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'calotype.cache' has no attribute {name!r}")
    return getattr(importlib.import_module(_WITH_TORCH[name]), name)
