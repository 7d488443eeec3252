"""Writes the pages of docs/ that are made: commands from their own help, benchmarks and the card of the built-in
weights from what was measured, findings from their scripts, tables of the registry, and docs/tutorial.ipynb from
docs/tutorial.md (which scripts/tutorial.py runs).

With --check it only says whether they are up to date.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tutorial
from docs_pages import benchmarks, findings

from calotype.families import FORMATS, PRESETS
from calotype.latent_spaces import Decoder, spaces

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "", "reconstruct", "encode", "decode", "draw", "redraw", "evaluate", "probe", "inspect", "spaces", "plan",
    "convert", "train", "morph", "vary", "blend", "transfer", "direction learn", "direction apply",
    "channels", "studio", "cache make", "cache status", "cache verify", "cache stats", "cache report", "cache repair",
    "cache gc", "cache export", "cache import", "doctor",
)  # fmt: skip


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
    """docs/builtin.md, the card of the weights that ship, from results that were kept."""
    results = ROOT / "bench" / "results"
    choice, kodak = (json.loads((results / f"{name}.json").read_text()) for name in ("builtin-choice", "kodak"))
    vaes = kodak["results"]
    own = vaes[0]
    parts = ["# The built-in weights", ""]
    size = f"{own['parameters'] / 1e6:.2f} M parameters, f{own['factor']}, {own['latent_channels']} latent channels"
    parts += [
        f"{size}, float16. What they were trained on, and by which recipes, stands in [training.md](training.md); "
        "`calotype inspect builtin` shows it as the file has it.",
        "",
        f"The wheel of calotype is {wheel_megabytes()} MB, nearly all of it these weights and those of "
        "[the drawing model](draw.md#the-model-that-ships).",
        "",
        "## How they were chosen",
        "",
        f"On {len(choice['pictures'])} photographs held out of the training set; each row goes on from the one above. "
        "What ships has the best LPIPS of AlexNet, which nothing was trained on, at a PSNR at most 0.3 dB below the "
        "first, and its pictures look no worse.",
        "",
        f"`{' '.join(choice['command'])}` ({choice['protocol']['text']}; 95% intervals)",
        "",
    ]
    metrics = choice["metrics"]
    parts += ["| weights | " + " | ".join(" ".join((m["title"], m["unit"])).strip() for m in metrics) + " |"]
    parts += ["|---" * (len(metrics) + 1) + "|"]
    for one in choice["vaes"]:
        cells = [f"{one['label']} (ships)" if one["sha256"] == own["sha256"] else one["label"]]
        for metric in metrics:
            mean, digits = one["means"][metric["key"]], 2 if metric["unit"] else 4
            cells += [f"{mean['mean']:.{digits}f} [{mean['low']:.{digits}f}, {mean['high']:.{digits}f}]"]
        parts += [f"| {' | '.join(cells)} |"]
    parts += ["", "## Kodak", ""]
    parts += [
        f"`{kodak['command']}`, where KODAK is the folder with the suite's 24 pictures; {kodak['protocol']}.",
        "",
    ]
    parts += ["The built-in weights were not trained on these pictures. PSNR in dB / SSIM / LPIPS (VGG):", ""]
    parts += ["| picture | " + " | ".join(f"{v['vae']} ({v['latent_channels']} channels)" for v in vaes) + " |"]
    parts += ["|---" * (len(vaes) + 1) + "|"]

    def cell(row: dict[str, float]) -> str:
        return f"{row['psnr']:.2f} / {row['ssim']:.4f} / {row['lpips_vgg']:.4f}"

    for rows in zip(*(v["pictures"] for v in vaes), strict=True):
        parts += [f"| {rows[0]['picture']} | " + " | ".join(map(cell, rows)) + " |"]
    parts += ["| **mean** | " + " | ".join(f"**{cell(v)}**" for v in vaes) + " |", ""]
    return "\n".join(parts)


def wheel_megabytes() -> int:
    """How large the wheel is: its files are the package's, each deflated by itself."""
    found = (ROOT / "src" / "calotype").rglob("*")
    files = [path for path in found if path.is_file() and path.parent.name != "__pycache__"]
    return round(sum(len(zlib.compress(path.read_bytes())) for path in files) / 1e6)


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


