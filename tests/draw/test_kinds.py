"""Folders of models beside Stable Diffusion, against the same pipelines made of diffusers' own parts.

What stands for a text is made up: their text encoders have nothing to do with calotype, and would be most of the time.
"""

from __future__ import annotations

import functools
import inspect
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_models import array, as_input, photo
from pipekit import PIPELINES, Processor, library, pipeline, text
from support import assert_close, one_sentence
from torch import Tensor

from calotype.draw.checkpoints import Checkpoint, load_checkpoint
from calotype.draw.kinds import KINDS
from calotype.draw.sampler import Step
from calotype.errors import UsageError, WeightsError

pytest_plugins = ("checkpoint_fixtures",)

SIZE = (64, 96)
OTHERS = ("flux", "flux2", "z-image", "qwen-image", "qwen-image-2.1", "wan", "sana", "hunyuan-image")
REDRAWN = tuple(kind for kind in OTHERS if KINDS[kind].tasks)


def some(*quick: str) -> list[Any]:
    """All of the others, of which only some are quick."""
    return [pytest.param(kind, marks=[] if kind in quick else pytest.mark.slow) for kind in OTHERS]


def made_up(prompts: str | Sequence[str]) -> Tensor:
    """What stands for texts, [N, 5, width]."""
    prompts = [prompts] if isinstance(prompts, str) else prompts
    return torch.cat([text(zlib.crc32(prompt.encode())) for prompt in prompts])


def flux(self: Any, prompt: Any = None, **_: Any) -> Any:
    embeds = made_up(prompt)
    return embeds, embeds[:, 0], torch.zeros(embeds.shape[1], 3)


def flux2(self: Any, prompt: Any = None, **_: Any) -> Any:
    embeds = made_up(prompt)
    return embeds, self._prepare_text_ids(embeds)


def z_image(self: Any, prompt: Any = None, negative_prompt: Any = None, **_: Any) -> Any:
    return list(made_up(prompt)), list(made_up(negative_prompt or [""] * len(prompt)))


def qwen(self: Any, prompt: Any = None, **_: Any) -> Any:
    embeds = made_up(prompt)
    return embeds, torch.ones(embeds.shape[:2], dtype=torch.int64)


def qwen21(self: Any, prompt: Any = None, image: Any = None, **_: Any) -> Any:
    embeds = made_up(prompt)
    return embeds, None, torch.zeros(embeds.shape[:2], dtype=torch.bool)


def wan(self: Any, prompt: Any = None, negative_prompt: Any = None, **_: Any) -> Any:
    return made_up(prompt), made_up(negative_prompt or [""] * len(prompt))


def sana(self: Any, prompt: Any = None, guided: bool = True, negative_prompt: Any = "", **_: Any) -> Any:
    embeds, without = made_up(prompt), made_up(negative_prompt or [""] * len(prompt))
    seen = torch.ones(embeds.shape[:2])
    return embeds, seen, without, seen


def hunyuan(self: Any, prompt: Any = None, **_: Any) -> Any:
    embeds = made_up(prompt or "")
    seen = torch.ones(embeds.shape[:2], dtype=torch.int64)
    return embeds, seen, embeds, seen


TEXTS: dict[str, Callable[..., Any]] = {
    "flux": flux, "flux2": flux2, "z-image": z_image, "qwen-image": qwen, "qwen-image-2.1": qwen21, "wan": wan,
    "sana": sana, "hunyuan-image": hunyuan,
}  # fmt: skip


