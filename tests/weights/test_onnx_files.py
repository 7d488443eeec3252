"""ONNX models as weights: every tensor by its place in the graph, and results as onnxruntime's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graphkit import HALVES, SHAPES, Decoder, Sampler, export, run_onnx, tensors, vae
from graphmade import OnnxWriter, draw, field, onnx_node, onnx_tensor, value_info
from support import SMALL, assert_close, fill, import_diffusers, kl, one_sentence, same_tensors
from torch import Tensor, nn

import calotype
from calotype.errors import WeightsError
from calotype.families.kl.config import AutoencoderConfig
from calotype.weights.container import Container, open_container
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights


def same(container: Container, expected: dict[str, Tensor]) -> None:
    """The same names, shapes and numbers, bit by bit."""
    assert container.shapes.keys() == expected.keys()
    for key, value in expected.items():
        assert container.shapes[key] == value.shape
        assert torch.equal(container.read(key).to(value.dtype), value), key


def refuse(path: Path, said: str) -> None:
    with pytest.raises(WeightsError, match=said) as caught:
        load_weights(path)
    one_sentence(str(caught.value))


def made(side: str, given: Tensor, path: Path) -> Tensor:
    """What the network that is loaded makes of a picture (its posterior's parameters) or of latents."""
    module = load_weights(path).module.float()
    if side == "decoder":
        return module.decode(given)
    return module.encode(given).moments


# torch's exporter

ATTENTION = {"down_block_types": ("AttnDownEncoderBlock2D",) * 2, "up_block_types": ("AttnUpDecoderBlock2D",) * 2}
THREE = {"block_out_channels": (8, 16, 16), "down_block_types": ("DownEncoderBlock2D",) * 3,
         "up_block_types": ("UpDecoderBlock2D",) * 3, "layers_per_block": 2}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention at levels": ATTENTION,
    "three levels of two blocks": THREE,
    "no attention": {"mid_block_add_attention": False},
    "no 1x1 convolutions": {"use_quant_conv": False, "use_post_quant_conv": False},
    "grey, mish": {"in_channels": 1, "out_channels": 1, "act_fn": "mish"},
    "gelu": {"act_fn": "gelu"},
}


def config_of(whole: Any, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**whole.config, "_class_name": "AutoencoderKL"}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("plain", "gelu"))) for name in VARIANTS]
)
def test_every_tensor_of_an_export(variant: str, tmp_path: Path) -> None:
    whole = vae(1, **VARIANTS[variant])
    for side, half in HALVES.items():
        path = export(half(whole), side, tmp_path / side / "model.onnx", shape=in_channels(whole, side))
        same(open_container(path), tensors(whole, side))
        given = torch.randn(in_channels(whole, side))
        assert_close(made(side, given, path), run_onnx(path, given))


def in_channels(whole: Any, side: str) -> tuple[int, ...]:
    n, c, *size = SHAPES[side]
    return (n, whole.config.in_channels if side == "encoder" else c, *size)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["encoder", pytest.param("decoder", marks=pytest.mark.slow)])
def test_the_newer_exporter(side: str, tmp_path: Path) -> None:
    """Its numbers lie in a file beside the model."""
    whole = vae(2)
    path = export(HALVES[side](whole), side, tmp_path / "model.onnx", dynamo=True)
    assert (tmp_path / "model.onnx.data").is_file()
    same(open_container(path), tensors(whole, side))
    given = torch.randn(SHAPES[side])
    assert_close(made(side, given, path), run_onnx(path, given))
    assert same_tensors(load_weights(tmp_path / "model.onnx.data").module, load_weights(path).module)
    (tmp_path / "model.onnx").unlink()
    refuse(tmp_path / "model.onnx.data", "numbers of an ONNX model .*not beside them; fetch it as well")


@pytest.mark.parametrize(
    "options",
    [
        {"do_constant_folding": False},
        {"opset_version": 14},
        pytest.param({"opset_version": 20}, marks=pytest.mark.slow),
        {"keep_initializers_as_inputs": True},
    ],
)
def test_other_settings_of_the_exporter(options: dict[str, Any], tmp_path: Path) -> None:
    whole = vae(3)
    path = export(Decoder(whole), "decoder", tmp_path / "model.onnx", **options)
    same(open_container(path), tensors(whole, "decoder"))


