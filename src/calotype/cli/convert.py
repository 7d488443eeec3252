"""`calotype convert`: weights from any layout to another."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from calotype.apart import described_by, require_apart
from calotype.cli.common import Dtype, FormatOption, JsonOption, PrefixOption, WeightsOption, finish

NAME = "convert"
EXAMPLE = "Example: [bold]calotype convert model.ckpt vae/ --layout diffusers --dtype float16[/]"


class LayoutName(str, Enum):
    """Layouts that can be written."""

    ldm = "ldm"
    diffusers = "diffusers"
    diffusers_2d = "diffusers-2d"
    keras = "keras"


def command(
    weights: Annotated[str, typer.Argument(help="A preset's name, or a file or folder in any layout.")],
    out: Annotated[Path, typer.Argument(help="A .safetensors file for ldm, else a folder.")],
    layout: Annotated[LayoutName, typer.Option(help="Layout to write.")],
    dtype: Annotated[Dtype | None, typer.Option(help="Type to store.", show_default="as it is")] = None,
    prefix: PrefixOption = None,
    which: WeightsOption = None,
    latent_format: FormatOption = None,
    json: JsonOption = False,
) -> None:
    """Write weights in another layout; the numbers stay the same, bit for bit, unless --dtype changes their type."""
    import torch

    from calotype.vae import load_as_stored
    from calotype.vae.loading import locate
    from calotype.weights.formats import DIFFUSERS_LAYOUTS
    from calotype.weights.groups import Weights
    from calotype.weights.load import TRAINING, require_format
    from calotype.weights.save import files_of, save_weights
    from calotype.weights.whole import read_whole

    chosen: Weights | None = which.value if which else None
    loaded = load_as_stored(weights, latent_format, prefix=prefix, weights=chosen)
    require_apart(files_of(out, layout.value), described_by(loaded.files), "OUT")
    kept = layout.value in DIFFUSERS_LAYOUTS and "scaling_factor" in loaded.kept
    if layout is not LayoutName.ldm and not kept:  # readers take a missing scale for Stable Diffusion 1's
        require_format(loaded)
    whole = None
    if layout is LayoutName.diffusers:  # a video's VAE, if the file has all of it
        whole = read_whole(locate(weights, None)[0], loaded.module, prefix=prefix, weights=chosen)
    paths = save_weights(
        loaded.module,
        out,
        layout=layout.value,
        format_=loaded.format,
        dtype=getattr(torch, dtype.value) if dtype else None,
        metadata={k: v for k, v in (loaded.metadata or {}).items() if k.startswith(TRAINING)},
        kept=loaded.kept,
        said=loaded.said if whole else None,
        whole=whole,
    )
    document = {"from": loaded.layout, "to": layout.value, "files": [str(path) for path in paths]}

    def text() -> None:
        print(f"{loaded.layout} -> {layout.value}: {', '.join(document['files'])}")

    finish(document, as_json=json, text=text)
