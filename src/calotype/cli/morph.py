"""`calotype morph`: one picture turning into the next, as an animation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.apart import weights_files
from calotype.cli.common import (
    BackgroundOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    EncodeDtypeOption,
    JsonOption,
    MemoryOption,
    colour,
    complain,
    finish,
    make_folder,
)
from calotype.cli.drawing import (
    MOST_SEED,
    Asked,
    GuidanceAboveOption,
    GuidanceOption,
    Model,
    ModelOption,
    OwnModel,
    StepsOption,
    load_model,
    require_text,
)
from calotype.cli.editing import PICTURES, EditVaeOption, SizeOption, bar, output_file, read_sources, sized
from calotype.errors import UsageError

if TYPE_CHECKING:
    from calotype.edit.morph import Frame

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
    ctx: typer.Context,
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE PICTURE...", help=f"{PICTURES} Or prompts.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Animation: .gif, .png or .apng, .webp, .mp4 (needs the package av).")
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
    prompts: Annotated[
        bool, typer.Option("--prompts", help="The words are prompts: every frame is drawn, from one to the next.")
    ] = False,
    seed: Annotated[
        list[int] | None,
        typer.Option(min=0, max=MOST_SEED, help="With --prompts: of all, or once for each.", show_default="0"),
    ] = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    guidance_above: GuidanceAboveOption = None,
    model: ModelOption = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Say how even the steps are, by RMSE and LPIPS, beside a cross-fade.")
    ] = False,
    lpips: Annotated[LpipsName, typer.Option(help="LPIPS's network for --measure, or none.")] = LpipsName.vgg,
    background: BackgroundOption = "white",
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    encode_dtype: EncodeDtypeOption = None,
    memory: MemoryOption = None,
    json: JsonOption = False,
) -> None:
    """Turn one picture into the next through their latents.

    The frames at the pictures are exactly what `calotype reconstruct` makes of them. APNG and WebP keep every frame as
    it was decoded; GIF has 256 colours, and MP4 is compressed. Ways that return (--ping-pong, --closed) end one frame
    before the first, so that the animation repeats without a halt. Pictures must be of one size, or be brought to it by
    --size.

    With --prompts, noise and texts pass into each other, and the frames at the prompts are what `calotype draw` makes
    of them with that seed.
    """
    from calotype.draw.record import origin, record
    from calotype.edit.animation import WITH_ALPHA, require_animation
    from calotype.edit.morph import Way, morph, write_frames
    from calotype.edit.sources import latents_of
    from calotype.engine.budget import parse_memory
    from calotype.engine.run import share
    from calotype.evaluate.lpips import load_lpips
    from calotype.families import require_as_large
    from calotype.pixels import require_writable

    _require_fitting(ctx, prompts)
    if len(pictures) < 2:
        what = repr(pictures[0]) if prompts else pictures[0]
        raise UsageError(
            f"A morph leads from one {'prompt' if prompts else 'picture'} to another; give another one beside {what}."
        )
    chosen = Way(frames=frames, kind=way.value, easing=easing.value, closed=closed, ping_pong=ping_pong)
    paths = [] if prompts else [Path(one) for one in pictures]
    read = [*paths, *weights_files(vae, model)]
    output_file(out, read)
    require_animation(out, fps, plays)
    if sheet is not None:
        require_writable(output_file(sheet, read, "--sheet"))
        if sheet.resolve() == out.resolve():
            raise UsageError(f"{out} would be overwritten; give another --sheet.")
    if memory is not None:
        parse_memory(memory)
    under, wanted = colour(background), sized(size)
    made_of: dict[str, Any] = {"frames": frames, "easing": easing.value, "closed": closed, "ping_pong": ping_pong}
    frames_of: Callable[..., Iterator[Frame]]
    if prompts:
        from calotype.draw.walk import walk

        seeds = _seeds(seed, pictures)
        asked = Asked(steps=steps, guidance=guidance, guidance_above=guidance_above, size=wanted)
        for prompt in pictures:
            require_text(prompt)
        drawing = _own(load_model(model, vae, None, device, None))
        for prompt in pictures:
            for notice in drawing.notices(prompt):
                complain(notice)
        loaded, settings = drawing.drawer.vae, drawing.settings(asked)
        padding = drawing.drawer.padding(settings)
        frames_of = partial(walk, drawing.drawer, pictures, seeds, settings, chosen)
        named = {"model": drawing.name, "model_sha256": drawing.sha256, "prompts": pictures, "seeds": seeds}
        made_of |= {"prompts": pictures, "seeds": seeds, **drawing.made_with(asked), **drawing.names}
    else:
        sources, loaded = read_sources(paths, [wanted] * len(paths), under, vae, device, dtype, encode_dtype)
        require_as_large(loaded.config, "A morph")
        with bar("Encoding", json) as told:
            latents = []
            for i, source in enumerate(sources):
                latents.append(latents_of(loaded, source, memory=memory, progress=share(told, i, len(sources))))
                if latents[i].alpha is not None:
                    complain(f"{paths[i]}: its alpha was left out.")
        if loaded.picture_channels == 4 and out.suffix.lower() not in WITH_ALPHA:
            complain(
                f"{out}: {out.suffix} has no alpha here, so frames are over white; {', '.join(WITH_ALPHA)} keep it."
            )
        _require_one_size(paths, [(one.padding.width, one.padding.height) for one in latents])
        padding = latents[0].padding
        frames_of = partial(morph, loaded, latents, chosen, memory=memory)
        named = {"pictures": pictures}
        made_of |= {"sources": [origin(path) for path in paths], "way": way.value}
        made_of |= {"vae": {"name": loaded.name, "sha256": loaded.sha256}}
    wants_lpips = measure and lpips is not LpipsName.none
    network = load_lpips(lpips.value).to(loaded.device) if wants_lpips else None  # type: ignore[arg-type]
    for path in filter(None, (out, sheet)):
        make_folder(path.parent)
    with bar("Morphing", json) as told:
        made = write_frames(
            frames_of(progress=told), out, chosen, len(pictures), (padding.width, padding.height),
            alpha=loaded.picture_channels == 4, fps=fps, plays=plays, sheet=sheet, measure=measure, lpips=network,
            text=record(NAME, {**made_of, "size": [padding.width, padding.height]}),
        )  # fmt: skip
    evenness = {key: {kind: _evenness(getattr(found, kind)) for kind in KINDS} for key, found in made.steps.items()}
    document = {
        "vae": loaded.name, "vae_sha256": loaded.sha256, **named, "out": str(out),
        "sheet": None if sheet is None else str(sheet), "frames": made.frames, "width": made.width,
        "height": made.height, "seconds": made.frames / fps, "steps": evenness,
    }  # fmt: skip

    def text() -> None:
        print(f"{out}: {made.frames} frames of {made.width}x{made.height}, {made.frames / fps:.2f} s")
        for key, kinds in evenness.items():
            name = "RMSE (levels)" if key == "rmse" else f"LPIPS ({lpips.value})"
            for kind, one in kinds.items():
                ratio = "" if one["ratio"] is None else f", largest over mean {one['ratio']:.2f}"
                title = kind.replace("_", "-")
                print(f"  {name} a step, {title}: mean {one['mean']:.4g}, largest {one['largest']:.4g}{ratio}")
        if sheet is not None:
            print(sheet)

    finish(document, as_json=json, text=text)


def _require_fitting(ctx: typer.Context, prompts: bool) -> None:
    """Checks that options of drawn frames and of pictures are not mixed.

    Raises:
        UsageError: if they are.
    """
    of_pictures, of_drawings = (
        ("way", "background", "dtype", "encode_dtype", "memory"),
        ("seed", "steps", "guidance", "guidance_above", "model"),
    )
    for name in of_pictures if prompts else of_drawings:
        option = f"--{name.replace('_', '-')}"
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            if prompts:
                raise UsageError(f"{option} does nothing to what is drawn by --prompts; leave it out.")
            raise UsageError(f"{option} goes with --prompts, and these are pictures; leave it out.")


def _seeds(seeds: list[int] | None, prompts: list[str]) -> list[int]:
    """One for each prompt.

    Raises:
        UsageError: if there are neither one nor as many as prompts.
    """
    given = seeds or [0]
    if len(given) not in (1, len(prompts)):
        raise UsageError(
            f"There are {len(given)} seeds for {len(prompts)} prompts; give --seed once, or once for each."
        )
    return given * len(prompts) if len(given) == 1 else given


def _own(model: Model) -> OwnModel:
    """A drawing model of calotype.

    Raises:
        UsageError: for a checkpoint.
    """
    if not isinstance(model, OwnModel):
        raise UsageError(f"{model.name} is a checkpoint, and morphs are drawn by calotype's own models; leave it out.")
    return model


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
