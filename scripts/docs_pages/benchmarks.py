"""docs/benchmarks.md: every file of bench/results as tables, by processor, beside the command that makes it again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ABOUT = {
    "budget": "Peak memory of a large picture within a budget, above the weights: planned and measured. What is "
    "measured of an encode holds the posterior's log-variances too, which come out with it (Wan at 4096x4096: 17 MB).",
    "cache": "Making latents of a data set, and reading them: see [caches](cache.md).",
    "draw": "Whether the built-in model draws what it was told: see [drawing](draw.md#the-model-that-ships).",
    "engine": "Stable Diffusion's architecture beside other programs: see [the engine](engine.md#measured).",
    "engine-large": "One decode of 4096x4096 in 1 GB.",
    "engine-limit-memory-scaling": "How near a decode comes to the fastest matrix product of the processor, memory "
    "under budgets, and growth with the picture.",
    "engine-speed-limit": "Stable Diffusion's network beside what else runs it, and how near a decode comes to the "
    "fastest matrix product of the processor.",
    "evaluate": "What an evaluation costs, over encoding and decoding alone: see [evaluation](evaluation.md).",
    "families": "Other architectures beside diffusers' class of each.",
    "kodak": "The suite's 24 pictures; each of them stands with [the built-in weights](builtin.md#kodak).",
    "networks": "What networks learn in the first minutes on a CPU.",
    "opening": "What it takes to open a VAE in a large checkpoint: see [weights](weights.md).",
    "shapes": "Which algorithm each shape of convolution gets.",
    "text": "Three text encoders on the same pictures: see [drawing](draw.md#how).",
    "train": "A training step beside the example trainer's: see [training](training.md#speed).",
}
OPENING = """Made by `python scripts/docs.py` from `bench/results/*.json`. Each section is called after its file and
begins with the command that measures anew; results are of the processor that is named."""
BYTES = re.compile(r"(^|[_.])(measured|predicted|peak|resident|spill|bytes|memory)([_.]|$)")
ELSEWHERE = {"builtin-choice"}  # has a page of its own: docs/builtin.md
LEFT_OUT = {"commit", "commits", "sha256", "pictures", "how", "changed", "versions", "results", "costs", "own_minus"}
IN_ROWS = LEFT_OUT | {"seconds_min", "seconds_max", "cost"}  # where they are tables of their own
UNTOLD = "A processor that was not noted"


def page() -> str:
    """docs/benchmarks.md."""
    files = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "bench" / "results").glob("*.json"))}
    files = {name: values for name, values in files.items() if name not in ELSEWHERE}
    parts = ["# Benchmarks", "", OPENING, ""]
    by: dict[str, list[str]] = {}
    sections: list[str] = []
    for name, values in files.items():
        sections += [f"## {name}", "", ABOUT.get(name, f"`bench/results/{name}.json`"), ""]
        for where, what, entry in _entries(values):
            by.setdefault(where, []).append(name)
            sections += [f"### {where}{what and f': {what}'}", "", *_section(name, entry)]
    parts += ["| processor | benchmarks |", "|---|---|"]
    for where, names in sorted(by.items(), key=lambda item: (item[0] == UNTOLD, item[0])):
        parts.append(f"| {where} | {', '.join(f'[{one}](#{one})' for one in dict.fromkeys(names))} |")
    return re.sub(r"\n{3,}", "\n\n", "\n".join([*parts, "", *sections])).rstrip() + "\n"


def _entries(values: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The processor, the name and the values of each run in a file, which holds one, or several by name."""
    if "results" in values:
        values = {"": values}
    for name, entry in values.items():
        told = next((one for one in (entry.get("processor", ""), entry.get("device", "")) if "family" in one), UNTOLD)
        yield told, name.replace(told, "").strip(", "), entry


def _section(name: str, entry: dict[str, Any]) -> Iterator[str]:
    command = entry.get("command") or f"python bench/{name}.py"
    yield from ["", "<!-- not run: a benchmark -->", "", f"    {command}", ""]
    versions = entry.get("versions", {})
    told = [entry.get("date", ""), *(f"{key} {value}" for key, value in versions.items() if key != "calotype")]
    told += [f"{key} {entry[key]}" for key in ("torch", "diffusers", "threads", "repeats") if key in entry]
    yield from [", ".join(filter(None, map(str, told))) + ".", ""]
    rest = {key: value for key, value in entry.items() if key not in LEFT_OUT and isinstance(value, (dict, list))}
    for title, value in {"": entry.get("results", {}), **rest}.items():
        yield from _tables(title, value)


def _tables(title: str, value: Any) -> Iterator[str]:
    """A list of rows as a table; of a table of such lists one each, with its name."""
    if isinstance(value, dict) and value and all(isinstance(one, (dict, list)) for one in value.values()):
        for key, one in value.items():
            yield from _tables(key, one)
        return
    rows = [_flat(one) for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict)]
    columns = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if any(row.get(key) is not None for row in rows)
    ]
    same = {key: rows[0].get(key) for key in columns if len(rows) > 1 and len({str(row.get(key)) for row in rows}) == 1}
    columns = [key for key in columns if key not in same]
    if not columns:
        return
    caption = ", ".join(f"{_words(key)} {_said(key, one)}" for key, one in same.items())
    yield from [": ".join(filter(None, [f"**{_words(title)}**" if title else "", caption])), ""]
    if len(rows) == 1:
        yield from [
            "| | |",
            "|---|---|",
            *(f"| {_words(key)} | {_said(key, rows[0].get(key))} |" for key in columns),
            "",
        ]
        return
    yield f"| {' | '.join(map(_words, columns))} |"
    yield "|---" * len(columns) + "|"
    for row in rows:
        yield f"| {' | '.join(_said(key, row.get(key)) for key in columns)} |"
    yield ""


def _flat(row: dict[str, Any], before: str = "") -> dict[str, Any]:
    """The numbers and texts of a row; those of a table in it with its name before theirs."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            if key not in IN_ROWS:
                flat |= _flat({name: one for name, one in value.items() if name != "repeats"}, f"{before}{key}.")
        elif not isinstance(value, list) and key not in LEFT_OUT:
            flat[before + key] = value
    for key in [key for key in flat if key.endswith("_min") and key[:-4] in flat]:
        low, high, middle = flat.pop(key), flat.pop(f"{key[:-4]}_max", None), flat[key[:-4]]
        if low != high:
            flat[key[:-4]] = f"{_said(key[:-4], middle)} ({_said(key[:-4], low)} to {_said(key[:-4], high)})"
    return flat


def _words(key: str) -> str:
    return key.replace("_", " ").replace(".", ", ").replace("|", "\\|")


def _said(key: str, value: Any) -> str:
    """A number as people write it: bytes in MB, others with three figures."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        if BYTES.search(key) and value >= 1e6:
            return f"{value / 1e6:,.0f} MB"
        if isinstance(value, int) or abs(value) >= 1000:
            return f"{value:,.0f}" if abs(value) >= 10_000 or not isinstance(value, int) else str(value)
        return f"{value:.3g}"
    return str(value).replace("|", "\\|")