@pytest.mark.slow
def test_half_precision(tmp_path: Path) -> None:
    whole = vae(4).half()
    path = export(Decoder(whole), "decoder", tmp_path / "model.onnx")
    container = open_container(path)
    same(container, tensors(whole, "decoder"))
    assert {container.stored(key) for key in container.shapes} == {"float16"}
    assert load_weights(path).dtypes == ("float16",)


@pytest.mark.slow
def test_attention_before_torch_had_an_operation_for_it(tmp_path: Path) -> None:
    """Queries times keys by baddbmm, as diffusers' first processor has it."""
    processor = pytest.importorskip("diffusers.models.attention_processor")
    whole = vae(5)
    whole.set_attn_processor(processor.AttnProcessor())
    for side, half in HALVES.items():
        path = export(half(whole), side, tmp_path / f"{side}.onnx")
        same(open_container(path), tensors(whole, side))


def test_an_encoder_that_gives_a_sample(tmp_path: Path) -> None:
    """Its posterior's parameters are what comes before."""
    whole = vae(6)
    path = export(Sampler(whole), "encoder", tmp_path / "model.onnx")
    same(open_container(path), tensors(whole, "encoder"))
    (notice,) = load_weights(path).notices
    assert "around the encoder itself" in notice and "was left out" in notice


class Pictures(nn.Module):
    """Latents as a model has them -> pixels in [0, 1], channels last."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.vae = whole

    def forward(self, latent_sample: Tensor) -> Tensor:
        pixels = self.vae.decode(latent_sample / 0.18215).sample
        return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


@pytest.mark.slow
def test_what_a_graph_does_around_its_vae(tmp_path: Path) -> None:
    whole = vae(7)
    path = export(Pictures(whole), "decoder", tmp_path / "model.onnx")
    same(open_container(path), tensors(whole, "decoder"))
    (notice,) = load_weights(path).notices
    assert "(Div, Transpose, Clip, Add)" in notice and "pixels are its own, before any of it." in notice


class Whole(nn.Module):
    """Pixels -> latents -> pixels."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.vae = whole

    def forward(self, sample: Tensor) -> Tensor:
        return self.vae(sample).sample


@pytest.mark.slow
def test_encoder_and_decoder_in_one_graph(tmp_path: Path) -> None:
    whole = vae(8)
    path = export(Whole(whole), "encoder", tmp_path / "model.onnx")
    same(open_container(path), dict(whole.state_dict()))


@pytest.mark.slow
def test_a_tiny_autoencoder(tmp_path: Path) -> None:
    whole = fill(import_diffusers().AutoencoderTiny(latent_channels=4), 9, gain=0.7)

    class Half(nn.Module):
        def __init__(self, side: str) -> None:
            super().__init__()
            self.side = getattr(whole, side)

        def forward(self, x: Tensor) -> Tensor:
            return self.side(x)

    for side, shape in (("encoder", (1, 3, 16, 16)), ("decoder", (1, 4, 2, 3))):
        path = export(Half(side), side, tmp_path / f"{side}.onnx", shape=shape)
        own = {key: value for key, value in whole.state_dict().items() if key.startswith(side)}
        same(open_container(path), own)
        given = torch.rand(shape) * 2 - 1
        loaded = load_weights(path)
        assert loaded.module.config.kind == "taesd"
        result = loaded.module.decode(given) if side == "decoder" else loaded.module.encode(given).mean
        assert_close(result, run_onnx(path, given))


# graphs written by hand


def rewritten(path: Path, module: Any, side: str = "decoder", **how: Any) -> Path:
    path.write_bytes(draw(OnnxWriter(**how), module, side))
    return path


def diffusers_of(module: Any, side: str) -> dict[str, Tensor]:
    from support import diffusers_tensors

    own = (f"{side}.", "quant_conv." if side == "encoder" else "post_quant_conv.")
    return {key: value for key, value in diffusers_tensors(module).items() if key.startswith(own)}


