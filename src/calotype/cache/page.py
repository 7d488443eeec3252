"""The page of a cache: what is in it, samples beside what they decode to, statistics, what could not be cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

import calotype
from calotype.cache.decoded import Again, again, another, decode
from calotype.cache.reader import Cache
from calotype.cache.status import stats, status
from calotype.cache.store import MANIFEST, Store
from calotype.engine.budget import in_words
from calotype.errors import UsageError
from calotype.evaluate.figures import Bars, Bytes, Pictures
from calotype.evaluate.metrics import psnr
from calotype.evaluate.report.drawn import drawn
from calotype.evaluate.report.markup import Markup, document, element, join, number
from calotype.evaluate.report.parts import Column, details, facts, heading, section, table
from calotype.evaluate.report.pictures import BUDGET
from calotype.files import make_folder, write_bytes
from calotype.pixels import to_pil, to_uint8
from calotype.vae import VAE

SAMPLES = 12
_SIDE = 256  # pixels of a picture's longer side on the page


@dataclass
class Shown:
    """Samples that the page shows.

    Attributes:
        images: a picture as it was encoded, and what its latents decode to, one after the other.
        captions: of each.
        notes: why others are not there, a sentence each.
    """

    images: list[Bytes] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_page(
    cache: str | Path,
    path: Path,
    vae: VAE | None = None,
    *,
    data: str | Path | None = None,
    samples: int = SAMPLES,
    memory: int | str | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Writes the page, one file that asks nothing of the network; gives what could not be shown, a sentence each.

    Args:
        path: of the page; its folder is made if need be.
        vae: that made the cache, which decodes samples; without it none are shown.
        data: where the pictures are; None: where they were.
        samples: to show, evenly from first to last.
        memory: of encodes and decodes.
        tell: called with how many samples are done, and of how many.

    Raises:
        UsageError: there is no cache; the pictures are not there.
        StorageError: the cache is damaged, or the disk refuses the page.
    """
    store = Store(cache)
    told, numbers = status(store), _stats(store)
    shown = Shown()
    if vae is None:
        shown.notes.append("No VAE was given, so no samples are decoded.")
    elif store.size(MANIFEST) is None:
        shown.notes.append("The cache was never finished, so no samples are shown.")
    elif samples:
        opened = Cache(cache)
        if other := another(opened.job, vae):
            shown.notes.append(f"{other}; nothing was decoded.")
        else:
            place = data or told["data"]
            if not place:
                raise UsageError(f"{store}: nothing tells where its pictures are; give --data.")
            for done, one in enumerate(again(opened, place, vae, samples, memory), 1):
                _add(shown, one, opened, vae, memory)
                tell(done, min(samples, len(opened)))
    content = cache_page(told, numbers, shown)
    make_folder(path.parent)
    write_bytes(path, content)
    return shown.notes


def _stats(store: Store) -> dict[str, Any] | None:
    try:
        return stats(store)
    except UsageError:  # nothing is in it yet
        return None


def _add(shown: Shown, one: Again | str, cache: Cache, vae: VAE, memory: int | str | None) -> None:
    if isinstance(one, str):
        shown.notes.append(f"{one}.")
        return
    row = one.row
    made = decode(vae, row[cache.job.point], memory)
    shown.images += [_tile(one.pixels), _tile(made)]
    caption = f": {row['caption']}" if row["caption"] else ""
    size = f"{row['bucket_width']}\u00d7{row['bucket_height']}"
    shown.captions += [f"{row['name']}{caption}", f"{size}, {number(psnr(to_uint8(made), to_uint8(one.pixels)), 2)} dB"]


def _tile(pixels: Tensor) -> Bytes:
    """A picture over white, no larger than is shown: uint8 [H, W, 3]."""
    image = to_pil(pixels)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def cache_page(told: Mapping[str, Any], numbers: Mapping[str, Any] | None, shown: Shown) -> bytes:
    """What `write_page` writes.

    Args:
        told: as `status.status` gives it; numbers: as `status.stats` does, or None where nothing is in the cache.
    """
    vae, rules = told["vae"], told["rules"]
    sizes = rules["buckets"] or "\u00d7".join(map(str, rules["size"]))
    line = (
        f"{told['done']:,} of {told['wanted']:,} pictures of {told['data'] or 'unknown origin'}; {told['value']} by "
        f"{vae['name']} (f{vae['factor']}, {vae['channels']} channels), raw, {told['store']}; {sizes}, crop "
        f"{rules['crop']}{', and mirrored' * rules['flip']}"
    )
    return document(
        f"{told['cache']} \u2013 calotype",
        heading(f"calotype {calotype.__version__} · cache", f"Latents in {told['cache']}", line, _state(told), {}),
        element("main", _samples(shown), _sizes(told), _statistics(numbers), _bad(told), _facts(told)),
    )


