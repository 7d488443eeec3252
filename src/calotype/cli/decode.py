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
from calotype.cli.editing import InvertMaskOption
from calotype.errors import CalotypeError, LatentsError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from calotype.engine.executor import Progress
    from calotype.latent_files import LatentFile
    from calotype.latents import Latents, Space
    from calotype.vae import VAE

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
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            help="Picture to keep where --mask is black, for decoders that take one; of the latents' size.",
            show_default="latents alone are decoded",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            help="Goes with --picture, of its size: white, or what is painted on transparent, is decoded; of the "
            "picture itself, its transparent holes.",
            show_default="all is decoded",
        ),
    ] = None,
    invert_mask: InvertMaskOption = False,
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

    With --preview no weights are needed: colours are a linear map of the latents. Maps are known of Stable Diffusion 1,
    XL and 3, FLUX.1 and 2, Wan, Qwen-Image, HunyuanImage 2.1 and the built-in VAE; `calotype probe` fits others.

    With --picture and --mask the decoder goes on from the picture where the mask is black, so that there is no edge:
    an AsymmetricAutoencoderKL's does that (asymmetric-vae-x-1.5, asymmetric-vae-x-2), for one picture's latents at a
    time. What is kept it makes anew, nearly the same.
    """
    if preview:
        for option, said in (
            ("--any-vae", any_vae), ("--prefix", prefix), ("--weights", which), ("--device", device),
            ("--dtype", dtype is not Dtype.float32), ("--memory", memory), ("--picture", picture), ("--mask", mask),
            ("--invert-mask", invert_mask),
        ):  # fmt: skip
            if said:
                raise UsageError(f"{option} is of a decoder, and --preview makes pictures without; leave one out.")
        told: tuple[str | None, Space | None, int | None] = latent_format, space.value if space else None, index
        _previews(latents, vae, out, suffix, factors, enlarge, told, json)
        return
    if factors is not None or enlarge:
        raise UsageError(
            f"{'--enlarge' if enlarge else '--factors'} goes with --preview; give that too, or leave it out."
        )
    _require_both(picture, mask, invert_mask, memory)
    from calotype.engine.budget import parse_memory
    from calotype.latents import NAMELESS
    from calotype.pixels import require_writable, write_picture
    from calotype.vae import name_for

    ending = f"-decoded.{suffix.removeprefix('.')}"
    paths = outputs(latents, out, ending, vae)
    require_writable(paths[0])
    if memory is not None:
        parse_memory(memory)
    loaded: dict[tuple[str, str | None], VAE] = {}
    opened, jobs = _jobs(latents, paths, ending, latent_format, space.value if space else None, index)
    require_distinct([path for *_, path in jobs], [*latents, *weights_files(vae), *filter(None, (picture, mask))])
    if picture is not None and len(jobs) > 1:
        raise UsageError(f"--picture is of one picture's latents, and these are {len(jobs)}; decode them one by one.")

    def vae_of(one: Latents, path: Path) -> VAE:
        name = vae or name_for(one, path)
        which_vae = name if name != "builtin" else None
        # what is said of another program's latents is said of weights only where they do not tell it themselves
        said = latent_format if one.vae else None
        if (name, said) not in loaded:
            found = load_vae(which_vae, said, device, dtype, prefix, which)
            tells = found.loaded.format
            untold = said != latent_format and (tells is None or tells.name in NAMELESS)  # of no one knows what
            if untold and not (latent_format == "none" and one.space == "model"):
                found = load_vae(which_vae, latent_format, device, dtype, prefix, which)
            loaded[name, said] = found
        return loaded[name, said]

    def work(j: int, told: Progress | None) -> dict[str, Any]:
        i, _, path = jobs[j]
        one = _taken(opened, jobs, j)
        decoder = vae_of(one, latents[i])
        decoder.require("decoder")
        own = decoder.adopt(one, any_vae)
        width, height = decoder.decoded_size(own)
        result = {"latents": str(latents[i]), "picture": str(path), "width": width, "height": height}
        if picture is not None and mask is not None:
            around = _around(decoder, own, picture, mask, invert_mask)
            make_folder(out)
            write_picture(path, around)
            return {**result, "around": str(picture), "mask": str(mask), "invert_mask": invert_mask}
        _, rows, columns = own.tensor.shape
        f = decoder.factor * decoder.enlarges
        decoder.engine.plan("decode", rows * f, columns * f, memory)
        make_folder(out)  # now that nothing is refused any more
        decoder.write_image(path, own, memory=memory, progress=told)
        return result

    sources = [latents[i] for i, *_ in jobs]
    results, failures = for_each(sources, work, doing="Decoding", quiet=json)

    def text() -> None:
        for r in results:
            print(f"{r['latents']} -> {r['picture']} ({r['width']}x{r['height']})")

    finish({"results": results}, as_json=json, text=text, failures=failures, of=len(jobs))


def _require_both(picture: Path | None, mask: Path | None, invert_mask: bool, memory: str | None) -> None:
    """Checks options about a picture that the decoder takes too.

    Raises:
        UsageError: one goes without another, or with what it can't go with.
    """
    if (picture is None) != (mask is None):
        missing = "--mask" if mask is None else "--picture"
        raise UsageError(f"--picture and --mask go together; give {missing} too, or leave the other out.")
    if invert_mask and mask is None:
        raise UsageError("--invert-mask goes with a mask; give --picture and --mask too, or leave it out.")
    if picture is not None and memory is not None:
        raise UsageError("With --picture all is in memory at once, which --memory can't bound; leave one of them out.")


def _around(decoder: VAE, own: Latents, picture: Path, mask: Path, invert: bool) -> Image.Image:
    """A decoder's own latents where a mask is white, and what it makes of a picture where that is black.

    Raises:
        PictureError: one of the files can't be read.
        UsageError: the decoder takes latents alone, sizes differ, or the mask is none.
    """
    from calotype.cli.editing import read_mask, read_rows
    from calotype.pixels import to_pil

    width, height = decoder.decoded_size(own)
    rows = read_rows(picture, None, (255, 255, 255), decoder.picture_channels)
    if rows.size != (height, width):
        h, w = rows.size
        raise UsageError(f"{picture} is {w}x{h} and these latents' picture {width}x{height}; give the one they are of.")
    same = mask.exists() and mask.samefile(picture)
    levels = read_mask(mask, rows.size, picture, alpha="transparent" if same else "auto", invert=invert)
    pixels = decoder.decode_masked(own.tensor[None], rows.rows(0, height)[None], levels[None, None] / 255)
    return to_pil(pixels[0].cpu(), own.alpha)


def _jobs(
    latents: list[Path], paths: list[Path], ending: str, latent_format: str | None, space: Space | None,
    index: int | None,
) -> tuple[dict[int, LatentFile | CalotypeError], list[tuple[int, int, Path]]]:  # fmt: skip
    """Opened files, or why one could not be, by their number; and what to make: (file, latent in it, picture).

    Raises:
        UsageError: a file does not tell whose latents it holds, or has none of this index.
    """
    opened: dict[int, LatentFile | CalotypeError] = {}
    jobs: list[tuple[int, int, Path]] = []
    for i, path in enumerate(latents):
        try:
            file = _open(path, latent_format, space)
        except LatentsError as error:  # the others are decoded
            opened[i] = error
            jobs.append((i, 0, paths[i]))
            continue
        if file.question:
            raise UsageError(file.question)
        opened[i] = file
        jobs += [(i, k, _named(paths[i], ending, k if len(file) > 1 else None)) for k in _chosen(file, index)]
    return opened, jobs


def _open(path: Path, latent_format: str | None, space: Space | None) -> LatentFile:
    """A file with latents; calotype's own tell their format, so that what is said is of the weights alone."""
    from calotype.latent_files import is_own, open_latents

    said = None if latent_format is not None and is_own(path) else latent_format
    return open_latents(path, latent_format=said, space=space)


