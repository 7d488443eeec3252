"""The public interface: modules that the pages of docs/reference/api name, and their public names."""

from __future__ import annotations

import importlib
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "reference" / "api"


def modules() -> dict[str, Path]:
    """Public modules, and the page of each."""
    pages = sorted(PAGES.glob("*.md"))
    return {name: page for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)}


def with_names() -> list[str]:
    """Packages and modules that say by `__all__` what of them is public."""
    source = ROOT / "src"
    files = [path for path in source.rglob("*.py") if re.search(r"^__all__ = ", path.read_text(), re.MULTILINE)]
    homes = (path.parent if path.name == "__init__.py" else path.with_suffix("") for path in files)
    return sorted(".".join(home.relative_to(source).parts) for home in homes)


def public_names(module: str) -> list[str]:
    """Its `__all__`, or what is defined in it and does not begin with `_`."""
    home = importlib.import_module(module)
    if hasattr(home, "__all__"):
        return list(home.__all__)
    return [name for name, value in vars(home).items() if not name.startswith("_") and _is_of(value, module)]


def _is_of(value: Any, module: str) -> bool:
    is_code = isinstance(value, (type, types.FunctionType))
    return is_code and value.__module__ == module


def callables() -> Iterator[tuple[str, Any, Any]]:
    """(where, the function, the class it is of or None) of each public function, method and property, once each."""
    seen: set[int] = set()
    for module in modules():
        for name in public_names(module):
            value = getattr(importlib.import_module(module), name)
            if id(value) in seen or not getattr(value, "__module__", "").startswith("calotype"):
                continue
            seen.add(id(value))
            if isinstance(value, type):
                yield f"{value.__module__}.{value.__name__}", value, None
                yield from _members(value)
            elif callable(value):
                yield f"{value.__module__}.{value.__name__}", value, None


def _members(of: type) -> Iterator[tuple[str, Any, Any]]:
    for one in of.__mro__:
        if not one.__module__.startswith("calotype"):
            continue
        for name, member in vars(one).items():  # a field may hold a function by default, which is no method
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if not name.startswith("_") and getattr(function, "__name__", "") == name:
                yield f"{one.__module__}.{one.__qualname__}.{name}", function, of
