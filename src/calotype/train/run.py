"""A whole training run: data, helpers, loop, and at its end weights that say how they were made."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from numpy.typing import NDArray
from torch import nn

from calotype.addresses import is_address
from calotype.apart import require_apart, weights_files
from calotype.engine.budget import in_words
from calotype.engine.memory import keep_freed
from calotype.errors import LatentFormatError, MemoryLimitError, StorageError, UsageError
from calotype.families import require_as_large
from calotype.files import FULL
from calotype.latents import LatentFormat, Packed, same_as_model
from calotype.locks import lock
from calotype.sources import files_of
from calotype.temporaries import sweep
from calotype.train import checkpoint
from calotype.train.configs import ConvConfig, DenseConfig
from calotype.train.crops import Batch, Crops, gather, load as load_batches, readable, require_size, spread
from calotype.train.estimate import estimate
from calotype.train.export import export, stored, validate
from calotype.train.family import Autoencoder
from calotype.train.loop import Helpers, Trainer, run
from calotype.train.model import Scaled
from calotype.train.outlook import duration
from calotype.train.recipe import Recipe
from calotype.train.sharded import require_shardable, shard
from calotype.train.start import begin, require_parts
from calotype.train.watch import PANELS, Watch, panel
from calotype.vae import VAE, load, pick_device
from calotype.weights.save import files_of as files_of_layout

Array = NDArray[np.uint8]  # a picture: [H, W, P], levels

HELD_OUT = 64  # held-out pictures at most that are measured at each checkpoint, and stay in memory
MEASURED = 10_000  # held-out pictures at most that quality is measured on at the end
CACHE = 2 * 10**9  # bytes of decoded pictures that stay in a machine's memory


class Track(Protocol):
    """Goes through items and shows progress."""

    def __call__(self, items: Iterable[Any], doing: str, total: int) -> Iterable[Any]: ...


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run goes, as far as it does not change what comes out.

    Attributes:
        resume: go on from the newest checkpoint.
        dry_run: train a step or two of every part only, and say what the run will take.
        device: cpu, cuda, cuda:0, mps; None: the fastest there is.
        strategy: of several processes, as torchrun starts them.
        workers: threads that decode pictures.
        tensorboard: also log to OUT/tensorboard.
        wandb: a project's name; also log to Weights & Biases.
    """

    resume: bool = False
    dry_run: bool = False
    device: str | None = None
    strategy: str = "auto"
    workers: int = 2
    tensorboard: bool = True
    wandb: str | None = None


def train(
    recipe: Recipe,
    data: str | Path,
    out: Path,
    options: Options,
    *,
    report: Callable[[dict[str, float]], None],
    notice: Callable[[str], None],
    track: Track,
) -> Path | None:
    """Trains as `recipe` says and writes OUT/weights.safetensors: its path, or None when stopped or on a dry run.

    Args:
        data: the folder or address that source paths are relative to.
        out: the run's folder; see `watch.Watch`, `checkpoint.save` and `export.export` for what it gets.

    Raises:
        UsageError: for missing data, a folder in use without `resume` or by another process, a checkpoint of another
            recipe, or too little memory.
        NonFiniteError: if a loss is NaN; the last checkpoint is kept.
        StorageError: if the disk is full; what was written stays.
    """
    if options.dry_run or os.environ.get("RANK", "0") != "0":  # the first of several processes holds it for all
        return _train(recipe, data, out, options, report, notice, track)
    with lock(out / checkpoint.LOCK, checkpoint.DOING, "give another --out"):
        for folder in (out, *filter(Path.is_dir, out.iterdir())):  # nothing may be written into some of them again
            sweep(folder)
        return _train(recipe, data, out, options, report, notice, track)


