"""Every family of autoencoders beside diffusers' class of it: numbers, time, memory.

    python bench/families.py [--families wan2.1,qwen-image,...] [--sections speed memory] [--size 512]
                             [--repeats 3] [--keep]

Weights are random, at full size, in float32; both sides have the same, in one process, and take turns. An error is the
largest difference over max(1, the result's standard deviation). Resident is what the weights take; a peak is what a
picture of twice the side takes beside its weights, what goes in and what comes out, each in a process of its own; and
calotype's is by its default plan. Families that this version does not know are left out.

Prints a table and then one JSON line; --keep keeps each family as soon as it is measured, in
bench/results/families.json, by processor.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from engine import git, keep_as, processor, resident, say, version, watched_peak
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import calotype
from calotype.engine.memory import Memory
from calotype.families import CLASSES, family_of

ROOT = Path(__file__).resolve().parents[1]
HUNYUAN = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 64, "block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "layers_per_block": 2, "spatial_compression_ratio": 32, "sample_size": 384, "scaling_factor": 0.75289,
}  # fmt: skip
WAN22 = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
}  # fmt: skip
SANA = {
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "downsample_block_type": "conv", "upsample_block_type": "interpolate", "scaling_factor": 0.41407,
}  # fmt: skip
VQ_F4 = {
    "block_out_channels": (128, 256, 512), "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3, "layers_per_block": 2, "latent_channels": 3,
    "num_vq_embeddings": 8192,
}  # fmt: skip
MOVQ = {
    "block_out_channels": (128, 256, 256, 512), "layers_per_block": 2, "latent_channels": 4, "vq_embed_dim": 4,
    "num_vq_embeddings": 16384, "norm_type": "spatial",
    "down_block_types": ("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
}  # fmt: skip
# name -> diffusers' class, what it is made of, channels of pictures
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "sd1": ("AutoencoderKL", {}, 3),
    "wan2.1": ("AutoencoderKLWan", {}, 3),
    "qwen-image": ("AutoencoderKLQwenImage", {}, 3),
    "wan2.2": ("AutoencoderKLWan", WAN22, 3),
    "qwen-image-2.1": ("AutoencoderKLQwenImage21", {}, 4),
    "flux2": ("AutoencoderKLFlux2", {}, 3),
    "dc-ae": ("AutoencoderDC", SANA, 3),
    "hunyuan-image": ("AutoencoderKLHunyuanImage", HUNYUAN, 3),
    "vq-f4": ("VQModel", VQ_F4, 3),
    "movq": ("VQModel", MOVQ, 3),
}
SD1 = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip

SECTIONS = ("speed", "memory")

Run = Callable[[], Tensor]


def theirs(name: str) -> Any:
    """diffusers' module with random weights that keep results of about the size of what goes in."""
    class_, values, _ = NETWORKS[name]
    torch.manual_seed(0)
    module = getattr(diffusers, class_)(**(SD1 if name == "sd1" else values)).requires_grad_(False).eval()
    for key, parameter in module.named_parameters():
        if parameter.ndim > 1 and parameter.shape[1:].numel() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter, *((0.0, 0.2) if key.endswith("bias") else (1.0, 0.3)))
    return module


def picture(name: str, size: int) -> Tensor:
    """Random pixels [1, P, size, size]."""
    generator = torch.Generator().manual_seed(size)
    return torch.rand(1, NETWORKS[name][2], size, size, generator=generator) * 2 - 1


def encoded(module: Any, x: Tensor) -> Tensor:
    """What diffusers' encoder gives: moments, or latents."""
    video = "Wan" in type(module).__name__ or "Qwen" in type(module).__name__
    with torch.inference_mode():
        out = module.encode(x[:, :, None] if video else x)
    plain = next((getattr(out, name) for name in ("latent", "latents") if hasattr(out, name)), None)
    result: Tensor = out.latent_dist.parameters if plain is None else plain
    return result[:, :, 0] if video else result


def decoded(module: Any, z: Tensor) -> Tensor:
    """What diffusers' decoder gives."""
    video = "Wan" in type(module).__name__ or "Qwen" in type(module).__name__
    with torch.inference_mode():
        result: Tensor = module.decode(z[:, :, None] if video else z).sample
    return result[:, :, 0] if video else result


def compared(name: str, folder: Path, size: int, repeats: int) -> dict[str, Any]:
    """One family: errors, ratios of times, bytes of weights."""
    module = theirs(name)
    module.save_pretrained(folder)
    vae = calotype.load(folder, device="cpu", latent_format="sd1" if name == "sd1" else None)
    x = picture(name, size)
    row: dict[str, Any] = {"family": name, "class": type(module).__name__, "size": size}
    posterior = vae.encode(x)
    z = posterior.mode()
    if hasattr(module, "quantize"):  # entries themselves, which nobody takes for others
        z = module.quantize(z)[0]
    clamps = family_of(vae.config).clamps
    runs: dict[str, dict[str, Run]] = {
        "encode": {"calotype": lambda: vae.encode(x).moments, "diffusers": lambda: encoded(module, x)},
        "decode": {"calotype": lambda: vae.decode(z, clamp=clamps), "diffusers": lambda: decoded(module, z)},
    }
    for direction, contenders in runs.items():
        results = {contender: run() for contender, run in contenders.items()}  # warms up
        a, b = (results[contender].float() for contender in ("calotype", "diffusers"))
        row[f"{direction}_error"] = ((a - b).abs().max() / max(1.0, b.std().item())).item()
        turns = []
        for _ in range(repeats):
            seconds = {}
            for contender, run in contenders.items():
                time.sleep(0.5)
                begin = time.perf_counter()
                run()
                seconds[contender] = time.perf_counter() - begin
            turns.append(seconds)
        ratios = [turn["diffusers"] / turn["calotype"] for turn in turns]
        row[f"{direction}_times"] = statistics.median(ratios)
        row[f"{direction}_times_min"], row[f"{direction}_times_max"] = min(ratios), max(ratios)
        for contender in contenders:
            row[f"{direction}_seconds_{contender}"] = statistics.median(turn[contender] for turn in turns)
    for contender, of in (("calotype", vae.module), ("diffusers", module)):
        row[f"resident_{contender}"] = sum(p.numel() * p.element_size() for p in of.parameters())
    return row


