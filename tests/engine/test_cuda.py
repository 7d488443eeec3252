"""The path for CUDA against the plain module; most of it runs on every device."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import NARROW, SMALL, AutoencoderConfig, assert_close, kl, network, one_sentence, pictures, same_tensors
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from calotype.engine import cuda
from calotype.errors import UsageError
from calotype.families.folded.config import FoldedConfig
from calotype.families.kl.network import AutoencoderKL
from calotype.families.tiny.config import TinyConfig
from calotype.families.vq.config import VqConfig
from calotype.steps import Builder, Direction, Map, Norm, Program

HERE = Path(__file__).resolve().parent
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

CONFIGS = {
    "narrow": NARROW,
    "small": SMALL,
    "no-quant-conv": replace(SMALL, quant_conv=False, z_channels=16),
    "no-mid-attention": replace(SMALL, mid_attention=False),
    "attention-at-two-levels": AutoencoderConfig(ch=8, ch_mult=(1, 2, 2), norm_groups=4, attn_levels=(1, 2)),
    "narrower-decoder": AutoencoderConfig(ch=32, ch_mult=(1, 2), z_channels=32, decoder_ch=24, norm_groups=8),
    "odd": AutoencoderConfig(ch=12, ch_mult=(1, 3), num_res_blocks=1, norm_groups=4, z_channels=5),
    "one-level": AutoencoderConfig(ch=8, ch_mult=(1,), num_res_blocks=1, norm_groups=4, z_channels=1),
}
MOVQ = VqConfig(
    ch=32,
    ch_mult=(1, 1, 2),
    num_res_blocks=1,
    embed_dim=4,
    n_embed=50,
    attn_levels=(2,),
    norm_groups=8,
    spatial_norm=True,
)
OTHERS: dict[str, Any] = {
    "tiny": TinyConfig(),
    "tiny-pool": TinyConfig(z_channels=32, pool=True),
    "folded": FoldedConfig(ch=(32, 48), encoder_blocks=(1, 2), decoder_blocks=(2, 1)),
    "vq": VqConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, n_embed=40, attn_levels=(1,), norm_groups=4),
    "movq": MOVQ,
    "movq-not-quantised": replace(MOVQ, quantize=False),
    **{name: replace(SMALL, activation=name) for name in ("gelu", "mish", "relu")},  # type: ignore[arg-type]
}
HALVES = (torch.bfloat16, torch.float16)
QKV = ("q", "k", "v", "proj_out")


def inputs(config: AutoencoderConfig, n: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Pixels, and latents of that size."""
    x = pictures(rows, n, rows * config.factor, columns * config.factor)
    return x, torch.randn(n, config.z_channels, rows, columns, generator=torch.Generator().manual_seed(columns))


