"""A picture in the page of an evaluation: its crops, reconstructions beside the original, and small latents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from calotype.evaluate.report import svg
from calotype.evaluate.report.markup import Markup, element, join, number
from calotype.evaluate.report.means import digits
from calotype.evaluate.report.pictures import Crop, Encoded

LATENTS = (
    "The small pictures are latents as RGB: a linear map of their channels, a pixel for each latent, of VAEs for whose "
    "latents such a map is known."
)


def stored(encoded: Encoded) -> str:
    """What is to be said of how crops are stored."""
    if not encoded.quality:
        return (
            "Crops are stored without loss, so that differences are exact: (reconstruction \u2212 original) \u00d7 the "
            "factor, around grey."
        )
    return (
        f"There are many crops, so they are stored as JPEG of quality {encoded.quality}, which itself is "
        f"{encoded.psnr:.1f} dB from the pixels: the smallest differences may be JPEG's. All figures are of the pixels."
    )


def article(results: Mapping[str, Any], i: int, crops: Sequence[Crop], uris: Iterator[str]) -> Markup:
    """The crops of the i-th picture.

    Args:
        uris: of all their images, as `pictures.packed` orders them.
    """
    picture, metrics = results["pictures"][i], results["metrics"]
    places = {vae["label"]: k for k, vae in enumerate(results["vaes"])}
    rows = [{row["picture"]: row for row in vae["rows"]}.get(i, {}) for vae in results["vaes"]]
    parts: list[str] = []
    for crop in crops:
        top, left, height, width = crop.box
        original, *rebuilt = (next(uris) for _ in range(1 + len(crop.reconstructions)))
        small = {label: _of_latents(next(uris), crop, label) for label in crop.latents}
        shared = join(*small.values()) if "encoder" in results else Markup("")  # by all decoders
        tiles = [_tile(original, crop, "original", join(shared, element("b", "original")), None)]
        for label, uri in zip(crop.reconstructions, rebuilt, strict=True):
            row = rows[places[label]]
            said = [
                f"{metric['title']} {number(row[metric['key']], digits(metric))} {metric['unit']}".strip().replace(
                    " ", "\u00a0"
                )
                for metric in metrics
                if row.get(metric["key"]) is not None
            ]
            own = Markup("") if shared else small.get(label, Markup(""))
            caption = join(own, svg.sample(places[label]), element("b", label), element("small", " · ".join(said)))
            tiles.append(_tile(uri, crop, label, caption, places[label]))
        whole = (height, width) == (picture.get("height"), picture.get("width"))
        box = "the whole picture" if whole else f"{width} \u00d7 {height} at {left}, {top}"
        parts += [element("p", box, class_="box"), element("div", *tiles, class_="tiles")]
    size = f"{picture['width']} \u00d7 {picture['height']}" if picture.get("width") else ""
    return element(
        "article",
        element("h3", picture["name"], element("small", size)),
        *parts,
        id=f"picture-{i}",
        data_picture=i,
        tabindex=-1,
    )


def _of_latents(uri: str, crop: Crop, label: str) -> Markup:
    """A small picture of the latents that a VAE made of a crop."""
    height, width = crop.latents[label].shape[:2]
    said = f"{crop.picture}, latents of {label} as RGB"
    return element("img", class_="latents", src=uri, width=width, height=height, alt=said, title=said, decoding="async")


def _tile(uri: str, crop: Crop, label: str, caption: Markup, place: int | None) -> Markup:
    height, width = crop.box[2:]
    image = element("img", src=uri, width=width, height=height, alt=f"{crop.picture}, {label}", decoding="async")
    return element(
        "figure",
        element("div", image, class_="frame"),
        element("figcaption", caption),
        class_="tile",
        data_vae="original" if place is None else place,
    )
