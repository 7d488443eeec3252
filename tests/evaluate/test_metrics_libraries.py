"""PSNR, SSIM and MS-SSIM of photographs against other libraries, and why some of these say something else."""

from __future__ import annotations

import importlib
import importlib.util
import io
import math
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import data as skimage_data, metrics as skimage_metrics
from torch import Tensor

from calotype.errors import UsageError
from calotype.evaluate import metrics as module
from calotype.evaluate.metrics import ms_ssim, psnr, ssim
from calotype.pixels import from_array
from calotype.train.losses import reconstruction

data: Any = skimage_data  # scikit-image is not typed
reference: Any = skimage_metrics
Bytes = npt.NDArray[np.uint8]


def jpeg(array: Bytes, quality: int) -> Bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def chw(array: Bytes) -> Tensor:
    return torch.from_numpy(np.array(array.transpose(2, 0, 1)))


# Sides divide by 16 but for the last one's.
PHOTOS: dict[str, Callable[[], Bytes]] = {
    "astronaut": lambda: data.astronaut()[16:208, 128:304],
    "coffee": lambda: data.coffee()[80:272, 240:480],
    "chelsea": lambda: data.chelsea()[64:240, 112:336],
    "chelsea, odd sides": lambda: data.chelsea()[60:247, 100:325],
}
EVEN = [name for name in PHOTOS if "odd" not in name]


@pytest.fixture(params=[10, 60], ids=lambda quality: f"JPEG at {quality}")
def quality(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    return value


def pair(name: str, quality: int) -> tuple[Bytes, Bytes]:
    photo = np.ascontiguousarray(PHOTOS[name]())
    return photo, jpeg(photo, quality)


def batched(*arrays: Bytes) -> list[Tensor]:
    return [chw(array)[None].double() for array in arrays]


@pytest.fixture(scope="module")
def torchmetrics() -> Any:
    pytest.importorskip("torchmetrics")
    return importlib.import_module("torchmetrics.functional.image")


@pytest.fixture(scope="module")
def pytorch_msssim() -> Any:
    return pytest.importorskip("pytorch_msssim")


@pytest.fixture(scope="module")
def piq() -> Iterator[Any]:
    """Its metrics alone: the package as a whole asks for torchvision (pip install --no-deps piq)."""
    found = importlib.util.find_spec("piq")
    if found is None:
        pytest.skip("piq is not installed")
    package = types.ModuleType("piq")
    package.__path__ = list(found.submodule_search_locations or ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "piq", package)
        for name in ("psnr", "ssim", "ms_ssim"):
            importlib.import_module(f"piq.{name}")
        yield package
        for name in [key for key in sys.modules if key.startswith("piq.")]:
            del sys.modules[name]


# --- PSNR and SSIM ---


def agrees_with_scikit_image(a: Bytes, b: Bytes) -> None:
    assert psnr(chw(a), chw(b)) == pytest.approx(reference.peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9)
    # It leaves out the border where its window reaches outside, which is the mean over positions inside.
    expected = reference.structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=-1
    )
    assert ssim(chw(a), chw(b)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", PHOTOS)
def test_scikit_image_gives_the_same(name: str, quality: int) -> None:
    agrees_with_scikit_image(*pair(name, quality))


def test_scikit_image_gives_the_same_on_kodak(shared: Path) -> None:
    paths = sorted((shared / "photos" / "kodak").glob("*.png"))[::8]
    if not paths:
        pytest.skip("there is no photos/kodak in the folder with test data")
    for path in paths:
        with Image.open(path) as picture:
            photo = np.asarray(picture.convert("RGB"))
        agrees_with_scikit_image(photo, jpeg(photo, 30))


@pytest.mark.slow
@pytest.mark.parametrize("name", PHOTOS)
def test_piq_gives_the_same(piq: Any, name: str, quality: int) -> None:
    """Where it is told not to make pictures smaller first, which it does by default."""
    a, b = pair(name, quality)
    x, y = batched(a, b)
    error = 10 ** (-psnr(chw(a), chw(b)) / 10) + 1e-8  # which it adds to the mean square
    assert -10 * math.log10(error) == pytest.approx(float(piq.psnr.psnr(x, y, data_range=255)), abs=1e-9)
    given = {"kernel_size": 11, "kernel_sigma": 1.5, "data_range": 255.0}
    assert ssim(chw(a), chw(b)) == pytest.approx(float(piq.ssim.ssim(x, y, downsample=False, **given)), abs=1e-6)
    if name in EVEN:
        assert ms_ssim(chw(a), chw(b)) == pytest.approx(float(piq.ms_ssim.multi_scale_ssim(x, y, **given)), abs=1e-6)


def test_scikit_images_default_is_another_figure(quality: int) -> None:
    """A flat window of 7 x 7 and covariances divided by n - 1: up to some hundredths, in either direction."""
    differences = []
    for name in PHOTOS:
        a, b = pair(name, quality)
        differences.append(ssim(chw(a), chw(b)) - reference.structural_similarity(a, b, data_range=255, channel_axis=2))
    assert 1e-3 < max(map(abs, differences)) < 0.03


@pytest.mark.parametrize("name", PHOTOS)
def test_torchmetrics_gives_the_same_inside_the_border(torchmetrics: Any, name: str) -> None:
    """Its mean is also over positions where the window reaches a border that is made by reflection."""
    a, b = pair(name, 10)
    x, y = batched(a, b)
    # its PSNR is of sums in float32
    assert psnr(chw(a), chw(b)) == pytest.approx(
        float(torchmetrics.peak_signal_noise_ratio(y, x, data_range=255.0)), abs=2e-6
    )
    whole, full = torchmetrics.structural_similarity_index_measure(y, x, data_range=255.0, return_full_image=True)
    ours = ssim(chw(a), chw(b))
    assert full.shape == x.shape
    assert ours == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-9)
    assert 1e-5 < abs(ours - float(whole)) < 0.01
    mirrored = [F.pad(z, (5, 5, 5, 5), mode="reflect")[0] for z in (x, y)]
    assert module._similarity(*mirrored).mean().item() == pytest.approx(float(whole), abs=1e-9)


