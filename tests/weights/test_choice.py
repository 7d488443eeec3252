"""Files with more than one VAE could be: nests, wrappers, averages, two VAEs, and what stands beside them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import (
    diffusers_tensors,
    import_diffusers,
    kl,
    network,
    one_sentence,
    same_tensors,
    tensors_of,
    tiny,
    write,
)
from torch import Tensor, nn

import calotype
from calotype.errors import CalotypeWarning, UsageError, WeightsError
from calotype.families.folded.config import FoldedConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.weights.groups import groups_in, plain, summary
from calotype.weights.load import Loaded, load_weights

CONFIG = AutoencoderConfig(ch=32, ch_mult=(1,), num_res_blocks=1)
RAW, EMA, OTHER = kl(CONFIG, 1), kl(CONFIG, 2), kl(CONFIG, 3)
A, B, C = tensors_of(RAW), tensors_of(EMA), tensors_of(OTHER)
DIFFUSERS = diffusers_tensors(RAW)


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in tensors.items()}


def clone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in tensors.items()}


def torch_file(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def lit_ema(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As latent-diffusion's LitEma keeps averages."""
    flat = {f"model_ema.{key.replace('.', '')}": value for key, value in tensors.items()}
    return {**flat, "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5)}


def refused(path: Path, message: str, error: type[Exception] = WeightsError, **more: Any) -> None:
    with pytest.raises(error, match=message) as caught:
        load_weights(path, **more)
    one_sentence(str(caught.value))


@pytest.mark.parametrize("name", ["non_ema", "no_ema", "pre_ema", "not_ema", "before_ema", "non-ema", "vae_no_ema"])
def test_names_that_say_that_it_is_no_average(name: str, tmp_path: Path) -> None:
    assert not load_weights(torch_file(tmp_path / "x.pt", {name: A})).averaged
    path = torch_file(tmp_path / "x.pt", {name: A, "vae_ema" if name.startswith("vae") else "ema": B})
    for weights, module, averaged in ((None, EMA, True), ("ema", EMA, True), ("raw", RAW, False)):
        loaded = load_weights(path, weights=weights)
        assert loaded.averaged is averaged
        assert same_tensors(loaded.module, module)
    refused(torch_file(tmp_path / "x.pt", {"model": A, name: B}), "several VAEs")


@pytest.mark.parametrize("order", ["sorted", "q and k"])
def test_a_list_of_averages_is_taken_only_in_the_networks_order(order: str, tmp_path: Path) -> None:
    names = list(A)
    swapped = {"encoder.mid.attn_1.q": "encoder.mid.attn_1.k", "encoder.mid.attn_1.k": "encoder.mid.attn_1.q"}
    if order == "sorted":
        names.sort()
    else:
        names = [name.replace(stem := name.rpartition(".")[0], swapped.get(stem, stem)) for name in names]
    raw = {name: A[name] for name in names}
    path = torch_file(tmp_path / "x.pt", {"state_dict": raw, "ema": {"shadow_params": list(B.values())}})
    loaded = load_weights(path)
    assert same_tensors(loaded.module, RAW)
    (notice,) = loaded.notices
    assert "have no names and are not in the order of the raw ones" in notice
    assert load_weights(path, weights="raw").notices == ()
    refused(path, "have no names and are not in the order", UsageError, weights="ema")


# Nests


@pytest.mark.parametrize(
    "names",
    [
        ("ema",), ("model",), ("params",), ("params_ema",), ("vae",), ("model_state_dict",), ("module",),
        ("generator",), ("net",), ("network",), ("autoencoder",), ("first_stage_model",), ("state_dict",),
        ("weights", "a b", "c"),
        ("model", "state_dict"), ("state_dict", "model"), ("models", "0"), ("checkpoint", "module", "_orig_mod"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("layout", [A, DIFFUSERS], ids=["ldm", "diffusers"])
def test_nests_are_searched(tmp_path: Path, names: tuple[str, ...], layout: dict[str, Tensor]) -> None:
    content: Any = layout
    for name in reversed(names):
        content = {name: content, "step": 7, "epoch": torch.tensor(3), "optimizer": {"state": {0: {"exp_avg": A}}}}
    loaded = load_weights(torch_file(tmp_path / "x.pt", content))
    assert same_tensors(loaded.module, RAW)
    assert "epoch" in loaded.beside
    assert "exp_avg" not in loaded.beside


def test_halves_in_a_nest(tmp_path: Path) -> None:
    halves: dict[str, Any] = {}
    for key, value in A.items():
        side, _, name = key.partition(".")
        halves.setdefault(side, {})[name] = value
    assert same_tensors(load_weights(torch_file(tmp_path / "x.pt", halves)).module, RAW)
    assert same_tensors(load_weights(torch_file(tmp_path / "y.pt", {"vae": halves, "step": 1})).module, RAW)


def test_states_of_optimisers_are_no_vaes(tmp_path: Path) -> None:
    for name in ("optimizer", "optimizer_states", "opt", "exp_avg", "grads"):
        path = torch_file(tmp_path / "x.pt", {"model": A, name: {"a": C, "b": clone(C)}})
        assert same_tensors(load_weights(path).module, RAW)


# Wrappers


def wrapped(module: Any, how: str) -> dict[str, Tensor]:
    """Names as the wrappers of torch make them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch itself, where it is first asked to compile
        compiled: Any = torch.compile
        if how == "compile":
            module = compiled(module)
        elif how == "parts":
            module.encoder, module.decoder = compiled(module.encoder), compiled(module.decoder)
        elif how == "deep":
            name = next(
                name for name, _ in module.decoder.named_children() if not name.startswith("conv") and name != "0"
            )
            setattr(module.decoder, name, compiled(getattr(module.decoder, name)))
        elif how == "parallel":
            module = nn.DataParallel(compiled(module))
    if how == "checkpointed":
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper

        inner = CheckpointWrapper(module.encoder)
        inner._state_dict_hooks.clear()  # as it was before it removed its name
        module.encoder = inner
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["compile", "parts", "deep", "parallel", "checkpointed"])
@pytest.mark.parametrize("kind", ["kl", "tiny", "folded"])
def test_names_of_wrappers(tmp_path: Path, kind: str, how: str) -> None:
    config = {"kl": CONFIG, "tiny": tiny().config, "folded": FoldedConfig(ch=(8, 8))}[kind]
    tensors = wrapped(network(config, 4), how)
    assert tensors.keys() != tensors_of(network(config, 4)).keys()
    assert same_tensors(load_weights(write(tmp_path / "x.safetensors", tensors)).module, network(config, 4))
    half = {key: value for key, value in tensors.items() if "encoder" in key}
    path = write(tmp_path / "y.safetensors", half)
    if kind != "folded":
        assert load_weights(path).parts == {"encoder"}


@pytest.mark.parametrize("layout", [A, DIFFUSERS, tensors_of(tiny(seed=1))], ids=["ldm", "diffusers", "taesd"])
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "vae.", "a.b.c.", "_fsdp_wrapped_module."]
)
def test_prefixes(tmp_path: Path, layout: dict[str, Tensor], prefix: str) -> None:
    expected = load_weights(write(tmp_path / "x.safetensors", layout)).sha256
    path = write(tmp_path / "y.safetensors", under(prefix, layout))
    assert load_weights(path).sha256 == expected
    assert load_weights(path, prefix=prefix).sha256 == expected
    assert load_weights(path, prefix=prefix.rstrip(".")).sha256 == expected


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "_checkpoint_wrapped_module."])
@pytest.mark.parametrize("where", ["encoder.", "decoder.", "mid.", "mid_block.", "14.", "conv_in."])
def test_names_of_wrappers_inside(tmp_path: Path, wrapper: str, where: str) -> None:
    for layout, module in ((A, RAW), (DIFFUSERS, RAW), (tensors_of(tiny(seed=1)), tiny(seed=1))):
        names = {key.replace(where, f"{where}{wrapper}", 1): value for key, value in layout.items()}
        if names.keys() != layout.keys():
            assert same_tensors(load_weights(write(tmp_path / "x.safetensors", names)).module, module)


def test_wrappers_on_some_names_only(tmp_path: Path) -> None:
    mixed = {("module." if "decoder" in key else "") + key: value for key, value in A.items()}
    assert same_tensors(load_weights(write(tmp_path / "x.safetensors", mixed)).module, RAW)


def test_names_that_would_become_one_stay_apart() -> None:
    assert plain(["module.a", "a", "module.b"]) == {"module.a": "module.a", "a": "a", "b": "module.b"}


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_half_a_taesd_under_a_prefix(tmp_path: Path, side: str) -> None:
    own = {k.partition(".")[2]: v for k, v in tensors_of(tiny()).items() if k.startswith(side)}
    bare = load_weights(write(tmp_path / "x.safetensors", own))
    assert bare.parts == {side}
    assert load_weights(write(tmp_path / "y.safetensors", under("module.", own))).sha256 == bare.sha256
    assert load_weights(torch_file(tmp_path / "z.pt", {"net": own, "step": torch.tensor(1)})).sha256 == bare.sha256


# Lone tensors


LONE = {
    "global_step": torch.tensor(7),
    "betas": torch.zeros(1000),
    "logvar": torch.zeros(()),
    "scale_factor": torch.tensor(0.18),
    "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4),
    "loss.perceptual_loss.net.slice1.0.weight": torch.zeros(4, 3, 3, 3),
    "lpips.scaling_layer.shift": torch.zeros(1, 3, 1, 1),
}


@pytest.mark.parametrize("layout", [A, DIFFUSERS, tensors_of(tiny(seed=1))], ids=["ldm", "diffusers", "taesd"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_lone_tensors_are_left_out_and_named(tmp_path: Path, layout: dict[str, Tensor], prefix: str) -> None:
    expected = load_weights(write(tmp_path / "x.safetensors", layout)).sha256
    loaded = load_weights(write(tmp_path / "y.safetensors", under(prefix, {**layout, **LONE})))
    assert loaded.sha256 == expected
    assert loaded.notices == ()
    for name in ("global_step", "betas", "loss."):
        assert name in loaded.beside


def test_what_is_left_out_is_summed_up() -> None:
    keys = ["global_step", *(f"loss.{i}" for i in range(24)), "a.b", *(f"{c}.x" for c in "cdefgh")]
    assert summary(keys) == "global_step, loss. (24 tensors), a.b, c.x, d.x, e.x and 3 more"


# Raw and averaged


def shadow(names: dict[str, Tensor]) -> dict[str, Any]:
    return {"decay": 0.999, "shadow_params": list(names.values()), "optimization_step": 3}


# name -> (content, prefix of the raw ones, of the averaged ones)
AVERAGES: dict[str, tuple[Callable[[], Any], str, str]] = {
    "ema and model": (lambda: {"model": A, "ema": B, "opt": {}, "args": 1}, "model.", "ema."),
    "flat": (lambda: {**under("model.", A), **under("ema.", B)}, "model.", "ema."),
    "raw at the top": (lambda: {**A, **under("ema.", B)}, "", "ema."),
    "params_ema": (lambda: {"params": A, "params_ema": B}, "params.", "params_ema."),
    "litema": (lambda: {"state_dict": {**A, **lit_ema(B)}}, "", "model_ema."),
    "litema of diffusers' names": (
        lambda: {**DIFFUSERS, **lit_ema(diffusers_tensors(EMA))}, "", "model_ema.",
    ),
    "litema in a larger module": (
        lambda: {**under("vae.", A), **lit_ema(under("vae.", B))}, "vae.", "model_ema.",
    ),
    "model_ema of a state_dict": (lambda: {"state_dict": A, "state_dict_ema": B}, "", "state_dict_ema."),
    "lucidrains": (
        lambda: {"ema": {**under("online_model.", A), **under("ema_model.", B), "step": torch.tensor(1)}},
        "ema.online_model.", "ema.ema_model.",
    ),
    "a wrapped average": (lambda: {"vae": under("module.", A), "vae_ema": under("module.", B)}, "vae.", "vae_ema."),
    "swa": (lambda: {**A, **under("module.", B), "n_averaged": torch.tensor(9)}, "", "module."),
    "diffusers' EMAModel": (lambda: {"model": A, "ema": shadow(B)}, "model.", "ema.shadow_params."),
    "lightning": (
        lambda: {"state_dict": B, "current_model_state": A, "averaging_state": {}}, "current_model_state.", "",
    ),
    "networks": (lambda: {"net": A, "net_ema": B, "optimizer": {}}, "net.", "net_ema."),
}  # fmt: skip


@pytest.mark.parametrize("name", AVERAGES)
def test_raw_and_averaged_weights(tmp_path: Path, name: str) -> None:
    make, raw, averaged = AVERAGES[name]
    path = torch_file(tmp_path / "x.pt", make())
    first = load_weights(path)
    assert same_tensors(first.module, EMA)
    assert (first.averaged, first.prefix, first.twin) == (True, averaged, raw)
    assert first.notices == (
        f"{path}: the averaged weights were taken, under {averaged!r}; the raw ones stand under {raw!r}: "
        f"--weights raw takes them.",
    )
    second = load_weights(path, weights="raw")
    assert same_tensors(second.module, RAW)
    assert (second.averaged, second.prefix, second.twin, second.notices) == (False, raw, averaged, ())
    third = load_weights(path, weights="ema")
    assert same_tensors(third.module, EMA)
    assert third.notices == ()
    for prefix, module in ((raw, RAW), (averaged, EMA)):
        assert same_tensors(load_weights(path, prefix=prefix).module, module)
    assert same_tensors(load_weights(path, prefix=raw, weights="ema").module, EMA)
    assert same_tensors(load_weights(path, prefix=averaged, weights="raw").module, RAW)


@pytest.mark.parametrize("prefix", ["ema.", "model_ema.", "module.ema."])
def test_averaged_weights_alone(tmp_path: Path, prefix: str) -> None:
    path = write(tmp_path / "x.safetensors", under(prefix, B))
    for weights in (None, "ema"):
        loaded = load_weights(path, weights=weights)  # type: ignore[arg-type]
        assert same_tensors(loaded.module, EMA)
        assert loaded.averaged
        assert loaded.notices == ()
    refused(path, "there are no raw weights beside the averaged ones", UsageError, weights="raw")


def test_an_average_of_a_part_is_not_taken(tmp_path: Path) -> None:
    part = {key: value for key, value in B.items() if key.startswith("decoder")}
    for content, prefix in (({**A, **lit_ema(part)}, "model_ema."), ({"model": A, "ema": part}, "ema.")):
        path = torch_file(tmp_path / "x.pt", content)
        loaded = load_weights(path)
        assert same_tensors(loaded.module, RAW)
        (notice,) = loaded.notices
        assert f"the averaged ones stand under '{prefix}' and are {len(part)} of its {len(A)} tensors." in notice
        assert same_tensors(load_weights(path, weights="raw").module, RAW)
        refused(path, "are not the whole VAE; leave --weights ema out", UsageError, weights="ema")


def test_averages_that_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", A)
    assert not load_weights(path, weights="raw").averaged
    refused(path, "there are no averaged weights in it", UsageError, weights="ema")
    refused(path, "There are no 'best' weights; choose raw or ema", UsageError, weights="best")


def test_lists_that_do_not_fit_are_no_averages(tmp_path: Path) -> None:
    for wrong in (shadow(dict(list(B.items())[:-1])), shadow(dict(reversed(list(B.items()))))):
        loaded = load_weights(torch_file(tmp_path / "x.pt", {"model": A, "ema": wrong}))
        assert same_tensors(loaded.module, RAW)
        assert not loaded.averaged


@pytest.mark.slow
def test_diffusers_keeps_averages_so(tmp_path: Path) -> None:
    diffusers = import_diffusers()
    from diffusers.training_utils import EMAModel

    vae = diffusers.AutoencoderKL(block_out_channels=(32,), layers_per_block=1)
    ema = EMAModel(vae.parameters())
    with torch.no_grad():
        for p in ema.shadow_params:
            p.add_(1)
    path = torch_file(tmp_path / "x.pt", {"model": vae.state_dict(), "ema": ema.state_dict()})
    raw = load_weights(path, weights="raw").module.state_dict()
    averaged = load_weights(path).module.state_dict()
    assert all(torch.equal(averaged[key], raw[key] + 1) for key in raw)


# Two VAEs


@pytest.mark.slow
def test_two_vaes_are_named_and_one_is_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {**under("first_stage_model.", A), **under("vae.", C)})
    refused(path, r"several VAEs, under 'first_stage_model\.', 'vae\.'; choose one with --prefix")
    for prefix, module in (("first_stage_model.", RAW), ("vae", OTHER)):
        loaded = load_weights(path, prefix=prefix)
        assert same_tensors(loaded.module, module)
        assert calotype.load(path, prefix=prefix).sha256 == loaded.sha256
    refused(
        path,
        r"no VAE stands under the prefix 'model'; they stand under 'first_stage_model\.'",
        UsageError,
        prefix="model",
    )


def test_a_vae_beside_a_tiny_one(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {**A, **under("tiny.", tensors_of(tiny()))})
    refused(path, r"several VAEs, under '', 'tiny\.'")
    assert load_weights(path, prefix="").layout == "ldm"
    assert load_weights(path, prefix="tiny").layout == "taesd"


@pytest.mark.parametrize("content", [A, tensors_of(tiny(seed=1))], ids=["kl", "taesd"])
def test_equal_vaes_need_no_choice(tmp_path: Path, content: dict[str, Tensor]) -> None:
    copies = {key: value.clone() for key, value in content.items()}
    path = write(tmp_path / "x.safetensors", {**under("first_stage_model.", content), **under("vae.", copies)})
    expected = load_weights(write(tmp_path / "y.safetensors", content)).sha256
    assert load_weights(path).sha256 == expected
    first = next(iter(copies))
    copies[first] = copies[first] + 1e-3
    refused(
        write(tmp_path / "z.safetensors", {**under("a.", content), **under("b.", copies)}),
        "several VAEs, under 'a.', 'b.'",
    )


def test_an_average_beside_two_vaes(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "x.pt", {"vae": A, "vae_ema": B, "other": C})
    refused(path, r"several VAEs, under 'other\.', 'vae_ema\.'")
    assert same_tensors(load_weights(path, prefix="vae").module, RAW)
    assert same_tensors(load_weights(path, prefix="vae", weights="ema").module, EMA)
    assert same_tensors(load_weights(path, prefix="other").module, OTHER)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({f"{k}": (v[:, :, None].repeat(1, 1, 3, 1, 1) if v.ndim == 4 else v) for k, v in C.items()}, "a video VAE"),
        (
            {"encoder.conv_in.weight": torch.zeros(8, 8, 3), "decoder.conv_in.weight": torch.zeros(8, 8, 3)},
            "an audio VAE",
        ),
        ({**C, "quantize.embed.weight": torch.zeros(8, 4)}, "a VQ autoencoder"),
    ],
)
def test_the_image_vae_is_taken_beside_another(tmp_path: Path, other: dict[str, Tensor], what: str) -> None:
    path = write(tmp_path / "x.safetensors", {**under("vae.", A), **under("other_vae.", other)})
    loaded = load_weights(path)
    assert same_tensors(loaded.module, RAW)
    (notice,) = loaded.notices
    assert f"left out: under 'other_vae.' is {what}" in notice
    refused(path, f"under 'other_vae.' is {what}", prefix="other_vae")
    path = write(tmp_path / "y.safetensors", {**under("vae.", other), **under("audio_vae.", clone(other))})
    refused(path, f"under 'audio_vae.' is {what}.*; under 'vae.' is {what}")


def test_what_was_done_is_said(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "x.pt", {"model": A, "ema": B})
    with pytest.warns(CalotypeWarning, match="the averaged weights were taken"):
        calotype.load(path)
    assert calotype.load(path, weights="ema").loaded.averaged


def test_a_small_decoder_of_pixels_is_no_vae() -> None:
    assert groups_in({"loss.net.slice1.0.weight": (64, 3, 3, 3), "loss.net.slice1.2.weight": (64, 64, 3, 3)}) == []


def test_loaded_says_nothing_of_a_plain_file(tmp_path: Path) -> None:
    loaded: Loaded = load_weights(write(tmp_path / "x.safetensors", A))
    assert (loaded.averaged, loaded.twin, loaded.beside, loaded.notices, loaded.prefix) == (False, None, "", (), "")
