"""calotype's classes one by one, against diffusers' own: of what `calotype.load` returns, and of weights in memory."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dcaekit
import pytest
import torch
from pipekit import VAES, kl, library, video
from support import assert_close, one_sentence
from torch import Tensor

import calotype
from calotype.errors import LatentFormatError, UsageError

FRAMES = ("AutoencoderKLWan", "AutoencoderKLQwenImage", "AutoencoderKLQwenImage21")
OTHERS = tuple(name for name in VAES if name not in FRAMES)
CHANNELS = {"AutoencoderKLQwenImage21": 4}


@pytest.fixture(scope="module")
def classes() -> Any:
    library()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("calotype.integrations.diffusers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each of diffusers' own, saved."""
    root = tmp_path_factory.mktemp("vaes")
    for name, make in VAES.items():
        make().save_pretrained(root / name)
    return {name: root / name for name in VAES}


@pytest.fixture
def pair(request: pytest.FixtureRequest, classes: Any, folders: dict[str, Path]) -> tuple[Any, Any]:
    """(ours, theirs) of a class; "loaded" or "taken"."""
    name, way = request.param
    theirs = getattr(library(), name).from_pretrained(folders[name]).requires_grad_(False)
    ours = getattr(classes, name)
    if way == "taken":
        return ours.of(copy.deepcopy(theirs)), theirs
    # what TAESD's latents are of, nothing in its file tells
    of = "sd1" if name == "AutoencoderTiny" else None
    return ours(calotype.load(folders[name], device="cpu", latent_format=of)), theirs


# what differs in how weights are held; the others are the same, and slow for being many
QUICK = (("AutoencoderKLWan", "loaded"), ("AutoencoderKLWan", "taken"))


def pairs(
    *, quick: tuple[tuple[str, str], ...] = QUICK, ways: tuple[str, ...] = ("loaded", "taken"), names: Any = VAES
) -> Any:
    """Marks a test as one of pairs, of which only some are quick."""
    every = [(name, way) for name in names for way in ways]
    marked = [pytest.param(one, marks=[] if one in quick else pytest.mark.slow, id="-".join(one)) for one in every]
    return pytest.mark.parametrize("pair", marked, indirect=True)


# what `accelerate` makes is seen in whole pipelines
EACH = (*((name, "loaded") for name in VAES), ("AutoencoderKLWan", "taken"))


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


def given(vae: Any, height: int = 2, width: int = 3, count: int = 1, frames: int = 1) -> tuple[Tensor, Tensor]:
    """Pixels and latents for an autoencoder of diffusers, of so many latents."""
    name = next(base.__name__ for base in type(vae).__mro__ if base.__module__.startswith("diffusers."))
    config = vae.config
    f = {"AutoencoderKLQwenImage21": 16, "AutoencoderKLHunyuanImage": 16}.get(name, 8)
    if name == "AutoencoderDC":
        f = 2 ** (len(config["encoder_block_out_channels"]) - 1)
    z = config["z_dim"] if name in FRAMES else config["latent_channels"]
    generator = torch.Generator().manual_seed(7)
    time = [frames] if name in FRAMES else []
    x = torch.rand(count, CHANNELS.get(name, 3), *time, height * f, width * f, generator=generator) * 2 - 1
    return x, torch.randn(count, z, *[(frames + 3) // 4 for _ in time], height, width, generator=generator)


def latents(vae: Any, x: Tensor) -> Tensor:
    """What an encoder says, whatever it is called."""
    output = vae.encode(x)
    found: Tensor = next(iter(output.values()))
    return getattr(found, "parameters", found)


def same(vae: Any, reference: Any, tolerance: float = 1e-4, **size: int) -> None:
    x, z = given(reference, **size)
    with torch.no_grad():
        assert_close(latents(vae, x), latents(reference, x), tolerance)
        assert_close(vae.decode(z).sample, reference.decode(z).sample, tolerance)


@pytest.mark.slow
@pairs(quick=(*QUICK, ("AutoencoderKLQwenImage", "loaded"), ("AutoencoderTiny", "loaded")))
def test_it_computes_what_diffusers_computes(pair: tuple[Any, Any], computed: list[str]) -> None:
    vae, reference = pair
    assert isinstance(vae, type(reference))
    same(vae, reference)
    assert computed == ["encode", "decode"]
    x, z = given(reference)
    for switch in (vae.enable_tiling, vae.enable_slicing):
        switch()
    same(vae, reference, height=1, width=2, count=2)
    (made,) = vae.decode(z, return_dict=False)
    assert torch.equal(made, vae.decode(z).sample)
    (found,) = vae.encode(x, return_dict=False)
    assert type(found) is type(reference.encode(x, return_dict=False)[0])
    assert type(vae.encode(x)) is type(reference.encode(x))
    if hasattr(reference, "tiled_encode"):
        tiles = vae.tiled_encode(x)
        tiles = tiles if isinstance(tiles, Tensor) else next(iter(tiles.values()))
        assert torch.equal(getattr(tiles, "parameters", tiles), latents(vae, x))
        assert torch.equal(vae.tiled_decode(z).sample, made)


@pairs(quick=EACH)
def test_its_configuration_is_theirs(pair: tuple[Any, Any], request: pytest.FixtureRequest) -> None:
    vae, reference = pair
    ours, theirs = ({k: v for k, v in each.config.items() if not k.startswith("_")} for each in pair)
    assert ours.keys() == theirs.keys()
    if request.node.callspec.params["pair"][1] == "loaded":  # which may say the same otherwise
        told = (
            "latents_mean",
            "latents_std",
            "scaling_factor",
            "shift_factor",
            "force_upcast",
            "batch_norm_eps",
            "z_dim",
        )
        ours, theirs = ({key: each[key] for key in told if key in each} for each in (ours, theirs))
    assert json.loads(json.dumps(ours)) == json.loads(json.dumps(theirs))
    for name in dir(reference):
        if not name.startswith("_"):
            assert hasattr(vae, name), name


@pairs(quick=(*QUICK, ("AutoencoderDC", "taken")))
def test_a_narrower_copy_computes(pair: tuple[Any, Any], computed: list[str]) -> None:
    vae, reference = pair
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    z = given(reference)[1]
    expected = vae.decode(z).sample
    vae.to(torch.bfloat16)
    assert {value.dtype for value in vae.state_dict().values()} <= {torch.bfloat16, torch.int64}
    narrow = vae.decode(z.to(torch.bfloat16)).sample
    assert narrow.dtype == torch.bfloat16
    assert_close(narrow.float(), expected, 0.15)
    vae.to(torch.float32)
    if not getattr(vae, "_whole", False):
        assert torch.equal(vae.decode(z).sample, expected)
        assert all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())
    else:
        same(vae, copy.deepcopy(reference).to(torch.bfloat16).float())
    assert "encode" not in computed or vae._whole


COPIES: list[Callable[[Any], Any]] = [copy.deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))]


