"""Training from weights of any family: the decoder learns, all else is as it was, and the result loads everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dcaekit import SMALL as DCAE, reference
from PIL import Image
from support import assert_close, fill, import_diffusers, network, one_sentence, write
from torch import Tensor
from trainkit import FOLDED, changed, crops, make, no_track, picture, png, write_pictures
from wankit import VARIANTS, originals, theirs

from calotype import load
from calotype.errors import UsageError, WeightsError
from calotype.families import FAMILIES, make_network, program
from calotype.families.hunyuan.config import HunyuanImageConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.kl.presets import PRESETS
from calotype.families.taehv.config import TaehvConfig
from calotype.families.tiny.config import TinyConfig
from calotype.families.vq.config import VqConfig
from calotype.families.wan.config import WanConfig
from calotype.families.wan.presets import WAN_21
from calotype.latents import KNOWN, Packed, PerChannel, ScaleShift
from calotype.pixels import from_array
from calotype.train import checkpoint
from calotype.train.crops import Crops, centre_crop, gather
from calotype.train.estimate import Estimate, estimate
from calotype.train.export import validate
from calotype.train.loop import Helpers
from calotype.train.model import last_layer, triples
from calotype.train.optim import optimisers_of
from calotype.train.recipe import Adversarial, Recipe, Source, Start, Teacher, load_recipe
from calotype.train.run import Options, train
from calotype.train.start import network_of
from calotype.train.watch import panel
from calotype.weights.container import open_container
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

KL = AutoencoderConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4)
VQ = VqConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, n_embed=40, norm_groups=4)
HUNYUAN = HunyuanImageConfig(channels=(32, 64, 64), num_res_blocks=1, z_channels=16)
FLUX2: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "latent_channels": 4,
                         "norm_num_groups": 4, "down_block_types": ("DownEncoderBlock2D",) * 2,
                         "up_block_types": ("UpDecoderBlock2D",) * 2, "batch_norm_eps": 1e-3}  # fmt: skip


def ran(recipe: Recipe, data: Path, out: Path, **options: bool) -> tuple[Path | None, list[str]]:
    """The path that `train` gives, and its notices."""
    notices: list[str] = []
    path = train(
        recipe, data, out, Options(device="cpu", tensorboard=False, workers=1, **options),
        report=lambda line: None, notice=notices.append, track=no_track,
    )  # fmt: skip
    return path, notices


# --- what there is to begin from ---


def saved(module: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    if dtype != torch.float32:
        module.to(dtype)
    module.save_pretrained(folder)
    return folder


def _flux2(folder: Path) -> Path:
    return saved(fill(import_diffusers().AutoencoderKLFlux2(**FLUX2), 3), folder)


def _hunyuan(folder: Path) -> Path:
    module = import_diffusers().AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=16, block_out_channels=(32, 64, 64), layers_per_block=1,
        spatial_compression_ratio=4, sample_size=64, scaling_factor=0.75289,
    )  # fmt: skip
    return saved(fill(module, 4), folder)


def _original(folder: Path) -> Path:
    tensors = originals(theirs("wan-2.1"), VARIANTS["wan-2.1"][2])
    tensors = {key: value.to(torch.bfloat16).contiguous() for key, value in tensors.items()}
    return write(folder / "Wan2.1_VAE.safetensors", tensors)


def _flat(folder: Path) -> Path:
    save_weights(
        load_weights(saved(theirs("wan-2.1"), folder / "3d")).module, folder / "2d", layout="diffusers-2d",
        format_=KNOWN["wan2.1"],
    )  # fmt: skip
    return folder / "2d"


def _ldm(config: Any, format_: str | None) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        path = folder / "x.safetensors"
        folder.mkdir()
        save_weights(network(config), path, layout="ldm", format_=KNOWN[format_] if format_ else None)
        return path

    return made


@dataclass(frozen=True)
class Case:
    """Weights to begin from.

    Attributes:
        make: writes them into a folder, and says where.
        layout: that they are in.
        class_: diffusers' class that what comes out loads in; "" if there is none.
        frames: decoders of video VAEs take latents of one frame.
        rate: of learning.
    """

    make: Callable[[Path], Path]
    layout: str
    class_: str = ""
    frames: bool = False
    rate: float = 1e-2


def wan(variant: str, dtype: torch.dtype = torch.float32) -> Case:
    return Case(lambda folder: saved(theirs(variant), folder, dtype), "diffusers", VARIANTS[variant][0], True)


CASES = {
    "sd1": Case(_ldm(KL, "sd1"), "ldm", "AutoencoderKL"),
    "flux2": Case(_flux2, "diffusers", "AutoencoderKLFlux2"),
    "qwen-image": wan("qwen-image", torch.bfloat16),
    "qwen-image-2.1": wan("qwen-image-2.1"),
    "wan-2.2": wan("wan-2.2"),
    "wan-2.1, original": Case(_original, "ldm", "AutoencoderKLWan", True),
    "wan-2.1, flat": Case(_flat, "diffusers-2d"),
    "dc-ae": Case(lambda folder: saved(reference(DCAE["sana"]), folder), "diffusers", "AutoencoderDC"),
    "dc-ae with batch norms": Case(lambda folder: saved(reference(DCAE["f32"]), folder), "diffusers", "AutoencoderDC"),
    "hunyuan-image": Case(_hunyuan, "diffusers", "AutoencoderKLHunyuanImage"),
    "taesd": Case(_ldm(TinyConfig(), "sd1"), "taesd", rate=2e-3),
    "taew2_1": Case(_ldm(TaehvConfig(), "wan2.1"), "taehv", rate=2e-3),
    "vq": Case(_ldm(VQ, None), "ldm", "VQModel"),
    "built in": Case(_ldm(FOLDED, None), "calotype"),
}


@dataclass(frozen=True)
class Run:
    """A finished run."""

    case: Case
    begin: Path
    out: Path
    path: Path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures", 5).parent


def recipe_for(begin: Path, **values: Any) -> Recipe:
    return changed(
        **{
            "network": network_of(str(begin)), "start": Start(weights=str(begin)), "phases": (), "crop": 32, "batch": 2,
            "steps": 8, "optimiser": "adam", "learning_rate": 1e-2, "cooldown": 0, "warmup": 1, "ema_decay": 0.0,
            "latent": "mode", "flip": False, "zoom": 1.0, "log_every": 8, "checkpoint_every": 8, **values,
        }
    )  # fmt: skip


RARER = ("dc-ae", "wan-2.1, flat", "hunyuan-image", "taesd", "taew2_1", "vq")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in RARER)) for name in CASES]
)
def run(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    case = CASES[request.param]
    begin = case.make(folder / "begin")
    path, _ = ran(recipe_for(begin, learning_rate=case.rate), data, folder / "out")
    assert path is not None
    return Run(case, begin, folder / "out", path)


def weights_in(place: Path) -> Path:
    return place / "diffusion_pytorch_model.safetensors" if place.is_dir() else place


def as_it_came(run: Run) -> Path:
    """What has the layout of what it began from."""
    return run.out / "diffusers" if run.case.layout.startswith("diffusers") else run.path


def bytes_of(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def is_decoder(key: str, layout: str) -> bool:
    return key.startswith(("decoder.", "post_quant_conv.", *(["conv2."] if layout == "ldm" else [])))


# --- what comes out ---


@pytest.mark.slow
def test_the_loss_falls(run: Run) -> None:
    batch = torch.cat([centre_crop(picture(i), 32) for i in range(1, 5)])
    losses = []
    for place in (run.begin, run.path):
        module = load(place, device="cpu").module
        if module.config.picture_channels == 4:
            batch = torch.cat([batch[:, :3], torch.ones_like(batch[:, :1])], 1)
        with torch.inference_mode():
            losses.append(float((module.decode(module.encode(batch).mode()) - batch).abs().mean()))
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.slow
def test_what_was_not_trained_is_as_it_was(run: Run) -> None:
    """In the layout in which it came: the same names, shapes and types, and all but the decoder the same bytes."""
    before, after = (open_container(weights_in(place)) for place in (run.begin, as_it_came(run)))
    assert before.shapes == after.shapes
    changed_keys, moved = set(), set()
    for key in before.shapes:
        old, new = before.read(key), after.read(key)
        if bytes_of(old) != bytes_of(new):
            changed_keys.add(key)
            assert new.dtype == torch.float32
            moved |= {key} if not torch.equal(old.float(), new) else set()
            if old.ndim == 5:  # what acts on the frames before
                assert torch.equal(old[:, :, :-1].float(), new[:, :, :-1])
    assert all(is_decoder(key, run.case.layout) for key in changed_keys)
    assert not any("time_conv" in key or "running" in key for key in changed_keys)
    assert {key for key in before.shapes if is_decoder(key, run.case.layout)} - moved <= {
        key for key in before.shapes if "time_conv" in key or "running" in key or "num_batches" in key
    }


def test_the_layout_is_that_it_came_in(run: Run) -> None:
    before, after = load_weights(run.begin), load_weights(as_it_came(run))
    assert after.layout == before.layout == run.case.layout
    assert after.module.config == before.module.config == load_weights(run.path).module.config
    if run.begin.is_dir():
        configs = [json.loads((place / "config.json").read_text()) for place in (run.begin, as_it_came(run))]
        assert configs[0].items() <= configs[1].items()
        assert configs[1].keys() - configs[0].keys() <= {"latents_mean", "latents_std"}


def test_the_latent_format_is_kept(run: Run) -> None:
    before = load_weights(run.begin).format
    if before is None:  # nothing told it, so it was measured
        assert isinstance(load_weights(run.path).format, PerChannel)
        return
    for place in {run.path, as_it_came(run)}:
        assert load_weights(place).format == before


def test_both_layouts_are_of_the_same_network(run: Run) -> None:
    if not (run.out / "diffusers").exists():
        pytest.skip("this family has one layout")
    first, second = (load_weights(place).module.state_dict() for place in (run.path, run.out / "diffusers"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_it_loads_in_diffusers(run: Run) -> None:
    if not run.case.class_:
        pytest.skip("diffusers has no class for it")
    class_ = getattr(import_diffusers(), run.case.class_)
    module = class_.from_pretrained(run.out / "diffusers").eval()
    vae = load(run.path, device="cpu")
    z = torch.randn(1, vae.latent_channels, 3, 2, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        picture_ = module.decode(z[:, :, None] if run.case.frames else z).sample
        picture_ = picture_[:, :, 0] if run.case.frames else picture_
        assert_close(vae.module.decode(z).clamp(-1, 1) if run.case.frames else vae.module.decode(z), picture_)


@pytest.mark.slow
def test_flux2_keeps_its_statistics(tmp_path: Path, data: Path) -> None:
    begin = _flux2(tmp_path / "begin")
    path, _ = ran(recipe_for(begin, steps=1), data, tmp_path / "out")
    assert path is not None
    class_ = import_diffusers().AutoencoderKLFlux2
    before, after = (class_.from_pretrained(place) for place in (begin, tmp_path / "out" / "diffusers"))
    assert torch.equal(before.bn.running_mean, after.bn.running_mean)
    assert torch.equal(before.bn.running_var, after.bn.running_var)
    assert before.config.batch_norm_eps == after.config.batch_norm_eps == 1e-3
    format_ = load_weights(path).format
    assert isinstance(format_, Packed)
    assert format_ == load_weights(begin).format


@pytest.mark.slow
def test_a_narrower_export_leaves_the_frozen_half_alone(tmp_path: Path, data: Path) -> None:
    begin = CASES["qwen-image"].make(tmp_path / "begin")
    path, _ = ran(recipe_for(begin, steps=1, export_dtype="float16"), data, tmp_path / "out")
    assert path is not None
    module = open_container(weights_in(tmp_path / "out" / "diffusers"))
    dtypes = {side: {module.read(key).dtype for key in module.shapes if key.startswith(side)}
              for side in ("encoder", "decoder")}  # fmt: skip
    assert dtypes["encoder"] == {torch.bfloat16}
    assert dtypes["decoder"] == {torch.float16, torch.bfloat16}  # over time alone it was not trained
    assert (
        "encoder is as it was there, bit for bit. It was trained on single pictures"
        in (tmp_path / "out" / "README.md").read_text()
    )


@pytest.mark.slow
def test_keras_files_come_out_as_keras_files(tmp_path: Path, data: Path) -> None:
    pytest.importorskip("h5py")
    config = AutoencoderConfig(ch=32)
    save_weights(network(config), tmp_path / "begin", layout="keras", format_=KNOWN["sd1"])
    path, _ = ran(recipe_for(tmp_path / "begin", steps=1, batch=1), data, tmp_path / "out")
    assert path is not None
    again, before = load_weights(tmp_path / "out" / "keras"), load_weights(tmp_path / "begin")
    assert again.layout == "keras"
    state, old = again.module.state_dict(), before.module.state_dict()
    assert {key.split(".")[0] for key in state if not torch.equal(state[key], old[key])} == {
        "decoder", "post_quant_conv",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "begin",
    [
        "dc-ae",
        "wan-2.1, flat",
        "flux2",
        pytest.param("hunyuan-image", marks=pytest.mark.slow),
    ],
)
def test_all_of_it_can_be_trained(begin: str, tmp_path: Path, data: Path) -> None:
    """Then latents are others, and config.json says so as well as it can."""
    place = CASES[begin].make(tmp_path / "begin")
    recipe = recipe_for(place, steps=1, start=Start(weights=str(place), train="all"))
    path, _ = ran(recipe, data, tmp_path / "out")
    assert path is not None
    measured, told = load_weights(path).format, load_weights(tmp_path / "out" / "diffusers").format
    assert isinstance(measured, PerChannel)
    assert measured.name == "tiny"
    if begin == "wan-2.1, flat":
        assert told == measured
    else:
        assert isinstance(told, ScaleShift)
        assert (told.shift_factor == 0) == (begin != "flux2")
    old, new = load_weights(place).module.state_dict(), load_weights(path).module.state_dict()
    assert not torch.equal(old[next(iter(old))], new[next(iter(new))])


def test_a_codebook_is_not_trained(tmp_path: Path) -> None:
    begin = CASES["vq"].make(tmp_path / "begin")
    settings = [f"start={begin}", "adversarial=none"]
    assert load_recipe("qwen-decoder", settings, network_of).network == VQ
    for part in ("all", "encoder"):
        with pytest.raises(UsageError, match=f"start.train = {part} can't be with a network of the kind vq") as caught:
            load_recipe("qwen-decoder", [*settings, f"start.train={part}"], network_of)
        one_sentence(str(caught.value))


@pytest.mark.parametrize("turn", [1, -1])
def test_settings_of_a_start_come_in_any_order(turn: int, tmp_path: Path) -> None:
    begin = CASES["sd1"].make(tmp_path / "begin")
    recipe = load_recipe("ft-mse", [f"start={begin}", "start.train=all"][::turn], network_of)
    assert recipe.start == Start(weights=str(begin), train="all")


# --- parts of the loop that ask a network what it is ---


NETWORKS = [
    KL, AutoencoderConfig(ch=8, num_res_blocks=1, norm_groups=4, condition=True),
    WanConfig(base_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1), VARIANTS["qwen-image-2.1"][2], HUNYUAN,
    TinyConfig(), TaehvConfig(), VQ, FOLDED,
]  # fmt: skip


def dcae() -> Any:
    from calotype.families.dcae.config import DcaeConfig

    return DcaeConfig(
        z_channels=4, encoder_ch=(8, 16), decoder_ch=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1),
        encoder_attn_levels=(1,), decoder_attn_levels=(1,), encoder_scales=((), (5,)), decoder_scales=((), (5,)),
        head_dim=4, decoder_norms=("batch", "rms"), decoder_activations=("relu", "silu"),
    )  # fmt: skip


def test_there_is_a_network_of_every_family() -> None:
    assert {type(config) for config in (*NETWORKS, dcae())} == {family.config for family in FAMILIES}


@pytest.mark.parametrize("config", [*NETWORKS, dcae()], ids=lambda config: config.kind)
def test_losses_are_weighed_at_the_convolution_that_makes_pixels(config: Any) -> None:
    module = make_network(config)
    steps = [step.weights for step in program(config, "decode").steps if getattr(step, "weights", None)]
    assert last_layer(module, "decoder") is module.get_parameter(f"{steps[-1]}.weight")


@pytest.mark.parametrize("config", [*NETWORKS, dcae()], ids=lambda config: config.kind)
@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_norms_do_not_decay_and_muon_takes_matrices(config: Any, optimiser: str) -> None:
    recipe = changed(network=config, optimiser=optimiser, phases=(), crop=32, weight_decay=0.1)
    trainer = make(recipe)
    names = {id(p): name for name, p in trainer.network.named_parameters()}
    norms = {
        f"{name}.{leaf}" for name, module in trainer.network.named_modules() if "Norm" in type(module).__name__
        for leaf, _ in module.named_parameters(recurse=False)
    }  # fmt: skip
    seen = set()
    for one in optimisers_of(recipe, trainer.own):
        for group in one.param_groups:
            inside = {names[id(p)] for p in group["params"] if id(p) in names}
            seen |= inside
            if type(one).__name__ == "Muon":
                modules = {name.removesuffix(".weight") for name in inside}
                assert all(trainer.network.get_submodule(name).groups == 1 for name in modules)  # type: ignore[union-attr]
            elif group["weight_decay"]:
                assert inside.isdisjoint(norms)
            else:
                assert inside == norms
    assert seen == {name for name, p in trainer.network.named_parameters() if p.requires_grad}


def test_what_is_frozen_takes_no_memory_for_gradients() -> None:
    def taken(half: Any) -> Estimate:
        helpers = Helpers(start=network(KL).requires_grad_(True))
        return estimate(make(changed(network=KL, phases=(), start=Start(weights="x", train=half)), helpers))

    module, frozen, all_ = network(KL), taken("decoder"), taken("all")
    size = {"decoder": 0, "encoder": 0}
    for name, p in module.named_parameters():
        size["decoder" if is_decoder(name, "") else "encoder"] += 4 * p.numel()
    assert all_.weights - frozen.weights == pytest.approx(3 * size["encoder"], abs=16)
    assert frozen.crop < 0.7 * all_.crop


@pytest.mark.parametrize("config", [*NETWORKS, dcae()], ids=lambda config: config.kind)
def test_blocks_that_are_computed_again_save_memory_and_change_nothing(config: Any) -> None:
    losses, kept, gradients = [], [], []
    for saving in (False, True):
        recipe = changed(
            network=config, phases=(), optimiser="adam", crop=32, batch=1, gradient_checkpointing=saving,
            start=Start(weights="x"), kl_weight=0.0, latent="mode",
        )  # fmt: skip
        trainer = make(recipe, Helpers(start=network(config).requires_grad_(True)))
        kept.append(estimate(trainer).crop)
        loss = trainer.losses(np.repeat(crops(recipe), 2, 3)[..., : config.picture_channels])
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({name: p.grad for name, p in trainer.network.named_parameters() if p.grad is not None})
    assert kept[1] < 0.8 * kept[0]
    assert losses[0] == losses[1]
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


def test_batch_norms_that_are_trained_are_measured_with_their_statistics() -> None:
    config = dcae()
    trainer = make(changed(network=config, phases=(), optimiser="adam"))
    norm = trainer.network.get_submodule("decoder.stages.0.op_list.1.main.conv2.norm")
    assert isinstance(norm, torch.nn.BatchNorm2d)
    first = norm.running_mean.clone()
    trainer.train_step(crops(trainer.recipe))
    moved = norm.running_mean.clone()
    assert not torch.equal(first, moved)
    with trainer.averaged() as averaged:
        x = torch.cat([centre_crop(picture(i), 16, 16) for i in range(3)])
        together = averaged.decode(averaged.encode(x).mode())
        assert_close(averaged.decode(averaged.encode(x[:1]).mode()), together[:1], 1e-5)
    assert trainer.network.training
    assert torch.equal(norm.running_mean, moved)


def test_linear_attention_sums_in_float32_under_autocast() -> None:
    module: Any = next(one for one in network(dcae()).modules() if type(one).__name__ == "LinearAttention")
    seen: dict[str, Tensor] = {}
    module.qkv.register_forward_hook(lambda _, given, made: seen.update(qkv=made))
    module.aggreg[0].register_forward_hook(lambda _, given, made: seen.update(scale=made))
    module.proj.register_forward_pre_hook(lambda _, given: seen.update(mixed=given[0]))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        module(torch.randn(1, 16, 24, 24))
    assert seen["qkv"].dtype == torch.bfloat16
    heads = torch.cat([seen["qkv"], seen["scale"]], 1).double().reshape(1, -1, 3, 4, 24 * 24)
    q, k, v = heads.unbind(2)
    products = torch.einsum("nhcp,nhcq->nhpq", q.relu(), k.relu())
    expected = torch.einsum("nhpq,nhcq->nhcp", products / (products.sum(-1, keepdim=True) + 1e-15), v)
    assert_close(seen["mixed"].double().flatten(), expected.flatten(), 1e-5)


# --- pictures with alpha ---


def with_alpha(seed: int) -> np.ndarray:
    """Colours that fade out to the right."""
    colours = picture(seed)
    fade = np.linspace(1, 255, colours.shape[1]).round().astype(np.uint8)
    return np.dstack([colours, np.broadcast_to(fade, colours.shape[:2])])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Pictures with alpha, without, and grey ones."""
    folder = tmp_path / "data" / "pictures"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(png(picture(0)))
    Image.fromarray(with_alpha(1)).save(folder / "b.png")
    (folder / "c.png").write_bytes(png(picture(2), "L"))
    Image.fromarray(with_alpha(3)).save(folder / "d.png")
    return folder.parent


