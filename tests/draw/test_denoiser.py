"""The denoiser, against diffusers' network with the same weights, and what its output depends on."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from drawkit import DENOISER, denoiser
from support import assert_close, import_diffusers, one_sentence
from torch import Tensor, nn

from calotype.draw.denoiser import SD1, Denoiser, DenoiserConfig, timestep_embedding
from calotype.errors import UsageError

NARROW_SD1 = dataclasses.replace(SD1, model_channels=32, context_dim=24)
NARROW = dataclasses.replace(DENOISER, channel_mult=(1, 2, 3), attention_resolutions=(2, 4), context_dim=48)
RES = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip


def diffusers_key(key: str, config: DenoiserConfig) -> str:
    """Latent diffusion's name of a tensor -> diffusers'."""
    names = {
        "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "class_embedding.linear_1", "label_emb.0.2": "class_embedding.linear_2",
        "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
    }  # fmt: skip
    module, leaf = key.rsplit(".", 1)
    if module in names:
        return f"{names[module]}.{leaf}"
    block, rest = key.split(".", 1)
    blocks = config.num_res_blocks + 1
    if block == "middle_block":
        place, rest = rest.split(".", 1)
        at = {"0": "mid_block.resnets.0", "1": "mid_block.attentions.0", "2": "mid_block.resnets.1"}[place]
    else:
        number, place, rest = rest.split(".", 2)
        if block == "input_blocks":
            level, index = divmod(int(number) - 1, blocks)
            if rest.startswith("op."):
                return f"down_blocks.{level}.downsamplers.0.conv.{leaf}"
            at = f"down_blocks.{level}"
        else:
            level, index = divmod(int(number), blocks)
            if rest.startswith("conv."):
                return f"up_blocks.{level}.upsamplers.0.conv.{leaf}"
            at = f"up_blocks.{level}"
        at += f".{'attentions' if place == '1' else 'resnets'}.{index}"
    for old, new in RES.items():
        if rest.startswith(f"{old}."):
            rest = f"{new}.{leaf}"
    return f"{at}.{rest}"


def of_diffusers(module: Denoiser) -> Any:
    """Diffusers' network of the same sizes, with the same weights; every tensor of both is used."""
    config = module.config
    levels = range(len(config.channel_mult))
    attends = [2**level in config.attention_resolutions for level in levels]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = import_diffusers().UNet2DConditionModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            block_out_channels=[config.model_channels * mult for mult in config.channel_mult],
            layers_per_block=config.num_res_blocks,
            down_block_types=["CrossAttnDownBlock2D" if attends[level] else "DownBlock2D" for level in levels],
            up_block_types=["CrossAttnUpBlock2D" if attends[level] else "UpBlock2D" for level in reversed(levels)],
            attention_head_dim=config.num_heads,  # their name for the number of heads
            cross_attention_dim=config.context_dim,
            class_embed_type="projection" if config.adm_in_channels else None,
            projection_class_embeddings_input_dim=config.adm_in_channels or None,
        )
    tensors = module.state_dict()
    mapped = {diffusers_key(key, config): value for key, value in tensors.items()}
    assert len(mapped) == len(tensors)
    other.load_state_dict(mapped, strict=True)
    return other.eval()


def given(config: DenoiserConfig, seed: int = 0, rows: int = 3) -> dict[str, Tensor]:
    """What a forward pass takes."""
    generator = torch.Generator().manual_seed(seed)
    side = 2 * config.factor

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    mask = torch.arange(5) < torch.tensor([[5], [2], [1]])[:rows]
    return {
        "x": normal(rows, config.in_channels, side, side + config.factor),
        "t": torch.tensor([999.0, 250.5, 0.0])[:rows],
        "context": normal(rows, 5, config.context_dim),
        "mask": mask,
        **({"y": normal(rows, config.adm_in_channels)} if config.adm_in_channels else {}),
    }


@pytest.fixture(scope="module", params=[NARROW_SD1, NARROW], ids=["sd1", "two kinds of levels, y"])
def pair(request: pytest.FixtureRequest) -> tuple[Denoiser, Any]:
    """Our network and diffusers'."""
    module = denoiser(request.param)
    return module, of_diffusers(module)


@pytest.mark.slow
@torch.no_grad()
def test_as_diffusers(pair: tuple[Denoiser, Any]) -> None:
    ours, theirs = pair
    values = given(ours.config)
    for mask in (None, values["mask"]):
        expected = theirs(
            values["x"], values["t"], values["context"], encoder_attention_mask=mask, class_labels=values.get("y")
        ).sample
        made = ours(**{**values, "mask": mask})
        assert_close(made, expected, 1e-4)


