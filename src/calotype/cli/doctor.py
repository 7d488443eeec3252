"""`calotype doctor`: what this machine has, and whether calotype works on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.cli.common import JsonOption, complain, finish, show, table
from calotype.errors import UsageError

if TYPE_CHECKING:
    from calotype.vae.trials import Trial

NAME = "doctor"
EXAMPLE = "Example: [bold]calotype doctor --json[/]"

PACKAGES = (
    "torch", "numba", "numpy", "pillow", "pillow-heif", "pillow-jxl-plugin", "tifffile", "imagecodecs", "safetensors",
    "huggingface_hub", "h5py", "diffusers",
)  # fmt: skip


def command(
    device: Annotated[
        str | None,
        typer.Option(help="Try this one: cpu, cuda, cuda:1, mps.", show_default="none is tried"),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(
            "--vae", help="Weights to try it with: a preset's name, or a file or folder.", show_default="built-in"
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show versions, devices and threads, and check the built-in weights; with --device, whether it computes right.

    A device is tried by a test picture that goes through it in every type and is compared with the CPU's float32. What
    was found is kept for this device and these versions, and a VAE is not loaded where its numbers would be wrong
    (unless CALOTYPE_TRUST_DEVICE=1 says so).
    """
    if device is not None:
        _try(device, vae, json)
        return
    if vae is not None:
        raise UsageError("--vae goes with --device, to try that; `calotype inspect` looks at weights.")
    import platform
    from importlib import metadata

    import torch
    from PIL import features

    from calotype import __version__
    from calotype.engine import cuda
    from calotype.engine.run import half_available, winograd_available
    from calotype.errors import CalotypeError
    from calotype.pixels.kinds import suffixes
    from calotype.pixels.plugins import PLUGINS, lacking
    from calotype.vae import load, pick_device

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    devices = ["cpu"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    try:
        own = load(device="cpu", trust_device=True)
        builtin = f"{own!r}, sha256 {own.sha256[:12]}"
        failures = []
    except CalotypeError as error:
        builtin, failures = str(error), [{"file": "built-in weights", "error": str(error)}]
    missing = winograd_available()
    if missing:
        engine = f"reference, because {missing}"
    else:
        engine = f"winograd, bfloat16 computed in {'bfloat16' if half_available() else 'float32, which is faster here'}"
    formats = {
        name: bool(features.check(name)) for name in ("jpg", "jpg_2000", "webp", "avif", "libtiff", "littlecms2")
    }
    missing_plugins = {name: lacking(name) for name in PLUGINS}
    formats |= {name.lower(): not why for name, why in missing_plugins.items()}
    document: dict[str, Any] = {
        "calotype": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: version(package) for package in PACKAGES},
        "devices": devices,
        "default_device": str(pick_device(None)),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "picture_formats": formats,
        "picture_suffixes": sorted(suffixes()),
        "cpu_engine": engine,
        "cuda_engine": cuda.available(),
        "builtin": builtin,
    }

    def text() -> None:
        table(
            [
                ("calotype", f"{__version__}, Python {document['python']}, {document['platform']}"),
                ("packages", ", ".join(f"{k} {v}" for k, v in document["packages"].items())),
                ("devices", f"{', '.join(devices)}; default {document['default_device']}"),
                ("threads", f"{document['threads']}, {document['cpu_capability']}"),
                ("CPU engine", engine),
                ("CUDA engine", document["cuda_engine"]),
                ("pictures", ", ".join(f"{k} {'yes' if v else 'no'}" for k, v in formats.items())),
                *((f"  {PLUGINS[name].title}", why) for name, why in missing_plugins.items() if why),
                ("picture files", " ".join(document["picture_suffixes"])),
                ("built-in VAE", builtin),
            ]
        )

    finish(document, as_json=json, text=text, failures=failures)


def _try(device: str, vae: str | None, json: bool) -> None:
    """Trials of a device, kept and shown; exits with 1 if it computes wrong numbers."""
    from dataclasses import asdict

    from rich.table import Table

    from calotype.cli.measuring import bar
    from calotype.errors import StorageError
    from calotype.vae import load_as_stored, locate, pick_device
    from calotype.vae.trials import device_name, keep, try_device

    where = pick_device(device)
    name = locate(vae, None)[1]
    loaded = load_as_stored(vae)
    with bar("Trying") as told:
        trials = try_device(loaded, where, progress=lambda part: told(part, 1.0))
    kept = None
    try:
        kept = str(keep(where, loaded, name, trials))
    except StorageError as error:
        complain(f"This is not kept: {error}")
    bad = [one for one in trials if one.verdict == "wrong"]
    document = {
        "device": str(where), "name": device_name(where), "vae": name, "right": not bad,
        "trials": [asdict(one) for one in trials], "kept": kept,
    }  # fmt: skip

    def text() -> None:
        grid = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("type", "way", "encode", "decode"):
            grid.add_column(column)
        rows: dict[tuple[str, str], dict[str, str]] = {(one.dtype, one.way): {} for one in trials}
        for one in trials:
            rows[one.dtype, one.way][one.direction] = _found(one)
        for (dtype, way), cells in rows.items():
            grid.add_row(dtype, way, cells.get("encode", "-"), cells.get("decode", "-"))
        print(f"{where} ({device_name(where)}) with {name}, against the CPU's float32:")
        show(grid)
        print(_verdict(str(where), bad, trials))

    failures = [{"file": str(where), "error": f"{one.direction} in {one.dtype} is wrong"} for one in bad]
    finish(document, as_json=json, text=text, failures=failures)


def _found(one: Trial) -> str:
    """A trial in a cell."""
    if one.db is None:
        return f"{one.verdict}{f': {one.why[:60]}' if one.why else ''}"
    return f"{one.db:.1f} dB" + (f", WRONG: at least {one.least:.0f}" if one.verdict == "wrong" else "")


def _verdict(device: str, bad: list[Trial], trials: list[Trial]) -> str:
    """What to make of them, in a sentence or two."""
    refused = [one for one in bad if one.way == "engine"]
    notes = []
    if refused:
        named = ", ".join(f"{one.direction}s in {one.dtype} ({one.db:.1f} dB)" for one in refused)
        notes.append(
            f"{device} computes wrong numbers without saying so: {named}. VAEs are not loaded there in these types "
            f"from now on; CALOTYPE_TRUST_DEVICE=1 or trust_device=True loads them all the same."
        )
    elif bad:
        notes.append(f"{device} is right by calotype's engine; plain networks, as in a training, are wrong where said.")
    else:
        notes.append(f"{device} computes right.")
    widened = sorted({one.dtype for one in trials if one.verdict == "not finite" and one.way == "engine"})
    if widened:
        notes.append(f"In {' and '.join(widened)} this VAE overflows, and is computed again in float32.")
    failed = sorted({one.dtype for one in trials if one.verdict == "failed"})
    if failed:
        notes.append(f"{' and '.join(failed)} can't be computed in every way, which is said when it is tried.")
    return " ".join(notes)
