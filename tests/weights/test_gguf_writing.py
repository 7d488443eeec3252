"""GGUF as it is written: what comes back is what went in, and gguf's own reader reads it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import wankit
from support import NARROW, SMALL, kl, network, one_sentence, same_tensors, tensors_of, tiny
from torch import Tensor

from calotype.errors import UsageError, WeightsError
from calotype.families import config_from_dict
from calotype.families.dcae.config import DcaeConfig
from calotype.families.face import NetworkConfig
from calotype.families.folded.config import FoldedConfig
from calotype.families.hunyuan.config import HunyuanImageConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.taehv.config import TaehvConfig
from calotype.families.tiny.config import TinyConfig
from calotype.families.vq.config import VqConfig
from calotype.families.wan.config import WanConfig
from calotype.latents import Packed, ScaleShift
from calotype.weights.gguf_writing import gguf_parts
from calotype.weights.load import load_weights
from calotype.weights.save import files_of, save_weights
from calotype.weights.video import whole_tensors

CONFIGS: dict[str, NetworkConfig] = {
    "kl": SMALL,
    "kl-grey": AutoencoderConfig(ch=8, ch_mult=(1,), num_res_blocks=1, norm_groups=4, in_channels=1, z_channels=1),
    "tiny": TinyConfig(),
    "folded": FoldedConfig(z_channels=4, ch=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1)),
    "hunyuan": HunyuanImageConfig(channels=(32, 64, 128), num_res_blocks=1, z_channels=64),
    "wan": WanConfig(base_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1),
    "wan-grey": WanConfig(base_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1, in_channels=1),
    "taehv": TaehvConfig(),
    "vq": VqConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, n_embed=16),
    "dcae": DcaeConfig(
        z_channels=4,
        encoder_ch=(8, 16, 32),
        decoder_ch=(8, 16, 32),
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1, 1),
        encoder_attn_levels=(2,),
        decoder_attn_levels=(2,),
        encoder_scales=((), (), (5,)),
        decoder_scales=((), (), (5,)),
        head_dim=8,
        decoder_norms=("rms",) * 3,
        decoder_activations=("silu",) * 3,
    ),
}
SLOW = partial(pytest.param, marks=pytest.mark.slow)  # much like others
FORMAT = ScaleShift(name="mine", channels=4, scaling_factor=0.5)


def read_by_gguf(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and texts of a file, as the package's own reader has them."""
    reader = gguf.GGUFReader(path)
    texts = {
        name: field.contents() for name, field in reader.fields.items() if field.types == [gguf.GGUFValueType.STRING]
    }
    return {tensor.name: tensor.data for tensor in reader.tensors}, texts


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in CONFIGS),
        *((name, dtype) for name in ("kl", "wan") for dtype in (torch.float16, torch.bfloat16)),
    ],
)
def test_every_network_comes_back_bit_by_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    module = network(CONFIGS[name]).to(dtype)
    path = tmp_path / "vae.gguf"
    assert save_weights(module, path, layout="gguf") == [path] == files_of(path, "gguf")
    loaded = load_weights(path)
    assert loaded.module.config == CONFIGS[name]
    assert same_tensors(loaded.module, module)
    assert (loaded.container, loaded.dtypes) == ("GGUF", (str(dtype).removeprefix("torch."),))
    tensors, texts = read_by_gguf(path)
    assert config_from_dict(json.loads(texts["calotype_config"])) == module.config
    assert len(tensors) == len(module.state_dict())
    first = path.read_bytes()
    save_weights(loaded.module, path, layout="gguf")
    assert path.read_bytes() == first


