"""Networks written as weight files, in any layout."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from calotype.errors import UsageError, WeightsError
from calotype.families import family_of
from calotype.families.face import Family, NetworkConfig, Video, listing
from calotype.families.network import Network
from calotype.files import make_folder, writing_all
from calotype.latents import LatentFormat, Packed, PerChannel, ScaleShift
from calotype.tensor_files import safetensors_parts, write_safetensors
from calotype.weights.diffusers_config import ASIDE, KEPT, LATENTS
from calotype.weights.flax import WEIGHTS as FLAX_WEIGHTS, flax_parts
from calotype.weights.formats import DIFFUSERS_LAYOUTS, KEPT_FIELDS, can_mean
from calotype.weights.gguf_writing import write_gguf
from calotype.weights.keras import write_keras
from calotype.weights.mapped import dtype_name
from calotype.weights.places import OTHER_SUFFIXES, SUFFIXES
from calotype.weights.video import grafted

WriteLayout = Literal["ldm", "diffusers", "diffusers-2d", "keras", "flax", "gguf"]  # as `calotype convert --layout`

DESCRIBED: tuple[WriteLayout, ...] = ("diffusers", "diffusers-2d", "flax")  # with a config.json
WITH_FRAMES: tuple[WriteLayout, ...] = ("ldm", "diffusers", "gguf")  # which can hold what one picture does not need
SINGLE: dict[str, tuple[str, ...]] = {
    "ldm": (".safetensors", ".sft"),
    "gguf": (".gguf",),
}  # files, under original names


def save_weights(
    module: Network,
    path: str | os.PathLike[str],
    *,
    layout: WriteLayout,
    format_: LatentFormat | None = None,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    kept: Mapping[str, Any] | None = None,
    said: Mapping[str, Any] | None = None,
    whole: Mapping[str, Tensor] | None = None,
) -> list[Path]:
    """Writes a VAE; what was there before is replaced only when the new file is whole.

    Args:
        path: ``ldm``: a .safetensors file. ``gguf``: a .gguf file under the same names, which stable-diffusion.cpp
            reads with its ``--vae``. ``diffusers``: a folder, which gets config.json and
            diffusion_pytorch_model.safetensors. ``diffusers-2d``: the same of a video VAE, with kernels for one
            picture; ``diffusers`` of such a VAE is written from `whole` alone. ``keras``: a folder, which gets
            encoder.h5 and decoder.h5. ``flax``: a folder, which gets config.json and diffusion_flax_model.msgpack.
        dtype: stored dtype; that of the module where not given.
        format_, metadata, kept, said, whole: see `save_tensors`.

    Raises:
        UsageError: if the layout can't hold this network, or the path does not fit the layout.
        WeightsError: if a number is too large for `dtype`.
        StorageError: if the disk refuses it; files that belong together are written all or none.
    """
    require_layout(family_of(module.config), layout, whole)
    tensors, whole = (in_dtype(one, dtype, path) for one in (module.state_dict(), whole or {}))
    return save_tensors(
        tensors, module.config, path, layout=layout, format_=format_, metadata=metadata, kept=kept, said=said,
        whole=whole,
    )  # fmt: skip


def in_dtype(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, path: str | os.PathLike[str]
) -> dict[str, Tensor]:
    """Tensors on the CPU, in a `dtype` if one is given; what counts stays as it is.

    Raises:
        WeightsError: if a number is too large for it; the message names the file (`path`) that was to be written.
    """
    held = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    if dtype is None:
        return held
    held = {key: value.to(dtype) if value.is_floating_point() else value for key, value in held.items()}
    if lost := [key for key, value in held.items() if not torch.isfinite(value).all()]:
        raise WeightsError(
            f"{path}: {listing('the', lost)} would overflow in {dtype_name(dtype)}; choose bfloat16 or float32."
        )
    return held


def save_tensors(
    tensors: Mapping[str, Tensor],
    config: NetworkConfig,
    path: str | os.PathLike[str],
    *,
    layout: WriteLayout,
    format_: LatentFormat | None = None,
    metadata: Mapping[str, str] | None = None,
    kept: Mapping[str, Any] | None = None,
    said: Mapping[str, Any] | None = None,
    whole: Mapping[str, Tensor] | None = None,
) -> list[Path]:
    """Writes a network's tensors, each in its own type, as `save_weights` writes a network.

    Args:
        tensors: by our keys, on the CPU.
        format_: stored with the weights, where the layout can.
        metadata: further entries of a safetensors header.
        kept: what a config.json said beside network and latent format (`Loaded.kept`).
        said: all fields of a config.json of this network (`Loaded.said`), which come back, but for latents.
        whole: of a video's VAE all that its file has, as `video.whole_tensors` gives it; ``ldm``, ``gguf`` and
            ``diffusers`` are written as a video's then, with these tensors in their places.

    Raises:
        UsageError, StorageError: as `save_weights`.
    """
    path = Path(path)
    family = family_of(config)
    video = family.video if whole and layout in WITH_FRAMES else None
    require_layout(family, layout, whole)
    if video and whole:
        tensors = grafted({key: family.given(config, key, value) for key, value in tensors.items()}, whole)
    if layout in DIFFUSERS_LAYOUTS:
        described = diffusers_config(config, format_, kept, said)
        described |= video.fields(config, tensors.keys()) if video else {}
        kept = {key: described[key] for key in KEPT if key in described} if kept else None
    header = {"format": "pt", "calotype_config": json.dumps(config.to_dict()), **(metadata or {})}
    if kept:
        header[KEPT_FIELDS] = json.dumps(kept)
    if format_ is not None:
        header["calotype_latent_format"] = json.dumps(format_.to_dict())

    if layout == "keras":
        return write_keras(_folder(path, layout), config, tensors, header)
    if layout == "flax":
        described = flax_config(config, format_, kept, said)
        parts = flax_parts(as_diffusers(tensors, config))
        return _described_folder(_folder(path, layout), FLAX_WEIGHTS, parts, described)
    if isinstance(format_, Packed) and not config.in_model_space:
        tensors = {**tensors, **statistics(format_)}
    if layout in SINGLE:
        suffixes = SINGLE[layout]
        if path.suffix not in suffixes:
            raise UsageError(
                f"{path}: the {layout} layout is a single file; give it a name that ends in {suffixes[0]}."
            )
        named = as_video(tensors, config, video, "ldm") if video else as_original(tensors, config)
        if layout == "ldm":
            return [write_safetensors(path, named, header)]
        return [write_gguf(path, named, {key: value for key, value in header.items() if key != "format"})]

    named = as_video(tensors, config, video, "diffusers") if video else as_diffusers(tensors, config)
    return _described_folder(
        _folder(path, layout), "diffusion_pytorch_model.safetensors", safetensors_parts(named, header), described
    )


def _described_folder(
    folder: Path, name: str, parts: Iterable[bytes | memoryview], described: Mapping[str, Any]
) -> list[Path]:
    """Writes weights and their config.json."""
    weights, about = folder / name, folder / "config.json"
    text = json.dumps(described, indent=2, sort_keys=True) + "\n"
    make_folder(folder)
    # the weights first: most say all themselves, where a killed process leaves an older config.json
    with writing_all([weights, about]) as (file, config_file):
        file.writelines(parts)
        config_file.write(text.encode())
    return [about, weights]


def require_layout(family: Family, layout: WriteLayout, whole: Mapping[str, Tensor] | None = None) -> None:
    """Checks that networks of a family can be written so.

    Args:
        whole: all that frames of a video need, where it is there.

    Raises:
        UsageError: if they can't.
    """
    if layout not in get_args(WriteLayout):
        raise UsageError(f"There is no layout {layout!r}; choose one of {', '.join(get_args(WriteLayout))}.")
    kind, diffusers = family.config.kind, family.diffusers
    if layout in DIFFUSERS_LAYOUTS and diffusers and diffusers.written:
        if layout == diffusers.layout or (whole and family.video and layout in WITH_FRAMES):
            return
        if diffusers.lacks:
            raise UsageError(
                f"The {layout} layout of a network of the kind {kind} needs {diffusers.lacks}; "
                f"--layout {diffusers.layout} writes what there is under diffusers' names."
            )
        raise UsageError(
            f"The {layout} layout is for VAEs of videos, and a network of the kind {kind} is of pictures; "
            f"--layout {diffusers.layout} writes it under diffusers' names."
        )
    lacks = {"keras": not family.keras, "flax": not (diffusers and diffusers.flax)}
    if layout in DIFFUSERS_LAYOUTS or lacks.get(layout):
        raise UsageError(
            f"A network of the kind {kind} has no {layout} layout; "
            f"--layout ldm writes it to a single file under its own keys."
        )


def files_of(path: str | os.PathLike[str], layout: WriteLayout) -> list[Path]:
    """The files that `save_weights` writes at most, given that path and layout."""
    names = {
        "ldm": [""],
        "gguf": [""],
        "diffusers": ["config.json", "diffusion_pytorch_model.safetensors"],
        "diffusers-2d": ["config.json", "diffusion_pytorch_model.safetensors"],
        "keras": ["encoder.h5", "decoder.h5"],
        "flax": ["config.json", FLAX_WEIGHTS],
    }
    return [Path(path) / name for name in names[layout]]


def diffusers_config(
    config: NetworkConfig,
    format_: LatentFormat | None = None,
    kept: Mapping[str, Any] | None = None,
    said: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What diffusers' ``config.json`` says of such a network and its latents.

    Args:
        kept: what one said before; its fields about latents come back as they were where they can mean `format_`.
        said: all that one said; where it is of one of the family's classes, its other fields come back too.

    Raises:
        UsageError: diffusers has no class for it.
    """
    kept = kept or {}
    diffusers = family_of(config).diffusers
    assert diffusers is not None and diffusers.written is not None
    packed = isinstance(format_, Packed)
    values: dict[str, Any] = {
        "_class_name": next(name for name, told in diffusers.classes.items() if told.packs == packed),
        "_diffusers_version": "0.30.0",
        **diffusers.written(config),
        **{key: kept[key] for key in ("force_upcast", "sample_size") if key in kept},
    }
    class_ = diffusers.classes.get(said.get("_class_name", "")) if said else None
    if said and class_ and class_.packs == packed:
        values = {key: value for key, value in said.items() if key not in (*LATENTS, *ASIDE)}
    if isinstance(format_, ScaleShift):
        values |= {"scaling_factor": format_.scaling_factor, "shift_factor": format_.shift_factor or None}
    elif isinstance(format_, PerChannel):
        values |= {"latents_mean": list(format_.mean), "latents_std": list(format_.std)}
        values["scaling_factor"] = format_.scaling_factor
    elif isinstance(format_, Packed):
        values |= {"batch_norm_eps": format_.eps, "patch_size": [2, 2]}
    if format_ is None or can_mean(kept, format_) or not diffusers.scaled(config):
        values |= {key: kept[key] for key in LATENTS if key in kept}
    allowed = diffusers.classes[values["_class_name"]].kept
    if allowed is None:
        return values
    lacking = [key for key in LATENTS if values.get(key) and key not in allowed]
    if isinstance(format_, PerChannel) and format_.scaling_factor == 1 and "scaling_factor" in lacking:
        lacking.remove("scaling_factor")  # which changes nothing
    if lacking and format_ is not None:
        raise UsageError(
            f"The latents are of the format {format_.name!r}, and {values['_class_name']}'s config.json has no "
            f"{lacking[0]} to say so; --layout ldm writes a single file that does."
        )
    return {key: value for key, value in values.items() if key not in KEPT or key in allowed}


