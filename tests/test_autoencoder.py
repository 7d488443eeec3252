"""AutoencoderKL against diffusers, with random weights that went through a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import SMALL, assert_close, fill, import_diffusers, kl, pictures
from torch import Tensor

from calotype.families.kl.config import AutoencoderConfig
from calotype.families.kl.network import AutoencoderKL
from calotype.latents import Packed
from calotype.weights.load import Loaded, load_weights


def reference(config: AutoencoderConfig, seed: int, **options: Any) -> Any:
    """diffusers' network of the same configuration, with random weights."""
    diffusers = import_diffusers()
    levels = range(len(config.ch_mult))
    flux2 = options.pop("flux2", False)
    if config.decoder_ch is not None:
        options["decoder_block_out_channels"] = config.decoder_channels
    return fill(
        (diffusers.AutoencoderKLFlux2 if flux2 else diffusers.AutoencoderKL)(
            block_out_channels=config.channels,
            down_block_types=[
                "AttnDownEncoderBlock2D" if i in config.attn_levels else "DownEncoderBlock2D" for i in levels
            ],
            up_block_types=[
                "AttnUpDecoderBlock2D" if i in config.attn_levels else "UpDecoderBlock2D" for i in reversed(levels)
            ],
            layers_per_block=config.num_res_blocks,
            latent_channels=config.z_channels,
            norm_num_groups=config.norm_groups,
            mid_block_add_attention=config.mid_attention,
            use_quant_conv=config.quant_conv,
            use_post_quant_conv=config.quant_conv,
            **options,
        ),
        seed,
    )


