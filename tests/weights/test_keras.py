"""Keras h5 files, against a Keras model that loads them."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import NARROW, assert_close, fill, kl, names, one_sentence, pictures, same_tensors, tiny
from torch import Tensor

from calotype.errors import UsageError, WeightsError
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.kl.names import keras_decoder, keras_encoder
from calotype.families.kl.network import AutoencoderKL
from calotype.latents import KNOWN
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

h5py: Any = importlib.import_module("h5py")

# keras asks torch parameters for arrays without copy, which numpy 2 does not like
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SD = AutoencoderConfig()
TEST = AutoencoderConfig(ch=16, norm_groups=8)  # kl-f8, narrow


@pytest.fixture(scope="module")
def keras() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras = importlib.import_module("keras")
    assert keras.backend.backend() == "torch"
    return keras


def models(keras: Any, config: AutoencoderConfig) -> tuple[Any, Any]:
    """Encoder and decoder as Keras models, channels last, written from the published lists of layers."""
    layers = keras.layers

    def norm() -> Any:
        return layers.GroupNormalization(config.norm_groups, epsilon=1e-6)

    def conv(channels: int, size: int = 3) -> Any:
        return layers.Conv2D(channels, size, padding="same")

    class Resnet(layers.Layer):  # type: ignore[misc]
        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            self.norm1, self.conv1, self.norm2, self.conv2 = norm(), conv(after), norm(), conv(after)
            self.shortcut = conv(after, 1) if before != after else None

        def build(self, shape: Any) -> None:
            self.norm1.build(shape)
            self.conv1.build(shape)
            middle = (*shape[:3], self.conv1.filters)
            self.norm2.build(middle)
            self.conv2.build(middle)
            if self.shortcut:
                self.shortcut.build(shape)

        def call(self, x: Any) -> Any:
            h = self.conv1(keras.ops.silu(self.norm1(x)))
            h = self.conv2(keras.ops.silu(self.norm2(h)))
            return h + (self.shortcut(x) if self.shortcut else x)

    class Attention(layers.Layer):  # type: ignore[misc]
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.channels = channels
            self.norm = norm()
            self.q, self.k, self.v, self.out = (conv(channels, 1) for _ in range(4))

        def build(self, shape: Any) -> None:
            for part in (self.norm, self.q, self.k, self.v, self.out):
                part.build(shape)

        def call(self, x: Any) -> Any:
            _, height, width, channels = x.shape
            h = self.norm(x)
            flat = (-1, height * width, channels)
            q, k, v = (keras.ops.reshape(part(h), flat) for part in (self.q, self.k, self.v))
            weights = keras.ops.softmax(q @ keras.ops.transpose(k, (0, 2, 1)) / channels**0.5)
            return x + self.out(keras.ops.reshape(weights @ v, (-1, height, width, channels)))

    silu = layers.Activation("silu")
    c = config.channels
    encoder = [conv(c[0])]
    before = c[0]
    for i, after in enumerate(c):
        for _ in range(config.num_res_blocks):
            encoder.append(Resnet(before, after))
            before = after
        if i < len(c) - 1:
            encoder += [layers.ZeroPadding2D(((0, 1), (0, 1))), layers.Conv2D(after, 3, strides=2)]
    z = config.z_channels
    encoder += [Resnet(before, before), Attention(before), Resnet(before, before)]
    encoder += [norm(), silu, conv(2 * z), conv(2 * z, 1)]

    decoder = [conv(z, 1), conv(before), Resnet(before, before), Attention(before), Resnet(before, before)]
    for i, after in reversed(list(enumerate(c))):
        for _ in range(config.num_res_blocks + 1):
            decoder.append(Resnet(before, after))
            before = after
        if i > 0:
            decoder += [layers.UpSampling2D(2), conv(after)]
    decoder += [norm(), layers.Activation("silu"), conv(3)]
    return keras.Sequential(encoder), keras.Sequential(decoder)


def run(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).cpu()  # type: ignore[no-any-return]


def inputs(config: AutoencoderConfig, height: int, width: int) -> tuple[Tensor, Tensor]:
    return pictures(3, 1, height, width), torch.randn(1, config.z_channels, height // 8, width // 8)


def check_keras_reads_ours(keras: Any, config: AutoencoderConfig, folder: Path) -> None:
    module = kl(config, 1)
    assert save_weights(module, folder, layout="keras") == [folder / "encoder.h5", folder / "decoder.h5"]
    encoder, decoder = models(keras, config)
    x, z = inputs(config, 64, 40)
    run(encoder, x)
    run(decoder, z)  # builds
    encoder.load_weights(folder / "encoder.h5")
    decoder.load_weights(folder / "decoder.h5")
    assert encoder.count_params() + decoder.count_params() == sum(p.numel() for p in module.parameters())
    assert_close(run(encoder, x), module.encode(x).moments)
    assert_close(run(decoder, z), module.decode(z))


def check_ours_reads_kerass(keras: Any, config: AutoencoderConfig, folder: Path) -> None:
    encoder, decoder = models(keras, config)
    x, z = inputs(config, 40, 64)
    run(encoder, x)
    run(decoder, z)
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name, model in (("encoder", encoder), ("decoder", decoder)):
        for weight in model.weights:
            scale = float(np.prod(weight.shape[:-1])) ** -0.5 if len(weight.shape) == 4 else 0.3
            weight.assign(rng.normal(1.0 if weight.name == "gamma" else 0.0, scale, weight.shape).astype(np.float32))
        legacy = importlib.import_module("keras.src.legacy.saving.legacy_h5_format")
        with h5py.File(folder / f"{name}.h5", "w") as file:
            legacy.save_weights_to_hdf5_group(file, model)
            if config != SD:
                import json

                file.attrs["calotype_config"] = json.dumps(config.to_dict())
    loaded = load_weights(folder)
    assert loaded.layout == "keras"
    assert isinstance(loaded.module, AutoencoderKL)
    assert_close(loaded.module.encode(x).moments, run(encoder, x))
    assert_close(loaded.module.decode(z), run(decoder, z))


@pytest.mark.slow
def test_a_keras_model_loads_what_is_written(keras: Any, tmp_path: Path) -> None:
    check_keras_reads_ours(keras, TEST, tmp_path / "h5")


@pytest.mark.slow
def test_what_keras_writes_is_loaded(keras: Any, tmp_path: Path) -> None:
    check_ours_reads_kerass(keras, TEST, tmp_path / "h5")


@pytest.mark.slow
def test_a_keras_model_of_full_size_loads_what_is_written(keras: Any, tmp_path: Path) -> None:
    check_keras_reads_ours(keras, SD, tmp_path / "h5")


@pytest.mark.slow
def test_what_keras_writes_at_full_size_is_loaded(keras: Any, tmp_path: Path) -> None:
    check_ours_reads_kerass(keras, SD, tmp_path / "h5")


def by_hand(path: Path, module: AutoencoderKL, side: str, *, nested: bool) -> Path:
    """An h5 file as Keras 2 wrote it: names as bytes, ``:0`` behind them, layers without weights in between."""
    import json

    config = module.config
    layers = keras_encoder(config) if side == "encoder" else keras_decoder(config)
    tensors = module.state_dict()
    groups = [
        (f"layer_{i}", [f"{m}.{leaf}" for m in modules for leaf in ("weight", "bias")])
        for i, (_, modules) in enumerate(layers)
    ]
    if nested:
        groups = [("input_1", []), (side, [key for _, keys in groups for key in keys])]
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name, _ in groups]
        file.attrs["keras_version"] = b"2.11.0"
        if config != SD:
            file.attrs["calotype_config"] = json.dumps(config.to_dict())
        count = 0
        for name, keys in groups:
            group = file.create_group(name)
            weight_names = []
            for key in keys:
                array = tensors[key].numpy()
                if array.ndim == 4:
                    array = np.ascontiguousarray(np.moveaxis(array, (2, 3, 1, 0), (0, 1, 2, 3)))  # OIHW -> HWIO
                weight_names.append(f"conv_{count // 2}/{'kernel' if array.ndim == 4 else 'bias'}_{count}:0".encode())
                group.create_dataset(weight_names[-1].decode(), data=array)
                count += 1
            group.attrs["weight_names"] = weight_names
        file.create_group("top_level_model_weights").attrs["weight_names"] = []
    return path


@pytest.mark.slow
@pytest.mark.parametrize("nested", [True, False], ids=["one nested group", "one group a layer"])
def test_both_containers_in_circulation_are_read(tmp_path: Path, nested: bool) -> None:
    module = kl(TEST, 2)
    by_hand(tmp_path / "vae_encoder.h5", module, "encoder", nested=nested)
    by_hand(tmp_path / "kcv_decoder.h5", module, "decoder", nested=nested)
    loaded = load_weights(tmp_path)
    assert (loaded.layout, loaded.parts) == ("keras", {"encoder", "decoder"})
    assert same_tensors(loaded.module, module)
    assert loaded.format is None  # the file tells of a network that is not Stable Diffusion's


@pytest.mark.slow
def test_files_of_full_size_need_no_config(tmp_path: Path) -> None:
    module = kl(SD, 2)
    by_hand(tmp_path / "encoder_newW.h5", module, "encoder", nested=True)
    by_hand(tmp_path / "decoder.h5", module, "decoder", nested=True)
    loaded = load_weights(tmp_path)
    assert loaded.module.config == SD
    assert loaded.format == KNOWN["sd1"]
    assert same_tensors(loaded.module, module)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_one_file_is_half_a_vae(tmp_path: Path, side: str) -> None:
    module = kl(TEST)
    loaded = load_weights(by_hand(tmp_path / "x.h5", module, side, nested=True))
    assert loaded.parts == {side}
    assert hasattr(loaded.module, side)
    assert not hasattr(loaded.module, "decoder" if side == "encoder" else "encoder")
    assert not hasattr(loaded.module, "post_quant_conv" if side == "encoder" else "quant_conv")


def test_kernels_are_written_as_hwio(tmp_path: Path) -> None:
    module = kl(TEST)
    save_weights(module, tmp_path / "h5", layout="keras")
    with h5py.File(tmp_path / "h5" / "encoder.h5") as file:
        kernel = np.asarray(file["conv_in"]["encoder.conv_in.weight"])
    assert kernel.shape == (3, 3, 3, 16)
    weight = module.encoder.conv_in.weight
    for o, i, y, x in ((0, 0, 0, 0), (5, 2, 1, 0), (15, 1, 0, 2)):
        assert kernel[y, x, i, o] == weight[o, i, y, x]


@pytest.mark.slow
@pytest.mark.parametrize("config", [TEST, AutoencoderConfig(ch=32, ch_mult=(1, 2), z_channels=16, quant_conv=False)])
def test_keras_files_come_back_bit_by_bit(tmp_path: Path, config: AutoencoderConfig) -> None:
    module = kl(config, 3)
    one = save_weights(module, tmp_path / "a.safetensors", layout="ldm")[0]
    save_weights(load_weights(one).module, tmp_path / "h5", layout="keras")
    again = load_weights(tmp_path / "h5")
    two = load_weights(save_weights(again.module, tmp_path / "b.safetensors", layout="ldm")[0])
    assert same_tensors(two.module, module)
    assert two.sha256 == again.sha256 == load_weights(one).sha256


@pytest.mark.slow
def test_the_latent_format_is_kept(tmp_path: Path) -> None:
    save_weights(kl(TEST), tmp_path / "h5", layout="keras", format_=KNOWN["sdxl"])
    assert load_weights(tmp_path / "h5").format == KNOWN["sdxl"]


@pytest.mark.slow
def test_half_a_vae_is_written_as_one_file(tmp_path: Path) -> None:
    module = kl(TEST)
    half = load_weights(by_hand(tmp_path / "x.h5", module, "decoder", nested=True)).module
    assert save_weights(half, tmp_path / "h5", layout="keras") == [tmp_path / "h5" / "decoder.h5"]
    assert same_tensors(load_weights(tmp_path / "h5").module, half)


def refuse(path: Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(path)
    one_sentence(str(caught.value))


@pytest.mark.slow
def test_damaged_files(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "x.h5", kl(TEST), "encoder", nested=True)
    path.write_bytes(path.read_bytes()[:2000])
    refuse(path, r"x\.h5: this is no whole h5 file")
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=np.zeros(3))
    refuse(path, r"x\.h5: read as Keras h5: the file holds no VAE: its tensor a\.")
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"gone"]
    refuse(path, "this is no whole h5 file of Keras weights")
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"a"]
        group = file.create_group("a")
        group.create_dataset("w", data=np.zeros((3, 3, 3, 4), np.float32))
        group.attrs["weight_names"] = [b"w"]
    refuse(path, r"1 arrays are neither an encoder \(108\) nor a decoder \(140\)")


@pytest.mark.slow
def test_two_encoders_are_no_vae(tmp_path: Path) -> None:
    for name in ("a", "b"):
        by_hand(tmp_path / f"{name}.h5", kl(TEST), "encoder", nested=True)
    refuse(tmp_path, "its two weight files are not the encoder and the decoder of one VAE")


def test_other_networks_have_no_keras_layout(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="of the kind taesd has no keras layout"):
        save_weights(tiny(), tmp_path / "h5", layout="keras")
    assert names(tmp_path) == []


def test_the_fill_of_these_tests_is_no_fixed_point() -> None:
    assert not same_tensors(fill(kl(NARROW), 1), kl(NARROW, 2))
