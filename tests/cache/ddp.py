"""One process of a training under DDP: `python ddp.py CACHE ADDRESS RANK WORLD FOLDER`, for test_ddp.py.

Trains one number by two epochs' batches, of which it tells; the second epoch is stopped in its middle and gone on with
by samplers and datasets of their own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from calotype.cache import BucketBatchSampler, LatentDataset


def main(cache: str, address: str, rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    model = DistributedDataParallel(torch.nn.Conv2d(4, 1, 1))
    told = []
    for epoch, start, end in ((0, 0, None), (1, 0, 2), (1, 2, None)):
        dataset = LatentDataset(cache)
        sampler = BucketBatchSampler(dataset, 3)
        sampler.set_epoch(epoch, start=start)
        for number, batch in enumerate(DataLoader(dataset, sampler=sampler, batch_size=None), start):
            if number == end:
                break
            model(batch["latents"]).mean().backward()  # waits for all: would not end if one had fewer batches
            told.append((epoch, number, batch["index"].tolist(), float(batch["latents"].sum())))
    gradient = model.module.weight.grad
    assert gradient is not None
    (folder / f"{rank}.json").write_text(json.dumps({"batches": told, "gradient": gradient.flatten().tolist()}))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
