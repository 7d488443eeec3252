"""Of a checkpoint the VAE's bytes are read and no others, as `bench/opening.py` measures it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

import calotype

BENCH = Path(__file__).resolve().parents[2] / "bench"
SIZE = 1_000_000_000  # nearly all of it is a hole
CHANNELS = 32

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system tells which pages it holds")


@pytest.fixture(scope="module")
def opening() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        patch.delitem(sys.modules, "engine", raising=False)  # a folder of tests is called like a benchmark
        made = importlib.import_module("opening")
        del sys.modules["engine"]
        return made


@pytest.fixture(scope="module")
def vae(opening: Any) -> list[Any]:
    found: list[Any] = opening.vae_of(CHANNELS)
    return found


def require_little_read(opening: Any, path: Path, vae: list[Any], headers: int) -> None:
    """Opens the VAE in one of a folder's files, of which nothing but its bytes and headers may be read.

    Headers are read from the beginning of a file, where the system reads ahead.
    """
    own, files = sum(one.size for one in vae), len(list(path.parent.iterdir()))
    opening.drop(path.parent)
    with opening.nothing_ahead():
        loaded = calotype.load(path, device="cpu")
    assert loaded.weights_bytes == 2 * own  # float32 of float16
    most = 1.02 * own + headers + files * opening.ahead(path.parent)
    assert own + headers <= opening.held(path.parent) <= most < SIZE / 5


@pytest.mark.parametrize("name", ["safetensors", "safetensors, 6 shards", "GGUF"])
def test_of_a_whole_checkpoint_only_the_vae_is_read(name: str, opening: Any, vae: list[Any], tmp_path: Path) -> None:
    rest = [*opening.text_encoder(), *opening.denoiser(SIZE)]
    path, headers = opening.CASES[name](tmp_path, rest, vae)
    require_little_read(opening, path, vae, headers)


def test_so_it_is_where_the_vae_has_no_prefix(opening: Any, vae: list[Any], tmp_path: Path) -> None:
    """As in a training's checkpoint, beside an optimiser's state."""
    bare = [one._replace(name=one.name.removeprefix("first_stage_model.")) for one in vae]
    state = [one._replace(name=f"optimizer.{one.name}") for one in opening.denoiser(SIZE)]
    path, headers = opening.one_file(tmp_path, state, bare)
    require_little_read(opening, path, vae, headers)
