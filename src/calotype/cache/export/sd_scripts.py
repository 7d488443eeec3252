"""sd-scripts: ``NAME_0640x0480_sdxl.npz`` for each picture (see `latent_files.sd_scripts`), always float32.

It looks for them beside the pictures, by the size of the picture as it lies in its file.
"""

from __future__ import annotations

from pathlib import Path

from calotype.cache.export import pictures
from calotype.cache.export.face import Wants
from calotype.cache.export.rows import Row, Rows
from calotype.cache.job import Job
from calotype.errors import UsageError
from calotype.latent_files import sd_scripts
from calotype.latent_files.models import SD_SCRIPTS


class SdScripts:
    """See the module."""

    name, title, upright, beside = "sd-scripts", "sd-scripts", False, True

    def wants(self, job: Job, model: str | None) -> Wants:
        """See `face.Format`."""
        stored = SD_SCRIPTS[_suffix(job, model)]
        return Wants(
            value="sample" if stored.drawn == "sample" else "mode", space=stored.space, fixed=True, dtype="float32",
            published=stored.format,
        )  # fmt: skip

    def write(self, rows: Rows, folder: Path) -> None:
        """See `face.Format`."""
        suffix = _suffix(rows.cache.job, rows.model or None)

        def content(row: Row) -> bytes:
            crop = sd_scripts.letterbox(row.stored, row.bucket)
            return sd_scripts.packed(suffix, row.latents, row.stored, crop, flipped=row.flip)

        pictures.write(rows, folder, lambda stem, size: sd_scripts.name_of(stem, size, suffix), content, self.title)


def _suffix(job: Job, model: str | None) -> str:
    """What ends the files' names: a model's own name to sd-scripts.

    Raises:
        UsageError: it has no such latents, or keeps others for that model.
    """
    format_ = str(job.vae.latent_format.get("name"))
    suffix = sd_scripts.suffix_of(format_)
    if model is not None and (model not in SD_SCRIPTS or SD_SCRIPTS[model].format != format_):
        fits = [name for name, stored in SD_SCRIPTS.items() if stored.format == format_]
        raise UsageError(f"--model {model}: sd-scripts keeps latents of format {format_!r} for {', '.join(fits)}.")
    return model or suffix
