"""Measure: folders that were given on the command line, evaluated and probed, with the report in the page."""

from __future__ import annotations

from typing import Any

from calotype.errors import UsageError
from calotype.studio import forms
from calotype.studio.commands import file, resources
from calotype.studio.jobs import Command, Job, Order, Word
from calotype.studio.shelf import Shelf
from calotype.studio.visits import Visit

REPORT = "report"
_METRICS = ("psnr", "ssim", "ms_ssim", "lpips_alex", "lpips_vgg")
_PROTOCOLS = ("whole", "crop256", "stability-card", "lightningdit", "dc-ae", "llamagen")


def evaluate(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> Order:
    """The same pictures through VAEs."""
    folder = shelf.folder(form.get("folder"))
    indices = form.get("vaes")
    if not isinstance(indices, list) or not indices:
        raise UsageError("No VAE is chosen; choose one or more.")
    vaes = [shelf.vae(index) for index in indices]
    metrics = form.get("metrics") or ["psnr", "ssim"]
    if not isinstance(metrics, list) or any(one not in _METRICS for one in metrics):
        raise UsageError(f"Metrics are among {', '.join(_METRICS)}, not {metrics!r}.")
    limit = forms.whole(form, "limit", 0, 0, 10**9)
    protocol = forms.choice(form, "protocol", _PROTOCOLS)
    options: list[Word] = []
    for one in vaes:
        options += ["--vae", one]
    options += ["--metrics", ",".join(metrics), *(["--protocol", protocol] if protocol != "whole" else [])]
    options += [*(["--limit", str(limit)] if limit else []), "--report", REPORT, *resources(shelf)]
    memory = "" if shelf.memory is None else f", memory={shelf.memory!r}"
    python = (
        "from pathlib import Path\n\nfrom calotype.evaluate.protocol import preset\n"
        "from calotype.evaluate.session import evaluate\nfrom calotype.evaluate.setup import Setup\n\n"
        f"setup = Setup(\n    vaes={tuple(one.shown for one in vaes)!r}, protocol=preset({protocol!r}),\n"
        f"    metrics={tuple(metrics)!r}{memory},\n)\n"
        f"evaluate({folder.shown!r}, setup, Path({REPORT!r}), limit={limit})"
    )
    command = Command("evaluate", [folder], options, hidden=(), makes=f"{REPORT}/index.html")
    return Order("Measuring", [command], {}, python, _evaluated)


def _evaluated(visit: Visit, job: Job, said: list[Any]) -> list[dict[str, Any]]:
    return [
        file(job, f"{REPORT}/index.html", "report"), file(job, f"{REPORT}/results.json", "data"),
        file(job, f"{REPORT}/results.csv", "data"),
    ]  # fmt: skip


def probe(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> Order:
    """What a latent space does."""
    given = shelf.vae(form.get("vae", 0))
    folder = None if form.get("folder") is None else shelf.folder(form["folder"])
    lpips = forms.choice(form, "lpips", ("none", "alex", "vgg"))
    limit = forms.whole(form, "limit", 0, 0, 10**9)
    options: list[Word] = ["--lpips", lpips, *(["--limit", str(limit)] if limit else [])]
    options += ["--report", REPORT, *resources(shelf, memory=False)]
    words: list[Word] = [given, *([folder] if folder else [])]
    data = "None" if folder is None else repr(folder.shown)
    python = (
        "from pathlib import Path\n\nfrom calotype.evaluate.examine import examine\n\n"
        f"examine({given.shown!r}, {data}, Path({REPORT!r}), perceptual={None if lpips == 'none' else lpips!r}, "
        f"limit={limit})"
    )
    command = Command("probe", words, options, hidden=(), makes=f"{REPORT}/index.html")
    return Order("Probing", [command], {}, python, _probed)


def _probed(visit: Visit, job: Job, said: list[Any]) -> list[dict[str, Any]]:
    return [
        file(job, f"{REPORT}/index.html", "report"), file(job, f"{REPORT}/probe.json", "data"),
        file(job, f"{REPORT}/factors.json", "data"),
    ]  # fmt: skip


ORDERS = {"measure.evaluate": evaluate, "measure.probe": probe}