def measured_peaks(name: str, folder: Path, size: int) -> dict[str, Any]:
    """One family: the memory that each side takes, in a process of its own."""
    if not any(folder.iterdir()):
        theirs(name).save_pretrained(folder)
    gc.collect()
    row: dict[str, Any] = {"family": name, "class": NETWORKS[name][0], "size": size}
    for contender in ("calotype", "diffusers"):
        task = {"name": name, "folder": str(folder), "contender": contender, "size": 2 * size}
        task["threads"] = torch.get_num_threads()
        done = subprocess.run([sys.executable, __file__, "--child", json.dumps(task)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        row[f"peak_{contender}"] = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(name: str, folder: Path, sections: list[str], size: int, repeats: int) -> dict[str, Any]:
    """The sections asked for, of one family."""
    say(name)
    row: dict[str, Any] = {}
    if "speed" in sections:
        row |= compared(name, folder, size, repeats)
    if "memory" in sections:
        row |= measured_peaks(name, folder, size)
    return row


def peaks(task: dict[str, Any]) -> dict[str, int]:
    """Bytes that encode and decode of one picture take, in this process."""
    name, contender, size = task["name"], task["contender"], task["size"]
    torch.set_num_threads(task["threads"])
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    if contender == "diffusers":
        module = getattr(diffusers, NETWORKS[name][0]).from_pretrained(task["folder"]).requires_grad_(False).eval()
        encode, decode = (lambda x: encoded(module, x)), (lambda z: decoded(module, z))
        channels = module.config.get("z_dim") or module.config.get("latent_channels")
    else:
        vae = calotype.load(task["folder"], device="cpu", latent_format="sd1" if name == "sd1" else None)
        encode, decode = (lambda x: vae.encode(x).moments), (lambda z: vae.decode(z, clamp=False))
        channels = vae.config.z_channels
    found = {}
    small = encode(picture(name, 128))
    decode(small[:, :channels])
    factor = 128 // small.shape[2]
    latents = torch.randn(1, channels, size // factor, size // factor, generator=torch.Generator().manual_seed(1))
    for direction, run, x in (("encode", encode, picture(name, size)), ("decode", decode, latents)):
        Memory._idle.clear()  # the warm-up's block, which would hide as many bytes
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # what the warm-up gave back must not hide what comes
        before = resident()
        with watched_peak() as watched:
            result = run(x)
        found[direction] = watched["peak"] - before - result.nbytes
    return found


def table(rows: list[dict[str, Any]]) -> Table:
    """What a reader wants of it."""
    shown = Table("family", "error: encode", "decode", "times as fast: encode", "decode", "peak: encode", "decode",
                  "bytes of weights")  # fmt: skip
    for row in rows:
        cells = [""] * 7
        if "resident_calotype" in row:
            for i, d in enumerate(("encode", "decode")):
                low, middle, high = (row[f"{d}_times{of}"] for of in ("_min", "", "_max"))
                cells[i] = f"{row[f'{d}_error']:.1e}"
                cells[2 + i] = f"{middle:.1f} ({low:.1f} to {high:.1f})"
            cells[6] = f"{row['resident_calotype'] / row['resident_diffusers']:.2f}"
        if "peak_calotype" in row:
            cells[4:6] = [f"{row['peak_calotype'][d] / row['peak_diffusers'][d]:.2f}" for d in ("encode", "decode")]
        shown.add_row(row["family"], *cells)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=",".join(NETWORKS))
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(peaks(json.loads(given.child))))
        return
    result: dict[str, Any] = {
        "processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "diffusers": version("diffusers"), "commit": git("rev-parse", "--short", "HEAD"),
    }  # fmt: skip
    rows = []
    for name in given.families.split(","):
        if NETWORKS[name][0] not in CLASSES:
            say(f"{name}: {NETWORKS[name][0]} is not known here")
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, Path(folder), given.sections, given.size, given.repeats))
        say(json.dumps(rows[-1]))
        if given.keep:
            keep("families.json", result["processor"], result, rows[-1], given.sections)
    Console().print(table(rows))
    print(json.dumps({**result, "families": rows}))


def keep(name: str, key: str, result: dict[str, Any], row: dict[str, Any], parts: Sequence[str]) -> None:
    """Puts what was measured of a family in the place of what a file of results kept of it.

    Args:
        key: of all that was measured alike: a processor.
        row: of the family; what another run measured of it and this one did not stays.
        parts: of a row, those that were measured now; each is kept with the commit that it is of.
    """
    path = ROOT / "bench" / "results" / name
    kept = json.loads(path.read_text()) if path.exists() else {}
    before = {one["family"]: one for one in kept.get(key, {}).get("families", [])}
    old = before.get(row["family"], {})
    commits = old.get("commits", {}) | dict.fromkeys(parts, result["commit"])
    before[row["family"]] = {**old, **row, "commits": commits}
    keep_as(name, key, {**result, "families": list(before.values())})


if __name__ == "__main__":
    main()
