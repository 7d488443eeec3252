"""`calotype transfer`: one picture's statistics given to another."""

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
    EditVaeOption,
    SizeOption,
    StrengthOption,
    bar,
    output_file,
    read_sources,
    sized,
    write_edited,
)

NAME = "transfer"
EXAMPLE = "Example: [bold]calotype transfer photo.jpg sunset.jpg --strength 0.7 --out evening.png[/]"


def command(
    content: Annotated[Path, typer.Argument(help="What is seen: a picture, or latents.")],
    style: Annotated[Path, typer.Argument(help="Whose statistics it gets: a picture, or latents, of any size.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write.")] = Path("transfer.png"),
    strength: StrengthOption = 1.0,
    vae: EditVaeOption = None,
    size: SizeOption = None,
    background: BackgroundOption = "white",
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    encode_dtype: EncodeDtypeOption = None,
    memory: MemoryOption = None,
    json: JsonOption = False,
) -> None:
    """Give a picture the statistics of another: mean and std of each latent channel (AdaIN, in the VAE's latents).

    It moves colour, tone and contrast. Brush strokes and textures are not in these numbers.
    """
    from calotype.draw.record import origin, record
    from calotype.edit.sources import latents_of
    from calotype.edit.transfer import require_strength, transfer
    from calotype.engine.budget import parse_memory
    from calotype.engine.run import share
    from calotype.pixels import require_writable

    require_strength(strength)
    paths = [content, style]
    require_writable(output_file(out, [*paths, *weights_files(vae)]))
    if memory is not None:
        parse_memory(memory)
    under = colour(background)
    sources, loaded = read_sources(paths, [sized(size), None], under, vae, device, dtype, encode_dtype)
    with bar("Transferring", json) as told:
        latents = [
            latents_of(loaded, source, memory=memory, progress=share(told, i, 3)) for i, source in enumerate(sources)
        ]
        height, width = latents[0].padding.height, latents[0].padding.width
        made = record(
            NAME,
            {
                "content": origin(content), "style": origin(style), "strength": strength, "size": [width, height],
                "vae": {"name": loaded.name, "sha256": loaded.sha256},
            },
        )  # fmt: skip
        write_edited(loaded, transfer(latents[0], latents[1], strength), out, memory, share(told, 2, 3), made)
    document = {
        "vae": loaded.name, "vae_sha256": loaded.sha256, "content": str(content), "style": str(style),
        "strength": strength, "out": str(out), "width": width, "height": height,
    }  # fmt: skip
    finish(document, as_json=json, text=lambda: print(f"{out} ({width}x{height})"))
