"""Pipelines of diffusers with a calotype VAE inside, against the same pipelines with diffusers' own."""

from __future__ import annotations

import copy
import importlib
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import assert_close, import_diffusers, kl, network, one_sentence, pictures, write
from torch import Tensor

import calotype
from calotype.errors import LatentFormatError, UsageError
from calotype.families.face import NetworkConfig
from calotype.families.folded.config import FoldedConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.tiny.config import TinyConfig
from calotype.latents import KNOWN, LatentFormat, PerChannel, flux2, same_as_model
from calotype.vae import load_as_stored
from calotype.weights.save import save_weights

F8 = AutoencoderConfig(ch=8, ch_mult=(1, 1, 2, 2), num_res_blocks=1, norm_groups=4)
F8_16 = replace(F8, z_channels=16, quant_conv=False)
PACKED = flux2(tuple(x / 9 for x in range(64)), tuple(1 + x / 9 for x in range(64)))


def make_folder(folder: Path, config: AutoencoderConfig = F8, format_: LatentFormat | None = KNOWN["sd1"]) -> Path:
    """A VAE with random weights as diffusers stores it."""
    save_weights(kl(config), folder, layout="diffusers", format_=format_)
    return folder


# Small random models of the kinds that pipelines put together


@pytest.fixture(scope="module")
def diffusers() -> Any:
    library = import_diffusers()
    with warnings.catch_warnings():  # it imports transformers when the first pipeline is asked for
        warnings.simplefilter("ignore")
        for name in ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"):
            getattr(library, name)
        importlib.import_module("calotype.integrations.diffusers")
    return library


@pytest.fixture(scope="module")
def ours(diffusers: Any) -> Any:
    return importlib.import_module("calotype.integrations.diffusers").AutoencoderKL


@pytest.fixture(scope="module")
def theirs(diffusers: Any) -> Any:
    return diffusers.AutoencoderKL