def check_parity(theirs: Any, ours: AutoencoderKL, sizes: tuple[tuple[int, int], ...], seed: int) -> None:
    config = ours.config
    for height, width in sizes:
        x = pictures(seed, 2, height, width)
        h, w = height // config.factor, width // config.factor
        z = torch.randn(2, config.z_channels, h, w, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            expected = theirs.encode(x).latent_dist
            posterior = ours.encode(x)
            assert posterior.moments.shape == (2, 2 * config.z_channels, h, w)
            assert_close(posterior.moments, expected.parameters)
            assert_close(posterior.std, expected.std)
            assert_close(ours.decode(z), theirs.decode(z).sample)


def through_a_folder(theirs: Any, folder: Path) -> Loaded:
    theirs.save_pretrained(folder)
    return load_weights(folder)


CONFIGS = {
    "sd": AutoencoderConfig(),
    "sd3": AutoencoderConfig(z_channels=16, quant_conv=False),
    "flux2": AutoencoderConfig(z_channels=32),
    "flux2-small-decoder": AutoencoderConfig(z_channels=32, decoder_ch=96),
    "kl-f4": AutoencoderConfig(ch_mult=(1, 2, 4), z_channels=3),
    "kl-f16": AutoencoderConfig(ch_mult=(1, 1, 2, 2, 4), z_channels=16, attn_levels=(4,)),
    "no-mid-attention": AutoencoderConfig(mid_attention=False),
    "odd": AutoencoderConfig(ch=32, ch_mult=(1, 3), num_res_blocks=1, norm_groups=8, z_channels=5),
    "attention-at-two-levels": AutoencoderConfig(ch_mult=(1, 2, 2), attn_levels=(1, 2)),
    "one-level": AutoencoderConfig(ch_mult=(1,), num_res_blocks=1),
}


def narrow(config: AutoencoderConfig) -> AutoencoderConfig:
    """The same at an eighth of the width, with norms in 8 groups, which only config.json can tell."""
    decoder_ch = None if config.decoder_ch is None else config.decoder_ch // 4
    return replace(config, ch=config.ch // 8, decoder_ch=decoder_ch, norm_groups=8)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CONFIGS)
def test_narrow_networks_agree_with_diffusers(name: str, seed: int, tmp_path: Path) -> None:
    config = CONFIGS[name] if name == "odd" else narrow(CONFIGS[name])
    theirs = reference(config, seed, flux2=name.startswith("flux2"))
    loaded = through_a_folder(theirs, tmp_path)
    assert loaded.layout == "diffusers"
    assert loaded.module.config == config
    assert loaded.parts == {"encoder", "decoder"}
    assert isinstance(loaded.module, AutoencoderKL)
    rows, columns = ((4, 4), (5, 3), (3, 6))[seed]
    check_parity(theirs, loaded.module, ((rows * config.factor, columns * config.factor),), seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "flux2-small-decoder", "kl-f4", "kl-f16"])
def test_networks_of_full_width_agree_with_diffusers(name: str, tmp_path: Path) -> None:
    """Of every width; what else differs is in narrow ones too."""
    config = CONFIGS[name]
    theirs = reference(config, 1, flux2=name.startswith("flux2"))
    loaded = through_a_folder(theirs, tmp_path)
    assert loaded.module.config == config
    assert isinstance(loaded.module, AutoencoderKL)
    check_parity(theirs, loaded.module, ((80, 48),), 1)


@pytest.mark.slow
def test_sdxl_is_the_network_of_sd_with_another_scale(tmp_path: Path) -> None:
    config = narrow(CONFIGS["sd"])
    theirs = reference(config, 2, scaling_factor=0.13025, force_upcast=True)
    loaded = through_a_folder(theirs, tmp_path)
    assert loaded.module.config == config
    assert loaded.format is not None
    assert loaded.format.name == "sdxl"
    assert isinstance(loaded.module, AutoencoderKL)
    check_parity(theirs, loaded.module, ((32, 24),), 2)


def test_flux2_brings_its_statistics(tmp_path: Path) -> None:
    theirs = reference(narrow(CONFIGS["flux2"]), 0, flux2=True)
    theirs.bn.running_mean.normal_()
    theirs.bn.running_var.uniform_(0.5, 2)
    loaded = through_a_folder(theirs, tmp_path)
    assert isinstance(loaded.format, Packed)
    assert torch.equal(torch.tensor(loaded.format.running_mean), theirs.bn.running_mean)
    assert torch.equal(torch.tensor(loaded.format.running_var), theirs.bn.running_var)


def count(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_the_parameters_of_stable_diffusion_are_counted() -> None:
    with torch.device("meta"):
        module = AutoencoderKL(AutoencoderConfig())
    assert count(module.encoder) == 34_163_592
    assert count(module.quant_conv) == 72
    assert count(module.decoder) == 49_490_179
    assert count(module.post_quant_conv) == 20
    assert count(module) == 83_653_863
    # biases and all, tensor by tensor: 53 + 1 weighted modules on the way in, 69 + 1 on the way out
    assert len(module.state_dict()) == 108 + 140


def test_every_norm_has_an_epsilon_of_a_millionth() -> None:
    with torch.device("meta"):
        module = AutoencoderKL(AutoencoderConfig(attn_levels=(3,)))
    norms = [child for child in module.modules() if isinstance(child, torch.nn.GroupNorm)]
    assert {norm.eps for norm in norms} == {1e-6}
    assert {norm.num_groups for norm in norms} == {32}
    # a tiny signal is where 1e-6 and 1e-5 part
    theirs = reference(SMALL, 0)
    x = 1e-3 * torch.randn(1, SMALL.channels[0], 8, 8)
    block = kl(SMALL).encoder.down[0].block[0]
    block.load_state_dict(theirs.encoder.down_blocks[0].resnets[0].state_dict())
    assert torch.allclose(block(x), theirs.encoder.down_blocks[0].resnets[0](x, None), rtol=1e-5, atol=1e-7)


def test_downsampling_pads_on_the_right_and_at_the_bottom_only() -> None:
    conv = kl(SMALL).encoder.down[0].downsample.conv
    conv.weight.zero_()
    conv.bias.zero_()
    conv.weight[0, 0, 0, 0] = 1.0  # looks at the top left of each window
    x = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 8, 4, 4)
    result = kl(SMALL).encoder.down[0].downsample
    result.conv = conv
    assert result(x)[0, 0].tolist() == [[0.0, 2.0], [8.0, 10.0]]
    conv.weight.zero_()
    conv.weight[0, 0, 2, 2] = 1.0  # and the bottom right, which is padding at the end
    assert result(x)[0, 0].tolist() == [[10.0, 0.0], [0.0, 0.0]]


def test_the_last_level_keeps_its_size() -> None:
    module = kl()
    assert not hasattr(module.encoder.down[-1], "downsample")
    assert not hasattr(module.decoder.up[0], "upsample")


@pytest.mark.parametrize("part", ["mid.attn_1", "down.3.attn.0"])
def test_attention_is_a_softmax_over_all_positions_divided_by_the_root_of_the_channels(part: str) -> None:
    config = AutoencoderConfig(ch=8, ch_mult=(1, 1, 1, 2), norm_groups=4, attn_levels=(3,), num_res_blocks=1)
    block: Any = kl(config).encoder.get_submodule(part)
    x = torch.randn(2, 16, 3, 5)

    def project(conv: torch.nn.Conv2d, values: Tensor) -> Tensor:
        return torch.einsum("oc,ncp->nop", conv.weight[:, :, 0, 0], values) + conv.bias[None, :, None]  # type: ignore[index]

    h = block.norm(x).reshape(2, 16, 15)
    q, k, v = (project(conv, h) for conv in (block.q, block.k, block.v))
    weights = torch.softmax(torch.einsum("ncp,ncq->npq", q, k) / 16**0.5, dim=-1)
    expected = x + project(block.proj_out, torch.einsum("npq,ncq->ncp", weights, v)).reshape(x.shape)
    assert_close(block(x), expected, 1e-5)


def test_gradients_reach_every_parameter() -> None:
    module = kl(AutoencoderConfig(ch=8, ch_mult=(1, 2), norm_groups=4, attn_levels=(1,), num_res_blocks=1))
    module.requires_grad_(True)
    posterior = module.encode(pictures(0, 1, 16, 16))
    result = module.decode(posterior.sample())
    (result.square().sum() + posterior.kl().sum()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        # k's bias shifts every logit of a softmax alike, so nothing depends on it
        assert name.endswith(".k.bias") or parameter.grad.abs().max() > 0, name


def test_decode_leaves_its_latents_alone() -> None:
    z = torch.randn(1, 4, 4, 4)
    before = z.clone()
    kl(SMALL).decode(z)
    assert torch.equal(z, before)
