"""Which diffusion model a checkpoint is, told from tensor names, shapes and configurations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from calotype.errors import WeightsError
from calotype.families.face import Shapes
from calotype.families.numbers import MOST_CHANNELS
from calotype.latents import KNOWN, LatentFormat
from calotype.texts import TextError, json_table, shown, whole
from calotype.weights.others import OTHERS

EXPECTED = (
    "a checkpoint of Stable Diffusion 1, 2, XL or 3 is expected, as one file or as a diffusers folder, or the folder "
    "of a FLUX, Z-Image, Qwen-Image, Wan, SANA or HunyuanImage"
)
UNET = "model.diffusion_model.input_blocks.0.0.weight"

# Denoisers that take more than latents: (channels of their input, what they are)
OTHER_INPUTS = {5: "a depth-to-image model", 7: "an upscaler", 8: "an editing model (InstructPix2Pix)"}

# Whole checkpoints and denoisers of other models: (a pattern some key must match, what the file is)
OTHER_MODELS = (
    (r"(model\.diffusion_model\.)?double_blocks\..*", "FLUX"),
    (r"(model\.diffusion_model\.)?joint_blocks\..*", "a Stable Diffusion 3 without its text encoders"),
    (r"(down_blocks|mid_block|up_blocks)\..*attn2\..*", "a denoiser (U-Net) alone"),
    (r"(model\.diffusion_model\.|(input|output)_blocks\.).*", "a denoiser of another kind"),
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A family of checkpoints, and what is particular about drawing with it.

    Attributes:
        pipelines: how the names of diffusers' pipelines begin.
        format: of its latents, where no config and no VAE say otherwise.
        guidance: what is usual.
        guided_by: the name that it has in the pipelines' calls; None: a part of the folder says how much there is.
        negative: whether they take negative prompts.
        nothing: the negative prompt without which there is no guidance.
        given: what they are called with besides.
        repo: on the hub, with the configurations of its parts; None: files do not tell which.
        tasks: further pipelines, which start from a picture: "Img2Img", "Inpaint".
        samplers: whether others than the checkpoint's own are known to work.
        denoiser: the part that it is.
        flow: whether it learned a rectified flow; its pipelines from pictures take a size, and round steps up.
        patch: latents along a side of what the denoiser takes as one.
        rows: latents along a side of one row of what its pipelines call latents; 0: those are maps.
        vae: class of its VAE, as usual.
        frames: whether that is one of videos.
        alpha: whether pictures are RGBA.
        size: height and width of pictures where none are asked for; None: those that the denoiser's config says.
        reads: its tokenizer, and the number of tokens that are read (None: as that says); None: it is not known.
        narrow: dtype on an accelerator.
    """

    name: str
    title: str
    pipelines: str
    format: LatentFormat | None
    guidance: float
    guided_by: str | None = "guidance_scale"
    negative: bool = True
    nothing: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    repo: str | None = None
    inpainting: str | None = None
    tasks: tuple[str, ...] = ("Img2Img", "Inpaint")
    samplers: bool = False
    denoiser: Literal["unet", "transformer"] = "transformer"
    flow: bool = True
    patch: int = 2
    rows: int = 0
    vae: str = "AutoencoderKL"
    frames: bool = False
    alpha: bool = False
    size: tuple[int, int] | None = (1024, 1024)
    reads: tuple[str, int | None] | None = None
    narrow: Literal["float16", "bfloat16"] = "bfloat16"


