"""Edit: pictures changed through their latents, without words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calotype.errors import UsageError
from calotype.studio import forms
from calotype.studio.commands import (
    chosen,
    file,
    inputs,
    load_line,
    memory_word,
    only,
    picture,
    resources,
    vae_option,
)
from calotype.studio.jobs import Command, Job, Order
from calotype.studio.shelf import Shelf
from calotype.studio.visits import Visit

_MOST_MORPHED = 8  # pictures
_EASINGS = ("linear", "cosine", "smoothstep", "in", "out")


def _fitted(size: list[str]) -> str:
    """`size=` of `edit.sources.read`, after another argument."""
    return f", size=({size[1].replace('x', ', ')})" if size else ""


def _start(shelf: Shelf, form: dict[str, Any], *imports: str) -> str:
    """The first lines of Python."""
    lines = ["from pathlib import Path", "", "import calotype", *imports]
    return "\n".join([*lines, "", load_line(shelf, shelf.vae(form.get("vae", 0))), ""])


def morph(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> Order:
    """One picture turns into the next."""
    ids = form.get("pictures")
    things = [visit.thing(one) for one in ids] if isinstance(ids, list) else []
    if not 2 <= len(things) <= _MOST_MORPHED:
        raise UsageError(f"A morph leads from picture to picture; choose two to {_MOST_MORPHED}.")
    frames, size = forms.whole(form, "frames", 24, 2, 240), forms.size(form)
    fps = forms.number(form, "fps", 12.0, 0.5, 60.0)
    way, easing = forms.choice(form, "way", ("slerp", "lerp")), forms.choice(form, "easing", _EASINGS)
    back = forms.choice(form, "end", ("once", "ping-pong", "closed"))
    out = f"morph.{forms.choice(form, 'format', ('webp', 'gif', 'png'))}"
    options = [
        "--out", out, *size, "--frames", str(frames), "--way", way, "--easing", easing, "--fps", forms.written(fps),
        *([] if back == "once" else [f"--{back}"]), *chosen(shelf, form),
    ]  # fmt: skip
    names = [one.name for one in things]
    ways = {
        "frames": frames, "kind": way, "easing": easing, "closed": back == "closed", "ping_pong": back == "ping-pong"
    }  # fmt: skip
    said = ", ".join(f"{key}={value!r}" for key, value in ways.items())
    memory = memory_word(shelf)
    python = _start(
        shelf, form, "from calotype.edit.morph import Way, write_morph",
        "from calotype.edit.sources import latents_of, read",
    ) + (
        f"latents = [latents_of(vae, read(Path(name){_fitted(size)}){memory}) for name in {names!r}]\n"
        f'write_morph(vae, latents, Path("{out}"), Way({said}), fps={fps:g}{memory})'
    )  # fmt: skip

    def finish(visit: Visit, job: Job, said: list[Any]) -> list[dict[str, Any]]:
        return [file(job, out, "animation", frames=said[0].get("frames"))]

    return Order("Morphing", [Command("morph", names, options)], inputs(things), python, finish)


def vary(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> Order:
    """Draws around a picture's own latents."""
    thing, size = visit.thing(form.get("picture")), forms.size(form)
    count, seed = forms.whole(form, "count", 6, 1, 24), forms.whole(form, "seed", 0, 0, 2**53)
    temperature = forms.number(form, "temperature", 0.3, 0.0, 1000.0)
    noise = forms.choice(form, "noise", ("latents", "posterior"))
    options = [
        "--count", str(count), "--seed", str(seed), "--temperature", forms.written(temperature), "--noise", noise,
        *size, *chosen(shelf, form),
    ]  # fmt: skip
    stem, memory = Path(thing.name).stem, memory_word(shelf)
    python = _start(
        shelf, form, "from calotype.edit.sources import read", "from calotype.edit.vary import vary"
    ) + (
        f"found = vary(\n    vae, read(Path({thing.name!r}){_fitted(size)}), range({seed}, {seed + count}),\n"
        f"    temperature={temperature:g}, noise={noise!r}{memory},\n)\n"
        f"for seed, latents in zip(found.seeds, found):\n"
        f'    vae.write_image(f"{stem}-vary-{{seed}}.png", latents{memory})'
    )  # fmt: skip

    def finish(visit: Visit, job: Job, said: list[Any]) -> list[dict[str, Any]]:
        rows = said[0]["results"]
        made = [picture(visit, job, row["picture"], caption=f"seed {row['seed']}") for row in rows]
        return [*made, file(job, said[0]["sheet"], "sheet")]

    return Order("Varying", [Command("vary", [thing.name], options)], inputs([thing]), python, finish)


