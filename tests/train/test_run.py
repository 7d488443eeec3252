"""A whole run: its data, its refusals, and weights that say how they were made."""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from support import SMALL, one_sentence
from trainkit import TINY, changed, make, no_track, picture, png, same_state, write_pictures

from calotype import load, temporaries
from calotype.errors import MemoryLimitError, StorageError, UsageError
from calotype.evaluate.metrics import psnr
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.tiny.config import TinyConfig
from calotype.latents import KNOWN, PerChannel, ScaleShift
from calotype.locks import lock
from calotype.pixels import to_uint8
from calotype.processes import this
from calotype.train import checkpoint, estimate as estimates, run as module
from calotype.train.configs import ConvConfig
from calotype.train.crops import centre_crop
from calotype.train.export import latent_statistics, with_one_scale
from calotype.train.loop import Trainer
from calotype.train.recipe import Adversarial, Phase, Recipe, Source, Start, Teacher
from calotype.train.run import Options, train
from calotype.weights.save import save_weights

RECIPE = replace(TINY, export_dtype="float16")


def start(recipe: Recipe, data: Path, out: Path, **options: bool) -> tuple[Path | None, list[str]]:
    """The path that `train` gives, and its notices."""
    notices: list[str] = []
    path = train(
        recipe, data, out, Options(device="cpu", tensorboard=False, workers=1, **options),
        report=lambda line: None, notice=notices.append, track=no_track,
    )  # fmt: skip
    return path, notices


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with eleven pictures."""
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures").parent


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a finished run."""
    path, _ = start(RECIPE, data, tmp_path_factory.mktemp("out") / "deep" / "run")
    assert path is not None
    return path


