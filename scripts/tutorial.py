"""Runs docs/tutorial.md, and makes docs/tutorial.ipynb of it.

    python scripts/tutorial.py

The page is the source. Its blocks of Python are run from the top down, in one namespace. A block of text right after
one is what it printed, and a picture after that is what its last line gave: both are written anew. The notebook has the
same cells, the same outputs and the pictures. Where prose alone was changed, `python scripts/docs.py` makes the
notebook anew and runs nothing.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from PIL import Image

from calotype.files import atomic_path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "tutorial.md"
NOTEBOOK = DOCS / "tutorial.ipynb"

COLOURS = 64  # of a PNG that is a chart
QUALITY = 88  # of a JPEG

_FENCE = re.compile(r"```(\w*)")
_FIGURE = re.compile(r"!\[([^\]]*)\]\((pictures/tutorial-[\w-]+\.(?:png|jpg))\)")


@dataclass(frozen=True)
class Figure:
    """A picture that a cell makes: what it shows in words, and its file beside the page."""

    alt: str
    path: str


@dataclass(frozen=True)
class Cell:
    """A part of the page: prose, or code with what came of it.

    Attributes:
        output: what it printed.
        figure: what its last expression gave.
    """

    source: str
    code: bool = False
    output: str = ""
    figure: Figure | None = None


class TutorialError(Exception):
    """The page is not as it should be; one sentence."""


# --- the page ---


def cells_of(text: str) -> list[Cell]:
    """The page's cells, in their order.

    Raises:
        TutorialError: a block that does not end.
    """
    found: list[Cell] = []
    for kind, part in _blocks(text):
        last = found[-1] if found else None
        figure = _FIGURE.fullmatch(part)
        if kind == "python":
            found.append(Cell(part, code=True))
        elif kind == "text" and last and last.code and not last.output and not last.figure:
            found[-1] = replace(last, output=part)
        elif figure and last and last.code and not last.figure:
            found[-1] = replace(last, figure=Figure(*figure.groups()))
        else:
            part = f"```{kind}\n{part}\n```" if kind is not None else part
            if last and not last.code:
                found[-1] = replace(last, source=f"{last.source}\n\n{part}")
            else:
                found.append(Cell(part))
    return found


def _blocks(text: str) -> Iterator[tuple[str | None, str]]:
    """(language, inside) of fenced blocks, and (None, paragraph) of what is between them."""
    lines = iter(text.splitlines())
    paragraph: list[str] = []
    for line in lines:
        fence = _FENCE.fullmatch(line)
        if paragraph and (fence or not line):
            yield None, "\n".join(paragraph)
            paragraph = []
        if fence:
            inside = []
            for one in lines:
                if one == "```":
                    break
                inside.append(one)
            else:
                raise TutorialError(f"A block of {fence[1] or 'text'} does not end.")
            yield fence[1], "\n".join(inside)
        elif line:
            paragraph.append(line)
    if paragraph:
        yield None, "\n".join(paragraph)


def page_of(cells: Sequence[Cell]) -> str:
    """The page that has these cells: the inverse of `cells_of`."""
    parts = []
    for cell in cells:
        parts.append(f"```python\n{cell.source}\n```" if cell.code else cell.source)
        if cell.output:
            parts.append(f"```text\n{cell.output}\n```")
        if cell.figure:
            parts.append(f"![{cell.figure.alt}]({cell.figure.path})")
    return "\n\n".join(parts) + "\n"


# --- the notebook ---


def digest(cells: Sequence[Cell]) -> str:
    """Of all code."""
    return hashlib.sha256("\0".join(cell.source for cell in cells if cell.code).encode()).hexdigest()


def notebook_of(cells: Sequence[Cell], ran: str, folder: Path = DOCS) -> str:
    """The page as a notebook (nbformat 4.5).

    Args:
        ran: `digest` of the code that the outputs are of.
        folder: where the pictures lie.
    """
    made, count = [], 0
    for i, cell in enumerate(cells):
        common = {"id": f"cell-{i}", "metadata": {}, "source": cell.source.splitlines(keepends=True)}
        if not cell.code:
            made.append({"cell_type": "markdown", **common})
            continue
        count += 1
        outputs: list[dict[str, Any]] = []
        if cell.output:
            lines = f"{cell.output}\n".splitlines(keepends=True)
            outputs.append({"name": "stdout", "output_type": "stream", "text": lines})
        if cell.figure:
            kind = "image/png" if cell.figure.path.endswith(".png") else "image/jpeg"
            data = base64.b64encode((folder / cell.figure.path).read_bytes()).decode()
            shown = {"data": {kind: data, "text/plain": [cell.figure.alt]}, "execution_count": count, "metadata": {}}
            outputs.append({**shown, "output_type": "execute_result"})
        made.append({"cell_type": "code", "execution_count": count, **common, "outputs": outputs})
    metadata = {
        "calotype": {"code_sha256": ran},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    whole = {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def notebook() -> str:
    """docs/tutorial.ipynb, of the page as it is; nothing is run.

    Raises:
        TutorialError: code that has not been run since it was changed.
    """
    cells = cells_of(PAGE.read_text(encoding="utf-8"))
    kept = json.loads(NOTEBOOK.read_text(encoding="utf-8")) if NOTEBOOK.is_file() else {"metadata": {}}
    ran = digest(cells)
    if kept["metadata"].get("calotype", {}).get("code_sha256") != ran:
        raise TutorialError("The code in docs/tutorial.md has not been run; run: python scripts/tutorial.py")
    return notebook_of(cells, ran)


# --- running ---


def run(cells: Sequence[Cell], save: Callable[[Figure, Image.Image], None]) -> Iterator[Cell]:
    """Cells with what comes of them, one after another.

    Args:
        save: is given the pictures.

    Raises:
        TutorialError: a cell that fails, or gives a picture without a place on the page, or no picture where there is
            one.
    """
    space: dict[str, Any] = {"__name__": "tutorial"}
    for i, cell in enumerate(cells):
        if not cell.code:
            yield cell
            continue
        name = f"<cell {i}: {cell.source.splitlines()[0][:60]}>"
        printed = StringIO()
        try:
            with redirect_stdout(printed):
                value = _execute(cell.source, name, space)
        except Exception as error:
            raise TutorialError(f"{name} failed: {type(error).__name__}: {error}") from error
        if (value is not None) != (cell.figure is not None) or (cell.figure and not isinstance(value, Image.Image)):
            raise TutorialError(f"{name} gives {type(value).__name__}, and the page shows {cell.figure}.")
        if cell.figure and isinstance(value, Image.Image):
            save(cell.figure, value)
        yield replace(cell, output=printed.getvalue().rstrip("\n"))


def _execute(source: str, name: str, space: dict[str, Any]) -> object:
    """Runs a cell as notebooks do: the value of its last expression comes back."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), space)
    return eval(compile(ast.Expression(last.value), name, "eval"), space) if isinstance(last, ast.Expr) else None


def encoded(figure: Figure, image: Image.Image) -> bytes:
    """The picture's file: a JPEG, or a PNG of few colours."""
    file = BytesIO()
    image = image.convert("RGB")
    if figure.path.endswith(".jpg"):
        image.save(file, "JPEG", quality=QUALITY, optimize=True)
    else:
        image.quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Runs the page and writes what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    os.environ.pop("TUTORIAL_VAE", None)  # what the page says is of the weights that ship
    begin = time.perf_counter()

    def save(figure: Figure, image: Image.Image) -> None:
        with atomic_path(DOCS / figure.path) as temporary:
            temporary.write_bytes(encoded(figure, image))

    done = []
    try:
        for cell in run(cells_of(PAGE.read_text(encoding="utf-8")), save):
            done.append(cell)
            if cell.code:
                print(f"{time.perf_counter() - begin:5.0f} s  {cell.source.splitlines()[0]}", file=sys.stderr)
    except TutorialError as error:
        print(error, file=sys.stderr)
        return 1
    for path, text in ((PAGE, page_of(done)), (NOTEBOOK, notebook_of(done, digest(done)))):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"{PAGE} and {NOTEBOOK.name} were written after {time.perf_counter() - begin:.0f} s.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
