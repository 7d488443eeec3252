"""`calotype encode`: pictures to latents on disk."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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

NAME = "encode"
EXAMPLE = "Example: [bold]calotype encode photos/*.jpg --vae sd-vae-ft-mse --space model --out latents/[/]"


class SpaceName(str, Enum):
    """Which latents are written."""

    raw = "raw"
    model = "model"


def command(
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="Pictures.")],
    vae: VaeOption = None,
    prefix: PrefixOption = None,
    which: WeightsOption = None,
    out: OutOption = Path(),
    space: Annotated[
        SpaceName, typer.Option(help="Raw latents as the encoder gives them, or scaled as diffusion models want them.")
    ] = SpaceName.raw,
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

    A VAE of grey pictures gets their luma. One of RGBA gets their alpha too; --alpha over makes them opaque for it.
    """
    from calotype.engine.budget import parse_memory
    from calotype.latents import save_latents
    from calotype.pixels import alpha_mode, read_picture_rows

    if memory is not None:
        parse_memory(memory)
    under = colour(background)
    paths = outputs(photos, out, LATENTS_ENDING, vae)
    loaded = load_vae(vae, latent_format, device, dtype, prefix, which, encode_dtype)
    loaded.require("encoder")
    format_ = loaded.latent_format
    how = alpha_mode(loaded.picture_channels, alpha.value if alpha else None)

    def work(i: int, told: Progress | None) -> dict[str, Any]:
        picture = read_picture_rows(photos[i], alpha=how, background=under)
        for notice in picture.notices:
            complain(f"{photos[i]}: {notice}")
        latents = loaded.encode_image(picture, seed=seed, space=space.value, memory=memory, progress=told)
        make_folder(out)
        save_latents(paths[i], latents)
        return {"photo": str(photos[i]), "latents": str(paths[i]), "shape": list(latents.tensor.shape)}

    results, failures = for_each(photos, work, doing="Encoding", quiet=json)
    document = {
        "vae": loaded.name,
        "vae_sha256": loaded.sha256,
        "space": space.value,
        "latent_format": format_.name,
        "results": results,
    }

    def text() -> None:
        for r in results:
            print(f"{r['photo']} -> {r['latents']} {r['shape']}, {space.value}, format {format_.name}")

    finish(document, as_json=json, text=text, failures=failures, of=len(photos))
