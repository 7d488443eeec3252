"""Training from a cache by two processes of torch.distributed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from cachekit import fill, picture
from torch import distributed

from calotype.cache import LatentDataset, Rules
from calotype.vae import VAE

HERE = Path(__file__).resolve().parent
WORLD = 2


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_available(), reason="torch has no torch.distributed here")
def test_two_processes_see_every_sample_once(tmp_path: Path, out: Path, vae: VAE) -> None:
    """Of 7 and 10 samples in batches of 3, which do not come out even; the second epoch is stopped and gone on with."""
    for i in range(17):
        picture(tmp_path / f"data/{i:02}.png", *((32, 16) if i < 7 else (16, 32)), seed=i)
    fill(tmp_path / "data", out, vae, rules=Rules(buckets="24/8", flip=True))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen([sys.executable, str(HERE / "ddp.py"), str(out), address, str(i), str(WORLD), str(tmp_path)])
        for i in range(WORLD)
    ]
    try:
        assert [one.wait(timeout=240) for one in processes] == [0] * WORLD
    finally:
        for one in processes:
            one.kill()
            one.wait()
    told = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(WORLD)]
    assert told[0]["gradient"] == told[1]["gradient"]
    for epoch in range(2):
        batches = [[one for one in process["batches"] if one[0] == epoch] for process in told]
        assert [number for _, number, *_ in batches[0]] == [number for _, number, *_ in batches[1]]
        assert [number for _, number, *_ in batches[0]] == list(range(len(batches[0]))), "gone on in its middle"
        seen = Counter(i for process in batches for _, _, indices, _ in process for i in indices)
        assert seen == Counter(range(17)), "one twice, or one never"
        alone = LatentDataset(out)
        alone.set_epoch(epoch)
        for _, _, indices, total in (one for process in batches for one in process):
            assert float(alone.read_batch(indices)["latents"].sum()) == pytest.approx(total, rel=1e-5)
