"""An evaluation on a Ray cluster: pictures go to workers, what they measured comes back."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calotype.errors import UsageError
from calotype.evaluate.compare import Engine, Evaluation
from calotype.evaluate.measure import Array, Taken
from calotype.evaluate.setup import Setup

AHEAD = 2  # tasks that each worker has waiting


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
        self.evaluation = setup.build(_Named(names))

    def task(self, label: str, i: int, picture: NDArray[np.uint8]) -> tuple[str, int, Taken]:
        """See `Evaluation.task`."""
        taken = self.evaluation.task(label, i, self.evaluation.original(i, picture))
        return label, i, replace(taken, levels=None)  # which are much to send


def on_ray(setup: Setup) -> Engine:
    """Does tasks on the cluster that RAY_ADDRESS names, or on a local one.

    A worker has as many threads as torch has here, so figures are the same on machines of one kind.

    Raises:
        UsageError: Ray is not installed.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise UsageError("--engine ray needs the package ray; pip install 'calotype[ray]'.") from None
    threads = torch.get_num_threads()

    def engine(evaluation: Evaluation, tasks: Iterable[tuple[str, int, Array]]) -> Iterator[tuple[str, int, Taken]]:
        mine = not ray.is_initialized()
        if mine:
            ray.init(log_to_driver=False, include_dashboard=False)
        try:
            of_gpus = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {}
            remote = ray.remote(num_cpus=threads, **of_gpus)(Worker)
            count = max(1, int(ray.cluster_resources().get("CPU", threads)) // threads)
            workers = [
                remote.remote(replace(setup, threads=threads), list(evaluation.pictures.names)) for _ in range(count)
            ]
            yield from _shared(ray, workers, tasks)
        finally:
            if mine:
                ray.shutdown()

    return engine


def _shared(
    ray: Any, workers: Sequence[Any], tasks: Iterable[tuple[str, int, Array]]
) -> Iterator[tuple[str, int, Taken]]:
    """Gives each worker a few tasks, and a new one for each that is done."""
    waiting: dict[Any, Any] = {}
    free = [worker for worker in workers for _ in range(AHEAD)]
    for task in tasks:
        if not free:
            yield _next(ray, waiting, free)
        worker = free.pop()
        waiting[worker.task.remote(*task)] = worker
    while waiting:
        yield _next(ray, waiting, free)


def _next(ray: Any, waiting: dict[Any, Any], free: list[Any]) -> tuple[str, int, Taken]:
    (done, *_), _ = ray.wait(list(waiting), num_returns=1)
    free.append(waiting.pop(done))
    taken: tuple[str, int, Taken] = ray.get(done)
    return taken
