"""Programs: what they compute is what the plain networks have, key by key and product by product."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from enginekit import CONFIGS
from torch import nn

from calotype.families import make_network, program
from calotype.families.dcae.config import DcaeConfig
from calotype.families.face import NetworkConfig
from calotype.families.folded.config import FoldedConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.taehv.config import TaehvConfig
from calotype.families.tiny.config import TinyConfig
from calotype.families.vq.presets import MOVQ, VQ_F4
from calotype.families.wan.config import WanConfig
from calotype.steps import Attention, Conv, Direction, Fold, Gated, Norm, Quantized, Scales, SpatialNorm

ALL = {
    **CONFIGS,
    "sd": AutoencoderConfig(),
    "flux2-small-decoder": AutoencoderConfig(z_channels=32, decoder_ch=96),
    "kl-f16": AutoencoderConfig(ch_mult=(1, 1, 2, 2, 4), z_channels=16, attn_levels=(4,)),
    "builtin": FoldedConfig(),
    "sana": DcaeConfig(),
    "vq-f4": VQ_F4,
    "kandinsky": MOVQ,
    "taew2_2": TaehvConfig(z_channels=48),
    "taeqi2_1": TinyConfig(z_channels=64, in_channels=4, variant="f16"),
    "taesana": TinyConfig(z_channels=32, variant="f32"),
    "deeper-decoder": AutoencoderConfig(decoder_ch=192, decoder_num_res_blocks=3),
    "larger-pictures": WanConfig(enlarges=2),
}


@cache
def on_meta(config: NetworkConfig) -> Any:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return make_network(config)


def keys(config: NetworkConfig, direction: Direction) -> list[str]:
    """Every key that a program reads, as often as it does."""
    found: list[str] = []
    for step in program(config, direction).steps:
        if norm := getattr(step, "norm", None):
            bias = isinstance(norm, Norm) or norm.bias
            found += [f"{norm.weights}.weight"] + ([f"{norm.weights}.bias"] if bias else [])
        if isinstance(step, Attention):
            parts = ("qkv", "proj_out") if step.fused else ("q", "k", "v", "proj_out")
            found += [f"{step.weights}.{x}.{y}" for x in parts for y in ("weight", "bias")]
        elif isinstance(step, Gated):
            found += [f"{step.weights}.{leaf}" for leaf in ("weight", "bias")]
        elif isinstance(step, Quantized):
            found.append(step.weights)
        elif isinstance(step, SpatialNorm):
            found += [f"{step.weights}.{x}.{y}" for x in ("conv_y", "conv_b") for y in ("weight", "bias")]
        elif isinstance(step, Scales):
            found += [f"{step.weights}.{i}.{j}.weight" for i in range(len(step.kernels)) for j in (0, 1)]
        elif isinstance(step, Conv):
            if step.batch:
                leaves = ("weight", "bias", "running_mean", "running_var")
                found += [f"{step.batch.weights}.{leaf}" for leaf in leaves]
            found += [f"{step.weights}.weight"] + ([f"{step.weights}.bias"] if step.bias else [])
    return found


@pytest.mark.parametrize("name", ALL)
def test_every_weight_is_used_once(name: str) -> None:
    module = on_meta(ALL[name])
    used = Counter(keys(ALL[name], "encode") + keys(ALL[name], "decode"))
    unread = "" if getattr(ALL[name], "quantize", True) else "quantize.embedding.weight"
    assert set(used) == {k for k in module.state_dict() if not k.endswith("num_batches_tracked") and k != unread}
    # of several frames the same weights make each
    assert set(used.values()) <= ({1, 2} if isinstance(ALL[name], TaehvConfig) else {1})
    for key in keys(ALL[name], "encode"):
        assert key.startswith(("encoder.", "quant_conv."))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_steps_have_the_shapes_of_the_weights(name: str, direction: Direction) -> None:
    state = on_meta(ALL[name]).state_dict()
    before = set()
    for step in program(ALL[name], direction).steps:
        residual = None if isinstance(step, Attention) else step.residual
        guide = getattr(step, "guide", None)
        maps = [step.source, *(one for one in (residual, guide) if one)]
        assert all(one.name in before or not before for one in maps)
        assert step.target.name not in before
        before |= {one.name for one in maps} | {step.target.name}
        if isinstance(step, Conv):
            n, k, *taps = state[f"{step.weights}.weight"].shape
            assert n == step.target.channels
            assert k * (taps[0] * taps[1] if taps else 1) == step.source.channels * step.kernel**2
        if residual:
            assert (residual.channels, residual.factor) == (step.target.channels, step.target.factor)
        if isinstance(step, Quantized):
            assert state[step.weights].shape == (step.entries, step.source.channels)
            assert step.source.channels == step.target.channels
        if isinstance(step, SpatialNorm):
            for part in ("conv_y", "conv_b"):
                assert state[f"{step.weights}.{part}.weight"].shape[:2] == (step.source.channels, step.guide.channels)
            assert step.repeat * step.source.factor == step.guide.factor
        if isinstance(step, Gated):
            assert state[f"{step.weights}.weight"].shape == (step.source.channels, 1, step.kernel, step.kernel)
            assert step.target.channels == step.source.channels // 2
        if isinstance(step, Scales):
            for i, kernel in enumerate(step.kernels):
                assert state[f"{step.weights}.{i}.0.weight"].shape == (step.source.channels, 1, kernel, kernel)
                assert state[f"{step.weights}.{i}.1.weight"].shape == (step.source.channels, step.group, 1, 1)
        if not isinstance(step, Fold) and getattr(step, "norm", None):
            assert state[f"{step.norm.weights}.weight"].shape == (step.source.channels,)


@pytest.mark.parametrize("name", ALL)
def test_steps_are_the_plain_networks_layers(name: str) -> None:
    """Norms, strides and padding, where the plain module says them."""
    modules = dict(on_meta(ALL[name]).named_modules())
    for direction in ("encode", "decode"):
        for step in program(ALL[name], direction).steps:
            if isinstance(step, Conv | Attention | SpatialNorm) and step.norm:
                norm: Any = modules[step.norm.weights]
                assert hasattr(norm, "num_groups") == isinstance(step.norm, Norm)
            if isinstance(step, Conv | Attention | SpatialNorm) and isinstance(step.norm, Norm):
                assert (norm.num_groups, norm.eps) == (step.norm.groups, step.norm.eps)
            if isinstance(step, Conv) and not step.weights.endswith("encoder.down"):
                conv: Any = modules[step.weights]
                assert conv.stride == ((2, 2) if step.resample == "down" else (1, 1))
                assert conv.padding == (step.pad, step.pad)


def counted(module: nn.Module, x: torch.Tensor, direction: Direction) -> int:
    """Operations of all convolutions, and of attention's two products, in the plain network."""
    total = 0

    def convolution(conv: Any, given: Any, result: torch.Tensor) -> None:
        nonlocal total
        total += 2 * result.numel() * conv.weight[0].numel()

    def attention(block: Any, given: Any, result: torch.Tensor) -> None:
        nonlocal total
        n, c = result.shape[2] * result.shape[3], result.shape[1]
        total += 2 * (2 * n * n * c)

    def linear_attention(proj: Any, given: Any, result: torch.Tensor) -> None:
        nonlocal total
        total += 2 * (2 * head_dim + 1) * given[0].numel()  # values with keys, both with queries

    def codebook(child: Any, given: Any, result: torch.Tensor) -> None:
        nonlocal total
        total += 2 * given[0].numel() * len(child.embedding.weight)

    head_dim = getattr(module.config, "head_dim", 0)
    hooks = []
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            hooks.append(child.register_forward_hook(convolution))
        elif type(child).__name__ == "Codebook":
            hooks.append(child.register_forward_hook(codebook))
        elif type(child).__name__ == "LinearAttention":
            hooks.append(child.proj.register_forward_hook(linear_attention))
        elif type(child).__name__ == "AttnBlock" and hasattr(child, "proj_out"):
            hooks.append(child.register_forward_hook(attention))
    run: Any = module.encode if direction == "encode" else module.decode
    run(x)
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("name", ALL)
def test_operations_are_those_of_the_plain_network(name: str, direction: Direction) -> None:
    config = ALL[name]
    steps = program(config, direction)
    f = max(steps.source.factor, steps.target.factor)
    shape = (1, config.picture_channels, 5 * f, 3 * f) if direction == "encode" else (1, config.z_channels, 5, 3)
    expected = counted(on_meta(config), torch.empty(shape, device="meta"), direction)
    assert steps.flops(5 * f, 3 * f) == expected


