"""`calotype vary`: variations of a picture."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from calotype.apart import require_apart, weights_files
from calotype.cli.common import (
    BackgroundOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    EncodeDtypeOption,
    JsonOption,
    MemoryOption,
    OutOption,
    colour,
    finish,
    make_folder,
    require_folder,
    stem_of,
)
from calotype.cli.editing import EditVaeOption, SizeOption, bar, read_sources, sized
from calotype.errors import UsageError

NAME = "vary"
EXAMPLE = "Example: [bold]calotype vary photo.jpg --noise latents --temperature 0.3 --out varied/[/]"


class NoiseName(str, Enum):
    """What noise is in units of."""

    posterior = "posterior"
    latents = "latents"


def command(
    picture: Annotated[Path, typer.Argument(help="A picture; or latents, with --noise latents.")],
    out: OutOption = Path(),
    vae: EditVaeOption = None,
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 8,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the first; the others count on.")] = 0,
    temperature: Annotated[float, typer.Option(help="How much noise: 0 none, 1 one unit.")] = 1.0,
    noise: Annotated[
        NoiseName, typer.Option(help="Unit: the posterior's std, or that of each channel of the picture's latents.")
    ] = NoiseName.posterior,
    size: SizeOption = None,
    background: BackgroundOption = "white",
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    encode_dtype: EncodeDtypeOption = None,
    memory: MemoryOption = None,
    json: JsonOption = False,
) -> None:
    """Draw variations of a picture: PICTURE-vary-SEED.png, and all of them in PICTURE-vary.png.

    Latents are the posterior's mean + temperature * std * noise. At temperature 1 a variation is what `calotype
    reconstruct --seed` gives; at 0 it is the mode, which the sheet shows first. A seed's variation is the same alone
    and among others. Posteriors of most VAEs are so narrow that nothing is to be seen at temperature 1: the command
    says how narrow. --noise latents is the same for all VAEs, also for those (TAESD) that have no posterior.
    """
    from calotype.draw.record import origin, record
    from calotype.edit.sheet import sheet, thumbnail
    from calotype.edit.vary import vary
    from calotype.engine.budget import parse_memory
    from calotype.engine.run import share
    from calotype.pixels import read_picture, to_pil, write_picture

    require_folder(out)
    if seed + count > 2**63:
        raise UsageError(f"--seed {seed}: there are no {count} seeds from there on; give a smaller one.")
    if memory is not None:
        parse_memory(memory)
    (source,), loaded = read_sources([picture], [sized(size)], colour(background), vae, device, dtype, encode_dtype)
    seeds = range(seed, seed + count)
    stem = stem_of(picture)
    paths = [out / f"{stem}-vary-{one}.png" for one in seeds]
    grid = out / f"{stem}-vary.png"
    require_apart([*paths, grid], [picture, *weights_files(vae)])
    with bar("Varying", json) as told:
        found = vary(
            loaded, source, seeds, temperature=temperature, noise=noise.value, memory=memory,
            progress=share(told, 0, count + 2),
        )  # fmt: skip
        _, rows, columns = found.mode.tensor.shape
        f = loaded.factor * loaded.enlarges
        loaded.engine.plan("decode", rows * f, columns * f, memory)
        made = {
            "source": origin(picture), "temperature": temperature, "noise": noise.value,
            "size": [found.mode.padding.width, found.mode.padding.height],
            "vae": {"name": loaded.name, "sha256": loaded.sha256},
        }  # fmt: skip
        make_folder(out)
        small = [thumbnail(loaded.decode_image(found.mode, memory=memory, progress=share(told, 1, count + 2)))]
        for i, (path, latents) in enumerate(zip(paths, found, strict=True)):
            text_of = record(NAME, {**made, "seed": seeds[i]})
            loaded.write_image(path, latents, text=text_of, memory=memory, progress=share(told, i + 2, count + 2))
            small.append(thumbnail(to_pil(read_picture(path).pixels)))
    write_picture(grid, sheet(small, ["mode", *(f"seed {one}" for one in seeds)], columns=3 if count < 9 else 6))
    document = {
        "vae": loaded.name, "vae_sha256": loaded.sha256, "picture": str(picture), "temperature": temperature,
        "noise": noise.value, "relative_std": found.relative_std, "sheet": str(grid),
        "results": [{"seed": one, "picture": str(path)} for one, path in zip(seeds, paths, strict=True)],
    }  # fmt: skip

    def text() -> None:
        for path in paths:
            print(path)
        print(grid)
        if noise is NoiseName.posterior and found.relative_std is not None:
            part = 100 * found.relative_std
            print(
                f"The posterior's std is {part:.3g}% of the latents' own: temperature {100 / part:.3g} would equal it."
            )

    finish(document, as_json=json, text=text)