def test_torchmetrics_without_a_range_takes_the_pictures_own(torchmetrics: Any) -> None:
    """What it is then depends on the batch: the same pictures in [0, 1] and dark ones are compared more strictly."""
    a, b = (array // 4 for array in pair("coffee", 10))
    x, y = batched(a, b)
    assert float(torchmetrics.structural_similarity_index_measure(y, x)) < ssim(chw(a), chw(b)) - 0.01


@pytest.mark.parametrize("name", PHOTOS)
def test_pytorch_msssim_gives_the_same_ssim(pytorch_msssim: Any, name: str, quality: int) -> None:
    a, b = pair(name, quality)
    # its window is in float32
    assert ssim(chw(a), chw(b)) == pytest.approx(float(pytorch_msssim.ssim(*batched(a, b), data_range=255)), abs=1e-5)


# --- MS-SSIM ---


@pytest.mark.parametrize("name", EVEN)
def test_pytorch_msssim_gives_the_same_ms_ssim(pytorch_msssim: Any, name: str, quality: int) -> None:
    a, b = pair(name, quality)
    expected = float(pytorch_msssim.ms_ssim(*batched(a, b), data_range=255))
    assert ms_ssim(chw(a), chw(b)) == pytest.approx(expected, abs=1e-5)


def test_at_odd_sides_pytorch_msssim_averages_zeros_in(pytorch_msssim: Any, quality: int) -> None:
    """Black lines on both sides, which look alike in both pictures, or not, by how bright these are there."""
    a, b = pair("chelsea, odd sides", quality)
    x, y = batched(a, b)
    theirs = float(pytorch_msssim.ms_ssim(x, y, data_range=255))
    assert 1e-4 < abs(ms_ssim(chw(a), chw(b)) - theirs) < 0.05
    assert scales(x, y, lambda z: F.avg_pool2d(z, 2, padding=[s % 2 for s in z.shape[2:]])) == pytest.approx(
        theirs, abs=1e-5
    )


@pytest.mark.parametrize("name", PHOTOS)
def test_torchmetrics_ms_ssim_averages_channels_first_and_counts_a_reflected_border(
    torchmetrics: Any, name: str
) -> None:
    """The border at the last scale alone; and an odd side loses its last pixels."""
    a, b = pair(name, 10)
    x, y = batched(a, b)
    theirs = float(
        torchmetrics.multiscale_structural_similarity_index_measure(y, x, data_range=255.0, normalize="relu")
    )
    assert 1e-5 < abs(ms_ssim(chw(a), chw(b)) - theirs) < 0.02
    assert scales(x, y, lambda z: F.avg_pool2d(z, 2), border=5, channels_first=True) == pytest.approx(theirs, abs=1e-6)


def scales(
    x: Tensor, y: Tensor, halve: Callable[[Tensor], Tensor], *, border: int = 0, channels_first: bool = False
) -> float:
    """MS-SSIM from the paper's equation 7 with others' ways to halve, to continue and to average."""
    product = torch.ones(1 if channels_first else 3, dtype=torch.float64)
    for i, exponent in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        x, y = (halve(x), halve(y)) if i else (x, y)
        if i < 4:
            maps = module._luminance_and_structure(x[0], y[0])[1]
        else:
            maps = module._similarity(*(F.pad(z, (border,) * 4, mode="reflect")[0] for z in (x, y)))
        product *= (maps.mean() if channels_first else maps.mean((1, 2))) ** exponent
    return product.mean().item()


@pytest.mark.parametrize("name", PHOTOS)
def test_it_is_the_loss_of_that_name(name: str, quality: int) -> None:
    """Which was written apart from it, in float32; odd sides are continued alike."""
    a, b = pair(name, quality)
    x, y = (from_array(array)[None] for array in (a, b))
    assert ms_ssim(chw(a), chw(b)) == pytest.approx(1.0 - reconstruction("ms_ssim", x, y).item(), abs=1e-5)


def test_flat_pictures_differ_by_the_last_scales_luminance_alone() -> None:
    a, b = (torch.full((3, 176, 161), level, dtype=torch.uint8) for level in (50, 200))
    c1 = 2.55**2
    luminance = (2 * 50 * 200 + c1) / (50**2 + 200**2 + c1)
    assert ms_ssim(a, b) == pytest.approx(luminance**0.1333, abs=1e-9)
    assert ms_ssim(a, a) == pytest.approx(1.0, abs=1e-12)


def test_the_product_is_of_each_channel() -> None:
    """One channel that is reversed is worth 0, and the two others 1 each."""
    a = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 176, 176), dtype=np.uint8))
    b = a.clone()
    b[1] = 255 - b[1]
    assert ms_ssim(a, b) == pytest.approx(2 / 3, abs=1e-9)
    assert ms_ssim(b, a) == pytest.approx(2 / 3, abs=1e-9)


@pytest.mark.parametrize("size", [(160, 400), (400, 160), (10, 10)])
def test_ms_ssim_names_the_smallest_size(size: tuple[int, int]) -> None:
    a = torch.zeros(3, *size, dtype=torch.uint8)
    with pytest.raises(UsageError, match=f"MS-SSIM needs .* at least 161 x 161 pixels, not {size[0]} x {size[1]}"):
        ms_ssim(a, a)


def test_at_the_smallest_size_the_window_fits_once() -> None:
    rough = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 161, 161), dtype=np.uint8))
    assert 0.0 < ms_ssim(rough, rough.flip(2)) < 0.5


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(3, 176, 176), torch.zeros(3, 176, 176), r"uint8 \[1, 3 or 6, H, W\], not torch.float32"),
        (*torch.zeros(2, 1, 3, 176, 176, dtype=torch.uint8), r"not torch.uint8 \[1, 3, 176, 176\]"),
        (torch.zeros(3, 176, 176, dtype=torch.uint8), torch.zeros(3, 176, 177, dtype=torch.uint8), "one shape"),
    ],
)
def test_what_ms_ssim_can_not_compare(a: Tensor, b: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ms_ssim(a, b)
