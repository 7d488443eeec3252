"""Inference of AutoencoderKL on CUDA devices: the module's results, in less time and less memory.

What differs from the plain module: maps are channels-last, GroupNorm and SiLU are one operation (in Triton where it
works), residuals are added in place, and a map is freed as soon as nothing needs it. The arithmetic is the module's up
to rounding. It runs on every device, but is made for CUDA.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.errors import UsageError
from calotype.families.kl.network import AttnBlock, AutoencoderKL, Level, Mid, ResnetBlock

CHUNK = 1 << 22  # elements of a picture that PyTorch's norm holds in float32 at a time
WARM_UP = 3  # runs before a graph is captured, in which kernels are compiled and chosen

Part = Literal["encode", "decode"]


def encode_moments(module: AutoencoderKL, pixels: Tensor) -> Tensor:
    """`module.encode(pixels).moments`, without gradients.

    Args:
        module: its weights are laid out channels-last from now on, which changes no value.
        pixels: [N, 3, H, W] in [-1, 1], of the module's dtype and device.
    """
    return _ordinary(_run("encode", module, pixels))


def decode(module: AutoencoderKL, latents: Tensor) -> Tensor:
    """`module.decode(latents)`, without gradients.

    Args:
        module: its weights are laid out channels-last from now on, which changes no value.
        latents: raw, [N, z_channels, h, w], of the module's dtype and device.
    """
    return _ordinary(_run("decode", module, latents))


def available() -> str:
    """Which kernels norms run on, and why. Never raises.

    The first call on a machine with CUDA compiles three small kernels (seconds, once; Triton keeps them on disk).
    """
    kernels, why = _triton()
    return f"{'Triton' if kernels else 'PyTorch'}: {why}"


@torch.no_grad()
def group_norm_silu(x: Tensor, norm: nn.GroupNorm, silu: bool = True, out: Tensor | None = None) -> Tensor:
    """silu(norm(x)), or norm(x), computed in float32 and rounded once: [N, C, H, W], channels-last, without gradients.

    Statistics are those of Chan, Golub & LeVeque (1979, STAN-CS-79-773): chunks' means and squared deviations, merged.

    Args:
        x: [N, C, H, W], in any layout.
        out: where to write the result, channels-last; may be x.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    if out is None:
        out = torch.empty_like(x)
    kernels, _ = _triton() if x.is_cuda else (None, "")
    group_norm = kernels.group_norm if kernels else _group_norm
    group_norm(_rows(x), norm.num_groups, norm.weight, norm.bias, norm.eps, silu, _rows(out))
    return out