def test_gguf_s_own_reader_reads_names_shapes_and_numbers(tmp_path: Path) -> None:
    module = kl(NARROW).half()
    save_weights(module, tmp_path / "vae.gguf", layout="gguf")
    reader = gguf.GGUFReader(tmp_path / "vae.gguf")
    state = tensors_of(module)
    assert {tensor.name for tensor in reader.tensors} == state.keys()  # bare: stable-diffusion.cpp puts vae. before
    for tensor in reader.tensors:
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F16
        assert tuple(reversed(tensor.shape.tolist())) == tuple(state[tensor.name].shape)
        assert tensor.data_offset % 32 == 0
        np.testing.assert_array_equal(tensor.data, state[tensor.name].numpy())


def test_latent_formats_come_back(tmp_path: Path) -> None:
    packed = Packed(name="flux2", channels=4, running_mean=(0.5, -1.0) * 8, running_var=(2.0, 0.5) * 8)
    for format_ in (FORMAT, packed):
        save_weights(kl(SMALL), tmp_path / "vae.gguf", layout="gguf", format_=format_)
        loaded = load_weights(tmp_path / "vae.gguf")
        assert (loaded.format, loaded.format_source) == (format_, "the file's metadata")


@pytest.mark.parametrize("variant", ["wan-2.1", "wan-2.2", SLOW("qwen-image-2.1"), SLOW("qwen-image-layered")])
def test_all_that_frames_need_comes_back(variant: str, tmp_path: Path) -> None:
    module = wankit.theirs(variant)
    module.save_pretrained(tmp_path / "theirs")
    loaded = load_weights(tmp_path / "theirs")
    path = tmp_path / "vae.gguf"
    save_weights(loaded.module, path, layout="gguf", format_=loaded.format, whole=whole_tensors(loaded))
    again = load_weights(path)
    assert again.sha256 == loaded.sha256
    expected = wankit.originals(module, wankit.VARIANTS[variant][2])
    reader = gguf.GGUFReader(path)
    assert {tensor.name for tensor in reader.tensors} == expected.keys()
    assert all(len(tensor.shape) <= 4 for tensor in reader.tensors)  # which is all that ggml has
    whole = whole_tensors(again)
    save_weights(
        again.module, tmp_path / "again", layout="diffusers", whole=whole, said=loaded.said, format_=again.format
    )
    back = load_weights(tmp_path / "again")
    theirs, ours = whole_tensors(loaded), whole_tensors(back)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)


@pytest.mark.slow
def test_quantised_weights_are_written_as_numbers(tmp_path: Path) -> None:
    import ggufkit

    source = ggufkit.write(tmp_path / "q8.gguf", ggufkit.as_written(tensors_of(kl(NARROW)), ggufkit.Type.Q8_0))
    loaded = load_weights(source)
    save_weights(loaded.module, tmp_path / "f32.gguf", layout="gguf")
    again = load_weights(tmp_path / "f32.gguf")
    assert same_tensors(again.module, loaded.module)
    assert again.dtypes == ("float32",)


def test_paths_and_types_that_do_not_fit(tmp_path: Path) -> None:
    module = tiny()
    for name in ("vae.safetensors", "vae", "vae.GGUF"):
        with pytest.raises(UsageError, match=r"the gguf layout is a single file; give it a name that ends in \.gguf"):
            save_weights(module, tmp_path / name, layout="gguf")
    with pytest.raises(UsageError, match="the diffusers layout is a folder"):
        save_weights(kl(SMALL), tmp_path / "vae.gguf", layout="diffusers")
    with pytest.raises(WeightsError, match="would overflow in float16; choose bfloat16 or float32") as caught:
        large = tiny()
        with torch.no_grad():
            next(large.parameters()).fill_(1e6)
        save_weights(large, tmp_path / "vae.gguf", layout="gguf", dtype=torch.float16)
    one_sentence(str(caught.value))
    assert not list(tmp_path.iterdir())
    tensors: dict[str, Tensor] = {"a": torch.zeros(2, dtype=torch.complex64)}
    with pytest.raises(UsageError, match="GGUF has no complex64, which 'a' is of"):
        list(gguf_parts(tensors))