def test_alpha_comes_into_the_crops(mixed: Path) -> None:
    pictures, _ = gather((Source(path="pictures"),), mixed, cache=10**6, notice=str, alpha=True)
    arrays = [pictures.read(i) for i in range(4)]
    assert all(array.shape == (40, 48, 4) for array in arrays)
    assert np.array_equal(arrays[1], with_alpha(1))
    assert np.array_equal(arrays[0][..., :3], picture(0))
    assert np.array_equal(arrays[2][..., 0], arrays[2][..., 2])
    assert all((arrays[i][..., 3] == 255).all() for i in (0, 2))
    rgb, _ = gather((Source(path="pictures"),), mixed, cache=10**6, notice=str)
    cut = [Crops(one, crop=16, seed=2, zoom=2.0, channels=n) for one, n in ((rgb, 3), (pictures, 4))]
    for position in range(8):
        (a, name), (b, _) = (one.at(position) for one in cut)
        if name in ("a.png", "c.png"):  # what is opaque is cut and resized as it is without alpha
            assert np.array_equal(a, b[..., :3])
            assert (b[..., 3] == 255).all()


@pytest.mark.slow
def test_an_rgba_decoder_learns_alpha(mixed: Path, tmp_path: Path) -> None:
    begin = CASES["qwen-image-2.1"].make(tmp_path / "begin")
    sources = (Source(path="pictures", hold_out=4),)
    path, _ = ran(recipe_for(begin, sources=sources, steps=16), mixed, tmp_path / "out")
    assert path is not None
    x = torch.cat([centre_crop(with_alpha(i), 32) for i in (1, 3)])
    errors = []
    for place in (begin, path):
        module = load(place, device="cpu").module
        with torch.inference_mode():
            errors.append(float((module.decode(module.encode(x).mode()) - x)[:, 3].abs().mean()))
    assert errors[1] < 0.8 * errors[0]
    assert (tmp_path / "out" / "panels" / "step-00000008.png").exists()
    assert "held_out_psnr" in (tmp_path / "out" / "metrics.jsonl").read_text()


