"""Writes docs/cli.md from the commands' own help, docs/builtin.md from what was measured, and the table of presets.

With --check it only says whether they are up to date.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from calotype.weights.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("", "reconstruct", "encode", "decode", "inspect", "plan", "convert", "train", "doctor")


def help_of(command: str) -> str:
    """What `calotype COMMAND --help` prints on a plain terminal of 100 columns."""
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    words = [sys.executable, "-m", "calotype", *command.split(), "--help"]
    text = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def commands() -> str:
    """docs/cli.md."""
    parts = ["# Commands", "", "Made by `python scripts/docs.py` from the commands' own help.", ""]
    for command in COMMANDS:
        parts += [f"## calotype {command}".rstrip(), "", "```text", help_of(command), "```", ""]
    return "\n".join(parts)


def builtin() -> str:
    """docs/builtin.md, from the kept result of bench/kodak.py."""
    result = json.loads((ROOT / "bench" / "results" / "kodak.json").read_text())
    vaes = result["results"]
    parts = ["# The built-in weights on Kodak", ""]
    parts += [
        f"`{result['command']}`, where KODAK is the folder with the suite's 24 pictures; {result['protocol']}.",
        "",
    ]
    parts += ["Nothing was trained on or tuned to these pictures. PSNR in dB / SSIM:", ""]
    parts += ["| picture | " + " | ".join(f"{v['vae']} ({v['latent_channels']} channels)" for v in vaes) + " |"]
    parts += ["|---" * (len(vaes) + 1) + "|"]
    for rows in zip(*(v["pictures"] for v in vaes), strict=True):
        parts += [f"| {rows[0]['picture']} | " + " | ".join(f"{r['psnr']:.2f} / {r['ssim']:.4f}" for r in rows) + " |"]
    parts += ["| **mean** | " + " | ".join(f"**{v['psnr']:.2f} / {v['ssim']:.4f}**" for v in vaes) + " |", ""]
    return "\n".join(parts)


def weights() -> str:
    """docs/weights.md, whose table of presets is made anew."""
    before, mark, _ = (ROOT / "docs" / "weights.md").read_text().partition("## Presets\n")
    rows = ["", "| name | repository | latent format | licence | |", "|---|---|---|---|---|"]
    for name, preset in PRESETS.items():
        gated = ", asks for consent" if preset.gated else ""
        rows.append(
            f"| `{name}` | {preset.repo} | `{preset.latent_format}` | {preset.licence}{gated} | {preset.about} |"
        )
    return before + mark + "\n".join(rows) + "\n"


PAGES = {
    ROOT / "docs" / "cli.md": commands,
    ROOT / "docs" / "builtin.md": builtin,
    ROOT / "docs" / "weights.md": weights,
}


def main() -> int:
    """0 when the pages are (or were made) up to date."""
    for path, make in PAGES.items():
        text = make()
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            print(f"{path.relative_to(ROOT)} is out of date; run: python scripts/docs.py", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
