"""The file of a drawing model: what comes back is what was written, and anything else is refused in a sentence."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drawkit import SIZES, TEXT, encoder, model, stretched, tokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import fill, names, one_sentence, room, same_tensors, tensors_of
from torch import Tensor

from calotype.draw.model import KEY, DrawingConfig, DrawingModel, guessed_velocity, load_model, save_model
from calotype.errors import StorageError, WeightsError

Tensors = dict[str, Tensor]
Head = dict[str, Any]


def written(path: Path, change: Callable[[Tensors, Head], None] = lambda tensors, head: None) -> Path:
    """A model's file, its tensors and its header changed."""
    save_model(model(), path)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        head = json.loads(file.metadata()[KEY])
    change(tensors, head)
    save_file(tensors, path, {KEY: json.dumps(head)})
    return path


def refused(path: Path) -> str:
    """What is said about a file."""
    with pytest.raises(WeightsError) as caught:
        load_model(path)
    message = str(caught.value)
    one_sentence(message)
    assert str(path) in message
    assert ".." not in message.replace(str(path), "")
    return message


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    before = model(steps=7, recipe={"name": "ünï"})
    save_model(before, tmp_path / "m.safetensors", dtype=torch.float32)
    after = load_model(tmp_path / "m.safetensors")
    assert same_tensors(before, after)
    assert (after.config, after.names, after.words, after.about) == (
        before.config, before.names, before.words, before.about
    )  # fmt: skip
    assert after.about == {"steps": 7, "recipe": {"name": "ünï"}}
    assert after.text.tokenizer.to_str() == before.text.tokenizer.to_str()
    assert not after.training
    assert not any(p.requires_grad for p in after.parameters())
    assert not any(p.is_meta for p in after.parameters())
    assert names(tmp_path) == ["m.safetensors"]

    x, t = torch.randn(2, 16, 4, 4), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        expected = before(x, t, before.text(["red circle", "a moon"]))
        made = after(x, t, after.text(["red circle", "a moon"]))
    torch.testing.assert_close(made, expected, atol=1e-6, rtol=1e-6)


def test_halves_by_default(tmp_path: Path) -> None:
    before = model()
    save_model(before, tmp_path / "m.safetensors")
    assert {value.dtype for value in load_file(tmp_path / "m.safetensors").values()} == {torch.float16}
    after = tensors_of(load_model(tmp_path / "m.safetensors"))
    for key, value in tensors_of(before).items():
        assert after[key].dtype == torch.float32
        assert torch.equal(after[key], value.half().float()), key


def test_layout_in_memory_does_not_matter(tmp_path: Path) -> None:
    before = model().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_model(before, tmp_path / "m.safetensors", dtype=torch.float32)
    assert same_tensors(before, load_model(tmp_path / "m.safetensors"))


@torch.no_grad()
def test_time_is_told_in_thousandths() -> None:
    one = model()
    x, t, context = torch.randn(2, 16, 4, 4), torch.tensor([0.25, 1.0]), encoder()(["red", "blue moon"])
    seen = torch.cat([x, stretched(context.sketch, 4, 4)], 1)
    expected = one.denoiser(seen, torch.tensor([250.0, 1000.0]), context.states, context.mask, context.pooled)
    torch.testing.assert_close(one(x, t, context), expected, atol=1e-5, rtol=1e-5)
    other = context._replace(pooled=context.pooled + 1)
    assert (one(x, t, other) - expected).abs().max() > 0.01


def test_stretched_by_hand() -> None:
    made = stretched(torch.tensor([[0.0, 4.0], [8.0, 12.0]]), 4, 2)
    assert made.tolist() == [[0, 4], [2, 6], [6, 10], [8, 12]]
    made = stretched(torch.tensor([[0.0, 3.0], [0.0, 3.0]]), 1, 6)
    torch.testing.assert_close(made, torch.tensor([[0.0, 0, 1, 2, 3, 3]]))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 4), (6, 4), (4, 10), (14, 14)])
