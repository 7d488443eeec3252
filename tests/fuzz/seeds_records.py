"""What is written by one command and read back by another: records, captions, metadata, figures, stores, locks."""

from __future__ import annotations

import json
import re
import sqlite3
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzzkit import Accepted, Case
from PIL import Image
from safetensors.torch import save_file
from support import SMALL, network

from calotype.cli.draw import _known
from calotype.draw.captions import held_out, prompt_for, read_captions, weights_of
from calotype.draw.record import KEYWORD
from calotype.edit.directions import load_direction
from calotype.errors import UsageError
from calotype.evaluate.measure import METRICS
from calotype.evaluate.probe.labelling import labelling
from calotype.evaluate.setup import read_boxes
from calotype.evaluate.store import REFERENCE, Store
from calotype.evaluate.together import _latents, _means, _speed
from calotype.latent_files import load_latents, save_latents
from calotype.latents import KNOWN, Latents
from calotype.locks import lock
from calotype.pixels import Padding
from calotype.processes import this
from calotype.train import checkpoint
from calotype.train.checkpoint import keep_lines
from calotype.train.recipe import Recipe, load_recipe
from calotype.train.run import score

RECORD = {
    "calotype": "0.1", "kind": "draw", "prompt": "red apple é", "seed": 5, "model": {"name": "m", "sha256": "0" * 64},
    "vae": {"name": "builtin", "sha256": "1" * 64}, "size": [64, 48], "steps": 10, "guidance": 3.5, "negative": "",
    "sampler": None,
}  # fmt: skip
CAPTIONS = (
    {"file": "a.png", "name": "red circle", "synonyms": ["ball", "disc"], "keywords": ["round", "warm"]},
    {"file": "b.png", "name": "blue square", "base": "a", "emoji": "😀"},
    {"file": "sub/c.png", "name": "leaf"},
)
DIRECTION = {
    "calotype": "direction/1", "space": "raw", "vae_sha256": "0" * 64, "vae_name": "x", "names": '["a", "b"]',
    "counts": "[4, 5]", "held_out": "[2, 2]", "d_prime": "1.5", "accuracy": "0.75",
}  # fmt: skip
ROW = {
    "height": 48, "width": 64, "psnr": 31.5, "ssim": 0.9, "numbers_per_pixel": 0.0625, "kl_bits_per_pixel": None,
    "encode_seconds": 0.5, "decode_seconds": 0.75, "where": "cpu",
    "latents": {"count": 48, "mean": [0.5, -0.25], "m2": [3.0, 4.0]},
    "subsets": {"faces": [{"box": [0, 0, 16, 16], "psnr": 30.0}]},
}  # fmt: skip
SETTINGS = {"protocol": {"name": "calotype", "seed": 0}, "boxes": {"faces": {"a.png": [[0, 0, 4, 4]]}}, "vae": "x"}
LINES = "".join(f'{{"step": {n}, "loss": {1 / n}, "held_out_psnr": {20 + n}.0}}\n' for n in range(1, 6))
HOLDER = {"name": "host", "since": "2026-01-01 00:00 UTC", "host": this().host, "pid": 1, "start": "0"}


def record(folder: Path) -> Callable[[Path], Accepted]:
    whole = folder / "whole.png"
    Image.new("RGB", (8, 8)).save(whole)
    data, target = whole.read_bytes(), folder / "record.png"

    def read(path: Path) -> Accepted:
        body = b"iTXt" + KEYWORD.encode() + b"\0\0\0\0\0" + path.read_bytes()
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        target.write_bytes(data[:33] + chunk + data[33:])
        return Accepted(str(_known(target)))

    return read


def captions(folder: Path) -> Callable[[Path], Accepted]:
    def read(path: Path) -> Accepted:
        (folder / "captions.jsonl").write_bytes(path.read_bytes())
        found = read_captions(folder)
        shares = weights_of(found, 1.0)
        prompts = [prompt_for(one, np.random.default_rng(0)).encode() for one in found]
        there = [(folder / one.file).is_file() for one in found if len(one.file) < 100]
        return Accepted(f"{found} {held_out(found, 0.5)} {shares} {prompts} {there}")

    return read


def strings(values: Any) -> dict[str, str]:
    """Metadata of safetensors are texts."""
    kept = {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in dict(values).items()}
    return {re.sub("[\ud800-\udfff]", "?", key): re.sub("[\ud800-\udfff]", "?", value) for key, value in kept.items()}


def metadata(target: Path, tensors: dict[str, torch.Tensor], read_back: Callable[[Path], Any], **whole: str) -> Any:
    """A file whose metadata are one text each: what is read is one of them, after its name in the first line."""

    def read(path: Path) -> Accepted:
        key, _, text = path.read_bytes().decode("utf-8", "replace").partition("\n")
        save_file(tensors, target, {**whole, key: text})
        return Accepted(str(read_back(target)))

    return read


def of_store(folder: Path, table: str) -> Callable[[Path], Accepted]:
    target = folder / "measured.sqlite"

    def read(path: Path) -> Accepted:
        target.unlink(missing_ok=True)
        text = path.read_bytes().decode("utf-8", "replace")
        Store(folder, SETTINGS).close()
        with sqlite3.connect(target) as file:
            if table == "settings":
                file.execute("UPDATE settings SET value = ?", (text,))
            else:
                file.execute("INSERT INTO rows VALUES ('x', 'p', ?)", (text,))
                file.execute("INSERT INTO rows VALUES ('x', 'q', ?)", (json.dumps(ROW),))
        file.close()
        store = Store(folder, SETTINGS)
        try:
            good = [row for row in store.measured("x").values() if "error" not in row]
            told = _means(good, list(METRICS)), _latents(good), _speed(good, None), store.rows(REFERENCE)
        finally:
            store.close()
        return Accepted(str(told))

    return read


