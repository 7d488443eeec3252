"""For the pages of the Python interface: what stands in the code and not in a form that their generator reads.

Fields are described by comments at the ends of their lines, several arguments at once (``height, width: of it``), and
methods that do what their base class says by that.
"""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import griffe

SECTIONS = re.compile(r"(Args|Attributes):")
TOGETHER = re.compile(r"    (\w+(?:, \w+)+): ")


def apart(text: str) -> str:
    """A docstring in which arguments and attributes that are described together are described one by one."""
    found: list[str] = []
    lines = text.splitlines()
    inside = False
    at = 0
    while at < len(lines):
        line = lines[at]
        if line and not line.startswith(" "):
            inside = SECTIONS.fullmatch(line) is not None
        end = at + 1
        names = TOGETHER.match(line) if inside else None
        if names:
            while end < len(lines) and lines[end].startswith("     "):
                end += 1
            for name in names[1].split(", "):
                found += [f"    {name}: {line[names.end() :]}", *lines[at + 1 : end]]
        else:
            found.append(line)
        at = end
    return "\n".join(found)


@cache
def comments(path: Path) -> dict[int, str]:
    """Comments after code, by their lines."""
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(file.readline))
    return {
        one.start[0]: one.string.lstrip("# ")
        for one in tokens
        if one.type == tokenize.COMMENT and one.line[: one.start[1]].strip()
    }


class Written(griffe.Extension):
    """Gives attributes their comments, and takes apart what docstrings say of several names."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of every module, class and function."""
        if obj.docstring:
            obj.docstring.value = apart(obj.docstring.value)

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any) -> None:
        """Of every attribute."""
        path, line = attr.filepath, getattr(node, "end_lineno", None)
        if attr.docstring or not isinstance(path, Path) or line is None:
            return
        said = comments(path).get(line, "").rstrip(".")
        if said and not said.startswith(("type: ", "noqa", "fmt: ")):
            attr.docstring = griffe.Docstring(f"{said}.", parent=attr, lineno=line)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Of a package, when all of it is known."""
        for module in (pkg, *_inside(pkg)):
            for of in module.classes.values():
                for name, method in () if of.is_alias else of.functions.items():
                    if method.is_alias or method.docstring:
                        continue
                    told = (base.functions[name].docstring for base in of.mro() if name in base.functions)
                    method.docstring = next(filter(None, told), None)


def _inside(module: griffe.Module) -> Iterator[griffe.Module]:
    for one in module.modules.values():
        if isinstance(one, griffe.Module):
            yield one
            yield from _inside(one)