def _train(
    recipe: Recipe,
    data: str | Path,
    out: Path,
    options: Options,
    report: Callable[[dict[str, float]], None],
    notice: Callable[[str], None],
    track: Track,
) -> Path | None:
    last = checkpoint.newest(out)
    if last and not (options.resume or options.dry_run):
        raise UsageError(f"{out}: there is a checkpoint already; go on with --resume, or give another --out.")
    if options.resume and not last:
        raise UsageError(f"{out}: there is no checkpoint to resume from.")
    state = checkpoint.load(last, recipe) if options.resume and last else None
    if not options.dry_run:
        _require_apart(recipe, data, out)
    fabric = launch(recipe, options)
    if state is not None and state["step"] > recipe.steps:
        raise UsageError(f"{last}: this run is at step {state['step']}, beyond steps = {recipe.steps}; give more.")
    if uneven := [r.batch for r in _parts(recipe) if r.batch % (fabric.world_size * r.accumulate)]:
        raise UsageError(
            f"A batch of {uneven[0]} is no multiple of {fabric.world_size} processes times accumulate "
            f"({recipe.accumulate}); change batch or accumulate."
        )
    channels = recipe.network.picture_channels
    pictures, held = gather(recipe.sources, data, cache=CACHE // local_world(), notice=notice, alpha=channels == 4)
    seen = fingerprint((*pictures.names, *held.names))
    if state is not None and state.get("pictures") != seen:
        raise UsageError(
            f"{last}: this run was trained on other pictures than {data} holds now; give the same, or another --out."
        )
    if not recipe.enlarge:
        require_size(pictures, max(recipe.crops()))
    held_out = [picture for _, picture in islice(readable(held), HELD_OUT)]
    with _enough_memory(), _enough_room(out):
        with fabric.rank_zero_first():  # others find in the cache what the first one downloads
            helpers = make_helpers(recipe, fabric.device)
        begun = helpers.before["sha256"] if helpers.before else None
        if state is not None and recipe.start is not None and state.get("start", begun) != begun:
            raise UsageError(
                f"{last}: this run began from other weights than {recipe.start.weights} holds now; put them back, or "
                f"give another --out."
            )
        trainer = Trainer(recipe, fabric, helpers)
        if state is not None and last is not None:
            with checkpoint.restoring(last, checkpoint.ADVICE):
                trainer.load_state_dict(state)
            if changes := checkpoint.changes(state, recipe):
                trainer.history.append({"step": trainer.step, "changed": changes})
        took = estimate(trainer)
        crops = {
            n: Crops(
                pictures,
                crop=n,
                rule=recipe.rule,
                flip=recipe.flip,
                zoom=recipe.zoom,
                seed=recipe.seed,
                channels=channels,
            )
            for n in sorted(recipe.crops())
        }

        def batches(first: int, end: int) -> Iterator[Batch]:
            def plan(step: int) -> tuple[Crops, int]:
                now = recipe.at(step)
                return crops[now.crop], now.batch // fabric.world_size

            rank, world = fabric.global_rank, fabric.world_size
            return load_batches(plan, first, end, rank=rank, world=world, workers=options.workers)

        if options.dry_run:
            left, first, seconds = recipe.steps - trainer.step, *_time(trainer, batches)
            notice(
                f"Nothing was written. {len(pictures.once()):,} pictures, and {len(held):,} held out; a step took "
                f"{first:.2f} s, and all {left:,} take about {duration(seconds)}, and about "
                f"{in_words(took.part)} of the {in_words(took.free)} free."
            )
            return None
        watch = None
        if fabric.is_global_zero:
            first = trainer.step
            watch = Watch(recipe, out, tensorboard=options.tensorboard, wandb=options.wandb, first=first)
        fabric.barrier()
        try:
            if not run(trainer, batches, _Hooks(out, watch, report, held_out, {"pictures": seen, "start": begun})):
                return None
            with stored(trainer) as network:
                if fabric.is_global_zero:
                    once = pictures.once()
                    measured = (picture for _, picture in track(readable(once), "Measuring latents", len(once)))
                    validated = (picture for _, picture in readable(spread(held, MEASURED)))
                    export(trainer, network, measured, validated, out, count=len(once), perceptual=helpers.perceptual)
            return out / "weights.safetensors"
        finally:
            if watch is not None:
                watch.close()


def _require_apart(recipe: Recipe, data: str | Path, out: Path) -> None:
    """Checks that a run overwrites nothing that it reads, and adds no picture to those it is trained on.

    Raises:
        UsageError: if it would.
    """
    names = ("recipe.json", "environment.json", "metrics.jsonl", "weights.safetensors", "README.md")
    written = [
        *(out / name for name in names),
        *files_of_layout(out / "diffusers", "diffusers"),
        *files_of_layout(out / "keras", "keras"),
    ]
    weights = [one.weights for one in (recipe.start, recipe.teacher) if one is not None]
    require_apart(written, chain(weights_files(*weights), *(files_of(source.path, data) for source in recipe.sources)))
    for source in recipe.sources:
        if is_address(data) or is_address(source.path):
            continue
        folder = (Path(data) / source.path).resolve()
        panels = (out / PANELS).resolve()
        if panels.is_relative_to(folder) and not any(p.startswith(".") for p in panels.relative_to(folder).parts):
            raise UsageError(
                f"--out {out} lies in {Path(data) / source.path}, so the run's panels would be among the pictures it "
                f"is trained on; give another --out."
            )


@contextmanager
def _enough_memory() -> Iterator[None]:
    """Turns an allocation that fails into a sentence."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _too_much(error) from None
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):  # torch's on the CPU
            raise _too_much(error) from None
        raise


@contextmanager
def _enough_room(out: Path) -> Iterator[None]:
    """Turns a full disk into a sentence, whichever file it was that did not fit."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StorageError(
            f"{out}: no space is left on the disk; what was written stays: make room, and go on with --resume."
        ) from None