def latents() -> str:
    """docs/latents.md, whose table of formats is made anew."""
    before, mark, after = (ROOT / "docs" / "latents.md").read_text().partition("## Formats\n")
    rows = ["", "| format | presets | channels | model latents |", "|---|---|---|---|"]
    packed = "2\u00d72 packed, (packed \u2212 running_mean) / √(running_var + 1e-4), statistics from the weights"
    for values in FORMATS:
        rows.append(f"| `{values['name']}` | {_presets(values['name'])} | {values['channels']} | {_scaled(values)} |")
    rows += [
        f"| `flux2` | {_presets('flux2')} | 32 → 128 | {packed} |",
        "| `builtin` | the weights that ship | 16 | (raw \u2212 mean) / std, per channel, from the weights |",
        "| `none` | | any | raw |",
        "",
        "## Which it is\n",
    ]
    return before + mark + "\n".join(rows) + after.partition("## Which it is\n")[2]


def spaces_page() -> str:
    """docs/spaces.md, whose table of spaces is made anew."""
    before, mark, after = (ROOT / "docs" / "spaces.md").read_text().partition("## Which there are\n")
    rows = ["", "| space | f | channels | model latents | models | decoders |", "|---|---|---|---|---|---|"]
    for one in spaces():
        packed = f" → {one.channels * one.patch**2}" if one.patch > 1 else ""
        decoders = ", ".join(f"`{each.name}`{_more(each)}" for each in one.decoders)
        models = ", ".join(one.models)
        rows.append(f"| `{one.name}` | {one.factor} | {one.channels}{packed} | {one.scaling} | {models} | {decoders} |")
    sources = dict.fromkeys(source for one in spaces() for source in one.models.values())
    rows += ["", f"Which models use them is written in {'; '.join(sources)}.", "", "## What decodes what\n"]
    return before + mark + "\n".join(rows) + after.partition("## What decodes what\n")[2]


def _more(decoder: Decoder) -> str:
    larger = f"pictures {decoder.enlarges} times as large" if decoder.enlarges != 1 else ""
    said = ", ".join(filter(None, [larger, "alpha" if decoder.alpha else "", "tiny" if decoder.tiny else ""]))
    return f" ({said})" if said else ""


def _presets(name: str) -> str:
    return ", ".join(f"`{preset}`" for preset, one in PRESETS.items() if one.latent_format == name)


def _scaled(values: Mapping[str, Any]) -> str:
    """How raw latents become a model's, in words."""
    factor = values.get("scaling_factor", 1.0)
    times = "" if factor == 1 else f" · {factor:g}"
    if values["kind"] == "per_channel":
        return f"(raw \u2212 mean) / std{times}, per channel"
    shift = values.get("shift_factor")
    return f"(raw \u2212 {shift:g}){times}" if shift else f"raw{times}"


PAGES = {
    ROOT / "docs" / "cli.md": commands,
    ROOT / "docs" / "builtin.md": builtin,
    ROOT / "docs" / "benchmarks.md": benchmarks.page,
    ROOT / "docs" / "findings.md": findings.page,
    ROOT / "docs" / "latents.md": latents,
    ROOT / "docs" / "spaces.md": spaces_page,
    ROOT / "docs" / "tutorial.ipynb": tutorial.notebook,
    ROOT / "docs" / "weights.md": weights,
}


def main() -> int:
    """0 when the pages are (or were made) up to date."""
    for path, make in PAGES.items():
        try:
            text = make()
        except tutorial.TutorialError as error:
            print(error, file=sys.stderr)
            return 1
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            print(f"{path.relative_to(ROOT)} is out of date; run: python scripts/docs.py", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
