"""`calotype inspect`: what a weight file is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from json import loads
from typing import Annotated, Any

import typer

from calotype.cli.common import FormatOption, JsonOption, finish, table

NAME = "inspect"
EXAMPLE = "Example: [bold]calotype inspect v1-5-pruned-emaonly.safetensors[/]"


def command(
    weights: Annotated[
        str | None,
        typer.Argument(help="A preset's name, or a file or folder in any layout.", show_default="built-in"),
    ] = None,
    latent_format: FormatOption = None,
    json: JsonOption = False,
) -> None:
    """Say what weights are: layout, network, latent format, size, types, and whether they compute.

    Everything is told from the tensors. The checks encode and decode a small picture in each type.
    """
    from calotype.vae import load
    from calotype.weights.presets import PRESETS

    vae = load(weights, latent_format=latent_format, device="cpu")
    loaded = vae.loaded
    encoder = sum(p.numel() for name, p in vae.module.named_parameters() if not name.startswith(("decoder", "post")))
    total = sum(p.numel() for p in vae.module.parameters())
    document: dict[str, Any] = {
        "files": [str(path) for path in loaded.files],
        "layout": loaded.layout,
        "prefix": loaded.prefix,
        "parts": sorted(loaded.parts),
        "network": type(vae.module).__name__,
        "configuration": vae.config.to_dict(),
        "factor": vae.factor,
        "latent_channels": vae.latent_channels,
        "latent_format": loaded.format.to_dict() if loaded.format else None,
        "latent_format_from": loaded.format_source,
        "parameters": {"total": total, "encoder": encoder, "decoder": total - encoder},
        "dtypes": list(loaded.dtypes),
        "sha256": loaded.sha256,
        "finite_in": vae.check_dtypes(),
        "licence": PRESETS[weights].licence if weights is not None and weights in PRESETS else None,
        "training": training_facts(loaded.metadata or {}),
    }

    def text() -> None:
        configuration = ", ".join(f"{k}={v}" for k, v in document["configuration"].items() if k != "kind")
        known = loaded.format
        described = f"{known.name} ({loaded.format_source})" if known else "unknown: give --latent-format to encode"
        prefix = f", under {loaded.prefix!r}" if loaded.prefix else ""
        rows = [
            ("files", ", ".join(document["files"])),
            ("layout", f"{loaded.layout}{prefix}, {' and '.join(document['parts'])}"),
            ("network", f"{document['network']}, f{vae.factor}, {vae.latent_channels} latent channels"),
            ("configuration", configuration),
            ("latent format", described),
            ("parameters", f"{total:,} (encoder {encoder:,}, decoder {total - encoder:,})"),
            ("stored as", ", ".join(loaded.dtypes)),
            ("sha256", loaded.sha256),
            (
                "checks",
                ", ".join(f"{k}: {'finite' if v else 'NaN or infinity'}" for k, v in document["finite_in"].items()),
            ),
            *([("licence", document["licence"])] if document["licence"] else []),
            *((f"trained: {k}", str(v)) for k, v in document["training"].items() if k != "recipe"),
        ]
        table(rows)

    finish(document, as_json=json, text=text)


def training_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What `calotype train` wrote into a file about how its weights were made."""
    prefix = "calotype_training_"
    facts: dict[str, Any] = {}
    for key, value in sorted(metadata.items()):
        if key.startswith(prefix):
            with suppress(ValueError):
                facts[key.removeprefix(prefix)] = loads(value)
    return facts
