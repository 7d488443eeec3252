"""Blocks of commands and of Python in the project's Markdown, and what is said above them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"<!-- not run: (.+?) -->")
COMMAND = re.compile(r"(calotype|python|pip|torchrun|npm|mkdir|bash|scripts/\S+|[A-Z_]+=\S+) ")
STATEMENT = re.compile(r"(import |from \S+ import |calotype\.\w+\(|\w+ = )")


@dataclass(frozen=True)
class Block:
    """A block of one page.

    Attributes:
        page: its path from the repository's root.
        line: where it begins, from 1.
        kind: "commands" or "python".
        text: without its indentation.
        why: the reason in the comment above it why it is not run; None where there is none.
    """

    page: str
    line: int
    kind: str
    text: str
    why: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README.md and all pages of docs/."""
    ignored = {"changelog.md", "families.md"}  # made for the site of files that are not in docs/
    return [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name not in ignored)]


def blocks_of(path: Path) -> Iterator[Block]:
    """Its blocks of commands and Python: fenced ones by their language, indented ones by how they begin."""
    page = str(path.relative_to(ROOT))
    lines = path.read_text().splitlines()
    at = 0
    while at < len(lines):
        start = at
        if (fence := re.match(r"\s*```(\w*)", lines[at])) is not None:
            at += 1
            while not lines[at].strip().startswith("```"):
                at += 1
            language, text, at = fence[1], lines[start + 1 : at], at + 1
            kind = {"python": "python", "sh": "commands", "bash": "commands"}.get(language)
        elif lines[at].startswith("    ") and lines[at].strip() and (at == 0 or not lines[at - 1].strip()):
            while at < len(lines) and (lines[at].startswith("    ") or not lines[at].strip()):
                at += 1
            text = [line[4:] for line in lines[start:at]]
            kind = "commands" if COMMAND.match(text[0]) else "python" if STATEMENT.match(text[0]) else None
        else:
            at += 1
            continue
        if kind is not None:
            above = next((line for line in reversed(lines[:start]) if line.strip()), "")
            mark = MARK.fullmatch(above.strip())
            yield Block(page, start + 1, kind, "\n".join(text).strip("\n"), mark[1] if mark else None)


def commands_of(block: Block) -> list[str]:
    """The command lines of a block, without comments, those that go on on the next line as one."""
    text = block.text.replace("\\\n", " ")
    return [line for line in (re.sub(r"\s+#.*|^#.*", "", line).strip() for line in text.splitlines()) if line]