class Distance(torch.nn.Module):
    """Something like LPIPS, but small; remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.seen.append((x, y))
        return (x - y).square().flatten(1).mean(1)


def test_networks_for_rgb_see_alpha_over_white_and_black() -> None:
    x = from_array(with_alpha(0))[None]
    white, black = triples(torch.cat([x, x]))[2:]
    opacity = (x[0, 3] + 1) / 2
    assert torch.allclose(white, x[0, :3] * opacity + (1 - opacity), atol=1e-6)
    assert torch.allclose(black, x[0, :3] * opacity - (1 - opacity), atol=1e-6)
    assert triples(x[:, :3]).data_ptr() == x.data_ptr()

    config = VARIANTS["qwen-image-2.1"][2]
    gan = Adversarial(start=0, ndf=4, layers=1, norm="group")
    recipe = changed(
        network=config, phases=(), crop=16, batch=2, optimiser="adam", perceptual=1.0, adversarial=gan, latent="mode",
        kl_weight=0.0,
    )  # fmt: skip
    distance = Distance()
    trainer = make(recipe, Helpers(start=network(config).requires_grad_(True), perceptual=distance))
    batch = np.stack([with_alpha(i)[:16, 8:24] for i in range(2)])
    line = trainer.train_step(batch)
    x = from_array(batch)
    seen, made = distance.seen[0]
    assert torch.equal(seen, triples(x))
    assert made.shape == (4, 3, 16, 16)
    assert line["lpips"] == pytest.approx(float((seen - made.detach()).square().mean()), rel=1e-5)
    assert line["adversarial_weight"] > 0


def test_held_out_pictures_with_alpha_are_measured_and_shown() -> None:
    module = network(VARIANTS["qwen-image-2.1"][2])
    with torch.inference_mode():
        found = validate(module, [with_alpha(0)], Distance())
        x = centre_crop(with_alpha(0), module.config.factor)
        y = module.decode(module.encode(x).mode())
        assert found["lpips"] == pytest.approx(float((triples(x) - triples(y.clamp(-1, 1))).square().mean()), rel=1e-5)
        shown = np.asarray(panel(module, [with_alpha(0)], 0))
    opacity = with_alpha(0)[..., 3:] / 255
    over_grey = picture(0) * opacity + 127.5 * (1 - opacity)
    first = shown[:64, :64].astype(float)
    assert np.abs(first[12:52, 8:56] - over_grey).max() <= 1


# --- what a recipe says of a start ---


def test_recipes_for_decoders() -> None:
    qwen, flux2 = load_recipe("qwen-decoder"), load_recipe("flux2-decoder")
    assert qwen.network == WAN_21
    assert flux2.network == PRESETS["flux2-vae"].config
    assert (qwen.start, flux2.start) == (Start(weights="qwen-image-vae"), Start(weights="flux2-vae"))
    ft_mse = load_recipe("ft-mse")
    for recipe in (qwen, flux2):
        assert recipe.start and recipe.start.train == "decoder"
        for key in ("reconstruction", "perceptual", "batch", "learning_rate", "betas", "ema_decay", "crop"):
            assert getattr(recipe, key) == getattr(ft_mse, key), key
        assert recipe.adversarial is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("qwen-decoder", "qwen-image"),
        ("flux2-decoder", "flux2"),
        pytest.param("qwen-decoder", "qwen-image-2.1", marks=pytest.mark.slow),
        pytest.param("kl-f8", "dc-ae", marks=pytest.mark.slow),
    ],
)
def test_any_weights_can_be_given(name: str, begin: str, tmp_path: Path, data: Path) -> None:
    """Their network takes the place of the recipe's; a dry run, a run, and going on with it."""
    place = CASES[begin].make(tmp_path / "begin")
    settings = [
        f"start={place}", "crop=32", "batch=2", "accumulate=1", "perceptual=0", "enlarge=true", "steps=4",
        "adversarial.start=2", "adversarial.warm_up=1", "adversarial.ndf=4", "sources.0.path=pictures",
        "checkpoint_every=2", "learning_rate=1e-3",
    ]  # fmt: skip
    recipe = load_recipe(name, settings, network_of)
    assert recipe.network == network_of(str(place))
    assert recipe.start == Start(weights=str(place), train="decoder")
    path, notices = ran(recipe, data, tmp_path / "out", dry_run=True)
    assert path is None
    assert "Nothing was written. 4 pictures" in notices[-1]
    assert ran(recipe, data, tmp_path / "whole")[0]
    ran(recipe, data, tmp_path / "out")
    (tmp_path / "out" / "checkpoints" / "step-00000004.pt").unlink()
    path, _ = ran(recipe, data, tmp_path / "out", resume=True)
    assert path is not None
    assert load_weights(path).sha256 == load_weights(tmp_path / "whole" / "weights.safetensors").sha256


