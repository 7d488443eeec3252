"""docs/findings.md: what each script of findings/ says of itself, in its head."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPENING = """Made by `python scripts/docs.py` from the heads of the scripts in `findings/`.

What other libraries do that a user of latents would not expect. Each script makes an environment of its own with the
versions that it names, shows the behaviour, and ends with 0 while it is still there."""


def page() -> str:
    """docs/findings.md."""
    parts = ["# Findings", "", OPENING, ""]
    for path in sorted((ROOT / "findings").glob("*.sh")):
        parts += [*_section(path), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _section(path: Path) -> list[str]:
    head = path.read_text().partition("\nset ")[0].splitlines()[1:]
    title, *about = (line.removeprefix("#").removeprefix(" ") for line in head)
    seen = next((i for i, line in enumerate(about) if re.fullmatch(r"Seen\b.*:", line)), len(about))
    parts = [f"## {path.stem}", "", title, ""]
    for line in about[:seen]:
        start = line.startswith(("Who meets it:", "What helps:", "What happens:"))
        parts += [""] if start else []
        parts.append(re.sub(r"(What one expects|What happens|Who meets it|What helps):", r"**\1:**", line))
    if seen < len(about):
        parts += ["", about[seen], "", "```text", *(line.removeprefix("  ") for line in about[seen + 1 :]), "```"]
    return [*parts, "", "<!-- not run: installs the versions that it names -->", "", f"    bash findings/{path.name}"]