def _too_much(error: Exception) -> MemoryLimitError:
    first = (str(error).strip().splitlines() or ["no more is free"])[0].rstrip(".")
    return MemoryLimitError(
        f"A step does not fit in memory ({first}); raise accumulate, set gradient_checkpointing = true, or give a "
        f"smaller crop."
    )


def local_world() -> int:
    """Processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def launch(recipe: Recipe, options: Options) -> Fabric:
    """The processes: one, or those that torchrun has started.

    Raises:
        UsageError: a strategy for several processes is asked of one.
    """
    device = pick_device(options.device)
    if device.type == "cpu":
        keep_freed()
    world, local = int(os.environ.get("WORLD_SIZE", "1")), local_world()
    devices: int | list[int] = local
    if world == 1 and device.type == "cuda":
        devices = [device.index or 0]
    strategy: Any = "auto" if world == 1 else "ddp"
    if options.strategy != "auto" and world == 1:
        raise UsageError(f"--strategy {options.strategy} is for several processes; start them with torchrun.")
    if options.strategy == "fsdp":
        require_shardable(recipe)
        strategy = ModelParallelStrategy(parallelize_fn=shard, data_parallel_size=world, tensor_parallel_size=1)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)  # it tells what was asked for
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    fabric = Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=world // local,
        strategy=strategy,
        precision="32-true",  # `model.autocast` is ours: Fabric's allows no partial gradients, which weights need
    )
    fabric.launch()
    return fabric


def make_helpers(recipe: Recipe, device: torch.device) -> Helpers:
    """The frozen networks that a recipe's losses need, on the device.

    Raises:
        UsageError: the teacher's latents are not those that the recipe's network can learn.
    """
    start = before = origin = None
    format_: LatentFormat | None = None
    if not isinstance(recipe.network, DenseConfig | ConvConfig):
        require_as_large(recipe.network, "Training")
    if recipe.start is not None:
        start, origin = begin(recipe.start.weights, recipe.network)
        before = {"sha256": origin.loaded.sha256, **origin.loaded.training()}
        if recipe.start.train == "decoder":
            format_ = origin.loaded.format
    teacher: Autoencoder | Scaled | None = None
    if recipe.teacher is not None:
        vae = load(recipe.teacher.weights, device=device)
        halves = ["encoder"] + ["decoder"] * (recipe.teacher.target == "teacher")
        require_parts(vae.loaded, f"The teacher {recipe.teacher.weights}", *halves)
        teacher, format_ = vae.module, _format_of(vae)
        require_as_large(vae.config, "Training")
        if teacher.config.picture_channels != recipe.network.picture_channels:
            raise UsageError(
                f"The teacher {recipe.teacher.weights} has pictures of {teacher.config.picture_channels} channels, and "
                f"the recipe's network of {recipe.network.picture_channels}: they must be the same."
            )
        if (teacher.config.z_channels, teacher.config.factor) != (recipe.network.z_channels, recipe.network.factor):
            raise UsageError(
                f"The teacher's latents have {teacher.config.z_channels} channels at f{teacher.config.factor}; the "
                f"recipe's network has {recipe.network.z_channels} at f{recipe.network.factor}: they must be the same."
            )
        if recipe.network.in_model_space and not teacher.config.in_model_space:
            scale = vae.latent_format
            if isinstance(scale, Packed):
                raise UsageError("A TAESD can't learn packed latents, which FLUX.2's are; take another teacher.")
            teacher, format_ = Scaled(teacher, scale), same_as_model(scale.name, recipe.network.z_channels)
    perceptual: nn.Module | None = None
    if recipe.perceptual:
        from calotype.evaluate.lpips import load_lpips

        perceptual = load_lpips(recipe.perceptual_net).to(device)
    features = None
    if recipe.alignment is not None:
        from calotype.train.regularisers import features as extractor

        features = extractor(recipe.alignment.features).to(device)
    return Helpers(
        start=start, before=before, origin=origin, perceptual=perceptual, features=features, teacher=teacher,
        format=format_,
    )  # fmt: skip


def _format_of(vae: VAE) -> LatentFormat | None:
    """A VAE's latent format, if its weights say."""
    try:
        return vae.latent_format
    except LatentFormatError:
        return None


