"""Steps that not every family has, against plain torch: per-pixel norms, fused attention, shuffles with shortcuts,
codebooks, and norms that follow the latents."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine.enginekit import MOVQ, Replay, execute
from support import network
from torch import Tensor, nn

from calotype.engine import blocks, cuda, local, plan as plans
from calotype.engine.blocks import Job
from calotype.engine.reference import fold
from calotype.families import program
from calotype.families.vq.presets import MOVQ as KANDINSKY
from calotype.steps import Attention, Builder, Fold, Map, PixelNorm, Program, Quantized, SpatialNorm

KERNELS = ["winograd", "reference"]
LEAST = 1e-12


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Small(nn.Module):
    """A decoder with all of them: 4 channels of latents, f4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels
        self.conv_in = nn.Conv2d(4, c, 3, padding=1)
        self.norm1, self.norm2, self.norm3, self.norm4 = (Gamma(c, bias) for bias in (False, True, False, False))
        self.conv1, self.conv2 = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)
        self.attn = nn.Module()
        self.attn.qkv, self.attn.proj_out = nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)
        self.up = nn.Conv2d(c, c, 3, padding=1)
        self.conv_out = nn.Conv2d(c, 12, 3, padding=1)

    def norm(self, gamma: Gamma, x: Tensor) -> Tensor:
        y = F.normalize(x, dim=1) * x.shape[1] ** 0.5 * gamma.weight[:, None, None]
        return y + gamma.bias[:, None, None] if gamma.bias is not None else y

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z) + z.repeat_interleave(self.conv_in.out_channels // 4, dim=1)
        h = self.conv1(F.silu(self.norm(self.norm1, x)))
        x = x + self.conv2(F.silu(self.norm(self.norm2, h)))
        q, k, v = self.attn.qkv(self.norm(self.norm3, x)).flatten(2).transpose(1, 2)[:, None].chunk(3, -1)
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])
        x = x + self.attn.proj_out(h)
        up = F.pixel_shuffle(x.repeat_interleave(4, dim=1), 2)
        x = self.up(F.interpolate(x, scale_factor=2.0)) + up
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm(self.norm4, x))), 2)

    def steps(self) -> Program:
        build, c = Builder("decode"), self.conv_in.out_channels
        z = Map("latents", 4, 4)
        first = build.fold(z, "repeated", 1, c)
        x = build.conv(z, c, "conv_in", residual=first)
        h = build.conv(x, c, "conv1", norm=PixelNorm(weights="norm1", least=LEAST), activation="silu")
        norm = PixelNorm(weights="norm2", least=LEAST, bias=True)
        x = build.conv(h, c, "conv2", norm=norm, activation="silu", residual=x)
        x = build.attention(x, "attn", PixelNorm(weights="norm3", least=LEAST), fused=True)
        up = build.conv(x, c, "up", resample="up")
        x = build.fold(x, "shortcut", -2, c, residual=up)
        x = build.conv(x, 12, "conv_out", norm=PixelNorm(weights="norm4", least=LEAST), activation="silu")
        build.fold(x, "pixels", -2)
        return build.program()


