"""The training loop: deterministic, stoppable, resumable, on one process or many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from calotype.errors import NonFiniteError, UsageError
from calotype.latents import LatentFormat
from calotype.pixels import from_array, to_channels
from calotype.posterior import DiagonalGaussian
from calotype.stopping import noted
from calotype.train.crops import Batch, noise_generator
from calotype.train.discriminator import (
    LeCam,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)  # fmt: skip
from calotype.train.ema import EMA
from calotype.train.family import Autoencoder, make_autoencoder
from calotype.train.losses import kl, nll, reconstruction
from calotype.train.model import (
    Judge,
    Model,
    Output,
    Scaled,
    autocast,
    freeze,
    freeze_unused,
    last_layer,
    measured,
    posterior_by_width,
    quieten,
    triples,
)  # fmt: skip
from calotype.train.norm import hasten
from calotype.train.optim import Muon, optimisers_of
from calotype.train.recipe import Recipe
from calotype.train.regularisers import Equivariance, Transform
from calotype.train.sharded import shared, whole
from calotype.train.start import Origin

Array = NDArray[np.uint8]
Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Helpers:
    """Frozen networks that losses need.

    Attributes:
        start: the network that training begins from; a fresh one where there is none.
        before: what is known of the weights it begins from, for the header of those it gives.
        origin: these weights as they are stored, so that what is frozen is written as it was.
        perceptual: two pictures [N, 3, H, W] in [-1, 1] -> their LPIPS, [N].
        features: pixels -> what latents are aligned to, [N, D, h, w].
        teacher: encodes pixels to the latents to give, and decodes them.
        format: of latents that are known beforehand: those of a frozen encoder, or of a teacher.
    """

    start: Autoencoder | None = None
    before: dict[str, Any] | None = None
    origin: Origin | None = None
    perceptual: nn.Module | None = None
    features: Features | None = None
    teacher: Autoencoder | Scaled | None = None
    format: LatentFormat | None = None


class Trainer:
    """Networks in training: weights, their average, optimisers and the step reached.

    Args:
        recipe: what is trained, and how.
        fabric: launched; says on how many processes.
        helpers: what the recipe's losses need.
    """

    def __init__(self, recipe: Recipe, fabric: Fabric, helpers: Helpers | None = None) -> None:
        self.recipe, self.fabric, self.helpers = recipe, fabric, helpers or Helpers()
        self.step = 0
        self.history: list[dict[str, Any]] = []  # what was changed on the way, and when
        torch.manual_seed(recipe.seed)
        network = self.helpers.start or make_autoencoder(recipe.network)
        if self.helpers.start is not None:
            network.eval()  # batch norms keep the statistics that they came with
        elif recipe.quiet:
            quieten(network)
        if recipe.start is not None:
            freeze(network, recipe.start.train)
        freeze_unused(network)
        self.network: Autoencoder = network.to(fabric.device)
        on_cpu = fabric.device.type == "cpu"
        self.channels_last = on_cpu if recipe.channels_last is None else recipe.channels_last
        if self.channels_last and not isinstance(
            fabric.strategy, ModelParallelStrategy
        ):  # FSDP's weights are contiguous
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.channels_last and on_cpu and not recipe.compile:  # what is compiled needs no help
            hasten(self.network)
        width = 0
        if recipe.alignment:
            assert self.helpers.features is not None
            side = recipe.crop
            width = self.helpers.features(torch.zeros(1, 3, side, side, device=fabric.device)).shape[1]
        self.own = Model(self.network, recipe, width).to(fabric.device)
        compiled: Any = torch.compile(self.own) if recipe.compile else self.own
        self.model = fabric.setup_module(compiled)
        self.optimisers = optimisers_of(recipe, self.own)  # of the weights as they are shared by now
        self._fabricked: list[Any] = [fabric.setup_optimizers(optimiser) for optimiser in self.optimisers]
        self.ema = EMA(self.network, recipe.ema_decay)
        self.discriminator: PatchDiscriminator | None = None
        self.discriminator_optimiser: torch.optim.Optimizer | None = None
        self.lecam: LeCam | None = None
        if gan := recipe.adversarial:
            self.discriminator = PatchDiscriminator(ndf=gan.ndf, layers=gan.layers, norm=gan.norm).to(fabric.device)
            self._judge = fabric.setup_module(Judge(self.discriminator, recipe))
            rate = recipe.learning_rate if gan.learning_rate is None else gan.learning_rate
            self.discriminator_optimiser = torch.optim.Adam(self.discriminator.parameters(), rate, betas=recipe.betas)
            self._judged: Any = fabric.setup_optimizers(self.discriminator_optimiser)
            self.lecam = LeCam().to(fabric.device) if gan.lecam else None

    # --- one step ---

    def train_step(self, crops: Array, names: Sequence[str] = ()) -> dict[str, float]:
        """One step on this process's crops, uint8 [n, H, W, P]; `names` of their pictures, for errors.

        Raises:
            NonFiniteError: if a loss or gradient is NaN or infinite; the weights are then as before the step.
        """
        recipe = self.recipe.at(self.step)
        rate = self._set_rates(recipe)
        x, transform, shift = self._drawn(recipe, crops)
        noise = self._noise(recipe, x)
        parts = recipe.accumulate
        size = len(x) // parts
        sums: dict[str, Tensor] = {}
        outputs: list[tuple[Tensor, Tensor]] = []
        for i in range(parts):
            part = slice(i * size, (i + 1) * size)
            with self._alone(self.model, i < parts - 1):
                losses, pair = self._generator_part(recipe, x[part], noise[part], transform, shift)
                self.fabric.backward(losses["loss"] / parts)
            outputs.append(pair)
            for key, value in losses.items():
                sums[key] = sums.get(key, 0.0) + value.detach() / parts
        sums["gradient"] = self._clip(self.own, recipe.clip)
        figures = self._finite(sums, names)
        if self._judging(recipe):
            judged = self._discriminator_backward(recipe, outputs)
            figures |= self._finite(judged, names)
            self._judged.step()
            self._judged.zero_grad(set_to_none=True)
        for optimiser in self._fabricked:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.ema.update(self.network)
        self.step += 1
        return {**figures, "rate": rate}

    def losses(self, crops: Array) -> Tensor:
        """What some crops cost at this step; nothing is trained, and no statistics are taken."""
        recipe = self.recipe.at(self.step)
        x, transform, shift = self._drawn(recipe, crops)
        with measured(self.network, *([self.discriminator] if self.discriminator is not None else [])):
            losses, _ = self._generator_part(recipe, x, self._noise(recipe, x), transform, shift)
        return losses["loss"]

    def _generator_part(
        self, recipe: Recipe, x: Tensor, noise: Tensor, transform: Transform | None, shift: Tensor | None
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """The network's losses on some crops; and what the discriminator is to tell apart."""
        teacher, features = self.helpers.teacher, self.helpers.features
        given = None
        target = x
        with torch.no_grad():
            if teacher is not None:
                given = teacher.encode(x).mode()
                if recipe.teacher and recipe.teacher.target == "teacher":
                    target = teacher.decode(given)
            seen = features(to_channels(x, 3)) if features is not None else None
        out: Output = self.model(x, noise, transform, seen, shift, given)
        if transform is not None:
            target = transform.pixels(target)
        made = out.reconstruction
        values = made[0].numel()  # of what is compared, so that KL weighs beside a scaled picture what it does there
        distance = recipe.reconstruction_weight * reconstruction(recipe.reconstruction, target, made)
        parts: dict[str, Tensor] = {"rec": distance.mean()}
        seen_apart: Tensor | None = None
        if self.helpers.perceptual is not None:
            seen_apart = self.helpers.perceptual(triples(target), triples(made)).view(len(made), -1).mean(1)
            parts["lpips"] = seen_apart.mean()
        likelihood = nll(distance, seen_apart, perceptual_weight=recipe.perceptual, logvar=out.logvar).mean()
        posterior = posterior_by_width(out.moments, recipe.network.z_channels)
        loss = likelihood
        if isinstance(posterior, DiagonalGaussian):
            parts["kl"] = kl(posterior).mean() / values
            loss = loss + recipe.kl_weight * parts["kl"]
        if recipe.logvar == "learned":
            parts["logvar"] = out.logvar
        if given is not None and recipe.teacher:
            parts["latents"] = (out.latents - given).square().mean()
            loss = loss + recipe.teacher.latents * parts["latents"]
        if recipe.alignment:
            parts["alignment"] = out.alignment
            layer = last_layer(self.network, "encoder")
            ratio = adaptive_weight(values * likelihood, out.alignment, layer, maximum=1e8, reduce=self._mean)
            loss = loss + recipe.alignment.weight * ratio / values * out.alignment
        if recipe.shift:
            parts["shift"] = out.shift
            loss = loss + recipe.shift.weight * out.shift
        if recipe.activation_range:
            parts["excess"] = out.excess
            loss = loss + recipe.activation_range.weight * out.excess
        gan = recipe.adversarial
        if gan and self.step >= gan.start:
            assert self.discriminator is not None
            g = self._judged_by(self.discriminator, triples(made))
            weight = made.new_tensor(gan.weight)
            if gan.adaptive:  # on losses summed over a picture, so that LDM's 1e-4 and 1e4 mean what they mean there
                layer = last_layer(self.network, "decoder")
                weight = gan.weight / values * adaptive_weight(values * likelihood, g, layer, reduce=self._mean)
            parts |= {"generator": g, "adversarial_weight": weight}
            loss = loss + weight * g
        seen_latents = out.latents.detach()
        parts |= {"latent_mean": seen_latents.mean(), "latent_std": seen_latents.std(correction=0)}
        return {"loss": loss, **parts}, (triples(target), triples(made.detach()))

    def _discriminator_backward(self, recipe: Recipe, outputs: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """The discriminator's gradient on what the network has just learnt from; its losses for the log."""
        gan = recipe.adversarial
        assert gan and self.discriminator is not None
        sums: dict[str, Tensor] = {}
        for i, (real, fake) in enumerate(outputs):
            last = i == len(outputs) - 1
            with self._alone(self._judge, not last):
                real = real.detach().requires_grad_(gan.r1 > 0)
                of_real, of_fake = self._judge(real, fake)
                loss = discriminator_loss(of_real, of_fake, gan.loss)
                parts = {"discriminator": loss, "logits_real": of_real.mean(), "logits_fake": of_fake.mean()}
                if self.lecam is not None:
                    parts["lecam"] = self.lecam(of_real, of_fake, self._mean)
                    loss = loss + gan.lecam * parts["lecam"]
                if gan.r1:
                    parts["r1"] = r1_penalty(of_real, real)
                    loss = loss + gan.r1 * parts["r1"]
                self.fabric.backward(loss / len(outputs))
            for key, value in parts.items():
                sums[key] = sums.get(key, 0.0) + value.detach() / len(outputs)
        sums["discriminator_gradient"] = self._clip(self.discriminator, 0.0)
        return sums

    # --- what a step needs ---

    def _judging(self, recipe: Recipe) -> bool:
        gan = recipe.adversarial
        return gan is not None and self.step >= gan.start - gan.warm_up

    def _set_rates(self, recipe: Recipe) -> float:
        """The schedule: a linear rise, and a linear fall to zero at the end."""
        rate = min(1.0, (self.step + 1) / max(1, recipe.warmup)) * min(
            1.0, (recipe.steps - self.step) / max(1, recipe.cooldown)
        )
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * (recipe.muon_rate if isinstance(optimiser, Muon) else recipe.learning_rate)
        gan = recipe.adversarial
        if gan and self.discriminator_optimiser:
            for group in self.discriminator_optimiser.param_groups:
                group["lr"] = rate * (recipe.learning_rate if gan.learning_rate is None else gan.learning_rate)
        return rate

    def _noise(self, recipe: Recipe, x: Tensor) -> Tensor:
        """This process's part of the step's noise, which is the same on however many processes."""
        factor, world = recipe.network.factor, self.fabric.world_size
        shape = (len(x) * world, recipe.network.z_channels, x.shape[2] // factor, x.shape[3] // factor)
        noise = torch.randn(shape, generator=noise_generator(recipe.seed, self.step))
        first = self.fabric.global_rank * len(x)
        return noise[first : first + len(x)].to(x.device)

    def _drawn(self, recipe: Recipe, crops: Array) -> tuple[Tensor, Transform | None, Tensor | None]:
        """What is encoded at this step, and the step's transform and shift where the recipe has them."""
        x = from_array(crops).to(self.fabric.device)
        factor = recipe.network.factor
        transform = shift = None
        if recipe.equivariance is not None:
            draw = Equivariance(recipe.equivariance.probability, recipe.equivariance.low, factor)
            transform = draw(np.random.default_rng([recipe.seed, 3, self.step]))
            x = transform.input(x)
        if recipe.shift is not None:
            rng = np.random.default_rng([recipe.seed, 4, self.step])
            shift = torch.from_numpy(rng.uniform(-factor / 2, factor / 2, 2).astype(np.float32))
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, transform, shift

    def _mean(self, gradient: Tensor) -> Tensor:
        """A gradient's mean over processes."""
        return self.fabric.all_reduce(gradient, reduce_op="mean")  # type: ignore[return-value]

    def _clip(self, module: nn.Module, most: float) -> Tensor:
        """The norm of a module's gradient, which is cut to `most` (0: left as it is)."""
        trained = [p for p in module.parameters() if p.grad is not None]
        norm: Tensor = whole(torch.nn.utils.clip_grad_norm_(trained, most or float("inf")))
        return norm

    def _finite(self, values: dict[str, Tensor], names: Sequence[str]) -> dict[str, float]:
        """Figures as numbers: one wait for the device."""
        figures = dict(zip(values, torch.stack([v.detach().float() for v in values.values()]).tolist(), strict=True))
        if all(map(math.isfinite, figures.values())):
            return figures
        for optimiser in (*self._fabricked, *([self._judged] if self.discriminator else [])):
            optimiser.zero_grad(set_to_none=True)
        what = ", ".join(f"{key} is {value}" for key, value in figures.items() if not math.isfinite(value))
        of = f"; the batch was {', '.join(names)}" if names else ""
        raise NonFiniteError(
            f"At step {self.step} {what}, and nothing was changed by it; go on from the last checkpoint with a lower "
            f"learning_rate{of}."
        )

    def _alone(self, module: Any, alone: bool) -> AbstractContextManager[None]:
        """Without adding gradients up over processes, if wanted and possible."""
        return self.fabric.no_backward_sync(module, enabled=alone and not self.sharded)

    def _judged_by(self, discriminator: PatchDiscriminator, made: Tensor) -> Tensor:
        """The generator's loss, whose gradient reaches what made the pictures and nothing of the discriminator."""
        alone = made.detach().requires_grad_()
        with autocast(self.recipe, made.device):
            g = generator_loss(discriminator(alone).float())
        (pull,) = torch.autograd.grad(g, alone)
        through = (made * pull).sum()
        return g.detach() + through - through.detach()

    # --- weights ---

    @property
    def sharded(self) -> bool:
        """Whether processes hold parts of the weights only."""
        return any(isinstance(p, DTensor) for p in self.network.parameters())

    @contextmanager
    def averaged(self) -> Iterator[Autoencoder]:
        """The network with its averaged weights, for validation and export; all processes must ask."""
        if self.sharded:
            network = make_autoencoder(self.recipe.network).to(self.fabric.device)
            network.load_state_dict({**dict(self.network.named_buffers()), **whole(self.ema.shadow)})
            yield network.eval().requires_grad_(False)
            return
        own = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self._put(self.ema.shadow)
        try:
            with measured(self.network):
                yield self.network
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, p in self.network.named_parameters():
            p.copy_(weights[name])

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later, as plain tensors and numbers; all processes must ask.

        Where weights are shared, the first one alone gets them, on the CPU.
        """
        state: dict[str, Any] = {
            "step": self.step,
            "model": self.own.state_dict(),
            "ema": self.ema.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "rng": torch.get_rng_state(),
            "history": self.history,
        }
        if self.discriminator is not None and self.discriminator_optimiser is not None:
            state["discriminator"] = self.discriminator.state_dict()
            state["discriminator_optimiser"] = self.discriminator_optimiser.state_dict()
        if self.lecam is not None:
            state["lecam"] = self.lecam.state_dict()
        found: dict[str, Any] = whole(state, keep=self.fabric.is_global_zero)
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        _put_module(self.own, state["model"])
        self.ema.load_state_dict(
            {k: shared(v, self.ema.shadow[k]) if isinstance(v, Tensor) else v for k, v in state["ema"].items()}
        )
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            _put_optimiser(optimiser, saved)
        if self.discriminator is not None and self.discriminator_optimiser is not None:
            _put_module(self.discriminator, state["discriminator"])
            _put_optimiser(self.discriminator_optimiser, state["discriminator_optimiser"])
        if self.lecam is not None:
            self.lecam.load_state_dict(state["lecam"])
        torch.set_rng_state(state["rng"])
        self.step, self.history = state["step"], state["history"]


def _put_module(module: nn.Module, state: dict[str, Tensor]) -> None:
    own = module.state_dict()
    module.load_state_dict({key: shared(value, own[key]) if key in own else value for key, value in state.items()})


def _put_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    if [len(g["params"]) for g in state["param_groups"]] != [len(g["params"]) for g in optimiser.param_groups]:
        raise UsageError("This checkpoint's optimisers train other weights than this version's; give another --out.")
    of = {
        i: {k: shared(v, parameters[i]) if isinstance(v, Tensor) else v for k, v in values.items()}
        for i, values in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": of})


class Hooks(Protocol):
    """What happens between steps."""

    def logged(self, line: dict[str, float]) -> None:
        """Every `log_every` steps: means over them."""

    def checked(self, trainer: Trainer, line: dict[str, float]) -> None:
        """Where a checkpoint is due, at a stop too: may add figures to the line, which is logged after."""


def _over_processes(fabric: Fabric, values: dict[str, float]) -> dict[str, float]:
    """Means over all processes, which have the same keys."""
    if fabric.world_size == 1:
        return values
    means: Any = fabric.all_reduce(torch.tensor(list(values.values()), dtype=torch.float64), reduce_op="mean")
    return dict(zip(values, means.tolist(), strict=True))


def run(trainer: Trainer, batches: Callable[[int, int], Iterator[Batch]], hooks: Hooks) -> bool:
    """Trains until the recipe's last step: True when it got there, False when a signal stopped it.

    Args:
        batches: (first step, last step) -> this process's crops of each, and the names of their pictures.
    """
    recipe, fabric = trainer.recipe, trainer.fabric
    sums: dict[str, list[float]] = {}
    seen, since, waited = 0, time.perf_counter(), 0.0
    with noted() as stopped:  # by SIGINT, SIGTERM or SIGHUP
        source = batches(trainer.step, recipe.steps)
        while trainer.step < recipe.steps:
            begin = time.perf_counter()
            crops, names = next(source)
            waited += time.perf_counter() - begin
            for key, value in trainer.train_step(crops, names).items():
                sums.setdefault(key, []).append(value)
            seen += len(crops) * fabric.world_size
            # one look at the signals: one may come at any time, and all processes must stop at the same step
            stop = stopped()
            if fabric.world_size > 1:
                stop = bool(fabric.all_reduce(torch.tensor(float(stop)), reduce_op="max"))
            check = trainer.step % recipe.checkpoint_every == 0 or trainer.step == recipe.steps or stop
            if trainer.step % recipe.log_every == 0 or check:
                elapsed = time.perf_counter() - since
                means = {k: sum(v) / len(v) for k, v in sums.items()} | {"waiting": waited / elapsed}
                line = {"step": trainer.step, **_over_processes(fabric, means), "crops_per_second": seen / elapsed}
                if check:
                    hooks.checked(trainer, line)
                hooks.logged(line)
                sums, seen, since, waited = {}, 0, time.perf_counter(), 0.0
            if stop:
                return trainer.step == recipe.steps
    return True
