"""`calotype convert`: weights from any layout to another."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from calotype.addresses import require_local
from calotype.apart import described_by, require_apart
from calotype.cli.common import Dtype, FormatOption, JsonOption, PrefixOption, WeightsOption, finish
from calotype.damage import quoted
from calotype.errors import UsageError

NAME = "convert"
EXAMPLE = "Example: [bold]calotype convert model.ckpt vae/ --layout diffusers --dtype float16[/]"


class LayoutName(str, Enum):
    """Layouts that can be written."""

    ldm = "ldm"
    diffusers = "diffusers"
    diffusers_2d = "diffusers-2d"
    keras = "keras"
    gguf = "gguf"
    flax = "flax"


def command(
    weights: Annotated[str, typer.Argument(help="A preset's name, or a file or folder in any layout.")],
    out: Annotated[Path, typer.Argument(help="A .safetensors file for ldm, a .gguf file for gguf, else a folder.")],
    layout: Annotated[LayoutName, typer.Option(help="Layout to write.")],
    dtype: Annotated[Dtype | None, typer.Option(help="Type to store.", show_default="as it is")] = None,
    prefix: PrefixOption = None,
    which: WeightsOption = None,
    latent_format: FormatOption = None,
    choose: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=true|false",
            help="How the network computes, where weights leave a choice: quantize=false has a VQ autoencoder decode "
            "latents as they are; repeatable.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write weights in another layout; the numbers stay the same, bit for bit, unless --dtype changes their type.

    Files of a video's VAE keep all that frames need in the layouts ldm, gguf and diffusers;
    diffusers-2d keeps what one picture needs, a third of it, from which the others can't be made again.
    """
    import torch

    from calotype.vae import load_as_stored
    from calotype.weights.load import TRAINING, require_format
    from calotype.weights.save import DESCRIBED, WITH_FRAMES, files_of, save_weights
    from calotype.weights.video import whole_tensors

    require_local(out, "OUT")
    loaded = load_as_stored(
        weights,
        latent_format,
        prefix=prefix,
        weights=which.value if which else None,
        choices=dict(_choice(text) for text in choose or ()),
    )
    require_apart(files_of(out, layout.value), described_by(loaded.files), "OUT")
    kept = layout.value in DESCRIBED and "scaling_factor" in loaded.kept
    told = layout in (LayoutName.ldm, LayoutName.gguf)  # which say themselves what is not known
    if not told and not kept:  # readers take a missing scale for Stable Diffusion 1's
        require_format(loaded)
    paths = save_weights(
        loaded.module,
        out,
        layout=layout.value,
        format_=loaded.format,
        dtype=getattr(torch, dtype.value) if dtype else None,
        metadata={k: v for k, v in (loaded.metadata or {}).items() if k.startswith(TRAINING)},
        kept=loaded.kept,
        said=loaded.said,
        whole=whole_tensors(loaded) if layout.value in WITH_FRAMES else None,
    )
    document = {"from": loaded.layout, "to": layout.value, "files": [str(path) for path in paths]}

    def text() -> None:
        print(f"{loaded.layout} -> {layout.value}: {', '.join(document['files'])}")

    finish(document, as_json=json, text=text)


def _choice(text: str) -> tuple[str, bool]:
    name, _, value = text.partition("=")
    flags = {"true": True, "false": False}
    if not name or value not in flags:
        raise UsageError(f"--choose takes NAME=true or NAME=false, not {quoted(text, 80)!r}.")
    return name, flags[value]
