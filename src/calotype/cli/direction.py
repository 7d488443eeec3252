"""`calotype direction`: a direction between two sets of pictures, learned and walked."""

from __future__ import annotations

from itertools import chain
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
    VaeOption,
    colour,
    finish,
    load_vae,
    make_folder,
    stem_of,
)
from calotype.cli.editing import (
    PICTURES,
    EditVaeOption,
    SizeOption,
    StrengthOption,
    bar,
    output_file,
    read_source,
    sized,
    write_edited,
)
from calotype.errors import LatentsError

NAME = "direction"
HELP = "Learn what leads from one set of pictures to another, and move pictures along it."
LEARN_EXAMPLE = "Example: [bold]calotype direction learn day/ night/ --out night.safetensors[/]"
APPLY_EXAMPLE = "Example: [bold]calotype direction apply photo.jpg night.safetensors --strength 1.5 --out later.png[/]"


def learn(
    start: Annotated[
        str, typer.Argument(metavar="A", help="Pictures: a folder, a .zip or a .tar, here or at an address.")
    ],
    end: Annotated[str, typer.Argument(metavar="B", help="Those that the direction leads to.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("direction.safetensors"),
    aligned: Annotated[
        bool,
        typer.Option(
            "--aligned", help="What changes lies at the same place in all pictures: take the difference by position."
        ),
    ] = False,
    vae: VaeOption = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    encode_dtype: EncodeDtypeOption = None,
    memory: MemoryOption = None,
    json: JsonOption = False,
) -> None:
    """Learn the difference between the mean latents of two sets of pictures.

    By channel: it then holds tone, colour and contrast, whatever the pictures show. With --aligned by position: it then
    holds shapes too, if these lie at the same place in all pictures (faces cut alike), and else mostly noise. One
    picture in five is held out, to say how well the direction tells the sets apart.
    """
    from calotype.edit import directions
    from calotype.engine.budget import parse_memory
    from calotype.sources import files_of

    output_file(out, chain(files_of(start), files_of(end), weights_files(vae)))
    if memory is not None:
        parse_memory(memory)
    wanted = sized(size)
    loaded = load_vae(vae, None, device, dtype, encode_dtype=encode_dtype)
    with bar("Learning", json) as told:
        found = directions.learn(loaded, start, end, aligned=aligned, size=wanted, memory=memory, progress=told)
    make_folder(out.parent)
    directions.save_direction(out, found)
    document = {
        "vae": loaded.name, "vae_sha256": loaded.sha256, "out": str(out), "names": found.names, "counts": found.counts,
        "held_out": found.held_out, "shape": list(found.tensor.shape), "d_prime": found.d_prime,
        "accuracy": found.accuracy,
    }  # fmt: skip

    def text() -> None:
        print(f"{out}: {found.names[0]} -> {found.names[1]}, {list(found.tensor.shape)}")
        apart = "" if found.d_prime is None else f", d' {found.d_prime:.2f}"
        print(
            f"  learned from {found.counts[0]} and {found.counts[1]} pictures; of {found.held_out[0]} and "
            f"{found.held_out[1]} held out it tells {100 * found.accuracy:.0f}% right (chance: 50%){apart}"
        )

    finish(document, as_json=json, text=text)


def apply(
    picture: Annotated[Path, typer.Argument(help=PICTURES)],
    direction: Annotated[Path, typer.Argument(help="What `calotype direction learn` wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Picture to write.", show_default="PICTURE-DIRECTION.png")
    ] = None,
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
    """Move a picture along a direction; a strength below 0 goes the other way.

    The VAE must be the one that the direction was learned with, or another of its latent space.
    """
    from calotype.edit.directions import load_direction
    from calotype.edit.sources import latents_of
    from calotype.edit.transfer import require_strength
    from calotype.engine.budget import parse_memory
    from calotype.engine.run import share
    from calotype.families import PRESETS
    from calotype.pixels import require_writable

    require_strength(strength)
    stem = stem_of(picture)
    target = out or Path(f"{stem}-{direction.stem}.png")
    require_writable(output_file(target, [picture, direction, *weights_files(vae)]))
    if memory is not None:
        parse_memory(memory)
    way = load_direction(direction)
    wanted, under = sized(size), colour(background)
    if vae is None and way.vae_name not in ("builtin", *PRESETS):
        raise LatentsError(
            f"{direction}: this direction was learned with {way.vae_name or 'an unnamed VAE'} (sha256 "
            f"{way.vae[:12]}...); give its weights with --vae."
        )
    loaded = load_vae(vae or way.vae_name, None, device, dtype, encode_dtype=encode_dtype)
    way.require(loaded.sha256, loaded.name, loaded.loaded.format)
    source = read_source(picture, wanted, under, loaded.picture_channels)
    with bar("Applying", json) as told:
        latents = latents_of(loaded, source, memory=memory, progress=share(told, 0, 2))
        write_edited(loaded, way.apply(latents, strength), target, memory, share(told, 1, 2))
    height, width = latents.padding.height, latents.padding.width
    document = {
        "vae": loaded.name, "vae_sha256": loaded.sha256, "picture": str(picture), "direction": str(direction),
        "strength": strength, "out": str(target), "width": width, "height": height,
    }  # fmt: skip
    finish(document, as_json=json, text=lambda: print(f"{target} ({width}x{height})"))