def database(folder: Path) -> tuple[bytes, Callable[[Path], Accepted]]:
    target = folder / "measured.sqlite"
    target.unlink(missing_ok=True)
    Store(folder, SETTINGS).close()
    with sqlite3.connect(target) as file:
        file.execute("INSERT INTO rows VALUES ('x', 'p', ?)", (json.dumps(ROW),))
        numbers = np.arange(8, dtype=np.float32).tobytes()
        file.executemany("INSERT INTO features VALUES ('x', ?, 'vgg', ?)", [("p", numbers), ("q", numbers)])
    file.close()
    content = target.read_bytes()

    def read(path: Path) -> Accepted:
        target.write_bytes(path.read_bytes())
        store = Store(folder, SETTINGS)
        try:
            told = (
                store.rows("x"),
                store.features("x", "vgg"),
                store.pictures("x", "vgg"),
                store.finished("1-of-2", "w"),
            )
        finally:
            store.close()
        return Accepted(str(told))

    return content, read


def metrics(path: Path) -> Accepted:
    lines = keep_lines(path, lambda line: line["step"] <= 3)
    return Accepted(f"{lines} {max((score(line) for line in lines), default=None)}")


def holder(folder: Path) -> Callable[[Path], Accepted]:
    """A lock's file that is left over, or a held one's."""
    target = folder / ".lock"

    def read(path: Path) -> Accepted:
        target.write_bytes(path.read_bytes())
        with lock(target, "a test", "wait"):
            target.write_bytes(path.read_bytes())
            try:
                with lock(target, "a test", "wait"):
                    pass
            except UsageError as error:
                assert str(error).endswith("wait.")
                assert "\n" not in str(error)
        return Accepted("")

    return read


def begun(folder: Path, recipe: Recipe) -> Callable[[Path], Accepted]:
    module = network(SMALL).state_dict()
    target = folder / "step-00000001.pt"

    def read(path: Path) -> Accepted:
        text = path.read_bytes().decode("utf-8", "replace")
        state = {"recipe": text, "step": 1, "model": module, "ema": {}, "optimisers": []}
        torch.save(state, target)
        found = checkpoint.load(target, recipe)
        return Accepted(str(checkpoint.changes(found, recipe)))

    return read


def cases(folder: Path) -> list[Case]:
    folders = [folder / str(i) for i in range(8)]
    for one in folders:
        one.mkdir(parents=True, exist_ok=True)
    tensor = torch.zeros(4, 3, 5)
    latents = Latents(
        tensor=tensor, space="raw", format=KNOWN["sd1"], vae="0" * 64, padding=Padding(20, 37, 4, 3, "reflect")
    )
    target = save_latents(folder / "whole.safetensors", latents)
    whole = {
        "calotype": "latents/1", "space": "raw", "vae_sha256": "0" * 64, "vae_name": "",
        "latent_format": json.dumps(latents.format.to_dict()), "padding": json.dumps(latents.padding.__dict__),
    }  # fmt: skip
    direction = {"direction": torch.ones(4, 1, 1)}
    recipe = load_recipe("builtin")
    names = ["a.png", "d/b.png", "c.png"]
    made: list[tuple[str, str, Callable[[Path], Accepted]]] = [
        ("record.json", json.dumps(RECORD, ensure_ascii=False), record(folders[0])),
        ("captions.jsonl", "".join(json.dumps(one) + "\n" for one in CAPTIONS), captions(folders[1])),
        *(
            (f"{key}.txt", f"{key}\n{text}", metadata(folder / "direction", direction, load_direction, **DIRECTION))
            for key, text in DIRECTION.items()
            if key not in ("calotype", "space")
        ),
        *(
            (f"{key}.txt", f"{key}\n{text}", metadata(target, {"latents": tensor}, load_latents, **whole))
            for key, text in whole.items()
            if key in ("latent_format", "padding")
        ),
        ("row.json", json.dumps(ROW), of_store(folders[2], "rows")),
        ("settings.json", json.dumps(SETTINGS, sort_keys=True), of_store(folders[3], "settings")),
        ("metrics.jsonl", LINES, metrics),
        ("lock.json", json.dumps(HOLDER), holder(folders[4])),
        ("boxes.json", json.dumps({"faces": {"a.png": [[0, 0, 4, 4]]}}), lambda path: Accepted(str(read_boxes(path)))),
        ("labels.json", json.dumps({"a.png": "cat", "b.png": 3}), lambda path: labels(names, path)),
        (
            "labels.jsonl",
            '{"file": "a.png", "label": "cat"}\n{"file": "c.png", "label": 1}\n',
            lambda p: labels(names, p),
        ),
        ("begun.json", json.dumps(recipe.to_dict()), begun(folders[5], recipe)),
    ]
    content, read = database(folders[6])
    return [
        *(Case(name, text.encode(), read, text=True) for name, text, read in made),
        Case("measured.sqlite", content, read),
    ]


def labels(names: list[str], path: Path) -> Accepted:
    return Accepted(str(labelling(names, path.parent, path)))