@pytest.mark.slow
@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize("named", [True, False])
def test_names_are_not_needed(named: bool, side: str, tmp_path: Path) -> None:
    config = AutoencoderConfig(
        ch=8, ch_mult=(1, 2, 3), num_res_blocks=2, z_channels=2, norm_groups=4, attn_levels=(0, 2)
    )
    module = kl(config, 3)
    path = rewritten(tmp_path / "m.onnx", module, side, named=named)
    same(open_container(path), diffusers_of(module, side))
    loaded = load_weights(path)
    assert loaded.module.config.channels == (8, 16, 24)
    assert loaded.module.config.attn_levels == (0, 2)
    assert loaded.module.config.norm_groups == 4
    assert loaded.container == "ONNX" and loaded.parts == {side}
    given = torch.randn(1, 3 if side == "encoder" else 2, 16, 16)
    assert_close(made(side, given, path), run_onnx(path, given))


def test_a_vae_of_one_level(tmp_path: Path) -> None:
    module = kl(AutoencoderConfig(ch=8, ch_mult=(1,), num_res_blocks=1, z_channels=2, norm_groups=4, quant_conv=False))
    for side in ("encoder", "decoder"):
        same(open_container(rewritten(tmp_path / "m.onnx", module, side)), diffusers_of(module, side))


def test_names_that_contradict_the_graph(tmp_path: Path) -> None:
    module = kl(SMALL)
    swap = {"decoder.mid_block.resnets.0.conv1.weight": "decoder.mid_block.resnets.0.conv2.weight"}
    swap |= {new: old for old, new in swap.items()}

    class Swapped(OnnxWriter):
        def constant(self, name: str, value: Tensor) -> str:
            return super().constant(swap.get(name, name), value)

    path = tmp_path / "m.onnx"
    path.write_bytes(draw(Swapped(), module, "decoder"))
    refuse(
        path, r"'decoder.mid_block.resnets.0.conv2.weight' stands where decoder.mid_block.resnets.0.conv1.weight does"
    )


def test_names_that_equal_numbers_share(tmp_path: Path) -> None:
    """Exporters keep equal numbers once, under the first's name."""
    module = kl(SMALL)
    with torch.no_grad():
        for name in ("block_1.conv1", "block_1.conv2", "block_2.conv1"):
            module.decoder.mid.get_submodule(name).bias.zero_()

    class Once(OnnxWriter):
        def constant(self, name: str, value: Tensor) -> str:
            known = "decoder.mid_block.resnets.0.conv1.bias"
            if name.endswith(".bias") and not value.any() and name != known:
                return known
            return super().constant(name, value)

    path = tmp_path / "m.onnx"
    path.write_bytes(draw(Once(), module, "decoder"))
    same(open_container(path), diffusers_of(module, "decoder"))


def quantised(bits: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]) -> type[OnnxWriter]:
    """A writer that keeps kernels and matrices in eight bits, with scales that the graph multiplies them by."""

    class Writer(OnnxWriter):
        def constant(self, name: str, value: Tensor) -> str:
            if value.ndim < 2 or not value.is_floating_point() or value.numel() < 64 or value.shape[-1] == 1:
                return super().constant(name, value)
            parts = [super(Writer, self).constant(f"{name}_{i}" if name else "", v) for i, v in enumerate(bits(value))]
            return self.node("DequantizeLinear", *parts, axis=0)

    return Writer


