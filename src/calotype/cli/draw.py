"""`calotype draw`: pictures of words."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import typer

from calotype.apart import require_apart, weights_files
from calotype.cli.common import (
    DeviceOption,
    Dtype,
    JsonOption,
    OutOption,
    complain,
    finish,
    make_folder,
    require_folder,
)
from calotype.cli.drawing import (
    BUILTIN,
    MOST_SEED,
    Asked,
    ConfigOption,
    DrawDtypeOption,
    DrawVaeOption,
    GuidanceAboveOption,
    GuidanceOption,
    Model,
    ModelOption,
    NegativeOption,
    OwnModel,
    PreviewByOption,
    PreviewEveryOption,
    PreviewOption,
    SamplerName,
    SamplerOption,
    SeedsOption,
    StepsOption,
    caption,
    following,
    keeping,
    load_model,
    preview_of,
    require_text,
    slug,
)
from calotype.cli.editing import sized
from calotype.errors import PictureError, UsageError

NAME = "draw"
EXAMPLE = 'Example: [bold]calotype draw "a red apple" -n 4 --out apples/[/]'

# of records: what each setting is
_TYPES: dict[str, tuple[type, ...]] = {
    "prompt": (str,), "negative": (str,), "seed": (int,), "steps": (int,), "guidance": (int, float, type(None)),
    "sampler": (str, type(None)), "size": (list,), "model": (dict,), "vae": (dict,),
}  # fmt: skip


def command(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw.", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Pictures of each prompt.")] = 1,
    seed: SeedsOption = None,
    out: OutOption = Path(),
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    guidance_above: GuidanceAboveOption = None,
    negative: NegativeOption = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Of pictures, in pixels.", show_default="the model's")
    ] = None,
    sampler: SamplerOption = None,
    like: Annotated[
        Path | None, typer.Option(help="Draw a picture again; other options change it.", show_default="none")
    ] = None,
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
    """Draw pictures of words: PROMPT-SEED.png, and where there are several all in PROMPT.png, after the first prompt.

    A seed's picture is the same alone and among others. Every picture holds how it was made (prompt, seed, settings,
    and the sha256 of model and VAE), so --like draws it again, bit by bit on the same machine. The built-in model draws
    small pictures; --model takes checkpoints (Stable Diffusion, FLUX, Qwen-Image and others), which need the packages
    diffusers and transformers.
    """
    from calotype.draw.record import record
    from calotype.edit.sheet import sheet, thumbnail
    from calotype.pixels import write_picture

    known = _known(like) if like is not None else {}
    if not prompts and like is None:
        raise UsageError("There is no prompt; say what to draw.")
    wanted = prompts or [known["prompt"]]
    first = known.get("seed", 0) if seed is None else seed
    if first + count > MOST_SEED + 1:
        raise UsageError(f"--seed {first}: there are no {count} seeds from there on; give a smaller one.")
    asked = Asked(
        steps=known.get("steps") if steps is None else steps,
        guidance=known.get("guidance") if guidance is None else guidance,
        guidance_above=known.get("guidance_above") if guidance_above is None else guidance_above,
        sampler=known.get("sampler") if sampler is None else sampler.value,
        negative=known.get("negative", "") if negative is None else negative,
        size=(tuple(known["size"]) if known else None) if size is None else sized(size),
    )
    for prompt in wanted:
        require_text(prompt)
    seeds = range(first, first + count)
    jobs = [(prompt, one, out / f"{slug(prompt)}-{one}.png") for prompt in wanted for one in seeds]
    grid = out / f"{slug(wanted[0])}.png" if len(jobs) > 1 else None
    paths = [path for *_, path in jobs]
    read = [*filter(None, (like,)), *weights_files(model, vae, config)]
    _require_own_paths(wanted, paths, grid, read)
    require_folder(out)
    followed = preview_of(preview, preview_by, preview_every, [*paths, *filter(None, (grid,)), *read])
    if known and model is None and known["model"]["name"] != BUILTIN:
        raise UsageError(f"{like} was drawn by {known['model']['name']}; give that with --model.")
    if dtype is None and known.get("dtype") in list(Dtype):
        dtype = Dtype(known["dtype"])
    drawing = load_model(model, vae, config, device, dtype)
    if known and isinstance(drawing, OwnModel) and asked.guidance_above is None:
        asked = replace(asked, guidance_above=0.0)  # which all were drawn with before there was a choice
    if known:
        _require_same(drawing, known, like)
    for prompt in wanted:
        for notice in drawing.notices(prompt):
            complain(notice)
    small, results = [], []
    with (
        keeping(len(jobs), out) as finished,
        following(drawing, len(jobs), doing="Drawing", preview=followed, quiet=json) as follow,
    ):
        for i, (prompt, one, path) in enumerate(jobs):
            image = drawing.draw(prompt, one, asked, follow.on_step(i))
            made = {
                "prompt": prompt, "seed": one, **drawing.made_with(asked), "size": list(image.size), **drawing.names
            }  # fmt: skip
            make_folder(out)
            write_picture(path, image, text=record(NAME, made))
            finished.append(path)
            small.append(thumbnail(image))
            results.append({"prompt": prompt, "seed": one, "picture": str(path)})
        if grid is not None:
            captions = [f"seed {one}" if len(wanted) == 1 else f"{caption(prompt)}, {one}" for prompt, one, _ in jobs]
            columns = count if len(wanted) > 1 and count > 1 else ceil(len(jobs) ** 0.5)
            write_picture(grid, sheet(small, captions, columns=columns))
    document = {
        "model": drawing.name, "model_sha256": drawing.sha256, "vae": drawing.vae_name,
        "vae_sha256": drawing.vae_sha256, **drawing.made_with(asked), "size": list(image.size),
        "sheet": None if grid is None else str(grid), "results": results,
    }  # fmt: skip

    def text() -> None:
        for path in [*paths, *filter(None, (grid,))]:
            print(path)

    finish(document, as_json=json, text=text)


def _require_own_paths(prompts: list[str], paths: list[Path], grid: Path | None, read: list[Path]) -> None:
    """Checks that no picture would take another's place, or that of what is read.

    Raises:
        UsageError: if one would.
    """
    if len(set(prompts)) < len(prompts):
        twice = next(prompt for i, prompt in enumerate(prompts) if prompt in prompts[:i])
        raise UsageError(f"{twice!r} is given twice; give it once, and -n for more pictures.")
    every = [*paths, *filter(None, (grid,))]
    for i, path in enumerate(every):
        if path in every[:i]:
            raise UsageError(f"Two pictures would be written to {path}; draw these prompts one by one, in two --out.")
    require_apart(every, read)


def _known(like: Path) -> dict[str, Any]:
    """What a drawn picture says of itself.

    Raises:
        PictureError: if it is damaged.
        UsageError: if it was not drawn, or does not say how it was made.
    """
    from calotype.draw.record import read_record

    found = read_record(like)
    if (kind := found["kind"]) != NAME:
        raise UsageError(f"{like} was made by `calotype {kind}`; --like takes what `calotype draw` drew.")
    right = all(key in found and type(found[key]) in types for key, types in _TYPES.items())
    if right:
        names = [found[key].get(part) for key in ("model", "vae") for part in ("name", "sha256")]
        right = all(isinstance(name, str) for name in names)
        right &= len(found["size"]) == 2 and all(type(side) is int for side in found["size"])
        right &= 0 <= found["seed"] <= MOST_SEED and 1 <= found["steps"] <= 1000
        right &= type(found.get("guidance_above", 0.0)) in (int, float)
        right &= found["sampler"] is None or found["sampler"] in {one.value for one in SamplerName}
    if not right:
        raise PictureError(f"{like} does not say all that is needed to draw it again; give prompts and options.")
    return found


def _require_same(model: Model, known: dict[str, Any], like: Path | None) -> None:
    """Checks that a picture was drawn by this model and VAE.

    Raises:
        UsageError: if it was not.
    """
    for what, option in (("model", "--model"), ("vae", "--vae")):
        there, here = known[what], model.names[what]
        if there["sha256"] != here["sha256"]:
            title = "VAE" if what == "vae" else what
            raise UsageError(
                f"{like} was drawn with the {title} {there['name']} (sha256 {there['sha256'][:12]}...), and this is "
                f"{here['name']} ({here['sha256'][:12]}...); give that one with {option}."
            )
