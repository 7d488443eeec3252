"""`calotype morph`: one picture turning into the next, as an animation."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from calotype.cli.common import (
    BackgroundOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    MemoryOption,
    colour,
    complain,
    finish,
    make_folder,
)
from calotype.cli.editing import PICTURES, EditVaeOption, SizeOption, bar, output_file, read_source, sized, vae_for
from calotype.errors import UsageError

NAME = "morph"
EXAMPLE = "Example: [bold]calotype morph a.jpg b.jpg --size 512x512 --ping-pong --out morph.webp[/]"


KINDS = ("morph", "cross_fade")


class KindName(str, Enum):
    """Ways between latents."""

    lerp = "lerp"
    slerp = "slerp"


class EasingName(str, Enum):
    """How time passes."""

    linear = "linear"
    cosine = "cosine"
    smoothstep = "smoothstep"
    in_ = "in"
    out = "out"


class LpipsName(str, Enum):
    """Networks of LPIPS."""

    vgg = "vgg"
    alex = "alex"
    none = "none"


def command(
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE PICTURE...", help=PICTURES)],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Animation: .gif, .png or .apng, .webp, .mp4 (needs calotype[video]).")
    ] = Path("morph.gif"),
    sheet: Annotated[
        Path | None, typer.Option(help="Also write a contact sheet of the frames here.", show_default="none")
    ] = None,
    vae: EditVaeOption = None,
    frames: Annotated[int, typer.Option(min=2, help="From one picture to the next, both included.")] = 24,
    way: Annotated[KindName, typer.Option(help="Straight through latents, or around their origin.")] = KindName.slerp,
    easing: Annotated[EasingName, typer.Option(help="How time passes between pictures.")] = EasingName.linear,
    fps: Annotated[float, typer.Option(help="Frames a second.")] = 12.0,
    ping_pong: Annotated[bool, typer.Option("--ping-pong", help="Go back the way it came.")] = False,
    closed: Annotated[bool, typer.Option("--closed", help="Go on from the last picture to the first.")] = False,
    plays: Annotated[int, typer.Option(min=0, help="How often it is played; 0 is without end.")] = 0,
    size: SizeOption = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Say how even the steps are, by RMSE and LPIPS, beside a cross-fade.")
    ] = False,
    lpips: Annotated[LpipsName, typer.Option(help="LPIPS's network for --measure, or none.")] = LpipsName.vgg,
    background: BackgroundOption = "white",
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    memory: MemoryOption = None,
    json: JsonOption = False,
) -> None:
    """Turn one picture into the next through their latents.

    The frames at the pictures are exactly what `calotype reconstruct` makes of them. APNG and WebP keep every frame as
    it was decoded; GIF has 256 colours, and MP4 is compressed. Ways that return (--ping-pong, --closed) end one frame
    before the first, so that the animation repeats without a halt. Pictures must be of one size, or be brought to it by
    --size.
    """
    from calotype.edit.animation import require_animation
    from calotype.edit.morph import Way, write_morph
    from calotype.edit.sources import latents_of
    from calotype.engine.budget import parse_memory
    from calotype.engine.run import share
    from calotype.evaluate.lpips import load_lpips
    from calotype.pixels import require_writable

    if len(pictures) < 2:
        raise UsageError(f"A morph leads from one picture to another; give another one beside {pictures[0]}.")
    chosen = Way(frames=frames, kind=way.value, easing=easing.value, closed=closed, ping_pong=ping_pong)
    output_file(out, pictures)
    require_animation(out, fps, plays)
    if sheet is not None:
        require_writable(output_file(sheet, [*pictures, out]))
    if memory is not None:
        parse_memory(memory)
    under, wanted = colour(background), sized(size)
    sources = [read_source(path, wanted, under) for path in pictures]
    loaded = vae_for(sources, pictures, vae, device, dtype)
    wants_lpips = measure and lpips is not LpipsName.none
    network = load_lpips(lpips.value).to(loaded.device) if wants_lpips else None  # type: ignore[arg-type]
    with bar("Encoding", json) as told:
        latents = []
        for i, source in enumerate(sources):
            latents.append(latents_of(loaded, source, memory=memory, progress=share(told, i, len(sources))))
            if latents[i].alpha is not None:
                complain(f"{pictures[i]}: its alpha was left out.")
    _require_one_size(pictures, [(one.padding.width, one.padding.height) for one in latents])
    for path in filter(None, (out, sheet)):
        make_folder(path.parent)
    with bar("Morphing", json) as told:
        made = write_morph(
            loaded, latents, out, chosen, fps=fps, plays=plays, sheet=sheet, measure=measure, lpips=network,
            memory=memory, progress=told,
        )  # fmt: skip
    steps = {key: {kind: _evenness(getattr(found, kind)) for kind in KINDS} for key, found in made.steps.items()}
    document = {
        "vae": loaded.name, "vae_sha256": loaded.sha256, "pictures": [str(path) for path in pictures], "out": str(out),
        "sheet": None if sheet is None else str(sheet), "frames": made.frames, "width": made.width,
        "height": made.height, "seconds": made.frames / fps, "steps": steps,
    }  # fmt: skip

    def text() -> None:
        print(f"{out}: {made.frames} frames of {made.width}x{made.height}, {made.frames / fps:.2f} s")
        for key, kinds in steps.items():
            name = "RMSE (levels)" if key == "rmse" else f"LPIPS ({lpips.value})"
            for kind, one in kinds.items():
                ratio = "" if one["ratio"] is None else f", largest over mean {one['ratio']:.2f}"
                title = kind.replace("_", "-")
                print(f"  {name} a step, {title}: mean {one['mean']:.4g}, largest {one['largest']:.4g}{ratio}")
        if sheet is not None:
            print(sheet)

    finish(document, as_json=json, text=text)


def _require_one_size(paths: list[Path], sizes: list[tuple[int, int]]) -> None:
    """Checks that pictures have one size.

    Raises:
        UsageError: if they have not.
    """
    (w0, h0), first = sizes[0], paths[0]
    for path, (w, h) in zip(paths, sizes, strict=True):
        if (w, h) != (w0, h0):
            raise UsageError(f"{path} is {w}x{h} and {first} {w0}x{h0}; bring them to one size with --size.")


def _evenness(steps: list[float]) -> dict[str, Any]:
    mean = sum(steps) / len(steps)
    return {"mean": mean, "largest": max(steps), "ratio": max(steps) / mean if mean else None, "steps": steps}
