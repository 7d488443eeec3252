"""`calotype blend`: two pictures in one, by a mask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calotype.apart import weights_files
from calotype.cli.common import (
    BackgroundOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    EncodeDtypeOption,
    JsonOption,
    MemoryOption,
    VaeOption,
    colour,
    complain,
    finish,
    load_vae,
    make_folder,
)
from calotype.cli.editing import InvertMaskOption, SizeOption, bar, output_file, read_mask, read_rows, sized
from calotype.errors import UsageError

if TYPE_CHECKING:
    from calotype.edit.masks import Selected

NAME = "blend"
EXAMPLE = "Example: [bold]calotype blend meadow.jpg sky.jpg mask.png --feather 32 --out both.png[/]"


def command(
    first: Annotated[Path, typer.Argument(help="The picture that stays where the mask is black.")],
    second: Annotated[Path, typer.Argument(help="The one that comes in where it is white.")],
    mask: Annotated[
        Path, typer.Argument(help="Black, white and greys between, or painted on transparent; of the pictures' size.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write.")] = Path("blend.png"),
    invert_mask: InvertMaskOption = False,
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
    encode_dtype: EncodeDtypeOption = None,
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
    from calotype.edit.blend import blend
    from calotype.engine.budget import parse_memory
    from calotype.pixels import require_writable

    inputs = [first, second, mask]
    require_writable(output_file(out, [*inputs, *weights_files(vae)]))
    if memory is not None:
        parse_memory(memory)
    under, wanted = colour(background), sized(size)
    loaded = load_vae(vae, None, device, dtype, encode_dtype=encode_dtype)
    loaded.require("encoder", "decoder")
    a, b = (read_rows(path, wanted, under, loaded.picture_channels) for path in (first, second))
    height, width = a.size
    if b.size != a.size:
        h, w = b.size
        raise UsageError(f"{second} is {w}x{h} and {first} {width}x{height}; bring both to one size with --size.")
    over = read_mask(mask, a.size, first, alpha=_selected(mask, first, second), invert=invert_mask)
    if int(over.min()) == int(over.max()) in (0, 255):
        kept, what = (second, "all") if over.any() else (first, "nothing")
        complain(f"{mask}: It selects {what}, so the blend is {kept}.")
    make_folder(out.parent)
    made = {
        "first": origin(first), "second": origin(second), "mask": origin(mask), "invert_mask": invert_mask,
        "feather": feather, "paste_back": paste_back, "size": [width, height],
        "vae": {"name": loaded.name, "sha256": loaded.sha256},
    }  # fmt: skip
    with bar("Blending", json) as told:
        blend(
            loaded, a, b, over, out, feather=feather, paste_back=paste_back, text=record(NAME, made), memory=memory,
            progress=told,
        )  # fmt: skip
    document = {
        "vae": loaded.name, "vae_sha256": loaded.sha256, "first": str(first), "second": str(second), "mask": str(mask),
        "invert_mask": invert_mask, "feather": feather, "paste_back": paste_back, "out": str(out), "width": width,
        "height": height,
    }  # fmt: skip
    finish(document, as_json=json, text=lambda: print(f"{out} ({width}x{height})"))


def _selected(mask: Path, first: Path, second: Path) -> Selected:
    """Which part of a mask with alpha comes from the second picture: its own opaque part, or the first one's holes."""
    if mask.exists() and mask.samefile(second):
        return "opaque"
    return "transparent" if mask.exists() and mask.samefile(first) else "auto"
