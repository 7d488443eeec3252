"""Caches of latents: those of all pictures of a data set, made once by a VAE that the cache names, verified, resumable.

What lies where: docs/cache.md. `open_cache` reads one; `make.make` fills one, `local` runs its units here, and
`worker.Worker` makes one unit, for whoever hands them out.
"""

from calotype.cache.job import Job
from calotype.cache.reader import Cache, Shard, open_cache
from calotype.cache.rules import Rules

__all__ = ["Cache", "Job", "Rules", "Shard", "open_cache"]