@pytest.fixture(scope="module")
def sd(diffusers: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All of Stable Diffusion but its VAE."""
    torch.manual_seed(1)
    return {
        "unet": diffusers.UNet2DConditionModel(**UNET, cross_attention_dim=16),
        "text_encoder": text_encoder("CLIPTextModel"),
        "tokenizer": tokenizer(tmp_path_factory.mktemp("tokenizer")),
        "scheduler": diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


@pytest.fixture(scope="module")
def sdxl(diffusers: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All of SDXL but its VAE."""
    torch.manual_seed(2)
    words = tokenizer(tmp_path_factory.mktemp("tokenizer"))
    unet = diffusers.UNet2DConditionModel(
        **UNET,
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    return {
        "unet": unet,
        "text_encoder": text_encoder("CLIPTextModel"),
        "text_encoder_2": text_encoder("CLIPTextModelWithProjection"),
        "tokenizer": words,
        "tokenizer_2": words,
        "scheduler": diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        "add_watermarker": False,
    }


UNET = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def text_encoder(name: str) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=9,
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return getattr(transformers, name)(config).eval()


def tokenizer(folder: Path) -> Any:
    """One that knows "a cat"."""
    import transformers

    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "c", "a", "t", "t</w>", "at</w>", "cat</w>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na t</w>\nc at</w>\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 8}))
    return transformers.CLIPTokenizer.from_pretrained(folder)


def run(pipe: Any, **arguments: Any) -> Tensor:
    """What a pipeline makes in two steps from a fixed seed: pixels in [0, 1], or latents."""
    pipe.set_progress_bar_config(disable=True)
    given = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "np"} | arguments
    with warnings.catch_warnings():  # whatever diffusers has to say of its own calls
        warnings.simplefilter("ignore", FutureWarning)
        images = pipe(generator=torch.Generator().manual_seed(3), **given).images
    return torch.as_tensor(np.asarray(images))


# Whole pipelines

PICTURE = {"image": (pictures(0, 1, 64, 64) + 1) / 2, "strength": 0.9}
SQUARE = {"height": 64, "width": 64}
HOLE = {"mask_image": torch.zeros(1, 1, 64, 64).index_fill(3, torch.arange(20, 50), 1.0), **SQUARE}
SIZE = {"height": 64, "width": 72}
WIDE = {"height": 64, "width": 80}  # where latents are folded two by two
PIPELINES: list[tuple[str, dict[str, Any]]] = [
    ("StableDiffusionPipeline", SIZE),
    ("StableDiffusionPipeline", {**SIZE, "num_images_per_prompt": 3}),
    ("StableDiffusionImg2ImgPipeline", PICTURE),
    ("StableDiffusionInpaintPipeline", PICTURE | HOLE),
    ("StableDiffusionXLPipeline", SIZE),
    ("StableDiffusionXLImg2ImgPipeline", PICTURE),
    ("StableDiffusionXLInpaintPipeline", PICTURE | HOLE),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments"), PIPELINES)
def test_a_pipeline_makes_the_same_pictures(
    name: str, arguments: dict[str, Any], diffusers: Any, ours: Any, theirs: Any, tmp_path: Path, request: Any
) -> None:
    family = "sdxl" if "XL" in name else "sd"
    models = request.getfixturevalue(family)
    folder = make_folder(tmp_path, format_=KNOWN["sdxl" if family == "sdxl" else "sd1"])
    pipeline = getattr(diffusers, name)
    expected = run(pipeline(vae=theirs.from_pretrained(folder), **models), **arguments)
    result = run(pipeline(vae=ours(calotype.load(folder, device="cpu")), **models), **arguments)
    assert_close(result, expected)
    if "image" in arguments:
        expected = run(pipeline(vae=theirs.from_pretrained(folder), **models), **arguments, output_type="latent")
        result = run(
            pipeline(vae=ours(calotype.load(folder, device="cpu")), **models), **arguments, output_type="latent"
        )
        assert_close(result, expected)


def test_a_vae_put_in_later_makes_the_same_pictures(
    ours: Any, theirs: Any, diffusers: Any, sd: Any, tmp_path: Path
) -> None:
    pipe = diffusers.StableDiffusionPipeline(vae=theirs.from_pretrained(make_folder(tmp_path)), **sd)
    expected = run(pipe, **SIZE)
    pipe.vae = ours(calotype.load(tmp_path, device="cpu"))
    assert_close(run(pipe, **SIZE), expected)


@pytest.mark.slow
def test_a_shift_is_applied(diffusers: Any, ours: Any, theirs: Any, tmp_path: Path) -> None:
    torch.manual_seed(4)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        in_channels=16,
        out_channels=16,
        joint_attention_dim=8,
        caption_projection_dim=8,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    )
    models = {
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        **dict.fromkeys(f"{kind}{i}" for kind in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")),
    }
    prompt = {
        "prompt": None,
        "guidance_scale": 0.0,
        "prompt_embeds": torch.randn(1, 4, 8),
        "pooled_prompt_embeds": torch.randn(1, 8),
    }
    folder = make_folder(tmp_path, F8_16, KNOWN["sd3"])
    for name, arguments in (("StableDiffusion3Pipeline", WIDE), ("StableDiffusion3Img2ImgPipeline", PICTURE | SQUARE)):
        pipeline = getattr(diffusers, name)
        expected = run(pipeline(vae=theirs.from_pretrained(folder), **models), **arguments, **prompt)
        result = run(pipeline(vae=ours(calotype.load(folder, device="cpu")), **models), **arguments, **prompt)
        assert_close(result, expected)


@pytest.mark.slow
def test_flux_makes_the_same_pictures(diffusers: Any, ours: Any, theirs: Any, tmp_path: Path) -> None:
    torch.manual_seed(5)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )
    models = {
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    }
    prompt = {"prompt": None, "prompt_embeds": torch.randn(1, 4, 8), "pooled_prompt_embeds": torch.randn(1, 8)}
    folder = make_folder(tmp_path, F8_16, KNOWN["flux"])
    for name, arguments in (("FluxPipeline", WIDE), ("FluxImg2ImgPipeline", PICTURE | SQUARE)):
        pipeline = getattr(diffusers, name)
        expected = run(pipeline(vae=theirs.from_pretrained(folder), **models), **arguments, **prompt)
        result = run(pipeline(vae=ours(calotype.load(folder, device="cpu")), **models), **arguments, **prompt)
        assert_close(result, expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_whole_pipeline_goes_to_a_narrower_dtype(
    dtype: torch.dtype, diffusers: Any, ours: Any, theirs: Any, sdxl: Any, tmp_path: Path
) -> None:
    make_folder(tmp_path, format_=KNOWN["sdxl"])
    models = {name: copy.deepcopy(part) for name, part in sdxl.items()}
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(vae=ours(calotype.load(tmp_path, device="cpu")), **models)
    result = run(pipe.to(dtype, silence_dtype_warnings=True), **PICTURE)
    assert pipe.vae.dtype == dtype
    pipe.vae = theirs.from_pretrained(tmp_path, force_upcast=False).to(dtype)
    expected = run(pipe, **PICTURE)
    assert (result - expected).abs().mean() < 0.01 < expected.std()


@pytest.mark.slow
def test_a_saved_pipeline_is_diffusers_own(diffusers: Any, ours: Any, theirs: Any, sd: Any, tmp_path: Path) -> None:
    vae = ours(calotype.load(make_folder(tmp_path / "vae", format_=KNOWN["sdxl"]), device="cpu"))
    pipe = diffusers.StableDiffusionPipeline(vae=vae, **sd)
    expected = run(pipe, **SIZE)
    pipe.save_pretrained(tmp_path / "saved")
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert type(again.vae) is theirs
    assert_close(run(again, **SIZE), expected)
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "saved", vae=vae)
    assert again.vae is vae
    assert_close(run(again, **SIZE), expected)


@pytest.mark.slow
def test_a_pipeline_of_another_kind_takes_the_vae_over(diffusers: Any, ours: Any, sd: Any, tmp_path: Path) -> None:
    pipe = diffusers.StableDiffusionPipeline(vae=ours(calotype.load(make_folder(tmp_path), device="cpu")), **sd)
    with pytest.raises(ValueError, match="vae"):
        diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    other = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe, vae=pipe.vae)
    assert other.vae is pipe.vae
    assert type(diffusers.AutoPipelineForImage2Image.from_pipe(pipe)) is type(other)


