"""Crops: what they are cut from depends on the place in the run and on nothing else, and threads make them in time."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import one_sentence

from calotype.errors import PictureError, UsageError
from calotype.sources import Array
from calotype.train import crops as module
from calotype.train.crops import (
    Batch,
    Crops,
    Decoded,
    Joined,
    Picked,
    Rule,
    centre_crop,
    gather,
    load,
    noise_generator,
    positions,
    readable,
    require_size,
)
from calotype.train.recipe import Source


class Held:
    """Pictures in memory, of which some are bad; it notes what is read, and may be kept waiting meanwhile."""

    def __init__(
        self, arrays: list[Array], bad: set[int] | None = None, wait: Callable[[int], object] = lambda i: None
    ) -> None:
        self.arrays, self.bad, self.wait = arrays, bad or set(), wait
        self.names = [f"{i:02}" for i in range(len(arrays))]
        self.log: list[int] = []

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def reads(self) -> Counter[int]:
        return Counter(self.log)

    def read(self, i: int) -> Array:
        self.log.append(i)
        self.wait(i)
        if i in self.bad:
            raise PictureError(f"held: {self.names[i]}: The picture is bad; mend it.")
        return self.arrays[i]

    def side(self, i: int) -> int:
        if i in self.bad:
            raise PictureError(f"held: {self.names[i]}: The picture is bad; mend it.")
        return int(min(self.arrays[i].shape[:2]))


def noise(count: int, size: int = 40) -> list[Array]:
    """Pictures of several sizes whose every crop is another."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size + i, size + 3 * i, 3), dtype=np.uint8) for i in range(count)]


def plain(count: int, size: int = 32) -> list[Array]:
    """Pictures of one colour each, which tells them apart whatever is cut from them."""
    return [np.full((size, size + i, 3), i % 256, np.uint8) for i in range(count)]