@pytest.fixture(autouse=True)
def texts(monkeypatch: pytest.MonkeyPatch, offline: None) -> None:
    diffusers = library()
    for kind, encode in TEXTS.items():
        for task in ("", *KINDS[kind].tasks):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = getattr(diffusers, f"{KINDS[kind].pipelines}{task}Pipeline")
            monkeypatch.setattr(found, "encode_prompt", encode)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A folder of each kind, saved by diffusers."""
    root = tmp_path_factory.mktemp("kinds")
    for kind in OTHERS:
        pipe, _ = pipeline(kind)
        if kind == "qwen-image-2.1":  # whose processor is made up, too
            pipe.register_modules(processor=None)
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(type(pipe), "__init__", _without_processor(type(pipe).__init__))
                pipe.save_pretrained(root / kind)
        else:
            pipe.save_pretrained(root / kind)
    plain = library().QwenImage21Pipeline.__init__
    library().QwenImage21Pipeline.__init__ = _without_processor(plain)
    yield {kind: root / kind for kind in OTHERS}
    library().QwenImage21Pipeline.__init__ = plain


def _without_processor(plain: Any) -> Any:
    @functools.wraps(plain)
    def init(self: Any, *arguments: Any, **parts: Any) -> None:
        plain(self, *arguments, **parts | {"processor": Processor()})

    return init


@pytest.fixture(scope="module")
def ours(folders: dict[str, Path]) -> Callable[[str], Checkpoint]:
    loaded: dict[str, Checkpoint] = {}

    def make(kind: str) -> Checkpoint:
        if kind not in loaded:
            loaded[kind] = load_checkpoint(folders[kind], device="cpu")
        return loaded[kind]

    return make


def theirs(kind: str, task: str = "") -> Any:
    """diffusers' own pipeline, VAE included."""
    made, _ = pipeline(kind)
    found = getattr(library(), f"{KINDS[kind].pipelines}{task}Pipeline")
    taken = inspect.signature(found).parameters
    pipe = found(**{name: part for name, part in made.components.items() if name in taken})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def expected(pipe: Any, kind: str, prompts: Sequence[str] = ("a cat",), **inputs: Any) -> Any:
    """The first picture that diffusers makes, levels [H, W, C]."""
    named = {"generator": [torch.Generator().manual_seed(3 + i) for i in range(len(prompts))]}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        made = pipe(prompt=list(prompts), num_inference_steps=2, output_type="pil", **named, **inputs)
    found = made.frames[0][0] if hasattr(made, "frames") else made.images[0]
    return array(found)


def guidance(kind: str, amount: float) -> dict[str, Any]:
    name = KINDS[kind].guided_by
    found = dict(KINDS[kind].given)
    if name:
        found[name] = amount
    if KINDS[kind].nothing:
        found["negative_prompt"] = [KINDS[kind].nothing]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_a_folder_draws_what_diffusers_draws(kind: str, ours: Any) -> None:
    checkpoint = ours(kind)
    assert checkpoint.kind == kind
    reference = expected(theirs(kind), kind, height=SIZE[0], width=SIZE[1], **guidance(kind, 3.0))
    steps: list[Step] = []
    more = {"guidance": 3.0} if KINDS[kind].guided_by else {}
    (drawn,) = checkpoint.draw(["a cat"], seeds=[3], steps=2, size=SIZE, on_step=steps.append, **more)
    result = array(drawn.picture)
    assert result.shape == reference.shape == (*SIZE, 4 if KINDS[kind].alpha else 3)
    assert np.abs(result - reference).max() <= 1
    assert result.std() > 5
    assert [step.index for step in steps] == [0, 1]
    assert steps[-1].clean.shape[1:] == drawn.latents.tensor.shape
    assert_close(steps[-1].clean[0], drawn.latents.tensor, 1e-5)
    assert checkpoint.latent_format.fits(drawn.latents.tensor)
    assert steps[0].clean.shape == steps[-1].clean.shape
    (alone, _) = checkpoint.draw(["a cat", "dog"], seeds=[3, 4], steps=2, size=SIZE, batch=2, **more)
    assert np.abs(array(alone.picture) - result).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", some("flux", "flux2", "qwen-image"))
