"""`calotype inspect` of a file with latents: whose they are, and what decodes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from calotype.cli.common import finish, table
from calotype.errors import LatentsError

if TYPE_CHECKING:
    from calotype.latent_files import LatentFile

_ONLY_LATENTS = (".latent", ".npy", ".npz", ".db")
_PERHAPS = (".safetensors", ".pt", ".bin")  # also of weights
_LARGEST = 2**30  # bytes of a torch file that is searched for latents; larger ones are weights


def in_file(weights: str | None, latent_format: str | None) -> LatentFile | None:
    """The latents in a file; None if it is a file of weights, or none.

    Raises:
        LatentsError: it can only hold latents, and is damaged or holds none; or they can't be decoded.
        UsageError: the format said is not theirs.
    """
    from calotype.latent_files import CacheError, open_latents

    path = Path(weights or "")
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (*_ONLY_LATENTS, *_PERHAPS):
        return None
    if suffix in (".pt", ".bin") and path.stat().st_size > _LARGEST and not path.with_name("metadata.db").is_file():
        return None
    try:
        return open_latents(path, latent_format=latent_format)
    except LatentsError as error:
        if suffix in _ONLY_LATENTS or isinstance(error, CacheError):
            raise
        return None


def inspect(file: LatentFile, json: bool) -> None:
    """Prints what is known of latents."""
    from calotype.latent_spaces import spaces
    from calotype.latents import name_of, space_of
    from calotype.weights.mapped import dtype_name

    one = file[0] if file.program == "calotype" else None  # whose format and VAE stand in it
    format_ = one.format if one else file.format
    fits = [one.name for space in spaces() if space.name == space_of(format_) for one in space.decoders]
    document: dict[str, Any] = {
        "file": str(file.path),
        "program": file.program or None,
        "model": file.model or None,
        "latents": len(file),
        "shape": list(one.tensor.shape if one else file.shape),
        "stored_as": dtype_name(one.tensor.dtype) if one else file.dtype,
        "space": file.space,
        "latent_format": name_of(format_) if format_ else None,
        "drawn": file.drawn or None,
        "vae": one.vae_name if one else None,
        "vae_sha256": one.vae if one else None,
        "picture": {"width": one.padding.width, "height": one.padding.height} if one else None,
        "left_out": list(file.left_out),
        "question": file.question or None,
        "presets": fits,
    }

    def text() -> None:
        count = f"{len(file)} of " if len(file) != 1 else ""
        model = f", for {file.model}" if file.model else ""
        drawn = {"sample": ", drawn from the posterior", "mode": ", the posterior's mode"}.get(file.drawn, "")
        rows = [
            ("file", document["file"]),
            ("latents of", (file.program or "nobody known (bare tensors)") + model),
            ("latents", f"{count}{document['shape']}, stored as {document['stored_as']}"),
            ("space", f"{file.space or 'unknown'}{drawn}"),
            ("latent format", document["latent_format"] or "unknown"),
            *([("vae", f"{one.vae_name or 'unnamed'}, sha256 {one.vae or 'unknown'}")] if one else []),
            *([("picture", f"{one.padding.width}x{one.padding.height}")] if one else []),
            *([("left out", ", ".join(file.left_out))] if file.left_out else []),
            *([("decoded by", ", ".join(fits))] if fits else []),
            *([("to decode", file.question)] if file.question else []),
        ]
        table(rows)

    finish(document, as_json=json, text=text)
