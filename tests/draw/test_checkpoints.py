"""Pictures of small random checkpoints, against the same pipelines made of diffusers' own parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_models import (
    KINDS,
    SIZE,
    array,
    drawn,
    expected_latents,
    format_of,
    original,
    vae_weights,
)
from support import assert_close, kl, one_sentence, tiny, write
from torch import Tensor

import calotype
from calotype.draw.checkpoints import load_checkpoint
from calotype.draw.sampler import Step
from calotype.errors import UsageError
from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import KNOWN
from calotype.pixels import from_array, to_pil
from calotype.weights.save import save_weights

pytest_plugins = ("checkpoint_fixtures",)
pytestmark = pytest.mark.usefixtures("offline")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_draws_what_diffusers_draws(kind: str, ours: Any, theirs: Any) -> None:
    checkpoint = ours(kind)
    assert checkpoint.kind == ("sd1" if kind == "sd2" else kind)  # the widths of a real one tell them apart
    pipe = theirs(kind)
    expected = expected_latents(pipe, height=SIZE[0], width=SIZE[1], guidance_scale=4.0, negative_prompt=["dog"])
    (result,) = drawn(checkpoint, guidance=4.0, negative="dog")
    assert_close(result.latents.tensor[None], expected)
    assert (result.latents.space, result.latents.format.name) == ("model", format_of(kind).name)

    config = pipe.vae.config
    raw = expected / config.scaling_factor + (config.shift_factor or 0.0)
    with torch.no_grad():
        pixels = pipe.vae.decode(raw).sample
    assert_close(checkpoint.pipe.vae.decode(raw).sample, pixels)
    assert result.picture.size == SIZE[::-1]
    assert np.abs(array(result.picture) - array(to_pil(pixels[0]))).max() <= 1
    assert array(result.picture).std() > 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_draws_what_its_folder_draws(kind: str, ours: Any, files: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(files[kind], config=files[kind].parent / "configs", device="cpu")
    assert checkpoint.kind == kind
    (expected,), (result,) = drawn(ours(kind)), drawn(checkpoint)
    assert_close(result.latents.tensor, expected.latents.tensor, 1e-5)
    assert np.abs(array(result.picture) - array(expected.picture)).max() <= 1
    assert checkpoint.vae_sha256 == ours(kind).vae_sha256


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3"])
def test_a_picture_does_not_depend_on_its_batch(kind: str, ours: Any) -> None:
    prompts = ["a cat", "dog", "a dog"]
    together = drawn(ours(kind), prompts, batch=2)
    assert [one.prompt for one in together] == prompts
    assert [one.seed for one in together] == [3, 4, 5]
    for prompt, seed, one in zip(prompts, (3, 4, 5), together, strict=True):
        (alone,) = drawn(ours(kind), [prompt], seeds=[seed])
        assert_close(one.latents.tensor, alone.latents.tensor, 1e-5)
        assert np.abs(array(one.picture) - array(alone.picture)).max() <= 1
    assert (together[0].latents.tensor - together[1].latents.tensor).abs().max() > 0.1


def test_the_usual_size_is_that_of_training(ours: Any) -> None:
    (result,) = drawn(ours("sd1"), size=None, steps=1)
    assert result.picture.size == (64, 64)


# --- samplers, steps, interruption ---


@pytest.mark.parametrize(
    ("sampler", "name"),
    [("ddim", "DDIMScheduler"), ("euler", "EulerDiscreteScheduler"), ("dpm++", "DPMSolverMultistepScheduler")],
)
def test_samplers_are_those_of_diffusers(sampler: str, name: str, diffusers: Any, ours: Any, theirs: Any) -> None:
    pipe = theirs("sd2")
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    expected = expected_latents(pipe, height=64, width=80, guidance_scale=7.5)
    (result,) = drawn(ours("sd2"), sampler=sampler)
    assert_close(result.latents.tensor[None], expected)


@pytest.mark.slow
def test_ddim_does_not_clip_latents_where_the_checkpoint_does_not_say(ours: Any) -> None:
    assert "clip_sample" not in ours("sdxl").pipe.scheduler.config
    (result,) = drawn(ours("sdxl"), sampler="ddim", steps=1)
    assert result.latents.tensor.abs().max() > 1.5


@pytest.mark.slow
def test_samplers_of_flow(ours: Any) -> None:
    def latents(sampler: str | None, steps: int) -> Tensor:
        return drawn(ours("sd3"), sampler=sampler, steps=steps, guidance=1.0)[0].latents.tensor

    own = latents(None, 8)
    assert torch.equal(own, latents("euler", 8))
    assert torch.equal(own, latents("ddim", 8))
    fine = latents("euler", 100)  # another solver of the same equation comes to the same end
    assert (latents("dpm++", 50) - fine).abs().mean() < 0.25 * (own - fine).abs().mean()


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++"])
def test_steps_show_the_estimate_of_the_finished_latents(sampler: str, ours: Any) -> None:
    checkpoint, steps, seen = ours("sd1"), [], []

    def look(module: Any, given: Any, named: Any, output: Any) -> None:
        seen.append((given[0], int(given[1]), output[0]))

    hook = checkpoint.pipe.unet.register_forward_hook(look, with_kwargs=True)
    try:
        (result,) = drawn(checkpoint, sampler=sampler, guidance=1.0, on_step=steps.append)
    finally:
        hook.remove()
    assert [(step.index, step.total) for step in steps] == [(0, 3), (1, 3), (2, 3)]
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    for step, (x, t, noise) in list(zip(steps, seen, strict=True))[:2]:
        clean = (x - (1 - kept[t]).sqrt() * noise) / kept[t].sqrt()
        assert_close(step.clean, clean.float(), 1e-3)
    assert_close(steps[-1].clean[0], result.latents.tensor)


def test_steps_of_flow_show_it_too(ours: Any) -> None:
    checkpoint, steps, seen = ours("sd3"), [], []

    def look(module: Any, given: Any, named: Any, output: Any) -> None:
        seen.append((named["hidden_states"], named["timestep"], output[0]))

    hook = checkpoint.pipe.transformer.register_forward_hook(look, with_kwargs=True)
    try:
        drawn(checkpoint, guidance=1.0, on_step=steps.append)
    finally:
        hook.remove()
    for step, (x, t, flow) in list(zip(steps, seen, strict=True))[:2]:
        assert_close(step.clean, x - t.item() / 1000 * flow)


def test_what_interrupts_keeps_finished_pictures(ours: Any) -> None:
    calls: list[Step] = []

    def stop(step: Step) -> None:
        calls.append(step)
        if len(calls) == 5:
            raise KeyboardInterrupt

    kept = []
    with pytest.raises(KeyboardInterrupt):
        for one in ours("sd2").draw(["a cat", "dog"], seeds=[1, 2], steps=3, size=(64, 64), on_step=stop):
            kept.append(one)
    assert [one.prompt for one in kept] == ["a cat"]


# --- VAEs put in ---


@pytest.mark.slow
def test_another_vae_is_used(ours: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    (path,) = save_weights(vae_weights("sdxl", 7), tmp_path / "other.safetensors", layout="ldm")
    other = calotype.load(path, latent_format="sdxl", device="cpu")
    (expected,) = drawn(ours("sdxl"))
    for given in (path, other):  # the file does not say how latents are scaled; the checkpoint does
        checkpoint = load_checkpoint(folders["sdxl"], vae=given, device="cpu")
        assert checkpoint.vae_sha256 == other.sha256
        (result,) = drawn(checkpoint)
        assert torch.equal(result.latents.tensor, expected.latents.tensor)
        assert np.array_equal(array(result.picture), array(other.decode_images([result.latents])[0]))
        assert np.abs(array(result.picture) - array(expected.picture)).mean() > 5
        (again,) = checkpoint.redraw([result.picture], "a cat", seeds=[1], strength=0.0)
        raw = other.encode(from_array(np.asarray(result.picture))[None]).mode()
        assert_close(again.latents.tensor, KNOWN["sdxl"].to_model(raw)[0], 1e-5)


@pytest.mark.slow
def test_other_latents_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    save_weights(vae_weights("sd3"), tmp_path / "wide", layout="diffusers", format_=KNOWN["sd3"])
    save_weights(vae_weights("sd1"), tmp_path / "scaled", layout="diffusers", format_=KNOWN["sd1"])
    flat = AutoencoderConfig(ch=32, ch_mult=(1, 2))
    save_weights(kl(flat), tmp_path / "flat", layout="diffusers", format_=KNOWN["sdxl"])
    save_weights(tiny(), tmp_path / "tiny.safetensors", layout="ldm", format_=KNOWN["sdxl"])
    refusals = {
        "wide": "it has 16 latent channels, and 4 are needed",
        "scaled": r"its latents are scaled otherwise \(sd1 instead of sdxl\)",
        "flat": "a latent of it stands for 2 x 2 pixels, not 8 x 8",
        "tiny.safetensors": "is not what pipelines know as an AutoencoderKL",
    }
    for name, what in refusals.items():
        with pytest.raises(UsageError, match=what) as error:
            load_checkpoint(folders["sdxl"], vae=tmp_path / name, device="cpu")
        one_sentence(str(error.value))


@pytest.mark.slow
def test_a_file_without_a_vae_wants_one(files: dict[str, Path], theirs: Any, ours: Any, tmp_path: Path) -> None:
    tensors = {k: v for k, v in original("sd1", theirs("sd1")).items() if not k.startswith("first_stage_model.")}
    path, configs = write(tmp_path / "bare.safetensors", tensors), files["sd1"].parent / "configs"
    with pytest.raises(UsageError, match="holds no VAE; give one with --vae") as error:
        load_checkpoint(path, config=configs, device="cpu")
    one_sentence(str(error.value))
    (own,) = save_weights(vae_weights("sd1"), tmp_path / "vae.safetensors", layout="ldm")
    (result,), (expected,) = drawn(load_checkpoint(path, vae=own, config=configs, device="cpu")), drawn(ours("sd1"))
    assert np.array_equal(array(result.picture), array(expected.picture))