def test_the_decoder_is_what_a_start_trains() -> None:
    assert Start(weights="x").train == "decoder"
    for name in ("fp16-fix", "builtin-finish", "builtin-adversarial"):
        start = load_recipe(name).start
        assert start is not None
        assert start.train == "all"


# --- bad input ---


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_half_a_vae_is_no_start(half: str, tmp_path: Path, data: Path) -> None:
    module = network(KL)
    tensors = {key: value for key, value in module.state_dict().items()
               if is_decoder(key, "") == (half == "decoder")}  # fmt: skip
    config = {"calotype_config": json.dumps(KL.to_dict())}
    begin = write(tmp_path / "half.safetensors", tensors, config)
    other = {"encoder": "decoder", "decoder": "encoder"}[half]
    with pytest.raises(UsageError, match=f"holds an? {half} alone, and training needs its {other} too") as caught:
        ran(recipe_for(begin), data, tmp_path / "out")
    one_sentence(str(caught.value))
    assert not (tmp_path / "out").exists()
    recipe = changed(network=KL, teacher=Teacher(weights=str(begin), target="teacher"), crop=16, phases=())
    with pytest.raises(UsageError, match=rf"The teacher .* holds an? {half} alone, and training needs its {other}"):
        ran(recipe, data, tmp_path / "out")


