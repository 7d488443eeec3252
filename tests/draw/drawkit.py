"""Helpers for tests of drawing: tiny networks, a tiny recipe, and a folder of captioned pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from support import fill
from tokenizers import Tokenizer
from torch import Tensor

from calotype.draw.denoiser import Denoiser, DenoiserConfig
from calotype.draw.model import DrawingConfig, DrawingModel
from calotype.draw.recipe import DrawingRecipe
from calotype.draw.text import TextConfig, TextEncoder, make_tokenizer

TEXT = TextConfig(
    vocab_size=160, width=32, depth=2, heads=4, context_length=8, sketch_side=2, sketch_width=48, sketch_inner=40
)
DENOISER = DenoiserConfig(
    in_channels=32, out_channels=16, model_channels=32, channel_mult=(1, 2), num_res_blocks=1,
    attention_resolutions=(2,), num_heads=4, context_dim=32, adm_in_channels=32,
)  # fmt: skip
SIZES = DrawingConfig(denoiser=DENOISER, text=TEXT, size=32, vae="0" * 64, sketch_noise=0.3)
RECIPE = DrawingRecipe(
    name="tiny", size=32, held_out=0.5, word_steps=3, word_batch=4, batch=4, steps=6, warmup=1, cooldown=2, seed=3,
    ema_decay=0.9, log_every=2, checkpoint_every=4,
    denoiser={
        "model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (2,),
        "num_heads": 4,
    },
    text=TEXT.to_dict(),
)  # fmt: skip
PROMPTS = ("red circle", "blue square", "green triangle on white", "yellow star", "grey moon, night")

CAPTIONS: tuple[dict[str, Any], ...] = (
    {"name": "red circle", "synonyms": ["ball", "red disc"], "keywords": ["round", "warm"]},
    {"name": "blue square", "synonyms": ["box"], "keywords": ["corner", "cold", "water"]},
    {"name": "green leaf", "keywords": ["tree", "plant"]},
    {"name": "yellow sun", "synonyms": ["star"]},
)
COLOURS = ("red", "blue", "green", "yellow")


def tokenizer(texts: Iterable[str] = PROMPTS, config: TextConfig = TEXT) -> Tokenizer:
    return make_tokenizer(texts, config)


def denoiser(config: DenoiserConfig = DENOISER, seed: int = 0) -> Denoiser:
    """One with random weights, also those that begin as zeros."""
    module: Denoiser = fill(Denoiser(config), seed)
    return module


def encoder(config: TextConfig = TEXT, seed: int = 0) -> TextEncoder:
    """One with random weights that has learned the tokens of `PROMPTS`."""
    module: TextEncoder = fill(TextEncoder(config, tokenizer(config=config), 16), seed)
    return module


def model(seed: int = 0, **about: Any) -> DrawingModel:
    """A drawing model with random weights."""
    names = [prompt.split(",")[0] for prompt in PROMPTS]
    words = sorted({word for prompt in PROMPTS for word in prompt.replace(",", "").split()})
    module: DrawingModel = fill(DrawingModel(SIZES, tokenizer(), names, words, about), seed)
    return module


def stretched(small: Tensor, height: int, width: int) -> Tensor:
    """[..., s, s] made larger: bilinear, a pixel's value in its middle and the same beyond the outermost ones."""

    def shares(many: int, few: int) -> Tensor:
        at = ((torch.arange(many) + 0.5) * few / many - 0.5).clamp(0, few - 1)
        return (1 - (at[:, None] - torch.arange(few)).abs()).clamp(min=0)

    down, across = (shares(n, small.shape[-1]).to(small) for n in (height, width))
    return torch.einsum("ij,...jk,lk->...il", down, small, across)


def picture(colour: str, size: int = 32) -> Image.Image:
    """A disc of a colour on nothing."""
    y, x = np.mgrid[0:size, 0:size] - (size - 1) / 2
    inside = np.hypot(x, y) < size / 3
    disc = Image.fromarray((inside * 255).astype(np.uint8))
    made = Image.new("RGBA", (size, size), colour)
    made.putalpha(disc)
    return made


def write_lines(folder: Path, lines: Iterable[Any]) -> Path:
    """A folder with captions.jsonl alone; a line is a value or the text itself."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "captions.jsonl").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return folder


def write_data(folder: Path, variants: int = 0) -> Path:
    """A folder with four pictures, captioned, and so many variants of each."""
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for index, (colour, values) in enumerate(zip(COLOURS, CAPTIONS, strict=True)):
        for variant in range(variants + 1):
            code = f"{index}-{variant}" if variant else f"{index}"
            name = f"{values['name']}: {variant}" if variant else values["name"]
            picture(colour, 32 + 8 * variant).save(folder / "pictures" / f"{code}.png")
            lines.append({"file": f"pictures/{code}.png", **values, "name": name, "base": f"{index}"})
    return write_lines(folder, lines)