def flax_config(
    config: NetworkConfig,
    format_: LatentFormat | None = None,
    kept: Mapping[str, Any] | None = None,
    said: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the ``config.json`` of diffusers' Flax class says of such a network and its latents; see `diffusers_config`.

    Raises:
        UsageError: the class has no such network, or no field that says how its latents are scaled.
    """
    diffusers = family_of(config).diffusers
    assert diffusers is not None and diffusers.flax is not None
    own = diffusers.flax(config)
    values = diffusers_config(config, format_, kept, said)
    lacking = [key for key in LATENTS if values.get(key) and key != "scaling_factor"]
    if isinstance(format_, Packed) or lacking:
        raise UsageError(
            f"diffusers' {own['_class_name']} has a scaling_factor and nothing else to say how latents are scaled, and "
            f"these have {', '.join(lacking) or 'batch-norm statistics'}; --layout ldm writes a single file that says "
            f"so."
        )
    told = ("sample_size", "scaling_factor")
    more = {key: value for key, value in values.items() if key in told}
    if kept and "force_upcast" in kept:  # of which the class knows nothing, and that of torch does
        more["force_upcast"] = kept["force_upcast"]
    return {"_diffusers_version": values["_diffusers_version"], **own, **more}


def as_original(tensors: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """Tensors under the keys of the original files."""
    family = family_of(config)
    return {family.original(key, config): family.given(config, key, value) for key, value in tensors.items()}


def as_video(
    tensors: Mapping[str, Tensor], config: NetworkConfig, video: Video, layout: Literal["ldm", "diffusers"]
) -> dict[str, Tensor]:
    """All tensors of a video VAE, as a file has them, under the keys of a layout."""
    names = video.named(config, layout)
    return {names[key]: video.shaped(config, key, value).contiguous() for key, value in tensors.items()}


def as_diffusers(tensors: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """Tensors under diffusers' keys and in its shapes, where they can be without a copy."""
    family = family_of(config)
    diffusers = family.diffusers
    assert diffusers is not None
    renamed = {}
    for key, tensor in tensors.items():
        if key.startswith("bn."):
            renamed[key] = tensor
            continue
        if diffusers.linear(key):
            tensor = tensor[:, :, 0, 0].contiguous()
        if names := diffusers.parted(key, config):
            renamed |= {name: part.contiguous() for name, part in zip(names, tensor.chunk(len(names)), strict=True)}
            continue
        name = diffusers.theirs(key, config)
        assert name is not None, key
        renamed[name] = family.given(config, key, tensor)
    return renamed


def statistics(format_: Packed) -> dict[str, Tensor]:
    """FLUX.2's batch-norm buffers, by their keys: two of [4C], and a count."""
    return {
        "bn.running_mean": torch.tensor(format_.running_mean),
        "bn.running_var": torch.tensor(format_.running_var),
        "bn.num_batches_tracked": torch.tensor(0),
    }


def _folder(path: Path, layout: str) -> Path:
    if path.suffix in (*SUFFIXES, *OTHER_SUFFIXES) or path.is_file():
        raise UsageError(f"{path}: the {layout} layout is a folder; give the name of a folder.")
    return path
