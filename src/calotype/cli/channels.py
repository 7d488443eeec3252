"""`calotype channels`: a picture's latents changed channel by channel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    colour,
    finish,
)
from calotype.cli.editing import (
    PICTURES,
    EditVaeOption,
    SizeOption,
    bar,
    output_file,
    read_sources,
    sized,
    write_edited,
)

NAME = "channels"
EXAMPLE = "Example: [bold]calotype channels photo.jpg edits.json --size 256x256 --out changed.png[/]"


def command(
    picture: Annotated[Path, typer.Argument(help=PICTURES)],
    edits: Annotated[Path, typer.Argument(help='JSON: {"edits": [{"do": "shift", "channel": 3, "by": 0.5}]}.')],
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write.")] = Path("channels.png"),
    second: Annotated[
        Path | None, typer.Option("--from", help="Picture that channels are copied from.", show_default="none")
    ] = None,
    vae: EditVaeOption = None,
    size: SizeOption = None,
    background: BackgroundOption = "white",
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    encode_dtype: EncodeDtypeOption = None,
    memory: MemoryOption = None,
    json: JsonOption = False,
) -> None:
    """Change a picture's latents channel by channel, by a list of edits, and decode them.

    Edits shift, scale, swap, noise, set and copy channels, whole or at places; they are done one after another, in raw
    latents. `calotype studio` makes such lists.
    """
    from calotype.draw.record import origin, record
    from calotype.edit.channels import edited, read_edits
    from calotype.edit.sources import latents_of
    from calotype.engine.budget import parse_memory
    from calotype.engine.run import share
    from calotype.pixels import require_writable

    paths = [picture, *([second] if second else [])]
    require_writable(output_file(out, [*paths, edits, *weights_files(vae)]))
    if memory is not None:
        parse_memory(memory)
    wanted, under = sized(size), colour(background)
    asked = read_edits(edits)
    sources, loaded = read_sources(paths, [wanted] * len(paths), under, vae, device, dtype, encode_dtype)
    with bar("Changing", json) as told:
        latents = [
            latents_of(loaded, source, memory=memory, progress=share(told, i, len(sources) + 1))
            for i, source in enumerate(sources)
        ]
        changed = edited(latents[0], asked, latents[1] if second else None)
        made = record(
            NAME,
            {
                "picture": origin(picture), "edits": origin(edits), "from": origin(second) if second else None,
                "size": [changed.padding.width, changed.padding.height],
                "vae": {"name": loaded.name, "sha256": loaded.sha256},
            },
        )  # fmt: skip
        write_edited(loaded, changed, out, memory, share(told, len(sources), len(sources) + 1), made)
    height, width = changed.padding.height, changed.padding.width
    document = {
        "vae": loaded.name, "vae_sha256": loaded.sha256, "picture": str(picture), "edits": str(edits),
        "from": str(second) if second else None, "out": str(out), "width": width, "height": height,
    }  # fmt: skip
    finish(document, as_json=json, text=lambda: print(f"{out} ({width}x{height})"))
