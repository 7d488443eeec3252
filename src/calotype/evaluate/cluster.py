"""An evaluation on a Ray cluster: pictures go to workers, what they measured comes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calotype.cluster import joined, nodes, require_room, the_ray, wanted_gpus
from calotype.engine.memory import PLENTY, keep_freed
from calotype.evaluate.compare import Engine, Evaluation
from calotype.evaluate.measure import Array, Original, Taken
from calotype.evaluate.setup import Setup

AHEAD = 2  # pictures that each worker has waiting


class _Named:
    """Names of pictures, whose pixels come with each task."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> Array:
        raise LookupError(i)


class Worker:
    """What runs on a node: everything is loaded once."""

    def __init__(self, setup: Setup, names: Sequence[str]) -> None:
        if setup.memory is None:
            keep_freed(PLENTY)
        self.evaluation = setup.build(_Named(names))
        self._at = -1
        self._original: Original | None = None

    def task(self, label: str, i: int, picture: NDArray[np.uint8]) -> tuple[str, int, Taken]:
        """See `Evaluation.task`; tasks of one picture that follow each other share what is made of it once."""
        if self._original is None or i != self._at:
            self._at, self._original = i, self.evaluation.original(i, picture)
        taken = self.evaluation.task(label, i, self._original)
        return label, i, replace(taken, levels=None, latents=None)  # which are much to send


def on_ray(setup: Setup) -> Engine:
    """Does tasks on the cluster that RAY_ADDRESS names, or on a local one.

    A worker has as many threads as torch has here, so figures are the same on machines of one kind. It has a GPU of its
    own where the setup's device is one, or it names none and the cluster has some.

    Raises:
        UsageError: Ray is not installed, or (when tasks come) no node has room for a worker.
    """
    ray = the_ray()
    threads = torch.get_num_threads()

    def engine(evaluation: Evaluation, tasks: Iterable[tuple[str, int, Array]]) -> Iterator[tuple[str, int, Taken]]:
        with joined(ray):
            there = nodes(ray)
            gpus = wanted_gpus(setup.device, there)
            remote = ray.remote(num_cpus=threads, num_gpus=gpus)(Worker)
            names = list(evaluation.pictures.names)
            count = require_room(there, threads, gpus)
            workers = [remote.remote(replace(setup, threads=threads), names) for _ in range(count)]
            yield from _shared(ray, workers, tasks)

    return engine


def _shared(
    ray: Any, workers: Sequence[Any], tasks: Iterable[tuple[str, int, Array]]
) -> Iterator[tuple[str, int, Taken]]:
    """Gives each worker the tasks of a few pictures, and those of a new one for each that is done."""
    waiting: dict[Any, Any] = {}  # tasks, and the worker that is free when the last of a picture is done
    free = [worker for _ in range(AHEAD) for worker in workers]
    for i, of in groupby(tasks, key=lambda task: task[1]):
        while not free:
            yield _next(ray, waiting, free)
        worker, held, last = free.pop(), None, None
        for label, _, picture in of:
            held = ray.put(picture) if held is None else held
            last = worker.task.remote(label, i, held)
            waiting[last] = None
        waiting[last] = worker
    while waiting:
        yield _next(ray, waiting, free)


def _next(ray: Any, waiting: dict[Any, Any], free: list[Any]) -> tuple[str, int, Taken]:
    (done, *_), _ = ray.wait(list(waiting), num_returns=1)
    if (worker := waiting.pop(done)) is not None:
        free.append(worker)
    taken: tuple[str, int, Taken] = ray.get(done)
    return taken