def test_what_is_no_vae_is_no_start(tmp_path: Path, data: Path) -> None:
    write(tmp_path / "x.safetensors", {"lm_head.weight": torch.zeros(4, 4)})
    with pytest.raises(WeightsError, match=r"not a VAE|no VAE") as caught:
        load_recipe("qwen-decoder", [f"start={tmp_path / 'x.safetensors'}"], network_of)
    one_sentence(str(caught.value))


def test_another_network_than_the_recipes_is_refused(tmp_path: Path, data: Path) -> None:
    begin = CASES["qwen-image"].make(tmp_path / "begin")
    recipe = recipe_for(begin, network=KL)
    with pytest.raises(UsageError, match=r"kind wan, not autoencoder_kl; leave the recipe's network out") as caught:
        ran(recipe, data, tmp_path / "out")
    one_sentence(str(caught.value))


@pytest.mark.parametrize(("begin", "factor"), [("dc-ae", 32), ("wan-2.2", 8), ("sd1", 2)])
def test_crops_are_multiples_of_what_a_latent_stands_for(begin: str, factor: int, tmp_path: Path) -> None:
    place = CASES[begin].make(tmp_path / "begin")
    with pytest.raises(UsageError, match=rf"crop must be a multiple of {factor}, .*, not {factor + 1}") as caught:
        load_recipe("kl-f8", [f"start={place}", f"crop={factor + 1}"], network_of)
    one_sentence(str(caught.value))


