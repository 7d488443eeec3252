"""`calotype decode`: latents on disk to pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.apart import weights_files
from calotype.cli.common import (
    LATENT_FORMATS,
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    MemoryOption,
    OutOption,
    PrefixOption,
    SpaceName,
    WeightsOption,
    finish,
    for_each,
    load_vae,
    make_folder,
    outputs,
    require_distinct,
)
from calotype.errors import CalotypeError, LatentsError, UsageError

if TYPE_CHECKING:
    from calotype.engine.executor import Progress
    from calotype.latent_files import LatentFile

NAME = "decode"
_MOST = 10_000  # latents of one file that are decoded at once
EXAMPLE = "Example: [bold]calotype decode photo.latents.safetensors --out pictures/[/]"


def command(
    latents: Annotated[
        list[Path], typer.Argument(metavar="LATENTS...", help="Files of `calotype encode` or another program.")
    ],
    vae: Annotated[
        str | None,
        typer.Option("--vae", help="Weights to decode with.", show_default="those the latents name"),
    ] = None,
    out: OutOption = Path(),
    suffix: Annotated[str, typer.Option(help="Kind of picture: png, jpg, webp, avif or tiff.")] = "png",
    space: Annotated[
        SpaceName | None,
        typer.Option(
            help="Of another program's latents: raw, or scaled as diffusion models want them.",
            show_default="what the file tells",
        ),
    ] = None,
    index: Annotated[
        int | None, typer.Option(min=0, help="Decode only this one of a file's latents.", show_default="all")
    ] = None,
    any_vae: Annotated[
        bool, typer.Option("--any-vae", help="Decode latents of another space, or of none, all the same.")
    ] = False,
    prefix: PrefixOption = None,
    which: WeightsOption = None,
    latent_format: Annotated[
        str | None,
        typer.Option(
            "--latent-format",
            help=f"Of latents, or of weights, that do not tell it: {LATENT_FORMATS}, flux2, none or model:NAME.",
            show_default="what the file tells",
        ),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    memory: MemoryOption = None,
    json: JsonOption = False,
) -> None:
    """Decode latents to pictures of their true size: PHOTO-decoded.png.

    Of a file with several, PHOTO-0-decoded.png and so on are written, or the one that --index names.

    Pictures of any size are decoded exactly, without tiles, and PNG and TIFF are written row by row.

    Latents of ComfyUI, sd-scripts, musubi-tuner, ai-toolkit, SimpleTuner, OneTrainer and diffusion-pipe are read, and
    bare tensors. They name no VAE, so --vae does; where a file does not tell their space, --latent-format and --space
    do.
    """
    from calotype.engine.budget import parse_memory
    from calotype.latent_files import open_latents
    from calotype.latents import Latents
    from calotype.pixels import require_writable
    from calotype.vae import VAE, name_for

    ending = f"-decoded.{suffix.removeprefix('.')}"
    paths = outputs(latents, out, ending, vae)
    require_writable(paths[0])
    if memory is not None:
        parse_memory(memory)
    loaded: dict[tuple[str, str | None], VAE] = {}
    opened: dict[int, LatentFile | CalotypeError] = {}
    jobs: list[tuple[int, int, Path]] = []  # (file, latent in it, picture)
    for i, path in enumerate(latents):
        try:
            file = open_latents(path, latent_format=latent_format, space=space.value if space else None)
        except LatentsError as error:  # the others are decoded
            opened[i] = error
            jobs.append((i, 0, paths[i]))
            continue
        if file.question:
            raise UsageError(file.question)
        opened[i] = file
        jobs += [(i, k, _named(paths[i], ending, k if len(file) > 1 else None)) for k in _chosen(file, index)]
    if len(latents) < len(jobs):
        require_distinct([path for *_, path in jobs], [*latents, *weights_files(vae)])

    def vae_of(one: Latents, path: Path) -> VAE:
        name = vae or name_for(one, path)
        which_vae = name if name != "builtin" else None
        # what is said of another program's latents is said of weights only where they do not tell it themselves
        said = latent_format if one.vae else None
        if (name, said) not in loaded:
            found = load_vae(which_vae, said, device, dtype, prefix, which)
            if said != latent_format and found.loaded.format is None:
                found = load_vae(which_vae, latent_format, device, dtype, prefix, which)
            loaded[name, said] = found
        return loaded[name, said]

    def work(j: int, told: Progress | None) -> dict[str, Any]:
        i, k, path = jobs[j]
        file = opened[i]
        if isinstance(file, CalotypeError):
            raise file
        one = file[k]
        if j + 1 == len(jobs) or jobs[j + 1][0] != i:
            del opened[i]  # with what it holds
        decoder = vae_of(one, latents[i])
        decoder.require("decoder")
        _, rows, columns = decoder.own(one, any_vae).shape
        f = decoder.factor * decoder.enlarges
        decoder.engine.plan("decode", rows * f, columns * f, memory)
        make_folder(out)  # now that nothing is refused any more
        decoder.write_image(path, one, any_vae=any_vae, memory=memory, progress=told)
        width, height = decoder.decoded_size(one)
        return {"latents": str(latents[i]), "picture": str(path), "width": width, "height": height}

    sources = [latents[i] for i, *_ in jobs]
    results, failures = for_each(sources, work, doing="Decoding", quiet=json)

    def text() -> None:
        for r in results:
            print(f"{r['latents']} -> {r['picture']} ({r['width']}x{r['height']})")

    finish({"results": results}, as_json=json, text=text, failures=failures, of=len(jobs))


def _chosen(file: LatentFile, index: int | None) -> range:
    """Which of a file's latents are decoded.

    Raises:
        UsageError: there is none of this index, or there are far too many.
    """
    if index is not None:
        if index >= len(file):
            raise UsageError(f"--index {index}: {file.path} holds {len(file)}, counted from 0.")
        return range(index, index + 1)
    if len(file) > _MOST:
        raise UsageError(f"{file.path} holds {len(file):,} latents; decode one after another with --index.")
    return range(len(file))


def _named(path: Path, ending: str, index: int | None) -> Path:
    """A picture's path, of one of several latents in a file."""
    return path if index is None else path.with_name(f"{path.name.removesuffix(ending)}-{index}{ending}")
