"""Charts and grids of pictures as parts of a page."""

from __future__ import annotations

from calotype.evaluate.figures import Figure, Pictures
from calotype.evaluate.report import svg
from calotype.evaluate.report.markup import Markup, element
from calotype.evaluate.report.pictures import encode


def drawn(figure: Figure, budget: int) -> Markup:
    """A figure as HTML.

    Args:
        budget: bytes that its pictures may take.
    """
    if not isinstance(figure, Pictures):
        return svg.draw(figure)
    encoded = encode(figure.images, budget)
    tiles = [
        element(
            "figure",
            element("img", src=uri, width=image.shape[1], height=image.shape[0], alt=caption, decoding="async"),
            element("figcaption", caption),
        )
        for uri, image, caption in zip(encoded.uris, figure.images, figure.captions, strict=True)
    ]
    columns = max(1, figure.columns)
    if len(tiles) > columns:  # places that stay empty, so that the last row has tiles as wide as the others
        tiles += [element("figure", aria_hidden="true")] * (-len(tiles) % columns)
    lines = [element("div", *tiles[i : i + columns], class_="row") for i in range(0, len(tiles), columns)]
    return element(
        "figure",
        element("figcaption", figure.title),
        element("div", *lines, class_="grid-of-pictures", tabindex=0),
        class_="chart pictures",
    )