class CudaGraphs:
    """Replays one module's passes as CUDA graphs, which spares the time to launch their kernels one by one.

    It's for many pictures of few sizes: a pass is captured at the first call with its shape and dtype (that call takes
    as long as a few), and its working memory stays taken. A graph is used only by calling these methods.
    Not for several threads or streams at a time.

    Args:
        module: on a CUDA device. Where its weights have moved since, graphs are captured anew.
        limit: how many graphs are kept; the one not used for longest goes first.
    """

    def __init__(self, module: AutoencoderKL, limit: int = 4) -> None:
        if limit < 1:
            raise UsageError(f"CudaGraphs keeps one graph or more, not {limit}.")
        self.module = module
        self.limit = limit
        self._graphs: OrderedDict[tuple[str, torch.Size, torch.dtype, torch.device], Callable[[Tensor], Tensor]] = (
            OrderedDict()
        )
        self._weights: tuple[int, ...] = ()
        self._pool: Any = None

    def encode_moments(self, pixels: Tensor) -> Tensor:
        """As `encode_moments`.

        Raises:
            UsageError: if the pixels are not on a CUDA device.
        """
        return self._replay("encode", pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """As `decode`.

        Raises:
            UsageError: if the latents are not on a CUDA device.
        """
        return self._replay("decode", latents)

    def _replay(self, part: Part, x: Tensor) -> Tensor:
        # a graph reads its weights where they lay when it was captured
        _channels_last(self.module)
        weights = tuple(parameter.data_ptr() for parameter in self.module.parameters())
        if weights != self._weights:
            self._graphs.clear()
            self._weights = weights
        key = (part, x.shape, x.dtype, x.device)
        if key not in self._graphs:
            while len(self._graphs) >= self.limit:
                self._graphs.popitem(last=False)
            self._graphs[key] = self._capture(part, x)
        self._graphs.move_to_end(key)
        return self._graphs[key](x)

    def _capture(self, part: Part, x: Tensor) -> Callable[[Tensor], Tensor]:
        if not x.is_cuda:
            raise UsageError(f"CUDA graphs need tensors on a CUDA device, and these are on {x.device}.")
        with torch.cuda.device(x.device), torch.inference_mode():
            given = x.clone()
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    _run(part, self.module, given)
            torch.cuda.current_stream().wait_stream(side)
            # graphs never run at the same time, and results are copied out, so all of them can share their memory
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                result = _run(part, self.module, given)

        def replay(x: Tensor) -> Tensor:
            with torch.cuda.device(x.device):
                with torch.inference_mode():
                    given.copy_(x)
                    graph.replay()
                return _ordinary(result)

        return replay


def _run(part: Part, module: AutoencoderKL, x: Tensor) -> Tensor:
    _channels_last(module)
    with torch.inference_mode(), _benchmark():
        return _encode(module, x) if part == "encode" else _decode(module, x)


def _ordinary(result: Tensor) -> Tensor:
    """A copy that may be trained on and written to, in the layout that the module's own results have."""
    return result.clone(memory_format=torch.contiguous_format)


def _channels_last(module: AutoencoderKL) -> None:
    weight = module.decoder.conv_out.weight
    if not weight.is_contiguous(memory_format=torch.channels_last):
        # in inference mode only if the module was made in it: weights laid out there can't be trained any more
        with torch.inference_mode(weight.is_inference()):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextmanager
def _benchmark() -> Iterator[None]:
    """cuDNN tries its algorithms at the first convolution of a size, unless it was asked to be deterministic."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.deterministic
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _encode(module: AutoencoderKL, pixels: Tensor) -> Tensor:
    encoder = module.encoder
    run = _Pass(pixels)
    run.conv(encoder.conv_in)
    level: Any
    for level in encoder.down:
        run.level(level)
        if hasattr(level, "downsample"):
            run.x = F.pad(run.x, (0, 1, 0, 1))
            run.conv(level.downsample.conv)
    run.mid(encoder.mid)
    run.norm_silu(encoder.norm_out)
    run.conv(encoder.conv_out)
    if module.config.quant_conv:
        run.conv(module.quant_conv)
    return run.x


def _decode(module: AutoencoderKL, latents: Tensor) -> Tensor:
    decoder = module.decoder
    run = _Pass(latents)
    if module.config.decoder_quant_conv:
        run.conv(module.post_quant_conv)
    run.conv(decoder.conv_in)
    run.mid(decoder.mid)
    level: Any
    for level in reversed(decoder.up):
        run.level(level)
        if hasattr(level, "upsample"):
            run.x = F.interpolate(run.x, scale_factor=2.0, mode="nearest")
            run.conv(level.upsample.conv)
    run.norm_silu(decoder.norm_out)
    run.conv(decoder.conv_out)
    return run.x


class _Pass:
    """One pass through a network.

    `x` is the only reference to the current map, which is so freed when it's replaced. After the first convolution it
    is the pass's own, and may be written to.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def conv(self, conv: nn.Conv2d) -> None:
        self.x = _conv(conv, self.x)

    def norm_silu(self, norm: nn.GroupNorm) -> None:
        group_norm_silu(self.x, norm, out=self.x)

    def level(self, level: Level) -> None:
        block: Any
        for i, block in enumerate(level.block):
            self.resnet(block)
            if len(level.attn) > 0:
                attn: Any = level.attn[i]
                self.attention(attn)

    def mid(self, mid: Mid) -> None:
        self.resnet(mid.block_1)
        if hasattr(mid, "attn_1"):
            self.attention(mid.attn_1)
        self.resnet(mid.block_2)

    def resnet(self, block: ResnetBlock) -> None:
        if hasattr(block, "nin_shortcut"):
            residual = _conv(block.nin_shortcut, self.x)
            self.norm_silu(block.norm1)
        else:
            residual = self.x
            self.x = group_norm_silu(self.x, block.norm1)
        self.conv(block.conv1)
        self.norm_silu(block.norm2)
        self.conv(block.conv2)
        self.x += residual

    def attention(self, block: AttnBlock) -> None:
        n, c, height, width = self.x.shape
        h = _rows(group_norm_silu(self.x, block.norm, silu=False)).unsqueeze(1)  # [N, one head, positions, C]
        q, k, v = _project(block.q, h), _project(block.k, h), _project(block.v, h)
        del h
        h = F.scaled_dot_product_attention(q, k, v)
        del q, k, v
        self.x += _project(block.proj_out, h).view(n, height, width, c).permute(0, 3, 1, 2)


def _conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    # channels-last already, where the convolution's implementation has a choice
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding).contiguous(memory_format=torch.channels_last)


