"""A checkpoint's parts -> a pipeline of diffusers with calotype's VAE inside."""

from __future__ import annotations

import importlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from calotype.draw.kinds import Found, class_name, read_json
from calotype.errors import CalotypeError, FetchError, UsageError, WeightsError
from calotype.families import require_as_large
from calotype.families.face import listing
from calotype.families.numbers import MOST_LEVELS
from calotype.latents import LatentFormat, ScaleShift
from calotype.pixels import require_rgb
from calotype.texts import shown
from calotype.vae import VAE, load
from calotype.weights.diffusers_config import Scales
from calotype.weights.formats import as_format
from calotype.weights.places import SUFFIXES

EXTRA = "Drawing with checkpoints needs {}; install it with: pip install 'calotype[sd]'"
CONFIGS = ["*.json", "*/*.json", "*/*.txt", "*/*.model"]  # what a repository has beside weights and pictures


def require_libraries() -> None:
    # accelerate: without it, diffusers fills what a file lacks with random numbers, and says nothing
    for name in ("diffusers", "transformers", "accelerate"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)
        except ImportError:
            raise UsageError(EXTRA.format(name)) from None


def checkpoint_vae(
    path: Path, found: Found, given: VAE | str | os.PathLike[str] | None, device: torch.device, dtype: torch.dtype
) -> VAE:
    """The VAE that a checkpoint draws with: its own, or the one that was given, if that has the same latents."""
    config = read_json(path / "vae" / "config.json") if path.is_dir() and found.has_vae else {}
    by_config = config.get("_class_name", found.kind.vae) == "AutoencoderKL"  # which says how latents are scaled
    own = None
    if given is None or not by_config:
        if not found.has_vae and given is not None:
            raise UsageError(
                f"{path}: this folder lacks its VAE (vae/), which says what latents it draws; fetch it too, also where "
                f"another one is given."
            )
        if not found.has_vae:
            raise UsageError(f"{path}: this checkpoint holds no VAE; give one with --vae.")
        own = load(path / "vae" if path.is_dir() else path, device=device, dtype=dtype)
    if by_config:
        format_, factor = _own_format(config, found)
        channels = found.channels
    else:
        assert own is not None
        format_, factor, channels = own.latent_format, own.factor, own.latent_channels
    if given is None:
        assert own is not None
        _require_pictures(own, f"The VAE of {path.name}", found)
        return _with_format(own, format_, f"the VAE of {path.name}")
    vae = given if isinstance(given, VAE) else load(given, device=device, dtype=dtype)
    _require_pictures(vae, vae.name, found)
    what = f"{vae.name or 'The VAE'} can't stand in for the VAE of {path.name}"
    if vae.latent_channels != channels:
        raise UsageError(f"{what}: it has {vae.latent_channels} latent channels, and {channels} are needed.")
    if vae.factor != factor:
        raise UsageError(
            f"{what}: a latent of it stands for {vae.factor} x {vae.factor} pixels, not {factor} x {factor}."
        )
    stored = vae.loaded.format
    if stored is None:
        return _with_format(vae, format_, vae.name)
    if stored.to_dict() | {"name": ""} != format_.to_dict() | {"name": ""}:
        raise UsageError(f"{what}: its latents are scaled otherwise ({stored.name} instead of {format_.name}).")
    return vae


def _require_pictures(vae: VAE, name: str, found: Found) -> None:
    if not (found.kind.alpha and vae.picture_channels == 4):
        require_rgb(vae.picture_channels, name, "drawing")
    require_as_large(vae.config, "Drawing")


def _with_format(vae: VAE, format_: LatentFormat, name: str) -> VAE:
    return VAE(
        replace(vae.loaded, format=format_), name=name, device=vae.device, dtype=vae.dtype,
        encode_dtype=vae.encode_dtype,
    )  # fmt: skip


def _own_format(config: Mapping[str, Any], found: Found) -> tuple[LatentFormat, int]:
    """How the denoiser wants latents to be scaled, and the pixels along a side that one stands for.

    Args:
        config: what the config.json of the checkpoint's AutoencoderKL says; empty where there is none.
    """
    levels = config.get("block_out_channels", [0] * 4)
    if not isinstance(levels, list) or not 1 <= len(levels) <= MOST_LEVELS:
        raise WeightsError(f"its vae/config.json can't be: block_out_channels is {shown(levels)}; fetch it again")
    factor = 2 ** (len(levels) - 1)
    scale, shift = config.get("scaling_factor"), config.get("shift_factor") or 0.0
    mean, std = config.get("latents_mean"), config.get("latents_std")
    try:
        if mean and std:
            columns = [tuple(one) if isinstance(one, list) else one for one in (mean, std)]
            means = Scales(factor=scale or 1.0, mean=columns[0], std=columns[1])
            return as_format(means, found.channels), factor
        if scale is None:
            if not isinstance(found.kind.format, ScaleShift):
                raise WeightsError("its vae/config.json does not say scaling_factor; fetch it again")
            return replace(found.kind.format, channels=found.channels), factor
        return as_format(Scales(factor=scale, shift=shift), found.channels), factor
    except UsageError as error:  # of numbers that can't be
        raise WeightsError(f"its vae/config.json can't be: {str(error).rstrip('.')}; fetch it again") from None


