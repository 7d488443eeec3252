"""An evaluation on a local Ray: the same figures as in one process."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support import SMALL, fill, kl, one_sentence

from calotype.cluster import require_room as room, wanted_gpus
from calotype.errors import UsageError
from calotype.evaluate import measure as measuring
from calotype.evaluate.cluster import Worker, _shared
from calotype.evaluate.lpips import LPIPS
from calotype.evaluate.protocol import Protocol
from calotype.evaluate.session import evaluate
from calotype.evaluate.setup import Setup
from calotype.latents import ScaleShift
from calotype.sources import open_source
from calotype.weights.save import save_weights

quiet = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def drawn(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (34, 36 + i, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def weights(folder: Path, count: int) -> tuple[str, ...]:
    format_ = ScaleShift(name="mine", channels=4, scaling_factor=1.0)
    paths = [folder / f"vae{seed}.safetensors" for seed in range(count)]
    for seed, path in enumerate(paths):
        save_weights(kl(SMALL, seed), path, layout="ldm", format_=format_)
    return tuple(map(str, paths))


@pytest.mark.slow
@quiet
def test_ray_gives_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LPIPS, boxes, a picture that can't be read and one that is too large for the memory given, too."""
    pytest.importorskip("ray")
    data = drawn(tmp_path / "data", 5)
    Image.fromarray(np.zeros((600, 600, 3), np.uint8)).save(data / "5.png")
    (data / "6.png").write_bytes(b"no picture")
    monkeypatch.setenv("CALOTYPE_LPIPS", str(tmp_path / "weights.safetensors"))
    save_file(fill(LPIPS("alex"), seed=1, gain=1.4).state_dict(), tmp_path / "weights.safetensors")
    boxes = {"faces": {"1.png": [(0, 0, 32, 33), (3, 3, 20, 20)], "4.png": [(2, 1, 36, 34)]}}
    setup = Setup(
        vaes=weights(tmp_path, 2), protocol=Protocol(name="drawn", latent="sample", seed=1),
        metrics=("psnr", "ssim", "lpips_alex"), boxes=boxes, device="cpu", memory="18MB",
    )  # fmt: skip
    told: list[tuple[int, int]] = []
    here = evaluate(data, setup, tmp_path / "here")
    there = evaluate(
        data,
        setup,
        tmp_path / "there",
        engine="ray",
        progress=lambda done, total: told.append((done, total)),
    )
    for a, b in zip(here["vaes"], there["vaes"], strict=True):
        assert a["rows"] == b["rows"]
        assert a["means"] == b["means"]
        assert a["latents"] == b["latents"]
        assert a["subsets"] == b["subsets"]
        assert [row["picture"] for row in b["rows"] if "error" in row] == [5, 6]
        assert "600x600 pixels can't be done in 18MB" in b["rows"][5]["error"]
        assert b["means"]["lpips_alex"]["n"] == 5
        assert b["subsets"]["faces"]["psnr"]["n"] == 3
    assert told[-1] == (14, 14)
    assert len(told) == 13  # the one that can't be read is told of once
    assert (here["engine"], there["engine"]) == ("local", "ray")