# Playground's latents: means, stds and a factor

MEANS = {"latents_mean": [-1.6, 1.1, 3.3, -2.6], "latents_std": [8.4, 5.9, 6.6, 5.2], "scaling_factor": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"])
def test_means_and_a_factor_are_what_pipelines_of_sdxl_make_of_them(
    name: str, diffusers: Any, ours: Any, theirs: Any, sdxl: Any, tmp_path: Path
) -> None:
    own = make_folder(tmp_path / "own")
    config = json.loads((own / "config.json").read_text()) | MEANS | {"force_upcast": False}
    (own / "config.json").write_text(json.dumps(config))
    loaded = load_as_stored(own)
    (ldm,) = save_weights(
        loaded.module, tmp_path / "x.safetensors", layout="ldm", format_=loaded.format, kept=loaded.kept
    )
    loaded = load_as_stored(ldm)
    save_weights(loaded.module, tmp_path / "again", layout="diffusers", format_=loaded.format, kept=loaded.kept)
    ours(calotype.load(ldm, device="cpu")).save_pretrained(tmp_path / "saved")
    arguments = PICTURE if "Img2Img" in name else SIZE

    def made(vae: Any, output_type: str = "np") -> Tensor:
        return run(getattr(diffusers, name)(vae=vae, **sdxl), **arguments, output_type=output_type)

    expected, latents = (made(theirs.from_pretrained(own), kind) for kind in ("np", "latent"))
    flat = {**MEANS, "scaling_factor": 1.0}
    assert (made(theirs.from_pretrained(own, **flat)) - expected).abs().max() > 0.05  # the factor is seen
    for folder in (own, tmp_path / "again", tmp_path / "saved"):
        assert_close(made(theirs.from_pretrained(folder)), expected)
        assert_close(made(ours(calotype.load(folder, device="cpu"))), expected)
        assert_close(made(ours(calotype.load(folder, device="cpu")), "latent"), latents)
    vae = calotype.load(ldm, device="cpu")
    pixels = vae.decode(vae.latent_format.to_raw(latents))
    assert_close((pixels.permute(0, 2, 3, 1) + 1) / 2, expected)


# The module alone


@pytest.fixture
def pair(ours: Any, theirs: Any, tmp_path: Path) -> tuple[Any, Any]:
    """The same weights in our module and in diffusers'."""
    folder = make_folder(tmp_path)
    return ours(calotype.load(folder, device="cpu")), theirs.from_pretrained(folder)


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in (5, 6)]


