"""The autoencoders of Wan and Qwen-Image, for one picture, against diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import assert_close, import_diffusers
from wankit import FULL, VARIANTS, random, theirs

from calotype.families.wan.config import WanConfig
from calotype.families.wan.presets import PRESETS
from calotype.weights.load import load_weights


def agree(ours: Any, module: Any, config: WanConfig, height: int, width: int) -> None:
    """Moments and pictures of so many latents, as diffusers' class has them.

    Its encoder is called without a cache of frames, with which its attention can't be called; the rest is as `_encode`.
    """
    generator = torch.Generator().manual_seed(5)
    f = config.factor
    x = torch.rand(2, config.in_channels, height * f, width * f, generator=generator) * 2 - 1
    z = torch.randn(2, config.z_channels, height, width, generator=generator)
    with torch.inference_mode():
        patches = torch.nn.functional.pixel_unshuffle(x, config.patch)
        if config.patch > 1:  # theirs are column by column
            patches = patches.unflatten(1, (-1, 2, 2)).transpose(2, 3).flatten(1, 3)
        moments = module.quant_conv(module.encoder(patches[:, :, None]))[:, :, 0]
        assert_close(ours.quant_conv(ours.encoder(x)), moments)
        if not config.attn_levels:
            assert torch.equal(module._encode(x[:, :, None])[:, :, 0], moments)
        picture = module.decode(z[:, :, None]).sample[:, :, 0]
        made = ours.decode(z)
        assert (made.abs() > 1).any() or made.numel() < 1000  # theirs is cut off, ours is not
        assert_close(made.clamp(-1, 1), picture)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3), (1, 1)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_agrees_with_diffusers(variant: str, height: int, width: int, tmp_path: Path) -> None:
    module = theirs(variant)
    module.save_pretrained(tmp_path)
    loaded = load_weights(tmp_path)
    config = VARIANTS[variant][2]
    assert loaded.module.config == config
    agree(loaded.module, module, config, height, width)


@pytest.mark.slow
@pytest.mark.parametrize("variant", FULL)
def test_it_agrees_at_full_size(variant: str, tmp_path: Path) -> None:
    name, numbers = FULL[variant]
    module = random(getattr(import_diffusers(), name)(**numbers), 1)
    module.save_pretrained(tmp_path)
    loaded: Any = load_weights(tmp_path)
    if f"{variant}-vae" in PRESETS:
        assert loaded.module.config == PRESETS[f"{variant}-vae"].config
    agree(loaded.module, module, loaded.module.config, 6, 5)
