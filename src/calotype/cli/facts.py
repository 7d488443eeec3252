"""Facts that a file holds as nested JSON, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MOST = 8  # of a list that are shown

Row = tuple[str, str]


def rows(facts: Mapping[str, Any], before: str = "") -> Iterator[Row]:
    """Names and what they are; what a fact is made of follows it, indented. A recipe is called by its name.

    Args:
        before: what each name begins with.
    """
    for key, value in facts.items():
        name = before + key.replace("_", " ")
        indent = "  " * (1 + (len(before) - len(before.lstrip())) // 2)
        if key == "recipe" and isinstance(value, Mapping) and value.get("name"):
            yield name, f"{value['name']} (--json shows all of it)"
        elif isinstance(value, Mapping) and value:
            yield name, ""
            yield from rows(value, indent)
        elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            yield name, ""
            yield from ((f"{indent}{i}", _inline(one)) for i, one in enumerate(value[:MOST], 1))
            if len(value) > MOST:
                yield f"{indent}...", f"and {len(value) - MOST:,} more"
        else:
            yield name, _short(value, plain=key == "seed")


def _inline(value: Any) -> str:
    """Of several facts one line."""
    if not isinstance(value, Mapping):
        return _short(value)
    parts = []
    for key, one in value.items():
        if key == "changed" and isinstance(one, Mapping):  # of a run that went on with another recipe: [then, now]
            parts += [f"{name} {_inline(then)} -> {_inline(now)}" for name, (then, now) in one.items()]
        else:
            parts.append(f"{key.replace('_', ' ')} {_short(one, plain=key == 'seed')}")
    return ", ".join(parts)


def _short(value: Any, *, plain: bool = False) -> str:
    """One value: numbers with as many digits as tell something, lists up to a length."""
    if value is None or value in ([], {}, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if plain else f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return f"({_inline(value)})"
    if isinstance(value, Sequence) and not isinstance(value, str):
        more = f" and {len(value) - MOST:,} more" if len(value) > MOST else ""
        return ", ".join(_inline(one) for one in value[:MOST]) + more
    text = " ".join(str(value).split())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)  # a file may hold what moves a cursor
