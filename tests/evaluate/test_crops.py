"""Where a page's crops are taken: the part in which VAEs together err most."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest
import torch

from calotype.evaluate import session
from calotype.evaluate.session import _crop


@pytest.mark.parametrize(("height", "width"), [(40, 61), (61, 40), (16, 16), (9, 50), (17, 16)])
@pytest.mark.parametrize("count", [1, 2])
def test_the_worst_part_by_trying_all(height: int, width: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SIDE", 16)
    generator = torch.Generator().manual_seed(height * width + count)
    levels = torch.randint(0, 256, (1 + count, 3, height, width), generator=generator, dtype=torch.uint8)
    before, after = levels[0], {str(i): one for i, one in enumerate(levels[1:])}
    high, wide = min(16, height), min(16, width)
    sums = {
        (top, left): sum(
            int((one.long() - before.long())[:, top : top + high, left : left + wide].square().sum())
            for one in after.values()
        )
        for top in range(0, height - high + 1, 8)
        for left in range(0, width - wide + 1, 8)
    }
    expected = max(sums, key=lambda place: sums[place])
    crop = _crop("a.png", before, after)
    assert crop.box == (*expected, high, wide)
    top, left = expected
    assert np.array_equal(crop.original, before[:, top : top + high, left : left + wide].permute(1, 2, 0).numpy())
    for key, one in after.items():
        part = one[:, top : top + high, left : left + wide].permute(1, 2, 0).numpy()
        assert np.array_equal(crop.reconstructions[key], part)


@pytest.mark.slow
def test_it_takes_no_time() -> None:
    """A picture of six megapixels, against what adding up each of its parts takes."""
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randint(0, 256, (2, 3, 2000, 3000), generator=generator, dtype=torch.uint8)
    error = (after.float() - before.float()).square().sum(0)
    times: dict[str, list[float]] = {"crop": [], "parts": []}
    for _ in range(3):
        begin = time.process_time()
        _crop("a.png", before, {"a": after})
        middle = time.process_time()
        torch.nn.functional.avg_pool2d(error[None, None, :480], (320, 320), stride=8)  # a tenth of the rows of parts
        times["crop"].append(middle - begin)
        times["parts"].append(10 * (time.process_time() - middle))
    assert statistics.median(times["crop"]) < statistics.median(times["parts"]) / 4
