"""`calotype cache export` and `import`: latents handed to trainers, and taken over from them."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from calotype.cli.common import (
    DeviceOption,
    Dtype,
    FormatOption,
    JsonOption,
    MemoryOption,
    PrefixOption,
    SpaceName,
    VaeOption,
    WeightsOption,
    complain,
    finish,
    load_vae,
    require_folder,
    size_of,
    stop,
)
from calotype.cli.measuring import bar
from calotype.texts import plain

EXPORT_EXAMPLE = "Example: [bold]calotype cache export latents/ --to sd-scripts photos/[/]"
IMPORT_EXAMPLE = "Example: [bold]calotype cache import photos/ latents/ --vae sdxl-vae[/]"


class To(str, Enum):
    """Formats."""

    webdataset = "webdataset"
    sd_scripts = "sd-scripts"
    musubi = "musubi"
    diffusers_parquet = "diffusers-parquet"
    lightningdit = "lightningdit"
    mds = "mds"
    numpy = "numpy"


class PointName(str, Enum):
    """What is drawn of the posterior."""

    mode = "mode"
    sample = "sample"


def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the cache.")],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Folder to write to; made if it is not there.")],
    to: Annotated[To, typer.Option("--to", help="Whose format.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="That musubi-tuner or sd-scripts trains, where latents are for several.",
            show_default="the one there is",
        ),
    ] = None,
    value: Annotated[
        PointName | None,
        typer.Option(help="The posterior's mode (mean), or a sample.", show_default="what that program keeps"),
    ] = None,
    space: Annotated[
        SpaceName | None,
        typer.Option(
            "--space", help="Raw, or scaled as a diffusion model has them.", show_default="what that program reads"
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="What numbers are written in.", show_default="what that program reads, or the cache has"),
    ] = None,
    bucket: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="Only pictures of this size.", show_default="all"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of samples.")] = 0,
    json: JsonOption = False,
) -> None:
    """Write the latents of a cache as another program reads them.

    DEST is complete or not there. Files of single pictures (sd-scripts, musubi) may be put among others, as beside the
    pictures: what is there already is left alone, so the same command goes on where it was stopped.
    """
    from calotype.cache.export import FORMATS, export as write

    require_folder(dest, "DEST")
    size = None if bucket is None else size_of(bucket)
    try:
        with bar("Writing") as tell:
            done = write(
                out, dest, to.value, model=model, value=value.value if value else None,
                space=space.value if space else None, dtype=dtype.value if dtype else None, bucket=size, seed=seed,
                tell=tell,
            )  # fmt: skip
    except KeyboardInterrupt:
        kept = FORMATS[to.value].beside and dest.is_dir()
        stop(f"Stopped; the same command goes on in {dest}." if kept else f"Stopped; nothing is left of {dest}.")
    for note in done.notes:
        complain(note)
    document: dict[str, Any] = {"cache": str(out), "dest": str(dest), "to": to.value, **vars(done)}
    kind = (
        f"{'scaled' if done.space == 'model' else 'raw'} {done.value}s"
        if done.value == "sample"
        else ("scaled modes" if done.space == "model" else "raw modes")
    )
    more = ", and those of mirrored pictures" if done.flips else ""
    finish(
        document, as_json=json,
        text=lambda: print(f"{dest}: latents of {done.samples:,} pictures: {kind}, {done.dtype}{more}."),
    )  # fmt: skip


def take(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder with sd-scripts' or musubi-tuner's caches.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new cache.")],
    vae: VaeOption = None,
    check: Annotated[
        int, typer.Option("--verify", min=0, help="Decode N of them and compare the pictures that lie beside.")
    ] = 4,
    store: Annotated[Dtype, typer.Option(help="What to store latents in.")] = Dtype.float32,
    latent_format: FormatOption = None,
    prefix: PrefixOption = None,
    which: WeightsOption = None,
    device: DeviceOption = None,
    memory: MemoryOption = None,
    json: JsonOption = False,
) -> None:
    """Make a cache of what sd-scripts or musubi-tuner cached, with the VAE that made it.

    Nothing in those files names their VAE: say which, and it is held against the pictures. Latents become raw; OUT is
    complete or not there.
    """
    from calotype.cache.tables import arrow
    from calotype.cache.taking import take as read
    from calotype.engine.budget import parse_memory

    arrow()
    if memory is not None:
        parse_memory(memory)
    require_folder(out, "OUT")
    loaded = load_vae(vae, latent_format, device, Dtype.float32, prefix, which, Dtype.float32)
    try:
        with bar("Reading") as tell:
            done = read(source, out, loaded, store=store.value, check=check, memory=memory, tell=tell)
    except KeyboardInterrupt:
        stop(f"Stopped; nothing is left of {out}.")
    for note in done.notes:
        complain(note)
    samples = [vars(one) for one in done.checked]

    def text() -> None:
        for one in done.checked:
            print(f"{plain(one.name)}: {one.psnr:.2f} dB decoded, {one.own:.2f} dB the VAE's own round trip")
        print(f"{out}: {done.samples:,} {done.value}s that {done.program} cached, made raw.")

    finish({"cache": str(out), "source": str(source), **vars(done), "checked": samples}, as_json=json, text=text)
