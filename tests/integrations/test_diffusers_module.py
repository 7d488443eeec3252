"""What people do with a pipeline's VAE beside calling it: copies, keys, adapters, gradients, files."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import assert_close, fill, import_diffusers, kl, one_sentence, pictures, tensors_of, write
from torch import Tensor, nn

import calotype
from calotype.errors import FetchError, UsageError, WeightsError
from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import KNOWN
from calotype.weights.save import save_weights

F8 = AutoencoderConfig(ch=8, ch_mult=(1, 1, 2, 2), num_res_blocks=1, norm_groups=4)
Z = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
X = pictures(0, 2, 24, 40)
STABLE = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def theirs() -> Any:
    return import_diffusers().AutoencoderKL


@pytest.fixture(scope="module")
def ours(theirs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("calotype.integrations.diffusers").AutoencoderKL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_weights(kl(F8), tmp_path / "vae", layout="diffusers", format_=KNOWN["sdxl"])
    return tmp_path / "vae"


@pytest.fixture
def pair(ours: Any, theirs: Any, folder: Path) -> tuple[Any, Any]:
    return ours(calotype.load(folder, device="cpu")), theirs.from_pretrained(folder).requires_grad_(False)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What calotype computes from now on."""
    made: list[str] = []
    for name in ("encode", "decode"):
        plain = getattr(calotype.VAE, name)

        def noted(*arguments: Any, _plain: Any = plain, _name: str = name, **options: Any) -> Any:
            made.append(_name)
            return _plain(*arguments, **options)

        monkeypatch.setattr(calotype.VAE, name, noted)
    return made


def same(vae: Any, reference: Any, tolerance: float = 1e-4) -> None:
    with torch.no_grad():
        assert_close(vae.decode(Z).sample, reference.decode(Z).sample, tolerance)
        assert_close(vae.encode(X).latent_dist.parameters, reference.encode(X).latent_dist.parameters, tolerance)


# As diffusers' own class


def test_it_is_one_of_diffusers_own(pair: tuple[Any, Any], theirs: Any) -> None:
    vae, reference = pair
    assert isinstance(vae, theirs)
    assert list(vae.state_dict()) == list(reference.state_dict())
    for key, tensor in reference.state_dict().items():
        assert torch.equal(vae.state_dict()[key], tensor)
    assert [name for name, _ in vae.named_modules()] == [name for name, _ in reference.named_modules()]
    assert dict(vae.config) == {k: v for k, v in reference.config.items() if not k.startswith("_")}
    assert vae.num_parameters() == reference.num_parameters()
    for name in dir(reference):
        if not name.startswith("_"):
            assert hasattr(vae, name), name
    for name in ("use_tiling", "use_slicing", "tile_sample_min_size", "tile_latent_min_size", "tile_overlap_factor"):
        assert getattr(vae, name) == getattr(reference, name)


def test_weights_are_held_once(pair: tuple[Any, Any]) -> None:
    vae, _ = pair
    own = {tensor.data_ptr() for tensor in vae._vae.module.state_dict().values()}
    assert {parameter.data_ptr() for parameter in vae.parameters()} == own
    vae.to(torch.bfloat16)
    own = {tensor.data_ptr() for tensor in vae._vae.module.state_dict().values()}
    assert {parameter.data_ptr() for parameter in vae.parameters()} == own


@pytest.mark.parametrize("sample", [False, True])
def test_it_may_be_called_itself(sample: bool, pair: tuple[Any, Any], computed: list[str]) -> None:
    results = [v(X, sample_posterior=sample, generator=torch.Generator().manual_seed(4)).sample for v in pair]
    assert_close(*results)
    (tuple_,) = pair[0](X, return_dict=False)
    assert_close(tuple_, pair[1](X).sample)
    assert computed == ["encode", "decode"] * 2


