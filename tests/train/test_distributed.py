"""Two processes: the gradients of one with all the crops, the same weights on both, and no picture twice."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from trainkit import write_pictures

from calotype import load

HERE = Path(__file__).resolve().parent

WORKER = """
import json, os, signal, sys
from pathlib import Path
sys.path[:0] = [{here!r}, {tests!r}]
import torch
torch.set_num_threads(1)
from dataclasses import replace
from trainkit import TINY, changed
from calotype.train import loop
from calotype.train.recipe import Adversarial
from calotype.train.run import Options, train
from calotype.train.sharded import whole

out, data, steps, resume = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "resume"
world = int(sys.argv[5])
if world > 1:  # what takes seconds to import is imported once
    import lightning_fabric
    ranks = []
    for rank in range(world):
        ranks.append(os.fork())
        if not ranks[-1]:
            os.environ |= {{"RANK": str(rank), "LOCAL_RANK": str(rank)}}
            break
    else:
        if any(os.wait()[1] for _ in ranks):  # what is left would wait for it
            for one in ranks:
                try:
                    os.kill(one, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            sys.exit(1)
        sys.exit()
recipe = changed(
    phases=(), optimiser="adamw", crop=32, zoom=1.0, batch=4, steps=8, checkpoint_every=2, cooldown=0, log_every=1,
    adversarial=Adversarial(start=0, ndf=4, layers=1, norm="group", lecam=0.1, adaptive={adaptive}),
)
seen = []
step = loop.Trainer.train_step

def watched(self, crops, names=()):
    if not hasattr(self, "seen"):
        self.seen = True
        for which, optimiser, module in (
            ("network", self._fabricked[-1], self.network), ("judge", self._judged, self.discriminator),
        ):
            def stepped(real=optimiser.step, which=which, module=module):
                flat = torch.cat([whole(p.grad).flatten() for p in module.parameters()])
                torch.save(flat, out / f"{{which}}-{{self.step}}-of-{{self.fabric.global_rank}}.pt")
                return real()
            optimiser.step = stepped
    line = step(self, crops, names)
    seen.append({{"names": list(names), **line}})
    weights = torch.cat([whole(p.detach()).flatten() for p in self.network.parameters()])
    torch.save(weights, out / f"weights-{{self.step}}-of-{{self.fabric.global_rank}}.pt")
    if self.step == steps:
        os.kill(os.getpid(), signal.SIGTERM)  # on every process, as schedulers do
    return line

loop.Trainer.train_step = watched
out.mkdir(parents=True, exist_ok=True)
rank = int(os.environ.get("RANK", "0"))
options = Options(device="cpu", tensorboard=False, workers=1, resume=resume, strategy={strategy!r})
train(recipe, data, out, options, report=lambda line: None,
      notice=lambda text: None, track=lambda items, doing, total: items)
(out / f"seen-{{rank}}.json").write_text(json.dumps(seen))
"""


def launch(world: int, out: Path, data: Path, *, steps: int = 8, resume: bool = False, strategy: str = "auto") -> None:
    """Runs so many processes, as torchrun would."""
    adaptive = strategy != "fsdp" and "plain" not in out.name
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = WORKER.format(here=str(HERE), tests=str(HERE.parent), strategy=strategy, adaptive=adaptive)
    words = [sys.executable, "-c", code, str(out), str(data), str(steps), "resume" if resume else "anew", str(world)]
    environment = dict(os.environ)
    if world > 1:
        environment |= {
            "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        }  # fmt: skip
    ran = subprocess.run(words, env=environment, stderr=subprocess.PIPE, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr


def tensor(out: Path, name: str) -> torch.Tensor:
    loaded: torch.Tensor = torch.load(out / f"{name}.pt", weights_only=True)
    return loaded


def seen(out: Path, rank: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / f"seen-{rank}.json").read_text())
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures").parent


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def strategy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def two(data: Path, strategy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave that nothing stops."""
    out = tmp_path_factory.mktemp(strategy) / "two"
    launch(2, out, data, strategy=strategy)
    return out


@pytest.mark.slow
def test_two_processes_are_one_with_all_the_crops(data: Path, two: Path, tmp_path: Path, strategy: str) -> None:
    one = tmp_path / ("plain" if strategy == "fsdp" else "one")
    launch(1, one, data)
    for which in ("network", "judge"):
        for step in range(8):
            assert torch.equal(*(tensor(two, f"{which}-{step}-of-{rank}") for rank in range(2)))
        # of the first step: later ones add up rounding
        whole, shared = (tensor(out, f"{which}-0-of-0") for out in (one, two))
        assert torch.allclose(whole, shared, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))
    for step in range(1, 9):
        assert torch.equal(*(tensor(two, f"weights-{step}-of-{rank}") for rank in range(2)))
    # the crops of one, shared
    together = [a["names"] + b["names"] for a, b in zip(seen(two, 0), seen(two, 1), strict=True)]
    assert together == [line["names"] for line in seen(one, 0)]
    # what is logged is of both
    lines = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    for line, a, b in zip(lines, seen(two, 0), seen(two, 1), strict=True):
        assert a["rec"] != b["rec"]
        assert line["rec"] == pytest.approx((a["rec"] + b["rec"]) / 2, rel=1e-5)
    epoch = [name for names in together[:2] for name in names]
    assert len(set(epoch)) == 8  # of eight pictures, none twice and none left out


@pytest.mark.slow
def test_two_processes_stop_and_go_on_together(data: Path, two: Path, tmp_path: Path, strategy: str) -> None:
    parts = tmp_path / "parts"
    launch(2, parts, data, steps=3, strategy=strategy)
    assert sorted(path.name for path in (parts / "checkpoints").glob("step-*")) == [
        "step-00000002.pt",
        "step-00000003.pt",
    ]
    assert not (parts / "weights.safetensors").exists()
    launch(2, parts, data, resume=True, strategy=strategy)
    assert torch.equal(tensor(two, "weights-8-of-0"), tensor(parts, "weights-8-of-0"))
    assert len({load(out / "weights.safetensors").sha256 for out in (two, parts)}) == 1
