"""What would lose a gradient is refused, and everything else is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import SMALL, assert_close, kl, one_sentence, tiny
from torch import Tensor
from torch.autograd import forward_ad

from calotype.errors import UsageError
from calotype.families.tiny.config import TinyConfig
from calotype.latents import KNOWN, same_as_model
from calotype.pixels import Picture
from calotype.vae import VAE
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

X = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
Z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def vae(tmp_path: Path) -> VAE:
    save_weights(kl(SMALL), tmp_path / "a.safetensors", layout="ldm", format_=KNOWN["sd1"])
    return VAE(load_weights(tmp_path / "a.safetensors"), name="test")


def refused(call: Callable[[], object], what: str, instead: str) -> None:
    with pytest.raises(UsageError, match=f"without gradients, and {what} require them.*{instead}") as error:
        call()
    one_sentence(str(error.value).replace(". Call", "; call"))


def test_pixels_and_latents_that_require_gradients(vae: VAE, tmp_path: Path) -> None:
    x, z = X.clone().requires_grad_(), Z.clone().requires_grad_()
    latents = replace(vae.encode_image(Picture(X[0], None, ())), tensor=z[0])
    encodes: list[Callable[[], object]] = [
        lambda: vae.encode(x),
        lambda: vae.encode(x * 0.5),
        lambda: vae.encode_rows(lambda top, bottom: x[0, :, top:bottom], 16, 16),
        lambda: vae.encode_image(Picture(x[0], None, ())),
        lambda: vae.encode_images([Picture(x[0] * 0.5, None, ())]),
    ]
    decodes: list[Callable[[], object]] = [
        lambda: vae.decode(z),
        lambda: vae.decode(z * 2, (15, 16)),
        lambda: list(vae.decode_rows(z[0])),
        lambda: vae.decode_image(latents),
        lambda: vae.write_image(tmp_path / "a.png", latents),
    ]
    for call in encodes:
        refused(call, "the pixels", r"vae\.module\.encode")
    for call in decodes:
        refused(call, "the latents", r"vae\.module\.decode")
    assert not (tmp_path / "a.png").exists()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            for call in (*encodes, *decodes):
                call()
    for call in (lambda: vae.encode(x.detach()), lambda: vae.decode(z.detach())):
        call()


def test_the_module_has_the_gradients(vae: VAE) -> None:
    x, z = X.clone().requires_grad_(), Z.clone().requires_grad_()
    vae.module.encode(x).mode().sum().backward()  # type: ignore[no-untyped-call]
    vae.module.decode(z).sum().backward()  # type: ignore[no-untyped-call]
    for given in (x, z):
        assert given.grad is not None
        assert given.grad.abs().max() > 0
    with torch.no_grad():
        assert_close(vae.module.encode(x).mode(), vae.encode(x).mode())
        assert_close(vae.module.decode(z), vae.decode(z, clamp=False))


@pytest.mark.parametrize(("side", "free"), [("encoder", "decode"), ("decoder", "encode")])
@pytest.mark.parametrize("beside", [False, True])
def test_weights_that_require_gradients(vae: VAE, side: str, free: str, beside: bool) -> None:
    """Only those that take part count: an encoder that stays as it is encodes for a decoder that is trained."""
    name = {"encoder": "quant_conv", "decoder": "post_quant_conv"}[side] if beside else side
    getattr(vae.module, name).requires_grad_(True)
    calls: dict[str, list[Callable[[], object]]] = {
        "encode": [lambda: vae.encode(X), lambda: vae.encode_rows(lambda a, b: X[0, :, a:b], 16, 16)],
        "decode": [lambda: vae.decode(Z), lambda: list(vae.decode_rows(Z[0]))],
    }
    for direction, of in calls.items():
        for call in of:
            if direction == free:
                call()
            else:
                refused(call, "its weights", rf"vae\.module\.{direction}")
                with torch.no_grad():
                    call()
    vae.module.requires_grad_(False)
    vae.encode(X)
    vae.decode(Z)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own use of it
def test_forward_mode_is_seen_too(vae: VAE) -> None:
    with forward_ad.dual_level():
        x, z = (forward_ad.make_dual(one, torch.ones_like(one)) for one in (X, Z))
        refused(lambda: vae.encode(x), "the pixels", "module")
        refused(lambda: vae.decode(z), "the latents", "module")

    def loss(z: Tensor) -> Tensor:
        return vae.decode(z).sum()

    with pytest.raises(UsageError, match="without gradients"):
        torch.func.grad(loss)(Z)


def test_a_network_without_convolutions_beside_the_latents(tmp_path: Path) -> None:
    save_weights(tiny(TinyConfig()), tmp_path / "t.safetensors", layout="ldm", format_=same_as_model("sd1", 4))
    vae = VAE(load_weights(tmp_path / "t.safetensors"))
    refused(lambda: vae.encode(X.clone().requires_grad_()), "the pixels", "module")
    vae.module.requires_grad_(True)
    refused(lambda: vae.decode(Z), "its weights", "module")


def test_what_loading_gives_requires_none(vae: VAE) -> None:
    assert not any(p.requires_grad for p in vae.module.parameters())
    assert torch.is_grad_enabled()
    assert not vae.encode(X).mode().requires_grad
    assert not vae.decode(Z).requires_grad
