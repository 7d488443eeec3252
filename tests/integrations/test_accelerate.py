"""Whole pipelines of diffusers, before and after their VAE is put in the place of by calotype's."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

import pytest
import torch
import wankit
from pipekit import PIPELINES, VAES, drawn, kl, library, pipeline
from support import one_sentence
from torch import nn

import calotype
from calotype.errors import UsageError, WeightsError


@pytest.fixture(scope="module")
def module() -> Any:
    library()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("calotype.integrations.diffusers")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What calotype computes from now on."""
    made: list[str] = []
    for name in ("encode", "decode"):
        plain = getattr(calotype.VAE, name)

        def noted(*arguments: Any, _plain: Any = plain, _name: str = name, **options: Any) -> Any:
            made.append(_name)
            return _plain(*arguments, **options)

        monkeypatch.setattr(calotype.VAE, name, noted)
    return made


ENCODES = ("sd1-img2img", "flux2", "qwen-image-edit")


@pytest.mark.slow
@pytest.mark.parametrize("kind", PIPELINES)
def test_pictures_are_those_of_diffusers(
    kind: str, module: Any, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, call = pipeline(kind)
    if kind == "qwen-image-edit":  # which makes a megapixel of every picture
        monkeypatch.setattr(sys.modules[type(pipe).__module__], "calculate_dimensions", lambda *_: (96, 64, None))
    before = pipe.vae
    expected = drawn(pipe, call)
    assert expected.std() > 0.02
    assert computed == []
    assert module.accelerate(pipe) is pipe
    assert type(pipe.vae).__name__ == type(before).__name__
    assert isinstance(pipe.vae, type(before))
    assert pipe.vae is not before
    result = drawn(pipe, call)
    assert computed == (["encode", "decode"] if kind in ENCODES else ["decode"])
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= 1e-4
    assert {k: v for k, v in pipe.vae.config.items() if k[0] != "_"} == {
        k: v for k, v in before.config.items() if k[0] != "_"
    }
    assert pipe.config["vae"] == ("diffusers", type(before).__name__)


@pytest.mark.parametrize("name", VAES)
def test_weights_are_taken_over_and_not_copied(name: str, module: Any) -> None:
    theirs = VAES[name]()
    vae = getattr(module, name).of(theirs)
    before = {key: value.data_ptr() for key, value in theirs.state_dict().items()}
    after = {key: value.data_ptr() for key, value in vae.state_dict().items()}
    joined = {key for key in before if any(part in key for part in (".to_q.", ".to_k.", ".to_v."))}
    assert before.keys() == after.keys()
    moved = {key for key in before if before[key] != after[key]}
    assert moved <= (joined if name == "AutoencoderDC" else set())
    inside = {value.untyped_storage().data_ptr() for value in vae._vae.module.state_dict().values()}
    outside = {value.untyped_storage().data_ptr() for value in vae.state_dict().values()}
    assert inside <= outside


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_device_and_dtype_are_kept(dtype: torch.dtype, module: Any) -> None:
    pipe, _ = pipeline("sd1")
    pipe.vae.to(dtype)
    reference = {key: value.clone() for key, value in pipe.vae.state_dict().items()}
    module.accelerate(pipe)
    assert (pipe.vae.dtype, pipe.vae.device.type) == (dtype, "cpu")
    assert pipe.vae._vae.dtype == dtype
    assert pipe.vae._own.module is pipe.vae._vae.module  # nothing is held twice
    z = torch.randn(1, 4, 4, 4).to(dtype)
    wide = pipe.vae.to(torch.float32).decode(z.float()).sample
    narrow = pipe.vae.to(dtype).decode(z).sample
    assert narrow.dtype == dtype
    assert (narrow.float() - wide).abs().max() < 0.1
    for key, value in pipe.vae.state_dict().items():
        assert torch.equal(value, reference[key])


def test_what_is_accelerated_stays(module: Any) -> None:
    pipe, _ = pipeline("sd1")
    vae = module.accelerate(pipe).vae
    assert module.accelerate(pipe) is pipe
    assert pipe.vae is vae


def test_the_pipeline_is_saved_as_diffusers_own(module: Any, tmp_path: Any) -> None:
    pipe, _ = pipeline("wan")
    reference = pipe.vae.state_dict()
    module.accelerate(pipe).vae.save_pretrained(tmp_path)
    again = library().AutoencoderKLWan.from_pretrained(tmp_path).state_dict()
    assert again.keys() == reference.keys()
    assert all(torch.equal(again[key], reference[key]) for key in reference)


def test_tiles_asked_for_are_those_of_videos_too(module: Any) -> None:
    pipe, _ = pipeline("wan")
    pipe.vae.enable_tiling(tile_sample_min_height=64)
    module.accelerate(pipe)
    assert pipe.vae.use_tiling
    assert pipe.vae.tile_sample_min_height == 64


# What is refused


def test_what_is_no_pipeline_is_said(module: Any) -> None:
    for thing, name in ((kl(), "AutoencoderKL"), (None, "NoneType"), ("model/", "str")):
        with pytest.raises(UsageError, match=f"takes a pipeline of diffusers, and this is of the type {name}") as error:
            module.accelerate(thing)
        one_sentence(str(error.value))


def test_a_pipeline_without_a_vae_is_said(module: Any) -> None:
    pipe, _ = pipeline("sd1")
    pipe.vae = None
    without = library().DDPMPipeline(unet=None, scheduler=pipe.scheduler)
    for each in (pipe, without):
        with pytest.raises(UsageError, match=f"This {type(each).__name__} has no VAE") as error:
            module.accelerate(each)
        one_sentence(str(error.value))


def test_an_unknown_class_is_named(module: Any) -> None:
    pipe, _ = pipeline("sd1")

    class Other(library().AutoencoderKL):  # type: ignore[misc]
        pass

    pipe.vae = Other()
    with pytest.raises(UsageError, match="is of the class Other, and those that can be accelerated are") as error:
        module.accelerate(pipe)
    one_sentence(str(error.value))


def test_a_decoder_that_makes_larger_pictures_in_channels_stays(module: Any) -> None:
    larger = wankit.theirs("wan-2.1-larger")
    with pytest.raises(WeightsError, match="This is no ordinary AutoencoderKLWan") as error:
        module.AutoencoderKLWan.of(larger)
    one_sentence(str(error.value))


def test_what_calotype_can_not_take_over_is_said_and_left(module: Any) -> None:
    pipe, _ = pipeline("sd1")
    pipe.vae.decoder.extra = nn.Linear(2, 2)
    before = pipe.vae
    with pytest.raises(WeightsError, match=r"can't be taken over: .*decoder\.extra") as error:
        module.accelerate(pipe)
    one_sentence(str(error.value))
    assert pipe.vae is before
    pipe, _ = pipeline("sd1")
    pipe.vae.to(torch.float64)
    with pytest.raises((UsageError, WeightsError), match="float64") as error:
        module.accelerate(pipe)
    one_sentence(str(error.value))


def test_offloading_comes_after(module: Any) -> None:
    accelerate = importlib.import_module("accelerate")
    pipe, call = pipeline("sd1")
    expected = drawn(pipe, call)
    accelerate.cpu_offload(pipe.vae, execution_device="cpu")
    with pytest.raises(UsageError, match="offloaded already") as error:
        module.accelerate(pipe)
    one_sentence(str(error.value))
    pipe, call = pipeline("sd1")
    module.accelerate(pipe)
    accelerate.cpu_offload(pipe.vae, execution_device="cpu")
    assert (drawn(pipe, call) - expected).abs().max() <= 1e-4
