"""A cache that is filled on a Ray cluster of two nodes, and what may happen to these."""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cachekit import contents, fill, folder
from raykit import actor_that, die, once, waits
from support import one_sentence

from calotype.cache import crew, hunt
from calotype.cache.make import Progress
from calotype.errors import CalotypeError, StorageError, UsageError
from calotype.vae import VAE

quiet = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.slow, quiet]
COUNT = 20
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a processor each, in a short folder of their own: it holds sockets."""
    ray = pytest.importorskip("ray")
    import raykit
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    threads, place = torch.get_num_threads(), tempfile.mkdtemp(prefix="ray", dir="/tmp")
    torch.set_num_threads(1)
    cloudpickle.register_pickle_by_value(raykit)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("RAY_TMPDIR", place)
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_worker_niceness", "0")  # else other tests beside would hold workers up for minutes
        made = Cluster(initialize_head=True, head_node_args=NODE)
        made.add_node(**NODE)
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()
            cloudpickle.unregister_pickle_by_value(raykit)
            torch.set_num_threads(threads)
            shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def many(root: Path) -> Path:
    """A folder with twenty pictures, one of which is spoilt."""
    made = folder(root / "many", COUNT)
    (made / "7.png").write_bytes(b"")
    return made


@pytest.fixture
def whole(many: Path, root: Path, vae: VAE, cluster: Any) -> dict[str, Any]:
    """What this process makes of them."""
    if not (root / "whole").exists():
        fill(many, root / "whole", vae)
    return contents(root / "whole")


def meeting(patch: pytest.MonkeyPatch, meets: Any) -> None:
    patch.setattr(crew, "Actor", actor_that(meets))


def test_the_same_bytes_as_from_one_process(
    many: Path, whole: dict[str, Any], out: Path, tmp_path: Path, vae: VAE, cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    told: list[tuple[int, int | None]] = []
    first = fill(many, out, vae, engine="ray", part="1/3", device="cpu")
    assert 0 < first.made < COUNT - 1
    both = tmp_path / "both"
    meeting(monkeypatch, waits(both))  # or one may be done before the other begins

    def tell(now: Progress) -> None:
        told.append((now.done, now.workers))
        if now.workers == 2:
            both.touch()

    rest = fill(many, out, vae, engine="ray", device="cpu", tell=tell)
    assert first.made + rest.made == rest.held == COUNT - 1
    assert [one.name for one in rest.bad] == ["7.png"]
    assert contents(out) == whole
    assert [done for done, _ in told[20:]] == sorted(done for done, _ in told[20:])
    assert max(workers for _, workers in told if workers is not None) == 2
    again = fill(many, out, vae, engine="ray", device="cpu")
    assert (again.made, again.units, again.held) == (0, 0, COUNT - 1)
    assert contents(out) == whole


@pytest.mark.parametrize("when", ["4.png", "samples/", "receipts/"])
def test_an_actor_that_is_killed(
    when: str, many: Path, whole: dict[str, Any], out: Path, tmp_path: Path, vae: VAE, cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Before its unit is whole, and when its receipt was just written, which nobody was told of."""
    meeting(monkeypatch, once(tmp_path / "mark", when, die))
    outcome = fill(many, out, vae, engine="ray", device="cpu")
    assert (tmp_path / "mark").exists()
    assert outcome.held == COUNT - 1
    assert [one.name for one in outcome.bad] == ["7.png"]
    assert contents(out) == whole


def test_a_picture_that_kills_its_workers_is_found_and_bad(
    many: Path, whole: dict[str, Any], out: Path, vae: VAE, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisonous(name: str) -> None:
        if name == "13.png":
            die()

    meeting(monkeypatch, poisonous)
    outcome = fill(many, out, vae, engine="ray", device="cpu")
    assert {one.name: one.reason for one in outcome.bad}["13.png"] == hunt.REASON
    assert outcome.held == COUNT - 2
    found = contents(out)
    assert sorted(found) == sorted(whole)  # its unit keeps its name
    assert sum(found[name] != whole[name] for name in whole) == 4  # shard, samples, receipt, manifest
    assert fill(many, out, vae).made == 0  # nor does one process try it again


def test_what_an_actor_meets_is_told_as_it_is(
    many: Path, out: Path, vae: VAE, cluster: Any, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    full = "shards/a can't be written: No space left on device; make room."

    def refuse(name: str) -> None:
        if name.startswith("receipts"):
            raise StorageError(full)

    with monkeypatch.context() as patch, pytest.raises(StorageError) as refused:
        meeting(patch, refuse)
        fill(many, out, vae, engine="ray", device="cpu")
    assert str(refused.value) == full
    assert not [name for name in contents(out) if ".lock" in name or ".calotype-" in name]
    assert capfd.readouterr() == ("", "")
    fill(many, out, vae, engine="ray", device="cpu")
    assert contents(out) == whole


def test_nodes_that_do_not_share_the_cache(
    many: Path, out: Path, vae: VAE, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calotype.cache import make

    ordinary = make.setup_of
    monkeypatch.setattr(make, "setup_of", lambda *given, **more: _elsewhere(ordinary(*given, **more)))
    with pytest.raises(UsageError, match=r"^node .*: .*/out is another folder there, and on .* OUT must be one") as no:
        fill(many, out, vae, engine="ray", device="cpu")
    one_sentence(str(no.value))


def _elsewhere(setup: Any) -> Any:
    """As it would be where another folder is called like OUT."""
    from dataclasses import replace

    return replace(setup, mark="runs/.nobody.lock")


def test_a_cluster_without_room(many: Path, out: Path, vae: VAE, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="the cluster has no nodes with a GPU; give another --device"):
        fill(many, out, vae, engine="ray", device="cuda")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    with pytest.raises(UsageError, match="torch's 5 threads, and the cluster's nodes have at most 1 CPUs"):
        fill(many, out, vae, engine="ray", device="cpu")
    assert not list(out.glob("receipts/*"))


def test_workers_that_can_not_begin(
    many: Path, out: Path, vae: VAE, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(crew.Actor):
        def __init__(self) -> None:
            raise ModuleNotFoundError("No module named 'calotype'")

    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(crew, "Actor", Broken)
    with pytest.raises(CalotypeError, match=r"workers end before they have begun \(.*No module named 'calotype'\)"):
        fill(many, out, vae, engine="ray", device="cpu")
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_a_node_that_is_killed_and_one_that_comes(
    many: Path, whole: dict[str, Any], out: Path, tmp_path: Path, vae: VAE, cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Both have units in hand, which wait until it is. The last test here: Ray prints that a node died long after."""
    mark = tmp_path / "mark"
    meeting(monkeypatch, waits(mark))

    def tell(now: Progress) -> None:
        if now.workers == 2 and not mark.exists():
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            cluster.add_node(**NODE)
            mark.touch()

    outcome = fill(many, out, vae, engine="ray", device="cpu", tell=tell)
    assert mark.exists()
    assert outcome.held == COUNT - 1
    assert contents(out) == whole