DRAWS: list[Callable[[Any], Tensor]] = [
    lambda posterior: posterior.mode(),
    lambda posterior: posterior.sample(torch.Generator().manual_seed(5)),
    lambda posterior: posterior.sample(generators()),
    lambda posterior: posterior.mean,
    lambda posterior: posterior.std,
    lambda posterior: posterior.var,
    lambda posterior: posterior.logvar,
    lambda posterior: posterior.kl(),
    lambda posterior: posterior.nll(torch.ones_like(posterior.mean)),
]


@pytest.mark.parametrize("draw", DRAWS)
def test_the_posterior_is_that_of_diffusers(draw: Callable[[Any], Tensor], pair: tuple[Any, Any]) -> None:
    result, expected = (draw(vae.encode(pictures(0, 2, 32, 48)).latent_dist) for vae in pair)
    assert_close(result, expected.detach())


def test_decoded_pixels_are_those_of_diffusers(pair: tuple[Any, Any]) -> None:
    z = torch.randn(2, 4, 4, 6)
    result, expected = (vae.decode(z, generator=torch.Generator()).sample.detach() for vae in pair)
    assert expected.abs().max() > 1.5
    assert_close(result, expected)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_rgba_are_as_in_diffusers(channels: int, ours: Any, theirs: Any, tmp_path: Path) -> None:
    make_folder(tmp_path / "vae", replace(F8, in_channels=channels))
    vae, own = ours(calotype.load(tmp_path / "vae", device="cpu")), theirs.from_pretrained(tmp_path / "vae")
    assert (vae.config["in_channels"], vae.config["out_channels"]) == (channels, channels)
    x = torch.cat([pictures(0, 1, 32, 48), pictures(1, 1, 32, 48)], dim=1)[:, :channels]
    with torch.no_grad():
        z = own.encode(x).latent_dist.mode()
        assert_close(vae.encode(x).latent_dist.mode(), z)
        assert_close(vae.decode(z).sample, own.decode(z).sample)
    vae.save_pretrained(tmp_path / "again")
    again = theirs.from_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(again.decode(z).sample, own.decode(z).sample)


def test_outputs_may_be_tuples(pair: tuple[Any, Any]) -> None:
    vae, _ = pair
    x, z = pictures(0, 1, 16, 16), torch.randn(1, 4, 2, 2)
    (posterior,) = vae.encode(x, return_dict=False)
    assert torch.equal(posterior.mode(), vae.encode(x).latent_dist.mode())
    (pixels,) = vae.decode(z, return_dict=False)
    assert torch.equal(pixels, vae.decode(z)["sample"])


@pytest.mark.slow
def test_tiling_and_slicing_change_nothing(pair: tuple[Any, Any]) -> None:
    vae, _ = pair
    x, z = pictures(0, 2, 64, 64), torch.randn(2, 4, 8, 8)
    latents, pixels = vae.encode(x).latent_dist.mode(), vae.decode(z).sample
    for switch in (vae.enable_tiling, vae.enable_slicing, vae.disable_tiling, vae.disable_slicing):
        switch()
        assert torch.equal(vae.encode(x).latent_dist.mode(), latents)
        assert torch.equal(vae.decode(z).sample, pixels)


