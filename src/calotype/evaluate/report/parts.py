"""Parts that all pages share: heading, sections, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calotype.evaluate.report import svg
from calotype.evaluate.report.markup import Markup, element


@dataclass(frozen=True)
class Column:
    """What stands above a column.

    Attributes:
        title, below: the second is smaller.
        hint: what a pointer that rests there sees.
        text: of words, which begin at the left.
    """

    title: str
    below: str = ""
    hint: str = ""
    text: bool = False


def heading(over: str, title: str, line: str, note: str, told: Mapping[str, Any]) -> Markup:
    """What a page begins with.

    Args:
        over: small, above the title.
        line: what was done, in one line.
        told: of which `created` and `device` are shown.
    """
    small = " · ".join(str(told[key]) for key in ("created", "device") if told.get(key))
    return element(
        "header",
        element("p", over, class_="over"),
        element("h1", title),
        element("p", line, class_="protocol"),
        element("p", note, class_="note") if note else "",
        element("p", small, class_="note") if small else "",
        element("nav", aria_label="Sections", id="contents"),
    )


def section(key: str, title: str, *content: str, intro: str = "") -> Markup:
    """A part of the page with its title."""
    said = element("p", intro, class_="intro") if intro else ""
    return element("section", element("h2", title), said, *content, id=key)


def details(title: str, *content: str, id: str | None = None) -> Markup:
    """What opens with a click."""
    return element("details", element("summary", title), *content, id=id)


def facts(told: Mapping[str, Any]) -> Markup:
    """Names and values, one beside the other."""
    pairs = (element("dt", str(key)) + element("dd", str(value)) for key, value in told.items())
    return element("dl", *map(Markup, pairs))


def table(columns: Sequence[Column], rows: Sequence[Sequence[Markup]], sortable: bool = False) -> Markup:
    """A table in a box of its own, which scrolls where it is too wide.

    Args:
        rows: cells.
    """
    titles = [
        element(
            "th",
            column.title,
            element("small", column.below) if column.below else "",
            scope="col",
            title=column.hint or None,
            class_="text" if column.text else None,
        )
        for column in columns
    ]
    return element(
        "div",
        element(
            "table",
            element("thead", element("tr", *titles)),
            element("tbody", *(element("tr", *cells) for cells in rows)),
            class_="sortable" if sortable else None,
        ),
        class_="scrolls",
        tabindex=0,
    )


def vae_name(i: int, vae: Mapping[str, Any], below: str = "") -> Markup:
    """What a row of the i-th VAE begins with."""
    small = element("small", below) if below else ""
    return element("th", svg.sample(i), vae["label"], small, scope="row", data_value=vae["label"])


def shapes() -> Markup:
    """The marks of series, for the page's script."""
    paths = (element("path", d=shape, id=f"shape-{i}") for i, shape in enumerate(svg.SHAPES))
    return element("svg", element("defs", *paths), hidden=True, aria_hidden="true", class_="shapes")
