"""Configurations in JSON: beside weights, in weights' own metadata, of pipelines, and of drawing models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from drawkit import SIZES, tokenizer
from fuzzkit import Accepted, Case
from safetensors.torch import load_file, save_file
from support import SMALL, diffusers_tensors, fill, kl, tensors_of

import calotype
from calotype.draw.kinds import detect_folder, read_json
from calotype.draw.model import KEY, DrawingModel, load_model, save_model
from calotype.errors import LatentFormatError, WeightsError
from calotype.latents import KNOWN, PerChannel, flux2
from calotype.weights.container import open_container
from calotype.weights.formats import KEPT_FIELDS
from calotype.weights.shards import shards_of

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.30.0",
    "act_fn": "silu",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 3,
    "sample_size": 512,
    "scaling_factor": 0.13025,
    "shift_factor": 0.0,
    "use_quant_conv": True,
}
MEANS = {**CONFIG, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 1.0, 2.0, 0.5], "scaling_factor": 1.0}
INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.30.0",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
UNET = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768, "in_channels": 4, "out_channels": 4}


def told(vae: calotype.VAE) -> Accepted:
    """What a loaded VAE is, and that it works."""
    pixels = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)
    z = vae.encode(pixels).mode()
    try:
        z = vae.latent_format.to_raw(vae.latent_format.to_model(z))
        name = str(vae.latent_format.to_dict())
    except LatentFormatError as error:
        name = str(error)
    vae.loaded.training()
    return Accepted(f"{vae.config} {name} {vae.decode(z).sum():.3f}")


def beside(folder: Path, name: str, weights: dict[str, Any]) -> Callable[[Path], Accepted]:
    """A folder of weights, whose config.json (or the like) is what is read."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)

    def read(path: Path) -> Accepted:
        place.write_bytes(path.read_bytes())
        return told(calotype.load(folder, device="cpu"))

    return read


def inside(target: Path, weights: dict[str, Any], key: str, **others: str) -> Callable[[Path], Accepted]:
    """A file of weights, of whose metadata one value is what is read."""

    def read(path: Path) -> Accepted:
        text = path.read_bytes().decode("utf-8", "replace")
        save_file(weights, target, {"format": "pt", **others, key: text})
        return told(calotype.load(target, device="cpu"))

    return read


def of_shards(folder: Path, weights: dict[str, Any]) -> tuple[bytes, Callable[[Path], Accepted]]:
    names = [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    folder.mkdir(parents=True, exist_ok=True)
    keys = sorted(weights)
    halves = [keys[::2], keys[1::2]]
    for name, half in zip(names, halves, strict=True):
        save_file({key: weights[key] for key in half}, folder / name)
    table = {key: name for name, half in zip(names, halves, strict=True) for key in half[:3]}
    place = folder / "model.safetensors.index.json"

    def read(path: Path) -> Accepted:
        place.write_bytes(path.read_bytes())
        return Accepted(str(shards_of(place)))

    return json.dumps({"metadata": {"total_size": 1}, "weight_map": table}).encode(), read


def pipeline(folder: Path, name: str) -> Callable[[Path], Accepted]:
    """The folder of a pipeline, one of whose configurations is what is read."""
    for place, values in (("model_index.json", INDEX), ("unet/config.json", UNET), ("vae/config.json", CONFIG)):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(json.dumps(values))

    def read(path: Path) -> Accepted:
        from calotype.draw.assemble import _own_format

        (folder / name).write_bytes(path.read_bytes())
        try:
            found = detect_folder(folder)
            return Accepted(f"{found} {_own_format(read_json(folder / 'vae' / 'config.json'), found)}")
        except WeightsError as error:  # as `load_checkpoint` says it
            raise WeightsError(f"{folder}: {error}.") from None

    return read


def drawing(folder: Path) -> tuple[bytes, Callable[[Path], Accepted]]:
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "drawing.safetensors"
    save_model(fill(DrawingModel(SIZES, tokenizer(), ["a"], ["b"], {"steps": 1}), 0), whole)
    tensors, target = load_file(whole), folder / "mutant.safetensors"

    def read(path: Path) -> Accepted:
        save_file(tensors, target, {KEY: path.read_bytes().decode("utf-8", "replace")})
        model = load_model(target)
        return Accepted(f"{model.config} {model.names} {model.words} {model.about}")

    return open_container(whole).metadata[KEY].encode(), read


def cases(folder: Path) -> list[Case]:
    small = kl(SMALL)
    ours, theirs = tensors_of(small), diffusers_tensors(small)
    shift, means = KNOWN["sd1"], PerChannel(name="m", channels=4, mean=(0.0,) * 4, std=(1.0, 2.0, 3.0, 4.0))
    packed = flux2((0.1,) * 16, (1.0,) * 16)
    own = json.dumps(SMALL.to_dict())
    made = [
        ("config.json", CONFIG, beside(folder / "a", "config.json", theirs)),
        ("means.json", MEANS, beside(folder / "b", "config.json", theirs)),
        ("model_index.json", INDEX, beside(folder / "c", "model_index.json", theirs)),
        ("own.json", SMALL.to_dict(), inside(folder / "own.safetensors", ours, "calotype_config")),
        *(
            (
                f"{form.kind}.json",
                form.to_dict(),
                inside(folder / f"{form.kind}.safetensors", ours, "calotype_latent_format", calotype_config=own),
            )
            for form in (shift, means, packed)
        ),
        ("kept.json", MEANS, inside(folder / "kept.safetensors", ours, KEPT_FIELDS, calotype_config=own)),
        ("pipeline.json", INDEX, pipeline(folder / "d", "model_index.json")),
        ("unet.json", UNET, pipeline(folder / "e", "unet/config.json")),
        ("vae.json", MEANS, pipeline(folder / "f", "vae/config.json")),
    ]
    found = [Case(name, json.dumps(values, indent=2).encode(), read, text=True) for name, values, read in made]
    for name, (content, read) in (("shards.json", of_shards(folder / "g", ours)), ("head.json", drawing(folder / "h"))):
        found.append(Case(name, content, read, text=True))
    return found