def blend(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> Order:
    """Two pictures in one, by a mask."""
    first, second, mask = (visit.thing(form.get(key)) for key in ("first", "second", "mask"))
    feather, size = forms.whole(form, "feather", 16, 0, 1024), forms.size(form)
    out, paste = f"{Path(first.name).stem}-blend.png", not forms.flag(form, "decoded")
    options = [
        "--out", out, "--feather", str(feather), *size, *([] if paste else ["--decoded"]),
        *(["--invert-mask"] if forms.flag(form, "invert") else []), *chosen(shelf, form),
    ]  # fmt: skip
    fitted, memory = _fitted(size), memory_word(shelf)
    invert = ", invert=True" if forms.flag(form, "invert") else ""
    python = _start(
        shelf, form, "from calotype.edit.blend import blend", "from calotype.edit.masks import read_mask",
        "from calotype.edit.sources import read",
    ) + (
        f"a, b = (read(Path(name){fitted}) for name in ({first.name!r}, {second.name!r}))\n"
        f"mask = read_mask({mask.name!r}, size=a.size{invert})\n"
        f"blend(vae, a, b, mask.levels, Path({out!r}), feather={feather}, paste_back={paste}{memory})"
    )  # fmt: skip
    command = Command("blend", [first.name, second.name, mask.name], options)
    return Order("Blending", [command], inputs([first, second, mask]), python, only(out))


def transfer(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> Order:
    """One picture's colours and contrast for another."""
    content, style = (visit.thing(form.get(key)) for key in ("content", "style"))
    strength, size = forms.number(form, "strength", 1.0, -10.0, 10.0), forms.size(form)
    out, memory = f"{Path(content.name).stem}-transfer.png", memory_word(shelf)
    options = ["--out", out, "--strength", forms.written(strength), *size, *chosen(shelf, form)]
    python = _start(
        shelf, form, "from calotype.edit.sources import latents_of, read", "from calotype.edit.transfer import transfer"
    ) + (
        f"content = latents_of(vae, read(Path({content.name!r}){_fitted(size)}){memory})\n"
        f"style = latents_of(vae, read(Path({style.name!r})){memory})\n"
        f"vae.write_image({out!r}, transfer(content, style, {strength:g}){memory})"
    )  # fmt: skip
    command = Command("transfer", [content.name, style.name], options)
    return Order("Transferring", [command], inputs([content, style]), python, only(out))


def learn(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> Order:
    """What leads from one folder of pictures to another."""
    a, b = shelf.folder(form.get("start")), shelf.folder(form.get("end"))
    size, aligned, out = forms.size(form), forms.flag(form, "aligned"), "direction.safetensors"
    options = ["--out", out, *size, *(["--aligned"] if aligned else []), *chosen(shelf, form)]
    wanted = f", size=({size[1].replace('x', ', ')})" if size else ""
    python = _start(shelf, form, "from calotype.edit.directions import learn, save_direction") + (
        f"found = learn(vae, {a.shown!r}, {b.shown!r}, aligned={aligned}{wanted}{memory_word(shelf)})\n"
        f'save_direction(Path("{out}"), found)'
    )

    def finish(visit: Visit, job: Job, said: list[Any]) -> list[dict[str, Any]]:
        thing = visit.add_direction(job.folder / out, out, made=True)
        return [{**file(job, out, "direction"), "thing": thing.facts(), "figures": said[0]}]

    return Order("Learning", [Command("direction learn", [a, b], options)], {}, python, finish)


def apply(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> Order:
    """A picture moved along a direction."""
    thing, way = visit.thing(form.get("picture")), visit.thing(form.get("direction"), "direction")
    strength, size = forms.number(form, "strength", 1.0, -10.0, 10.0), forms.size(form)
    out, memory = f"{Path(thing.name).stem}-{Path(way.name).stem}.png", memory_word(shelf)
    given = shelf.vae(form.get("vae", 0))
    options = ["--out", out, "--strength", forms.written(strength), *size, *vae_option(given), *resources(shelf)]
    python = _start(
        shelf, form, "from calotype.edit.directions import load_direction",
        "from calotype.edit.sources import latents_of, read",
    ) + (
        f"latents = latents_of(vae, read(Path({thing.name!r}){_fitted(size)}){memory})\n"
        f"way = load_direction(Path({way.name!r}))\n"
        f"vae.write_image({out!r}, way.apply(latents, {strength:g}){memory})"
    )  # fmt: skip
    command = Command("direction apply", [thing.name, way.name], options)
    return Order("Applying", [command], inputs([thing, way]), python, only(out))


ORDERS = {
    "edit.morph": morph, "edit.vary": vary, "edit.blend": blend, "edit.transfer": transfer, "edit.learn": learn,
    "edit.apply": apply,
}  # fmt: skip