@pytest.mark.slow
def test_two_trainings_in_one_folder(data: Path, tmp_path: Path) -> None:
    """The second is told who is there; a dry run writes nothing, so it may look."""
    with lock(tmp_path / "out" / checkpoint.LOCK, checkpoint.DOING, "wait"):
        for options in ({}, {"resume": True}):
            with pytest.raises(UsageError) as caught:
                start(TINY, data, tmp_path / "out", **options)
            one_sentence(str(caught.value))
            assert f"a training is under way there, by process {os.getpid()} on " in str(caught.value)
        assert [one.name for one in (tmp_path / "out").iterdir()] == [checkpoint.LOCK]
        start(TINY, data, tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    held: list[bool] = []
    train(
        TINY, data, tmp_path / "out", Options(device="cpu", tensorboard=False, workers=1),
        report=lambda line: held.append((tmp_path / "out" / checkpoint.LOCK).exists()), notice=str, track=no_track,
    )  # fmt: skip
    assert held
    assert all(held)
    assert not (tmp_path / "out" / checkpoint.LOCK).exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_leftovers_go_from_all_folders_of_a_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from those that a run that is gone on with writes nothing into."""
    out = tmp_path / "out"
    start(replace(TINY, steps=6), data, out)
    monkeypatch.setattr(temporaries, "_swept", set())  # as in another process
    me = this()
    for name in (".", "checkpoints", "panels"):
        (out / name / f".calotype-{me.host}-{me.pid}-00000001-0123abcd.png").touch()  # of who had our number before
    start(replace(TINY, steps=6), data, out, resume=True)
    assert not list(out.rglob(".calotype-*"))


# Data


def test_a_missing_source(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="there is no such folder, zip, tar or dataset of pictures; give one that is there"
    ):
        start(changed(sources=(Source(path="nowhere"),)), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_smaller_than_the_crop_are_refused_beforehand(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="8 of 8 pictures are smaller than the crop of 48 pixels") as error:
        start(changed(crop=48, phases=(), enlarge=False), data, tmp_path / "out")
    one_sentence(str(error.value))
    assert not (tmp_path / "out").exists()


def test_a_batch_that_can_not_be_shared(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "launch", lambda *_: type("Three", (), {"world_size": 3}))
    with pytest.raises(UsageError, match=r"A batch of 4 is no multiple of 3 processes times accumulate \(1\)"):
        start(TINY, data, tmp_path / "out")


# The folder in use


@pytest.mark.slow
def test_a_run_in_progress_is_not_overwritten(finished: Path, data: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.parent.iterdir() if path.is_file()}
    with pytest.raises(UsageError, match="there is a checkpoint already; go on with --resume, or give another --out"):
        start(RECIPE, data, finished.parent)
    assert {path.name: path.read_bytes() for path in finished.parent.iterdir() if path.is_file()} == before


def test_there_must_be_something_to_resume(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no checkpoint to resume from"):
        start(TINY, data, tmp_path / "out", resume=True)
    assert not (tmp_path / "out").exists()


def test_resuming_a_finished_run_writes_its_weights_again(finished: Path, data: Path) -> None:
    before = load(finished)
    finished.unlink()
    assert start(RECIPE, data, finished.parent, resume=True)[0] == finished
    after = load(finished)
    assert after.sha256 == before.sha256
    assert dict(after.loaded.metadata or {}) == dict(before.loaded.metadata or {})


@pytest.mark.slow
def test_what_is_changed_on_the_way_is_told(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    start(changed(steps=3, cooldown=0, phases=()), data, out)
    path, _ = start(changed(steps=5, cooldown=0, phases=(), learning_rate=1e-4), data, out, resume=True)
    assert path is not None
    changes = json.loads((load(path).loaded.metadata or {})["calotype_training_changes"])
    assert changes == [{"step": 3, "changed": {"learning_rate": [3e-3, 1e-4], "steps": [3, 5]}}]
    assert "Changed on the way" in (out / "README.md").read_text()


# The run's folder


def test_what_a_run_leaves(finished: Path) -> None:
    out = finished.parent
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "checkpoints", "environment.json", "metrics.jsonl", "panels", "recipe.json", "weights.safetensors",
    ]  # fmt: skip
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        "best.pt", "step-00000003.pt", "step-00000006.pt", "step-00000008.pt",
    ]  # fmt: skip
    assert json.loads((out / "recipe.json").read_text()) == json.loads(json.dumps(RECIPE.to_dict()))
    assert {"calotype", "commit", "torch", "command"} <= json.loads((out / "environment.json").read_text()).keys()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 8]
    assert [line["step"] for line in lines if "held_out_psnr" in line] == [3, 6, 8]


def test_panels_show_the_held_out_pictures(finished: Path) -> None:
    panels = sorted((finished.parent / "panels").iterdir())
    assert [path.name for path in panels] == ["step-00000003.png", "step-00000006.png", "step-00000008.png"]
    with Image.open(panels[-1]) as panel:
        # three pictures and a row from the prior; original, reconstruction, sample and difference
        assert panel.size == (4 * 64, 4 * 64)
        first = torch.from_numpy(np.asarray(panel)[12:52, 8:56].copy())
    assert torch.equal(first, torch.from_numpy(picture(0)))


def test_panels_of_pictures_of_any_size(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", 4)
    for i, size in enumerate([(90, 20), (20, 130), (300, 300)]):
        (folder / f"x{i}.png").write_bytes(png(picture(i, *size)))
    recipe = changed(sources=(Source(path="pictures", hold_out=2),), steps=1, phases=())
    assert start(recipe, tmp_path, tmp_path / "out")[0]
    with Image.open(next((tmp_path / "out" / "panels").iterdir())) as panel:
        assert panel.size == (4 * 256, 5 * 256)


@pytest.mark.slow
def test_the_oldest_checkpoints_go_and_the_best_stays(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    start(changed(checkpoint_every=1, keep=2, steps=6, phases=()), data, out)
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == ["best.pt", "step-00000005.pt", "step-00000006.pt"]
    best = torch.load(out / "checkpoints" / "best.pt", weights_only=True)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["held_out_psnr"] for line in lines}
    assert best["step"] == max(scores, key=lambda step: scores[step])


@pytest.mark.slow
def test_lines_after_the_checkpoint_are_written_again(data: Path, tmp_path: Path) -> None:
    """A run that was killed has logged more than its last checkpoint holds."""
    out = tmp_path / "out"
    start(changed(log_every=1), data, out)
    whole = (out / "metrics.jsonl").read_text().splitlines()
    for name in ("step-00000006.pt", "step-00000008.pt"):
        (out / "checkpoints" / name).unlink()
    start(changed(log_every=1), data, out, resume=True)
    again = (out / "metrics.jsonl").read_text().splitlines()
    untimed = [
        [{k: v for k, v in json.loads(line).items() if k not in ("crops_per_second", "waiting")} for line in lines]
        for lines in (whole, again)
    ]
    assert untimed[0] == untimed[1]


# The weights


def test_the_weights_say_how_they_were_made(finished: Path) -> None:
    vae = load(finished)
    assert vae.config == TINY.network
    assert vae.loaded.dtypes == ("float16",)
    facts = {
        key.removeprefix("calotype_training_"): json.loads(value)
        for key, value in (vae.loaded.metadata or {}).items()
        if key.startswith("calotype_training_")
    }
    assert facts["recipe"] == json.loads(json.dumps(RECIPE.to_dict()))
    assert (facts["steps"], facts["pictures"], facts["held_out"], facts["changes"]) == (8, 8, 3, [])
    scores = []
    for seed in (0, 5, 10):
        x = centre_crop(picture(seed), 8)
        scores.append(psnr(to_uint8(vae.decode(vae.encode(x).mode())[0]), to_uint8(x[0])))
    assert facts["held_out_psnr"] == pytest.approx(sum(scores) / 3, abs=0.05)  # float16 against float32
    assert 0 < facts["posterior_std"] < 1
    card = (finished.parent / "README.md").read_text()
    assert f"| {facts['held_out_psnr']:.4g} |" in card
    one = with_one_scale(vae.latent_format)
    assert isinstance(one, ScaleShift)
    assert f"scaling_factor {one.scaling_factor:.5f}, shift_factor {one.shift_factor:.5f}" in card


def test_the_latent_format_normalises_the_training_set(finished: Path) -> None:
    vae = load(finished)
    format_ = vae.latent_format
    assert isinstance(format_, PerChannel)
    assert (format_.name, format_.channels) == ("tiny", 4)
    latents = [vae.encode(centre_crop(picture(i), 8)).mode() for i in range(11) if i % 5]
    model = torch.cat([format_.to_model(z).flatten(2) for z in latents], dim=2).double()[0]
    assert model.mean(1).abs().max() < 0.02  # float16 weights against float32 ones
    assert (model.std(1, correction=0) - 1).abs().max() < 0.02


def test_statistics_by_hand() -> None:
    network = load().module
    arrays = [picture(0, 32, 48), picture(1, 16, 16)]
    found = latent_statistics(network, arrays)
    with torch.no_grad():
        posteriors = [network.encode(centre_crop(array, 8)) for array in arrays]
    z = torch.cat([p.mode().flatten(2) for p in posteriors], dim=2)[0].double()
    assert found.mean == pytest.approx(z.mean(1).tolist(), abs=1e-6)
    assert found.std == pytest.approx(z.std(1, correction=0).tolist(), rel=1e-4)
    one = with_one_scale(PerChannel(name="x", channels=len(found.mean), mean=found.mean, std=found.std))
    assert isinstance(one, ScaleShift)
    assert one.scaling_factor == pytest.approx(1 / z.std(correction=0).item(), rel=1e-4)
    assert one.shift_factor == pytest.approx(z.mean().item(), abs=1e-6)
    assert found.noise == pytest.approx(sum(p.std.mean().item() for p in posteriors) / 2, rel=1e-5)


def test_the_exported_weights_are_the_average(finished: Path) -> None:
    path = checkpoint.newest(finished.parent)
    assert path is not None
    state = torch.load(path, weights_only=True)
    stored = load(finished, dtype=torch.float16).module.state_dict()
    assert all(torch.equal(value, state["ema"][name].half()) for name, value in stored.items())
    assert any(not torch.equal(value, state["model"][f"network.{name}"].half()) for name, value in stored.items())


@pytest.mark.slow
def test_an_autoencoder_kl_is_written_for_diffusers_too(data: Path, tmp_path: Path) -> None:
    path, _ = start(changed(network=SMALL, crop=16, steps=2, phases=(), optimiser="adam"), data, tmp_path / "out")
    assert path is not None
    ours, theirs = load(path), load(tmp_path / "out" / "diffusers")
    assert ours.sha256 == theirs.sha256
    assert isinstance(theirs.latent_format, ScaleShift)
    assert theirs.latent_format == with_one_scale(ours.latent_format)
    config = json.loads((tmp_path / "out" / "diffusers" / "config.json").read_text())
    assert config["scaling_factor"] == theirs.latent_format.scaling_factor


def test_a_network_of_the_family_is_written_too(data: Path, tmp_path: Path) -> None:
    recipe = changed(network=ConvConfig(ch=8), crop=16, steps=2, phases=(), optimiser="adam")
    path, _ = start(recipe, data, tmp_path / "out")
    assert path is not None
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["calotype_config"])["kind"] == "conv"
        assert "encoder.0.weight" in set(file.keys())


def test_nothing_held_out_is_no_quality(data: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, sources=(Source(path="pictures"),), steps=1)
    path, _ = start(recipe, data, tmp_path / "out")
    assert path is not None
    assert "calotype_training_held_out_psnr" not in (load(path).loaded.metadata or {})
    assert "nothing was measured" in (tmp_path / "out" / "README.md").read_text()


def test_pictures_smaller_than_a_latent_train_and_measure(tmp_path: Path) -> None:
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


# Where it begins


def test_a_start_from_other_weights(data: Path, tmp_path: Path, finished: Path) -> None:
    recipe = changed(start=Start(weights=str(finished), train="decoder"), steps=2, phases=())
    path, _ = start(recipe, data, tmp_path / "out")
    assert path is not None
    first = load(finished).loaded
    assert load(path).loaded.training()["start"] == {"sha256": first.sha256, **first.training()}
    assert "start" not in first.training()
    before, after = load(finished).module.state_dict(), load(path).module.state_dict()
    assert {name for name, p in after.items() if not torch.equal(p, before[name])} == {
        name for name in before if name.startswith("decoder.")
    }


def test_a_start_of_another_network_is_refused(data: Path, tmp_path: Path, finished: Path) -> None:
    recipe = changed(network=SMALL, crop=16, phases=(), start=Start(weights=str(finished)))
    with pytest.raises(UsageError, match=r"is another network .*: it is of the kind folded, not autoencoder_kl"):
        start(recipe, data, tmp_path / "out")


def test_a_teacher_of_other_latents_is_refused(data: Path, tmp_path: Path) -> None:
    recipe = changed(teacher=Teacher(weights="builtin"))
    with pytest.raises(UsageError, match=r"latents have 16 channels at f8; the recipe's network has 4 at f8") as error:
        start(recipe, data, tmp_path / "out")
    one_sentence(str(error.value))


def kl_f8(path: Path) -> Path:
    """A small AutoencoderKL at f8 with SD1's latent format."""
    config = AutoencoderConfig(ch=4, ch_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=2)
    network = make(changed(network=config, seed=5)).network
    save_weights(network, path, layout="ldm", format_=KNOWN["sd1"])  # type: ignore[arg-type]
    return path


@pytest.mark.slow
def test_a_taesd_learns_model_latents(data: Path, tmp_path: Path) -> None:
    """Which are what a TAESD's own are, and what its decoder's clamp at 3 is made for."""
    weights = kl_f8(tmp_path / "teacher.safetensors")
    recipe = changed(network=TinyConfig(), teacher=Teacher(weights=str(weights)), optimiser="adam", phases=(), steps=1)
    helpers = module.make_helpers(recipe, torch.device("cpu"))
    x = centre_crop(picture(0), 8)
    teacher = load(weights)
    with torch.no_grad():
        z = teacher.encode(x).mode()
        assert helpers.teacher
        assert torch.allclose(helpers.teacher.encode(x).mode(), 0.18215 * z, rtol=1e-3, atol=1e-5)
        assert torch.allclose(helpers.teacher.decode(0.18215 * z), teacher.module.decode(z), rtol=1e-3, atol=1e-4)
    path, _ = start(recipe, data, tmp_path / "out")
    assert path
    format_ = load(path).latent_format
    assert isinstance(format_, ScaleShift)
    assert (format_.name, format_.scaling_factor) == ("sd1", 1.0)


@pytest.mark.slow
def test_so_it_does_where_it_is_measured_by_channel(data: Path, tmp_path: Path) -> None:
    first, _ = start(changed(network=SMALL, steps=1, phases=(), optimiser="adam", crop=16), data, tmp_path / "first")
    assert first
    half = Start(weights=str(first), train="decoder")
    other = write_pictures(tmp_path / "other" / "pictures", 3).parent
    second, _ = start(
        changed(network=SMALL, start=half, steps=1, phases=(), optimiser="adam", crop=16), other, tmp_path / "second"
    )
    assert second
    assert load(second).latent_format == load(first).latent_format
    configs = [json.loads((tmp_path / name / "diffusers" / "config.json").read_text()) for name in ("first", "second")]
    assert configs[0]["scaling_factor"] == configs[1]["scaling_factor"]
    assert f"scaling_factor {configs[0]['scaling_factor']:.5f}" in (tmp_path / "second" / "README.md").read_text()


def test_other_pictures_are_another_run(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    start(changed(steps=3, phases=()), data, out)
    other = write_pictures(tmp_path / "other" / "pictures", 12).parent
    with pytest.raises(UsageError, match="this run was trained on other pictures than") as error:
        start(changed(steps=5, phases=()), other, out, resume=True)
    one_sentence(str(error.value))
    with pytest.raises(UsageError, match="this run is at step 3, beyond steps = 2; give more"):
        start(changed(steps=2, phases=()), data, out, resume=True)


@pytest.mark.slow
def test_a_frozen_encoder_keeps_its_latent_format(data: Path, tmp_path: Path) -> None:
    weights = kl_f8(tmp_path / "start.safetensors")
    network = load(weights).config
    for half, same in (("decoder", True), ("all", False)):
        out = tmp_path / half
        recipe = changed(
            network=network, start=Start(weights=str(weights), train=half), optimiser="adam", phases=(), steps=1
        )
        path, _ = start(recipe, data, out)
        assert path
        for place in (path, out / "diffusers"):
            format_ = load(place).latent_format
            assert (isinstance(format_, ScaleShift) and format_.scaling_factor == 0.18215) == same


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "spectral"])
def test_what_is_estimated_leaves_no_trace(
    norm: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run looks at its memory where the discriminator is in use already."""
    gan = Adversarial(start=1, ndf=4, layers=1, norm=norm)
    recipe = changed(phases=(), optimiser="adam", steps=6, checkpoint_every=1, keep=9, adversarial=gan, cooldown=0)
    start(recipe, data, tmp_path / "whole")
    start(recipe, data, tmp_path / "parts")
    for step in (4, 5, 6):
        (tmp_path / "parts" / "checkpoints" / f"step-{step:08}.pt").unlink()
    start(recipe, data, tmp_path / "parts", resume=True)
    states = [
        torch.load(tmp_path / name / "checkpoints" / "step-00000006.pt", weights_only=True)
        for name in ("whole", "parts")
    ]
    for key in ("model", "discriminator", "ema"):
        assert same_state(states[0][key], states[1][key]), key


@pytest.mark.parametrize("what", ["panel", "line", "keep_best"])
def test_a_full_disk_is_one_sentence(what: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if what == "keep_best":
        monkeypatch.setattr(checkpoint, what, full)
    else:
        monkeypatch.setattr(module.Watch, what, full)
    with pytest.raises(StorageError, match="no space is left on the disk; what was written stays") as error:
        start(TINY, data, tmp_path / "out")
    one_sentence(str(error.value))
    assert checkpoint.newest(tmp_path / "out") is not None or what == "line"


# What it will take


def test_a_dry_run_writes_nothing(data: Path, tmp_path: Path) -> None:
    path, notices = start(TINY, data, tmp_path / "out", dry_run=True)
    assert path is None
    assert not (tmp_path / "out").exists()
    assert len(notices) == 1
    assert notices[0].startswith("Nothing was written. 8 pictures, and 3 held out; a step took ")


def test_memory_is_counted_beforehand(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[estimates.Estimate] = []
    count = estimates.estimate

    def counted(trainer: Trainer) -> estimates.Estimate:
        seen.append(count(trainer))
        return seen[-1]

    monkeypatch.setattr(module, "estimate", counted)
    for recipe in (TINY, changed(gradient_checkpointing=True), changed(batch=8, phases=())):
        start(recipe, data, tmp_path / "out", dry_run=True)
    plain, saving, double = seen
    assert saving.crop < 0.7 * plain.crop
    assert plain.part - plain.weights == max(4 * 16**2, 2 * 24**2) / 24**2 * plain.crop
    assert double.part - double.weights == 8 * double.crop
    monkeypatch.setattr(estimates, "free_memory", lambda device: plain.part - 1)
    with pytest.raises(
        UsageError, match=r"A part of 2 crops of 24 pixels takes about .* are free; set accumulate to 2"
    ):
        start(changed(phases=(Phase(start=5, crop=24, batch=2),)), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_memory_that_runs_out_is_said(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bool:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate much")

    monkeypatch.setattr(module, "run", full)
    with pytest.raises(MemoryLimitError, match="raise accumulate, set gradient_checkpointing = true") as error:
        start(TINY, data, tmp_path / "out")
    one_sentence(str(error.value))


def test_a_start_must_be_there(data: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="there is no such"):
        start(changed(start=Start(weights=str(tmp_path / "none.safetensors"))), data, tmp_path / "out")


def test_save_weights_is_what_a_start_reads(tmp_path: Path) -> None:
    module_ = load().module
    save_weights(module_, tmp_path / "a.safetensors", layout="ldm")
    assert load(tmp_path / "a.safetensors").config == module_.config