_UNET: Mapping[str, Any] = {
    "denoiser": "unet", "flow": False, "patch": 1, "samplers": True, "size": None, "reads": ("tokenizer", None),
    "narrow": "float16",
}  # fmt: skip

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            name="sd1",
            title="Stable Diffusion 1",
            pipelines="StableDiffusion",
            format=KNOWN["sd1"],
            guidance=7.5,
            repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
            inpainting="stable-diffusion-v1-5/stable-diffusion-inpainting",
            **_UNET,
        ),
        Kind(
            name="sd2",
            title="Stable Diffusion 2",
            pipelines="StableDiffusion",
            format=KNOWN["sd1"],
            guidance=7.5,
            inpainting="stabilityai/stable-diffusion-2-inpainting",
            **_UNET,
        ),
        Kind(
            name="sdxl",
            title="SDXL",
            pipelines="StableDiffusionXL",
            format=KNOWN["sdxl"],
            guidance=5.0,
            repo="stabilityai/stable-diffusion-xl-base-1.0",
            inpainting="diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
            **_UNET,
        ),
        Kind(
            name="sd3",
            title="Stable Diffusion 3",
            pipelines="StableDiffusion3",
            format=KNOWN["sd3"],
            guidance=7.0,
            repo="stabilityai/stable-diffusion-3-medium-diffusers",
            samplers=True,
            size=None,
            reads=("tokenizer", None),
            narrow="float16",
        ),
        Kind(
            name="flux",
            title="FLUX.1",
            pipelines="Flux",
            format=KNOWN["flux"],
            guidance=3.5,
            negative=False,
            rows=2,
            reads=("tokenizer_2", 512),
        ),
        Kind(
            name="flux2",
            title="FLUX.2",
            pipelines="Flux2",
            vae="AutoencoderKLFlux2",
            format=None,
            guidance=4.0,
            negative=False,
            tasks=(),
            rows=1,
        ),
        Kind(
            name="flux2-klein",
            title="FLUX.2 klein",
            pipelines="Flux2Klein",
            vae="AutoencoderKLFlux2",
            format=None,
            guidance=4.0,
            negative=False,
            tasks=(),
            rows=1,
        ),
        Kind(
            name="z-image",
            title="Z-Image",
            pipelines="ZImage",
            format=KNOWN["flux"],
            guidance=5.0,
        ),
        Kind(
            name="qwen-image",
            title="Qwen-Image",
            pipelines="QwenImage",
            vae="AutoencoderKLQwenImage",
            format=KNOWN["wan2.1"],
            guidance=4.0,
            guided_by="true_cfg_scale",
            nothing=" ",
            rows=2,
            frames=True,
        ),
        Kind(
            name="qwen-image-2.1",
            title="Qwen-Image 2.1",
            pipelines="QwenImage21",
            vae="AutoencoderKLQwenImage21",
            format=KNOWN["qwen-image-2.1"],
            guidance=1.0,
            guided_by="true_cfg_scale",
            nothing=" ",
            tasks=(),
            rows=1,
            frames=True,
            alpha=True,
        ),
        Kind(
            name="wan",
            title="Wan",
            pipelines="Wan",
            vae="AutoencoderKLWan",
            format=KNOWN["wan2.1"],
            guidance=5.0,
            given={"num_frames": 1},
            tasks=(),
            frames=True,
            size=(480, 832),
            reads=("tokenizer", 512),
        ),
        Kind(
            name="sana",
            title="SANA",
            pipelines="Sana",
            vae="AutoencoderDC",
            format=KNOWN["sana"],
            guidance=4.5,
            given={"use_resolution_binning": False},
            tasks=(),
            patch=1,
            size=None,
        ),
        Kind(
            name="hunyuan-image",
            title="HunyuanImage",
            pipelines="HunyuanImage",
            vae="AutoencoderKLHunyuanImage",
            format=KNOWN["hunyuan-image"],
            guidance=3.5,
            guided_by=None,
            tasks=(),
            patch=1,
            size=(2048, 2048),
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """A checkpoint, as told before anything heavy is loaded."""

    kind: Kind
    channels: int  # of its latents
    inpainting: bool  # the denoiser also sees a mask and the picture around it
    has_vae: bool
    repo: str | None = None  # with the configurations of its parts, for a single file
    without: tuple[str, ...] = ()  # parts that are left out
    scheduler: Mapping[str, Any] | None = None  # what the file itself says of its schedule


def detect_file(shapes: Shapes) -> Found:
    """What a single file holds, told from its tensors' names and shapes.

    Raises:
        WeightsError: if it is no whole checkpoint of a known kind; says what it is, if that can be told.
    """

    def has(start: str) -> bool:
        return any(key.startswith(start) for key in shapes)

    has_vae = any(re.fullmatch(r"(first_stage_model|vae)\.decoder\.conv_in\.weight", key) for key in shapes)
    if has("model.diffusion_model.joint_blocks.") and has("text_encoders.clip_"):
        if not (has("text_encoders.clip_l.") and has("text_encoders.clip_g.")):
            raise WeightsError(f"it lacks one of its two CLIP text encoders, and {EXPECTED}")
        block = "model.diffusion_model.joint_blocks"
        large, medium = has(f"{block}.37."), has(f"{block}.0.x_block.attn2.")
        size = "3.5-large" if large else "3.5-medium" if medium else "3-medium-diffusers"
        return Found(
            kind=KINDS["sd3"],
            channels=_axis(shapes, "model.diffusion_model.x_embedder.proj.weight"),
            inpainting=False,
            has_vae=has_vae,
            repo=f"stabilityai/stable-diffusion-{size}",
            without=() if has("text_encoders.t5xxl.") else ("text_encoder_3", "tokenizer_3"),
        )
    if UNET in shapes:
        if has("conditioner.embedders.1.model."):
            kind = KINDS["sdxl"]
        elif has("conditioner.embedders.0.model."):
            raise WeightsError(f"it holds the refiner of SDXL, which draws nothing by itself, and {EXPECTED}")
        elif has("cond_stage_model.transformer."):
            kind = KINDS["sd1"]
        elif has("cond_stage_model.model."):
            kind = KINDS["sd2"]
        else:
            raise WeightsError(f"it holds a denoiser (U-Net) without its text encoder, and {EXPECTED}")
        channels = _axis(shapes, "model.diffusion_model.out.2.weight", 0)
        inputs = _axis(shapes, UNET)
        schedule: dict[str, Any] = {}
        if "v_pred" in shapes:  # empty tensors by which fine-tunes of SDXL say what they predict
            schedule["prediction_type"] = "v_prediction"
        if "ztsnr" in shapes:
            schedule |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        inpainting = _inpainting(inputs, channels)
        return Found(
            kind=kind,
            channels=channels,
            inpainting=inpainting,
            has_vae=has_vae,
            repo=kind.inpainting if inpainting else kind.repo,
            scheduler=schedule or None,
        )
    if any(re.fullmatch(r"(.*\.)?decoder\.conv_in\.weight", key) for key in shapes) and not has("model."):
        raise WeightsError(f"it holds a VAE alone, and {EXPECTED}; a VAE goes with --vae")
    lora, controlnet, *rest = OTHERS
    for pattern, what in (lora, controlnet, *OTHER_MODELS, *rest):
        if any(re.fullmatch(pattern, key) for key in shapes):
            raise WeightsError(f"it holds {what}, and {EXPECTED}")
    raise WeightsError(f"it holds none of the tensors of a checkpoint, and {EXPECTED}")


def detect_folder(folder: Path) -> Found:
    """What a diffusers folder holds, told from its configurations.

    Raises:
        WeightsError: if it is no folder of a known pipeline.
    """
    if not (folder / "model_index.json").is_file():
        raise WeightsError(f"there is no model_index.json in this folder, and {EXPECTED}")
    name = class_name(folder)
    stem, task = _stem(name)
    kind = next((kind for kind in KINDS.values() if kind.pipelines == stem and (not task or task in kind.tasks)), None)
    if kind is None:
        raise WeightsError(f"it holds a {name}, and {EXPECTED}")
    config = read_json(folder / kind.denoiser / "config.json")
    if kind.name == "sd1" and config.get("cross_attention_dim") == 1024:
        kind = KINDS["sd2"]
    usual = config.get("in_channels") or (kind.format.channels if kind.format else None)
    inputs = _channels(config.get("in_channels", usual), "in_channels")
    channels = inputs // max(1, kind.rows) ** 2
    inpainting = False
    if kind.denoiser == "unet":
        channels = _channels(config.get("out_channels") or usual, "out_channels")
        inpainting = _inpainting(inputs, channels)
    has_vae = (folder / "vae" / "config.json").is_file()
    return Found(kind=kind, channels=channels, inpainting=inpainting, has_vae=has_vae)


def _stem(name: str) -> tuple[str, str]:
    """How a pipeline's name begins, and its task: "" where it draws from words alone."""
    match = re.fullmatch(r"(.+?)(Img2Img|Inpaint|)Pipeline", name)
    return (match[1], match[2]) if match else (name, "")


def class_name(folder: Path) -> str:
    """The pipeline that a folder says it holds.

    Raises:
        WeightsError: its index is missing, damaged or names none.
    """
    name = read_json(folder / "model_index.json").get("_class_name")
    if not isinstance(name, str) or not name.isidentifier():
        raise WeightsError(f"its model_index.json names no pipeline (_class_name is {shown(name)}); fetch it again")
    return name


def _channels(value: Any, name: str) -> int:
    try:
        return whole(value, name, 1, MOST_CHANNELS)
    except TextError as error:
        raise WeightsError(f"the config.json of its denoiser can't be: {error}; fetch it again") from None


def _inpainting(inputs: int, channels: int) -> bool:
    if inputs in (channels, 2 * channels + 1):
        return inputs != channels
    what = OTHER_INPUTS.get(inputs, f"a model whose denoiser takes {inputs} channels")
    raise WeightsError(f"it holds {what}, and {EXPECTED}")


def _axis(shapes: Shapes, key: str, axis: int = 1) -> int:
    if len(shapes.get(key, ())) < 2:
        raise WeightsError(f"{key} is missing, so it is not a whole checkpoint")
    return shapes[key][axis]


def read_json(path: Path) -> dict[str, Any]:
    """A configuration of a pipeline's part.

    Raises:
        WeightsError: it is missing, or no JSON object.
    """
    try:
        return json_table(path.read_bytes())
    except OSError as error:
        reason = error.strerror
    except TextError as error:
        reason = str(error)
    raise WeightsError(f"its {path.parent.name}/{path.name} is missing or damaged ({reason}); fetch it again")
