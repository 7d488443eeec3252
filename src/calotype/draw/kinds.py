"""Which Stable Diffusion a checkpoint is, told from tensor names, shapes and configurations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calotype.errors import WeightsError
from calotype.families.face import Shapes
from calotype.families.numbers import MOST_CHANNELS
from calotype.latents import KNOWN, LatentFormat
from calotype.texts import TextError, json_table, shown, whole
from calotype.weights.others import OTHERS

EXPECTED = "a checkpoint of Stable Diffusion 1, 2, XL or 3 is expected, as one file or as a diffusers folder"
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
    """A family of checkpoints."""

    name: str
    title: str
    pipelines: str  # how the names of diffusers' pipelines begin
    format: LatentFormat  # of its latents, where no config says otherwise
    guidance: float
    repo: str | None  # on the hub, with the configurations of its parts; None: files do not tell which
    inpainting: str | None = None


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
        ),
        Kind(
            name="sd2",
            title="Stable Diffusion 2",
            pipelines="StableDiffusion",
            format=KNOWN["sd1"],
            guidance=7.5,
            repo=None,
            inpainting="stabilityai/stable-diffusion-2-inpainting",
        ),
        Kind(
            name="sdxl",
            title="SDXL",
            pipelines="StableDiffusionXL",
            format=KNOWN["sdxl"],
            guidance=5.0,
            repo="stabilityai/stable-diffusion-xl-base-1.0",
            inpainting="diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        ),
        Kind(
            name="sd3",
            title="Stable Diffusion 3",
            pipelines="StableDiffusion3",
            format=KNOWN["sd3"],
            guidance=7.0,
            repo="stabilityai/stable-diffusion-3-medium-diffusers",
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
    if not (match := re.fullmatch(r"(StableDiffusion(?:XL|3)?)(?:Img2Img|Inpaint)?Pipeline", name)):
        raise WeightsError(f"it holds a {name}, and {EXPECTED}")
    stem = match[1]
    config = read_json(folder / ("transformer" if stem == "StableDiffusion3" else "unet") / "config.json")
    kind = {"StableDiffusionXL": KINDS["sdxl"], "StableDiffusion3": KINDS["sd3"]}.get(stem)
    if kind is None:
        kind = KINDS["sd2" if config.get("cross_attention_dim") == 1024 else "sd1"]
    usual = config.get("in_channels") or kind.format.channels
    channels = _channels(config.get("out_channels") or usual, "out_channels")
    inputs = _channels(config.get("in_channels", channels), "in_channels")
    inpainting = kind.name != "sd3" and _inpainting(inputs, channels)
    has_vae = (folder / "vae" / "config.json").is_file()
    return Found(kind=kind, channels=channels, inpainting=inpainting, has_vae=has_vae)


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
