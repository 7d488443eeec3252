"""Video autoencoders of diffusers, of which calotype computes single frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from calotype.errors import UsageError
from calotype.integrations.drop_in import DropIn
from calotype.vae import VAE
from calotype.weights.load import Loaded, without_weights


class OfFrames(DropIn):
    """A `DropIn` for a video's autoencoder: pixels [N, P, 1, H, W] and latents [N, C, 1, h, w] are of one frame.

    For one frame a third of its weights count: the last slice of each kernel over time. What `calotype.load` returns,
    and so what `from_pretrained` loads, are those alone: a third of the memory, the same pictures, gradients and
    adapters, but no videos, and no folder that diffusers' own class could load is written. `accelerate` starts from
    weights that are in memory already, and so keeps them all: pictures are computed by slices of them, which take no
    memory of their own on the CPU, and videos, `save_pretrained` and all else are diffusers' own. What it keeps is
    moved as diffusers' own is: what a narrower type rounds stays so.
    """

    _tiles_are_moments = True
    _whole = False  # whether the modules have all slices

    def _take(self, loaded: Loaded, module: ModelMixin, tensors: Mapping[str, Tensor]) -> None:
        self._whole = True
        bare = without_weights(loaded.module.config, loaded.parts)
        self._begin(replace(loaded, module=bare), module.config)
        self._vae = self._make(module.device, module.dtype, "", loaded)
        self._finish(tensors, None)

    def _begin(self, own: Loaded, fields: Mapping[str, Any]) -> None:
        super()._begin(own, fields)
        if not self._whole:
            _cut(self)

    def _anew(self, device: torch.device, dtype: torch.dtype, name: str) -> VAE:
        if not self._whole:
            return super()._anew(device, dtype, name)
        elsewhere = device.type == "meta"  # where there is nothing to compute with, which is said when it is tried
        own = self._own if elsewhere else replace(self._own, module=self._network())
        return self._make(device, dtype, name, own)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if not self._whole:
            return super()._apply(fn, recurse)
        *_, moves = self._target(fn)
        super(DropIn, self)._apply(fn, recurse)
        if moves:
            self._vae = None
        return self

    def _computing(self, x: Tensor, sides: int = 1) -> VAE | None:
        if x.ndim != 5:
            raise UsageError(
                f"An {self._name()} takes pixels and latents of frames, [N, C, frames, height, width], and these are "
                f"{list(x.shape)}; give a picture as a single frame, with [:, :, None]."
            )
        if x.shape[2] == 1:
            return super()._computing(x, sides)
        if self._whole:
            return None
        raise UsageError(
            f"These are {x.shape[2]} frames, and this VAE has what a single one needs: of its kernels over time the "
            f"last slice. Videos need diffusers' own {self._name()}, or what accelerate(pipe) makes of it."
        )

    def _picture(self, x: Tensor) -> Tensor:
        return x[:, :, 0]

    def _as_given(self, x: Tensor, given: Tensor) -> Tensor:
        return x[:, :, None]

    def _require_all(self) -> None:
        super()._require_all()
        if not self._whole:
            raise UsageError(
                f"This VAE has what one picture needs, and the folder of an {self._name()} holds more: kernels over "
                f"time. Save diffusers' own, or what accelerate(pipe) made of it; `calotype convert --layout "
                f"diffusers-2d` writes what there is."
            )


def _cut(module: ModelMixin) -> None:
    """Leaves of kernels over time the slice that acts on a single frame, and of convolutions over time alone nothing.

    Before the first frame stand zeros, and convolutions of time alone are called from the second on.
    """
    parts: list[tuple[str, Any]] = list(module.named_modules())
    for name, child in parts:
        over_time = isinstance(child, nn.Conv3d)
        if name.endswith("time_conv"):
            child.weight = child.bias = None
        elif over_time and child.kernel_size[0] > 1:
            child.kernel_size = (1, *child.kernel_size[1:])
            child._padding = (*child._padding[:4], 0, 0)
            child.weight = nn.Parameter(child.weight[:, :, -1:], requires_grad=False)
