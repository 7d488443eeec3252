"""A model file of ONNX or OpenVINO as named tensors, as diffusers' files of the same network have them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from calotype.damage import quoted
from calotype.errors import WeightsError
from calotype.families.kl.names import diffusers_to_ldm, ldm_to_diffusers
from calotype.weights.graphs import kl, tiny
from calotype.weights.graphs.graph import Graph
from calotype.weights.graphs.onnx_file import read_onnx
from calotype.weights.graphs.openvino_file import read_openvino
from calotype.weights.graphs.reading import terms_of
from calotype.weights.graphs.walk import Half, Unfit, Weight
from calotype.weights.mapped import dtype_name
from calotype.weights.translated import TOLD, Made, Translated

# Who takes inputs of these names
OTHERS = (
    (r"(.*_)?input_ids", "a text encoder"),
    (r"(timestep|t|encoder_hidden_states|text_embeds)", "a denoiser (U-Net or transformer)"),
    (r"(pixel_values|clip_input)", "a vision encoder (CLIP), or a safety checker"),
)
# Operations that compute in few bits themselves, and what to do
QUANTISED = re.compile(
    r"(.*\.)?(QuantizeLinear|DynamicQuantize\w+|\w+Integer\w*|QLinear\w+|QGemm|MatMulNBits|MatMulBnb4)"
)

# A name that a weight has kept from diffusers or latent-diffusion
NAMED = re.compile(
    r"(?:.*\.)?((?:(?:encoder|decoder)\.(?:conv_in|conv_out|conv_norm_out|norm_out|mid|mid_block|down|up|down_blocks|"
    r"up_blocks)|(?:post_)?quant_conv)(?:\.[\w.]+)?\.(?:weight|bias))"
)


def open_onnx(path: Path) -> Translated:
    """The VAE in an ONNX model.

    Raises:
        WeightsError: the file is damaged, or its graph is of no VAE that is read.
    """
    return _opened(read_onnx(path), path)


def open_openvino(path: Path) -> Translated:
    """The VAE in a model of OpenVINO, given its .xml.

    Raises:
        WeightsError: as `open_onnx`.
    """
    return _opened(read_openvino(path), path)


def _opened(graph: Graph, path: Path) -> Translated:
    _require_vae(graph)
    found = _found(graph)
    weights = {name: weight for half in found for name, weight in half.weights.items()}
    _require_agreement(weights)
    groups = {half.groups for half in found if half.groups is not None}
    activations = {half.activation for half in found}
    if len(groups) > 1 or len(activations) > 1:
        raise WeightsError("its encoder and its decoder differ in their norms or activations: they are not of one VAE")
    told = {"norm_groups": groups.pop(), "activation": activations.pop()} if groups else {}
    types = Counter(weight.fixed.dtype for weight in weights.values() if weight.fixed)
    usual = next((dtype for dtype, _ in types.most_common() if dtype.is_floating_point), torch.float32)
    return Translated(
        {name: _made(weight, usual) for name, weight in weights.items()},
        kind=graph.kind,
        metadata={TOLD: json.dumps(told)},
        notices=tuple(f"{path}: {said}" for said in _notices(found, weights)),
    )


def _require_vae(graph: Graph) -> None:
    """Checks that the graph is none of a pipeline's other networks.

    Raises:
        WeightsError: it is.
    """
    names = [graph.metadata.get(name, name).lower() for name in graph.inputs]
    for pattern, what in OTHERS:
        if named := [name for name in names if re.fullmatch(pattern, name)]:
            raise WeightsError(
                f"this is {what} (its graph takes {quoted(named[0], 60)!r}), not a VAE; give the VAE's file"
            )
    if bad := next((node for node in graph.nodes if QUANTISED.fullmatch(node.op)), None):
        raise WeightsError(
            f"its graph computes in few bits ({bad}), and only weights that are widened before they are computed with "
            f"(DequantizeLinear, FakeQuantize) are read; get the model as it was before it was quantised"
        )


def _found(graph: Graph) -> list[Half]:
    outputs = terms_of(graph)
    try:
        return kl.halves(outputs)
    except Unfit as unfit:
        reason = unfit
    try:
        return [tiny.half(outputs)]
    except Unfit:
        more = "; it has operations of its own, which onnx.inliner.inline_local_functions replaces" * graph.functions
        raise WeightsError(
            f"its graph is not that of an AutoencoderKL or an AutoencoderTiny, the only ones that are read from "
            f"{graph.kind} ({quoted(reason, 400)}){more}; get the weights that it was exported from, as safetensors"
        ) from None


def _made(weight: Weight, usual: torch.dtype) -> Made:
    """A tensor; one that the graph leaves out is of the usual type."""
    fixed, shape = weight.fixed, weight.shape
    if fixed is None:
        return Made(shape, dtype_name(usual), lambda: torch.full(shape, weight.usual, dtype=usual))

    def read() -> Tensor:
        values = fixed.read()
        if weight.turned:
            values = values.t()
        return (values.expand(shape) if values.numel() == 1 else values.reshape(shape)).contiguous()

    return Made(shape, fixed.stored, read)


def _require_agreement(weights: dict[str, Weight]) -> None:
    """Checks that names that weights have kept are those of their places.

    Raises:
        WeightsError: one is another; but exporters keep equal numbers once, under one name.
    """
    levels = len({name.split(".")[2] for name in weights if re.match(r"(en|de)coder\.(down|up)_blocks\.", name)})
    used = Counter(id(weight.fixed.sources[0]) for weight in weights.values() if weight.fixed and weight.fixed.sources)
    for name, weight in weights.items():
        if weight.fixed is None or not weight.fixed.sources or used[id(weight.fixed.sources[0])] > 1:
            continue
        said = weight.fixed.sources[0].name
        match = NAMED.fullmatch(re.sub(r"(_compressed|_quantized|_scaled)$", "", said))
        if match is None:
            continue
        ours = diffusers_to_ldm(match[1], levels)
        theirs = (ldm_to_diffusers(ours, levels) if ours else None) or ldm_to_diffusers(match[1], levels) or match[1]
        if theirs != name:
            raise WeightsError(
                f"its graph contradicts its names: {quoted(said, 120)!r} stands where {name} does; export it anew"
            )


def _notices(found: list[Half], weights: dict[str, Weight]) -> list[str]:
    notices = []
    quantised = [weight.fixed for weight in weights.values() if weight.fixed and weight.fixed.quantised]
    if quantised:
        kinds = ", ".join(sorted({fixed.stored for fixed in quantised}))
        notices.append(
            f"{len(quantised)} of {len(weights)} tensors are stored in {kinds} with scales and were widened as its "
            f"graph widens them; what was lost when they were made is not in the file."
        )
    for half in found:
        if half.around:
            what = "latents" if half.side == "encoder" else "pixels"
            notices.append(
                f"what its graph does to pixels and latents around the {half.side} itself ({', '.join(half.around)}) "
                f"was left out: {what} are its own, before any of it."
            )
    return notices
