"""A calotype VAE where a diffusers pipeline expects diffusers' own AutoencoderKL."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from calotype.errors import UsageError
from calotype.families import family_of
from calotype.gradients import differentiated
from calotype.integrations.pretrained import load_pretrained
from calotype.latents import Packed
from calotype.vae import VAE
from calotype.weights.load import build
from calotype.weights.save import as_diffusers, diffusers_config

try:
    from diffusers import AutoencoderKL as Diffusers
    from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
    from diffusers.models.modeling_outputs import AutoencoderKLOutput
    from diffusers.utils.accelerate_utils import apply_forward_hook
except ImportError:
    raise UsageError(
        "Pipelines need diffusers 0.42 or later; install it with: pip install 'calotype[diffusers]'"
    ) from None

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class AutoencoderKL(Diffusers):
    """diffusers' AutoencoderKL, computed by a `VAE`: ``pipe.vae = AutoencoderKL(calotype.load(...))``.

    It is a subclass with the same modules, so keys, LoRA adapters, hooks and ``isinstance`` are as there. `encode` and
    `decode` are computed by the VAE as long as it computes the same: where a gradient is asked for, a module was
    replaced (LoRA), hooked or padded otherwise, or torch traces or compiles, diffusers' own code computes. Weights that
    were changed count. It holds a copy of the weights, so moving a pipeline leaves `vae` alone; none of them asks for a
    gradient until ``requires_grad_()``.

    What `enable_tiling` and `enable_slicing` are for, a `VAE` does by itself and exactly: results are the same with
    and without them. ``StableDiffusionImg2ImgPipeline.from_pipe(pipe)`` takes over diffusers' own class only; add
    ``vae=pipe.vae``.

    Args:
        vae: an AutoencoderKL of SD1, SD2, SDXL, SD3 or FLUX.1; its device and dtype are where this starts.

    Raises:
        UsageError: for other networks (FLUX.2, TAESD, the built-in one), which pipelines use differently.
        LatentFormatError: if the weights do not say how latents are scaled; give `latent_format` to `calotype.load`.
    """

    _supports_group_offloading = False  # its hooks sit on layers, and a VAE may compute without calling them

    def __init__(self, vae: VAE) -> None:
        if not isinstance(vae, VAE):
            raise UsageError(f"AutoencoderKL takes what calotype.load returns, not {type(vae).__name__}.")
        config, loaded = vae.config, vae.loaded
        if not _is_known(vae):
            raise UsageError(
                f"{vae!r} is not what pipelines know as an AutoencoderKL; those of SD1, SD2, SDXL, SD3 and FLUX.1 are."
            )
        format_ = loaded.format if "scaling_factor" in loaded.kept else vae.latent_format
        # some pipelines read these two without asking whether they are there
        values = {"latents_mean": None, "latents_std": None, **diffusers_config(config, format_, loaded.kept)}
        with torch.device("meta"):
            super().__init__(**{key: value for key, value in values.items() if not key.startswith("_")})
        for name in ("encoder", "quant_conv", "decoder", "post_quant_conv"):
            if not hasattr(vae.module, name):  # half a VAE, or a network without this convolution
                setattr(self, name, None)
        # what a pipeline's save_pretrained writes into model_index.json: `save_pretrained` leaves diffusers' own files
        self.__module__ = "diffusers"
        self.requires_grad_(False).eval()
        self._own = replace(loaded, module=copy.deepcopy(loaded.module))
        self._vae: VAE | None = self._make(vae.device, vae.dtype, vae.name)
        self.load_state_dict(self._tensors(self._vae), strict=True, assign=True)
        self._made = self._modules_now()
        self._mark()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> AutoencoderKL:
        """Loads a VAE from a folder, a file in any layout, a preset's name, or a repository of the hub.

        Args:
            options: `subfolder`, `torch_dtype` (float32 where not given), `variant`, `device_map` (a device),
                `latent_format` as for `calotype.load`; for the hub `revision`, `token`, `cache_dir`,
                `local_files_only` and `force_download`; and fields of the configuration that are no part of the
                network, like `force_upcast`.

        Raises:
            UsageError: for other options, or where there is nothing of that name.
            WeightsError: if there are no usable weights there.
            FetchError: if the hub can't be reached.
        """
        vae, fields = load_pretrained(pretrained_model_name_or_path, options)
        made = cls(vae)
        made.register_to_config(**{**made.config, **fields})
        return made

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | os.PathLike[str], **options: Any) -> AutoencoderKL:
        """As `from_pretrained`, of one file: a VAE alone, or a whole checkpoint."""
        return cls.from_pretrained(pretrained_model_link_or_path, **options)

    @classmethod
    def from_config(cls, config: Any = None, **options: Any) -> AutoencoderKL:
        """Not here: this class has no weights of its own.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "AutoencoderKL of calotype is made of weights, with from_pretrained or of what calotype.load returns; "
            "diffusers' own class makes random ones from a configuration."
        )

    # --- the weights, and who computes with them ---

    def _make(self, device: torch.device, dtype: torch.dtype, name: str) -> VAE:
        vae = VAE(self._own, name=name, device=device, dtype=dtype)
        if device.type == "cuda":  # as it computes there: else it would keep a second copy
            vae.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return vae

    def _tensors(self, vae: VAE) -> dict[str, Tensor]:
        """A VAE's weights under diffusers' keys and in its shapes, not copied."""
        tensors = {key: value.detach() for key, value in vae.module.state_dict().items()}
        return as_diffusers(tensors, self._own.module.config)

    def _modules_now(self) -> list[tuple[object, ...]] | None:
        """What there is of modules; None where one of them is hooked or computes in its own way."""
        found: list[tuple[object, ...]] = []
        for name, module in self.named_modules():
            if module is self:
                continue
            has = module.__dict__
            if module._forward_hooks or module._forward_pre_hooks or "forward" in has or "_conv_forward" in has:
                return None
            processor = type(has.get("processor")).__module__.partition(".")[0]
            found.append((name, type(module), has.get("padding_mode"), has.get("eps"), processor))
        return found

    def _mark(self) -> None:
        """Notes the weights as they are now."""
        self._marks = list(self._weights_now())

    def _weights_now(self) -> Iterator[object]:
        """Each parameter, how often it was written to, and a few of its numbers: `.data` is written to uncounted."""
        for parameter in self.parameters():
            yield parameter
            yield parameter.data_ptr() if parameter.is_inference() else parameter._version
        parameters = [p.detach() for p in self.parameters() if p.device.type != "meta"]
        with torch.no_grad():
            yield (
                torch.cat(
                    [
                        p.as_strided((min(16, p.numel()),), (max(1, p.numel() // 16),), p.storage_offset())
                        for p in parameters
                    ]
                )
                if parameters
                else None
            )

    def _unchanged(self) -> bool:
        now = list(self._weights_now())
        if len(now) != len(self._marks):
            return False
        *before, numbers = self._marks
        same = all(a is b or (type(a) is int and a == b) for a, b in zip(before, now, strict=False))
        last = now[-1]
        return same and (
            numbers is last or (isinstance(numbers, Tensor) and isinstance(last, Tensor) and torch.equal(numbers, last))
        )

    def _current(self) -> VAE | None:
        """The VAE that computes what the modules do, made anew if weights were changed; None where only they can."""
        if self._modules_now() != self._made:
            return None
        weights = list(self.parameters())
        kinds = {(p.device, p.dtype) for p in weights}
        device, dtype = next(iter(kinds))
        if len(kinds) > 1 or dtype not in DTYPES:
            return None
        if self._vae is not None and (device.type == "meta" or self._unchanged()):
            return self._vae
        vae = self._make(device, dtype, self._vae.name if self._vae else "")
        own, mine = self._tensors(vae), dict(self.named_parameters())
        if all(torch.equal(own[key], mine[key]) for key in mine):  # after a copy: the numbers are those in `_own`
            for key, parameter in mine.items():
                parameter.data = own[key]
        else:
            config = self._own.module.config
            known = family_of(config).diffusers
            assert known is not None
            tensors = {}
            for key, parameter in mine.items():
                name = known.ours(key, config)
                assert name is not None, key
                value = parameter.detach()
                tensors[name] = value[:, :, None, None] if known.linear(name) else value
            module = build(config, self._own.parts, tensors, where="AutoencoderKL")
            self._own = replace(self._own, module=module, sha256="")
            vae = self._make(device, dtype, vae.name)
        self._vae = vae
        self._mark()
        return vae

    def _computing(self, x: Tensor) -> VAE | None:
        """Who computes: a VAE, or None for diffusers' own code.

        Raises:
            UsageError: if the weights are not here.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return None
        if torch.is_grad_enabled() and (differentiated(x) or any(p.requires_grad for p in self.parameters())):
            return None
        vae = self._current()
        if vae is not None and self.device.type == "meta":
            raise UsageError(
                "The weights are not here: this VAE was moved to the device 'meta'; move it to where it shall run."
            )
        return vae

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AutoencoderKL:
        """What `to`, `half`, `cuda` and their like end in: another device or dtype is another VAE."""
        weight = next(self.parameters())
        target = fn(weight.new_empty(0))
        moves = (target.device, target.dtype) != (weight.device, weight.dtype)
        if moves and target.dtype not in DTYPES:
            raise UsageError(f"A VAE computes in float32, bfloat16 or float16, not {target.dtype}.")
        before = self._current()
        if before is None or not moves:
            super()._apply(fn, recurse)
            if before is not None:  # another memory format
                self._mark()
            return self
        self._own.module.cpu()  # where it costs no memory of the device while a narrower copy computes there
        vae = self._make(target.device, target.dtype, before.name)
        own = self._tensors(vae)
        # parameters stay the objects that they are; their numbers are those of before any narrowing
        numbers = {id(parameter): own[key] for key, parameter in self.named_parameters()}

        def moved(tensor: Tensor) -> Tensor:
            return fn(numbers.get(id(tensor), tensor))

        super()._apply(moved, recurse)
        self._vae = vae
        self._mark()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made again when it is needed."""
        return {**self.__dict__, "_vae": None, "_marks": []}

    # --- what a pipeline calls ---

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Pixels [N, P, H, W] in [-1, 1] -> an output whose `latent_dist` is over raw latents; see `VAE.encode`.

        Its moments have the dtype of this module, and are diffusers' own class, so samples are drawn as there.
        """
        vae = self._computing(x)
        if vae is None:
            return super().encode(x, return_dict=return_dict)
        posterior = DiagonalGaussianDistribution(vae.encode(x.detach()).moments.to(self.dtype))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Raw latents [N, C, h, w] -> an output whose `sample` is pixels [N, P, h*f, w*f], about [-1, 1], not clamped.

        Args:
            generator: some pipelines give one; nothing is drawn.
        """
        vae = self._computing(z)
        if vae is None:
            return super().decode(z, return_dict=return_dict)
        pixels = vae.decode(z.detach(), clamp=False).to(self.dtype)
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)

    def tiled_encode(
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """As `encode`: without tiles, and so without seams."""
        return self.encode(x, return_dict) if self._computing(x) else super().tiled_encode(x, return_dict)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """As `decode`: without tiles, and so without seams."""
        return self.decode(z, return_dict) if self._computing(z) else super().tiled_decode(z, return_dict)

    @functools.wraps(Diffusers.save_pretrained)
    def save_pretrained(self, save_directory: str | os.PathLike[str], *arguments: Any, **options: Any) -> None:
        """Writes a folder that diffusers' own AutoencoderKL loads, in the dtype of this module.

        Raises:
            UsageError: if only an encoder or a decoder was loaded.
        """
        if len(self._own.parts) < 2:
            (part,) = self._own.parts
            raise UsageError(
                f"This VAE has only the {part}, and diffusers' folder holds both; load the other half too."
            )
        super().save_pretrained(save_directory, *arguments, **options)


def _is_known(vae: VAE) -> bool:
    """Whether diffusers' AutoencoderKL can hold it: FLUX.2's have a class of their own, for packed latents too."""
    known = family_of(vae.config).diffusers
    if (
        known is None
        or Diffusers.__name__ not in known.classes
        or known.written is None
        or isinstance(vae.loaded.format, Packed)
    ):
        return False
    try:
        values = known.written(vae.config)
    except UsageError:  # a network that no class of diffusers has
        return False
    return (
        "decoder_block_out_channels" not in values
        and values.get("_class_name", Diffusers.__name__) == Diffusers.__name__
    )
