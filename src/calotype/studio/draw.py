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
    if form.get("steps") not in (None, ""):
        options += ["--steps", str(forms.whole(form, "steps", 2, 1, 1000))]
    if form.get("guidance") not in (None, ""):
        options += ["--guidance", forms.written(forms.number(form, "guidance", 1.0, 0.0, 100.0))]
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


def _is_checkpoint(shelf: Shelf, form: dict[str, Any]) -> bool:
    """Whether a checkpoint draws, and no model of calotype's own."""
    model = shelf.model(form.get("model", 0))
    if model.shown == BUILTIN:
        return False
    from calotype.draw.model import is_model

    return not is_model(Path(model.argument))


def _begin(shelf: Shelf, form: dict[str, Any], size: str, *imports: str) -> str:
    """The first lines of Python: what draws, and how.

    Args:
        size: as settings have it; empty where there is none.
    """
    checkpoint, model = _is_checkpoint(shelf, form), shelf.model(form.get("model", 0))
    words = [] if model.shown == BUILTIN else [repr(model.shown)]
    words += [] if shelf.device is None else [f"device={shelf.device!r}"]
    given = [key for key in ("steps", "guidance") if form.get(key) not in (None, "")]
    how = [f"{key}={forms.written(float(form[key]))}" for key in given]
    how += [f"negative={' '.join(form['negative'].split())!r}"] if form.get("negative") else []
    how += [f"size={size}"] if size else []
    if checkpoint:
        load, by = "from calotype.draw.checkpoints import load_checkpoint", "checkpoint = load_checkpoint"
    else:
        load, by = "from calotype.draw.pipeline import Settings, load_drawer", "drawer = load_drawer"
    settings = f"settings = {'dict' if checkpoint else 'Settings'}({', '.join(how)})"
    return "\n".join([*sorted([*imports, load], key=_place), "", f"{by}({', '.join(words)})", settings, ""])


def _place(line: str) -> tuple[bool, str]:
    """Where a line of imports stands: the standard library's first, and an empty line after it."""
    return "calotype" in line, line


def draw(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> Order:
    """A picture of words."""
    prompt = forms.text(form, "prompt", "prompt")
    count, size = forms.whole(form, "count", 1, 1, 16), forms.size(form)
    options = [*_settings(shelf, form), *(["-n", str(count)] if count > 1 else []), *size]
    seed = forms.whole(form, "seed", 0, 0, _MOST_SEED)
    if _is_checkpoint(shelf, form):
        python = _begin(shelf, form, _sides(size, "height, width")) + (
            f"for seed in range({seed}, {seed + count}):\n"
            f"    [drawn] = checkpoint.draw([{prompt!r}], seeds=[seed], **settings)\n"
            f'    drawn.picture.save(f"{{seed}}.png")'
        )
    else:
        python = _begin(shelf, form, _sides(size, "width, height")) + (
            f"for seed in range({seed}, {seed + count}):\n"
            f"    latents = drawer.draw({prompt!r}, seed=seed, settings=settings)\n"
            f'    drawer.vae.decode_image(latents).save(f"{{seed}}.png")'
        )
    command = Command("draw", [prompt], options, hidden=_hidden(shelf, form))
    return Order("Drawing", [command], {}, python, _finish, preview=PREVIEW)


def _sides(size: list[str], order: str) -> str:
    """A size as Python has it, in this order; empty where there is none."""
    if not size:
        return ""
    width, height = size[1].split("x")
    return f"({order.replace('width', width).replace('height', height)})"


def redraw(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> Order:
    """A picture changed by words, all of it or where a mask is white."""
    thing, prompt = visit.thing(form.get("picture")), forms.text(form, "prompt", "prompt")
    strength = forms.number(form, "strength", 0.6, 0.0, 1.0)
    mask = visit.thing(form["mask"]) if form.get("mask") else None
    size = forms.size(form)
    options = [*_settings(shelf, form), "--strength", forms.written(strength), *size]
    feather = 16
    if mask is not None:
        feather = forms.whole(form, "feather", 16, 0, 1024)
        options += ["--mask", mask.name, "--feather", str(feather)]
    python = _redrawing(shelf, form, thing.name, prompt, mask.name if mask else None, strength, feather, size)
    command = Command("redraw", [thing.name, prompt], options, hidden=_hidden(shelf, form))
    taken = inputs([thing, *([mask] if mask else [])])
    return Order("Redrawing", [command], taken, python, _finish, preview=PREVIEW)


def _redrawing(
    shelf: Shelf, form: dict[str, Any], name: str, prompt: str, mask: str | None, strength: float, feather: int,
    size: list[str],
) -> str:  # fmt: skip
    """The lines of Python that redraw."""
    out, seed = f"{Path(name).stem}-redraw-1.png", forms.whole(form, "seed", 0, 0, _MOST_SEED)
    fitted = f", size={_sides(size, 'width, height')}" if size else ""
    picture = f"picture = read(Path({name!r}){fitted})\n"
    masked = f"mask = read_mask({mask!r}, size=picture.size).levels\n" if mask else ""
    imports = ["from pathlib import Path\n", *(["from calotype.edit.masks import read_mask"] if mask else [])]
    how = f"strength={forms.written(strength)}"
    if _is_checkpoint(shelf, form):
        imports += ["from calotype.edit.sources import read", "from calotype.pixels import to_pil"]
        how += f", mask=mask, feather={feather}" if mask else ""
        return _begin(shelf, form, "", *imports) + picture + masked + (
            f"image = to_pil(picture.rows(0, picture.size[0]))\n"
            f"[drawn] = checkpoint.redraw([image], [{prompt!r}], seeds=[{seed}], {how}, **settings)\n"
            f"drawn.picture.save({out!r})"
        )  # fmt: skip
    imports += ["from calotype.edit.sources import latents_of, read"]
    if mask:
        imports += ["from calotype.draw.redraw import latent_mask, redrawn, write_redrawn"]
        imports += ["from calotype.edit.feather import shown"]
        write = f"write_redrawn(vae, latents, picture, shown(mask, {feather}), Path({out!r}))"
    else:
        imports += ["from calotype.draw.redraw import redrawn"]
        write = f"vae.write_image({out!r}, latents)"
    how += ", mask=latent_mask(vae, mask)" if mask else ""
    return _begin(shelf, form, "", *imports) + "vae = drawer.vae\n" + picture + masked + (
        f"[latents] = redrawn(drawer, latents_of(vae, picture), [{prompt!r}], {seed}, settings, {how})\n{write}"
    )  # fmt: skip


ORDERS = {"draw": draw, "draw.redraw": redraw}
