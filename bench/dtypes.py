"""What narrow types cost encodes and decodes: on the CPU, over a folder of pictures.

    python bench/dtypes.py --data FOLDER [--vae builtin --vae PATH ...] [--every N] [--keep]
    python bench/dtypes.py --copies

Latents are the posterior's mode. Their dB are 20 log10 of the std of float32's over the root mean square error; dB of
pictures are the PSNR against the picture that float32 gives in both directions, and PSNR that against the original.
--keep keeps the result in bench/results/, from where docs/engine.md has it.

--copies measures, each in a process of its own, what memory the encoder's copy takes that encodes in float32 where
decodes are in bfloat16: of the built-in VAE, and of Stable Diffusion's architecture with random weights, both stored in
float16.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
from engine import processor, random_network, resident, watched_peak
from torch import Tensor

import calotype
from calotype.evaluate.measure import place
from calotype.evaluate.metrics import psnr
from calotype.families.kl.config import AutoencoderConfig
from calotype.pixels import pad, to_uint8
from calotype.vae.trials import decibels
from calotype.weights.save import save_weights

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def measure(name: str, pictures: list[Path], engine: Any) -> dict[str, Any]:
    """Means over pictures, by the type of encodes and of decodes."""
    vaes = {
        key: calotype.load(None if name == "builtin" else name, device="cpu", dtype=dtype, encode_dtype=dtype,
                           engine=engine)
        for key, dtype in DTYPES.items()
    }  # fmt: skip
    found: dict[str, list[float]] = {}

    def note(key: str, value: float) -> None:
        found.setdefault(key, []).append(value)

    for path in pictures:
        pixels = calotype.read_picture(path).pixels
        padded = pad(pixels[None], vaes["float32"].factor)[0]
        original = to_uint8(padded[0])
        latents = {key: vae.encode(padded).mode() for key, vae in vaes.items()}
        right = to_uint8(vaes["float32"].decode(latents["float32"])[0])
        for key, z in latents.items():
            note(f"latents of {key} encodes, dB", decibels(z, latents["float32"]))
        for encode, decode in (
            ("float32",) * 2,
            *((key, "float32") for key in list(DTYPES)[1:]),
            *(("float32", key) for key in list(DTYPES)[1:]),
            *((key, key) for key in list(DTYPES)[1:]),
        ):
            made: Tensor = to_uint8(vaes[decode].decode(latents[encode])[0])
            if (encode, decode) != ("float32", "float32"):
                note(f"{encode} encodes, {decode} decodes, dB", psnr(right, made))
            note(f"{encode} encodes, {decode} decodes, PSNR", psnr(original, made))
    return {
        "vae": vaes["float32"].name.removeprefix("./"), "sha256": vaes["float32"].sha256,
        "engine": {key: vae.engine.name for key, vae in vaes.items()},
        **{key: round(sum(values) / len(values), 3) for key, values in found.items()},
    }  # fmt: skip


def copy_here(name: str) -> dict[str, Any]:
    """What the encoder's copy takes in this process."""
    vae = calotype.load(name, device="cpu", dtype=torch.bfloat16, encode_dtype=torch.float32)
    gc.collect()
    weights, before = vae.weights_bytes, resident()
    with watched_peak() as watched:
        vae.engine_of("encode")
    gc.collect()
    return {
        "vae": vae.name, "parameters": sum(weight.numel() for weight in vae.module.parameters()),
        "weights": vae.weights_bytes - weights, "resident": resident() - before, "peak": watched["peak"] - before,
    }  # fmt: skip


def copies() -> dict[str, Any]:
    """What it takes of two VAEs."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sd1.safetensors"
        save_weights(random_network(AutoencoderConfig()).half(), path, layout="ldm")
        for name in ("builtin", str(path)):
            command = [sys.executable, __file__, "--child", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    return {"processor": processor(), "torch": torch.__version__, "copies": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of PNG pictures")
    parser.add_argument("--vae", action="append", help="builtin, a preset, or a path; may be given again")
    parser.add_argument("--every", type=int, default=1, help="only every n-th picture")
    parser.add_argument("--engine", default="auto", help="what computes; see calotype.load")
    parser.add_argument("--keep", action="store_true", help="keep the result as the one that the docs show")
    parser.add_argument("--copies", action="store_true", help="measure the memory of encoders' copies instead")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(copy_here(arguments.child)))
        return
    if arguments.copies:
        print(json.dumps(copies(), indent=1))
        return
    if arguments.data is None:
        parser.error("--data is missing: a folder of PNG pictures")
    pictures = sorted(arguments.data.glob("*.png"))[:: arguments.every]
    if not pictures:
        sys.exit(f"{arguments.data}: there are no PNG pictures here.")
    result = {
        "command": f"python bench/dtypes.py --data KODAK --every {arguments.every}",
        "date": date.today().isoformat(), "python": platform.python_version(), "torch": torch.__version__,
        "calotype": calotype.__version__, "device": place(torch.device("cpu"), None), "pictures": len(pictures),
        "vaes": [measure(name, pictures, arguments.engine) for name in arguments.vae or ["builtin"]],
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.keep:
        (ROOT / "bench" / "results" / "dtypes.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
