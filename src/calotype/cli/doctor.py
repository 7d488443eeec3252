"""`calotype doctor`: what this machine has, and whether calotype works on it."""

from __future__ import annotations

from typing import Any

from calotype.cli.common import JsonOption, finish, table

NAME = "doctor"
EXAMPLE = "Example: [bold]calotype doctor --json[/]"

PACKAGES = (
    "torch", "numba", "numpy", "pillow", "pillow-heif", "pillow-jxl-plugin", "tifffile", "imagecodecs", "safetensors",
    "huggingface_hub", "h5py", "diffusers",
)  # fmt: skip


def command(json: JsonOption = False) -> None:
    """Show versions, devices and threads, and check the built-in weights."""
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
        vae = load(device="cpu")
        builtin = f"{vae!r}, sha256 {vae.sha256[:12]}"
        failures = []
    except CalotypeError as error:
        builtin, failures = str(error), [{"file": "built-in weights", "error": str(error)}]
    missing = winograd_available()
    if missing:
        engine = f"reference, because {missing}"
    else:
        engine = f"winograd, bfloat16 products {'yes' if half_available() else 'no'}"
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
