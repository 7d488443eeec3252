"""Latents: every channel as it is, changed by hand, and what it decodes to, while one looks."""

from __future__ import annotations

import io
import json
import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from calotype.errors import LatentsError, UsageError
from calotype.studio import forms
from calotype.studio.commands import file, inputs, load_line, memory_word, only, resources, vae_option
from calotype.studio.jobs import Command, Job, Order
from calotype.studio.shelf import Shelf
from calotype.studio.visits import Thing, Visit

if TYPE_CHECKING:
    from calotype.latents import Latents

_MOST_PIXELS = 2**20  # of a picture whose latents are changed while one looks
_MOST_KEPT = 6  # pictures of one visit
EDITS = "edits.json"


@dataclass(frozen=True, eq=False)
class _Opened:
    latents: Latents
    std: torch.Tensor | None


def _opened(shelf: Shelf, visit: Visit, form: dict[str, Any], key: str = "picture") -> _Opened:
    """A picture's latents, encoded once."""
    from calotype.edit.sources import fit
    from calotype.edit.vary import vary
    from calotype.pixels import alpha_mode, read_picture_rows

    thing, index, size = visit.thing(form.get(key)), form.get("vae", 0), forms.size(form)
    shelf.vae(index)
    vae = shelf.load(index)
    kept: OrderedDict[Any, _Opened] = visit.kept.setdefault("latents", OrderedDict())
    place = (thing.id, index, *size)
    if place not in kept:
        width, height = map(int, size[1].split("x")) if size else (thing.width, thing.height)
        if width * height > _MOST_PIXELS:
            raise UsageError(
                f"{width}x{height} pixels are too many to be decoded while one looks; choose a size of up to "
                f"{_MOST_PIXELS:,} pixels (1024x1024)."
            )
        picture = read_picture_rows(thing.path, alpha=alpha_mode(vae.picture_channels, None))
        if size:
            picture = fit(picture, (width, height))
        has = vae.config.has_posterior
        found = vary(vae, picture, [], noise="posterior" if has else "latents", memory=shelf.memory)
        kept[place] = _Opened(found.mode, found.std if has else None)
        while len(kept) > _MOST_KEPT:
            kept.popitem(last=False)
    kept.move_to_end(place)
    return kept[place]


def channels(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> bytes:
    """Latents as the page draws them: a table's length and the table, float32 latents, and the posterior's std."""
    found = _opened(shelf, visit, form)
    z = found.latents.to_raw().tensor
    facts = {"shape": list(z.shape), "std": found.std is not None}
    parts = [z, *([] if found.std is None else [found.std])]
    values = b"".join(one.contiguous().numpy().astype("<f4").tobytes() for one in parts)
    head = json.dumps(facts).encode()
    return struct.pack("<I", len(head)) + head + b" " * (-len(head) % 4) + values


def decoded(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> bytes:
    """The picture that edited latents are, and the edited latents after it, as `channels` has them."""
    from calotype.edit.channels import edited
    from calotype.previews import preview

    found = _opened(shelf, visit, form)
    other = _opened(shelf, visit, form, "second").latents if form.get("second") else None
    vae = shelf.load(form.get("vae", 0))
    latents = edited(found.latents, _edits(form), other)
    picture = _png(vae.decode_image(latents, memory=shelf.memory))
    try:
        rgb = _png(preview(latents))
    except LatentsError:  # no factors are known
        rgb = b""
    z = latents.tensor.contiguous().numpy().astype("<f4").tobytes()
    head = json.dumps({"shape": list(latents.tensor.shape), "picture": len(picture), "rgb": len(rgb)}).encode()
    return struct.pack("<I", len(head)) + head + b" " * (-len(head) % 4) + z + picture + rgb


def _png(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


def _edits(form: dict[str, Any]) -> list[Any]:
    from calotype.edit.channels import edits_of
    from calotype.texts import TextError

    try:
        return edits_of(form.get("edits", []))
    except TextError as error:
        raise UsageError(f"These are no edits: {error}.") from None


def order(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> Order:
    """The edited picture as a file, and the list of edits that makes it."""
    thing, given = visit.thing(form.get("picture")), shelf.vae(form.get("vae", 0))
    second: Thing | None = visit.thing(form["second"]) if form.get("second") else None
    _edits(form)
    size = forms.size(form)
    out = f"{Path(thing.name).stem}-channels.png"
    more = [] if second is None else ["--from", second.name]
    options = [*vae_option(given), *size, *more, "--out", out, *resources(shelf)]
    fitted = f", size=({size[1].replace('x', ', ')})" if size else ""
    names = [thing.name, *([second.name] if second else [])]
    python = (
        f"from pathlib import Path\n\nimport calotype\nfrom calotype.edit.channels import edited, read_edits\n"
        f"from calotype.edit.sources import latents_of, read\n\n{load_line(shelf, given)}\n"
        f"latents = [latents_of(vae, read(Path(name){fitted}){memory_word(shelf)}) for name in {names!r}]\n"
        f"changed = edited(latents[0], read_edits(Path({EDITS!r})), *latents[1:])\n"
        f"vae.write_image({out!r}, changed{memory_word(shelf)})"
    )
    edits = json.dumps({"edits": form.get("edits", [])}) + "\n"
    taken: dict[str, Path | bytes] = {**inputs([thing, *([second] if second else [])]), EDITS: edits.encode()}

    def finish(visit: Visit, job: Job, said: list[Any]) -> list[dict[str, Any]]:
        return [*only(out)(visit, job, said), file(job, EDITS, "edits")]

    return Order("Changing", [Command("channels", [thing.name, EDITS], options)], taken, python, finish)


ORDERS = {"latents": order}
NOW = {"channels": channels, "decoded": decoded}
