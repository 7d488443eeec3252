"""Whether a device computes right: a test picture through each dtype, held against the CPU's float32.

A device that can't do something says so. One that does it wrong does not: on Apple's MPS, `torch.nn.functional.pad`
gave zeros for maps of 65536 positions and more, and what was encoded there came back at 6.6 dB where the CPU has 49
(Comfy-Org/ComfyUI issue 16433). So it is tried, the result is kept, and `calotype.load` looks there.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

import calotype
from calotype.engine.executor import Progress
from calotype.errors import CalotypeError, NonFiniteError, UsageError
from calotype.files import make_folder, write_text
from calotype.steps import Direction
from calotype.texts import TextError, json_table
from calotype.vae.tensors import Coder, posterior_of
from calotype.weights.fetch import cache
from calotype.weights.load import Loaded
from calotype.weights.mapped import dtype_name

HEIGHT, WIDTH = 256, 320  # more than 65536 pixels, and no square
TRUST = "CALOTYPE_TRUST_DEVICE"
BUILTIN = "builtin"
_MOST = 200.0  # dB of equal numbers

# dB below which numbers are wrong, and not only rounded; see docs/engine.md for what is usual
LEAST: Mapping[torch.dtype, float] = {torch.float32: 45.0, torch.float16: 35.0, torch.bfloat16: 20.0}

Way = Literal["engine", "network", "network, channels last"]
Verdict = Literal["right", "wrong", "not finite", "failed"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one direction gave in one dtype.

    Attributes:
        way: what computed: the engine, as `VAE.encode` and `VAE.decode` do, or the plain network, as a training does.
        db: how far the spread of what is right (its std) lies above the error's root mean square; None where there are
            no numbers, or not all finite.
        verdict: "wrong" is below `least`; "not finite" is made good by computing again in float32; "failed" raised.
        why: of what failed, its first line.
    """

    direction: Direction
    dtype: str
    way: Way
    db: float | None
    least: float
    verdict: Verdict
    why: str = ""


Runner = Callable[[Coder, Direction, Tensor, Way], Tensor]
"""(VAE, direction, what goes in on the CPU, way) -> moments or pixels, of the VAE's device and dtype."""


@torch.no_grad()
def compute(coder: Coder, direction: Direction, x: Tensor, way: Way) -> Tensor:
    """The runner of devices there are."""
    if way == "engine":
        return coder.engine(direction, x.to(coder.device))
    layout = torch.channels_last if way == "network, channels last" else torch.contiguous_format
    network = coder.module.to(memory_format=layout)  # type: ignore[call-overload]
    given = x.to(coder.device, coder.dtype).contiguous(memory_format=layout)
    made: Tensor = network.encode(given).moments if direction == "encode" else network.decode(given)
    return made


def try_device(
    loaded: Loaded, device: str | torch.device, *, run: Runner = compute, progress: Progress | None = None
) -> list[Trial]:
    """Sends a test picture through a VAE on a device, in each dtype and way, and compares with the CPU's float32.

    Args:
        loaded: the VAE's weights (`vae.load_as_stored`), which stay as they are.
        run: computes on the device.
        progress: called with the part of the work that is done, from 0 to 1.
    """
    device = torch.device(device)
    inputs, right = _references(loaded)
    jobs = [(dtype, way) for dtype in LEAST for way in get_args(Way)]
    found = []
    for i, (dtype, way) in enumerate(jobs):
        coder = Coder(_copied(loaded), device=device, dtype=dtype, encode_dtype=dtype)
        for direction, x in inputs.items():
            found.append(_trial(coder, direction, x, right[direction], way, run))
        if progress is not None:
            progress((i + 1) / len(jobs))
    return found


def _copied(loaded: Loaded) -> Loaded:
    return replace(loaded, module=copy.deepcopy(loaded.module))


