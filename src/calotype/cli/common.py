"""What commands share: options, progress over files, and saying things."""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from calotype import stopping
from calotype.addresses import require_local
from calotype.apart import require_apart, weights_files
from calotype.cli.bars import shown
from calotype.errors import CalotypeError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from calotype.engine.executor import Progress
    from calotype.vae import VAE

LATENTS_ENDING = ".latents.safetensors"  # of what `calotype encode` writes


class Dtype(str, Enum):
    """Types to compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class WeightsName(str, Enum):
    """Weights of a training."""

    raw = "raw"
    ema = "ema"


class SpaceName(str, Enum):
    """Which latents are in a file."""

    raw = "raw"
    model = "model"


class Alpha(str, Enum):
    """What becomes of transparency."""

    over = "over"
    keep = "keep"


PICTURES = (
    "Pictures: a folder, a .zip, .tars (a-{000..010}.tar), or a dataset (hf:NAME:SPLIT:COLUMN); here or at an address "
    "(s3://bucket/folder)."
)
DataArgument = Annotated[str, typer.Argument(metavar="DATA", help=PICTURES)]
VaeOption = Annotated[
    str | None,
    typer.Option("--vae", help="Weights: a preset's name, or a file or folder in any layout.", show_default="built-in"),
]
# those of all families, whose modules take a help's time to import
LATENT_FORMATS = (
    "sd1, sdxl, sd3, flux, playground, wan2.1, wan2.2, qwen-image-2.1, sana, hunyuan-image, vq-f4, vq-f8, vq-f16, movq"
)
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--latent-format",
        help=f"How models scale the latents, where weights can't tell: {LATENT_FORMATS} or none; model:NAME where they "
        "are NAME's model latents already, as a TAEHV's.",
        show_default="from the weights",
    ),
]
PrefixOption = Annotated[
    str | None,
    typer.Option(
        "--prefix",
        help="Of the VAE's tensors, in a file with several: first_stage_model.",
        show_default="the one there is",
    ),
]
WeightsOption = Annotated[
    WeightsName | None,
    typer.Option(
        "--weights",
        help="As trained (raw) or averaged (ema), in a file with both.",
        show_default="ema if it is whole",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.", show_default="the fastest there is")
]
DtypeOption = Annotated[Dtype, typer.Option(help="What to compute in; overflow falls back to float32.")]
EncodeDtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        "--encode-dtype",
        help="What to encode in: latents lose more by a narrow type than pictures do.",
        show_default="float32, whatever --dtype is",
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=2**63 - 1,  # what torch takes
        help="Draw latents from the posterior with this seed.",
        show_default="its mode, the likeliest latents",
    ),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to; made if it is not there.")]
AlphaOption = Annotated[
    Alpha | None,
    typer.Option(
        help="Composite transparent pictures over the background, or keep alpha aside.",
        show_default="over; a VAE of RGBA takes alpha itself",
    ),
]
BackgroundOption = Annotated[str, typer.Option(help="Colour under transparent pictures: a name or #rrggbb.")]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory",
        help="At most so much memory, beside weights and picture: 512MB, 2GB. The result is the same.",
        show_default="what is fast, and free",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def complain(message: str) -> None:
    """One line on standard error; what a file's name may hold that moves a cursor stands as escape sequences."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.split()))
    print(f"calotype: {line}", file=sys.stderr)


def stop(message: str = "Stopped.") -> NoReturn:
    """Ends a command that was stopped, with a line on standard error, if that still takes one."""
    while hasattr(sys.stderr, "rich_proxied_file"):  # an interrupt within rich may leave it behind, and mute
        sys.stderr = sys.stderr.rich_proxied_file
    with suppress(OSError):  # a terminal that is closed
        complain(message)
    raise typer.Exit(stopping.exit_code())


def load_vae(
    vae: str | None,
    latent_format: str | None,
    device: str | None,
    dtype: Dtype,
    prefix: str | None = None,
    weights: WeightsName | None = None,
    encode_dtype: Dtype | None = None,
) -> VAE:
    """`calotype.load` with options as the command line gives them."""
    import torch

    from calotype.vae import load

    return load(
        vae,
        latent_format=latent_format,
        device=device,
        dtype=getattr(torch, dtype.value),
        encode_dtype=getattr(torch, encode_dtype.value) if encode_dtype else None,
        prefix=prefix,
        weights=weights.value if weights else None,
    )