def test_a_sketch_is_told_beside_latents_of_any_size(height: int, width: int) -> None:
    one, given = model(), {}
    one.denoiser.register_forward_pre_hook(lambda _, inputs: given.update(seen=inputs[0]))
    x, t, context = torch.randn(2, 16, height, width), torch.tensor([0.25, 1.0]), one.text(["red", "blue moon"])
    made = one(x, t, context)
    assert made.shape == x.shape
    assert torch.equal(given["seen"][:, :16], x)
    expected = stretched(context.sketch, height, width)
    torch.testing.assert_close(given["seen"][:, 16:], expected, atol=1e-5, rtol=1e-5)
    changed = context.sketch.clone()
    changed[0] = 0
    other = one(x, t, context._replace(sketch=changed))
    assert (other[0] - made[0]).abs().max() > 0.01
    torch.testing.assert_close(other[1], made[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("time", [0.02, 0.3, 0.7, 1.0])
def test_the_velocity_that_a_sketch_tells(time: float) -> None:
    """The least squares there are where latents are normal about it: what is left is of noise, and as large as told."""
    std, t = 0.3, torch.full((1, 1, 1, 1), time)
    sketch, off, noise = torch.randn(3, 1, 1, 400, 400, generator=torch.Generator().manual_seed(0))
    clean = sketch + std * off
    x = (1 - t) * clean + t * noise
    mean, left = guessed_velocity(x, sketch, t, std)
    rest = noise - clean - mean
    assert rest.std() / left.item() == pytest.approx(1, abs=0.01)
    for known in (x, sketch):
        assert abs((rest * known).mean()) < 0.01
    spread = time / math.hypot((1 - time) * std, time) * std  # of what a picture may be, given both
    assert left.item() * time == pytest.approx(spread)


def test_where_there_is_no_noise_left_the_picture_is_what_it_is() -> None:
    x, sketch = torch.randn(2, 1, 16, 4, 4)
    mean, left = guessed_velocity(x, sketch, torch.zeros(1, 1, 1, 1), 0.3)
    torch.testing.assert_close(mean, -x)
    assert left.item() == pytest.approx(1)


@torch.no_grad()
def test_a_model_learns_what_a_sketch_leaves_open() -> None:
    """What it gives lies about what the sketch tells, and the network's part in units of what that leaves."""
    told = DrawingModel(dataclasses.replace(SIZES, sketch_std=0.3), encoder().tokenizer)
    plain = model()
    told.load_state_dict(plain.state_dict())
    x, t, context = torch.randn(2, 16, 4, 4), torch.tensor([0.25, 1.0]), plain.text(["red", "blue moon"])
    mean, std = guessed_velocity(x, stretched(context.sketch, 4, 4), t[:, None, None, None], 0.3)
    torch.testing.assert_close(told(x, t, context), mean + std * plain(x, t, context), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_words_of_a_batch_do_not_meet() -> None:
    """A picture's prediction is the same whatever is asked for beside it."""
    one = model().double()
    x, t = torch.randn(3, 16, 4, 4, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.9])
    texts = ["", "red", "green triangle on white moon night"]
    together = one(x, t, one.text(texts))
    for row in range(3):
        alone = one(x[row : row + 1], t[row : row + 1], one.text(texts[row : row + 1]))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_numbers_that_halves_cannot_hold(tmp_path: Path) -> None:
    save_model(model(), tmp_path / "m.safetensors")
    before = (tmp_path / "m.safetensors").read_bytes()
    large = model(1)
    with torch.no_grad():
        large.denoiser.out[2].weight[0, 0, 0, 0] = 1e5
    with pytest.raises(WeightsError, match=r"denoiser\.out\.2\.weight") as caught:
        save_model(large, tmp_path / "m.safetensors")
    one_sentence(str(caught.value))
    assert (tmp_path / "m.safetensors").read_bytes() == before
    assert names(tmp_path) == ["m.safetensors"]


def test_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model(), path)
    before = path.read_bytes()
    with room(2000), pytest.raises(StorageError, match=r"m\.safetensors can't be written"):
        save_model(model(1), path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["m.safetensors"]


def test_no_file(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "m.safetensors")
    assert "no such file" in refused(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    path = written(tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    refused(path)


@pytest.mark.parametrize("content", [b"P6 1 1 255 abc", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04 no zip", b"{}" * 20])
def test_no_weights_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    refused(tmp_path / "m.safetensors")


def test_other_weights(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "m.safetensors")
    assert "no drawing model" in refused(tmp_path / "m.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "m.pt")
    assert "no drawing model" in refused(tmp_path / "m.pt")


def test_an_older_header(tmp_path: Path) -> None:
    """It has no word of a second width of sketches (both layers are of the first), what they tell alone, a ground."""
    config = dataclasses.replace(SIZES, text=dataclasses.replace(TEXT, sketch_inner=0))
    before = fill(DrawingModel(config, tokenizer(), ["red circle"], ["red"]), 1)
    save_model(before, tmp_path / "m.safetensors", dtype=torch.float32)
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        head = json.loads(file.metadata()[KEY])
    del head["config"]["text"]["sketch_inner"], head["config"]["sketch_std"], head["config"]["ground_std"]
    del head["config"]["known_within"]
    save_file(load_file(tmp_path / "m.safetensors"), tmp_path / "old.safetensors", {KEY: json.dumps(head)})
    assert same_tensors(before, load_model(tmp_path / "old.safetensors"))


def other_shape(tensors: Tensors, head: Head) -> None:
    tensors["denoiser.out.2.bias"] = torch.zeros(3)


def one_missing(tensors: Tensors, head: Head) -> None:
    del tensors["denoiser.out.2.bias"]


def one_too_many(tensors: Tensors, head: Head) -> None:
    tensors["denoiser.out.2.bias2"] = torch.zeros(3)


@pytest.mark.parametrize("change", [other_shape, one_missing, one_too_many])
def test_other_tensors_than_the_header_says(tmp_path: Path, change: Callable[[Tensors, Head], None]) -> None:
    assert "denoiser.out.2.bias" in refused(written(tmp_path / "m.safetensors", change))


def no_config(tensors: Tensors, head: Head) -> None:
    del head["config"]


def config_of_nothing(tensors: Tensors, head: Head) -> None:
    head["config"]["denoiser"] = None


def unknown_size(tensors: Tensors, head: Head) -> None:
    head["config"]["text"]["girth"] = 3


def no_noise_on_sketches(tensors: Tensors, head: Head) -> None:
    del head["config"]["sketch_noise"]


def bad_widths(tensors: Tensors, head: Head) -> None:
    head["config"]["denoiser"]["model_channels"] = 33


def bad_tokenizer(tensors: Tensors, head: Head) -> None:
    head["tokenizer"] = {"model": "none"}


def no_tokens(tensors: Tensors, head: Head) -> None:
    head["tokenizer"]["model"]["vocab"] = {}


def a_list(tensors: Tensors, head: Head) -> None:
    head["config"] = [1, 2]


@pytest.mark.parametrize(
    "change",
    [
        no_config, config_of_nothing, unknown_size, no_noise_on_sketches, bad_widths, bad_tokenizer, no_tokens,
        a_list,
    ],
)  # fmt: skip
def test_a_header_that_cannot_be(tmp_path: Path, change: Callable[[Tensors, Head], None]) -> None:
    assert "header" in refused(written(tmp_path / "m.safetensors", change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_header_that_is_no_object(tmp_path: Path, text: str) -> None:
    save_file(load_file(written(tmp_path / "m.safetensors")), tmp_path / "n.safetensors", {KEY: text})
    assert "header" in refused(tmp_path / "n.safetensors")


def test_sizes_go_through_json() -> None:
    config = dataclasses.replace(
        SIZES,
        text=dataclasses.replace(TEXT, depth=3),
        sketch_noise=0.7,
        sketch_std=0.2,
        ground_std=0.1,
        known_within=2.5,
    )
    assert DrawingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
