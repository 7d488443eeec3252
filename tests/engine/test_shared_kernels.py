"""Kernels on a disk that two kinds of processors share."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from calotype.engine.run import winograd_available

pytestmark = pytest.mark.skipif(bool(winograd_available()), reason="the CPU kernels can't be used here")

RUN = """
import hashlib, sys
import llvmlite.binding as binding
found = binding.get_host_cpu_features()
if sys.argv[1] == "narrow":  # as on a processor, or in a virtual machine, without AVX-512
    for name in found:
        if name.startswith(("avx512", "avx10", "amx", "evex512")):
            found[name] = False
    binding.get_host_cpu_features = lambda: found
import torch, calotype
from calotype.engine import vectors
vae = calotype.load(device="cpu")
z = torch.randn(1, vae.config.z_channels, 12, 10, generator=torch.Generator().manual_seed(0))
made = vae.decode(z, clamp=False)
exact = vae.module.double().decode(z.double())
assert (made - exact).abs().max() < 1e-4 * exact.std(), "wrong numbers"
print(vectors.PANEL, hashlib.sha256(made.numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_each_processor_gets_its_own(tmp_path: Path) -> None:
    """Two virtual machines may have one processor's name and see other instructions of it."""
    if not importlib.import_module("calotype.engine.vectors").AVX512:
        pytest.skip("this processor has no AVX-512 to be left out")

    def run(kind: str) -> tuple[str, bool]:
        ran = subprocess.run(
            [sys.executable, "-c", RUN, kind], capture_output=True, text=True, check=False,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        return ran.stdout, "Compiling the CPU kernels" in ran.stderr

    own, compiled = run("own")
    assert compiled
    narrow, compiled = run("narrow")
    assert compiled, "kernels of the other processor were taken"
    assert narrow.split()[0] == "16"
    assert run("own") == (own, False)
    assert run("narrow") == (narrow, False)
