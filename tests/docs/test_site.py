"""The site of the documentation: the checks of scripts/site.py, which scripts/check runs, find what is wrong."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import griffe
import pytest
from docs_pages import api, written

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "site.py"))


@pytest.fixture
def faults(script: dict[str, Any], tmp_path: Path) -> Callable[[str], list[str]]:
    """What is said of a site of two pages, whose first has this in it."""

    def found(html: str) -> list[str]:
        (tmp_path / "deep").mkdir(exist_ok=True)
        (tmp_path / "deep" / "b.html").write_text('<h1 id="there">b</h1>')
        (tmp_path / "a.html").write_text(html)
        said: Iterator[str] = script["faults"](tmp_path.resolve())
        return list(said)

    return found


@pytest.mark.parametrize(
    "html",
    [
        '<a href="deep/b.html#there">b</a>',
        '<a id="up"></a><a href="#up">here</a>',
        '<a href="https://example.org/">elsewhere</a>',
        '<img src="data:image/png;base64,AAAA">',
    ],
)
def test_sound_links_pass(html: str, faults: Callable[[str], list[str]]) -> None:
    assert faults(html) == []


@pytest.mark.parametrize(
    ("html", "said"),
    [
        ('<a href="c.html">c</a>', "a.html links to c.html, which is not there"),
        ('<a href="deep/b.html#gone">b</a>', "and there is no such place on that page"),
        ('<a href="#gone">b</a>', "and there is no such place on that page"),
        ('<a href="../README.md">up</a>', "which is not in the site"),
        ('<script src="https://example.org/a.js"></script>', "which needs a network"),
        ('<link rel="stylesheet" href="https://example.org/a.css">', "which needs a network"),
        ('<img src="a.png">', "a.html links to a.png, which is not there"),
    ],
)
def test_dead_links_are_found(html: str, said: str, faults: Callable[[str], list[str]]) -> None:
    (fault,) = faults(html)
    assert said in fault


def test_links_to_findings_and_results_stay_in_the_site(script: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "guides").mkdir()
    page = tmp_path / "guides" / "a.html"
    page.write_text(
        '<a href="../../findings/one-two.sh">1</a><a href="../../bench/results/x.json">2</a>'
        '<a href="../../findings">3</a>'
    )
    script["led_inside"](tmp_path)
    assert page.read_text() == (
        '<a href="../findings.html#one-two">1</a><a href="../benchmarks.html#x">2</a><a href="../findings.html">3</a>'
    )


def test_every_package_that_names_what_is_public_has_a_page() -> None:
    assert set(api.with_names()) <= set(api.modules())
    assert len(api.modules()) > 50


def test_names_that_are_described_together_are_described_one_by_one() -> None:
    text = "Args:\n    a, b: in pixels,\n        both.\n    z: latents.\n\nRaises:\n    A, B: as they are."
    assert written.apart(text).splitlines() == [
        *("Args:", "    a: in pixels,", "        both.", "    b: in pixels,", "        both.", "    z: latents."),
        *("", "Raises:", "    A, B: as they are."),
    ]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("side: int = 3  # in pixels", "in pixels"),
        ("    sides = (\n        3,  # above\n    )  # in pixels", "in pixels"),
        ("sides = (\n    3,  # above\n)", ""),
        ('name = "# none"', ""),
    ],
)
def test_comments_after_code_are_found_and_others_are_not(code: str, said: str) -> None:
    assert written.comment(code) == said


CODE = '''
from torch import Tensor, nn

class Block(nn.Module):
    """A block."""

class Wide(Block):
    """A network.

    Args:
        width: of its maps.
        depth: in blocks, at most.

    Attributes:
        depth: in blocks.
        head: what the last map [N, C, H, W] goes through.
        way: out of it.

    Raises:
        ValueError: never.
    """

    shift: Tensor

    def __init__(self, width: int, depth: int):
        self.width, self.depth = width, depth or 3
        self.block, self.last = Block(), nn.Identity() if width else Block()
        self.body = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Identity()
        self.silent = width + 1

class Wider(Wide):
    """A wider one."""

    def __init__(self):
        self.width = 3

class Plain:
    """No network."""

    def __init__(self):
        self.block = Block()
'''


def test_attributes_have_their_words_and_layers_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(CODE)
    some = griffe.load("some", search_paths=[tmp_path], extensions=griffe.load_extensions(written.Written))

    def told(name: str) -> dict[str, tuple[str, str]]:
        found = {key: one for key, one in some[name].members.items() if one.is_attribute}
        return {
            key: (str(one.annotation or ""), one.docstring.value if one.docstring else "") for key, one in found.items()
        }

    assert told("Wide") == {
        "width": ("int", "of its maps."),
        "depth": ("", "in blocks."),
        "head": ("", "what the last map [N, C, H, W] goes through."),
        "silent": ("", ""),
    }
    assert told("Wider") == {"width": ("", "of its maps.")}
    assert told("Plain") == {"block": ("", "")}
    _, rest = some["Wide"].docstring.value.split("at most.\n")
    assert [line for line in rest.splitlines() if line] == [
        *("Attributes:", "    way: out of it.", "Raises:", "    ValueError: never."),
    ]
