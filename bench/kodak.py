"""How well VAEs reconstruct a folder of pictures: whole pictures, float32, mode, uint8 rounded half up.

    python bench/kodak.py --data FOLDER [--vae builtin --vae PATH ...] [--keep]

LPIPS v0.1 is measured with both networks, VGG and AlexNet; CALOTYPE_LPIPS may name a folder with their weights.
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
from calotype.evaluate.lpips import LPIPS, load_lpips
from calotype.pixels import from_array

ROOT = Path(__file__).resolve().parents[1]


METRICS = ("psnr", "ssim", "lpips_vgg", "lpips_alex")


def measure(name: str, pictures: list[Path], lpips: dict[str, LPIPS]) -> dict[str, Any]:
    """PSNR, SSIM and LPIPS of every picture, and their means, for one VAE."""
    vae = calotype.load(None if name == "builtin" else name, device="cpu")
    rows: list[dict[str, Any]] = []
    for path in track(pictures, description=vae.name, console=Console(stderr=True), transient=True):
        result = calotype.reconstruct(vae, calotype.read_picture(path))
        both = [from_array(p.permute(1, 2, 0).numpy())[None] for p in (result.original, result.reconstruction)]
        with torch.no_grad():
            perceptual = {f"lpips_{net}": float(one(*both)) for net, one in lpips.items()}
        rows.append({"picture": path.name, "psnr": result.psnr, "ssim": result.ssim, **perceptual})
    return {
        "vae": vae.name.removeprefix("./"),
        "sha256": vae.sha256,
        "latent_channels": vae.latent_channels,
        "factor": vae.factor,
        "parameters": sum(p.numel() for p in vae.module.parameters()),
        **{key: sum(r[key] for r in rows) / len(rows) for key in METRICS},
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
    lpips = {net: load_lpips(net) for net in ("vgg", "alex")}
    measured = [measure(name, pictures, lpips) for name in arguments.vae or ["builtin"]]

    def cell(row: dict[str, Any]) -> str:
        return f"{row['psnr']:.2f} / {row['ssim']:.4f} / {row['lpips_vgg']:.4f} / {row['lpips_alex']:.4f}"

    table = Table("picture", *(f"{m['vae']} PSNR (dB) / SSIM / LPIPS vgg / alex" for m in measured))
    for rows in zip(*(m["pictures"] for m in measured), strict=True):
        table.add_row(rows[0]["picture"], *map(cell, rows))
    table.add_row("mean", *map(cell, measured), style="bold")
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
            "protocol": "whole pictures, float32, mode, uint8 rounded half up; SSIM gaussian 11/1.5, RGB, valid; "
            "LPIPS v0.1 of the rounded pictures",
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