def _taken(opened: dict[int, LatentFile | CalotypeError], jobs: list[tuple[int, int, Path]], j: int) -> Latents:
    """The latents of a job; a file is closed with its last."""
    i, k, _ = jobs[j]
    file = opened[i]
    if isinstance(file, CalotypeError):
        raise file
    one = file[k]
    if j + 1 == len(jobs) or jobs[j + 1][0] != i:
        del opened[i]  # with what it holds
    return one


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


def _previews(
    latents: list[Path], vae: str | None, out: Path, suffix: str, given: Path | None, enlarge: bool,
    said: tuple[str | None, Space | None, int | None], json: bool,
) -> None:  # fmt: skip
    """Small pictures by factors.

    Args:
        said: latent format and space of what does not tell them, and which of a file's latents.
    """
    from calotype.apart import require_apart
    from calotype.pixels import require_writable, write_picture
    from calotype.previews import load_factors, preview

    if vae is not None:
        raise UsageError(
            f"--preview takes no decoder; leave --vae {vae} out, or leave --preview out to decode by it: a small one "
            f"of the same latents (taesd, taesdxl, taesd3, taef1, taef2) is quick too."
        )
    ending = f"-preview.{suffix.removeprefix('.')}"
    paths = outputs(latents, out, ending)
    require_writable(paths[0])
    require_apart(paths, filter(None, (given,)))
    factors = None if given is None else load_factors(given)
    opened, jobs = _jobs(latents, paths, ending, *said)
    require_distinct([path for *_, path in jobs], [*latents, *filter(None, (given,))])

    def work(j: int, told: Progress | None) -> dict[str, Any]:
        i, _, path = jobs[j]
        image = preview(_taken(opened, jobs, j), factors, enlarge=enlarge)
        make_folder(out)
        write_picture(path, image)
        return {"latents": str(latents[i]), "picture": str(path), "width": image.width, "height": image.height}

    results, failures = for_each([latents[i] for i, *_ in jobs], work, doing="Previewing", quiet=json)

    def text() -> None:
        for r in results:
            print(f"{r['latents']} -> {r['picture']} ({r['width']}x{r['height']})")

    finish({"results": results}, as_json=json, text=text, failures=failures, of=len(jobs))
