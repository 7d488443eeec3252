"""What checkpoints are told from, what is refused, and what is said."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_models import KINDS, SIZE, drawn, expected_latents, only_configs, original, photo, redrawn, t5
from support import assert_close, one_sentence, write

import calotype
from calotype.draw.checkpoints import load_checkpoint
from calotype.draw.kinds import detect_file, detect_folder
from calotype.errors import CalotypeWarning, FetchError, UsageError, WeightsError

pytest_plugins = ("checkpoint_fixtures",)
pytestmark = pytest.mark.usefixtures("offline")

# --- what is refused, and what is said ---

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"steps": 0}, "number of steps must be at least 1, not 0"),
    ({"batch": 0}, "number of pictures in a batch must be at least 1, not 0"),
    ({"size": (64, 70)}, "70 wide and 64 high can't be drawn: sides are multiples of 8"),
    ({"size": (0, 64)}, "64 wide and 0 high can't be drawn"),
    ({"sampler": "plms"}, r"no sampler 'plms'; choose one of ddim, euler, dpm\+\+"),
    ({"seeds": [1, 2]}, "1 prompts and 2 seeds"),
    ({"seeds": [-1]}, "not -1"),
    ({"seeds": [2**64]}, "from 0 to"),
    ({"guidance": float("nan")}, "A guidance is a finite number"),
    ({"negative": "dog", "guidance": 1.0}, "needs guidance above 1, and it is 1"),
    ({"negative": ["dog", "a"]}, "2 negative prompts and 1 prompts"),
]


@pytest.mark.parametrize(("arguments", "what"), REFUSED)
def test_orders_are_checked_before_anything_is_drawn(arguments: dict[str, Any], what: str, ours: Any) -> None:
    given = {"seeds": [3], "steps": 3, "size": SIZE} | arguments
    with pytest.raises(UsageError, match=what) as error:
        ours("sd1").draw("a cat", **given)  # not even asked for the first one
    one_sentence(str(error.value))


def test_sizes_of_stable_diffusion_3_are_checked(ours: Any) -> None:
    for size, what in (((64, 72), "multiples of 16"), ((64, 144), "at most 128")):
        with pytest.raises(UsageError, match=what) as error:
            ours("sd3").draw("a cat", seeds=[1], size=size)
        one_sentence(str(error.value))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"strength": 1.1}, "not 1.1"),
        ({"strength": 0.1}, r"strength of 0.1 runs none of 5 steps; give at least 0.2, or more steps"),
        ({"mask": torch.ones(64, 72)}, "The mask is 72 x 64 and the picture 80 x 64"),
        ({"mask": torch.ones(1, 64, 80)}, r"A mask is \[H, W\], not \[1, 64, 80\]"),
        ({"pictures": []}, "0 pictures and 1 prompts"),
    ],
)
def test_orders_to_redraw_are_checked(arguments: dict[str, Any], what: str, ours: Any) -> None:
    given = {"pictures": [photo()], "seeds": [3], "steps": 5} | arguments
    with pytest.raises(UsageError, match=what) as error:
        list(ours("sd1").redraw(given.pop("pictures"), "a cat", **given))
    one_sentence(str(error.value))


def test_a_long_prompt_is_not_cut_in_silence(ours: Any) -> None:
    with pytest.warns(CalotypeWarning, match=r"a ca\.\.\.' has 22 tokens, and the text encoder reads the first 8"):
        ours("sd1").draw("a cat " * 10, seeds=[1])
    with pytest.warns(CalotypeWarning, match=r"The prompt '(a cat ){4}' has 10 tokens"):
        ours("sd1").draw("a cat " * 4, seeds=[1])


def denoiser(inputs: int, *texts: str) -> dict[str, tuple[int, ...]]:
    start = "model.diffusion_model"
    unet = {f"{start}.input_blocks.0.0.weight": (8, inputs, 3, 3), f"{start}.out.2.weight": (4, 8, 3, 3)}
    return unet | {f"{text}.x": (1,) for text in texts}


OTHERS: list[tuple[dict[str, tuple[int, ...]], str]] = [
    (denoiser(4), "a denoiser .U-Net. without its text encoder"),
    (denoiser(8, "cond_stage_model.transformer"), "an editing model .InstructPix2Pix."),
    (denoiser(5, "cond_stage_model.model"), "a depth-to-image model"),
    (denoiser(4, "conditioner.embedders.0.model"), "the refiner of SDXL"),
    ({"encoder.conv_in.weight": (8, 3, 3, 3), "decoder.conv_in.weight": (8, 4, 3, 3)}, "a VAE alone.*goes with --vae"),
    ({"lora_unet_down_blocks_0.lora_up.weight": (4, 4)}, "a LoRA"),
    ({"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.lora_A.weight": (4, 4)}, "a LoRA"),
    ({"text_model.encoder.layers.0.mlp.fc1.weight": (4, 4)}, "a text encoder"),
    ({"control_model.input_blocks.0.0.weight": (4, 4)}, "a ControlNet"),
    ({"model.diffusion_model.double_blocks.0.img_attn.proj.weight": (4, 4)}, "FLUX"),
    ({"double_blocks.0.img_attn.proj.weight": (4, 4)}, "FLUX"),
    (
        {"model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight": (4, 4)},
        "a Stable Diffusion 3 without its text encoders",
    ),
    ({"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.weight": (4, 4)}, "a denoiser .U-Net. alone"),
    ({"something.else": (1,)}, "none of the tensors of a checkpoint"),
]


@pytest.mark.parametrize(("shapes", "what"), OTHERS)
def test_other_files_are_named(shapes: dict[str, tuple[int, ...]], what: str, tmp_path: Path) -> None:
    path = write(tmp_path / "it.safetensors", {key: torch.zeros(shape) for key, shape in shapes.items()})
    with pytest.raises(WeightsError, match=rf"it\.safetensors: it holds {what}") as error:
        load_checkpoint(path, device="cpu")
    one_sentence(str(error.value))


@pytest.mark.slow
def test_kinds_are_told_from_names_and_shapes(files: dict[str, Path], folders: dict[str, Path], tmp_path: Path) -> None:
    from calotype.weights.container import open_container

    for kind in KINDS:
        found = detect_file(open_container(files[kind]).shapes)
        assert (found.kind.name, found.inpainting, found.has_vae) == (kind, False, True)
        assert found.channels == (16 if kind == "sd3" else 4)
    assert detect_file(denoiser(9, "conditioner.embedders.0.x", "conditioner.embedders.1.model")).inpainting
    copy = only_configs(folders["sd1"], tmp_path / "wide")
    config = json.loads((copy / "unet" / "config.json").read_text()) | {"cross_attention_dim": 1024}
    (copy / "unet" / "config.json").write_text(json.dumps(config))
    assert detect_folder(copy).kind.name == "sd2"


def test_other_folders_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"there is no model_index\.json in this folder"):
        load_checkpoint(tmp_path, device="cpu")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "AudioLDM2Pipeline"}))
    with pytest.raises(
        WeightsError, match="it holds a AudioLDM2Pipeline, and a checkpoint of Stable Diffusion"
    ) as error:
        load_checkpoint(tmp_path, device="cpu")
    one_sentence(str(error.value))
    with pytest.raises(WeightsError, match="there is no such file or folder"):
        load_checkpoint(tmp_path / "nothing", device="cpu")
    with pytest.raises(UsageError, match="has its own configurations"):
        load_checkpoint(folders["sd1"], config=folders["sd1"], device="cpu")


@pytest.mark.slow
def test_nothing_that_lacks_is_filled_at_random(
    files: dict[str, Path], folders: dict[str, Path], theirs: Any, tmp_path: Path
) -> None:
    lost = {
        "sd1": "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.bias",
        "sdxl": "model.diffusion_model.middle_block.0.in_layers.2.weight",
    }
    for kind, key in lost.items():
        tensors = original(kind, theirs(kind))
        del tensors[key]
        path = write(tmp_path / f"{kind}.safetensors", tensors)
        with pytest.raises(WeightsError, match=r"(missing tensor text_encoder\.|it lacks tensors)") as error:
            load_checkpoint(path, config=files[kind].parent / "configs", device="cpu")
        one_sentence(str(error.value))
    from safetensors.torch import load_file, save_file

    for part, name in (("text_encoder", "model"), ("unet", "diffusion_pytorch_model")):
        folder = tmp_path / part
        shutil.copytree(folders["sd1"], folder)
        file = folder / part / f"{name}.safetensors"
        tensors = load_file(file)
        key = next(key for key in tensors if key.endswith(("fc2.bias", "conv2.bias")))
        del tensors[key]
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(WeightsError, match=rf"missing tensor {part}\..*\.bias") as error:
            load_checkpoint(folder, device="cpu")
        one_sentence(str(error.value))


def test_a_damaged_part_is_one_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["sd1"], tmp_path / "cut")
    file = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="diffusers can't put it together") as error:
        load_checkpoint(tmp_path / "cut", device="cpu")
    one_sentence(str(error.value))


# --- configurations of single files ---


@pytest.mark.slow
def test_without_a_cache_or_network_the_sentence_says_what_is_needed(files: dict[str, Path]) -> None:
    repos = {"sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5", "sdxl": "stabilityai/stable-diffusion-xl-base-1.0"}
    for kind, repo in repos.items():
        with pytest.raises(FetchError, match=rf"those of {repo} are not in the local cache.*by --config") as error:
            load_checkpoint(files[kind], device="cpu")
        one_sentence(str(error.value))
    with pytest.raises(UsageError, match=r"predicts v .* or noise .* can't be told") as unsaid:
        load_checkpoint(files["sd2"], device="cpu")
    one_sentence(str(unsaid.value))


@pytest.mark.slow
def test_the_cache_of_the_hub_is_enough(files: dict[str, Path], ours: Any, tmp_path: Path) -> None:
    repo = tmp_path / "hub" / "models--stabilityai--stable-diffusion-xl-base-1.0"
    only_configs(files["sdxl"].parent / "configs", repo / "snapshots" / "abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    (result,), (expected,) = drawn(load_checkpoint(files["sdxl"], device="cpu")), drawn(ours("sdxl"))
    assert_close(result.latents.tensor, expected.latents.tensor, 1e-5)


@pytest.mark.slow
def test_wrong_configurations_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    configs = files["sdxl"].parent / "configs"
    with pytest.raises(
        UsageError, match=r"describes a StableDiffusionXLPipeline, and model\.safetensors holds"
    ) as error:
        load_checkpoint(files["sd1"], config=configs, device="cpu")
    one_sentence(str(error.value))
    (tmp_path / "empty").mkdir()
    for given in (tmp_path / "empty", "nothing"):
        with pytest.raises(UsageError, match=r"no folder with a model_index\.json") as error:
            load_checkpoint(files["sd1"], config=given, device="cpu")
        one_sentence(str(error.value))


@pytest.mark.slow
def test_a_file_says_by_its_marks_that_it_predicts_v(files: dict[str, Path], theirs: Any, tmp_path: Path) -> None:
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    path = write(tmp_path / "marked.safetensors", original("sdxl", theirs("sdxl")) | marks)
    config = load_checkpoint(path, config=files["sdxl"].parent / "configs", device="cpu").pipe.scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr, config.timestep_spacing) == (
        "v_prediction",
        True,
        "trailing",
    )


@pytest.mark.slow
@pytest.mark.parametrize("tied", ["both", "shared"])
def test_the_third_text_encoder_is_used_where_it_is(
    tied: str, diffusers: Any, folders: dict[str, Path], theirs: Any, ours: Any, tmp_path: Path
) -> None:
    pipe = theirs("sd3")
    encoder, words = t5()
    pipe.register_modules(text_encoder_3=encoder, tokenizer_3=words)
    pipe.save_pretrained(tmp_path / "three")
    expected = expected_latents(pipe, height=64, width=80, guidance_scale=7.0)
    folder = load_checkpoint(tmp_path / "three", device="cpu")
    assert_close(drawn(folder)[0].latents.tensor[None], expected)
    assert (drawn(ours("sd3"))[0].latents.tensor - expected[0]).abs().max() > 0.01

    tensors = original("sd3", pipe)
    for key, value in encoder.state_dict().items():
        if key != "encoder.embed_tokens.weight" or tied == "both":
            tensors[f"text_encoders.t5xxl.transformer.{key}"] = value.clone()
    path = write(tmp_path / "three.safetensors", tensors)
    single = load_checkpoint(path, config=only_configs(tmp_path / "three", tmp_path / "configs"), device="cpu")
    assert_close(drawn(single)[0].latents.tensor[None], expected)


@pytest.mark.slow
def test_a_torch_file_is_read_too(files: dict[str, Path], ours: Any, theirs: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": original("sd1", theirs("sd1")), "global_step": 1}, path)
    (result,), (expected,) = (
        drawn(load_checkpoint(path, config=files["sd1"].parent / "configs", device="cpu")),
        drawn(ours("sd1")),
    )
    assert_close(result.latents.tensor, expected.latents.tensor, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrower_dtype_draws_nearly_the_same(dtype: torch.dtype, ours: Any, folders: dict[str, Path]) -> None:
    (expected,) = redrawn(ours("sd1"), [photo()], strength=0.4)
    wide = calotype.load(folders["sd1"] / "vae", device="cpu")
    for vae in (None, wide):
        checkpoint = load_checkpoint(folders["sd1"], vae=vae, device="cpu", dtype=dtype)
        assert checkpoint.pipe.unet.dtype == checkpoint.pipe.vae.dtype == checkpoint.pipe.text_encoder.dtype == dtype
        (result,) = redrawn(checkpoint, [photo()], strength=0.4)
        apart = (result.latents.tensor - expected.latents.tensor).abs().mean()
        assert apart < 0.1 * expected.latents.tensor.std()
    assert wide.dtype == torch.float32


@pytest.mark.slow
def test_a_folder_of_float16_files_is_read(diffusers: Any, ours: Any, theirs: Any, tmp_path: Path) -> None:
    theirs("sd1").to(torch.float16, silence_dtype_warnings=True).save_pretrained(tmp_path / "half", variant="fp16")
    (result,) = drawn(load_checkpoint(tmp_path / "half", device="cpu"))
    (expected,) = drawn(ours("sd1"))
    apart = (result.latents.tensor - expected.latents.tensor).abs().mean()
    assert 0 < apart < 0.05 * expected.latents.tensor.std()


@pytest.mark.parametrize("name", ["diffusers", "transformers", "accelerate"])
def test_missing_libraries_are_said(name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"needs {name}; install it with: pip install 'calotype\[sd\]'"):
        load_checkpoint(folders["sd1"], device="cpu")


def test_the_module_itself_needs_none_of_them() -> None:
    source = importlib.import_module("calotype.draw.checkpoints")
    assert not {"diffusers", "transformers", "accelerate"} & set(vars(source))
