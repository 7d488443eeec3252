"""The loop: it learns, it can be stopped anywhere, and a resumed run is an unbroken one."""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import SMALL, one_sentence
from torch import Tensor, nn
from trainkit import (
    FOLDED,
    TINY,
    Keeping,
    batches_of,
    changed,
    crops,
    make,
    picture,
    resumed,
    same_trainers,
    trained,
)  # fmt: skip

from calotype.errors import NonFiniteError
from calotype.families.tiny.config import TinyConfig
from calotype.pixels import from_array
from calotype.train.configs import ConvConfig, DenseConfig
from calotype.train.loop import Helpers, Trainer, run
from calotype.train.model import last_layer
from calotype.train.optim import Muon
from calotype.train.recipe import (
    Adversarial,
    Alignment,
    Equivariance,
    Phase,
    Range,
    Recipe,
    Shift,
    Start,
    Teacher,
)  # fmt: skip


def plain(**values: Any) -> Recipe:
    """One phase, Adam, larger crops."""
    return changed(**{"phases": (), "optimiser": "adam", "crop": 32, "zoom": 1.0, **values})


PLAIN = plain()
GAN = Adversarial(start=2, warm_up=1, ndf=4, layers=1, norm="group")


class Distance(nn.Module):
    """Something like LPIPS, but small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 4, 3).requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.conv(x) - self.conv(y)).square().flatten(1).mean(1)


def averages(x: Tensor) -> Tensor:
    """Something like features: [N, 3, h, w]."""
    return nn.functional.avg_pool2d(x, 8)


# Learning


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", ["muon", "adamw", "adam"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_loss_falls(optimiser: str, precision: str) -> None:
    hooks = Keeping()
    recipe = changed(optimiser=optimiser, precision=precision, steps=40, cooldown=10, log_every=5, phases=())
    trained(recipe, hooks)
    losses = [line["loss"] for line in hooks.lines]
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        SMALL, TinyConfig(), DenseConfig(side=16, hidden=(32,), z_channels=8),
        DenseConfig(side=16, hidden=(32,), z_channels=8, variational=True), ConvConfig(ch=8),
        ConvConfig(ch=8, variational=True, residual=True),
    ],
)  # fmt: skip
def test_every_network_learns_in_the_same_loop(network: Any) -> None:
    hooks = Keeping()
    trained(changed(network=network, steps=20, cooldown=5, log_every=5, phases=(), optimiser="adam"), hooks)
    assert hooks.lines[-1]["loss"] < hooks.lines[0]["loss"]
    assert ("kl" in hooks.lines[0]) == (isinstance(network, type(SMALL)) or getattr(network, "variational", False))


def test_training_begins_with_little_noise() -> None:
    x = from_array(picture(0)[:32, :32])[None]
    for network in (FOLDED, SMALL, ConvConfig(variational=True)):
        assert 0.005 < make(changed(network=network, crop=32)).network.encode(x).std.mean() < 0.01
    assert make(changed(quiet=False)).network.encode(x).std.mean() > 0.5


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_bits() -> None:
    first, second = trained(TINY), trained(TINY)
    assert same_trainers(first, second)
    assert not same_trainers(first, trained(changed(seed=4)))


def test_parts_add_up_to_a_step() -> None:
    """A step in four parts has the gradient of a step in one."""
    whole, parts = make(PLAIN), make(changed(phases=(), optimiser="adam", crop=32, zoom=1.0, accumulate=4))
    batch = crops(PLAIN)
    gradients = []
    for trainer in (whole, parts):
        trainer.ema.update = lambda module: gradients.append(  # type: ignore[method-assign]
            torch.cat([p.detach().flatten() for p in module.parameters()])
        )
        line = trainer.train_step(batch)
        gradients.append(torch.tensor([line["loss"], line["gradient"]]))
    assert torch.allclose(gradients[1], gradients[3], rtol=1e-5)
    assert torch.allclose(gradients[0], gradients[2], rtol=1e-4, atol=1e-5)


# Stopping and going on


EVERYTHING = changed(
    network=SMALL, crop=32, zoom=1.0, phases=(), optimiser="adamw", perceptual=0.5, logvar="learned",
    adversarial=Adversarial(start=2, warm_up=1, ndf=4, layers=1, norm="batch", lecam=0.1, r1=0.1),
    equivariance=Equivariance(), alignment=Alignment(), shift=Shift(weight=0.1), accumulate=2,
    activation_range=Range(limit=1.0, weight=0.1),
)  # fmt: skip
HELPERS = Helpers(perceptual=Distance(), features=averages)


def stop_at(trainer: Trainer, step: int, number: signal.Signals = signal.SIGINT) -> None:
    """A signal comes in the middle of a step."""
    update = trainer.ema.update

    def updated(module: Any) -> None:
        update(module)
        if trainer.step == step - 1:
            os.kill(os.getpid(), number)

    trainer.ema.update = updated  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("stop", [1, 4, 5, 7])
@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_a_resumed_run_is_an_unbroken_one(stop: int, optimiser: str, tmp_path: Path) -> None:
    # the phase that begins at step 5 changes crop, batch and rate
    recipe = changed(optimiser=optimiser)
    whole = trained(recipe)
    first = make(recipe)
    stop_at(first, stop)
    assert not run(first, batches_of(recipe), Keeping(tmp_path))
    assert first.step == stop
    assert same_trainers(whole, trained(recipe, start=resumed(recipe, tmp_path)))


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_so_it_is_with_everything_switched_on(tmp_path: Path) -> None:
    whole = trained(EVERYTHING, start=make(EVERYTHING, HELPERS))
    first = make(EVERYTHING, HELPERS)
    stop_at(first, 4)
    assert not run(first, batches_of(EVERYTHING), Keeping(tmp_path))
    second = make(EVERYTHING, HELPERS)
    from calotype.train import checkpoint

    path = checkpoint.newest(tmp_path)
    assert path
    second.load_state_dict(checkpoint.load(path, EVERYTHING))
    assert same_trainers(whole, trained(EVERYTHING, start=second))
    state = whole.state_dict()
    assert {"discriminator", "discriminator_optimiser", "lecam"} <= state.keys()


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_and_stops(number: signal.Signals, tmp_path: Path) -> None:
    trainer = make(TINY)
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    stop_at(trainer, 2, number)
    hooks = Keeping(tmp_path)
    assert run(trainer, batches_of(TINY), hooks) is False
    assert hooks.checks == [2]  # where none was due
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert same_trainers(trainer, resumed(TINY, tmp_path))


def test_a_signal_in_the_last_step_is_the_end() -> None:
    trainer = make(TINY)
    stop_at(trainer, TINY.steps, signal.SIGTERM)
    assert run(trainer, batches_of(TINY), Keeping()) is True


def test_lines_and_checks() -> None:
    hooks = Keeping()
    trained(TINY, hooks)
    assert [line["step"] for line in hooks.lines] == [2, 3, 4, 6, 8]  # every second, and where a checkpoint is
    assert hooks.checks == [3, 6, 8]
    for line in hooks.lines:
        assert line.keys() >= {"loss", "rec", "kl", "gradient", "rate", "crops_per_second", "waiting"}
        assert line["loss"] == pytest.approx(line["rec"] + TINY.kl_weight * line["kl"], rel=1e-5)


def test_rates_rise_fall_and_change_with_phases() -> None:
    trainer = make(TINY)
    rates, muon = [], []
    for step in range(TINY.steps):
        rates.append(trainer.train_step(crops(TINY, step))["rate"])
        muon.append(next(o for o in trainer.optimisers if isinstance(o, Muon)).param_groups[0]["lr"])
        adam = next(o for o in trainer.optimisers if not isinstance(o, Muon))
        assert adam.param_groups[0]["lr"] == rates[-1] * TINY.learning_rate
    assert rates == [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert muon == [rate * (TINY.muon_rate if step < 5 else 1e-2) for step, rate in enumerate(rates)]


def test_no_warmup_and_no_cooldown() -> None:
    recipe = changed(warmup=0, cooldown=0)
    assert make(recipe).train_step(crops(recipe))["rate"] == 1.0


def test_muon_takes_hidden_convolutions_and_adam_the_rest() -> None:
    trainer = make(TINY)
    muon, adam = trainer.optimisers
    assert isinstance(muon, Muon)
    names = {id(p): name for name, p in trainer.network.named_parameters()}
    hidden = [names[id(p)] for p in muon.param_groups[0]["params"]]
    others = [names[id(p)] for p in adam.param_groups[0]["params"]]
    assert sorted(hidden + others) == sorted(names.values())
    assert all(name.endswith("weight") for name in hidden)
    assert {name.rsplit(".", 1)[0] for name in others if name.endswith("weight")} == {
        f"{side}.conv_{end}" for side in ("encoder", "decoder") for end in ("in", "out")
    }


# What is not finite


def test_what_is_not_finite_stops_and_changes_nothing() -> None:
    trainer = make(changed(adversarial=GAN, crop=32, phases=(), network=SMALL))
    trainer.train_step(crops(trainer.recipe))
    before = {name: p.clone() for name, p in trainer.own.state_dict().items()}
    next(trainer.network.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(
        NonFiniteError, match=r"At step 1 gradient is (nan|inf), .*; the batch was a\.png, b\.png"
    ) as error:
        trainer.train_step(crops(trainer.recipe), ["a.png", "b.png"])
    one_sentence(str(error.value))
    assert trainer.step == 1
    assert all(torch.equal(before[name], p) for name, p in trainer.own.state_dict().items())
    assert all(p.grad is None for p in trainer.own.parameters())


def test_a_loss_that_is_nan_is_named() -> None:
    trainer = make(PLAIN)
    with torch.no_grad():
        last_layer(trainer.network, "decoder").fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="At step 0 loss is nan, rec is nan"):
        trainer.train_step(crops(PLAIN))


# Averages


def test_the_average_is_used_and_given_back() -> None:
    trainer = make(TINY)
    for step in range(3):
        trainer.train_step(crops(TINY, step))
    own = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    with pytest.raises(KeyError), trainer.averaged() as network:
        assert all(torch.equal(p, trainer.ema.shadow[name]) for name, p in network.named_parameters())
        assert any(not torch.equal(p, own[name]) for name, p in network.named_parameters())
        raise KeyError
    assert all(torch.equal(p, own[name]) for name, p in trainer.network.named_parameters())


def test_without_averaging_the_average_is_the_network() -> None:
    trainer = trained(changed(ema_decay=0.0))
    assert all(torch.equal(p, trainer.ema.shadow[name]) for name, p in trainer.network.named_parameters())


# Each loss reaches what it must and nothing else


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def watched(trainer: Trainer, step: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    """The gradients of network and discriminator when their optimisers step."""
    seen: dict[str, dict[str, Any]] = {}
    for name, optimiser, module in (
        ("network", trainer._fabricked[-1], trainer.network),
        *([("judge", trainer._judged, trainer.discriminator)] if trainer.discriminator else []),
    ):
        real = optimiser.step

        def stepped(*, real: Any = real, name: str = name, module: Any = module) -> Any:
            seen[name] = gradients(module)
            return real()

        optimiser.step = stepped
    line = trainer.train_step(crops(trainer.recipe, step))
    return seen["network"], seen.get("judge", {}), line


def test_the_discriminator_trains_before_it_is_used() -> None:
    recipe = changed(phases=(), optimiser="adam", crop=32, zoom=1.0, adversarial=GAN)
    trainer = make(recipe)
    assert trainer.discriminator
    weights = [trainer.discriminator.main[0].weight.detach().clone()]
    lines = []
    for step in range(3):
        lines.append(trainer.train_step(crops(recipe, step)))
        weights.append(trainer.discriminator.main[0].weight.detach().clone())
    assert ["discriminator" in line for line in lines] == [False, True, True]
    assert ["generator" in line for line in lines] == [False, False, True]
    assert [torch.equal(a, b) for a, b in pairwise(weights)] == [True, False, False]


def test_neither_loss_leaks_into_the_other() -> None:
    """The network's gradient is that without a discriminator's step, and the discriminator's that of its loss alone."""
    recipe = changed(
        phases=(),
        optimiser="adam",
        crop=32,
        zoom=1.0,
        clip=0.0,
        adversarial=Adversarial(start=0, ndf=4, layers=1, norm="group"),
    )
    trainer = make(recipe)
    judge = trainer.discriminator
    assert judge
    batch = crops(recipe)
    x = from_array(batch).contiguous(memory_format=torch.channels_last)  # as the trainer lays them out on the CPU
    noise = trainer._noise(recipe, x)
    # by hand, with torch alone
    posterior = trainer.network.encode(x)
    made = trainer.network.decode(posterior.mean + posterior.std * noise)
    values = x[0].numel()
    nll = (made - x).abs().mean()
    judge.requires_grad_(False)
    g = -judge(made).mean()
    layer = last_layer(trainer.network, "decoder")
    norms = [torch.autograd.grad(loss, layer, retain_graph=True)[0].norm() for loss in (values * nll, g)]
    weight = 0.5 / values * (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4)
    loss = nll + recipe.kl_weight * posterior.kl().mean() / values + weight * g
    wanted = torch.autograd.grad(loss, list(trainer.network.parameters()))
    judge.requires_grad_(True)
    hinge = 0.5 * (nn.functional.relu(1 - judge(x)).mean() + nn.functional.relu(1 + judge(made.detach())).mean())
    wanted_judge = torch.autograd.grad(hinge, list(judge.parameters()))
    network, judged, line = watched(trainer, 0)
    assert line["adversarial_weight"] == pytest.approx(float(weight), rel=1e-4)
    for found, expected in ((network, wanted), (judged, wanted_judge)):
        for one, other in zip(found.values(), expected, strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)
    assert all(p.requires_grad for p in judge.parameters())