class Gamma(nn.Module):
    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels))
        self.bias = nn.Parameter(torch.randn(channels)) if bias else None


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("channels", [20, 32, 80])
def test_every_plan_gives_the_numbers_of_plain_torch(
    channels: int, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "SMALLEST_SPILL", 1)
    plans._candidates.cache_clear()
    module: Any = Small(channels)
    z = torch.randn(4, 9, 7)
    z[:, 3, 4] = 0
    with torch.no_grad():
        expected = module.double()(z[None].double())[0]
    module.float()
    job = Job(4 * 9, 4 * 7, kernels, 1)
    found = plans._candidates(job, module.steps())
    plans._candidates.cache_clear()
    assert {one.places["conv_in"] for one in found} >= {"kept", "rows"}
    assert any(one.spill for one in found)
    for one in found[:: max(1, len(found) // 12)]:
        Replay(one).run()
        made = execute(module, one, z)
        assert (made - expected).abs().max() <= 2e-5 * max(1.0, expected.std().item()), one.places


@pytest.mark.parametrize("kernels", KERNELS)
def test_after_attention_rows_are_made_once_and_none_are_kept(kernels: Any) -> None:
    job = Job(4 * 256, 4 * 256, kernels, 1)
    found = plans._candidates(job, Small(32).steps())
    assert not any(part.measured for one in found for part in one.passes)
    for one in found:
        assert one.computed == {step.target.name: job.flops(step) for step in one.program.steps}
    least = min(found, key=lambda one: one.peak)
    assert {step.target.name for step in least.passes[-1].steps} == {"up", "shortcut", "conv_out", "pixels"}
    # two maps of a quarter of the sides, and no whole map that is larger
    assert least.kept <= 2 * 256 * 256 * 32 * 4


def test_whole_maps_at_a_time() -> None:
    module: Any = Small(32)
    z = torch.randn(2, 4, 9, 7)
    with torch.inference_mode():
        made = cuda._Run(module.steps(), dict(module.named_parameters()))(z)
        assert (made - module(z)).abs().max() <= 1e-5


def test_a_position_of_zeros_stays_zero() -> None:
    module: Any = Small(32)
    z = torch.zeros(4, 4, 4)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    for kernels in KERNELS:
        made = execute(module, plans.plan(module.steps(), 16, 16, kernels=kernels), z)  # type: ignore[arg-type]
        assert torch.equal(made, torch.zeros(3, 16, 16))


@pytest.mark.parametrize("outer", ["channels", "pixels"])
@pytest.mark.parametrize(("channels", "out"), [(6, 24), (6, 12), (6, 8)])
def test_blocks_into_averaged_channels_and_back(channels: int, out: int, outer: Any) -> None:
    rows = torch.randn(8, 6, channels)
    x = rows.permute(2, 0, 1)[None]
    step = Fold(source=Map("a", channels, 1), target=Map("b", out, 2), outer=outer)
    if outer == "channels":
        many = F.pixel_unshuffle(x, 2)
    else:
        many = torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=1)
    expected = many.unflatten(1, (out, -1)).mean(2)
    assert torch.allclose(fold(step, rows), expected[0].permute(1, 2, 0), atol=1e-6)

    step = Fold(source=Map("b", out, 2), target=Map("a", channels, 1), outer=outer)
    given = torch.randn(4, 3, out)
    many = given.permute(2, 0, 1)[None].repeat_interleave(4 * channels // out, dim=1)
    if outer == "channels":
        expected = F.pixel_shuffle(many, 2)
    else:
        expected = torch.empty(1, channels, 8, 6)
        for part, (i, j) in zip(many.chunk(4, dim=1), [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
            expected[:, :, i::2, j::2] = part
    assert torch.equal(fold(step, given), expected[0].permute(1, 2, 0))


@pytest.mark.parametrize(("channels", "out"), [(6, 12), (4, 8), (4, 4)])
def test_the_last_of_two_frames(channels: int, out: int) -> None:
    """As AvgDown3D and DupUp3D of Wan 2.2 compute one picture: the frame before it is zero."""
    rows = torch.randn(4, 6, channels)
    video = torch.stack([torch.zeros_like(rows), rows]).permute(3, 0, 1, 2)  # channels, frames, rows, columns
    blocks = video.view(channels, 2, 2, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(out, -1, 2, 3)
    down = Fold(source=Map("a", channels, 1), target=Map("b", out, 2), frames=2)
    assert torch.allclose(fold(down, rows), blocks.mean(1).permute(1, 2, 0), atol=1e-6)

    given = torch.randn(2, 3, out)
    many = given.permute(2, 0, 1).repeat_interleave(8 * channels // out, dim=0).view(channels, 2, 2, 2, 2, 3)
    expected = many[:, 1].permute(0, 3, 1, 4, 2).reshape(channels, 4, 6)
    up = Fold(source=Map("b", out, 2), target=Map("a", channels, 1), frames=2)
    assert torch.equal(fold(up, given), expected.permute(1, 2, 0))


# Codebooks


@pytest.mark.parametrize("entries", [1, 7, 70])
def test_the_nearest_of_a_codebook(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codebook, x = torch.randn(entries, 5), torch.randn(33, 5)
    step = Quantized(source=Map("a", 5, 1), target=Map("b", 5, 1), weights="codebook", entries=entries)
    expected = codebook[(x.double()[:, None] - codebook.double()).square().sum(2).argmin(1)]
    for at_once in (2048, 16, 1):
        monkeypatch.setattr(local, "ENTRIES", at_once)
        assert torch.equal(local.quantized(step, x, {"codebook": codebook}), expected)
    one_by_one = torch.cat([local.quantized(step, row[None], {"codebook": codebook}) for row in x])
    assert torch.equal(one_by_one, expected)


def test_entries_equally_near_are_chosen_alike_however_many_positions_are_taken() -> None:
    """Beside one another float32's products round now so and now so."""
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(4096, 3, generator=generator)
    # between two entries, nearly in the middle
    a, b = codebook[:200], codebook[2000:2200]
    x = (a + b) / 2 + 1e-4 * (a - b)
    step = Quantized(source=Map("a", 3, 1), target=Map("b", 3, 1), weights="codebook", entries=4096)
    whole = local.quantized(step, x, {"codebook": codebook})
    for at_once in (1, 7, 50):
        parts = [local.quantized(step, part, {"codebook": codebook}) for part in x.split(at_once)]
        assert torch.equal(torch.cat(parts), whole)


def test_a_latent_that_is_not_finite_is_not_hidden_by_an_entry() -> None:
    x = torch.tensor([[0.0, 0.0], [torch.nan, 0.0], [0.0, torch.inf]])
    step = Quantized(source=Map("a", 2, 1), target=Map("b", 2, 1), weights="codebook", entries=3)
    found = local.quantized(step, x, {"codebook": torch.randn(3, 2)})
    assert found.isfinite().all(1).tolist() == [True, False, False]


# Norms that follow a smaller map


@pytest.mark.slow
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("at_once", [1, 96, 2000])
def test_blocks_of_a_spatial_norm_change_nothing(at_once: int, kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of rows, rows, and rows that one latent stands for: whatever fits."""
    module = network(MOVQ)
    z = torch.randn(4, 3, 5)
    with torch.no_grad():
        expected = copy.deepcopy(module).double().decode(z[None].double())[0]
    monkeypatch.setattr(blocks, "REFERENCE", 4 * at_once)
    job = Job(12, 20, kernels, 1)
    found = plans._candidates(job, module.program("decode"))
    plans._candidates.cache_clear()
    for one in found[:: max(1, len(found) // 3)]:
        made = execute(module, one, z)
        assert (made - expected).abs().max() <= 1e-4 * expected.std()


@pytest.mark.parametrize("quantize", [True, False])
def test_what_a_spatial_norm_makes_is_never_whole(quantize: bool) -> None:
    steps = program(replace(MOVQ, quantize=quantize), "decode")
    norms = [step for step in steps.steps if isinstance(step, SpatialNorm)]
    attended = {step.source.name for step in steps.steps if isinstance(step, Attention)}
    assert len(norms) == 2 * (2 + 2 * 3) + 1 + 2 + 1  # of blocks, of attention, and the last
    for one in plans._candidates(Job(128, 128), steps):
        for step in norms:
            assert (one.places[step.target.name] == "rows") == (step.target.name not in attended)


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "size"), [(512_000_000, 2048), (10**9, 4096)])
def test_a_large_picture_in_little_memory(memory: int, size: int) -> None:
    assert plans.plan(program(KANDINSKY, "decode"), size, size, memory=memory, threads=2).peak <= memory