@pytest.mark.parametrize("name", ["sd1", "sd3"])
def test_the_config_is_that_of_diffusers(name: str, ours: Any, theirs: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path, F8 if name == "sd1" else F8_16, KNOWN[name])
    config = ours(calotype.load(folder, device="cpu")).config
    expected = {key: value for key, value in theirs.from_pretrained(folder).config.items() if not key.startswith("_")}
    assert dict(config) == expected
    assert config.scaling_factor == KNOWN[name].scaling_factor
    with pytest.raises(Exception, match="cannot"):
        config.pop("scaling_factor")


def test_means_and_stds_of_latents_are_in_the_config(ours: Any, tmp_path: Path) -> None:
    format_ = PerChannel(name="own", channels=4, mean=(0.1, 0.2, 0.3, 0.4), std=(1.0, 2.0, 3.0, 4.0))
    config = ours(calotype.load(make_folder(tmp_path, format_=format_), device="cpu")).config
    assert (config.scaling_factor, config.latents_mean, config.latents_std) == (1.0, [*format_.mean], [*format_.std])


# Moves


@pytest.mark.slow
def test_a_narrower_copy_computes_and_the_way_back_is_exact(pair: tuple[Any, Any]) -> None:
    vae, reference = pair
    z = torch.randn(1, 4, 4, 4)
    expected = vae.decode(z).sample
    for move, dtype in (
        (lambda: vae.to(torch.bfloat16), torch.bfloat16),
        (lambda: vae.half(), torch.float16),
        (lambda: vae.to("cpu", torch.bfloat16), torch.bfloat16),
    ):
        assert move() is vae
        assert {vae.dtype, vae.decode(z).sample.dtype, vae._vae.dtype} == {dtype}
        assert {parameter.dtype for parameter in vae.parameters()} == {dtype}
        assert vae.encode(pictures(0, 1, 16, 16)).latent_dist.sample().dtype == dtype
        assert_close(vae.decode(z.to(dtype)).sample.float(), expected, 0.1)
        if dtype == torch.float16:  # in bfloat16 the kernels of the CPU round elsewhere
            theirs = reference.to(dtype).decode(z.to(dtype)).sample.detach()
            assert_close(vae.decode(z.to(dtype)).sample, theirs, 0.05)
    assert torch.equal(vae.float().decode(z).sample, expected)
    assert vae.device == torch.device("cpu")


def test_moves_leave_the_given_vae_alone(ours: Any, tmp_path: Path) -> None:
    vae = calotype.load(make_folder(tmp_path), device="cpu")
    z = torch.randn(1, 4, 4, 4)
    expected = vae.decode(z)
    ours(vae).to("meta")
    ours(vae).to(torch.float16)
    assert torch.equal(vae.decode(z), expected)


@pytest.mark.slow
def test_encodes_are_in_the_pipelines_type_or_in_another(ours: Any, tmp_path: Path) -> None:
    vae = ours(calotype.load(make_folder(tmp_path), device="cpu"))
    x = pictures(0, 1, 16, 24)
    wide = vae.encode(x).latent_dist.mode()
    vae.to(torch.bfloat16)
    assert vae.encode_dtype == torch.bfloat16
    narrow = vae.encode(x.bfloat16()).latent_dist.mode()
    assert not torch.equal(narrow, wide.bfloat16())
    vae.encode_dtype = torch.float32
    same = vae.encode(x.bfloat16().float()).latent_dist.mode()
    assert same.dtype == torch.bfloat16
    exact = ours(calotype.load(tmp_path, device="cpu")).encode(x.bfloat16().float()).latent_dist.mode()
    assert torch.equal(same, exact.bfloat16())
    assert torch.equal(vae.to(torch.float16).encode(x.bfloat16().float()).latent_dist.mode(), exact.half())
    with pytest.raises(UsageError, match=r"not torch\.float64"):
        vae.encode_dtype = torch.float64


