"""Models of OpenVINO as weights: every tensor by its place in the graph, and results as OpenVINO's."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphkit import HALVES, SHAPES, export, run_openvino, tensors, vae
from graphmade import IrWriter, draw
from support import SMALL, assert_close, diffusers_tensors, kl, one_sentence, same_tensors
from torch import Tensor

from calotype.errors import WeightsError
from calotype.families.kl.config import AutoencoderConfig
from calotype.weights.container import Container, open_container
from calotype.weights.load import load_weights


def same(container: Container, expected: dict[str, Tensor]) -> None:
    """The same names, shapes and numbers, bit by bit."""
    assert container.shapes.keys() == expected.keys()
    for key, value in expected.items():
        assert container.shapes[key] == value.shape
        assert torch.equal(container.read(key).to(value.dtype), value), key


def made(side: str, given: Tensor, path: Path) -> Tensor:
    module = load_weights(path).module.float()
    return module.decode(given) if side == "decoder" else module.encode(given).moments


def written(folder: Path, module: Any, side: str, **how: Any) -> Path:
    """A model as OpenVINO writes it, by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    write = IrWriter(**how)
    path = folder / "openvino_model.xml"
    path.write_bytes(draw(write, module, side))
    path.with_suffix(".bin").write_bytes(write.held)
    return path


def half_of(module: Any, side: str) -> dict[str, Tensor]:
    own = (f"{side}.", "quant_conv." if side == "encoder" else "post_quant_conv.")
    return {key: value for key, value in diffusers_tensors(module).items() if key.startswith(own)}


def refuse(path: Path, said: str) -> None:
    with pytest.raises(WeightsError, match=said) as caught:
        load_weights(path)
    one_sentence(str(caught.value))


# OpenVINO's own


def converted(source: Any, path: Path, **options: Any) -> Path:
    """What OpenVINO writes of an ONNX file, or of a module of torch."""
    openvino = pytest.importorskip("openvino")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(source, Path):
            model = openvino.convert_model(source)
        else:
            module, shape = source
            model = openvino.convert_model(module, example_input=torch.randn(shape))
    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, path, **options)
    return path


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention at levels": {
        "down_block_types": ("AttnDownEncoderBlock2D",) * 2, "up_block_types": ("AttnUpDecoderBlock2D",) * 2,
    },
    "no attention, gelu": {"mid_block_add_attention": False, "act_fn": "gelu"},
    "no 1x1 convolutions, mish": {"use_quant_conv": False, "use_post_quant_conv": False, "act_fn": "mish"},
}  # fmt: skip


