"""`calotype encode`: pictures to latents on disk."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.apart import require_apart, weights_files
from calotype.cli.common import (
    LATENTS_ENDING,
    AlphaOption,
    BackgroundOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    EncodeDtypeOption,
    FormatOption,
    JsonOption,
    MemoryOption,
    OutOption,
    PrefixOption,
    SeedOption,
    SpaceName,
    VaeOption,
    WeightsOption,
    colour,
    complain,
    finish,
    for_each,
    load_vae,
    make_folder,
    outputs,
)

if TYPE_CHECKING:
    from calotype.engine.executor import Progress
    from calotype.latent_files import Program
    from calotype.latents import Space

NAME = "encode"
EXAMPLE = "Example: [bold]calotype encode photos/*.jpg --vae sd-vae-ft-mse --space model --out latents/[/]"


class ProgramName(str, Enum):
    """For which program latents are written."""

    comfyui = "comfyui"
    sd_scripts = "sd-scripts"


def command(
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="Pictures.")],
    vae: VaeOption = None,
    prefix: PrefixOption = None,
    which: WeightsOption = None,
    out: OutOption = Path(),
    space: Annotated[
        SpaceName | None,
        typer.Option(
            help="Raw latents as the encoder gives them, or scaled as diffusion models want them.",
            show_default="raw",
        ),
    ] = None,
    to: Annotated[
        ProgramName | None,
        typer.Option(help="Write another program's files instead: PHOTO.latent, PHOTO_0640x0480_sdxl.npz."),
    ] = None,
    seed: SeedOption = None,
    alpha: AlphaOption = None,
    background: BackgroundOption = "white",
    latent_format: FormatOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    encode_dtype: EncodeDtypeOption = None,
    memory: MemoryOption = None,
    json: JsonOption = False,
) -> None:
    """Encode pictures to latents: PHOTO.latents.safetensors.

    The file says which VAE made it, in which format, and the picture's true size, so `calotype decode` needs no more.

    With --to another program's files, in the space that it keeps such latents in: ComfyUI's, or sd-scripts' caches.

    A VAE of grey pictures gets their luma. One of RGBA gets their alpha too; --alpha over makes them opaque for it.
    """
    from calotype.engine.budget import parse_memory
    from calotype.errors import UsageError
    from calotype.latent_files import file_name, save_latents, stored_space
    from calotype.latents import name_of
    from calotype.pixels import alpha_mode, read_picture_rows

    if memory is not None:
        parse_memory(memory)
    if to is not None and space is not None:
        raise UsageError(f"--space {space.value}: {to.value} has a space of its own; leave out --space or --to.")
    under = colour(background)
    paths = outputs(photos, out, LATENTS_ENDING if to is None else ".latent" if to.value == "comfyui" else ".npz", vae)
    loaded = load_vae(vae, latent_format, device, dtype, prefix, which, encode_dtype)
    loaded.require("encoder")
    format_ = loaded.latent_format
    program: Program | None = to.value if to else None
    written: Space = stored_space(program, format_.name) if program else space.value if space else "raw"
    how = alpha_mode(loaded.picture_channels, alpha.value if alpha else None)

    def work(i: int, told: Progress | None) -> dict[str, Any]:
        picture = read_picture_rows(photos[i], alpha=how, background=under)
        for notice in picture.notices:
            complain(f"{photos[i]}: {notice}")
        latents = loaded.encode_image(picture, seed=seed, space=written, memory=memory, progress=told)
        path = paths[i].with_name(file_name(photos[i].stem, latents, program)) if program else paths[i]
        padding = latents.padding
        if program and (padding.bottom or padding.right):
            complain(
                f"{photos[i]}: its {padding.width}x{padding.height} pixels were padded to "
                f"{padding.width + padding.right}x{padding.height + padding.bottom}, which {program} is not told."
            )
        require_apart([path], [*photos, *weights_files(vae)])
        make_folder(out)
        save_latents(path, latents, to=program)
        return {"photo": str(photos[i]), "latents": str(path), "shape": list(latents.tensor.shape)}

    results, failures = for_each(photos, work, doing="Encoding", quiet=json)
    document = {
        "vae": loaded.name,
        "vae_sha256": loaded.sha256,
        "space": written,
        "latent_format": name_of(format_),
        "results": results,
    }

    def text() -> None:
        for r in results:
            print(f"{r['photo']} -> {r['latents']} {r['shape']}, {written}, format {name_of(format_)}")

    finish(document, as_json=json, text=text, failures=failures, of=len(photos))
