"""How much longer an evaluation takes than encoding and decoding its pictures alone.

    python bench/evaluate.py --data FOLDER [--limit 4] [--every 6] [--repeats 3] [--networks sd1,builtin] [--keep]

Networks: Stable Diffusion 1's with random weights, and the built-in one. The evaluation is all that `calotype evaluate`
does: weights are loaded, pictures read, encoded, decoded and compared by PSNR, SSIM and LPIPS, and the page is written.
It is measured with LPIPS of AlexNet and of VGG, for one VAE and for two of the same kind at once. Encoding and decoding
alone are of prepared pictures by loaded VAEs. Contenders take turns; a ratio is of times of one turn.

CALOTYPE_LPIPS may name a folder with LPIPS's weights. Prints a table and then one JSON line; --keep keeps it in
bench/results/evaluate.json, under the networks that were given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import calotype
from calotype.engine.memory import PLENTY, keep_freed
from calotype.evaluate.protocol import preset
from calotype.evaluate.session import chosen, evaluate
from calotype.evaluate.setup import Setup
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.kl.network import AutoencoderKL
from calotype.sources import open_source
from calotype.weights.save import save_weights

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # this and the next as the command does, for all contenders
keep_freed(PLENTY)

ROOT = Path(__file__).resolve().parents[1]
NETS = ("alex", "vgg")


def weights(network: str, folder: Path) -> tuple[str, str]:
    """Names of two VAEs of a kind."""
    if network == "builtin":
        module = calotype.load("builtin", device="cpu").module
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.001)
        save_weights(module, folder / "other.safetensors", layout="ldm")
        return "builtin", str(folder / "other.safetensors")
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        paths.append(folder / f"sd1-{seed}")
        save_weights(AutoencoderKL(AutoencoderConfig()), paths[-1], layout="diffusers")
    return str(paths[0]), str(paths[1])


class Contenders:
    """What is timed, of one network.

    Args:
        every, limit: which of the pictures.
    """

    def __init__(self, vaes: Sequence[str], data: Path, every: int, limit: int) -> None:
        self.vaes, self.data, self.every, self.limit = vaes, data, every, limit
        self.loaded = calotype.load(vaes[0], device="cpu")
        source = open_source(data.name, data.parent)
        self.numbers = chosen(source, every, limit)
        self.pictures = [preset("whole").prepare(source.read(i)) for i in self.numbers]

    def alone(self) -> float:
        """Seconds of encoding and decoding by one VAE."""
        begin = time.perf_counter()
        for x in self.pictures:
            z = self.loaded.encode(x[None]).mode()
            self.loaded.decode(z, (x.shape[1], x.shape[2]))
        return time.perf_counter() - begin

    def evaluated(self, net: str, count: int) -> float:
        """Seconds of an evaluation of so many VAEs."""
        setup = Setup(
            vaes=tuple(self.vaes[:count]), protocol=preset("whole"), metrics=("psnr", "ssim", f"lpips_{net}"),
            device="cpu",
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as report:
            begin = time.perf_counter()
            evaluate(self.data, setup, Path(report), every=self.every, limit=self.limit)
            return time.perf_counter() - begin


def measure(network: str, contenders: Contenders, repeats: int) -> list[dict[str, Any]]:
    """Ratios of one network, by LPIPS's network and the number of VAEs."""
    kinds = [(net, count) for count in (1, 2) for net in NETS]
    turns: dict[tuple[str, int], list[tuple[float, float]]] = {kind: [] for kind in kinds}
    contenders.alone()  # warms up
    for _ in track(range(repeats), description=network, console=Console(stderr=True), transient=True):
        for net, count in kinds:
            alone = contenders.alone()
            turns[net, count].append((count * alone, contenders.evaluated(net, count)))
    found = []
    for (net, count), seconds in turns.items():
        ratios = [whole / alone for alone, whole in seconds]
        found.append(
            {
                "network": network, "lpips": net, "vaes": count, "ratio": statistics.median(ratios),
                "ratio_min": min(ratios), "ratio_max": max(ratios),
                "seconds_alone": statistics.median(alone for alone, _ in seconds),
                "seconds": statistics.median(whole for _, whole in seconds),
            }
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="pictures")
    parser.add_argument("--every", type=int, default=1, help="only every n-th picture, from the first on")
    parser.add_argument("--limit", type=int, default=0, help="at most so many pictures; 0: all")
    parser.add_argument("--repeats", type=int, default=3, help="turns that contenders take")
    parser.add_argument("--networks", default="sd1,builtin", help="of sd1 and builtin, comma-separated")
    parser.add_argument("--keep", action="store_true", help="keep the result")
    arguments = parser.parse_args()
    networks = arguments.networks.split(",")
    if not set(networks) <= {"sd1", "builtin"}:
        sys.exit(f"--networks {arguments.networks}: give sd1, builtin or both.")
    found: list[dict[str, Any]] = []
    count = 0
    for network in networks:
        with tempfile.TemporaryDirectory() as folder:
            one = Contenders(weights(network, Path(folder)), arguments.data, arguments.every, arguments.limit)
            count = len(one.numbers)
            found += measure(network, one, arguments.repeats)

    table = Table("network", "VAEs", "LPIPS of", "evaluation over encode + decode")
    for row in found:
        ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        table.add_row(row["network"], str(row["vaes"]), row["lpips"], ratio)
    Console(width=100).print(table)
    words = f"--every {arguments.every} --limit {arguments.limit} --repeats {arguments.repeats} "
    result = {
        "command": f"python bench/evaluate.py --data KODAK {words}--networks {arguments.networks}",
        "date": date.today().isoformat(),
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip(),
        "versions": {"calotype": calotype.__version__, "torch": torch.__version__,
                     "python": platform.python_version()},
        "device": "cpu", "processors": os.cpu_count(), "threads": torch.get_num_threads(), "pictures": count,
        "repeats": arguments.repeats, "spread": "median, minimum and maximum of the turns' ratios",
        "results": found,
    }  # fmt: skip
    if arguments.keep:
        path = ROOT / "bench" / "results" / "evaluate.json"
        kept = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**kept, arguments.networks: result}, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
