"""What opening a VAE in a large checkpoint reads: time, bytes of the file, memory.

    python bench/opening.py [--size 10GB] [--channels 128] [--repeats 3] [--keep]

Checkpoints are float16, with the names of Stable Diffusion 1: a denoiser as large as it takes, which is a hole in a
sparse file and never written, a text encoder, and a VAE with random numbers. They are one safetensors file, several
(shards with an index), and one GGUF file. --channels are those of the VAE's first level: 128 is Stable Diffusion's own.

Each opening has a process of its own, after the system has dropped what it held of the files. Touched is what it holds
of them afterwards, in whole pages, where it was told not to read ahead in what is mapped; read is the same as people
have it, with what the system read ahead (up to some MB around each place, as its disk is set). A peak is above what the
process took before, and so has the VAE's own float32 weights in it. Linux only.

Prints a table and then one JSON line; --keep keeps it in bench/results/opening.json, by processor and size.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import mmap
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from engine import git, keep_as, processor, random_network, resident, say, watched_peak
from rich.console import Console
from rich.table import Table

import calotype
from calotype.engine.budget import parse_memory
from calotype.families.kl.config import AutoencoderConfig

SHARDS = 6
ENCODER, DECODER = 1, 4  # which of them have the VAE's halves
BYTES = 2  # of a number
GGUF_FLOAT16, GGUF_ALIGNMENT = 1, 32


class Stored(NamedTuple):
    """A tensor of a checkpoint; without content it is a hole."""

    name: str
    shape: tuple[int, ...]
    content: bytes = b""

    @property
    def size(self) -> int:
        return math.prod(self.shape) * BYTES


def vae_of(channels: int) -> list[Stored]:
    """A VAE's tensors, with random numbers; those of the encoder and its convolution come first."""
    state = random_network(AutoencoderConfig(ch=channels)).half().state_dict()
    found = [
        Stored(f"first_stage_model.{key}", tuple(value.shape), value.numpy().tobytes()) for key, value in state.items()
    ]
    return sorted(found, key=lambda one: "decoder" in one.name or "post_quant" in one.name)


def text_encoder() -> Iterator[Stored]:
    """A few tensors of one."""
    start = "cond_stage_model.transformer.text_model"
    yield Stored(f"{start}.embeddings.token_embedding.weight", (49408, 768))
    for i in range(12):
        yield Stored(f"{start}.encoder.layers.{i}.mlp.fc1.weight", (3072, 768))
        yield Stored(f"{start}.encoder.layers.{i}.mlp.fc2.weight", (768, 3072))


