"""`calotype redraw`: a picture changed by words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.apart import require_apart, weights_files
from calotype.cli.common import (
    LATENTS_ENDING,
    BackgroundOption,
    DeviceOption,
    JsonOption,
    OutOption,
    colour,
    complain,
    finish,
    make_folder,
    require_folder,
    stem_of,
)
from calotype.cli.drawing import (
    MOST_SEED,
    Asked,
    ConfigOption,
    DrawDtypeOption,
    DrawVaeOption,
    Edit,
    GuidanceAboveOption,
    GuidanceOption,
    ModelOption,
    NegativeOption,
    PreviewByOption,
    PreviewEveryOption,
    PreviewOption,
    SamplerOption,
    StepsOption,
    caption,
    following,
    keeping,
    load_model,
    preview_of,
    require_text,
)
from calotype.cli.editing import InvertMaskOption, SizeOption, read_mask, read_source, sized
from calotype.errors import UsageError

if TYPE_CHECKING:
    from calotype.edit.masks import Selected

NAME = "redraw"
EXAMPLE = 'Example: [bold]calotype redraw apple.png "a green apple" "a pear" --strength 0.5[/]'


def command(
    picture: Annotated[Path, typer.Argument(help="A picture, or latents that `calotype encode` wrote.")],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What it is to become, one after another.")],
    strength: Annotated[float, typer.Option(help="How much changes: 0 nothing, 1 all of it is new.")] = 0.6,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Picture of the same size: white, or what is painted on transparent, is redrawn; of the picture "
            "itself, its transparent holes.",
            show_default="all is redrawn",
        ),
    ] = None,
    invert_mask: InvertMaskOption = False,
    feather: Annotated[
        int | None,
        typer.Option(
            min=0, max=1024, help="How many pixels beyond the mask what was drawn fades out.", show_default="16"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of the first prompt; the others count on.")] = 0,
    out: OutOption = Path(),
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    guidance_above: GuidanceAboveOption = None,
    negative: NegativeOption = None,
    sampler: SamplerOption = None,
    size: SizeOption = None,
    save_latents: Annotated[
        bool, typer.Option("--save-latents", help="Also write the last latents: PICTURE-redraw.latents.safetensors.")
    ] = False,
    background: BackgroundOption = "white",
    preview: PreviewOption = None,
    preview_by: PreviewByOption = None,
    preview_every: PreviewEveryOption = None,
    model: ModelOption = None,
    vae: DrawVaeOption = None,
    config: ConfigOption = None,
    device: DeviceOption = None,
    dtype: DrawDtypeOption = None,
    json: JsonOption = False,
) -> None:
    """Change a picture by words: PICTURE-redraw-1.png for the first prompt, and so on, and all in PICTURE-redraw.png.

    Each prompt changes the latents that the one before it left, so the picture does not wear out on the way (a Stable
    Diffusion checkpoint encodes it anew each time). With --mask, only what is white is redrawn, all of it anew: beyond
    the feather around it not one pixel changes.
    """
    from calotype.draw.record import origin, record
    from calotype.edit.feather import FEATHER
    from calotype.edit.sheet import sheet, thumbnail
    from calotype.latent_files import save_latents as write_latents
    from calotype.latents import Latents
    from calotype.pixels import read_picture, to_pil, write_picture

    if not 0.0 <= strength <= 1.0:
        raise UsageError(f"--strength is a number from 0 (nothing changes) to 1 (all is new), not {strength:g}.")
    if mask is None and feather is not None:
        raise UsageError("--feather softens a mask's edges; give --mask too, or leave it out.")
    if mask is None and invert_mask:
        raise UsageError("--invert-mask goes with a mask; give --mask too, or leave it out.")
    if seed + len(prompts) > MOST_SEED + 1:
        raise UsageError(f"--seed {seed}: there are no {len(prompts)} seeds from there on; give a smaller one.")
    for prompt in prompts:
        require_text(prompt)
        _require_no_file(prompt)
    asked = Asked(
        steps=steps,
        guidance=guidance,
        guidance_above=guidance_above,
        negative=negative or "",
        sampler=None if sampler is None else sampler.value,
    )
    stem = stem_of(picture)
    paths = [out / f"{stem}-redraw-{i}.png" for i in range(1, len(prompts) + 1)]
    strip, kept = out / f"{stem}-redraw.png", out / f"{stem}-redraw{LATENTS_ENDING}"
    inputs = [picture, *filter(None, (mask,)), *weights_files(model, vae, config)]
    require_apart([*paths, strip, kept], inputs)
    require_folder(out)
    followed = preview_of(preview, preview_by, preview_every, [*inputs, *paths, strip, kept])
    under = colour(background)
    source = read_source(picture, sized(size), under)
    height, width = source.size if not isinstance(source, Latents) else (source.padding.height, source.padding.width)
    over = None
    if mask is not None:
        own = picture.exists() and mask.exists() and mask.samefile(picture)
        alpha: Selected = "transparent" if own else "auto"
        over = read_mask(mask, (height, width), picture, alpha=alpha, invert=invert_mask)
        if own and strength < 1:
            complain(
                f"{picture}: What is drawn begins with the background in its hole; at --strength 1 it is not looked at."
            )
        if not over.any():
            found = "white all over and inverted" if invert_mask else "black all over"
            raise UsageError(f"{mask} is {found}, so nothing would be redrawn; make white what is to change.")
        if isinstance(source, Latents):
            complain(f"{picture}: these are latents, so what the mask keeps is as the VAE decodes it.")
    drawing = load_model(model, vae, config, device, dtype)
    for prompt in prompts:
        for notice in drawing.notices(prompt):
            complain(notice)
    reach = FEATHER if feather is None else feather
    edit = Edit(source=source, prompts=prompts, seed=seed, strength=strength, mask=over, feather=reach)
    settings: dict[str, Any] = {
        **drawing.made_with(asked), "size": [width, height], "strength": strength, "source": origin(picture),
        "mask": None if mask is None else origin(mask), "invert_mask": invert_mask,
        "feather": None if mask is None else reach,
    }  # fmt: skip
    first = drawing.decode(source) if isinstance(source, Latents) else to_pil(source.rows(0, height))
    small, results = [thumbnail(first)], []
    with (
        keeping(len(prompts), out) as finished,
        following(drawing, len(prompts), doing="Redrawing", preview=followed, quiet=json) as follow,
    ):
        for i, stage in enumerate(drawing.redraw(edit, asked, follow.on_step)):
            make_folder(out)
            made = {"prompts": prompts[: i + 1], "seed": seed, **settings, **drawing.names}
            stage.write(paths[i], record(NAME, made))
            finished.append(paths[i])
            small.append(thumbnail(to_pil(read_picture(paths[i]).pixels)))
            results.append({"prompt": prompts[i], "seed": seed + i, "picture": str(paths[i])})
        write_picture(strip, sheet(small, ["source", *map(caption, prompts)]))
        if save_latents:
            write_latents(kept, stage.latents)
    document = {
        "picture": str(picture), "model": drawing.name, "model_sha256": drawing.sha256, "vae": drawing.vae_name,
        "vae_sha256": drawing.vae_sha256, **settings, "sheet": str(strip),
        "latents": str(kept) if save_latents else None, "results": results,
    }  # fmt: skip

    def text() -> None:
        for path in (*paths, strip, *([kept] if save_latents else [])):
            print(path)

    finish(document, as_json=json, text=text)


def _require_no_file(prompt: str) -> None:
    """Checks that a prompt is no file's name, as it is where --mask was forgotten.

    Raises:
        UsageError: if it is.
    """
    try:
        there = Path(prompt).is_file()
    except OSError:  # too long for a name
        return
    if there:
        raise UsageError(f"{prompt} is a file and no prompt; give a mask with --mask, and pictures one by one.")
