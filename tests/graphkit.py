"""Small VAEs of diffusers as ONNX and OpenVINO files, and what those programs make of the same input."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import fill, import_diffusers
from torch import Tensor, nn

KL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "latent_channels": 3,
    "norm_num_groups": 4,
}
SHAPES = {"encoder": (1, 3, 16, 24), "decoder": (1, 3, 8, 12)}
INPUTS = {"encoder": "sample", "decoder": "latent_sample"}


def vae(seed: int = 0, **changes: Any) -> Any:
    """diffusers' AutoencoderKL with random weights, norms included."""
    return fill(import_diffusers().AutoencoderKL(**{**KL, **changes}), seed)


class Encoder(nn.Module):
    """Pixels -> what optimum's vae_encoder gives: the posterior's parameters."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.vae = whole

    def forward(self, sample: Tensor) -> Tensor:
        return self.vae.encode(sample).latent_dist.parameters


class Sampler(nn.Module):
    """Pixels -> a sample of the posterior, as older exports give it."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.vae = whole

    def forward(self, sample: Tensor) -> Tensor:
        return self.vae.encode(sample).latent_dist.sample()


class Decoder(nn.Module):
    """Latents -> pixels."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.vae = whole

    def forward(self, latent_sample: Tensor) -> Tensor:
        return self.vae.decode(latent_sample).sample


HALVES = {"encoder": Encoder, "decoder": Decoder}


def export(
    module: nn.Module, side: str, path: Path, *, dynamo: bool = False, shape: tuple[int, ...] = (), **more: Any
) -> Path:
    """An ONNX file of half a VAE, by torch's exporter."""
    pytest.importorskip("onnx")
    if dynamo:
        pytest.importorskip("onnxscript")
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype = next(module.parameters()).dtype
    options: dict[str, Any] = {
        "dynamo": dynamo,
        "input_names": [INPUTS[side]],
        "output_names": ["out"],
        "verbose": False,
    }
    if not dynamo:
        options["opset_version"] = 17
        options["dynamic_axes"] = {INPUTS[side]: {0: "batch", 2: "height", 3: "width"}}
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module, (torch.randn(shape or SHAPES[side], dtype=dtype),), str(path), **{**options, **more}
            )
    finally:
        logging.disable(logging.NOTSET)
    return path


def run_onnx(path: Path, given: Tensor, *, plain: bool = False) -> Tensor:
    """What onnxruntime makes of it; `plain`, as the graph says, and not in fewer bits where it finds some."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    if plain:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (made, *_) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
    return torch.from_numpy(np.asarray(made)).float()


def run_openvino(path: Path, given: Tensor) -> Tensor:
    """What OpenVINO makes of it, in float32."""
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(np.array(next(iter(compiled(given.numpy()).values())))).float()


def tensors(module: Any, side: str) -> dict[str, Tensor]:
    """One half's weights under diffusers' names."""
    own = (f"{side}.", "quant_conv." if side == "encoder" else "post_quant_conv.")
    return {key: value for key, value in module.state_dict().items() if key.startswith(own)}
