"""Batches of one bucket each, dealt to processes so that every sample is seen once an epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import distributed
from torch.utils.data import Sampler

from calotype.cache.dataset import LatentDataset
from calotype.errors import UsageError

Batch = NDArray[np.int64]


class BucketBatchSampler(Sampler[list[int]]):
    """Batches for a DataLoader's `batch_sampler`, each of samples of one bucket.

    All processes have as many batches, as gradients that are averaged over them need. Of all batches of an epoch
    together, every sample is in one, and none in two: what DistributedSampler repeats to come out even would be trained
    twice. Instead a bucket's samples are dealt evenly to as many batches as it takes, so that batches of a bucket
    differ by one sample at most, and none is a small rest, whose samples would weigh more than others where each
    batch's mean loss counts the same. A step has batches of one bucket on all processes, so that none waits for a
    larger one, but for those of buckets with fewer samples than there are processes.

    With `drop_last` every batch has `batch_size` samples, all of one step are of one bucket, and what is left over is
    dropped, which with `shuffle` is something else each epoch; buckets with less than a step are never seen.

    Batches depend on the arguments and the epoch alone, and so a run that was stopped goes on with
    ``set_epoch(epoch, start=batches)`` of so many as were trained, whatever workers had read ahead.

    Args:
        dataset: whose buckets they are.
        batch_size: samples of a batch, at most.
        rank: of this process; by default that of torch.distributed, where it is initialised, and else 0.
        world: how many processes there are; by default likewise.
        shuffle: orders samples and steps anew each epoch; else they are bucket by bucket in the data's order.
        seed: of this order; the same in all processes.
        drop_last: gives no batches but whole ones; see above.

    Attributes:
        rank: of this process, from 0 to below `world`.
        world: how many processes there are.
        epoch: the one whose batches come, from 0 on; `set_epoch` chooses it.
        start: how many of this process's batches are left out of it.

    Raises:
        UsageError: a number can't be, or there are not enough samples for every process to have one at each step.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        batch_size: int,
        *,
        rank: int | None = None,
        world: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        spread = distributed.is_available() and distributed.is_initialized()
        self.rank = rank if rank is not None else distributed.get_rank() if spread else 0
        self.world = world if world is not None else distributed.get_world_size() if spread else 1
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {batch_size}.")
        if not 0 <= self.rank < self.world:
            raise UsageError(f"rank must be from 0 to {self.world - 1} of world={self.world}, not {self.rank}.")
        self.dataset, self.batch_size, self.shuffle, self.seed = dataset, batch_size, shuffle, seed
        self.drop_last = drop_last
        self.epoch = self.start = 0
        bucket = dataset.bucket
        self._buckets: list[Batch] = [np.flatnonzero(bucket == one) for one in range(len(dataset.buckets))]
        counts = [len(one) for one in self._buckets]
        deal = whole_batches if drop_last else even_batches
        self._batches = deal(counts, batch_size, self.world)

    def __len__(self) -> int:
        """Batches of an epoch in each process, from `start` on."""
        return sum(self._batches) // self.world - self.start

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Chooses an epoch, for the dataset too.

        Args:
            epoch: from 0 on.
            start: how many of this process's batches are left out, because they were trained.

        Raises:
            UsageError: there are not so many.
        """
        total = sum(self._batches) // self.world
        if not 0 <= start <= total:
            raise UsageError(f"An epoch has {total} batches, so start must be from 0 to {total}, not {start}.")
        self.epoch, self.start = epoch, start
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps()[self.start :]:
            yield step[self.rank].tolist()

    def _steps(self) -> list[list[Batch]]:
        """A batch for each process, of each step."""
        random = np.random.default_rng([self.seed, self.epoch])
        steps: list[list[Batch]] = []
        loose: list[Batch] = []  # of buckets whose batches don't come out even
        for samples, count in zip(self._buckets, self._batches, strict=True):
            if not count:
                continue
            order = random.permutation(samples) if self.shuffle else samples
            if self.drop_last:
                order = order[: count * self.batch_size]
            batches = np.array_split(order, count)
            even = count - count % self.world
            steps += [batches[i : i + self.world] for i in range(0, even, self.world)]
            loose += batches[even:]
        steps += [loose[i : i + self.world] for i in range(0, len(loose), self.world)]
        if self.shuffle:
            steps = [steps[i] for i in random.permutation(len(steps))]
        return steps


def even_batches(counts: list[int], size: int, world: int) -> list[int]:
    """How many batches each bucket is cut into, of `size` samples at most, so that `world` divides all together.

    Raises:
        UsageError: there are not enough samples.
    """
    least = [-(-count // size) for count in counts]
    even = [-(-count // (size * world)) * world for count in counts]
    # first with as many buckets as can be that come out even by themselves
    for start in ([one if one <= count else few for one, few, count in zip(even, least, counts, strict=True)], least):
        batches = list(start)
        while sum(batches) % world and sum(batches) < sum(counts):
            one = max(range(len(counts)), key=lambda i: counts[i] / batches[i])  # whose batches are largest
            batches[one] += 1
        if not sum(batches) % world:
            return batches
    raise UsageError(
        f"{sum(counts)} samples in {len(counts)} buckets can't be dealt to {world} processes so that all have as many "
        "batches; take fewer processes, or drop_last=True."
    )


def whole_batches(counts: list[int], size: int, world: int) -> list[int]:
    """How many batches of just `size` samples each bucket gives, of which each process gets as many.

    Raises:
        UsageError: none does.
    """
    batches = [count // (size * world) * world for count in counts]
    if not any(batches):
        raise UsageError(
            f"No bucket has the {size * world} samples that {world} batches of {size} take (the largest has "
            f"{max(counts)}); take a smaller batch_size, fewer processes, or drop_last=False."
        )
    return batches