@pytest.mark.slow
@pairs()
def test_copies_are_their_own(pair: tuple[Any, Any], computed: list[str]) -> None:
    vae, reference = pair
    for make in COPIES:
        again = make(vae)
        same(again, reference)
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.mul_(1.1)
        again.decode(given(reference)[1])
    same(vae, reference)
    assert len(computed) == 8


@pairs(quick=(*QUICK, ("AutoencoderDC", "taken")))
def test_changed_weights_count(pair: tuple[Any, Any], computed: list[str]) -> None:
    vae, reference = pair
    same(vae, reference)
    with torch.no_grad():
        for each in pair:
            for name, parameter in each.named_parameters():
                if name.endswith("weight"):
                    parameter.mul_(0.9)
    same(vae, reference)
    vae.to(torch.bfloat16).to(torch.float32)
    assert computed == ["encode", "decode"] * 2
    same(vae, reference, 0.1)


@pairs(ways=("taken",))
def test_weights_that_are_loaded_count(pair: tuple[Any, Any], computed: list[str]) -> None:
    vae, reference = pair
    state = {
        key: value * 0.9 if key.endswith("weight") else value.clone() for key, value in reference.state_dict().items()
    }
    for each in pair:
        each.load_state_dict(state, assign=each is vae)
    same(vae, reference)
    assert computed == ["encode", "decode"]


@pairs()
def test_gradients_are_those_of_diffusers(pair: tuple[Any, Any], computed: list[str]) -> None:
    found = []
    for each in pair:
        x = given(pair[1])[0].requires_grad_()
        each.requires_grad_(True)
        latents(each, x).square().mean().backward()
        found.append((x.grad, {name: one.grad for name, one in each.named_parameters() if one.grad is not None}))
    assert_close(1e4 * found[0][0], 1e4 * found[1][0], 1e-3)
    assert found[0][1].keys() == found[1][1].keys()
    for name, expected in found[1][1].items():
        result = found[0][1][name]
        if result.shape != expected.shape:  # where slices in time are left out
            expected = expected[:, :, -1:]
        assert (result - expected).abs().max() <= 1e-4 * max(1e-3, float(expected.abs().max()))
    assert computed == []
    pair[0].requires_grad_(False)
    same(*pair)
    assert computed == ["encode", "decode"]


