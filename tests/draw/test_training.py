"""Training a drawing model: it learns, goes on where it was stopped, and refuses what does not belong to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from drawkit import RECIPE, picture, stretched, write_data, write_lines
from safetensors.torch import load_file
from support import names, one_sentence, same_tensors, tensors_of, tiny, write
from torch import Tensor

from calotype import VAE, load
from calotype.draw import training
from calotype.draw.captions import held_out, read_captions, weights_of
from calotype.draw.data import Listed
from calotype.draw.model import guessed_velocity, load_model
from calotype.draw.recipe import DrawingRecipe
from calotype.draw.training import Drawing, train_drawing
from calotype.errors import PictureError, UsageError
from calotype.locks import lock
from calotype.train.checkpoint import DOING, LOCK

FILES = ["checkpoint.pt", "latents.safetensors", "metrics.jsonl", "weights.safetensors"]


@pytest.fixture(scope="module")
def vae() -> VAE:
    return load("builtin", device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures with three variants each."""
    return write_data(tmp_path_factory.mktemp("drawing") / "data", variants=3)


@pytest.fixture(scope="module")
def finished(data: Path, vae: VAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("drawing") / "run"
    assert train_drawing(RECIPE, data, out, vae) == out / "weights.safetensors"
    return out


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in names(out)}


def drawing(data: Path, recipe: DrawingRecipe = RECIPE, count: int = 4) -> Drawing:
    """A training with made-up latents: a constant a picture."""
    captions = read_captions(data)[:count]
    latents = torch.arange(len(captions)).float()[:, None, None, None].expand(-1, 16, 4, 4)
    return Drawing(recipe, captions, latents.clone(), "0" * 64, torch.device("cpu"))


@pytest.mark.slow
def test_loss_falls(tmp_path: Path, vae: VAE) -> None:
    """Four pictures learned by heart, measured on noise and times that are the same before and after."""
    recipe = replace(
        RECIPE, word_steps=150, word_batch=8, word_rate=3e-3, steps=120, cooldown=30, batch=8, muon_rate=0.03,
        learning_rate=3e-3, text_dropout=0.0, time_mean=1.5, checkpoint_every=1000, log_every=10,
    )  # fmt: skip
    out = tmp_path / "run"
    train_drawing(recipe, write_data(tmp_path / "data"), out, vae)
    latents = load_file(out / "latents.safetensors")["latents"]
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn((16, 4, *latents.shape[1:]), generator=generator)

    def loss(prompts: list[str], times: Tensor) -> float:
        errors = []
        for time, eps in zip(times, noise, strict=True):
            x = (1 - time) * latents + time * eps
            errors.append((model(x, time.expand(4), model.text(prompts)) - (eps - latents)).square().mean())
        return float(torch.stack(errors).mean())

    model = load_model(out / "weights.safetensors")
    captions = [one.name for one in read_captions(tmp_path / "data")]
    untrained = float((noise - latents).square().mean())
    assert loss(captions, torch.linspace(0.1, 0.9, 16)) < 0.5 * untrained
    # where there is noise alone, only words tell which picture it shall be
    right, wrong = (loss(prompts, torch.ones(16)) for prompts in (captions, captions[1:] + captions[:1]))
    assert right < 0.5 * wrong
    of_words, of_denoiser = ([line["loss"] for line in lines(out) if line["part"] == part] for part in (1, 2))
    assert (len(of_words), len(of_denoiser)) == (15, 12)
    assert of_denoiser[-1] < 0.8 * of_denoiser[0]
    assert of_words[-1] < 0.2 * of_words[0]
    # of all pictures, by their names: much nearer to the mean latents of a quarter than their mean is
    quarters = latents.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5))
    sketches = model.text(captions).sketch
    usual = (quarters - quarters.mean(0)).square().mean()
    assert float((sketches - quarters).square().mean()) < 0.1 * float(usual)


