"""Recipes of both trainings in TOML, and what --set changes of them; edits of channels in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from fuzzkit import Accepted, Case

from calotype.draw.recipe import is_drawing_recipe, load_drawing_recipe
from calotype.edit.channels import read_edits
from calotype.train.recipe import load_recipe

EDITS = """\
{"edits": [{"do": "shift", "channel": 3, "by": 0.5}, {"do": "swap", "channel": 1, "with": 2}, {"do": "copy"},
 {"do": "noise", "by": 1, "seed": 7}, {"do": "set", "channel": 0, "value": -2.5, "cells": [[1, 2], [3, 4]]}]}
"""
ALL = """\
name = "all"
crop = 64
rule = "resized"
zoom = 1.5
batch = 4
accumulate = 2
steps = 40
seed = 7
reconstruction = "charbonnier"
perceptual = 0.5
kl_weight = 1e-6
betas = [0.9, 0.95]
learning_rate = 1e-3
ema_decay = 0.99
channels_last = true
keep = 2

[network]
kind = "autoencoder_kl"
ch = 32
ch_mult = [1, 2]
num_res_blocks = 1
z_channels = 4
attn_levels = [1]
norm_groups = 8

[[sources]]
path = "photos"
repeat = 2
hold_out = 10

[[sources]]
path = "emoji"

[start]
weights = "builtin"
train = "all"

[adversarial]
start = 10
warm_up = 5
layers = 1
weight = 0.5

[equivariance]
probability = 0.5
low = 0.5

[alignment]
weight = 0.1
margins = [0.25, 0.5]

[activation_range]
limit = 1000.0

[[phases]]
start = 20
crop = 64
batch = 2
"""
OTHERS = {
    "dense": 'kind = "dense"\nside = 32\nhidden = [64, 16]\nz_channels = 8\nvariational = true\n',
    "conv": 'kind = "conv"\nch = 16\nch_mult = [1, 2]\nnum_blocks = 1\nz_channels = 4\nresidual = true\n',
    "folded": 'kind = "folded"\nch = [32, 64]\nencoder_blocks = [1, 1]\ndecoder_blocks = [1, 1]\nz_channels = 8\n',
    "taesd": 'kind = "taesd"\nz_channels = 4\npool = false\n',
}
DRAWING = """\
name = "mine"
vae = "builtin"
size = 64
held_out = 0.1
batch = 8
steps = 100
warmup = 10
muon_rate = 0.01
time_mean = -0.5
seed = 3

[denoiser]
model_channels = 64
channel_mult = [1, 2]
num_res_blocks = 1
attention_resolutions = [2]
num_heads = 4

[text]
vocab_size = 512
width = 64
depth = 2
heads = 4
"""


def trained(path: Path, settings: list[str]) -> Accepted:
    recipe = load_recipe(path, settings)
    for step in (0, recipe.steps - 1):
        recipe.at(step)
    is_drawing_recipe(str(path))
    return Accepted(json.dumps([recipe.to_dict(), sorted(recipe.crops()), recipe.network.factor], allow_nan=False))


def drawn(path: Path, settings: list[str]) -> Accepted:
    assert is_drawing_recipe(str(path)) or not settings
    recipe = load_drawing_recipe(str(path), settings)
    sizes = recipe.denoiser_config(16), recipe.text_config()
    rates = [recipe.rate(0), recipe.word_share(0), recipe.rate(recipe.steps)]
    return Accepted(json.dumps([recipe.to_dict(), *(one.to_dict() for one in sizes), rates], allow_nan=False))


def setting(whole: Path, read: Callable[[Path, list[str]], Accepted]) -> Callable[[Path], Accepted]:
    """Reads what a command line gives."""

    def changed(path: Path) -> Accepted:
        return read(whole, [path.read_bytes().decode("utf-8", "surrogateescape")])

    return changed


def edits(path: Path) -> Accepted:
    return Accepted(repr(read_edits(path)))


def cases(folder: Path) -> list[Case]:
    folder.mkdir(parents=True, exist_ok=True)
    whole, drawing = folder / "whole.toml", folder / "drawing.toml"
    whole.write_text(ALL)
    drawing.write_text(DRAWING)
    short = 'name = "{}"\ncrop = 32\n\n[network]\n{}\n[[sources]]\npath = "photos"\n'
    made = [
        ("all.toml", ALL, lambda path: trained(path, [])),
        *((f"{name}.toml", short.format(name, text), lambda path: trained(path, [])) for name, text in OTHERS.items()),
        ("drawing.toml", DRAWING, lambda path: drawn(path, [])),
        ("edits.json", EDITS, edits),
        *((f"set{i}", text, setting(whole, trained)) for i, text in enumerate(("sources.0.repeat=2", "network.ch=64"))),
        *(
            (f"draw{i}", text, setting(drawing, drawn))
            for i, text in enumerate(("denoiser.channel_mult=[1, 2, 2]", "size=48", 'name="other"'))
        ),
    ]
    return [Case(name, text.encode(), read, text=True) for name, text, read in made]
