"""A Ray cluster: joining it, and what its nodes have room for. No torch; Ray itself is imported when it is wanted."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from calotype.errors import UsageError
from calotype.stopping import kept

ADDRESS = "RAY_ADDRESS"
Node = Mapping[str, float]  # its resources

_PLACE = re.compile(r"(?:ray://)?\[?([^\[\]/]+)\]?:([0-9]{1,5})")
_PATIENCE = 10.0  # seconds that a connection may take


def the_ray() -> Any:
    """The package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise UsageError("--engine ray needs the package ray; pip install 'calotype[ray]'.") from None


@contextmanager
def joined(ray: Any) -> Iterator[None]:
    """The cluster that RAY_ADDRESS names, or a local one, which ends with the block; one that is joined already stays.

    Raises:
        UsageError: no cluster answers there.
    """
    if ray.is_initialized():
        yield
        return
    with _silent(ray):
        try:
            _join(ray)
            yield
        finally:
            ray.shutdown()


def _join(ray: Any) -> None:
    address = os.environ.get(ADDRESS, "")
    try:
        if found := _PLACE.fullmatch(address):  # of one that is not there Ray says nothing but ends the process
            socket.create_connection((found[1], int(found[2])), timeout=_PATIENCE).close()
        with kept():  # it handles SIGTERM in a way of its own
            ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        if not address:
            raise
        why = str(error).strip().partition("\n")[0].rstrip(".")
        raise UsageError(
            f"--engine ray: {ADDRESS} is {address}, and no cluster can be joined there ({why}); start one (ray start "
            "--head), or unset it for one on this machine."
        ) from None


@contextmanager
def _silent(ray: Any) -> Iterator[None]:
    """Ray's words on workers that died, which it has on standard output whatever `log_to_driver` is, go nowhere."""
    worker = importlib.import_module(f"{ray.__name__}._private.worker")
    said = getattr(worker, "print_to_stdstream", None)
    worker.print_to_stdstream = lambda *given, **more: None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        worker.print_to_stdstream = said  # type: ignore[attr-defined]


def nodes(ray: Any) -> list[Node]:
    """Resources of the nodes that there are now."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def hosts(ray: Any) -> set[str]:
    """Names of the machines that there are now."""
    return {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}


def wanted_gpus(device: str | None, nodes: Sequence[Node]) -> int:
    """GPUs of each worker, 0 or 1."""
    if device is not None:
        return int(device.partition(":")[0] == "cuda")
    return int(any(node.get("GPU", 0) >= 1 for node in nodes))


def room(nodes: Sequence[Node], cpus: int, gpus: int) -> int:
    """How many workers of so many CPUs and GPUs the nodes have room for, each on one of them."""
    wanted = {"CPU": cpus, "GPU": gpus}
    return sum(min(int(node.get(key, 0)) // n for key, n in wanted.items() if n) for node in nodes)


def require_room(nodes: Sequence[Node], cpus: int, gpus: int) -> int:
    """As `room`, with one worker at least.

    Raises:
        UsageError: none; Ray would wait for a node that has it for ever.
    """
    if count := room(nodes, cpus, gpus):
        return count
    kind = "nodes with a GPU" if gpus else "nodes"
    most = max((int(node.get("CPU", 0)) for node in nodes if node.get("GPU", 0) >= gpus), default=0)
    if not most:
        raise UsageError(f"--engine ray: the cluster has no {kind}; give another --device, or add some.")
    raise UsageError(
        f"--engine ray: a worker has torch's {cpus} threads, and the cluster's {kind} have at most {most} CPUs; set "
        f"OMP_NUM_THREADS to that or less."
    )


def scales(ray: Any) -> bool:
    """Whether the cluster starts nodes itself when something waits for room, as far as it tells.

    Ray has no public word for that. The first version of its autoscaler keeps its report where `ray status` finds it,
    and calls the nodes that it only looks at node_ID.
    """
    try:
        if importlib.import_module(f"{ray.__name__}.autoscaler.v2.utils").is_autoscaler_v2():
            return True
        values = importlib.import_module(f"{ray.__name__}.experimental.internal_kv")
        report = json.loads(values._internal_kv_get("__autoscaling_status"))["autoscaler_report"]
        return any(not kind.startswith("node_") for kind in (report["node_type_mapping"] or {}).values())
    except (ImportError, AttributeError, KeyError, TypeError, ValueError, AssertionError, RuntimeError):
        return False