def plain(module: AutoencoderKL, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return module.encode(x).moments, module.decode(z)


def ours(module: AutoencoderKL, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    return cuda.encode_moments(module, x), cuda.decode(module, z)


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


@pytest.mark.parametrize("size", [(2, 4, 4), (1, 5, 3), (3, 1, 7), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_results_are_the_modules(name: str, size: tuple[int, int, int]) -> None:
    module = kl(CONFIGS[name])
    x, z = inputs(CONFIGS[name], *size)
    expected = plain(module, x, z)
    for result, right in zip(ours(module, x, z), expected, strict=True):
        assert_close(result, right, 1e-5)
        assert result.dtype == torch.float32
        assert result.stride() == right.stride()


@pytest.mark.parametrize(
    "name", ["tiny", "tiny-pool", "folded", "gelu", "mish", "relu", "vq", "movq", "movq-not-quantised"]
)
def test_every_network_is_computed(name: str) -> None:
    module = network(OTHERS[name])
    x, z = inputs(OTHERS[name], 2, 3, 5)
    exact: Any = copy.deepcopy(module).double()
    with torch.no_grad():
        expected = exact.encode(x.double()).moments, exact.decode(z.double())
    results = cuda.encode_moments(module, x), cuda.decode(module, z)
    for result, plainly, right in zip(results, plain(module, x, z), expected, strict=True):
        # a spatial norm divides by what may be small, so rounding may grow, in the plain network alike
        own = ((plainly - right).abs().max() / max(1.0, right.std().item())).item()
        assert_close(result.double(), right, max(1e-5, 4 * own))


def test_sizes_that_are_no_multiple_of_the_factor() -> None:
    module = kl(CONFIGS["attention-at-two-levels"])
    x = pictures(0, 2, 27, 13)
    with torch.no_grad():
        expected = module.encode(x).moments
    assert_close(cuda.encode_moments(module, x), expected, 1e-5)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ["narrow", "attention-at-two-levels", "odd"])
def test_narrow_dtypes_are_as_exact_as_the_modules(name: str, dtype: torch.dtype) -> None:
    module = kl(CONFIGS[name]).to(dtype)
    x, z = (t.to(dtype) for t in inputs(CONFIGS[name], 2, 5, 3))
    exact = plain(copy.deepcopy(module).float(), x.float(), z.float())
    expected = plain(module, x, z)
    for result, same, right in zip(ours(module, x, z), expected, exact, strict=True):
        assert result.dtype == dtype
        assert rms(result - right) <= 1.25 * rms(same - right)
        assert_close(result.float(), same.float(), 16 * torch.finfo(dtype).eps)


def norm_of(channels: int, groups: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels, eps=1e-6).requires_grad_(False)
    norm.weight.normal_(1, 0.3)
    norm.bias.normal_(0, 0.2)
    return norm


def exact_norm(x: Tensor, norm: nn.GroupNorm, silu: bool) -> Tensor:
    y = copy.deepcopy(norm).double()(x.double())
    return nn.functional.silu(y) if silu else y


@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("channels", [32, 96, 128])
def test_the_norm_in_chunks(channels: int, silu: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "CHUNK", chunk)
    norm = norm_of(channels, 32)
    x = 3 * torch.randn(2, channels, 5, 7) + torch.linspace(0, 10, 7)
    before = x.clone()
    expected = exact_norm(x, norm, silu).float()
    result = cuda.group_norm_silu(x, norm, silu)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)
    own = x.contiguous(memory_format=torch.channels_last)
    assert cuda.group_norm_silu(own, norm, silu, out=own) is own
    assert torch.equal(own, result)


def test_statistics_are_float32_where_squares_overflow_float16() -> None:
    norm = norm_of(8, 2).half()
    x = (3000 * torch.randn(2, 8, 16, 16)).half()
    assert torch.isinf(x.square()).any()
    result = cuda.group_norm_silu(x, norm)
    torch.testing.assert_close(result.double(), exact_norm(x, norm, True), rtol=1e-3, atol=1e-5)


def test_statistics_are_float32_where_bfloat16_would_round_the_mean() -> None:
    norm = norm_of(8, 2).bfloat16()
    x = (100.25 + torch.randn(2, 8, 32, 32)).bfloat16()
    mean = x[:, :4].float().mean()
    assert abs(mean - mean.bfloat16()) > 0.1, "this input can't tell a float32 mean from a rounded one"
    result = cuda.group_norm_silu(x, norm, silu=False)
    torch.testing.assert_close(result.double(), exact_norm(x, norm, False), rtol=2**-8, atol=1e-3)


def test_a_large_mean_costs_no_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "CHUNK", 64)
    norm = norm_of(8, 2)
    x = 4096 + 0.1 * torch.randn(1, 8, 40, 40)
    group = x[0, :4]
    naive = group.square().mean() - group.mean().square()
    assert abs(naive - 0.01) > 0.01, "this input can't tell Chan's merge from E[x^2] - E[x]^2"
    result = cuda.group_norm_silu(x, norm, silu=False)
    torch.testing.assert_close(result.double(), exact_norm(x, norm, False), rtol=0.01, atol=0.01)


def test_a_flat_map_becomes_the_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "CHUNK", 64)
    norm = norm_of(8, 2)
    result = cuda.group_norm_silu(torch.full((1, 8, 30, 30), 1024.5), norm)
    expected = nn.functional.silu(norm.bias)[None, :, None, None].expand(1, 8, 30, 30)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", (torch.float32, *HALVES), ids=str)
