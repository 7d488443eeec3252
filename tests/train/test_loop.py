"""The loop: it learns, it can be stopped anywhere, and a resumed run is an unbroken one."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import SMALL, one_sentence
from torch import Tensor
from trainkit import FOLDED, TINY, changed, picture, pictures, same_trainers, trained

from calotype.config import FoldedConfig
from calotype.errors import NonFiniteError, UsageError
from calotype.evaluate.metrics import psnr
from calotype.pixels import from_array, to_uint8
from calotype.train import loop
from calotype.train.loop import Trainer, run
from calotype.train.optim import Muon
from calotype.train.recipe import Recipe

CPU = torch.device("cpu")


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def quiet(line: dict[str, float]) -> None:
    pass


def test_an_infinite_gradient_is_an_error_and_changes_nothing() -> None:
    trainer = Trainer.create(changed(phases=()), CPU)
    before = {name: p.detach().clone() for name, p in trainer.module.named_parameters()}
    next(trainer.module.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="The gradient at step 0 is"):
        trainer.train_step(torch.rand(2, 3, 16, 16))
    assert all(torch.equal(p, before[name]) for name, p in trainer.module.named_parameters())


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_loss_falls(optimiser: str, precision: str, tmp_path: Path) -> None:
    recipe = changed(optimiser=optimiser, precision=precision, steps=40, cooldown=10, log_every=5, phases=())
    trained(recipe, tmp_path)
    losses = [line["loss"] for line in lines(tmp_path)]
    assert losses[-1] < 0.75 * losses[0]


def test_an_autoencoder_kl_learns_too(tmp_path: Path) -> None:
    recipe = changed(network=SMALL, steps=20, cooldown=5, log_every=5, phases=())
    trained(recipe, tmp_path)
    losses = [line["loss"] for line in lines(tmp_path)]
    assert losses[-1] < losses[0]


def test_training_begins_with_little_noise() -> None:
    x = from_array(picture(0)[:32, :32])[None]
    for network in (FOLDED, SMALL):
        posterior = Trainer.create(changed(network=network), CPU).module.encode(x)
        assert 0.005 < posterior.std.mean() < 0.01


def test_the_same_recipe_gives_the_same_bits(tmp_path: Path) -> None:
    first, second = trained(TINY, tmp_path / "a"), trained(TINY, tmp_path / "b")
    assert same_trainers(first, second)
    assert not same_trainers(first, trained(changed(seed=4), tmp_path / "c"))


@pytest.mark.parametrize("stop", [1, 4, 5, 7])
@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_a_resumed_run_is_an_unbroken_one(stop: int, optimiser: str, tmp_path: Path) -> None:
    # the phase that begins at step 5 changes crop, batch and rate
    recipe = changed(optimiser=optimiser)
    whole = trained(recipe, tmp_path / "whole")

    def stop_there(self: Trainer, x: Tensor) -> dict[str, float]:
        values = Trainer.train_step(self, x)
        if self.step == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return values

    class Stopping(Trainer):
        train_step = stop_there

    out = tmp_path / "parts"
    out.mkdir()
    assert not run(Stopping.create(recipe, CPU), pictures(), pictures(2), out, quiet)
    resumed = trained(recipe, out, resume=True)
    assert same_trainers(whole, resumed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_and_stops(number: signal.Signals, tmp_path: Path) -> None:
    trainer = Trainer.create(TINY, CPU)
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

    def report(line: dict[str, float]) -> None:
        if line["step"] == 2:
            os.kill(os.getpid(), number)

    assert run(trainer, pictures(), [], tmp_path, report) is False
    assert trainer.step == 2  # where no checkpoint was due
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    again = Trainer.create(TINY, CPU)
    again.resume(tmp_path / "checkpoint.pt")
    assert same_trainers(trainer, again)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "log.jsonl"]


def test_a_signal_in_the_last_step_is_the_end(tmp_path: Path) -> None:
    class Stopping(Trainer):
        def train_step(self, x: Tensor) -> dict[str, float]:
            if self.step == self.recipe.steps - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().train_step(x)

    assert run(Stopping.create(TINY, CPU), pictures(), [], tmp_path, quiet) is True


def test_the_log(tmp_path: Path) -> None:
    reported: list[dict[str, float]] = []
    trainer = Trainer.create(TINY, CPU)
    assert run(trainer, pictures(), pictures(2), tmp_path, reported.append)
    assert lines(tmp_path) == reported
    assert [line["step"] for line in reported] == [2, 4, 6, 8]
    assert [line["step"] for line in reported if "psnr" in line] == [6, 8]  # a checkpoint every third step
    for line in reported:
        assert line.keys() >= {"loss", "rec", "kl", "gradient", "rate", "crops_per_second"}
        assert line["loss"] == pytest.approx(line["rec"] + TINY.kl_weight * line["kl"], rel=1e-5)


def test_rates_rise_fall_and_change_with_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer.create(TINY, CPU)
    rates, muon = [], []
    for _ in range(TINY.steps):
        crop = TINY.at(trainer.step).crop
        rates.append(trainer.train_step(torch.zeros(1, 3, crop, crop))["rate"])
        muon.append(next(o for o in trainer.optimisers if isinstance(o, Muon)).param_groups[0]["lr"])
        adam = next(o for o in trainer.optimisers if not isinstance(o, Muon))
        assert adam.param_groups[0]["lr"] == rates[-1] * TINY.learning_rate
    assert rates == [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert muon == [rate * (TINY.muon_rate if step < 5 else 1e-2) for step, rate in enumerate(rates)]


def test_no_warmup_and_no_cooldown() -> None:
    trainer = Trainer.create(changed(warmup=0, cooldown=0), CPU)
    assert trainer.train_step(torch.zeros(1, 3, 16, 16))["rate"] == 1.0


def test_muon_takes_hidden_convolutions_and_adam_the_rest() -> None:
    trainer = Trainer.create(TINY, CPU)
    muon, adam = trainer.optimisers
    assert isinstance(muon, Muon)
    names = {id(p): name for name, p in trainer.module.named_parameters()}
    hidden = [names[id(p)] for p in muon.param_groups[0]["params"]]
    others = [names[id(p)] for p in adam.param_groups[0]["params"]]
    assert sorted(hidden + others) == sorted(names.values())
    assert all(name.endswith("weight") for name in hidden)
    assert {name.rsplit(".", 1)[0] for name in others if name.endswith("weight")} == {
        f"{side}.conv_{end}" for side in ("encoder", "decoder") for end in ("in", "out")
    }


def test_a_loss_that_is_not_finite_stops_and_leaves_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer.create(TINY, CPU)
    x = torch.zeros(1, 3, 16, 16)
    trainer.train_step(x)
    before = {name: p.clone() for name, p in trainer.module.state_dict().items()}
    genuine = loop.autoencoder_loss

    def broken(*args: Tensor, **options: float) -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = genuine(*args, **options)  # type: ignore[arg-type]
        return loss * float("nan"), parts

    monkeypatch.setattr(loop, "autoencoder_loss", broken)
    with pytest.raises(NonFiniteError, match="The loss at step 1 is nan; resume with a lower learning_rate") as error:
        trainer.train_step(x)
    one_sentence(str(error.value))
    assert trainer.step == 1
    assert all(torch.equal(before[name], p) for name, p in trainer.module.state_dict().items())


def test_the_average_is_used_and_given_back() -> None:
    trainer = Trainer.create(TINY, CPU)
    for _ in range(3):
        trainer.train_step(from_array(np.stack([picture(0)[:16, :16]])))
    own = {name: p.detach().clone() for name, p in trainer.module.named_parameters()}
    with pytest.raises(KeyError), trainer.averaged() as module:
        assert all(torch.equal(p, trainer.ema.shadow[name]) for name, p in module.named_parameters())
        assert any(not torch.equal(p, own[name]) for name, p in module.named_parameters())
        raise KeyError
    assert all(torch.equal(p, own[name]) for name, p in trainer.module.named_parameters())


def test_validation_is_the_mean_psnr_of_the_averaged_weights() -> None:
    trainer = Trainer.create(TINY, CPU)
    held_out = [picture(0, 32, 40), picture(1, 5, 16)]
    scores = []
    with torch.no_grad(), trainer.averaged() as module:
        for array in (held_out[0], np.concatenate([held_out[1], held_out[1][-2:-5:-1]])):  # 3 rows by reflection
            x = from_array(array)[None]
            scores.append(psnr(to_uint8(module.decode(module.encode(x).mean)[0]), to_uint8(x[0])))
    assert trainer.validate(held_out, 8) == pytest.approx(sum(scores) / 2)


# Checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    Trainer.create(TINY, CPU).save(path)
    return path


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (changed(network=FoldedConfig(z_channels=8, ch=(8, 16))), "this checkpoint was trained with another network"),
        (changed(network=replace(FOLDED, encoder_blocks=(2, 1))), "this checkpoint was trained with another network"),
        (changed(network=SMALL), "this checkpoint was trained with another network"),
        (changed(seed=7, kl_weight=0.5), "this checkpoint was trained with another kl_weight, seed"),
        (changed(optimiser="adamw"), "this checkpoint was trained with another optimiser"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(recipe: Recipe, message: str, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=message) as error:
        Trainer.create(recipe, CPU).resume(checkpoint)
    one_sentence(str(error.value))
    assert str(error.value).endswith("give its recipe, or another --out.")


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "other"])
def test_a_damaged_checkpoint_is_refused(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    path.write_bytes({"empty": b"", "text": b"no checkpoint", "cut": whole[: len(whole) // 2], "other": b""}[kind])
    if kind == "other":
        torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(UsageError, match="another --out") as error:
        Trainer.create(TINY, CPU).resume(path)
    one_sentence(str(error.value))


def test_a_failed_checkpoint_leaves_the_old_one(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_up(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = checkpoint.read_bytes()
    monkeypatch.setattr(torch, "save", fill_up)
    with pytest.raises(OSError, match="No space"):
        Trainer.create(TINY, CPU).save(checkpoint)
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint.pt"]
