"""Encodes and decodes in different types: which, from which weights, what is said, and what it takes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from support import kl, one_sentence, pictures, tensors_of, write
from torch import nn

import calotype
from calotype.errors import CalotypeWarning, NonFiniteError, UsageError
from calotype.families.kl.config import AutoencoderConfig
from calotype.vae.encoding import encoding_network

F8 = AutoencoderConfig(ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=4)
SAID = r"^x\.safetensors decodes in {} and encodes in float32: .*--encode-dtype \(encode_dtype=\) chooses\.$"


@pytest.fixture(params=[torch.float32, torch.float16], ids=["stored in float32", "stored in float16"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tensors = {key: value.to(request.param) for key, value in tensors_of(kl(F8)).items()}
    return write(tmp_path / "x.safetensors", tensors, {"calotype_config": json.dumps(F8.to_dict())})


def load(path: Path, dtype: torch.dtype, encode_dtype: torch.dtype | None = None) -> calotype.VAE:
    return calotype.load(path, device="cpu", latent_format="sd1", dtype=dtype, encode_dtype=encode_dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_encodes_stay_in_float32_and_it_is_said_once(path: Path, dtype: torch.dtype) -> None:
    wide, narrow = load(path, torch.float32), load(path, dtype)
    x, z = pictures(0, 1, 16, 24), torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    with pytest.warns(CalotypeWarning, match=SAID.format(str(dtype).removeprefix("torch."))) as said:
        moments = narrow.encode(x).moments
    assert [warning.filename for warning in said] == [__file__]
    one_sentence(str(said[0].message))
    assert torch.equal(moments, wide.encode(x).moments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(narrow.encode(x).moments, moments)
        rows = narrow.encode_rows(lambda top, bottom: x[0, :, top:bottom], 16, 24)
        assert torch.allclose(rows.moments, moments, atol=1e-5)
        assert not torch.equal(narrow.decode(z), wide.decode(z))  # these are in the narrow type
    assert {weight.dtype for weight in narrow.module.parameters()} == {dtype}


def test_rows_say_it_too(path: Path) -> None:
    x = pictures(0, 1, 16, 24)
    with pytest.warns(CalotypeWarning, match=SAID.format("bfloat16")):
        load(path, torch.bfloat16).encode_rows(lambda top, bottom: x[0, :, top:bottom], 16, 24)


@pytest.mark.slow
def test_what_was_chosen_is_taken_without_a_word(path: Path) -> None:
    x = pictures(0, 1, 16, 16)
    expected = load(path, torch.float32).encode(x).moments
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, torch.bfloat16).decode(torch.zeros(1, 4, 2, 2))  # nothing is encoded, so there is nothing to say
        for dtype in (torch.float32, torch.bfloat16):
            for encode_dtype in (torch.float32, torch.bfloat16, torch.float16):
                found[dtype, encode_dtype] = load(path, dtype, encode_dtype).encode(x).moments
    for (_, encode_dtype), moments in found.items():
        assert torch.equal(moments, found[torch.float32, encode_dtype])
        assert torch.equal(moments, expected) == (encode_dtype == torch.float32)
    apart = {key: float((value - expected).square().mean()) for key, value in found.items()}
    assert apart[torch.float32, torch.bfloat16] > 4 * apart[torch.float32, torch.float16] > 0


def test_it_may_be_set_later(path: Path) -> None:
    x = pictures(0, 1, 16, 16)
    vae = load(path, torch.bfloat16, torch.float16)
    half = vae.encode(x).moments
    vae.encode_dtype = torch.float32
    wide = vae.encode(x).moments
    assert torch.equal(wide, load(path, torch.float32).encode(x).moments)
    vae.encode_dtype = torch.float16
    assert torch.equal(vae.encode(x).moments, half)


def test_only_the_encoder_is_copied(tmp_path: Path) -> None:
    module = kl(F8).to(torch.bfloat16)
    copied = encoding_network(module, torch.device("cpu"), torch.float32)
    whole = dict(module.named_parameters())
    kept = {name for name in whole if not name.startswith(("decoder.", "post_quant_conv."))}
    assert {name for name, _ in copied.named_parameters()} == kept
    assert all(value.dtype == torch.float32 and torch.equal(value, whole[name]) for name, value in
               copied.named_parameters())  # fmt: skip
    assert encoding_network(module, torch.device("cpu"), torch.bfloat16) is module
    vae = load(write(tmp_path / "x.safetensors", tensors_of(module), {"calotype_config": json.dumps(F8.to_dict())}),
               torch.bfloat16)  # fmt: skip
    before = vae.weights_bytes
    with pytest.warns(CalotypeWarning):
        vae.encode(pictures(0, 1, 16, 16))
    assert vae.weights_bytes == before + 4 * sum(whole[name].numel() for name in kept)


def test_weights_that_were_changed_count(path: Path) -> None:
    vae, x = load(path, torch.bfloat16, torch.float32), pictures(0, 1, 16, 16)
    before = vae.encode(x).mode()
    bias = vae.module.quant_conv.bias
    assert isinstance(bias, torch.Tensor)
    bias[:4] += 1.0
    after = vae.encode(x).mode()
    assert torch.allclose(after, before + 1.0, atol=0.1)  # the other weights are those of bfloat16 now
    assert torch.equal(vae.encode(x).mode(), after)


def test_an_encode_that_overflows_says_its_own_type(tmp_path: Path) -> None:
    module = kl(F8, 2)
    for block in (module.encoder.mid.block_1, module.encoder.mid.block_2):
        nn.init.constant_(block.conv2.bias, 4e4)
    path = write(tmp_path / "x.safetensors", tensors_of(module), {"calotype_config": json.dumps(F8.to_dict())})
    x = pictures(0, 1, 16, 16)
    vae = load(path, torch.float32, torch.float16)
    with pytest.warns(CalotypeWarning, match="gave NaN or infinity in float16; computing in float32"):
        assert torch.equal(vae.encode(x).moments, load(path, torch.float32).encode(x).moments)
    broken = load(path, torch.bfloat16, torch.float32)
    broken.module.encoder.conv_out.bias.fill_(float("inf"))  # type: ignore[union-attr, operator]
    with pytest.raises(NonFiniteError, match="in float32 too"):
        broken.encode(x)


def test_other_types_are_refused(path: Path) -> None:
    with pytest.raises(UsageError, match=r"float32, bfloat16 or float16, not torch\.float64"):
        load(path, torch.float32, torch.float64)