def test_the_perceptual_loss_has_a_gradient() -> None:
    recipe = changed(
        phases=(), optimiser="adam", crop=32, zoom=1.0, perceptual=1.0, reconstruction_weight=0.0, kl_weight=0.0
    )
    trainer = make(recipe, Helpers(perceptual=Distance()))
    network, _, line = watched(trainer, 0)
    assert line["loss"] == pytest.approx(line["lpips"])
    assert all(float(g.abs().sum()) > 0 for name, g in network.items() if name.startswith("decoder") and g is not None)


def test_a_learned_variance_of_the_reconstruction() -> None:
    recipe = changed(phases=(), optimiser="adam", crop=32, zoom=1.0, logvar="learned", warmup=0, cooldown=0)
    trainer = make(recipe)
    lines = [trainer.train_step(crops(recipe)) for _ in range(3)]
    assert lines[0]["logvar"] == 0.0
    assert lines[1]["logvar"] != 0.0
    assert lines[1]["loss"] == pytest.approx(
        lines[1]["rec"] / np.exp(lines[1]["logvar"]) + lines[1]["logvar"] + recipe.kl_weight * lines[1]["kl"], rel=1e-4
    )


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_the_other_half_stays_bit_identical(half: str) -> None:
    """As in ft-mse: a decoder trained on, its encoder and the latents as they were."""
    start = make(changed(network=SMALL)).network
    before = {name: p.clone() for name, p in start.state_dict().items()}
    recipe = changed(network=SMALL, start=Start(weights="x", train=half), phases=(), optimiser="adamw", steps=3)
    trainer = make(recipe, Helpers(start=start))
    for step in range(3):
        trainer.train_step(crops(recipe, step))
    moved = {name for name, p in trainer.network.state_dict().items() if not torch.equal(p, before[name])}
    names = {"encoder": ("encoder.", "quant_conv."), "decoder": ("decoder.", "post_quant_conv.")}[half]
    assert moved == {name for name in before if name.startswith(names)}
    assert all(torch.equal(trainer.ema.shadow[name], before[name]) for name in before if not name.startswith(names))


