"""Caches in processes of their own, for bench/cache.py: calotype's and sd-scripts'.

    python bench/cache_apart.py TASK    makes one, and prints its seconds as JSON; TASK is JSON too

Only the work is measured, and not what loads weights and libraries.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from engine import resident, watched_peak
from PIL import Image
from torch import Tensor

import calotype
from calotype.cache import Rules
from calotype.cache.make import job_of, make
from calotype.cache.worker import Worker


def apart(task: dict[str, Any]) -> dict[str, Any]:
    """What `main` prints of a task, in a new process with as many threads as this one."""
    words = [sys.executable, __file__, json.dumps({**task, "threads": torch.get_num_threads()})]
    ran = subprocess.run(words, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{task['way']}: {ran.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def ours(task: dict[str, Any]) -> dict[str, Any]:
    """A cache."""
    vae = calotype.load(task["weights"] or None, device="cpu")
    job = job_of(vae, Rules(size=(task["side"], task["side"])))
    if not task.get("encodes", True):
        nothing = dict.fromkeys(job.tensors, torch.zeros(job.shape((task["side"], task["side"])), dtype=torch.float16))
        Worker.encode = lambda self, levels, key: nothing  # type: ignore[method-assign]
        Worker._at_once = lambda self, unit: 1  # type: ignore[method-assign]
    gc.collect()
    before, begin = resident(), time.perf_counter()
    with watched_peak() as found:
        outcome = make(task["data"], task["out"], vae, job, memory=task["memory"])
    assert outcome.held == outcome.wanted
    return {"seconds": time.perf_counter() - begin, "peak": found["peak"] - before, "how": found["how"]}


def theirs(task: dict[str, Any]) -> dict[str, Any]:
    """sd-scripts' files beside the pictures, by its own code or a loop like its own."""
    network = import_module("diffusers").AutoencoderKL.from_pretrained(task["weights"], low_cpu_mem_usage=False)
    network.requires_grad_(False).eval()
    run = _its_code(task, network) if task["code"] else _rebuilt(task, network)
    begin = time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - begin}


def _its_code(task: dict[str, Any], vae: Any) -> Callable[[], None]:
    """As its `tools/cache_latents.py` has it, but for one folder, and without what it loads beside the VAE."""
    sys.path.insert(0, task["code"])
    library, strategy = import_module("library.train_util"), import_module("library.strategy_sd")
    base = import_module("library.strategy_base")
    # sd, to the disk, pictures at a time, no check of files that are there left out
    base.LatentsCachingStrategy.set_strategy(strategy.SdSdxlLatentsCachingStrategy(True, True, task["batch"], False))

    def run() -> None:
        subset = library.DreamBoothSubset(
            task["data"], is_reg=False, class_tokens=None, caption_extension=".txt", cache_info=False,
            alpha_mask=False, num_repeats=1, shuffle_caption=False, caption_separator=",", keep_tokens=0,
            keep_tokens_separator="", secondary_separator=None, enable_wildcard=False, color_aug=False,
            flip_aug=False, face_crop_aug_range=None, random_crop=False, caption_dropout_rate=0.0,
            caption_dropout_every_n_epochs=0, caption_tag_dropout_rate=0.0, caption_prefix=None, caption_suffix=None,
            token_warmup_min=1, token_warmup_step=0,
        )  # fmt: skip
        dataset = library.DreamBoothDataset(
            [subset], is_training_dataset=True, batch_size=1, resolution=(task["side"], task["side"]),
            network_multiplier=1.0, enable_bucket=False, min_bucket_reso=256, max_bucket_reso=1024,
            bucket_reso_steps=64, bucket_no_upscale=False, prior_loss_weight=1.0, debug_dataset=False,
            validation_split=0.0, validation_seed=None, resize_interpolation=None,
        )  # fmt: skip
        dataset.make_buckets()
        dataset.new_cache_latents(vae, SimpleNamespace(num_processes=1, process_index=0, device=torch.device("cpu")))

    return run


def _rebuilt(task: dict[str, Any], vae: Any) -> Callable[[], None]:
    """Its loop: threads read the pictures of a batch, then it is cropped, encoded and written, one after another."""
    side, at_once = task["side"], task["batch"]

    def read(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"), np.uint8)

    def cropped(levels: np.ndarray) -> Tensor:
        height, width = levels.shape[:2]
        scale = side / min(height, width)
        size = max(side, round(width * scale)), max(side, round(height * scale))
        resized = np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.LANCZOS))
        top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
        pixels = torch.from_numpy(resized[top : top + side, left : left + side].copy()).permute(2, 0, 1)
        return pixels.float() / 127.5 - 1

    def encoded(paths: Sequence[Path], pool: ThreadPoolExecutor) -> None:
        every = [future.result() for future in [pool.submit(read, path) for path in paths]]
        with torch.no_grad():
            latents = vae.encode(torch.stack([cropped(levels) for levels in every])).latent_dist.sample()
        for path, levels, one in zip(paths, every, latents, strict=True):
            height, width = levels.shape[:2]
            path.with_suffix(".txt").read_text()
            np.savez(
                path.with_name(f"{path.stem}_{width:04d}x{height:04d}_sd.npz"), latents=one.float().numpy(),
                original_size=np.array((width, height)), crop_ltrb=np.array((0, 0, width, height)),
            )  # fmt: skip

    def run() -> None:
        paths = sorted(Path(task["data"]).glob("*.jpg"))
        for path in paths:
            with Image.open(path) as image:
                assert min(image.size) > 0
        with ThreadPoolExecutor(min(os.cpu_count() or 1, at_once)) as pool:
            for start in range(0, len(paths), at_once):
                encoded(paths[start : start + at_once], pool)

    return run


def main(task: dict[str, Any]) -> None:
    torch.set_num_threads(task["threads"])
    print(json.dumps({"calotype": ours, "sd-scripts": theirs}[task["way"]](task)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
