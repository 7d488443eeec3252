"""Inference on CUDA devices: a network's results, in less time and less memory.

What differs from the plain module: maps are channels-last, GroupNorm and SiLU are one operation (in Triton where it
works), residuals are added in place, and a map is freed as soon as nothing needs it. The arithmetic is the module's up
to rounding. It runs on every device, but is made for CUDA.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.engine import local
from calotype.engine.attention import normalise, part
from calotype.engine.passes import read_by, residual_of
from calotype.engine.reference import fold
from calotype.errors import UsageError
from calotype.families.network import Network
from calotype.steps import (
    Activation,
    Attention,
    Conv,
    Direction,
    Fold,
    Gated,
    LinearAttention,
    Local,
    Norm,
    PixelNorm,
    Program,
    Quantized,
    Scales,
    SpatialNorm,
    Step,
)

CHUNK = 1 << 22  # elements of a picture that PyTorch's norm holds in float32 at a time
QUANTIZED = 1 << 14  # positions that are held against a codebook at a time
WARM_UP = 3  # runs before a graph is captured, in which kernels are compiled and chosen


def encode_moments(module: Network, pixels: Tensor) -> Tensor:
    """What a network's encoder gives, moments or (where it has no posterior) latents, without gradients.

    Args:
        module: its weights are laid out channels-last from now on, which changes no value.
        pixels: [N, P, H, W] in [-1, 1], of the module's dtype and device.
    """
    return _ordinary(_run("encode", module, pixels))


def decode(module: Network, latents: Tensor) -> Tensor:
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
    return _normalised(x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu, out)


def _normalised(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool, out: Tensor | None
) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    if out is None:
        out = torch.empty_like(x)
    kernels, _ = _triton() if x.is_cuda else (None, "")
    group_norm = kernels.group_norm if kernels else _group_norm
    group_norm(_rows(x), groups, weight, bias, eps, silu, _rows(out))
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

    def __init__(self, module: Network, limit: int = 4) -> None:
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

    def _replay(self, part: Direction, x: Tensor) -> Tensor:
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

    def _capture(self, part: Direction, x: Tensor) -> Callable[[Tensor], Tensor]:
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


def _run(part: Direction, module: Network, x: Tensor) -> Tensor:
    _channels_last(module)
    with torch.inference_mode(), _benchmark():
        return _Run(module.program(part), dict(module.named_parameters()) | dict(module.named_buffers()))(x)


def _ordinary(result: Tensor) -> Tensor:
    """A copy that may be trained on and written to, in the layout that the module's own results have."""
    return result.clone(memory_format=torch.contiguous_format)


def _channels_last(module: Network) -> None:
    kernels = (parameter for parameter in module.parameters() if parameter.ndim == 4 and parameter.shape[2] > 1)
    if not all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels):
        # in inference mode only if the module was made in it: weights laid out there can't be trained any more
        with torch.inference_mode(next(module.parameters()).is_inference()):
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


_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "mish": F.mish,
    "clamp": lambda x: torch.tanh(x / 3) * 3,
}


