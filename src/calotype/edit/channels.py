"""Latents changed channel by channel, by a list of edits that can be kept in a file and made again.

The file is JSON, a table with one list: `{"edits": [{"do": "shift", "channel": 3, "by": 0.5}, ...]}`. All values are of
raw latents; `channel` counts from 0 and may be left out where all are meant. They are done one after another:

| `do` | what becomes of the channel |
|---|---|
| `shift` | `by` is added |
| `scale` | its distance from its own mean is multiplied by `by` |
| `swap` | it and channel `with` change places |
| `noise` | `by` times its own std times white noise is added, drawn with `seed` |
| `set` | it is `value`; with `cells`, a list of [x, y], there alone |
| `copy` | it is that of the second picture |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from calotype.damage import damage
from calotype.errors import LatentsError, UsageError
from calotype.latents import Latents
from calotype.texts import TextError, json_table, number, shown, whole

Do = Literal["shift", "scale", "swap", "noise", "set", "copy"]  # what becomes of a channel: see docs/edit.md

MOST = 10_000  # edits in a list
_LARGEST = 1e6  # of a number in them
_MOST_SEED = 2**63 - 1
# what each takes beside `do` and `channel`
_TAKES: dict[str, tuple[str, ...]] = {
    "shift": ("by",), "scale": ("by",), "swap": ("with",), "noise": ("by", "seed"), "set": ("value", "cells"),
    "copy": (),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One edit.

    Attributes:
        do: what is done; see the module.
        channel: of raw latents; None is all.
        by: how much, of shift, scale and noise.
        other: the channel that it changes places with.
        seed: of noise.
        value: that is set.
        cells: (x, y) of latents that are set; None is all.
    """

    do: Do
    channel: int | None = None
    by: float = 0.0
    other: int = 0
    seed: int = 0
    value: float = 0.0
    cells: tuple[tuple[int, int], ...] | None = None


def edits_of(values: Any) -> list[Edit]:
    """Edits as JSON has them.

    Raises:
        TextError: they are none; says why.
    """
    if not isinstance(values, list):
        raise TextError(f"edits must be a list, not {shown(values)}")
    if len(values) > MOST:
        raise TextError(f"there are {len(values):,} edits, and {MOST:,} are read")
    return [_edit(one, f"edit {i + 1}") for i, one in enumerate(values)]


def _edit(values: Any, name: str) -> Edit:
    if not isinstance(values, dict) or values.get("do") not in get_args(Do):
        found = values.get("do") if isinstance(values, dict) else values
        raise TextError(f"{name} must be a table whose do is {', '.join(get_args(Do))}, not {shown(found)}")
    do = values["do"]
    for key in values:
        if key not in ("do", "channel", *_TAKES[do]):
            raise TextError(f"{name} ({do}) has {shown(key)}, which it does not take")
    given: dict[str, Any] = {"do": do}
    if values.get("channel") is not None:
        given["channel"] = whole(values["channel"], f"channel of {name}", 0)
    for key in _TAKES[do]:
        if key == "by" or key == "value":
            given[key] = number(values.get(key), f"{key} of {name}", -_LARGEST, _LARGEST)
        elif key == "with":
            given["other"] = whole(values.get("with"), f"with of {name}", 0)
            if "channel" not in given:
                raise TextError(f"{name} (swap) names no channel")
        elif key == "seed":
            given["seed"] = whole(values.get("seed", 0), f"seed of {name}", 0, _MOST_SEED)
        elif values.get(key) is not None:
            given["cells"] = _cells(values[key], f"cells of {name}")
    return Edit(**given)


def _cells(values: Any, name: str) -> tuple[tuple[int, int], ...]:
    if not isinstance(values, list) or not all(isinstance(one, list) and len(one) == 2 for one in values):
        raise TextError(f"{name} must be a list of [x, y]")
    return tuple((whole(x, f"x in {name}", 0), whole(y, f"y in {name}", 0)) for x, y in values)


def read_edits(path: Path) -> list[Edit]:
    """A file of edits.

    Raises:
        UsageError: there is none, or it is another.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give a file with a list of edits.") from None
    with damage(UsageError, f"{path}: these are no edits ({{why}}); docs/edit.md says what they look like."):
        return edits_of(json_table(content).get("edits"))


def edited(latents: Latents, edits: Sequence[Edit], other: Latents | None = None) -> Latents:
    """Raw latents with edits done to them, one after another.

    Args:
        latents: of one picture; model latents become raw ones.
        other: of the second picture, of the same VAE and size; for copies.

    Raises:
        UsageError: an edit names a channel or a place that there is not, or copies from no picture.
        LatentsError: the second picture's are others.
    """
    raw = latents.to_raw()
    z = raw.tensor.float().clone()
    source = None if other is None else other.to_raw().tensor.float()
    if source is not None and (other is None or other.vae != latents.vae or source.shape != z.shape):
        raise LatentsError(
            f"The second picture's latents are {list(source.shape)} and the first one's {list(z.shape)}; channels are "
            f"copied between latents of one VAE and one size."
        )
    for i, edit in enumerate(edits):
        _apply(z, edit, source, f"Edit {i + 1} ({edit.do})")
    return replace(raw, tensor=z)


def _apply(z: Tensor, edit: Edit, source: Tensor | None, name: str) -> None:
    """One edit of latents [C, h, w], in place."""
    count, height, width = z.shape
    for channel in (edit.channel or 0, edit.other if edit.do == "swap" else 0):
        if channel >= count:
            raise UsageError(f"{name}: there is no channel {channel}; these latents have 0 to {count - 1}.")
    part = z if edit.channel is None else z[edit.channel : edit.channel + 1]
    if edit.do == "shift":
        part += edit.by
    elif edit.do == "scale":
        mean = part.mean((1, 2), keepdim=True)
        part.sub_(mean).mul_(edit.by).add_(mean)
    elif edit.do == "swap":
        z[[edit.channel or 0, edit.other]] = z[[edit.other, edit.channel or 0]]
    elif edit.do == "noise":
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(edit.seed))  # a channel's own, in any list
        chosen = noise if edit.channel is None else noise[edit.channel : edit.channel + 1]
        part += edit.by * part.std((1, 2), correction=0, keepdim=True) * chosen
    elif edit.do == "copy":
        if source is None:
            raise UsageError(f"{name}: there is no second picture to copy from; give one.")
        part.copy_(source if edit.channel is None else source[edit.channel : edit.channel + 1])
    elif edit.cells is None:
        part.fill_(edit.value)
    else:
        for x, y in edit.cells:
            if x >= width or y >= height:
                raise UsageError(f"{name}: there is no latent at {x}, {y}; there are {width}x{height}.")
        xs, ys = ([cell[k] for cell in edit.cells] for k in (0, 1))
        part[:, ys, xs] = edit.value
