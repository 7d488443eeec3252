"""Batches of one bucket: nothing twice, nothing dropped, as many batches for every process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from calotype.cache import BucketBatchSampler
from calotype.errors import UsageError


class Buckets:
    """What a sampler asks of a dataset: so many samples in each bucket, in mixed order."""

    def __init__(self, *counts: int) -> None:
        self.buckets = [(64 * (i + 1), 64) for i in range(len(counts))]
        self.bucket = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def sampler(counts: list[int], size: int, **more: Any) -> BucketBatchSampler:
    dataset: Any = Buckets(*counts)
    return BucketBatchSampler(dataset, size, **more)


def dealt(counts: list[int], size: int, world: int, epoch: int = 0, **more: Any) -> list[list[list[int]]]:
    """Batches of all ranks."""
    found = []
    for rank in range(world):
        one = sampler(counts, size, rank=rank, world=world, **more)
        one.set_epoch(epoch)
        found.append(list(one))
        assert len(found[-1]) == len(one)
    return found


COUNTS = st.lists(st.integers(1, 70), min_size=1, max_size=5)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(COUNTS, st.integers(1, 9), st.integers(1, 5), st.booleans(), st.integers(0, 3))
@example([2, 3], 3, 3, False, 0)  # where the second bucket alone would come out even
def test_every_sample_is_in_one_batch(counts: list[int], size: int, world: int, shuffle: bool, epoch: int) -> None:
    try:
        ranks = dealt(counts, size, world, epoch, shuffle=shuffle)
    except UsageError:  # every batch would have one sample, and even so they do not come out even
        assert sum(counts) % world
        assert sum(counts) < sum(-(-one // size) for one in counts) + world
        return
    bucket = Buckets(*counts).bucket
    batches = [batch for rank in ranks for batch in rank]
    assert sorted(i for batch in batches for i in batch) == list(range(sum(counts)))
    assert len(set(map(len, ranks))) == 1
    sizes: dict[int, set[int]] = {}
    for batch in batches:
        (one,) = set(bucket[batch])
        assert 1 <= len(batch) <= size
        sizes.setdefault(one, set()).add(len(batch))
    assert all(max(one) - min(one) <= 1 for one in sizes.values())


@settings(deadline=None, max_examples=100)
@given(COUNTS, st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
def test_whole_batches_are_of_one_bucket_at_each_step(counts: list[int], size: int, world: int, epoch: int) -> None:
    if max(counts) < size * world:
        with pytest.raises(UsageError, match="No bucket has"):
            dealt(counts, size, world, drop_last=True)
        return
    ranks = dealt(counts, size, world, epoch, drop_last=True)
    bucket = Buckets(*counts).bucket
    every = [i for rank in ranks for batch in rank for i in batch]
    assert len(every) == len(set(every)) == sum(one // (size * world) * size * world for one in counts)
    for step in zip(*ranks, strict=True):
        assert {len(batch) for batch in step} == {size}
        assert len({bucket[i] for batch in step for i in batch}) == 1


@pytest.mark.parametrize(("counts", "mixed"), [((40, 40), 0), ((33, 57, 4), 0), ((100, 57, 2), 1)])
def test_steps_are_of_one_bucket_but_for_small_ones(counts: tuple[int, ...], mixed: int) -> None:
    ranks, bucket = dealt([*counts], 8, 4), Buckets(*counts).bucket
    steps = [{int(bucket[i]) for batch in step for i in batch} for step in zip(*ranks, strict=True)]
    assert sum(len(one) > 1 for one in steps) == mixed


def test_a_rest_is_dealt_to_all_batches_of_its_bucket() -> None:
    assert sorted(len(batch) for batch in sampler([65], 64, rank=0, world=1)) == [32, 33]


def test_an_epoch_has_an_order_of_its_own_and_the_same_again() -> None:
    first, second, again = (dealt([40, 30], 4, 2, epoch) for epoch in (0, 1, 0))
    assert first == again != second
    assert dealt([40, 30], 4, 2, 0, seed=1) != first
    plain = dealt([40, 30], 4, 1, 0, shuffle=False)
    assert plain == dealt([40, 30], 4, 1, 5, shuffle=False)
    bucket = Buckets(40, 30).bucket
    assert [i for batch in plain[0] for i in batch] == [*np.flatnonzero(bucket == 0), *np.flatnonzero(bucket == 1)]


def test_it_goes_on_where_it_was() -> None:
    one = sampler([40, 30], 4, rank=1, world=2)
    one.set_epoch(3)
    whole = list(one)
    one.set_epoch(3, start=5)
    assert (list(one), len(one)) == (whole[5:], len(whole) - 5)
    assert one.dataset.epoch == 3
    one.set_epoch(4)
    assert len(list(one)) == len(whole)
    with pytest.raises(UsageError, match="start must be"):
        one.set_epoch(3, start=len(whole) + 1)


def test_without_a_world_it_is_alone() -> None:
    one = sampler([5], 2)
    assert (one.rank, one.world, len(one)) == (0, 1, 3)


def test_its_world_is_that_of_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("is_initialized", True), ("get_rank", 2), ("get_world_size", 3)):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda value=value: value)
    one = sampler([12], 2)
    assert (one.rank, one.world) == (2, 3)
    assert list(one) == list(sampler([12], 2, rank=2, world=3))


@pytest.mark.parametrize(
    ("size", "more", "why"),
    [
        (0, {}, "batch_size must be at least 1"),
        (4, {"rank": 2, "world": 2}, "rank must be from 0 to 1"),
        (4, {"rank": 0, "world": 8}, "can't be dealt to 8 processes"),
    ],
)
def test_refusals(size: int, more: dict[str, int], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        sampler([3, 2], size, **more)
