"""Look: a picture through VAEs and back, and how far it is from what it was, here or there."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from calotype.errors import UsageError
from calotype.studio import forms
from calotype.studio.commands import load_line, memory_word, picture, resources, vae_option
from calotype.studio.jobs import Command, Job, Order
from calotype.studio.shelf import Shelf
from calotype.studio.visits import Visit
from calotype.texts import shown

if TYPE_CHECKING:
    from calotype.evaluate.lpips import LPIPS, Net

_MOST_VAES = 8
_MOST_LPIPS = 2**21  # pixels of a region
_MOST_OPEN = 2**24  # pixels that are kept of small pictures
_lpips: dict[str, LPIPS] = {}
_opening = threading.Lock()


def order(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> Order:
    """A reconstruction by each VAE, in a folder of its own where there are several."""
    thing = visit.thing(form.get("picture"))
    indices = form.get("vaes")
    if not isinstance(indices, list) or not indices:
        raise UsageError("No VAE is chosen; choose one or more.")
    if len(indices) > _MOST_VAES or len(set(map(str, indices))) < len(indices):
        raise UsageError(f"Choose up to {_MOST_VAES} different VAEs.")
    commands: list[Command] = []
    folders: list[str] = []
    for index in indices:
        given, vae = shelf.vae(index), shelf.load(index)
        alpha = ["--alpha", "keep"] if thing.alpha and vae.picture_channels != 4 else []
        folder = _folder(vae.name, folders) if len(indices) > 1 else ""
        folders.append(folder)
        out = ["--out", folder] if folder else []
        options = [*vae_option(given), *alpha, *out, *resources(shelf)]
        commands.append(Command("reconstruct", [thing.name], options))
    stem = Path(thing.name).stem

    def finish(visit: Visit, job: Job, said: list[Any]) -> list[dict[str, Any]]:
        found = []
        for index, folder, document in zip(indices, folders, said, strict=True):
            [row] = document["results"]
            name = Path(folder, f"{stem}-reconstruction.png").as_posix()
            panel = job.keep(job.folder / folder / f"{stem}-panel.png")
            found.append(picture(visit, job, name, vae=index, figures=row, panel=panel))
        return found

    lines = ["import calotype", *(["from pathlib import Path"] if len(indices) > 1 else [])]
    for index, folder in zip(indices, folders, strict=True):
        keep = ', alpha="keep"' if thing.alpha and shelf.load(index).picture_channels != 4 else ""
        made = Path(folder, f"{stem}-reconstruction.png").as_posix()
        lines += [
            "", load_line(shelf, shelf.vae(index)), *([f"Path({folder!r}).mkdir(exist_ok=True)"] if folder else []),
            f"latents = vae.encode_image({thing.name!r}{keep}{memory_word(shelf)})",
            f"vae.write_image({made!r}, latents{memory_word(shelf)})",
        ]  # fmt: skip
    return Order("Reconstructing", commands, {thing.name: thing.path}, "\n".join(lines), finish)


def _folder(name: str, taken: list[str]) -> str:
    """A folder's name, after a VAE."""
    text = "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip(".-")[:40] or "vae"
    return text if text not in taken else f"{text}-{len(taken) + 1}"


@dataclass(frozen=True)
class _Region:
    """A part of a picture and of its reconstruction, checked."""

    visit: Visit
    paths: tuple[Path, Path]
    box: tuple[int, int, int, int]
    channels: int

    @property
    def size(self) -> tuple[int, int]:
        """Width, height."""
        left, top, right, bottom = self.box
        return right - left, bottom - top

    def pair(self) -> tuple[Tensor, Tensor]:
        """Both as `calotype reconstruct` compares them: uint8 [C, h, w].

        Alpha counts where the VAE made it, and not where it was kept aside.
        """
        from calotype.pixels import seen

        a, b = (seen(_with_channels(_levels(self.visit, path, self.box), self.channels)) for path in self.paths)
        return a, b


