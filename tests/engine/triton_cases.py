"""The Triton kernels without a GPU; `test_cuda.py` runs this in a process of its own, since triton reads its
environment when it is imported. Not collected by itself.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from support import AutoencoderConfig, assert_close, kl, pictures
from torch import Tensor

from calotype.engine import cuda, triton_norm

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="these run in Triton's interpreter")
compiled = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="these run in Triton's compiler")

# (pictures, positions, channels, groups); tiles have 32 to 512 positions, chunks four of them
SHAPES = (
    (1, 1, 32, 32),
    (2, 7, 32, 4),
    (2, 257, 64, 32),
    (1, 600, 96, 32),  # three channels a group
    (3, 257, 96, 8),
    (1, 4100, 128, 32),
    (1, 1500, 128, 1),  # more of a group than one step of the merge takes
    (2, 129, 256, 32),
    (1, 40, 320, 32),
    (1, 77, 512, 32),
    (1, 50, 12, 4),
    (1, 9, 1024, 4),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def run(group_norm: Any, x: Tensor, groups: int, silu: bool, in_place: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(2, x.shape[2], generator=generator).to(x.dtype)
    x = x.clone()
    out = x if in_place else torch.full_like(x, torch.nan)
    group_norm(x, groups, weight, bias, 1e-6, silu, out)
    return out


@interpreted
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # a sigmoid of -100 is 1 / (1 + inf)
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_agree_with_pytorch(shape: tuple[int, int, int, int], dtype: torch.dtype, silu: bool) -> None:
    *size, groups = shape
    x = (3 * torch.randn(size) + 5 + torch.linspace(0, 10, size[1])[:, None]).to(dtype)
    result = run(triton_norm.group_norm, x, groups, silu)
    # one unit in the last place: the interpreter truncates to bfloat16
    torch.testing.assert_close(
        result, run(cuda._group_norm, x, groups, silu), rtol=2e-6 + 1.01 * torch.finfo(dtype).eps, atol=4e-6
    )
    assert torch.equal(run(triton_norm.group_norm, x, groups, silu, in_place=True), result)


@interpreted
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("partials", [1 << 8, 1 << 10])
def test_chunks_of_many_tiles(partials: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 5000, 32) + torch.linspace(0, 10, 5000)[:, None]
    monkeypatch.setattr(triton_norm, "PARTIALS", partials)
    monkeypatch.setattr(triton_norm, "TILES", 1)
    result = run(triton_norm.group_norm, x, 8, True)
    torch.testing.assert_close(result, run(cuda._group_norm, x, 8, True), rtol=1e-5, atol=1e-5)


@interpreted
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_a_large_mean_costs_no_precision() -> None:
    x = 4096 + 0.1 * torch.randn(1, 3000, 32)
    result = run(triton_norm.group_norm, x, 32, False)
    exact = run(cuda._group_norm, (x.double() - 4096).float(), 32, False)
    torch.testing.assert_close(result, exact, rtol=0.05, atol=0.05)


@interpreted
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_a_network_on_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    module = kl(AutoencoderConfig(ch=12, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4, attn_levels=(1,)))
    x, z = pictures(0, 2, 10, 6), torch.randn(2, 4, 5, 3)
    expected = module.encode(x).moments, module.decode(z)
    monkeypatch.setattr(cuda, "_group_norm", triton_norm.group_norm)
    assert_close(cuda.encode_moments(module, x), expected[0])
    assert_close(cuda.decode(module, z), expected[1])


@compiled
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")  # triton 3.9 says so once
@pytest.mark.parametrize("channels", [128, 96])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_kernels_compile(dtype: str, channels: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    tile = {"ROWS": 32, "COLUMNS": 128}
    group = {"SIZE": channels // 32}
    kernels: dict[Any, tuple[str, dict[str, Any]]] = {
        triton_norm._partial: ("x", tile),
        triton_norm._merge: ("", group | {"ROWS": 1024, "COLUMNS": 4}),
        triton_norm._apply: ("x out weight bias", group | tile | {"SILU": True}),
    }
    for kernel, (maps, constants) in kernels.items():
        types = {"eps": "fp32"} | dict.fromkeys(("means", "m2s", "mean", "rstd"), "*fp32")
        types |= dict.fromkeys(maps.split(), f"*{dtype}") | dict.fromkeys(constants, "constexpr")
        signature = {name: types.get(name, "i32") for name in kernel.arg_names}
        aligned = [
            (i,) for i, (name, kind) in enumerate(signature.items()) if kind.startswith("*") or name == "channels"
        ]
        source = ASTSource(kernel, signature, constants, {key: [["tt.divisibility", 16]] for key in aligned})
        code = compile(source, target=GPUTarget("cuda", 90, 32)).asm
        assert len(code["cubin"]) > 0
        # maps are read and written by 16 bytes at a time
        assert not maps or ".global.v4" in code["ptx"]
        assert "out" not in signature or "st.global.v4" in code["ptx"]