def _parts(recipe: Recipe) -> list[Recipe]:
    return [recipe.at(start) for start in (0, *(phase.start for phase in recipe.phases))]


def _time(trainer: Trainer, batches: Callable[[int, int], Iterator[Batch]]) -> tuple[float, float]:
    """Seconds of a step as the run begins, and of all that are left: one is timed of every part that differs."""
    recipe, begin = trainer.recipe, trainer.step
    gan = recipe.adversarial
    changes = {phase.start for phase in recipe.phases} | ({gan.start - gan.warm_up, gan.start} if gan else set())
    starts = [begin, *sorted(step for step in changes if begin < step < recipe.steps)]
    first, whole = 0.0, 0.0
    for start, end in pairwise([*starts, recipe.steps]):
        trainer.step = start
        seconds = _one_step(trainer, batches(start, min(start + 2, recipe.steps)))
        first = first or seconds
        whole += seconds * (end - start)
    return first, whole


def _one_step(trainer: Trainer, batches: Iterator[Batch]) -> float:
    """Seconds of the last of some steps; those before it warm up."""
    seconds = 0.0
    for crops, names in batches:
        begin = time.perf_counter()
        trainer.train_step(crops, names)
        seconds = time.perf_counter() - begin
    return seconds


def fingerprint(names: Sequence[str]) -> str:
    """A hash of names in their order, which decides what crop comes when."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def score(line: dict[str, float]) -> float:
    """How good held-out pictures are: by LPIPS where it is measured, else by PSNR; -inf where neither is."""
    if "held_out_lpips" in line:
        return -line["held_out_lpips"]
    return line.get("held_out_psnr", -math.inf)


class _Hooks:
    """Validates, keeps checkpoints and panels, and writes the log."""

    def __init__(
        self,
        out: Path,
        watch: Watch | None,
        report: Callable[[dict[str, float]], None],
        held_out: Sequence[Array],
        known: dict[str, str | None],
    ) -> None:
        self.out, self.watch, self.report, self.held_out = out, watch, report, held_out
        self.known = known  # what a run that goes on must find again
        self.best = max((score(line) for line in watch.lines), default=None) if watch else None

    def logged(self, line: dict[str, float]) -> None:
        if self.watch is not None:
            self.watch.line(line)
            self.report(line)

    def checked(self, trainer: Trainer, line: dict[str, float]) -> None:
        first = trainer.fabric.is_global_zero
        state = trainer.state_dict()
        if first:  # before all else: whoever stops a run may not wait for long
            path = checkpoint.save(self.out, {**state, **self.known}, trainer.recipe)
        with trainer.averaged() as network:
            if self.held_out and first:
                found = validate(network, self.held_out, trainer.helpers.perceptual)
                line |= {f"held_out_{key}": value for key, value in found.items()}
                if self.best is None or score(line) > self.best:
                    self.best = score(line)
                    checkpoint.keep_best(path)
                if self.watch is not None:
                    self.watch.panel(panel(network, self.held_out, trainer.recipe.seed), trainer.step)
        trainer.fabric.barrier()
