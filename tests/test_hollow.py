"""Modules that are made to be filled."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from calotype.hollow import hollow


def test_nothing_is_there_yet() -> None:
    state = torch.get_rng_state()
    with hollow():
        layers = nn.ModuleList([nn.Embedding(3, 4), nn.Conv2d(3, 4, 3), nn.TransformerEncoderLayer(8, 2, 16)])
        given = nn.init.normal_(torch.empty(2, 3), std=0.1)
    assert all(parameter.is_meta for parameter in layers.parameters())
    assert (given.is_meta, given.shape) == (True, (2, 3))
    assert torch.equal(torch.get_rng_state(), state)
    made = nn.Linear(100, 100)
    assert not made.weight.is_meta
    assert made.weight.std() > 0


@pytest.mark.slow
def test_models_are_read_without_the_compiler() -> None:
    code = (
        "import sys, calotype, calotype.draw.model\n"
        "calotype.load(device='cpu'); calotype.draw.model.load_model()\n"
        "print('torch._dynamo' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