def test_norms_as_diffusers(pair: tuple[Denoiser, Any]) -> None:
    """What is added to variances is too little to be seen in outputs."""
    ours, theirs = pair
    of_theirs = dict(theirs.named_modules())
    norms = {name: one for name, one in ours.named_modules() if isinstance(one, (nn.GroupNorm, nn.LayerNorm))}
    assert len(norms) > 20
    for name, one in norms.items():
        other = of_theirs[diffusers_key(f"{name}.weight", ours.config).removesuffix(".weight")]
        assert isinstance(one, type(other))
        assert one.eps == other.eps


def test_stable_diffusions_sizes() -> None:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in Denoiser(SD1).state_dict().items()}
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 859_520_964
    assert len(shapes) == 686
    # some of v1-5-pruned's
    assert shapes["input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"] == (320, 768)
    assert shapes["input_blocks.4.0.skip_connection.weight"] == (640, 320, 1, 1)
    assert shapes["input_blocks.9.0.op.weight"] == (1280, 1280, 3, 3)
    assert shapes["middle_block.1.transformer_blocks.0.ff.net.0.proj.weight"] == (10240, 1280)
    assert shapes["output_blocks.2.1.conv.weight"] == (1280, 1280, 3, 3)
    assert shapes["output_blocks.5.2.conv.weight"] == (1280, 1280, 3, 3)
    assert shapes["output_blocks.9.0.in_layers.0.weight"] == (960,)
    assert shapes["output_blocks.11.1.transformer_blocks.0.attn1.to_out.0.bias"] == (320,)


def test_times_by_hand() -> None:
    """Width 4: cosines, then sines, of t and of t / 100."""
    made = timestep_embedding(torch.tensor([0.0, 50.0]), 4)
    expected = torch.tensor([[1, 1, 0, 0], [0.9649660, 0.8775826, -0.2623749, 0.4794255]])
    torch.testing.assert_close(made, expected, atol=2e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["x", "t", "context", "y"])
def test_output_depends_on(name: str) -> None:
    """A row's output changes with its own value, and that of the others does not."""
    module, values = denoiser(), given(DENOISER)
    before = module(**values)
    changed = values[name].clone()
    changed[0] = changed[0] * 0.7 + 0.1
    after = module(**{**values, name: changed})
    assert (after[0] - before[0]).abs().max() > 0.01
    torch.testing.assert_close(after[1:], before[1:], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    module, values = denoiser(), given(DENOISER)
    garbage = values["context"].clone()
    garbage[~values["mask"]] = 100.0
    made = module(**{**values, "context": garbage})
    for row, tokens in enumerate((5, 2, 1)):
        short = {key: value[row : row + 1] for key, value in values.items()}
        short = {**short, "context": short["context"][:, :tokens], "mask": short["mask"][:, :tokens]}
        torch.testing.assert_close(made[row : row + 1], module(**short), atol=1e-5, rtol=1e-5)
    assert (module(**{**values, "context": garbage, "mask": None})[1] - made[1]).abs().max() > 0.01


@torch.no_grad()
def test_a_row_alone_is_the_row_in_a_batch() -> None:
    module, values = denoiser().double(), given(DENOISER)
    values = {key: value.double() if value.is_floating_point() else value for key, value in values.items()}
    values["t"] = values["t"].float()
    together = module(**values)
    for row in range(3):
        alone = module(**{key: value[row : row + 1] for key, value in values.items()})
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("config", [DENOISER, NARROW_SD1])
def test_untrained_predicts_zero(config: DenoiserConfig) -> None:
    values = given(config)
    made = Denoiser(config)(**values)
    assert made.shape == (len(values["x"]), config.out_channels, *values["x"].shape[2:])
    assert not made.any()


@pytest.mark.parametrize(("height", "width"), [(6, 8), (8, 6)])
def test_latents_that_cannot_be_halved(height: int, width: int) -> None:
    module = denoiser(NARROW)
    values = given(NARROW)
    with pytest.raises(UsageError, match="multiples of 4") as caught:
        module(**{**values, "x": torch.zeros(3, NARROW.in_channels, height, width)})
    one_sentence(str(caught.value))
    assert f"{width}x{height}" in str(caught.value)


@pytest.mark.parametrize("wrong", [{"model_channels": 48}, {"num_heads": 5}, {"num_heads": 0}])
def test_sizes_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError) as caught:
        dataclasses.replace(DENOISER, **wrong)
    one_sentence(str(caught.value))


def test_sizes_go_through_a_file() -> None:
    values = {**NARROW.to_dict(), "channel_mult": [1, 2, 3], "attention_resolutions": [2, 4]}
    assert DenoiserConfig.from_dict(values) == NARROW