def _references(loaded: Loaded) -> tuple[dict[Direction, Tensor], dict[Direction, Tensor]]:
    """What goes into each direction that there is, and what the CPU's float32 makes of it by torch's own operations."""
    cpu = Coder(_copied(loaded), dtype=torch.float32, engine="reference")
    inputs: dict[Direction, Tensor] = {}
    right: dict[Direction, Tensor] = {}
    latents = None
    if "encoder" in loaded.parts:
        inputs["encode"] = picture(cpu.picture_channels, cpu.factor)
        latents = right["encode"] = _values(cpu, "encode", compute(cpu, "encode", inputs["encode"], "engine"))
    if "decoder" in loaded.parts:
        if latents is None:
            size = (-(-side // cpu.factor) for side in (HEIGHT, WIDTH))
            latents = torch.randn(1, cpu.latent_channels, *size, generator=torch.Generator().manual_seed(0))
        inputs["decode"] = latents
        right["decode"] = compute(cpu, "decode", latents, "engine").float()
    return inputs, right


def _values(coder: Coder, direction: Direction, made: Tensor) -> Tensor:
    """What is compared: pixels, or the latents that moments are of."""
    made = made.float().cpu()
    return posterior_of(coder.config, made).mode() if direction == "encode" else made


def _trial(coder: Coder, direction: Direction, x: Tensor, right: Tensor, way: Way, run: Runner) -> Trial:
    least = LEAST[coder.dtype]
    db, why = None, ""
    verdict: Verdict
    try:
        found = _values(coder, direction, run(coder, direction, x, way))
        if not torch.isfinite(found).all():
            verdict = "not finite"
        else:
            db = decibels(found, right)
            verdict = "right" if db >= least else "wrong"
    except NonFiniteError:
        verdict = "not finite"
    except (CalotypeError, RuntimeError, NotImplementedError, TypeError) as error:  # what devices lack
        verdict, why = "failed", (str(error).strip() or type(error).__name__).splitlines()[0]
    return Trial(
        direction=direction, dtype=dtype_name(coder.dtype), way=way, db=db, least=least,
        verdict=verdict, why=why,
    )  # fmt: skip


def decibels(found: Tensor, right: Tensor) -> float:
    """20 log10 of the std of what is right over the root mean square error; 200 of what is equal."""
    error = float((found.double() - right.double()).square().mean().sqrt())
    spread = float(right.double().std())
    return min(_MOST, 20 * math.log10(spread / error)) if error and spread else (0.0 if error else _MOST)


def picture(channels: int, factor: int) -> Tensor:
    """The test picture, [1, P, H, W] in [-1, 1]: slow colours, edges and fine noise, by a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    height, width = (-(-side // factor) * factor for side in (HEIGHT, WIDTH))
    found = torch.zeros(1, channels, height, width)
    for cells, strength in ((3, 0.6), (12, 0.3), (48, 0.15)):
        coarse = torch.rand(1, channels, cells, cells + 1, generator=generator) * 2 - 1
        found += strength * functional.interpolate(coarse, size=(height, width), mode="bilinear")
    found[..., height // 4 : height // 2, width // 3 : width // 2] *= -1
    found += 0.05 * torch.randn(found.shape, generator=generator)
    return found.clamp(-1, 1)


# --- what is kept ---


def device_name(device: torch.device) -> str:
    """A device by what it is, and not by its number."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    if device.type == "mps":
        return f"mps {platform.machine()}, macOS {platform.mac_ver()[0]}"
    return f"{device.type} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def _key(device: torch.device) -> dict[str, str]:
    return {"device": device_name(device), "torch": torch.__version__, "calotype": calotype.__version__}


def record_path(device: torch.device) -> Path:
    """Where trials of a device are kept, for this torch and this calotype."""
    digest = hashlib.sha256(json.dumps(_key(device)).encode()).hexdigest()
    return cache() / "devices" / f"{digest[:16]}.json"


def keep(device: torch.device, loaded: Loaded, name: str, trials: list[Trial]) -> Path:
    """Keeps trials for `load`, in the place of those of VAEs of the same family.

    Raises:
        StorageError: the disk refuses them.
    """
    path = record_path(device)
    families = {**kept(device), loaded.module.config.kind: {"vae": name, "trials": [asdict(one) for one in trials]}}
    make_folder(path.parent)
    return write_text(path, json.dumps({**_key(device), "families": families}, indent=1) + "\n")


def kept(device: torch.device) -> dict[str, Any]:
    """Trials of a device: kind of family -> VAE and trials. Those of a damaged file are none."""
    try:
        record = json_table(record_path(device).read_bytes())
    except (OSError, TextError):
        return {}
    families = record.get("families")
    if not isinstance(families, dict) or any(record.get(key) != value for key, value in _key(device).items()):
        return {}
    return {kind: one for kind, one in families.items() if _is_record(one)}


def _is_record(one: Any) -> bool:
    if not isinstance(one, dict) or not isinstance(one.get("trials"), list):
        return False
    try:
        return all(isinstance(Trial(**trial), Trial) for trial in one["trials"])
    except TypeError:
        return False


def wrong(device: torch.device, kind: str) -> Iterator[Trial]:
    """Trials of the engine that gave wrong numbers: with a VAE of this family, or else with the built-in one."""
    families = kept(device)
    builtin = next((one for one in families.values() if one.get("vae") == BUILTIN), None)
    record = families.get(kind, builtin)
    for trial in record["trials"] if record else ():
        one = Trial(**trial)
        if one.way == "engine" and one.verdict == "wrong":
            yield one


def require_right(device: torch.device, loaded: Loaded, dtypes: Mapping[Direction, torch.dtype]) -> None:
    """Checks that a device did not compute wrong numbers in these types when it was tried.

    Raises:
        UsageError: it did, and the environment does not say to trust it.
    """
    if os.environ.get(TRUST, "") not in ("", "0"):
        return
    for one in wrong(device, loaded.module.config.kind):
        if f"{one.direction}r" in loaded.parts and one.dtype == dtype_name(dtypes[one.direction]):
            raise UsageError(
                f"The device {device} {one.direction}s wrong in {one.dtype}: when `calotype doctor --device {device}` "
                f"tried it, the result was {one.db:.1f} dB from the CPU's float32, where {one.least:.0f} dB are the "
                f"least; compute elsewhere (--device cpu) or in another type, or take it as it is with "
                f"trust_device=True ({TRUST}=1)."
            )
