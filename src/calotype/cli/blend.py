"""`calotype blend`: two pictures in one, by a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calotype.cli.common import (
    BackgroundOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    MemoryOption,
    VaeOption,
    colour,
    finish,
    load_vae,
    make_folder,
)
from calotype.cli.editing import SizeOption, bar, output_file, read_rows, sized
from calotype.errors import UsageError

NAME = "blend"
EXAMPLE = "Example: [bold]calotype blend meadow.jpg sky.jpg mask.png --feather 32 --out both.png[/]"


def command(
    first: Annotated[Path, typer.Argument(help="The picture that stays where the mask is black.")],
    second: Annotated[Path, typer.Argument(help="The one that comes in where it is white.")],
    mask: Annotated[Path, typer.Argument(help="Black, white and greys between, of the pictures' size.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write.")] = Path("blend.png"),
    vae: VaeOption = None,
    feather: Annotated[int, typer.Option(min=0, max=1024, help="Radius of the mask's soft edges in pixels.")] = 16,
    paste_back: Annotated[
        bool,
        typer.Option(
            "--paste-back/--decoded",
            help="Keep the pictures' own pixels where nothing is blended, or leave all as decoded.",
        ),
    ] = True,
    size: SizeOption = None,
    background: BackgroundOption = "white",
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    memory: MemoryOption = None,
    json: JsonOption = False,
) -> None:
    """Blend two pictures in latents, by a mask.

    The mask's edges are softened over --feather pixels to both sides. Beyond them not one pixel changes: where the
    softened mask is black the first picture's pixels are kept, where it is white the second's. Halfway stands what the
    VAE makes of the blended latents, and it passes into the pictures without an edge. Without a feather, a black and
    white mask is a cut.
    """
    from calotype.draw.record import origin, record
    from calotype.edit.blend import blend, levels_of
    from calotype.engine.budget import parse_memory
    from calotype.pixels import read_picture_rows, require_writable

    inputs = [first, second, mask]
    require_writable(output_file(out, inputs))
    if memory is not None:
        parse_memory(memory)
    under, wanted = colour(background), sized(size)
    loaded = load_vae(vae, None, device, dtype)
    a, b = (read_rows(path, wanted, under, loaded.picture_channels) for path in (first, second))
    # what is transparent in a mask selects nothing
    over = levels_of(read_picture_rows(mask, background=(0, 0, 0)))
    height, width = a.size
    for path, (h, w) in ((second, b.size), (mask, tuple(over.shape))):
        if (h, w) != (height, width):
            to_do = "draw it in that size" if path == mask else "bring both to one size with --size"
            raise UsageError(f"{path} is {w}x{h} and {first} {width}x{height}; {to_do}.")
    make_folder(out.parent)
    made = {
        "first": origin(first), "second": origin(second), "mask": origin(mask), "feather": feather,
        "paste_back": paste_back, "size": [width, height], "vae": {"name": loaded.name, "sha256": loaded.sha256},
    }  # fmt: skip
    with bar("Blending", json) as told:
        blend(
            loaded, a, b, over, out, feather=feather, paste_back=paste_back, text=record(NAME, made), memory=memory,
            progress=told,
        )  # fmt: skip
    document = {
        "vae": loaded.name, "vae_sha256": loaded.sha256, "first": str(first), "second": str(second), "mask": str(mask),
        "feather": feather, "paste_back": paste_back, "out": str(out), "width": width, "height": height,
    }  # fmt: skip
    finish(document, as_json=json, text=lambda: print(f"{out} ({width}x{height})"))