@pairs()
def test_hooks_are_called(pair: tuple[Any, Any], computed: list[str]) -> None:
    plain = pair[1].decode(given(pair[1])[1]).sample
    for each in pair:
        each.decoder.conv_in.register_forward_hook(lambda module, given, made: made * 0.5) if hasattr(
            each.decoder, "conv_in"
        ) else each.decoder.layers[0].register_forward_hook(lambda module, given, made: made * 0.5)
    same(*pair)
    assert computed == []
    assert (pair[0].decode(given(pair[1])[1]).sample - plain).abs().max() > 0.01


@pairs()
def test_sides_that_are_cut_off_are_so_here_too(pair: tuple[Any, Any], computed: list[str]) -> None:
    vae, reference = pair
    x = given(reference, 3, 3)[0][..., :-3, :-5]
    try:
        expected = latents(reference, x)
    except RuntimeError:  # as a shuffle gives it
        with pytest.raises(RuntimeError):
            latents(vae, x)
    else:
        assert_close(latents(vae, x), expected)
    assert computed == []


@pairs(ways=("taken",))
def test_what_is_saved_is_all_there_was(pair: tuple[Any, Any], tmp_path: Path) -> None:
    vae, reference = pair
    vae.save_pretrained(tmp_path)
    again = type(reference).from_pretrained(tmp_path)
    assert again.state_dict().keys() == reference.state_dict().keys()
    assert all(torch.equal(value, reference.state_dict()[key]) for key, value in again.state_dict().items())


@pairs(ways=("loaded",))
def test_it_loads_what_calotype_loads(pair: tuple[Any, Any], classes: Any, folders: dict[str, Path]) -> None:
    vae, reference = pair
    name = type(vae).__name__
    more = {"latent_format": "sd1"} if name == "AutoencoderTiny" else {}
    again = getattr(classes, name).from_pretrained(folders[name], torch_dtype=torch.float32, **more)
    same(again, reference)
    with pytest.raises(UsageError, match=f"{name} of calotype is made of weights"):
        getattr(classes, name).from_config({})


# Networks with something of their own


@pytest.mark.slow
def test_running_statistics_of_flux2_are_kept(classes: Any, folders: dict[str, Path]) -> None:
    theirs = VAES["AutoencoderKLFlux2"]()
    for vae in (
        classes.AutoencoderKLFlux2.of(copy.deepcopy(theirs)),
        classes.AutoencoderKLFlux2.from_pretrained(folders["AutoencoderKLFlux2"]),
    ):
        for key, value in theirs.bn.state_dict().items():
            assert torch.equal(vae.bn.state_dict()[key], value), key
        vae.to(torch.bfloat16)
        assert torch.equal(vae.bn.running_var, theirs.bn.running_var.to(torch.bfloat16))
        vae.to(torch.float32)
        assert torch.equal(vae.bn.running_var, theirs.bn.running_var)
        vae.bn.running_mean.fill_(0.25)  # another model's
        vae.to(torch.bfloat16).to(torch.float32)
        assert (vae.bn.running_mean == 0.25).all()


def test_statistics_of_a_batch_are_left_to_diffusers(classes: Any, computed: list[str]) -> None:
    fields = dcaekit.SMALL["two-levels"] | {"decoder_block_types": "ResBlock", "decoder_norm_types": "batch_norm"}
    theirs = dcaekit.reference(fields, 3)
    vae = classes.AutoencoderDC.of(copy.deepcopy(theirs))
    same(vae, theirs)
    assert len(computed) == 2
    for each in (vae, theirs):
        each.decoder.train()
    same(vae, theirs, count=2)
    assert len(computed) == 2
    for each in (vae, theirs):
        each.eval()
    same(vae, theirs)  # with the statistics that moved
    assert len(computed) == 4


# Frames


@pairs(names=FRAMES)
def test_a_picture_is_a_frame(pair: tuple[Any, Any]) -> None:
    vae, reference = pair
    x, z = given(reference)
    for call, tensor in ((vae.encode, x), (vae.decode, z)):
        with pytest.raises(UsageError, match=r"of frames, \[N, C, frames, height, width\], and these are") as error:
            call(tensor[:, :, 0])
        one_sentence(str(error.value))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AutoencoderKLWan", "AutoencoderKLQwenImage"])