@pytest.mark.slow
def test_files_of_a_run(finished: Path, data: Path, vae: VAE) -> None:
    assert names(finished) == FILES
    model = load_model(finished / "weights.safetensors")
    assert model.config.vae == vae.sha256
    assert model.config.size == 32
    assert model.about["steps"] == 6
    assert model.about["recipe"] == json.loads(json.dumps(RECIPE.to_dict()))
    captions = read_captions(data)
    apart = [one.name for one in held_out(captions, 0.5)]
    assert 0 < len(apart) < 12
    assert model.about["held_out"] == sorted(apart)
    assert model.about["pictures"] == len(captions) - len(apart) == len(model.names)
    assert set(model.names) == {one.name for one in captions} - set(apart)
    assert {"red", "circle", "ball", "warm"} <= set(model.words)


@pytest.mark.slow
def test_weights_are_the_averaged_ones(finished: Path) -> None:
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    written = load_model(finished / "weights.safetensors").state_dict()
    for key, value in written.items():
        part, name = key.split(".", 1)
        expected = state["ema"][name] if part == "denoiser" else state["model"][key]  # texts are done before
        assert torch.equal(value, expected.half().float()), key
    assert any(not torch.equal(value, state["model"][key].half().float()) for key, value in written.items())


@pytest.mark.slow
def test_pictures_at_an_address(data: Path, finished: Path, vae: VAE, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in names(data):
        memory.pipe(f"/drawing/{name}", (data / name).read_bytes())
    train_drawing(RECIPE, "memory://drawing", out := tmp_path / "run", vae)
    assert names(out) == names(finished)
    for name in ("weights.safetensors", "latents.safetensors"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()
    missing = read_captions(data)[3].file
    memory.rm(f"/drawing/{missing}")
    with pytest.raises(UsageError, match=f"memory://drawing: {missing} is not there, and captions.jsonl names it"):
        train_drawing(RECIPE, "memory://drawing", tmp_path / "other", vae)
    assert not list((tmp_path / "other").rglob("*.png"))
    memory.rm("/drawing", recursive=True)


@pytest.mark.slow
def test_figures(data: Path, vae: VAE, tmp_path: Path) -> None:
    reported: list[dict[str, float]] = []
    recipe = replace(RECIPE, steps=5, log_every=2)
    train_drawing(recipe, data, tmp_path / "run", vae, report=reported.append)
    found = lines(tmp_path / "run")
    assert found == reported
    assert [(line["part"], line["step"]) for line in found] == [(1, 2), (2, 2), (2, 4)]
    assert all(set(line) == {"part", "step", "loss", "pictures_per_second"} for line in found)
    assert all(line["loss"] > 0 and line["pictures_per_second"] > 0 for line in found)

    each: list[dict[str, float]] = []
    train_drawing(replace(recipe, log_every=1), data, tmp_path / "each", vae, report=each.append)
    of_each = {(line["part"], line["step"]): line["loss"] for line in each}
    assert list(of_each) == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (2, 4), (2, 5)]
    for line in found:  # none is of both parts
        before = of_each[line["part"], line["step"] - 1]
        assert line["loss"] == pytest.approx((before + of_each[line["part"], line["step"]]) / 2)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("number", "part", "step"),
    [(signal.SIGTERM, 2, 3), (signal.SIGINT, 2, 3), (signal.SIGTERM, 1, 2), (signal.SIGINT, 1, 3)],
)
def test_stopped_and_gone_on_with(
    data: Path, finished: Path, vae: VAE, tmp_path: Path, number: signal.Signals, part: int, step: int
) -> None:
    """The same weights, bit by bit, as without the stop, in either part and between them."""
    before = signal.getsignal(number)
    out = tmp_path / "run"

    def stop(line: dict[str, float]) -> None:
        if (line["part"], line["step"]) == (part, step):
            os.kill(os.getpid(), number)

    recipe = replace(RECIPE, log_every=1)
    assert train_drawing(recipe, data, out, vae, report=stop) is None
    assert signal.getsignal(number) is before
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert (state["word_step"], state["step"]) == ((step, 0) if part == 1 else (3, step))
    assert load_model(out / "weights.safetensors").about["steps"] == state["step"]

    torch.manual_seed(99)  # nothing of what follows depends on it
    assert train_drawing(recipe, data, out, vae, resume=True) == out / "weights.safetensors"
    every = [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (2, 4), (2, 5), (2, 6)]
    assert [(line["part"], line["step"]) for line in lines(out)] == every
    assert same_tensors(load_model(out / "weights.safetensors"), load_model(finished / "weights.safetensors"))
    first, second = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (out, finished))
    for key in ("word_step", "step", "model", "ema", "optimisers"):
        assert _same(first[key], second[key]), key
    assert (first["word_step"], first["step"]) == (3, 6)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


