"""A whole probe: from the name of weights and a place with pictures to findings, two files and a page."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from calotype.addresses import is_address
from calotype.apart import require_apart, weights_files
from calotype.engine.executor import Progress
from calotype.errors import CalotypeWarning, UsageError
from calotype.evaluate.lpips import load_lpips
from calotype.evaluate.measure import Array, place
from calotype.evaluate.probe import Probe, probe
from calotype.evaluate.probe.labelling import Labelling, labelling
from calotype.evaluate.report import probe_page
from calotype.evaluate.session import about, chosen
from calotype.files import make_folder, writing_all
from calotype.locks import lock
from calotype.sources import LeftOut, Pictures, files_of, open_source
from calotype.temporaries import temporary_file
from calotype.vae import VAE, load
from calotype.weights.mapped import dtype_name

REPORT = ("index.html", "probe.json", "factors.json")
SIDE = 256


def examine(
    vae: str | None,
    data: str | Path | None,
    report: Path,
    *,
    labels: Path | None = None,
    perceptual: str | None = "vgg",
    every: int = 1,
    limit: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> Probe:
    """Probes a VAE, and writes REPORT/probe.json, REPORT/factors.json (see `previews`) and REPORT/index.html.

    Pictures are read one at a time. One that can't be read is told of in `Probe.unread`, and the others go on.

    Args:
        data: a folder, archive or dataset, here or at an address (see `sources.open_source`); None: `cards`.
        labels: a file; without it see `labelling`. Pictures without a label are left out where labels are needed only.
        perceptual: LPIPS's network, vgg or alex; None measures without.
        every, limit: see `session.chosen`.

    Warns:
        CalotypeWarning: files of the place are left out.

    Raises:
        UsageError: nothing can be written to REPORT, another process writes there, or labels are given without
            pictures.
        StorageError: the disk refuses what was found.
        UsageError, WeightsError, PictureError: see the functions called.
    """
    read = chain(filter(None, (labels,)), files_of(data) if data else (), weights_files(vae))
    require_apart([report / name for name in REPORT], read, "--report")
    _require_writable(report)
    with lock(report / ".calotype-probe.lock", "a probe", "give another --report"):
        return _examine(vae, data, report, labels, perceptual, every, limit, seed, device, progress)


def _examine(
    vae: str | None,
    data: str | Path | None,
    report: Path,
    labels: Path | None,
    perceptual: str | None,
    every: int,
    limit: int,
    seed: int,
    device: str | None,
    progress: Progress | None,
) -> Probe:
    given: Sequence[tuple[str, Array]] | _Chosen
    left_out = LeftOut()
    if data is None:
        if labels is not None:
            raise UsageError("--labels are of pictures, and none were given; give a folder or an archive with them.")
        given, known = list(cards()), Labelling()
    else:
        source = open_source(data)
        left_out = source.left_out
        if left_out:
            warnings.warn(left_out.sentence, CalotypeWarning, stacklevel=2)
        known = labelling(source.names, data, labels, source.beside.texts if is_address(data) else None)
        given = _Chosen(source, chosen(source, every, limit))
    named = known.labels
    if named is not None and isinstance(given, _Chosen):
        named = tuple(named[i] for i in given.numbers)
    loaded = load(vae, device=device)
    loaded.require("encoder", "decoder")
    lpips = None
    if perceptual:
        lpips = load_lpips(perceptual).to(loaded.device)  # type: ignore[arg-type]
    found = probe(loaded, given, labels=named, lpips=lpips, seed=seed, side=SIDE, progress=progress)
    unmeasured = {**found.left_out, "labels": known.why.rstrip(".")} if known.why else found.left_out
    found = replace(found, left_out=unmeasured, about=_told(loaded, data, known, left_out))
    _write(found, report)
    return found


class _Chosen:
    """Some pictures of a source, each read when it is asked for."""

    def __init__(self, source: Pictures, numbers: Sequence[int]) -> None:
        self.source, self.numbers = source, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int, /) -> tuple[str, Array]:
        return self.source.names[self.numbers[i]], self.source.read(self.numbers[i])


def _told(vae: VAE, data: str | Path | None, known: Labelling, left_out: LeftOut) -> dict[str, Any]:
    """When, with what, where and on what."""
    return {
        **about(),
        "device": place(vae.device, None),
        "dtype": dtype_name(vae.dtype),
        "data": None if data is None else str(data),
        "labels": known.source or None,
        "labels_of_no_picture": list(known.strange),
        "files_left_out": left_out.to_dict(),
    }


def _require_writable(report: Path) -> None:
    """Checks before minutes of work that its result can be kept.

    Raises:
        UsageError: if it can't.
    """
    nearest = next(path for path in (report, *report.parents) if path.exists())
    try:
        with temporary_file(str(nearest)):
            pass
    except OSError as error:
        raise UsageError(
            f"--report {report}: nothing can be written in {nearest} ({error.strerror}); give another folder."
        ) from None


def _write(found: Probe, report: Path) -> None:
    """All files, or none.

    Raises:
        StorageError: the disk refuses them.
    """
    numbers, page = (json.dumps(found.to_dict(), indent=1) + "\n").encode(), probe_page(found)
    make_folder(report)
    assert found.factors is not None
    factors = found.factors.text().encode("utf-8", "backslashreplace")
    with writing_all([report / name for name in REPORT]) as files:
        for file, content in zip(files, (page, numbers, factors), strict=True):
            file.write(content)


def cards(side: int = SIDE, count: int = 8) -> Iterator[tuple[str, Array]]:
    """Drawn pictures for those who have none at hand: colours that change slowly, edges, textures of several scales.

    They tell of grids, shifts and colours. What latents of photographs are like they do not tell.
    """
    y, x = np.mgrid[0:side, 0:side] / side
    for i in range(count):
        rng = np.random.default_rng([7, i])
        phases, turns = rng.uniform(0, 6.28, (2, 3)), rng.uniform(1, 4, (2, 3))
        smooth = 0.5 + 0.25 * (
            np.sin(turns[0] * 3 * x[..., None] + phases[0]) + np.cos(turns[1] * 3 * y[..., None] + phases[1])
        )
        texture = np.zeros((side, side, 1))
        for scale in (4, 8, 16, 32):
            coarse = rng.normal(size=(side // scale + 1,) * 2).repeat(scale, 0).repeat(scale, 1)[:side, :side]
            texture[..., 0] += coarse * scale / 240
        mask = (np.hypot(x - rng.uniform(0.3, 0.7), y - rng.uniform(0.3, 0.7)) < rng.uniform(0.15, 0.3))[..., None]
        stripes = ((x + y * rng.uniform(-1, 1)) * side / rng.integers(4, 24) % 2 < 1)[..., None] * (i % 2)
        picture = smooth + texture * (1 + i % 3) / 2 + mask * rng.uniform(-0.5, 0.5, 3) + 0.2 * stripes * mask
        yield f"card-{i}", np.floor(picture.clip(0, 1) * 255 + 0.5).astype(np.uint8)