SHORT = [("onnx", "plain"), ("torch", "attention at levels")]
LONG = [(way, variant) for way in ("onnx", "torch") for variant in VARIANTS if (way, variant) not in SHORT]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "variant"), [*SHORT, *(pytest.param(*both, marks=pytest.mark.slow) for both in LONG)])
def test_what_openvino_writes(way: str, variant: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    whole = vae(1, **VARIANTS[variant])
    for side, half in HALVES.items():
        source = export(half(whole), side, tmp_path / f"{side}.onnx") if way == "onnx" else (half(whole), SHAPES[side])
        path = converted(source, tmp_path / side / "openvino_model.xml", compress_to_fp16=False)
        assert ('type="GroupNormalization"' in path.read_text()) == (way == "torch")
        given = torch.randn(SHAPES[side])
        assert_close(made(side, given, path), run_openvino(path, given))
        same(open_container(path), tensors(whole, side))


@pytest.mark.slow
def test_half_precision(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    whole = vae(2)
    path = converted((HALVES["decoder"](whole), SHAPES["decoder"]), tmp_path / "m.xml")
    container = open_container(path)
    same(container, {key: value.half() for key, value in tensors(whole, "decoder").items()})
    assert {container.stored(key) for key in container.shapes} == {"float16"}
    given = torch.randn(SHAPES["decoder"])
    assert_close(made("decoder", given, path), run_openvino(path, given))


@pytest.mark.slow
def test_norms_that_change_nothing_are_left_out_by_openvino(tmp_path: Path) -> None:
    """Of weights 1 and biases 0, as they are before a training."""
    pytest.importorskip("openvino")
    whole = vae(3)
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    path = converted((HALVES["encoder"](whole), SHAPES["encoder"]), tmp_path / "m.xml", compress_to_fp16=False)
    same(open_container(path), tensors(whole, "encoder"))


# written by hand


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_every_tensor(side: str, tmp_path: Path) -> None:
    config = AutoencoderConfig(ch=8, ch_mult=(1, 2, 3), num_res_blocks=2, z_channels=2, norm_groups=4, attn_levels=(1,))
    module = kl(config, 3)
    path = written(tmp_path, module, side)
    same(open_container(path), half_of(module, side))
    loaded = load_weights(path)
    assert loaded.container == "OpenVINO IR" and loaded.module.config.norm_groups == 4 and not loaded.notes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types(dtype: torch.dtype, tmp_path: Path) -> None:
    module = kl(SMALL, 4)
    path = written(tmp_path, module, "decoder", stored=lambda value: value.to(dtype))
    same(open_container(path), {key: value.to(dtype) for key, value in half_of(module, "decoder").items()})
    assert load_weights(path).dtypes == (str(dtype).removeprefix("torch."),)


class EightBits(IrWriter):
    """Keeps kernels and matrices in eight bits, as weight compression writes them: (weight - zero point) * scale."""

    def constant(self, name: str, value: Tensor) -> str:
        if value.ndim < 2 or not value.is_floating_point() or value.numel() < 64 or value.shape[-1] == 1:
            return super().constant(name, value)
        axes = tuple(range(1, value.ndim))
        low, high = value.amin(axes, keepdim=True), value.amax(axes, keepdim=True)
        scale = (high - low) / 255
        zero = torch.round(-low / scale)
        rounded = torch.round(value / scale + zero).clamp(0, 255).to(torch.uint8)
        whole, point = (
            self.layer("Convert", "", {"destination_type": "f32"}, [self.const(called, one)])
            for called, one in ((name, rounded), ("", zero.to(torch.uint8)))
        )
        return self.node("Multiply", self.node("Subtract", whole, point), self.const("", scale))


def test_weights_in_eight_bits(tmp_path: Path) -> None:
    write, module = EightBits(), kl(SMALL, 5)
    path = tmp_path / "openvino_model.xml"
    path.write_bytes(draw(write, module, "decoder"))
    path.with_suffix(".bin").write_bytes(write.held)
    loaded = load_weights(path)
    assert loaded.dtypes == ("float32", "uint8")
    assert "are stored in uint8 with scales and were widened" in loaded.notices[0]
    kernel = module.state_dict()["decoder.conv_in.weight"]
    read = loaded.module.state_dict()["decoder.conv_in.weight"]
    assert 0 < (read - kernel).abs().max() < 0.02 * kernel.abs().max()


@pytest.mark.slow
def test_eight_bits_are_openvinos(tmp_path: Path) -> None:
    """What it makes of a model whose kernels it holds in eight bits."""
    openvino = pytest.importorskip("openvino")
    from openvino import opset13

    path = converted((HALVES["decoder"](vae(6)), SHAPES["decoder"]), tmp_path / "f.xml", compress_to_fp16=False)
    model = openvino.Core().read_model(path)
    changed = 0
    for node in model.get_ops():
        if node.get_type_name() != "Convolution":
            continue
        value = node.input_value(1).get_node().data.astype(np.float32)
        scale = np.abs(value).max(axis=(1, 2, 3), keepdims=True) / 127
        whole = opset13.constant(np.round(value / scale + 128).clip(0, 255).astype(np.uint8))
        zero = opset13.constant(np.full(scale.shape, 128, np.uint8))
        wide = opset13.subtract(opset13.convert(whole, "f16"), opset13.convert(zero, "f16"))
        wide = opset13.convert(opset13.multiply(wide, opset13.constant(scale.astype(np.float16))), "f32")
        node.input(1).replace_source_output(wide.output(0))
        changed += 1
    assert changed
    openvino.save_model(model, tmp_path / "q.xml", compress_to_fp16=False)
    given = torch.randn(SHAPES["decoder"])
    loaded = load_weights(tmp_path / "q.xml")
    assert "uint8" in loaded.dtypes
    assert_close(loaded.module.float().decode(given), run_openvino(tmp_path / "q.xml", given))


# folders


def test_a_pipeline(tmp_path: Path) -> None:
    module = kl(SMALL, 7)
    for side in ("encoder", "decoder"):
        written(tmp_path / f"vae_{side}", module, side)
    loaded = load_weights(tmp_path)
    assert same_tensors(loaded.module, module) and loaded.container == "OpenVINO IR"
    place = tmp_path / "vae_decoder"
    for path in (place, place / "openvino_model.xml", place / "openvino_model.bin"):
        assert load_weights(path).parts == {"decoder"}


def test_models_at_the_root(tmp_path: Path) -> None:
    module = kl(SMALL, 7)
    for side in ("encoder", "decoder"):
        for file in (path := written(tmp_path / side, module, side), path.with_suffix(".bin")):
            shutil.copyfile(file, tmp_path / f"vae_{side}{file.suffix}")
    for suffix in (".xml", ".bin"):
        (tmp_path / f"unet{suffix}").write_bytes(b"<net>")
    assert same_tensors(load_weights(tmp_path).module, module)


def test_other_networks_are_told(tmp_path: Path) -> None:
    path = written(tmp_path, kl(SMALL), "decoder")
    path.write_text(path.read_text().replace('"latent_sample"', '"encoder_hidden_states"'))
    refuse(path, "a denoiser .*takes 'encoder_hidden_states'")
    path.write_text(path.read_text().replace('"encoder_hidden_states"', '"z"').replace('"Swish"', '"Tanh"'))
    refuse(path, "not that of an AutoencoderKL .*read from OpenVINO IR")


def test_files_of_openvino(shared: Path) -> None:
    folder = shared / "files" / "openvino"
    if not folder.is_dir():
        pytest.skip("there is no such folder")
    loaded = load_weights(folder)
    assert loaded.container == "OpenVINO IR" and loaded.dtypes == ("float16",)
    latents, picture = torch.randn(1, 4, 8, 12), torch.rand(1, 3, 64, 96) * 2 - 1
    module = loaded.module.float()
    assert_close(module.decode(latents), run_openvino(folder / "vae_decoder" / "openvino_model.xml", latents))
    expected = run_openvino(folder / "vae_encoder" / "openvino_model.xml", picture)
    assert_close(module.encode(picture).moments[:, : expected.shape[1]], expected)
