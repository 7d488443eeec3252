"""Small random checkpoints of every kind, as parts and in the original layout; and what is drawn with them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from support import NARROW, import_diffusers, kl, pictures, tensors_of
from torch import Tensor

from calotype.draw.checkpoints import Checkpoint, Drawn
from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import KNOWN
from calotype.pixels import from_array, to_pil
from calotype.weights.save import save_weights

WIDE = AutoencoderConfig(ch=32, z_channels=16, quant_conv=False)
KINDS = ("sd1", "sd2", "sdxl", "sd3")
SIZE = (64, 80)


# --- small random models, and folders of them ---

WORDS = ["<|startoftext|>", "<|endoftext|>", "a</w>", "c", "a", "t", "t</w>", "at</w>", "cat</w>", "d", "o", "g</w>"]

UNET: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def tokenizer(folder: Path) -> Any:
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\na t</w>\nc at</w>\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 8}))
    return transformers.CLIPTokenizer.from_pretrained(folder)


def text_encoder(width: int, name: str = "CLIPTextModel") -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=32,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return getattr(transformers, name)(config).eval()


def t5() -> tuple[Any, Any]:
    """A T5 and its tokenizer, which knows letters."""
    import tokenizers
    import transformers

    pieces = [(piece, -1.0) for piece in ("<pad>", "</s>", "<unk>", "\u2581", "a", "c", "d", "g", "o", "t")]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )
    torch.manual_seed(9)
    config = transformers.T5Config(
        vocab_size=len(pieces), d_model=48, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5EncoderModel(config).eval(), words


def parts_of(kind: str, diffusers: Any, folder: Path, **unet: Any) -> dict[str, Any]:
    """A kind's parts but the VAE, with random weights."""
    torch.manual_seed(KINDS.index(kind))
    words = tokenizer(folder)
    if kind == "sd3":
        first, second = (text_encoder(n, "CLIPTextModelWithProjection") for n in (16, 32))
        with torch.no_grad():  # a single file of Stable Diffusion 3 has no other
            first.text_projection.weight.copy_(torch.eye(16))
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            num_layers=2,
            attention_head_dim=4,
            num_attention_heads=4,
            in_channels=16,
            out_channels=16,
            joint_attention_dim=48,
            caption_projection_dim=16,
            pooled_projection_dim=48,
            pos_embed_max_size=8,
        )
        return {
            "transformer": transformer,
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            "text_encoder": first,
            "text_encoder_2": second,
            "text_encoder_3": None,
            "tokenizer": words,
            "tokenizer_2": words,
            "tokenizer_3": None,
        }
    if kind == "sdxl":
        return {
            "unet": diffusers.UNet2DConditionModel(
                **UNET,
                **unet,
                cross_attention_dim=48,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 32,
            ),
            "text_encoder": text_encoder(16),
            "text_encoder_2": text_encoder(32, "CLIPTextModelWithProjection"),
            "tokenizer": words,
            "tokenizer_2": words,
            "scheduler": diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading"),
        }
    prediction = "v_prediction" if kind == "sd2" else "epsilon"
    schedulers = {"sd1": diffusers.PNDMScheduler, "sd2": diffusers.DDIMScheduler}
    more = {"skip_prk_steps": True} if kind == "sd1" else {"clip_sample": False}
    return {
        "unet": diffusers.UNet2DConditionModel(**UNET, **unet, cross_attention_dim=16),
        "text_encoder": text_encoder(16),
        "tokenizer": words,
        "scheduler": schedulers[kind](**SCHEDULE, **more, set_alpha_to_one=False, prediction_type=prediction),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def saved(kind: str, folder: Path) -> Path:
    """A checkpoint with all its parts as diffusers saves it, in a folder of its kind's name."""
    diffusers = import_diffusers()
    save_weights(vae_weights(kind), folder / "vaes" / kind, layout="diffusers", format_=format_of(kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vae = diffusers.AutoencoderKL.from_pretrained(folder / "vaes" / kind)
        parts = parts_of(kind, diffusers, folder / "words")
        getattr(diffusers, f"{STEMS[kind]}Pipeline")(vae=vae, **parts).save_pretrained(folder / kind)
    return folder / kind


def vae_weights(kind: str, seed: int = 0) -> Any:
    """A VAE whose posterior is narrow, as trained ones are."""
    module = kl(WIDE if kind == "sd3" else NARROW, seed)
    last = module.quant_conv if kind != "sd3" else module.encoder.conv_out
    with torch.no_grad():
        half = last.weight.shape[0] // 2
        last.weight[half:] = 0.0
        last.bias[half:] = -18.0
    return module


def format_of(kind: str) -> Any:
    return KNOWN["sd1" if kind == "sd2" else kind]


STEMS = {"sd1": "StableDiffusion", "sd2": "StableDiffusion", "sdxl": "StableDiffusionXL", "sd3": "StableDiffusion3"}


# --- the original layout, by a mapping of our own ---


def unet_to_original(state: dict[str, Tensor], layers: int = 1) -> dict[str, Tensor]:
    top = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    resnet = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    result = {}
    for key, tensor in state.items():
        parts = key.split(".")
        stem, leaf = ".".join(parts[:-1]), parts[-1]
        if stem in top:
            name = top[stem]
        elif parts[0] == "mid_block":
            index = 1 if parts[1] == "attentions" else 2 * int(parts[2])
            rest = parts[3:-1] if parts[1] == "attentions" else [resnet[parts[3]]]
            name = ".".join(["middle_block", str(index), *rest])
        else:
            up = parts[0] == "up_blocks"
            first = int(parts[1]) * (layers + 1) + (0 if up else 1)
            side = "output_blocks" if up else "input_blocks"
            if parts[2] == "downsamplers":
                name = f"{side}.{first + layers}.0.op"
            elif parts[2] == "upsamplers":
                attended = any(other.startswith(f"up_blocks.{parts[1]}.attentions") for other in state)
                name = f"{side}.{first + layers}.{2 if attended else 1}.conv"
            else:
                rest = parts[4:-1] if parts[2] == "attentions" else [resnet[parts[4]]]
                name = ".".join([side, str(first + int(parts[3])), str(int(parts[2] == "attentions")), *rest])
        result[f"model.diffusion_model.{name}.{leaf}"] = tensor
    return result


def hf_clip(model: Any) -> dict[str, Tensor]:
    """Keys as transformers wrote them when these layouts were made."""
    own = ("text_model.", "text_projection.")
    return {key if key.startswith(own) else f"text_model.{key}": value for key, value in model.state_dict().items()}


def open_clip(model: Any) -> dict[str, Tensor]:
    result = {}
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    state = hf_clip(model)
    for key, value in state.items():
        if key == "text_projection.weight":
            result["text_projection"] = value.T.contiguous()
        elif key.startswith("text_model.encoder.layers."):
            index, rest = key.removeprefix("text_model.encoder.layers.").split(".", 1)
            block = f"transformer.resblocks.{index}"
            stem, leaf = rest.rsplit(".", 1)
            if stem == "self_attn.q_proj":
                three = [state[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                result[f"{block}.attn.in_proj_{leaf}"] = torch.cat(three)
            elif stem == "self_attn.out_proj":
                result[f"{block}.attn.out_proj.{leaf}"] = value
            elif stem in names:
                result[f"{block}.{names[stem]}.{leaf}"] = value
        else:
            short = key.removeprefix("text_model.").removeprefix("embeddings.").replace("final_layer_norm", "ln_final")
            result[short.replace("position_embedding.weight", "positional_embedding")] = value
    return result


def sd3_to_original(state: dict[str, Tensor], layers: int = 2) -> dict[str, Tensor]:
    def swapped(value: Tensor) -> Tensor:
        return torch.cat(value.chunk(2)[::-1])

    top = {
        "pos_embed.pos_embed": "pos_embed",
        "pos_embed.proj": "x_embedder.proj",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "context_embedder": "context_embedder",
        "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    }
    block = {
        "attn.to_out.0": "x_block.attn.proj",
        "attn.to_add_out": "context_block.attn.proj",
        "norm1.linear": "x_block.adaLN_modulation.1",
        "norm1_context.linear": "context_block.adaLN_modulation.1",
        "ff.net.0.proj": "x_block.mlp.fc1",
        "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1",
        "ff_context.net.2": "context_block.mlp.fc2",
    }
    result = {}
    for key, value in state.items():
        stem, leaf = key.rsplit(".", 1)
        if key in top:
            result[top[key]] = value
        elif stem in top:
            result[f"{top[stem]}.{leaf}"] = swapped(value) if stem == "norm_out.linear" else value
        else:
            _, index, rest = stem.split(".", 2)
            start = f"joint_blocks.{index}"
            if rest in block:
                last = rest == "norm1_context.linear" and int(index) == layers - 1
                result[f"{start}.{block[rest]}.{leaf}"] = swapped(value) if last else value
            elif rest == "attn.to_q":
                three = [state[key.replace("to_q", name)] for name in ("to_q", "to_k", "to_v")]
                result[f"{start}.x_block.attn.qkv.{leaf}"] = torch.cat(three)
            elif rest == "attn.add_q_proj":
                three = [state[key.replace("add_q", f"add_{letter}")] for letter in "qkv"]
                result[f"{start}.context_block.attn.qkv.{leaf}"] = torch.cat(three)
    return {f"model.diffusion_model.{key}": value for key, value in result.items()}


def original(kind: str, pipe: Any, vae_seed: int = 0) -> dict[str, Tensor]:
    """A pipeline's weights as one file."""

    def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"{prefix}{key}": value for key, value in tensors.items()}

    tensors = under("first_stage_model.", tensors_of(vae_weights(kind, vae_seed)))
    if kind == "sd3":
        tensors |= sd3_to_original(pipe.transformer.state_dict())
        first = {key: value for key, value in hf_clip(pipe.text_encoder).items() if "projection" not in key}
        tensors |= under("text_encoders.clip_l.transformer.", first)
        tensors |= under("text_encoders.clip_g.transformer.", hf_clip(pipe.text_encoder_2))
    else:
        tensors |= unet_to_original(pipe.unet.state_dict())
    if kind == "sd1":
        tensors |= under("cond_stage_model.transformer.", hf_clip(pipe.text_encoder))
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(8)[None]
        tensors["model_ema.decay"] = torch.tensor(0.9999)
    elif kind == "sd2":
        tensors |= under("cond_stage_model.model.", open_clip(pipe.text_encoder))
        tensors["cond_stage_model.model.text_projection"] = torch.eye(16)
    elif kind == "sdxl":
        tensors |= under("conditioner.embedders.0.transformer.", hf_clip(pipe.text_encoder))
        tensors |= under("conditioner.embedders.1.model.", open_clip(pipe.text_encoder_2))
        tensors["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
        tensors["denoiser.sigmas"] = torch.ones(1000)
    return {key: value.detach().clone().contiguous() for key, value in tensors.items()}


def only_configs(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    return target


# --- what is drawn with them ---


def drawn(checkpoint: Checkpoint, prompts: Sequence[str] = ("a cat",), **arguments: Any) -> list[Drawn]:
    given = {"seeds": range(3, 3 + len(prompts)), "steps": 3, "size": SIZE} | arguments
    return list(checkpoint.draw(prompts, **given))


def expected_latents(pipe: Any, prompts: Sequence[str] = ("a cat",), **arguments: Any) -> Tensor:
    """What diffusers makes with the same seeds."""
    generators = [torch.Generator().manual_seed(3 + i) for i in range(len(prompts))]
    given = {"num_inference_steps": 3, "output_type": "latent"} | arguments
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        images: Tensor = pipe(prompt=list(prompts), generator=generators, **given).images
    return images


def array(image: Image.Image) -> Any:
    return np.asarray(image).astype(int)


def photo(height: int = 64, width: int = 80, seed: int = 0) -> Image.Image:
    return to_pil(pictures(seed, 1, height, width)[0])


def redrawn(checkpoint: Checkpoint, images: Sequence[Image.Image], **arguments: Any) -> list[Drawn]:
    given = {"seeds": range(3, 3 + len(images)), "steps": 5} | arguments
    return list(checkpoint.redraw(images, ["a cat"] * len(images), **given))


def as_input(image: Image.Image) -> Tensor:
    return (from_array(np.asarray(image))[None] + 1) / 2
