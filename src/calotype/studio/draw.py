"""Draw: words to a picture, and pictures changed by words, one step after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calotype.studio import forms
from calotype.studio.commands import inputs, picture, resources
from calotype.studio.jobs import Command, Job, Order, Word
from calotype.studio.shelf import BUILTIN, Shelf
from calotype.studio.visits import Visit

PREVIEW = "now.png"
_MOST_SEED = 2**53  # that a page counts to


def _settings(shelf: Shelf, form: dict[str, Any]) -> list[Word]:
    """Options that drawing and redrawing share."""
    options: list[Word] = ["--seed", str(forms.whole(form, "seed", 0, 0, _MOST_SEED))]
    if form.get("steps"):
        options += ["--steps", str(forms.whole(form, "steps", 24, 1, 1000))]
    if form.get("guidance") not in (None, ""):
        options += ["--guidance", forms.written(forms.number(form, "guidance", 4.0, 0.0, 100.0))]
    if form.get("negative"):
        options += ["--negative", forms.text(form, "negative", "negative prompt")]
    model = shelf.model(form.get("model", 0))
    if model.shown != BUILTIN:
        options += ["--model", model]
    return [*options, *resources(shelf, memory=False)]


def _hidden(shelf: Shelf, form: dict[str, Any]) -> list[str]:
    """What makes the preview: the VAE itself of the small built-in model, and a linear map of a checkpoint's."""
    by = [] if shelf.model(form.get("model", 0)).shown == BUILTIN else ["--preview-by", "factors"]
    return ["--json", "--preview", PREVIEW, *by]


def _finish(visit: Visit, job: Job, said: list[Any]) -> list[dict[str, Any]]:
    rows = said[0]["results"]
    return [picture(visit, job, row["picture"], caption=row["prompt"], seed=row["seed"]) for row in rows]


def _python(shelf: Shelf, form: dict[str, Any], *imports: str) -> str:
    """The first lines, for the built-in model."""
    given = [key for key in ("steps", "guidance") if form.get(key) not in (None, "")]
    words = [f"{key}={forms.written(float(form[key]))}" for key in given]
    words += [f"negative={' '.join(form['negative'].split())!r}"] if form.get("negative") else []
    lines = [*imports, "from calotype.draw.pipeline import Settings, load_drawer", "", "drawer = load_drawer()"]
    return "\n".join([*lines, f"settings = Settings({', '.join(words)})", ""])


def draw(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> Order:
    """A picture of words."""
    prompt = forms.text(form, "prompt", "prompt")
    count = forms.whole(form, "count", 1, 1, 16)
    options = [*_settings(shelf, form), *(["-n", str(count)] if count > 1 else []), *forms.size(form)]
    seed = forms.whole(form, "seed", 0, 0, _MOST_SEED)
    python = _python(shelf, form) + (
        f"for seed in range({seed}, {seed + count}):\n"
        f"    latents = drawer.draw({prompt!r}, seed=seed, settings=settings)\n"
        f'    drawer.vae.decode_image(latents).save(f"{{seed}}.png")'
    )
    command = Command("draw", [prompt], options, hidden=_hidden(shelf, form))
    return Order("Drawing", [command], {}, _checkpoint(shelf, form) or python, _finish, preview=PREVIEW)


def redraw(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> Order:
    """A picture changed by words, all of it or where a mask is white."""
    thing, prompt = visit.thing(form.get("picture")), forms.text(form, "prompt", "prompt")
    strength = forms.number(form, "strength", 0.6, 0.0, 1.0)
    mask = visit.thing(form["mask"]) if form.get("mask") else None
    options = [*_settings(shelf, form), "--strength", forms.written(strength), *forms.size(form)]
    feather = 16
    if mask is not None:
        feather = forms.whole(form, "feather", 16, 0, 1024)
        options += ["--mask", mask.name, "--feather", str(feather)]
    out = f"{Path(thing.name).stem}-redraw-1.png"
    seed = forms.whole(form, "seed", 0, 0, _MOST_SEED)
    size = forms.size(form)
    fitted = f", size=({size[1].replace('x', ', ')})" if size else ""
    imports = ["from pathlib import Path", "", "from calotype.draw.redraw import latent_mask, redrawn, write_redrawn"]
    if mask is not None:
        imports += ["from calotype.edit.feather import shown", "from calotype.edit.masks import read_mask"]
    python = _python(shelf, form, *imports, "from calotype.edit.sources import latents_of, read") + (
        f"vae, picture = drawer.vae, read(Path({thing.name!r}){fitted})\n"
        + (f"mask = read_mask({mask.name!r}, size=picture.size).levels\n" if mask else "")
        + f"[latents] = redrawn(\n    drawer, latents_of(vae, picture), [{prompt!r}], {seed}, settings, "
        f"strength={forms.written(strength)}"
        + (", mask=latent_mask(vae, mask)" if mask else "")
        + ",\n)\n"
        + (
            f"write_redrawn(vae, latents, picture, shown(mask, {feather}), Path({out!r}))"
            if mask
            else f"vae.write_image({out!r}, latents)"
        )
    )
    if mask is None:
        python = python.replace("import latent_mask, redrawn, write_redrawn", "import redrawn")
    command = Command("redraw", [thing.name, prompt], options, hidden=_hidden(shelf, form))
    taken = inputs([thing, *([mask] if mask else [])])
    return Order("Redrawing", [command], taken, _checkpoint(shelf, form) or python, _finish, preview=PREVIEW)


def _checkpoint(shelf: Shelf, form: dict[str, Any]) -> str:
    """What stands in place of Python for a checkpoint; empty for the built-in model."""
    model = shelf.model(form.get("model", 0))
    if model.shown == BUILTIN:
        return ""
    return (
        f"from calotype.draw.checkpoints import load_checkpoint\n\n"
        f"checkpoint = load_checkpoint({model.shown!r})  # its draw and redraw take what the command line says"
    )


ORDERS = {"draw": draw, "draw.redraw": redraw}