def _state(told: Mapping[str, Any]) -> str:
    """What is to be done about it."""
    found = [
        f"{told[key]:,} {one if told[key] == 1 else many}" for key, one, many in (
            ("missing", "is missing, which calotype cache make makes", "are missing, which calotype cache make makes"),
            ("bad", "can't be cached", "can't be cached"),
            (
                "stale", "row is of a picture that is gone, which calotype cache gc removes",
                "rows are of pictures that are gone, which calotype cache gc removes",
            ),
            ("enlarged", "had to be enlarged", "had to be enlarged"),
        ) if told[key]
    ]  # fmt: skip
    if broken := len(told["broken"]):
        units = "unit is" if broken == 1 else "units are"
        found.append(f"{broken:,} {units} damaged, which calotype cache repair drops")
    return f"{'; '.join(found)}." if found else "Nothing is missing, and nothing is wrong."


def _samples(shown: Shown) -> Markup | str:
    if not shown.images and not shown.notes:
        return ""
    grid = (
        drawn(Pictures(title="", images=shown.images, captions=shown.captions, columns=6), BUDGET)
        if shown.images
        else ""
    )
    notes = element("ul", *(element("li", note) for note in shown.notes)) if shown.notes else ""
    intro = "Each picture as it was encoded, and beside it what its latents in the cache decode to, with the PSNR."
    return section("samples", "Samples", grid, notes, intro=intro if shown.images else "")


def _sizes(told: Mapping[str, Any]) -> Markup | str:
    if not told["buckets"]:
        return ""
    names, counts = list(told["buckets"]), list(told["buckets"].values())
    if len(names) == 1:
        return section("sizes", "Sizes", element("p", f"All {counts[0]:,} pictures have {names[0]} pixels."))
    bars = Bars(
        title="Pictures of each size", labels=names, series={"pictures": np.array(counts, dtype=float)},
        x_label="pixels", y_label="pictures",
    )  # fmt: skip
    return section("sizes", "Sizes", drawn(bars, 0))


def _statistics(numbers: Mapping[str, Any] | None) -> Markup | str:
    if numbers is None:
        return ""
    channels = numbers["channels"]
    labels = [str(i) for i in range(len(channels["mean"]))]
    bars = Bars(
        title="Mean and standard deviation of each channel of the raw latents", labels=labels,
        series={key: np.array(channels[key]) for key in ("mean", "std")}, x_label="channel", y_label="raw latents",
    )  # fmt: skip
    own = dict(numbers["latent_format"])
    if own["kind"] == "per_channel":  # its numbers are one a channel
        own = {key: own[key] for key in ("name", "kind")}
    factor = numbers["scaling_factor"]
    said = {
        "of": f"{numbers['samples']:,} pictures ({numbers['of']})",
        "mean, std": f"{number(numbers['mean'], 4)}, {number(numbers['std'], 4)}",
        "scaling_factor (1/std)": number(factor, 5),
        "shift_factor (mean)": number(numbers["shift_factor"], 5),
        "the VAE's own format": f"{own['name']} ({own['kind']})",
        **{f"its {key}": number(own[key], 5) for key in own if key in ("scaling_factor", "shift_factor")},
    }
    return section("statistics", "Statistics", drawn(bars, 0), facts(said))


def _bad(told: Mapping[str, Any]) -> Markup | str:
    broken, bad = told["broken"], told["bad_ones"]
    if not bad and not broken:
        return ""
    rows = [[element("th", name, scope="row"), element("td", why, class_="text")] for name, why in bad]
    left = told["bad"] - len(bad)
    more = f"{left:,} more can't be cached, of which the manifest keeps no names." if left else ""
    units = [[element("th", unit, scope="row"), element("td", why, class_="text")] for unit, why in broken.items()]
    return section(
        "bad",
        "What is not there",
        table([Column("picture", text=True), Column("why", text=True)], rows) if rows else "",
        element("p", more) if more else "",
        table([Column("damaged unit", text=True), Column("why", text=True)], units) if units else "",
    )


def _facts(told: Mapping[str, Any]) -> Markup:
    vae = told["vae"]
    of_vae = {key: vae[key] for key in ("name", "sha256", "factor", "channels")}
    rules = {key: value for key, value in told["rules"].items() if key != "sizes"}
    files = {
        "units": f"{told['units']:,}", "on the disk": in_words(told["bytes"]), "manifest": told["manifest"],
        "fingerprint": told["fingerprint"],
    }  # fmt: skip
    made = element("ul", *(element("li", f"{name}: {n:,} units") for name, n in told["made"].items()))
    return section(
        "details",
        "How it was made",
        join(
            details("VAE", facts(of_vae)),
            details("Rules", facts(rules | {key: told[key] for key in ("value", "dtype", "store")})),
            details("Files", facts(files)),
            details("Made by", made),
        ),
    )
