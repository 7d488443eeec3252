"""What calotype's classes in the place of diffusers' autoencoders have in common."""

from __future__ import annotations

import copy
import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from calotype.errors import UsageError, WeightsError
from calotype.families import family_of
from calotype.families.face import Diffusers
from calotype.families.network import Network
from calotype.gradients import differentiated
from calotype.hollow import hollow
from calotype.integrations.pretrained import load_pretrained
from calotype.latents import Packed
from calotype.vae import VAE
from calotype.weights.load import Loaded, build, load_tensors
from calotype.weights.mapped import dtype_name
from calotype.weights.save import as_diffusers, diffusers_config, statistics

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class DropIn(ModelMixin):
    """One of diffusers' autoencoders, computed by a `VAE`; its second base is the class that it stands in for.

    It has the same modules as that class, so keys, LoRA adapters, hooks and ``isinstance`` are as there. `encode` and
    `decode` are computed by the VAE as long as it computes the same: where a gradient is asked for, a module was
    replaced (LoRA), hooked or padded otherwise, drops out while it trains, or torch traces or compiles, and for sides
    that are no multiple of f, diffusers' own code computes. Weights that were changed count. None of them asks for a
    gradient until ``requires_grad_()``.

    What `enable_tiling` and `enable_slicing` are for, a `VAE` does by itself and exactly: results are the same with
    and without them. Pipelines' ``from_pipe`` takes over diffusers' own class only; add ``vae=pipe.vae``.
    """

    _supports_group_offloading = False  # its hooks sit on layers, and a VAE may compute without calling them
    _known_as: ClassVar[str]  # which VAEs are of this class, for messages
    _tiles_are_moments: ClassVar[bool] = False  # whether that class's `tiled_encode` gives these, and no output
    _encode_dtype: torch.dtype | None = None
    _vae: VAE | None
    _beside: Mapping[str, Tensor]  # statistics that pipelines read, and no network

    def __init__(self, vae: VAE) -> None:
        if not isinstance(vae, VAE):
            raise UsageError(f"{self._name()} takes what calotype.load returns, not {type(vae).__name__}.")
        known = family_of(vae.config).diffusers
        told = known.classes.get(self._name()) if known else None
        if told is None or told.packs != isinstance(vae.loaded.format, Packed) or not told.holds(vae.config):
            raise self._refused(vae)
        own = replace(vae.loaded, module=copy.deepcopy(vae.loaded.module))
        self._begin(own, self._fields(vae))
        self._vae = self._make(vae.device, vae.dtype, vae.name)
        if isinstance(vae.loaded.format, Packed):
            self._beside = statistics(vae.loaded.format)
        beside = {key: _as(value, vae.dtype).to(vae.device) for key, value in self._beside.items()}
        self._finish({**self._tensors(self._vae), **beside}, vae)

    @classmethod
    def of(cls, module: ModelMixin) -> Self:
        """One made of the weights of diffusers' own class, which are taken over and not copied.

        Raises:
            WeightsError: if it does not hold the weights of a VAE that calotype knows.
            UsageError: if no VAE computes in their type.
        """
        if module.dtype not in DTYPES:
            raise _unknown(module.dtype)
        tensors = module.state_dict()
        loaded = load_tensors(tensors, {**module.config, "_class_name": cls._name()}, where=cls._name())
        known = family_of(loaded.module.config).diffusers
        if (
            known is None
            or cls._name() not in known.classes
            or not known.classes[cls._name()].holds(loaded.module.config)
        ):
            raise WeightsError(f"This is no ordinary {cls._name()}: it decodes to other pictures than calotype does.")
        made: Self = cls.__new__(cls)
        made._take(loaded, module, tensors)
        for key, value in vars(module).items():
            if key.startswith(("use_", "tile_")):
                setattr(made, key, value)
        return made

    def _take(self, loaded: Loaded, module: ModelMixin, tensors: Mapping[str, Tensor]) -> None:
        """What `__init__` does, for weights in memory."""
        self._begin(loaded, module.config)
        self._vae = self._make(module.device, module.dtype, "")
        own = self._tensors(self._vae)
        self._beside = {key: value.detach() for key, value in tensors.items() if key not in own}
        self._finish({**own, **self._beside}, None)

    def _begin(self, own: Loaded, fields: Mapping[str, Any]) -> None:
        """The modules without weights, and what they are to hold."""
        values = {
            name: fields.get(name, parameter.default)  # diffusers notes what was left out
            for name, parameter in inspect.signature(self._theirs()).parameters.items()
            if name in fields or parameter.default is not parameter.empty
        }
        with hollow():
            super().__init__(**values)
        for name in ("encoder", "quant_conv", "decoder", "post_quant_conv"):
            if hasattr(self, name) and not hasattr(own.module, name):  # half a VAE, or one without this convolution
                setattr(self, name, None)
        # what a pipeline's save_pretrained writes into model_index.json: `save_pretrained` leaves diffusers' own files
        self.__module__ = "diffusers"
        self.requires_grad_(False).eval()
        self._own = own
        self._vae = None
        self._beside = {}

    def _finish(self, tensors: Mapping[str, Tensor], vae: VAE | None) -> None:
        """Gives the modules their weights."""
        shapes = {key: value.shape for key, value in self.state_dict().items()}
        if vae is not None and {key: value.shape for key, value in tensors.items()} != shapes:
            raise self._refused(vae)
        self.load_state_dict(tensors, strict=True, assign=True)
        self._made = self._modules_now()
        self._mark()

    @classmethod
    def _theirs(cls) -> Any:
        """The class that this stands in for."""
        return next(base for base in cls.__mro__ if base.__module__.startswith("diffusers."))

    @classmethod
    def _name(cls) -> str:
        return str(cls._theirs().__name__)

    @classmethod
    def _refused(cls, vae: VAE) -> UsageError:
        return UsageError(f"{vae!r} is not what pipelines know as an {cls._name()}; {cls._known_as}.")

    @classmethod
    def _fields(cls, vae: VAE) -> dict[str, Any]:
        """What the configuration says of a VAE."""
        loaded = vae.loaded
        format_ = loaded.format if "scaling_factor" in loaded.kept else vae.latent_format
        values = diffusers_config(vae.config, format_, loaded.kept)
        return {key: value for key, value in values.items() if not key.startswith("_")}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Self:
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
    def from_single_file(cls, pretrained_model_link_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """As `from_pretrained`, of one file: a VAE alone, or a whole checkpoint."""
        return cls.from_pretrained(pretrained_model_link_or_path, **options)

    @classmethod
    def from_config(cls, config: Any = None, **options: Any) -> Self:
        """Not here: this class has no weights of its own.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{cls._name()} of calotype is made of weights, with from_pretrained or of what calotype.load returns; "
            f"diffusers' own class makes random ones from a configuration."
        )

    # --- the weights, and who computes with them ---

    @property
    def encode_dtype(self) -> torch.dtype:
        """What `encode` computes in: the dtype of this module, as in diffusers' own class, unless it was set.

        Set to float32 it gives the latents of float32 in a pipeline of a narrower type, by a copy of the encoder.
        """
        return self._encode_dtype or self.dtype

    @encode_dtype.setter
    def encode_dtype(self, dtype: torch.dtype) -> None:
        if dtype not in DTYPES:
            raise _unknown(dtype)
        self._encode_dtype = dtype
        if self._vae is not None:
            self._vae.encode_dtype = dtype

    @property
    def _known(self) -> Diffusers:
        known = family_of(self._own.module.config).diffusers
        assert known is not None
        return known

    def _make(self, device: torch.device, dtype: torch.dtype, name: str, own: Loaded | None = None) -> VAE:
        vae = VAE(own or self._own, name=name, device=device, dtype=dtype, encode_dtype=self._encode_dtype or dtype)
        if device.type == "cuda":  # as it computes there: else it would keep a second copy
            vae.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return vae

    def _mine(self) -> dict[str, Tensor]:
        """The modules' weights: parameters, and statistics that the network computes with."""
        tensors: dict[str, Tensor] = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return {key: value for key, value in tensors.items() if key not in self._beside}

    def _tensors(self, vae: VAE) -> dict[str, Tensor]:
        """A VAE's weights under diffusers' keys and in its shapes, not copied."""
        tensors = {key: value.detach() for key, value in vae.module.state_dict().items()}
        shapes = {key: value.shape for key, value in self._mine().items()}
        named = as_diffusers(tensors, self._own.module.config)
        # norms may have dimensions of one that files lack, and kernels one of time
        return {
            key: value.reshape(shapes[key]) if key in shapes and value.numel() == shapes[key].numel() else value
            for key, value in named.items()
        }

    def _network(self) -> Network:
        """The modules as they are now, as a network of calotype's, which shares their memory where it can."""
        module, known, mine = self._own.module, self._known, self._mine()
        taken = family_of(module.config).taken
        tensors = {}
        for key in module.state_dict():
            names = known.parted(key, module.config) or (known.theirs(key, module.config) or "",)
            parts = [mine[name].detach() for name in names]
            value = torch.cat(parts) if len(parts) > 1 else parts[0]
            value = value[:, :, None, None] if known.linear(key) else value
            tensors[key] = taken(module.config, key, value)
        return build(module.config, self._own.parts, tensors, where=self._name())

    def _modules_now(self) -> list[tuple[object, ...]] | None:
        """What there is of modules; None where one of them is hooked or computes in its own way."""
        found: list[tuple[object, ...]] = []
        for name, module in self.named_modules():
            if module is self:
                continue
            has = module.__dict__
            if module._forward_hooks or module._forward_pre_hooks or "forward" in has or "_conv_forward" in has:
                return None
            if module.training and (isinstance(module, _BatchNorm) or (isinstance(module, _DropoutNd) and module.p)):
                return None
            processor = type(has.get("processor")).__module__.partition(".")[0]
            found.append((name, type(module), has.get("padding_mode"), has.get("eps"), processor))
        return found

    def _mark(self) -> None:
        """Notes the weights as they are now."""
        self._marks = list(self._weights_now())

    def _weights_now(self) -> Iterator[object]:
        """Each of them, how often it was written to, and a few of its numbers: `.data` is written to uncounted."""
        weights = list(self._mine().values())
        for weight in weights:
            yield weight
            yield weight.data_ptr() if weight.is_inference() else weight._version
        here = [weight.detach() for weight in weights if weight.device.type != "meta"]
        with torch.no_grad():
            yield (
                torch.cat(
                    [p.as_strided((min(16, p.numel()),), (max(1, p.numel() // 16),), p.storage_offset()) for p in here]
                )
                if here
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
        kinds = {(p.device, p.dtype) for p in self.parameters()}
        device, dtype = next(iter(kinds))
        if len(kinds) > 1 or dtype not in DTYPES:
            return None
        if self._vae is not None and (device.type == "meta" or self._unchanged()):
            return self._vae
        self._vae = self._anew(device, dtype, self._vae.name if self._vae else "")
        self._mark()
        return self._vae

    def _anew(self, device: torch.device, dtype: torch.dtype, name: str) -> VAE:
        """A VAE with the weights as they are now."""
        vae = self._make(device, dtype, name)
        own, mine = self._tensors(vae), self._mine()
        if not all(torch.equal(own[key], mine[key]) for key in mine):
            module = self._network()
            self._own = replace(self._own, module=module, sha256="", dtypes=(dtype_name(dtype),))
            vae = self._make(device, dtype, name)
            own = self._tensors(vae)
            joined = [self._known.parted(key, module.config) for key in module.state_dict()]
            mine = {name: mine[name] for names in joined for name in names}  # the others share memory already
        for key, weight in mine.items():  # after a copy: the numbers are those in `_own`
            weight.data = own[key]
        return vae

    def _computing(self, x: Tensor, sides: int = 1) -> VAE | None:
        """Who computes: a VAE, or None for diffusers' own code.

        Args:
            x: what goes in.
            sides: what its height and width must be multiples of.

        Raises:
            UsageError: if the weights are not here.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return None
        if torch.is_grad_enabled() and (differentiated(x) or any(p.requires_grad for p in self.parameters())):
            return None
        if any(n % sides for n in x.shape[-2:]):  # they cut off what is over, where `VAE.encode` keeps it
            return None
        vae = self._current()
        if vae is not None and self.device.type == "meta":
            raise UsageError(
                "The weights are not here: this VAE was moved to the device 'meta'; move it to where it shall run."
            )
        return vae

    def _target(self, fn: Callable[[Tensor], Tensor]) -> tuple[torch.device, torch.dtype, bool]:
        """Where weights are moved to, what they become, and whether they do.

        Raises:
            UsageError: if no VAE computes in that.
        """
        weight = next(self.parameters())
        target = fn(weight.new_empty(0))
        moves = (target.device, target.dtype) != (weight.device, weight.dtype)
        if moves and target.dtype not in DTYPES:
            raise _unknown(target.dtype)
        return target.device, target.dtype, moves

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `half`, `cuda` and their like end in: another device or dtype is another VAE."""
        device, dtype, moves = self._target(fn)
        before = self._current()
        if before is None or not moves:
            super()._apply(fn, recurse)
            if before is not None:  # another memory format
                self._mark()
            return self
        self._own.module.cpu()  # where it costs no memory of the device while a narrower copy computes there
        if self._own.dtypes == (dtype_name(dtype),):  # its numbers were of that type, and lose nothing
            self._own.module.to(dtype)
        vae = self._make(device, dtype, before.name)
        own = self._tensors(vae)
        # parameters stay the objects that they are; their numbers are those of before any narrowing
        numbers = {id(weight): own[key] for key, weight in self._mine().items()}
        for key, value in self._beside.items():
            weight = self.get_buffer(key)
            if weight.device.type != "meta" and torch.equal(_as(value, weight.dtype).to(weight.device), weight):
                numbers[id(weight)] = value

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
    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Pixels [N, P, H, W] in [-1, 1] -> an output whose `latent_dist` is over raw latents; see `VAE.encode`.

        Its moments have the dtype of this module, and are diffusers' own class, so samples are drawn as there.
        """
        vae = self._computing(x, self._own.module.config.factor)
        if vae is None:
            return super().encode(x, return_dict=return_dict)
        moments = vae.encode(self._picture(x.detach())).moments.to(self.dtype)
        output = self._encoded(self._as_given(moments, x))
        return output if return_dict else output.to_tuple()

    @apply_forward_hook
    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> Any:
        """Raw latents [N, C, h, w] -> an output whose `sample` is pixels [N, P, h*f, w*f], about [-1, 1].

        They are limited to [-1, 1] where diffusers' own class does it.

        Args:
            return_dict: False gives a tuple of the pixels alone.
            generator: some pipelines give one; nothing is drawn.
        """
        vae = self._computing(z)
        if vae is None:
            return super().decode(z, return_dict=return_dict)
        pixels = vae.decode(self._picture(z.detach()), clamp=family_of(vae.config).clamps).to(self.dtype)
        output = DecoderOutput(sample=self._as_given(pixels, z))
        return output if return_dict else output.to_tuple()

    def _encoded(self, moments: Tensor) -> Any:
        """What `encode` gives."""
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    def _picture(self, x: Tensor) -> Tensor:
        """What was given, without dimensions that pictures do not have."""
        return x

    def _as_given(self, x: Tensor, given: Tensor) -> Tensor:
        """A result, with the dimensions that were given."""
        return x

    def tiled_encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """As `encode`: without tiles, and so without seams."""
        computes = self._computing(x, self._own.module.config.factor) is not None
        if self._tiles_are_moments:
            return self.encode(x).latent_dist.parameters if computes else super().tiled_encode(x)
        return self.encode(x, return_dict=return_dict) if computes else super().tiled_encode(x, return_dict)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> Any:
        """As `decode`: without tiles, and so without seams."""
        if self._computing(z):
            return self.decode(z, return_dict=return_dict)
        return super().tiled_decode(z, return_dict)

    @functools.wraps(ModelMixin.save_pretrained)
    def save_pretrained(self, save_directory: str | os.PathLike[str], *arguments: Any, **options: Any) -> None:
        """Writes a folder that diffusers' own class loads, in the dtype of this module.

        Raises:
            UsageError: if what was loaded is not all that diffusers' class holds.
        """
        self._require_all()
        super().save_pretrained(save_directory, *arguments, **options)

    def _require_all(self) -> None:
        """Checks that this holds all that diffusers' class does."""
        if len(self._own.parts) < 2:
            (part,) = self._own.parts
            raise UsageError(
                f"This VAE has only the {part}, and diffusers' folder holds both; load the other half too."
            )


def _unknown(dtype: torch.dtype) -> UsageError:
    return UsageError(f"A VAE computes in float32, bfloat16 or float16, not {dtype}.")


def _as(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value
