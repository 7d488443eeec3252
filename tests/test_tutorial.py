"""docs/tutorial.md and its notebook: in step with each other, and with what their code gives."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import tutorial  # noqa: E402
from tutorial import Cell, Figure, TutorialError, cells_of, encoded, notebook_of, page_of, run  # noqa: E402

MOST_BYTES = 600_000  # of all pictures together
DB = 0.5  # that another processor may make in a PSNR
PART = 0.1  # and in any other figure that is measured

NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(\.\d+)?(?:e-?\d+)?(?![\w])")

PAGE = """# A page

```python
print("first")
```

```text
first
```

Prose.

```text
no output
```

```python
picture
```

![What it shows](pictures/tutorial-one.png)
"""


def refused(figure: Figure, image: Image.Image) -> None:
    pytest.fail(f"{figure.path} is no picture to keep")


def test_a_page_becomes_cells_and_they_become_the_page() -> None:
    cells = cells_of(PAGE)
    assert cells == [
        Cell("# A page"),
        Cell('print("first")', code=True, output="first"),
        Cell("Prose.\n\n```text\nno output\n```"),
        Cell("picture", code=True, figure=Figure("What it shows", "pictures/tutorial-one.png")),
    ]
    assert page_of(cells) == PAGE
    text = tutorial.PAGE.read_text(encoding="utf-8")
    assert page_of(cells_of(text)) == text
    with pytest.raises(TutorialError, match="A block of python does not end"):
        cells_of("```python\nprint()\n")


def test_the_notebook_is_the_page_and_its_code_has_been_run() -> None:
    text = tutorial.NOTEBOOK.read_text(encoding="utf-8")
    assert text == tutorial.notebook(), "run: python scripts/docs.py"
    cells = json.loads(text)["cells"]
    assert [cell["cell_type"] == "code" for cell in cells] == [
        cell.code for cell in cells_of(tutorial.PAGE.read_text(encoding="utf-8"))
    ]
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_prose_may_change_without_a_run_and_code_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, notebook = tmp_path / "tutorial.md", tmp_path / "tutorial.ipynb"
    cells = cells_of("Prose.\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n")
    notebook.write_text(notebook_of(cells, tutorial.digest(cells)), encoding="utf-8")
    monkeypatch.setattr(tutorial, "PAGE", page)
    monkeypatch.setattr(tutorial, "NOTEBOOK", notebook)
    page.write_text(page_of(cells).replace("Prose", "Other prose"), encoding="utf-8")
    assert "Other prose" in tutorial.notebook()
    page.write_text(page_of(cells).replace("print(1)", "print(2)"), encoding="utf-8")
    with pytest.raises(TutorialError, match=r"run: python scripts/tutorial\.py"):
        tutorial.notebook()


def test_cells_share_names_and_give_what_they_print_and_show() -> None:
    kept: dict[str, Image.Image] = {}
    code = "from PIL import Image\n\nside = 3\nprint(side)", "Image.new('RGB', (side, side), 'red')"
    place = Figure("red", "pictures/tutorial-red.png")
    cells = [Cell(code[0], code=True, output="old"), Cell("prose"), Cell(code[1], code=True, figure=place)]
    done = list(run(cells, lambda figure, image: kept.update({figure.path: image})))
    assert [cell.output for cell in done] == ["3", "", ""]
    assert kept[place.path].size == (3, 3)
    for lacking, message in (
        (Cell("1 / 0", code=True), r"<cell 0: 1 / 0> failed: ZeroDivisionError"),
        (Cell("1 + 1", code=True), "gives int, and the page shows None"),
        (Cell("side = 1", code=True, figure=place), "gives NoneType, and the page shows Figure"),
    ):
        with pytest.raises(TutorialError, match=message):
            list(run([lacking], refused))


def test_the_page_has_its_pictures_and_there_are_no_others() -> None:
    text = tutorial.PAGE.read_text(encoding="utf-8")
    figures = [cell.figure.path for cell in cells_of(text) if cell.figure]
    assert sorted(figures) == sorted(f"pictures/{p.name}" for p in (ROOT / "docs" / "pictures").glob("tutorial-*"))
    assert sum((ROOT / "docs" / path).stat().st_size for path in figures) < MOST_BYTES


def differences(kept: str, found: str) -> list[str]:
    """Where what was printed is not what the page says.

    Numbers with a decimal point, and those of per cent, are measured: they may differ by `PART` or in their last digit,
    and those of dB by `DB`. All else is the same to the letter.
    """
    said = []
    for old, new in zip(kept.splitlines(), found.splitlines(), strict=True):
        if NUMBER.sub("#", old).split() != NUMBER.sub("#", new).split():
            said.append(f"{old!r} is now {new!r}")
            continue
        for a, b in zip(NUMBER.finditer(old), NUMBER.finditer(new), strict=True):
            before, after = (float(match[0].replace(",", "")) for match in (a, b))
            unit = old[a.end() :].split(maxsplit=1)[:1]
            last = 1.01 * 10.0 ** -(len(a[1] or ".") - 1)
            most = DB if unit == ["dB"] else max(PART * abs(before), last) if a[1] or unit == ["%"] else 0.0
            if abs(before - after) > most:
                said.append(f"{a[0]} is now {b[0]} in {old!r}")
    return said


def test_differences_are_found() -> None:
    assert not differences("a 4,096 b 25.31 dB 7 %", "a 4,096 b 25.60 dB 7 %")
    assert not differences("a  10.04", "a 10.9")
    for new in ("a 4,097 b 25.31 dB 7 %", "a 4,096 b 25.91 dB 7 %", "a 4,096 b 25.31 dB 9 %", "a 4,096 c 25.31 dB 7 %"):
        assert differences("a 4,096 b 25.31 dB 7 %", new), new


@pytest.mark.slow
def test_the_notebooks_cells_give_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUTORIAL_VAE", raising=False)
    notebook = json.loads(tutorial.NOTEBOOK.read_text(encoding="utf-8"))
    page = cells_of(tutorial.PAGE.read_text(encoding="utf-8"))
    cells = [
        Cell("".join(cell["source"]), code=cell["cell_type"] == "code", figure=kept.figure)
        for cell, kept in zip(notebook["cells"], page, strict=True)
    ]

    def look(figure: Figure, image: Image.Image) -> None:
        with Image.open(ROOT / "docs" / figure.path) as kept:
            assert kept.size == image.size, figure.path
            apart = np.abs(np.asarray(kept.convert("L"), float) - np.asarray(image.convert("L"), float))
        assert apart.mean() < 12, f"{figure.path} shows something else"
        assert encoded(figure, image)

    found = [
        said
        for kept, cell in zip(page, run(cells, look), strict=True)
        for said in differences(kept.output, cell.output)
    ]
    assert not found, "\n".join(found)