class _Run:
    """One pass through a program, whole maps at a time.

    What a map is for is known beforehand, so it is freed, or written over, by the last step that reads it.
    """

    def __init__(self, program: Program, weights: dict[str, Tensor]) -> None:
        self.program, self.weights = program, weights
        self.steps = _ordered(program.steps)
        self.last = {one.name: i for i, step in enumerate(self.steps) for one in read_by(step)}
        self.maps: dict[str, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        self.maps[self.program.source.name] = x
        del x
        for i, step in enumerate(self.steps):
            name = step.source.name
            # the first map is the caller's, and a sum's own term is read once more
            own = self.last[name] == i and name != self.program.source.name
            own = own and residual_of(step) != step.source
            given = [self.maps.pop(name) if own else self.maps[name]]  # the only reference, which the step takes out
            if isinstance(step, Conv):
                self.maps[step.target.name] = self._conv(step, given, own)
            elif isinstance(step, Attention):
                self.maps[step.target.name] = self._attention(step, given, own)
            elif isinstance(step, Local):
                self.maps[step.target.name] = self._local(step, given, own)
            else:
                self.maps[step.target.name] = self._fold(step, given)
            for one in read_by(step):
                if self.last[one.name] == i:
                    self.maps.pop(one.name, None)
        return self.maps.pop(self.program.target.name)

    def _norm(self, norm: Norm | PixelNorm, x: Tensor, silu: bool, own: bool) -> Tensor:
        if isinstance(norm, PixelNorm):
            return self._pixel_norm(norm, x, silu, own)
        weight, bias = self.weights[f"{norm.weights}.weight"], self.weights[f"{norm.weights}.bias"]
        return _normalised(x, norm.groups, weight, bias, norm.eps, silu, x if own else None)

    def _pixel_norm(self, norm: PixelNorm, x: Tensor, silu: bool, own: bool) -> Tensor:
        y = _rows(x if own else x.clone(memory_format=torch.channels_last))
        factors = normalise(y.float(), norm) if y.dtype != torch.float32 else normalise(y, norm)
        weight = self.weights[f"{norm.weights}.weight"]
        factors.mul_(weight)
        if norm.bias:
            factors.add_(self.weights[f"{norm.weights}.bias"])
        y = y.copy_(F.silu(factors, inplace=True) if silu else factors)
        n, c, height, width = x.shape
        return y.view(n, height, width, c).permute(0, 3, 1, 2)

    def _conv(self, step: Conv, given: list[Tensor], own: bool) -> Tensor:
        x = given.pop()
        if step.affine:
            x = x * step.affine[0] + step.affine[1]
        activation = step.activation
        if step.norm:
            x = self._norm(step.norm, x, activation == "silu", own)
            activation = "none" if activation == "silu" else activation
        if activation != "none":
            x = _ACTIVATIONS[activation](x)
        if step.resample == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        elif step.resample == "down" and not step.pad:
            x = F.pad(x, (0, 1, 0, 1))
        weight, bias = (None if one is None else one.to(x.dtype) for one in local.batched(step, self.weights))
        assert weight is not None
        if weight.shape[2] != step.kernel:  # of blocks of pixels, which are channels here
            weight = weight.flatten(1)[:, :, None, None]
        y = F.conv2d(x, weight, bias, stride=2 if step.resample == "down" else 1, padding=step.pad)
        del x
        y = y.contiguous(memory_format=torch.channels_last)  # it is, where the convolution has a choice
        if step.gain:
            y = y.mul_(step.gain[0]).add_(step.gain[1])
        if step.residual:
            y += self.maps[step.residual.name]
        return y.relu_() if step.relu else y

    def _fold(self, step: Fold, given: list[Tensor]) -> Tensor:
        x = given.pop().permute(0, 2, 3, 1)
        y = torch.stack([fold(step, one) for one in x]).permute(0, 3, 1, 2)
        del x
        y = y.contiguous(memory_format=torch.channels_last)
        return y.add_(self.maps[step.residual.name]) if step.residual else y

    def _local(self, step: Local, given: list[Tensor], own: bool) -> Tensor:
        x = given.pop()
        if isinstance(step, SpatialNorm):
            return local.guided(step, self._norm(step.norm, x, False, own), self.maps[step.guide.name], self.weights)
        if isinstance(step, Gated):
            return local.gated(step, x, self.weights).contiguous(memory_format=torch.channels_last)
        if isinstance(step, Scales):
            return local.gathered(step, x, self.weights).contiguous(memory_format=torch.channels_last)
        rows = _rows(x.contiguous(memory_format=torch.channels_last))
        if isinstance(step, LinearAttention):
            y = torch.stack([local.attended(step, one, local.Sums.of(step, one)) for one in rows])
        elif isinstance(step, Quantized):
            flat = rows.flatten(0, 1)
            starts = range(0, len(flat), QUANTIZED)
            y = torch.cat([local.quantized(step, flat[i : i + QUANTIZED], self.weights) for i in starts])
        else:
            y = local.normed(step, rows, _rows(self.maps[step.residual.name]) if step.residual else None, self.weights)
        n, _, height, width = x.shape
        return y.to(x.dtype).view(n, height, width, -1).permute(0, 3, 1, 2)

    def _attention(self, step: Attention, given: list[Tensor], own: bool) -> Tensor:
        x = given.pop()
        n, c, height, width = x.shape
        h = self._norm(step.norm, x, silu=False, own=False) if step.norm else x
        h = _rows(h).unsqueeze(1)  # [N, one head, positions, C]
        q, k, v = (self._project(step, name, h) for name in "qkv")
        del h
        h = F.scaled_dot_product_attention(q, k, v)
        del q, k, v
        y = self._project(step, "proj_out", h).view(n, height, width, c).permute(0, 3, 1, 2)
        if not step.adds:
            return y
        return x.add_(y) if own else x + y

    def _project(self, step: Attention, name: str, x: Tensor) -> Tensor:
        """A 1x1 convolution of x [..., C]."""
        weight, bias = (part(step, self.weights, name, leaf) for leaf in ("weight", "bias"))
        return F.linear(x, weight.flatten(1), bias)


def _ordered(steps: tuple[Step, ...]) -> list[Step]:
    """The same steps, but what reads a map as it is goes before what can write over it."""
    order = list(steps)
    for step in steps:
        if not (isinstance(step, Conv) and step.norm and step.residual != step.source):
            continue
        others = [
            one for one in order[order.index(step) + 1 :]
            if isinstance(one, Conv) and one.source == step.source and not one.changes_source and one.residual is None
        ]  # fmt: skip
        for one in others:
            order.remove(one)
            order.insert(order.index(step), one)
    return order


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
