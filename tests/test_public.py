"""The names that `import calotype` offers."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import calotype


def test_the_names_are_sorted() -> None:
    def place(name: str) -> tuple[int, str]:  # constants, then classes, then functions, as isort and ruff do
        kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
        return kind, name

    assert sorted(calotype.__all__, key=place) == calotype.__all__
    assert len(set(calotype.__all__)) == len(calotype.__all__)


@pytest.mark.parametrize("name", calotype.__all__)
def test_every_name_is_what_its_home_holds(name: str) -> None:
    value = getattr(calotype, name)
    assert value is getattr(importlib.import_module(calotype._HOMES[name]), name)
    assert value.__module__.startswith("calotype.")
    assert value.__doc__


def test_every_home_is_offered() -> None:
    assert set(calotype._HOMES) == set(calotype.__all__)


def test_dir_lists_them() -> None:
    assert dir(calotype) == sorted([*calotype.__all__, "__version__"])


def test_star_imports_give_them() -> None:
    names: dict[str, object] = {}
    exec("from calotype import *", names)
    assert names.keys() >= set(calotype.__all__)


@pytest.mark.parametrize("name", ["Vae", "decode", "numpy", "__path_of_weights__"])
def test_other_names_are_attribute_errors(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'calotype' has no attribute '{name}'"):
        getattr(calotype, name)
    with pytest.raises(ImportError):
        exec(f"from calotype import {name}")


@pytest.mark.slow
def test_names_are_imported_when_used() -> None:
    code = (
        "import sys, calotype\n"
        "calotype.CalotypeError, calotype.FoldedConfig\n"
        "assert 'torch' not in sys.modules\n"
        "calotype.DiagonalGaussian\n"
        "assert 'torch' in sys.modules and 'CalotypeError' in vars(calotype)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_package_is_typed() -> None:
    assert (Path(calotype.__file__).parent / "py.typed").is_file()
