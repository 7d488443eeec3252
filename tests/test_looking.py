"""Who looks at many pictures: one thread, or several where each is waited for."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from calotype.sources import looking
from calotype.sources.looking import THREADS, looked


@pytest.mark.parametrize(("busy", "far", "others"), [(0.4, False, 0), (0.3, False, 64 + 4), (0.4, True, 100)])
def test_several_threads_look_at_what_is_waited_for(
    busy: float, far: bool, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, threads = [0.0], []

    def look(i: int) -> str:
        threads.append(threading.current_thread())
        clock[0] += 1
        return f"picture {i}"

    clocks = SimpleNamespace(perf_counter=lambda: clock[0], thread_time=lambda: busy * clock[0])
    monkeypatch.setattr(looking, "time", clocks)
    monkeypatch.setattr(looking, "_AGAIN", 80)
    assert list(looked(range(100), look, far=far)) == [(i, f"picture {i}") for i in range(100)]
    assert sum(one is not threading.current_thread() for one in threads) == others, "sixteen of each eighty tell"


def test_they_look_at_the_same_time() -> None:
    together = threading.Barrier(THREADS, timeout=20)

    def look(i: int) -> int:
        return together.wait()

    assert len(list(looked(range(THREADS), look, far=True))) == THREADS


@pytest.mark.parametrize("far", [False, True])
def test_what_one_raises_ends_it(far: bool) -> None:
    seen = []

    def look(i: int) -> int:
        seen.append(i)
        if i == 3:
            raise ValueError(i)
        return i

    given = looked(range(10_000), look, far=far)
    assert [next(given)[1] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="3"):
        next(given)
    assert len(seen) < 10_000
