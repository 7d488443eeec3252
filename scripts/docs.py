"""Writes docs/cli.md from the commands' own help; --check only says whether it is up to date."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cli.md"
COMMANDS = ("", "reconstruct", "encode", "decode", "inspect", "convert", "train", "doctor")


def help_of(command: str) -> str:
    """What `calotype COMMAND --help` prints on a plain terminal of 100 columns."""
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    words = [sys.executable, "-m", "calotype", *command.split(), "--help"]
    text = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def page() -> str:
    """The whole page."""
    parts = ["# Commands", "", "Made by `python scripts/docs.py` from the commands' own help.", ""]
    for command in COMMANDS:
        parts += [f"## calotype {command}".rstrip(), "", "```text", help_of(command), "```", ""]
    return "\n".join(parts)


def main() -> int:
    """0 when the page is (or was made) up to date."""
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text)
        return 0
    if not PAGE.is_file() or PAGE.read_text() != text:
        print("docs/cli.md is out of date; run: python scripts/docs.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