def test_a_teacher_decides_what_latents_are() -> None:
    teacher = make(changed(network=SMALL, seed=9)).network.requires_grad_(False)
    student = TinyConfig(z_channels=SMALL.z_channels)
    if student.factor != SMALL.factor:
        student = ConvConfig(ch=8, ch_mult=(1,) * len(SMALL.ch_mult), z_channels=SMALL.z_channels)  # type: ignore[assignment]
    for target in ("pictures", "teacher"):
        recipe = changed(
            network=student, teacher=Teacher(weights="x", target=target), phases=(), optimiser="adam", crop=32, zoom=1.0
        )
        trainer = make(recipe, Helpers(teacher=teacher))
        batch = crops(recipe)
        x = from_array(batch)
        with torch.no_grad():
            z = teacher.encode(x).mode()
            wanted = teacher.decode(z) if target == "teacher" else x
            made = trainer.network.decode(z)
            rec = (made - wanted).abs().mean()
            latents = (trainer.network.encode(x).mode() - z).square().mean()
        line = trainer.train_step(batch)
        assert line["rec"] == pytest.approx(float(rec), rel=1e-5)
        assert line["latents"] == pytest.approx(float(latents), rel=1e-5)
        assert line["loss"] == pytest.approx(line["rec"] + line["latents"], rel=1e-5)


