"""A cache of latents as what a drawing model is trained on, instead of a folder of pictures."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from calotype.cache.dataset import LatentDataset
from calotype.cache.store import JOB, MANIFEST
from calotype.draw.captions import Caption, texts_sha256
from calotype.errors import UsageError
from calotype.latents import alike, latent_format_from_dict
from calotype.vae import VAE


def is_cache(data: Path) -> bool:
    """Whether a folder is a cache of latents."""
    return (data / JOB).is_file()


class CachedPictures:
    """Captions and model latents of a cache's samples. None is a variant of another, and none is held out.

    Args:
        data: the cache's folder.
        vae: in whose latents the model draws.
        size: side of its pictures in pixels.
        seed: of samples from the posterior.

    Attributes:
        files: that say what the cache is.
        captions: of all samples, in its order.

    Raises:
        UsageError: there is no finished cache, it is of another VAE or size, or a sample has no caption.
        StorageError: it is damaged.
    """

    def __init__(self, data: Path, vae: VAE, size: int, seed: int) -> None:
        self.files = (data / JOB, data / MANIFEST)
        self._dataset = LatentDataset(data, flip=False, seed=seed)
        made = self._dataset.job.vae
        if made.sha256 != vae.sha256:
            raise UsageError(
                f"{data}: this cache was made by {made.name} (sha256 {made.sha256[:12]}...), and the recipe's VAE is "
                f"{vae.name} ({vae.sha256[:12]}...); give the recipe that VAE, as in --set vae=..., or another cache."
            )
        if not alike(latent_format_from_dict(made.latent_format), vae.latent_format):
            raise UsageError(
                f"{data}: this cache's latent format is not that of the recipe's VAE, {vae.latent_format.name}; make "
                "the cache anew with it."
            )
        if self._dataset.buckets != [(size, size)]:
            sizes = ", ".join(f"{width}x{height}" for width, height in self._dataset.buckets)
            raise UsageError(
                f"{data}: this cache's pictures are {sizes}, and the recipe's {size}x{size}; give the recipe another "
                f"size, or make a cache with --size {size}."
            )
        texts = self._dataset.captions
        if lacking := [i for i, text in enumerate(texts) if not text]:
            raise UsageError(
                f"{data}: {len(lacking):,} of its {len(texts):,} samples have no caption, such as "
                f"{self._dataset[lacking[0]]['name']}; put it beside the picture, and calotype cache make reads it."
            )
        self.captions = [Caption(file=f"row {i}", name=text) for i, text in enumerate(texts) if text]

    @property
    def fingerprint(self) -> str:
        """Of the cache, but for its pictures."""
        return self._dataset.job.fingerprint

    @property
    def sha256(self) -> str:
        """Of all captions."""
        return texts_sha256(self.captions)

    def modes(self) -> Tensor:
        """Latents of all pictures, of each posterior's mode where the cache has it: [N, C, h, w]."""
        moments = self._dataset.job.value == "moments"
        whole = LatentDataset(self._dataset.path, value="mode", flip=False) if moments else self._dataset
        return whole.read_batch(range(len(whole)))["latents"]

    def drawn(self, picked: Tensor, step: int) -> Tensor:
        """Latents of some pictures, drawn anew at each step: [len(picked), C, h, w]."""
        self._dataset.set_epoch(step)
        return self._dataset.read_batch(picked.tolist())["latents"]
