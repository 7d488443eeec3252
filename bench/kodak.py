"""How well VAEs reconstruct a folder of pictures: whole pictures, float32, mode, uint8 rounded half up.

    python bench/kodak.py --data FOLDER [--vae builtin --vae PATH ...] [--keep]

Prints a table and then one JSON line; --keep keeps that line in bench/results/, from where docs/builtin.md is made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import calotype

ROOT = Path(__file__).resolve().parents[1]


def measure(name: str, pictures: list[Path]) -> dict[str, Any]:
    """PSNR and SSIM of every picture, and their means, for one VAE."""
    vae = calotype.load(None if name == "builtin" else name, device="cpu")
    rows: list[dict[str, Any]] = []
    for path in track(pictures, description=vae.name, console=Console(stderr=True), transient=True):
        result = calotype.reconstruct(vae, calotype.read_picture(path))
        rows.append({"picture": path.name, "psnr": result.psnr, "ssim": result.ssim})
    return {
        "vae": vae.name.removeprefix("./"),
        "sha256": vae.sha256,
        "latent_channels": vae.latent_channels,
        "factor": vae.factor,
        "parameters": sum(p.numel() for p in vae.module.parameters()),
        "psnr": sum(r["psnr"] for r in rows) / len(rows),
        "ssim": sum(r["ssim"] for r in rows) / len(rows),
        "pictures": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of PNG pictures")
    parser.add_argument("--vae", action="append", help="builtin, a preset, or a path; may be given again")
    parser.add_argument("--keep", action="store_true", help="keep the result as the one that the docs show")
    arguments = parser.parse_args()
    pictures = sorted(arguments.data.glob("*.png"))
    if not pictures:
        sys.exit(f"{arguments.data}: there are no PNG pictures here.")
    measured = [measure(name, pictures) for name in arguments.vae or ["builtin"]]

    table = Table("picture", *(f"{m['vae']} PSNR (dB) / SSIM" for m in measured))
    for rows in zip(*(m["pictures"] for m in measured), strict=True):
        table.add_row(rows[0]["picture"], *(f"{r['psnr']:.2f} / {r['ssim']:.4f}" for r in rows))
    table.add_row("mean", *(f"{m['psnr']:.2f} / {m['ssim']:.4f}" for m in measured), style="bold")
    Console().print(table)

    line = json.dumps(
        {
            "command": "python bench/kodak.py --data KODAK"
            + "".join(
                f" --vae {Path(name).name.upper() if Path(name).exists() else name}" for name in arguments.vae or []
            ),
            "date": date.today().isoformat(),
            "commit": subprocess.run(
                ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
            ).stdout.strip(),
            "pictures_sha256": hashlib.sha256(b"".join(p.read_bytes() for p in pictures)).hexdigest(),
            "protocol": "whole pictures, float32, mode, uint8 rounded half up; SSIM gaussian 11/1.5, RGB, valid",
            "versions": {
                "calotype": calotype.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "device": f"cpu, {torch.get_num_threads()} threads",
            "repeats": 1,
            "spread": "deterministic",
            "results": measured,
        }
    )
    if arguments.keep:
        (ROOT / "bench" / "results" / "kodak.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