@pytest.mark.slow
def test_activations_are_brought_into_a_range() -> None:
    recipe = changed(
        network=SMALL,
        phases=(),
        optimiser="adam",
        activation_range=Range(limit=1.0, weight=10.0),
        steps=60,
        crop=16,
        cooldown=0,
        learning_rate=2e-3,
    )
    hooks = Keeping()
    trained(recipe, hooks)
    assert hooks.lines[-1]["excess"] < 0.5 * hooks.lines[0]["excess"]
    line = hooks.lines[0]
    assert line["loss"] == pytest.approx(line["rec"] + recipe.kl_weight * line["kl"] + 10 * line["excess"], rel=1e-4)


def test_equivariance_compares_with_the_transformed_picture() -> None:
    """A network that gives the picture back exactly when it is neither scaled nor turned would lose here."""
    seen = []
    recipe = changed(phases=(), optimiser="adam", crop=32, zoom=1.0, equivariance=Equivariance(probability=1.0))
    trainer = make(recipe)
    forward = trainer.own.network.decode
    trainer.own.network.decode = lambda z: seen.append(z.shape) or forward(z)  # type: ignore[method-assign,func-returns-value]
    for step in range(4):
        trainer.train_step(crops(recipe, step))
    assert len(set(seen)) > 1
    assert all(shape[2] < 4 for shape in seen)


