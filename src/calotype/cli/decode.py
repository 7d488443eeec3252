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
from calotype.errors import UsageError

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
    preview: Annotated[
        bool,
        typer.Option("--preview", help="Quick pictures without a decoder, a pixel for each latent: PHOTO-preview.png."),
    ] = False,
    factors: Annotated[
        Path | None,
        typer.Option(
            help="What makes previews: the factors.json of `calotype probe`.",
            show_default="those known for the latents' space",
        ),
    ] = None,
    enlarge: Annotated[bool, typer.Option("--enlarge", help="Previews of the pictures' true sizes, smooth.")] = False,
    any_vae: Annotated[bool, typer.Option("--any-vae", help="Decode another VAE's latents all the same.")] = False,
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

    With --preview no weights are needed: colours are a linear map of the latents. Maps are known of Stable Diffusion 1,
    XL and 3, FLUX.1 and 2, Wan, Qwen-Image, HunyuanImage 2.1 and the built-in VAE; `calotype probe` fits others.
    """
    if preview:
        _previews(latents, vae, out, suffix, factors, enlarge, json)
        return
    if factors is not None or enlarge:
        raise UsageError(
            f"{'--enlarge' if enlarge else '--factors'} goes with --preview; give that too, or leave it out."
        )
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


def _previews(
    latents: list[Path], vae: str | None, out: Path, suffix: str, given: Path | None, enlarge: bool, json: bool
) -> None:
    """Small pictures by factors."""
    from calotype.apart import require_apart
    from calotype.latents import load_latents
    from calotype.pixels import require_writable, write_picture
    from calotype.previews import load_factors, preview

    if vae is not None:
        raise UsageError(
            f"--preview takes no decoder; leave --vae {vae} out, or leave --preview out to decode by it: a small one "
            f"of the same latents (taesd, taesdxl, taesd3, taef1, taef2) is quick too."
        )
    paths = outputs(latents, out, f"-preview.{suffix.removeprefix('.')}")
    require_writable(paths[0])
    require_apart(paths, filter(None, (given,)))
    factors = None if given is None else load_factors(given)

    def work(i: int, told: Progress | None) -> dict[str, Any]:
        image = preview(load_latents(latents[i]), factors, enlarge=enlarge)
        make_folder(out)
        write_picture(paths[i], image)
        return {"latents": str(latents[i]), "picture": str(paths[i]), "width": image.width, "height": image.height}

    results, failures = for_each(latents, work, doing="Previewing", quiet=json)

    def text() -> None:
        for r in results:
            print(f"{r['latents']} -> {r['picture']} ({r['width']}x{r['height']})")

    finish({"results": results}, as_json=json, text=text, failures=failures, of=len(latents))