@pytest.mark.slow
@quiet
def test_several_decoders(tmp_path: Path) -> None:
    """Latents of one encoder, decoded by workers: figures, notices and crops are those of one process."""
    pytest.importorskip("ray")
    data = drawn(tmp_path / "data", 5)
    first, *others = weights(tmp_path, 3)
    setup = Setup(
        vaes=(first,), decoders=tuple(others), any_vae=True, metrics=("psnr", "bias_red", "gradient"), device="cpu",
        protocol=Protocol(name="drawn", latent="sample", seed=1), threads=1,
    )  # fmt: skip
    threads = torch.get_num_threads()
    try:
        here, there = (evaluate(data, setup, tmp_path / engine, engine=engine) for engine in ("local", "ray"))
    finally:
        torch.set_num_threads(threads)
    assert [one["label"] for one in there["vaes"]] == ["vae0", "vae1", "vae2"]
    for a, b in zip(here["vaes"], there["vaes"], strict=True):
        assert a["rows"] == b["rows"] and len(b["rows"]) == 5
        assert a["means"] == b["means"]
        assert a["latents"] == b["latents"]
        assert set(a["speed"]) == set(b["speed"])
    assert there["encoder"] == here["encoder"]
    assert there["warnings"] == here["warnings"]
    pages = [(tmp_path / engine / "index.html").read_text() for engine in ("local", "ray")]
    images = [re.findall(r"<img [^>]*>", page) for page in pages]
    assert images[0] == images[1] and images[0]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two CPUs, and a GPU that only Ray believes in."""
    ray = pytest.importorskip("ray")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(num_cpus=2, num_gpus=1, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("device", ["cpu", None])
def test_a_cluster_with_a_gpu(device: str | None, cluster: None, tmp_path: Path) -> None:
    """More workers than GPUs would wait for ever."""
    if device is None and torch.cuda.is_available():
        pytest.skip("here it would be used")
    setup = Setup(
        vaes=weights(tmp_path, 1), protocol=Protocol(), metrics=("psnr",), device=device, threads=1
    )  # fmt: skip
    data = drawn(tmp_path / "data", 3)
    threads = torch.get_num_threads()
    try:
        found = evaluate(data, setup, tmp_path / "r", engine="ray")
    finally:
        torch.set_num_threads(threads)
    assert found["vaes"][0]["means"]["psnr"]["n"] == 3


class Here:
    """As much of Ray as tasks need: each is done at once, and told of the last first."""

    class Task:
        def __init__(self, worker: Worker, seen: list[tuple[str, int]]) -> None:
            self.worker, self.seen = worker, seen

        @property
        def task(self) -> Here.Task:
            return self

        def remote(self, label: str, i: int, picture: list[np.ndarray]) -> object:
            self.seen.append((label, i))
            done = self.worker.task(label, i, picture[0])
            return lambda: done

    def put(self, value: np.ndarray) -> list[np.ndarray]:
        return [value]

    def wait(self, waiting: list[object], num_returns: int) -> tuple[list[object], list[object]]:
        return waiting[-num_returns:], waiting[:-num_returns]

    def get(self, task: Any) -> Any:
        return task()


@pytest.mark.slow
def test_a_picture_is_encoded_once_for_all_its_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = weights(tmp_path, 3)
    setup = Setup(
        vaes=(first,), decoders=tuple(others), protocol=Protocol(), metrics=("psnr",), device="cpu", threads=1
    )
    pictures = open_source("data", drawn(tmp_path / "data", 7).parent)
    encoded: list[str] = []
    encode = measuring.encode
    monkeypatch.setattr(measuring, "encode", lambda vae, *rest: encoded.append(vae.name) or encode(vae, *rest))
    workers = [Here.Task(Worker(setup, pictures.names), []) for _ in range(2)]
    tasks = [(f"vae{k}", i, pictures.read(i)) for i in range(7) for k in range(3)]
    found = list(_shared(Here(), workers, tasks))
    assert sorted((label, i) for label, i, _ in found) == sorted((label, i) for label, i, _ in tasks)
    assert all("error" not in taken.row and taken.levels is None for _, _, taken in found)
    assert len(encoded) == 7
    shares = [{i for _, i in worker.seen} for worker in workers]
    assert not shares[0] & shares[1] and min(map(len, shares)) >= 2


def test_workers_that_nodes_have_room_for() -> None:
    plain: list[dict[str, float]] = [{"CPU": 8.0, "memory": 1e9}, {"CPU": 3.0}, {}]
    with_gpus: list[dict[str, float]] = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 64.0}, {"CPU": 4.0, "GPU": 8.0}]
    assert room(plain, 2, 0) == 4 + 1
    assert room(plain, 4, 0) == 2  # eleven CPUs, but not on one node
    assert room(with_gpus, 4, 1) == 2 + 1
    assert room(with_gpus, 4, 0) == 4 + 16 + 1
    for nodes, threads, gpus, message in (
        (plain, 9, 0, "a worker has torch's 9 threads, and the cluster's nodes have at most 8 CPUs; set OMP_NUM"),
        (with_gpus, 32, 1, "32 threads, and the cluster's nodes with a GPU have at most 16 CPUs; set OMP_NUM_THREADS"),
        (plain, 1, 1, "the cluster has no nodes with a GPU; give another --device, or add some"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            room(nodes, threads, gpus)
        one_sentence(str(error.value))
    assert [wanted_gpus(device, with_gpus) for device in ("cpu", "cuda", "cuda:1", "mps", None)] == [0, 1, 1, 0, 1]
    assert [wanted_gpus(device, plain) for device in ("cpu", "cuda", None)] == [0, 1, 0]


@pytest.mark.slow
@quiet
def test_threads_that_no_node_has(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(vaes=weights(tmp_path, 1), protocol=Protocol(), metrics=("psnr",), device="cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    with pytest.raises(UsageError, match="torch's 5 threads, and the cluster's nodes have at most 2 CPUs"):
        evaluate(drawn(tmp_path / "data", 1), setup, tmp_path / "r", engine="ray")


@pytest.mark.slow
def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calotype.evaluate.cluster import on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with warnings.catch_warnings(), pytest.raises(UsageError, match=r"pip install 'calotype\[ray\]'"):
        on_ray(Setup(vaes=("builtin",), protocol=Protocol()))