def size_of(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT -> (width, height).

    Raises:
        UsageError: if it is no such size.
    """
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and 0 < int(width) <= 2**16 and 0 < int(height) <= 2**16):
        raise UsageError(f"{text!r} is no size; give WIDTHxHEIGHT in pixels, up to 65536 each, as in 2048x1024.")
    return int(width), int(height)


def colour(text: str) -> tuple[int, int, int]:
    """A colour's name or #rrggbb -> red, green, blue."""
    from PIL import ImageColor

    try:
        red, green, blue, *_ = ImageColor.getrgb(text)
    except ValueError:
        raise UsageError(f"--background {text}: give a colour's name or #rrggbb.") from None
    return red, green, blue


def stem_of(path: Path) -> str:
    """What is named after a picture or latents is called so."""
    return path.name.removesuffix(LATENTS_ENDING) if path.name.endswith(LATENTS_ENDING) else path.stem


def outputs(inputs: Sequence[Path], out: Path, ending: str, vae: str | None = None) -> list[Path]:
    """One path in `out` for each input, named after it.

    Raises:
        UsageError: if two inputs would be written to one path, an input or the VAE would be overwritten, or `out` is a
            file.
    """
    require_folder(out)
    paths: dict[Path, Path] = {}
    for source in inputs:
        stem = stem_of(source)
        path = out / f"{stem}{ending}"
        if path in paths:
            if paths[path] == source:
                raise UsageError(f"{source} is given twice; give it once.")
            raise UsageError(
                f"{paths[path]} and {source} would both be written to {path}; "
                f"run them one by one, each with its own --out."
            )
        paths[path] = source
    require_apart(paths, [*inputs, *weights_files(vae)])
    return list(paths)


def require_distinct(paths: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Checks paths of what is written, where one input gives several: each once, and none of them is read.

    Raises:
        UsageError: two are the same, or an input would be overwritten.
    """
    if twice := next((path for path, count in Counter(paths).items() if count > 1), None):
        raise UsageError(
            f"Two pictures would both be written to {twice}; run their files one by one, each with its own --out."
        )
    require_apart(paths, inputs)


# what ends the names of files that commands write
_FILES = (".avif", ".html", ".jpeg", ".jpg", ".json", ".png", ".safetensors", ".tif", ".tiff", ".webp")


def require_folder(out: Path, option: str = "--out") -> None:
    """Checks that `out`, which an option gave, is a folder or can become one.

    Raises:
        UsageError: if it is a file, would lie in one or is called like one, or can't be written to, or is an address.
    """
    require_local(out, option)
    if out.suffix.lower() in _FILES and not out.exists():
        raise UsageError(f"{option} {out}: a folder is wanted here, and this is a file's name; give {out.stem}, say.")
    nearest = next(path for path in (out, *out.parents) if path.exists())
    if not nearest.is_dir():
        raise UsageError(f"{option} {out}: {nearest} is a file; give a folder.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {out}: {nearest} can't be written to; give another folder.")


def make_folder(out: Path) -> None:
    """Makes the folder to write to; called late, so that a request that can't be met leaves nothing behind.

    Raises:
        UsageError: if it can't be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: this folder can't be made ({error.strerror}); give another.") from None


Failure = dict[str, str]  # file and error


def for_each(
    inputs: Sequence[Path], work: Callable[[int, Progress | None], Any], *, doing: str, quiet: bool
) -> tuple[list[Any], list[Failure]]:
    """work(0, told), work(1, told), ...: what fails is said and the others go on: (results, failures).

    `told` moves the progress bar: it takes the part of this input that is done, from 0 to 1.
    """
    results: list[Any] = []
    failures: list[Failure] = []
    with shown(doing, quiet=quiet) as move:
        for i, name in enumerate(inputs):
            words = f"{doing} {name.name} ({i + 1} of {len(inputs)})" if len(inputs) > 1 else doing

            def told(part: float, i: int = i, words: str = words) -> None:
                move((i + part) / len(inputs), words)

            told(0.0)
            try:
                results.append(work(i, told))
            except CalotypeError as error:
                if stopping.interrupted():  # this is what became of it
                    raise KeyboardInterrupt from None
                failures.append({"file": str(inputs[i]), "error": str(error)})
                complain(str(error))
            told(1.0)
    return results, failures


def finish(
    document: dict[str, Any], *, as_json: bool, text: Callable[[], None], failures: Sequence[Failure] = (), of: int = 1
) -> None:
    """Prints the result one way or the other, and exits with 1 if any of so many failed."""
    if as_json:
        whole = {**document, "failures": list(failures)} if "results" in document else document
        print(json.dumps(_finite(whole), indent=2, allow_nan=False))
    else:
        text()
    if failures:
        if of > 1:  # the reason of a single one was just given
            complain(f"{len(failures)} of {of} failed.")
        raise typer.Exit(1)


def _finite(value: Any) -> Any:
    """JSON has no infinity (PSNR of equal pictures) and no NaN: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: Sequence[tuple[str, str]]) -> None:
    """Two columns: a name and what it is."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value)
    show(grid)


def show(grid: Table) -> None:
    """Prints a table, on a terminal as wide as it and else 120 columns wide."""
    from rich.console import Console

    columns = os.environ.get("COLUMNS", "")
    width = None if sys.stdout.isatty() else int(columns) if columns.isdecimal() else 120
    # paths may hold brackets and colons, which are neither markup nor emoji
    Console(width=width, markup=False, emoji=False).print(grid)
