"""Files of sd-scripts and musubi-tuner that are taken over into a cache, beside their pictures and without."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from cachekit import fill
from fuzzkit import Accepted, Case
from tradekit import pictures, vae_of

from calotype.cache import Rules, open_cache
from calotype.cache.check import verify
from calotype.cache.export import export
from calotype.cache.store import Store
from calotype.cache.taking import take
from calotype.vae import VAE


def among(folder: Path, name: str, vae: VAE, check: int) -> Callable[[Path], Accepted]:
    """A file among others of its kind, which are whole."""
    out = folder.with_name(f"{folder.name} taken")

    def read(path: Path) -> Accepted:
        (folder / name).write_bytes(path.read_bytes())
        shutil.rmtree(out, ignore_errors=True)
        taken = take(folder, out, vae, check=check)
        assert not verify(Store(out))
        cache = open_cache(out)
        sums = [float(cache.row(i)["latents"].double().sum()) for i in range(len(cache))]
        return Accepted(
            f"{taken.samples} {taken.flips} {taken.pictures} {taken.notes} {cache.samples.to_pylist()} {sums}"
        )

    return read


def cases(folder: Path) -> list[Case]:
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for format_, to, model in (("sd1", "sd-scripts", None), ("wan2.1", "musubi", "wan")):
        vae, place = vae_of(folder, format_), folder / format_
        fill(pictures(place / "pictures"), place / "latents", vae, rules=Rules(size=(32, 32), flip=True))
        export(place / "latents", place / "files", to, model=model)
        first = min(path for path in (place / "files").rglob("*") if path.is_file())
        name = first.relative_to(place / "files").as_posix()
        for title, check, beside in (("alone", 0, False), ("beside", 0, True), ("checked", 2, True)):
            shutil.copytree(place / "files", place / title)
            if beside:
                shutil.copytree(place / "pictures", place / title, dirs_exist_ok=True)
            case = f"{title}-{first.name}"
            made.append(Case(case, first.read_bytes(), among(place / title, name, vae, check)))
            if to == "musubi":
                shutil.copytree(place / title, place / f"{title} text")
                reader = among(place / f"{title} text", name, vae, check)
                made.append(Case(f"text-{case}", first.read_bytes(), reader, text=True))
    return made
