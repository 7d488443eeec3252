"""The training loop: deterministic, stoppable, resumable."""

from __future__ import annotations

import json
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from calotype.errors import NonFiniteError, UsageError
from calotype.evaluate.metrics import psnr
from calotype.files import atomic_path
from calotype.networks import Network, make_network
from calotype.pixels import from_array, to_uint8
from calotype.posterior import DiagonalGaussian
from calotype.train.data import Array, Crops, ahead, centre_crop, noise_generator
from calotype.train.ema import EMA
from calotype.train.losses import autoencoder_loss
from calotype.train.optim import Muon
from calotype.train.recipe import Recipe

# What may differ between the parts of a run: its length, and what lies ahead.
MAY_CHANGE = {"steps", "cooldown", "phases", "log_every", "checkpoint_every"}

Report = Callable[[dict[str, float]], None]


@dataclass
class Trainer:
    """A network in training: weights, their average, optimisers and the step reached."""

    recipe: Recipe
    module: Network
    ema: EMA
    optimisers: list[torch.optim.Optimizer]
    step: int = 0

    @classmethod
    def create(cls, recipe: Recipe, device: torch.device) -> Trainer:
        """A fresh one; the same seed gives the same weights."""
        torch.manual_seed(recipe.seed)
        module = make_network(recipe.network).to(device)
        quieten(module)
        return cls(recipe, module, EMA(module, recipe.ema_decay), _optimisers(recipe, module))

    def train_step(self, x: Tensor) -> dict[str, float]:
        """One step on a batch of pixels [N, 3, H, W] in [-1, 1].

        Raises:
            NonFiniteError: if the loss is NaN or infinite; the weights are then as before the step.
        """
        recipe = self.recipe.at(self.step)
        rate = min(1.0, (self.step + 1) / max(1, recipe.warmup)) * min(
            1.0, (recipe.steps - self.step) / max(1, recipe.cooldown)
        )
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * (recipe.muon_rate if isinstance(optimiser, Muon) else recipe.learning_rate)
        bfloat16 = recipe.precision == "bfloat16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            posterior = DiagonalGaussian(self.module.encode(x).moments.float())
            latents = posterior.sample(noise_generator(recipe.seed, self.step))
            reconstruction = self.module.decode(latents)
        loss, parts = autoencoder_loss(
            x, reconstruction, posterior, kind=recipe.reconstruction, kl_weight=recipe.kl_weight
        )
        if not torch.isfinite(loss):
            raise NonFiniteError(f"The loss at step {self.step} is {loss.item()}; resume with a lower learning_rate.")
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), recipe.clip)
        if not torch.isfinite(norm):
            raise NonFiniteError(
                f"The gradient at step {self.step} is {norm.item()}; resume with a lower learning_rate."
            )
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.ema.update(self.module)
        self.step += 1
        return {"loss": loss.item(), **{k: v.item() for k, v in parts.items()}, "gradient": norm.item(), "rate": rate}

    @contextmanager
    def averaged(self) -> Iterator[Network]:
        """The network with its averaged weights, for validation and export."""
        own = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                p.copy_(self.ema.shadow[name])
        try:
            yield self.module
        finally:
            with torch.no_grad():
                for name, p in self.module.named_parameters():
                    p.copy_(own[name])

    @torch.no_grad()
    def validate(self, pictures: Sequence[Array], multiple: int) -> float:
        """Mean PSNR in dB of the averaged weights on the middles of pictures (mode, uint8)."""
        scores = []
        device = next(self.module.parameters()).device
        with self.averaged() as module:
            for picture in pictures:
                x = centre_crop(picture, multiple)
                y = module.decode(module.encode(x.to(device)).mode()).cpu()
                scores.append(psnr(to_uint8(y[0].float()), to_uint8(x[0])))
        return sum(scores) / len(scores)

    def save(self, path: Path) -> None:
        """Writes a checkpoint beside, then renames it."""
        with atomic_path(path) as temporary:
            torch.save(
                {
                    "recipe": json.dumps(self.recipe.to_dict()),
                    "step": self.step,
                    "module": self.module.state_dict(),
                    "ema": self.ema.state_dict(),
                    "optimisers": [o.state_dict() for o in self.optimisers],
                },
                temporary,
            )

    def resume(self, path: Path) -> None:
        """Goes on from a checkpoint of the same network.

        Raises:
            UsageError: if the checkpoint is damaged, or of another network or optimiser.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            first = str(error).strip().split("\n")[0].rstrip(".")
            raise UsageError(f"{path}: this checkpoint is damaged ({first}); begin anew in another --out.") from None
        if not isinstance(state, dict) or not state.keys() >= {"recipe", "step", "module", "ema", "optimisers"}:
            raise UsageError(f"{path}: `calotype train` did not write this checkpoint; give another --out.")
        then, now = json.loads(state["recipe"]), json.loads(json.dumps(self.recipe.to_dict()))
        if changed := sorted(key for key in now.keys() - MAY_CHANGE if then.get(key) != now[key]):
            raise UsageError(
                f"{path}: this checkpoint was trained with another {', '.join(changed)}; "
                f"give its recipe, or another --out."
            )
        try:
            self.module.load_state_dict(state["module"])
        except RuntimeError:
            raise UsageError(
                f"{path}: this checkpoint is of another network; give its recipe, or another --out."
            ) from None
        self.ema.load_state_dict(state["ema"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step = state["step"]


@torch.no_grad()
def quieten(module: Network) -> None:
    """Begins with little posterior noise (std about 0.007): with much, a decoder has nothing to learn from for long."""
    last: nn.Module = getattr(module, "quant_conv", None) or module.get_submodule("encoder.conv_out")
    half = module.config.z_channels
    last.get_parameter("weight")[half:].mul_(0.1)
    last.get_parameter("bias")[half:].fill_(-10.0)


def _optimisers(recipe: Recipe, module: nn.Module) -> list[torch.optim.Optimizer]:
    adam: list[nn.Parameter] = list(module.parameters())
    optimisers: list[torch.optim.Optimizer] = []
    if recipe.optimiser == "muon":
        matrices = [
            p
            for name, p in module.named_parameters()
            if p.ndim == 4 and "conv_in" not in name and "conv_out" not in name
        ]
        chosen = {id(p) for p in matrices}
        adam = [p for p in adam if id(p) not in chosen]
        optimisers.append(Muon(matrices, recipe.muon_rate, weight_decay=recipe.weight_decay))
    optimisers.append(
        torch.optim.AdamW(adam, recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay)
    )
    return optimisers


def run(
    trainer: Trainer,
    pictures: Sequence[Array],
    held_out: Sequence[Array],
    out: Path,
    report: Report,
) -> bool:
    """Trains until the recipe's last step: True when it got there, False when stopped by SIGINT or SIGTERM.

    Writes ``checkpoint.pt`` and appends to ``log.jsonl`` in `out`.
    """
    recipe = trainer.recipe
    device = next(trainer.module.parameters()).device
    crops = {n: Crops(pictures, crop=n, zoom=recipe.zoom, seed=recipe.seed) for n in recipe.crops()}

    def batch(step: int) -> Array:
        now = recipe.at(step)
        return crops[now.crop].batch(step, now.batch)

    factor = trainer.module.config.factor
    stopped: list[int] = []
    previous = {s: signal.signal(s, lambda number, _: stopped.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    sums: dict[str, float] = {}
    count, seen, since = 0, 0, time.perf_counter()
    try:
        for crop in ahead(batch, trainer.step, recipe.steps):
            for key, value in trainer.train_step(from_array(crop).to(device)).items():
                sums[key] = sums.get(key, 0.0) + value
            count += 1
            seen += len(crop)
            last = trainer.step == recipe.steps or bool(stopped)
            checkpoint = trainer.step % recipe.checkpoint_every == 0 or last
            if trainer.step % recipe.log_every == 0 or last:
                line = {"step": trainer.step, **{k: v / count for k, v in sums.items()}}
                line["crops_per_second"] = seen / (time.perf_counter() - since)
                if checkpoint and held_out:
                    line["psnr"] = trainer.validate(held_out, factor)
                with (out / "log.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
                report(line)
                sums, count, seen, since = {}, 0, 0, time.perf_counter()
            stop = bool(stopped)  # one look: a signal may have come since `last`, and may come during the next line
            if checkpoint or stop:
                trainer.save(out / "checkpoint.pt")
            if stop:
                return trainer.step == recipe.steps
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return True