@pytest.mark.slow
def test_tiles_are_not_needed(pair: tuple[Any, Any], computed: list[str]) -> None:
    vae, reference = pair
    assert_close(vae.tiled_decode(Z).sample, reference.decode(Z).sample)
    assert_close(vae.tiled_decode(Z, return_dict=False)[0], reference.decode(Z).sample)
    assert_close(vae.tiled_encode(X).latent_dist.mode(), reference.encode(X).latent_dist.mode())
    vae.enable_tiling()
    vae.enable_slicing()
    assert (vae.use_tiling, vae.use_slicing) == (True, True)
    vae.tile_sample_min_size, vae.tile_latent_min_size = 16, 2
    same(vae, reference)
    vae.disable_tiling()
    assert not vae.use_tiling
    assert len(computed) == 5


COPIES: list[Callable[[Any], Any]] = [copy.deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))]


@pytest.mark.slow
@pytest.mark.parametrize("make", COPIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_are_their_own(
    make: Callable[[Any], Any], dtype: torch.dtype, pair: tuple[Any, Any], computed: list[str]
) -> None:
    vae, reference = pair
    again = make(vae.to(dtype))
    assert torch.equal(again.decode(Z.to(dtype)).sample, vae.decode(Z.to(dtype)).sample)
    assert dict(again.config) == dict(vae.config)
    same(again.to(torch.float32), reference)  # what was narrowed is what it was, in the copy too
    with torch.no_grad():
        again.decoder.conv_in.weight.mul_(2)
    same(vae.to(torch.float32), reference)
    assert len(computed) == 6


# Weights that change


def other(reference: Any) -> Any:
    return fill(copy.deepcopy(reference), 7)


CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "load_state_dict": lambda vae, new: vae.load_state_dict(new.state_dict()),
    "load_state_dict, assigned": lambda vae, new: vae.load_state_dict(
        {k: v.clone() for k, v in new.state_dict().items()}, assign=True
    ),
    "copy_": lambda vae, new: [p.copy_(q) for p, q in zip(vae.parameters(), new.parameters(), strict=True)],
    "data.copy_": lambda vae, new: [p.data.copy_(q) for p, q in zip(vae.parameters(), new.parameters(), strict=True)],
    "data =": lambda vae, new: [
        setattr(p, "data", q.clone()) for p, q in zip(vae.parameters(), new.parameters(), strict=True)
    ],
    "a part": lambda vae, new: vae.decoder.load_state_dict(new.decoder.state_dict()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_changed_weights_count(name: str, dtype: torch.dtype, pair: tuple[Any, Any], computed: list[str]) -> None:
    vae, reference = pair
    vae.to(dtype)
    vae.decode(Z.to(dtype))  # so that a VAE has the old ones
    new = other(reference)
    if name == "a part":
        for part in ("encoder", "quant_conv", "post_quant_conv"):
            setattr(new, part, getattr(reference, part))
    with torch.no_grad():
        CHANGES[name](vae, new)
    takes_the_others_dtype = name in ("load_state_dict, assigned", "data =")
    expected = new if takes_the_others_dtype else copy.deepcopy(new).to(dtype).float()
    same(vae.to(torch.float32), expected, 2e-3 if dtype == torch.float16 else 1e-4)
    assert computed == ["decode", "decode", "encode"]
    vae.to(torch.bfloat16).to(torch.float32)
    same(vae, expected, 2e-3 if dtype == torch.float16 else 1e-4)


def test_a_wrong_state_dict_is_refused_as_by_torch(pair: tuple[Any, Any]) -> None:
    vae, reference = pair
    with pytest.raises(RuntimeError, match="Missing key"):
        vae.load_state_dict({})
    same(vae, reference)


def test_broken_weights_are_said(pair: tuple[Any, Any]) -> None:
    vae, _ = pair
    with torch.no_grad():
        vae.decoder.conv_out.weight.fill_(float("nan"))
    with pytest.raises(WeightsError, match=r"NaN or infinity in the tensor decoder\.conv_out\.weight"):
        vae.decode(Z)


# Modules that change


class Adapter(nn.Module):
    """A LoRA layer as peft puts it in place of a linear one."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.base_layer(x) + self.up(self.down(x))
        return made

    def merge(self) -> nn.Linear:
        self.base_layer.weight.data += self.up.weight.data @ self.down.weight.data
        return self.base_layer


def adapt(vae: Any) -> None:
    for side in (vae.encoder, vae.decoder):
        attention = side.mid_block.attentions[0]
        for name in ("to_q", "to_v"):
            adapter: Any = fill(Adapter(getattr(attention, name)), 3, 2.0)
            setattr(attention, name, adapter)


def merge(vae: Any) -> None:
    for side in (vae.encoder, vae.decoder):
        attention = side.mid_block.attentions[0]
        for name in ("to_q", "to_v"):
            setattr(attention, name, getattr(attention, name).merge())


@pytest.mark.slow
def test_adapters_count_and_stay_when_they_are_merged(pair: tuple[Any, Any], computed: list[str]) -> None:
    vae, reference = pair
    same(vae, reference)
    plain = vae.decode(Z).sample
    for each in pair:
        adapt(each)
    del computed[:]
    same(vae, reference)
    assert computed == []
    assert (vae.decode(Z).sample - plain).abs().max() > 0.01
    vae.to(torch.bfloat16).to(torch.float32)
    for each in pair:
        merge(each)
    same(vae, reference, 0.1)
    assert computed == ["decode", "encode"]
    assert (vae.decode(Z).sample - plain).abs().max() > 0.01


def circular(vae: Any) -> None:
    """How people make seamless textures."""
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
            module._reversed_padding_repeated_twice = [n for n in module.padding for _ in range(2)]  # type: ignore[union-attr]


def hooked(vae: Any) -> None:
    vae.decoder.mid_block.register_forward_hook(lambda module, given, made: made * 0.5)
    vae.encoder.mid_block.register_forward_pre_hook(lambda module, given: (given[0] * 0.5, *given[1:]))


def patched(vae: Any) -> None:
    for side in (vae.encoder, vae.decoder):
        plain = side.mid_block.forward
        side.mid_block.forward = lambda *args, _plain=plain, **more: 0.5 * _plain(*args, **more)


@pytest.mark.parametrize("change", [circular, hooked, patched])
def test_modules_that_compute_otherwise_do(
    change: Callable[[Any], None], pair: tuple[Any, Any], computed: list[str]
) -> None:
    vae, reference = pair
    plain = reference.decode(Z).sample
    for each in pair:
        change(each)
    same(vae, reference)
    assert (reference.decode(Z).sample - plain).abs().max() > 0.01
    assert computed == []


def test_fused_projections_are_as_good(pair: tuple[Any, Any]) -> None:
    vae, reference = pair
    vae.fuse_qkv_projections()
    same(vae, reference)
    vae.unfuse_qkv_projections()
    same(vae, reference)


def test_parts_may_be_called(pair: tuple[Any, Any]) -> None:
    vae, reference = pair
    assert torch.equal(vae.encoder(X), reference.encoder(X))
    assert torch.equal(vae.decoder(vae.post_quant_conv(Z)), reference.decoder(reference.post_quant_conv(Z)))


def test_weights_that_are_offloaded_piece_by_piece_come_when_needed(pair: tuple[Any, Any]) -> None:
    accelerate = importlib.import_module("accelerate")
    vae, reference = pair
    accelerate.cpu_offload(vae, execution_device="cpu")
    assert vae.decoder.conv_in.weight.device.type == "meta"
    same(vae, reference)


# Gradients


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_diffusers(checkpointing: bool, pair: tuple[Any, Any], computed: list[str]) -> None:
    gradients = []
    for each in pair:
        if checkpointing:
            each.enable_gradient_checkpointing()
            each.train()
        each.requires_grad_(True)
        x = X.clone().requires_grad_()
        each(x).sample.square().mean().backward()
        gradients.append([x.grad, *(p.grad for p in each.parameters())])
    for result, expected in zip(*gradients, strict=True):
        assert (result - expected).abs().max() <= 1e-5 * max(1e-3, float(expected.abs().max()))
    assert computed == []


def test_a_gradient_for_the_latents_alone(pair: tuple[Any, Any]) -> None:
    for each in pair:
        z = Z.clone().requires_grad_()
        each.decode(z).sample.mean().backward()
        assert z.grad is not None
        assert z.grad.abs().max() > 0


@pytest.mark.slow
def test_training_changes_what_is_computed_after(pair: tuple[Any, Any], computed: list[str]) -> None:
    for each in pair:
        each.requires_grad_(True)
        optimiser = torch.optim.SGD(each.parameters(), lr=0.05)
        for _ in range(2):
            optimiser.zero_grad()
            each(X).sample.sub(X).square().mean().backward()
            optimiser.step()
    same(*pair)
    assert computed == ["decode", "encode"]


def test_without_a_gradient_nothing_changes(pair: tuple[Any, Any], computed: list[str]) -> None:
    vae, _ = pair
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    vae.requires_grad_(True)
    with torch.inference_mode():
        vae.decode(Z)
    with torch.no_grad():
        vae.decode(Z.clone().requires_grad_())
    vae.requires_grad_(False).decode(Z)
    assert computed == ["decode"] * 3


# from_pretrained


@pytest.mark.slow
def test_from_pretrained_reads_folders(ours: Any, theirs: Any, folder: Path) -> None:
    reference = theirs.from_pretrained(folder)
    for arguments in ((folder,), (str(folder),), (folder / f"{STABLE}.safetensors",)):
        vae = ours.from_pretrained(*arguments)
        assert (vae.dtype, vae.device.type) == (torch.float32, "cpu")
        same(vae, reference)
    same(ours.from_pretrained(folder.parent, subfolder="vae"), reference)
    same(ours.from_pretrained(folder.parent), reference)  # the folder of a pipeline
    for dtype in (torch.float16, "float16"):
        assert ours.from_pretrained(folder, torch_dtype=dtype).dtype == torch.float16
    assert ours.from_pretrained(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    vae = ours.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=True, device_map="cpu", revision=None)
    same(vae, reference)
    same(ours.from_single_file(folder / f"{STABLE}.safetensors"), reference)


@pytest.mark.slow
def test_from_pretrained_reads_any_layout(ours: Any, folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", tensors_of(kl(F8)), {"calotype_config": json.dumps(F8.to_dict())})
    vae = ours.from_pretrained(path, latent_format="sdxl")
    assert vae.config.scaling_factor == 0.13025
    assert torch.equal(vae.decode(Z).sample, ours.from_pretrained(folder).decode(Z).sample)


def test_from_pretrained_reads_a_variant(ours: Any, theirs: Any, folder: Path) -> None:
    half = theirs.from_pretrained(folder).half()
    half.save_pretrained(folder, variant="fp16")
    vae = ours.from_pretrained(folder, variant="fp16", torch_dtype=torch.float32)
    same(vae, half.float(), 1e-3)
    assert vae._own.dtypes == ("float16",)
    with pytest.raises(UsageError, match="no variant 'bf16'") as error:
        ours.from_pretrained(folder, variant="bf16")
    one_sentence(str(error.value))


def test_from_pretrained_takes_fields(ours: Any, folder: Path) -> None:
    vae = ours.from_pretrained(folder, force_upcast=False, scaling_factor=0.5)
    assert (vae.config.force_upcast, vae.config.scaling_factor) == (False, 0.5)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"act_fn": "relu"}, "takes no act_fn"),
        ({"quantization_config": {}, "output_loading_info": True}, "takes no output_loading_info, quantization_config"),
        ({"device_map": {"encoder": 0, "decoder": 1}}, "not spread over several"),
        ({"torch_dtype": torch.float64}, "float32, bfloat16 or float16, not"),
        ({"torch_dtype": "small"}, "float32, bfloat16 or float16, not small"),
    ],
)
def test_options_that_can_not_be_met(options: dict[str, Any], pattern: str, ours: Any, folder: Path) -> None:
    with pytest.raises(UsageError, match=pattern) as error:
        ours.from_pretrained(folder, **options)
    one_sentence(str(error.value))


def test_what_is_not_there(ours: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (tmp_path / "absent", "absent.safetensors", "https://example.org/vae.safetensors"):
        with pytest.raises(UsageError, match="no such file or folder"):
            ours.from_pretrained(name)
    with pytest.raises(FetchError, match="nobody/nothing: it is no folder here") as error:
        ours.from_pretrained("nobody/nothing", local_files_only=True, cache_dir=tmp_path)
    one_sentence(str(error.value))
    with pytest.raises(UsageError, match="made of weights"):
        ours.from_config({})


def test_a_repository_in_the_cache_is_read(ours: Any, theirs: Any, folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "cache" / "models--some--vae"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir()
    folder.rename(snapshot / "vae")
    vae = ours.from_pretrained("some/vae", subfolder="vae", local_files_only=True, cache_dir=tmp_path / "cache")
    same(vae, theirs.from_pretrained(snapshot / "vae"))


# save_pretrained


@pytest.mark.slow
@pytest.mark.parametrize("upcast", [True, False])
def test_what_is_saved_says_what_was_said(upcast: bool, ours: Any, theirs: Any, tmp_path: Path) -> None:
    mean, std = [0.5, -1.0, 2.0, 0.0], [1.5, 2.0, 0.5, 1.0]
    fields: dict[str, Any] = {"scaling_factor": 0.5, "latents_mean": mean, "latents_std": std, "sample_size": 64}
    source = fill(
        theirs(block_out_channels=(32, 64), down_block_types=["DownEncoderBlock2D"] * 2, act_fn="relu",
               up_block_types=["UpDecoderBlock2D"] * 2, use_post_quant_conv=False, force_upcast=upcast, **fields), 0
    )  # fmt: skip
    source.save_pretrained(tmp_path / "own")
    vae = ours.from_pretrained(tmp_path / "own")
    plain = {key: value for key, value in source.config.items() if not key.startswith("_")}
    assert json.loads(json.dumps(dict(vae.config))) == json.loads(json.dumps(plain))
    vae.save_pretrained(tmp_path / "saved")
    again = theirs.from_pretrained(tmp_path / "saved")
    for key, tensor in source.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)
    written, said = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("saved", "own"))
    assert written == said
    assert calotype.load(tmp_path / "saved").latent_format == calotype.load(tmp_path / "own").latent_format
    same(ours.from_pretrained(tmp_path / "saved"), again)


@pytest.mark.slow
def test_files_are_saved_as_asked(pair: tuple[Any, Any], theirs: Any, tmp_path: Path) -> None:
    vae, reference = pair
    vae.half().save_pretrained(tmp_path / "a", variant="fp16")
    assert (tmp_path / "a" / f"{STABLE}.fp16.safetensors").is_file()
    same(theirs.from_pretrained(tmp_path / "a", variant="fp16"), reference, 5e-3)
    vae.float().save_pretrained(tmp_path / "b", safe_serialization=False)
    assert (tmp_path / "b" / f"{STABLE}.bin").is_file()
    vae.save_pretrained(tmp_path / "c", max_shard_size="40KB")
    same(theirs.from_pretrained(tmp_path / "c"), reference)


@pytest.mark.parametrize(
    "config",
    [
        replace(F8, decoder_ch=16),
        replace(F8, decoder_num_res_blocks=F8.num_res_blocks + 1),
        AutoencoderConfig(ch=16, norm_groups=8, num_res_blocks=1, condition=True),
    ],
    ids=["narrower", "deeper", "asymmetric"],
)
def test_other_decoders_are_refused(ours: Any, config: AutoencoderConfig, tmp_path: Path) -> None:
    (path,) = save_weights(kl(config), tmp_path / "x.safetensors", layout="ldm", format_=KNOWN["sd1"])
    with pytest.raises(UsageError, match="is not what pipelines know"):
        ours(calotype.load(path, device="cpu"))
