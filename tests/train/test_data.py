"""Training pictures: how they are read, and how crops depend on the place in the run and on nothing else."""

from __future__ import annotations

import io
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trainkit import no_track, picture, png, write_pictures

from calotype.errors import UsageError
from calotype.train.data import Array, Crops, ahead, centre_crop, noise_generator, read_source


def plain(count: int, size: int = 32) -> list[Array]:
    """Pictures of one colour each, which tells them apart whatever is cut from them."""
    return [np.full((size, size + i, 3), i * 10, np.uint8) for i in range(count)]


# Reading


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", 3)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "x.PNG").write_bytes(png(picture(9)))
    (folder / "notes.txt").write_text("no picture")
    (folder / "._00.png").write_bytes(b"what macOS leaves beside a picture")
    (folder / "folder.png").mkdir()
    read, skipped = read_source(folder, no_track)
    assert skipped == []
    expected = [*(picture(seed) for seed in range(3)), picture(9)]
    assert all(map(np.array_equal, read, expected))
    assert len(read) == 4
    assert {array.dtype for array in read} == {np.dtype(np.uint8)}


def test_a_zip_gives_what_the_folder_gives(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", 4)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.mkdir("inside.png")
        for path in sorted(folder.iterdir(), reverse=True):
            archive.write(path, f"a/{path.name}")
            archive.writestr(f"__MACOSX/a/._{path.name}", b"no picture")
    unpacked, zipped = read_source(folder, no_track)[0], read_source(tmp_path / "a.zip", no_track)[0]
    assert len(zipped) == 4
    assert all(map(np.array_equal, unpacked, zipped))


def test_bad_pictures_are_listed_by_name(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", 2)
    (folder / "bad.png").write_bytes(png(picture(0))[:100])
    (folder / "empty.jpg").touch()
    read, skipped = read_source(folder, no_track)
    assert len(read) == 2
    assert [line.split(": ")[0] for line in skipped] == [str(folder / "bad.png"), str(folder / "empty.jpg")]
    assert "cut off" in skipped[0]


def test_damaged_members_of_a_zip_are_listed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.png", png(picture(0)))
        archive.writestr("bad.png", body := png(picture(1)))
    content = (tmp_path / "a.zip").read_bytes()
    place = content.index(body) + 60
    (tmp_path / "a.zip").write_bytes(content[:place] + b"xxxx" + content[place + 4 :])
    read, skipped = read_source(tmp_path / "a.zip", no_track)
    assert len(read) == 1
    assert len(skipped) == 1
    assert skipped[0].startswith("bad.png: Bad CRC-32")


def test_transparency_is_put_over_white(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    glass = np.zeros((8, 8, 4), np.uint8)
    glass[:, 4:, 3] = 255
    Image.fromarray(glass).save(folder / "glass.png")
    (array,), _ = read_source(folder, no_track)
    assert array.shape == (8, 8, 3)
    assert (array[:, :4] == 255).all()
    assert (array[:, 4:] == 0).all()


def test_grey_and_other_formats_become_rgb(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "grey.png").write_bytes(png(picture(0), "L"))
    file = io.BytesIO()
    Image.fromarray(picture(1)).save(file, "JPEG")
    (folder / "photo.jpeg").write_bytes(file.getvalue())
    assert [array.shape for array in read_source(folder, no_track)[0]] == [(40, 48, 3)] * 2


def test_what_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no zip")
    for name in ("missing", "text.zip"):
        with pytest.raises(UsageError, match="there is no such folder or zip of pictures; see --data"):
            read_source(tmp_path / name, no_track)
    with pytest.raises(UsageError, match="no picture in it can be read"):
        read_source(tmp_path / "empty", no_track)


def test_progress_is_shown_over_all_names(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", 5)
    seen: list[str] = []

    def track(items: object) -> object:
        assert isinstance(items, list)
        for item in items:
            yield item
            seen.append(item.name)

    read_source(folder, track)  # type: ignore[arg-type]
    assert seen == [f"{i:02}.png" for i in range(5)]


# Crops


def test_batches_depend_on_seed_and_step_alone() -> None:
    photos = [picture(seed) for seed in range(7)]

    def crops(seed: int = 1) -> Crops:
        return Crops(photos, crop=24, zoom=2.0, seed=seed)

    forward = crops()
    batches = [forward.batch(step, 5) for step in range(8)]
    backward = crops()
    for step in (7, 0, 5, 5, 2):
        assert np.array_equal(backward.batch(step, 5), batches[step])
    assert not np.array_equal(crops(seed=2).batch(0, 5), batches[0])
    assert batches[0].shape == (5, 24, 24, 3)
    assert batches[0].dtype == np.uint8
    assert len({batch.tobytes() for batch in batches}) == 8


@pytest.mark.parametrize(("count", "size"), [(6, 3), (7, 4), (5, 5), (3, 8)])
def test_every_picture_comes_once_an_epoch(count: int, size: int) -> None:
    crops = Crops(plain(count), crop=16, zoom=1.0, seed=0)
    seen = [int(crop[0, 0, 0]) for step in range(2 * count) for crop in crops.batch(step, size)]
    orders = [tuple(seen[start : start + count]) for start in range(0, len(seen), count)]
    assert len(orders) == 2 * size
    assert all(sorted(order) == [i * 10 for i in range(count)] for order in orders)
    assert len(set(orders)) > 1


def coordinates(height: int, width: int) -> Array:
    """A picture whose pixels say where they are."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y, x, np.zeros_like(x)], axis=-1).astype(np.uint8)


def test_crops_are_cut_and_flipped_but_not_changed() -> None:
    crops = Crops([coordinates(20, 30)], crop=16, zoom=1.0, seed=0)
    corners: Counter[tuple[int, int, bool]] = Counter()
    for crop in crops.batch(0, 400):
        rows, columns = crop[:, 0, 0].astype(int), crop[0, :, 1].astype(int)
        flipped = columns[0] > columns[-1]
        assert np.diff(rows).tolist() == [1] * 15
        assert np.diff(columns).tolist() == [-1 if flipped else 1] * 15
        corners[rows[0], min(columns), bool(flipped)] += 1
    assert {corner[0] for corner in corners} == set(range(5))
    assert {corner[1] for corner in corners} == set(range(15))
    assert 150 < sum(count for (_, _, flipped), count in corners.items() if flipped) < 250


def test_half_of_the_crops_are_enlarged_within_bounds() -> None:
    crops = Crops([coordinates(100, 100)], crop=32, zoom=2.0, seed=0)
    spans = [int(crop[..., 0].max()) - int(crop[..., 0].min()) for crop in crops.batch(0, 400)]
    assert min(spans) >= 14  # 32 / 2 rows, less what the filter rounds
    assert max(spans) <= 31
    assert 150 < sum(span == 31 for span in spans) < 260


def test_small_pictures_are_enlarged() -> None:
    crops = Crops([np.full((5, 40, 3), 77, np.uint8), np.full((1, 1, 3), 3, np.uint8)], crop=16, zoom=1.0, seed=0)
    batch = crops.batch(0, 6)
    assert batch.shape == (6, 16, 16, 3)
    assert sorted(np.unique(batch).tolist()) == [3, 77]


# Ahead


def test_ahead_keeps_the_order_and_stops_at_the_end() -> None:
    made: list[int] = []

    def make(step: int) -> Array:
        made.append(step)
        return np.full(1, step, np.uint8)

    assert [int(batch[0]) for batch in ahead(make, 3, 9)] == [3, 4, 5, 6, 7, 8]
    assert made == [3, 4, 5, 6, 7, 8]


def test_ahead_is_one_ahead_and_leaves_no_thread() -> None:
    made: list[int] = []

    def make(step: int) -> Array:
        made.append(step)
        return np.zeros(1, np.uint8)

    before = threading.active_count()
    batches = ahead(make, 0, 100)
    next(batches)
    next(batches)
    time.sleep(0.05)
    assert made == [0, 1, 2]
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert made == [0, 1, 2]


def test_ahead_passes_errors_on() -> None:
    def make(step: int) -> Array:
        if step == 2:
            raise ValueError("step 2")
        return np.zeros(1, np.uint8)

    with pytest.raises(ValueError, match="step 2"):
        list(ahead(make, 0, 5))


# The rest


def test_the_centre_is_cropped_to_a_multiple() -> None:
    x = centre_crop(coordinates(30, 43), 8)
    assert x.shape == (1, 3, 24, 40)
    assert ((x[0, :2, 0, 0] + 1) * 127.5).round().tolist() == [3, 1]
    assert centre_crop(coordinates(200, 250), 8, most=64).shape == (1, 3, 64, 64)
    assert centre_crop(coordinates(8, 16), 8).shape == (1, 3, 8, 16)


@pytest.mark.parametrize("size", [(1, 1), (7, 30), (30, 5)])
def test_the_centre_of_a_picture_below_the_factor_is_padded(size: tuple[int, int]) -> None:
    x = centre_crop(np.full((*size, 3), 255, np.uint8), 8)
    assert x.shape == (1, 3, *(max(8, n // 8 * 8) for n in size))
    assert (x == 1).all()


def test_noise_depends_on_seed_and_step() -> None:
    def draw(seed: int, step: int) -> list[float]:
        drawn: list[float] = torch.randn(4, generator=noise_generator(seed, step)).tolist()
        return drawn

    assert draw(0, 1) == draw(0, 1)
    assert len({tuple(draw(seed, step)) for seed in range(3) for step in range(3)}) == 9