@pytest.mark.slow
def test_a_finished_run_stays(data: Path, finished: Path, vae: VAE) -> None:
    before = load_model(finished / "weights.safetensors")
    assert train_drawing(RECIPE, data, finished, vae, resume=True) == finished / "weights.safetensors"
    assert same_tensors(load_model(finished / "weights.safetensors"), before)


def refused(recipe: DrawingRecipe, data: Path, out: Path, vae: VAE, resume: bool) -> str:
    """What is said; and nothing in the run's folder changes."""
    before = contents(out)
    with pytest.raises(UsageError) as caught:
        train_drawing(recipe, data, out, vae, resume=resume)
    one_sentence(str(caught.value))
    assert contents(out) == before
    return str(caught.value)


def test_a_run_is_not_written_over(data: Path, finished: Path, vae: VAE) -> None:
    assert "--resume" in refused(RECIPE, data, finished, vae, False)
    assert "--resume" in refused(replace(RECIPE, size=48), data, finished, vae, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 48}, {"seed": 4}, {"batch": 5}, {"held_out": 0.1}, {"text": {}}, {"word_batch": 5}, {"word_rate": 0.1},
        {"word_muon_rate": 0.1}, {"sketch_noise": 0.1}, {"sketch_std": 0.1},
    ],
)  # fmt: skip
def test_another_recipe_is_refused(data: Path, finished: Path, vae: VAE, changes: dict[str, Any]) -> None:
    message = refused(replace(RECIPE, **changes), data, finished, vae, True)
    assert next(iter(changes)) in message


@pytest.mark.slow
def test_other_captions_are_refused(data: Path, finished: Path, vae: VAE, tmp_path: Path) -> None:
    """A token would be another word than the one it was trained as."""
    other = [json.loads(line) for line in (data / "captions.jsonl").read_text().splitlines()]
    for line in other:
        line["name"] = line["name"].replace("red circle", "purple hexagon")
    write_lines(tmp_path, other)
    (tmp_path / "pictures").symlink_to(data / "pictures")
    assert "vocabulary" in refused(RECIPE, tmp_path, finished, vae, True)


def test_another_vae_is_refused(data: Path, finished: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "taesd.safetensors", tensors_of(tiny()))
    other = load(path, latent_format="sd1", device="cpu")
    assert "VAE" in refused(RECIPE, data, finished, other, True)


def test_two_trainings_in_one_folder(data: Path, vae: VAE, tmp_path: Path) -> None:
    with lock(tmp_path / "run" / LOCK, DOING, "wait"):
        for resume in (False, True):
            with pytest.raises(UsageError) as caught:
                train_drawing(RECIPE, data, tmp_path / "run", vae, resume=resume)
            one_sentence(str(caught.value))
            assert f"a training is under way there, by process {os.getpid()} on " in str(caught.value)
        assert names(tmp_path / "run") == [LOCK]


