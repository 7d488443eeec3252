"""Joining a Ray cluster, and what is asked of it; with as much of Ray as that takes."""

from __future__ import annotations

import json
import signal
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support import one_sentence

from calotype.cluster import hosts, joined, nodes, scales
from calotype.errors import UsageError

NAME = "as_much_of_ray"


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package whose parts can be imported."""

    def part(name: str, **values: Any) -> ModuleType:
        made = ModuleType(f"{NAME}{name}")
        made.__dict__.update(values)
        monkeypatch.setitem(sys.modules, made.__name__, made)
        return made

    one = part("", said=[], is_initialized=lambda: False)
    one.shutdown = lambda: one.said.append("shut down")  # type: ignore[attr-defined]
    one.worker = part("._private.worker", print_to_stdstream=print)  # type: ignore[attr-defined]
    one.kept = part(".experimental.internal_kv", _internal_kv_get=lambda key: None)  # type: ignore[attr-defined]
    one.utils = part(".autoscaler.v2.utils", is_autoscaler_v2=lambda: False)  # type: ignore[attr-defined]
    return one


def test_a_cluster_is_joined_in_silence_and_left(ray: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def init(**options: Any) -> None:
        assert not options["log_to_driver"]
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    ray.init, before = init, signal.getsignal(signal.SIGTERM)
    with joined(ray):
        ray.worker.print_to_stdstream("A worker died")
        assert signal.getsignal(signal.SIGTERM) is before
        assert not ray.said
    assert ray.said == ["shut down"]
    assert ray.worker.print_to_stdstream is print
    assert capsys.readouterr().out == ""


def test_a_cluster_that_is_joined_already_stays(ray: Any) -> None:
    ray.is_initialized = lambda: True
    with joined(ray):
        pass
    assert not ray.said


def test_a_cluster_that_does_not_answer(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        raise ConnectionError("ray client connection timeout.\nMore of it")

    ray.init = init
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with (
        pytest.raises(UsageError, match=r"RAY_ADDRESS is auto, and no cluster can be joined there \(ray") as no,
        joined(ray),
    ):
        pytest.fail("there is none")
    one_sentence(str(no.value))
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ConnectionError), joined(ray):
        pytest.fail("there is none")


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "[::1]:9", "127.0.0.1:99999"])
def test_an_address_where_nothing_listens(address: str, ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would end the process after a minute."""
    ray.init = lambda **options: pytest.fail("it was tried")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(UsageError, match=r"RAY_ADDRESS is .*:9+, and no cluster can be joined there \(") as no,
        joined(ray),
    ):
        pytest.fail("there is none")
    one_sentence(str(no.value))


def test_only_nodes_that_are_alive_count(ray: Any) -> None:
    ray.nodes = lambda: [
        {"Alive": alive, "Resources": {"CPU": 2.0}, "NodeManagerHostname": name}
        for name, alive in (("a", True), ("b", False))
    ]
    assert nodes(ray) == [{"CPU": 2.0}]
    assert hosts(ray) == {"a"}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [({"ff": "ray.head.default"}, True), ({"ff": "node_ff"}, False), ({}, False), (None, False)],
)
def test_whether_a_cluster_grows(kinds: dict[str, str] | None, expected: bool, ray: Any) -> None:
    """As `ray start` with --autoscaling-config, and without, report it in Ray 2.60."""
    assert not scales(ray)  # nothing is reported yet
    report = json.dumps({"autoscaler_report": {"node_type_mapping": kinds}}).encode()
    ray.kept._internal_kv_get = {"__autoscaling_status": report}.get
    assert scales(ray) is expected
    ray.utils.is_autoscaler_v2 = lambda: True
    assert scales(ray)


def test_a_ray_that_tells_nothing_does_not_grow() -> None:
    assert not scales(SimpleNamespace(__name__="no_such_ray"))
