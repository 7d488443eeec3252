"""What a weight file holds, told from its tensors' names and shapes alone. No torch, no file names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from calotype.errors import UsageError, WeightsError
from calotype.families.face import Shapes, Told, listing
from calotype.weights.groups import Choice, Weights, choose
from calotype.weights.others import other_autoencoder, other_model, quantised

# How latents of Playground v2.5 are normalised: tensors beside its single file's.
EDM = ("edm_mean", "edm_std")

# The rest of a whole checkpoint tells which family its VAE belongs to: (part of some key, latent format)
COMPANY = (
    (".conditioner.embedders.1.", "sdxl"),
    (".cond_stage_model.", "sd1"),
    (".model.diffusion_model.joint_blocks.", "sd3"),
    (".mm_di_t.", "sd3"),  # keras-hub
    (".model.diffusion_model.double_blocks.", "flux"),
)


@dataclass(frozen=True, kw_only=True)
class Detected(Told):
    """A VAE found in a file."""

    prefix: str  # what stands before every key of the VAE
    choice: Choice  # what else was in the file
    family: str | None  # latent format, where the rest of the file tells it


def detect(
    shapes: Shapes,
    *,
    norm_groups: int | None = None,
    prefix: str | None = None,
    weights: Weights | None = None,
    same: Callable[[str, str], bool] = lambda a, b: False,
) -> Detected:
    """Finds the VAE among tensors.

    Args:
        shapes: every tensor of the file.
        norm_groups: groups of the norms, which shapes can't tell; 32 where not given.
        prefix, weights: which VAE, where there are several.
        same: whether two tensors, by their keys, hold the same numbers: equal VAEs need no choice.

    Raises:
        WeightsError: if there is no VAE, not a whole one, or several.
        UsageError: if there is none under the prefix, or none averaged.
    """
    if not shapes:
        raise WeightsError("the file holds no tensors")
    choice = choose(shapes, prefix, weights, same)
    if choice is None:
        raise WeightsError(_what_else(shapes))
    group = choice.group
    if said := quantised(group.keys):
        raise WeightsError(said)
    try:
        told = group.family.tell(shapes, group, norm_groups)
    except UsageError as error:  # of a configuration that can't be
        raise WeightsError(str(error)) from None
    company = next((f for start, f in COMPANY if group.prefix and any(start in f".{key}" for key in shapes)), None)
    return Detected(
        **vars(told),
        prefix=group.prefix,
        choice=choice,
        family=company if told.layout in ("ldm", "diffusers") else None,
    )


def _what_else(shapes: Shapes) -> str:
    if other := other_autoencoder(shapes, anywhere=True):
        return f"the file holds {other}"
    if what := other_model(shapes):
        return f"the file holds {what}, not a VAE"
    return f"the file holds no VAE: {listing('its', sorted(shapes))}"
