"""Many small pictures at once: the numbers of each alone, whoever computes it."""

from __future__ import annotations

import threading

import pytest
import torch
from support import kl
from torch import Tensor

import calotype
from calotype.engine import run
from calotype.engine.run import Engine, winograd_available
from calotype.errors import NonFiniteError
from calotype.steps import Direction

pytestmark = pytest.mark.skipif(bool(winograd_available()), reason="the CPU kernels can't be used here")


@pytest.fixture(autouse=True)
def _two_threads() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def computing(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The threads in which pictures were computed together."""
    seen: set[int] = set()
    executed = Engine._executed

    def watched(self: Engine, *words: object) -> object:
        seen.add(threading.get_ident())
        return executed(self, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "_executed", watched)
    return seen


def engine(name: str) -> Engine:
    if name == "built-in":
        return calotype.load(device="cpu").engine
    return Engine(kl(), torch.device("cpu"), torch.float32, "winograd")


def given(one: Engine, direction: Direction, n: int, side: int = 64) -> Tensor:
    source = one.program(direction).source
    generator = torch.Generator().manual_seed(n)
    return torch.rand(n, source.channels, side // source.factor, side // source.factor, generator=generator) * 2 - 1


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("name", ["built-in", "kl"])
def test_each_is_what_it_is_alone(name: str, direction: Direction, computing: set[int]) -> None:
    one = engine(name)
    x = given(one, direction, 9)
    alone = torch.cat([one(direction, picture[None]) for picture in x])
    computing.clear()
    together = one(direction, x)
    assert len(computing) == 2, "nothing was computed together"
    assert torch.equal(together, alone)
    torch.set_num_threads(1)
    assert torch.equal(one(direction, x), alone)


@pytest.mark.slow
def test_weights_are_those_of_the_moment() -> None:
    one = engine("kl")
    x = given(one, "encode", 3)
    before = one("encode", x)
    with torch.no_grad():
        for parameter in one.module.parameters():
            parameter.mul_(1.25)
    after = one("encode", x)
    assert torch.equal(after[0], one("encode", x[:1])[0])
    assert not torch.equal(after, before)


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["budget", "size"])
def test_what_takes_much_comes_one_after_another(
    limit: str, computing: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = engine("kl")
    x = given(one, "encode", 4)
    together = one("encode", x)
    assert len(computing) == 2
    computing.clear()
    if limit == "size":
        monkeypatch.setattr(run, "TOGETHER", 2**20)
    budget = one.plan("encode", 64, 64).peak if limit == "budget" else None
    assert torch.equal(one("encode", x, memory=budget), together)
    assert computing == {threading.get_ident()}


@pytest.mark.slow
def test_progress_ends_at_one_and_may_stop_it() -> None:
    one = engine("kl")
    x = given(one, "encode", 8)
    told: list[float] = []
    one("encode", x, progress=told.append)
    assert told == [i / 8 for i in range(1, 9)]

    class Enough(Exception):
        pass

    def stop(part: float) -> None:
        told.append(part)
        raise Enough

    told.clear()
    with pytest.raises(Enough):
        one("encode", x, progress=stop)
    assert 1 <= len(told) <= 2  # of each thread one


def test_what_is_not_finite_is_told_of_any_picture() -> None:
    one = engine("kl")
    x = given(one, "encode", 5)
    x[3, 0, 5, 5] = float("nan")
    with pytest.raises(NonFiniteError, match="float32 gave NaN or infinity"):
        one("encode", x)


@pytest.mark.slow
def test_pictures_come_in_inference_mode_too() -> None:
    vae = calotype.load(device="cpu")
    x = given(vae.engine, "encode", 4)
    plain = vae.engine("encode", x)
    with torch.inference_mode():
        assert torch.equal(vae.engine("encode", x), plain)