def test_a_picture_of_stable_diffusion() -> None:
    decoder, encoder = (program(AutoencoderConfig(), direction) for direction in ("decode", "encode"))
    assert decoder.flops(512, 512) == 2_514_518_933_504  # 2.5 TFLOP
    assert encoder.flops(512, 512) == 1_116_658_466_816
    assert (decoder.source.name, decoder.target.channels, decoder.target.factor) == ("latents", 3, 1)
    assert (encoder.source.name, encoder.target.channels, encoder.target.factor) == ("pixels", 8, 8)
    assert decoder.source.size(512, 768) == (64, 96)
    assert decoder.source.values(512, 768) == 4 * 64 * 96


@pytest.mark.parametrize("config", [AutoencoderConfig(), TinyConfig(pool=True), FoldedConfig(), DcaeConfig(), MOVQ])
def test_steps_can_be_read(config: NetworkConfig) -> None:
    for direction in ("encode", "decode"):
        for step in program(config, direction).steps:
            assert str(step)
            assert "Map(" not in str(step)
            assert "\n" not in str(step)


def test_what_steps_say() -> None:
    decoder = {step.target.name: str(step) for step in program(AutoencoderConfig(), "decode").steps}
    assert decoder["post_quant_conv"] == "conv 1x1"
    assert decoder["decoder.mid.block_1.conv2"] == "GroupNorm(32), silu, conv 3x3, + decoder.conv_in"
    assert decoder["decoder.mid.attn_1"] == ("GroupNorm(32), attention over all positions, + decoder.mid.block_1.conv2")
    assert decoder["decoder.up.1.upsample.conv"] == "nearest x2, conv 3x3"
    encoder = {step.target.name: str(step) for step in program(TinyConfig(), "encode").steps}
    assert encoder["encoder.2"] == "conv 3x3 /2"
    assert encoder["encoder.1.conv.4"] == "relu, conv 3x3, + encoder.0, relu"
    folded = [str(step) for step in program(FoldedConfig(), "decode").steps]
    assert folded[-1] == "pixel shuffle 4x4"
    assert str(program(FoldedConfig(), "encode").steps[0]) == "pixel unshuffle 4x4"
    movq = {step.target.name: str(step) for step in program(MOVQ, "decode").steps}
    assert movq["quantize"] == "the nearest of 16384 vectors"
    assert movq["decoder.mid.block_1.norm1"] == "GroupNorm(32) scaled and shifted by quantize, silu"
    assert movq["decoder.mid.attn_1.norm"] == "GroupNorm(32) scaled and shifted by quantize"
    assert movq["decoder.mid.attn_1"] == "attention over all positions"
    assert movq["decoder.mid.attn_1.sum"] == "+ decoder.mid.block_1.conv2"
