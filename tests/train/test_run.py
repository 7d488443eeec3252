"""A whole run: its data, its refusals, and weights that say how they were made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import one_sentence
from trainkit import TINY, changed, no_track, picture, write_pictures

from calotype import load
from calotype.errors import UsageError
from calotype.evaluate.metrics import psnr
from calotype.latents import PerChannel
from calotype.pixels import to_uint8
from calotype.train import run as module
from calotype.train.data import centre_crop
from calotype.train.recipe import Recipe, Source
from calotype.train.run import latent_statistics, read_data, set_once, train


def start(recipe: Recipe, data: Path, out: Path, *, resume: bool = False) -> tuple[Path | None, list[str]]:
    """The path that `train` gives, and its notices."""
    notices: list[str] = []
    path = train(
        recipe,
        data,
        out,
        resume=resume,
        device=torch.device("cpu"),
        report=lambda line: None,
        notice=notices.append,
        track=no_track,
    )
    return path, notices


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with eleven pictures."""
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures").parent


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a finished run."""
    path, _ = start(TINY, data, tmp_path_factory.mktemp("out") / "deep" / "run")
    assert path is not None
    return path


# Data


def read(recipe: Recipe, data: Path) -> tuple[list[list[Any]], list[Any], list[str]]:
    notices: list[str] = []
    return *read_data(recipe, data, notices.append, no_track), notices


def test_held_out_pictures_are_not_trained_on(data: Path) -> None:
    (training,), held_out, notices = read(TINY, data)
    numbers = [
        [next(i for i in range(11) if np.array_equal(p, picture(i))) for p in part] for part in (training, held_out)
    ]
    assert numbers == [[1, 2, 3, 4, 6, 7, 8, 9], [0, 5, 10]]  # every fifth
    assert notices == []


def test_sources_repeat_on_their_own(data: Path) -> None:
    sources = (Source(path="pictures", repeat=3, hold_out=4), Source(path="pictures"))
    (first, second), held_out, _ = read(changed(sources=sources), data)
    assert (len(first), len(second), len(held_out)) == (3 * 8, 11, 3)
    assert all(a is b for a, b in zip(first[:8], first[8:16], strict=True))
    assert [p is q for p, q in zip(set_once(first), first[:8], strict=True)] == [True] * 8


@pytest.mark.parametrize(("bad", "allowed"), [(1, False), (0, True)])
def test_more_than_one_in_a_hundred_unreadable_is_too_many(bad: int, allowed: bool, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", 20)
    for i in range(bad):
        (folder / f"bad{i}.png").write_bytes(b"no picture")
    if allowed:
        assert read(TINY, tmp_path)[2] == []
        return
    with pytest.raises(UsageError, match=r"1 pictures can't be read, more than 1%; mend the data") as error:
        read(TINY, tmp_path)
    one_sentence(str(error.value))


def test_a_few_unreadable_pictures_are_said_and_left_out(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", 100)
    (folder / "bad.png").write_bytes(b"no picture")
    (training,), held_out, notices = read(TINY, tmp_path)
    assert len(training) + len(held_out) == 100
    assert len(notices) == 1
    assert notices[0].startswith(f"pictures: {folder / 'bad.png'}: ")


def test_all_held_out_leaves_nothing_to_train_on(data: Path) -> None:
    with pytest.raises(UsageError, match="no picture is left to train on"):
        read(changed(sources=(Source(path="pictures", hold_out=1),)), data)


def test_a_missing_source(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such folder or zip of pictures; see --data"):
        start(changed(sources=(Source(path="nowhere"),)), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The folder in use


def test_a_run_in_progress_is_not_overwritten(finished: Path, data: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.parent.iterdir()}
    with pytest.raises(UsageError, match="there is a checkpoint already; go on with --resume, or give another --out"):
        start(TINY, data, finished.parent)
    assert {path.name: path.read_bytes() for path in finished.parent.iterdir()} == before


def test_there_must_be_something_to_resume(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no checkpoint\.pt to resume from"):
        start(TINY, data, tmp_path / "out", resume=True)
    assert not (tmp_path / "out").exists()


def test_resuming_a_finished_run_writes_its_weights_again(finished: Path, data: Path) -> None:
    before = load(finished)
    finished.unlink()
    assert start(TINY, data, finished.parent, resume=True)[0] == finished
    after = load(finished)
    assert after.sha256 == before.sha256
    assert dict(after.loaded.metadata or {}) == dict(before.loaded.metadata or {})


# The weights


def test_a_run_leaves_checkpoint_log_and_weights(finished: Path) -> None:
    assert sorted(path.name for path in finished.parent.iterdir()) == [
        "checkpoint.pt",
        "log.jsonl",
        "weights.safetensors",
    ]


def test_the_weights_say_how_they_were_made(finished: Path, data: Path) -> None:
    vae = load(finished)
    assert vae.config == TINY.network
    assert vae.loaded.dtypes == ("float16",)
    facts = {
        key.removeprefix("calotype_training_"): json.loads(value)
        for key, value in (vae.loaded.metadata or {}).items()
        if key.startswith("calotype_training_")
    }
    assert facts["recipe"] == json.loads(json.dumps(TINY.to_dict()))
    assert (facts["steps"], facts["pictures"], facts["held_out"]) == (8, 8, 3)
    _, held_out, _ = read(TINY, data)
    scores = []
    for array in held_out:
        x = centre_crop(array, 8)
        scores.append(psnr(to_uint8(vae.decode(vae.encode(x).mode())[0]), to_uint8(x[0])))
    assert facts["held_out_psnr"] == pytest.approx(sum(scores) / 3, abs=0.05)  # float16 against float32
    assert 0 < facts["posterior_std"] < 1


def test_the_latent_format_normalises_the_training_set(finished: Path, data: Path) -> None:
    vae = load(finished)
    format_ = vae.latent_format
    assert isinstance(format_, PerChannel)
    assert (format_.name, format_.channels) == ("tiny", 4)
    (training,), _, _ = read(TINY, data)
    latents = [vae.encode(centre_crop(array, 8)).mode() for array in training]
    model = torch.cat([format_.to_model(z).flatten(2) for z in latents], dim=2).double()[0]
    assert model.mean(1).abs().max() < 0.02  # float16 weights against float32 ones
    assert (model.std(1, correction=0) - 1).abs().max() < 0.02


def test_statistics_by_hand(data: Path) -> None:
    network = load().module
    arrays = [picture(0, 32, 48), picture(1, 16, 16)]
    mean, std, noise = latent_statistics(network, arrays, no_track)
    with torch.no_grad():
        posteriors = [network.encode(centre_crop(array, 8)) for array in arrays]
    z = torch.cat([p.mode().flatten(2) for p in posteriors], dim=2)[0].double()
    assert mean == pytest.approx(z.mean(1).tolist(), abs=1e-6)
    assert std == pytest.approx(z.std(1, correction=0).tolist(), rel=1e-4)
    assert noise == pytest.approx(sum(p.std.mean().item() for p in posteriors) / 2, rel=1e-5)


def test_the_exported_weights_are_the_average(finished: Path) -> None:
    state = torch.load(finished.parent / "checkpoint.pt", weights_only=True)
    stored = load(finished, dtype=torch.float16).module.state_dict()
    assert all(torch.equal(value, state["ema"][name].half()) for name, value in stored.items())
    assert any(not torch.equal(value, state["module"][name].half()) for name, value in stored.items())


def test_nothing_held_out_is_no_quality(data: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, sources=(Source(path="pictures"),), steps=1)
    path, _ = start(recipe, data, tmp_path / "out")
    assert path is not None
    assert json.loads((load(path).loaded.metadata or {})["calotype_training_held_out_psnr"]) is None


def test_pictures_smaller_than_a_latent_train_and_measure(tmp_path: Path) -> None:
    from trainkit import png

    folder = write_pictures(tmp_path / "pictures", 6)
    for i in range(6):
        (folder / f"tiny{i}.png").write_bytes(png(picture(i, 3, 5)))
    path, _ = start(changed(steps=2), tmp_path, tmp_path / "out")
    assert path is not None
    assert load(path).latent_format.name == "tiny"


def test_a_stopped_run_gives_no_weights(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run", lambda *_: False)
    assert start(TINY, data, tmp_path / "out") == (None, [])
    assert not (tmp_path / "out" / "weights.safetensors").exists()