def pipeline_class(found: Found, task: str = "") -> tuple[Any, dict[str, Any]]:
    """A pipeline's class, and what it is made with beside models."""
    stem = found.kind.pipelines
    extra: dict[str, dict[str, Any]] = {
        "StableDiffusion": {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
        "StableDiffusionXL": {"add_watermarker": False},
    }
    return getattr(importlib.import_module("diffusers"), f"{stem}{task}Pipeline"), extra.get(stem, {})


def vae_class(path: Path, found: Found) -> Any:
    """calotype's class in the place of the one that a checkpoint's pipeline has.

    Raises:
        WeightsError: if there is none.
    """
    module = importlib.import_module("calotype.integrations.diffusers")
    said = read_json(path / "model_index.json").get("vae") if path.is_dir() else None
    name = said[1] if isinstance(said, list) and len(said) == 2 and said[1] is not None else found.kind.vae
    known = {one.__name__: one for one in module.CLASSES}
    if name not in known:
        raise WeightsError(f"its VAE is of the class {shown(name)}, and known are {', '.join(known)}")
    return known[name]


def pipeline_from_folder(path: Path, found: Found, vae: Any, dtype: torch.dtype) -> Any:
    transformers = importlib.import_module("transformers")
    pipeline, extra = pipeline_class(found, "Inpaint" if found.inpainting else "")
    denoiser = path / found.kind.denoiser
    names = [file.name for file in denoiser.iterdir() if file.suffix in SUFFIXES]
    how = {"dtype": dtype, "local_files_only": True}
    if names and all(".fp16." in name for name in names):
        how["variant"] = "fp16"
    parts: dict[str, Any] = {"vae": vae}
    with _one_sentence():
        for name, value in read_json(path / "model_index.json").items():
            if name in extra or not isinstance(value, list):
                continue
            if len(value) != 2 or not all(
                one is None or (isinstance(one, str) and one.isidentifier()) for one in value
            ):
                raise WeightsError(f"its model_index.json says {shown(value)} of {shown(name)}; fetch it again")
            if value[1] is None:  # left out, as T5 often is; diffusers wants to be told again
                parts[name] = None
            elif name.startswith("text_encoder"):
                encoder = getattr(transformers, value[1])
                parts[name], report = encoder.from_pretrained(path / name, output_loading_info=True, **how)
                if report["missing_keys"]:
                    raise WeightsError(listing("missing", sorted(f"{name}.{key}" for key in report["missing_keys"])))
        return pipeline.from_pretrained(path, **parts, **extra, **how)


def pipeline_from_file(path: Path, found: Found, vae: Any, dtype: torch.dtype, configs: Path) -> Any:
    pipeline, extra = pipeline_class(found, "Inpaint" if found.inpainting else "")
    name = class_name(configs)
    if not re.fullmatch(rf"{found.kind.pipelines}(Img2Img|Inpaint)?Pipeline", name):
        raise UsageError(
            f"{configs} describes a {name}, and {path.name} holds {found.kind.title}; give another --config."
        )
    with _one_sentence():
        pipe = pipeline.from_single_file(
            str(path),
            config=str(configs),
            local_files_only=True,
            dtype=dtype,
            vae=vae,
            **dict.fromkeys(found.without),
            **extra,
        )
    if (t5 := pipe.components.get("text_encoder_3")) is not None:
        t5.eval().tie_weights()  # diffusers leaves its dropout on, and one of its two names without weights
    if found.scheduler:
        pipe.scheduler = type(pipe.scheduler).from_config({**pipe.scheduler.config, **found.scheduler})
    return pipe


def find_configs(path: Path, found: Found, given: str | os.PathLike[str] | None) -> Path:
    """The folder with the configurations of a single file's parts."""
    what = "a single file holds neither configurations nor the words of its tokenizer"
    if given is None and found.repo is None:
        raise UsageError(
            f"{path.name}: {what}, and whether a Stable Diffusion 2 predicts v (768 pixels) or noise (-base, 512) "
            f"can't be told from it; give a folder or hub repository of its origin by --config (config=)."
        )
    folder = Path(given or "")
    if given is not None and (folder / "model_index.json").is_file():
        return folder
    repo = str(found.repo if given is None else given)
    if given is not None and (folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", repo)):
        raise UsageError(f"--config {repo} is no folder with a model_index.json, and no repository on the hub.")
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(repo, allow_patterns=CONFIGS, local_files_only=True))
        if (cached / "model_index.json").is_file() and (cached / "scheduler").is_dir():
            return cached
    except LocalEntryNotFoundError:
        pass
    try:
        get_hf_file_metadata(hf_hub_url(repo, "model_index.json"))  # a download tries for long, this only once
        return Path(snapshot_download(repo, allow_patterns=CONFIGS))
    except Exception as error:  # of whichever HTTP library this huggingface_hub uses
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"the hub answered {status}" if status else "the hub can't be reached"
        login = f"accept the licence at https://huggingface.co/{repo}, log in with `hf auth login`"
        raise FetchError(
            f"{path.name}: {what}; those of {repo} are not in the local cache, and {reason}: "
            f"{login if status in (401, 403) else 'connect to the network'} and try again, or give a folder with the "
            f".json and .txt files of that repository by --config (config=)."
        ) from None


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turns what diffusers and transformers raise about weights into one sentence."""
    try:
        yield
    except CalotypeError:
        raise
    except Exception as error:  # they raise many kinds
        if "meta tensor" in str(error):  # one that nothing was loaded into, and they do not name it
            raise WeightsError("it lacks tensors of its denoiser or its text encoders; fetch it again") from None
        first = (str(error).strip() or type(error).__name__).split("\n")[0][:200].rstrip(".: ")
        raise WeightsError(
            f"diffusers can't put it together ({first}); fetch it again, or give another --config"
        ) from None


@contextmanager
def quiet(*categories: type[Warning]) -> Iterator[None]:
    """diffusers and transformers show no bars and give no advice about their own calls."""
    logs: list[Any] = [importlib.import_module(f"{name}.utils.logging") for name in ("diffusers", "transformers")]
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for category in categories:
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for log, (level, bars) in zip(logs, before, strict=True):
            log.set_verbosity(level)
            if bars:
                log.enable_progress_bar()
