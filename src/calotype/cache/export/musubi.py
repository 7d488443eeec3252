"""musubi-tuner: ``NAME_0640x0480_qi.safetensors`` for each picture (see `latent_files.musubi`).

It looks for them in a dataset's `cache_directory`, which is the pictures' folder unless it is said otherwise.
"""

from __future__ import annotations

from pathlib import Path

from calotype.cache.export import pictures
from calotype.cache.export.face import Wants
from calotype.cache.export.rows import Row, Rows
from calotype.cache.job import Job
from calotype.latent_files import musubi
from calotype.latent_files.models import MUSUBI, Stored


class Musubi:
    """See the module."""

    name, title, upright, beside = "musubi", "musubi-tuner", False, True

    def wants(self, job: Job, model: str | None) -> Wants:
        """See `face.Format`."""
        stored = MUSUBI[_model(job, model)]
        assert isinstance(stored, Stored)
        return Wants(
            value="sample" if stored.drawn == "sample" else "mode", space=stored.space, fixed=True, bfloat16=True,
            flips="left out", published=stored.format,
        )  # fmt: skip

    def write(self, rows: Rows, folder: Path) -> None:
        """See `face.Format`."""
        model = _model(rows.cache.job, rows.model or None)

        def content(row: Row) -> bytes:
            return musubi.content(model, row.latents, row.stored)

        pictures.write(rows, folder, lambda stem, size: musubi.file_name(stem, size, model), content, self.title)


def _model(job: Job, model: str | None) -> str:
    return musubi.require_model(model, str(job.vae.latent_format.get("name")))