def test_negative_prompts_count_where_there_are_any(kind: str, ours: Any) -> None:
    checkpoint = ours(kind)

    def drawn(**more: Any) -> Any:
        (one,) = checkpoint.draw(["a cat"], seeds=[3], steps=2, size=SIZE, **more)
        return array(one.picture)

    if not KINDS[kind].negative:
        with pytest.raises(UsageError, match="takes no negative prompt") as error:
            drawn(negative="dog")
        return one_sentence(str(error.value))
    if KINDS[kind].guided_by:  # HunyuanImage's is a part of its folder, which a distilled one does not have
        assert (drawn(negative="dog", guidance=6.0) != drawn(guidance=6.0)).any()


@pytest.mark.parametrize("kind", OTHERS)
def test_what_a_kind_does_not_take_is_said(kind: str, ours: Any) -> None:
    checkpoint = ours(kind)
    odd = (SIZE[0], checkpoint.multiple * 3 + 1)
    for refused in ({"sampler": "ddim"}, {"size": odd}, *([] if KINDS[kind].guided_by else [{"guidance": 2.0}])):
        with pytest.raises(UsageError) as error:
            checkpoint.draw(["a cat"], seeds=[3], **refused)
        one_sentence(str(error.value))
    if kind not in REDRAWN:
        with pytest.raises(UsageError, match=f"{KINDS[kind].title} only draws") as error:
            checkpoint.redraw([photo()], ["a cat"], seeds=[3])
        one_sentence(str(error.value))


@pytest.mark.parametrize("kind", REDRAWN)
def test_pictures_are_redrawn_as_by_diffusers(kind: str, ours: Any) -> None:
    checkpoint, image = ours(kind), photo(*SIZE)
    (plain,) = checkpoint.redraw([image], ["a cat"], seeds=[3], strength=0.0)
    assert plain.picture.size == image.size
    pipe = theirs(kind, "Img2Img")
    reference = expected(
        pipe, kind, image=as_input(image), strength=0.5, height=SIZE[0], width=SIZE[1], **guidance(kind, 3.0)
    )
    (drawn,) = checkpoint.redraw([image], ["a cat"], seeds=[3], strength=0.5, steps=2, guidance=3.0)
    assert np.abs(array(drawn.picture) - reference).max() <= 1
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[:32, :48] = True
    (part,) = checkpoint.redraw([image], ["a cat"], seeds=[3], strength=1.0, steps=2, mask=mask, feather=0)
    assert (array(part.picture)[32:] == array(image)[32:]).all()
    assert np.abs(array(part.picture)[:32, :48] - array(image)[:32, :48]).mean() > 5


@pytest.mark.parametrize("kind", some("flux", "wan"))
def test_another_vae_is_taken_if_it_has_the_same_latents(kind: str, ours: Any, folders: dict[str, Path]) -> None:
    own = load_checkpoint(folders[kind], vae=folders[kind] / "vae", device="cpu")
    assert own.vae_sha256 == ours(kind).vae_sha256
    other = "sana" if kind != "sana" else "flux"
    with pytest.raises(UsageError, match="can't stand in for the VAE of") as error:
        load_checkpoint(folders[kind], vae=folders[other] / "vae", device="cpu")
    one_sentence(str(error.value))


def test_the_usual_size_is_asked_for(ours: Any) -> None:
    assert ours("flux")._size(None) == (1024, 1024)
    assert ours("wan")._size(None) == (480, 832)
    assert ours("sana")._size(None) == (64, 64)  # what its transformer says, in latents


def test_other_pipelines_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("WanImageToVideoPipeline", "QwenImageEditPipeline", "SanaSprintPipeline", "Flux2Img2ImgPipeline"):
        (tmp_path / "model_index.json").write_text(f'{{"_class_name": "{name}"}}')
        with pytest.raises(WeightsError, match=f"it holds a {name}, and a checkpoint of") as error:
            load_checkpoint(tmp_path, device="cpu")
        one_sentence(str(error.value))


def test_every_kind_names_pipelines_that_there_are() -> None:
    diffusers = library()
    for kind in KINDS.values():
        for task in ("", *kind.tasks):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert hasattr(diffusers, f"{kind.pipelines}{task}Pipeline")
    assert set(OTHERS) <= set(PIPELINES)