def _region(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> _Region:
    a, b = (visit.thing(form.get(key)) for key in ("original", "reconstruction"))
    box = form.get("box")
    if not isinstance(box, list) or len(box) != 4 or not all(type(side) is int for side in box):
        raise UsageError("A region is four whole numbers: left, top, right, bottom.")
    if (a.width, a.height) != (b.width, b.height):
        raise UsageError(f"{a.name} is {a.width}x{a.height} and {b.name} {b.width}x{b.height}; choose two of one size.")
    left, top, right, bottom = box
    if not (0 <= left < right <= a.width and 0 <= top < bottom <= a.height):
        raise UsageError(f"The region {shown(box)} is not in a picture of {a.width}x{a.height}.")
    if not b.made or a.seen is None:
        raise UsageError(f"{b.name} is no reconstruction; choose one.")
    index = form.get("vae", 0)
    shelf.vae(index)
    # the reconstruction as it was written, with colours where it is transparent
    return _Region(visit, (a.seen, b.path), (left, top, right, bottom), shelf.load(index).picture_channels)


def region(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> dict[str, Any]:
    """How far a reconstruction is from its picture in a part of it: PSNR and SSIM."""
    from calotype.evaluate.metrics import RowMetrics

    found = _region(shelf, visit, form)
    width, height = found.size
    metrics = RowMetrics(height, width)  # which takes little memory, however large the region
    metrics.add(*found.pair())
    psnr = metrics.psnr()
    return {
        "psnr": psnr, "ssim": metrics.ssim() if min(width, height) >= 11 else None, "equal": psnr == inf
    }  # fmt: skip


def lpips(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> dict[str, Any]:
    """The same by a network; where there is no distance, why."""
    from calotype.evaluate.lpips import LEAST, at_hand, load_lpips
    from calotype.pixels import from_array

    found, net = _region(shelf, visit, form), cast("Net", forms.choice(form, "net", ("alex", "vgg")))
    width, height = found.size
    if not at_hand(net):
        return {"lpips": "weights are not here"}
    if min(width, height) < LEAST[net]:
        return {"lpips": f"needs {LEAST[net]} pixels a side"}
    if width * height > _MOST_LPIPS:
        return {"lpips": f"takes up to {_MOST_LPIPS:,} pixels"}
    if net not in _lpips:
        _lpips[net] = load_lpips(net)
    a, b = (from_array(one[:3].expand(3, -1, -1).permute(1, 2, 0).numpy())[None] for one in found.pair())
    with torch.no_grad():
        return {"lpips": float(_lpips[net](a, b))}


def _with_channels(levels: Tensor, channels: int) -> Tensor:
    """RGB or RGBA levels [C, h, w] as a VAE of so many channels has them."""
    from calotype.pixels import from_array, to_channels, to_uint8

    if channels == 1:
        return to_uint8(to_channels(from_array(levels[:3].permute(1, 2, 0).numpy()), 1))
    if channels == 4 and len(levels) == 3:
        return torch.cat([levels, torch.full_like(levels[:1], 255)])
    return levels[:channels]


def _levels(visit: Visit, path: Path, box: tuple[int, int, int, int]) -> Tensor:
    """A part of a picture, uint8 [C, h, w]; the last pictures that were asked for are kept open: two, or small ones."""
    with _opening:
        kept: dict[Path, Image.Image] = visit.kept.setdefault("open", {})
        image = kept.pop(path, None)
        if image is None:
            image = Image.open(path)
            image.load()
        while len(kept) >= 2 and sum(one.width * one.height for one in kept.values()) > _MOST_OPEN:
            kept.pop(next(iter(kept)))
        kept[path] = image
    return torch.from_numpy(np.array(image.crop(box))).permute(2, 0, 1)


ORDERS = {"look": order}
NOW = {"region": region}
LATER = {"lpips": lpips}