@pytest.mark.slow
def test_longer_runs_go_on(data: Path, finished: Path, vae: VAE, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_drawing(replace(RECIPE, steps=2), data, out, vae)
    assert train_drawing(replace(RECIPE, steps=4, learning_rate=1e-4), data, out, vae, resume=True)
    assert load_model(out / "weights.safetensors").about["steps"] == 4


@pytest.mark.slow
def test_words_are_not_learned_again(data: Path, finished: Path, vae: VAE, tmp_path: Path) -> None:
    """A denoiser that has begun was told of texts as they are; before, their part may get longer."""
    assert "word_steps" in refused(replace(RECIPE, word_steps=5), data, finished, vae, True)

    def stop(line: dict[str, float]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "run"
    assert train_drawing(RECIPE, data, out, vae, report=stop) is None
    assert names(out) == FILES
    assert train_drawing(replace(RECIPE, word_steps=5), data, out, vae, resume=True)
    assert torch.load(out / "checkpoint.pt", weights_only=True)["word_step"] == 5


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_checkpoint_in_either_part(
    data: Path, finished: Path, vae: VAE, tmp_path: Path
) -> None:
    """What it told of steps after the checkpoint is told once, and the weights are those of a run that went through."""
    recipe = replace(RECIPE, log_every=1, checkpoint_every=2)
    for part, step, reached in ((1, 1, None), (1, 3, (2, 0)), (2, 5, (3, 4))):
        out = tmp_path / f"run-{part}-{step}"

        def kill(line: dict[str, float], at: tuple[int, int] = (part, step)) -> None:
            if (line["part"], line["step"]) == at:
                raise MemoryError

        with pytest.raises(MemoryError):
            train_drawing(recipe, data, out, vae, report=kill)
        if reached:
            state = torch.load(out / "checkpoint.pt", weights_only=True)
            assert (state["word_step"], state["step"]) == reached
        with (out / "metrics.jsonl").open("a") as file:
            file.write('{"step": 3}\n{"part": 1, "st')
        assert train_drawing(recipe, data, out, vae, resume=True) == out / "weights.safetensors"
        told = [(line["part"], line["step"]) for line in lines(out)]
        assert told == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (2, 4), (2, 5), (2, 6)]
        assert same_tensors(load_model(out / "weights.safetensors"), load_model(finished / "weights.safetensors"))


def test_a_checkpoint_that_is_none_is_one_sentence(data: Path, finished: Path, vae: VAE, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    torch.save({"step": 3}, out / "checkpoint.pt")
    assert "did not write this checkpoint" in refused(RECIPE, data, out, vae, True)
    for content in (b"", b"no checkpoint"):
        (out / "checkpoint.pt").write_bytes(content)
        message = refused(RECIPE, data, out, vae, True)
        assert message == f"{out / 'checkpoint.pt'}: this checkpoint is damaged; give another --out."


@pytest.mark.slow
def test_damaged_files_beside_a_checkpoint_are_made_again(data: Path, finished: Path, vae: VAE, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for name in ("weights.safetensors", "latents.safetensors"):
        (out / name).write_bytes(b"none")
    assert train_drawing(RECIPE, data, out, vae, resume=True) == out / "weights.safetensors"
    for name in ("weights.safetensors", "latents.safetensors"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


@pytest.mark.slow
def test_latents_are_made_again_when_a_picture_changes(
    vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "run"
    encoded: list[int] = []
    real = Listed.latents

    def counted(self: Listed, vae: VAE, size: int, track: Any) -> Tensor:
        encoded.append(size)
        return real(self, vae, size, track)

    monkeypatch.setattr(Listed, "latents", counted)
    recipe = replace(RECIPE, steps=1)

    def latents(size: int = 32) -> Tensor:
        (out / "checkpoint.pt").unlink(missing_ok=True)
        train_drawing(replace(recipe, size=size), data, out, vae)
        return load_file(out / "latents.safetensors")["latents"]

    first = latents()
    assert torch.equal(latents(), first)
    assert encoded == [32]
    picture("purple").save(data / "pictures" / "2.png")
    second = latents()
    assert encoded == [32, 32]
    assert torch.equal(second[[0, 1, 3]], first[[0, 1, 3]])
    assert (second[2] - first[2]).abs().max() > 0.1
    assert latents(48).shape == (4, 16, 6, 6)
    assert encoded == [32, 32, 48]
    (data / "pictures" / "2.png").unlink()
    (out / "checkpoint.pt").unlink()
    with pytest.raises(PictureError, match=r"2\.png"):
        train_drawing(recipe, data, out, vae)


@pytest.mark.slow
def test_what_is_held_out_is_in_no_batch(data: Path, vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the latents and by the words that training gets to see."""
    seen: list[Tensor] = []
    prompts: set[str] = set()
    parts: set[int] = set()
    real = Drawing._picked

    def kept(self: Drawing, part: int, step: int, count: int) -> Any:
        for other in range(200):  # only drawn, not trained on
            picked, words, _ = real(self, part, other, count)
            seen.append(self.latents[picked])
            prompts.update(words)
        parts.add(part)
        return real(self, part, step, count)

    monkeypatch.setattr(Drawing, "_picked", kept)
    train_drawing(replace(RECIPE, word_steps=1, steps=1), data, tmp_path / "run", vae)
    assert len(parts) == 2
    captions = read_captions(data)
    apart = {one.file for one in held_out(captions, RECIPE.held_out)}
    assert apart
    every = load_file(tmp_path / "run" / "latents.safetensors")["latents"].flatten(1)
    met = (torch.cat(seen).flatten(1)[:, None] == every).all(-1).any(0)
    assert [one.file not in apart for one in captions] == met.tolist()
    forbidden = {one.name for one in captions if one.file in apart}
    assert not any(name in prompt for name in forbidden for prompt in prompts)
    assert any(name in prompt for name in {one.name for one in captions} - forbidden for prompt in prompts)


def test_a_batch_depends_on_seed_and_step_alone(data: Path) -> None:
    one, other = drawing(data), drawing(data)
    one.step = other.step = 7
    torch.manual_seed(1)
    first = one.batch()
    torch.manual_seed(2)
    again = other.batch()
    assert first[1] == again[1]
    assert all(torch.equal(first[i], again[i]) for i in (0, 2, 3, 4))
    other.step = 8
    seeded = drawing(data, replace(RECIPE, seed=4))
    seeded.step = 7
    for i in (3, 4):
        assert not torch.equal(first[i], other.batch()[i])
        assert not torch.equal(first[i], seeded.batch()[i])


def test_what_batches_are_made_of(data: Path) -> None:
    """Pictures as often as they should be, prompts of the same pictures, an empty one now and then, and noise."""
    made = drawing(data, replace(RECIPE, batch=4000, text_dropout=0.25))
    clean, prompts, t, noise, blur = made.batch()
    assert clean.shape == noise.shape == (4000, 16, 4, 4)
    assert blur.shape == (4000, 16, 2, 2)
    which = clean[:, 0, 0, 0].long()
    shares = torch.bincount(which, minlength=4) / 4000
    expected = torch.from_numpy(weights_of(made.captions, RECIPE.variants)).float()
    torch.testing.assert_close(shares, expected, atol=0.04, rtol=0)
    assert 0.22 < prompts.count("") / 4000 < 0.28
    for index, prompt in zip(which.tolist(), prompts, strict=True):
        of_picture = made.captions[index]
        assert not prompt or any(word in prompt for word in (*of_picture.names, *of_picture.keywords))
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01
    assert abs(float(blur.mean())) < 0.003
    assert abs(float(blur.std()) / 0.3 - 1) < 0.01
    for other in (noise[:, :, :2, :2], noise.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5))):
        assert abs(float(torch.corrcoef(torch.stack([other.flatten(), blur.flatten()]))[0, 1])) < 0.01
    assert 0 < float(t.min()) < float(t.max()) < 1
    logits = t.logit()
    assert abs(float(logits.mean())) < 0.08
    assert abs(float(logits.std()) - 1) < 0.06


def test_an_untrained_network_has_the_loss_of_predicting_zero(data: Path) -> None:
    made = drawing(data)
    clean, _, _, noise, *_ = made.batch()
    expected = (noise - clean).square().mean()
    assert made.advance() == pytest.approx(float(expected), rel=1e-5)
    assert made.step == 1


def test_an_untrained_network_has_the_loss_of_what_sketches_tell(data: Path) -> None:
    made = drawing(data, replace(RECIPE, sketch_std=0.5))
    clean, prompts, t, noise, blur = made.batch()
    with torch.no_grad():
        sketch = stretched(made.model.text(prompts).sketch + blur, 4, 4)
    at = t[:, None, None, None]
    mean, _ = guessed_velocity((1 - at) * clean + at * noise, sketch, at, 0.5)
    assert made.advance() == pytest.approx(float((noise - clean - mean).square().mean()), rel=1e-4)


def without_sketches(made: Drawing) -> Drawing:
    """All of them are zero."""
    with torch.no_grad():
        for p in list(made.model.text.sketch.parameters())[-2:]:
            p.zero_()
    return made


def test_a_sketch_of_nothing_has_the_loss_of_the_mean_latents(data: Path) -> None:
    """3, with waves that cancel out in every quarter of a picture."""
    waves = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)
    latents = 3 + waves.expand(4, 16, 4, 4)
    made = without_sketches(Drawing(RECIPE, read_captions(data)[:4], latents, "0" * 64, torch.device("cpu")))
    assert made.advance_words() == 9.0
    assert (made.word_step, made.step) == (1, 0)
    assert made.advance_words() < 9.0


def test_sketches_with_noise_are_told(data: Path) -> None:
    made = without_sketches(drawing(data))
    given: dict[str, Tensor] = {}
    made.model.denoiser.register_forward_pre_hook(lambda _, inputs: given.update(seen=inputs[0]))
    clean, _, t, noise, blur = made.batch()
    made.advance()
    at = t[:, None, None, None]
    torch.testing.assert_close(given["seen"][:, :16], (1 - at) * clean + at * noise)
    torch.testing.assert_close(given["seen"][:, 16:], stretched(blur, 4, 4), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_each_part_leaves_the_other_as_it_is(data: Path) -> None:
    """Bit by bit: the denoiser in the first part, texts in the second."""
    made = drawing(data)

    def state() -> dict[str, Tensor]:
        return {key: value.clone() for key, value in made.model.state_dict().items()}

    def changed(before: dict[str, Tensor]) -> set[str]:
        return {key.split(".")[0] for key, value in state().items() if not torch.equal(value, before[key])}

    before, averaged = state(), {key: value.clone() for key, value in made.ema.shadow.items()}
    for _ in range(3):
        made.advance_words()
    assert changed(before) == {"text"}
    assert _same(dict(made.ema.shadow), averaged)
    before, told = state(), made.model.text(["red circle", ""])
    for _ in range(4):
        made.advance()
    assert changed(before) == {"denoiser"}
    assert all(map(torch.equal, made.model.text(["red circle", ""]), told))


def test_texts_in_parts_are_one_step(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of like length go together, and what is learned is what all at once would teach."""
    recipe = replace(RECIPE, word_batch=7)
    whole, parted = drawing(data, recipe), drawing(data, recipe)
    loss = whole.advance_words()
    monkeypatch.setattr(training, "TEXTS", 3)
    assert parted.advance_words() == pytest.approx(loss, rel=1e-5)
    for kept, one, other in zip(("momentum", "exp_avg"), whole.of_words, parted.of_words, strict=True):
        for a, b in zip(one.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
            torch.testing.assert_close(one.state[a][kept], other.state[b][kept], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_every_parameter_is_trained_once(data: Path) -> None:
    made = drawing(data)
    every = (*made.of_words, *made.optimisers)
    trained = [id(p) for one in every for group in one.param_groups for p in group["params"]]
    assert len(trained) == len(set(trained))
    assert set(trained) == {id(p) for p in made.model.parameters()}
    of_words = {id(p) for one in made.of_words for group in one.param_groups for p in group["params"]}
    assert of_words == {id(p) for p in made.model.text.parameters()}
    muon = {
        id(p) for one in (made.of_words[0], made.optimisers[0]) for group in one.param_groups for p in group["params"]
    }
    by_name = dict(made.model.named_parameters())
    for name in ("denoiser.middle_block.0.in_layers.2.weight", "text.sketch.2.weight", "text.layers.0.linear1.weight"):
        assert id(by_name[name]) in muon
    for name in (
        "text.token_embedding.weight",
        "text.positional_embedding",
        "text.sketch.4.weight",
        "text.sketch.4.bias",
        "denoiser.input_blocks.0.0.weight",
        "denoiser.out.2.weight",
        "denoiser.out.2.bias",
    ):
        assert id(by_name[name]) not in muon
    before = {name: p.detach().clone() for name, p in by_name.items()}
    for _ in range(4):
        made.advance_words()
        made.advance()
    still = [name for name, p in by_name.items() if torch.equal(p, before[name])]
    assert still == []