def coordinates(height: int, width: int) -> Array:
    """A picture whose pixels say where they are."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y, x, np.zeros_like(x)], axis=-1).astype(np.uint8)


def colours(batch: Batch) -> list[int]:
    return [int(crop[0, 0, 0]) for crop in batch[0]]


# Crops


def test_crops_are_those_that_the_builtin_weights_were_trained_on() -> None:
    rng = np.random.default_rng(5)
    arrays = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((120, 200, 3), (97, 96, 3), (30, 40, 3))]
    crops = Crops(Held(arrays), crop=96, zoom=2.0, seed=7)
    digest = hashlib.sha256(b"".join(crops.batch(step, 5)[0].tobytes() for step in (0, 1, 2, 1723)))
    # made by the code that trained the weights that ship
    assert digest.hexdigest() == "b4f277309d9b739e0bc3ce8ef989fe7f4e5ba73e689505410f5bb001199edb5b"


@pytest.mark.parametrize("rule", ["random", "resized", "centre"])
def test_batches_depend_on_seed_and_step_alone(rule: Rule) -> None:
    pictures = Held(noise(7))

    def crops(seed: int = 1) -> Crops:
        return Crops(pictures, crop=24, rule=rule, zoom=2.0, seed=seed)

    forward = crops()
    batches = [forward.batch(step, 5) for step in range(8)]
    backward = crops()
    for step in (7, 0, 5, 5, 2):
        pixels, names = backward.batch(step, 5)
        assert np.array_equal(pixels, batches[step][0])
        assert names == batches[step][1]
    assert not np.array_equal(crops(seed=2).batch(0, 5)[0], batches[0][0])
    assert batches[0][0].shape == (5, 24, 24, 3)
    assert batches[0][0].dtype == np.uint8
    assert len({pixels.tobytes() for pixels, _ in batches}) == 8


@pytest.mark.parametrize(
    ("count", "size", "world"), [(6, 3, 1), (7, 4, 1), (3, 8, 1), (7, 2, 3), (10, 3, 4), (5, 1, 2)]
)
def test_every_picture_comes_once_an_epoch_over_all_processes(count: int, size: int, world: int) -> None:
    crops = [Crops(Held(plain(count)), crop=16, seed=0) for _ in range(world)]
    seen = [
        colour
        for step in range(2 * count)
        for rank in range(world)
        for colour in colours(crops[rank].batch(step, size, rank, world))
    ]
    orders = [tuple(seen[start : start + count]) for start in range(0, len(seen), count)]
    assert len(orders) == 2 * size * world
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len(set(orders)) > 1


def test_many_processes_cut_what_one_would() -> None:
    crops = Crops(Held(noise(7)), crop=16, zoom=2.0, seed=0)
    for step in range(4):
        pixels, names = crops.batch(step, 6)
        parts = [crops.batch(step, 2, rank, 3) for rank in range(3)]
        assert np.array_equal(np.concatenate([part for part, _ in parts]), pixels)
        assert [name for _, part in parts for name in part] == names
    assert [*positions(2, 3, 1, 4)] == [27, 28, 29]


def test_a_batch_names_its_pictures() -> None:
    pixels, names = Crops(Held(plain(5)), crop=16, seed=0).batch(0, 5)
    assert names == [f"{int(crop[0, 0, 0]):02}" for crop in pixels]
    assert names != sorted(names)


def test_random_crops_are_cut_and_mirrored_but_not_changed() -> None:
    crops = Crops(Held([coordinates(20, 30)]), crop=16, seed=0)
    corners: Counter[tuple[int, int, bool]] = Counter()
    for crop in crops.batch(0, 400)[0]:
        rows, columns = crop[:, 0, 0].astype(int), crop[0, :, 1].astype(int)
        mirrored = columns[0] > columns[-1]
        assert np.diff(rows).tolist() == [1] * 15
        assert np.diff(columns).tolist() == [-1 if mirrored else 1] * 15
        corners[rows[0], min(columns), bool(mirrored)] += 1
    assert {corner[0] for corner in corners} == set(range(5))
    assert {corner[1] for corner in corners} == set(range(15))
    assert 150 < sum(count for (_, _, mirrored), count in corners.items() if mirrored) < 250


@pytest.mark.parametrize("rule", ["random", "resized", "centre"])
def test_without_flip_none_is_mirrored(rule: Rule) -> None:
    pictures = Held([coordinates(40, 60)])
    for flip, shares in ((False, {1}), (True, {1, -1})):
        batch = Crops(pictures, crop=16, rule=rule, flip=flip, zoom=1.5, seed=0).batch(0, 50)[0].astype(int)
        assert {int(np.sign(crop[0, -1, 1] - crop[0, 0, 1])) for crop in batch} == shares


def test_half_of_the_random_crops_are_enlarged_within_bounds() -> None:
    crops = Crops(Held([coordinates(100, 100)]), crop=32, zoom=2.0, seed=0)
    spans = [int(crop[..., 0].max()) - int(crop[..., 0].min()) for crop in crops.batch(0, 400)[0]]
    assert min(spans) >= 14  # 32 / 2 rows, less what the filter rounds
    assert max(spans) <= 31
    assert 150 < sum(span == 31 for span in spans) < 260


def test_resized_crops_are_of_every_scale_and_place() -> None:
    crops = Crops(Held([coordinates(128, 200)]), crop=32, rule="resized", zoom=2.0, seed=0)
    batch = crops.batch(0, 600)[0].astype(int)
    spans = batch[..., 0].max((1, 2)) - batch[..., 0].min((1, 2)) + 1
    assert 12 <= spans.min() <= 17  # crop / zoom, less what the filter rounds
    assert 116 <= spans.max() <= 128  # the shorter side
    octaves = np.histogram(spans, [0, 32, 64, 129])[0]  # three of them
    assert octaves.min() > 150
    tops, lefts = batch[..., 0].min((1, 2)), batch[..., 1].min((1, 2))
    assert tops.min() <= 2
    assert tops.max() >= 90
    assert lefts.min() <= 2
    assert lefts.max() >= 150


def test_making_smaller_does_not_alias() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    rules: tuple[Rule, ...] = ("resized", "centre")
    for rule in rules:
        batch = Crops(Held([stripes]), crop=16, rule=rule, seed=0).batch(0, 32)[0]
        contrast = np.abs(batch[:, 4:-4, 4:-4].astype(int) - 127.5).max((1, 2, 3))
        assert np.median(contrast) < 40  # a few are hardly resized


def test_the_centre_is_the_middle_of_the_resized_picture() -> None:
    photo = noise(1, 50)[0]
    wide = np.concatenate([photo, photo[:, :31]], axis=1)  # 50 x 81
    for array, size in ((wide, (25, 40)), (wide.swapaxes(0, 1), (40, 25)), (photo, (25, 25))):
        crop = Crops(Held([array]), crop=25, rule="centre", flip=False, zoom=3.0, seed=0).batch(0, 1)[0][0]
        whole = Image.fromarray(np.ascontiguousarray(array)).resize(size[::-1], Image.Resampling.BICUBIC)
        top, left = (size[0] - 25) // 2, (size[1] - 25) // 2
        assert np.array_equal(crop, np.asarray(whole)[top : top + 25, left : left + 25])
    exact = Crops(Held([coordinates(20, 31)]), crop=20, rule="centre", flip=False, seed=0).batch(0, 1)[0][0]
    assert np.array_equal(exact, coordinates(20, 31)[:, 5:25])


@pytest.mark.parametrize("rule", ["random", "resized", "centre"])
def test_small_pictures_are_enlarged(rule: Rule) -> None:
    pictures = Held([np.full((5, 40, 3), 77, np.uint8), np.full((1, 1, 3), 3, np.uint8)])
    pixels, _ = Crops(pictures, crop=16, rule=rule, zoom=2.0, seed=0).batch(0, 6)
    assert pixels.shape == (6, 16, 16, 3)
    assert sorted(np.unique(pixels).tolist()) == [3, 77]


def test_bad_pictures_are_replaced_by_the_next_in_order() -> None:
    good = Crops(Held(plain(9)), crop=16, seed=4)
    damaged = Crops(Held(plain(9), bad={2, 5, 6}), crop=16, seed=4)
    for epoch in range(6):
        order = colours(good.batch(epoch, 9))
        expected = [next(n for n in order[place:] + order if n not in {2, 5, 6}) for place in range(9)]
        assert colours(damaged.batch(epoch, 9)) == expected
        assert [int(name) for name in damaged.batch(epoch, 9)[1]] == expected


def test_what_is_cut_does_not_depend_on_which_bad_ones_are_known() -> None:
    def crops() -> Crops:
        pictures = Held(noise(200), bad={3, 50})
        return Crops(Decoded(pictures, cache=10**9, notice=lambda _: None), crop=16, seed=0)

    unbroken = crops()
    batches = [unbroken.batch(step, 64) for step in range(8)]
    pixels, names = crops().batch(7, 64)
    assert np.array_equal(pixels, batches[7][0])
    assert names == batches[7][1]


def test_nothing_but_bad_pictures_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        Crops(Held(plain(2), bad={0, 1}), crop=16, seed=0).batch(0, 1)
    assert str(error.value) == "none of the 2 pictures to train on can be read; mend the data."


# Sets of pictures


def test_joined_and_picked_pictures_keep_names_and_sides() -> None:
    joined = Joined([Held(plain(2)), Held([]), Held(plain(3, 50))])
    assert joined.names == ["00", "01", "00", "01", "02"]
    assert [joined.read(i).shape for i in range(5)] == [(32, 32, 3), (32, 33, 3), (50, 50, 3), (50, 51, 3), (50, 52, 3)]
    picked = Picked(joined, [4, 0, 4])
    assert (len(joined), len(picked), picked.names) == (5, 3, ["02", "00", "02"])
    assert [picked.side(i) for i in range(3)] == [50, 32, 50]
    assert [picked.read(i).shape[1] for i in range(3)] == [52, 32, 52]
    assert [*picked.once().indices] == [4, 0]


def test_decoded_pictures_stay_as_far_as_memory_goes() -> None:
    held = Held(plain(5, 10))  # 300 bytes, 330, ...
    decoded = Decoded(held, cache=300 + 330 + 360 + 100, notice=lambda _: None)
    for _ in range(3):
        for i in range(5):
            assert (decoded.read(i) == i).all()
    assert dict(held.reads) == {0: 1, 1: 1, 2: 1, 3: 3, 4: 3}
    assert (len(decoded), decoded.names, decoded.side(3)) == (5, held.names, 10)


def test_memory_is_counted_once_for_pictures_read_twice_at_a_time() -> None:
    gate = threading.Barrier(4, timeout=20)
    held = Held(plain(2, 10), wait=lambda i: gate.wait() if i == 0 else None)
    decoded = Decoded(held, cache=300 + 330, notice=lambda _: None)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decoded.read, [0] * 4))
    for _ in range(2):
        decoded.read(1)
    assert dict(held.reads) == {0: 4, 1: 1}


def test_bad_pictures_are_told_and_tried_once() -> None:
    held = Held(plain(300), bad={7, 9, 200})
    told: list[str] = []
    decoded = Decoded(held, cache=0, notice=told.append)
    for _ in range(2):
        assert [name for name, _ in readable(decoded)] == [
            name for i, name in enumerate(held.names) if i not in held.bad
        ]
    assert told == [f"held: {name}: The picture is bad; mend it." for name in ("07", "09", "200")]
    assert [held.reads[i] for i in (7, 9, 200, 8)] == [1, 1, 1, 2]


def test_a_bad_picture_that_many_threads_read_at_a_time_is_told_once() -> None:
    gate = threading.Barrier(4, timeout=20)
    held = Held(plain(1), bad={0}, wait=lambda i: gate.wait())
    told: list[str] = []
    decoded = Decoded(held, cache=0, notice=told.append)

    def read(_: int) -> None:
        with pytest.raises(PictureError):
            decoded.read(0)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    assert len(held.log) == 4
    assert len(told) == 1


@pytest.mark.parametrize(("total", "allowed"), [(10, 3), (400, 4), (1000, 10)])
def test_more_than_one_in_a_hundred_and_more_than_a_few_bad_ones_are_too_many(total: int, allowed: int) -> None:
    def read(bad: int) -> int:
        held = Held(plain(1) * total, bad=set(range(bad)))
        return len([*readable(Decoded(held, cache=0, notice=lambda _: None))])

    assert read(allowed) == total - allowed
    with pytest.raises(UsageError) as error:
        read(allowed + 1)
    assert str(error.value) == (
        f"{allowed + 1} of {total} pictures can't be read, more than 1%; mend the data, beginning with "
        "held: 00: The picture is bad; mend it."
    )
    one_sentence(str(error.value))


def write(folder: Path, arrays: list[Array]) -> None:
    folder.mkdir()
    for i, array in enumerate(arrays):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        (folder / f"{i:02}.png").write_bytes(file.getvalue())


def test_sources_are_gathered_with_their_repeats_and_without_what_is_held_out(tmp_path: Path) -> None:
    write(tmp_path / "a", plain(11))
    write(tmp_path / "b", plain(14)[11:])
    (tmp_path / "b" / "bad.png").write_bytes(b"no picture")
    told: list[str] = []
    recipe = (Source(path="a", repeat=2, hold_out=5), Source(path="b"))
    training, held_out = gather(recipe, tmp_path, cache=10**6, notice=told.append)
    kept = [1, 2, 3, 4, 6, 7, 8, 9]
    assert [int(p[0, 0, 0]) for _, p in readable(training)] == [*kept, *kept, 11, 12, 13]
    assert [int(p[0, 0, 0]) for _, p in readable(training.once())] == [*kept, 11, 12, 13]
    assert [int(p[0, 0, 0]) for _, p in readable(held_out)] == [0, 5, 10]
    assert held_out.names == ["00.png", "05.png", "10.png"]
    assert len(told) == 1
    assert told[0].startswith(f"{tmp_path / 'b'}: bad.png: ")
    assert training.read(0) is training.read(8)  # decoded once


def test_repeats_say_how_often_a_picture_comes_an_epoch(tmp_path: Path) -> None:
    write(tmp_path / "a", plain(3))
    write(tmp_path / "b", plain(8)[3:])
    training, _ = gather((Source(path="a", repeat=4), Source(path="b")), tmp_path, cache=10**6, notice=lambda _: None)
    crops = Crops(training, crop=16, seed=0)
    for epoch in range(3):
        assert Counter(colours(crops.batch(epoch, 17))) == {0: 4, 1: 4, 2: 4, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1}


def test_all_held_out_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    write(tmp_path / "a", plain(2))
    with pytest.raises(UsageError) as error:
        gather((Source(path="a", hold_out=1),), tmp_path, cache=0, notice=lambda _: None)
    expected = f"{tmp_path}: no picture is left to train on; raise hold_out of the sources, or set it to 0."
    assert str(error.value) == expected


def test_pictures_smaller_than_the_crop_are_refused_by_name() -> None:
    held = Held([*plain(300, 32), np.zeros((40, 16, 3), np.uint8), np.zeros((15, 40, 3), np.uint8)], bad={5})
    pictures = Picked(held, [*range(302), 300])
    require_size(pictures, 15)
    with pytest.raises(UsageError) as error:
        require_size(pictures, 17)
    assert str(error.value) == (
        "2 of 302 pictures are smaller than the crop of 17 pixels, the first of them 300, 16 pixels; leave them out, "
        "crop smaller, or set enlarge = true."
    )
    assert not held.log


# Ahead


def planned(crops: Crops, size: int = 4) -> Callable[[int], tuple[Crops, int]]:
    return lambda step: (crops, size)


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_loaded_batches_are_those_of_the_crops(workers: int) -> None:
    held = Held(noise(11), bad={3}, wait=lambda i: time.sleep(1e-4))
    crops = Crops(held, crop=16, zoom=2.0, seed=0)
    small = Crops(held, crop=8, rule="resized", seed=0)

    def plan(step: int) -> tuple[Crops, int]:
        return (crops, 4) if step < 6 else (small, 3)

    batches = [*load(plan, 3, 12, rank=1, world=2, workers=workers)]
    assert len(batches) == 9
    for step, (pixels, names) in enumerate(batches, 3):
        taken, size = plan(step)
        expected = taken.batch(step, size, 1, 2)
        assert np.array_equal(pixels, expected[0])
        assert names == expected[1]
    assert [*load(plan, 5, 5)] == []


def test_loading_goes_on_while_a_batch_is_used_but_not_without_end() -> None:
    held = Held(noise(50))
    batches = load(planned(Crops(held, crop=8, seed=0)), 0, 100, workers=2)
    for taken in range(1, 4):
        next(batches)
        deadline = time.monotonic() + 10
        while len(held.log) < 4 * (taken + 2) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.02)
        assert len(held.log) == 4 * (taken + 2)
    batches.close()  # type: ignore[attr-defined]


def test_every_thread_has_work_when_batches_are_small() -> None:
    gate = threading.Barrier(16, timeout=20)  # opens when sixteen read at a time
    crops = Crops(Held(noise(50), wait=lambda i: gate.wait()), crop=8, seed=0)
    assert len([*load(planned(crops, 1), 0, 32, workers=16)]) == 32


def test_closing_leaves_no_thread_and_reads_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            closed.set()
            super().shutdown(wait=wait)

    monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    before = threading.active_count()
    first = set(Crops(Held(noise(50)), crop=8, seed=0).batch(0, 4)[1])
    held = Held(noise(50), wait=lambda i: f"{i:02}" in first or closed.wait(20))
    batches = load(planned(Crops(held, crop=8, seed=0)), 0, 100, workers=2)
    assert set(next(batches)[1]) == first
    while len(held.log) < 6:  # both threads have gone on
        time.sleep(0.001)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert len(held.log) == 6


def test_errors_of_threads_arrive() -> None:
    before = threading.active_count()
    decoded = Decoded(Held(plain(40), bad={*range(20)}), cache=0, notice=lambda _: None)
    with pytest.raises(UsageError, match=r"\d+ of 40 pictures can't be read, more than 1%"):
        list(load(planned(Crops(decoded, crop=8, seed=0)), 0, 10, workers=3))
    assert threading.active_count() == before


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
