"""From a name or a path to a VAE, on a device."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

import torch

from calotype.engine.run import EngineName
from calotype.errors import CalotypeWarning, LatentsError, UsageError
from calotype.families import PRESETS
from calotype.files import as_text
from calotype.latent_spaces import fitting
from calotype.latents import KNOWN, MODEL, Latents, space_of
from calotype.vae.pictures import VAE
from calotype.vae.trials import require_right
from calotype.weights.fetch import fetch
from calotype.weights.groups import Weights
from calotype.weights.load import Loaded, load_weights
from calotype.weights.presets import BUILTIN, is_preset


def load(
    vae: str | os.PathLike[str] | None = None,
    *,
    latent_format: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    encode_dtype: torch.dtype | None = None,
    engine: EngineName = "auto",
    prefix: str | None = None,
    weights: Weights | None = None,
    choices: Mapping[str, bool] | None = None,
    trust_device: bool = False,
) -> VAE:
    """Loads a VAE: the built-in one, a preset by name, or any weights by path.

    Args:
        vae: None for the weights that ship with calotype; the name of a preset (fetched from the hub on first use);
            or a file or folder in any layout.
        latent_format: a name of `calotype.latents.KNOWN` (sd1, flux, wan2.1 and others) or none; model:NAME where they
            are the model latents of the format NAME already, as those of some TAEHVs are; or how a config.json is
            meant that can be read in two ways, means or scaled-means. Needed only where the weights can't tell and
            model latents or latents on disk are wanted.
        device: where it runs; CUDA where there is one, else MPS, else the CPU.
        dtype: of weights and computation. Results that are not finite in a narrower type are computed again in float32.
        encode_dtype: of encodes alone, which a narrow type harms more than decodes. None: float32, whatever `dtype` is;
            the first encode says so where that is another.
        engine: what computes: "winograd" (CPU), "fused" (CUDA), "reference" (anywhere), or the fastest of them here.
        prefix: which VAE of a file with several: what stands before its names, as "first_stage_model.".
        weights: "raw" or "ema", where a file holds both those trained and their average over the training; the average
            where not given, if it is the whole VAE.
        choices: how a network computes, where its weights leave a choice: {"quantize": False} has a VQ autoencoder
            decode latents as they are, as Kandinsky's pipelines do, and not the nearest entries of its codebook.
        trust_device: also where `calotype doctor --device` found the device to compute wrong numbers in these types;
            so does CALOTYPE_TRUST_DEVICE=1 in the environment.

    Raises:
        WeightsError: if there are no usable weights there.
        UsageError: for an unknown name, device, latent format or choice, a prefix or weights that are not there, or a
            device that was found to compute wrong numbers.

    Warns:
        CalotypeWarning: where the file is not quite as it should be, or holds more than one VAE that could be meant.
    """
    for given in (dtype, encode_dtype):
        if given not in (None, torch.float32, torch.bfloat16, torch.float16):
            raise UsageError(f"A VAE computes in float32, bfloat16 or float16, not {given}.")
    path, name, latent_format = locate(vae, latent_format)
    loaded = load_weights(path, latent_format_name=latent_format, prefix=prefix, weights=weights, choices=choices)
    for notice in loaded.notices:
        warnings.warn(notice, CalotypeWarning, stacklevel=2)
    where = pick_device(device)
    if not trust_device:
        require_right(where, loaded, {"encode": encode_dtype or torch.float32, "decode": dtype})
    return VAE(loaded, name=name, device=where, dtype=dtype, encode_dtype=encode_dtype, engine=engine)


def load_as_stored(
    vae: str | os.PathLike[str] | None,
    latent_format: str | None = None,
    *,
    prefix: str | None = None,
    weights: Weights | None = None,
    choices: Mapping[str, bool] | None = None,
) -> Loaded:
    """Weights as `load` finds them, in the dtype they are stored in and on the CPU; for conversion."""
    path, _, latent_format = locate(vae, latent_format)
    loaded = load_weights(path, latent_format_name=latent_format, prefix=prefix, weights=weights, choices=choices)
    for notice in loaded.notices:
        warnings.warn(notice, CalotypeWarning, stacklevel=2)
    return loaded


def locate(vae: str | os.PathLike[str] | None, latent_format: str | None) -> tuple[Path, str, str | None]:
    """What `load` was given -> (where the weights lie, what to call them, the latent format if it is known).

    Presets are fetched.

    Args:
        vae, latent_format: as for `load`.

    Raises:
        UsageError: it is no file, no folder and no preset; the message has names that are like it.
        FetchError: a preset can't be fetched.
    """
    if vae is None or vae == "builtin":
        return BUILTIN, "builtin", latent_format
    if is_preset(text := os.fspath(vae)):
        known = PRESETS[text].latent_format
        return fetch(text), text, latent_format or (known if known.removeprefix(MODEL) in KNOWN else None)
    path = Path(text)
    if not path.exists() and os.sep not in text and not path.suffix:
        near = get_close_matches(text, PRESETS, n=1, cutoff=0.8)
        near = near or [name for name in PRESETS if text in name][:3] or get_close_matches(text, PRESETS, n=1)
        hint = f"did you mean {' or '.join(near)}?" if near else f"presets are {', '.join(PRESETS)}."
        raise UsageError(f"{text!r} is neither a file, nor a folder, nor a preset; {hint}")
    # a file that is called like a preset must not be taken for it when its latents are decoded
    name = as_text(path.name or path.resolve().name)
    name = f"./{name}" if name in ("builtin", *PRESETS) else name
    return path, name, latent_format


def name_for(latents: Latents, path: Path) -> str:
    """What `load` needs to get the VAE that made these latents.

    Raises:
        LatentsError: if it was loaded from a file, or is not named; the message has presets of the same space.
    """
    if latents.vae_name == "builtin" or latents.vae_name in PRESETS:
        return latents.vae_name
    space = space_of(latents.format)
    presets = fitting(space)
    if latents.vae:
        other = f", or a preset of its space {space!r} ({presets})," if presets else ""
        raise LatentsError(
            f"{path}: these latents were made by {latents.vae_name or 'an unnamed VAE'} (sha256 "
            f"{latents.vae[:12]}...); give its weights{other} with --vae."
        )
    given = f"one of the space {space!r}" if space else "one that decodes them"
    named = f" ({presets})" if presets else ""
    raise LatentsError(f"{path}: these latents name no VAE; give {given}{named} with --vae.")


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        UsageError: if it is not there.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"There is no device {str(device)!r} here; `calotype doctor` lists those there are.") from None
    return chosen
