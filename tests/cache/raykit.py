"""Helpers for tests of caches on a cluster: actors that meet something, and as much of Ray as they need."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from calotype.cache.actor import Actor, Setup
from calotype.errors import CalotypeError
from calotype.vae.sending import Packed


def actor_that(meets: Callable[[str], None]) -> type[Actor]:
    """An actor that calls a function of its own with the name of each picture that it is about to read, and of each
    file that it has written. Defined here, so that it is sent with all it needs.
    """

    class Meeting(Actor):
        def begin(self, setup: Setup, sent: Packed) -> CalotypeError | str:
            from calotype.cache import worker
            from calotype.cache.store import Store

            picture, write = worker.picture, Store.write

            def reading(source: Any, sample: Any, *rest: Any) -> Any:
                meets(sample.name)
                return picture(source, sample, *rest)

            def written(store: Store, name: str, data: bytes) -> None:
                write(store, name, data)
                meets(name)

            worker.picture, Store.write = reading, written  # type: ignore[method-assign]
            return super().begin(setup, sent)

    return Meeting


def once(mark: Path, when: str, do: Callable[[], None]) -> Callable[[str], None]:
    """Does something the first time that a name begins so, whichever process it is that meets it."""
    place = str(mark)

    def meets(name: str) -> None:
        if name.startswith(when):
            try:
                os.close(os.open(place, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            do()

    return meets


def waits(mark: Path) -> Callable[[str], None]:
    """Until there is a file, with every picture."""
    place = str(mark)

    def meets(name: str) -> None:
        until = time.monotonic() + 120
        while name.endswith(".png") and not os.path.exists(place) and time.monotonic() < until:  # noqa: PTH110
            time.sleep(0.05)

    return meets


def die() -> None:
    """As the kernel ends processes."""
    os.kill(os.getpid(), signal.SIGKILL)
