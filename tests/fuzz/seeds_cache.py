"""Every kind of file of a cache of latents, read as its commands and its readers do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from cachekit import fill, folder as pictures
from clikit import small_vae
from fuzzkit import Accepted, Case

from calotype.cache import LatentDataset, Rules, open_cache
from calotype.cache.check import verify
from calotype.cache.export import export
from calotype.cache.manifest import summary
from calotype.cache.reader import job_in
from calotype.cache.receipts import receipts
from calotype.cache.status import stats, status
from calotype.cache.store import Store
from calotype.cache.units import held
from calotype.cache.words import words
from calotype.sources import open_source
from calotype.temporaries import temporary_folder
from calotype.vae import load


def used(out: Path) -> Accepted:
    """What all readers together make of a cache."""
    store = Store(out)
    job = job_in(store)
    faults = verify(store)
    told = status(store)
    good, _ = receipts(store, job.fingerprint)
    counts = summary(store, job, good, held(store, good))
    told_stats = stats(store)
    cache = open_cache(out)
    rows = [cache.row(i) for i in range(min(len(cache), 9))]
    sums = [float(row[job.point].double().sum()) for row in rows]
    dataset = LatentDataset(out)
    sums += [float(dataset[i]["latents"].double().sum()) for i in range(min(len(dataset), 9))]
    with temporary_folder(out.parent) as place:
        for to in ("webdataset", "numpy"):
            export(out, place / to, to)
    return Accepted(f"{faults} {told} {counts} {told_stats} {cache.samples.to_pylist()} {sums}")


def within(whole: Path, place: Path, name: str) -> Callable[[Path], Accepted]:
    """A cache, one of whose files is what is read."""
    shutil.copytree(whole, place)

    def read(path: Path) -> Accepted:
        (place / name).write_bytes(path.read_bytes())
        return used(place)

    return read


def beside(data: Path, name: str) -> Callable[[Path], Accepted]:
    """Pictures, what is said of which is what is read."""

    def read(path: Path) -> Accepted:
        (data / name).write_bytes(path.read_bytes())
        source = open_source(data)
        say = words(source.names, source.beside)
        told = [say(i) for i in range(len(source))]
        for text in (text for one in told for text in one if text is not None):
            text.encode()  # or no table could hold it
        return Accepted(str(told))

    return read


def cases(folder: Path) -> list[Case]:
    data, whole = pictures(folder / "data", 4), folder / "whole"
    vae = load(small_vae(folder / "vae.safetensors"), device="cpu")
    fill(data, whole, vae, rules=Rules(size=(16, 16), flip=True))
    unit = next((whole / "receipts").iterdir()).stem
    made = []
    for name in (
        "cache.json", f"receipts/{unit}.json", f"samples/{unit}.parquet", f"shards/16x16/{unit}.safetensors",
        "manifest.parquet", "scan.parquet",
    ):  # fmt: skip
        content, text = (whole / name).read_bytes(), name.endswith(".json")
        case = Path(name).parent.name.partition("/")[0] or Path(name).stem
        made.append(
            Case(f"{case}{Path(name).suffix}", content, within(whole, folder / case / "cache", name), text=text)
        )
    lines = b'{"file_name": "0.png", "text": "one"}\n{"file_name": "1.png", "caption": ["two"], "label": 3}\n'
    sample = b'{"caption": "a picture", "label": "x", "width": 40}'
    for name, content in (("metadata.jsonl", lines), ("2.json", sample), ("3.cls", b"7")):
        shutil.copytree(data, folder / "told" / name)
        made.append(Case(name, content, beside(folder / "told" / name, name), text=True))
    return made