def test_grey_vaes_are_not_trained(tmp_path: Path) -> None:
    place = saved(reference(DCAE["grey"]), tmp_path / "begin")
    with pytest.raises(UsageError, match=r"in_channels must be 3 \(RGB\) or 4 \(RGBA\), not 1") as caught:
        load_recipe("kl-f8", [f"start={place}"], network_of)
    one_sentence(str(caught.value))


@pytest.mark.slow
def test_a_run_goes_on_with_the_weights_that_it_began_from_only(tmp_path: Path, data: Path) -> None:
    begin = CASES["sd1"].make(tmp_path / "begin")
    recipe = recipe_for(begin, steps=2, checkpoint_every=1)
    ran(recipe, data, tmp_path / "out")
    last = checkpoint.newest(tmp_path / "out")
    assert last is not None
    last.unlink()
    save_weights(network(KL, seed=9), begin, layout="ldm", format_=KNOWN["sd1"])
    with pytest.raises(UsageError, match="began from other weights than") as caught:
        ran(recipe, data, tmp_path / "out", resume=True)
    one_sentence(str(caught.value))


def test_the_weights_it_begins_from_are_not_overwritten(tmp_path: Path, data: Path) -> None:
    """Also where they lie in the run's folder."""
    out = tmp_path / "out"
    begin = CASES["qwen-image"].make(out / "diffusers")
    before = {file.name: file.read_bytes() for file in begin.iterdir()}
    with pytest.raises(UsageError, match="would be overwritten; give another --out"):
        ran(recipe_for(begin), data, out)
    assert {file.name: file.read_bytes() for file in begin.iterdir()} == before
