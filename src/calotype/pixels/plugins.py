"""Packages that teach Pillow further kinds of pictures: used where they are installed, and only when one is met."""

from __future__ import annotations

import importlib
import importlib.util
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Plugin:
    """One of them.

    Attributes:
        title: what people call such pictures.
        package: on PyPI.
        module: what is imported.
        function: of the module, that registers it with Pillow; empty where importing it does.
        suffixes: of files of its kind.
    """

    title: str
    package: str
    module: str
    function: str
    suffixes: frozenset[str]


PLUGINS: Mapping[str, Plugin] = {
    "HEIF": Plugin(
        "HEIC (HEIF)",
        "pillow-heif",
        "pillow_heif",
        "register_heif_opener",
        frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"}),
    ),
    "JXL": Plugin("JPEG XL", "pillow-jxl-plugin", "pillow_jxl", "", frozenset({".jxl"})),
}
"""By the names that Pillow has for their formats."""

_lock = threading.Lock()


def lacking(format_: str) -> str:
    """Registers a plugin with Pillow if it is not yet, and says what to do where it can't be; else nothing.

    A plugin is another's code: whatever it raises while it is loaded makes it one that is not there.
    """
    plugin = PLUGINS[format_]
    with _lock:
        if format_ in Image.OPEN:
            return ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module: Any = importlib.import_module(plugin.module)
                if plugin.function:
                    getattr(module, plugin.function)()
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name == plugin.module:
                return f"pip install {plugin.package}"
            reason = " ".join(str(error).split()).rstrip(".")[:120] or type(error).__name__
            return f"{plugin.package} is installed, but can't be loaded ({reason}); install it again"
        if format_ not in Image.OPEN:
            return f"{plugin.package} is installed, but does not read them; install it again"
        return ""
