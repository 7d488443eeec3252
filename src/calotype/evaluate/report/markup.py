"""HTML in which every name is escaped, and the page around it: one file, which asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from importlib import resources
from typing import Any

import calotype

_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})  # what could end or begin an element


class Markup(str):
    """Text that is HTML already; any other text is escaped where it becomes part of a page."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """Text as HTML, for content and for attributes."""
    return text if isinstance(text, Markup) else Markup(html.escape(text, quote=True))


def join(*parts: str) -> Markup:
    """One after the other."""
    return Markup("".join(map(escape, parts)))


def element(tag: str, /, *children: str, **attributes: str | float | bool | None) -> Markup:
    """An element of HTML or SVG.

    Args:
        attributes: without those that are None or False; `class_` is class, and `data_value` is data-value.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(_text(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    closing = "" if tag in {"img", "input", "meta"} else f"{join(*children)}</{tag}>"
    return Markup(f"<{tag}{written}>{closing}")


def document(title: str, *body: str, data: dict[str, Any] | None = None) -> bytes:
    """A page in UTF-8.

    Its policy (Content-Security-Policy) allows the two blocks written here and pictures inside the page, so that no
    name can bring a script along and nothing is ever fetched.

    Args:
        data: plain values for the page's script; numbers that are not finite become null.
    """
    style, script = (
        resources.files(__package__).joinpath(name).read_text("utf-8") for name in ("report.css", "report.js")
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src {_allowed(style)}; script-src {_allowed(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    values = json.dumps(_finite(data or {}), separators=(",", ":"), allow_nan=False).translate(_ESCAPES)
    head = join(
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=f"calotype {calotype.__version__}"),
        element("title", title),
        element("style", Markup(style)),
    )
    content = join(
        *body,
        element("script", Markup(values), type="application/json", id="data"),
        element("script", Markup(script)),
    )
    page = f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>{content}</body>\n</html>\n'
    return page.encode("utf-8", "backslashreplace")  # names of files may hold bytes that are no text


def number(value: float | None, digits: int) -> str:
    """A number with so many decimals; a dash where there is none."""
    if value is None or math.isnan(value):
        return "\u2013"
    if math.isinf(value):
        return "∞" if value > 0 else "\u2212∞"
    return f"{value:,.{digits}f}".replace("-", "\u2212")


def count(value: float) -> str:
    """A large number, short: 83.7 M."""
    for power, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:.3g} {letter}"
    return f"{value:g}"


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{round(value, 3):g}" if abs(value) < 1e5 else f"{value:.0f}"


def _allowed(block: str) -> str:
    digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