def test_inputs_and_module_stay_as_they_are(dtype: torch.dtype) -> None:
    module = kl(SMALL).to(dtype).requires_grad_(True)
    before = copy.deepcopy(module)
    parameters = dict(module.named_parameters())
    for layout in (torch.contiguous_format, torch.channels_last):
        x, z = (t.to(dtype).contiguous(memory_format=layout) for t in inputs(SMALL, 2, 4, 3))
        copies = x.clone(), z.clone()
        ours(module, x, z)
        assert torch.equal(x, copies[0])
        assert torch.equal(z, copies[1])
        assert x.is_contiguous(memory_format=layout)
    assert same_tensors(module, before)
    assert all(parameter is parameters[name] for name, parameter in module.named_parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_module_and_results_can_be_trained_on_afterwards() -> None:
    module = kl(SMALL).requires_grad_(True)
    x, z = inputs(SMALL, 1, 4, 4)
    with torch.inference_mode():  # the module's weights are laid out anew in here
        ours(module, x, z)
    moments, pixels = ours(module, x, z)
    assert not moments.requires_grad
    latents = moments.chunk(2, dim=1)[0]
    (module.decode(latents) * pixels).sum().backward()
    assert module.decoder.conv_in.weight.grad is not None
    moments += 1


def test_a_module_that_was_made_in_inference_mode() -> None:
    with torch.inference_mode():
        module = kl(SMALL)
    x, z = inputs(SMALL, 1, 4, 4)
    expected = plain(module, x, z)
    for result, right in zip(ours(module, x, z), expected, strict=True):
        assert_close(result, right, 1e-5)
        assert not result.is_inference()


def test_cudnn_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    norm = cuda._normalised

    def watch(*arguments: Any, **options: Any) -> Tensor:
        seen.append(torch.backends.cudnn.benchmark)
        return norm(*arguments, **options)

    monkeypatch.setattr(cuda, "_normalised", watch)
    module, z = kl(SMALL), torch.randn(1, 4, 2, 2)
    cuda.decode(module, z)
    assert set(seen) == {True}
    assert not torch.backends.cudnn.benchmark
    with pytest.raises(RuntimeError):
        cuda.decode(module, torch.randn(1, 3, 2, 2))
    assert not torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    seen.clear()
    cuda.decode(module, z)
    assert set(seen) == {False}


class Peak(TorchDispatchMode):
    """The most bytes that tensors made in it have held at a time, and the bytes of each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.made: list[int] = []
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = {t.untyped_storage()._cdata for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in own:
                self.held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self.made.append(storage.nbytes())
        self.held = {key: value for key, value in self.held.items() if not value[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.held.values()))
        return result


def watch(run: Callable[..., Any], *arguments: Any) -> Peak:
    with torch.no_grad(), Peak() as watched:
        run(*arguments)
    return watched


def test_less_memory_is_held_than_by_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "CHUNK", 2048)
    config = AutoencoderConfig(ch=8, ch_mult=(1, 2, 4), norm_groups=4)
    module = kl(config)
    x, z = inputs(config, 1, 16, 16)
    ours(module, x, z)  # lays the weights out
    full = 64 * 64 * 4  # bytes of a channel
    # an upsampled map of 16 channels and its convolution; the module holds a norm's result and a shortcut besides
    assert watch(cuda.decode, module, z).bytes <= 2 * 16 * full * 1.05
    assert watch(module.decode, z).bytes >= 2.5 * 16 * full
    # the stream, a block's map, and the convolution of it; the module holds the level's input besides
    assert watch(cuda.encode_moments, module, x).bytes <= 3 * 8 * full * 1.05
    assert watch(module.encode, x).bytes >= 4 * 8 * full


def test_blocks_add_and_normalise_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "CHUNK", 256)
    build, x = Builder("decode"), torch.randn(1, 16, 16, 16).contiguous(memory_format=torch.channels_last)
    start = Map("latents", 16, 1)
    norms = [Norm(weights=f"norm{i}", groups=4, eps=1e-6) for i in range(3)]
    first = build.conv(start, 16, "conv0")
    h = build.conv(first, 16, "conv1", norm=norms[0], activation="silu")
    y = build.conv(h, 16, "conv2", norm=norms[1], activation="silu", residual=first)
    build.attention(y, "attn", norms[2])
    kernels = {f"conv{i}": (16, 16, 3, 3) for i in range(3)} | {f"attn.{name}": (16, 16, 1, 1) for name in QKV}
    weights = {f"{name}.weight": nn.Parameter(torch.randn(shape)) for name, shape in kernels.items()}
    weights |= {f"norm{i}.weight": nn.Parameter(torch.ones(16)) for i in range(3)}
    weights |= {f"{key.removesuffix('.weight')}.bias": nn.Parameter(torch.zeros(16)) for key in list(weights)}
    program = build.program()
    watched = watch(cuda._Run(Program("decode", program.steps[:3]), weights), x)
    # a map after each convolution, and one after the first norm, which what is added still needs
    assert sum(size >= x.nbytes for size in watched.made) == 4
    # q, k, v and what is made of them beside the map; then only that and its projection
    watched = watch(cuda._Run(program, weights), x)
    assert watched.bytes <= 5.2 * x.nbytes


def test_what_is_available_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda._triton.cache_clear()
    assert cuda.available().startswith(("PyTorch: ", "Triton: "))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cuda._triton.cache_clear()
    assert cuda.available() == "PyTorch: there is no CUDA device"
    # a device that fails
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: 1 // 0)
    cuda._triton.cache_clear()
    has_triton = importlib.util.find_spec("triton") is not None
    expected = "triton does not work here (ZeroDivisionError)" if has_triton else "triton is not installed"
    assert cuda.available() == f"PyTorch: {expected}"
    cuda._triton.cache_clear()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.slow
@pytest.mark.parametrize("interpret", ["1", "0"])
def test_triton_without_a_gpu(interpret: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_cases.py")],
        env={**os.environ, "TRITON_INTERPRET": interpret, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


class Recorded(cuda.CudaGraphs):
    """Captures nothing, and counts what it would have captured."""

    def __init__(self, module: AutoencoderKL, limit: int) -> None:
        super().__init__(module, limit)
        self.captured: list[tuple[str, int]] = []

    def _capture(self, part: Direction, x: Tensor) -> Callable[[Tensor], Tensor]:
        self.captured.append((part, x.shape[-1]))
        return cuda.decode.__get__(self.module) if part == "decode" else cuda.encode_moments.__get__(self.module)


def test_graphs_are_kept_by_use() -> None:
    module = kl(SMALL)
    graphs = Recorded(module, limit=2)
    for width in (2, 3, 2, 4, 2, 3):
        z = torch.randn(1, 4, 2, width)
        assert torch.equal(graphs.decode(z), cuda.decode(module, z))
    assert graphs.captured == [("decode", 2), ("decode", 3), ("decode", 4), ("decode", 3)]
    x = pictures(0, 1, 4, 3)
    assert torch.equal(graphs.encode_moments(x), cuda.encode_moments(module, x))
    assert graphs.captured[-1] == ("encode", 3)


def test_graphs_are_captured_anew_where_weights_have_moved() -> None:
    module = kl(SMALL)
    graphs = Recorded(module, limit=2)
    z = torch.randn(1, 4, 2, 2)
    graphs.decode(z)
    graphs.decode(z)
    assert len(graphs.captured) == 1
    weight = module.decoder.mid.block_1.conv1.weight
    weight.data = weight.data.clone()
    graphs.decode(z)
    assert len(graphs.captured) == 2


def test_graphs_need_cuda() -> None:
    with pytest.raises(UsageError, match="these are on cpu") as error:
        cuda.CudaGraphs(kl(SMALL)).decode(torch.randn(1, 4, 2, 2))
    one_sentence(str(error.value))
    with pytest.raises(UsageError, match="not 0"):
        cuda.CudaGraphs(kl(SMALL), limit=0)


@pytest.fixture
def exact_matrices() -> Iterator[None]:
    """No TF32 in convolutions."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@on_cuda
@pytest.mark.usefixtures("exact_matrices")
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_on_a_gpu_results_are_the_modules(name: str, graphs: bool) -> None:
    module = kl(CONFIGS[name]).cuda()
    replayed = cuda.CudaGraphs(module)
    for seed, size in enumerate(((2, 4, 4), (1, 5, 3), (2, 4, 4))):
        x, z = (t.cuda() + 0.01 * seed for t in inputs(CONFIGS[name], *size))
        expected = plain(copy.deepcopy(module), x, z)
        result = (replayed.encode_moments(x), replayed.decode(z)) if graphs else ours(module, x, z)
        for one, right in zip(result, expected, strict=True):
            assert_close(one, right)
            assert not one.is_inference()


@on_cuda
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_on_a_gpu_narrow_dtypes_are_as_exact_as_the_modules(dtype: torch.dtype, graphs: bool) -> None:
    module = kl(NARROW).to("cuda", dtype)
    x, z = (t.to("cuda", dtype) for t in inputs(NARROW, 2, 9, 7))
    exact = plain(copy.deepcopy(module).float(), x.float(), z.float())
    expected = plain(module, x, z)
    replayed = cuda.CudaGraphs(module)
    results = (replayed.encode_moments(x), replayed.decode(z)) if graphs else ours(module, x, z)
    for result, same, right in zip(results, expected, exact, strict=True):
        assert rms(result - right) <= 1.25 * rms(same - right)


@on_cuda
def test_on_a_gpu_graphs_see_new_values_of_weights_and_leave_earlier_results_alone() -> None:
    module = kl(NARROW).cuda()
    graphs = cuda.CudaGraphs(module, limit=2)
    sizes = ((4, 4), (6, 5))
    latents = [torch.randn(1, 4, *size, device="cuda") for size in sizes]
    first = [graphs.decode(z) for z in latents]
    kept = [result.clone() for result in first]
    module.decoder.conv_out.bias.add_(1)
    second = [graphs.decode(z) for z in reversed(latents)][::-1]
    for one, again, copied in zip(first, second, kept, strict=True):
        assert torch.equal(one, copied)
        assert_close(again, one + 1)


@on_cuda
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_on_a_gpu_less_memory_is_taken_than_by_the_module() -> None:
    module = kl(NARROW).to("cuda", torch.bfloat16)
    z = torch.randn(1, 4, 64, 64, device="cuda", dtype=torch.bfloat16)
    taken = []
    for run in (module.decode, lambda z: cuda.decode(module, z)):
        with torch.no_grad():
            run(z)  # lets cuDNN choose
            torch.cuda.reset_peak_memory_stats()
            base = torch.cuda.memory_allocated()
            run(z)
        taken.append(torch.cuda.max_memory_allocated() - base)
    assert taken[1] < taken[0]