def _project(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of x [..., C]."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def _rows(x: Tensor) -> Tensor:
    """[N, C, H, W], channels-last -> [N, positions, C], the same memory."""
    n, c, height, width = x.shape
    return x.permute(0, 2, 3, 1).view(n, height * width, c)


class _Triton(NamedTuple):
    kernels: Any  # the module with them; None where it can't be used
    why: str


@cache
def _triton() -> _Triton:
    """The Triton kernels, if they run here."""
    if not torch.cuda.is_available():
        return _Triton(None, "there is no CUDA device")
    try:
        import triton

        from calotype.engine import triton_norm

        # imported is not enough: its compiler needs a C compiler and Python's headers
        x = torch.zeros(1, 1, 1, device="cuda")
        triton_norm.group_norm(x, 1, x[0, 0], x[0, 0], 1e-6, True, x)
    except ImportError:
        return _Triton(None, "triton is not installed")
    except Exception as error:
        return _Triton(None, f"triton does not work here ({type(error).__name__})")
    return _Triton(triton_norm, f"triton {triton.__version__} on {torch.cuda.get_device_name()}")


def _group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool, out: Tensor) -> None:
    """What `triton_norm.group_norm` does, in PyTorch; x and out are [N, positions, C], and may be the same."""
    n, positions, channels = x.shape
    size, step = channels // groups, max(1, CHUNK // channels)
    chunks = [slice(start, min(start + step, positions)) for start in range(0, positions, step)]
    counts = torch.tensor([(chunk.stop - chunk.start) * size for chunk in chunks], device=x.device)[:, None, None]
    parts = [
        torch.var_mean(x[:, chunk].float().reshape(n, -1, groups, size), dim=(1, 3), correction=0) for chunk in chunks
    ]
    variances, means = (torch.stack(values) for values in zip(*parts, strict=True))  # [chunks, N, groups]
    mean = (counts * means).sum(0) / (positions * size)
    variance = (counts * (variances + (means - mean).square())).sum(0) / (positions * size)
    scale = ((variance + eps).rsqrt()[:, :, None] * weight.float().view(groups, size)).view(n, 1, channels)
    centre = mean.repeat_interleave(size, dim=1).view(n, 1, channels)
    for chunk in chunks:
        y = (x[:, chunk].float() - centre).mul_(scale).add_(bias)
        out[:, chunk] = F.silu(y, inplace=True) if silu else y