def test_videos_are_diffusers_own_where_their_weights_are(
    name: str, classes: Any, folders: dict[str, Path], computed: list[str]
) -> None:
    theirs = getattr(library(), name).from_pretrained(folders[name])
    whole = getattr(classes, name).of(theirs)
    x, z = given(theirs, frames=5)
    with torch.no_grad():
        assert torch.equal(latents(whole, x), latents(theirs, x))
        assert torch.equal(whole.decode(z).sample, theirs.decode(z).sample)
    part = getattr(classes, name).from_pretrained(folders[name])
    for call, tensor in ((part.encode, x), (part.decode, z), (part.tiled_decode, z)):
        with pytest.raises(UsageError, match="frames, and this VAE has what a single one needs") as error:
            call(tensor)
        one_sentence(str(error.value))
    with pytest.raises(UsageError, match="has what one picture needs, and the folder of an") as error:
        part.save_pretrained(folders[name] / "not")
    one_sentence(str(error.value))
    assert not (folders[name] / "not").exists()
    assert computed == []


@pytest.mark.slow
def test_pictures_alone_take_a_third(classes: Any, folders: dict[str, Path]) -> None:
    def size(vae: Any) -> int:
        return sum(value.numel() for value in vae.state_dict().values())

    name = "AutoencoderKLWan"
    part, whole = classes.AutoencoderKLWan.from_pretrained(folders[name]), VAES[name]()
    assert size(part) < 0.4 * size(whole)
    inside = {value.data_ptr() for value in part._vae.module.state_dict().values()}
    assert {value.data_ptr() for value in part.state_dict().values()} == inside


@pytest.mark.parametrize("name", ["wan-2.2", "qwen-image-layered", "wan-2.1-attention"])
def test_their_kin_are_so_too(name: str, classes: Any, tmp_path: Path, computed: list[str]) -> None:
    from wankit import VARIANTS, theirs

    reference = theirs(name)
    reference.save_pretrained(tmp_path)
    kind, _, config = VARIANTS[name]
    own = getattr(classes, kind)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, config.in_channels, 1, 4 * config.factor, 2 * config.factor, generator=generator) * 2 - 1
    z = torch.randn(1, config.z_channels, 1, 3, 2, generator=generator)
    for vae in (own.of(reference), own.from_pretrained(tmp_path)):
        with torch.no_grad():
            assert_close(vae.decode(z).sample, reference.decode(z).sample)
            if not config.attn_levels:  # whose encoder diffusers can't call
                assert_close(latents(vae, x), latents(reference, x))


# What is refused


@pytest.mark.slow
def test_other_networks_are_refused(classes: Any, folders: dict[str, Path]) -> None:
    vaes = {
        name: calotype.load(folders[name], device="cpu")
        for name in ("AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderKLWan", "AutoencoderDC")
    }
    fitting = {("AutoencoderKLWan", "AutoencoderKLQwenImage"), ("AutoencoderKLWan", "AutoencoderKLQwenImage21")}
    for own in classes.CLASSES:
        for name, vae in vaes.items():
            if name != own.__name__ and (name, own.__name__) not in fitting:
                with pytest.raises(UsageError, match=f"is not what pipelines know as an {own.__name__}; ") as error:
                    own(vae)
                one_sentence(str(error.value))
        with pytest.raises(UsageError, match=f"{own.__name__} takes what calotype.load returns, not str"):
            own("vae")
    residual = calotype.load(folders["AutoencoderKLQwenImage21"], device="cpu")
    with pytest.raises(UsageError, match="is not what pipelines know as an AutoencoderKLQwenImage; "):
        classes.AutoencoderKLQwenImage(residual)


def test_an_unknown_scale_is_refused(classes: Any, tmp_path: Path) -> None:
    video("AutoencoderKLWan", z_dim=6).save_pretrained(tmp_path / "a")
    config = tmp_path / "a" / "config.json"
    config.write_text(config.read_text().replace("latents_mean", "_mean").replace("latents_std", "_std"))
    with pytest.raises(LatentFormatError) as error:
        classes.AutoencoderKLWan.from_pretrained(tmp_path / "a")
    one_sentence(str(error.value))


def test_types_that_no_vae_computes_in(classes: Any) -> None:
    for theirs in (kl().double(), video("AutoencoderKLWan").double()):
        with pytest.raises(UsageError, match=r"float32, bfloat16 or float16, not torch\.float64"):
            getattr(classes, type(theirs).__name__).of(theirs)
    vae = classes.AutoencoderKLWan.of(video("AutoencoderKLWan"))
    with pytest.raises(UsageError, match=r"float32, bfloat16 or float16, not torch\.float64"):
        vae.double()


@pytest.mark.slow
def test_a_device_elsewhere_is_said(classes: Any) -> None:
    for name in ("AutoencoderKLWan", "AutoencoderDC"):
        vae = getattr(classes, name).of(VAES[name]())
        x, z = given(vae)
        vae.to("meta")
        for call, tensor in ((vae.encode, x), (vae.decode, z)):
            with pytest.raises(UsageError, match="moved to the device 'meta'"):
                call(tensor)
