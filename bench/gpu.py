"""How fast latents decode on a GPU, in bfloat16 and one at a time: diffusers, the plain module, the fused path.

    python bench/gpu.py [--keep]

Networks are those of Stable Diffusion 1, FLUX.1 and FLUX.2, with random weights. Prints a table and then one JSON line;
--keep keeps that line in bench/results/.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import calotype
from calotype.engine import cuda
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.kl.names import ldm_to_diffusers
from calotype.families.kl.network import AutoencoderKL

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {
    "SD1": AutoencoderConfig(),
    "FLUX.1": AutoencoderConfig(z_channels=16, quant_conv=False),
    "FLUX.2": AutoencoderConfig(z_channels=32),
}
SIZES = (512, 1024)  # pixels, square
WARM = 5
REPEATS = 30


def random_network(config: AutoencoderConfig) -> AutoencoderKL:
    """Random weights that keep outputs O(1)."""
    torch.manual_seed(0)
    module = AutoencoderKL(config).requires_grad_(False)
    for parameter in module.parameters():
        if parameter.ndim == 4:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return module


def diffusers_network(module: AutoencoderKL) -> Any:
    """diffusers' network with the same weights."""
    config = module.config
    levels = len(config.channels)
    theirs = importlib.import_module("diffusers").AutoencoderKL(
        block_out_channels=config.channels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        layers_per_block=config.num_res_blocks,
        latent_channels=config.z_channels,
        norm_num_groups=config.norm_groups,
        use_quant_conv=config.quant_conv,
        use_post_quant_conv=config.quant_conv,
    )
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    renamed = {str(ldm_to_diffusers(key, levels)): value for key, value in module.state_dict().items()}
    theirs.load_state_dict({key: value.reshape(shapes[key]) for key, value in renamed.items()})
    return theirs.requires_grad_(False).eval()


def measure(run: Callable[[Tensor], Tensor], latents: Tensor, *, captures: bool) -> tuple[dict[str, float], Tensor]:
    """Times and memory of run(latents), and its result in float32."""
    if not captures:
        run(latents)  # cuDNN chooses its algorithms, and may take much memory to try them
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(WARM):
        result = run(latents)
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        result = run(latents)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    row = {
        "ms": statistics.median(times),
        "ms_min": min(times),
        "ms_max": max(times),
        "peak_mib": (torch.cuda.max_memory_allocated() - before) / 2**20,
    }
    return row, result.float()


def compare(name: str, size: int) -> list[dict[str, Any]]:
    """Every way to decode, on one network and one size."""
    module = random_network(NETWORKS[name]).to("cuda", torch.bfloat16)
    fused = copy.deepcopy(module)  # its own, since its weights are laid out channels-last
    theirs = diffusers_network(module.cpu()).bfloat16().cuda()
    module.cuda()
    side = size // module.config.factor
    latents = torch.randn(1, module.config.z_channels, side, side, device="cuda", dtype=torch.bfloat16)
    exact = copy.deepcopy(module).float().decode(latents.float())
    runs: dict[str, Callable[[Tensor], Tensor]] = {
        "diffusers": lambda z: theirs.decode(z).sample,
        "module": module.decode,
        "fused": lambda z: cuda.decode(fused, z),
        "fused, graph": cuda.CudaGraphs(fused).decode,  # with the algorithms chosen for the one before
    }
    rows = []
    for path, run in runs.items():
        row, result = measure(run, latents, captures="graph" in path)
        error = (result - exact).abs().max().item()
        rows.append({"network": name, "size": size, "path": path, **row, "error": error, "std": exact.std().item()})
    return rows


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="keep the result")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench/gpu.py measures a CUDA device, and there is none here.")
    torch.backends.cudnn.allow_tf32 = False  # for the float32 that errors are measured against
    console = Console()
    console.print(f"{torch.cuda.get_device_name()}; {cuda.available()}", markup=False)
    tasks = [(name, size) for name in NETWORKS for size in SIZES]
    rows = []
    for name, size in track(tasks, description="decoding", console=Console(stderr=True), transient=True):
        rows += compare(name, size)
        torch.cuda.empty_cache()

    table = Table("network", "size", "path", "ms (median, min to max)", "peak MiB", "largest error")
    for r in rows:
        table.add_row(
            r["network"],
            f"{r['size']}x{r['size']}",
            r["path"],
            f"{r['ms']:.2f} ({r['ms_min']:.2f} to {r['ms_max']:.2f})",
            f"{r['peak_mib']:.0f}",
            f"{r['error']:.4f}",
        )
    console.print(table)
    line = json.dumps(
        {
            "command": "python bench/gpu.py",
            "date": date.today().isoformat(),
            "commit": subprocess.run(
                ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
            ).stdout.strip(),
            "protocol": "batch 1, bfloat16, random weights; CUDA events; memory beside the weights; "
            "error: largest difference to float32, whose standard deviation is std",
            "versions": {
                "calotype": calotype.__version__,
                "torch": torch.__version__,
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
                "triton": version("triton"),
                "diffusers": version("diffusers"),
                "python": platform.python_version(),
            },
            "device": torch.cuda.get_device_name(),
            "kernels": cuda.available(),
            "warm_up": WARM,
            "repeats": REPEATS,
            "spread": "ms_min to ms_max",
            "results": rows,
        }
    )
    if arguments.keep:
        (ROOT / "bench" / "results" / "gpu.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
