"""Looking at many pictures, one after another."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from calotype.addresses import AT_ONCE

THREADS = 8  # where each picture is waited for
_TRIED, _AGAIN = 16, 1024  # so many pictures of so many tell whether it is

_T = TypeVar("_T")
_R = TypeVar("_R")


def looked(items: Sequence[_T], look: Callable[[_T], _R], *, far: bool = False) -> Iterator[tuple[_T, _R]]:
    """Every item in order, with what `look` gives for it, whose exceptions are raised.

    This thread looks itself, or where each picture is waited for several do, a little ahead. Over files that are in
    memory several hinder each other: each hands Python's lock on at every read.

    Args:
        far: whether they are on a server, which is always waited for.
    """
    waiting: deque[tuple[_T, Future[_R]]] = deque()
    threads = AT_ONCE if far else THREADS
    several, wall, busy = far, 0.0, 0.0
    with ThreadPoolExecutor(threads) as pool:
        try:
            for done, item in enumerate(items):
                tried = not far and done % _AGAIN < _TRIED
                while waiting and (tried or len(waiting) >= 16 * threads):
                    other, future = waiting.popleft()
                    yield other, future.result()
                if several and not tried:
                    waiting.append((item, pool.submit(look, item)))
                    continue
                begin, began = time.perf_counter(), time.thread_time()
                result = look(item)
                if tried:
                    wall += time.perf_counter() - begin
                    busy += time.thread_time() - began
                    if done % _AGAIN == _TRIED - 1:
                        several, wall, busy = busy < wall / 3, 0.0, 0.0
                yield item, result
            while waiting:
                other, future = waiting.popleft()
                yield other, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