@pytest.mark.slow
def test_a_narrow_vae_stays_narrow(ours: Any, tmp_path: Path) -> None:
    vae = calotype.load(make_folder(tmp_path), device="cpu", dtype=torch.bfloat16)
    assert ours(vae).dtype == torch.bfloat16
    exact = ours(calotype.load(tmp_path, device="cpu"))
    z = torch.randn(1, 4, 4, 4)
    assert torch.equal(ours(vae).to(torch.float32).decode(z).sample, exact.decode(z).sample)


def test_the_memory_format_follows(pair: tuple[Any, Any]) -> None:
    vae, reference = pair
    vae.to(memory_format=torch.channels_last)
    assert vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    z = torch.randn(1, 4, 4, 4)
    assert_close(vae.decode(z).sample, reference.decode(z).sample.detach())


def test_a_device_elsewhere_is_followed(pair: tuple[Any, Any]) -> None:
    vae, _ = pair
    assert vae.to("meta").device == vae._vae.device == torch.device("meta")
    for use in (lambda: vae.decode(torch.randn(1, 4, 2, 2)), lambda: vae.encode(pictures(0, 1, 16, 16))):
        with pytest.raises(UsageError, match="moved to the device 'meta'") as error:
            use()
        one_sentence(str(error.value))


# What is refused


@pytest.mark.parametrize(
    ("config", "format_"),
    [
        (TinyConfig(), same_as_model("sd1", 4)),
        (FoldedConfig(z_channels=4, ch=(8, 8)), KNOWN["sd1"]),
        (F8_16, PACKED),
    ],
)
def test_other_networks_are_refused(config: NetworkConfig, format_: LatentFormat, ours: Any, tmp_path: Path) -> None:
    (path,) = save_weights(network(config), tmp_path / "vae.safetensors", layout="ldm", format_=format_)
    with pytest.raises(UsageError, match=r"SD1, SD2, SDXL, SD3 and FLUX\.1") as error:
        ours(calotype.load(path, device="cpu"))
    one_sentence(str(error.value))


def test_an_unknown_scale_is_refused(ours: Any, tmp_path: Path) -> None:
    config = replace(F8, z_channels=7)
    (path,) = save_weights(kl(config), tmp_path / "vae.safetensors", layout="ldm")
    with pytest.raises(LatentFormatError):
        ours(calotype.load(path, device="cpu"))


def test_other_things_are_refused(ours: Any, pair: tuple[Any, Any]) -> None:
    with pytest.raises(UsageError, match=r"takes what calotype\.load returns, not AutoencoderKL"):
        ours(pair[1])
    with pytest.raises(UsageError, match=r"float32, bfloat16 or float16, not torch\.float64"):
        pair[0].double()
    with pytest.raises(ValueError, match="does not support group offloading"):
        pair[0].enable_group_offload(torch.device("cpu"))


def test_half_a_vae_decodes_and_is_not_saved(ours: Any, tmp_path: Path) -> None:
    tensors = {key: value for key, value in kl(F8).state_dict().items() if key.startswith(("decoder.", "post_quant"))}
    path = write(tmp_path / "decoder.safetensors", tensors, {"calotype_config": json.dumps(F8.to_dict())})
    vae = ours(calotype.load(path, latent_format="sd1", device="cpu"))
    assert vae.decode(torch.randn(1, 4, 2, 2)).sample.shape == (1, 3, 16, 16)
    with pytest.raises(UsageError, match="only the decoder") as error:
        vae.save_pretrained(tmp_path / "saved")
    one_sentence(str(error.value))
    assert not (tmp_path / "saved").exists()


def test_missing_diffusers_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "calotype.integrations.diffusers", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'calotype\[diffusers\]'"):
        importlib.import_module("calotype.integrations.diffusers")