def per_channel(value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = value.abs().amax(dim=tuple(range(1, value.ndim))) / 127
    rounded = torch.round(value / scale.reshape(-1, *[1] * (value.ndim - 1))).to(torch.int8)
    return rounded, scale, torch.zeros(len(scale), dtype=torch.int8)


def per_tensor(value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = (value.max() - value.min()) / 255
    zero = torch.round(-value.min() / scale)
    return torch.round(value / scale + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


@pytest.mark.parametrize(("bits", "kind"), [(per_channel, "int8"), (per_tensor, "uint8")])
def test_weights_in_eight_bits(bits: Any, kind: str, tmp_path: Path) -> None:
    module = kl(SMALL, 4)
    path = tmp_path / "m.onnx"
    path.write_bytes(draw(quantised(bits)(), module, "decoder"))
    loaded = load_weights(path)
    assert loaded.dtypes == ("float32", kind)
    assert f"are stored in {kind} with scales and were widened" in loaded.notices[0]
    given = torch.randn(1, 4, 6, 8)
    assert_close(loaded.module.decode(given), run_onnx(path, given, plain=True))
    assert not same_tensors(loaded.module, module)


def test_numbers_in_typed_fields(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        module = kl(SMALL).to(dtype)

        def typed(name: str, value: Tensor) -> bytes:
            return onnx_tensor(name, value, typed=True)

        path = rewritten(tmp_path / "m.onnx", module, stored=typed)
        same(open_container(path), diffusers_of(module, "decoder"))


@pytest.mark.parametrize(
    ("op", "inputs", "said"),
    [
        ("DynamicQuantizeLinear", ["x"], r"computes in few bits \(DynamicQuantizeLinear \(out\)\)"),
        ("QuantizeLinear", ["x", "s"], "computes in few bits"),
        ("MatMulInteger", ["x", "s"], "computes in few bits"),
        ("QLinearConv", ["x", "s"], "computes in few bits"),
        ("MatMulNBits", ["x", "s"], r"computes in few bits \(com.microsoft.MatMulNBits \(out\)\)"),
        ("NhwcConv", ["x", "s"], r"comes from com.microsoft.NhwcConv \(out\)"),
        ("Loop", ["x"], r"comes from Loop \(out\)"),
    ],
)
def test_what_is_refused_by_name(op: str, inputs: list[str], said: str, tmp_path: Path) -> None:
    domain = "com.microsoft" if op in ("MatMulNBits", "NhwcConv") else ""
    graph = field(1, onnx_node(op, inputs, "out", {}, domain)) + field(5, onnx_tensor("s", torch.ones(1)))
    graph += field(11, value_info("x")) + field(12, value_info("out"))
    (tmp_path / "m.onnx").write_bytes(field(1, 8) + field(2, "x") + field(7, graph) + field(8, field(2, 17)))
    refuse(tmp_path / "m.onnx", said)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (["sample", "timestep", "encoder_hidden_states"], "a denoiser .*takes 'timestep'"),
        (["input_ids"], "a text encoder .*takes 'input_ids'"),
        (["pixel_values"], "a vision encoder"),
        (["sample"], "not that of an AutoencoderKL or an AutoencoderTiny, the only ones that are read from ONNX"),
    ],
)
def test_other_networks_are_told(inputs: list[str], said: str, tmp_path: Path) -> None:
    graph = field(1, onnx_node("Relu", inputs[:1], "out", {})) + b"".join(field(11, value_info(n)) for n in inputs)
    graph += field(12, value_info("out"))
    (tmp_path / "model.onnx").write_bytes(field(1, 8) + field(2, "x") + field(7, graph) + field(8, field(2, 17)))
    refuse(tmp_path / "model.onnx", said)


def changed(pattern: str, **attributes: Any) -> type[OnnxWriter]:
    """A writer that writes one kind of operation otherwise."""

    class Writer(OnnxWriter):
        def node(self, op: str, *inputs: str, **own: Any) -> str:
            if op == pattern:
                own = {**own, **attributes}
            return super().node(op, *inputs, **own)

    return Writer


@pytest.mark.parametrize(
    ("op", "attributes", "said"),
    [
        ("InstanceNormalization", {"epsilon": 1e-3}, "adds 0.001 to variances, and that of an AutoencoderKL 1e-06"),
        ("Conv", {"dilations": [2, 2]}, "comes from Conv"),
        ("Softmax", {"axis": 1}, "is neither a residual block's nor that of attention"),
        ("Resize", {"mode": "linear"}, "its input goes into Resize"),
        ("Sigmoid", {}, None),
    ],
)
def test_other_arithmetic_is_refused(op: str, attributes: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(draw(changed(op, **attributes)(), kl(SMALL), "decoder"))
    if said is None:
        load_weights(path)
    else:
        refuse(path, said)


def test_another_scale_of_attention_is_refused(tmp_path: Path) -> None:
    class Writer(OnnxWriter):
        def constant(self, name: str, value: Tensor) -> str:
            return super().constant(name, value * 2 if value.ndim == 0 else value)

    (tmp_path / "m.onnx").write_bytes(draw(Writer(), kl(SMALL), "decoder"))
    refuse(tmp_path / "m.onnx", "the scale of MatMul .* is 1, and attention of one head has 0.25 for 16 channels")


# folders


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder as optimum writes it, of two halves that differ in nothing."""
    folder = tmp_path_factory.mktemp("pipeline")
    module = kl(SMALL, 5)
    for side in ("encoder", "decoder"):
        place = folder / f"vae_{side}"
        place.mkdir()
        (place / "model.onnx").write_bytes(draw(OnnxWriter(), module, side))
        values = {"_class_name": "AutoencoderKL", "scaling_factor": 0.5, "norm_num_groups": 4, "latent_channels": 4}
        (place / "config.json").write_text(json.dumps(values))
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (folder / "unet").mkdir()
    (folder / "unet" / "model.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    return folder


def test_a_pipeline(pipeline: Path) -> None:
    loaded = load_weights(pipeline)
    assert same_tensors(loaded.module, kl(SMALL, 5))
    assert loaded.parts == {"encoder", "decoder"} and loaded.layout == "diffusers"
    assert loaded.format is not None and loaded.format.to_dict()["scaling_factor"] == 0.5
    assert not loaded.notes and not loaded.notices
    for side in ("encoder", "decoder"):
        for place in (pipeline / f"vae_{side}", pipeline / f"vae_{side}" / "model.onnx"):
            half = load_weights(place)
            assert half.parts == {side} and half.format == loaded.format


def test_models_at_the_root(pipeline: Path, tmp_path: Path) -> None:
    for side in ("encoder", "decoder"):
        shutil.copyfile(pipeline / f"vae_{side}" / "model.onnx", tmp_path / f"vae_{side}.onnx")
    for name in ("text_encoder", "unet"):
        (tmp_path / f"{name}.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    assert same_tensors(load_weights(tmp_path).module, kl(SMALL, 5))
    shutil.copyfile(tmp_path / "unet.onnx", tmp_path / "vae_decoder_quantized.onnx")
    loaded = load_weights(tmp_path)
    assert same_tensors(loaded.module, kl(SMALL, 5))
    assert "vae_decoder_quantized.onnx lie beside it: name a file itself" in loaded.notices[0]


def test_several_models_that_nothing_tells_apart(pipeline: Path, tmp_path: Path) -> None:
    for name in ("mine", "yours"):
        shutil.copyfile(pipeline / "vae_decoder" / "model.onnx", tmp_path / f"{name}.onnx")
    refuse(tmp_path, r"several models, mine\.onnx, yours\.onnx; name the file itself")


def test_a_config_about_another_network(pipeline: Path, tmp_path: Path) -> None:
    shutil.copyfile(pipeline / "vae_decoder" / "model.onnx", tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL", "norm_num_groups": 2}')
    refuse(tmp_path, "norm_num_groups")


def test_conversion(pipeline: Path, tmp_path: Path) -> None:
    loaded = load_weights(pipeline)
    save_weights(loaded.module, tmp_path / "vae", layout="diffusers", format_=loaded.format, kept=loaded.kept)
    again = load_weights(tmp_path / "vae")
    assert same_tensors(again.module, loaded.module) and again.sha256 == loaded.sha256
    assert again.format == loaded.format


def test_groups_come_from_the_graph(tmp_path: Path) -> None:
    """No config.json is needed, and nothing is assumed."""
    path = rewritten(tmp_path / "m.onnx", kl(SMALL), "encoder")
    loaded = load_weights(path)
    assert loaded.module.config.norm_groups == SMALL.norm_groups
    assert not loaded.notes


# files of others


def test_files_of_optimum(shared: Path) -> None:
    folder = shared / "files" / "onnx-optimum"
    if not folder.is_dir():
        pytest.skip("there is no such folder")
    loaded = load_weights(folder)
    assert loaded.format is not None and loaded.format.name == "sd1" and loaded.container == "ONNX"
    latents, picture = torch.randn(1, 4, 8, 12), torch.rand(1, 3, 64, 96) * 2 - 1
    assert_close(loaded.module.decode(latents), run_onnx(folder / "vae_decoder" / "model.onnx", latents))
    assert_close(loaded.module.encode(picture).moments, run_onnx(folder / "vae_encoder" / "model.onnx", picture))
    model = calotype.load(folder)
    assert model.decode(latents).shape == (1, 3, 64, 96)