def test_kl_weighs_the_same_beside_a_scaled_picture() -> None:
    """The ratio of EQ-VAE's sums: of errors over what is compared, of KL over all latents."""
    recipe = changed(phases=(), optimiser="adam", crop=32, kl_weight=0.1, equivariance=Equivariance(probability=1.0))
    trainer = make(recipe)
    batch = crops(recipe)
    posterior = trainer.network.encode(from_array(batch).contiguous(memory_format=torch.channels_last))
    shapes = []
    forward = trainer.own.network.decode
    trainer.own.network.decode = lambda z: shapes.append(z.shape) or forward(z)  # type: ignore[method-assign,func-returns-value]
    kl = float(posterior.kl().mean().detach())
    line = trainer.train_step(batch)
    compared = 3 * 8 * shapes[0][2] * 8 * shapes[0][3]
    assert compared < 3 * 32 * 32
    assert line["kl"] == pytest.approx(kl / compared, rel=1e-4)
    assert line["loss"] == pytest.approx(line["rec"] + 0.1 * line["kl"], rel=1e-5)


@pytest.mark.slow
def test_checkpointed_blocks_give_the_same_gradients() -> None:
    lines = []
    for on in (False, True):
        recipe = changed(network=SMALL, phases=(), optimiser="adam", crop=32, gradient_checkpointing=on)
        lines.append(watched(make(recipe), 0)[0])
    assert all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(lines[0].values(), lines[1].values(), strict=True)
    )


def test_channels_last_changes_nothing_but_the_layout() -> None:
    plain, last = (make(changed(phases=(), optimiser="adam", crop=32, channels_last=on)) for on in (False, True))
    a, b = (trainer.train_step(crops(trainer.recipe)) for trainer in (plain, last))
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert a["gradient"] == pytest.approx(b["gradient"], rel=1e-4)


def test_gradients_are_weighed_in_bfloat16_too() -> None:
    """Of which Fabric's own autocast would have none."""
    gan = Adversarial(start=0, ndf=4, layers=1, norm="group")
    recipes = [
        changed(phases=(), crop=32, optimiser="adam", adversarial=gan, precision=p) for p in ("float32", "bfloat16")
    ]
    lines = [make(recipe).train_step(crops(recipe)) for recipe in recipes]
    for key in ("adversarial_weight", "generator", "discriminator", "rec"):
        assert lines[0][key] == pytest.approx(lines[1][key], rel=0.1)
        assert lines[0][key] != lines[1][key]


def test_phases_may_come_with_a_discriminator() -> None:
    recipe = changed(adversarial=GAN, phases=(Phase(start=4, crop=32, batch=2),))
    trained(recipe)
