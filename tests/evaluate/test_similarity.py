"""SSIM as other libraries have it, against those libraries, on a real picture and its JPEG."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from skimage.metrics import structural_similarity
from torch import Tensor

from calotype.errors import UsageError
from calotype.evaluate.metrics import ssim
from calotype.evaluate.similarity import ssim_reflect, ssim_uniform

torchmetrics = pytest.importorskip("torchmetrics.functional.image")


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    """uint8 [3, 200, 240]: part of a photograph, and what JPEG leaves of it."""
    one = np.ascontiguousarray(data.astronaut()[:200, 100:340])
    file = io.BytesIO()
    Image.fromarray(one).save(file, "JPEG", quality=20)
    return tuple(torch.from_numpy(np.asarray(x).copy()).permute(2, 0, 1) for x in (one, Image.open(file)))  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "shift", "data_range"), [(1, 0, (0.0, 255.0)), (1 / 127.5, -1, (-1.0, 1.0))])
def test_reflected_is_torchmetrics(
    pair: tuple[Tensor, Tensor], scale: float, shift: float, data_range: tuple[float, float]
) -> None:
    x, y = (one.double() * scale + shift for one in pair)
    expected = torchmetrics.structural_similarity_index_measure(y[None], x[None], data_range=data_range)
    found = ssim_reflect(y, x, data_range[1] - data_range[0])
    assert found == pytest.approx(float(expected), abs=1e-6)
    # in [-1, 1] mid-grey is 0, where the luminance term is strict; and borders count
    assert abs(found - ssim(*pair)) > 1e-4


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_uniform_is_scikit_images(pair: tuple[Tensor, Tensor], data_range: float) -> None:
    x, y = (one.double() / 255 for one in pair)
    expected = structural_similarity(
        *(one.permute(1, 2, 0).numpy() for one in (x, y)), data_range=data_range, channel_axis=-1
    )
    assert ssim_uniform(x, y, data_range) == pytest.approx(expected, abs=1e-9)


def test_a_range_of_two_flatters(pair: tuple[Tensor, Tensor]) -> None:
    """What LlamaGen's tables do: here by a twentieth."""
    x, y = (one.double() / 255 for one in pair)
    assert ssim_uniform(x, y, 2.0) > ssim_uniform(x, y, 1.0) + 0.02


def test_shapes_are_checked() -> None:
    for similarity, least in ((ssim_reflect, 6), (ssim_uniform, 7)):
        with pytest.raises(UsageError, match=f"sides of at least {least} pixels"):
            similarity(torch.zeros(3, least - 1, 20), torch.zeros(3, least - 1, 20), 1.0)
        with pytest.raises(UsageError, match="must have one shape"):
            similarity(torch.zeros(3, 20, 20), torch.zeros(3, 20, 21), 1.0)
