"""`calotype decode`: latents on disk to pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.cli.common import (
    DeviceOption,
    Dtype,
    DtypeOption,
    FormatOption,
    JsonOption,
    MemoryOption,
    OutOption,
    PrefixOption,
    WeightsOption,
    finish,
    for_each,
    load_vae,
    make_folder,
    outputs,
)

if TYPE_CHECKING:
    from calotype.engine.executor import Progress

NAME = "decode"
EXAMPLE = "Example: [bold]calotype decode photo.latents.safetensors --out pictures/[/]"


def command(
    latents: Annotated[list[Path], typer.Argument(metavar="LATENTS...", help="Files that `calotype encode` wrote.")],
    vae: Annotated[
        str | None,
        typer.Option("--vae", help="Weights to decode with.", show_default="those the latents name"),
    ] = None,
    out: OutOption = Path(),
    suffix: Annotated[str, typer.Option(help="Kind of picture: png, jpg, webp, avif or tiff.")] = "png",
    any_vae: Annotated[
        bool, typer.Option("--any-vae", help="Decode latents of another space, or of none, all the same.")
    ] = False,
    prefix: PrefixOption = None,
    which: WeightsOption = None,
    latent_format: FormatOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    memory: MemoryOption = None,
    json: JsonOption = False,
) -> None:
    """Decode latents to pictures of their true size: PHOTO-decoded.png.

    Pictures of any size are decoded exactly, without tiles, and PNG and TIFF are written row by row.
    """
    from calotype.engine.budget import parse_memory
    from calotype.latents import Latents, load_latents
    from calotype.pixels import require_writable
    from calotype.vae import VAE, name_for

    paths = outputs(latents, out, f"-decoded.{suffix.removeprefix('.')}", vae)
    require_writable(paths[0])
    if memory is not None:
        parse_memory(memory)
    loaded: dict[str, VAE] = {}

    def vae_of(one: Latents, path: Path) -> VAE:
        name = vae or name_for(one, path)
        if name not in loaded:
            loaded[name] = load_vae(name if name != "builtin" else None, latent_format, device, dtype, prefix, which)
        return loaded[name]

    def work(i: int, told: Progress | None) -> dict[str, Any]:
        one = load_latents(latents[i])
        decoder = vae_of(one, latents[i])
        decoder.require("decoder")
        _, rows, columns = decoder.own(one, any_vae).shape
        f = decoder.factor * decoder.enlarges
        decoder.engine.plan("decode", rows * f, columns * f, memory)
        make_folder(out)  # now that nothing is refused any more
        decoder.write_image(paths[i], one, any_vae=any_vae, memory=memory, progress=told)
        height, width = (decoder.enlarges * side for side in (one.padding.height, one.padding.width))
        return {"latents": str(latents[i]), "picture": str(paths[i]), "width": width, "height": height}

    results, failures = for_each(latents, work, doing="Decoding", quiet=json)

    def text() -> None:
        for r in results:
            print(f"{r['latents']} -> {r['picture']} ({r['width']}x{r['height']})")

    finish({"results": results}, as_json=json, text=text, failures=failures, of=len(latents))