def denoiser(size: int) -> Iterator[Stored]:
    """Tensors of a U-Net, as many as it takes for so many bytes, the last one smaller."""
    width = 1280
    for i in count():
        block = f"model.diffusion_model.input_blocks.{i}.1.transformer_blocks.0"
        shapes = {
            **{f"attn{n}.to_{one}.weight": (width, width) for n in (1, 2) for one in "qkv"},
            "ff.net.0.proj.weight": (8 * width, width),
            "ff.net.2.weight": (width, 4 * width),
            "norm1.weight": (width,),
        }
        for name, shape in shapes.items():
            one = Stored(f"{block}.{name}", shape)
            if one.size >= size:
                yield Stored(one.name, (size // BYTES,))
                return
            size -= one.size
            yield one


def write_safetensors(path: Path, tensors: Sequence[Stored]) -> int:
    """A safetensors file, in this order; gives the bytes of its header."""
    entries, starts, end = {}, [], 0
    for one in tensors:
        entries[one.name] = {"dtype": "F16", "shape": one.shape, "data_offsets": (end, end + one.size)}
        starts.append(end)
        end += one.size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    return write_sparse(path, struct.pack("<Q", len(header)) + header, tensors, starts, end)


def write_gguf(path: Path, tensors: Sequence[Stored]) -> int:
    """A GGUF file without metadata, as stable-diffusion.cpp writes them; gives the bytes of its header."""
    header, starts, end = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0), [], 0
    for one in tensors:
        name = one.name.encode()
        header += struct.pack("<Q", len(name)) + name
        header += struct.pack(f"<I{len(one.shape)}Q", len(one.shape), *reversed(one.shape))
        header += struct.pack("<IQ", GGUF_FLOAT16, end)
        starts.append(end)
        end += -(-one.size // GGUF_ALIGNMENT) * GGUF_ALIGNMENT
    return write_sparse(path, header + bytes(-len(header) % GGUF_ALIGNMENT), tensors, starts, end)


def write_sparse(path: Path, header: bytes, tensors: Sequence[Stored], starts: Sequence[int], end: int) -> int:
    """A file of a header and tensors, at these places after it, which are holes where they have no content."""
    with path.open("wb") as file:
        file.write(header)
        for one, start in zip(tensors, starts, strict=True):
            if one.content:
                file.seek(len(header) + start)
                file.write(one.content)
        file.truncate(len(header) + end)
        file.flush()
        os.fsync(file.fileno())  # what is not on the disk yet can't be dropped
    return len(header)


def one_file(folder: Path, rest: Sequence[Stored], vae: Sequence[Stored]) -> tuple[Path, int]:
    """A safetensors file, in the order of names; its path and the bytes of its header."""
    path = folder / "model.safetensors"
    return path, write_safetensors(path, sorted([*rest, *vae]))


def shards(folder: Path, rest: Sequence[Stored], vae: Sequence[Stored]) -> tuple[Path, int]:
    """Shards with an index, and the VAE's halves in the middle of two of them; the index's path, bytes of headers."""
    half = next(i for i, one in enumerate(vae) if "decoder" in one.name)
    halves = {ENCODER: vae[:half], DECODER: vae[half:]}
    total, passed = sum(one.size for one in rest), 0
    parts: list[list[Stored]] = [[] for _ in range(SHARDS)]
    for one in rest:
        parts[min(SHARDS * passed // total, SHARDS - 1)].append(one)
        passed += one.size
    headers = 0
    where: dict[str, str] = {}
    for i, part in enumerate(parts):
        middle = len(part) // 2
        tensors = [*part[:middle], *halves.get(i, ()), *part[middle:]]
        name = f"model-{i + 1:05}-of-{SHARDS:05}.safetensors"
        headers += write_safetensors(folder / name, tensors)
        where |= {one.name: name for one in tensors}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))
    return index, headers + index.stat().st_size


def gguf(folder: Path, rest: Sequence[Stored], vae: Sequence[Stored]) -> tuple[Path, int]:
    """A GGUF file; its path and the bytes of its header."""
    path = folder / "model.gguf"
    return path, write_gguf(path, [*rest, *vae])


CASES = {"safetensors": one_file, f"safetensors, {SHARDS} shards": shards, "GGUF": gguf}


def drop(folder: Path) -> None:
    """Has the system forget what it holds of a folder's files."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def held(folder: Path) -> int:
    """Bytes of a folder's files, in whole pages, that the system holds in memory."""
    libc, pages = ctypes.CDLL(None, use_errno=True), 0
    for path in folder.iterdir():
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            seen = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
            content = np.frombuffer(mapped, np.uint8)
            at, length = ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(len(mapped))
            failed = libc.mincore(at, length, ctypes.c_void_p(seen.ctypes.data))
            del content  # which keeps the file mapped
            if failed:
                raise OSError(ctypes.get_errno(), f"mincore of {path.name}")
            pages += int((seen & 1).sum())
    return pages * mmap.PAGESIZE


def ahead(folder: Path) -> int:
    """Bytes that the system may read ahead of a place in a folder's files; 8 MB, which is much, where nothing says."""
    device = folder.stat().st_dev
    told = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    return int(told.read_text()) * 1024 if told.exists() else 2**23


@contextmanager
def nothing_ahead() -> Iterator[None]:
    """Has the system read the pages of mapped files that are touched, and none around them."""
    libc, from_file = ctypes.CDLL(None, use_errno=True), torch.UntypedStorage.from_file

    def mapped(name: str, shared: bool, size: int) -> Any:
        storage = from_file(name, shared, size)
        if libc.madvise(ctypes.c_void_p(storage.data_ptr()), ctypes.c_size_t(size), mmap.MADV_RANDOM):
            raise OSError(ctypes.get_errno(), f"madvise of {name}")
        return storage

    with mock.patch.object(torch.UntypedStorage, "from_file", mapped):
        yield


def open_here(path: Path, exact: bool) -> dict[str, Any]:
    """Opens the VAE of a checkpoint in this process.

    Args:
        exact: with nothing read ahead.
    """
    drop(path.parent)
    before = resident()
    with nothing_ahead() if exact else nullcontext(), watched_peak() as watched:
        begin, worked = time.perf_counter(), time.process_time()
        vae = calotype.load(path, device="cpu")
        seconds, worked = time.perf_counter() - begin, time.process_time() - worked
    return {
        "seconds": seconds, "processor_seconds": worked, "read": held(path.parent), "peak": watched["peak"] - before,
        "weights": vae.weights_bytes, "latent_format": vae.latent_format.name,
    }  # fmt: skip


def open_apart(path: Path, exact: bool) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--child", str(path), *(["--exact"] if exact else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    say(done.stdout.splitlines()[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str, folder: Path, size: int, channels: int, repeats: int) -> dict[str, Any]:
    """One kind of checkpoint."""
    say(name)
    vae, text = vae_of(channels), list(text_encoder())
    own = sum(one.size for one in vae)
    rest = [*text, *denoiser(size - own - sum(one.size for one in text))]
    path, headers = CASES[name](folder, rest, vae)
    exact, *turns = (open_apart(path, exact=i == 0) for i in range(1 + repeats))
    seconds = [turn["seconds"] for turn in turns]
    return {
        "checkpoint": name, "size": sum(one.stat().st_size for one in folder.iterdir()),
        "tensors": len(rest) + len(vae), "vae": own, "headers": headers, "ahead": ahead(folder),
        "touched": exact["read"], "read": max(turn["read"] for turn in turns), "weights": turns[0]["weights"],
        "peak": max(turn["peak"] for turn in turns), "seconds": statistics.median(seconds),
        "seconds_min": min(seconds), "seconds_max": max(seconds), "repeats": repeats,
        "processor_seconds": statistics.median(turn["processor_seconds"] for turn in turns),
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """What a reader wants of it."""
    shown = Table("checkpoint", "size", "VAE in it", "headers", "touched", "read", "peak", "VAE in memory", "seconds",
                  "of the processor")  # fmt: skip
    shown.title = "MB, where it is not seconds"
    for row in rows:
        megabytes = [
            f"{row[key] / 1e6:,.1f}" for key in ("size", "vae", "headers", "touched", "read", "peak", "weights")
        ]
        spread = f"{row['seconds']:.2f} ({row['seconds_min']:.2f} to {row['seconds_max']:.2f})"
        shown.add_row(row["checkpoint"], *megabytes, spread, f"{row['processor_seconds']:.2f}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="10GB")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--exact", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        calotype.load(device="cpu")  # imports what an opening imports
        print(json.dumps(open_here(given.child, given.exact)))
        return
    size, rows = parse_memory(given.size), []
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, Path(folder), size, given.channels, given.repeats))
    Console().print(table(rows))
    result = {
        "processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "commit": git("rev-parse", "--short", "HEAD"), "size": size, "channels": given.channels, "checkpoints": rows,
    }  # fmt: skip
    print(json.dumps(result))
    if given.keep:
        keep_as("opening.json", f"{result['processor']}, {given.size}", result)


if __name__ == "__main__":
    main()
